package ebpf

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// below makes a cgroup below another, removed with everything in it.
func below(t *testing.T, parent, name string) *sandbox.Cgroup {
	t.Helper()
	path := filepath.Join(parent, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	g, err := sandbox.OpenCgroup(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Kill(), g.Remove(), g.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// guest is a privileged process that a test starts in a cgroup.
func guest(t *testing.T, group *sandbox.Cgroup, program string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	n, err := sandbox.CurrentNetwork()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	return guestIn(t, n, group, program, args...)
}

// guestIn is guest in another network namespace.
func guestIn(t *testing.T, n *sandbox.Network, group *sandbox.Cgroup, program string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	command := exec.Command(program, args...)
	if program == "/proc/self/exe" {
		command.Args[0] = pluginName
	}
	command.Env = pluginEnv()
	out := new(bytes.Buffer)
	command.Stdout = out
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Dir.Fd())}
	if err := n.Do(command.Start); err != nil {
		t.Fatal(err)
	}
	return command, out
}

// end waits for a process and returns how it ended.
func end(t *testing.T, command *exec.Cmd) string {
	t.Helper()
	timer := time.AfterFunc(10*time.Second, func() {
		t.Errorf("%v lives", command.Args)
		_ = command.Process.Kill()
	})
	defer timer.Stop()
	_ = command.Wait()
	return command.ProcessState.String()
}

// escapes are the reported ones.
func escapes(denials []sandbox.Denial) (pids []int) {
	for _, d := range denials {
		if d.Hook == sandbox.HookEscape {
			pids = append(pids, int(d.PID))
		}
	}
	return pids
}

// weaken puts programs in place that cannot send a signal to another process,
// as on a kernel before 6.13, over the ones that can.
func weaken(t *testing.T, r *harness) {
	t.Helper()
	spec, err := loadProctrack()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(setTarget(spec, r.group, false), spec.Variables["pid_namespace"].Set(r.programs.pidNamespace), spec.Variables["signals"].Set(uint32(0))); err != nil {
		t.Fatal(err)
	}
	strong := r.programs.proctrack
	if r.programs.proctrack, err = r.programs.loadObject(spec); err != nil {
		t.Fatal(err)
	}
	for _, l := range r.programs.traces {
		defer func() { _ = l.Close() }()
	}
	if err := r.programs.attachProctrack(r.pinDir); err != nil {
		t.Fatal(err)
	}
	strong.Close()
}

// Root with every capability may write to any cgroup.procs. It ends there, with
// and without a signal that reaches other processes (Linux before 6.13).
func TestEscape(t *testing.T) {
	for name, signals := range map[string]bool{"by the kernel": true, "by user space": false} {
		t.Run(name, func(t *testing.T) {
			group, path := given(t)
			outside := below(t, filepath.Dir(group.Path), "chaperone-test-outside-"+strconv.Itoa(os.Getpid()))
			inner := below(t, group.Path, "inner")
			early, _ := guest(t, group, "sleep", "60")
			r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
			if !signals {
				weaken(t, r)
			}
			late, _ := guest(t, group, "sleep", "60")
			deep, _ := guest(t, inner, "sleep", "60")
			joined := exec.Command("sleep", "60")
			if err := joined.Start(); err != nil {
				t.Fatal(err)
			}
			move := func(process *exec.Cmd, to *sandbox.Cgroup) {
				t.Helper()
				if err := to.Set("cgroup.procs", strconv.Itoa(process.Process.Pid)); err != nil {
					t.Fatal(err)
				}
			}
			move(joined, group)
			// Inside its subtree the plugin may move.
			move(late, inner)
			move(late, group)
			move(deep, group)
			if populated, err := outside.Populated(); populated || err != nil {
				t.Fatal(populated, err)
			}
			var pids []int
			for _, process := range []*exec.Cmd{early, late, deep, joined} {
				if process.Process.Signal(unix.Signal(0)) != nil {
					t.Errorf("%d ended inside", process.Process.Pid)
				}
				move(process, outside)
				if got := end(t, process); got != "signal: killed" {
					t.Errorf("moved out by somebody else, it ended with %s", got)
				}
				pids = append(pids, process.Process.Pid)
			}
			self, out := guest(t, group, "/proc/self/exe", "try", "cgroup", filepath.Join(outside.Path, "cgroup.procs"))
			if got := end(t, self); got != "signal: killed" || out.Len() > 0 {
				t.Errorf("moved out by itself, it ended with %s after %q", got, out)
			}
			pids = append(pids, self.Process.Pid)
			born, out := guest(t, group, "/proc/self/exe", "try", "born-outside", outside.Path)
			got := end(t, born)
			if signals && strings.TrimSpace(out.String()) != "signal: killed" {
				t.Errorf("a child born outside: parent ended with %s after %q", got, out)
			}
			if err := outside.AwaitEmpty(patience); err != nil {
				t.Error(err)
			}
			seen := escapes(r.seen())
			for _, pid := range pids {
				if !slices.Contains(seen, pid) {
					t.Errorf("the escape of %d was not reported: %v", pid, seen)
				}
			}
			if u, err := r.usage(); err != nil || u.Ended != uint64(len(pids)+1) {
				t.Errorf("counted %d, %v", u.Ended, err)
			}
		})
	}
}

// Processes are counted one by one, threads are not, and what somebody else
// starts or moves into the cgroup is not the plugin's.
func TestProcesses(t *testing.T) {
	r := newHarness(t, nil)
	const n = 200
	r.ok(r.command(sandbox.Command{Args: []string{"sh", "-c", "i=0; while [ $i -lt " + strconv.Itoa(n) + " ]; do /bin/true; i=$((i+1)); done"}}))
	if u, err := r.Usage(); err != nil || u.Processes != n {
		t.Errorf("counted %d processes, %v; want %d", u.Processes, err, n)
	}
	r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import threading
threads = [threading.Thread(target=lambda: None) for _ in range(100)]
for thread in threads: thread.start()
for thread in threads: thread.join()`}}))
	if u, err := r.Usage(); err != nil || u.Processes != n {
		t.Errorf("with threads counted %d processes, %v; want %d", u.Processes, err, n)
	}
	// Another version of the programs takes the place of these in mid-count.
	done := r.start(&sandbox.Command{Args: []string{"sh", "-c", "i=0; while [ $i -lt " + strconv.Itoa(n) + " ]; do /bin/true; i=$((i+1)); done"}})
	for range 20 {
		old := maps.Clone(r.programs.traces)
		if err := r.programs.attachProctrack(r.pinDir); err != nil {
			t.Fatal(err)
		}
		for _, l := range old {
			_ = l.Close()
		}
	}
	r.ok(done())
	if u, err := r.Usage(); err != nil || u.Processes != 2*n {
		t.Errorf("while the programs were replaced counted %d processes, %v; want %d", u.Processes-n, err, n)
	}
}
