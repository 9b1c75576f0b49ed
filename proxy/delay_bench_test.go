package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// BenchmarkDelay measures bodies of 32 MiB, one at a time, to and from an upstream behind
// a network with a round trip of 50 ms: direct and through the proxy, whose windows must
// be as wide as what is on its way.
func BenchmarkDelay(b *testing.B) {
	const size = 32 << 20
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
		w.Header()["Content-Type"] = []string{"application/octet-stream"}
		w.Header()["Content-Length"] = []string{strconv.Itoa(size)}
		_, _ = io.CopyN(w, zeros{}, size)
	}))
	api.EnableHTTP2 = true
	api.StartTLS()
	defer api.Close()
	far := delayed(b, api.Listener.Addr().String(), 25*time.Millisecond)
	reachable := ruleFor(api)
	_, text, _ := net.SplitHostPort(far)
	port := testenv.MustGet(strconv.ParseUint(text, 10, 16))(b)
	reachable.To.Ports = []uint16{uint16(port)}
	world := newWorld(b, setup{input: granted(reachable)})
	for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
		change := func(t *http.Transport) { t.Protocols.SetHTTP2(version == "HTTP/2") }
		direct := &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols),
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, far)
			},
		}
		direct.Protocols.SetHTTP1(true)
		change(direct)
		b.Cleanup(direct.CloseIdleConnections)
		for _, way := range []struct {
			name   string
			client *http.Client
		}{{"direct", &http.Client{Transport: direct}}, {"proxy", world.client(change)}} {
			for _, method := range []string{http.MethodGet, http.MethodPut} {
				b.Run(version+"/"+method+"/"+way.name, func(b *testing.B) {
					b.SetBytes(size)
					transfer(b, way.client, method, "https://example.com:"+text+"/", 0) // connects
					for b.Loop() {
						transfer(b, way.client, method, "https://example.com:"+text+"/", size)
					}
				})
			}
		}
	}
}

// transfer sends a body of size bytes with PUT, or reads the answer of a GET.
func transfer(b *testing.B, c *http.Client, method, target string, size int64) {
	b.Helper()
	var body io.Reader
	if method == http.MethodPut {
		body = io.LimitReader(zeros{}, size)
	}
	r := testenv.MustGet(http.NewRequestWithContext(b.Context(), method, target, body))(b)
	if body != nil {
		r.ContentLength = size
	}
	response := testenv.MustGet(c.Do(r))(b)
	defer response.Body.Close()
	if n, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK || method == http.MethodGet && n != 32<<20 {
		b.Fatalf("answer is %s with %d bytes, %v", response.Status, n, err)
	}
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// delayed listens in front of an address, and forwards what comes after a delay in each
// direction. Like a long line, it does not make the sender wait.
func delayed(b *testing.B, address string, delay time.Duration) string {
	b.Helper()
	l := testenv.MustGet(new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0"))(b)
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(context.Background(), "tcp", address)
			if err != nil {
				_ = near.Close()
				continue
			}
			go lag(far, near, delay)
			go lag(near, far, delay)
		}
	}()
	return l.Addr().String()
}

// lag copies one direction, and ends it and the other one when it is over.
func lag(to, from net.Conn, delay time.Duration) {
	type part struct {
		at    time.Time
		bytes []byte
	}
	parts := make(chan part, 8192)
	go func() {
		defer close(parts)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				parts <- part{time.Now().Add(delay), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range parts {
		time.Sleep(time.Until(p.at))
		_, _ = to.Write(p.bytes) // the reader sees a broken connection
	}
	_ = to.Close()
	_ = from.Close()
}
