package ebpf

import (
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// TestShutLeft blocks the plugin of a sidecar that did not do it itself.
func TestShutLeft(t *testing.T) {
	if left, err := BlockLeftover(filepath.Join(t.TempDir(), "none"), true); left.Blocked || err != nil {
		t.Errorf("a stateDir without a sidecar: %+v, %v", left, err)
	}
	r := newHarness(t, nil)
	left, err := BlockLeftover(r.config.StateDir, false)
	if err != nil || !left.Blocked || len(left.Cgroups) != 1 || left.Populated || left.Killed {
		t.Fatalf("%+v, %v", left, err)
	}
	connect := func() int {
		t.Helper()
		p, err := r.Start(sandbox.Command{Path: "/proc/self/exe", Args: []string{pluginName, "get", "tcp", "240.0.0.9:80"}})
		if err != nil {
			t.Fatal(err)
		}
		status, err := p.Wait()
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	if got := connect(); got != 1 {
		t.Errorf("a connect of the blocked plugin ends with %d", got)
	}
	before, err := r.Usage()
	if err != nil || before.Connections != 0 || before.Refused == 0 {
		t.Errorf("usage %+v, %v", before, err)
	}

	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Start(sandbox.Command{Path: sleep, Args: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := BlockLeftover(r.config.StateDir, false); err != nil || !left.Populated || left.Killed {
		t.Errorf("while the plugin lives: %+v, %v", left, err)
	}
	if left, err := BlockLeftover(r.config.StateDir, true); err != nil || left.Populated || !left.Killed {
		t.Errorf("kill: %+v, %v", left, err)
	}
	if status, err := p.Wait(); status != 128+int(unix.SIGKILL) || err != nil {
		t.Errorf("the plugin ends with %d, %v", status, err)
	}

	// The sidecar opens it again when nothing is revoked any more.
	if err := r.Block(false); err != nil {
		t.Fatal(err)
	}
	l := r.proxy4
	go func() {
		if conn, err := l.Accept(); err == nil {
			_ = conn.Close()
		}
	}()
	connect()
	if u, err := r.Usage(); err != nil || u.Connections == 0 {
		t.Errorf("after the plugin was unblocked: %+v, %v", u, err)
	}
}
