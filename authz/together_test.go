package authz

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// commandsRule returns a rule for Redis.
func commandsRule(id string, facts ...string) Rule {
	m := &Matcher{Protocol: ProtocolRedis}
	for _, text := range append(facts, "database:0") {
		f, err := ParseFact(text)
		if err != nil {
			panic(err)
		}
		m.Facts = append(m.Facts, f)
	}
	return Rule{
		ID: id, Reason: "test", Matcher: m, Content: Content{Databases: []DatabaseName{"0"}},
		To: To{Scheme: SchemeRedis, Hosts: []string{"cache.example"}, Ports: []uint16{6379}, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}
}

// TestAdmitTogether admits statements at once only where each alone would have the same outcome.
func TestAdmitTogether(t *testing.T) {
	both := []string{"command:get", "command:set", "key:app:*"}
	gets := []string{"command:get", "key:app:1", "key:app:2", "database:0"}
	limited := commandsRule("a", both...)
	limited.Limits.Requests = Limit{Count: 100, Period: time.Minute}
	timed := commandsRule("a", both...)
	timed.Timeout = Duration(time.Second)
	tests := []struct {
		name  string
		rules []Rule
		facts []string
		want  string // the rule; "" for one by one
	}{
		{"one rule", []Rule{commandsRule("a", both...)}, gets, "a"},
		{"not granted", []Rule{commandsRule("a", both...)}, append([]string{"key:other:1"}, gets...), ""},
		{"no rule grants all", []Rule{commandsRule("a", "command:get", "key:app:1"), commandsRule("b", "command:get", "key:app:2")}, gets, ""},
		{"an earlier rule grants a part", []Rule{commandsRule("a", "command:get", "key:app:1"), commandsRule("b", both...)}, gets, ""},
		{"a later rule grants a part", []Rule{commandsRule("a", both...), commandsRule("b", "command:get", "key:app:1")}, gets, "a"},
		{"an earlier rule has other commands", []Rule{commandsRule("a", "command:del", "key:app:1"), commandsRule("b", both...)}, gets, "b"},
		{"without a database", []Rule{commandsRule("a", both...)}, gets[:3], ""},
		{"requests are limited", []Rule{limited}, gets, ""},
		{"a statement has a timeout", []Rule{timed}, gets, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g, records := togetherGate(t, test.rules...)
			session, err := g.Admit(t.Context(), redisRequest(t, "database:0"), Source{})
			if err != nil || session.Refusal != nil {
				t.Fatalf("the session is refused: %v, %+v", err, session.Refusal)
			}
			before := len(records.all())
			a, err := together(t, g, session, test.facts)
			if err != nil {
				t.Fatal(err)
			}
			written := records.all()[before:]
			switch {
			case test.want == "" && (a != nil || len(written) > 0):
				t.Errorf("admitted: %+v, records %+v; want one by one", a, written)
			case test.want != "" && (a == nil || len(written) != 1 || written[0].Rule != test.want || written[0].Count != 2 || !written[0].Allowed):
				t.Errorf("admitted: %+v, records %+v; want rule %s", a, written, test.want)
			}
		})
	}
}

// TestAdmitTogetherAfterRevocation does not pass over a revoked rule that would win.
func TestAdmitTogetherAfterRevocation(t *testing.T) {
	facts := []string{"command:get", "key:app:1", "key:app:2", "database:0"}
	g, _ := togetherGate(t, commandsRule("a", "command:get", "key:app:1"), commandsRule("b", "command:get", "key:app:*"))
	session, _ := g.Admit(t.Context(), redisRequest(t, "database:0"), Source{})
	g.cfg.Engine.Revoke(Revocation{ID: "r", Plugin: "p", Grant: "g", Rule: "a", Level: LevelQuarantine, Reason: "test", Actor: "test", At: time.Now()})
	if a, err := together(t, g, session, facts); a != nil || err != nil {
		t.Errorf("admitted by %s, %v; GET app:1 alone is refused", a.Decision.Rule, err)
	}
}

// together admits two statements whose keys are names.
func together(t *testing.T, g *Gate, session *Admission, facts []string) (*Admission, error) {
	t.Helper()
	var shared []string
	var names []Fact
	for _, text := range facts {
		if f, _ := ParseFact(text); f.Kind == FactKey {
			names = append(names, f)
		} else {
			shared = append(shared, text)
		}
	}
	return g.AdmitTogether(session, redisRequest(t, shared...).Facts, names, 2)
}

// togetherGate returns a gate of a policy of rules for Redis, and its records.
func togetherGate(t *testing.T, rules ...Rule) (*Gate, *recorder) {
	t.Helper()
	grant := Grant{Name: "g", Plugin: "p", NotAfter: time.Now().Add(time.Hour), Rules: rules}
	for i := range rules {
		rules[i].Credential = "login"
	}
	grant.Credentials = []CredentialSpec{{Name: "login", Vault: VaultPath{Path: "database/creds/cache"}, Inject: Inject{Database: &DatabaseLogin{}}}}
	policy, problems := Compile(Input{Plugin: "p", Grants: []Grant{grant}}, time.Now())
	if len(problems) > 0 {
		t.Fatalf("compile: %+v", problems)
	}
	engine, records := new(Engine), new(recorder)
	engine.Install(policy)
	login := &source{credential: Credential{Fields: map[string]Secret{"username": NewSecret("u"), "password": NewSecret("p")}}}
	g, err := NewGate(GateConfig{Engine: engine, Ledger: NewLedger(), Recorder: records, Credentials: login, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return g, records
}

func redisRequest(t *testing.T, facts ...string) Request {
	t.Helper()
	to, err := NewDestination(SchemeRedis, "cache.example:6379", "")
	if err != nil {
		t.Fatal(err)
	}
	list := make([]Fact, len(facts))
	for i, text := range facts {
		if list[i], err = ParseFact(text); err != nil {
			t.Fatal(err)
		}
	}
	set, err := NewFacts(ProtocolRedis, list...)
	if err != nil {
		t.Fatal(err)
	}
	return Request{Principal: "p", Destination: to, Facts: set}
}

// TestAdmitTogetherIsEach compares with the decision on each statement: a rule that admits
// statements together is the winner for each of them.
func TestAdmitTogetherIsEach(t *testing.T) {
	commands, keys := []string{"command:get", "command:set", "command:ping"}, []string{"key:a:1", "key:a:2", "key:b:1"}
	together := 0
	rapid.Check(t, func(rt *rapid.T) {
		var rules []Rule
		for _, id := range []string{"r1", "r2", "r3"}[:rapid.IntRange(1, 3).Draw(rt, "rules")] {
			granted := rapid.SliceOfDistinct(rapid.SampledFrom(append([]string{"key:*", "key:a:*"}, append(commands, keys...)...)), rapid.ID[string]).Draw(rt, id)
			rules = append(rules, commandsRule(id, granted...))
		}
		g, _ := togetherGate(t, rules...)
		session, _ := g.Admit(t.Context(), redisRequest(t, "database:0"), Source{})
		if id := rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(rt, "revoked"); id != "" {
			g.cfg.Engine.Revoke(Revocation{ID: "v", Plugin: "p", Grant: "g", Rule: id, Level: LevelQuarantine, Reason: "test", Actor: "test", At: time.Now()})
		}
		shared, names, statements := []string{"database:0"}, []Fact{}, [][]string{}
		for range rapid.IntRange(1, 4).Draw(rt, "statements") {
			command := rapid.SampledFrom(commands).Draw(rt, "command")
			statement := []string{"database:0", command}
			for _, key := range rapid.SliceOfN(rapid.SampledFrom(keys), 0, 2).Draw(rt, "keys") {
				f, _ := ParseFact(key)
				statement, names = append(statement, key), append(names, f)
			}
			shared, statements = append(shared, command), append(statements, statement)
		}
		d, err := g.AdmitTogether(session, redisRequest(t, shared...).Facts, names, len(statements))
		if err != nil || d == nil {
			return
		}
		together++
		for _, statement := range statements {
			each := g.cfg.Engine.Current().Decide(redisRequest(t, statement...), g.cfg.Ledger.Usage(), time.Now())
			if each.Reason != Granted || each.Rule != d.Decision.Rule {
				rt.Fatalf("together by %s; %v alone: %s by %s", d.Decision.Rule, statement, each.Reason, each.Rule)
			}
		}
	})
	if together == 0 {
		t.Error("no statements were admitted together")
	}
}

// TestRecordOfTogether has each key with the pattern that grants it, in the order of the
// statements, and a key that follows itself once.
func TestRecordOfTogether(t *testing.T) {
	g, records := togetherGate(t, commandsRule("a", "command:get", "key:app:*", "key:app:user:*", "key:one"))
	session, _ := g.Admit(t.Context(), redisRequest(t, "database:0"), Source{})
	a, err := together(t, g, session, []string{"database:0", "command:get", "key:one", "key:app:user:1", "key:app:user:1", "key:app:2"})
	if err != nil || a == nil {
		t.Fatalf("%+v, %v", a, err)
	}
	all := records.all()
	r := all[len(all)-1]
	facts := []string{"command:get", "database:0", "key:one", "key:app:user:1", "key:app:2"}
	patterns := []string{"", "", "key:one", "key:app:user:*", "key:app:*"}
	if diff := cmp.Diff([][]string{facts, patterns}, [][]string{r.Facts, r.Patterns}); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}
