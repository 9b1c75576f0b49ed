package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// stderrOf starts run with standard error on one end of a channel, and returns
// the other.
func stderrOf(t *testing.T, kind string) (theirs, ours *os.File) {
	t.Helper()
	if kind == "pipe" {
		r, w, err := os.Pipe()
		testenv.Must(t, err)
		return w, r
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	testenv.Must(t, err)
	return os.NewFile(uintptr(fds[0]), "stderr"), os.NewFile(uintptr(fds[1]), "reader")
}

// startOn starts run with the given standard error.
func (w *env) startOn(stderr *os.File, program ...string) (wait func() int) {
	w.T.Helper()
	cmd := w.Command(append([]string{"run", "--config", w.File("sidecar.yaml"), "--"}, program...)...)
	cmd.Stderr = stderr
	testenv.Must(w.T, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // its status is looked at below
	w.T.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	return func() int {
		w.T.Helper()
		select {
		case <-ended:
			return cmd.ProcessState.ExitCode()
		case <-time.After(2 * time.Minute):
			w.T.Fatal("run goes on")
			return 0
		}
	}
}

// TestStderrClosed checks that a reader of standard error may end.
func TestStderrClosed(t *testing.T) {
	for _, kind := range []string{"pipe", "socket"} {
		t.Run(kind, func(t *testing.T) {
			both(t, func(t *testing.T, kernel string) {
				w := newEnv(t, kernel, "")
				theirs, ours := stderrOf(t, kind)
				script := `until [ -e go ]; do sleep 0.05; done; curl -s -o /dev/null -X DELETE URL; curl -s -X DELETE -o /dev/null URL; curl -s -o /dev/null URL && exit 7`
				wait := w.startOn(theirs, "bash", "-c", strings.ReplaceAll(script, "URL", w.URL("/v1/forecast")))
				testenv.Must(t, theirs.Close())
				w.Ready()
				testenv.Must(t, ours.Close())
				w.Write("go", "")
				if status := wait(); status != 7 {
					t.Errorf("status %d, not 7", status)
				}
			})
		})
	}
}

// TestStderrFull checks that nothing waits for a standard error that is full:
// not requests, not the end. The plugin fills it itself.
func TestStderrFull(t *testing.T) {
	for _, kind := range []string{"pipe", "socket"} {
		t.Run(kind, func(t *testing.T) {
			w := newEnv(t, "required", "")
			theirs, ours := stderrOf(t, kind)
			defer ours.Close()
			const script = `import os,sys,subprocess
os.set_blocking(2, False)
try:
    while True: os.write(2, b"x" * 4096)
except BlockingIOError: pass
os.set_blocking(2, True)
for i in range(50):
    subprocess.run(["curl", "-s", "-m", "3", "-o", "/dev/null", "-X", "DELETE", sys.argv[1] + str(i)], stderr=subprocess.DEVNULL, check=True)
sys.exit(7)`
			wait := w.startOn(theirs, "python3", "-c", script, w.URL("/v1/"))
			testenv.Must(t, theirs.Close())
			if status := wait(); status != 7 {
				t.Errorf("status %d, not 7", status)
			}
			if n := strings.Count(w.audit(), authz.MethodNotGranted.String()); n < 50 {
				t.Errorf("%d refusals are recorded, not 50", n)
			}
		})
	}
}

// A signal that the sidecar has to outlive is the plugin's to end by.
func TestRunPipeSignal(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		if r := w.Run("sh", "-c", "kill -PIPE $$; exit 0"); r.Status != 128+int(syscall.SIGPIPE) {
			t.Errorf("status %d: the plugin ignores SIGPIPE\n%s", r.Status, r.Stderr)
		}
	})
}

// TestRunPrivateStream checks that a stream which is one of the sidecar's own
// files stays closed to the plugin's user.
func TestRunPrivateStream(t *testing.T) {
	w := newEnv(t, "required", "")
	file := testenv.MustGet(os.Open(w.File("role-id")))(t)
	defer file.Close()
	cmd := w.Command("run", "--config", w.File("sidecar.yaml"), "--", "bash", "-c", "cat </dev/stdin; exit 7")
	cmd.Stdin = file
	output, _ := cmd.CombinedOutput() // its status is compared
	if status := cmd.ProcessState.ExitCode(); status != 7 || !strings.Contains(string(output), "Permission denied") {
		t.Errorf("status %d\n%s", status, output)
	}
}
