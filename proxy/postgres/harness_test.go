package postgres

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

func TestMain(m *testing.M) {
	shared.m = m
	goleak.VerifyTestMain(&shared)
}

const (
	plugin = "crm"
	host   = "db.example"
	// databaseName is the database of every test.
	databaseName = "shop"
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

func (r *recorder) of(kind authz.Kind) []authz.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.records), func(record authz.Record) bool { return record.Kind != kind })
}

// source is a source of one credential.
type source struct {
	mu             sync.Mutex
	user, password string
	generation     uint64
	renewed        string // the password that Newer returns; "" for the same
	term           *authz.TermControl
}

func (s *source) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return authz.Credential{
		Fields:     map[string]authz.Secret{"username": authz.NewSecret(s.user), "password": authz.NewSecret(s.password)},
		Generation: s.generation, Lease: "lease/1", Term: s.term.Term(),
	}, nil
}

// Newer implements authz.RenewingSource.
func (s *source) Newer(ctx context.Context, ref authz.CredentialRef, generation uint64) (authz.Credential, error) {
	s.mu.Lock()
	if s.renewed != "" && s.generation == generation {
		s.password = s.renewed
		s.generation++
	}
	s.mu.Unlock()
	return s.Credential(ctx, ref)
}

// world is a front before a server of PostgreSQL, with everything around it.
type world struct {
	t        testing.TB
	engine   *authz.Engine
	gate     *authz.Gate
	records  *recorder
	source   *source
	sessions *session.Registry
	front    *database.Front
	server   *Server
	budget   *budget.Budget
	ca       *testenv.CA // of the plugin's side
	caFile   string
	serverCA string // PEM
	port     uint16 // of the database
	addr     string // of the front
	work     session.Inflight
	aside    func(f frame) bool // of every client

	mu       sync.Mutex
	refusals []authz.Refusal
}

// rule returns a rule that grants facts, as KIND:NAME, and what every rule grants.
func rule(id string, facts ...string) authz.Rule {
	granted := []authz.Fact{{Kind: authz.FactDatabase, Name: databaseName}}
	for _, text := range facts {
		fact, err := authz.ParseFact(text)
		if err != nil {
			panic(err)
		}
		granted = append(granted, fact)
	}
	for _, verb := range sql.PassingVerbs() {
		granted = append(granted, authz.Fact{Kind: authz.FactVerb, Name: verb})
	}
	for _, setting := range sql.PassingSettings() {
		granted = append(granted, authz.Fact{Kind: authz.FactSetting, Name: setting})
	}
	granted = append(granted, authz.Fact{Kind: authz.FactFunction, Name: "safe"})
	return authz.Rule{
		ID: id, Reason: "test", Credential: "login",
		To: authz.To{
			Scheme: authz.SchemePostgres, Hosts: []string{host},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
		Content: authz.Content{Databases: []authz.DatabaseName{databaseName}},
		Matcher: &authz.Matcher{Protocol: authz.ProtocolPostgres, Facts: granted, Writes: slices.Contains(facts, "verb:insert")},
	}
}

// target is a server for a world: an address and the PEM of its authority.
type target struct {
	port           uint16
	caPEM          string
	user, password string
}

func newWorld(t testing.TB, to target, rules ...authz.Rule) *world {
	t.Helper()
	w := &world{
		t: t, engine: new(authz.Engine), records: new(recorder), server: New(Config{Texts: true}), serverCA: to.caPEM, port: to.port,
		source: &source{user: to.user, password: to.password, generation: 1, term: authz.NewTerm(time.Time{})},
		budget: budget.New(session.DefaultBudget),
	}
	var err error
	w.ca, err = testenv.NewCA("plugin")
	testenv.Must(t, err)
	w.caFile = filepath.Join(t.TempDir(), "ca.pem")
	testenv.Must(t, os.WriteFile(w.caFile, w.ca.PEM(), 0o600))
	w.install(rules...)
	w.gate, err = authz.NewGate(authz.GateConfig{Engine: w.engine, Ledger: authz.NewLedger(), Recorder: w.records, Credentials: w.source, Now: time.Now})
	testenv.Must(t, err)
	w.sessions = session.NewRegistry(w.engine)
	w.front = database.NewFront(database.Config{
		Plugin: plugin, Gate: w.gate, Engine: w.engine, Sessions: w.sessions, Budget: w.budget, Work: &w.work,
		Dialer:       upstream.NewDialer(upstream.Config{Hosts: map[string][]netip.Addr{host: {netip.MustParseAddr("127.0.0.1")}}}),
		Rates:        session.NewRateLimits(plugin, w.gate, w.engine, new(session.BufferPool)),
		Placeholders: &placeholder.Cache{Placeholders: func() []placeholder.Placeholder { return nil }},
		Certificate: func(host string) (*tls.Certificate, error) {
			pair, err := w.ca.Issue(host)
			return &pair, err
		},
		Refused: func(r authz.Refusal) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refusals = append(w.refusals, r)
		},
	})
	w.listen()
	return w
}

// install compiles and installs a policy of one grant.
func (w *world) install(rules ...authz.Rule) {
	w.t.Helper()
	for i := range rules {
		rules[i].To.Ports, rules[i].To.TLS.CA = []uint16{w.port}, w.serverCA
	}
	policy, problems := authz.Compile(authz.Input{Plugin: plugin, Grants: []authz.Grant{{
		Name: "crm", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: rules,
		Credentials: []authz.CredentialSpec{{
			Name: "login", Vault: authz.VaultPath{Path: "database/creds/shop"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}},
		}},
	}}}, time.Now())
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
	to, err := authz.NewDestination(authz.SchemePostgres, session.JoinHostPort(host, w.port), "")
	testenv.Must(w.t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			s := &session.Socket{
				Raw: raw, Proved: true, Memory: w.budget.Hold(), OutOfMemory: func() {},
				Source: authz.Source{Door: authz.DoorProxy, PID: 7, UID: -1}, Forget: func(s *session.Socket) { s.Memory.End() },
			}
			serving.Go(func() {
				c := session.NewConn(s)
				w.server.Serve(context.Background(), w.front, c, to)
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
		if n := len(w.server.cancels.of); n != 0 {
			w.t.Errorf("%d cancel keys are kept after the end", n)
		}
	})
}

// awaitEnds waits until no statement runs: a plugin has the last bytes of an answer before
// its statement has ended, and a revocation in between cuts the session.
func (w *world) awaitEnds() {
	w.t.Helper()
	eventually(w.t, "the ends of all statements", func() bool {
		return !slices.ContainsFunc(w.front.Sessions(), func(i database.Info) bool { return i.Running > 0 })
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

// shared is the PostgreSQL of the tests that do not end it. It ends before goroutines are
// counted.
var shared sharedPostgres

type sharedPostgres struct {
	m    *testing.M
	once sync.Once
	db   *testenv.Postgres
	to   target
	err  error
}

func (s *sharedPostgres) Run() int {
	defer func() {
		if s.db != nil {
			_ = s.db.Close()
		}
	}()
	return s.m.Run()
}

// sharedServer returns the shared PostgreSQL.
func sharedServer(t testing.TB) (*testenv.Postgres, target) {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		shared.db, shared.err = testenv.StartPostgresOf(ctx, serverConfig(false))
		if shared.err == nil {
			shared.to, shared.err = prepare(ctx, shared.db)
		}
	})
	testenv.Must(t, shared.err)
	return shared.db, shared.to
}

func serverConfig(newest bool) testenv.PostgresConfig {
	return testenv.PostgresConfig{Names: []string{host}, Database: databaseName, Newest: newest}
}

// startPostgres starts a PostgreSQL with TLS and a role for the plugin.
func startPostgres(t testing.TB, newest bool) (*testenv.Postgres, target) {
	t.Helper()
	db := testenv.MustPostgresOf(t, serverConfig(newest))
	to, err := prepare(t.Context(), db)
	testenv.Must(t, err)
	return db, to
}

// prepare makes the tables and the role.
func prepare(ctx context.Context, db *testenv.Postgres) (target, error) {
	_, err := db.Query(ctx, schema)
	return target{db.Addr.Port(), string(db.CA.PEM()), "v_crm", rolePassword}, err
}

const (
	rolePassword = "leased-password-0123456789"
	schema       = `CREATE TABLE orders (id int PRIMARY KEY, name text);
INSERT INTO orders SELECT n, 'order ' || n FROM generate_series(1, 100) n;
CREATE TABLE secrets (id int, value text);
INSERT INTO secrets VALUES (1, 'top');
CREATE TABLE sink (id int, name text);
CREATE ROLE v_crm LOGIN PASSWORD '` + rolePassword + `';
GRANT ALL ON orders, secrets, sink TO v_crm;
GRANT CREATE ON SCHEMA public TO v_crm`
)

// readOrders grants what most tests use.
func readOrders() authz.Rule {
	return rule("read-orders", "verb:select", "verb:copy-in", "verb:copy-out", "verb:insert", "table:public.orders", "table:public.sink")
}

// psql runs psql through the front and returns what it prints.
func (w *world) psql(args ...string) (string, error) {
	w.t.Helper()
	hostName, port, err := net.SplitHostPort(w.addr)
	testenv.Must(w.t, err)
	bin, err := testenv.PostgreSQLBin()
	testenv.Must(w.t, err)
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(bin, "psql"), append([]string{"-XAt", "-v", "VERBOSITY=verbose"}, args...)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGHOST=" + host, "PGHOSTADDR=" + hostName, "PGPORT=" + port, "PGUSER=anyone",
		"PGDATABASE=" + databaseName, "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + w.caFile, "PGCONNECT_TIMEOUT=20",
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
