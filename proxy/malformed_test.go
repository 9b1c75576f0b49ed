package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestMalformedHeads sends heads that HTTP/2 itself refuses. Each is recorded and refused
// with a reason, its stream is reset, and the other streams of its connection continue.
func TestMalformedHeads(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	good := []string{":method", "GET", ":scheme", "https", ":authority", authority, ":path", "/x"}
	with := func(fields ...string) []string { return append(append([]string(nil), good...), fields...) }
	for name, fields := range map[string][]string{
		"upper-case name":               with("X-Upper", "1"),
		"space in a name":               with("x y", "1"),
		"empty name":                    with("", "1"),
		"colon in a name":               with("x:y", "1"),
		"line feed in a value":          with("x", "1\n2"),
		"null in a value":               with("x", "1\x002"),
		"connection":                    with("connection", "close"),
		"keep-alive":                    with("keep-alive", "5"),
		"proxy-connection":              with("proxy-connection", "close"),
		"transfer-encoding":             with("transfer-encoding", "chunked"),
		"upgrade":                       with("upgrade", "h2c"),
		"te":                            with("te", "gzip"),
		"pseudo behind a field":         with("x", "1", ":path", "/y"),
		"pseudo twice":                  append([]string{":path", "/y"}, good...),
		"pseudo of an answer":           append([]string{":status", "200"}, good...),
		"pseudo that nobody has":        append([]string{":x", "1"}, good...),
		"extended CONNECT":              append([]string{":protocol", "websocket"}, good...),
		"no method":                     good[2:],
		"empty method":                  append([]string{":method", ""}, good[2:]...),
		"method with a space":           append([]string{":method", "GET /x"}, good[2:]...),
		"no path":                       good[:6],
		"empty path":                    append(append([]string(nil), good[:6]...), ":path", ""),
		"relative path":                 append(append([]string(nil), good[:6]...), ":path", "x/y"),
		"path that is escaped badly":    append(append([]string(nil), good[:6]...), ":path", "/%zz"),
		"path with a space":             append(append([]string(nil), good[:6]...), ":path", "/x y"),
		"path with dot segments":        append(append([]string(nil), good[:6]...), ":path", "/a/../b"),
		"path that is a star":           append(append([]string(nil), good[:6]...), ":path", "*"),
		"no scheme":                     append(append([]string(nil), good[:2]...), good[4:]...),
		"other scheme":                  append([]string{":scheme", "ftp", ":method", "GET"}, good[4:]...),
		"user in the authority":         append([]string{":authority", "me@" + authority}, append(append([]string(nil), good[:4]...), good[6:]...)...),
		"CONNECT with a path":           append([]string{":method", "CONNECT"}, good[2:]...),
		"length that is none":           with("content-length", "1x"),
		"signed length":                 with("content-length", "+5"),
		"two lengths":                   with("content-length", "0", "content-length", "5"),
		"length without a body":         with("content-length", "5"),
		"too large":                     with("x", strings.Repeat("b", 80_000)),
		"100 fields of 1 kB":            with(strings.Split(strings.Repeat("x,"+strings.Repeat("b", 1000)+",", 100), ",")[:200]...),
		"1 MB":                          with("x", strings.Repeat("b", 1<<20)),
		"number of the stream":          with("chaperone-stream", "1", "Chaperone-Stream", "1"),
		"number of another's and fault": with("chaperone-stream", "3", "te", "x"),
	} {
		t.Run(name, func(t *testing.T) {
			client := w.h2Client(authority)
			w.records.mu.Lock()
			before := len(w.records.records)
			w.records.mu.Unlock()
			api.Forget()
			client.split(1, fields)
			status, reason, reset := client.answer(t, 1)
			if status != "400" || reason != authz.MalformedRequest.String() {
				t.Errorf("it is answered with %q %q", status, reason)
			}
			if !strings.Contains("path with dot segments, path that is a star, path with a space", name) && reset != http2.ErrCodeProtocol {
				t.Errorf("its stream is reset with %s", reset)
			}
			client.headers(3, true, good...)
			if status, _, _ := client.answer(t, 3); status != "200" {
				t.Errorf("the next stream is answered with %q", status)
			}
			w.records.mu.Lock()
			defer w.records.mu.Unlock()
			recorded := 0
			for _, r := range w.records.records[before:] {
				if r.Kind == authz.KindDecision && r.Reason == authz.MalformedRequest.String() && r.Host != "" {
					recorded++
				}
			}
			if got := api.Requests(); recorded != 1 || len(got) != 1 {
				t.Errorf("%d refusals are recorded, and the upstream got %+v", recorded, got)
			}
		})
	}
}

// split sends a complete header block in frames of the largest size.
func (p *h2Peer) split(stream uint32, fields []string) {
	block, first := p.head(fields...), true
	for first || len(block) > 0 {
		n := min(len(block), 16<<10)
		if first {
			_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block[:n], EndHeaders: n == len(block), EndStream: true})
		} else {
			_ = p.WriteContinuation(stream, n == len(block), block[:n])
		}
		block, first = block[n:], false
	}
}

// answer reads until a stream has ended, and for a moment more if it may be reset after
// its answer.
func (p *h2Peer) answer(t *testing.T, stream uint32) (status, reason string, reset http2.ErrCode) {
	t.Helper()
	testenv.Must(t, p.SetReadDeadline(time.Now().Add(time.Minute)))
	err := p.each(func(f http2.Frame) bool {
		if f.Header().StreamID != stream {
			goaway, ok := f.(*http2.GoAwayFrame)
			if ok {
				t.Errorf("the connection ends: %s", goaway)
			}
			return !ok
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			status = f.PseudoValue("status")
			for _, field := range f.RegularFields() {
				if field.Name == authz.HeaderReason {
					reason = field.Value
				}
			}
			return !f.StreamEnded()
		case *http2.DataFrame:
			if f.StreamEnded() {
				_ = p.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if status == "200" {
					return false
				}
			}
		case *http2.RSTStreamFrame:
			reset = f.ErrCode
			return false
		}
		return true
	})
	if err != nil && status == "" {
		t.Error(err)
	}
	return status, reason, reset
}

// TestHeadsArriveAsTheyAre sends heads in every form that HTTP/2 has for them.
func TestHeadsArriveAsTheyAre(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	client := w.h2Client(authority)
	fields := []string{
		":method", "POST", ":scheme", "https", ":authority", authority, ":path", "/echo?a=%41&b", "te", "trailers", "x-many", "1", "x-many", "2",
		"cookie", "a=1", "cookie", "b=2", "x-latin", "caf\xe9", "x-empty", "", "x-large", strings.Repeat("l", 50_000),
	}
	for n := range uint32(4) { // from the second on they are in the encoder's table
		stream := 2*n + 1
		block := client.head(fields...)
		_ = client.WriteHeaders(http2.HeadersFrameParam{
			StreamID: stream, BlockFragment: block[:min(9, len(block))], PadLength: uint8(10 * n), Priority: http2.PriorityParam{Weight: uint8(n)},
		})
		for rest := block[min(9, len(block)):]; ; {
			k := min(len(rest), 16<<10)
			_ = client.WriteContinuation(stream, k == len(rest), rest[:k])
			if rest = rest[k:]; len(rest) == 0 {
				break
			}
		}
		_ = client.WriteDataPadded(stream, false, []byte("hel"), make([]byte, 20))
		_ = client.WriteData(stream, false, []byte("lo"))
		client.headers(stream, true, "x-trailer", "t")
		if status, _, _ := client.answer(t, stream); status != "200" {
			t.Fatalf("stream %d is answered with %q", stream, status)
		}
	}
	for _, got := range api.Requests() {
		h := got.Header
		if got.Target != "/echo?a=%41&b" || len(h["X-Many"]) != 2 || h.Get("Cookie") != "a=1; b=2" || h.Get("X-Latin") != "caf\xe9" ||
			len(h.Get("X-Large")) != 50_000 || h.Get("Te") != "trailers" || h["X-Empty"] == nil || h["Chaperone-Stream"] != nil {
			t.Errorf("the upstream got %s %.300v", got.Target, h)
		}
	}
	w.settled()
	for _, end := range w.records.of(authz.KindEnd) {
		if end.SentBytes != int64(len("hello")) {
			t.Errorf("%d bytes of the body were sent on", end.SentBytes)
		}
	}
}

// TestResetOnTheRecord sends frames that HTTP/2 refuses without a request: the stream is
// reset, or the connection ended, and that is recorded.
func TestResetOnTheRecord(t *testing.T) {
	defer outliveGoAway()
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	head := []string{":method", "POST", ":scheme", "https", ":authority", authority, ":path", "/slow?wait=2s", "content-length", "3"}
	for name, do := range map[string]func(*h2Peer){
		"more than the length": func(p *h2Peer) { p.headers(1, false, head...); _ = p.WriteData(1, true, []byte("longer")) },
		"window of nothing": func(p *h2Peer) {
			p.headers(1, false, head...)
			p.AllowIllegalWrites = true
			_ = p.WriteWindowUpdate(1, 0)
		},
		"block that is no block": func(p *h2Peer) {
			_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		},
		"even stream":        func(p *h2Peer) { p.AllowIllegalWrites = true; p.headers(2, true, head...) },
		"data before a head": func(p *h2Peer) { _ = p.WriteData(5, true, []byte("x")) },
		"something in a block": func(p *h2Peer) {
			_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.head(head...)})
			_ = p.WriteData(1, true, nil)
		},
		"continuations for ever": func(p *h2Peer) {
			_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.head(head...)})
			for range 2000 {
				_ = p.WriteContinuation(1, false, nil)
			}
		},
		"block without an end": func(p *h2Peer) {
			_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.head(head...)})
			for range 200 {
				_ = p.WriteContinuation(1, false, p.head("x", strings.Repeat("y", 15000)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := w.h2Client(authority)
			before := len(w.records.of(authz.KindDecision))
			go do(client) // it may be ended while it writes
			late := testDeadline()
			for {
				found := false
				for _, r := range w.records.of(authz.KindDecision)[before:] {
					found = found || r.Reason == authz.MalformedRequest.String()
				}
				if found {
					return
				}
				if late() {
					t.Fatal("got no record of the refusal")
				}
			}
		})
	}
}
