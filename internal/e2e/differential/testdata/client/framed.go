package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// framed: URL SIZE: speaks HTTP/2 by hand on one connection: stream 1 asks for a slow
// answer, stream 3 has a head of SIZE bytes, stream 5 asks for URL. It notes how each
// ended, and whether the connection did.
func framed(r *report, args []string) {
	target, err := url.Parse(args[0])
	if err != nil {
		r.fail(err)
		return
	}
	raw, err := dial(target)
	if err != nil {
		r.fail(err)
		return
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{ServerName: target.Hostname(), NextProtos: []string{"h2"}})
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := conn.Handshake(); err != nil {
		r.fail(err)
		return
	}
	fmt.Fprint(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(65536, nil)
	_ = framer.WriteSettings() // a failure shows when it reads
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	big := 0
	fmt.Sscan(args[1], &big)
	for id, path := range []string{"/poll", "/echo", "/echo"} {
		head(framer, encoder, &block, target.Host, uint32(2*id+1), path, big*boolInt(id == 1))
		time.Sleep(200 * time.Millisecond) // the ways of the streams are not to cross
	}
	watch(r, framer)
}

func head(framer *http2.Framer, encoder *hpack.Encoder, block *bytes.Buffer, host string, id uint32, path string, more int) {
	block.Reset()
	fields := []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: host}, {Name: ":path", Value: path}}
	for i := range more / 1000 {
		fields = append(fields, hpack.HeaderField{Name: fmt.Sprintf("x-more-%d", i), Value: strings.Repeat("m", 960)})
	}
	for _, field := range fields {
		_ = encoder.WriteField(field) // into a buffer
	}
	data := block.Bytes()
	first := data[:min(len(data), 16000)]
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: true, EndHeaders: len(first) == len(data)})
	for data = data[len(first):]; len(data) > 0; {
		next := data[:min(len(data), 16000)]
		data = data[len(next):]
		_ = framer.WriteContinuation(id, len(data) == 0, next)
	}
}

// watch reads until each of the streams has ended.
func watch(r *report, framer *http2.Framer) {
	ended := map[uint32]bool{}
	for len(ended) < 3 {
		frame, err := framer.ReadFrame()
		if err != nil {
			r.fail(err)
			return
		}
		stream := fmt.Sprintf("stream %d", frame.Header().StreamID)
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck() // as above
			}
		case *http2.MetaHeadersFrame:
			r.set(stream, frame.PseudoValue("status"))
			ended[frame.StreamID] = true
		case *http2.RSTStreamFrame:
			if !ended[frame.StreamID] {
				r.set(stream, frame.ErrCode)
			}
			ended[frame.StreamID] = true
		case *http2.GoAwayFrame:
			r.set("goaway", frame.ErrCode)
		}
	}
}
