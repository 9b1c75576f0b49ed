package replay_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// keysOf returns a policy that grants get on keys.
func keysOf(t *testing.T, keys ...string) policy.Subject {
	t.Helper()
	m := &authz.Matcher{Protocol: authz.ProtocolRedis, Facts: []authz.Fact{{Kind: authz.FactDatabase, Name: "0"}, {Kind: authz.FactCommand, Name: "get"}}}
	for _, k := range keys {
		m.Facts = append(m.Facts, authz.Fact{Kind: authz.FactKey, Name: k})
	}
	r := authz.Rule{ID: "r", Reason: "a test", To: authz.To{Scheme: authz.SchemeRedis, Hosts: []string{"cache.example"}}, Matcher: m}
	in := authz.Input{Plugin: plugin, Grants: []authz.Grant{{Name: "g", Plugin: plugin, NotAfter: noon.Add(time.Hour), Rules: []authz.Rule{r}}}}
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := policy.Subject{Plugin: plugin, Path: "test", Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	return s
}

// TestStatementsTogether: statements that were admitted together, with more keys than one
// request can have, are decided again as many.
func TestStatementsTogether(t *testing.T) {
	dir, before := t.TempDir(), keysOf(t, "app:*")
	now := func() time.Time { return noon }
	log, err := audit.Open(audit.Config{StateDir: dir, FullPaths: func() bool { return false }, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	engine := &authz.Engine{}
	engine.Install(before.Policy)
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	to, err := authz.NewDestination(authz.SchemeRedis, "cache.example", "")
	if err != nil {
		t.Fatal(err)
	}
	database, get := authz.Fact{Kind: authz.FactDatabase, Name: "0"}, authz.Fact{Kind: authz.FactCommand, Name: "get"}
	connect, _ := authz.NewFacts(authz.ProtocolRedis, database)
	shared, _ := authz.NewFacts(authz.ProtocolRedis, database, get)
	session, err := gate.Admit(context.Background(), authz.Request{Principal: plugin, Destination: to, Facts: connect}, authz.Source{Door: authz.DoorProxy, UID: -1})
	if err != nil || session.Refusal != nil {
		t.Fatal(err, session.Refusal)
	}
	const n = 100
	var names []authz.Fact
	for i := range n {
		names = append(names, authz.Fact{Kind: authz.FactKey, Name: fmt.Sprintf("app:%d", i)})
	}
	if a, err := gate.AdmitTogether(session, shared, names, n); err != nil || a == nil {
		t.Fatalf("got %v, %v", a, err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		after policy.Subject
		want  counts
	}{
		"the same":     {before, counts{Unchanged: n + 1, NotReplayable: map[string]int{}}},
		"one key less": {keysOf(t, "app:1", "app:2"), counts{Unchanged: 1, Breaks: n, NotReplayable: map[string]int{}}},
	} {
		if got := countsOf(replayed(t, dir, tt.after)); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
}
