package diff

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

const base = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather, labels: {owner: maps}}
spec:
  plugin: weather
  notAfter: 2027-01-01T00:00:00Z
  limits: {sentBytes: 5GiB}
  rules:
  - id: read
    reason: a test
    to: {hosts: [api.weather.example], tls: {min: "1.3"}}
    methods: [GET]
    paths: ["/v1/*"]
    credential: key
    timeout: 10s
    limits: {requests: 10/1m}
  - id: total
    reason: another test
    to: {hosts: [total.weather.example], addresses: [10.0.0.0/8, 169.254.0.0/16]}
    methods: [GET]
    paths: ["/"]
    limits: {requests: 100}
  credentials:
  - {name: key, vault: {path: secret/data/weather}, inject: {header: Authorization, value: "Bearer {key}"}}
---
apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never:
  - {id: metadata, hosts: [metadata.internal], addresses: [169.254.0.0/16]}
  ceilings: {methods: [GET, HEAD, POST], grantLifetime: 365d}
`

const sidecarText = `apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [policy.yaml]
  guardrails: [policy.yaml]
  stateDir: state
  kernel: required
  listen: {proxy: "127.0.0.1:15001"}
  vault: {address: "https://vault.example:8200", auth: {method: token, tokenFile: token}}
`

// load writes a policy, and a Sidecar if there is one, and loads them.
func load(t testing.TB, text, sidecar string) []policy.Subject {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"policy.yaml": text, "sidecar.yaml": sidecar} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "policy.yaml")
	if sidecar != "" {
		path = filepath.Join(dir, "sidecar.yaml")
	}
	subjects, err := policy.Load(noon, policy.Options{}, path)
	if err != nil {
		t.Fatal(err)
	}
	return subjects
}

// lines returns the changes as EFFECT CLASS RULE LINE.
func lines(r Report) []string {
	out := []string{}
	for _, p := range r.Plugins {
		for _, list := range []struct {
			effect  string
			changes []Change
		}{{"wider", p.Wider}, {"narrower", p.Narrower}, {"changed", p.Changed}} {
			for _, c := range list.changes {
				line := strings.TrimSpace(list.effect + " " + string(c.Class) + " " + c.Rule)
				if c.Position != nil {
					line += fmt.Sprintf(":%d", c.Position.Line)
				}
				out = append(out, line)
			}
		}
	}
	return out
}

func compare(t testing.TB, before, after []policy.Subject) Report {
	t.Helper()
	r, err := Compare(context.Background(), before, after, prove.Question{At: noon})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCompare(t *testing.T) {
	tests := []struct {
		name     string
		old, now string // replaced in base
		want     []string
		verdict  Verdict
	}{
		{"a host", "[api.weather.example]", "[api.weather.example, b.example]", []string{"wider host weather/read:9"}, Wider},
		{"a port", "[api.weather.example], tls", "[api.weather.example], ports: [443, 8443], tls", []string{"wider port weather/read:9"}, Wider},
		{"a method", "[GET]", "[GET, HEAD]", []string{"wider method weather/read:9"}, Wider},
		{"a path", `["/v1/*"]`, `["/v1/*", "/v2"]`, []string{"wider path weather/read:9"}, Wider},
		{"an upgrade", "    credential: key", "    credential: key\n    upgrades: [websocket]", []string{"wider method weather/read:9"}, Wider},
		{"an address", "[10.0.0.0/8, 169.254.0.0/16]", "[10.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12]", []string{"wider address weather/total:17"}, Wider},
		{"another place of a credential", "Bearer {key}", "Token {key}", []string{"wider credential weather/read:9", "narrower credential weather/read:9"}, Wider},
		{"weaker terms", `, tls: {min: "1.3"}`, "", []string{"wider terms weather/read:9", "changed terms weather/read:11"}, Wider},
		{"a longer timeout", "timeout: 10s", "timeout: 20s", []string{"wider terms weather/read:9", "changed terms weather/read:15"}, Wider},
		{"a higher limit", "10/1m", "20/1m", []string{"wider limit weather/read:9", "changed limit weather/read:16"}, Wider},
		{"a total under another name", "id: total", "id: sum", []string{"wider limit weather/sum:17", "narrower limit weather/total:17"}, Wider},
		{"a later end", "2027-01-01", "2027-02-01", []string{"wider lifetime weather/read:9", "wider lifetime weather/total:17", "changed lifetime weather/read:9", "changed lifetime weather/total:17"}, Wider},
		{"observing", "    credential: key", "    credential: key\n    mode: observe\n    observeUntil: 2026-12-02T00:00:00Z", nil, Wider},
		{"a never-list without an address", ", addresses: [169.254.0.0/16]}\n  ceil", "}\n  ceil", []string{"wider guardrail weather/total:17", "wider guardrail company:32"}, Wider},
		{"a ceiling that is relaxed", "grantLifetime: 365d", "grantLifetime: 730d", []string{"wider guardrail company:33"}, Wider},
		{"a ceiling that is stricter", "grantLifetime: 365d", "grantLifetime: 180d", []string{"narrower guardrail company:33"}, Narrower},
		{"a wider never-list", "addresses: [169.254.0.0/16]}\n  ceil", "addresses: [169.0.0.0/8]}\n  ceil", []string{"narrower guardrail weather/read:9", "narrower guardrail company:32"}, Narrower},
		{"no methods", "[GET]\n    paths: [\"/v1", "[HEAD]\n    paths: [\"/v1", []string{"wider method weather/read:9", "narrower method weather/read:9"}, Wider},
		{"fewer paths", `["/v1/*"]`, `["/v1/a"]`, []string{"narrower path weather/read:9"}, Narrower},
		{"a reason", "reason: a test", "reason: a better test", []string{"changed reason weather/read:10"}, Same},
		{"an owner", "owner: maps", "owner: clouds", []string{"changed owner weather:3"}, Same},
		{"nothing", "a test", "a test", nil, Same},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(base, test.old) {
				t.Fatalf("%q is not in the policy", test.old)
			}
			got := compare(t, load(t, base, ""), load(t, strings.Replace(base, test.old, test.now, 1), ""))
			if got.Verdict != test.verdict {
				t.Errorf("the verdict is %s, want %s: %q", got.Verdict, test.verdict, lines(got))
			}
			if test.want != nil && !slices.Equal(lines(got), test.want) {
				t.Errorf("Compare = %q, want %q", lines(got), test.want)
			}
		})
	}
}

// TestSidecar lists how a plugin is confined otherwise.
func TestSidecar(t *testing.T) {
	tests := []struct {
		name, old, now string
		want           []string
	}{
		{"the kernel turned off", "kernel: required", "kernel: preferred", []string{"wider confinement:9"}},
		{"the host's network", "  kernel: required\n", "  kernel: required\n  process: {network: host}\n", []string{"wider confinement:10"}},
		{"a port that is served", "  kernel: required\n", "  kernel: required\n  process: {listen: [8080]}\n", []string{"wider confinement:10"}},
		{"files that may be used", "  kernel: required\n", "  kernel: required\n  process: {files: {read: [data]}}\n", []string{"narrower confinement:10"}},
		{"a variable", "  kernel: required\n", "  kernel: required\n  process: {env: {A: b}}\n", []string{"changed confinement:10"}},
		{"another Vault", "vault.example", "vault2.example", []string{"wider credential:11"}},
		{"a sidecar that observes", "  kernel: required\n", "  kernel: required\n  mode: observe\n  observeUntil: 2026-12-02T12:00:00Z\n", []string{"wider observe:10"}},
		{"another name", "name: weather", "name: forecast", []string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := compare(t, load(t, base, sidecarText), load(t, base, strings.Replace(sidecarText, test.old, test.now, 1)))
			all := lines(got)
			if len(all) > 1 { // further requests that are observed
				all = slices.Compact(slices.DeleteFunc(all, func(s string) bool { return !strings.Contains(s, "observe") }))
				all = all[:1]
			}
			if !slices.Equal(all, test.want) {
				t.Errorf("Compare = %q, want %q", lines(got), test.want)
			}
		})
	}
}

// TestPlugins lists plugins that one side lacks.
func TestPlugins(t *testing.T) {
	mail := strings.ReplaceAll(base, "plugin: weather", "plugin: mail")
	got := compare(t, load(t, base, ""), load(t, mail, ""))
	if len(got.Plugins) != 2 || lines(got)[0] != "wider plugin" || got.Plugins[1].Narrower[0].Class != ClassPlugin || got.Verdict != Wider {
		t.Errorf("Compare = %q, want an added and a removed plugin", lines(got))
	}
}

// TestUndecided keeps what was found before the time ended.
func TestUndecided(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r, err := Compare(ctx, load(t, base, ""), load(t, base, ""), prove.Question{At: noon})
	if err != nil || r.Verdict != Undecided {
		t.Errorf("Compare = %v, %v, want undecided", r.Verdict, err)
	}
}

// sarifFields are the properties of SARIF 2.1.0 that each object may have, those that it
// must have first, up to the empty text. The schema of the standard allows no others.
var sarifFields = map[string][]string{
	"log":              {"version", "runs", "", "$schema", "inlineExternalProperties", "properties"},
	"run":              {"tool", "", "results", "columnKind", "artifacts", "invocations", "properties", "language", "automationDetails"},
	"tool":             {"driver", "", "extensions", "properties"},
	"driver":           {"name", "", "version", "semanticVersion", "rules", "informationUri", "fullName", "properties"},
	"rules":            {"id", "", "name", "shortDescription", "fullDescription", "help", "helpUri", "defaultConfiguration", "properties"},
	"shortDescription": {"text", "", "markdown", "properties"},
	"results":          {"message", "", "ruleId", "ruleIndex", "level", "kind", "locations", "fingerprints", "partialFingerprints", "properties"},
	"message":          {"text", "", "markdown", "id", "arguments", "properties"},
	"locations":        {"", "id", "physicalLocation", "logicalLocations", "message", "properties"},
	"physicalLocation": {"", "artifactLocation", "region", "contextRegion", "address", "properties"},
	"artifactLocation": {"", "uri", "uriBaseId", "index", "description", "properties"},
	"region":           {"", "startLine", "startColumn", "endLine", "endColumn", "snippet", "message", "properties"},
}

// checkSARIF checks an object and those below it.
func checkSARIF(t *testing.T, name string, v any) {
	t.Helper()
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			checkSARIF(t, name, one)
		}
	case map[string]any:
		if name == "properties" {
			return
		}
		fields := sarifFields[strings.TrimSuffix(name, "s")]
		if fields == nil {
			fields = sarifFields[name]
		}
		end := slices.Index(fields, "")
		for _, required := range fields[:max(end, 0)] {
			if _, ok := v[required]; !ok {
				t.Errorf("%s has no %s", name, required)
			}
		}
		for field, below := range v {
			if !slices.Contains(fields, field) {
				t.Errorf("%s has %s, which SARIF does not know", name, field)
			}
			checkSARIF(t, field, below)
		}
	case float64:
		if strings.HasPrefix(name, "start") && v < 1 {
			t.Errorf("%s is %v, want at least 1", name, v)
		}
	case string:
		if allowed := map[string][]string{"level": {"none", "note", "warning", "error"}, "columnKind": {"utf16CodeUnits", "unicodeCodePoints"}, "version": {"2.1.0", "v1"}}[name]; allowed != nil && !slices.Contains(allowed, v) {
			t.Errorf("%s is %q, want one of %q", name, v, allowed)
		}
	}
}

func TestSARIF(t *testing.T) {
	after := strings.NewReplacer("[GET]", "[GET, HEAD]", "a test", "\x1b[31ma test", "/v1/*", "/v1/a").Replace(base)
	after = strings.Replace(after, "\x1b[31ma test", `"\e[31ma test"`, 1)
	report := compare(t, load(t, base, ""), load(t, strings.ReplaceAll(after, "\x1b", ""), ""))
	data, err := json.Marshal(report.SARIF("v1"))
	if err != nil {
		t.Fatal(err)
	}
	var log map[string]any
	if err := json.Unmarshal(data, &log); err != nil {
		t.Fatal(err)
	}
	checkSARIF(t, "log", log)
	run := log["runs"].([]any)[0].(map[string]any)
	results := run["results"].([]any)
	levels := map[string]int{}
	for _, r := range results {
		levels[r.(map[string]any)["level"].(string)]++
	}
	if wider, narrower, changed := report.Count(); levels["error"] != wider || levels["note"] != narrower+changed || wider == 0 || narrower == 0 {
		t.Errorf("the levels are %v, want %d errors and %d notes", levels, wider, narrower+changed)
	}
	if strings.Contains(string(data), `\u001b`) && !strings.Contains(string(data), `\\u001b`) {
		t.Errorf("an escape sequence is not escaped: %s", data)
	}
}

func BenchmarkCompare(b *testing.B) {
	before, after := load(b, base, ""), load(b, strings.Replace(base, "[GET]", "[GET, HEAD]", 1), "")
	for b.Loop() {
		if _, err := Compare(context.Background(), before, after, prove.Question{At: noon}); err != nil {
			b.Fatal(err)
		}
	}
}
