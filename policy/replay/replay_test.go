package replay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/replay"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

const plugin = "weather"

// segments are the literals of generated paths: of several lengths, with an encoded slash,
// and one in the form of a mask.
var segments = []string{"a", "b", "long-segment", "d%2Fe", "~AAAAAAAAAAAAAAAA", "~AAAAAAAAAAAAAAAA%2F"}

// between returns an instant between two of the requests, which are at whole seconds.
func between(seconds int) time.Time {
	return noon.Add(time.Duration(seconds)*time.Second + time.Second/2)
}

func drawPattern(t *rapid.T) string {
	var out []string
	for range rapid.IntRange(0, 3).Draw(t, "segments") {
		out = append(out, rapid.SampledFrom(append(segments, "*", "*")).Draw(t, "segment"))
	}
	switch rapid.IntRange(0, 3).Draw(t, "end") {
	case 0:
		out = append(out, "**")
	case 1:
		if len(out) > 0 {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

func drawRule(t *rapid.T, id string) authz.Rule {
	r := authz.Rule{
		ID: id, Reason: "a test", EncodedSlash: "allow",
		To: authz.To{
			Hosts: []string{rapid.SampledFrom([]string{"h.example", "*.example", "**.example"}).Draw(t, "host")},
			TLS:   authz.TLS{Originate: rapid.Bool().Draw(t, "originate")},
		},
		Methods: []string{rapid.SampledFrom([]string{"GET", "POST", "*"}).Draw(t, "method")},
		Paths:   rapid.SliceOfNDistinct(rapid.Custom(drawPattern), 1, 3, rapid.ID[string]).Draw(t, "paths"),
	}
	if !strings.Contains(strings.Join(r.Paths, ""), "%2F") && rapid.Bool().Draw(t, "refuse") {
		r.EncodedSlash = "refuse"
	}
	if rapid.IntRange(0, 3).Draw(t, "observe") == 0 {
		r.Mode, r.ObserveUntil = authz.ModeObserve, between(rapid.IntRange(-5, 30).Draw(t, "until"))
	}
	if rapid.IntRange(0, 3).Draw(t, "expires") == 0 {
		r.NotAfter = between(rapid.IntRange(1, 30).Draw(t, "notAfter"))
	}
	if rapid.Bool().Draw(t, "timeout") {
		r.Timeout = authz.Duration(time.Second)
	}
	if rapid.Bool().Draw(t, "upgrade") {
		r.Upgrades = []string{"websocket"}
	}
	return r
}

// drawPolicy draws a policy that compiles.
func drawPolicy(t *rapid.T, label string) policy.Subject {
	in := authz.Input{Plugin: plugin}
	for g := range rapid.IntRange(0, 2).Draw(t, label) {
		grant := authz.Grant{Name: fmt.Sprintf("grant-%d", g), Plugin: plugin, NotAfter: noon.Add(time.Hour)}
		for r := range rapid.IntRange(1, 4).Draw(t, "rules") {
			grant.Rules = append(grant.Rules, drawRule(t, fmt.Sprintf("rule-%d", r)))
		}
		in.Grants = append(in.Grants, grant)
	}
	if rapid.IntRange(0, 9).Draw(t, "sidecar observes") == 0 {
		in.Observe, in.ObserveUntil = true, between(15)
	}
	if rapid.IntRange(0, 4).Draw(t, "never") == 0 {
		in.Guardrails = []authz.Guardrail{{Name: "company", Plugins: []string{"**"}, Never: []authz.Never{{ID: "no", Hosts: []string{"x.example"}}}}}
	}
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		t.Fatalf("policy does not compile: %+v", problems)
	}
	s := policy.Subject{Plugin: plugin, Path: label, Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	return s
}

func drawRequest(t *rapid.T) authz.Request {
	var out []string
	for range rapid.IntRange(0, 4).Draw(t, "path") {
		out = append(out, rapid.SampledFrom(append(segments, "other", "q%2Fr")).Draw(t, "segment"))
	}
	if len(out) > 0 && rapid.Bool().Draw(t, "slash") {
		out = append(out, "")
	}
	if rapid.IntRange(0, 20).Draw(t, "deep") == 0 {
		out = append(slices.Repeat([]string{"deep"}, 18), out...)
	}
	method := rapid.SampledFrom([]string{"GET", "POST", "TRACE"}).Draw(t, "method")
	scheme := rapid.SampledFrom([]string{"https", "http"}).Draw(t, "scheme")
	host := rapid.SampledFrom([]string{"h.example", "x.example", "y.x.example", "other.test"}).Draw(t, "host")
	upgrade := rapid.SampledFrom([]string{"", "", "websocket"}).Draw(t, "upgrade")
	req, err := policy.Request(plugin, policy.Words{Method: method, URL: scheme + "://" + host + "/" + strings.Join(out, "/") + "?q=1", Upgrade: upgrade})
	if err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 3).Draw(t, "door") == 0 {
		req.Unenforceable = authz.ConditionTimeout | authz.ConditionCertificate
	}
	return req
}

// failer ends a test, be it Go's or rapid's.
type failer interface{ Fatal(args ...any) }

// record has a gate decide the requests, one a second, and returns the log's folder.
func record(tb failer, dir string, s policy.Subject, requests []authz.Request, full bool) {
	now := noon
	log, err := audit.Open(audit.Config{StateDir: dir, FullPaths: func() bool { return full }, Now: func() time.Time { return now }})
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	engine := &authz.Engine{}
	engine.Install(s.Policy)
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Now: func() time.Time { return now }})
	if err != nil {
		tb.Fatal(err)
	}
	for i, req := range requests {
		now = noon.Add(time.Duration(i) * time.Second)
		a, err := gate.Admit(context.Background(), req, authz.Source{Door: authz.DoorProxy, UID: -1})
		if err != nil {
			tb.Fatal(err)
		}
		if a.Refusal == nil {
			if err := a.End(authz.Outcome{}); err != nil {
				tb.Fatal(err)
			}
		}
	}
}

// replayed returns the result of replaying the log in a folder under a policy.
func replayed(tb failer, dir string, s policy.Subject) replay.Result {
	reader, err := accesslog.Open(accesslog.Options{Paths: []string{filepath.Join(dir, audit.DefaultFile)}})
	if err != nil {
		tb.Fatal(err)
	}
	r, err := replay.New([]policy.Subject{s}, replay.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	for a, err := range reader.Accesses(context.Background()) {
		if err != nil {
			tb.Fatal(err)
		}
		if err := r.Take(a); err != nil {
			tb.Fatal(err)
		}
	}
	return r.Result()
}

// counts are the numbers of a result.
type counts struct {
	Breaks, Widens, Changed, Unchanged, OtherReason int
	NotReplayable                                   map[string]int
}

func countsOf(r replay.Result) counts {
	return counts{replay.Total(r.Breaks), replay.Total(r.Widens), replay.Total(r.Changed), r.Unchanged, replay.Total(r.OtherReason), r.NotReplayable}
}

// expected compares the decisions of two policies themselves.
func expected(before, after policy.Subject, requests []authz.Request, masked bool) counts {
	c := counts{NotReplayable: map[string]int{}}
	for i, req := range requests {
		if n := strings.Count(req.Destination.Path(), "/"); masked && n > 17 {
			c.NotReplayable[accesslog.TruncatedField]++
			continue
		}
		at := noon.Add(time.Duration(i) * time.Second)
		was, now := before.Snapshot.Decide(req, authz.Usage{}, at), after.Snapshot.Decide(req, authz.Usage{}, at)
		same := was.Reason == now.Reason && was.Grant == now.Grant && was.Rule == now.Rule
		switch {
		case was.Allowed() && !now.Allowed():
			c.Breaks++
		case !was.Allowed() && now.Allowed():
			c.Widens++
		case same:
			c.Unchanged++
		case !was.Allowed():
			c.Unchanged++
			c.OtherReason++
		default:
			c.Changed++
		}
	}
	return c
}

// TestReplay: the replay of a log, masked or not, under its own policy changes nothing,
// and under another one what the two decide differently.
func TestReplay(t *testing.T) {
	temp, logs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawPolicy(t, "before"), drawPolicy(t, "after")
		requests := rapid.SliceOfN(rapid.Custom(drawRequest), 1, 40).Draw(t, "requests")
		for _, full := range []bool{true, false} {
			logs++
			dir := filepath.Join(temp, strconv.Itoa(logs))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			record(t, dir, before, requests, full)
			for name, s := range map[string]policy.Subject{"itself": before, "another policy": after} {
				got, want := countsOf(replayed(t, dir, s)), expected(before, s, requests, !full)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("replay under %s, full paths %v (-want +got):\n%s", name, full, diff)
				}
			}
		}
	})
}

// TestMaskedPrecedence: of two masked literals the longer as written wins, as in the
// policy, although masks are equally long.
func TestMaskedPrecedence(t *testing.T) {
	rule := func(id string, paths ...string) authz.Rule {
		return authz.Rule{
			ID: id, Reason: "a test", To: authz.To{Hosts: []string{"h.example"}}, Methods: []string{"GET"}, Paths: paths, EncodedSlash: "allow",
		}
	}
	in := authz.Input{Plugin: plugin, Grants: []authz.Grant{{
		Name: "weather", Plugin: plugin, NotAfter: noon.Add(time.Hour),
		Rules: []authz.Rule{rule("z", "/*/forecast/**"), rule("b", "/v1/*/**"), rule("a", "/x%2Fy/*/*"), rule("c", "/*/abcdefg/*")},
	}}}
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := policy.Subject{Plugin: plugin, Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	var requests []authz.Request
	for path, want := range map[string]string{
		"/v1/forecast/": "z", "/v1/forecast/berlin": "z", "/v1/now/": "b", "/x%2Fy/abcdefg/1": "c", "/x%2Fy/abcdef/1": "a", "/v1/abcdefg/1": "c",
	} {
		req, err := policy.Request(plugin, policy.Words{Method: "GET", URL: "https://h.example" + path, Upgrade: ""})
		if err != nil {
			t.Fatal(err)
		}
		if d := s.Snapshot.Decide(req, authz.Usage{}, noon); d.Rule != want {
			t.Errorf("%s: got rule %q, want %s", path, d.Rule, want)
		}
		requests = append(requests, req)
	}
	dir := t.TempDir()
	record(t, dir, s, requests, false)
	if r := replayed(t, dir, s); r.Unchanged != len(requests) {
		t.Errorf("got %+v, want %d unchanged", r, len(requests))
	}
	if err := os.Remove(filepath.Join(dir, "audit.key")); err != nil {
		t.Fatal(err)
	}
	if r := replayed(t, dir, s); r.NotReplayable[accesslog.MaskedPath] != len(requests) {
		t.Errorf("without the key: got %+v, want all %s", r, accesslog.MaskedPath)
	}
}
