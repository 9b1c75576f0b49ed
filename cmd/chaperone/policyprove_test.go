package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/policy/diff"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

const provedBefore = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-01-01T00:00:00Z
  rules:
  - id: read
    reason: a test
    to: {hosts: [api.weather.example], tls: {min: "1.3"}}
    methods: [GET]
    paths: ["/v1/*"]
    credential: key
    timeout: 10s
    limits: {requests: 10/1m}
  - id: stream
    reason: a test
    to: {hosts: [live.weather.example], ports: [8443]}
    methods: [GET]
    paths: ["/"]
    timeout: 10s
  credentials:
  - {name: key, vault: {path: secret/data/weather}, inject: {header: Authorization, value: "Bearer {key}"}}
---
apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never: [{id: private, addresses: [192.168.0.0/16], hosts: [internal.example]}]
`

// provedAfter differs in every kind of finding, in paths that a shell has to quote, and in
// what only some doors and times show.
func provedAfter() string {
	return strings.NewReplacer(
		"2027-01-01", "2027-02-01",
		`, tls: {min: "1.3"}`, `, addresses: [10.0.0.0/8, "fd00::/8"]`,
		"[GET]\n    paths: [\"/v1/*\"]", "[GET, HEAD]\n    paths: [\"/v1/*\", \"/it's/*\", \"/$HOME/**\"]\n    upgrades: [websocket]\n    encodedSlash: allow",
		"path: secret/data/weather", "path: secret/data/other",
		"10/1m", "20/1m",
		"timeout: 10s\n  credentials", "limits: {requests: 5}\n    mode: observe\n    observeUntil: 2026-12-02T00:00:00Z\n  sockets: [/run/db.sock]\n  credentials",
		"ports: [8443]", "ports: [8443], tls: {originate: true}",
		"never: [{id: private, addresses: [192.168.0.0/16], hosts: [internal.example]}]", "never: [{id: private, hosts: [internal.example]}]",
	).Replace(provedBefore)
}

// shellWords splits a printed command line as a shell does. Only single quotes are used.
func shellWords(line string) (out []string) {
	word, quoted, begun := "", false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'':
			quoted, begun = !quoted, true
		case c == '\\' && !quoted && i+1 < len(line):
			i++
			word += string(line[i])
		case c == ' ' && !quoted:
			if begun {
				out = append(out, word)
			}
			word, begun = "", false
		default:
			word, begun = word+string(c), true
		}
	}
	if begun {
		out = append(out, word)
	}
	return out
}

// runCommand runs a command and returns its standard output and its status.
func runCommand(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := execute(context.Background(), args, strings.NewReader(""), &stdout, &stderr)
	if status == exitFailure || status == exitUsage {
		t.Fatalf("chaperone %q failed with %d: %s", args, status, stderr.String())
	}
	return stdout.String(), status
}

// explainedAt runs the arguments of a finding with a configuration.
func explainedAt(t *testing.T, config string, args []string) (explained, string) {
	t.Helper()
	out, _ := runCommand(t, append([]string{"explain", "--output", "json", "--config", config}, args...)...)
	var e explained
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("explain %q: %v", args, err)
	}
	return e, out
}

func writeProved(t *testing.T) (before, after string) {
	dir := t.TempDir()
	before, after = filepath.Join(dir, "it's old.yaml"), filepath.Join(dir, "new.yaml")
	for path, text := range map[string]string{before: provedBefore, after: provedAfter()} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return before, after
}

// TestFindingsAreExplained: the request of each finding, pasted into explain with either
// configuration, has the decision that the finding states.
func TestFindingsAreExplained(t *testing.T) {
	before, after := writeProved(t)
	out, status := runCommand(t, "policy", "prove", "--old", before, "--new", after, "--at", "2026-12-01T12:00:00Z", "--output", "json")
	var report prove.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || status != exitWider {
		t.Fatalf("prove ended with %d, %v: %s", status, err, out)
	}
	kinds, doors := map[prove.Kind]bool{}, map[string]bool{}
	for _, d := range report.Claims[0].Findings {
		kinds[d.Kind], doors[d.Door] = true, true
		was, wasText := explainedAt(t, before, d.Explain)
		is, isText := explainedAt(t, after, d.Explain)
		if was.Allowed != d.Old.Allowed || was.Reason != d.Old.Reason {
			t.Errorf("%q was %s, want %s as in the finding %+v", d.Explain, was.Reason, d.Old.Reason, d)
		}
		if is.Allowed != d.New.Allowed || is.Reason != d.New.Reason {
			t.Errorf("%q is %s, want %s as in the finding %+v", d.Explain, is.Reason, d.New.Reason, d)
		}
		if wasText == isText {
			t.Errorf("explain shows no difference of the finding %+v: %s", d, isText)
		}
	}
	for _, k := range []prove.Kind{prove.KindAccess, prove.KindCredential, prove.KindAddress, prove.KindTerms, prove.KindLimit, prove.KindSocket} {
		if !kinds[k] {
			t.Errorf("no finding is of kind %s, want each to be explained", k)
		}
	}
	if len(doors) < 3 {
		t.Errorf("the doors of findings are %v, want some that cannot enforce a condition", doors)
	}
}

// TestPrintedFindings runs the command lines that the tables print.
func TestPrintedFindings(t *testing.T) {
	before, after := writeProved(t)
	for _, args := range [][]string{{"policy", "prove", "--old", before, "--new", after}, {"policy", "diff", before, after}, {"policy", "diff", after, before}} {
		out, _ := runCommand(t, append(args, "--at", "2026-12-01T12:00:00Z")...)
		lines := 0
		for line := range strings.Lines(out) {
			words := shellWords(strings.TrimSpace(line))
			if len(words) < 2 || words[0] != "chaperone" || words[1] != "explain" {
				continue
			}
			lines++
			if out, status := runCommand(t, words[1:]...); status != 0 || !strings.HasPrefix(out, "allowed:") {
				t.Errorf("%q is %d, %s, want allowed on the side that it names", words, status, out)
			}
		}
		if lines < 5 {
			t.Errorf("%q printed %d commands, want some", args, lines)
		}
	}
}

// TestDiffJSON keeps the names of the answer.
func TestDiffJSON(t *testing.T) {
	before, after := writeProved(t)
	out, status := runCommand(t, "policy", "diff", before, after, "--output", "json", "--at", "2026-12-01T12:00:00Z")
	var report diff.Report
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&report); err != nil || status != exitWider || report.Verdict != diff.Wider {
		t.Errorf("diff ended with %d, %v, %s, want a wider report", status, err, report.Verdict)
	}
}
