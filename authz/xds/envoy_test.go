package xds_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// https returns a rule for hosts and a path.
func https(id, path string, hosts ...string) authz.Rule {
	return authz.Rule{ID: id, To: authz.To{Hosts: hosts}, Methods: []string{"*"}, Paths: []string{path}}
}

func originated(r authz.Rule) authz.Rule {
	r.To.TLS.Originate = true
	return r
}

// redirected opens a connection by the relay's socket, as one to an address.
func (p *plane) redirected(t *testing.T, to string) net.Conn {
	t.Helper()
	conn := testenv.MustGet(net.Dial("unix", p.config.Listener))(t)
	t.Cleanup(func() { conn.Close() })
	testenv.Must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	testenv.MustGet(conn.Write(proxyHeader(netip.MustParseAddrPort("10.0.0.7:41000"), netip.MustParseAddrPort(to))))(t)
	return conn
}

// proxyHeader returns a PROXY protocol header, version 2, of a TCP connection
// over IPv4 (HAProxy's proxy-protocol.txt, section 2.2).
func proxyHeader(from, to netip.AddrPort) []byte {
	out := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c")
	out = append(out, from.Addr().AsSlice()...)
	out = append(out, to.Addr().AsSlice()...)
	out = binary.BigEndian.AppendUint16(out, from.Port())
	return binary.BigEndian.AppendUint16(out, to.Port())
}

// within has conn speak TLS as a client that trusts the plugin's authority.
func (p *plane) within(t *testing.T, conn net.Conn, name string, protocols ...string) *tls.Conn {
	t.Helper()
	c := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: p.ca.Pool(), NextProtos: protocols})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("TLS to %s: %v", name, err)
	}
	return c
}

func refused(t *testing.T, resp *http.Response, body, reason string) {
	t.Helper()
	if resp.StatusCode < 400 || resp.Header.Get(authz.HeaderReason) != reason || resp.Header.Get(authz.HeaderDecision) == "" {
		t.Errorf("%s %v %s, want %s", resp.Status, resp.Header, body, reason)
	}
}

func TestEnvoyPlainRequests(t *testing.T) {
	plain := https("plain", "/echo", "plain.weather.example")
	plain.To.Scheme = authz.SchemeHTTP
	p := newPlane(t, nil, grant(originated(https("old", "/echo", "old.weather.example")), plain,
		originated(https("tiles", "/**", "*.tiles.weather.example"))))
	p.leads("old.weather.example:443", p.secure.Addr)
	p.leads("*.tiles.weather.example:443", p.secure.Addr)
	p.leads("plain.weather.example:80", p.plain.Addr)
	for _, c := range []struct {
		url, reason string
		up          *testenv.Upstream
	}{
		{"http://old.weather.example/echo", "", p.secure},
		{"http://OLD.weather.example.:80/echo", "", p.secure},
		{"http://plain.weather.example/echo", "", p.plain},
		{"http://a.tiles.weather.example/z/1", "", p.secure},
		{"http://b.a.tiles.weather.example/z/1", "destination_not_granted", nil},
		{"http://old.weather.example/other", "path_not_granted", nil},
		{"http://evil.example/echo", "destination_not_granted", nil},
		{"http://inside/echo", "destination_not_granted", nil},
	} {
		ways := map[string]func() net.Conn{
			"explicit": func() net.Conn { return p.dial(t) },
			"relayed":  func() net.Conn { return p.redirected(t, "240.0.0.1:80") },
		}
		for way, dial := range ways {
			t.Run(way+" "+c.url, func(t *testing.T) {
				p.secure.Forget()
				p.plain.Forget()
				resp, body := exchange(t, dial(), get(c.url))
				seen := append(p.secure.Requests(), p.plain.Requests()...)
				if c.reason != "" {
					refused(t, resp, body, c.reason)
					if len(seen) != 0 {
						t.Errorf("an upstream saw %+v", seen)
					}
					return
				}
				if resp.StatusCode != http.StatusOK || len(seen) != 1 || len(c.up.Requests()) != 1 {
					t.Fatalf("%s %v %s; upstreams saw %+v", resp.Status, resp.Header, body, seen)
				}
				host := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.Split(c.url, "/")[2], ":80"), "."))
				if seen[0].Host != host {
					t.Errorf("host %q, want %q", seen[0].Host, host)
				}
				if len(seen[0].Header) > 0 {
					t.Errorf("Envoy added headers: %v", seen[0].Header)
				}
				if c.up == p.secure && seen[0].SNI != host {
					t.Errorf("server name %q", seen[0].SNI)
				}
			})
		}
	}
}

// TestEnvoyRoutesByAnswer has two rules for a host, and a plugin that names one
// of them by itself.
func TestEnvoyRoutesByAnswer(t *testing.T) {
	p := newPlane(t, nil, grant(originated(https("one", "/one", "api.weather.example")), originated(https("two", "/two", "*.weather.example"))))
	p.leads("api.weather.example:443", p.secure.Addr)
	p.leads("*.weather.example:443", p.secure.Addr)
	clusters := func(rule, host string) int {
		return testenv.MustGet(p.envoy.Counter(t.Context(), "cluster.weather/"+rule+"/"+host+"_443.upstream_rq_total"))(t)
	}
	for _, c := range []struct{ url, header string }{
		{"http://api.weather.example/one", "weather/two"},
		{"http://api.weather.example/two", "weather/one"},
	} {
		if resp, body := p.send(t, get(c.url, "x-chaperone-route: "+c.header, "X-Chaperone-Other: 1", "x-envoy-upstream-rq-timeout-ms: 1")); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s", c.url, resp.Status, body)
		}
	}
	if one, two := clusters("one", "api.weather.example"), clusters("two", "*.weather.example"); one != 1 || two != 1 {
		t.Errorf("rule one %d requests, rule two %d, want one each", one, two)
	}
	for _, seen := range p.secure.Requests() {
		if len(seen.Header) > 0 {
			t.Errorf("the upstream saw %v", seen.Header)
		}
	}
	resp, body := p.send(t, get("http://evil.example/one", "x-chaperone-route: weather/one"))
	refused(t, resp, body, "destination_not_granted")
	if got := p.secure.Total(); got != 2 {
		t.Errorf("the upstream saw %d requests", got)
	}
}

// TestEnvoyTerminatesTLS speaks TLS in a CONNECT, and as redirected.
func TestEnvoyTerminatesTLS(t *testing.T) {
	other := https("port", "/echo", "maps.weather.example")
	other.To.Ports = []uint16{8443}
	p := newPlane(t, nil, grant(https("api", "/echo", "api.weather.example"), https("tiles", "/echo", "*.tiles.weather.example"), other))
	p.leads("api.weather.example:443", p.secure.Addr)
	p.leads("*.tiles.weather.example:443", p.secure.Addr)
	p.leads("maps.weather.example:8443", p.secure.Addr)
	connect := func(to string) net.Conn {
		conn := p.dial(t)
		testenv.MustGet(io.WriteString(conn, "CONNECT "+to+" HTTP/1.1\r\nhost: "+to+"\r\n\r\n"))(t)
		resp := testenv.MustGet(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}))(t)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("CONNECT %s: %s", to, resp.Status)
		}
		return conn
	}
	for _, c := range []struct{ name, to string }{
		{"api.weather.example", "api.weather.example:443"},
		{"a.tiles.weather.example", "a.tiles.weather.example:443"},
		{"maps.weather.example", "maps.weather.example:8443"},
	} {
		_, port, _ := net.SplitHostPort(c.to)
		for way, conn := range map[string]net.Conn{"CONNECT": connect(c.to), "relayed": p.redirected(t, "240.0.0.1:"+port)} {
			t.Run(way+" "+c.name, func(t *testing.T) {
				host := strings.TrimSuffix(c.to, ":443")
				p.secure.Forget()
				resp, body := exchange(t, p.within(t, conn, c.name), get("https://"+host+"/echo"))
				if seen := p.secure.Requests(); resp.StatusCode != http.StatusOK || len(seen) != 1 || seen[0].SNI != c.name || seen[0].Host != host {
					t.Errorf("%s %v %s; %+v", resp.Status, resp.Header, body, seen)
				}
			})
		}
	}
	t.Run("path", func(t *testing.T) {
		resp, body := exchange(t, p.within(t, connect("api.weather.example:443"), "api.weather.example"), get("https://api.weather.example/other"))
		refused(t, resp, body, "path_not_granted")
	})
	t.Run("another host than the server name", func(t *testing.T) {
		resp, body := exchange(t, p.within(t, connect("api.weather.example:443"), "api.weather.example"), get("https://a.tiles.weather.example/echo"))
		if resp.StatusCode < 400 || resp.Header.Get(authz.HeaderReason) == "" {
			t.Errorf("%s %v %s", resp.Status, resp.Header, body)
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{
			ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool()},
			DialContext: func(context.Context, string, string) (net.Conn, error) { return p.redirected(t, "240.0.0.1:443"), nil },
		}}
		defer client.CloseIdleConnections()
		req := testenv.MustGet(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.weather.example/echo", nil))(t)
		resp := testenv.MustGet(client.Do(req))(t)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
			t.Errorf("%s %s", resp.Proto, resp.Status)
		}
	})
	t.Run("CONNECT to what is not granted", func(t *testing.T) {
		p.secure.Forget()
		for _, to := range []string{"evil.example:443", "api.weather.example:444", "b.a.tiles.weather.example:22", "inside:443", "0.0.0.1:443"} {
			resp, body := p.send(t, "CONNECT "+to+" HTTP/1.1\r\nhost: "+to+"\r\n\r\n")
			refused(t, resp, body, "destination_not_granted")
		}
	})
	t.Run("TLS to what is not granted", func(t *testing.T) {
		p.book.forget()
		for _, to := range []string{"240.0.0.1:443", "240.0.0.1:8443"} {
			for _, name := range []string{"evil.example", "maps.weather.example.evil.example", "api.weather.example", "maps.weather.example", "a.tiles.weather.example"} {
				if granted := name == "maps.weather.example"; granted == (to == "240.0.0.1:8443") && strings.HasSuffix(name, "weather.example") {
					continue
				}
				c := tls.Client(p.redirected(t, to), &tls.Config{ServerName: name, RootCAs: p.ca.Pool()})
				if err := c.HandshakeContext(t.Context()); err == nil {
					t.Errorf("%s: connected", name)
				}
			}
		}
		for _, got := range p.book.decided() {
			if !strings.HasPrefix(got, "tls ") || !strings.HasSuffix(got, " destination_not_granted") {
				t.Error(got)
			}
		}
		if got := len(p.book.decided()); got != 7 {
			t.Errorf("%d were asked about, want all", got)
		}
	})
	t.Run("nested CONNECT", func(t *testing.T) {
		inner := p.within(t, connect("api.weather.example:443"), "api.weather.example")
		testenv.MustGet(io.WriteString(inner, "CONNECT api.weather.example:443 HTTP/1.1\r\nhost: api.weather.example:443\r\n\r\n"))(t)
		refused(t, testenv.MustGet(http.ReadResponse(bufio.NewReader(inner), nil))(t), "", "destination_not_granted")
	})
}

func TestEnvoyTunnels(t *testing.T) {
	p := newPlane(t, func(p *plane) {
		p.config.Address = func(host string) (netip.Addr, bool) { return virtual, host == "db.weather.example" }
	}, grant(
		authz.Rule{ID: "pass", To: authz.To{Scheme: authz.SchemeTLS, Hosts: []string{"secure.weather.example", "*.pass.weather.example"}}},
		authz.Rule{ID: "db", To: authz.To{Scheme: authz.SchemeTCP, Hosts: []string{"db.weather.example"}, Ports: []uint16{5432}}},
		authz.Rule{ID: "literal", To: authz.To{
			Scheme: authz.SchemeTCP, Hosts: []string{"198.51.100.7"}, Ports: []uint16{22, 443},
			Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		}},
		authz.Rule{ID: "once", Limits: authz.Limits{Requests: authz.Limit{Count: 1}}, To: authz.To{
			Scheme: authz.SchemeTCP, Hosts: []string{"198.51.100.8"}, Ports: []uint16{25},
			Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		}},
		https("api", "/echo", "api.weather.example"),
	))
	for _, to := range []string{"secure.weather.example:443", "*.pass.weather.example:443"} {
		p.leads(to, p.secure.Addr)
	}
	for _, to := range []string{"db.weather.example:5432", "198.51.100.7:22", "198.51.100.7:443"} {
		p.leads(to, p.plain.Addr)
	}
	t.Run("TLS by server name", func(t *testing.T) {
		c := tls.Client(p.redirected(t, "240.0.0.1:443"), &tls.Config{ServerName: "secure.weather.example", RootCAs: p.secure.Pool()})
		if resp, body := exchange(t, c, get("https://secure.weather.example/echo")); resp.StatusCode != http.StatusOK {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
	t.Run("TLS in a CONNECT", func(t *testing.T) {
		conn := p.dial(t)
		testenv.MustGet(io.WriteString(conn, "CONNECT secure.weather.example:443 HTTP/1.1\r\nhost: secure.weather.example:443\r\n\r\n"))(t)
		if resp := testenv.MustGet(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}))(t); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		c := tls.Client(conn, &tls.Config{ServerName: "secure.weather.example", RootCAs: p.secure.Pool()})
		if resp, body := exchange(t, c, get("https://secure.weather.example/echo")); resp.StatusCode != http.StatusOK {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
	for _, to := range []string{"198.51.100.7:22", "198.51.100.7:443", "240.0.0.9:5432"} {
		t.Run("address "+to, func(t *testing.T) {
			if resp, body := exchange(t, p.redirected(t, to), get("http://any/echo")); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"host":"any"`) {
				t.Errorf("%s %s", resp.Status, body)
			}
		})
	}
	t.Run("CONNECT", func(t *testing.T) {
		resp, body := p.send(t, "CONNECT DB.weather.example.:5432 HTTP/1.1\r\nhost: DB.weather.example.:5432\r\n\r\n"+get("http://any/echo"))
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"host":"any"`) {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
	t.Run("TLS to another port of the address", func(t *testing.T) {
		c := tls.Client(p.redirected(t, "198.51.100.7:8443"), &tls.Config{ServerName: "secure.weather.example", RootCAs: p.secure.Pool()})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Error("connected")
		}
		p.book.forget()
		c = tls.Client(p.redirected(t, "198.51.100.7:8443"), &tls.Config{ServerName: "api.weather.example", RootCAs: p.ca.Pool()})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Error("connected")
		}
		if got := p.book.decided(); !slices.Equal(got, []string{"tls api.weather.example destination_not_granted"}) {
			t.Errorf("%v", got)
		}
	})
	t.Run("beyond its limit", func(t *testing.T) {
		before := p.exits.taken()
		for range 3 {
			conn := p.redirected(t, "198.51.100.8:25")
			testenv.MustGet(io.WriteString(conn, "hello there"))(t)
			_, _ = io.Copy(io.Discard, conn) // it is closed either way
		}
		if got := p.exits.taken() - before; got != 1 {
			t.Errorf("%d connections were dialled, and one is granted", got)
		}
	})
	t.Run("another port of the address", func(t *testing.T) {
		resp, body := exchange(t, p.redirected(t, "198.51.100.7:23"), get("http://198.51.100.7:23/"))
		refused(t, resp, body, "destination_not_granted")
	})
}

func TestEnvoyStreams(t *testing.T) {
	rule := originated(https("api", "/**", "api.weather.example"))
	rule.Upgrades = []string{"websocket"}
	plain := https("plain", "/**", "plain.weather.example")
	plain.To.Scheme = authz.SchemeHTTP
	slow := originated(https("slow", "/**", "maps.weather.example"))
	slow.Timeout = authz.Duration(time.Second)
	p := newPlane(t, nil, grant(rule, plain, slow))
	p.leads("api.weather.example:443", p.secure.Addr)
	p.leads("maps.weather.example:443", p.secure.Addr)
	p.leads("plain.weather.example:80", p.plain.Addr)
	for name, host := range map[string]string{"TLS": "api.weather.example", "plain text": "plain.weather.example"} {
		t.Run("gRPC to "+name, func(t *testing.T) {
			conn := testenv.MustGet(grpc.NewClient("passthrough:///"+p.config.Explicit.String(),
				grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host)))(t)
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			stream := testenv.MustGet(conn.NewStream(ctx, testenv.EchoStream(), testenv.EchoChat))(t)
			for range 3 {
				testenv.Must(t, stream.SendMsg(wrapperspb.String("hello")))
				testenv.Must(t, stream.RecvMsg(new(wrapperspb.StringValue)))
			}
			testenv.Must(t, stream.CloseSend())
			if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
				t.Fatalf("after the last message: %v", err)
			}
			if got := stream.Trailer().Get("x-echoed"); !slices.Equal(got, []string{"3"}) {
				t.Errorf("trailer x-echoed %v", got)
			}
		})
	}
	t.Run("gRPC refused", func(t *testing.T) {
		conn := testenv.MustGet(grpc.NewClient("passthrough:///"+p.config.Explicit.String(),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("evil.example")))(t)
		defer conn.Close()
		err := conn.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("hello"), new(wrapperspb.StringValue))
		if s := status.Convert(err); s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), "destination_not_granted: ") {
			t.Errorf("%v", err)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return p.redirected(t, "240.0.0.1:80"), nil },
		}}
		defer client.CloseIdleConnections()
		conn, resp, err := websocket.Dial(t.Context(), "ws://api.weather.example/ws", &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			t.Fatalf("%v %v", err, resp)
		}
		defer conn.CloseNow()
		testenv.Must(t, conn.Write(t.Context(), websocket.MessageText, []byte("hello")))
		_, got, err := conn.Read(t.Context())
		if err != nil || !bytes.Equal(got, []byte("hello")) {
			t.Errorf("%q %v", got, err)
		}
	})
	t.Run("the rule's timeout", func(t *testing.T) {
		if resp, body := p.send(t, get("http://maps.weather.example/slow?wait=30s")); resp.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("%s %s", resp.Status, body)
		}
	})
}

// TestEnvoyLeavesPathsAlone sends paths that two readers could take for
// different ones: they reach the sidecar as they were sent, and the upstream as the
// sidecar configures it.
func TestEnvoyLeavesPathsAlone(t *testing.T) {
	slash := originated(https("slash", "/items/*", "maps.weather.example"))
	slash.EncodedSlash = "allow"
	p := newPlane(t, nil, grant(originated(https("api", "/v1/**", "api.weather.example")), slash))
	p.leads("api.weather.example:443", p.secure.Addr)
	p.leads("maps.weather.example:443", p.secure.Addr)
	for _, c := range []struct {
		url, target, reason string
	}{
		{"http://api.weather.example/v1/a", "/v1/a", ""},
		{"http://api.weather.example/v1/%61?b=%2F..", "/v1/a?b=%2F..", ""},
		{"http://maps.weather.example/items/a%2Fb", "/items/a%2Fb", ""},
		{"http://api.weather.example/v1/../admin", "", "malformed_request"},
		{"http://api.weather.example/v1/%2e%2e/admin", "", "malformed_request"},
		{"http://api.weather.example/v1/..%2fadmin", "", "malformed_request"},
		{"http://api.weather.example/v1/a%2fb", "", "malformed_request"},
		{"http://api.weather.example/v1/./a", "", "malformed_request"},
		{"http://api.weather.example//v1/a", "", "malformed_request"},
		{"http://api.weather.example/v1//a", "", "malformed_request"},
		{"http://api.weather.example/v1/..;/admin", "", "malformed_request"},
		{"http://api.weather.example/v1/a%5c..%5cb", "", "malformed_request"},
		{"http://api.weather.example/v1/a\\b", "", "malformed_request"},
		{"http://api.weather.example/v1/a%00", "", "malformed_request"},
		{"http://api.weather.example/v1/%zz", "", "malformed_request"},
	} {
		t.Run(c.url, func(t *testing.T) {
			p.secure.Forget()
			resp, body := p.send(t, get(c.url))
			seen := p.secure.Requests()
			if c.reason != "" {
				refused(t, resp, body, c.reason)
				if len(seen) > 0 {
					t.Errorf("the upstream saw %s", seen[0].Target)
				}
				return
			}
			if resp.StatusCode != http.StatusOK || len(seen) != 1 || seen[0].Target != c.target {
				t.Errorf("%s %v %s; %+v", resp.Status, resp.Header, body, seen)
			}
		})
	}
}

// until waits for something to hold.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// acknowledged waits until the Envoy has put in force what is served.
func (p *plane) acknowledged(t *testing.T) {
	t.Helper()
	until(t, "every resource is acknowledged", func() bool {
		s := p.server.Status()
		return s.Generation == p.engine.Current().Generation() && len(s.Envoys) == 1 && s.Current(s.Envoys[0])
	})
}

// dump returns the resources that Envoy has in force.
func (p *plane) dump(t *testing.T) string {
	t.Helper()
	return testenv.MustGet(p.envoy.Admin(t.Context(), http.MethodGet, "/config_dump"))(t)
}

func TestEnvoyFollowsGenerations(t *testing.T) {
	p := newPlane(t, nil, grant(
		originated(https("old", "/**", "old.weather.example")), originated(https("api", "/**", "api.weather.example")),
		authz.Rule{ID: "pass", To: authz.To{Scheme: authz.SchemeTLS, Hosts: []string{"secure.weather.example"}}},
	))
	p.leads("old.weather.example:443", p.secure.Addr)
	p.leads("api.weather.example:443", p.secure.Addr)
	p.acknowledged(t)
	kept := p.dial(t) // of a rule that stays
	ask := func() {
		t.Helper()
		testenv.MustGet(io.WriteString(kept, "GET http://api.weather.example/echo HTTP/1.1\r\nhost: api.weather.example\r\n\r\n"))(t)
		resp := testenv.MustGet(http.ReadResponse(bufio.NewReader(kept), nil))(t)
		testenv.MustGet(io.Copy(io.Discard, resp.Body))(t)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Close {
			t.Fatalf("a connection of another rule: %s %v", resp.Status, resp.Header)
		}
	}
	ask()
	if dump := p.dump(t); !strings.Contains(dump, "weather/old") || !strings.Contains(dump, "\"https/") || !strings.Contains(dump, "weather/pass") {
		t.Fatal("the rules are not there")
	}
	p.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Rule: "old", Level: authz.LevelQuarantine},
		authz.Revocation{ID: "s", Plugin: plugin, Rule: "pass", Level: authz.LevelQuarantine})
	p.acknowledged(t)
	dump := p.dump(t)
	for _, gone := range []string{"weather/old", "old.weather.example", "weather/pass", "secure.weather.example"} {
		if at := strings.Index(dump, gone); at >= 0 {
			t.Errorf("%s is still there: %s", gone, dump[max(0, at-300):at+100])
		}
	}
	if !strings.Contains(dump, "weather/api") {
		t.Error("another rule is gone")
	}
	resp, body := p.send(t, get("http://old.weather.example/echo"))
	refused(t, resp, body, "revoked")
	ask()
	p.engine.Restore("r")
	p.acknowledged(t)
	if resp, body := p.send(t, get("http://old.weather.example/echo")); resp.StatusCode != http.StatusOK {
		t.Errorf("restored: %s %s", resp.Status, body)
	}
	ask()
	p.engine.Revoke(authz.Revocation{ID: "all", Plugin: plugin, Level: authz.LevelHalt})
	p.acknowledged(t)
	dump = p.dump(t)
	if at := strings.Index(dump, "weather.example"); at >= 0 {
		t.Errorf("a halted plugin is left something: %s", dump[max(0, at-300):at+100])
	}
	resp, body = p.send(t, get("http://api.weather.example/echo"))
	refused(t, resp, body, "revoked")
}

// TestEnvoyRefuses gives Envoy a listener that it cannot have.
func TestEnvoyRefuses(t *testing.T) {
	taken := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	p := newPlane(t, func(p *plane) {
		p.config.Transparent = netip.MustParseAddrPort(taken.Addr().String())
	}, grant(originated(https("old", "/**", "old.weather.example"))))
	p.leads("old.weather.example:443", p.secure.Addr)
	until(t, "Envoy says what it refuses", func() bool {
		s := p.server.Status()
		return len(s.Envoys) == 1 && strings.Contains(s.Envoys[0].Refused["Listener"], "transparent") && !s.Current(s.Envoys[0])
	})
	s := p.server.Status()
	if s.Envoys[0].Version != "1.40.0" || !s.Envoys[0].Delta || s.Envoys[0].Acknowledged["Cluster"] != 1 {
		t.Errorf("%+v", s)
	}
}

// TestEnvoyWithoutServer ends the server and then the sidecar, and starts them
// again under the same Envoy.
func TestEnvoyWithoutServer(t *testing.T) {
	p := newPlane(t, nil, grant(originated(https("old", "/**", "old.weather.example"))))
	p.leads("old.weather.example:443", p.secure.Addr)
	granted := get("http://old.weather.example/echo")
	if resp, body := p.send(t, granted); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", resp.Status, body)
	}
	p.stopServer()
	if resp, body := p.send(t, granted); resp.StatusCode != http.StatusOK {
		t.Errorf("without the xDS server: %s %s", resp.Status, body)
	}
	p.stopCheck()
	for range 10 {
		if resp, body := p.send(t, granted); resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("without the sidecar: %s %s", resp.Status, body)
		}
	}
	if got := p.secure.Total(); got != 2 {
		t.Errorf("the upstream saw %d requests", got)
	}
	// A rule that was revoked in between is removed once they reconnect.
	p.engine.Install(compile(t, grant(originated(https("api", "/**", "api.weather.example")))))
	p.leads("api.weather.example:443", p.secure.Addr)
	p.startCheck(t)
	p.startServer(t)
	p.acknowledged(t)
	p.stopServer()
	p.startServer(t)
	p.acknowledged(t) // of a server that had nothing new to send
	if dump := p.dump(t); strings.Contains(dump, "old.weather.example") || !strings.Contains(dump, "weather/api") {
		t.Error("the Envoy has not followed")
	}
	until(t, "granted again", func() bool {
		resp, _ := p.send(t, get("http://api.weather.example/echo"))
		return resp.StatusCode == http.StatusOK
	})
	testenv.Must(t, p.envoy.Kill())
	until(t, "the server sees the Envoy go", func() bool { return len(p.server.Status().Envoys) == 0 })
	p.startEnvoy(t)
	p.acknowledged(t)
	if resp, body := p.send(t, get("http://api.weather.example/echo")); resp.StatusCode != http.StatusOK {
		t.Errorf("after a restart of Envoy: %s %s", resp.Status, body)
	}
}

// TestEnvoyStateOfTheWorld has an Envoy that does not use the delta protocol.
func TestEnvoyStateOfTheWorld(t *testing.T) {
	p := newPlane(t, func(p *plane) { p.sotw = true }, grant(originated(https("old", "/**", "old.weather.example")), https("api", "/**", "api.weather.example")))
	p.leads("old.weather.example:443", p.secure.Addr)
	p.acknowledged(t)
	if resp, body := p.send(t, get("http://old.weather.example/echo")); resp.StatusCode != http.StatusOK || p.server.Status().Envoys[0].Delta {
		t.Fatalf("%s %s", resp.Status, body)
	}
	p.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Rule: "old", Level: authz.LevelQuarantine})
	p.acknowledged(t)
	if dump := p.dump(t); strings.Contains(dump, "weather/old") || !strings.Contains(dump, "weather/api") {
		t.Error("the Envoy has not followed")
	}
}

// TestEnvoyOfAnother is refused: it would be given the keys of certificates.
func TestEnvoyOfAnother(t *testing.T) {
	p := newPlane(t, nil, grant(originated(https("old", "/**", "old.weather.example"))))
	params := p.params()
	params.Plugin, params.Admin = "mail", p.path("other.sock")
	bootstrap := testenv.MustGet(xds.Bootstrap(params))(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	envoy, err := testenv.StartEnvoy(ctx, testenv.EnvoyConfig{Bootstrap: string(bootstrap)})
	if err == nil {
		envoy.Close()
		t.Error("it was configured")
	}
}

func TestEnvoyAccessLog(t *testing.T) {
	p := newPlane(t, nil, grant(originated(https("old", "/**", "old.weather.example"))))
	p.leads("old.weather.example:443", p.secure.Addr)
	p.send(t, get("http://old.weather.example/echo?key=secret"))
	p.send(t, get("http://evil.example/"))
	var lines []string
	until(t, "two lines", func() bool {
		testenv.MustGet(p.envoy.Admin(t.Context(), http.MethodPost, "/reopen_logs"))(t)
		text, err := os.ReadFile(p.config.AccessLog)
		lines = strings.Split(strings.TrimSpace(string(text)), "\n")
		return err == nil && len(lines) == 2
	})
	for i, want := range []string{`"rule":"old"`, `"reason":"destination_not_granted"`} {
		if !strings.Contains(lines[i], want) || !strings.Contains(lines[i], `"decision":"0`) || strings.Contains(lines[i], "secret") {
			t.Errorf("line %s", lines[i])
		}
	}
}
