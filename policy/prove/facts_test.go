package prove

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
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
	without := func(n, rules int) (out []string) {
		for i := range rules {
			facts := strings.Fields(many(n))
			out = append(out, strings.Join(slices.Delete(facts, i, i+1), " "))
		}
		return out
	}
	for name, tt := range map[string]struct {
		before, after []string
		want          string // the facts of the first finding; "-" for within, "?" for undecided
	}{
		"the same":                         {[]string{"verb:select table:a*"}, []string{"verb:select table:a*"}, "-"},
		"a fact more":                      {[]string{"verb:select"}, []string{"verb:select verb:insert"}, "verb:insert"},
		"a fact less":                      {[]string{"verb:select verb:insert"}, []string{"verb:select"}, "-"},
		"a prefix for a name":              {[]string{"table:a"}, []string{"table:a*"}, "table:aa"},
		"a name of a prefix":               {[]string{"table:a*"}, []string{"table:a", "table:ab", "table:abc*"}, "-"},
		"a shorter prefix":                 {[]string{"table:ab*"}, []string{"table:a*"}, "table:aa"},
		"every name":                       {[]string{"table:a*"}, []string{"table:*"}, "table:public.a"},
		"another kind":                     {[]string{"table:a"}, []string{"view:a"}, "view:a"},
		"two rules become one":             {[]string{"table:a", "table:b"}, []string{"table:a table:b"}, "table:a table:b"},
		"one rule becomes two":             {[]string{"table:a table:b"}, []string{"table:a", "table:b"}, "-"},
		"the matcher is removed":           {[]string{"table:a"}, []string{""}, ""},
		"a matcher is added":               {[]string{""}, []string{"table:a"}, "-"},
		"a rule without one stays beside":  {[]string{"table:a", ""}, []string{"table:a table:b", ""}, "-"},
		"more facts than a request has":    {[]string{many(100)}, []string{many(101)}, "table:t100"},
		"many facts, and the same":         {[]string{many(100)}, []string{many(100)}, "-"},
		"many facts, in no one rule whole": {[]string{many(99), "table:t99"}, []string{many(100)}, "table:t65 table:t99"},
		"many facts, a rule without each":  {without(100, 65), []string{many(100)}, "?"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Compare(context.Background(), snapshotOf(t, matched(t, tt.before...)), snapshotOf(t, matched(t, tt.after...)), Options{Plugin: "p", At: noon})
			if err != nil || result.Complete != (tt.want != "?") {
				t.Fatalf("got %v, complete %v", err, result.Complete)
			}
			got := "-"
			if !result.Complete {
				got = "?"
			}
			if len(result.Findings) > 0 {
				got = strings.Join(result.Findings[0].Request.Facts.All(), " ")
			}
			if got != tt.want {
				t.Errorf("got a finding with facts %q, want %q", got, tt.want)
			}
		})
	}
}

// TestContentOfDatabases compares rules of databases, as the loader makes them.
func TestContentOfDatabases(t *testing.T) {
	type content struct{ databases, commands, keys, verbs, tables string }
	rule := func(id string, c content) authz.Rule {
		r := authz.Rule{ID: id, Reason: "a test", To: authz.To{Scheme: authz.SchemeRedis, Hosts: []string{"cache.example"}}}
		if c.verbs != "" {
			r.To, r.Credential = authz.To{Scheme: authz.SchemePostgres, Hosts: []string{"db.example"}}, "db"
			r.Statements = &authz.Statements{Verbs: strings.Fields(c.verbs), Tables: strings.Fields(c.tables)}
		}
		r.Commands, r.Keys = strings.Fields(c.commands), strings.Fields(c.keys)
		for d := range strings.FieldsSeq(c.databases) {
			r.Databases = append(r.Databases, authz.DatabaseName(d))
		}
		r.Matcher = configs.Matcher(&r)
		return r
	}
	policyOf := func(contents []content) *authz.Snapshot {
		return snapshotOf(t, rules(func(g *authz.Grant) {
			g.Rules = nil
			g.Credentials = []authz.CredentialSpec{{Name: "db", Vault: authz.VaultPath{Path: "database/creds/db"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}}}}
			for i, c := range contents {
				g.Rules = append(g.Rules, rule(fmt.Sprintf("r%d", i), c))
			}
		}, "/"))
	}
	for name, tt := range map[string]struct {
		before, after []content
		want          []string // the requests of the findings
	}{
		"the same category":        {[]content{{"0", "@read", "a:*", "", ""}}, []content{{"0", "@read", "a:*", "", ""}}, nil},
		"a command of a category":  {[]content{{"0", "@read", "a:*", "", ""}}, []content{{"0", "get", "a:*", "", ""}}, nil},
		"a category for a command": {[]content{{"0", "get set mget", "a:*", "", ""}}, []content{{"0", "@all", "a:*", "", ""}}, []string{"redis://cache.example/0 acl cat"}},
		"another key":              {[]content{{"0", "@read", "a:*", "", ""}}, []content{{"0", "@read", "a:* b", "", ""}}, []string{"redis://cache.example/0 bitcount b"}},
		"another database":         {[]content{{"0", "@read", "a:*", "", ""}}, []content{{"0 1", "@read", "a:*", "", ""}}, []string{"CONNECT redis://cache.example/1"}},
		"two databases in one":     {[]content{{"0", "get", "a:*", "", ""}, {"1", "get", "a:*", "", ""}}, []content{{"0 1", "get", "a:*", "", ""}}, nil},
		"two databases at once":    {[]content{{"0", "move", "a:*", "", ""}, {"1", "move", "a:*", "", ""}}, []content{{"0 1", "move", "a:*", "", ""}}, []string{"redis://cache.example/0 move a:a 1"}},
		"a verb":                   {[]content{{"shop", "", "", "select", "public.a"}}, []content{{"shop", "", "", "select delete", "public.a"}}, []string{"postgres://db.example/shop DELETE FROM public.a WHERE NULL IS NULL", "postgres://db.example/shop RESET transaction_read_only"}},
		"a table":                  {[]content{{"shop", "", "", "select", "public.a"}}, []content{{"shop", "", "", "select", "public.a public.b_*"}}, []string{"postgres://db.example/shop SELECT * FROM public.b_a"}},
		"verbs and tables of two":  {[]content{{"shop", "", "", "select", "public.a"}, {"shop", "", "", "insert", "public.b"}}, []content{{"shop", "", "", "select insert", "public.a public.b"}}, []string{"postgres://db.example/shop INSERT INTO public.a VALUES (NULL); SELECT * FROM public.a"}},
		"databases of two":         {[]content{{"shop", "", "", "select", "public.a"}, {"hr", "", "", "select", "public.a"}}, []content{{"shop hr", "", "", "select", "public.a"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Compare(context.Background(), policyOf(tt.before), policyOf(tt.after), Options{Plugin: "p", At: noon})
			if err != nil || !result.Complete {
				t.Fatalf("got %v, complete %v, %q", err, result.Complete, result.Inexact)
			}
			var got []string
			for _, f := range result.Findings {
				got = append(got, policy.Format(f.Request))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
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
func TestContentByBruteForce(t *testing.T) { bruteForce(t, authz.MaxFacts, 3) }

// TestLargeContentByBruteForce: the same, if rules grant more facts than a request can have.
func TestLargeContentByBruteForce(t *testing.T) { bruteForce(t, 3, 4) }

// bruteForce compares random policies of up to a number of rules with all requests of up to most facts.
func bruteForce(t *testing.T, most, rules int) {
	patterns := []string{"table:a", "table:a*", "table:ab", "table:ab*", "table:*", "tool:a", "tool:a*", "tool:*"}
	var sets []authz.Facts
	for bits := 1; bits < 1<<len(universe()); bits++ {
		var chosen []string
		for i, text := range universe() {
			if bits&(1<<i) != 0 {
				chosen = append(chosen, text)
			}
		}
		if len(chosen) > most {
			continue
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
			for range rapid.IntRange(1, rules).Draw(rt, label) {
				matchers = append(matchers, strings.Join(drawSome(rt, append(slices.Clone(patterns), ""), 5, label), " "))
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
		result, err := Compare(context.Background(), before, after, Options{Plugin: "p", At: noon, facts: most})
		if err != nil || !result.Complete && most == authz.MaxFacts {
			rt.Fatalf("got %v, complete %v", err, result.Complete)
		}
		got := map[Kind]bool{}
		for _, f := range result.Findings {
			got[f.Kind] = true
			now, was := after.Decide(f.Request, authz.Usage{}, noon), before.Decide(f.Request, authz.Usage{}, noon)
			if now.Reason != f.New.Reason || was.Reason != f.Old.Reason || len(f.Request.Facts.All()) > most {
				rt.Errorf("%s: %v is not as found", f.Kind, f.Request.Facts.All())
			}
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
			if got[kind] && !want[kind] || want[kind] && !got[kind] && result.Complete {
				rt.Errorf("%s: got %v, want %v; %v", kind, got[kind], want[kind], result.Findings)
			}
		}
	})
}
