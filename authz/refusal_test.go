package authz

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRefusalBody holds the body to the contract's, byte by byte.
func TestRefusalBody(t *testing.T) {
	w := newWorld(t, input(forecast()))
	a := w.admit(t, get(t, "POST https://api.weather.example/v1/forecast/1?x=y"))
	const want = `{"type":"https://chaperone.dev/reasons/method_not_granted","title":"Method not granted","status":403,` +
		`"detail":"weather may GET https://api.weather.example/v1/forecast/*, not POST","plugin":"weather",` +
		`"decision":"ID","request":{"method":"POST","url":"https://api.weather.example/v1/forecast/1"},` +
		`"nearest":{"grant":"weather","rule":"read-forecast","differs":["method"]},` +
		`"remedy":"ask for methods: [POST] on rule read-forecast of grant weather"}` + "\n"
	if diff := cmp.Diff(want, strings.ReplaceAll(string(a.Refusal.Body()), a.ID, "ID")); diff != "" {
		t.Error(diff)
	}
	if a.Refusal.Status() != 403 || a.Refusal.RetrySeconds() != "" {
		t.Errorf("%d, %q", a.Refusal.Status(), a.Refusal.RetrySeconds())
	}
	const line = "method_not_granted: weather may GET https://api.weather.example/v1/forecast/*, not POST; ask for methods: [POST] on rule read-forecast of grant weather"
	if a.Refusal.Line() != line {
		t.Errorf("the line is %q", a.Refusal.Line())
	}
	// As little as can be, and nothing escaped for HTML.
	r := Refusal{Reason: IdentityUnknown, Decision: "id", Detail: "<&>", Method: "\xff"}
	const short = `{"type":"https://chaperone.dev/reasons/identity_unknown","title":"Identity unknown","status":403,"detail":"<&>","decision":"id","request":{"method":"` + "\\ufffd" + `"}}` + "\n"
	if diff := cmp.Diff(short, string(r.Body())); diff != "" || !json.Valid(r.Body()) {
		t.Error(diff)
	}
	if r.Line() != "identity_unknown: <&>" {
		t.Errorf("the line is %q", r.Line())
	}
	if got := string(Refusal{}.Body()); got != `{"type":"https://chaperone.dev/reasons/not_ready","title":"Not ready","status":503,"decision":""}`+"\n" {
		t.Errorf("the zero Refusal is %s", got)
	}
}

// TestReasons holds names and statuses to the contract's table.
func TestReasons(t *testing.T) {
	want := map[string]int{
		"granted": 200, "observed": 200,
		"malformed_request": 400, "destination_mismatch": 421,
		"identity_unknown": 403, "revoked": 403, "guardrail": 403,
		"no_grant": 403, "destination_not_granted": 403, "method_not_granted": 403, "path_not_granted": 403, "statement_not_granted": 403,
		"statement_unreadable": 403, "statement_too_large": 413,
		"grant_expired": 403, "address_not_allowed": 403, "credential_misplaced": 403,
		"quota_exceeded": 429, "usage_unknown": 503, "credential_unavailable": 503, "audit_unavailable": 503, "not_ready": 503,
		"upstream_unreachable": 502, "upstream_timeout": 504, "not_enforceable_here": 403,
	}
	got := map[string]int{}
	for _, r := range Reasons() {
		got[r.String()] = r.Status()
		if r.Title() == "" || r.Title()[0] < 'A' || r.Title()[0] > 'Z' {
			t.Errorf("the title of %s is %q", r, r.Title())
		}
		if r.Allowed() != (r.Status() == 200) {
			t.Errorf("%s allows: %t, with status %d", r, r.Allowed(), r.Status())
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, unheard := range []Reason{reasonCount, 255} {
		if unheard.Allowed() || unheard.String() != "not_ready" || unheard.Status() != 503 {
			t.Errorf("reason %d is %s", unheard, unheard)
		}
	}
}

func TestRetrySeconds(t *testing.T) {
	for after, want := range map[time.Duration]string{
		-1: "", 0: "", 1: "1", time.Second: "1", time.Second + 1: "2", 59*time.Second + time.Millisecond: "60",
		math.MaxInt64: "9223372037",
	} {
		if got := (Refusal{RetryAfter: after}).RetrySeconds(); got != want {
			t.Errorf("%s is %q", after, got)
		}
	}
}

// TestExplainAllowed: what is allowed is explained too.
func TestExplainAllowed(t *testing.T) {
	in := input(withKey(forecast()))
	in.Grants[0].Rules[0].Mode, in.Grants[0].Rules[0].ObserveUntil = ModeObserve, noon.Add(time.Hour)
	in.Observe, in.ObserveUntil = true, noon.Add(time.Hour)
	s := snapshot(t, in)
	for what, want := range map[string]string{
		forecastURL:                      "weather may GET https://api.weather.example/v1/forecast/berlin, by rule read-forecast of grant weather",
		"https://api.weather.example/v2": "weather may GET https://api.weather.example/v2 while rule read-forecast of grant weather observes, without a credential",
		"tcp://example.org:22":           "weather may reach tcp://example.org:22 while the sidecar observes, without a credential",
	} {
		e := s.Explain(get(t, what), Usage{}, noon)
		if e.Detail != want || e.Nearest != nil || e.Remedy != "" || e.YAML != "" {
			t.Errorf("%s: %+v", what, e)
		}
	}
}

// TestNearestIsBounded: a refusal looks at so many rules and no more.
func TestNearestIsBounded(t *testing.T) {
	g := forecast()
	for i := range 3 * maxNear {
		r := g.Rules[0]
		r.ID = "r" + strings.Repeat("x", i%200) + string(rune('a'+i%26)) + strings.Repeat("y", i/200)
		r.Paths = []string{"/only/" + r.ID}
		g.Rules = append(g.Rules, r)
	}
	s := snapshot(t, input(g))
	for _, what := range []string{forecastURL + "/nothing", "https://api.weather.exampel/", "https://x.weather.example/"} {
		if e := s.Explain(get(t, what), Usage{}, noon); e.Nearest == nil || e.Remedy == "" {
			t.Errorf("%s: %+v", what, e)
		}
	}
}

// TestNearestElsewhereIsBounded: among rules for other hosts, too.
func TestNearestElsewhereIsBounded(t *testing.T) {
	for _, test := range []struct {
		others int
		want   bool
	}{{0, true}, {maxNear - 1, true}, {maxNear, false}} {
		g := forecast()
		r := g.Rules[0]
		g.Rules[0].ID = "zz-the-one-that-is-like-it"
		for i := range test.others {
			r.ID, r.To.Hosts = fmt.Sprintf("r%d", i), []string{fmt.Sprintf("host-%d.elsewhere.test", i)}
			g.Rules = append(g.Rules, r)
		}
		e := snapshot(t, input(g)).Explain(get(t, "https://api.weather.exampel/"), Usage{}, noon)
		if (e.Nearest != nil) != test.want {
			t.Errorf("after %d other rules: %+v", test.others, e.Nearest)
		}
	}
}

func TestMistyped(t *testing.T) {
	long := strings.Repeat("a", 70)
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"api.weather.example", "api.weather.exampel", true},
		{"api.weather.example", "apii.wether.example", true},
		{"api.weather.example", "api.wethr.xample", false},
		{"*.weather.example", "weather.example", true},
		{"a.io", "b.io", true},
		{"a.io", "b.co", false},
		{"example", "a.b", false},
		{long, long + "b", false},
		{long + "b", long, false},
		{"www.example.com", "api.example.com", true},
		{"example.com", "api.example.com", true},
		{"www.com", "api.com", false},
		{"x.y.z.example.com", "example.org", false},
	} {
		if got := similarHost(test.a, test.b); got != test.want {
			t.Errorf("%s is like %s: %t", test.a, test.b, got)
		}
	}
}
