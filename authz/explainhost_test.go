package authz

import (
	"strings"
	"testing"
	"time"
)

// TestExplainHost asks for no method and no path where none was seen.
func TestExplainHost(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	policy, problems := Compile(input(forecast()), now)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	engine := &Engine{}
	engine.Install(policy)
	for authority, want := range map[string]string{
		"telemetry.example":      "ask for a rule with to: {hosts: [telemetry.example]}; add methods and paths, which are not known yet",
		"telemetry.example:8443": "ask for a rule with to: {hosts: [telemetry.example], ports: [8443]}; add methods and paths, which are not known yet",
	} {
		dest, err := NewDestination(SchemeHTTPS, authority, "/")
		if err != nil {
			t.Fatal(err)
		}
		e := engine.Current().ExplainHost("weather", dest, now)
		if e.Remedy != want || e.Decision.Reason != DestinationNotGranted {
			t.Errorf("%s: %s, %q", authority, e.Decision.Reason, e.Remedy)
		}
		if e.Nearest != nil && strings.Contains(strings.Join(e.Nearest.Differs, ","), "method") {
			t.Errorf("%s: the nearest rule differs in %v", authority, e.Nearest.Differs)
		}
		dest, _ = NewDestination(SchemeHTTPS, authority, "/")
		if e := engine.Current().ExplainHost("other", dest, now); !strings.HasPrefix(e.Remedy, "ask for a grant with a rule with to: ") || strings.Contains(e.Remedy, "GET") {
			t.Errorf("%s for a plugin without a grant: %q", authority, e.Remedy)
		}
	}
	dest, err := NewDestination(SchemeHTTPS, "api.weather.example:8443", "/")
	if err != nil {
		t.Fatal(err)
	}
	if e := engine.Current().ExplainHost("weather", dest, now); strings.Contains(e.Remedy, "methods") && !strings.Contains(e.Remedy, "not known yet") {
		t.Errorf("another port of a granted host: %q", e.Remedy)
	}
}
