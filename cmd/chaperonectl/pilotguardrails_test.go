package main

import (
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// A plugin with an exemption is measured as it will run.
func TestPilotGuardrails(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	spec := configs.GuardrailSpec{}
	spec.Plugins, spec.Ceilings = []string{"**"}, authz.Ceilings{TLSMin: "1.3"}
	exemption := func(plugin string, until time.Time) governance.Exemption {
		return governance.Exemption{Exemption: grantcheck.Exemption{
			Name: "old-tls", Plugin: plugin, GuardrailRule: "ceilings.tlsMin", Allow: authz.Ceilings{TLSMin: "1.2"}, NotAfter: until,
		}}
	}
	for name, c := range map[string]struct {
		exemption governance.Exemption
		want      string
	}{
		"in force":          {exemption("weather", now.Add(time.Hour)), "1.2"},
		"ended":             {exemption("weather", now), "1.3"},
		"of another plugin": {exemption("crm", now.Add(time.Hour)), "1.3"},
	} {
		r := &governance.Repository{Guardrails: []governance.Guardrail{{GuardrailSpec: spec}}, Exemptions: []governance.Exemption{c.exemption}}
		got := pilotGuardrails(r, "weather", now)
		if len(got) != 1 || got[0].Spec.Ceilings.TLSMin != c.want {
			t.Errorf("%s: %+v, want tlsMin %s", name, got, c.want)
		}
	}
}
