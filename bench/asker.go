package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"
)

// asker asks ext_authz checks over one connection, as Envoy does, in frames
// that were encoded beforehand: a client of grpc-go would cost as much as the
// server. One goroutine writes and reads, and writes whatever is due in one go.
type asker struct {
	conn   net.Conn
	frames *http2.Framer
	in     *bufio.Reader
	out    *bufio.Writer
	header *hpack.Decoder
	status string // grpc-status of the header block being read

	requests []siteRequest
	bodies   [][]byte // with gRPC's prefix
	blind    bool

	first, later []byte // header blocks: the first names what the later refer to
	next         uint32 // stream
	turn         int    // of requests
	sendWindow   int    // of the connection, in bytes
	received     int    // bytes of bodies that the server was not yet credited
	asked        map[uint32]*asked
	free         []*asked
}

// asked is a check on its way.
type asked struct {
	request int
	at      time.Time
	body    []byte
	status  string
}

// Windows that are large enough never to be what is waited for.
const (
	ownWindow  = 1 << 30
	creditStep = 1 << 28
)

func newAsker(o order, s *site) (*asker, error) {
	network, address, _ := strings.Cut(o.Check, ":")
	conn, err := net.DialTimeout(network, address, 5*time.Second) //nolint:noctx // of this machine, bounded
	if err != nil {
		return nil, err
	}
	a := &asker{
		conn: conn, in: bufio.NewReaderSize(conn, 256<<10), out: bufio.NewWriterSize(conn, 256<<10),
		requests: s.Requests, blind: o.Blind, next: 1, sendWindow: 65535, asked: map[uint32]*asked{},
	}
	checks, err := s.checks()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	for _, wire := range checks {
		a.bodies = append(a.bodies, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(wire))), wire...))
	}
	a.frames = http2.NewFramer(a.out, a.in)
	a.frames.SetReuseFrames()
	a.header = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == "grpc-status" {
			a.status = f.Value
		}
	})
	a.encodeHeaders()
	_, err = a.out.WriteString(http2.ClientPreface)
	err = errors.Join(err, a.frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}),
		a.frames.WriteWindowUpdate(0, ownWindow-65535), a.out.Flush())
	return a, err
}

// encodeHeaders makes the two header blocks: every later one is references into
// the table that the first one filled, as in Envoy's calls.
func (a *asker) encodeHeaders() {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encode := func() []byte {
		block.Reset()
		for _, f := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", "/envoy.service.auth.v3.Authorization/Check"},
			{":authority", "chaperone"},
			{"te", "trailers"},
			{"grpc-timeout", "10000m"},
			{"content-type", "application/grpc"},
			{"x-envoy-internal", "true"},
			{"x-forwarded-for", "10.8.0.2"},
			{"x-envoy-expected-rq-timeout-ms", "10000"},
		} {
			_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // to memory
		}
		return bytes.Clone(block.Bytes())
	}
	a.first, a.later = encode(), encode()
}

func (a *asker) close() { _ = a.conn.Close() }

// run keeps o.Callers checks on their way until the order's end, and then waits
// for the last.
func (a *asker) run(o order) (*tally, error) {
	t := &tally{}
	begun := time.Now()
	if err := a.conn.SetDeadline(begun.Add(max(o.Length, time.Minute) + 10*time.Minute)); err != nil {
		return t, err
	}
	sent, now := 0, begun
	ends := func() bool { return now.Sub(begun) >= o.Length && o.Count == 0 || o.Count > 0 && sent >= o.Count }
	for {
		// A whole message fits, or it waits: what is on its way is never in pieces.
		for len(a.asked) < o.Callers && !ends() && a.sendWindow >= len(a.bodies[a.turn]) {
			if err := a.ask(now); err != nil {
				return t, err
			}
			sent++
		}
		if len(a.asked) == 0 {
			return t, a.out.Flush()
		}
		if a.in.Buffered() == 0 {
			if err := a.out.Flush(); err != nil {
				return t, err
			}
		}
		frame, err := a.frames.ReadFrame()
		if err != nil {
			return t, fmt.Errorf("read frame: %w", err)
		}
		now = time.Now()
		if err := a.take(frame, now, t); err != nil {
			return t, err
		}
	}
}

func (a *asker) ask(now time.Time) error {
	block := a.later
	if a.next == 1 {
		block = a.first
	}
	var w *asked
	if n := len(a.free); n > 0 {
		w, a.free = a.free[n-1], a.free[:n-1]
	} else {
		w = new(asked)
	}
	*w = asked{request: a.turn, at: now, body: w.body[:0]}
	a.asked[a.next] = w
	body := a.bodies[a.turn]
	a.turn = (a.turn + 1) % len(a.bodies)
	a.sendWindow -= len(body)
	err := errors.Join(
		a.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: a.next, BlockFragment: block, EndHeaders: true}),
		a.frames.WriteData(a.next, true, body))
	a.next += 2
	return err
}

// take handles a frame from the server.
func (a *asker) take(frame http2.Frame, now time.Time, t *tally) error {
	switch f := frame.(type) {
	case *http2.HeadersFrame:
		a.status = ""
		if _, err := a.header.Write(f.HeaderBlockFragment()); err != nil {
			return fmt.Errorf("decode headers: %w", err)
		}
		w := a.asked[f.StreamID]
		if w == nil || !f.HeadersEnded() {
			return fmt.Errorf("headers of stream %d were not expected or are in pieces", f.StreamID)
		}
		if a.status != "" {
			w.status = a.status
		}
		if f.StreamEnded() {
			a.finish(f.StreamID, w, now, t)
		}
	case *http2.DataFrame:
		w := a.asked[f.StreamID]
		if w == nil || f.StreamEnded() {
			return fmt.Errorf("data of stream %d was not expected or is its end", f.StreamID)
		}
		w.body = append(w.body, f.Data()...)
		if a.received += int(f.Length); a.received >= creditStep {
			if err := a.frames.WriteWindowUpdate(0, uint32(a.received)); err != nil {
				return err
			}
			a.received = 0
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			a.sendWindow += int(f.Increment)
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return a.frames.WritePing(true, f.Data)
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return a.frames.WriteSettingsAck()
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("stream %d was reset: %s", f.StreamID, f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %s %s", f.ErrCode, f.DebugData())
	}
	return nil
}

// finish verifies an answer.
func (a *asker) finish(stream uint32, w *asked, now time.Time, t *tally) {
	delete(a.asked, stream)
	t.done++
	t.took = append(t.took, now.Sub(w.at))
	want := a.requests[w.request]
	allowed, err := readAnswer(w.body)
	switch {
	case w.status != "0":
		t.mistake("grpc-status %q", w.status)
	case err != nil:
		t.mistake("%v", err)
	case allowed != want.Allowed && !a.blind:
		t.mistake("%s %s%s: allowed is %t", want.Method, want.Host, want.Path, allowed)
	}
	a.free = append(a.free, w)
}

// readAnswer returns whether a CheckResponse, with gRPC's prefix, allows. An
// inconsistent one is an error.
func readAnswer(body []byte) (allowed bool, err error) {
	if len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		return false, fmt.Errorf("%d bytes are not a gRPC message", len(body))
	}
	var status, denied, ok bool
	code := uint64(0)
	for body = body[5:]; len(body) > 0; {
		number, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return false, errors.New("the answer is not a message")
		}
		size := protowire.ConsumeFieldValue(number, kind, body[n:])
		if size < 0 {
			return false, errors.New("the answer is truncated")
		}
		field := body[n : n+size]
		switch number { // of CheckResponse in envoy/service/auth/v3/external_auth.proto
		case 1:
			status = true
			inner, _ := protowire.ConsumeBytes(field)
			if len(inner) > 0 && inner[0] == 1<<3 { // Status.code; in order, so it is first
				code, _ = protowire.ConsumeVarint(inner[1:])
			}
		case 2:
			denied = true
		case 3:
			ok = true
		default: // dynamic_metadata, 4
		}
		body = body[n+size:]
	}
	if !status || ok == denied || ok != (code == 0) {
		return false, fmt.Errorf("status %t with code %d, ok response %t, denied response %t", status, code, ok, denied)
	}
	return ok, nil
}
