package replay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/replay"
)

// names are keys whose pieces meet those of patterns in many ways.
func names() []string {
	return []string{"app:1", "app:user:42", "app:user:42:x", "app:us", "app.user", "app", "ap", "other:1", "app:user:", "app::x", "a~b", "~AAAAAAAAAAAAAAAA", "app:us*", "app:*", "*", "é:1", "user/42/a"}
}

// drawKeys draws a policy for a Redis server.
func drawKeys(t *rapid.T, label string) policy.Subject {
	g := authz.Grant{Name: "g", Plugin: plugin, NotAfter: noon.Add(time.Hour)}
	patterns := append(names(), "app:us*", "app:user:*", "app:user:4*", "a*", "ap*", "app.*", "é*", "user/*", "a~*")
	for i := range rapid.IntRange(1, 3).Draw(t, label) {
		r := authz.Rule{ID: fmt.Sprintf("r%d", i), Reason: "a test", To: authz.To{Scheme: authz.SchemeRedis, Hosts: []string{"cache.example"}}}
		r.Matcher = &authz.Matcher{Protocol: authz.ProtocolRedis, Facts: []authz.Fact{{Kind: authz.FactDatabase, Name: "0"}, {Kind: authz.FactCommand, Name: "get"}}}
		for _, p := range rapid.SliceOfNDistinct(rapid.SampledFrom(patterns), 0, 4, rapid.ID[string]).Draw(t, "keys") {
			kind := rapid.SampledFrom([]authz.FactKind{authz.FactKey, authz.FactKey, authz.FactChannel}).Draw(t, "kind")
			r.Matcher.Facts = append(r.Matcher.Facts, authz.Fact{Kind: kind, Name: p})
		}
		g.Rules = append(g.Rules, r)
	}
	in := authz.Input{Plugin: plugin, Grants: []authz.Grant{g}}
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		t.Fatalf("policy does not compile: %+v", problems)
	}
	s := policy.Subject{Plugin: plugin, Path: label, Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	return s
}

// drawCommands draws the requests of a session: its connection first.
func drawCommands(t *rapid.T) (out []authz.Request) {
	to, err := authz.NewDestination(authz.SchemeRedis, "cache.example", "")
	if err != nil {
		t.Fatal(err)
	}
	database := authz.Fact{Kind: authz.FactDatabase, Name: "0"}
	add := func(facts ...authz.Fact) {
		content, err := authz.NewFacts(authz.ProtocolRedis, append(facts, database)...)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, authz.Request{Principal: plugin, Destination: to, Facts: content})
	}
	add()
	for range 6 {
		facts := []authz.Fact{{Kind: authz.FactCommand, Name: "get"}}
		for range rapid.IntRange(0, 2).Draw(t, "names") {
			kind := rapid.SampledFrom([]authz.FactKind{authz.FactKey, authz.FactKey, authz.FactChannel}).Draw(t, "kind")
			facts = append(facts, authz.Fact{Kind: kind, Name: rapid.SampledFrom(names()).Draw(t, "name")})
		}
		add(facts...)
	}
	return out
}

// recordSession has a gate decide a connection and its statements, one a second.
func recordSession(tb failer, dir string, s policy.Subject, requests []authz.Request, full bool) {
	now := noon
	log, err := audit.Open(audit.Config{StateDir: dir, FullPaths: func() bool { return full }, Now: func() time.Time { return now }})
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	engine := &authz.Engine{}
	engine.Install(s.Policy)
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Now: func() time.Time { return now }})
	if err != nil {
		tb.Fatal(err)
	}
	ctx := context.Background()
	session, err := gate.Admit(ctx, requests[0], authz.Source{Door: authz.DoorProxy, UID: -1})
	if err != nil || session.Refusal != nil {
		tb.Fatal(err, session.Refusal)
	}
	for i, req := range requests[1:] {
		now = noon.Add(time.Duration(i+1) * time.Second)
		a, err := gate.AdmitWithin(ctx, session, req.Facts)
		if err != nil {
			tb.Fatal(err)
		}
		if a.Refusal == nil {
			if err := a.End(authz.Outcome{Rows: 1}); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := session.End(authz.Outcome{}); err != nil {
		tb.Fatal(err)
	}
}

// TestStatements: each recorded statement, and its connection, is decided as the policy
// decides it, also if names are masked; and none is left out but where a prefix ends within
// a mask.
func TestStatements(t *testing.T) {
	root, runs := t.TempDir(), 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		dir := filepath.Join(root, strconv.Itoa(runs))
		if err := os.Mkdir(dir, 0o700); err != nil {
			rt.Fatal(err)
		}
		before, after, requests := drawKeys(rt, "before"), drawKeys(rt, "after"), drawCommands(rt)
		full := rapid.Bool().Draw(rt, "full")
		recordSession(rt, dir, before, requests, full)
		reader, err := accesslog.Open(accesslog.Options{Paths: []string{filepath.Join(dir, audit.DefaultFile)}})
		if err != nil {
			rt.Fatal(err)
		}
		found := 0
		for a, err := range reader.Accesses(context.Background()) {
			if err != nil {
				rt.Fatal(err)
			}
			found++
			req := requests[int(a.Time.Sub(noon).Round(time.Second)/time.Second)]
			for _, s := range []policy.Subject{before, after} {
				checkReplayed(rt, a, req, s, full)
			}
		}
		if found != len(requests) {
			rt.Fatalf("the log has %d accesses, want %d", found, len(requests))
		}
	})
}

// checkReplayed replays one access under a policy, and compares the result with the decision.
func checkReplayed(rt *rapid.T, a *accesslog.Access, req authz.Request, s policy.Subject, full bool) {
	r, err := replay.New([]policy.Subject{s}, replay.Options{})
	if err != nil {
		rt.Fatal(err)
	}
	if err := r.Take(a); err != nil {
		rt.Fatal(err)
	}
	result := r.Result()
	d := s.Snapshot.Decide(req, authz.Usage{}, a.Time)
	if result.NotReplayable[replay.MaskedName] > 0 && !full && endsWithinPiece(s, req) {
		return
	}
	want := counts{NotReplayable: map[string]int{}}
	switch was := a.Decided == authz.Granted.String(); {
	case was && !d.Allowed():
		want.Breaks = 1
	case !was && d.Allowed():
		want.Widens = 1
	case was && d.Rule != a.Rule:
		want.Changed = 1
	default:
		want.Unchanged = 1
		if d.Reason.String() != a.Decided || d.Rule != a.Rule {
			want.OtherReason = 1
		}
	}
	if got := countsOf(result); fmt.Sprint(got) != fmt.Sprint(want) {
		rt.Errorf("%q, recorded as %v: got %+v, want %+v", req.Facts.All(), a.MaskedFacts, got, want)
	}
}

// endsWithinPiece reports whether a prefix of the policy ends within a piece of a name.
func endsWithinPiece(s policy.Subject, req authz.Request) bool {
	for _, r := range s.Input.Grants[0].Rules {
		for _, p := range r.Matcher.Facts {
			prefix, wild := strings.CutSuffix(p.Name, "*")
			if wild && prefix != "" && !strings.ContainsAny(prefix[len(prefix)-1:], ":/.") &&
				slices.ContainsFunc(req.Facts.All(), func(f string) bool { return strings.HasPrefix(f, string(p.Kind)+":") }) {
				return true
			}
		}
	}
	return false
}
