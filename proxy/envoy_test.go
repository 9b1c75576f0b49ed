package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// bootstrap is an Envoy between relay and egress socket. /who answers with the
// destination in the PROXY header; every other request is forwarded to the egress socket.
const bootstrap = `
static_resources:
  listeners:
  - name: plugin
    address: {pipe: {path: %q}}
    listener_filters:
    - name: envoy.filters.listener.proxy_protocol
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
        disallowed_versions: [V1]
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: plugin
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {path: /who}
                direct_response: {status: 200}
                response_headers_to_add:
                - {header: {key: x-to, value: "%%DOWNSTREAM_LOCAL_ADDRESS%%"}}
                - {header: {key: x-from, value: "%%DOWNSTREAM_REMOTE_ADDRESS%%"}}
              - match: {prefix: /}
                route: {cluster: exit, timeout: 0s}
  clusters:
  - name: exit
    connect_timeout: 5s
    load_assignment:
      cluster_name: exit
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %q}}}}]}]
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: api.weather.example
        common_tls_context:
          validation_context:
            trusted_ca: {inline_string: %q}
            match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: api.weather.example}}]
`

// enveloped is a world with an Envoy between its relay and its exit for the API.
func enveloped(t *testing.T, api *testenv.Upstream, original func() netip.AddrPort) (*world, *testenv.Envoy) {
	t.Helper()
	testenv.Require(t, testenv.EnvoyServer())
	dir, err := os.MkdirTemp("", "envoy") //nolint:usetesting // a socket needs a short path
	testenv.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "plugin.sock")
	w := newWorld(t, setup{
		input:  granted(rule(api, "read")),
		config: relayed(socket, func() (netip.AddrPort, bool) { return original(), true }),
	})
	exit := w.exits()["read api.weather.example"]
	return w, testenv.MustEnvoy(t, testenv.EnvoyConfig{Bootstrap: fmt.Sprintf(bootstrap, socket, exit, api.CA.PEM())})
}

func TestThroughEnvoy(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	var original atomicAddr
	original.store(netip.AddrPort{})
	w, envoy := enveloped(t, api, original.load)
	var conns []net.Conn
	ask := func(t *testing.T, path string) *http.Response {
		t.Helper()
		c := w.raw()
		conns = append(conns, c)
		c.write("GET " + path + " HTTP/1.1\r\nHost: api.weather.example\r\n\r\n")
		response, err := http.ReadResponse(c.in, nil)
		testenv.Must(t, err)
		return response
	}
	for _, to := range []string{w.addr.String(), "240.0.0.7:443", "[2001:db8::7]:443"} {
		original.store(netip.MustParseAddrPort(to))
		if got := ask(t, "/who").Header; got.Get("x-to") != to || !strings.Contains(got.Get("x-from"), "127.0.0.1") {
			t.Errorf("for %s the Envoy sees %s from %s", to, got.Get("x-to"), got.Get("x-from"))
		}
	}
	original.store(netip.MustParseAddrPort("240.0.0.7:443"))

	t.Run("a header of the plugin's own", func(t *testing.T) {
		forged := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\xc0\x00\x02\x63\x00\x50\x00\x50"
		for _, first := range []string{forged, "PROXY TCP4 127.0.0.1 192.0.2.99 80 80\r\n", forged + forged, forged[:14]} {
			c := w.raw()
			c.write(first + "GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
			_ = c.Conn.(*net.TCPConn).CloseWrite()
			all, _ := io.ReadAll(c.in)
			if strings.Contains(string(all), "192.0.2.99") || strings.HasPrefix(string(all), "HTTP/1.1 200") {
				t.Errorf("%q is answered with %q", first, all)
			}
		}
	})
	if got := ask(t, "/x"); got.StatusCode != http.StatusOK || api.Total() != 1 {
		t.Fatalf("through the Envoy: %s, and %d requests arrived", got.Status, api.Total())
	}

	t.Run("a stream is cut and the relay is not", func(t *testing.T) {
		stream, other := ask(t, "/stream"), w.raw()
		conns = append(conns, other)
		testenv.Must(t, api.WaitStreams(t.Context(), 1))
		other.write("GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
		response, err := http.ReadResponse(other.in, nil)
		testenv.Must(t, err)
		testenv.Must(t, response.Body.Close())
		w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Rule: "read", Level: authz.LevelQuarantine})
		if cut := w.proxy.Revalidate(); cut < 1 { // Envoy may have kept more for the next request
			t.Errorf("%d were cut", cut)
		}
		if _, err := io.Copy(io.Discard, stream.Body); err == nil {
			t.Error("the stream looks complete")
		}
		testenv.Must(t, api.WaitStreams(t.Context(), 0))
		other.write("GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		if response, err = http.ReadResponse(other.in, nil); err != nil || response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("after it: %v, %v", response, err)
		}
		if api.Total() != 2 {
			t.Errorf("%d requests arrived", api.Total())
		}
	})

	t.Run("an Envoy that has died", func(t *testing.T) {
		testenv.Must(t, envoy.Kill())
		original.store(netip.AddrPort{})
		w.settled() // although the plugin closes nothing
		for _, c := range conns {
			if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a connection ended with %v", err)
			}
			_ = c.Close()
		}
		c := w.raw()
		c.write("GET http://api.weather.example/ HTTP/1.1\r\nHost: api.weather.example\r\n\r\n")
		response, body := c.read()
		wantRefusal(t, response, body, authz.NotReady)
	})
	w.settled()
}

// TestExitFindsPlaceholders searches plaintext from an Envoy as the bytes of a tunnel.
func TestExitFindsPlaceholders(t *testing.T) {
	server := tcpServer(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	plain := upstream(t, testenv.UpstreamConfig{Plain: true, Authorize: func(*http.Request) bool { return true }})
	plainRule := rule(plain, "plain", "*.weather.example")
	plainRule.To.Scheme, plainRule.To.TLS, plainRule.Insecure, plainRule.WildcardCredential = authz.SchemeHTTP, authz.TLS{}, true, true
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"), plainRule), config: withPlaceholder})
	exits := w.exits()
	c := w.leave(exits["tcp 127.0.0.1"])
	c.write("harmless\r\n")
	if line, err := c.in.ReadString('\n'); err != nil || line != "harmless\r\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	c.write("password " + placeholderValue + "\r\n")
	if all, _ := io.ReadAll(c.in); strings.Contains(string(all), placeholderValue) {
		t.Errorf("the placeholder passed: %q", all)
	}
	c = w.leave(exits["plain *.weather.example"])
	if body, err := c.ask("other.weather.example", "/?key="+placeholderValue); err == nil {
		t.Errorf("the placeholder passed: %q", body)
	}
	w.settled()
	refusals := w.refused()
	if len(refusals) != 2 || refusals[0].Reason != authz.CredentialMisplaced || refusals[1].Reason != authz.CredentialMisplaced ||
		strings.Contains(fmt.Sprint(refusals), placeholderValue) {
		t.Errorf("refused as %+v", refusals)
	}
}

// TestExitEndsWithTheEnvoy closes the connection of an Envoy while the upstream sends no
// data and does not close: the proxy keeps no connection.
func TestExitEndsWithTheEnvoy(t *testing.T) {
	until := make(chan struct{})
	server := tcpServer(t, func(net.Conn) { <-until })
	defer close(until)
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"))})
	c := w.leave(w.exits()["tcp 127.0.0.1"])
	for late := testDeadline(); w.proxy.Open() == 0 && !late(); {
	}
	testenv.Must(t, c.Conn.(*net.UnixConn).CloseWrite())
	time.Sleep(50 * time.Millisecond)
	if w.proxy.Open() != 1 {
		t.Error("it ended by halves")
	}
	c = w.leave(w.exits()["tcp 127.0.0.1"])
	for late := testDeadline(); w.proxy.Open() == 1 && !late(); {
	}
	testenv.Must(t, c.Close())
	for late := testDeadline(); w.proxy.Open() > 1 && !late(); {
	}
	if w.proxy.Open() != 1 {
		t.Errorf("%d are open, one of which is", w.proxy.Open())
	}
	w.engine.Revoke(quarantine)
	w.settled()
}

// TestExitsDrain stops a sidecar while egress connections are open, some of which have
// not named their destination.
func TestExitsDrain(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	server := tcpServer(t, greeter)
	wild := rule(api, "wild", "*.weather.example")
	wild.WildcardCredential = true
	w := newWorld(t, setup{
		input:  granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"), wild),
		config: func(c *proxy.Config) { c.Drain = time.Hour },
	})
	exits := w.exits()
	silent, talking := w.leave(exits["wild *.weather.example"]), w.leave(exits["tcp 127.0.0.1"])
	if _, err := talking.in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond) // live accesses may end by themselves
		_ = talking.Close()
	}()
	w.stop()
	if !silent.gone() {
		t.Error("the connection stands after the end")
	}
	if left := listing(t, w.exitDir()); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

// TestStopWaitsForWhatMoves stops a sidecar while an Envoy keeps connections for later
// requests, and streams on one.
func TestStopWaitsForWhatMoves(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	server := tcpServer(t, greeter)
	w := newWorld(t, setup{
		input:  granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"), rule(api, "read")),
		config: func(c *proxy.Config) { c.Drain = time.Hour },
	})
	exits := w.exits()
	kept := w.leave(exits["tcp 127.0.0.1"])
	if _, err := kept.in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	stream, err := w.leave(exits["read api.weather.example"]).over(t, api.Pool(), "api.weather.example")
	testenv.Must(t, err)
	stream.write("GET /stream HTTP/1.1\r\nHost: api.weather.example\r\n\r\n")
	go func() {
		defer stream.Close()
		defer kept.Close()
		left := make(chan bool, 1)
		go func() { left <- kept.gone() }()
		for {
			if _, err := stream.in.Discard(1 << 10); err != nil {
				t.Errorf("the stream ended: %v", err)
				return
			}
			select {
			case gone := <-left:
				if !gone {
					t.Error("a connection on which nothing moves is waited for")
				}
				return
			default:
			}
		}
	}()
	w.stop()
}

// TestExitsAreBounded opens more connections than there may be.
func TestExitsAreBounded(t *testing.T) {
	server := tcpServer(t, greeter)
	w := newWorld(t, setup{
		input:  granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1")),
		config: func(c *proxy.Config) { c.MaxConnections = 4 },
	})
	path := w.exits()["tcp 127.0.0.1"]
	var conns []*rawConn
	for i := range 8 {
		c := w.leave(path)
		if _, err := c.in.ReadString('\n'); (err == nil) != (i < 4) {
			t.Errorf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	if refusals := w.refused(); len(refusals) != 1 || refusals[0].Reason != authz.NotReady {
		t.Errorf("refused as %+v", refusals)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	w.settled()
	for late := testDeadline(); !late(); {
		if _, err := w.leave(path).in.ReadString('\n'); err == nil {
			return
		}
	}
	t.Error("places do not become free")
}
