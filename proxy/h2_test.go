package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestFailureEndsItsStreamAlone has an upstream reset requests whose body is still
// arriving: the plugin's other streams, and its connection, continue.
func TestFailureEndsItsStreamAlone(t *testing.T) {
	up := newH2Upstream(t, false, func(p *h2Peer) {
		_ = p.each(func(f http2.Frame) bool {
			h, ok := f.(*http2.MetaHeadersFrame)
			return !ok || h.PseudoValue("method") != http.MethodPost // its return closes the connection
		})
	})
	w := newWorld(t, setup{input: granted(up.rule())})
	client := w.h2Client(up.authority())
	head := func(method string) []string {
		return []string{":method", method, ":scheme", "https", ":authority", up.authority(), ":path", "/"}
	}
	for stream := uint32(1); stream < 9; stream += 2 {
		client.headers(stream, false, append(head(http.MethodPost), "content-length", "100000")...)
		answered, reset := "", false
		err := client.each(func(f http2.Frame) bool {
			switch f := f.(type) {
			case *http2.GoAwayFrame:
				t.Errorf("stream %d ended the connection: %s", stream, f)
				return false
			case *http2.MetaHeadersFrame:
				answered = f.PseudoValue("status")
			case *http2.RSTStreamFrame:
				reset = true
				return false
			}
			return true
		})
		if err != nil || answered != "502" || !reset {
			t.Fatalf("stream %d was answered with %q, reset: %t, %v", stream, answered, reset, err)
		}
	}
}

// TestAnswersThatAreTolerated has upstreams send answers that HTTP/1.1 clients accept and
// HTTP/2 clients do not.
func TestAnswersThatAreTolerated(t *testing.T) {
	answers := map[string]string{
		"/204":      "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
		"/204-zero": "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"/304":      "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n",
		"/103":      "HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/twice":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nUpgrade: h2c\r\nProxy-Connection: close\r\nTE: x\r\n\r\nok",
		"/control":  "HTTP/1.1 200 OK\r\nX-Odd: caf\xe9\t \r\nContent-Length: 2\r\n\r\nok",
	}
	api := newScripted(t, false, "http/1.1", func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, answers[r.URL.Path])
			time.Sleep(10 * time.Millisecond)
		}
	})
	w := newWorld(t, setup{input: granted(api.rule())})
	for name, change := range bothVersions {
		for path := range answers {
			t.Run(name+path, func(t *testing.T) {
				response, body := send(t, w.client(change), request(t, http.MethodGet, api.url(path), ""))
				if response.StatusCode != 204 && response.StatusCode != 304 && body != "ok" {
					t.Errorf("answer is %s %q", response.Status, body)
				}
				if response.StatusCode == 204 && response.Header["Content-Length"] != nil {
					t.Errorf("a 204 has a length: %v", response.Header)
				}
			})
		}
	}
}
