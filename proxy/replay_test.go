package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/chaperone-proxy/chaperone/authz"
)

// recycler is an upstream that ends the first attempts of each path in some way, and
// serves the next, recording its body.
type recycler struct {
	*h2Upstream
	mu    sync.Mutex
	tries map[string]int
	sent  map[string]string // the bodies that were served, with their trailers
}

// ends are the ways in which an upstream reports that it has not processed a stream, and
// ways that do not report it.
var ends = map[string]func(p *h2Peer, stream uint32) (open bool){
	"goaway":       func(p *h2Peer, _ uint32) bool { return p.WriteGoAway(0, http2.ErrCodeNo, nil) != nil },
	"goaway-after": func(p *h2Peer, stream uint32) bool { return p.WriteGoAway(stream, http2.ErrCodeNo, nil) != nil },
	"refused": func(p *h2Peer, stream uint32) bool {
		return p.WriteRSTStream(stream, http2.ErrCodeRefusedStream) == nil
	},
	"protocol": func(p *h2Peer, stream uint32) bool { return p.WriteRSTStream(stream, http2.ErrCodeProtocol) == nil },
	"internal": func(p *h2Peer, stream uint32) bool { return p.WriteRSTStream(stream, http2.ErrCodeInternal) == nil },
	"cancel":   func(p *h2Peer, stream uint32) bool { return p.WriteRSTStream(stream, http2.ErrCodeCancel) == nil },
	"lost":     func(*h2Peer, uint32) bool { return false },
}

// newRecycler ends the first n attempts after the available part of the body has arrived.
func newRecycler(t testing.TB, plain bool, n int) *recycler {
	r := &recycler{tries: map[string]int{}, sent: map[string]string{}}
	r.h2Upstream = newH2Upstream(t, plain, func(p *h2Peer) {
		_ = p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4 << 20})
		_ = p.WriteWindowUpdate(0, 4<<20)
		paths, bodies := map[uint32]string{}, map[uint32]*bytes.Buffer{}
		serve := func(stream uint32) {
			r.mu.Lock()
			r.sent[paths[stream]] = bodies[stream].String()
			r.mu.Unlock()
			p.headers(stream, false, ":status", "200")
			_ = p.WriteData(stream, true, []byte("served"))
		}
		_ = p.each(func(f http2.Frame) bool {
			switch f := f.(type) {
			case *http2.MetaHeadersFrame:
				stream := f.StreamID
				if path, ok := paths[stream]; ok { // trailers
					fmt.Fprint(bodies[stream], f.RegularFields())
					serve(stream)
					return path != ""
				}
				path := f.PseudoValue("path")
				r.mu.Lock()
				r.tries[path]++
				tries := r.tries[path]
				r.mu.Unlock()
				if end := ends[strings.Split(path, "/")[1]]; end != nil && tries <= n {
					time.Sleep(20 * time.Millisecond) // so that the body is on its way
					return end(p, stream)
				}
				paths[stream], bodies[stream] = path, new(bytes.Buffer)
				if f.StreamEnded() {
					serve(stream)
				}
			case *http2.DataFrame:
				if b := bodies[f.StreamID]; b != nil {
					b.Write(f.Data())
					if f.StreamEnded() {
						serve(f.StreamID)
					}
				}
			}
			return true
		})
	})
	return r
}

func (r *recycler) of(path string) (tries int, sent string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tries[path], r.sent[path]
}

// TestNotProcessedIsSentAgain repeats requests that an upstream reports as not processed,
// with their body, and no others.
func TestNotProcessedIsSentAgain(t *testing.T) {
	up := newRecycler(t, false, 1)
	w := newWorld(t, setup{input: granted(up.rule())})
	client := w.client(withHTTP2)
	for end := range ends {
		for _, test := range []struct {
			name, method string
			size         int
			again        bool // where nothing was processed
		}{
			{"no body", "GET", 0, true},
			{"POST without a body", "POST", 0, true},
			{"1 byte", "POST", 1, true},
			{"32 KiB", "PUT", 32 << 10, true},
			{"64 KiB", "PATCH", 64 << 10, true},
			{"1 MiB", "POST", 1 << 20, false},
		} {
			t.Run(end+"/"+test.name, func(t *testing.T) {
				path := "/" + end + "/" + strings.ReplaceAll(test.name, " ", "-")
				body := strings.Repeat("y", test.size)
				r := request(t, test.method, up.url(path), body)
				if test.size == 0 {
					r.Body, r.ContentLength = nil, 0
				}
				response, text := send(t, client, r)
				tries, sent := up.of(path)
				promised := strings.HasPrefix(end, "goaway") && end != "goaway-after" || end == "refused"
				want := promised && test.again
				if end == "protocol" && test.size == 0 {
					return // net/http repeats what has no body, a few times
				}
				if served := response.StatusCode == 200 && text == "served"; served != want || want && sent != body || !want && tries != 1 {
					t.Errorf("served: %t after %d tries with %d bytes, want %t: %s", served, tries, len(sent), want, text)
				}
			})
		}
	}
}

// TestNotProcessedWhileItIsSent has the upstream refuse a stream whose body is still
// arriving, and which ends with trailers, as a gRPC call does.
func TestNotProcessedWhileItIsSent(t *testing.T) {
	for _, plain := range []bool{false, true} {
		for _, end := range []string{"goaway", "refused"} {
			t.Run(fmt.Sprintf("%s plain=%t", end, plain), func(t *testing.T) {
				up := newRecycler(t, plain, 1)
				w := newWorld(t, setup{input: granted(up.rule())})
				reader, writer := io.Pipe()
				r := request(t, http.MethodPost, up.url("/"+end+"/stream"), "")
				r.Body, r.ContentLength, r.Trailer = reader, -1, http.Header{"X-Sum": nil}
				go func() {
					_, _ = io.WriteString(writer, "first ")
					for tries := 0; tries < 2; tries, _ = up.of(r.URL.Path) {
						time.Sleep(time.Millisecond)
					}
					_, _ = io.WriteString(writer, "second")
					r.Trailer.Set("X-Sum", "12")
					_ = writer.Close()
				}()
				client := w.client(withHTTP2)
				if plain {
					client = w.priorKnowledge()
				}
				response, text := send(t, client, r)
				if _, sent := up.of(r.URL.Path); response.StatusCode != 200 || !strings.HasPrefix(sent, "first second[") || !strings.Contains(sent, "x-sum") {
					t.Errorf("answer is %s %q, the upstream got %q", response.Status, text, sent)
				}
				w.settled()
				if ends := w.records.of(authz.KindEnd); len(ends) != 1 || ends[0].SentBytes != 12 {
					t.Errorf("the end is recorded as %+v", ends)
				}
			})
		}
	}
}

// TestNotProcessedTooOften bounds how often one admitted request is sent.
func TestNotProcessedTooOften(t *testing.T) {
	up := newRecycler(t, false, 100)
	w := newWorld(t, setup{input: granted(up.rule())})
	for _, end := range []string{"goaway", "refused"} {
		response, text := send(t, w.client(withHTTP2), request(t, http.MethodPost, up.url("/"+end+"/x"), "x"))
		if tries, _ := up.of("/" + end + "/x"); response.StatusCode != http.StatusBadGateway || tries != 3 {
			t.Errorf("%s: %d tries, %s %s", end, tries, response.Status, text)
		}
	}
}

// TestNotProcessedAndNotAllowed changes the policy before the upstream reports that it
// has not processed the request: it is decided again, and not repeated.
func TestNotProcessedAndNotAllowed(t *testing.T) {
	var w *world
	var up *h2Upstream
	var streams int
	up = newH2Upstream(t, false, func(p *h2Peer) {
		_ = p.each(func(f http2.Frame) bool {
			if h, ok := f.(*http2.MetaHeadersFrame); ok {
				streams++
				r := up.rule()
				r.Methods = []string{"GET"}
				w.install(granted(r))
				_ = p.WriteRSTStream(h.StreamID, http2.ErrCodeRefusedStream)
			}
			return true
		})
	})
	w = newWorld(t, setup{input: granted(up.rule())})
	response, body := send(t, w.client(withHTTP2), request(t, http.MethodPost, up.url("/"), "x"))
	wantRefusal(t, response, body, authz.MethodNotGranted)
	if streams != 1 {
		t.Errorf("it was sent %d times", streams)
	}
}
