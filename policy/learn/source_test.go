package learn_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// record is one record of a log, at a time after noon.
type record struct {
	after  time.Duration
	kind   authz.Kind // decision by default
	reason string     // observed by default
	path   string
	plugin string // weather by default
	end    string // the reason of the end, if it refuses
	host   string // api.example by default
}

// writeLog writes a log, and returns its path.
func writeLog(t testing.TB, full bool, records ...record) string {
	t.Helper()
	dir := t.TempDir()
	now := noon
	log, err := audit.Open(audit.Config{StateDir: dir, Keep: -1, FullPaths: func() bool { return full }, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	write := func(r authz.Record) {
		if err := log.Record(&r); err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range records {
		now = noon.Add(r.after)
		line := authz.Record{Time: now, Kind: or(r.kind, authz.KindDecision), Plugin: or(r.plugin, "weather"), Door: authz.DoorProxy, UID: -1}
		if line.Kind != authz.KindDecision {
			write(line)
			continue
		}
		line.Decision, line.Reason = fmt.Sprintf("id-%d", i), or(r.reason, "observed")
		line.Allowed = line.Reason == "observed" || line.Reason == "granted"
		line.Method, line.Scheme, line.Host, line.Port, line.Path = "GET", "https", or(r.host, "api.example"), 443, r.path
		if line.Reason == "granted" {
			line.Grant, line.Rule = "weather", "read"
		}
		write(line)
		if line.Allowed {
			line.Kind, line.Allowed, line.Reason = authz.KindEnd, r.end == "", or(r.end, line.Reason)
			write(line)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, audit.DefaultFile)
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

const presentGrant = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-06-01T00:00:00Z
  rules:
  - {id: read, reason: a test, to: {hosts: [api.example]}, methods: [GET], paths: [/granted]}
---
apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never: [{id: evil, hosts: [evil.example]}]
  ceilings: {methods: [GET]}
`

func present(t testing.TB) *policy.Subject {
	t.Helper()
	file := filepath.Join(t.TempDir(), "grant.yaml")
	if err := os.WriteFile(file, []byte(presentGrant), 0o600); err != nil {
		t.Fatal(err)
	}
	subjects, err := policy.Load(noon, policy.Options{}, file)
	if err != nil {
		t.Fatal(err)
	}
	return &subjects[0]
}

// TestRead checks which accesses of a log are learned, and how the others are reported.
func TestRead(t *testing.T) {
	const late = 3 * time.Hour
	a := record{path: "/a"}
	tests := map[string]struct {
		records []record
		present bool
		masked  bool
		plugin  string
		want    string // the rules
		lines   string // a line of what was left out
		err     string
	}{
		"observed and granted": {records: []record{a, {path: "/b", reason: "granted"}}, want: "GET api.example /a /b"},
		"refused":              {records: []record{a, {path: "/b", reason: "path_not_granted"}}, want: "GET api.example /a", lines: "Left out: 1 accesses that were refused"},
		"refused at its end":   {records: []record{a, {path: "/b", end: "address_not_allowed"}}, want: "GET api.example /a", lines: "1 accesses that were refused"},
		"granted already":      {records: []record{a, {path: "/granted", reason: "granted"}}, present: true, want: "GET api.example /a", lines: "1 accesses that the present grants allow"},
		"a guardrail at present": {
			records: []record{a, {path: "/b", host: "evil.example"}}, present: true, want: "GET api.example /a",
			lines: "1 accesses to hosts that a guardrail refuses",
		},
		"a guardrail then": {
			records: []record{a, {path: "/b", host: "evil.example"}, {path: "/c", host: "evil.example", end: "guardrail"}}, want: "GET api.example /a",
			lines: `1 accesses to hosts that a guardrail refuses, or that were sent a placeholder in the wrong place: "evil.example"`,
		},
		"a misplaced placeholder": {
			records: []record{a, {path: "/b", after: late}, {path: "/c", after: late, host: "paste.example", reason: "credential_misplaced"}, {path: "/d", after: 2 * late, host: "paste.example"}},
			want:    "GET api.example /a", lines: "(credential_misplaced)",
		},
		"an echo": {
			records: []record{a, {path: "/b", after: late - time.Hour}, {after: late, kind: authz.KindEcho}, {path: "/c", after: late + time.Hour}, {path: "/d", after: late + time.Hour + time.Second}},
			want:    "GET api.example /a /d", lines: "Left out: 2 accesses within 1h0m0s of a suspicious event: 2026-12-01T14:00:00Z to 2026-12-01T16:00:00Z (echo)",
		},
		"a revocation": {records: []record{a, {after: late, kind: authz.KindRevocation}, {path: "/c", after: late}}, want: "GET api.example /a", lines: "(revocation)"},
		"of another plugin": {
			records: []record{a, {kind: authz.KindRevocation, plugin: "mail"}}, plugin: "weather", want: "GET api.example /a",
		},
		"two plugins":   {records: []record{a, {path: "/b", plugin: "mail"}}, err: `the log has accesses of "weather" and "mail"; name one with --plugin`},
		"one of two":    {records: []record{a, {path: "/b", plugin: "mail"}}, plugin: "weather", want: "GET api.example /a"},
		"masked":        {records: []record{a}, masked: true, err: "1 allowed accesses have masked paths, whose spelling is not known; set audit: {paths: full} while observing"},
		"none":          {err: "no access to learn from: the log has none"},
		"all refused":   {records: []record{{reason: "no_grant", path: "/a"}}, err: "no access to learn from: all 1 recorded accesses were refused"},
		"all granted":   {records: []record{{reason: "granted", path: "/granted"}}, present: true, err: "no access to learn from: the present grants allow all 1"},
		"all left out":  {records: []record{a, {kind: authz.KindEcho}}, err: "no access to learn from; Left out: 1 accesses within 1h0m0s"},
		"escaped hosts": {records: []record{a, {host: "e\x1b[2J\n- x", path: "/", reason: "guardrail"}}, want: "GET api.example /a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			source := learn.Source{Log: accesslog.Options{Paths: []string{writeLog(t, !test.masked, test.records...)}, Plugin: test.plugin}, Now: noon}
			if test.present {
				source.Present = present(t)
			}
			l, found, err := learn.Read(context.Background(), source)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want an error with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			with := terms
			with.Present = source.Present
			if got := summarise(l.Propose(with)); got != test.want {
				t.Errorf("learned\n%s\nwant\n%s", got, test.want)
			}
			if lines := strings.Join(found.Lines(), "\n"); !strings.Contains(lines, test.lines) || strings.Contains(lines, "\x1b") {
				t.Errorf("got\n%s\nwant %q in it", lines, test.lines)
			}
		})
	}
}

func TestReadStdin(t *testing.T) {
	_, _, err := learn.Read(context.Background(), learn.Source{Log: accesslog.Options{Paths: []string{"-"}}})
	if err == nil || errors.Is(err, learn.ErrNothing) {
		t.Errorf("got %v, want an error that names standard input", err)
	}
}

// TestAgainst compares a proposal with the present policy.
func TestAgainst(t *testing.T) {
	subject := present(t)
	with := terms
	with.Present = subject
	l := learn.New()
	for _, a := range accesses(t, "GET https://api.example/a", "GET https://new.example/b") {
		l.Add(a)
	}
	p := l.Propose(with)
	if got, want := fmt.Sprint(p.Rules[0].To.Hosts, p.Rules[0].Undeclared, p.Rules[1].To.Hosts, p.Rules[1].Undeclared), "[new.example] true [api.example] false"; got != want {
		t.Errorf("got rules for %s, want %s: undeclared hosts first", got, want)
	}
	lines, err := p.Against(context.Background(), subject, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Becomes possible: GET https://api.example/a", "Becomes possible: GET https://new.example/b"} {
		if !strings.Contains(strings.Join(lines, "\n"), want) {
			t.Errorf("got %q, want %q in it", lines, want)
		}
	}
	l = learn.New()
	l.Add(accesses(t, "POST https://api.example/a")[0])
	if lines, err = l.Propose(with).Against(context.Background(), subject, noon); err != nil || !strings.Contains(strings.Join(lines, "\n"), "Not valid beside the present grants and guardrails: spec.rules[0].methods[0]") {
		t.Errorf("got %q and %v, want the ceiling's refusal", lines, err)
	}
}
