package sql

import (
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
)

// FuzzRead looks for a text at which Read fails, or whose facts are not facts.
func FuzzRead(f *testing.F) {
	for _, text := range append(corpusTexts(f), tails...) {
		f.Add(text)
	}
	for _, atom := range atoms {
		f.Add("SELECT " + atom)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := Read(text)
		if r.Unreadable != "" && r.Statements != nil {
			t.Error("an unreadable text has statements")
		}
		last := 0
		for _, st := range r.Statements {
			if st.Start < last || st.End <= st.Start || st.End > len(text) {
				t.Errorf("a statement is at %d to %d, behind %d", st.Start, st.End, last)
			}
			last = st.End
			if st.Verb == "" || len(st.Facts) == 0 {
				t.Errorf("%q has the verb %q and facts %v", text[st.Start:st.End], st.Verb, st.Facts)
			}
			if _, err := authz.NewFacts(authz.ProtocolPostgres, append(st.Facts, authz.Fact{Kind: authz.FactDatabase, Name: "d"})...); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzMask looks for a masked text that another mask changes, or that shows a string.
func FuzzMask(f *testing.F) {
	for _, text := range append(corpusTexts(f), "SELECT 'a''b', E'\\'', $$x$$, U&'\\0061'", "SELECT 1.e5, 0x1Fg", "'") {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		masked := Mask(text)
		if !utf8.ValidString(masked) || len(masked) > len(text)+2 {
			t.Errorf("Mask(%q) is %q", text, masked)
		}
		if _, reason := lex(text, nil); reason == "" && strings.ContainsAny(masked, "'") && !strings.Contains(masked, "\"") {
			t.Errorf("Mask(%q) shows a string: %q", text, masked)
		}
		Fingerprint(text)
	})
}

// TestBoundedTime reads texts that are long or deep. The best of some runs counts: parallel
// tests and the race detector take their time.
func TestBoundedTime(t *testing.T) {
	const runs = 5
	promised := 50 * time.Millisecond
	if underRaceDetector() {
		promised *= 10
	}
	for name, text := range map[string]string{
		"20,000 parentheses": "SELECT " + strings.Repeat("(", 20_000) + "1" + strings.Repeat(")", 20_000),
		"a literal of 1 MiB": "SELECT '" + strings.Repeat("x", 1<<20) + "'",
		"doubled quotes":     "SELECT '" + strings.Repeat("''", 1<<19) + "'",
		"escaped quotes":     "SELECT E'" + strings.Repeat(`\'`, 1<<19) + "'",
		"backslashes":        "SELECT E'" + strings.Repeat(`\\`, 1<<19) + "'",
		"relations":          "SELECT * FROM " + strings.Repeat("pg_class,", 1<<17) + "t",
		"common tables":      "WITH " + strings.Repeat("a AS (SELECT 1),", 1<<16) + "b AS (SELECT 1) SELECT * FROM a",
		"statements":         strings.Repeat("SELECT 1;", 1<<17),
		"comments":           strings.Repeat("/*", 1<<19) + "SELECT",
		"continued":          "SELECT " + strings.Repeat("'a' -- b\n", 1<<16),
		"conflicts":          "INSERT INTO t SELECT " + strings.Repeat("ON CONFLICT (a) WHERE b ", 1<<15),
		"brackets":           "SELECT " + strings.Repeat("using (", 400) + strings.Repeat(")", 400),
	} {
		t.Run(name, func(t *testing.T) {
			best, most := time.Hour, promised
			if !strings.Contains(name, "20,000") && !strings.Contains(name, "1 MiB") {
				most = 40 * promised // a quadratic reader needs minutes
			}
			for range runs {
				begin := time.Now()
				Read(text)
				if best = min(best, time.Since(begin)); best < most {
					break
				}
			}
			t.Logf("%d bytes in %v", len(text), best)
			if best > most {
				t.Errorf("took %v, want less than %v", best, most)
			}
		})
	}
}

// underRaceDetector reports whether the test was built with the race detector, which
// multiplies the time of code that only reads and writes memory by some 20.
func underRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
