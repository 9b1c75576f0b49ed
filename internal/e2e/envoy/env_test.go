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

// envoyWorld is a world with an Envoy that the sidecar configures.
type envoyWorld struct {
	*scenario.Env

	folder string // of the sockets between the two
}

// envoyRules are what the plugin is granted there: two rules for one host, whose
// every term is Envoy's or the exit's to keep.
const envoyRules = `
  - {id: api, reason: Tests, TO, methods: [GET, POST], paths: ["/v1/*", /stream, /ws, "/chaperone.testenv.Echo/*"], upgrades: [websocket], credential: key}
  - {id: other, reason: Tests, TO, methods: [GET], paths: [/sse, "/other/**"], credential: key, timeout: 1h}
`

func newEnvoyWorld(t *testing.T, kernel string) *envoyWorld {
	t.Helper()
	testenv.Require(t, testenv.EnvoyServer())
	w := &envoyWorld{Env: scenario.New(t, kernel, "")}
	w.folder = testenv.MustGet(os.MkdirTemp("", "chaperone-envoy-"))(t) //nolint:usetesting // its name is short, for the paths of sockets
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(w.folder)) })
	listen := "" // the proxy forwards to Envoy what the kernel identified
	if kernel == "off" {
		listen = fmt.Sprintf(`explicit: "127.0.0.1:%d", `, testenv.FreePort(t))
	}
	w.Write("sidecar.yaml", w.Read("sidecar.yaml")+fmt.Sprintf("  envoy: {%sdir: %s}\n", listen, w.folder))
	w.rules(time.Now().Add(time.Hour), envoyRules)
	return w
}

// rules grants rules, in which TO is the API.
func (w *envoyWorld) rules(notAfter time.Time, rules string) {
	to := fmt.Sprintf("to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem}}", scenario.Host, w.API.Addr.Port())
	w.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
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

// envoy starts the Envoy, as its operator would.
func (w *envoyWorld) envoy(args ...string) *testenv.Envoy {
	w.T.Helper()
	return testenv.MustEnvoy(w.T, testenv.EnvoyConfig{Bootstrap: w.bootstrap(), Args: args})
}

func (w *envoyWorld) bootstrap() string {
	w.T.Helper()
	r := w.Chaperone("envoy", "bootstrap", "--config", w.File("sidecar.yaml"))
	if r.Status != 0 {
		w.T.Fatalf("envoy bootstrap: %s", r.Stderr)
	}
	return r.Stdout
}

// group is a cgroup whose processes are plugins behind Envoy.
type group struct{ *scenario.Cgroup }

func (w *envoyWorld) group() *group { return &group{w.Cgroup()} }

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
