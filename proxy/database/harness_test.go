package database_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	plugin = "crm"
	host   = "db.example"
)

// recorder keeps records.
type recorder struct {
	mu      sync.Mutex
	records []authz.Record
	broken  error
}

func (r *recorder) Record(record *authz.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return r.broken
	}
	r.records = append(r.records, *record)
	return nil
}

func (r *recorder) of(kind authz.Kind) []authz.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.records), func(record authz.Record) bool { return record.Kind != kind })
}

// source is a source of one credential, which has a term.
type source struct {
	mu         sync.Mutex
	generation uint64
	control    *authz.TermControl
	fetched    atomic.Int64
}

func (s *source) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched.Add(1)
	return authz.Credential{
		Fields:     map[string]authz.Secret{"username": authz.NewSecret("v-crm"), "password": authz.NewSecret(fmt.Sprint("secret", s.generation))},
		Generation: s.generation, Lease: fmt.Sprint("lease/", s.generation), Term: s.control.Term(),
	}, nil
}

// Newer implements authz.RenewingSource.
func (s *source) Newer(ctx context.Context, ref authz.CredentialRef, generation uint64) (authz.Credential, error) {
	s.mu.Lock()
	if s.generation == generation {
		s.generation++
		s.control = authz.NewTerm(time.Time{})
	}
	s.mu.Unlock()
	return s.Credential(ctx, ref)
}

// world is a front with everything around it, and a server that speaks lines.
type world struct {
	t        testing.TB
	engine   *authz.Engine
	gate     *authz.Gate
	ledger   *authz.Ledger
	around   func(net.Conn) net.Conn // the plugin's end of a pair, below its TLS; nil for as it is
	records  *recorder
	source   *source
	sessions *session.Registry
	front    *database.Front
	budget   *budget.Budget
	ca       *testenv.CA
	server   *lineServer
	addr     string // of the front
	work     session.Inflight
	writers  atomic.Int32 // to plugins
	placed   []placeholder.Placeholder

	mu       sync.Mutex
	refusals []authz.Refusal
	verbs    []string // verb=reason of Statement
	rules    []string // attributed
}

// rule returns a rule for statements of verbs on all tables of a database.
func rule(id, name string, verbs ...string) authz.Rule {
	facts := []authz.Fact{{Kind: authz.FactDatabase, Name: name}, {Kind: authz.FactTable, Name: "*"}}
	for _, verb := range verbs {
		facts = append(facts, authz.Fact{Kind: authz.FactVerb, Name: verb})
	}
	return authz.Rule{
		ID: id, Reason: "test", Credential: "login",
		To: authz.To{
			Scheme: authz.SchemePostgres, Hosts: []string{host}, Ports: []uint16{5432},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
		Content: authz.Content{Databases: []authz.DatabaseName{authz.DatabaseName(name)}},
		Matcher: &authz.Matcher{Protocol: authz.ProtocolPostgres, Facts: facts},
	}
}

func grant(rules ...authz.Rule) authz.Grant {
	return authz.Grant{
		Name: "crm", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: rules,
		Credentials: []authz.CredentialSpec{{
			Name: "login", Vault: authz.VaultPath{Path: "database/creds/shop"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}},
		}},
	}
}

func newWorld(t testing.TB, rules ...authz.Rule) *world {
	t.Helper()
	w := &world{
		t: t, engine: new(authz.Engine), ledger: authz.NewLedger(), records: new(recorder),
		source: &source{generation: 1, control: authz.NewTerm(time.Time{})}, budget: budget.New(session.DefaultBudget),
	}
	var err error
	w.ca, err = testenv.NewCA("test")
	testenv.Must(t, err)
	w.server = newLineServer(t)
	for i := range rules {
		rules[i].To.Ports = []uint16{w.server.port}
	}
	w.install(rules...)
	w.gate, err = authz.NewGate(authz.GateConfig{Engine: w.engine, Ledger: w.ledger, Recorder: w.records, Credentials: w.source, Now: time.Now})
	testenv.Must(t, err)
	w.sessions = session.NewRegistry(w.engine)
	w.front = database.NewFront(database.Config{
		Plugin: plugin, Gate: w.gate, Engine: w.engine, Sessions: w.sessions, Budget: w.budget, Work: &w.work,
		Dialer:       upstream.NewDialer(upstream.Config{Hosts: map[string][]netip.Addr{host: {netip.MustParseAddr("127.0.0.1")}}}),
		Rates:        session.NewRateLimits(plugin, w.gate, w.engine, new(session.BufferPool)),
		Placeholders: &placeholder.Cache{Placeholders: func() []placeholder.Placeholder { return w.placed }},
		Certificate: func(host string) (*tls.Certificate, error) {
			pair, err := w.ca.Issue(host)
			return &pair, err
		},
		Refused: func(r authz.Refusal) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refusals = append(w.refusals, r)
		},
		Statement: func(_ authz.Protocol, verb string, reason authz.Reason, n int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.verbs = append(w.verbs, slices.Repeat([]string{verb + "=" + reason.String()}, n)...)
		},
	})
	w.listen()
	return w
}

// install compiles and installs a policy of one grant.
func (w *world) install(rules ...authz.Rule) {
	w.t.Helper()
	w.installGrant(grant(rules...))
}

func (w *world) installGrant(g authz.Grant) {
	w.t.Helper()
	policy, problems := authz.Compile(authz.Input{Plugin: plugin, Grants: []authz.Grant{g}}, time.Now())
	if len(problems) > 0 {
		w.t.Fatalf("compile: %+v", problems)
	}
	w.engine.Install(policy)
}

// listen accepts the plugin's connections.
func (w *world) listen() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(w.t, err)
	w.addr = listener.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			s := &session.Socket{Raw: raw, Proved: true, Memory: w.budget.Hold(), OutOfMemory: func() {}, Source: authz.Source{Door: authz.DoorProxy, PID: 7, UID: -1}}
			s.Attribution = session.NewAttribution(1, func(_ uint64, grant, rule string) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.rules = append(w.rules, rule)
			})
			s.Forget = func(s *session.Socket) { s.Memory.End() }
			serving.Go(func() {
				c := session.NewConn(s)
				to, err := authz.NewDestination(authz.SchemePostgres, session.JoinHostPort(host, w.server.port), "")
				testenv.Must(w.t, err)
				serveLines(context.Background(), w.front, c, to, &w.writers)
				_ = c.Close()
			})
		}
	})
	w.t.Cleanup(func() {
		_ = listener.Close()
		w.sessions.CutAll(session.ErrStopping)
		w.server.close()
		serving.Wait()
		w.work.Wait()
		for _, kind := range budget.Kinds() {
			if held, _ := w.budget.Held(kind); held != 0 {
				w.t.Errorf("%d bytes of %s are held after the end", held, kind)
			}
		}
	})
}

// revoke revokes a rule, or everything, and decides again.
func (w *world) revoke(rule string) (cut int) {
	r := authz.Revocation{ID: "r-" + rule, Plugin: plugin, Level: authz.LevelQuarantine, Reason: "test", Actor: "test", At: time.Now()}
	if rule != "" {
		r.Grant, r.Rule = "crm", rule
	}
	w.engine.Revoke(r)
	return w.sessions.Revalidate()
}

func (w *world) refused() []authz.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.refusals)
}

// client is the plugin's side of a session.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// dial connects to the front, without TLS.
func (w *world) dial() *client {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	testenv.Must(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return &client{w.t, conn, bufio.NewReader(conn)}
}

// open begins a session for a database and expects it to be granted.
func (w *world) open(name string) *client {
	w.t.Helper()
	c := w.dial()
	c.expect("open "+name, "ready")
	return c
}

// openTLS is open inside TLS.
func (w *world) openTLS(name string) *client {
	w.t.Helper()
	c := w.dial()
	c.startTLS(w, host)
	c.expect("open "+name, "ready")
	return c
}

func (c *client) startTLS(w *world, name string) {
	c.t.Helper()
	c.send("tls")
	inner := tls.Client(c.conn, clientTLS(w, name))
	testenv.Must(c.t, inner.Handshake())
	c.conn, c.in = inner, bufio.NewReader(inner)
}

func clientTLS(w *world, name string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Certificate)
	return &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"lines"}}
}

// handshake attempts TLS and returns its error.
func handshake(conn net.Conn, w *world, name string) error {
	return tls.Client(conn, clientTLS(w, name)).Handshake()
}

func (c *client) send(line string) {
	c.t.Helper()
	_, err := io.WriteString(c.conn, line+"\n")
	testenv.Must(c.t, err)
}

// read returns the next line, and an error of reading.
func (c *client) read() (string, error) {
	testenv.Must(c.t, c.conn.SetReadDeadline(time.Now().Add(testenv.Patience)))
	line, err := c.in.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func (c *client) expect(line, want string) {
	c.t.Helper()
	c.send(line)
	if got, err := c.read(); err != nil || got != want {
		c.t.Fatalf("%q was answered %q, %v, want %q", line, got, err, want)
	}
}

// expectEnd reads the last message, and then the end of the connection.
func (c *client) expectEnd(want string) {
	c.t.Helper()
	got, err := c.read()
	if want != "" {
		if err != nil || got != want {
			c.t.Fatalf("the last message is %q, %v, want %q", got, err, want)
		}
		got, err = c.read()
	}
	if err == nil {
		c.t.Fatalf("the session goes on with %q, want its end", got)
	}
}
