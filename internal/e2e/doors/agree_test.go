package doors

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

var updateParity = flag.Bool("update-parity", false, "rewrite the table of differences in docs/envoy-differences.md")

// recorder keeps the audit records of one door.
type recorder struct {
	mu      sync.Mutex
	records []authz.Record
}

func (b *recorder) Record(r *authz.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = append(b.records, *r)
	return nil
}

// outcome is what the records say: the reason of the last decision, or of an end
// of its access that was refused after all, and the host.
func (b *recorder) outcome() (reason, host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.records {
		if r := &b.records[i]; r.Kind == authz.KindDecision || r.Kind == authz.KindEnd && !r.Allowed {
			reason, host = r.Reason, r.Host
		}
	}
	return reason, host
}

func (b *recorder) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = nil
}

// harness is the sidecar's own proxy, and an Envoy that it configures, for the same
// grants and upstreams.
type harness struct {
	listeners     map[string]*listener
	plain, secure *testenv.Upstream
	odd           netip.AddrPort // answers what the path names
}

// listener is one of the two.
type listener struct {
	address  string
	recorder *recorder
	roots    *x509.CertPool // that the plugin trusts there
}

// harnessGrant is what the plugin is granted at both.
func harnessGrant(plain, secure *testenv.Upstream, odd uint16) authz.Grant {
	local := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	to := func(scheme authz.Scheme, port uint16, hosts ...string) authz.To {
		return authz.To{Scheme: scheme, Hosts: hosts, Ports: []uint16{port}, Addresses: local}
	}
	api := to(authz.SchemeHTTPS, secure.Addr.Port(), "api.weather.example", "*.tiles.weather.example")
	api.TLS.CA, api.TLS.CAFile = string(secure.CA.PEM()), "api-ca.pem"
	return authz.Grant{Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(time.Hour), Rules: []authz.Rule{
		{ID: "api", Reason: "a test", To: api, Methods: []string{"GET", "POST"}, Paths: []string{"/v1/**"}},
		{ID: "plain", Reason: "a test", To: to(authz.SchemeHTTP, plain.Addr.Port(), "plain.weather.example", "*.maps.weather.example", "127.0.0.1"), Methods: []string{"*"}, Paths: []string{"/v1/**", "/"}},
		{ID: "gone", Reason: "a test", To: to(authz.SchemeHTTP, 9, "gone.weather.example"), Methods: []string{"*"}, Paths: []string{"/**"}},
		{ID: "odd", Reason: "a test", To: to(authz.SchemeHTTP, odd, "odd.weather.example"), Methods: []string{"GET", "HEAD"}, Paths: []string{"/*"}},
		{ID: "ws", Reason: "a test", To: to(authz.SchemeHTTP, plain.Addr.Port(), "plain.weather.example"), Methods: []string{"GET"}, Paths: []string{"/ws"}, Upgrades: []string{"websocket"}},
		{ID: "once", Reason: "a test", To: to(authz.SchemeHTTP, plain.Addr.Port(), "plain.weather.example"), Methods: []string{"GET"}, Paths: []string{"/none"}, Limits: authz.Limits{Requests: authz.Limit{Count: 1}}},
	}}
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	testenv.Require(t, testenv.EnvoyServer())
	anyone := func(*http.Request) bool { return true }
	h := &harness{listeners: map[string]*listener{}}
	h.plain = testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true, Authorize: anyone})
	h.secure = testenv.MustUpstream(t, testenv.UpstreamConfig{Authorize: anyone, Names: []string{"api.weather.example", "a.tiles.weather.example"}})
	h.odd = newOddUpstream(t)
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{harnessGrant(h.plain, h.secure, h.odd.Port())}}, time.Now())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, name := range []string{"proxy", "envoy"} {
		h.listeners[name] = h.newListener(t, policy, name == "envoy")
	}
	return h
}

// newOddUpstream answers each request with the answer of [parityAnswers] that its path
// numbers, and ends the connection.
func newOddUpstream(t *testing.T) netip.AddrPort {
	t.Helper()
	listener := testenv.MustGet(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					n, _ := strconv.Atoi(r.URL.Path[1:])
					_, _ = io.WriteString(conn, parityAnswers()[n].answer) // the door may not want all of it
				}
			})
		}
	})
	t.Cleanup(running.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	return netip.MustParseAddrPort(listener.Addr().String())
}

// newListener starts one of the two, with a gate and a recorder of its own.
func (h *harness) newListener(t *testing.T, policy *authz.Policy, behind bool) *listener {
	t.Helper()
	l, engine := &listener{recorder: new(recorder), roots: x509.NewCertPool()}, new(authz.Engine)
	engine.Install(policy)
	gate := testenv.MustGet(authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: l.recorder, Now: time.Now}))(t)
	hosts := map[string][]netip.Addr{}
	for _, name := range []string{"api", "plain", "gone", "odd", "a.tiles", "a.maps", "b.a.maps"} {
		hosts[name+".weather.example"] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	p := testenv.MustGet(proxy.New(proxy.Config{
		Plugin: "weather", Gate: gate, Engine: engine, Upstream: upstream.Config{Hosts: hosts}, Identify: func(net.Conn) (session.Peer, bool) { return session.Peer{UID: -1}, true },
	}))(t)
	listener := testenv.MustGet(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	inBackground(t, func(ctx context.Context) error { return p.Serve(ctx, listener) })
	l.address = listener.Addr().String()
	if behind {
		l.address = h.behindEnvoy(t, p, gate, engine)
	}
	l.roots.AppendCertsFromPEM(p.CAPool())
	return l
}

// inBackground runs something until the test ends.
func inBackground(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		testenv.Must(t, <-done)
	})
}

// behindEnvoy starts an Envoy that is configured for p's exits, and returns where
// it listens as a proxy.
func (h *harness) behindEnvoy(t *testing.T, p *proxy.Proxy, gate *authz.Gate, engine *authz.Engine) string {
	t.Helper()
	dir := testenv.MustGet(os.MkdirTemp("", "twin-"))(t) //nolint:usetesting // t.TempDir is too long for sockets
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(dir)) })
	check := testenv.MustGet(extauthz.New(extauthz.Config{
		Plugin: "weather", Gate: gate, RouteHeader: true, Drain: time.Second, Ready: func() bool { return true }, Enforces: authz.ManagedEnvoyEnforces,
	}))(t)
	testenv.MustGet(check.Listen(t.Context(), "unix:"+dir+"/check.sock"))(t)
	inBackground(t, check.Run)
	explicit := "127.0.0.1:" + strconv.Itoa(int(testenv.FreePort(t)))
	server := testenv.MustGet(xds.New(xds.Config{
		Plugin: "weather", Engine: engine, Now: time.Now, Check: dir + "/check.sock", Explicit: netip.MustParseAddrPort(explicit),
		EgressSockets: func(routes []authz.Route) ([]string, error) { return p.EgressSockets(dir+"/exit", "", routes) },
		Leaf:          p.Leaf, Roots: string(h.secure.CA.PEM()), AccessLog: "off",
	}))(t)
	socket := testenv.MustGet(unixsock.Listen(t.Context(), dir+"/xds.sock", unixsock.Config{}))(t)
	inBackground(t, func(ctx context.Context) error { return server.Serve(ctx, socket) })
	bootstrap := testenv.MustGet(xds.Bootstrap(xds.Params{Plugin: "weather", Socket: dir + "/xds.sock", Admin: dir + "/admin.sock"}))(t)
	testenv.MustEnvoy(t, testenv.EnvoyConfig{Bootstrap: string(bootstrap)})
	return explicit
}

// doorOutcome is what came of a request.
type doorOutcome struct {
	status       string // with the reason; or a text for no answer
	record, host string // "" for none
}

func (o doorOutcome) String() string {
	if o.record == "" {
		return o.status + ", unrecorded"
	}
	if _, reason, _ := strings.Cut(o.status, " "); reason == o.record || o.record == "granted" && (o.status == "200" || o.status == "101") {
		return o.status
	}
	return o.status + ", recorded " + o.record
}

// agrees reports whether two outcomes are of one class of status, for one reason,
// and recorded as one: where both know the host, it is the same.
func (o doorOutcome) agrees(p doorOutcome) bool {
	class := func(status string) string {
		code, reason, _ := strings.Cut(status, " ")
		if len(code) == 3 {
			code = code[:1]
		}
		return code + reason
	}
	return class(o.status) == class(p.status) && o.record == p.record && (o.host == p.host || o.host == "" || p.host == "")
}

// ask sends the request of a case to a listener and returns the outcome.
func (h *harness) ask(t *testing.T, l *listener, c *parityCase) doorOutcome {
	t.Helper()
	l.recorder.reset()
	status := h.exchange(t, l, c)
	refused := !strings.HasPrefix(status, "200") && !strings.HasPrefix(status, "101")
	settled := func() bool {
		reason, _ := l.recorder.outcome()
		return reason != "" && !(refused && reason == "granted")
	}
	wait := 10 * time.Second
	if c.unrecorded || c.envoy != "" {
		wait = time.Second
	}
	for deadline := time.Now().Add(wait); !settled() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	out := doorOutcome{status: status}
	out.record, out.host = l.recorder.outcome()
	return out
}

// fill puts the upstreams' ports into a text.
func (h *harness) fill(text string) string {
	return strings.NewReplacer("PLAIN", strconv.Itoa(int(h.plain.Addr.Port())), "SECURE", strconv.Itoa(int(h.secure.Addr.Port())), "ODD", strconv.Itoa(int(h.odd.Port()))).Replace(text)
}

func (h *harness) exchange(t *testing.T, l *listener, c *parityCase) string {
	t.Helper()
	conn := testenv.MustGet(new(net.Dialer).DialContext(t.Context(), "tcp", l.address))(t)
	defer conn.Close()
	testenv.Must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	stream := io.ReadWriter(conn)
	in := bufio.NewReader(conn)
	if c.request != "" {
		_, _ = io.WriteString(conn, h.fill(c.request)) // the door may answer and close before it is all there
		status := readStatus(in, strings.HasPrefix(c.request, "HEAD"))
		if c.inside == "" && c.fields == nil || !strings.HasPrefix(status, "200") {
			return status
		}
		stream = struct {
			io.Reader
			io.Writer
		}{in, conn}
	}
	if c.tls != "" {
		config := &tls.Config{ServerName: c.tls, RootCAs: l.roots}
		if c.fields != nil {
			config.NextProtos = []string{"h2"}
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(t.Context()); err != nil {
			return "TLS refused"
		}
		stream, in = secured, bufio.NewReader(secured)
	}
	if c.fields != nil {
		return exchangeHTTP2(t, stream, h, c)
	}
	_, _ = io.WriteString(stream, h.fill(c.inside))
	return readStatus(in, strings.HasPrefix(c.inside, "HEAD"))
}

// readStatus returns the status of an answer with its reason, or a text for no answer.
func readStatus(in *bufio.Reader, _ bool) string {
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodHead})
		if err != nil {
			return "closed"
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return strings.TrimSpace(strconv.Itoa(resp.StatusCode) + " " + resp.Header.Get(authz.HeaderReason))
		}
	}
}

// exchangeHTTP2 sends one request of HTTP/2.
func exchangeHTTP2(t *testing.T, conn io.ReadWriter, w *harness, c *parityCase) string {
	t.Helper()
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(64<<10, nil)
	_, _ = io.WriteString(conn, http2.ClientPreface)
	_ = framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range c.fields {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: w.fill(f[1])})
	}
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	for {
		frame, err := framer.ReadFrame()
		var streamError http2.StreamError
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if status := f.PseudoValue("status"); status[0] != '1' {
				reason := ""
				for _, h := range f.RegularFields() {
					if h.Name == authz.HeaderReason {
						reason = " " + h.Value
					}
				}
				return status + reason
			}
		case *http2.RSTStreamFrame:
			return "reset " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return "connection ended " + f.ErrCode.String()
		}
		if err != nil && !errors.As(err, &streamError) {
			return "closed"
		}
	}
}

// parityCase is one raw request.
type parityCase struct {
	name    string
	request string      // the first request: a request of its own, or the CONNECT for inside
	tls     string      // the server name of TLS in the CONNECT, "" for none
	inside  string      // the request in the CONNECT
	fields  [][2]string // or a request of HTTP/2

	// Of a difference: what Envoy's door does, and why.
	envoy, why string
	unrecorded bool // at one of the doors
}

// begins returns how docs/envoy-differences.md marks the table.
const (
	parityBegin = "<!-- differences: from internal/e2e/doors/agree_test.go -->\n"
	parityEnd   = "<!-- end of differences -->\n"
)

// TestDoorsAgree sends every raw request to both doors: they do the same, but for
// the differences that are listed with their reason, in docs/envoy-differences.md too.
func TestDoorsAgree(t *testing.T) {
	h := newHarness(t)
	cases := parityCases()
	if len(cases) < 60 {
		t.Errorf("%d requests", len(cases))
	}
	var table strings.Builder
	fmt.Fprint(&table, "| request | the proxy | behind Envoy | why |\n|---|---|---|---|\n")
	for i := range cases {
		c := &cases[i]
		t.Run(c.name, func(t *testing.T) {
			byProxy, byEnvoy := h.ask(t, h.listeners["proxy"], c), h.ask(t, h.listeners["envoy"], c)
			switch {
			case byProxy.agrees(byEnvoy) && c.envoy != "":
				t.Errorf("both %s: the difference is gone, and is to be taken off the list", byProxy)
			case !byProxy.agrees(byEnvoy) && byEnvoy.String() != c.envoy:
				t.Errorf("the proxy %s\nEnvoy     %s\nlisted    %s", byProxy, byEnvoy, c.envoy)
			case c.envoy != "" && c.why == "":
				t.Error("a difference without a reason")
			}
			if c.envoy != "" {
				fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", c.name, byProxy, c.envoy, c.why)
			}
		})
	}
	checkParityTable(t, table.String())
}

// checkParityTable compares the table with that of the document, or writes it there.
func checkParityTable(t *testing.T, table string) {
	t.Helper()
	const file = "../../../docs/envoy-differences.md"
	text := string(testenv.MustGet(os.ReadFile(file))(t))
	before, rest, found := strings.Cut(text, parityBegin)
	written, after, ended := strings.Cut(rest, parityEnd)
	switch {
	case !found || !ended:
		t.Fatal("docs/envoy-differences.md has no marks for the table of differences")
	case *updateParity:
		testenv.Must(t, os.WriteFile(file, []byte(before+parityBegin+table+parityEnd+after), 0o644))
	case written != table:
		t.Errorf("docs/envoy-differences.md has another table of differences; run go test ./internal/e2e/doors -run TestDoorsAgree -update-parity:\n%s", table)
	}
}
