package learn_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// statements returns accesses to databases, one a minute.
func statementAccesses(t testing.TB, lines ...string) (out []learn.Access) {
	t.Helper()
	for _, line := range lines {
		req, err := policy.Request("weather", policy.ParseWords(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, learn.Access{Request: req, Time: noon})
	}
	return out
}

// load loads a proposal as a person completes it.
func load(t *testing.T, p *learn.Proposal) policy.Subject {
	t.Helper()
	file := filepath.Join(t.TempDir(), "learned.yaml")
	yaml := strings.ReplaceAll(text(t, p), "reason: "+authz.ReasonTodo, "reason: a test")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	subjects, err := policy.Load(noon, policy.Options{}, file)
	if err != nil {
		t.Fatalf("%v\n%s", err, yaml)
	}
	return subjects[0]
}

// TestLearnStatements: the proposal grants what was recorded, and no other table, verb,
// function, command or key.
func TestLearnStatements(t *testing.T) {
	learned := []string{
		"postgres://db.example/shop", "postgres://db.example/shop SELECT lower(a) FROM orders JOIN items ON true",
		"postgres://db.example/shop SELECT * FROM orders", "postgres://db.example/shop INSERT INTO log VALUES (1)", "postgres://db.example/shop BEGIN",
		"postgres://db.example/hr SELECT 1",
		"redis://cache.example/0", "redis://cache.example/0 GET user:17:name", "redis://cache.example/0 GET user:18:name", "redis://cache.example/0 SET user:17:name x",
		"redis://cache.example/0 SET user:19:name x", "redis://cache.example/0 GET config", "redis://cache.example/0 PUBLISH news x",
	}
	p := propose(t, statementAccesses(t, learned...))
	s := load(t, p)
	for line, want := range map[string]bool{
		"postgres://db.example/shop DELETE FROM orders":             false,
		"postgres://db.example/shop INSERT INTO orders VALUES (1)":  false,
		"postgres://db.example/shop SELECT * FROM log":              false,
		"postgres://db.example/shop SELECT pg_sleep(1) FROM orders": false,
		"postgres://db.example/shop SELECT * FROM items":            true,
		"postgres://db.example/hr SELECT * FROM orders":             false,
		"postgres://other.example/shop SELECT 1":                    false,
		"redis://cache.example/0 GET user:20:name":                  true,
		"redis://cache.example/0 GET other":                         false,
		"redis://cache.example/0 SET config x":                      false,
		"redis://cache.example/0 DEL user:17:name":                  false,
		"redis://cache.example/1 GET config":                        false,
		"redis://cache.example/0 PUBLISH olds x":                    false,
	} {
		req, err := policy.Request("weather", policy.ParseWords(line))
		if err != nil {
			t.Fatal(err)
		}
		if d := s.Snapshot.Decide(req, authz.Usage{}, noon); d.Allowed() != want {
			t.Errorf("%s: %v, want allowed %v, by\n%s", line, d.Reason, want, text(t, p))
		}
	}
	for _, a := range statementAccesses(t, learned...) {
		if d := s.Snapshot.Decide(a.Request, authz.Usage{}, noon); !d.Allowed() {
			t.Errorf("%s was learned and is %v by\n%s", policy.Format(a.Request), d.Reason, text(t, p))
		}
	}
}

// TestLearnSuggestions: what only observation speaks for is a comment.
func TestLearnSuggestions(t *testing.T) {
	lines := []string{"redis://cache.example/0 SCAN 0", "redis://cache.example/0 EVAL x 0", "redis://cache.example/0 GET item:5"}
	for i := range 9 {
		lines = append(lines, fmt.Sprintf("redis://cache.example/0 GET city:%s", string(rune('a'+i))+"town"))
	}
	yaml := text(t, propose(t, statementAccesses(t, lines...)))
	for _, want := range []string{
		"    # - \"city:*\" # only observation: 9 or more values, as in \"atown\"",
		"    # - \"item:*\" # too few ids to be sure, as in \"5\"",
		"    # - \"*\" # only observation",
		"    - \"item:5\"\n",
		"    # opaque: allow # only observation: [\"eval\"]",
	} {
		if !strings.Contains(yaml, want) {
			t.Errorf("the proposal lacks %s\n%s", want, yaml)
		}
	}
}
