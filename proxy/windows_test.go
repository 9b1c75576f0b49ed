package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestWindows opens more connections to an upstream than may have wide windows, as an
// upstream requires that allows one stream at a time. All are served, and the memory that
// they can make the proxy hold is bounded.
func TestWindows(t *testing.T) {
	const requests = 12
	var mu sync.Mutex
	var streams, conns []uint32
	release := make(chan struct{})
	up := newH2Upstream(t, false, func(p *h2Peer) {
		_ = p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		stream, conn := uint32(65535), uint32(65535)
		var writing sync.Mutex
		_ = p.each(func(f http2.Frame) bool {
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
					stream = v
				}
			case *http2.WindowUpdateFrame:
				if f.StreamID == 0 {
					conn += f.Increment
				}
			case *http2.MetaHeadersFrame:
				mu.Lock()
				streams, conns = append(streams, stream), append(conns, conn)
				mu.Unlock()
				p.headers(f.StreamID, false, ":status", "200")
				go func() {
					<-release
					writing.Lock()
					defer writing.Unlock()
					_ = p.WriteData(f.StreamID, true, []byte("served"))
				}()
			}
			return true
		})
	})
	w := newWorld(t, setup{input: granted(up.rule())})
	client := w.client(withHTTP2)
	var bodies []io.ReadCloser
	for n := range requests {
		response, err := client.Do(request(t, http.MethodGet, up.url(fmt.Sprint("/", n)), ""))
		testenv.Must(t, err)
		bodies = append(bodies, response.Body)
	}
	close(release)
	for _, body := range bodies {
		if text, err := io.ReadAll(body); err != nil || string(text) != "served" {
			t.Errorf("answer is %q, %v", text, err)
		}
		_ = body.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	wide, held := 0, 0
	for n := range streams {
		if streams[n] >= 4<<20 && conns[n] >= 4*streams[n] {
			wide++
		}
		held += int(min(conns[n], streams[n])) // one stream each
	}
	if len(streams) != requests || wide != 2 || held > 2*(4<<20)+(requests-2)*(1<<20) {
		t.Errorf("%d of %d requests have wide windows, %d bytes may come for all: streams %v, connections %v", wide, len(streams), held, streams, conns)
	}
}

// TestSlowReaderHoldsUpNobody has the plugin leave answers unread, and read others on the
// same connections while they wait.
func TestSlowReaderHoldsUpNobody(t *testing.T) {
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" {
			for buf := make([]byte, 64<<10); ; {
				if _, err := w.Write(buf); err != nil {
					return
				}
			}
		}
		_, _ = io.WriteString(w, "ok")
	})
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	client := w.client(withHTTP2)
	client.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
	for range 3 {
		response, err := client.Do(request(t, http.MethodGet, urlOf(api, "/endless"), ""))
		testenv.Must(t, err)
		defer response.Body.Close()
	}
	time.Sleep(200 * time.Millisecond) // their windows fill
	for range 20 {
		if response, body := send(t, client, request(t, http.MethodGet, urlOf(api, "/"), "")); response.StatusCode != 200 || body != "ok" {
			t.Fatalf("answer is %s %q", response.Status, body)
		}
	}
}
