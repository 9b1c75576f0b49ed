package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

const observed = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-01-31T00:00:00Z
  rules:
  - {id: all, reason: recorded, to: {hosts: [api.weather.example, hooks.weather.example]}, methods: ["*"], paths: ["/**"]}
`

// record writes the audit log of a plugin with some accesses, and returns its folder.
func record(t *testing.T, accesses ...string) string {
	t.Helper()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	grant := filepath.Join(dir, "grant.yaml")
	if err := os.WriteFile(grant, []byte(observed), 0o600); err != nil {
		t.Fatal(err)
	}
	subjects, err := policy.Load(now, policy.Options{}, grant)
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(audit.Config{StateDir: dir, FullPaths: func() bool { return true }, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	engine := &authz.Engine{}
	engine.Install(subjects[0].Policy)
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range accesses {
		req, err := policy.Request("weather", policy.ParseWords(text))
		if err != nil {
			t.Fatal(err)
		}
		admission, err := gate.Admit(t.Context(), req, authz.Source{Door: authz.DoorProxy, UID: -1})
		if err != nil || admission.Refusal != nil {
			t.Fatal(err, admission)
		}
		if err := admission.End(authz.Outcome{}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestInitFromRecording makes a manifest from an audit log; one whose chain is broken is refused.
func TestInitFromRecording(t *testing.T) {
	dir := record(t, "GET https://api.weather.example/v1/forecast/oslo", "POST https://hooks.weather.example/e")
	log := filepath.Join(dir, "audit.jsonl")
	run := func(args ...string) (string, string, int) {
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), args, strings.NewReader(""), &stdout, &stderr, testClock)
		return stdout.String(), stderr.String(), status
	}
	out, errs, status := run("plugin", "init", "--log", log)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	for _, want := range []string{`metadata: {name: "weather"}`, `hosts: ["hooks.weather.example"]`, `paths: ["/v1/forecast/oslo"]`, "# 1 access, at most 1 in one minute."} {
		if !strings.Contains(out, want) {
			t.Errorf("the manifest has no %q:\n%s", want, out)
		}
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, bytes.Replace(data, []byte("oslo"), []byte("rome"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, status := run("plugin", "init", "--log", log); status != 1 || errs == "" {
		t.Errorf("a log that was changed: status %d: %s", status, errs)
	}
}
