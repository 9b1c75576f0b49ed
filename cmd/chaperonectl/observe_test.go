package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// chaperone runs the sidecar, checks whether it succeeds and returns what it printed.
func (r *pilotRig) chaperone(succeeds bool, args ...string) string {
	r.t.Helper()
	self := testenv.MustGet(os.Executable())(r.t)
	var out bytes.Buffer
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(filepath.Dir(self), "chaperone"), args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if _, failed := errors.AsType[*exec.ExitError](err); failed == succeeds || err != nil && !failed {
		r.t.Fatalf("chaperone %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// publicAddress is public, so that a sidecar that observes may reach it, and local to the
// network namespace of a test.
const publicAddress = "25.0.0.1"

// inIsolation is the variable of the environment of a test in such a namespace.
const inIsolation = "CHAPERONECTL_TEST_ISOLATED"

// isolated runs the test that calls it once more, in a network namespace that has nothing
// but publicAddress and the loopback, and reports whether it is in there.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inIsolation) != "" {
		return true
	}
	testenv.Require(t, testenv.Superuser(), testenv.Program("unshare"), testenv.Program("ip"))
	testenv.Must(t, chaperoneBeside())
	cmd := exec.Command("unshare", "--net", "/bin/sh", "-c", `ip link set lo up && ip address add `+publicAddress+`/32 dev lo && exec "$@"`, "sh",
		testenv.MustGet(os.Executable())(t), "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), inIsolation+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// TestRunObserves takes a plugin from its manifest to a sidecar that observes, as a person
// does who holds every role: it observes only as that person signed.
func TestRunObserves(t *testing.T) {
	if !isolated(t) {
		return
	}
	r := newPilotRig(t, "")
	r.api = testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{apiHost}, Listen: publicAddress + ":0", Authorize: func(*http.Request) bool { return true }})
	testenv.Must(t, r.api.CA.WriteFile(r.file("ca.pem")))
	t.Setenv("SSL_CERT_FILE", r.file("ca.pem")) // the system's authorities verify an access that is only observed
	key := r.file("root-policy.key")
	r.ctl(0, "plugin", "trust", "init", r.file("lab"), "--one-person", "me@lab", "--key", key)
	program := testenv.MustGet(os.ReadFile(testenv.MustGet(exec.LookPath("curl"))(t)))(t)
	testenv.Must(t, os.WriteFile(r.file("reader"), program, 0o755))
	dir := "lab/plugins/reader/1.0.0"
	r.write(dir+"/manifest.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginManifest
metadata: {name: reader}
spec:
  version: 1.0.0
  vendor: acme.example
  artifact: {kind: file, digest: %q}
  purpose: Shows the items
  permissions:
  - id: read-items
    reason: Shows the items on the card
    to: {hosts: [%s], ports: [%d], tls: {caFile: certs/ca.pem}}
    methods: [GET]
    paths: [/open]
    data: {classes: [internal]}
`, dsse.Digest(program), apiHost, r.api.Addr.Port()))
	testenv.Must(t, os.Mkdir(r.file(dir+"/certs"), 0o755))
	testenv.Must(t, r.api.CA.WriteFile(r.file(dir+"/certs/ca.pem")))
	r.ctl(0, "plugin", "submit", r.file(dir), "--artifact", r.file("reader"), "--key", key)
	r.ctl(0, "plugin", "review", r.file(dir))
	r.ctl(0, "plugin", "issue", r.file(dir), "--key", key)

	config := r.file("lab/sidecar.yaml")
	until := time.Now().Add(time.Hour).UTC()
	sidecar := func(mode string) {
		r.write("lab/sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: reader}
spec:
  plugin: reader
  grants: [grants]
  guardrails: [guardrails]
  stateDir: state
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {%s: [%s]}}
  drain: 2s
%s
`, apiHost, publicAddress, mode))
	}
	observing := func(until time.Time, trust string) {
		sidecar("  mode: observe\n  observeUntil: " + until.Format(time.RFC3339) + "\n  trust: {root: trust.yaml" + trust + "}")
	}
	run := func(succeeds bool, path string) string {
		t.Helper()
		return r.chaperone(succeeds, "run", "--config", config, "--", r.file("reader"), "-sS", "--fail-with-body", "-w", "\nplugin got %{http_code}\n", r.api.URL(apiHost, path))
	}
	refused := func(want string) {
		t.Helper()
		before := r.api.Total()
		contains(t, run(false, "/other"), want)
		if r.api.Total() != before {
			t.Errorf("the API was reached, though %s", want)
		}
	}
	sidecar("  trust: {root: trust.yaml}")
	contains(t, run(true, "/open"), "plugin got 200")
	refused("path_not_granted")
	observing(until, "")
	refused("spec.mode: observe is not signed; write mode: enforce, or name this document signed by role policy in spec.trust.sidecar")
	observing(until, ", sidecar: sidecar.dsse.json")
	refused("sidecar.dsse.json")
	r.ctl(0, "plugin", "sign", config, "--key", key)
	contains(t, run(true, "/other"), "plugin got 200", "observ")
	contains(t, r.chaperone(true, "audit", "query", "--config", config, "--reason", "observed", "--kind", "end"), `"path":"/other"`, `"tls":"1.3"`)
	contains(t, r.chaperone(true, "audit", "verify", "--config", config), "")
	observing(until.Add(time.Hour), ", sidecar: sidecar.dsse.json")
	refused("spec.observeUntil: is later than " + until.Format(time.RFC3339))
	sidecar("  trust: {root: trust.yaml, sidecar: sidecar.dsse.json}")
	refused("path_not_granted")
}
