package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// originHost is the one name that plugins are granted.
const originHost = "api.test.example"

// runLimit bounds one run of a program.
const runLimit = 3 * time.Minute

// world is the files of one sidecar and the origins that its plugin may reach.
type world struct {
	t       *testing.T
	dir     string
	origins *origins
	env     []string // added to the environment of the command
}

// newWorld needs root and the kernel. process is the value of spec.process, {} for the defaults.
func newWorld(t *testing.T, process string) *world {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
	w := &world{t: t, dir: t.TempDir(), origins: newOrigins(t)}
	testenv.Must(t, os.Chmod(filepath.Dir(w.dir), 0o755)) // the plugin's user enters it
	testenv.Must(t, os.WriteFile(w.file("origin-ca.pem"), w.origins.ca.PEM(), 0o644))
	w.write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
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
	w.write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
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
`, time.Now().Add(90*24*time.Hour).UTC().Format(time.RFC3339), originHost, w.origins.securePort, w.origins.plainPort))
	w.env = []string{
		"CHAPERONE_REGISTRY=" + w.file("registry"), // not the host's
		"HOME=/root", "USER=root", "LOGNAME=root", "TMPDIR=" + os.TempDir(), // a login's
		"E2E_HTTPS=" + w.origins.secure("/open/hello"),
		"E2E_HTTP=" + w.origins.plain("/open/hello"),
		"E2E_REFUSED=" + w.origins.secure("/shut"),
		"E2E_HOST=" + originHost,
	}
	t.Cleanup(func() {
		if t.Failed() { // a program that hung may have left something
			w.chaperone("detach", "--config", w.file("sidecar.yaml"), "--kill")
		}
	})
	return w
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) {
	w.t.Helper()
	testenv.Must(w.t, os.WriteFile(w.file(name), []byte(content), 0o600))
}

// rule adds a rule to the grant.
func (w *world) rule(lines string) {
	w.t.Helper()
	text := testenv.MustGet(os.ReadFile(w.file("grant.yaml")))(w.t)
	w.write("grant.yaml", string(text)+lines)
}

// runArgs is the command line that runs a program as the plugin.
func (w *world) runArgs(program ...string) []string {
	w.t.Helper()
	bin := testenv.MustGet(chaperone())(w.t)
	return append([]string{bin, "run", "--config", w.file("sidecar.yaml"), "--"}, program...)
}

// command prepares a command of the host's that ends with ctx: by SIGTERM, and
// ten seconds later by SIGKILL.
func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = stage
	cmd.Env = append(os.Environ(), w.env...)
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
func (w *world) exec(args ...string) result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), runLimit)
	defer cancel()
	cmd := w.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		w.t.Fatalf("start %s: %v", args[0], err)
	}
	if ctx.Err() != nil {
		w.t.Errorf("%s did not end within %v", args[0], runLimit)
	}
	return result{args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs a program as the plugin.
func (w *world) run(program ...string) result {
	w.t.Helper()
	return w.exec(w.runArgs(program...)...)
}

func (w *world) chaperone(args ...string) result {
	w.t.Helper()
	return w.exec(append([]string{testenv.MustGet(chaperone())(w.t)}, args...)...)
}

// prints runs a program as the plugin, which must succeed and print all of want.
func (w *world) prints(program []string, want ...string) {
	w.t.Helper()
	r := w.run(program...)
	if r.status != 0 {
		w.t.Errorf("the program failed: %v", r)
		return
	}
	for _, part := range want {
		if !strings.Contains(r.stdout, part) {
			w.t.Errorf("%q is missing: %v", part, r)
		}
	}
}

// suite runs a program that prints a line for each of its checks: "ok NAME",
// with ": VALUE" where there is one, or "broken NAME: WHY". Run outside, it
// does its local checks; as the plugin, with the argument "network", it must
// print the same for them, and ok for those of network. Each is a subtest.
func (w *world) suite(program []string, network ...string) {
	w.t.Helper()
	outside := w.exec(program...)
	if outside.status != 0 {
		w.t.Fatalf("outside it does not work either: %v", outside)
	}
	inside := w.run(append(slices.Clone(program), "network")...)
	if inside.status != 0 {
		w.t.Errorf("the program failed: %v", inside)
	}
	lines := strings.Split(inside.stdout, "\n")
	for want := range strings.Lines(outside.stdout) {
		want = strings.TrimSuffix(want, "\n")
		name, _, _ := strings.Cut(strings.TrimPrefix(want, "ok "), ":")
		w.t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(want, "ok ") {
				t.Fatalf("outside it does not work either: %s", want)
			}
			if !slices.Contains(lines, want) {
				t.Errorf("%s, not %q", about(lines, name), want)
			}
		})
	}
	for _, name := range network {
		w.t.Run(name, func(t *testing.T) {
			if got := about(lines, name); !strings.HasPrefix(got, "ok ") {
				t.Error(got)
			}
		})
	}
	if w.t.Failed() {
		w.t.Logf("the whole of it: %v", inside)
	}
}

// about returns the line that a program printed of a check.
func about(lines []string, name string) string {
	for _, line := range lines {
		for _, begin := range []string{"ok ", "broken "} {
			if rest, found := strings.CutPrefix(line, begin+name); found && (rest == "" || rest[0] == ':') {
				return line
			}
		}
	}
	return "the program printed nothing of " + name
}

// background is a command that runs on.
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
	return w.startCommand(w.runArgs(program...)...)
}

// startCommand starts a command of the host's until it ends or the test does.
func (w *world) startCommand(args ...string) *background {
	w.t.Helper()
	b := &background{w: w, cmd: w.command(context.WithoutCancel(w.t.Context()), args...), ended: make(chan struct{})}
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	b.cmd.WaitDelay = time.Second // a plugin that outlives its sidecar keeps the pipe open
	testenv.Must(w.t, b.cmd.Start())
	go func() { _ = b.cmd.Wait(); close(b.ended) }() // the test looks at its status
	w.t.Cleanup(b.stop)
	return b
}

// stop ends the command as a user would, and by SIGKILL when it goes on.
func (b *background) stop() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-b.ended:
	case <-time.After(2 * time.Minute):
		b.w.t.Errorf("it does not end on SIGTERM:\n%s", tail(b.output.String()))
		b.kill()
	}
}

func (b *background) kill() {
	_ = b.cmd.Process.Kill() // it may have ended
	<-b.ended
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

func freePort(t testing.TB) int {
	t.Helper()
	l := testenv.MustGet(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// build runs a compiler, which must succeed, and prepares the folder that it
// writes to.
func (w *world) build(args ...string) {
	w.t.Helper()
	testenv.Must(w.t, os.MkdirAll(filepath.Join(stage, "bin"), 0o755))
	if r := w.exec(args...); r.status != 0 {
		w.t.Fatalf("build: %v", r)
	}
}

// enterable opens a folder of the test's to every user.
func (w *world) enterable(dir string) {
	w.t.Helper()
	testenv.Must(w.t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)))
}
