package pilot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

var start = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// accessTo is an access of the plugin, granted by rule read unless reason is another one.
func accessTo(host string, port uint16, path string, reason authz.Reason) *accesslog.Access {
	a := &accesslog.Access{
		Time: start.Add(time.Second), First: start.Add(time.Second), Plugin: "reader", Decision: "d-" + host, Count: 1,
		Allowed: reason == authz.Granted || reason == authz.Observed, Decided: reason.String(), Reason: reason.String(),
		Target: accesslog.Target{Method: "GET", Scheme: "https", Host: host, Port: port, Path: path}, NotReplayable: accesslog.NoRequest,
	}
	if reason == authz.Granted {
		a.Rule = "read"
	}
	return a
}

// TestObserver puts accesses beside what is declared.
func TestObserver(t *testing.T) {
	o := NewObserver("reader", []string{"read", "unused"}, nil)
	for _, a := range []*accesslog.Access{
		accessTo("api.example", 443, "/a", authz.Granted),
		accessTo("api.example", 443, "/b", authz.Granted),
		accessTo("evil.example", 0, "", authz.Observed), // the look-up before the access
		accessTo("evil.example", 443, "/x", authz.Observed),
		accessTo("evil.example", 443, "/y", authz.Observed),
		accessTo("looked-up.example", 0, "", authz.Observed),
		accessTo("never.example", 443, "/", authz.GuardrailDenied),
		accessTo("api.example", 443, "/", authz.MalformedRequest),
		accessTo("api.example", 443, "/", authz.QuotaExceeded),
	} {
		if err := o.Access(a); err != nil {
			t.Fatal(err)
		}
	}
	other := accessTo("api.example", 443, "/c", authz.Granted)
	other.Rule = "of-another-grant"
	if err := o.Access(other); err != nil {
		t.Fatal(err)
	}
	out := o.Observation()
	var places []string
	for _, u := range out.undeclared {
		places = append(places, fmt.Sprintf("%s:%d %s %d %s", u.Host, u.Port, u.Reason, u.Count, strings.Join(u.Paths, ",")))
	}
	want := []string{"evil.example:443 observed 2 /x,/y", "api.example:443 granted 1 /c", "looked-up.example:0 observed 1 ", "never.example:443 guardrail 1 /"}
	if !slices.Equal(places, want) {
		t.Errorf("undeclared are %q, want %q", places, want)
	}
	if out.uses[0].Uses != 2 || out.uses[1].Uses != 0 || out.uses[0].Decision != "d-api.example" {
		t.Errorf("uses are %+v", out.uses)
	}
	if len(out.refused) != 2 {
		t.Errorf("refused are %+v", out.refused)
	}
}

// TestObserverBounds keeps a plugin that makes up names within bounds, and counts them all.
func TestObserverBounds(t *testing.T) {
	o := NewObserver("reader", nil, nil)
	for i := range maxPlaces + 50 {
		if err := o.Access(accessTo(fmt.Sprintf("h%d.example", i), 443, "/"+strings.Repeat("x", 10_000), authz.Observed)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		if err := o.Access(accessTo("h1.example", 443, fmt.Sprintf("/%d\x1b[2J", i), authz.Observed)); err != nil {
			t.Fatal(err)
		}
	}
	out := o.Observation()
	first := out.undeclared[0]
	if len(out.undeclared) != maxPlaces || out.more != 50 || first.Count != 101 || len(first.Paths) != maxPaths || len(first.Decisions) != maxDecisions {
		t.Errorf("%d places, %d more, the first is %+v", len(out.undeclared), out.more, first)
	}
	if slices.ContainsFunc(first.Paths, func(p string) bool { return len(p) > 2*maxText || strings.Contains(p, "\x1b") }) {
		t.Errorf("paths are %q", first.Paths)
	}
	tr := Trace{Undeclared: out.undeclared, UndeclaredMore: out.more}
	if findings := tr.Findings(); len(findings) != maxPlaces+1 || tr.verdict() != Failed {
		t.Errorf("%d findings, verdict %s", len(findings), tr.verdict())
	}
}

// TestUndeclaredStatement has a plugin read a table that it did not declare: host and port
// alone are those of what it declared.
func TestUndeclaredStatement(t *testing.T) {
	o := NewObserver("reader", []string{"read"}, nil)
	a := accessTo("db.example", 5432, "", authz.Observed)
	a.Method, a.Scheme = "", "postgres"
	facts, err := authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: "shop"}, authz.Fact{Kind: authz.FactTable, Name: "public.staff"}, authz.Fact{Kind: authz.FactVerb, Name: "select"})
	if err != nil {
		t.Fatal(err)
	}
	a.Request.Facts = facts
	if err := o.Access(a); err != nil {
		t.Fatal(err)
	}
	tr := Trace{Undeclared: o.Observation().undeclared}
	const want = "undeclared: postgres://db.example:5432 database:shop table:public.staff verb:select, 1 times"
	if found := tr.Findings(); len(found) != 1 || !strings.HasPrefix(found[0].Text, want) {
		t.Errorf("found %+v, want %q", found, want)
	}
}

// TestOtherLogs refuses records of another plugin, and the log of another grant.
func TestOtherLogs(t *testing.T) {
	o := NewObserver("reader", []string{"read"}, nil)
	a := accessTo("api.example", 443, "/", authz.Granted)
	a.Plugin = "writer\x1b[2J"
	var other *OtherPluginError
	if err := o.Access(a); !errors.As(err, &other) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("an access of another plugin: %v", err)
	}
	if err := o.Event(&accesslog.Event{Entry: audit.Entry{Kind: string(authz.KindReload), Plugin: "writer"}}); !errors.As(err, &other) {
		t.Errorf("an event of another plugin: %v", err)
	}
	hex := strings.Repeat("ab", 32)
	events := []audit.Entry{
		{Kind: string(authz.KindReload), Plugin: "reader", Files: map[string]string{"grant.json": hex}},
		{Kind: string(authz.KindProcess), Plugin: "reader", Exe: "/bin/reader", Time: start},
		{Kind: string(authz.KindLost), Lost: 3},
	}
	for _, e := range events {
		if err := o.Event(&accesslog.Event{Entry: e}); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Access(accessTo("api.example", 443, "/", authz.Granted)); err != nil {
		t.Fatal(err)
	}
	m := Measurement{Plugin: "reader", Version: "1.0.0", Started: start, Ended: start.Add(time.Minute), Samples: &Samples{}, Observed: o.Observation(), Log: Log{Grant: "sha256:" + hex}}
	tr, err := Traced(m)
	if err != nil || tr.Verdict != Passed || tr.Lost != 3 || *m.Observed.firstAccess() != 1000 {
		t.Errorf("%+v, %v", tr, err)
	}
	m.Log.Grant = "sha256:" + strings.Repeat("cd", 32)
	if _, err := Traced(m); err == nil || !strings.Contains(err.Error(), "is not the log of this pilot") {
		t.Errorf("the log of another grant: %v", err)
	}
}

// TestAccessLatencies takes the latencies of accesses under each level of the load.
func TestAccessLatencies(t *testing.T) {
	spans := []Span{{Typical, start, start.Add(time.Minute)}, {Peak, start.Add(2 * time.Minute), start.Add(3 * time.Minute)}}
	yes := true
	o := NewObserver("reader", nil, spans)
	for _, at := range []time.Duration{-time.Minute, time.Second, 30 * time.Second, 90 * time.Second, 150 * time.Second, time.Hour} {
		o.End(&audit.Entry{Kind: string(authz.KindEnd), Time: start.Add(at), LatencyUS: 1000, Allowed: &yes})
	}
	o.End(&audit.Entry{Kind: string(authz.KindDecision), Time: start.Add(time.Second), LatencyUS: 1000, Allowed: &yes})
	out := o.Observation()
	if got := out.load.latency(Typical).Requests; got != 2 {
		t.Errorf("%d typical, want 2", got)
	}
	if got := out.load.latency(Peak).Requests; got != 1 {
		t.Errorf("%d at peak, want 1", got)
	}
}

// TestReached needs enough accesses, and the upper end of the interval.
func TestReached(t *testing.T) {
	for _, c := range []struct {
		coverage Coverage
		share    float64
		want     bool
	}{
		{Coverage{Known: true, HighPPM: 10_000}, 0.99, true},
		{Coverage{Known: true, HighPPM: 10_001}, 0.99, false},
		{Coverage{Known: true, UnseenPPM: 0, HighPPM: 20_000}, 0.99, false},
		{Coverage{HighPPM: 0}, 0.5, false},
	} {
		if got := c.coverage.Reached(c.share); got != c.want {
			t.Errorf("%+v reaches %g: %t", c.coverage, c.share, got)
		}
	}
	if out := (&Observation{estimate: learn.Estimate{Known: true, Unseen: 0.5, High: 0.75}}).Coverage(); out.UnseenPPM != 500_000 || out.HighPPM != 750_000 {
		t.Errorf("%+v", out)
	}
}
