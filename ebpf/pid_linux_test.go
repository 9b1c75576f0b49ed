package ebpf

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// namespacedName in the environment marks a run of the tests that is in a PID
// namespace of its own already.
const namespacedName = "CHAPERONE_TEST_PID_NAMESPACE"

// TestInPIDNamespace runs the tests that depend on process ids once more, as the
// first process of a PID namespace, which is how a container's sidecar runs: the
// kernel's ids and the sidecar's are different numbers there.
func TestInPIDNamespace(t *testing.T) {
	needKernel(t)
	testenv.Require(t, testenv.Program("unshare"))
	if os.Getenv(namespacedName) != "" {
		return // the tests are in a PID namespace of their own already
	}
	const chosen = `^(TestEscape|TestForeignSockets|TestWhoCrossed|TestRedirect|TestHandedOver|TestNestedPID|TestThreadOfRefusedCall|TestProcesses|TestKilledSidecar|TestProbe)$`
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
		testenv.MustGet(os.Executable())(t), "-test.run", chosen, "-test.v")
	command.Env = append(os.Environ(), namespacedName+"=1")
	out, err := command.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("--- SKIP")) || !bytes.Contains(out, []byte("\n--- PASS: TestEscape")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// nested is a process of a PID namespace below the sidecar's, and its id in the
// sidecar's.
func nested(t *testing.T, group *sandbox.Cgroup, path string) (resident, uint32) {
	t.Helper()
	r := settle(t, group, path, "unshare", "--pid", "--fork", "--kill-child", python(t), "-c", talker)
	var child int
	becomes(t, "the process in its own PID namespace", func() bool {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.pid), "task", strconv.Itoa(r.pid), "children"))
		if err != nil {
			t.Fatal(err)
		}
		child, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	if got := r.ask(`held.append(socket.socket())`); got != "ok" {
		t.Fatal(got)
	}
	return r, uint32(child)
}

// A plugin in a PID namespace below the sidecar's is named by the sidecar's ids,
// not by its own and not by the kernel's.
func TestNestedPID(t *testing.T) {
	testenv.Require(t, testenv.Program("unshare"))
	group, path := given(t)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	plugin, pid := nested(t, group, path)
	defer plugin.end()
	peers := r.answer(r.proxy4)
	if got := plugin.ask(`held[0].connect(("240.0.0.9", 443)) or held[0].shutdown(1)`); got != "ok" {
		t.Fatal(got)
	}
	peer := <-peers
	if want := testenv.MustGet(os.Readlink("/proc/" + strconv.Itoa(int(pid)) + "/exe"))(t); peer.PID != pid || peer.Exe != want {
		t.Errorf("identified as %d %s, want %d %s", peer.PID, peer.Exe, pid, want)
	}
	if got := plugin.ask(`socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("240.0.0.9", 9))`); got != "EPERM" {
		t.Errorf("a datagram: %s", got)
	}
	weaken(t, r) // the escape is ended by its id
	outside := below(t, filepath.Dir(group.Path), "chaperone-test-outside-"+strconv.Itoa(os.Getpid()))
	if err := outside.Set("cgroup.procs", strconv.Itoa(int(pid))); err != nil {
		t.Fatal(err)
	}
	plugin.wait() // for the end of unshare, which follows
	if err := outside.AwaitEmpty(patience); err != nil {
		t.Errorf("moved out, it lives: %v", err)
	}
	seen := r.seen()
	for _, hook := range []sandbox.Hook{sandbox.HookSendmsg, sandbox.HookEscape} {
		if !slices.ContainsFunc(seen, func(d sandbox.Denial) bool { return d.Hook == hook && d.PID == pid }) {
			t.Errorf("%s was not reported with id %d: %+v", hook, pid, seen)
		}
	}
}

// A refused system call of a thread is recorded with the id of its process.
func TestThreadOfRefusedCall(t *testing.T) {
	testenv.Require(t, testenv.Program("python3"))
	r := newHarness(t, nil)
	pid := r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import os, socket, threading
def refused():
    try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    except PermissionError: print(os.getpid())
thread = threading.Thread(target=refused)
thread.start()
thread.join()`}}))
	seen := r.seen()
	if len(seen) != 1 || strconv.Itoa(int(seen[0].PID)) != pid || !strings.Contains(seen[0].Exe, "python") {
		t.Errorf("process %s is reported as %+v", pid, seen)
	}
}

// A process that is in no PID namespace that the sidecar sees has the id 0, and
// is refused nevertheless.
func TestInvisiblePID(t *testing.T) {
	testenv.Require(t, testenv.Program("unshare"))
	group, path := given(t)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	// The programs of a sidecar in another namespace than the processes'.
	plugin, _ := nested(t, group, path)
	defer plugin.end()
	r.programs.pidNamespace = 1 // the inode of none
	old := r.programs.base
	spec, err := r.programs.read("wall", loadHooks, group, false)
	if err != nil {
		t.Fatal(err)
	}
	if r.programs.base, err = r.programs.loadWithSignals(spec); err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for name, l := range r.programs.links {
		if program := r.programs.base.Programs[name]; program != nil {
			if err := l.Update(program); err != nil {
				t.Fatal(err)
			}
		}
	}
	peers := r.answer(r.proxy4)
	if got := plugin.ask(`held[0].connect(("240.0.0.9", 443)) or held[0].shutdown(1)`); got != "ok" {
		t.Fatal(got)
	}
	if peer := <-peers; peer.PID != 0 || peer.Exe != "" || peer.Original != netip.MustParseAddrPort("240.0.0.9:443") {
		t.Errorf("identified as %+v", peer)
	}
	if got := plugin.ask(`socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("240.0.0.9", 9))`); got != "EPERM" {
		t.Errorf("a datagram: %s", got)
	}
	seen := r.seen()
	if !slices.ContainsFunc(seen, func(d sandbox.Denial) bool {
		return d.Hook == sandbox.HookSendmsg && d.PID == 0 && d.Exe == "" && d.Comm != ""
	}) {
		t.Errorf("reported %+v", seen)
	}
	if err := endEscaped(0, bootTime()); err == nil {
		t.Error("a process without an id is ended by it")
	}
}

func TestOwnProc(t *testing.T) {
	for status, want := range map[string]string{
		"Name:\tx\nNSpid:\t12\nNSpgid:\t12\n":   "",
		"Name:\tx\nNSpid:\t812\t1\n":            "1 above",
		"Name:\tx\nNSpid:\t812\t30\t1\nX:\t1\n": "2 above",
		"Name:\tx\n":                            "no line NSpid",
		"":                                      "no line NSpid",
	} {
		err := ownProc(status)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", status, err, want)
		}
	}
}

// Where /proc shows another PID namespace than the sidecar's, nothing is
// confined: its ids name other processes there.
func TestForeignProc(t *testing.T) {
	needKernel(t)
	testenv.Require(t, testenv.Program("unshare"))
	if len(os.Args) > 1 && os.Getenv(namespacedName) == "foreign" {
		_, err := New(Config{StateDir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "mount -t proc") {
			t.Fatalf("made a cage: %v", err)
		}
		return
	}
	command := exec.CommandContext(t.Context(), "unshare", "--pid", "--fork", "--kill-child",
		testenv.MustGet(os.Executable())(t), "-test.run", "^TestForeignProc$")
	command.Env = append(os.Environ(), namespacedName+"=foreign")
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestInvisibleProcesses refuses a cgroup with a process that the sidecar does not see,
// whose sockets would not be found.
func TestInvisibleProcesses(t *testing.T) {
	testenv.Require(t, testenv.Program("unshare"))
	const cgroupName = "CHAPERONE_TEST_CGROUP"
	if path := os.Getenv(cgroupName); path != "" {
		c := testenv.MustGet(New(Config{StateDir: t.TempDir(), CgroupPath: path}))(t)
		err := c.Attach(Endpoints{})
		if err == nil || !strings.Contains(err.Error(), "hostPID") || len(c.Info().Programs) > 0 {
			t.Errorf("attached to the cgroup of processes that it does not see: %v", err)
		}
		testenv.Must(t, c.Close())
		return
	}
	group, _ := given(t)
	sleeper, _ := guest(t, group, "sleep", "60")
	command := exec.CommandContext(t.Context(), "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
		testenv.MustGet(os.Executable())(t), "-test.run", "^TestInvisibleProcesses$")
	command.Env = append(os.Environ(), cgroupName+"="+group.Path)
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	testenv.Must(t, sleeper.Process.Kill())
	_ = sleeper.Wait()
}
