package usage_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

const grantText = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-06-01T00:00:00Z
  rules:
  - id: read
    reason: a test
    to: {hosts: [api.example, other.example, "*.tiles.example"]}
    methods: [GET, HEAD]
    paths: ["/v1/*", /v1/fixed, /never]
    limits: {requests: 10/1h}
  - {id: idle, reason: a test, to: {hosts: [idle.example]}, methods: [GET], paths: [/]}
  limits: {requests: 1000}
`

// access is one access, a number of days before noon.
type access struct {
	daysAgo int
	path    string
	host    string
	grant   bool   // the grant's own decision; otherwise observed
	refused string // the reason for which it was refused although the rule matches
}

// history is what a log holds.
type history struct {
	days     int // how far it goes back
	accesses []access
	full     bool
	loadedAt int  // days ago the grant's file was loaded, as it is or as changed
	changed  bool // it was loaded with another content
	lost     bool // a record states that others were lost
	noKey    bool // the key is removed
	now      time.Time
	since    time.Time
	until    time.Time
	none     bool // no record of the plugin at all
	silent   bool // the sidecar did not run between its records
}

// write writes the grant and the log, and returns their paths.
func (h history) write(t *testing.T) (grant, log string) {
	t.Helper()
	dir := t.TempDir()
	grant = filepath.Join(dir, "grant.yaml")
	if err := os.WriteFile(grant, []byte(grantText), 0o600); err != nil {
		t.Fatal(err)
	}
	content := grantText
	if h.changed {
		content += "# older"
	}
	sum := sha256.Sum256([]byte(content))
	now := noon.Add(-time.Duration(h.days) * day)
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(audit.Config{StateDir: state, Keep: -1, FullPaths: func() bool { return h.full }, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	record := func(r authz.Record) {
		t.Helper()
		r.Time, r.UID = now, -1
		if err := l.Record(&r); err != nil {
			t.Fatal(err)
		}
	}
	name := "weather"
	if h.none {
		name = "mail"
	}
	// advance records a start of the plugin each week, as a sidecar that runs does.
	advance := func(to time.Time) {
		for !h.silent && to.Sub(now) > 7*day {
			now = now.Add(7 * day)
			record(authz.Record{Kind: authz.KindProcess, Plugin: name})
		}
		now = to
	}
	record(authz.Record{Kind: authz.KindProcess, Plugin: name})
	advance(noon.Add(-time.Duration(h.loadedAt) * day))
	if h.loadedAt > 0 {
		record(authz.Record{Kind: authz.KindReload, Plugin: name, Allowed: true, Files: map[string]string{"grant.yaml": hex.EncodeToString(sum[:])}})
	}
	for i, a := range h.accesses {
		advance(noon.Add(-time.Duration(a.daysAgo) * day))
		r := authz.Record{
			Kind: authz.KindDecision, Plugin: name, Door: authz.DoorProxy, Decision: fmt.Sprint(i), Allowed: true, Reason: "observed",
			Method: "GET", Scheme: "https", Host: a.host, Port: 443, Path: a.path,
		}
		if r.Host == "" {
			r.Host = "api.example"
		}
		if a.grant {
			r.Reason, r.Grant, r.Rule, r.Pattern = "granted", "weather", "read", "/v1/*"
			if a.path == "/v1/fixed" {
				r.Pattern = a.path
			}
		}
		if a.refused != "" {
			r.Allowed, r.Reason = false, a.refused
		}
		record(r)
	}
	advance(noon)
	if h.lost {
		record(authz.Record{Kind: authz.KindLost, Plugin: name, Lost: 3})
	}
	record(authz.Record{Kind: authz.KindProcess, Plugin: name})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if h.noKey {
		if err := os.Remove(filepath.Join(state, "audit.key")); err != nil {
			t.Fatal(err)
		}
	}
	return grant, filepath.Join(state, audit.DefaultFile)
}

// read returns the use of the grant in a history.
func read(t *testing.T, h history) *usage.Report {
	t.Helper()
	grant, log := h.write(t)
	subjects, err := policy.Load(noon, policy.Options{}, grant)
	if err != nil {
		t.Fatal(err)
	}
	if h.now.IsZero() {
		h.now = noon
	}
	o := accesslog.Options{Paths: []string{log}, Since: h.since, Until: h.until}
	report, err := usage.Read(context.Background(), usage.Options{Log: o, Subjects: subjects, Now: h.now})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// values returns the values of a rule with their uses.
func values(r usage.Rule) string {
	var out []string
	for _, v := range r.Values {
		out = append(out, fmt.Sprintf("%s %s %d %s", v.Field, v.Value, v.Uses, v.Verdict))
	}
	return strings.Join(out, "\n")
}

var year = history{days: 365, loadedAt: 360, full: true, accesses: []access{
	{daysAgo: 100, path: "/v1/a", grant: true},
	{daysAgo: 50, path: "/v1/fixed", grant: true},
	{daysAgo: 50, path: "/v1/b", host: "t1.tiles.example", grant: true},
	{daysAgo: 10, path: "/other"},
}}

// TestRead checks the use of each value, with full and with masked paths.
func TestRead(t *testing.T) {
	for _, full := range []bool{true, false} {
		h := year
		h.full = full
		report := read(t, h)
		p := report.Plugins[0]
		read := p.Rules[0]
		want := "hosts api.example 2 used\nhosts other.example 0 unused\nhosts *.tiles.example 1 used\nmethods GET 3 used\nmethods HEAD 0 unused\n" +
			"paths /v1/* 2 used\npaths /v1/fixed 1 used\npaths /never 0 unused"
		if got := values(read); got != want {
			t.Errorf("full %v: got\n%s\nwant\n%s", full, got, want)
		}
		if read.Uses != 3 || !read.First.Equal(noon.Add(-100*day)) || !read.Last.Equal(noon.Add(-50*day)) || read.Verdict != usage.Used {
			t.Errorf("full %v: got %d uses from %v to %v, %s; want 3 from 100 days to 50 days ago, used", full, read.Uses, read.First, read.Last, read.Verdict)
		}
		if got := fmt.Sprint(read.UsedAs, read.MoreUsedAs); full && got != "[/v1/a /v1/b /v1/fixed] false" || !full && got != "[/v1/fixed] false" {
			t.Errorf("full %v: got paths %s", full, got)
		}
		if idle := p.Rules[1]; idle.Verdict != usage.Unused || idle.Why != "" || idle.Position.Line != 14 {
			t.Errorf("full %v: got %s %q at %v for a rule without a use, want unused at line 14", full, idle.Verdict, idle.Why, idle.Position)
		}
		if got := fmt.Sprint(read.Limits, p.Limits); got != "[{weather/read 10/1h 2 0.2}] [{weather 1000 3 0.003}]" {
			t.Errorf("full %v: got limits %s", full, got)
		}
		// hosts 4(1+10+1) + methods 2*2 + paths 2(10+1+1), and 4+2+2 of the idle rule; used 4(1+1) + 2 + 2(2+1)
		if want := 1 - (8.0+2+6)/(48+4+24+8); fmt.Sprintf("%.4f", p.OverPrivilege) != fmt.Sprintf("%.4f", want) {
			t.Errorf("full %v: got over-privilege %.4f, want %.4f", full, p.OverPrivilege, want)
		}
		if report.Other["weather"] != 1 {
			t.Errorf("full %v: got %v accesses that no rule allows, want 1", full, report.Other)
		}
	}
}

// TestNeeded: an access that its rule allows and that was refused for want of a credential or
// of room is a use.
func TestNeeded(t *testing.T) {
	for _, reason := range []string{"credential_unavailable", "quota_exceeded"} {
		for _, full := range []bool{true, false} {
			h := year
			h.full, h.accesses = full, []access{{daysAgo: 50, path: "/v1/a", grant: true, refused: reason}}
			if rule := read(t, h).Plugins[0].Rules[0]; rule.Uses != 1 || rule.Verdict != usage.Used {
				t.Errorf("%s, full %v: got %d uses, %s, want 1, used", reason, full, rule.Uses, rule.Verdict)
			}
		}
	}
}

// TestProof checks that every way of not having seen a use is reported, and proves nothing.
func TestProof(t *testing.T) {
	tests := map[string]struct {
		change func(*history)
		why    string
	}{
		"a whole period":      {func(*history) {}, ""},
		"too short":           {func(h *history) { h.days, h.loadedAt, h.accesses = 80, 80, nil }, "is read for 80d, from 2026-09-12T12:00:00Z to 2026-12-01T12:00:00Z, and 90d are needed"},
		"an old copy":         {func(h *history) { h.now = noon.Add(9 * day) }, "is read up to 2026-12-01T12:00:00Z, which is more than 8d ago"},
		"since":               {func(h *history) { h.since = noon.Add(-20 * day) }, "is read for 20d, from 2026-11-11T12:00:00Z"},
		"until":               {func(h *history) { h.until = noon.Add(-300 * day) }, "is read for 65d"},
		"no key":              {func(h *history) { h.noKey = true }, "its key is not there"},
		"lost records":        {func(h *history) { h.lost = true }, "records were lost at 2026-12-01T12:00:00Z"},
		"loaded recently":     {func(h *history) { h.loadedAt = 30 }, "is in force as it is now since 2026-11-01T12:00:00Z only"},
		"loaded before":       {func(h *history) { h.changed = true }, "does not record that"},
		"loaded never":        {func(h *history) { h.loadedAt = 0 }, "does not record that"},
		"no log of a plugin":  {func(h *history) { h.none = true }, "no log has a record of plugin weather"},
		"a long silence":      {func(h *history) { h.silent = true }, "has no record from 2026-11-21 to 2026-12-01: the sidecar may not have run"},
		"an older file again": {func(h *history) { h.changed, h.loadedAt = true, 200 }, "does not record that"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := year
			test.change(&h)
			idle := read(t, h).Plugins[0].Rules[1]
			want := usage.NotProved
			if test.why == "" {
				want = usage.Unused
			}
			if idle.Verdict != want || !strings.Contains(idle.Why, test.why) {
				t.Errorf("got %s because %q, want %s because %q", idle.Verdict, idle.Why, want, test.why)
			}
		})
	}
}
