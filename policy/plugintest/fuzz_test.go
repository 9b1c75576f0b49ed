package plugintest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/configs"
)

// FuzzEdit edits any text that the loader accepts, as it bounds what is parsed. It must not
// panic, and without an edit the text stays as it is.
func FuzzEdit(f *testing.F) {
	for _, text := range []string{before, after, strings.ReplaceAll(before, "\n", "\r\n"), "a: [{b: 'it''s', c: \"\\\"\"}]", "- a: |\n    x\n  b: 1\n", "{", "? a\n: b\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := configs.ParseTests(noon, "t.yaml", []byte(text)); err != nil {
			return
		}
		d, err := parseDocument([]byte(text), false)
		if err != nil {
			return
		}
		if got := string(d.apply()); got != text {
			t.Fatalf("without an edit %q is %q", text, got)
		}
		for at := range d.mappings {
			_ = d.set(at[0], at[1], "a", []field{{"deny", "GET https://a.example/"}, {"reason", "no_grant"}})
		}
	})
}

// TestUpdateRandom updates files of random expectations in random layouts: all hold
// afterwards, and the lines of those that held before are as they were.
func TestUpdateRandom(t *testing.T) {
	dir := write(t, map[string]string{"g.yaml": grantFile})
	path := filepath.Join(dir, "t.yaml")
	rapid.Check(t, func(t *rapid.T) {
		var items []string
		for range rapid.IntRange(1, 5).Draw(t, "expectations") {
			items = append(items, drawExpectation(t))
		}
		text := testFile("grants: [g.yaml]", items...)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		suites, err := Load(Options{Now: noon}, path)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		var kept []string
		for i, e := range suites[0].expectations {
			if _, wrong := e.wrong(); !wrong {
				kept = append(kept, items[i])
			}
		}
		changes, err := Update(suites)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if len(changes) != len(items)-len(kept) {
			t.Errorf("%d changes, want %d", len(changes), len(items)-len(kept))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range kept {
			if !strings.Contains(string(data), "- "+item+"\n") {
				t.Errorf("%q is not in\n%s", item, data)
			}
		}
		if strings.Count(string(data), "# note") != strings.Count(text, "# note") {
			t.Errorf("a comment is lost: from\n%s\nto\n%s", text, data)
		}
		suites, err = Load(Options{Now: noon}, path)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		for _, e := range suites[0].expectations {
			if _, wrong := e.wrong(); wrong {
				t.Errorf("line %d does not hold in\n%s", e.line, data)
			}
		}
	})
}

// drawExpectation returns an expectation in braces or in a block, with comments.
func drawExpectation(t *rapid.T) string {
	one := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	form := one("form", "allow", "deny")
	text := one("request", "GET https://api.example/v1/a", "POST https://api.example/v1/a", "GET https://live.example/é", "tcp://10.0.0.7:5432", "GET https://api.example/v1/../a")
	fields := []string{form + ": " + one("quotes", text, `"`+text+`"`, "'"+text+"'")}
	optional := []string{}
	if form == "allow" {
		optional = append(optional, "rule: "+one("rule", "g/read", "g/live", `"g/db"`), "credential: "+one("credential", "key", `""`, "'other'"), "reason: granted")
	} else {
		optional = append(optional, "reason: "+one("reason", "method_not_granted", "malformed_request", `"guardrail"`), "nearest: "+one("nearest", "g/read", "g/live"))
	}
	optional = append(optional, "door: "+one("door", "proxy", "ext_authz"))
	for _, f := range optional {
		if rapid.Bool().Draw(t, f) {
			fields = append(fields, f)
		}
	}
	if rapid.Bool().Draw(t, "braces") {
		tail := rapid.Permutation(fields).Draw(t, "order")
		return "{" + strings.Join(tail, ", ") + "}" + one("comment", "", " # note")
	}
	tail := rapid.Permutation(fields[1:]).Draw(t, "order")
	out := slices.Concat(fields[:1], tail)
	for i := range out {
		out[i] += one(fmt.Sprint("comment", i), "", " # note", "\n    # note above")
	}
	return strings.Join(out, "\n    ")
}
