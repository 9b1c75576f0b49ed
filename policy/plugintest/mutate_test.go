package plugintest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
)

// richGrant has every field that is widened.
const richGrant = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: g}
spec:
  plugin: p
  notAfter: 2027-01-01T00:00:00Z
  rules:
  - {id: read, reason: Reads, to: {hosts: [api.example.com, "*.tiles.example.com"], addresses: [203.0.113.0/24]}, methods: [GET, HEAD], paths: ["/v1/*", /status], credential: key, wildcardCredential: true}
  - {id: open, reason: Reads, to: {hosts: [open.example.com], ports: [443, 8443]}, methods: ["*"], paths: ["/a/b/**"], encodedSlash: allow, notAfter: 2026-12-10T00:00:00Z}
  - {id: db, reason: Reads, to: {scheme: tcp, hosts: [db.example.com, 10.0.0.7], ports: [5432], addresses: [10.0.0.0/8]}}
  - {id: sni, reason: Passes, to: {scheme: tls, hosts: [sni.example.com]}}
  - {id: same, reason: The same as sni, to: {scheme: tls, hosts: [sni.example.com]}}
  credentials:
  - {name: key, vault: {path: secret/data/key}, inject: {header: Authorization, value: "Bearer {key}"}}
  - {name: other, vault: {path: secret/data/other}, inject: {header: Authorization, value: "Bearer {key}"}}
`

const richGuardrail = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never: [{id: vault, hosts: [vault.example.com], addresses: [10.0.0.9/32]}, {id: elsewhere, hosts: [other.example.com]}]
  ceilings: {wildcardHosts: single}
`

// TestMutate: each survivor names an expectation. With all of them added, every test
// passes and no change survives.
func TestMutate(t *testing.T) {
	const spec = "grants: [g.yaml]\n  guardrails: [company.yaml]"
	dir := write(t, map[string]string{
		"g.yaml": richGrant, "company.yaml": richGuardrail,
		"t.yaml": testFile(spec, `{deny: GET https://elsewhere.example/}`),
	})
	first := Mutate(context.Background(), load(t, filepath.Join(dir, "t.yaml")), nil)
	if first.Noticed != 0 || first.Undecided != 0 || first.Refused == 0 || first.Equivalent == 0 || len(first.Survived) < 25 {
		t.Errorf("Mutate = %d noticed, %d undecided, %d refused, %d equivalent, %d survived; want no change noticed, some refused and equivalent, and at least 25 survivors",
			first.Noticed, first.Undecided, first.Refused, first.Equivalent, len(first.Survived))
	}
	var expectations []string
	for _, s := range first.Survived {
		text, ok := strings.CutPrefix(s.Expectation, "- ")
		if !ok || s.Line == 0 || s.Test != filepath.Join(dir, "t.yaml") {
			t.Errorf("survivor %+v has no expectation or no place", s)
		}
		if !slices.Contains(expectations, text) {
			expectations = append(expectations, text)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "t.yaml"), []byte(testFile(spec, expectations...)), 0o600); err != nil {
		t.Fatal(err)
	}
	suites := load(t, filepath.Join(dir, "t.yaml"))
	for _, r := range Run(context.Background(), suites) {
		if r.Status != Pass {
			t.Errorf("%s: want %s, got %s", r.Name, r.Expected, r.Got)
		}
	}
	second := Mutate(context.Background(), suites, nil)
	if len(second.Survived) > 0 || second.Noticed != len(first.Survived) || second.Equivalent != first.Equivalent {
		t.Errorf("with the expectations of %d survivors Mutate = %+v, want none to survive", len(first.Survived), second)
	}
}

// TestMutateEachChange: a change is noticed by the expectation that is about it, and by
// no other.
func TestMutateEachChange(t *testing.T) {
	dir := write(t, map[string]string{"g.yaml": richGrant, "company.yaml": richGuardrail})
	for i, test := range []struct{ expect, noticed string }{
		{`{allow: GET https://api.example.com/status, rule: g/read, credential: key}`, "g/read: removed; g/read: without its credential; g/read: credential other"},
		{`{deny: POST https://api.example.com/status}`, `g/read: methods "*"; g/read: mode observe`},
		{`{deny: GET https://api.example.com/v1/a/b}`, `g/read: path "/v1/**" in place of "/v1/*"; g/read: path "/**" in place of "/status"; g/read: mode observe`},
		{`{deny: GET https://a.b.tiles.example.com/status}`, ""},
		{`{deny: GET https://api.example.com:8443/status}`, `g/read: ports with 8443`},
		{`{deny: GET https://api.example.com/status, address: 8.8.8.8}`, `g/read: without addresses`},
		{`{deny: GET https://api.example.com/v1/a%2Fb}`, `g/read: encodedSlash allow`},
		{`{deny: GET https://open.example.com/a/b/, at: 2026-12-10T00:00:00Z}`, `g/open: notAfter of the grant`},
		{`{deny: "tcp://db.example.com:5432", address: 10.0.0.9}`, "company/vault: never-entry removed; company/vault: without 10.0.0.9/32"},
		{`{deny: GET https://api.example.com/status, at: 2027-01-01T00:00:00Z}`, "g: notAfter 30 days later"},
		{`{never: "* https://api.example.com:8443"}`, `g/read: ports with 8443; g/open: hosts with "*.example.com"`},
		{`{atMost: g.yaml}`, ""},
	} {
		path := filepath.Join(dir, "t.yaml")
		if err := os.WriteFile(path, []byte(testFile("grants: [g.yaml]\n  guardrails: [company.yaml]", test.expect)), 0o600); err != nil {
			t.Fatal(err)
		}
		s := load(t, path)[0]
		var changes []string
		for _, m := range s.mutants() {
			if v, _ := s.judge(context.Background(), m); v == noticed {
				changes = append(changes, m.change)
			}
		}
		if test.expect == `{atMost: g.yaml}` { // everything that is wider is noticed
			if len(changes) < 20 || slices.Contains(changes, "g/read: removed") {
				t.Errorf("%s notices %q, want every change that is wider", test.expect, changes)
			}
			continue
		}
		if got := strings.Join(changes, "; "); got != test.noticed {
			t.Errorf("%d: %s notices %q, want %q", i, test.expect, got, test.noticed)
		}
	}
}

// TestMutateSuites: a change survives only if no suite notices it, also if another suite
// cannot load it.
func TestMutateSuites(t *testing.T) {
	dir := write(t, map[string]string{
		"g.yaml": grantFile, "company.yaml": strings.Replace(richGuardrail, "ceilings: {wildcardHosts: single}", "ceilings: {methods: [GET, HEAD]}", 1),
		"weak.yaml":    testFile("grants: [g.yaml]", `{deny: GET https://elsewhere.example/}`),
		"strict.yaml":  testFile("grants: [g.yaml]", `{deny: POST https://api.example/v1/a}`),
		"ceiling.yaml": testFile("grants: [g.yaml]\n  guardrails: [company.yaml]", `{deny: GET https://elsewhere.example/}`),
	})
	for _, test := range []struct {
		files    []string
		survives bool
	}{
		{[]string{"weak.yaml"}, true},
		{[]string{"ceiling.yaml"}, false},
		{[]string{"weak.yaml", "ceiling.yaml"}, true},
		{[]string{"ceiling.yaml", "weak.yaml"}, true},
		{[]string{"weak.yaml", "strict.yaml"}, false},
		{[]string{"strict.yaml", "weak.yaml"}, false},
	} {
		var suites []*Suite
		for _, file := range test.files {
			suites = append(suites, load(t, filepath.Join(dir, file))...)
		}
		got := Mutate(context.Background(), suites, nil)
		survives := slices.ContainsFunc(got.Survived, func(s Survivor) bool { return s.Change == `g/read: methods "*"` })
		if survives != test.survives {
			t.Errorf("the methods of g/read in %q survive: %t, want %t", test.files, survives, test.survives)
		}
	}
}

// TestMutateOneRule: a policy of one rule has none without it.
func TestMutateOneRule(t *testing.T) {
	one := grantFile[:strings.Index(grantFile, "  - {id: db")] + grantFile[strings.Index(grantFile, "  credentials:"):]
	dir := write(t, map[string]string{"g.yaml": one, "t.yaml": testFile("grants: [g.yaml]", `{deny: GET https://elsewhere.example/}`)})
	got := Mutate(context.Background(), load(t, filepath.Join(dir, "t.yaml")), nil)
	if i := slices.IndexFunc(got.Survived, func(s Survivor) bool { return s.Change == "g/read: removed" }); i < 0 || got.Survived[i].Expectation == "" {
		t.Errorf("Mutate = %+v, want an expectation for the rule that is removed", got)
	}
}

// TestMutateShadowed: the rule by itself decides a request differently, and the policy
// does not, as another rule wins it. The change is equivalent.
func TestMutateShadowed(t *testing.T) {
	dir := write(t, map[string]string{"g.yaml": richGrant, "t.yaml": testFile("grants: [g.yaml]", `{deny: GET https://elsewhere.example/}`)})
	s := load(t, filepath.Join(dir, "t.yaml"))[0]
	for _, m := range s.mutants() {
		if m.change != "g/sni: removed" && m.change != "g/same: removed" {
			continue
		}
		if v, survivor := s.judge(context.Background(), m); v != equivalent {
			t.Errorf("%s is judged %d with %+v, want %d", m.change, v, survivor, equivalent)
		}
	}
}

// TestMutateInTime: changes that are not decided in time are counted as such.
func TestMutateInTime(t *testing.T) {
	dir := write(t, map[string]string{"g.yaml": grantFile, "t.yaml": testFile("grants: [g.yaml]", `{deny: GET https://elsewhere.example/}`)})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	got := Mutate(ctx, load(t, filepath.Join(dir, "t.yaml")), nil)
	if got.Undecided == 0 || got.Undecided != got.Mutants {
		t.Errorf("Mutate = %+v, want every mutant undecided", got)
	}
	if r := got.Results(); r[len(r)-1].Status != Undecided {
		t.Errorf("the last result is %+v, want one that is undecided", r[len(r)-1])
	}
}

func TestWider(t *testing.T) {
	for host, want := range map[string]string{"a.example": "*.example", "*.a.example": "**.a.example", "**.a.example": "", "10.0.0.1": "", "2001:db8::1": "", "localhost": ""} {
		if got := widerHost(host); got != want {
			t.Errorf("widerHost(%q) = %q, want %q", host, got, want)
		}
	}
	for path, want := range map[string]string{"/": "/**", "/a": "/**", "/a/": "/a/**", "/a/*": "/a/**", "/a/*/b": "/a/*/**", "/a/**": "/**", "/a/b/**": "/a/**", "/**": "/**"} {
		if got := widerPath(path); got != want {
			t.Errorf("widerPath(%q) = %q, want %q", path, got, want)
		}
	}
}

// TestCover lists what no expectation uses.
func TestCover(t *testing.T) {
	dir := write(t, map[string]string{
		"g.yaml": richGrant, "company.yaml": richGuardrail,
		"t.yaml": testFile("grants: [g.yaml]\n  guardrails: [company.yaml]",
			`{allow: GET https://x.tiles.example.com/status}`, `{allow: HEAD https://api.example.com/v1/a}`,
			`{allow: PUT https://open.example.com:8443/a/b/c%2Fd}`, `{deny: GET https://open.example.com/x}`,
			`{allow: "tcp://10.0.0.7:5432"}`, `{allow: "tls://sni.example.com", rule: g/same}`),
	})
	got := Cover(load(t, filepath.Join(dir, "t.yaml")))
	want := []string{
		"coverage: 4 of 5 rules; 13 of 16 hosts, ports, methods, paths and upgrades: 81.2%",
		"not covered: g/open (g.yaml:9:5): ports 443 (line 9)",
		"not covered: g/db (g.yaml:10:5): hosts db.example.com (line 10)",
		"not covered: g/sni (g.yaml:11:5): no request is granted by it",
	}
	text := strings.Split(strings.ReplaceAll(strings.Join(got.Text(), "\n"), dir+"/", ""), "\n")
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if r := got.Result(90); r.Status != Fail || got.Result(80).Status != Pass {
		t.Errorf("the result at 90%% is %+v, want a failure; at 80%% %s", r, got.Result(80).Status)
	}
}

// TestCoverMostSpecific: of several patterns that match, the most specific one is used.
func TestCoverMostSpecific(t *testing.T) {
	text := strings.Replace(strings.Replace(grantFile, "hosts: [live.example]", "hosts: [\"**.example\", \"*.live.example\", a.live.example]", 1), `paths: ["/**"]`, `paths: ["/**", "/a/*", /a/b]`, 1)
	dir := write(t, map[string]string{"g.yaml": text, "t.yaml": testFile("grants: [g.yaml]", `{allow: GET https://a.live.example/a/b}`, `{allow: GET https://b.live.example/a/c}`)})
	var missing []string
	for _, r := range Cover(load(t, filepath.Join(dir, "t.yaml"))).Uncovered {
		for _, p := range r.Parts {
			if r.Rule == "g/live" {
				missing = append(missing, p.Field+" "+p.Value)
			}
		}
	}
	if want := []string{"hosts **.example", "paths /**", "upgrades websocket"}; !slices.Equal(missing, want) {
		t.Errorf("not covered are %q, want %q", missing, want)
	}
}

// TestScalar: a text is read back as it was.
func TestScalar(t *testing.T) {
	for text, want := range map[string]string{
		"GET https://a.example/": "GET https://a.example/", "": `""`, "yes": `"yes"`, "10.0.0.1": "10.0.0.1", "2026-12-01T12:00:00Z": "2026-12-01T12:00:00Z", "2026": `"2026"`, "::1": `"::1"`, "* https://a/": `"* https://a/"`,
		"GET https://[::1]/": `"GET https://[::1]/"`, "a: b": `"a: b"`, "a #b": `"a #b"`, "a,b": `"a,b"`, authz.Granted.String(): "granted",
	} {
		if got := scalar(text); got != want {
			t.Errorf("scalar(%q) = %s, want %s", text, got, want)
		}
	}
}
