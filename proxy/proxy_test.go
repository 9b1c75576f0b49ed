package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.Lingering()) }

const (
	plugin = "weather"
	apiKey = "wk_canary_5f3a9c" // must not occur in anything that a plugin receives
)

var loopback = netip.MustParseAddr("127.0.0.1")

// recorder keeps audit records.
type recorder struct {
	mu      sync.Mutex
	records []authz.Record
	fail    error
}

func (r *recorder) Record(record *authz.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.records = append(r.records, *record)
	return nil
}

// of returns the records of one kind.
func (r *recorder) of(kind authz.Kind) []authz.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []authz.Record
	for _, record := range r.records {
		if record.Kind == kind {
			out = append(out, record)
		}
	}
	return out
}

// credentials is a source of one credential, whose generation can be raised.
type credentials struct {
	mu         sync.Mutex
	value      string
	generation uint64
	err        error
	more       map[string]string // fields besides api_key, username and password
	pem        map[string]string
}

func (c *credentials) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fields := map[string]authz.Secret{"api_key": authz.NewSecret(c.value), "username": authz.NewSecret("ada"), "password": authz.NewSecret(c.value)}
	for name, value := range c.more {
		fields[name] = authz.NewSecret(value)
	}
	documents := make(map[string]authz.Secret)
	for name, value := range c.pem {
		documents[name] = authz.NewSecret(value)
	}
	return authz.Credential{Fields: fields, PEM: documents, Generation: c.generation}, c.err
}

func (c *credentials) set(value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value, c.generation = value, c.generation+1
}

// world is a proxy with everything around it.
type world struct {
	t           testing.TB
	engine      *authz.Engine
	gate        *authz.Gate
	ledger      *authz.Ledger
	records     *recorder
	credentials *credentials
	proxy       *proxy.Proxy
	resolver    *dns.Resolver
	dns, dnsTCP string // where the resolver listens, once it does
	dir         string // of the exits, once there are any
	addr        netip.AddrPort
	stop        func()

	mu       sync.Mutex
	refusals []authz.Refusal
	one      *http.Client
	echoes   []authz.Record
}

// setup is the difference of a world from the default.
type setup struct {
	input  authz.Input
	config func(*proxy.Config)
}

func newWorld(t testing.TB, s setup) *world {
	t.Helper()
	w := &world{t: t, engine: new(authz.Engine), ledger: authz.NewLedger(), records: new(recorder), credentials: &credentials{value: apiKey, generation: 1}}
	w.install(s.input)
	var err error
	w.gate, err = authz.NewGate(authz.GateConfig{
		Engine: w.engine, Ledger: w.ledger, Recorder: w.records, Credentials: w.credentials, Now: time.Now,
	})
	testenv.Must(t, err)
	w.resolver, err = dns.NewResolver(dns.Config{Plugin: plugin, Gate: w.gate, Engine: w.engine})
	testenv.Must(t, err)
	config := proxy.Config{
		Plugin: plugin, Gate: w.gate, Engine: w.engine, Resolver: w.resolver,
		Identify: func(net.Conn) (session.Peer, bool) { return session.Peer{PID: 7, UID: 1000, Exe: "/bin/plugin"}, true },
		Refused: func(r authz.Refusal) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refusals = append(w.refusals, r)
		},
		Event: func(r *authz.Record) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.Kind == authz.KindEcho {
				w.echoes = append(w.echoes, *r)
			}
		},
	}
	config.Upstream.Hosts = map[string][]netip.Addr{
		"api.weather.example": {loopback}, "other.weather.example": {loopback}, "evil.example": {loopback},
		"example.com": {loopback}, "localname": {loopback},
	}
	config.Upstream.Servers = []netip.AddrPort{netip.AddrPortFrom(loopback, 1)} // no test asks a server that it did not start
	if s.config != nil {
		s.config(&config)
	}
	w.proxy, err = proxy.New(config)
	testenv.Must(t, err)
	w.serve()
	return w
}

func (w *world) serve() {
	w.t.Helper()
	listener, err := new(net.ListenConfig).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(w.t, err)
	w.addr = netip.MustParseAddrPort(listener.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.proxy.Serve(ctx, listener) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
	w.t.Cleanup(w.stop)
}

// install compiles and installs a policy.
func (w *world) install(input authz.Input) {
	w.t.Helper()
	input.Plugin = plugin
	policy, problems := authz.Compile(input, time.Now())
	if len(problems) > 0 {
		w.t.Fatalf("compile: %+v", problems)
	}
	w.engine.Install(policy)
}

func (w *world) refused() []authz.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.refusals)
}

func (w *world) echoed() []authz.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.echoes)
}

// client returns an HTTP client that uses the proxy and trusts its authority.
func (w *world) client(change func(*http.Transport)) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.proxy.CAPool())
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: w.addr.String()}),
		TLSClientConfig: &tls.Config{RootCAs: roots},
		Protocols:       new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	if change != nil {
		change(transport)
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func withHTTP2(t *http.Transport) { t.Protocols.SetHTTP2(true) }

// rule grants an upstream under a name, with the bearer credential.
func rule(u *testenv.Upstream, id string, hosts ...string) authz.Rule {
	if len(hosts) == 0 {
		hosts = []string{"api.weather.example"}
	}
	return authz.Rule{
		ID: id, Reason: "a test",
		To: authz.To{
			Hosts: hosts, Ports: []uint16{u.Addr.Port()},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, TLS: authz.TLS{CA: string(u.CA.PEM()), CAFile: "ca.pem"},
		},
		Methods: []string{"*"}, Paths: []string{"/**"}, Upgrades: []string{"websocket"}, Credential: "key",
	}
}

// grant is a grant of rules with the credential key.
func grant(inject authz.Inject, rules ...authz.Rule) authz.Grant {
	return authz.Grant{
		Name: "weather", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: rules,
		Credentials: []authz.CredentialSpec{{Name: "key", Vault: authz.VaultPath{Path: "secret/data/weather"}, Inject: inject}},
	}
}

var bearer = authz.Inject{Header: "Authorization", Value: "Bearer {api_key}"}

func granted(rules ...authz.Rule) authz.Input {
	return authz.Input{Grants: []authz.Grant{grant(bearer, rules...)}}
}

// upstream starts an API that wants the credential.
func upstream(t testing.TB, cfg testenv.UpstreamConfig) *testenv.Upstream {
	t.Helper()
	cfg.Token = apiKey
	cfg.Names = append(cfg.Names, "api.weather.example", "other.weather.example", "evil.example")
	return testenv.MustUpstream(t, cfg)
}

// send sends a request and returns the answer and its body.
func send(t testing.TB, client *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	response, err := client.Do(r)
	testenv.Must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	testenv.Must(t, err)
	return response, string(body)
}

func request(t testing.TB, method, url string, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	testenv.Must(t, err)
	return r
}

// wantRefusal checks that an answer is a refusal as every enforcement point sends it.
func wantRefusal(t testing.TB, response *http.Response, body string, reason authz.Reason) {
	t.Helper()
	if response.StatusCode != reason.Status() || response.Header.Get("X-Chaperone-Reason") != reason.String() {
		t.Errorf("answer is %d %q, want %d %s\n%s", response.StatusCode, response.Header.Get("X-Chaperone-Reason"), reason.Status(), reason, body)
		return
	}
	var problem struct {
		Type, Decision, Plugin string
		Status                 int
	}
	if err := json.Unmarshal([]byte(body), &problem); err != nil {
		t.Errorf("body %q: %v", body, err)
	}
	if problem.Decision != response.Header.Get("X-Chaperone-Decision") || problem.Status != reason.Status() ||
		!strings.HasSuffix(problem.Type, reason.String()) || problem.Plugin != plugin {
		t.Errorf("body does not agree with the headers: %s", body)
	}
	if got := response.Header.Get("Content-Type"); got != authz.RefusalContentType {
		t.Errorf("content type is %q", got)
	}
}

func TestInterceptedRequestCarriesTheCredential(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			api := upstream(t, testenv.UpstreamConfig{})
			w := newWorld(t, setup{input: granted(rule(api, "read"))})
			change := func(*http.Transport) {}
			if protocol == "HTTP/2.0" {
				change = withHTTP2
			}
			client := w.client(change)
			for range 3 {
				response, body := send(t, client, request(t, "POST", api.URL("api.weather.example", "/echo?b=1&a=%41"), "hello"))
				if response.StatusCode != 200 || response.Proto != protocol {
					t.Fatalf("answer is %s %s: %s", response.Proto, response.Status, body)
				}
				if strings.Contains(body, apiKey) {
					t.Errorf("the plugin sees the credential: %s", body)
				}
			}
			got := api.Requests()
			if len(got) != 3 || got[0].Proto != protocol || got[0].Target != "/echo?b=1&a=%41" || got[0].SNI != "api.weather.example" {
				t.Errorf("upstream received %+v", got)
			}
			for name := range got[0].Header {
				if strings.HasPrefix(name, "X-Forwarded") || name == "Via" || name == "Forwarded" {
					t.Errorf("header %s was added", name)
				}
			}
			w.stop()
			decisions, ends := w.records.of(authz.KindDecision), w.records.of(authz.KindEnd)
			if len(decisions) != 3 || len(ends) != 3 || ends[0].Decision != decisions[0].Decision {
				t.Fatalf("recorded %d decisions and %d ends", len(decisions), len(ends))
			}
			if end := ends[0]; end.Address != api.Addr.String() || end.SentBytes != 5 || end.Bytes == 0 || !end.Allowed || end.Exe != "/bin/plugin" {
				t.Errorf("end record is %+v", end)
			}
		})
	}
}

// testDeadline returns a function that waits a moment and reports whether it
// has been called for too long.
func testDeadline() (late func() bool) {
	end := time.Now().Add(2 * time.Minute)
	return func() bool {
		time.Sleep(time.Millisecond)
		return time.Now().After(end)
	}
}
