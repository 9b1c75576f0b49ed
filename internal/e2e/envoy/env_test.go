package envoy

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// env is an environment with an Envoy that the sidecar configures.
type env struct {
	*scenario.Env

	folder string // of the sockets between the two
}

// envoyRules are what the plugin is granted there: two rules for one host, whose
// every term is Envoy's or the exit's to keep.
const envoyRules = `
  - {id: api, reason: Tests, TO, methods: [GET, POST], paths: ["/v1/*", /stream, /ws, "/chaperone.testenv.Echo/*"], upgrades: [websocket], credential: key}
  - {id: other, reason: Tests, TO, methods: [GET], paths: [/sse, "/other/**"], credential: key, timeout: 1h}
`

func newEnv(t *testing.T, kernel string) *env {
	t.Helper()
	testenv.Require(t, testenv.EnvoyServer())
	e := &env{Env: scenario.New(t, kernel, "")}
	e.folder = testenv.MustGet(os.MkdirTemp("", "chaperone-envoy-"))(t) //nolint:usetesting // its name is short, for the paths of sockets
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(e.folder)) })
	listen := "" // the proxy forwards to Envoy what the kernel identified
	if kernel == "off" {
		listen = fmt.Sprintf(`explicit: "127.0.0.1:%d", `, testenv.FreePort(t))
	}
	e.Write("sidecar.yaml", e.Read("sidecar.yaml")+fmt.Sprintf("  envoy: {%sdir: %s}\n", listen, e.folder))
	e.grantRules(time.Now().Add(time.Hour), envoyRules)
	return e
}

// grantRules grants rules, in which TO is the API.
func (e *env) grantRules(notAfter time.Time, rules string) {
	to := fmt.Sprintf("to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem}}", scenario.Host, e.API.Addr.Port())
	e.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:%s
  credentials:
  - name: key
    vault: {path: secret/data/weather}
    inject: {header: Authorization, value: "Bearer {api_key}"}
`, notAfter.UTC().Format(time.RFC3339Nano), strings.ReplaceAll(rules, "TO", to)))
}

// startEnvoy starts the Envoy, as its operator would.
func (e *env) startEnvoy(args ...string) *testenv.Envoy {
	e.T.Helper()
	return testenv.MustEnvoy(e.T, testenv.EnvoyConfig{Bootstrap: e.bootstrap(), Args: args})
}

func (e *env) bootstrap() string {
	e.T.Helper()
	r := e.Chaperone("envoy", "bootstrap", "--config", e.File("sidecar.yaml"))
	if r.Status != 0 {
		e.T.Fatalf("envoy bootstrap: %s", r.Stderr)
	}
	return r.Stdout
}

// group is a cgroup whose processes are plugins behind Envoy.
type group struct{ *scenario.Cgroup }

func (e *env) group() *group { return &group{e.Cgroup()} }

// curl asks once, from inside the cgroup, and returns what came back with the
// status at the end.
func (g *group) curl(args ...string) string {
	g.Env.T.Helper()
	args = append([]string{"curl", "-sS", "-k", "-m", "20", "--noproxy", "*", "-w", "\n%{http_code}"}, args...)
	out, err := g.Command(args...).CombinedOutput()
	if _, failed := err.(*exec.ExitError); err != nil && !failed { //nolint:errorlint // of exec itself
		g.Env.T.Fatal(err)
	}
	return string(out)
}
