package authz

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestDecisionIsRecordedAsAsked: the record of a decision has what the decision depended
// on, also where the request was changed afterwards.
func TestDecisionIsRecordedAsAsked(t *testing.T) {
	g := forecast()
	g.Rules[0].To.TLS.Originate, g.Rules[0].Upgrades = true, []string{"websocket"}
	w := newWorld(t, input(g))
	req := get(t, "http://api.weather.example:80/v1/forecast/berlin")
	req.Action.Upgrade, req.Unenforceable = "websocket", ConditionTimeout
	a := w.admit(t, req)
	a.Resolved([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	if err := a.End(Outcome{}); err != nil {
		t.Fatal(err)
	}
	records := w.recorder.all()
	r, end := records[0], records[1]
	if r.Scheme != "https" || r.Port != 443 || r.AskedScheme != "http" || r.AskedPort != 80 {
		t.Errorf("got %s on %d, asked %s on %d, want https on 443, asked http on 80", r.Scheme, r.Port, r.AskedScheme, r.AskedPort)
	}
	if r.Upgrade != "websocket" || r.Unenforceable != ConditionTimeout || r.DecidedBy != "" || r.Attempt {
		t.Errorf("got upgrade %q, unenforceable %v, decided by %q and attempt %v, want websocket, timeout and no more", r.Upgrade, r.Unenforceable, r.DecidedBy, r.Attempt)
	}
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.1")}; !slices.Equal(end.Resolved, want) {
		t.Errorf("got resolved %v, want %v", end.Resolved, want)
	}
	a = w.admit(t, get(t, forecastURL))
	a.Resolved(make([]netip.Addr, 17))
	if err := a.End(Outcome{}); err != nil {
		t.Fatal(err)
	}
	if end := w.recorder.all()[3]; end.Resolved != nil || end.AskedScheme != "" {
		t.Errorf("got %d resolved addresses and asked scheme %q, want neither", len(end.Resolved), end.AskedScheme)
	}
}

// TestDecidedBy: a decision that limits or a revocation took is recorded as such, also
// where its reason is observed or that of a missing grant.
func TestDecidedBy(t *testing.T) {
	observing := func() Grant {
		g := forecast()
		g.Rules[0].Mode, g.Rules[0].ObserveUntil = ModeObserve, noon.Add(time.Hour)
		return g
	}
	limited := observing()
	limited.Rules[0].Limits.Requests = Limit{Count: 1, Period: time.Minute}
	sidecar := input(func() Grant { g := forecast(); g.Limits.Requests = Limit{Count: 1, Period: time.Minute}; return g }())
	sidecar.Observe, sidecar.ObserveUntil = true, noon.Add(time.Hour)
	for name, test := range map[string]struct {
		in     Input
		revoke bool
		url    string
		reason string
		by     StateKind
	}{
		"within its limit":           {input(forecast()), false, forecastURL, "granted", ""},
		"over the observed limit":    {input(limited), false, forecastURL, "observed", StateLimits},
		"over the sidecar's limit":   {sidecar, false, forecastURL, "observed", StateLimits},
		"observed":                   {input(observing()), false, "POST " + forecastURL, "observed", ""},
		"its observer is revoked":    {input(observing()), true, "POST " + forecastURL, "method_not_granted", StateRevocation},
		"its rule is revoked":        {input(observing()), true, forecastURL, "revoked", ""},
		"no rule for it was revoked": {input(forecast()), true, "POST " + forecastURL, "method_not_granted", ""},
	} {
		w := newWorld(t, test.in)
		if test.revoke {
			w.engine.Revoke(Revocation{ID: "1", Plugin: "weather", Grant: "weather", Rule: "read-forecast", Level: LevelQuarantine})
		}
		for range 2 {
			if _, err := w.gate.Admit(context.Background(), get(t, test.url), Source{}); err != nil {
				t.Fatal(err)
			}
		}
		all := w.recorder.all()
		if r := all[len(all)-1]; r.Reason != test.reason || r.DecidedBy != test.by {
			t.Errorf("%s: got %s, decided by %q, want %s by %q", name, r.Reason, r.DecidedBy, test.reason, test.by)
		}
	}
}
