package plugintest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// before and after are a file with every kind of expectation that is wrong.
const before = `# A comment at the head.
apiVersion: chaperone.dev/v1alpha1
kind: PluginTest
metadata: {name: t}   # spaces   stay
spec:
  grants:   [g.yaml]
  expect:
  - {allow: GET https://api.example/v1/a, rule: g/read, credential: key}   # holds
  - {allow: GET https://api.example/v1/a, rule: g/other} # another rule
  - { "allow": 'GET https://api.example/v1/b', credential: '' }
  - {allow: POST https://api.example/v1/a, rule: g/read, credential: key, door: proxy} # denied
  - {deny: GET https://api.example/v1/c, reason: path_not_granted, nearest: g/read}
  - {deny: POST https://api.example/v1/c, reason: path_not_granted}
  - {deny: POST https://api.example/v1/c, nearest: g/live, at: 2026-12-02T00:00:00Z}
  # A block.
  - allow: PUT https://api.example/v1/d # the request
    # before the rule
    rule: g/read # the rule
    credential: key
  - deny: GET https://api.example/v1/e
    upgrade: websocket

  - deny: GET https://api.example/v1/f   # no end
    reason: guardrail
  - {never: "GET https://api.example/v1/**"} # stays, although it fails
  - {allow: GET https://api.example/v1/a%00} # malformed
---
apiVersion: chaperone.dev/v1alpha1
kind: PluginTest
metadata: {name: second}
spec: {grants: [g.yaml], mode: observe, observeUntil: 2026-12-02T00:00:00Z, expect: [{deny: GET https://x.example/, reason: no_grant}, {allow: GET https://x.example/}]}
`

const after = `# A comment at the head.
apiVersion: chaperone.dev/v1alpha1
kind: PluginTest
metadata: {name: t}   # spaces   stay
spec:
  grants:   [g.yaml]
  expect:
  - {allow: GET https://api.example/v1/a, rule: g/read, credential: key}   # holds
  - {allow: GET https://api.example/v1/a, rule: g/read} # another rule
  - {allow: 'GET https://api.example/v1/b', credential: key}
  - {deny: POST https://api.example/v1/a, reason: method_not_granted, door: proxy} # denied
  - {allow: GET https://api.example/v1/c, rule: g/read, credential: key}
  - {deny: POST https://api.example/v1/c, reason: method_not_granted}
  - {deny: POST https://api.example/v1/c, nearest: g/read, at: 2026-12-02T00:00:00Z}
  # A block.
  - deny: PUT https://api.example/v1/d # the request
    reason: method_not_granted
    # before the rule
    # the rule
  - deny: GET https://api.example/v1/e
    upgrade: websocket

  - allow: GET https://api.example/v1/f   # no end
    rule: g/read
    credential: key
  - {never: "GET https://api.example/v1/**"} # stays, although it fails
  - {deny: GET https://api.example/v1/a%00, reason: malformed_request} # malformed
---
apiVersion: chaperone.dev/v1alpha1
kind: PluginTest
metadata: {name: second}
spec: {grants: [g.yaml], mode: observe, observeUntil: 2026-12-02T00:00:00Z, expect: [{allow: GET https://x.example/, credential: "", reason: observed}, {allow: GET https://x.example/, reason: observed}]}
`

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestUpdate(t *testing.T) {
	for _, lineEnd := range []string{"\n", "\r\n"} {
		dir := write(t, map[string]string{"g.yaml": grantFile, "real.yaml": strings.ReplaceAll(before, "\n", lineEnd)})
		path := filepath.Join(dir, "t.yaml")
		if err := os.Symlink("real.yaml", path); err != nil {
			t.Fatal(err)
		}
		changes, err := Update(load(t, path))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.ReplaceAll(after, "\n", lineEnd), read(t, path)); diff != "" {
			t.Errorf("want (-), got (+):\n%s", diff)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link is %v, %v; want it kept", info, err)
		}
		if len(changes) != 11 || changes[0].Line != 9 || changes[0].New != "{allow: GET https://api.example/v1/a, rule: g/read}" {
			t.Errorf("Update = %+v, want 11 changes, the first in line 9", changes)
		}
		if again, err := Update(load(t, path)); err != nil || len(again) != 0 {
			t.Errorf("a second Update = %+v, %v; want no change", again, err)
		}
	}
}

func TestUpdateJSON(t *testing.T) {
	text := `{"apiVersion": "chaperone.dev/v1alpha1", "kind": "PluginTest", "metadata": {"name": "t"}, "spec": {"grants": ["g.yaml"], "expect": [
  {"allow": "POST https://api.example/v1/a",
   "rule": "g/read"}, {"deny": "GET https://api.example/v1/a", "address": "93.184.215.14"}]}}
`
	dir := write(t, map[string]string{"g.yaml": grantFile, "t.json": text})
	path := filepath.Join(dir, "t.json")
	if _, err := Update(load(t, path)); err != nil {
		t.Fatal(err)
	}
	want := `{"apiVersion": "chaperone.dev/v1alpha1", "kind": "PluginTest", "metadata": {"name": "t"}, "spec": {"grants": ["g.yaml"], "expect": [
  {"deny": "POST https://api.example/v1/a", "reason": "method_not_granted"}, {"allow": "GET https://api.example/v1/a", "rule": "g/read", "credential": "key", "address": "93.184.215.14"}]}}
`
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// TestCheck: an edited text that changes something else, or does not hold, is refused.
func TestCheck(t *testing.T) {
	text := testFile("grants: [g.yaml]", "{deny: GET https://api.example/v1/a}", "{deny: POST https://api.example/v1/a}")
	dir := write(t, map[string]string{"g.yaml": grantFile, "t.yaml": text})
	path := filepath.Join(dir, "t.yaml")
	suites := load(t, path)
	changed := map[*expectation]bool{suites[0].expectations[0]: true}
	for edited, want := range map[string]string{
		strings.Replace(text, "deny: GET", "allow: GET", 1): "",
		text: "the edited expectation of line 7 does not hold",
		strings.Replace(strings.Replace(text, "deny: GET", "allow: GET", 1), "POST", "PUT", 1):                                   "the edit would change line 8 too",
		strings.Replace(text, "deny: GET https://api.example/v1/a", "allow: GET https://api.example/v1/b", 1):                    "the edited expectation of line 7 does not hold",
		strings.Replace(strings.Replace(text, "deny: GET", "allow: GET", 1), "  - {deny: POST https://api.example/v1/a}", "", 1): "the edited text has other tests",
		strings.Replace(text, "deny: GET", "deny GET", 1):                                                                        "the edited text is not valid",
	} {
		err := check(path, []byte(edited), suites, changed)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("check = %v, want %q for\n%s", err, want, edited)
		}
	}
}

// TestUpdateWritesNothing: an update that is not sure of its files leaves all of them.
func TestUpdateWritesNothing(t *testing.T) {
	wrong := testFile("grants: [g.yaml]", "{deny: GET https://api.example/v1/a}")
	for name, test := range map[string]struct{ text, added, err string }{
		"a file that has changed":  {wrong, "# more\n", "t.yaml: the file has changed since it was read"},
		"a comment inside braces":  {testFile("grants: [g.yaml]", "{deny: GET https://api.example/v1/a, # why\n    reason: guardrail}"), "", "line 7: the expectation is in braces and has a comment inside"},
		"a field that begins it":   {testFile("grants: [g.yaml]", "reason: guardrail\n    deny: GET https://api.example/v1/a"), "", "line 7: the expectation begins with reason, which is to be removed; begin it with deny"},
		"a value on several lines": {testFile("grants: [g.yaml]", "deny: >-\n      GET\n      https://api.example/v1/a"), "", "line 7: a value is not written on one line"},
		"two kinds of line ends":   {strings.Replace(wrong, "\n", "\r\n", 1), "", "t.yaml: some lines end in CR LF"},
		"both files":               {wrong, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, map[string]string{"g.yaml": grantFile, "a.yaml": wrong, "t.yaml": test.text})
			path := filepath.Join(dir, "t.yaml")
			suites := load(t, filepath.Join(dir, "a.yaml"), path)
			if err := os.WriteFile(path, []byte(test.text+test.added), 0o600); err != nil {
				t.Fatal(err)
			}
			changes, err := Update(suites)
			if test.err == "" {
				if err != nil || len(changes) != 2 {
					t.Errorf("Update = %v, %v; want 2 changes", changes, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("Update = %v, want an error with %q", err, test.err)
			}
			if got := read(t, filepath.Join(dir, "a.yaml")); got != wrong || read(t, path) != test.text+test.added {
				t.Errorf("a file was written:\n%s", got)
			}
		})
	}
}
