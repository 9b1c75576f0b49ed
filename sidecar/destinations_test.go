package sidecar

import (
	"net/netip"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
)

// A connection has no method and no path, and most likely the scheme of the rules for its host.
func TestExplainUngranted(t *testing.T) {
	now := time.Now()
	policy, problems := authz.Compile(authz.Input{Plugin: "shop", Grants: []authz.Grant{{
		Name: "shop", Plugin: "shop", NotAfter: now.Add(time.Hour), Rules: []authz.Rule{{
			ID: "db", Reason: "a test", To: authz.To{Scheme: authz.SchemeTCP, Hosts: []string{"192.0.2.7"}, Ports: []uint16{15432}},
		}},
	}}}, now)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	engine := new(authz.Engine)
	engine.Install(policy)
	telemetry := &KernelTelemetry{cfg: TelemetryConfig{Plugin: "shop", Engine: engine, Resolver: func() *dns.Resolver { return nil }}}
	for to, want := range map[string]string{
		"192.0.2.7:5432": "ask for ports: [15432, 5432] on rule db of grant shop",
		"192.0.2.8:8443": "ask for a rule with to: {hosts: [192.0.2.8], ports: [8443]}; add methods and paths, which are not known yet",
		"192.0.2.8:80":   "ask for a rule with to: {scheme: http, hosts: [192.0.2.8]}; add methods and paths, which are not known yet",
	} {
		if _, _, remedy := telemetry.explainUngranted(netip.MustParseAddrPort(to)); remedy != want {
			t.Errorf("%s: %q, want %q", to, remedy, want)
		}
	}
}
