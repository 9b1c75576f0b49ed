package authz

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// orders returns a grant of two rules for one database: one reads orders, one writes logs.
func orders(tb testing.TB) Grant {
	to := To{Scheme: SchemePostgres, Hosts: []string{"db.internal"}}
	return Grant{
		Name: "crm", Plugin: "weather", NotAfter: noon.AddDate(0, 1, 0),
		Rules: []Rule{
			{
				ID: "read-orders", Reason: "Order status", To: to, Credential: "shop-ro",
				Content: Content{Databases: []DatabaseName{"shop"}, Statements: &Statements{Verbs: []string{"select"}, Tables: []string{"public.orders", "public.order_*"}}},
				Matcher: &Matcher{Protocol: ProtocolPostgres, Facts: factsOf(tb, "database:shop", "verb:begin", "verb:select", "table:public.orders", "table:public.order_*", "function:safe")},
			},
			{
				ID: "write-log", Reason: "Keeps a log", To: to, Credential: "shop-ro",
				Content: Content{Databases: []DatabaseName{"shop"}, Statements: &Statements{Verbs: []string{"insert"}, Tables: []string{"public.log"}}},
				Matcher: &Matcher{Protocol: ProtocolPostgres, Writes: true, Facts: factsOf(tb, "database:shop", "verb:begin", "verb:insert", "table:public.log")},
			},
		},
		Credentials: []CredentialSpec{
			{Name: "shop-ro", Vault: VaultPath{Path: "database/creds/shop-ro"}, Inject: Inject{Database: &DatabaseLogin{}}},
			{Name: "shop-rw", Vault: VaultPath{Path: "database/creds/shop-rw"}, Inject: Inject{Database: &DatabaseLogin{}}},
		},
	}
}

func login() Credential {
	return Credential{Fields: map[string]Secret{"username": NewSecret("v-shop-1"), "password": NewSecret("hunter2")}, Generation: 1, Lease: "lease-1"}
}

// atDatabase returns a request to the database, with facts.
func atDatabase(tb testing.TB, facts ...string) Request {
	tb.Helper()
	d, err := NewDestination(SchemePostgres, "db.internal", "")
	if err != nil {
		tb.Fatal(err)
	}
	req := Request{Principal: "weather", Destination: d}
	if len(facts) > 0 {
		req.Facts = content(tb, ProtocolPostgres, facts...)
	}
	return req
}

// session returns a world and the admission of a connection to shop.
func openSession(tb testing.TB, in Input) (*world, *Admission) {
	tb.Helper()
	w := newWorld(tb, in)
	w.source.credential = login()
	a := w.admit(tb, atDatabase(tb, "database:shop"))
	if a.Refusal != nil {
		tb.Fatalf("%+v", a.Refusal)
	}
	return w, a
}

func (w *world) within(tb testing.TB, session *Admission, facts ...string) *Admission {
	tb.Helper()
	a, err := w.gate.AdmitWithin(tb.Context(), session, content(tb, ProtocolPostgres, facts...))
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// TestAdmitWithin: a statement is decided, spent and recorded as an access of its own, with
// the session's credential and without fetching one.
func TestAdmitWithin(t *testing.T) {
	in := input(orders(t))
	in.Grants[0].Rules[0].Limits.Requests = Limit{4, 0}
	w, session := openSession(t, in)
	if i := session.Injection; i.Kind != InjectDatabase || i.Name != "v-shop-1" || i.Value.Reveal() != "hunter2" ||
		!slices.Equal(i.NotSecret(), []string{"v-shop-1"}) || len(i.Secrets()) != 1 {
		t.Errorf("%+v", i)
	}
	w.source.err = errors.New("no statement fetches a credential")
	a := w.within(t, session, "database:shop", "verb:select", "table:public.orders")
	if a.Refusal != nil || a.Decision.Reason != Granted || a.Decision.Rule != "read-orders" || !a.StillAllowed() || a.Injection != (Injection{}) {
		t.Fatalf("%+v", a.Decision)
	}
	if err := a.End(Outcome{Rows: 3, Bytes: 40, Statement: "SELECT * FROM orders WHERE id = $1"}); err != nil {
		t.Fatal(err)
	}
	records := w.recorder.all()
	decision, end := records[1], records[2]
	want := Record{
		Time: noon, Kind: KindDecision, Plugin: "weather", Door: DoorProxy, Decision: a.ID, Allowed: true, Reason: "granted", Grant: "crm",
		Rule: "read-orders", Generation: 1, Scheme: "postgres", Host: "db.internal", Port: 5432, Credential: "shop-ro", Lease: "lease-1", UID: -1,
		Protocol: "postgres", Facts: []string{"database:shop", "table:public.orders", "verb:select"}, Session: session.ID,
	}
	if diff := cmp.Diff(want, decision); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	want.Kind, want.Rows, want.Bytes, want.Statement = KindEnd, 3, 40, "SELECT * FROM orders WHERE id = $1"
	want.Facts = nil // they are in the decision's record
	if diff := cmp.Diff(want, end); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	// The connection and three statements use up the rule's limit.
	w.within(t, session, "database:shop", "verb:select", "table:public.orders")
	w.within(t, session, "database:shop", "verb:select", "table:public.order_lines")
	if a := w.within(t, session, "database:shop", "verb:select", "table:public.orders"); a.Refusal == nil || a.Refusal.Reason != QuotaExceeded {
		t.Errorf("beyond the limit: %+v", a.Decision)
	}
}

// TestStatements: a statement is granted if one rule grants all of its facts.
func TestStatements(t *testing.T) {
	for _, test := range []struct {
		facts  string
		want   Reason
		detail string
		remedy string
	}{
		{"database:shop verb:begin", Granted, "", ""},
		{"database:shop verb:select function:safe", Granted, "", ""},
		{"database:shop verb:insert table:public.log", Granted, "", ""},
		{
			"database:shop verb:select table:public.invoices", StatementNotGranted,
			"weather may not use table public.invoices in database shop at db.internal:5432; rule read-orders of grant crm grants tables public.orders, public.order_*",
			"ask for tables: [public.invoices] on rule read-orders of grant crm",
		},
		{
			"database:shop verb:select table:public.orders function:public.price_of function:pg_catalog.pg_sleep", StatementNotGranted,
			"weather may not use function pg_catalog.pg_sleep, public.price_of in database shop at db.internal:5432; rule read-orders of grant crm grants no functions",
			"ask for functions: [pg_catalog.pg_sleep, public.price_of] on rule read-orders of grant crm",
		},
		{ // each half is granted by a rule of its own
			"database:shop verb:select verb:insert table:public.orders table:public.log", StatementNotGranted,
			"weather may not use verb insert and table public.log in database shop at db.internal:5432",
			"ask for a rule with to: {scheme: postgres, hosts: [db.internal]}, databases: [shop], statements: {verbs: [insert, select], tables: [public.log, public.orders]}",
		},
		{
			"database:shop opaque:do", StatementNotGranted,
			"weather may not use opaque do in database shop at db.internal:5432; rule read-orders of grant crm grants no statement whose text does not show its effect",
			"ask for opaque: allow on rule read-orders of grant crm",
		},
		{ // not a statement of PostgreSQL that is known: perhaps a typing error
			"database:shop opaque:statement", StatementNotGranted,
			"weather may not use opaque statement in database shop at db.internal:5432; rule read-orders of grant crm grants no statement whose text does not show its effect",
			"correct the first word of the statement; if it is right, ask for opaque: allow on rule read-orders of grant crm",
		},
		{"database:shop verb:set forbidden:role", StatementNotGranted, "weather may not use role, which is never granted", "remove role: no rule can grant it"},
		{
			"database:shop verb:begin setting:search_path", StatementNotGranted,
			"weather may not use setting search_path, on which the decision of later statements rests",
			"remove the change of search_path: no rule can grant it for this session",
		},
		{
			"database:other verb:select table:public.orders", StatementNotGranted,
			"weather may not use database other at db.internal:5432; rule read-orders of grant crm grants databases shop",
			"ask for databases: [other] on rule read-orders of grant crm",
		},
		{"verb:select table:public.orders", StatementUnreadable, "the statement cannot be read", statementRemedy(StatementUnreadable, SchemePostgres)},
	} {
		t.Run(test.facts, func(t *testing.T) {
			w, session := openSession(t, input(orders(t)))
			a := w.within(t, session, strings.Fields(test.facts)...)
			if a.Decision.Reason != test.want || (a.Refusal == nil) != test.want.Allowed() {
				t.Fatalf("%+v, want %s", a.Decision, test.want)
			}
			if a.Refusal == nil {
				return
			}
			if diff := cmp.Diff([]string{test.detail, test.remedy}, []string{a.Refusal.Detail, a.Refusal.Remedy}); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
			if want := "postgres://db.internal"; !strings.HasPrefix(a.Refusal.URL, want) {
				t.Errorf("URL %q", a.Refusal.URL)
			}
			if !session.StillAllowed() {
				t.Error("a refused statement ends the session")
			}
		})
	}
}

// TestConnections: a connection is granted by any rule for its database that is not
// revoked, and never observed, since it needs a credential.
func TestConnections(t *testing.T) {
	revoke := func(rule string) Revocation {
		return Revocation{ID: "r-" + rule, Plugin: "weather", Rule: rule, Level: LevelQuarantine}
	}
	observing := input(orders(t))
	observing.Observe, observing.ObserveUntil = true, noon.Add(time.Hour)
	expired := input(orders(t))
	expired.Grants[0].Rules[0].NotAfter, expired.Grants[0].Rules[1].NotAfter = noon, noon
	one := input(orders(t))
	one.Grants[0].Rules[0].NotAfter = noon
	for name, test := range map[string]struct {
		in      Input
		revoked []Revocation
		facts   []string
		want    Reason
		rule    string
	}{
		"granted":                         {input(orders(t)), nil, []string{"database:shop"}, Granted, "read-orders"},
		"another database":                {input(orders(t)), nil, []string{"database:other"}, StatementNotGranted, ""},
		"one rule is revoked":             {input(orders(t)), []Revocation{revoke("read-orders")}, []string{"database:shop"}, Granted, "write-log"},
		"both are revoked":                {input(orders(t)), []Revocation{revoke("read-orders"), revoke("write-log")}, []string{"database:shop"}, Revoked, "read-orders"},
		"the plugin is revoked":           {input(orders(t)), []Revocation{revoke("")}, []string{"database:shop"}, Revoked, ""},
		"a revoked rule's statement":      {input(orders(t)), []Revocation{revoke("read-orders")}, []string{"database:shop", "verb:begin"}, Revoked, "read-orders"},
		"one rule is expired":             {one, nil, []string{"database:shop"}, Granted, "write-log"},
		"both are expired":                {expired, nil, []string{"database:shop"}, GrantExpired, ""},
		"a statement of no database":      {input(orders(t)), nil, []string{"verb:select", "table:public.orders"}, StatementNotGranted, ""},
		"no facts":                        {input(orders(t)), nil, nil, StatementNotGranted, ""},
		"no facts while observing":        {observing, nil, nil, StatementNotGranted, ""},
		"another database, observing":     {observing, nil, []string{"database:other"}, StatementNotGranted, ""},
		"a statement there, observing":    {observing, nil, []string{"database:other", "verb:select"}, StatementNotGranted, ""},
		"a statement, observing":          {observing, nil, []string{"database:shop", "verb:delete", "table:public.orders"}, Observed, ""},
		"an opaque statement, observing":  {observing, nil, []string{"database:shop", "opaque:do"}, Observed, ""},
		"what is forbidden, observing":    {observing, nil, []string{"database:shop", "forbidden:role", "verb:set"}, StatementNotGranted, ""},
		"a setting, observing":            {observing, nil, []string{"database:shop", "setting:search_path", "verb:set"}, StatementNotGranted, ""},
		"two databases, observing":        {observing, nil, []string{"database:shop", "database:other", "verb:select"}, StatementNotGranted, ""},
		"a granted statement, observing":  {observing, nil, []string{"database:shop", "verb:select"}, Granted, "read-orders"},
		"another's session is not opened": {observing, []Revocation{revoke("read-orders"), revoke("write-log")}, []string{"database:shop", "verb:delete"}, StatementNotGranted, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := snapshot(t, test.in, test.revoked...).Decide(atDatabase(t, test.facts...), Usage{}, noon)
			if d.Reason != test.want || d.Rule != test.rule || d.Allowed() && d.Reason == Granted && d.Credential != "shop-ro" {
				t.Errorf("got %s by %q with %q, want %s by %q", d.Reason, d.Rule, d.Credential, test.want, test.rule)
			}
		})
	}
}

// TestObservingRuleOfADatabase: a rule that observes does so for its own databases, and a
// connection over its limit is not made without a credential.
func TestObservingRuleOfADatabase(t *testing.T) {
	g := orders(t)
	g.Rules[0].Mode, g.Rules[0].ObserveUntil = ModeObserve, noon.Add(time.Hour)
	g.Rules[0].Limits.Requests = Limit{1, 0}
	g.Rules[1].Matcher.Facts = append(g.Rules[1].Matcher.Facts, Fact{FactDatabase, "audit"})
	w, session := openSession(t, input(g))
	if a := w.within(t, session, "database:shop", "verb:delete", "table:public.orders"); a.Decision.Reason != Observed || a.Decision.Rule != "read-orders" {
		t.Errorf("%+v", a.Decision)
	}
	if a := w.within(t, session, "database:audit", "verb:delete", "table:public.orders"); a.Decision.Reason != StatementNotGranted {
		t.Errorf("in another database: %+v", a.Decision)
	}
	if a := w.within(t, session, "database:shop", "verb:select"); a.Decision.Reason != Observed {
		t.Errorf("over the limit: %+v", a.Decision)
	}
	if a := w.admit(t, atDatabase(t, "database:shop")); a.Decision.Reason != QuotaExceeded {
		t.Errorf("a connection over the limit: %+v", a.Decision)
	}
}

// TestSessionEnds: nothing is admitted within a session that has ended or is not one.
func TestSessionEnds(t *testing.T) {
	facts := content(t, ProtocolPostgres, "database:shop", "verb:select")
	w, session := openSession(t, input(orders(t)))
	statement := w.within(t, session, "database:shop", "verb:select")
	other, _ := openSession(t, input(orders(t)))
	refused, late := w.admit(t, atDatabase(t, "database:other")), w.admit(t, atDatabase(t, "database:shop"))
	late.Refuse(UpstreamUnreachable, "")
	http := newWorld(t, input(withKey(forecast())))
	request := http.admit(t, get(t, forecastURL))
	denied := func(name string, g *Gate, session *Admission) {
		t.Helper()
		a, err := g.AdmitWithin(t.Context(), session, facts)
		if a == nil || a.Refusal == nil || a.Decision.Allowed() || err == nil || a.StillAllowed() {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	denied("no session", w.gate, nil)
	denied("the zero session", w.gate, &Admission{})
	denied("the session of another gate", other.gate, session)
	denied("a refused session", w.gate, refused)
	denied("a session refused later", w.gate, late)
	denied("a statement", w.gate, statement)
	denied("a request", http.gate, request)
	if err := session.End(Outcome{}); err != nil {
		t.Fatal(err)
	}
	denied("a session that ended", w.gate, session)
	if refusal, err := w.gate.RefuseWithin(nil, Granted, ""); err != nil || refusal.Reason != NotReady {
		t.Errorf("RefuseWithin() = %+v, %v", refusal, err)
	}
}

// TestSessionsCredential: a statement is refused if the value that its session carries has
// ended, or if its rule now has another credential.
func TestSessionsCredential(t *testing.T) {
	w := newWorld(t, input(orders(t)))
	control := NewTerm(noon.Add(time.Hour))
	w.source.credential = login()
	w.source.credential.Term = control.Term()
	session := w.admit(t, atDatabase(t, "database:shop"))
	w.within(t, session, "database:shop", "verb:select")
	changed := orders(t)
	changed.Rules[0].Credential, changed.Rules[1].Credential = "shop-rw", "shop-rw"
	w.engine.Install(compile(t, input(changed)))
	facts := content(t, ProtocolPostgres, "database:shop", "verb:select")
	if a, err := w.gate.AdmitWithin(t.Context(), session, facts); err == nil || a.Refusal == nil || a.Refusal.Reason != CredentialUnavailable {
		t.Errorf("another credential: %+v, %v", a.Decision, err)
	}
	if session.StillAllowed() {
		t.Error("the session goes on with the former credential")
	}
	w.engine.Install(compile(t, input(orders(t))))
	control.End("was revoked")
	a, err := w.gate.AdmitWithin(t.Context(), session, facts)
	if err == nil || !strings.Contains(err.Error(), "was revoked") || a.Refusal == nil || a.Refusal.Reason != CredentialUnavailable {
		t.Errorf("an ended value: %+v, %v", a.Decision, err)
	}
}

// TestStatementOnConnection: a statement is refused whose rule has terms that the session's
// connection does not meet.
func TestStatementOnConnection(t *testing.T) {
	g := orders(t)
	g.Rules[1].To.TLS.Min = "1.3"
	w, session := openSession(t, input(g))
	if !session.Connected(Connection{Meets: func(terms Terms) bool { return terms.TLSMin == "1.2" }}) {
		t.Fatal("the connection is refused")
	}
	if a := w.within(t, session, "database:shop", "verb:select"); a.Refusal != nil || !a.StillAllowed() {
		t.Errorf("%+v", a.Decision)
	}
	if a := w.within(t, session, "database:shop", "verb:insert", "table:public.log"); a.Refusal == nil || a.Refusal.Reason != UpstreamUnreachable {
		t.Errorf("%+v", a.Decision)
	}
}

// TestObservedStatement: a statement that is only observed runs on its session's
// connection, to whatever address and by whatever terms the session's rule has.
func TestObservedStatement(t *testing.T) {
	in := input(orders(t))
	in.Observe, in.ObserveUntil = true, noon.Add(time.Hour)
	for i := range in.Grants[0].Rules {
		to := &in.Grants[0].Rules[i].To
		to.Addresses, to.TLS.Min = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, "1.3"
	}
	w, session := openSession(t, in)
	connection := Connection{Address: netip.MustParseAddr("10.2.0.7"), Meets: func(terms Terms) bool { return terms.TLSMin == "1.3" }}
	if !session.Connected(connection) {
		t.Fatal("the connection is refused")
	}
	granted := w.within(t, session, "database:shop", "verb:select")
	observed := w.within(t, session, "database:shop", "verb:delete", "table:public.orders")
	if observed.Decision.Reason != Observed || !observed.StillAllowed() || granted.Decision.Reason != Granted || !granted.StillAllowed() {
		t.Fatalf("%+v, %+v", observed.Decision, granted.Decision)
	}
	// A granted statement goes on if its own rule is removed, as long as the session does.
	in.Grants[0].Rules = in.Grants[0].Rules[1:]
	w.engine.Install(compile(t, in))
	if !session.StillAllowed() || !granted.StillAllowed() || !observed.StillAllowed() {
		t.Errorf("session %t, granted %t, observed %t", session.StillAllowed(), granted.StillAllowed(), observed.StillAllowed())
	}
	w.advance(2 * time.Hour)
	if granted.StillAllowed() || observed.StillAllowed() || !session.StillAllowed() {
		t.Error("statements are observed after the end")
	}
}

// TestRevokedStatement: a revocation of a rule ends its running statements, and the session
// goes on as long as another rule remains.
func TestRevokedStatement(t *testing.T) {
	w, session := openSession(t, input(orders(t)))
	reading := w.within(t, session, "database:shop", "verb:select")
	writing := w.within(t, session, "database:shop", "verb:insert", "table:public.log")
	w.engine.Revoke(Revocation{ID: "r1", Plugin: "weather", Rule: "read-orders", Level: LevelQuarantine})
	if reading.StillAllowed() || !writing.StillAllowed() || !session.StillAllowed() {
		t.Errorf("reading %t, writing %t, session %t", reading.StillAllowed(), writing.StillAllowed(), session.StillAllowed())
	}
	if reading.ReasonNow() != Revoked {
		t.Errorf("got %s", reading.ReasonNow())
	}
	w.engine.Revoke(Revocation{ID: "r2", Plugin: "weather", Rule: "write-log", Level: LevelQuarantine})
	if writing.StillAllowed() || session.StillAllowed() {
		t.Error("the session outlives its rules")
	}
}

// TestRefuseWithin: what could not be read is recorded as a refusal of the session, which
// states no facts.
func TestRefuseWithin(t *testing.T) {
	w, session := openSession(t, input(orders(t)))
	for _, reason := range []Reason{StatementUnreadable, StatementTooLarge} {
		refusal, err := w.gate.RefuseWithin(session, reason, "it holds a NUL")
		if err != nil || refusal.Reason != reason || refusal.Detail != "it holds a NUL" || refusal.Remedy == "" || refusal.Status() < 400 {
			t.Errorf("%+v, %v", refusal, err)
		}
		records := w.recorder.all()
		r := records[len(records)-1]
		if r.Allowed || r.Reason != reason.String() || r.Session != session.ID || r.Decision != refusal.Decision || !r.Attempt ||
			r.Protocol != "postgres" || r.Facts != nil || r.Detail != "it holds a NUL" || r.Lease != "lease-1" {
			t.Errorf("%+v", r)
		}
	}
	if refusal, err := w.gate.RefuseWithin(session, StatementUnreadable, ""); err != nil || refusal.Detail == "" {
		t.Errorf("%+v, %v", refusal, err)
	}
	w.recorder.broken = errBroken
	if _, err := w.gate.RefuseWithin(session, StatementUnreadable, ""); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if a, err := w.gate.AdmitWithin(t.Context(), session, content(t, ProtocolPostgres, "database:shop", "verb:select")); !errors.Is(err, errBroken) || a.Refusal == nil || a.Refusal.Reason != AuditUnavailable {
		t.Errorf("%+v, %v", a.Decision, err)
	}
}

// TestSessionReadOnly: a session is read-only unless a rule in force writes.
func TestSessionReadOnly(t *testing.T) {
	to := atDatabase(t).Destination
	revoked := Revocation{ID: "r1", Plugin: "weather", Rule: "write-log", Level: LevelQuarantine}
	readers := orders(t)
	readers.Rules = readers.Rules[:1]
	for name, test := range map[string]struct {
		s        *Snapshot
		database string
		at       time.Time
		want     bool
	}{
		"a rule writes":            {snapshot(t, input(orders(t))), "shop", noon, false},
		"the rule is revoked":      {snapshot(t, input(orders(t)), revoked), "shop", noon, true},
		"the rule has expired":     {snapshot(t, input(orders(t))), "shop", noon.AddDate(1, 0, 0), true},
		"of another database":      {snapshot(t, input(orders(t))), "other", noon, true},
		"every rule reads":         {snapshot(t, input(readers)), "shop", noon, true},
		"there is no policy":       {&Snapshot{}, "shop", noon, true},
		"no rule for the database": {snapshot(t, input(forecast())), "shop", noon, true},
	} {
		if got := test.s.SessionReadOnly("weather", to, test.database, test.at); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestDatabaseAtEnvoysDoor: a door that does not read statements cannot enforce their rule,
// however it names the destination.
func TestDatabaseAtEnvoysDoor(t *testing.T) {
	s := snapshot(t, input(orders(t)))
	for _, scheme := range []Scheme{SchemeTCP, SchemeTLS, SchemePostgres} {
		d, err := NewDestination(scheme, "db.internal:5432", "")
		if err != nil {
			t.Fatal(err)
		}
		req := Request{Principal: "weather", Destination: d, Unenforceable: EnvoyUnenforceable(0, true)}
		if e := s.Explain(req, Usage{}, noon); e.Decision.Reason != NotEnforceableHere || e.Decision.Credential != "" && e.Decision.Allowed() {
			t.Errorf("%s: %+v", scheme, e)
		}
		if req.Unenforceable = 0; s.Decide(req, Usage{}, noon).Allowed() {
			t.Errorf("%s is allowed without facts", scheme)
		}
	}
	if routes := s.Routes("weather", noon); len(routes) > 0 {
		t.Errorf("got routes %v for a data plane", routes)
	}
	if got := s.Schemes("weather", "db.internal", 5432, noon); !slices.Equal(got, []Scheme{SchemePostgres}) {
		t.Errorf("got schemes %v", got)
	}
}

// TestProposedStatements: the rule that is proposed for a statement names all of it.
func TestProposedStatements(t *testing.T) {
	s := snapshot(t, input(orders(t)))
	got := s.Explain(atDatabase(t, "database:shop", "verb:select", "table:public.Invoices", "table:public.a-b*", "function:safe"), Usage{}, noon).YAML
	want := `- id: select-db-internal-shop-public-Invoices-public-a-b
  reason: SAY WHY THE PLUGIN NEEDS IT
  to: {scheme: postgres, hosts: [db.internal]}
  databases: [shop]
  statements: {verbs: [select], tables: [public.Invoices, "public.a-b*"], functions: [safe]}
  credential: shop-ro
`
	if diff := cmp.Diff(strings.ToLower(want), strings.ToLower(got)); diff != "" {
		t.Errorf("rule (-want +got):\n%s", diff)
	}
	for _, facts := range [][]string{{"database:other"}, {"database:shop", "forbidden:role"}} {
		if e := s.Explain(atDatabase(t, facts...), Usage{}, noon); e.YAML != "" || e.Remedy == "" {
			t.Errorf("%v: %q, %q", facts, e.YAML, e.Remedy)
		}
		if yaml := ProposeRule(atDatabase(t, facts...), RuleTerms{}); yaml != "" {
			t.Errorf("%v: %q", facts, yaml)
		}
	}
	if yaml := ProposeRule(atDatabase(t, "database:shop", "verb:select"), RuleTerms{}); !strings.Contains(yaml, "# credential: NAME") {
		t.Errorf("the rule names no credential, which it needs: %s", yaml)
	}
	redis, err := NewDestination(SchemeRedis, "cache.internal", "")
	if err != nil {
		t.Fatal(err)
	}
	req := Request{Principal: "weather", Destination: redis, Facts: content(t, ProtocolRedis, "database:0", "command:config get", "key:app:1", "opaque:eval")}
	want = `- id: config-get-cache-internal-0-app-1
  reason: SAY WHY THE PLUGIN NEEDS IT
  to: {scheme: redis, hosts: [cache.internal], tls: {caFile: ca.pem}}
  databases: ["0"]
  opaque: allow
  commands: ["config get"]
  keys: ["app:1"]
`
	if diff := cmp.Diff(want, ProposeRule(req, RuleTerms{CAFile: "ca.pem"})); diff != "" {
		t.Errorf("rule (-want +got):\n%s", diff)
	}
}

// anyStatement draws facts of a small world, so that rules often grant them.
func anyStatement(t *rapid.T) Facts {
	facts := []Fact{{FactDatabase, rapid.SampledFrom([]string{"shop", "other"}).Draw(t, "database")}}
	for range rapid.IntRange(0, 4).Draw(t, "facts") {
		kind := rapid.SampledFrom([]FactKind{FactVerb, FactTable, FactFunction, FactOpaque, FactForbidden, FactSetting}).Draw(t, "kind")
		facts = append(facts, Fact{kind, rapid.SampledFrom([]string{"a", "b", "ab", "a*"}).Draw(t, "name")})
	}
	f, err := NewFacts(ProtocolPostgres, facts...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// anyRules draws a grant of rules for one server.
func anyRules(t *rapid.T) Grant {
	g := Grant{
		Name: "crm", Plugin: "weather", NotAfter: noon.AddDate(0, 1, 0),
		Credentials: []CredentialSpec{{Name: "shop", Vault: VaultPath{Path: "database/creds/shop"}, Inject: Inject{Database: &DatabaseLogin{}}}},
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "rules") {
		m := &Matcher{Protocol: ProtocolPostgres, Writes: rapid.Bool().Draw(t, "writes")}
		for range rapid.IntRange(0, 8).Draw(t, "granted") {
			kind := rapid.SampledFrom([]FactKind{FactDatabase, FactVerb, FactTable, FactFunction, FactOpaque, FactSetting}).Draw(t, "kind")
			names := []string{"a", "b", "a*", "*"}
			if kind == FactDatabase {
				names = []string{"shop", "other", "*"}
			}
			m.Facts = append(m.Facts, Fact{kind, rapid.SampledFrom(names).Draw(t, "name")})
		}
		r := Rule{ID: fmt.Sprintf("r%d", i), Reason: "x", To: To{Scheme: SchemePostgres, Hosts: []string{"db.internal"}}, Credential: "shop", Matcher: m}
		if rapid.IntRange(0, 3).Draw(t, "ends") == 0 {
			r.NotAfter = noon
		}
		g.Rules = append(g.Rules, r)
	}
	return g
}

// grantsAll is what a rule grants, from its words alone.
func grantsAll(r *Rule, f Facts) bool {
	for _, text := range f.All() {
		if !slices.ContainsFunc(r.Matcher.Facts, func(granted Fact) bool {
			prefix, pattern := strings.CutSuffix(granted.String(), "*")
			return text == granted.String() && !pattern || pattern && strings.HasPrefix(text, prefix)
		}) {
			return false
		}
	}
	return true
}

// TestAdmitWithinAgreesWithDecide: within a session of any policy a statement is admitted if
// and only if one rule in force grants all of its facts, and Decide and the decision while
// it runs agree. No revocation or end of a rule ever grants more.
func TestAdmitWithinAgreesWithDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, facts := anyRules(t), anyStatement(t)
		policy, problems := Compile(input(g), noon)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		var revoked []string
		w := &world{engine: &Engine{}, ledger: NewLedger(), recorder: &recorder{}, source: &source{credential: login()}, now: noon}
		w.engine.Install(policy)
		gate, err := NewGate(GateConfig{Engine: w.engine, Ledger: w.ledger, Recorder: w.recorder, Credentials: w.source, Now: w.clock})
		if err != nil {
			t.Fatal(err)
		}
		req := Request{Principal: "weather", Facts: facts}
		if req.Destination, err = NewDestination(SchemePostgres, "db.internal", ""); err != nil {
			t.Fatal(err)
		}
		connect := req
		if connect.Facts, err = NewFacts(ProtocolPostgres, Fact{FactDatabase, facts.names(FactDatabase)[0]}); err != nil {
			t.Fatal(err)
		}
		session, err := gate.Admit(context.Background(), connect, Source{})
		if err != nil || session.Refusal != nil {
			return // no session, no statement
		}
		before := w.engine.Current().Decide(req, Usage{}, noon)
		if rapid.Bool().Draw(t, "revoke") {
			rule := rapid.SampledFrom(g.Rules).Draw(t, "revoked").ID
			revoked = append(revoked, rule)
			w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Rule: rule, Level: LevelQuarantine})
		}
		a, err := gate.AdmitWithin(context.Background(), session, facts)
		if err != nil {
			t.Fatal(err)
		}
		s := w.engine.Current()
		if d := s.Decide(req, Usage{}, noon); d.Reason != a.Decision.Reason || d.Rule != a.Decision.Rule {
			t.Fatalf("AdmitWithin: %s by %s, Decide: %s by %s", a.Decision.Reason, a.Decision.Rule, d.Reason, d.Rule)
		}
		if a.StillAllowed() != a.Decision.Allowed() || a.Decision.Allowed() && !before.Allowed() {
			t.Fatalf("%s, still allowed %t, before the revocation %s", a.Decision.Reason, a.StillAllowed(), before.Reason)
		}
		// The first rule that grants it decides, and none other if it is revoked.
		want := -1
		for i := range g.Rules {
			inForce := g.Rules[i].NotAfter.IsZero()
			passedOver := facts.connects() && slices.Contains(revoked, g.Rules[i].ID)
			if want < 0 && inForce && !passedOver && grantsAll(&g.Rules[i], facts) {
				want = i
			}
		}
		granted := want >= 0 && !slices.Contains(revoked, g.Rules[want].ID)
		if granted != a.Decision.Allowed() {
			t.Fatalf("%v: granted %t, got %s", facts.All(), granted, a.Decision.Reason)
		}
		if len(facts.names(FactForbidden)) > 0 && a.Decision.Allowed() {
			t.Fatalf("%v is allowed", facts.All())
		}
		if r := w.recorder.all(); r[len(r)-1].Session != session.ID || r[len(r)-1].Allowed != a.Decision.Allowed() {
			t.Fatalf("%+v", r[len(r)-1])
		}
	})
}

// discard records nothing and keeps nothing.
type discard struct{}

func (discard) Record(*Record) error { return nil }

// BenchmarkAdmitWithin admits a statement of a session, beside the decision alone.
func BenchmarkAdmitWithin(b *testing.B) {
	w, session := openSession(b, input(orders(b)))
	facts := content(b, ProtocolPostgres, "database:shop", "verb:select", "table:public.orders", "function:safe")
	gate, err := NewGate(GateConfig{Engine: w.engine, Ledger: w.ledger, Recorder: discard{}, Credentials: w.source, Now: w.clock})
	if err != nil {
		b.Fatal(err)
	}
	if session, err = gate.Admit(b.Context(), session.Request, session.Source); err != nil {
		b.Fatal(err)
	}
	b.Run("decide", func(b *testing.B) { // without an allocation
		req := session.Request
		req.Facts = facts
		s, usage := w.engine.Current(), w.ledger.Usage()
		b.ReportAllocs()
		for b.Loop() {
			if d := s.Decide(req, usage, noon); d.Reason != Granted {
				b.Fatal(d.Reason)
			}
		}
	})
	b.Run("admit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a, err := gate.AdmitWithin(b.Context(), session, facts)
			if err != nil || a.Refusal != nil {
				b.Fatal(a.Refusal, err)
			}
			if err := a.End(Outcome{Rows: 1}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestStatementsAllocate: a decision about a statement allocates nothing, as any decision.
func TestStatementsAllocate(t *testing.T) {
	s := snapshot(t, input(orders(t)))
	for _, facts := range [][]string{{"database:shop"}, {"database:shop", "verb:insert", "table:public.log"}} {
		req := atDatabase(t, facts...)
		if n := testing.AllocsPerRun(100, func() { s.Decide(req, Usage{}, noon) }); n > 0 {
			t.Errorf("%v: %v allocations", facts, n)
		}
	}
}

// TestRulesOfDatabases: a rule of a database without a condition on its statements, with
// that of another protocol or with one that grants what is forbidden does not compile.
func TestRulesOfDatabases(t *testing.T) {
	for name, change := range map[string]func(r *Rule){
		"no matcher":        func(r *Rule) { r.Matcher = nil },
		"another protocol":  func(r *Rule) { r.Matcher.Protocol = ProtocolRedis },
		"what is forbidden": func(r *Rule) { r.Matcher.Facts = append(r.Matcher.Facts, Fact{FactForbidden, "role"}) },
		"all of it":         func(r *Rule) { r.Matcher.Facts = append(r.Matcher.Facts, Fact{FactForbidden, "*"}) },
	} {
		g := orders(t)
		change(&g.Rules[0])
		if _, problems := Compile(input(g), noon); len(problems) == 0 {
			t.Errorf("a rule with %s compiles", name)
		}
	}
}

// TestConflicts: rules that contradict one of a database do not compile together.
func TestConflicts(t *testing.T) {
	const other = "shop-rw"
	for name, test := range map[string]struct {
		change func(r *Rule)
		want   string
	}{
		"the same":                       {func(*Rule) {}, ""},
		"another credential":             {func(r *Rule) { r.Credential = other }, "rules[1].credential"},
		"of another database":            {func(r *Rule) { r.Credential, r.Matcher.Facts[0].Name = other, "audit" }, ""},
		"of a prefix":                    {func(r *Rule) { r.Credential, r.Matcher.Facts[0].Name = other, "sh*" }, "rules[1].credential"},
		"of every database":              {func(r *Rule) { r.Credential, r.Matcher.Facts[0].Name = other, "*" }, "rules[1].credential"},
		"of another prefix":              {func(r *Rule) { r.Credential, r.Matcher.Facts[0].Name = other, "shopping*" }, ""},
		"at another port":                {func(r *Rule) { r.Credential, r.To.Ports = other, []uint16{5433} }, ""},
		"at another host":                {func(r *Rule) { r.Credential, r.To.Hosts = other, []string{"db2.internal"} }, ""},
		"another scheme":                 {func(r *Rule) { *r = tunnel("db.internal", 5432) }, "rules[0].to.scheme"},
		"another scheme by a wildcard":   {func(r *Rule) { *r = tunnel("*.internal", 443, 5432) }, "rules[0].to.scheme"},
		"another scheme at another port": {func(r *Rule) { *r = tunnel("*.internal", 5433) }, ""},
		"a wildcard":                     {func(r *Rule) { r.To.Hosts = []string{"*.internal"} }, "rules[1].to.hosts[0]"},
	} {
		for _, first := range []bool{false, true} { // in either order
			g := orders(t)
			test.change(&g.Rules[1])
			if first {
				g.Rules[1].ID = "a"
			}
			_, problems := Compile(input(g), noon)
			var got []string
			for _, p := range problems {
				got = append(got, p.Path+": "+p.Message)
			}
			switch text := strings.Join(got, "\n"); {
			case test.want == "" && text == "":
			case test.want == "", len(got) != 1, !strings.Contains(strings.NewReplacer("rules[0].credential", "rules[1].credential").Replace(text), test.want):
				t.Errorf("%s: got %q, want %q", name, text, test.want)
			}
		}
	}
	prefixes := orders(t)
	prefixes.Rules[0].Matcher.Facts[0].Name, prefixes.Rules[1].Matcher.Facts[0].Name, prefixes.Rules[1].Credential = "tenant_*", "tenant_a*", other
	if _, problems := Compile(input(prefixes), noon); len(problems) != 1 || !strings.Contains(problems[0].Message, "tenant_a*") {
		t.Errorf("two prefixes: %v", problems)
	}
}

// tunnel returns a rule of scheme tcp.
func tunnel(host string, ports ...uint16) Rule {
	return Rule{ID: "tunnel", Reason: "x", To: To{Scheme: SchemeTCP, Hosts: []string{host}, Ports: ports}}
}
