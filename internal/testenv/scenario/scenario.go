// Package scenario is the environment of tests, demos and benchmarks that need a whole
// sidecar: a real Vault, a real API, the files of one sidecar and the chaperone command.
//
//	e := scenario.New(t, "required", "  limits: {connections: 3}\n")
//	r := e.Run("curl", "-sS", e.URL("/v1/forecast"))
//	... r.Stdout, r.Status, e.Read("state/audit.jsonl") ...
package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/selfreplay"
)

// Host is the name that the API has for plugins.
const Host = "api.weather.example"

// Env is a real Vault, a real API and the files of one sidecar.
type Env struct {
	T       *testing.T
	Dir     string // of the files; every user may enter it
	Vault   *testenv.Vault
	API     *testenv.Upstream
	Program string // the chaperone to run; "" for one that is built from the sources
}

// New starts Vault and the API, and writes the files. kernel is required or off; extra
// is added to the spec of the grant, at its indentation.
func New(t *testing.T, kernel, extra string) *Env {
	t.Helper()
	if kernel == "required" {
		testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
	}
	testenv.Require(t, testenv.VaultServer(), testenv.Program("curl"), testenv.Program("python3"))
	c := testenv.MustGet(Start(t.Context(), Config{Dir: t.TempDir()}))(t)
	t.Cleanup(func() { testenv.Must(t, c.Close()) })
	e := &Env{T: t, Dir: c.Dir, Vault: c.Vault, API: c.API}
	testenv.Must(t, os.Chmod(filepath.Dir(e.Dir), 0o755)) // the plugin's user enters it
	e.Write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  stateDir: state
  kernel: %q
  listen: {proxy: "127.0.0.1:0", metrics: "127.0.0.1:0"}
  dns: {hosts: {%s: [127.0.0.1]}}
  audit: {paths: full}
  drain: 2s
  vault: {address: %s, auth: {method: approle, roleIDFile: role-id, secretIDFile: secret-id}}
`, kernel, Host, e.Vault.Address))
	e.Grant(time.Now().Add(time.Hour), extra)
	selfreplay.AtEnd(t, e.File("sidecar.yaml"))
	return e
}

// Another returns the environment of another sidecar with the same Vault and the same
// API, and with extra in the spec of its grant.
func (e *Env) Another(t *testing.T, extra string) *Env {
	t.Helper()
	o := &Env{T: t, Dir: t.TempDir(), Vault: e.Vault, API: e.API}
	testenv.Must(t, os.Chmod(filepath.Dir(o.Dir), 0o755)) // the plugin's user enters it
	for _, name := range []string{"role-id", "secret-id", "api-ca.pem", "sidecar.yaml"} {
		o.Write(name, e.Read(name))
	}
	o.Grant(time.Now().Add(time.Hour), extra)
	selfreplay.AtEnd(t, o.File("sidecar.yaml"))
	return o
}

// Grant writes the grant, which ends at notAfter and has extra in its spec.
func (e *Env) Grant(notAfter time.Time, extra string) {
	e.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: api
    reason: Tests
    to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem}}
    methods: [GET, POST]
    paths: ["/v1/*", /stream, /echo]
    credential: key
  credentials:
  - name: key
    vault: {path: secret/data/weather}
    inject: {header: Authorization, value: "Bearer {api_key}"}
%s`, notAfter.UTC().Format(time.RFC3339), Host, e.API.Addr.Port(), extra))
}

// File returns the path of a file of the sidecar.
func (e *Env) File(name string) string { return filepath.Join(e.Dir, name) }

// Write writes a file of the sidecar.
func (e *Env) Write(name, content string) {
	e.T.Helper()
	testenv.Must(e.T, os.WriteFile(e.File(name), []byte(content), 0o600))
}

// Read returns the text of a file of the sidecar.
func (e *Env) Read(name string) string {
	e.T.Helper()
	return string(testenv.MustGet(os.ReadFile(e.File(name)))(e.T))
}

// URL returns the URL of a path of the API.
func (e *Env) URL(path string) string { return e.API.URL(Host, path) }

// Command is the chaperone command, in a process of its own.
func (e *Env) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(testenv.MustGet(e.program())(e.T), args...)
	cmd.Dir = e.Dir
	cmd.Env = append(os.Environ(), "CHAPERONE_REGISTRY="+e.File("registry")) // not the host's
	return cmd
}

// Result is the output and the exit status of a command.
type Result struct {
	Stdout, Stderr string
	Status         int
}

// Chaperone runs the chaperone command to its end.
func (e *Env) Chaperone(args ...string) Result {
	e.T.Helper()
	cmd := e.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.T.Fatal(err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Run runs a program as the plugin.
func (e *Env) Run(program ...string) Result {
	e.T.Helper()
	return e.Chaperone(append([]string{"run", "--config", e.File("sidecar.yaml"), "--"}, program...)...)
}

// Start runs a program as the plugin until it ends or the test does.
func (e *Env) Start(program ...string) *Process {
	e.T.Helper()
	return e.StartCommand(append([]string{"run", "--config", e.File("sidecar.yaml"), "--"}, program...)...)
}

// StartCommand starts the chaperone command.
func (e *Env) StartCommand(args ...string) *Process {
	e.T.Helper()
	return e.StartProcess(e.Command(args...))
}

// StartProcess starts a command, which ends with the test.
func (e *Env) StartProcess(cmd *exec.Cmd) *Process {
	e.T.Helper()
	return StartProcess(e.T, cmd)
}

// Ready waits until the sidecar is ready, and returns its status.
func (e *Env) Ready() admin.Status {
	e.T.Helper()
	client := admin.Dial(e.File("state/admin.sock"))
	return testenv.Eventually(e.T, "the sidecar is ready", func() (admin.Status, bool) {
		s, err := client.Status(e.T.Context())
		return s, err == nil && s.Ready
	})
}

// WaitStreams waits until the API serves n streams.
func (e *Env) WaitStreams(n int) {
	e.T.Helper()
	ctx, cancel := context.WithTimeout(e.T.Context(), 2*time.Minute)
	defer cancel()
	testenv.Must(e.T, e.API.WaitStreams(ctx, n))
}

// Revoke runs the command revoke and returns its output.
func (e *Env) Revoke(args ...string) admin.RevokeResult {
	e.T.Helper()
	r := e.Chaperone(append([]string{"revoke", "--config", e.File("sidecar.yaml"), "--reason", "a test", "--output", "json"}, args...)...)
	var out admin.RevokeResult
	if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil {
		e.T.Fatalf("revoke: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return out
}

// Contains checks that a text contains every part.
func Contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("got a text without %q, want it in:\n%s", p, text)
		}
	}
}
