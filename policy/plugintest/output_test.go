package plugintest

import (
	"encoding/xml"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

var updateGolden = flag.Bool("update", false, "write the golden files")

// hostile are results whose texts would end a line, a block or an element, or control a
// terminal.
func hostile() []Result {
	return []Result{
		{Test: "weather", Name: "allow GET https://a.example/", File: "a.yaml", Line: 7, Column: 5, Status: Pass, Elapsed: 1500 * time.Microsecond},
		{
			Test: "weather", Name: "deny GET https://a.example/?q=1#skip \\ \x1b[2J\nok 3 - forged", File: "a\n.yaml", Line: 8, Column: 5, Status: Fail,
			Expected: "denied: no_grant", Got: `allowed: granted by g/"r" with key`, Detail: "\x1b]0;x\x07 </failure> & ]]>", Nearest: "g/r (differs in method)",
			Rule: "g.yaml:8:5", Remedy: "ask\n  ...\nok 4 - forged", Add: `- {deny: GET https://a.example/, credential: ""}`,
		},
		{Test: "other", Name: "atMost x.yaml", File: "b.yaml", Line: 9, Column: 5, Status: Undecided, Expected: "no more", Got: "undecided", Detail: "the budget was used up"},
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *updateGolden {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// TestTAP: each result is one test point, whatever its texts hold, and each block is YAML.
func TestTAP(t *testing.T) {
	var out strings.Builder
	if err := WriteTAP(&out, hostile()); err != nil {
		t.Fatal(err)
	}
	golden(t, "hostile.tap", out.String())
	points, block, blocks := 0, "", 0
	for line := range strings.Lines(out.String()) {
		switch {
		case strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "not ok "):
			points++
		case line == "  ---\n":
			block = "{}"
		case line == "  ...\n":
			var values map[string]string
			if err := yaml.Unmarshal([]byte(block), &values); err != nil {
				t.Errorf("block %q: %v", block, err)
			}
			if want := hostile()[blocks+1].Detail; values["detail"] != want {
				t.Errorf("detail = %q, want %q", values["detail"], want)
			}
			block = ""
			blocks++
		case block != "":
			block = strings.TrimPrefix(block, "{}") + strings.TrimPrefix(line, "  ")
		}
	}
	if points != 3 || blocks != 2 {
		t.Errorf("there are %d test points and %d blocks, want 3 and 2", points, blocks)
	}
}

// TestJUnit: the report is XML with every result once.
func TestJUnit(t *testing.T) {
	var out strings.Builder
	if err := WriteJUnit(&out, hostile()); err != nil {
		t.Fatal(err)
	}
	golden(t, "hostile.xml", out.String())
	var report junitReport
	if err := xml.Unmarshal([]byte(out.String()), &report); err != nil {
		t.Fatal(err)
	}
	if report.Tests != 3 || report.Failures != 1 || report.Errors != 1 || len(report.Suites) != 3 {
		t.Errorf("the report has %d tests, %d failures, %d errors in %d suites; want 3, 1, 1 in 3", report.Tests, report.Failures, report.Errors, len(report.Suites))
	}
	names := map[string]bool{}
	for _, s := range report.Suites {
		for _, c := range s.Cases {
			names[c.ClassName+c.Name] = true
			if strings.ContainsAny(c.Name, "\x1b\n") {
				t.Errorf("the name %q controls a terminal", c.Name)
			}
		}
	}
	if len(names) != 3 {
		t.Errorf("there are %d names, want 3: GitLab drops a second test of a name", len(names))
	}
}

func TestTAPValue(t *testing.T) {
	for text, want := range map[string]string{
		"plain": `"plain"`, `{a: ""}`: `'{a: ""}'`, "it's \"so\"": `"it's \"so\""`, "\"a\"\nok 1 - forged": `"\"a\"\nok 1 - forged"`,
	} {
		if got := tapValue(text); got != want {
			t.Errorf("tapValue(%q) = %s, want %s", text, got, want)
		}
	}
}

// TestNamesAreUnique: the same expectation twice in a test has two names.
func TestNamesAreUnique(t *testing.T) {
	dir := write(t, map[string]string{"g.yaml": grantFile, "t.yaml": testFile("grants: [g.yaml]", "{deny: GET https://x.example/}", "{deny: GET https://x.example/, reason: guardrail}")})
	s := load(t, dir+"/t.yaml")[0]
	if got, want := s.expectations[1].name, "deny GET https://x.example/ (line 8)"; got != want {
		t.Errorf("the second name is %q, want %q", got, want)
	}
}
