package prove

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
)

// TestObservedStatements: a rule for a database that observes is wider by every statement
// that it lets pass, and an older one that observed is not.
func TestObservedStatements(t *testing.T) {
	of := func(observes bool) *authz.Snapshot {
		return snapshotOf(t, rules(func(g *authz.Grant) {
			r := authz.Rule{ID: "r", Reason: "a test", To: authz.To{Scheme: authz.SchemePostgres, Hosts: []string{"db.example"}}, Credential: "db"}
			r.Databases, r.Statements = []authz.DatabaseName{"shop"}, &authz.Statements{Verbs: []string{"select"}, Tables: []string{"public.a"}}
			if observes {
				r.Mode, r.ObserveUntil = authz.ModeObserve, noon.Add(time.Hour)
			}
			r.Matcher = configs.Matcher(&r)
			g.Rules = []authz.Rule{r}
			g.Credentials = []authz.CredentialSpec{{Name: "db", Vault: authz.VaultPath{Path: "database/creds/db"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}}}}
		}, "/"))
	}
	ask := func(before, after bool) (out []string) {
		result, err := Compare(context.Background(), of(before), of(after), Options{Plugin: "p", At: noon})
		if err != nil || !result.Complete {
			t.Fatalf("got %v, complete %v", err, result.Complete)
		}
		for _, f := range result.Findings {
			out = append(out, f.New.Reason.String()+" "+policy.Format(f.Request))
		}
		return out
	}
	want := []string{
		"observed postgres://db.example/shop INSERT INTO public.b VALUES (coalesce(public.a()))",
		"observed postgres://db.example/shop DO ''",
		"observed postgres://db.example/shop INSERT INTO public.b VALUES (NULL)",
		"observed postgres://db.example/shop INSERT INTO public.b VALUES (NULL)",
	}
	if got := ask(false, true); !slices.Equal(got, want) {
		t.Errorf("a rule that observes: got %q, want %q", got, want)
	}
	for _, before := range []bool{false, true} {
		if got := ask(before, before); len(got) > 0 {
			t.Errorf("the same, observing %v: got %q", before, got)
		}
	}
	if got := ask(true, false); len(got) > 0 {
		t.Errorf("a rule that observes no longer: got %q", got)
	}
}

// TestNeverStatements: a pattern of statements holds each request that does as much.
func TestNeverStatements(t *testing.T) {
	snapshot := snapshotOf(t, rules(func(g *authz.Grant) {
		r := authz.Rule{ID: "r", Reason: "a test", To: authz.To{Scheme: authz.SchemePostgres, Hosts: []string{"db.example"}}, Credential: "db"}
		r.Databases, r.Statements = []authz.DatabaseName{"shop"}, &authz.Statements{Verbs: []string{"select", "insert"}, Tables: []string{"public.a", "hr.*"}}
		r.Matcher = configs.Matcher(&r)
		g.Rules = []authz.Rule{r}
		g.Credentials = []authz.CredentialSpec{{Name: "db", Vault: authz.VaultPath{Path: "database/creds/db"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}}}}
	}, "/"))
	for text, want := range map[string]string{
		"* postgres://db.example":                                  "CONNECT postgres://db.example/shop",
		"* postgres://*/hr":                                        "",
		"postgres://db.example/shop":                               "CONNECT postgres://db.example/shop",
		"postgres://db.example SELECT * FROM a":                    "postgres://db.example/shop SELECT * FROM public.a",
		"postgres://db.example/hr SELECT * FROM a":                 "",
		"postgres://db.example/shop DELETE FROM a":                 "",
		"postgres://other.example/shop SELECT * FROM a":            "",
		`postgres://*/** ["table:hr.people"]`:                      "postgres://db.example/shop INSERT INTO hr.people VALUES (NULL)",
		`postgres://db.example/shop ["verb:insert", "table:hr.*"]`: "postgres://db.example/shop INSERT INTO hr.a VALUES (NULL)",
		`postgres://db.example/shop ["table:h*"]`:                  "postgres://db.example/shop INSERT INTO hr.a VALUES (NULL)",
		`* redis://db.example`:                                     "",
		"postgres://db.example:6432/shop SELECT * FROM a":          "",
	} {
		p, err := ParsePattern(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		result, err := Never(context.Background(), snapshot, p, Options{Plugin: "p", At: noon, Most: 1})
		if err != nil || !result.Complete && len(result.Findings) == 0 {
			t.Fatalf("%s: got %v, complete %v", text, err, result.Complete)
		}
		got := ""
		if len(result.Findings) > 0 {
			got = policy.Format(result.Findings[0].Request)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	if _, err := ParsePattern("postgres://db.example/shop SELECT '"); err == nil {
		t.Error("a pattern of a statement that is unreadable was read")
	}
}
