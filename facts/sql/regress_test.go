package sql

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// regressionSuite returns the statements of PostgreSQL's own regression suite, as psql
// sends them, but those that use a variable of psql.
func regressionSuite(t *testing.T) []string {
	t.Helper()
	dir := testenv.MustGet(testenv.InstallPostgresRegression(t.Context(), os.Stderr))(t)
	files := testenv.MustGet(filepath.Glob(filepath.Join(dir, "*.sql")))(t)
	if len(files) < 200 {
		t.Fatalf("got %d files, want those of the regression suite", len(files))
	}
	var all []string
	for _, file := range files {
		all = append(all, splitScript(string(testenv.MustGet(os.ReadFile(file))(t)))...)
	}
	return all
}

// splitScript splits a script of psql into statements: without its own commands and the
// data behind COPY FROM stdin.
func splitScript(script string) []string {
	var all []string
	var chunk strings.Builder
	data := false
	for line := range strings.Lines(script) {
		switch {
		case data:
			data = line != "\\.\n"
			continue
		case strings.HasPrefix(line, "\\"):
			continue
		}
		chunk.WriteString(line)
		if !strings.Contains(line, ";") {
			continue
		}
		tokens, reason := lex(chunk.String(), nil)
		if reason != "" && chunk.Len() < 20_000 || len(tokens) == 0 || tokens[len(tokens)-1].char != ';' {
			continue
		}
		text := strings.TrimSpace(chunk.String())
		chunk.Reset()
		all = append(all, text)
		upper := strings.ToUpper(text)
		data = strings.HasPrefix(upper, "COPY") && strings.Contains(upper, "FROM STDIN")
	}
	return all
}

// TestRegressionSuite compares the facts of every statement of PostgreSQL's regression
// suite with what libpg_query sees.
func TestRegressionSuite(t *testing.T) {
	total, opaque, wrong := 0, 0, 0
	for _, text := range regressionSuite(t) {
		want, ok := parse(text)
		if !ok {
			continue
		}
		total++
		v := compare(text, want)
		if v.opaque {
			opaque++
		}
		if v.wrong != "" {
			if wrong++; wrong <= 50 {
				t.Errorf("%s\n%s", v.wrong, text)
			}
		}
	}
	t.Logf("%d statements, %d of them opaque, %d wrong", total, opaque, wrong)
	if total < 30_000 {
		t.Errorf("the judge read %d statements, want those of the suite", total)
	}
}
