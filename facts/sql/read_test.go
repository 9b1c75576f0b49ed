package sql

import (
	_ "embed"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

//go:embed catalog/postgresql-18.tsv
var keywordData string

// factsOf returns the facts of every statement of a text, joined by spaces in order.
func factsOf(t *testing.T, text string) string {
	t.Helper()
	r := Read(text)
	if r.Unreadable != "" {
		return "unreadable: " + r.Unreadable
	}
	var all []string
	for _, st := range r.Statements {
		for _, f := range st.Facts {
			all = append(all, f.String())
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

const statementsFile = "testdata/statements.txt"

// entry is one statement of the file, with its facts, or a comment.
type entry struct{ comment, statement, facts string }

// statements reads the file of statements. A line without text belongs to the comments.
func statements(t testing.TB) []entry {
	t.Helper()
	data := testenv.MustGet(os.ReadFile(statementsFile))(t)
	var all []entry
	var statement strings.Builder
	for line := range strings.Lines(string(data)) {
		facts, isFacts := strings.CutPrefix(line, "\t")
		switch {
		case isFacts:
			all = append(all, entry{statement: strings.TrimSuffix(statement.String(), "\n"), facts: strings.TrimSuffix(facts, "\n")})
			statement.Reset()
		case statement.Len() == 0 && (strings.HasPrefix(line, "#") || line == "\n"):
			all = append(all, entry{comment: line})
		default:
			statement.WriteString(line)
		}
	}
	return all
}

func corpusTexts(t testing.TB) []string {
	var all []string
	for _, e := range statements(t) {
		if e.statement != "" {
			all = append(all, e.statement)
		}
	}
	return all
}

// TestStatements compares the facts of the statements of the file.
func TestStatements(t *testing.T) {
	var out strings.Builder
	n := 0
	for _, e := range statements(t) {
		out.WriteString(e.comment)
		if e.statement == "" {
			continue
		}
		n++
		got := factsOf(t, e.statement)
		out.WriteString(e.statement + "\n\t" + got + "\n")
		if got != e.facts && !*update {
			t.Errorf("%s\ngot  %s\nwant %s", e.statement, got, e.facts)
		}
	}
	if n < 250 {
		t.Errorf("%s has %d statements, want at least 250", statementsFile, n)
	}
	if *update {
		testenv.Must(t, os.WriteFile(statementsFile, []byte(out.String()), 0o600))
	}
}

func TestStatementsOfText(t *testing.T) {
	text := " ;; SELECT 1 ; /* ; */ DROP TABLE orders; "
	r := Read(text)
	var got []string
	for _, st := range r.Statements {
		got = append(got, st.Verb+": "+text[st.Start:st.End])
	}
	if want := []string{"select: SELECT 1", "ddl-drop: DROP TABLE orders"}; !slices.Equal(got, want) {
		t.Errorf("got statements %q, want %q", got, want)
	}
}

func TestMask(t *testing.T) {
	for text, want := range map[string]string{
		"SELECT 'it''s', E'a\\'b', $x$ y $x$, 1.5e3, 0x1F, B'01', N'n', U&'d\\0061' UESCAPE '!', $1 -- secret": "SELECT ?, ?, ?, ?, ?, ?, N?, ? , $1",
		"select * /* secret */ from t where a=-1":                                                              "select * from t where a=-?",
		"SELECT 'a'\n  -- secret\n 'b'":                                                                        "SELECT ?",
		"SELECT 1 FROM \"T\" WHERE a = 'not ended":                                                             "SELECT ? FROM \"T\" WHERE a = ?",
		"SELECT \x00'secret'":                                                                                  "?",
		"SELECT 123secret, U&\"x!0061\" UESCAPE '!' FROM":                                                      "SELECT ?, U&\"x!0061\" FROM",
	} {
		if got := Mask(text); got != want {
			t.Errorf("Mask(%q): got %q, want %q", text, got, want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	same := []string{"SELECT a FROM t WHERE b IN (1, 2, 3)", "select  A from T where b in ('x',$1) -- y", "select a from t where b in ($1)"}
	for _, text := range same[1:] {
		if Fingerprint(text) != Fingerprint(same[0]) {
			t.Errorf("%q and %q have different fingerprints", same[0], text)
		}
	}
	for _, text := range []string{"SELECT a FROM t WHERE b IN (c)", `SELECT a FROM "T" WHERE b IN (1)`, "SELECT a FROM t"} {
		if Fingerprint(text) == Fingerprint(same[0]) {
			t.Errorf("%q and %q have the same fingerprint", same[0], text)
		}
	}
}

func TestCache(t *testing.T) {
	made := 0
	c := NewCache(func(text string) string { made++; return strings.ToUpper(text) })
	c.mostEntries, c.mostBytes = 4, 100
	for range 3 {
		if got := c.Get([]byte("used")); got != "USED" {
			t.Fatalf("got %q, want USED", got)
		}
		c.Get([]byte(strings.Repeat("x", cacheText+1)))
	}
	if made != 4 {
		t.Errorf("made %d, want 4: one text is cached, and one is too long", made)
	}
	for i := range 1000 {
		c.Get([]byte{byte('a' + i%26), byte('a' + i/26)})
		c.Get([]byte("used"))
		if n := c.Len(); n > 8 {
			t.Fatalf("the cache has %d texts, want at most 8", n)
		}
	}
	if made != 1004 {
		t.Errorf("made %d, want 1004: a text in use stays", made)
	}
	text := []byte("used")
	if n := testing.AllocsPerRun(100, func() { c.Get(text) }); n > 0 {
		t.Errorf("%v allocations for a text of the cache, want none", n)
	}
}

// keywordWords returns the keywords by their words.
func keywordWords() map[string]keyword {
	words := map[string]keyword{}
	for line := range strings.Lines(keywordData) {
		f := strings.Split(line, "\t")
		if f[0] == "keyword" {
			words[f[1]] = keywordOf(f[1])
		}
	}
	return words
}

func TestCacheOfManyReaders(t *testing.T) {
	c := NewCache(Read)
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			for n := range 500 {
				if r := c.Get(fmt.Appendf(nil, "SELECT %d FROM orders", (n+i)%100)); len(r.Statements) != 1 {
					t.Errorf("got %d statements, want 1", len(r.Statements))
				}
			}
		})
	}
	wait.Wait()
}
