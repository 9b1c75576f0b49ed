package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// corporate is an HTTP proxy that keeps the requests that it receives and the bytes that
// pass towards the upstream.
type corporate struct {
	url *url.URL

	mu     sync.Mutex
	asked  []string // request line and authorization
	passed strings.Builder
	answer string // instead of a tunnel
}

func newCorporate(t testing.TB, config *tls.Config) *corporate {
	t.Helper()
	p := &corporate{}
	address := tcpServer(t, func(c net.Conn) {
		if config != nil {
			c = tls.Server(c, config)
		}
		p.serve(c)
		_ = c.Close()
	})
	p.url = &url.URL{Scheme: "http", Host: address.String(), User: url.UserPassword("ada", "proxy-password")}
	if config != nil {
		p.url.Scheme = "https"
	}
	return p
}

func (p *corporate) serve(c net.Conn) {
	in := bufio.NewReader(c)
	r, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.RequestURI+" "+r.Header.Get("Proxy-Authorization"))
	answer := p.answer
	p.mu.Unlock()
	if answer != "" {
		_, _ = io.WriteString(c, answer)
		return
	}
	to, err := net.Dial("tcp", r.RequestURI)
	if err != nil {
		return
	}
	defer to.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, to)
		if half, ok := c.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	b := make([]byte, 4096)
	for {
		n, err := in.Read(b)
		p.mu.Lock()
		p.passed.Write(b[:n])
		p.mu.Unlock()
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			break
		}
	}
	_ = to.(*net.TCPConn).CloseWrite()
	back.Wait()
}

// take returns the requests since the last call.
func (p *corporate) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.asked
	p.asked = nil
	return asked
}

// TestUpstreamProxy dials upstreams through a proxy, by the address that was checked.
func TestUpstreamProxy(t *testing.T) {
	ca, err := testenv.NewCA("corporate")
	testenv.Must(t, err)
	pair, err := ca.Issue("127.0.0.1")
	testenv.Must(t, err)
	for scheme, config := range map[string]*tls.Config{"http": nil, "https": {Certificates: []tls.Certificate{pair}}} {
		t.Run(scheme, func(t *testing.T) {
			through := newCorporate(t, config)
			api := upstream(t, testenv.UpstreamConfig{})
			plain := upstream(t, testenv.UpstreamConfig{Plain: true, Authorize: func(*http.Request) bool { return true }})
			greet := tcpServer(t, greeter)
			open := rule(plain, "open", "open.example")
			open.To.Scheme, open.To.TLS, open.Credential = authz.SchemeHTTP, authz.TLS{}, ""
			inClear := rule(plain, "clear", "api.weather.example", "below.corp.example")
			inClear.To.Scheme, inClear.To.TLS, inClear.Insecure = authz.SchemeHTTP, authz.TLS{}, true
			guarded := rule(api, "guarded", "other.weather.example")
			guarded.To.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			w := newWorld(t, setup{
				input: granted(rule(api, "read", "api.weather.example", "127.0.0.1"), open, inClear, guarded, tcpRule(greet, authz.SchemeTCP, "api.weather.example")),
				config: func(c *proxy.Config) {
					c.Upstream.Proxy, c.Upstream.NoProxy = through.url, []string{".corp.example"}
					c.Upstream.Hosts["open.example"], c.Upstream.Hosts["below.corp.example"] = []netip.Addr{loopback}, []netip.Addr{loopback}
				},
			})
			w.proxy.TrustUpstreamProxy(ca.Pool())
			user := " Basic YWRhOnByb3h5LXBhc3N3b3Jk"
			via := func(to netip.AddrPort) string { return "CONNECT " + to.String() + user }
			plainURL := func(host string) string { return fmt.Sprintf("http://%s:%d/x", host, plain.Addr.Port()) }

			for _, test := range []struct {
				name, url string
				want      authz.Reason
				asked     string // "" for nothing
			}{
				{"https", api.URL("api.weather.example", "/x"), authz.Granted, via(api.Addr)},
				{"http without a credential", plainURL("open.example"), authz.Granted, via(plain.Addr)},
				{"http with a credential", plainURL("api.weather.example"), authz.NotEnforceableHere, ""},
				{"http with a credential, directly", plainURL("below.corp.example"), authz.Granted, ""},
				{"an address that is not allowed", api.URL("other.weather.example", "/x"), authz.AddressNotAllowed, ""},
			} {
				response, body := send(t, w.client(nil), request(t, "GET", test.url, ""))
				if test.want != authz.Granted {
					wantRefusal(t, response, body, test.want)
				} else if response.StatusCode != 200 {
					t.Errorf("%s: %s %s", test.name, response.Status, body)
				}
				if asked := strings.Join(through.take(), ", "); asked != test.asked {
					t.Errorf("%s: the proxy was asked for %q, want %q", test.name, asked, test.asked)
				}
			}
			speak(t, w.tunnel(fmt.Sprintf("api.weather.example:%d", greet.Port())))
			w.settled()
			// The end of an answer is recorded after the plugin has it.
			ends := w.records.of(authz.KindEnd)
			if i := slices.IndexFunc(ends, func(r authz.Record) bool { return r.Rule == "read" }); i < 0 || ends[i].Address != api.Addr.String() {
				t.Errorf("the address is recorded as %+v", ends)
			}
			w.engine.Bump() // makes new connections
			for name, answer := range map[string]string{
				" answered 407": "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "'s answer is invalid": "SSH-2.0-x\r\n",
				" answered 302": "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\n\r\n", "'s answer is invalid ": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100_000),
			} {
				through.mu.Lock()
				through.answer = answer
				through.mu.Unlock()
				response, body := send(t, w.client(nil), request(t, "GET", api.URL("api.weather.example", "/x"), ""))
				wantRefusal(t, response, body, authz.UpstreamUnreachable)
				if !strings.Contains(body, "the upstream proxy"+strings.TrimRight(name, " ")) {
					t.Errorf("%s: %s", name, body)
				}
			}
			through.mu.Lock()
			defer through.mu.Unlock()
			if strings.Contains(through.passed.String(), apiKey) || through.passed.Len() == 0 {
				t.Error("the proxy has read the credential")
			}
		})
	}
}

// TestNoProxy lists the hosts that are dialled directly.
func TestNoProxy(t *testing.T) {
	through := newCorporate(t, nil)
	api := upstream(t, testenv.UpstreamConfig{})
	for _, test := range []struct {
		entry, host string
		direct      bool
	}{
		{".weather.example", "api.weather.example", true},
		{".api.weather.example", "api.weather.example", false},
		{"weather.example", "api.weather.example", true},
		{"api.weather.example.", "api.weather.example", true},
		{"API.Weather.Example", "api.weather.example", true},
		{"er.example", "api.weather.example", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.0/8", "127.0.0.1", true},
		{"10.0.0.0/8", "127.0.0.1", false},
		{"127.0.0.0/8", "api.weather.example", false},
		{"", "api.weather.example", false},
		{".", "api.weather.example", false},
	} {
		w := newWorld(t, setup{input: granted(rule(api, "read", test.host)), config: func(c *proxy.Config) {
			c.Upstream.Proxy, c.Upstream.NoProxy = through.url, []string{test.entry}
		}})
		if response, body := send(t, w.client(nil), request(t, "GET", api.URL(test.host, "/x"), "")); response.StatusCode != 200 {
			t.Errorf("%+v: %s %s", test, response.Status, body)
		}
		if asked := through.take(); len(asked) == 0 != test.direct {
			t.Errorf("%+v: the proxy was asked for %v", test, asked)
		}
		w.stop()
	}
}
