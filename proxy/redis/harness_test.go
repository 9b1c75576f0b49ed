package redis_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/redis"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	plugin   = "crm"
	host     = "cache.example"
	user     = "leased"
	password = "a leased password"
)

// recorder keeps records.
type recorder struct {
	mu      sync.Mutex
	records []authz.Record
}

func (r *recorder) Record(record *authz.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, *record)
	return nil
}

func (r *recorder) all() []authz.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

// source is a source of one credential.
type source struct {
	mu       sync.Mutex
	password string
	renewed  string // the password of the next generation; "" for none
	n        uint64
	control  *authz.TermControl
}

func (s *source) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return authz.Credential{
		Fields:     map[string]authz.Secret{"username": authz.NewSecret(user), "password": authz.NewSecret(s.password)},
		Generation: s.n, Lease: fmt.Sprint("lease/", s.n), Term: s.control.Term(),
	}, nil
}

// Newer implements authz.RenewingSource.
func (s *source) Newer(ctx context.Context, ref authz.CredentialRef, generation uint64) (authz.Credential, error) {
	s.mu.Lock()
	if s.n == generation && s.renewed != "" {
		s.n++
		s.password = s.renewed
		s.control = authz.NewTerm(time.Time{})
	}
	s.mu.Unlock()
	return s.Credential(ctx, ref)
}

// access is what a rule grants.
type access struct {
	id                           string
	commands, keys, channels, db []string
	opaque                       bool
	limits                       authz.Limits
}

// reader is the rule of most tests.
func reader() access {
	return access{id: "app", commands: []string{"@all"}, keys: []string{"app:*"}, channels: []string{"app.*"}, db: []string{"0"}}
}

func (a access) rule(port uint16, ca string) authz.Rule {
	var facts []authz.Fact
	add := func(kind authz.FactKind, names ...string) {
		for _, name := range names {
			facts = append(facts, authz.Fact{Kind: kind, Name: name})
		}
	}
	add(authz.FactCommand, resp.Always()...)
	for _, c := range a.commands {
		names, err := resp.Expand(c)
		if err != nil {
			panic(err)
		}
		add(authz.FactCommand, names...)
	}
	add(authz.FactKey, a.keys...)
	add(authz.FactChannel, a.channels...)
	add(authz.FactDatabase, a.db...)
	if a.opaque {
		add(authz.FactOpaque, "*")
	}
	databases := make([]authz.DatabaseName, 0, len(a.db))
	for _, name := range a.db {
		databases = append(databases, authz.DatabaseName(name))
	}
	return authz.Rule{
		ID: a.id, Reason: "test", Credential: "login", Limits: a.limits,
		To: authz.To{
			Scheme: authz.SchemeRedis, Hosts: []string{host}, Ports: []uint16{port},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, TLS: authz.TLS{CAFile: "ca.pem", CA: ca},
		},
		Content: authz.Content{Databases: databases},
		Matcher: &authz.Matcher{Protocol: authz.ProtocolRedis, Facts: facts, Writes: true},
	}
}

// world is a front with everything around it.
type world struct {
	t        testing.TB
	engine   *authz.Engine
	gate     *authz.Gate
	records  *recorder
	source   *source
	sessions *session.Registry
	front    *database.Front
	budget   *budget.Budget
	ca       *testenv.CA // of the plugin
	serverCA string
	port     uint16 // of the server
	addr     string // of the front
	work     session.Inflight
	placed   []placeholder.Placeholder
}

// serve starts a Redis whose leased user may do everything.
func serve(t testing.TB, settings ...string) *testenv.Redis {
	t.Helper()
	testenv.Require(t, testenv.RedisServer())
	return testenv.MustRedis(t, testenv.RedisConfig{
		Names: []string{host}, Settings: settings,
		Users: []string{`user ` + user + ` on "#` + sha(password) + `" ~* &* +@all`},
	})
}

// newWorld returns a front to a Redis, with rules.
func newWorld(t testing.TB, server *testenv.Redis, rules ...access) *world {
	t.Helper()
	return newWorldAt(t, server.TLSAddr.Port(), string(server.CA.PEM()), nil, rules...)
}

// newWorldAt returns a front to a server at a port. rec nil keeps records in memory.
func newWorldAt(t testing.TB, port uint16, serverCA string, rec authz.Recorder, rules ...access) *world {
	t.Helper()
	w := &world{
		t: t, engine: new(authz.Engine), records: new(recorder), port: port, serverCA: serverCA,
		source: &source{password: password, n: 1, control: authz.NewTerm(time.Time{})}, budget: budget.New(session.DefaultBudget),
	}
	if rec == nil {
		rec = w.records
	}
	var err error
	w.ca, err = testenv.NewCA("test")
	testenv.Must(t, err)
	w.install(rules...)
	w.gate, err = authz.NewGate(authz.GateConfig{Engine: w.engine, Ledger: authz.NewLedger(), Recorder: rec, Credentials: w.source, Now: time.Now})
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
	})
	w.listen()
	return w
}

// install compiles and installs a policy of one grant.
func (w *world) install(rules ...access) {
	w.t.Helper()
	g := authz.Grant{
		Name: "crm", Plugin: plugin, NotAfter: time.Now().Add(time.Hour),
		Credentials: []authz.CredentialSpec{{
			Name: "login", Vault: authz.VaultPath{Path: "database/creds/cache"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}},
		}},
	}
	for _, a := range rules {
		g.Rules = append(g.Rules, a.rule(w.port, w.serverCA))
	}
	w.installGrant(g)
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
	to, err := authz.NewDestination(authz.SchemeRedis, session.JoinHostPort(host, w.port), "")
	testenv.Must(w.t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			s := &session.Socket{Raw: raw, Proved: true, Memory: w.budget.Hold(), OutOfMemory: func() {}, Source: authz.Source{Door: authz.DoorProxy, PID: 7, UID: -1}}
			s.Attribution = session.NewAttribution(1, func(uint64, string, string) {})
			s.Forget = func(s *session.Socket) { s.Memory.End() }
			serving.Go(func() {
				c := session.NewConn(s)
				redis.Serve(context.Background(), w.front, c, to)
				_ = c.Close()
			})
		}
	})
	w.t.Cleanup(func() {
		_ = listener.Close()
		w.sessions.CutAll(session.ErrStopping)
		serving.Wait()
		w.work.Wait()
		for _, kind := range budget.Kinds() {
			if held, _ := w.budget.Held(kind); held != 0 {
				w.t.Errorf("%d bytes of %s are held after the end", held, kind)
			}
		}
	})
}

// revoke revokes a rule and decides again.
func (w *world) revoke(rule string) {
	w.engine.Revoke(authz.Revocation{
		ID: "r-" + rule, Plugin: plugin, Grant: "crm", Rule: rule, Level: authz.LevelQuarantine, Reason: "test", Actor: "test", At: time.Now(),
	})
	w.sessions.Revalidate()
}

// client is the plugin's side of a session, or one directly at a server.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func (w *world) dial() *client {
	w.t.Helper()
	return dialTo(w.t, w.addr)
}

func dialTo(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	testenv.Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t, conn, bufio.NewReader(conn)}
}

// direct connects to a Redis without a sidecar, as the leased user.
func direct(t testing.TB, server *testenv.Redis) *client {
	t.Helper()
	c := dialTo(t, server.Addr.String())
	c.expect("+OK", "AUTH", user, password)
	return c
}

func (c *client) overTLS(w *world) *client {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Certificate)
	c.conn = tls.Client(c.conn, &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12})
	c.in = bufio.NewReader(c.conn)
	return c
}

func request(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

func (c *client) write(raw string) {
	c.t.Helper()
	_, err := io.WriteString(c.conn, raw)
	testenv.Must(c.t, err)
}

func (c *client) send(args ...string) {
	c.t.Helper()
	c.write(request(args...))
}

// do sends a command and returns its answer on one line.
func (c *client) do(args ...string) string {
	c.t.Helper()
	c.send(args...)
	return c.read()
}

func (c *client) expect(want string, args ...string) {
	c.t.Helper()
	if got := c.do(args...); got != want && !(strings.HasSuffix(want, "*") && strings.HasPrefix(got, want[:len(want)-1])) {
		c.t.Fatalf("%q was answered %q, want %q", args, got, want)
	}
}

// read returns the next answer on one line: aggregates in brackets behind their type.
func (c *client) read() string {
	c.t.Helper()
	text, err := c.tryRead()
	testenv.Must(c.t, err)
	return text
}

func (c *client) tryRead() (string, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(testenv.Patience))
	return readAnswer(c.in)
}

func readAnswer(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return line, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	n := 0
	switch line[0] {
	case '$', '=', '!', '*', '~', '>', '%', '|':
		if n, err = strconv.Atoi(line[1:]); err != nil || n < 0 {
			return line, err
		}
	}
	switch line[0] {
	case '$', '=', '!':
		b := make([]byte, n+2)
		_, err = io.ReadFull(in, b)
		return line[:1] + string(b[:n]), err
	case '%', '|':
		n *= 2
	case '*', '~', '>':
	default:
		return line, nil
	}
	parts := make([]string, n)
	for i := range parts {
		if parts[i], err = readAnswer(in); err != nil {
			return "", err
		}
	}
	return line[:1] + "[" + strings.Join(parts, " ") + "]", nil
}

// expectEnd reads the end of the connection.
func (c *client) expectEnd() {
	c.t.Helper()
	if got, err := c.tryRead(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("the connection goes on with %q, want its end", got)
	}
}

// expectRecords waits until a command was recorded.
func (c *client) expectRecords(w *world, fact string) {
	c.t.Helper()
	testenv.Eventually(c.t, fact+" is recorded", func() (bool, bool) {
		return true, slices.ContainsFunc(w.records.all(), func(r authz.Record) bool { return slices.Contains(r.Facts, fact) })
	})
}

// expectEndAfter reads the last message, if it could be sent, and the end.
func (c *client) expectEndAfter(want string) {
	c.t.Helper()
	got, err := c.tryRead()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("the connection goes on, want its end")
	}
	if err == nil {
		if !strings.HasPrefix(got, strings.TrimSuffix(want, "*")) {
			c.t.Fatalf("the last message is %q, want %q", got, want)
		}
		c.expectEnd()
	}
}
