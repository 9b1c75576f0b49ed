package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
	"github.com/chaperone-proxy/chaperone/internal/testenv/selfreplay"
)

// originHost is the one name that plugins are granted.
const originHost = "api.test.example"

// runLimit bounds one run of a program.
const runLimit = 3 * time.Minute

// env is the files of one sidecar and the origins that its plugin may reach.
type env struct {
	t       *testing.T
	dir     string
	origins *origins
	env     []string // added to the environment of the command
}

// newEnv needs root and the kernel. process is the value of spec.process, {} for the defaults.
func newEnv(t *testing.T, process string) *env {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
	e := &env{t: t, dir: t.TempDir(), origins: newOrigins(t)}
	testenv.Must(t, os.Chmod(filepath.Dir(e.dir), 0o755)) // the plugin's user enters it
	testenv.Must(t, os.WriteFile(e.file("origin-ca.pem"), e.origins.ca.PEM(), 0o644))
	e.write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: e2e}
spec:
  plugin: e2e
  grants: [grant.yaml]
  stateDir: state
  kernel: required
  process: %s
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {%s: [127.0.0.1]}}
  audit: {paths: full}
  drain: 2s
`, process, originHost))
	e.write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: e2e}
spec:
  plugin: e2e
  notAfter: %s
  rules:
  - id: secure
    reason: Tests
    to: {hosts: [%[2]s], ports: [%[3]d], addresses: [127.0.0.1/32], tls: {caFile: origin-ca.pem}}
    methods: [GET, POST]
    paths: ["/open/**"]
  - id: plain
    reason: Tests
    to: {scheme: http, hosts: [%[2]s], ports: [%[4]d], addresses: [127.0.0.1/32]}
    methods: [GET, POST]
    paths: ["/open/**"]
`, time.Now().Add(90*24*time.Hour).UTC().Format(time.RFC3339), originHost, e.origins.securePort, e.origins.plainPort))
	selfreplay.AtEnd(t, e.file("sidecar.yaml"))
	e.env = []string{
		"CHAPERONE_REGISTRY=" + e.file("registry"), // not the host's
		"HOME=/root", "USER=root", "LOGNAME=root", "TMPDIR=" + os.TempDir(), // a login's
		"E2E_HTTPS=" + e.origins.secure("/open/hello"),
		"E2E_HTTP=" + e.origins.plain("/open/hello"),
		"E2E_REFUSED=" + e.origins.secure("/shut"),
		"E2E_HOST=" + originHost,
	}
	t.Cleanup(func() {
		if t.Failed() { // a program that hung may have left something
			e.chaperone("detach", "--config", e.file("sidecar.yaml"), "--kill")
		}
	})
	return e
}

func (e *env) file(name string) string { return filepath.Join(e.dir, name) }

func (e *env) write(name, content string) {
	e.t.Helper()
	testenv.Must(e.t, os.WriteFile(e.file(name), []byte(content), 0o600))
}

// rule adds a rule to the grant.
func (e *env) rule(lines string) {
	e.t.Helper()
	text := testenv.MustGet(os.ReadFile(e.file("grant.yaml")))(e.t)
	e.write("grant.yaml", string(text)+lines)
}

// runArgs is the command line that runs a program as the plugin.
func (e *env) runArgs(program ...string) []string {
	e.t.Helper()
	bin := testenv.MustGet(chaperone())(e.t)
	return append([]string{bin, "run", "--config", e.file("sidecar.yaml"), "--"}, program...)
}

// command prepares a command of the host's that ends with ctx: by SIGTERM, and
// ten seconds later by SIGKILL.
func (e *env) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = stage
	cmd.Env = append(os.Environ(), e.env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// result is what a command did.
type result struct {
	args           []string
	stdout, stderr string
	status         int
}

func (r result) String() string {
	return fmt.Sprintf("%s\nstatus %d\n--- stdout\n%s\n--- stderr\n%s", strings.Join(r.args, " "), r.status, tail(r.stdout), tail(r.stderr))
}

func tail(text string) string { return text[max(0, len(text)-6000):] }

// exec runs a command of the host's to its end.
func (e *env) exec(args ...string) result {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.t.Context()), runLimit)
	defer cancel()
	cmd := e.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		e.t.Fatalf("start %s: %v", args[0], err)
	}
	if ctx.Err() != nil {
		e.t.Errorf("%s did not end within %v", args[0], runLimit)
	}
	return result{args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs a program as the plugin.
func (e *env) run(program ...string) result {
	e.t.Helper()
	return e.exec(e.runArgs(program...)...)
}

func (e *env) chaperone(args ...string) result {
	e.t.Helper()
	return e.exec(append([]string{testenv.MustGet(chaperone())(e.t)}, args...)...)
}

// prints runs a program as the plugin, which must succeed and print all of want.
func (e *env) prints(program []string, want ...string) {
	e.t.Helper()
	r := e.run(program...)
	if r.status != 0 {
		e.t.Errorf("the program failed: %v", r)
		return
	}
	for _, part := range want {
		if !strings.Contains(r.stdout, part) {
			e.t.Errorf("%q is missing: %v", part, r)
		}
	}
}

// suite runs a program that prints a line for each of its checks: "ok NAME",
// with ": VALUE" where there is one, or "broken NAME: WHY". Run outside, it
// does its local checks; as the plugin, with the argument "network", it must
// print the same for them, and ok for those of network. Each is a subtest.
func (e *env) suite(program []string, network ...string) {
	e.t.Helper()
	outside := e.exec(program...)
	if outside.status != 0 {
		e.t.Fatalf("outside it does not work either: %v", outside)
	}
	inside := e.run(append(slices.Clone(program), "network")...)
	if inside.status != 0 {
		e.t.Errorf("the program failed: %v", inside)
	}
	lines := strings.Split(inside.stdout, "\n")
	for want := range strings.Lines(outside.stdout) {
		want = strings.TrimSuffix(want, "\n")
		name, _, _ := strings.Cut(strings.TrimPrefix(want, "ok "), ":")
		e.t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(want, "ok ") {
				t.Fatalf("outside it does not work either: %s", want)
			}
			if !slices.Contains(lines, want) {
				t.Errorf("got %s, want %q", lineOf(lines, name), want)
			}
		})
	}
	for _, name := range network {
		e.t.Run(name, func(t *testing.T) {
			if got := lineOf(lines, name); !strings.HasPrefix(got, "ok ") {
				t.Error(got)
			}
		})
	}
	if e.t.Failed() {
		e.t.Logf("the whole of it: %v", inside)
	}
}

// lineOf returns the line that a program printed of a check.
func lineOf(lines []string, name string) string {
	for _, line := range lines {
		for _, begin := range []string{"ok ", "broken "} {
			if rest, found := strings.CutPrefix(line, begin+name); found && (rest == "" || rest[0] == ':') {
				return line
			}
		}
	}
	return "the program printed nothing of " + name
}

// start runs a program as the plugin until it ends or the test does.
func (e *env) start(program ...string) *scenario.Process {
	e.t.Helper()
	return e.startCommand(e.runArgs(program...)...)
}

// startCommand starts a command of the host's until it ends or the test does.
func (e *env) startCommand(args ...string) *scenario.Process {
	e.t.Helper()
	return scenario.StartProcess(e.t, e.command(context.WithoutCancel(e.t.Context()), args...))
}

// eventually polls until f returns no error: what it waits for happens in
// another process.
func eventually[T any](t testing.TB, what string, f func() (T, error)) T {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		value, err := f()
		if err == nil {
			return value
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s: %v", what, err)
		}
	}
}

// build runs a compiler, which must succeed, and prepares the folder that it
// writes to.
func (e *env) build(args ...string) {
	e.t.Helper()
	testenv.Must(e.t, os.MkdirAll(filepath.Join(stage, "bin"), 0o755))
	if r := e.exec(args...); r.status != 0 {
		e.t.Fatalf("build: %v", r)
	}
}

// enterable opens a folder of the test's to every user.
func (e *env) enterable(dir string) {
	e.t.Helper()
	testenv.Must(e.t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)))
}
