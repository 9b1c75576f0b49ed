package policy

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

// TestRequestOfLine reads accesses as they are written on one line, and writes them again.
func TestRequestOfLine(t *testing.T) {
	for line, want := range map[string]string{ // the line that is written; "-" before an error
		"GET https://api.example/a":                                         "GET https://api.example/a",
		"tcp://mx.example:25":                                               "CONNECT tcp://mx.example:25",
		"postgres://db.internal/shop":                                       "CONNECT postgres://db.internal/shop",
		"postgresql://db.internal:6432/shop ":                               "CONNECT postgres://db.internal:6432/shop",
		"postgres://db.internal/shop%2Feu":                                  "CONNECT postgres://db.internal/shop%2Feu",
		"postgres://db.internal/shop DELETE FROM orders":                    "postgres://db.internal/shop DELETE FROM public.orders WHERE NULL IS NULL",
		"postgres://db.internal/shop select 1":                              "postgres://db.internal/shop SELECT 1",
		`postgres://db.internal/shop TABLE "Orders"`:                        `postgres://db.internal/shop SELECT * FROM public."Orders"`,
		`postgres://db.internal/shop ["verb:select","table:public.orders"]`: "postgres://db.internal/shop SELECT * FROM public.orders",
		`postgres://db.internal/shop ["table:public.orders"]`:               `postgres://db.internal/shop ["table:public.orders"]`,
		`postgres://db.internal/shop ["opaque:no-such-kind"]`:               `postgres://db.internal/shop ["opaque:no-such-kind"]`,
		"redis://cache.internal":                                            "CONNECT redis://cache.internal/0",
		"redis://cache.internal/2 GET app:1":                                "redis://cache.internal/2 get app:1",
		`redis://cache.internal/0 set "a b" 'it\'s'`:                        `redis://cache.internal/0 set "a b"`,
		"redis://cache.internal/0 PING":                                     "redis://cache.internal/0 ping",
		"redis://cache.internal/0 SELECT 3":                                 "redis://cache.internal/3 select",
		"redis://cache.internal/0 EVAL \"return 1\" 1 app:1":                `redis://cache.internal/0 eval a 1 app:1`,
		"redis://cache.internal/0 MGET app:1 app:2":                         "redis://cache.internal/0 mget app:1 app:2",
		"redis://cache.internal/0 SUBSCRIBE app.news":                       "redis://cache.internal/0 subscribe app.news",
		"postgres://db.internal":                                            "-the name of the database is missing",
		"postgres://user:password@db.internal/shop":                         "-",
		"postgres://db.internal/shop?sslmode=disable SELECT 1":              "-is not the name of a database",
		"postgres://db.internal/a/b":                                        "-is not the name of a database",
		"postgres://db.internal/shop SELECT \x00":                           "-statement is unreadable: ",
		"postgres://db.internal/shop [1]":                                   "-is not a JSON list of facts",
		`postgres://db.internal/shop ["select"]`:                            "-has no kind",
		"redis://cache.internal/0 NOSUCH app:1":                             "-statement is unreadable: command",
		"redis://cache.internal/0 GET \"app:1":                              "-a quote is not closed",
		"GET postgres://db.internal/shop":                                   "-a connection's method is CONNECT",
		"https://api.example/a":                                             "-",
	} {
		req, err := Request("p", ParseWords(line))
		if want, failed := strings.CutPrefix(want, "-"); failed {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %v, want an error with %q", line, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		if got := Format(req); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
		if again, err := Request("p", ParseWords(Format(req))); err != nil || again != req {
			t.Errorf("%q: %q has the facts %q and %v, want %q", line, Format(req), again.Facts.All(), err, req.Facts.All())
		}
	}
}

// TestTextOfFacts: whatever facts a request has, it is written as a line that has them.
func TestTextOfFacts(t *testing.T) {
	names := rapid.OneOf(rapid.SampledFrom([]string{"public.orders", "public.Orders", "public.a b", `a"b.c`, "safe", "catalog", "order", "user:1", "a*", "*", "é", "[x", "'", "datestyle=ISO"}), rapid.StringN(1, 20, 60))
	rapid.Check(t, func(rt *rapid.T) {
		protocol, scheme := authz.ProtocolPostgres, authz.SchemePostgres
		kinds := []authz.FactKind{authz.FactVerb, authz.FactTable, authz.FactFunction, authz.FactSetting, authz.FactOpaque, authz.FactForbidden}
		verbs := slices.Concat(sql.Verbs(), sql.PassingVerbs())
		if rapid.Bool().Draw(rt, "redis") {
			protocol, scheme = authz.ProtocolRedis, authz.SchemeRedis
			kinds = []authz.FactKind{authz.FactCommand, authz.FactKey, authz.FactChannel, authz.FactOpaque}
			verbs = resp.Always()
		}
		facts := []authz.Fact{{Kind: authz.FactDatabase, Name: names.Draw(rt, "database")}}
		for range rapid.IntRange(0, 5).Draw(rt, "facts") {
			f := authz.Fact{Kind: rapid.SampledFrom(kinds).Draw(rt, "kind"), Name: names.Draw(rt, "name")}
			if f.Kind == authz.FactVerb || f.Kind == authz.FactCommand {
				f.Name = rapid.SampledFrom(verbs).Draw(rt, "verb")
			}
			facts = append(facts, f)
		}
		content, err := authz.NewFacts(protocol, facts...)
		if err != nil {
			rt.Skip(err)
		}
		to, err := authz.NewDestination(scheme, "db.internal", "")
		if err != nil {
			rt.Fatal(err)
		}
		req := authz.Request{Principal: "p", Destination: to, Facts: content}
		line := Format(req)
		if again, err := Request("p", ParseWords(line)); err != nil || again != req {
			rt.Errorf("%q has the facts %q and %v, want %q", line, again.Facts.All(), err, content.All())
		}
	})
}

// TestStatementOfFacts: each verb, and each command of the table, is shown by a statement.
func TestStatementOfFacts(t *testing.T) {
	to, _ := authz.NewDestination(authz.SchemePostgres, "db.internal", "")
	for _, verb := range slices.Concat(sql.Verbs(), sql.PassingVerbs()) {
		shown := false
		for _, more := range [][]authz.Fact{{}, {{Kind: authz.FactTable, Name: "public.a"}}, {{Kind: authz.FactVerb, Name: "select"}}, {{Kind: authz.FactTable, Name: "public.a"}, {Kind: authz.FactVerb, Name: "select"}}, {{Kind: authz.FactSetting, Name: "datestyle"}}} {
			facts, _ := authz.NewFacts(authz.ProtocolPostgres, append(more, authz.Fact{Kind: authz.FactVerb, Name: verb}, authz.Fact{Kind: authz.FactDatabase, Name: "shop"})...)
			shown = shown || HasStatement(authz.Request{Destination: to, Facts: facts})
		}
		if !shown && verb != "execute" { // it is opaque, or has the facts of what was prepared
			t.Errorf("no statement shows the verb %s", verb)
		}
	}
}

// FuzzCommand: a command that is written again has the same words.
func FuzzCommand(f *testing.F) {
	for _, text := range []string{"GET a", `set "a b" 'it\'s' "\x00\n\""`, `a"b`, `"a"b`, `'\`, `"\x4`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words, err := splitCommand(text)
		if err != nil {
			return
		}
		again, err := splitCommand(joinCommand(words))
		if err != nil || !slices.Equal(words, again) {
			t.Errorf("%q: got %q and %v, want %q", text, again, err, words)
		}
	})
}
