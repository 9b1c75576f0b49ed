package main

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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const apiHost = "api.weather.example"

// world is a real Vault, a real API and the files of one sidecar.
type world struct {
	t     *testing.T
	dir   string
	vault *testenv.Vault
	api   *testenv.Upstream
}

// newWorld starts the parts. kernel is required or off; extra is added to the
// grant's spec, at its indentation.
func newWorld(t *testing.T, kernel, extra string) *world {
	t.Helper()
	if kernel == "required" {
		testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
	}
	testenv.Require(t, testenv.VaultServer(), testenv.Program("curl"), testenv.Program("python3"))
	w := &world{t: t, dir: t.TempDir(), vault: testenv.MustVault(t, testenv.VaultConfig{})}
	testenv.Must(t, os.Chmod(filepath.Dir(w.dir), 0o755)) // the plugin's user enters it
	w.api = testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{apiHost}})
	ctx := t.Context()
	testenv.MustGet(w.vault.Write(ctx, "secret/data/weather", map[string]any{"data": map[string]any{"api_key": w.api.Token()}}))(t)
	login := testenv.MustGet(w.vault.AppRole(ctx, "weather", testenv.AppRole{Policy: `path "secret/data/weather" { capabilities = ["read"] }`}))(t)
	w.write("role-id", login.RoleID)
	w.write("secret-id", login.SecretID)
	testenv.Must(t, w.api.CA.WriteFile(w.file("api-ca.pem")))
	w.write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
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
`, kernel, apiHost, w.vault.Address))
	w.grant(time.Now().Add(time.Hour), extra)
	return w
}

// another returns a world of another sidecar with the same Vault and the same API,
// and other limits.
func (w *world) another(t *testing.T, extra string) *world {
	t.Helper()
	o := &world{t: t, dir: t.TempDir(), vault: w.vault, api: w.api}
	testenv.Must(t, os.Chmod(filepath.Dir(o.dir), 0o755)) // the plugin's user enters it
	for _, name := range []string{"role-id", "secret-id", "api-ca.pem", "sidecar.yaml"} {
		o.write(name, w.read(name))
	}
	o.grant(time.Now().Add(time.Hour), extra)
	return o
}

// grant writes the grant.
func (w *world) grant(notAfter time.Time, extra string) {
	w.write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
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
%s`, notAfter.UTC().Format(time.RFC3339), apiHost, w.api.Addr.Port(), extra))
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) {
	w.t.Helper()
	testenv.Must(w.t, os.WriteFile(w.file(name), []byte(content), 0o600))
}

func (w *world) read(name string) string {
	w.t.Helper()
	return string(testenv.MustGet(os.ReadFile(w.file(name)))(w.t))
}

func (w *world) url(path string) string { return w.api.URL(apiHost, path) }

// command is the chaperone command, in a process of its own.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(testenv.MustGet(exec.LookPath("chaperone"))(w.t), args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "CHAPERONE_REGISTRY="+w.file("registry")) // not the host's
	return cmd
}

// result is what a command did.
type result struct {
	stdout, stderr string
	status         int
}

func (w *world) chaperone(args ...string) result {
	w.t.Helper()
	cmd := w.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs a program as the plugin.
func (w *world) run(program ...string) result {
	w.t.Helper()
	return w.chaperone(append([]string{"run", "--config", w.file("sidecar.yaml"), "--"}, program...)...)
}

// background is a plugin that runs on.
type background struct {
	w      *world
	cmd    *exec.Cmd
	output lockedBuffer
	ended  chan struct{}
}

// lockedBuffer is what a process has printed so far.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a program as the plugin until it ends or the test does.
func (w *world) start(program ...string) *background {
	w.t.Helper()
	return w.startCommand(append([]string{"run", "--config", w.file("sidecar.yaml"), "--"}, program...)...)
}

func (w *world) startCommand(args ...string) *background {
	w.t.Helper()
	return w.background(w.command(args...))
}

func (w *world) background(cmd *exec.Cmd) *background {
	w.t.Helper()
	b := &background{w: w, cmd: cmd, ended: make(chan struct{})}
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	b.cmd.WaitDelay = time.Second // an orphan keeps the pipe open
	testenv.Must(w.t, b.cmd.Start())
	go func() { _ = b.cmd.Wait(); close(b.ended) }() // its status is looked at by the test
	w.t.Cleanup(func() {
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-b.ended:
		case <-time.After(2 * time.Minute):
			_ = b.cmd.Process.Kill()
			<-b.ended
		}
	})
	return b
}

// wait waits for the end and returns the status.
func (b *background) wait() int {
	b.w.t.Helper()
	select {
	case <-b.ended:
		return b.cmd.ProcessState.ExitCode()
	case <-time.After(2 * time.Minute):
		b.w.t.Fatalf("the plugin goes on:\n%s", b.output.String())
		return 0
	}
}

// ready waits until the sidecar is.
func (w *world) ready() admin.Status {
	w.t.Helper()
	client := admin.Dial(w.file("state/admin.sock"))
	return eventually(w.t, "the sidecar is ready", func() (admin.Status, bool) {
		s, err := client.Status(w.t.Context())
		return s, err == nil && s.Ready
	})
}

// streaming waits until the API serves n streams.
func (w *world) streaming(n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	testenv.Must(w.t, w.api.WaitStreams(ctx, n))
}

// revoke runs the command revoke and returns its output.
func (w *world) revoke(args ...string) admin.RevokeResult {
	w.t.Helper()
	r := w.chaperone(append([]string{"revoke", "--config", w.file("sidecar.yaml"), "--reason", "a test", "--output", "json"}, args...)...)
	var out admin.RevokeResult
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		w.t.Fatalf("revoke: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return out
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}

// eventually polls until f reports that something holds: it happens in another process.
func eventually[T any](t *testing.T, what string, f func() (T, bool)) T {
	t.Helper()
	return testenv.Eventually(t, what, f)
}
