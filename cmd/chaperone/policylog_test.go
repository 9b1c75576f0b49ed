package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

const loggedGrant = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: %[1]s}
spec:
  plugin: %[1]s
  notAfter: 2099-01-01T00:00:00Z
  rules:
  # The forecast.
  - {id: read, reason: A test, to: {hosts: [api.example, old.example]}, methods: [GET], paths: ["/v1/*"]} # keep
  - id: idle
    reason: A test
    to: {hosts: [idle.example]}
    methods: [GET]
    paths: [/]
`

// logged writes the Sidecar and the grant of a plugin, and a log of 100 days up to the present
// in which the grant was in force and paths were fetched.
func logged(t *testing.T, e *env, plugin string, full bool, paths ...string) {
	t.Helper()
	state := e.File(plugin + "/state")
	testenv.Must(t, os.MkdirAll(state, 0o700))
	grant := fmt.Sprintf(loggedGrant, plugin)
	e.Write(plugin+"/grant.yaml", grant)
	e.Write(plugin+"/sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: %[1]s}
spec:
  plugin: %[1]s
  grants: [grant.yaml]
  stateDir: state
  kernel: "off"
  listen: {proxy: "127.0.0.1:0"}
`, plugin))
	const days = 100
	now := time.Now().Add(-days * 24 * time.Hour)
	log := testenv.MustGet(audit.Open(audit.Config{StateDir: state, Keep: -1, FullPaths: func() bool { return full }, Now: func() time.Time { return now }}))(t)
	record := func(r authz.Record) {
		t.Helper()
		r.Time, r.UID, r.Plugin = now, -1, plugin
		testenv.Must(t, log.Record(&r))
	}
	sum := sha256.Sum256([]byte(grant))
	record(authz.Record{Kind: authz.KindReload, Allowed: true, Files: map[string]string{"grant.yaml": hex.EncodeToString(sum[:])}})
	for i, path := range paths {
		now = now.Add(time.Hour)
		r := authz.Record{
			Kind: authz.KindDecision, Door: authz.DoorProxy, Decision: fmt.Sprint(i), Allowed: true, Reason: "observed",
			Method: "GET", Scheme: "https", Host: "api.example", Port: 443, Path: path, Protocol: "http/1.1",
		}
		if strings.HasPrefix(path, "/v1/") {
			r.Reason, r.Grant, r.Rule, r.Pattern = "granted", plugin, "read", "/v1/*"
		}
		record(r)
	}
	for time.Since(now) > 7*24*time.Hour { // the plugin starts each week
		now = now.Add(7 * 24 * time.Hour)
		record(authz.Record{Kind: authz.KindProcess})
	}
	now = time.Now()
	record(authz.Record{Kind: authz.KindProcess})
	testenv.Must(t, log.Close())
}

// TestPolicyLearnCommand checks the files and the messages of policy learn.
func TestPolicyLearnCommand(t *testing.T) {
	e := bareEnv(t, t.TempDir())
	logged(t, e, "weather", true, "/v1/a", "/users/1", "/users/2", "/users/3")
	logged(t, e, "masked", false, "/users/1")
	learn := []string{"policy", "learn", "--config", "weather/sidecar.yaml"}
	r := e.Chaperone(append(learn, "-o", "learned.yaml")...)
	if r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	scenario.Contains(t, r.Stdout, "Becomes possible: GET https://api.example/users/", "1 rule in learned.yaml: state the reasons, then chaperone check learned.yaml", "Left out: 1 accesses that the present grants allow")
	first := e.Read("learned.yaml")
	scenario.Contains(t, first, "reason: TODO", `- "/users/*" # * for integers, as in "1", "2", "3"`, `name: "weather-learned"`)
	if r := e.Chaperone(append(learn, "-o", "learned.yaml")...); r.Status != exitFailure || !strings.Contains(r.Stderr, "learned.yaml exists; name another file, or replace it with --force") {
		t.Errorf("a second time: status %d\n%s", r.Status, r.Stderr)
	}
	if r := e.Chaperone(append(learn, "-o", "learned.yaml", "--force", "--name", "other")...); r.Status != 0 || !strings.Contains(e.Read("learned.yaml"), `name: "other"`) {
		t.Errorf("with --force: status %d\n%s", r.Status, r.Stderr)
	}
	var report struct {
		Grant    struct{ Rules []struct{ Paths []string } }
		Evidence []struct{ Accesses int }
	}
	r = e.Chaperone(append(learn, "--output", "json")...)
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || len(report.Evidence) != 1 || report.Evidence[0].Accesses != 3 || report.Grant.Rules[0].Paths[0] != "/users/*" {
		t.Errorf("got %+v, %v of\n%s%s", report, err, r.Stdout, r.Stderr)
	}
	for _, test := range []struct {
		status int
		want   string
		args   []string
	}{
		{exitFailure, "1 allowed accesses have masked paths", []string{"--config", "masked/sidecar.yaml"}},
		{exitUsage, "takes LOG, or --config", nil},
		{exitUsage, "--since", []string{"--since", "yesterday", "weather/state"}},
		{exitFailure, `the log has accesses of "weather" and "masked"`, []string{"weather/state", "masked/state"}},
		{exitFailure, "no such file", []string{"none.jsonl"}},
		{exitUsage, "name a grant and a plugin", []string{"--name", "A b", "weather/state/audit.jsonl"}},
		{exitUsage, "say one", []string{"--output", "json", "-o", "x", "weather/state/audit.jsonl"}},
	} {
		if r := e.Chaperone(append([]string{"policy", "learn"}, test.args...)...); r.Status != test.status || !strings.Contains(r.Stderr, test.want) {
			t.Errorf("policy learn %s: status %d\n%s\nwant status %d and %q", test.args, r.Status, r.Stderr, test.status, test.want)
		}
	}
}

// TestPolicyUnusedCommand compares the rules of two sidecars at once with their logs, then
// tightens one, and undoes it.
func TestPolicyUnusedCommand(t *testing.T) {
	e := bareEnv(t, t.TempDir())
	logged(t, e, "weather", true, "/v1/a", "/v1/b", "/users/1")
	logged(t, e, "mail", false, "/v1/a")
	r := e.Chaperone("policy", "unused", "--config", ".", "-R")
	if r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	scenario.Contains(t, r.Stdout, "plugin weather (", "plugin mail (", "plugin weather made 1 accesses that no rule allows today")
	lines := map[string]string{}
	for line := range strings.Lines(r.Stdout) {
		if name, rest, ok := strings.Cut(line, " "); ok {
			lines[name] = strings.Join(strings.Fields(rest), " ")
		}
	}
	for rule, want := range map[string]string{
		"weather/read": "used api.example, GET, /v1/* (2 different) old.example",
		"weather/idle": "0 - - unused none idle.example, GET, /",
		"mail/read":    "used api.example, GET, /v1/* (1 different) old.example",
	} {
		if !strings.HasSuffix(lines[rule], want) {
			t.Errorf("rule %s: got %q, want it to end in %q\n%s", rule, lines[rule], want, r.Stdout)
		}
	}
	r = e.Chaperone("policy", "unused", "--config", "weather/sidecar.yaml", "--after", "101d")
	scenario.Contains(t, r.Stdout, "not proved unused", "is read for 100d", "and 101d are needed")

	tighten := []string{"policy", "tighten", "--config", "weather/sidecar.yaml"}
	before := e.Read("weather/grant.yaml")
	r = e.Chaperone(tighten...)
	scenario.Contains(t, r.Stdout, `-  - {id: read, reason: A test, to: {hosts: [api.example, old.example]}`, `+  - {id: read, reason: A test, to: {hosts: [api.example]}`, "+    notAfter: ")
	scenario.Contains(t, r.Stderr, "proved narrower; ", "weather/idle: to be removed; it ends at ", "weather/read: remove hosts old.example")
	if r.Status != 0 || e.Read("weather/grant.yaml") != before {
		t.Errorf("without --write: status %d, grant\n%s", r.Status, e.Read("weather/grant.yaml"))
	}
	r = e.Chaperone(append(tighten, "--write")...)
	after := e.Read("weather/grant.yaml")
	if r.Status != 0 || after == before || !strings.Contains(after, "# keep") || !strings.Contains(after, "# The forecast.") {
		t.Errorf("with --write: status %d\n%s%s\n%s", r.Status, r.Stdout, r.Stderr, after)
	}
	if r := e.Chaperone("check", "weather"); r.Status != 0 {
		t.Errorf("check: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	copies, _ := filepath.Glob(e.File("weather/grant.yaml.before-tighten-*"))
	if len(copies) != 1 || !strings.Contains(r.Stdout, "to undo: mv "+copies[0]+" ") {
		t.Errorf("got copies %v and\n%s, want one with the command that undoes the edit", copies, r.Stdout)
	}
	// The file as it is now was never in force: nothing is proved of it any more.
	r = e.Chaperone(tighten...)
	scenario.Contains(t, r.Stderr, "no part of a rule is proved unused, and no file is changed", "does not record that")
	if r := e.Chaperone("policy", "tighten"); r.Status != exitUsage {
		t.Errorf("without --config: status %d, want %d", r.Status, exitUsage)
	}
}
