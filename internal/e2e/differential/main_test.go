package differential

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// isolated is the variable that names the stage to the test process that has a
// network, /run and a BPF file system to itself.
const isolated = "DIFFERENTIAL_ISOLATED"

// stage is the folder that every user may enter, with the clients.
var stage string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if stage = os.Getenv(isolated); stage != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "differential-")
	if err == nil {
		defer os.RemoveAll(dir)
		stage = dir
		err = errors.Join(os.Chmod(dir, 0o755), os.CopyFS(dir, os.DirFS("testdata")))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the tests:", err)
		return 1
	}
	return m.Run()
}

// isolate runs the test that calls it in a process with a network of its own, in
// which origins have the ports that their protocols have and whose only address is
// the loopback.
func isolate(t *testing.T) {
	t.Helper()
	self := testenv.MustGet(os.Executable())(t)
	const set = `ip link set lo up && mount -t tmpfs -o mode=755 none /run && mkdir -p /run/postgresql &&
{ ! mountpoint -q /sys/fs/bpf || mount -t bpf none /sys/fs/bpf; } && exec "$@"`
	cmd := exec.Command("unshare", "--net", "--mount", "--propagation", "private", "/bin/sh", "-c", set, "sh",
		self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=55m")
	cmd.Env = append(os.Environ(), isolated+"="+stage)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	testenv.Must(t, cmd.Run())
}

// buildClients puts into the stage what the clients are made of.
func buildClients(t *testing.T) {
	t.Helper()
	root := testenv.MustGet(testenv.Root())(t)
	run := func(args ...string) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	testenv.Must(t, testenv.BuildChaperone(t.Context(), filepath.Join(stage, "bin", "chaperone")))
	run("go", "build", "-trimpath", "-o", filepath.Join(stage, "bin", "client"), "./internal/e2e/differential/testdata/client")
	run("javac", "-d", filepath.Join(stage, "java"), filepath.Join(stage, "java", "Client.java"))
	node := testenv.MustGet(testenv.InstallNodeClients(t.Context(), nil))(t)
	python := testenv.MustGet(testenv.InstallPythonClients(t.Context(), nil))(t)
	// With their times, which Python compares with those of what it has compiled.
	run("cp", "-a", filepath.Join(node, "node_modules"), filepath.Join(stage, "node", "node_modules"))
	run("cp", "-a", python, filepath.Join(stage, "site"))
}

// command prepares a program of the stage or the system.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(stage, "site"), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Dir = stage
	return cmd
}

func tail(text string, n int) string { return text[max(0, len(text)-n):] }

// eventually polls until f returns no error: what it waits for happens in another
// process.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s: %v", what, err)
		}
	}
}
