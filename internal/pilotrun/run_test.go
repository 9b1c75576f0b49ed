package pilotrun

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

func TestMain(m *testing.M) { os.Exit(scenario.Main(m)) }

const apiHost = "api.test.example"

// rig is a pilot of the plugin in testdata, beside a real API.
type rig struct {
	t    *testing.T
	api  *testenv.Upstream
	port uint16
	cfg  Config
	out  scenario.Buffer
}

func newRig(t *testing.T, options ...string) *rig {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("python3"))
	r := &rig{t: t, api: testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{apiHost}, Authorize: func(*http.Request) bool { return true }}), port: testenv.FreePort(t)}
	dir := t.TempDir()
	t.Setenv("CHAPERONE_REGISTRY", filepath.Join(t.TempDir(), "registry")) // not the host's
	stage := t.TempDir()
	testenv.Must(t, os.Chmod(filepath.Dir(stage), 0o755)) // the plugin's user enters it
	program, ca := filepath.Join(stage, "plugin.py"), filepath.Join(stage, "ca.pem")
	testenv.Must(t, os.WriteFile(program, testenv.MustGet(os.ReadFile("testdata/plugin.py"))(t), 0o644))
	testenv.Must(t, r.api.CA.WriteFile(ca))
	sidecar := filepath.Join(stage, "sidecar.yaml")
	testenv.Must(t, os.WriteFile(sidecar, fmt.Appendf(nil, `apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: reader}
spec:
  plugin: reader
  grants: [grants]
  stateDir: state
  process: {listen: [%d]}
  listen: {proxy: "127.0.0.1:15001"}
  dns: {hosts: {%s: [127.0.0.1]}}
  drain: 2s
`, r.port, apiHost), 0o600))
	spec := testenv.MustGet(configs.LoadSidecar(sidecar))(t)
	r.cfg = Config{
		Chaperone: testenv.MustGet(scenario.Build())(t), Dir: dir, Sidecar: *spec, Version: "1.0.0", For: 5 * time.Second, Output: &r.out,
		Command: append([]string{testenv.SystemPython, program, fmt.Sprint(r.port), r.api.URL(apiHost, "/open")}, options...),
		Grant: authz.Grant{Name: "reader", Plugin: "reader", NotAfter: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Rules: []authz.Rule{{
			ID: "read-items", Reason: "Shows the items",
			To:      authz.To{Hosts: []string{apiHost}, Ports: []uint16{r.api.Addr.Port()}, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, TLS: authz.TLS{CAFile: ca}},
			Methods: []string{"GET"}, Paths: []string{"/open"},
		}}},
		Profile: testenv.MustGet(pilot.ParseProfile(fmt.Appendf(nil, `phases:
- {level: typical, duration: 2s, rate: 20, concurrency: 4, http: {port: %[1]d, requests: [{path: /}]}}
- {level: peak, duration: 1s, rate: 60, concurrency: 16, http: {port: %[1]d, requests: [{path: /}]}}
`, r.port)))(t),
	}
	return r
}

func (r *rig) run(ctx context.Context) (*pilot.Measurement, error) {
	m, err := Run(ctx, r.cfg)
	if r.t.Failed() {
		r.t.Log(r.out.String())
	}
	return m, err
}

// TestPilot pilots a real plugin that stays within what it declares.
func TestPilot(t *testing.T) {
	r := newRig(t)
	m, err := r.run(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	p := pilot.Measured(*m)
	trace := testenv.MustGet(pilot.Traced(*m))(t)
	t.Logf("%s", testenv.MustGet(json.MarshalIndent([]any{p, trace}, "", " "))(t))
	t.Logf("%s", testenv.MustGet(os.ReadFile(filepath.Join(r.cfg.Dir, grantFile)))(t))
	if p.Memory.RSSP95Bytes == 0 || p.CPU.TotalUS == 0 || p.Latency.Typical.P50US == 0 || p.Latency.Peak.P50US == 0 || p.Environment.Kernel == "" {
		t.Error("a figure was not measured")
	}
	if trace.Verdict != pilot.Passed || len(trace.Undeclared) > 0 || trace.Declared[0].Uses < 20 {
		t.Errorf("verdict %s, undeclared %+v, declared %+v", trace.Verdict, trace.Undeclared, trace.Declared)
	}
}
