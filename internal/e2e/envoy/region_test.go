package envoy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRegions has a rule whose data stay in a region, and a host of it that resolves to an
// address of another: under the kernel half neither the sidecar's own proxy nor a real Envoy
// that the sidecar configures reaches it.
func TestRegions(t *testing.T) {
	for name, managed := range map[string]bool{"the sidecar's proxy": false, "an Envoy of the sidecar's": true} {
		t.Run(name, func(t *testing.T) { checkRegions(t, managed) })
	}
}

func checkRegions(t *testing.T, managed bool) {
	const abroad = "abroad.weather.example"
	e := newEnv(t, "required")
	config := strings.Replace(e.Read("sidecar.yaml"), scenario.Host+": [127.0.0.1]", scenario.Host+": [127.0.0.1], "+abroad+": [127.0.0.7]", 1)
	if config = strings.Replace(config, "  stateDir:", "  guardrails: [guardrail.yaml]\n  stateDir:", 1); !managed {
		config, _, _ = strings.Cut(config, "  envoy:")
	}
	e.Write("sidecar.yaml", config)
	e.Write("guardrail.yaml", `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  regions: {eu: [127.0.0.1], us: [127.0.0.7]}
`)
	e.grantRules(time.Now().Add(time.Hour), fmt.Sprintf(`
  - id: api
    reason: Tests
    to: {hosts: [%s, %s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: api-ca.pem}}
    methods: [GET]
    paths: ["/v1/*"]
    data: {regions: [eu]}
    credential: key
`, scenario.Host, abroad, e.API.Addr.Port()))
	there := testenv.MustUpstream(t, testenv.UpstreamConfig{
		Names: []string{abroad}, Listen: fmt.Sprintf("127.0.0.7:%d", e.API.Addr.Port()), Authorize: func(*http.Request) bool { return true },
	})
	g := e.group()
	g.Protect()
	e.Ready()
	door := "proxy"
	if managed {
		door = "ext_authz"
		e.startEnvoy()
		e.waitApplied(2)
	}
	if got := g.curl(e.URL("/v1/forecast")); !strings.HasSuffix(got, "\n200") {
		t.Fatalf("in the region: %s", got)
	}
	got := g.curl(e.API.URL(abroad, "/v1/forecast"))
	if strings.HasSuffix(got, "\n200") || there.Total() != 0 {
		t.Errorf("outside the region: %s, and %d requests arrived", got, there.Total())
	}
	if !managed {
		scenario.Contains(t, got, "address_not_allowed", "in region us, outside region eu of rule api")
	}
	inside, outside := fmt.Sprintf(`"door":%q`, door), "in region us, outside region eu of rule api"
	testenv.Eventually(t, "the log has both with their regions", func() (string, bool) {
		log := e.Read("state/audit.jsonl")
		var in, out bool
		for line := range strings.Lines(log) {
			in = in || strings.Contains(line, `"kind":"end"`) && strings.Contains(line, inside) && strings.Contains(line, `"region":"eu"`) && strings.Contains(line, scenario.Host)
			out = out || strings.Contains(line, outside) && strings.Contains(line, `"reason":"address_not_allowed"`)
		}
		return log, in && out
	})
}
