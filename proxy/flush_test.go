package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestFirstBytes answers with a known length, and waits after the head and after the
// first bytes until the plugin has received them.
func TestFirstBytes(t *testing.T) {
	got := make(chan struct{})
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "12")
		w.WriteHeader(http.StatusOK)
		_ = control.Flush()
		for _, part := range []string{"", "one,", "two,", "last"} {
			if part != "" {
				select {
				case <-got:
				case <-r.Context().Done():
					return
				}
			}
			_, _ = io.WriteString(w, part)
			_ = control.Flush()
		}
	})
	r := ruleFor(api)
	r.Credential = "" // a search would hold back the beginning of a possible secret
	w := newWorld(t, setup{input: granted(r)})
	for name, change := range bothVersions {
		t.Run(name, func(t *testing.T) {
			response, err := w.client(change).Do(request(t, "GET", urlOf(api, "/"), ""))
			testenv.Must(t, err)
			defer response.Body.Close()
			for _, want := range []string{"one,", "two,", "last"} {
				select {
				case got <- struct{}{}:
				case <-time.After(2 * time.Minute):
					t.Fatal("got no bytes, want those that were sent before the pause")
				}
				part := make([]byte, 4)
				if _, err := io.ReadFull(response.Body, part); err != nil || string(part) != want {
					t.Fatalf("read %q, %v; want %q", part, err, want)
				}
			}
		})
	}
}

// TestFastAnswerInOnePiece forwards an answer that arrives at once with one write: head
// and body share a packet.
func TestFastAnswerInOnePiece(t *testing.T) {
	o := newOrigin(t, func(c *originConn) {
		for r := c.head(); r != nil; r = c.head() {
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000))
		}
	})
	byEachDoor(t, o, nil, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		c, split := dial(), 0
		const answers = 20
		for range answers {
			o.send(c, d, "GET", "/", "", "")
			buf := make([]byte, 4096)
			n, err := c.Conn.Read(buf)
			testenv.Must(t, err)
			for body := buf[:n]; !strings.HasSuffix(string(body), strings.Repeat("x", 1000)); body = buf[:n] {
				split++
				more, err := c.Conn.Read(buf[n:])
				testenv.Must(t, err)
				n += more
			}
		}
		if split > answers/2 { // a loaded machine may take longer than there is patience for
			t.Errorf("%d of %d answers came in pieces", split, answers)
		}
	})
}

// TestPacedAnswerIsWhole lets the timer of the flush and a limit on received bytes act at
// the same time.
func TestPacedAnswerIsWhole(t *testing.T) {
	const size = 200_000
	api := newAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for range size / 1000 {
			_, _ = io.WriteString(w, strings.Repeat("x", 1000))
			time.Sleep(50 * time.Microsecond)
		}
	})
	w := newWorld(t, setup{input: throttled(authz.Limit{Count: 400_000, Period: time.Second}, ruleFor(api))}).sampled()
	for name, change := range bothVersions {
		t.Run(name, func(t *testing.T) {
			if _, body := send(t, w.client(change), request(t, "GET", urlOf(api, "/"), "")); len(body) != size {
				t.Errorf("%d bytes arrived", len(body))
			}
		})
	}
}
