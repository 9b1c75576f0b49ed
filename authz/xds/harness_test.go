package xds_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const plugin = "weather"

// book keeps the audit records.
type book struct {
	mu      sync.Mutex
	records []authz.Record
}

func (b *book) Record(r *authz.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = append(b.records, *r)
	return nil
}

// decided returns the decisions, as SCHEME HOST REASON.
func (b *book) decided() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, r := range b.records {
		if r.Kind == authz.KindDecision {
			out = append(out, r.Scheme+" "+r.Host+" "+r.Reason)
		}
	}
	return out
}

func (b *book) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = nil
}

// exits are the sidecar's exits, which splice to an upstream of the test.
type exits struct {
	dir string
	mu  sync.Mutex
	to  map[string]netip.AddrPort // by host and port
	all map[string]*exit
	wg  sync.WaitGroup
}

type exit struct {
	path     string
	listener net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]bool
	taken    int // how many there have been
}

// taken returns how many connections all exits have taken.
func (x *exits) taken() (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.all {
		e.mu.Lock()
		n += e.taken
		e.mu.Unlock()
	}
	return n
}

func (x *exits) replace(routes []authz.Route) ([]string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	keep := map[string]*exit{}
	var out []string
	for _, r := range routes {
		key := fmt.Sprintf("%s %s %d", xds.RouteID(r), r.Host, r.Port)
		e := x.all[key]
		if e == nil {
			path := filepath.Join(x.dir, fmt.Sprintf("%d.sock", time.Now().UnixNano()))
			l, err := net.Listen("unix", path)
			if err != nil {
				return nil, err
			}
			e = &exit{path: path, listener: l, conns: map[net.Conn]bool{}}
			x.wg.Go(func() { x.serve(e, r) })
		}
		keep[key] = e
		out = append(out, e.path)
	}
	for key, e := range x.all {
		if keep[key] == nil {
			e.close()
		}
	}
	x.all = keep
	return out, nil
}

func (x *exits) close() {
	_, _ = x.replace(nil)
	x.wg.Wait()
}

func (e *exit) close() {
	e.listener.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		c.Close()
	}
}

func (x *exits) serve(e *exit, r authz.Route) {
	for {
		in, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.taken++
		e.mu.Unlock()
		x.mu.Lock()
		to, ok := x.to[fmt.Sprintf("%s:%d", r.Host, r.Port)]
		x.mu.Unlock()
		if !ok {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", to.String())
		if err != nil {
			in.Close()
			continue
		}
		e.mu.Lock()
		e.conns[in], e.conns[out] = true, true
		e.mu.Unlock()
		x.wg.Go(func() { _, _ = io.Copy(out, in); out.Close() })
		x.wg.Go(func() { _, _ = io.Copy(in, out); in.Close(); out.Close() })
	}
}

// plane is a real Envoy that the server under test configures, with the sidecar
// beside it.
type plane struct {
	dir    string
	engine *authz.Engine
	book   *book
	exits  *exits
	ca     *testenv.CA // of the plugin

	plain, secure *testenv.Upstream
	config        xds.Config
	server        *xds.Server
	stopServer    func()
	stopCheck     func()
	envoy         *testenv.Envoy
	sotw          bool // the Envoy receives the state of the world
}

var testTime = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

// virtual is the address by which connections to db.weather.example are known.
var virtual = netip.MustParseAddr("240.0.0.9")

func now() time.Time { return testTime }

func grant(rules ...authz.Rule) authz.Grant {
	for i := range rules {
		rules[i].Reason = "test"
	}
	return authz.Grant{Name: "weather", Plugin: plugin, NotAfter: testTime.Add(time.Hour), Rules: rules}
}

func compile(t testing.TB, grants ...authz.Grant) *authz.Policy {
	t.Helper()
	policy, problems := authz.Compile(authz.Input{Plugin: plugin, Grants: grants}, testTime)
	if len(problems) > 0 {
		t.Fatalf("compile: %+v", problems)
	}
	return policy
}

// newPlane starts everything; change, which may be nil, adapts the
// configuration first.
func newPlane(t *testing.T, change func(*plane), grants ...authz.Grant) *plane {
	t.Helper()
	testenv.Require(t, testenv.EnvoyServer())
	dir := testenv.MustGet(os.MkdirTemp("", "xds-"))(t) //nolint:usetesting // t.TempDir is too long for sockets
	t.Cleanup(func() { os.RemoveAll(dir) })
	anyone := func(*http.Request) bool { return true }
	p := &plane{dir: dir, engine: new(authz.Engine), book: new(book)}
	p.exits = &exits{dir: dir, to: map[string]netip.AddrPort{}, all: map[string]*exit{}}
	t.Cleanup(p.exits.close)
	p.ca = testenv.MustGet(testenv.NewCA("plugin"))(t)
	p.plain = testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true, Authorize: anyone})
	p.secure = testenv.MustUpstream(t, testenv.UpstreamConfig{Authorize: anyone, Names: []string{
		"api.weather.example", "old.weather.example", "maps.weather.example", "a.tiles.weather.example", "secure.weather.example",
	}})
	p.engine.Install(compile(t, grants...))
	p.config = xds.Config{
		Plugin: plugin, Engine: p.engine, Now: now, Check: p.path("check.sock"), Listener: p.path("plugin.sock"),
		EgressSockets: p.exits.replace, Leaf: p.leaf, Explicit: free(t),
		Roots: string(p.secure.CA.PEM()), AccessLog: p.path("access.log"), Log: zaptest.NewLogger(t),
	}
	if change != nil {
		change(p)
	}
	p.startCheck(t)
	p.startServer(t)
	p.startEnvoy(t)
	return p
}

func (p *plane) path(name string) string { return filepath.Join(p.dir, name) }

// free returns a loopback address that nobody listens on.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(testenv.FreeAddress(t))
}

// leaf makes a certificate of the plugin's authority.
func (p *plane) leaf(host string) ([]byte, []byte, error) {
	pair, err := p.ca.Issue(host)
	if err != nil {
		return nil, nil, err
	}
	var chain []byte
	for _, der := range pair.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), err
}

// run runs something until the returned function or the test ends.
func run(t testing.TB, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- f(ctx); close(done) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (p *plane) startCheck(t *testing.T) {
	t.Helper()
	gate := testenv.MustGet(authz.NewGate(authz.GateConfig{Engine: p.engine, Ledger: authz.NewLedger(), Recorder: p.book, Now: now}))(t)
	s := testenv.MustGet(extauthz.New(extauthz.Config{
		Plugin: plugin, Gate: gate, RouteHeader: true, Drain: time.Second,
		Ready:    func() bool { return p.engine.Current().Ready() },
		Enforces: authz.ConditionAddresses | authz.ConditionTLS | authz.ConditionTimeout | authz.ConditionOriginate,
		Name:     func(addr netip.Addr) (string, bool) { return "db.weather.example", addr == virtual },
	}))(t)
	testenv.MustGet(s.Listen(t.Context(), "unix:"+p.config.Check))(t)
	p.stopCheck = run(t, s.Run)
}

func (p *plane) startServer(t *testing.T) {
	t.Helper()
	p.server = testenv.MustGet(xds.New(p.config))(t)
	listener := testenv.MustGet(unixsock.Listen(t.Context(), p.path("xds.sock"), unixsock.Config{}))(t)
	p.stopServer = run(t, func(ctx context.Context) error { return p.server.Serve(ctx, listener) })
}

func (p *plane) params() xds.Params {
	return xds.Params{Plugin: plugin, Socket: p.path("xds.sock"), Admin: p.path("admin.sock")}
}

func (p *plane) startEnvoy(t *testing.T) {
	t.Helper()
	bootstrap := testenv.MustGet(xds.Bootstrap(p.params()))(t)
	if p.sotw {
		bootstrap = bytes.Replace(bootstrap, []byte("DELTA_GRPC"), []byte("GRPC"), 1)
	}
	envoy, err := testenv.StartEnvoy(t.Context(), testenv.EnvoyConfig{Bootstrap: string(bootstrap)})
	if err != nil {
		t.Fatal(err)
	}
	p.envoy = envoy
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Envoy: %s", envoy.Log())
		}
		envoy.Close()
	})
}

// dial opens a connection to the explicit listener.
func (p *plane) dial(t *testing.T) net.Conn {
	t.Helper()
	conn := testenv.MustGet(net.Dial("tcp", p.config.Explicit.String()))(t)
	t.Cleanup(func() { conn.Close() })
	testenv.Must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

// send writes a request byte for byte to the explicit listener.
func (p *plane) send(t *testing.T, request string) (*http.Response, string) {
	t.Helper()
	return exchange(t, p.dial(t), request)
}

func exchange(t *testing.T, conn net.Conn, request string) (*http.Response, string) {
	t.Helper()
	defer conn.Close()
	testenv.MustGet(io.WriteString(conn, request))(t)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	body := testenv.MustGet(io.ReadAll(resp.Body))(t)
	resp.Body.Close()
	return resp, string(body)
}

// get returns a request as to an explicit proxy.
func get(url string, headers ...string) string {
	return "GET " + url + " HTTP/1.1\r\nhost: " + strings.Split(url, "/")[2] + "\r\nconnection: close\r\n" +
		strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

// leads has the exit to a host and port reach an upstream.
func (p *plane) leads(hostPort string, to netip.AddrPort) {
	p.exits.mu.Lock()
	defer p.exits.mu.Unlock()
	p.exits.to[hostPort] = to
}
