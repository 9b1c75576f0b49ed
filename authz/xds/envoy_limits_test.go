package xds_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// plainHTTP returns a rule for plain http to a host.
func plainHTTP(id, host string) authz.Rule {
	r := https(id, "/**", host)
	r.To.Scheme = authz.SchemeHTTP
	return r
}

// upstream serves raw connections until the test ends.
func upstream(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// answering answers every request of a connection with what answer returns.
func answering(answer func(*http.Request) string) func(net.Conn) {
	return func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if _, err = io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			if _, err = io.WriteString(conn, answer(r)); err != nil {
				return
			}
		}
	}
}

// TestEnvoyTakesHTTP10 speaks as Python up to 3.11, openssl s_client and nc do.
func TestEnvoyTakesHTTP10(t *testing.T) {
	p := newPlane(t, nil, grant(https("api", "/echo", "api.weather.example"), plainHTTP("plain", "plain.weather.example")))
	p.leads("api.weather.example:443", p.secure.Addr)
	p.leads("plain.weather.example:80", p.plain.Addr)
	for name, connect := range map[string]string{
		"as http.client": "CONNECT api.weather.example:443 HTTP/1.0\r\n\r\n",
		"with a host":    "CONNECT api.weather.example:443 HTTP/1.0\r\nHost: api.weather.example:443\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := p.dial(t)
			testenv.MustGet(io.WriteString(conn, connect))(t)
			if resp := testenv.MustGet(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}))(t); resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
			p.book.forget()
			if resp, body := exchange(t, p.within(t, conn, "api.weather.example"), get("https://api.weather.example/echo")); resp.StatusCode != http.StatusOK {
				t.Errorf("%s %s", resp.Status, body)
			}
			if got := p.book.decided(); !slices.Equal(got, []string{"https api.weather.example granted"}) {
				t.Errorf("%v", got)
			}
		})
	}
	t.Run("plain", func(t *testing.T) {
		if resp, body := p.send(t, "GET http://plain.weather.example/echo HTTP/1.0\r\n\r\n"); resp.StatusCode != http.StatusOK {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
	t.Run("without any host", func(t *testing.T) {
		resp, body := p.send(t, "GET /echo HTTP/1.0\r\n\r\n")
		refused(t, resp, body, "malformed_request")
	})
	t.Run("refused", func(t *testing.T) {
		resp, body := p.send(t, "CONNECT evil.example:443 HTTP/1.0\r\n\r\n")
		refused(t, resp, body, "destination_not_granted")
	})
}

// TestEnvoyTakesWhatTheProxyTakes is of messages that Envoy's own defaults refuse
// or change.
func TestEnvoyTakesWhatTheProxyTakes(t *testing.T) {
	p := newPlane(t, nil, grant(plainHTTP("plain", "plain.weather.example")))
	var got atomic.Pointer[http.Request]
	answer := "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
	var next atomic.Pointer[string]
	next.Store(&answer)
	p.leads("plain.weather.example:80", upstream(t, answering(func(r *http.Request) string {
		got.Store(r)
		return *next.Load()
	})))
	ask := func(t *testing.T, request, with string) (*http.Response, string) {
		t.Helper()
		next.Store(&with)
		resp, body := p.send(t, request)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %v %s", resp.Status, resp.Header, body)
		}
		return resp, body
	}
	const url = "http://plain.weather.example/echo"
	t.Run("a name with an underscore", func(t *testing.T) {
		ask(t, get(url, "ot-baggage-trace_id: 1", "x_chaperone_route: plain/other"), answer)
		if h := got.Load().Header; h.Get("ot-baggage-trace_id") != "1" || h.Get("x_chaperone_route") != "" {
			t.Errorf("%v", h)
		}
	})
	t.Run("a head of 62 KiB", func(t *testing.T) {
		ask(t, get(url, "x-long: "+strings.Repeat("v", 62<<10)), answer)
		if n := len(got.Load().Header.Get("x-long")); n != 62<<10 {
			t.Errorf("%d bytes", n)
		}
	})
	t.Run("300 request headers", func(t *testing.T) {
		var headers []string
		for i := range 300 {
			headers = append(headers, fmt.Sprintf("x-h%d: v", i))
		}
		ask(t, get(url, headers...), answer)
	})
	t.Run("a method of its own", func(t *testing.T) {
		ask(t, strings.Replace(get(url), "GET", "PURGE", 1), answer)
		if got.Load().Method != "PURGE" {
			t.Error(got.Load().Method)
		}
	})
	t.Run("300 answer headers of 600 bytes", func(t *testing.T) {
		var head strings.Builder
		for i := range 300 {
			fmt.Fprintf(&head, "x-r%d: %s\r\n", i, strings.Repeat("v", 600))
		}
		resp, _ := ask(t, get(url), "HTTP/1.1 200 OK\r\n"+head.String()+"content-length: 0\r\n\r\n")
		if len(resp.Header.Get("x-r299")) != 600 {
			t.Errorf("%d headers", len(resp.Header))
		}
	})
	t.Run("trailers", func(t *testing.T) {
		request := "POST " + url + " HTTP/1.1\r\nhost: plain.weather.example\r\nte: trailers\r\ntrailer: x-up\r\nconnection: close, te\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-up: 1\r\n\r\n"
		resp, body := ask(t, request, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-down\r\n\r\n2\r\nok\r\n0\r\nx-down: 2\r\n\r\n")
		if got.Load().Trailer.Get("x-up") != "1" || body != "ok" || resp.Trailer.Get("x-down") != "2" {
			t.Errorf("up %v, down %q %v", got.Load().Trailer, body, resp.Trailer)
		}
	})
}

// TestEnvoyMeetsClosedConnections has an upstream that ends every connection when
// a second request comes on it, as one does that closes idle ones just then.
func TestEnvoyMeetsClosedConnections(t *testing.T) {
	p := newPlane(t, nil, grant(plainHTTP("plain", "plain.weather.example")))
	var requests, lost atomic.Int64
	p.leads("plain.weather.example:80", upstream(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for i := range 2 {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			requests.Add(1)
			if i == 1 {
				lost.Add(1)
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		}
	}))
	ask := func(request string) int {
		resp, _ := p.send(t, request)
		return resp.StatusCode
	}
	for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
		for i := range 6 {
			if code := ask(strings.Replace(get("http://plain.weather.example/x"), "GET", method, 1)); code != http.StatusOK {
				t.Errorf("%s %d: %d", method, i, code)
			}
		}
	}
	if lost.Load() == 0 {
		t.Fatal("no request met a closed connection")
	}
	if got := len(p.book.decided()); got != 18 {
		t.Errorf("%d decisions of 18 requests", got)
	}
	// A request that may have had an effect is not sent again.
	requests.Store(0)
	for range 6 {
		ask("POST http://plain.weather.example/x HTTP/1.1\r\nhost: plain.weather.example\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi")
	}
	if got := requests.Load(); got != 6 {
		t.Errorf("the upstream saw %d of 6 POSTs", got)
	}
}

// TestEnvoyCutsNothingQuiet reads what bounds a stream that nothing moves on.
func TestEnvoyCutsNothingQuiet(t *testing.T) {
	p := &plane{ca: testenv.MustGet(testenv.NewCA("plugin"))(t), dir: t.TempDir()}
	engine := new(authz.Engine)
	engine.Install(compile(t, grant(https("api", "/**", "api.weather.example"), authz.Rule{ID: "db", To: authz.To{Scheme: authz.SchemeTCP, Hosts: []string{"db.weather.example"}, Ports: []uint16{5432}}})))
	text := testenv.MustGet(xds.Static(xds.Config{
		Plugin: plugin, Engine: engine, Now: now, Check: "/run/check.sock", Explicit: netip.MustParseAddrPort("127.0.0.1:15080"),
		EgressSockets: func(routes []authz.Route) ([]string, error) {
			return slices.Repeat([]string{"/run/exit.sock"}, len(routes)), nil
		},
		Leaf: pinned(t, p), Address: func(string) (netip.Addr, bool) { return virtual, true }, MaxStreamDuration: 2 * time.Hour,
	}, p.params()))(t)
	managers, proxies := bytes.Count(text, []byte("HttpConnectionManager\"")), bytes.Count(text, []byte("TcpProxy\""))
	if managers == 0 || proxies == 0 ||
		bytes.Count(text, []byte(`"stream_idle_timeout": "0s"`)) != managers || bytes.Count(text, []byte(`"idle_timeout": "0s"`)) != proxies {
		t.Errorf("%d managers and %d proxies of connections: %s", managers, proxies, text)
	}
}

// TestEnvoyTakesPlainHTTPInTunnels sends plain http in a CONNECT, as Node's fetch,
// npm and curl -p do, and names that are written in full.
func TestEnvoyTakesPlainHTTPInTunnels(t *testing.T) {
	other := plainHTTP("other", "maps.weather.example")
	other.To.Ports = []uint16{8080}
	tcp := authz.Rule{ID: "db", To: authz.To{Scheme: authz.SchemeTCP, Hosts: []string{"db.weather.example"}, Ports: []uint16{80}}}
	p := newPlane(t, nil, grant(plainHTTP("plain", "plain.weather.example"), other, tcp, plainHTTP("db-web", "db.weather.example"),
		plainHTTP("tiles", "*.tiles.weather.example"), originated(https("api", "/echo", "api.weather.example"))))
	p.leads("plain.weather.example:80", p.plain.Addr)
	p.leads("maps.weather.example:8080", p.plain.Addr)
	p.leads("db.weather.example:80", p.plain.Addr)
	p.leads("*.tiles.weather.example:80", p.plain.Addr)
	p.leads("api.weather.example:443", p.secure.Addr)
	for _, c := range []struct{ to, host, decided string }{
		{"plain.weather.example:80", "plain.weather.example", "http plain.weather.example granted"},
		{"PLAIN.weather.example.:80", "plain.weather.example", "http plain.weather.example granted"},
		{"maps.weather.example:8080", "maps.weather.example:8080", "http maps.weather.example granted"},
		{"a.tiles.weather.example:80", "a.tiles.weather.example", "http a.tiles.weather.example granted"},
		{"a.tiles.weather.example.:80", "a.tiles.weather.example", "http a.tiles.weather.example granted"},
		{"api.weather.example:80", "api.weather.example", "https api.weather.example granted"},
		{"db.weather.example:80", "db.weather.example", "tcp db.weather.example granted"},
	} {
		t.Run(c.to, func(t *testing.T) {
			p.book.forget()
			conn := p.dial(t)
			testenv.MustGet(io.WriteString(conn, "CONNECT "+c.to+" HTTP/1.1\r\nhost: "+c.to+"\r\n\r\n"))(t)
			if resp := testenv.MustGet(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}))(t); resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
			resp, body := exchange(t, conn, "GET /echo HTTP/1.1\r\nhost: "+c.host+"\r\nconnection: close\r\n\r\n")
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s %v %s", resp.Status, resp.Header, body)
			}
			if got := p.book.decided(); !slices.Equal(got, []string{c.decided}) {
				t.Errorf("%v, want %s", got, c.decided)
			}
		})
	}
	t.Run("another host inside", func(t *testing.T) {
		conn := p.dial(t)
		testenv.MustGet(io.WriteString(conn, "CONNECT plain.weather.example:80 HTTP/1.1\r\nhost: plain.weather.example:80\r\n\r\n"))(t)
		testenv.MustGet(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}))(t)
		resp, body := exchange(t, conn, get("http://evil.example/echo"))
		refused(t, resp, body, "destination_not_granted")
	})
	t.Run("what to ask for", func(t *testing.T) {
		_, body := p.send(t, "CONNECT new.weather.example:443 HTTP/1.1\r\nhost: new.weather.example:443\r\n\r\n")
		if !strings.Contains(body, `"remedy":"ask for a rule with to: {hosts: [new.weather.example]}; add methods and paths, which are not known yet"`) {
			t.Error(body)
		}
	})
}
