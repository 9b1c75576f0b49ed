package doors

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// lastRecord keeps the last audit record of a decision.
type lastRecord struct {
	mu     sync.Mutex
	record *authz.Record
}

func (l *lastRecord) Record(r *authz.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Kind == authz.KindDecision {
		kept := *r
		l.record = &kept
	}
	return nil
}

// take returns the last record and removes it; nil without one.
func (l *lastRecord) take() *authz.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.record
	l.record = nil
	return r
}

// doorSlots are the kinds of injection that both doors carry out. The host of each is
// its kind in doors.example.
var doorSlots = []string{"none", "header", "query", "cookie"}

// Names of the slots, and the credential in them.
const (
	slotHeader    = "x-api-key"
	slotParameter = "api_key"
	slotCookie    = "session"
	slotValue     = "wk-credential-0193f6c2"
)

// fixedCredential is a source of one credential.
type fixedCredential struct{}

func (fixedCredential) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	return authz.Credential{Fields: map[string]authz.Secret{"key": authz.NewSecret(slotValue)}, Generation: 1}, nil
}

// doorGrant allows every request to the hosts of doorSlots, with the credential in the
// slot that each is named for.
func doorGrant(port uint16) authz.Grant {
	g := authz.Grant{Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(24 * time.Hour)}
	inject := map[string]authz.Inject{
		"header": {Header: slotHeader, Value: "{key}"},
		"query":  {Query: slotParameter, Value: "{key}"},
		"cookie": {Cookie: slotCookie, Value: "{key}"},
	}
	for _, slot := range doorSlots {
		rule := authz.Rule{
			ID: slot, Reason: "a test", Methods: []string{"*"}, Paths: []string{"/**"}, EncodedSlash: "allow",
			To: authz.To{
				Scheme: authz.SchemeHTTP, Hosts: []string{slot + ".doors.example"}, Ports: []uint16{port},
				Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			},
		}
		if where, ok := inject[slot]; ok {
			rule.Credential, rule.Insecure = slot, true
			g.Credentials = append(g.Credentials, authz.CredentialSpec{Name: slot, Vault: authz.VaultPath{Path: "secret/data/" + slot}, Inject: where})
		}
		g.Rules = append(g.Rules, rule)
	}
	return g
}

// fuzzHarness are both doors of one gate, which grants what doorGrant does.
type fuzzHarness struct {
	records  lastRecord
	proxy    string
	envoy    authv3.AuthorizationClient
	upstream *recordingUpstream
}

func newFuzzHarness(f *testing.F) *fuzzHarness {
	f.Helper()
	h := &fuzzHarness{upstream: newRecordingUpstream(f)}
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{doorGrant(h.upstream.port)}}, time.Now())
	if len(problems) > 0 {
		f.Fatal(problems)
	}
	engine := &authz.Engine{}
	engine.Install(policy)
	gate := testenv.MustGet(authz.NewGate(authz.GateConfig{
		Engine: engine, Ledger: authz.NewLedger(), Recorder: &h.records, Credentials: fixedCredential{}, Now: time.Now,
	}))(f)
	hosts := map[string][]netip.Addr{}
	for _, slot := range doorSlots {
		hosts[slot+".doors.example"] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	p := testenv.MustGet(proxy.New(proxy.Config{
		Plugin: "weather", Gate: gate, Engine: engine, Upstream: upstream.Config{Hosts: hosts}, Identify: func(net.Conn) (session.Peer, bool) { return session.Peer{UID: -1}, true },
	}))(f)
	listener := testenv.MustGet(new(net.ListenConfig).Listen(f.Context(), "tcp", "127.0.0.1:0"))(f)
	h.proxy = listener.Addr().String()
	e := testenv.MustGet(extauthz.New(extauthz.Config{
		Plugin: "weather", Gate: gate, Ready: func() bool { return true }, Enforces: authz.ConditionAddresses | authz.ConditionTLS | authz.ConditionTimeout,
	}))(f)
	addr := testenv.MustGet(e.Listen(f.Context(), "unix:"+filepath.Join(f.TempDir(), "run", "check.sock")))(f)
	conn := testenv.MustGet(grpc.NewClient("unix:"+addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials())))(f)
	h.envoy = authv3.NewAuthorizationClient(conn)

	ctx, cancel := context.WithCancel(context.WithoutCancel(f.Context()))
	var running sync.WaitGroup
	running.Go(func() { testenv.Must(f, p.Serve(ctx, listener)) })
	running.Go(func() { testenv.Must(f, e.Run(ctx)) })
	f.Cleanup(func() {
		conn.Close()
		cancel()
		running.Wait()
	})
	return h
}

// doorRequest is a request that both doors are asked for.
type doorRequest struct {
	method, host, target string
	headers              []doorHeader
	raw                  bool // Envoy sends the headers raw, and not as a map
}

// doorHeader is a header as the plugin spells it.
type doorHeader struct{ name, value string }

// byProxy sends the request through the proxy and returns what was recorded, nil when
// net/http made no request of it, and what the upstream received, nil for nothing.
func (d *fuzzHarness) byProxy(t *testing.T, r *doorRequest) (*authz.Record, *receivedHead) {
	t.Helper()
	conn := testenv.MustGet(new(net.Dialer).DialContext(t.Context(), "tcp", d.proxy))(t)
	defer conn.Close()
	testenv.Must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	var head strings.Builder
	fmt.Fprintf(&head, "%s http://%s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", r.method, r.host, r.target, r.host)
	for _, h := range r.headers {
		fmt.Fprintf(&head, "%s: %s\r\n", h.name, h.value)
	}
	fmt.Fprint(conn, head.String()+"\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodHead}); err == nil {
		resp.Body.Close()
	}
	return d.records.take(), d.upstream.take()
}

// byEnvoy asks as Envoy does of the same request, and returns what was recorded and
// what Envoy would send after the answer, nil for nothing.
func (d *fuzzHarness) byEnvoy(t *testing.T, r *doorRequest) (*authz.Record, *receivedHead) {
	t.Helper()
	headers := append([]doorHeader{{":method", r.method}, {":authority", r.host}, {":path", r.target}, {":scheme", "http"}}, withLowerNames(r.headers)...)
	asked := &authv3.AttributeContext_HttpRequest{Id: "1", Method: r.method, Scheme: "http", Host: r.host, Path: r.target, Protocol: "HTTP/1.1"}
	if r.raw {
		asked.HeaderMap = &corev3.HeaderMap{}
	} else {
		asked.Headers = map[string]string{}
	}
	for _, h := range headers {
		switch before, again := asked.Headers[h.name]; {
		case r.raw:
			asked.HeaderMap.Headers = append(asked.HeaderMap.Headers, &corev3.HeaderValue{Key: h.name, RawValue: []byte(h.value)})
		case again:
			asked.Headers[h.name] = before + "," + h.value
		default:
			asked.Headers[h.name] = h.value
		}
	}
	out := testenv.MustGet(d.envoy.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: asked},
	}}))(t)
	record := d.records.take()
	if out.GetOkResponse() == nil {
		return record, nil
	}
	return record, sentByEnvoy(t, headers, out.GetOkResponse())
}

// doorSeeds are requests for FuzzDoors: a method, a host, a path, headers, and the mode
// (see readDoorRequest).
func doorSeeds(f *testing.F) {
	for _, seed := range [][3]string{
		{"GET", "api.weather.example", "v1/forecast/berlin?days=3"},
		{"get", "API.weather.example.:8080", "v1/f%6frecast/%7e?"},
		{"POST", "[::FFFF:127.0.0.1]:80", "a%2fb"},
		{"GET", "127.1", "/a"},
		{"GET", "0x7f.1:443", "a/../b"},
		{"GET", "a,b", "a;b"},
		{"GET", "a:080", "%c3%a9?a=%zz"},
		{"GET", "u@a", "{a}|b?q=\"x\""},
		{"PRI", "a", "*"},
	} {
		f.Add(seed[0], seed[1], seed[2], "", uint8(0))
	}
	for mode := range uint8(2 * (1 + len(doorSlots))) {
		for _, seed := range sanitisedSeeds {
			f.Add("GET", "a", seed[0], seed[1], mode)
		}
	}
}

// FuzzDoors asks for one access at both doors: they take it for the same, or
// neither takes it for one. Where both allow it, the upstream receives the same.
func FuzzDoors(f *testing.F) {
	doorSeeds(f)
	h := newFuzzHarness(f)
	f.Fuzz(func(t *testing.T, method, host, path, headers string, mode uint8) {
		r, ok := h.readRequest(method, host, path, headers, mode)
		if !ok {
			return // it is not one access at both
		}
		proxied, sent := h.byProxy(t, r)
		asked, allowed := h.byEnvoy(t, r)
		if asked == nil {
			t.Fatal("Envoy's door records nothing")
		}
		if proxied == nil {
			return
		}
		if proxied.Reason != asked.Reason {
			t.Fatalf("got %s (%s) from the proxy and %s (%s) from Envoy's door, want the same", proxied.Reason, proxied.Detail, asked.Reason, asked.Detail)
		}
		type what struct {
			method, scheme, host, path, query string
			port                              uint16
		}
		of := func(r *authz.Record) what { return what{r.Method, r.Scheme, r.Host, r.Path, r.Query, r.Port} }
		if proxied.Reason != authz.MalformedRequest.String() && of(proxied) != of(asked) {
			t.Errorf("the proxy takes it for %+v, Envoy's door for %+v", of(proxied), of(asked))
		}
		compareReceived(t, proxied.Rule, sent, allowed)
	})
}

// readRequest makes a request of what is fuzzed, and reports whether it is one access
// at both doors. The mode's lowest bit is whether Envoy sends raw headers; the others
// choose the host: the fuzzed one, or that of a slot.
func (d *fuzzHarness) readRequest(method, host, path, headers string, mode uint8) (*doorRequest, bool) {
	target := "/" + path
	if slot := int(mode>>1) % (1 + len(doorSlots)); slot > 0 {
		host = fmt.Sprintf("%s.doors.example:%d", doorSlots[slot-1], d.upstream.port)
	}
	if !utf8.ValidString(method+host+target) || method == "" || host == "" || method == http.MethodConnect ||
		strings.ContainsAny(method+host+target, "\x00\r\n\t ") || strings.ContainsAny(host, "/?#") || len(target) > 4<<10 {
		return nil, false
	}
	list, ok := readDoorHeaders(headers)
	return &doorRequest{method, host, target, list, mode&1 == 1}, ok
}
