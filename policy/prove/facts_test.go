package prove

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// test is a protocol that no door reads.
const test authz.Protocol = "test"

func facts(t testing.TB, texts ...string) []authz.Fact {
	t.Helper()
	var out []authz.Fact
	for _, text := range texts {
		f, err := authz.ParseFact(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

// matched returns a policy with a rule for each matcher, in the order of precedence. A
// matcher "" stands for a rule without one.
func matched(t testing.TB, matchers ...string) authz.Input {
	t.Helper()
	return rules(func(g *authz.Grant) {
		rule := g.Rules[0]
		g.Rules = nil
		for i, m := range matchers {
			rule.ID = fmt.Sprintf("r%d", i)
			rule.Matcher = nil
			if m != "" {
				rule.Matcher = &authz.Matcher{Protocol: test, Facts: facts(t, strings.Fields(m)...)}
			}
			g.Rules = append(g.Rules, rule)
		}
	}, "/")
}

// TestContent: a policy is wider if it grants a set of facts that no one rule of the old
// policy grants whole.
func TestContent(t *testing.T) {
	many := func(n int) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf("table:t%d", i))
		}
		return strings.Join(out, " ")
	}
	for name, tt := range map[string]struct {
		before, after []string
		want          string // the facts of the first finding; "-" for within
	}{
		"the same":                         {[]string{"verb:select table:a*"}, []string{"verb:select table:a*"}, "-"},
		"a fact more":                      {[]string{"verb:select"}, []string{"verb:select verb:insert"}, "verb:insert verb:select"},
		"a fact less":                      {[]string{"verb:select verb:insert"}, []string{"verb:select"}, "-"},
		"a prefix for a name":              {[]string{"table:a"}, []string{"table:a*"}, "table:ab"},
		"a name of a prefix":               {[]string{"table:a*"}, []string{"table:a", "table:ab", "table:abc*"}, "-"},
		"a shorter prefix":                 {[]string{"table:ab*"}, []string{"table:a*"}, "table:ac"},
		"every name":                       {[]string{"table:a*"}, []string{"table:*"}, "table:b"},
		"another kind":                     {[]string{"table:a"}, []string{"view:a"}, "view:a"},
		"two rules become one":             {[]string{"table:a", "table:b"}, []string{"table:a table:b"}, "table:a table:b"},
		"one rule becomes two":             {[]string{"table:a table:b"}, []string{"table:a", "table:b"}, "-"},
		"the matcher is removed":           {[]string{"table:a"}, []string{""}, ""},
		"a matcher is added":               {[]string{""}, []string{"table:a"}, "-"},
		"a rule without one stays beside":  {[]string{"table:a", ""}, []string{"table:a table:b", ""}, "-"},
		"more facts than a request has":    {[]string{many(100)}, []string{many(101)}, "table:t100"},
		"many facts, and the same":         {[]string{many(100)}, []string{many(100)}, "-"},
		"many facts, in no one rule whole": {[]string{many(99), "table:t99"}, []string{many(100)}, "table:t0 table:t99"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Compare(context.Background(), snapshotOf(t, matched(t, tt.before...)), snapshotOf(t, matched(t, tt.after...)), Options{Plugin: "p", At: noon})
			if large := strings.Contains(name, "many facts") || strings.Contains(name, "more facts"); err != nil || result.Complete == large {
				t.Fatalf("got %v, complete %v", err, result.Complete)
			}
			got := "-"
			if len(result.Findings) > 0 {
				got = strings.Join(result.Findings[0].Request.Facts.All(), " ")
			}
			if got != tt.want {
				t.Errorf("got a finding with facts %q, want %q", got, tt.want)
			}
		})
	}
}

// universe is every fact that the brute force asks.
func universe() []string {
	return []string{"table:a", "table:ab", "table:abx", "table:ac", "table:z", "tool:a", "tool:az", "tool:q"}
}

// TestContentByBruteForce: the comparison finds a difference if and only if some set of
// facts shows one, with the credential of the winner compared as well.
func TestContentByBruteForce(t *testing.T) {
	patterns := []string{"table:a", "table:a*", "table:ab", "table:ab*", "table:*", "tool:a", "tool:a*", "tool:*"}
	var sets []authz.Facts
	for bits := 1; bits < 1<<len(universe()); bits++ {
		var chosen []string
		for i, text := range universe() {
			if bits&(1<<i) != 0 {
				chosen = append(chosen, text)
			}
		}
		set, err := authz.NewFacts(test, facts(t, chosen...)...)
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, set)
	}
	sets = append(sets, authz.Facts{})
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(label string) *authz.Snapshot {
			var matchers []string
			for range rapid.IntRange(1, 3).Draw(rt, label) {
				matchers = append(matchers, strings.Join(drawSome(rt, append(slices.Clone(patterns), ""), 4, label), " "))
			}
			in := matched(t, matchers...)
			for i := range in.Grants[0].Rules {
				if rapid.Bool().Draw(rt, "credential") {
					in.Grants[0].Rules[i].Credential = "c"
				}
			}
			in.Grants[0].Credentials = []authz.CredentialSpec{{Name: "c", Vault: authz.VaultPath{Path: "secret/data/c"}, Inject: authz.Inject{Header: "Authorization", Value: "Bearer {key}"}}}
			return snapshotOf(t, in)
		}
		before, after := draw("before"), draw("after")
		result, err := Compare(context.Background(), before, after, Options{Plugin: "p", At: noon})
		if err != nil || !result.Complete {
			rt.Fatalf("got %v, complete %v", err, result.Complete)
		}
		got := map[Kind]bool{}
		for _, f := range result.Findings {
			got[f.Kind] = true
		}
		want := map[Kind]bool{}
		to, _ := authz.NewDestination(authz.SchemeHTTPS, "a.example", "/")
		for _, set := range sets {
			req := authz.Request{Principal: "p", Action: authz.Action{Method: "GET"}, Destination: to, Facts: set}
			for _, door := range policy.Doors() {
				req.Unenforceable = door.Unenforceable
				was, now := before.Decide(req, authz.Usage{}, noon), after.Decide(req, authz.Usage{}, noon)
				switch {
				case now.Allowed() && !was.Allowed():
					want[KindAccess] = true
				case now.Allowed() && now.Credential != "" && was.Credential == "":
					want[KindCredential] = true
				}
			}
		}
		for _, kind := range []Kind{KindAccess, KindCredential} {
			if got[kind] != want[kind] {
				rt.Errorf("%s: got %v, want %v; %v", kind, got[kind], want[kind], result.Findings)
			}
		}
	})
}
