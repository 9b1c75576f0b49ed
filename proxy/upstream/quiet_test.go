package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestQuietStream leaves an HTTP/2 stream quiet for an hour. A gRPC server allows
// one ping in five minutes without frames of headers or data in between, and ends
// the connection at the third that is too early (gRPC A8, "Server Enforcement").
func TestQuietStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		transport := testenv.MustGet(NewPools(nil, nil).transport(&authz.Admission{}, H2C, wideStream, wideConnection, new(HostSet)))(t)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return ours, nil }
		ended := make(chan int, 1)
		go func() { ended <- quietServer(theirs, time.Hour) }()
		response, err := transport.RoundTrip(&http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "http", Host: "a", Path: "/"}, Header: http.Header{}})
		testenv.Must(t, err)
		body, err := io.ReadAll(response.Body)
		if err != nil || string(body) != "last" {
			t.Errorf("the stream ended with %q, %v", body, err)
		}
		transport.CloseIdleConnections()
		if pings := <-ended; pings > 0 {
			t.Errorf("%d pings were sent for a plugin that sent none", pings)
		}
	})
}

// quietServer answers one request over HTTP/2, its last byte after quiet, and
// returns how many pings it got.
func quietServer(c net.Conn, quiet time.Duration) (pings int) {
	defer c.Close()
	_, _ = io.ReadFull(c, make([]byte, len(http2.ClientPreface))) // a broken one fails below
	framer := http2.NewFramer(c, c)
	writing := make(chan struct{}, 1)
	write := func(f func()) {
		writing <- struct{}{}
		f()
		<-writing
	}
	go write(func() { _ = framer.WriteSettings() })
	var head []byte
	encoder := hpack.NewEncoder(writerFunc(func(b []byte) { head = append(head, b...) }))
	_ = encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"}) // the writer takes everything
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return pings
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			pings++
			data := frame.Data
			go write(func() { _ = framer.WritePing(true, data) })
		case *http2.HeadersFrame:
			stream := frame.StreamID
			go func() {
				write(func() {
					_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head, EndHeaders: true})
				})
				time.Sleep(quiet)
				write(func() { _ = framer.WriteData(stream, true, []byte("last")) })
			}()
		}
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}
