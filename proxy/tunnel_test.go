package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// tcpServer serves each connection with serve until the test ends.
func tcpServer(t testing.TB, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(running.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	return netip.MustParseAddrPort(listener.Addr().String())
}

// greeter speaks first and echoes lines until the end of file.
func greeter(c net.Conn) {
	fmt.Fprint(c, "220 hello\r\n")
	_, _ = io.Copy(c, c)
	fmt.Fprint(c, "bye\r\n")
}

func tcpRule(to netip.AddrPort, scheme authz.Scheme, host string) authz.Rule {
	return authz.Rule{ID: string(scheme), Reason: "a test", To: authz.To{
		Scheme: scheme, Hosts: []string{host}, Ports: []uint16{to.Port()}, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}}
}

// speak talks to a greeter over c and checks every byte.
func speak(t *testing.T, c *rawConn) {
	t.Helper()
	if line, err := c.in.ReadString('\n'); err != nil || line != "220 hello\r\n" {
		t.Fatalf("greeting is %q, %v", line, err)
	}
	c.write("ping\r\n")
	if line, err := c.in.ReadString('\n'); err != nil || line != "ping\r\n" {
		t.Fatalf("echo is %q, %v", line, err)
	}
	testenv.Must(t, c.Conn.(*net.TCPConn).CloseWrite())
	if rest, err := io.ReadAll(c.in); err != nil || string(rest) != "bye\r\n" {
		t.Errorf("after the end of file came %q, %v", rest, err)
	}
}

func TestTCP(t *testing.T) {
	server := tcpServer(t, greeter)
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "api.weather.example"))})
	authority := fmt.Sprintf("api.weather.example:%d", server.Port())
	t.Run("server first", func(t *testing.T) { speak(t, w.tunnel(authority)) })
	t.Run("bytes sent with CONNECT", func(t *testing.T) {
		c := w.raw()
		c.write("CONNECT " + authority + " HTTP/1.1\r\nHost: " + authority + "\r\n\r\nearly\r\n")
		if _, err := http.ReadResponse(c.in, &http.Request{Method: "CONNECT"}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"220 hello\r\n", "early\r\n"} {
			if line, err := c.in.ReadString('\n'); err != nil || line != want {
				t.Errorf("read %q, %v; want %q", line, err, want)
			}
		}
		testenv.Must(t, c.Close())
	})
	w.settled()
	ends := w.records.of(authz.KindEnd)
	slices.SortFunc(ends, func(a, b authz.Record) int { return int(a.SentBytes - b.SentBytes) })
	if len(ends) != 2 || ends[0].SentBytes != 6 || ends[0].Bytes != 22 || ends[0].Address != server.String() || ends[0].Scheme != "tcp" {
		t.Errorf("end records are %+v", ends)
	}
}

// TestTCPBesideHTTPS grants both at one host and port: the first bytes, or their absence,
// select the protocol.
func TestTCPBesideHTTPS(t *testing.T) {
	server := tcpServer(t, greeter)
	other := tcpRule(server, authz.SchemeHTTPS, "api.weather.example")
	other.Methods, other.Paths = []string{"*"}, []string{"/**"}
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "api.weather.example"), other)})
	authority := fmt.Sprintf("api.weather.example:%d", server.Port())
	speak(t, w.tunnel(authority))
	c := w.tunnel(authority).tls("api.weather.example") // ours: the greeter speaks no TLS
	response, body := func() (*http.Response, string) {
		c.write("GET / HTTP/1.1\r\nHost: " + authority + "\r\n\r\n")
		return c.read()
	}()
	wantRefusal(t, response, body, authz.UpstreamUnreachable)
}

func TestPassthrough(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	r := tcpRule(api.Addr, authz.SchemeTLS, "api.weather.example")
	w := newWorld(t, setup{input: granted(r)})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	client := w.client(func(t *http.Transport) { t.TLSClientConfig.RootCAs = api.Pool() }) // trusts the API alone
	response, body := send(t, client, request(t, "GET", api.URL("api.weather.example", "/x"), ""))
	if response.StatusCode != 200 || !strings.Contains(body, `"/x"`) {
		t.Errorf("answer is %s %s", response.Status, body)
	}
	t.Run("other server name", func(t *testing.T) {
		c := w.tunnel(authority)
		err := tls.Client(c.Conn, &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true}).HandshakeContext(t.Context())
		if err == nil || !strings.HasSuffix(err.Error(), "tls: access denied") {
			t.Errorf("handshake ended with %v, want access_denied", err)
		}
	})
	t.Run("no TLS", func(t *testing.T) {
		c := w.tunnel(authority)
		c.write("GET / HTTP/1.1\r\nHost: " + authority + "\r\n\r\n")
		if rest, err := io.ReadAll(c.in); err == nil && strings.Contains(string(rest), "200") {
			t.Errorf("answer is %q", rest)
		}
	})
	if api.Total() != 1 {
		t.Errorf("the upstream received %+v", api.Requests())
	}
	client.CloseIdleConnections()
	w.settled()
	var reasons []string
	for _, r := range w.refused() {
		reasons = append(reasons, r.Reason.String())
	}
	if fmt.Sprint(reasons) != "[destination_mismatch malformed_request]" {
		t.Errorf("refusals are %v", reasons)
	}
}

// redirect makes every connection appear redirected by the kernel.
func redirect(original func() netip.AddrPort) func(*proxy.Config) {
	return func(c *proxy.Config) {
		c.Identify = func(net.Conn) (session.Peer, bool) {
			return session.Peer{PID: 7, UID: 1000, Original: original()}, true
		}
	}
}

// atomicAddr is an address that a test changes between connections.
type atomicAddr struct {
	p atomic.Pointer[netip.AddrPort]
}

func (a *atomicAddr) store(to netip.AddrPort) { a.p.Store(&to) }
func (a *atomicAddr) load() netip.AddrPort    { return *a.p.Load() }

// ask asks the world's resolver.
func (w *world) ask(name string, kind uint16) *dns.Msg {
	w.t.Helper()
	question := new(dns.Msg)
	question.SetQuestion(dns.Fqdn(name), kind)
	client := dns.Client{Net: "udp", Timeout: time.Minute}
	answer, _, err := client.ExchangeContext(w.t.Context(), question, w.resolve())
	testenv.Must(w.t, err)
	return answer
}

// resolve starts the world's resolver once and returns where it listens.
func (w *world) resolve() string {
	w.t.Helper()
	if w.dns != "" {
		return w.dns
	}
	packets, err := new(net.ListenConfig).ListenPacket(w.t.Context(), "udp", "127.0.0.1:0")
	testenv.Must(w.t, err)
	listener, err := new(net.ListenConfig).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.resolver.Serve(ctx, packets, listener) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
	w.dns, w.dnsTCP = packets.LocalAddr().String(), listener.Addr().String()
	return w.dns
}

func TestTransparent(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	plain := upstream(t, testenv.UpstreamConfig{Plain: true})
	greet := tcpServer(t, greeter)
	plainRule := rule(plain, "plain", "api.weather.example", "localname")
	plainRule.To.Scheme, plainRule.To.TLS, plainRule.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	literal := rule(api, "literal", "127.0.0.1")
	var original atomicAddr
	w := newWorld(t, setup{
		input:  granted(rule(api, "read"), plainRule, literal, tcpRule(greet, authz.SchemeTCP, "api.weather.example")),
		config: redirect(original.load),
	})
	answer := w.ask("api.weather.example", dns.TypeA)
	virtual := netip.MustParseAddr(answer.Answer[0].(*dns.A).A.String())
	mapped := netip.AddrFrom16(virtual.As16())
	answer = w.ask("localname", dns.TypeA)
	local := netip.MustParseAddr(answer.Answer[0].(*dns.A).A.String())
	elsewhere := netip.MustParseAddr("127.0.0.9") // never dialled: the name decides
	port := api.Addr.Port()

	for _, test := range []struct {
		name      string
		original  netip.AddrPort
		sni, host string
		want      authz.Reason
	}{
		{"virtual address", netip.AddrPortFrom(virtual, port), "api.weather.example", "api.weather.example", authz.Granted},
		{"its IPv4-mapped form", netip.AddrPortFrom(mapped, port), "api.weather.example", "api.weather.example", authz.Granted},
		{"no SNI", netip.AddrPortFrom(virtual, port), "", "api.weather.example", authz.Granted},
		{"other SNI", netip.AddrPortFrom(virtual, port), "other.weather.example", "api.weather.example", authz.DestinationMismatch},
		{"other Host", netip.AddrPortFrom(virtual, port), "api.weather.example", "other.weather.example", authz.DestinationMismatch},
		{"real address", netip.AddrPortFrom(elsewhere, port), "api.weather.example", "api.weather.example", authz.Granted},
		{"real address, other Host", netip.AddrPortFrom(elsewhere, port), "api.weather.example", "evil.example", authz.DestinationMismatch},
		{"granted address", netip.AddrPortFrom(loopback, port), "", "127.0.0.1", authz.Granted},
		{"granted address, other Host", netip.AddrPortFrom(loopback, port), "", "evil.example", authz.DestinationMismatch},
	} {
		t.Run(test.name, func(t *testing.T) {
			original.store(test.original)
			api.Forget()
			c := w.raw().tls(test.sni)
			c.t = t
			c.want(test.want, fmt.Sprintf("GET /x HTTP/1.1\r\nHost: %s:%d\r\n\r\n", test.host, test.original.Port()))
			if got := api.Total(); got > 0 != (test.want == authz.Granted) {
				t.Errorf("the upstream received %+v", api.Requests())
			}
		})
	}
	t.Run("plain http", func(t *testing.T) {
		original.store(netip.AddrPortFrom(virtual, plain.Addr.Port()))
		c := w.raw()
		c.t = t
		c.want(authz.Granted, fmt.Sprintf("GET /x HTTP/1.1\r\nHost: api.weather.example:%d\r\n\r\n", plain.Addr.Port()))
		c.want(authz.DestinationMismatch, fmt.Sprintf("GET /x HTTP/1.1\r\nHost: localname:%d\r\n\r\n", plain.Addr.Port()))
		original.store(netip.AddrPortFrom(local, plain.Addr.Port()))
		c = w.raw()
		c.t = t
		c.want(authz.Granted, fmt.Sprintf("GET /x HTTP/1.1\r\nHost: localname:%d\r\n\r\n", plain.Addr.Port()))
		original.store(netip.AddrPortFrom(elsewhere, plain.Addr.Port()))
		c = w.raw()
		c.t = t
		c.want(authz.Granted, fmt.Sprintf("GET /x HTTP/1.1\r\nHost: api.weather.example:%d\r\n\r\n", plain.Addr.Port()))
		c.want(authz.DestinationNotGranted, fmt.Sprintf("GET /x HTTP/1.1\r\nHost: evil.example:%d\r\n\r\n", plain.Addr.Port()))
	})
	t.Run("tcp", func(t *testing.T) {
		original.store(netip.AddrPortFrom(virtual, greet.Port()))
		speak(t, w.raw())
	})
	t.Run("TLS to a host that is not granted", func(t *testing.T) {
		original.store(netip.AddrPortFrom(elsewhere, port))
		err := tls.Client(w.raw().Conn, &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true}).HandshakeContext(t.Context())
		if err == nil || !strings.HasSuffix(err.Error(), "tls: access denied") {
			t.Errorf("handshake ended with %v, want access_denied", err)
		}
	})
	t.Run("virtual address of no name", func(t *testing.T) {
		original.store(netip.MustParseAddrPort("240.9.9.9:443"))
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", w.addr.String()) // it may be reset already
		if err == nil {
			defer c.Close()
			if _, err = c.Read(make([]byte, 1)); err == nil {
				t.Error("the connection was answered")
			}
		}
	})
	t.Run("the proxy's own address", func(t *testing.T) {
		original.store(w.addr)
		if response := w.raw().connect(fmt.Sprintf("api.weather.example:%d", port)); response.StatusCode != 200 {
			t.Errorf("CONNECT: %s", response.Status)
		}
	})
}

// TestUnproved refuses callers that the kernel does not attribute to a plugin.
func TestUnproved(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read")), config: func(c *proxy.Config) {
		c.Identify = func(net.Conn) (session.Peer, bool) { return session.Peer{}, false }
		c.Token = authz.NewSecret("proxy-token") // does not help where the kernel proves
	}})
	for _, line := range []string{"GET http://api.weather.example/", "CONNECT api.weather.example:443"} {
		c := w.raw()
		c.write(line + " HTTP/1.1\r\nHost: api.weather.example\r\nProxy-Authorization: Basic Y2hhcGVyb25lOnByb3h5LXRva2Vu\r\n\r\n")
		response, err := http.ReadResponse(c.in, nil)
		testenv.Must(t, err)
		body, err := io.ReadAll(response.Body)
		testenv.Must(t, err)
		wantRefusal(t, response, string(body), authz.IdentityUnknown)
	}
}

// TestAuthorityIsConstrained examines the certificate that plugins trust.
func TestAuthorityIsConstrained(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	pemOf := make(chan []byte, 8)
	w := newWorld(t, setup{
		input:  granted(rule(api, "read", "api.weather.example", "127.0.0.1")),
		config: func(c *proxy.Config) { c.CAChanged = func(p []byte) { pemOf <- p } },
	})
	first := <-pemOf
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(first)
	handshake := func(host string, roots *x509.CertPool) error {
		c := w.raw()
		if response := c.connect(fmt.Sprintf("%s:%d", host, api.Addr.Port())); response.StatusCode != 200 {
			return errors.New(response.Status)
		}
		return tls.Client(c.Conn, &tls.Config{ServerName: host, RootCAs: roots}).HandshakeContext(t.Context())
	}
	for _, host := range []string{"api.weather.example", "127.0.0.1"} {
		if err := handshake(host, roots); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := handshake("other.weather.example", roots); err == nil {
		t.Error("a host that is not granted was intercepted")
	}

	// Another host is granted: the certificate is renewed with the same key, so that a
	// plugin that has read the first one continues.
	w.install(granted(rule(api, "read", "api.weather.example", "other.weather.example")))
	if err := handshake("other.weather.example", roots); err == nil {
		t.Error("the first certificate covers a host that was granted later")
	}
	second := <-pemOf
	if string(w.proxy.CAPool()) != string(second) {
		t.Error("CAPool and CAChanged disagree")
	}
	newRoots := x509.NewCertPool()
	newRoots.AppendCertsFromPEM(second)
	for host, pool := range map[string]*x509.CertPool{"api.weather.example": roots, "other.weather.example": newRoots} {
		if err := handshake(host, pool); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// TestMaxConnections refuses connections over the limit and evicts none.
func TestMaxConnections(t *testing.T) {
	server := tcpServer(t, greeter)
	w := newWorld(t, setup{
		input:  granted(tcpRule(server, authz.SchemeTCP, "api.weather.example")),
		config: func(c *proxy.Config) { c.MaxConnections = 2 },
	})
	authority := fmt.Sprintf("api.weather.example:%d", server.Port())
	one, two := w.tunnel(authority), w.tunnel(authority)
	if _, err := w.raw().in.ReadByte(); err == nil {
		t.Error("a third connection was answered")
	}
	speak(t, one)
	for late := testDeadline(); ; { // the first one's place becomes free
		c := w.raw()
		c.write("CONNECT " + authority + " HTTP/1.1\r\nHost: " + authority + "\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c.Conn), &http.Request{Method: "CONNECT"}); err == nil {
			break
		} else if late() {
			t.Fatal(err)
		}
	}
	speak(t, two)
	if refusals := w.refused(); len(refusals) != 1 || refusals[0].Reason != authz.NotReady {
		t.Errorf("refusals are %+v", refusals)
	}
}
