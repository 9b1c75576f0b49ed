package proxy_test

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// distant is a listener whose connections send their first bytes late, as those of a
// distant upstream do.
type distant struct {
	net.Listener
	delay time.Duration
	conns atomic.Int64
}

func (l *distant) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.conns.Add(1)
	return &distantConn{Conn: conn, delay: l.delay}, nil
}

type distantConn struct {
	net.Conn
	delay time.Duration
	first sync.Once
}

func (c *distantConn) Write(b []byte) (int, error) {
	c.first.Do(func() { time.Sleep(c.delay) })
	return c.Conn.Write(b)
}

// burst sends many requests at once, and returns how many answers are as they should be.
func burst(t *testing.T, client *http.Client, requests int, url string, want func(*http.Response, string) bool) (good int64) {
	var all sync.WaitGroup
	var ok, bad atomic.Int64
	for range requests {
		all.Go(func() {
			response, err := client.Do(request(t, http.MethodGet, url, ""))
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err == nil && want(response, string(body)) {
				ok.Add(1)
			} else if bad.Add(1) == 1 {
				t.Errorf("the first wrong answer is %s %.300s, %v", response.Status, body, err)
			}
		})
	}
	all.Wait()
	return ok.Load()
}

// TestManyAtOnceCold sends many requests at once to an upstream to which there is no
// connection yet, and which is far away or answers late. All are served, and over HTTP/2 by
// few connections: the windows of one for each would need more memory than a plugin may use.
func TestManyAtOnceCold(t *testing.T) {
	const requests, late = 100, 500 * time.Millisecond
	served := func(r *http.Response, body string) bool { return r.StatusCode == http.StatusOK && body == "served" }
	for name, c := range map[string]struct {
		http2             bool
		streams           int // at a time; 0: as many as the server permits by itself
		handshake, answer time.Duration
		plugin            func(*http.Transport)
		most              int64 // connections
	}{
		"HTTP/2, far away":                      {http2: true, handshake: late, plugin: withHTTP2, most: requests / 2},
		"HTTP/2, late answers":                  {http2: true, answer: late, plugin: withHTTP2, most: requests / 2},
		"HTTP/2, far away, few streams":         {http2: true, streams: requests / 2, handshake: late, answer: late, plugin: withHTTP2, most: requests},
		"HTTP/2, far away, plugin's HTTP/1.1":   {http2: true, handshake: late, most: requests},
		"HTTP/1.1, far away":                    {handshake: late, plugin: withHTTP2, most: requests},
		"HTTP/1.1, late answers":                {answer: late, plugin: withHTTP2, most: requests},
		"HTTP/1.1, far away and late answers":   {handshake: late, answer: late, plugin: withHTTP2, most: requests},
		"HTTP/1.1, far away, plugin's HTTP/1.1": {handshake: late, most: requests},
	} {
		t.Run(name, func(t *testing.T) {
			api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				time.Sleep(c.answer)
				_, _ = io.WriteString(w, "served")
			}))
			listener := &distant{Listener: api.Listener, delay: c.handshake}
			api.Listener, api.EnableHTTP2 = listener, c.http2
			api.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections that are closed for another one
			api.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: c.streams}
			if !c.http2 {
				api.TLS = &tls.Config{NextProtos: []string{"http/1.1"}}
			}
			api.StartTLS()
			t.Cleanup(api.Close)
			w := newWorld(t, setup{input: granted(ruleFor(api))})
			good := burst(t, w.client(c.plugin), requests, urlOf(api, "/"), served)
			if conns := listener.conns.Load(); good != requests || conns > c.most {
				t.Errorf("%d of %d requests are served, by %d connections of at most %d", good, requests, conns, c.most)
			}
		})
	}
}

// TestManyAtOnceUnreachable sends many requests at once to an upstream that closes all
// connections. Each fails for that, and soon.
func TestManyAtOnceUnreachable(t *testing.T) {
	const requests = 100
	up := newScripted(t, false, "h2", func(net.Conn) {})
	w := newWorld(t, setup{input: granted(up.rule())})
	began := time.Now()
	failed := burst(t, w.client(withHTTP2), requests, up.url("/"), func(r *http.Response, _ string) bool {
		return r.Header.Get("X-Chaperone-Reason") == authz.UpstreamUnreachable.String()
	})
	if failed != requests || time.Since(began) > 10*time.Second {
		t.Errorf("%d of %d requests failed as they should in %v", failed, requests, time.Since(began))
	}
}
