package authz

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// testProtocol is a protocol that no door reads.
const testProtocol Protocol = "test"

func factsOf(tb testing.TB, texts ...string) []Fact {
	tb.Helper()
	var out []Fact
	for _, text := range texts {
		f, err := ParseFact(text)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

func content(tb testing.TB, protocol Protocol, texts ...string) Facts {
	tb.Helper()
	f, err := NewFacts(protocol, factsOf(tb, texts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// TestFactsAreASet: facts are equal if and only if protocol and set are.
func TestFactsAreASet(t *testing.T) {
	one := content(t, testProtocol, "table:b", "verb:select", "table:a", "table:b")
	if other := content(t, testProtocol, "verb:select", "table:a", "table:b"); one != other {
		t.Errorf("got %v and %v as different", one.All(), other.All())
	}
	if got, want := one.All(), []string{"table:a", "table:b", "verb:select"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, other := range []Facts{{}, content(t, "test-two", one.All()...), content(t, testProtocol, "table:b", "verb:select")} {
		if one == other {
			t.Errorf("got %v of %s as equal to %v", other.All(), other.Protocol(), one.All())
		}
	}
	if f := (Facts{}); !f.IsZero() || f.Protocol() != "" || f.All() != nil {
		t.Errorf("got protocol %q and facts %v of the zero Facts", f.Protocol(), f.All())
	}
}

// TestUnreadableFacts: what cannot be a set of facts is an error, so that the request is refused.
func TestUnreadableFacts(t *testing.T) {
	many := make([]Fact, MaxFacts+1)
	for i := range many {
		many[i] = Fact{"table", fmt.Sprint(i)}
	}
	for name, test := range map[string]struct {
		protocol Protocol
		facts    []Fact
		want     string
	}{
		"no fact":                 {testProtocol, nil, "none"},
		"no protocol":             {"", many[:1], "protocol"},
		"a protocol with a NUL":   {"a\x00b", many[:1], "protocol"},
		"too many":                {testProtocol, many, "65 facts"},
		"no name":                 {testProtocol, []Fact{{"table", ""}}, "0 bytes"},
		"a long name":             {testProtocol, []Fact{{"table", strings.Repeat("a", MaxFactName+1)}}, "257 bytes"},
		"a name that ends a fact": {testProtocol, []Fact{{"table", "a\x00verb:drop"}}, "not text"},
		"a name that is not text": {testProtocol, []Fact{{"table", "\xff"}}, "not text"},
		"a kind with a colon":     {testProtocol, []Fact{{"table:a", "b"}}, "kind"},
		"no kind":                 {testProtocol, []Fact{{"", "b"}}, "kind"},
	} {
		if f, err := NewFacts(test.protocol, test.facts...); err == nil || !strings.Contains(err.Error(), test.want) || !f.IsZero() {
			t.Errorf("%s: got %v, %v, want an error with %q", name, f.All(), err, test.want)
		}
	}
	if _, err := NewFacts(testProtocol, many[:MaxFacts]...); err != nil {
		t.Errorf("got %v for %d facts", err, MaxFacts)
	}
}

// reads returns a grant whose first rule grants reading some tables, and whose second is
// for another path and has no matcher.
func reads(tb testing.TB) Grant {
	g := forecast()
	g.Rules[0].Paths = []string{"/sql"}
	g.Rules[0].Matcher = &Matcher{Protocol: testProtocol, Facts: factsOf(tb, "verb:select", "table:public.orders", "table:public.order_*")}
	unread := g.Rules[0]
	unread.ID, unread.Paths, unread.Matcher = "any", []string{"/any"}, nil
	g.Rules = append(g.Rules, unread)
	return g
}

// TestMatcher: a rule with a matcher grants a request if it grants every fact of it, and
// nothing else does.
func TestMatcher(t *testing.T) {
	expired := reads(t)
	expired.Rules[0].NotAfter = noon
	for name, test := range map[string]struct {
		grant    Grant
		path     string
		protocol Protocol
		facts    string
		door     Conditions
		want     Reason
		differs  string
		remedy   string
	}{
		"every fact":                   {reads(t), "/sql", testProtocol, "verb:select table:public.orders", 0, Granted, "", ""},
		"a name of a prefix":           {reads(t), "/sql", testProtocol, "verb:select table:public.order_lines", 0, Granted, "", ""},
		"the prefix itself":            {reads(t), "/sql", testProtocol, "table:public.order_", 0, Granted, "", ""},
		"a fact more":                  {reads(t), "/sql", testProtocol, "verb:select table:public.orders table:secret.keys", 0, StatementNotGranted, "table", "ask for table: [secret.keys] on rule read-forecast of grant weather"},
		"a kind that is not there":     {reads(t), "/sql", testProtocol, "verb:select view:public.orders", 0, StatementNotGranted, "view", "ask for view: [public.orders] on rule read-forecast of grant weather"},
		"two kinds":                    {reads(t), "/sql", testProtocol, "verb:drop table:x", 0, StatementNotGranted, "table verb", "ask for a rule with"},
		"a name that begins a granted": {reads(t), "/sql", testProtocol, "verb:sel", 0, StatementNotGranted, "verb", `ask for verb: [sel]`},
		"another protocol":             {reads(t), "/sql", "other", "verb:select", 0, StatementNotGranted, "verb", ""},
		"content that was not read":    {reads(t), "/sql", "", "", 0, StatementNotGranted, "content", ""},
		"a door that does not read":    {reads(t), "/sql", "", "", ConditionContent, NotEnforceableHere, "content", ""},
		"another path":                 {reads(t), "/other", testProtocol, "verb:select", 0, PathNotGranted, "path", ""},
		"a rule without one":           {reads(t), "/any", testProtocol, "verb:drop", 0, Granted, "", ""},
		"that rule at such a door":     {reads(t), "/any", "", "", ConditionContent, Granted, "", ""},
		"an expired rule":              {expired, "/sql", testProtocol, "verb:select", 0, GrantExpired, "notAfter", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newWorld(t, input(test.grant)).engine.Current()
			req := get(t, "https://api.weather.example"+test.path)
			req.Unenforceable = test.door
			if test.protocol != "" {
				req.Facts = content(t, test.protocol, strings.Fields(test.facts)...)
			}
			e := s.Explain(req, Usage{}, noon)
			if e.Decision.Reason != test.want {
				t.Fatalf("got %v, want %v", e.Decision.Reason, test.want)
			}
			if e.Nearest == nil {
				e.Nearest = &Nearest{}
			}
			if got := strings.Join(e.Nearest.Differs, " "); got != test.differs || !strings.Contains(e.Remedy, test.remedy) {
				t.Errorf("got differs %q and remedy %q, want %q and %q", got, e.Remedy, test.differs, test.remedy)
			}
		})
	}
}

// TestMatcherObserved: an observing rule passes what its matcher refuses, without a credential.
func TestMatcherObserved(t *testing.T) {
	g := withKey(reads(t))
	g.Rules[0].Mode, g.Rules[0].ObserveUntil = ModeObserve, noon.Add(time.Hour)
	req := get(t, "https://api.weather.example/sql")
	req.Facts = content(t, testProtocol, "verb:drop")
	if d := newWorld(t, input(g)).engine.Current().Decide(req, Usage{}, noon); d.Reason != Observed || d.Credential != "" {
		t.Errorf("got %v with credential %q, want observed without one", d.Reason, d.Credential)
	}
}

// TestFactsAreRecorded: the record of a decision has the facts that it depended on.
func TestFactsAreRecorded(t *testing.T) {
	w := newWorld(t, input(reads(t)))
	req := get(t, "https://api.weather.example/sql")
	req.Facts = content(t, testProtocol, "verb:select", "table:public.orders")
	w.admit(t, req)
	r := w.recorder.all()[0]
	if r.Protocol != "test" || !slices.Equal(r.Facts, []string{"table:public.orders", "verb:select"}) {
		t.Errorf("got protocol %q and facts %v", r.Protocol, r.Facts)
	}
}

// TestMatcherDoesNotAllocate: matching a request costs no memory.
func TestMatcherDoesNotAllocate(t *testing.T) {
	s := newWorld(t, input(reads(t))).engine.Current()
	req := get(t, "https://api.weather.example/sql")
	req.Facts = content(t, testProtocol, "verb:select", "table:public.orders", "table:public.order_lines")
	if n := testing.AllocsPerRun(100, func() { s.Decide(req, Usage{}, noon) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// TestMatcherProblems: a matcher that cannot be compiled is reported.
func TestMatcherProblems(t *testing.T) {
	for _, m := range []Matcher{{}, {Protocol: "Test"}, {Protocol: testProtocol, Facts: []Fact{{"table", ""}}}} {
		g := forecast()
		g.Rules[0].Matcher = &m
		if _, problems := Compile(input(g), noon); len(problems) != 1 || problems[0].Path != "spec.rules[0].matcher" {
			t.Errorf("%+v: got %v, want one problem of the matcher", m, problems)
		}
	}
}
