package ebpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// publicDir is a temporary directory that the plugin's user can enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestExitStatus(t *testing.T) {
	r := newHarness(t, nil)
	dir := publicDir(t)
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte{0, 1, 2, 3}, 0o755); err != nil {
		t.Fatal(err)
	}
	hidden := filepath.Join(dir, "hidden")
	if err := os.Mkdir(hidden, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 3"}, 3},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137},
		{[]string{"no-such-program"}, 127},
		{[]string{"/no/such/program"}, 127},
		{[]string{plain}, 126},
		{[]string{filepath.Join(hidden, "program")}, 126},
		{[]string{garbage}, 126},
		{[]string{dir}, 126},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			if got := r.command(sandbox.Command{Args: test.args}); got.status != test.want {
				t.Errorf("status %d (%s), want %d", got.status, got.stderr, test.want)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	r := newHarness(t, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	socket, err := dialled.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for name, command := range map[string]sandbox.Command{
		"no program":         {},
		"NUL in argument":    {Args: []string{"true", "a\x00b"}},
		"NUL in environment": {Args: []string{"true"}, Env: []string{"A=\x00"}},
		"socket as stdin":    {Args: []string{"true"}, Stdin: socket},
		"missing directory":  {Args: []string{"true"}, Dir: "/no/such/directory"},
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := r.Start(command); err == nil {
				_, _ = p.Wait()
				t.Error("started")
			} else {
				t.Log(err)
			}
		})
	}
	if populated, err := r.group.Populated(); populated || err != nil {
		t.Errorf("something was left behind: %v", err)
	}
}

// One program at a time, and none before the hooks stand.
func TestStartOrder(t *testing.T) {
	needKernel(t)
	c, err := New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := c.Start(sandbox.Command{Args: []string{"true"}}); !errors.Is(err, ErrNotAttached) {
		t.Errorf("started without walls: %v", err)
	}
	if err := c.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	p, err := c.Start(sandbox.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(sandbox.Command{Args: []string{"true"}}); err == nil {
		t.Error("started two")
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(); status != 137 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	// After a kill another program can run.
	if p, err = c.Start(sandbox.Command{Args: []string{"sh", "-c", "exit 4"}}); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); status != 4 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// shelter makes this process the last that the kernel ends for want of memory,
// as a service manager may, until the test ends; where it may (CAP_SYS_RESOURCE).
func shelter(t *testing.T) {
	t.Helper()
	const file = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("-500"), 0); errors.Is(err, os.ErrPermission) {
		t.Log("attributes that the plugin does not inherit could not be set up:", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(file, before, 0) })
}

func TestPrivileges(t *testing.T) {
	// A descriptor that this process's own parent left open, say.
	file, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	leaked, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD, 40)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leaked)
	shelter(t)
	for name, change := range map[string]func(*Config){
		"dynamic": nil,
		"nobody":  func(c *Config) { c.User = "nobody" },
		"number":  func(c *Config) { c.User = "12345" },
		"root":    func(c *Config) { c.User, c.UnsafeSameUser = "root", true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newHarness(t, change)
			out := r.ok(r.run("status"))
			uid, gid := strconv.Itoa(r.user.UID), strconv.Itoa(r.user.GID)
			for _, want := range []string{
				"Uid:\t" + strings.Join([]string{uid, uid, uid, uid}, "\t"),
				"Gid:\t" + strings.Join([]string{gid, gid, gid, gid}, "\t"),
				"Groups:\t \n",
				"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
				"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
				"NoNewPrivs:\t1", "Seccomp:\t2", "Core:\t1 1", "Shelter:\t0", "Session:\ttrue",
				"0::" + strings.TrimPrefix(r.group.Path, "/sys/fs/cgroup/unified"),
				"Interface:\tlo up|loopback|running",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("missing %q in\n%s", want, out)
				}
			}
			for line := range strings.Lines(out) {
				if fd, ok := strings.CutPrefix(line, "FD:\t"); ok && fd[0] > '2' && !strings.Contains(fd, "/sys/fs/cgroup/cpu") { // Go's own
					t.Errorf("plugin holds %s", fd)
				}
				if strings.HasPrefix(line, "Interface:") && !strings.Contains(line, "lo ") && strings.Contains(line, "up") {
					t.Errorf("plugin has %s", line)
				}
			}
			if info := r.Info(); info.SameUser != (name == "root") || info.UID != r.user.UID {
				t.Errorf("info is %+v", info)
			}
		})
	}
}

// Other processes of the plugin's user are out of its reach, whoever that is.
func TestScope(t *testing.T) {
	if launcher.LandlockVersion() < 6 {
		skipUnsupported(t, fmt.Errorf("got Landlock version %d, want 6", launcher.LandlockVersion()))
	}
	for name, change := range map[string]func(*Config){
		"12345": func(c *Config) { c.User = "12345" },
		"root":  func(c *Config) { c.User, c.UnsafeSameUser = "root", true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newHarness(t, change)
			other := exec.Command("/bin/sleep", "1000")
			other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(r.user.UID), Gid: uint32(r.user.GID)}}
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = other.Process.Kill(), other.Wait() }()
			dir := publicDir(t)
			if err := os.Chown(dir, r.user.UID, r.user.GID); err != nil {
				t.Fatal(err)
			}
			ask, end := r.dialogue("/proc/self/exe", pluginName, "tries")
			pid := strconv.Itoa(other.Process.Pid)
			for attempt, want := range map[string]string{
				"memory " + pid: "EACCES", "sidecar-mem " + pid: "EACCES", "kill " + pid: "EPERM", "rename " + dir: "ok",
			} {
				if got := ask(attempt); got != want {
					t.Errorf("%s ended with %s, want %s", attempt, got, want)
				}
			}
			end()
		})
	}
}

func TestUserIsRefused(t *testing.T) {
	needKernel(t)
	for _, user := range []string{"root", "0", "-1", "4294967295", "no-such-user"} {
		c, err := New(Config{StateDir: t.TempDir(), User: user})
		if err == nil {
			t.Errorf("took user %s", user)
			_ = c.Close()
		}
	}
	t.Setenv("SUDO_UID", "4242")
	t.Setenv("SUDO_GID", "4243")
	c, err := New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if c.user.UID != 4242 || c.user.GID != 4243 {
		t.Errorf("under sudo the user is %d:%d", c.user.UID, c.user.GID)
	}
}

func TestSignals(t *testing.T) {
	r := newHarness(t, nil)
	for _, test := range []struct {
		signal unix.Signal
		want   string
	}{
		{unix.SIGTERM, "parent TERM"},
		{unix.SIGHUP, "parent HUP"},
		{unix.SIGUSR1, "parent USR1"},
		{unix.SIGINT, "child INT"},
	} {
		t.Run(test.want, func(t *testing.T) {
			// Both report; a signal to the group reaches the child, too.
			script := `trap 'echo parent TERM; exit' TERM; trap 'echo parent HUP; exit' HUP; trap 'echo parent USR1; exit' USR1
trap 'wait; exit' INT
sh -c 'trap "echo child INT; exit" INT; echo ready; while :; do sleep 0.01; done' & 
while :; do sleep 0.01; done`
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			// A background child ignores SIGINT unless the shell has job control.
			shell := []string{"bash", "-m", "-c", script}
			if test.signal == unix.SIGINT {
				shell = []string{"python3", "-c", `
import os, signal, time
parent = os.getpid()
def report(*_):
    if os.getpid() != parent: os.write(1, b"child INT\n")
    else: os.wait()
    os._exit(0)
signal.signal(signal.SIGINT, report)
pid = os.fork()
if pid == 0: os.write(1, b"ready\n")
while True: time.sleep(0.01)
`}
			}
			p, err := r.Start(sandbox.Command{Args: shell, Env: pluginEnv(), Stdout: write})
			_ = write.Close()
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(read)
			if !lines.Scan() || lines.Text() != "ready" {
				t.Fatalf("got %q", lines.Text())
			}
			if err := p.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			if !lines.Scan() || lines.Text() != test.want {
				t.Errorf("got %q, want %q", lines.Text(), test.want)
			}
			if status, err := p.Wait(); status != 0 || err != nil {
				t.Errorf("status %d, %v", status, err)
			}
			if err := p.Signal(test.signal); err != nil {
				t.Errorf("signal after the end: %v", err)
			}
		})
	}
}

// Processes that CMD leaves in the background end with it.
func TestNothingOutlives(t *testing.T) {
	r := newHarness(t, nil)
	out := r.ok(r.command(sandbox.Command{Args: []string{
		"sh", "-c", "(setsid sleep 1000 >/dev/null 2>&1 & echo $!) ; (trap '' TERM HUP; setsid setsid sleep 1000 >/dev/null 2>&1 & echo $!)",
	}}))
	for field := range strings.FieldsSeq(out) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil && !strings.Contains(string(status), "State:\tZ") {
			t.Errorf("process %d lives", pid)
		}
	}
	if populated, err := r.group.Populated(); populated || err != nil {
		t.Errorf("populated %v, %v", populated, err)
	}
}

func TestStdin(t *testing.T) {
	r := newHarness(t, nil)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(write, "to be passed on")
	_ = write.Close()
	defer read.Close()
	if got := r.ok(r.command(sandbox.Command{Args: []string{"cat"}, Stdin: read})); got != "to be passed on" {
		t.Errorf("got %q", got)
	}
	if got := r.ok(r.command(sandbox.Command{Args: []string{"cat"}})); got != "" {
		t.Errorf("without stdin got %q", got)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("OF_THE_SIDECAR", "secret")
	r := newHarness(t, nil)
	got := r.ok(r.command(sandbox.Command{Path: "/usr/bin/env", Env: []string{"A=b", "C=\xff\xfe"}}))
	if got != "A=b\nC=\xff\xfe" {
		t.Errorf("got %q", got)
	}
}

// assemble writes a static program of the machine code given.
func assemble(t *testing.T, code []byte) string {
	t.Helper()
	const base, header = 0x400000, 64 + 56
	file := make([]byte, header, header+len(code))
	copy(file, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(file[16:], 2)           // executable
	le.PutUint16(file[18:], 62)          // x86-64
	le.PutUint32(file[20:], 1)           // version
	le.PutUint64(file[24:], base+header) // entry
	le.PutUint64(file[32:], 64)          // program header
	le.PutUint16(file[52:], 64)          // size of this header
	le.PutUint16(file[54:], 56)          // size of a program header
	le.PutUint16(file[56:], 1)           // one
	le.PutUint32(file[64:], 1)           // load
	le.PutUint32(file[68:], 5)           // read, execute
	le.PutUint64(file[80:], base)        // virtual address
	le.PutUint64(file[88:], base)        // physical address
	le.PutUint64(file[96:], uint64(header+len(code)))
	le.PutUint64(file[104:], uint64(header+len(code)))
	le.PutUint64(file[112:], 0x1000)
	file = append(file, code...)
	path := filepath.Join(publicDir(t), "program")
	if err := os.WriteFile(path, file, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// System calls under another architecture's numbers pass no filter rule.
func TestForeignArchitecture(t *testing.T) {
	if launcher.NativeArch != unix.AUDIT_ARCH_X86_64 {
		t.Skip("there is only one on this machine")
	}
	r := newHarness(t, nil)
	i386 := assemble(t, []byte{
		0xb8, 20, 0, 0, 0, // mov eax, 20 (getpid of i386)
		0xcd, 0x80, // int 0x80
		0xbf, 7, 0, 0, 0, // mov edi, 7
		0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
		0x0f, 0x05, // syscall
	})
	x32 := assemble(t, []byte{
		0xb8, 39, 0, 0, 0x40, // mov eax, getpid of x32
		0x0f, 0x05,
		0xbf, 7, 0, 0, 0,
		0xb8, 60, 0, 0, 0,
		0x0f, 0x05,
	})
	for _, path := range []string{i386, x32} {
		if got := r.command(sandbox.Command{Args: []string{path}}); got.status != 137 {
			t.Errorf("ended with %d, want 137", got.status)
		}
	}
	calls := 0
	for _, d := range r.seen() {
		if strings.Contains(d.Syscall, "architecture") || strings.Contains(d.Syscall, "foreign ABI") {
			calls++
		}
	}
	if calls != 2 {
		t.Errorf("%d were reported", calls)
	}
}

// The count of system calls is exact, class by class.
func TestSyscallsAreExact(t *testing.T) {
	if launcher.NativeArch != unix.AUDIT_ARCH_X86_64 {
		t.Skip("the test program is for x86-64")
	}
	const n = 200_000
	program := assemble(t, []byte{
		0x31, 0xff, // xor edi, edi
		0x48, 0x83, 0xec, 0x10, // sub rsp, 16
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 1, 0, 0, 0, // mov edx, 1
		0x31, 0xc0, // xor eax, eax (read)
		0x0f, 0x05, // syscall
		0xbb, n & 0xff, n >> 8 & 0xff, n >> 16 & 0xff, 0, // mov ebx, n
		0xb8, 110, 0, 0, 0, // loop: mov eax, 110 (getppid)
		0x0f, 0x05, // syscall
		0xff, 0xcb, // dec ebx
		0x75, 0xf5, // jnz loop
		0x31, 0xff, // xor edi, edi
		0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
		0x0f, 0x05, // syscall
	})
	r := newHarness(t, func(c *Config) { c.CountSyscalls = true })
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	p, err := r.Start(sandbox.Command{Args: []string{program}, Stdin: read})
	if err != nil {
		t.Fatal(err)
	}
	// It stands in read(2), with the launcher's calls behind it, once the
	// kernel says so.
	for wait := ""; !strings.HasPrefix(wait, "0 0x0 "); {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		wait = string(text)
	}
	before, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	if status, err := p.Wait(); status != 0 || err != nil {
		t.Fatalf("status %d, %v", status, err)
	}
	after, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Syscalls.Total - before.Syscalls.Total; got != n+1 { // with read, and without exit, which does not return
		t.Errorf("counted %d calls, want %d", got, n+1)
	}
	if got := after.Syscalls.Process - before.Syscalls.Process; got != n {
		t.Errorf("counted %d calls of class process, want %d", got, n)
	}
	if s := before.Syscalls; s.File == 0 || s.Memory == 0 || s.Total != s.File+s.Network+s.Process+s.Memory+s.IPC+s.Other {
		t.Errorf("classes are %+v", s)
	}
}

func TestFreeze(t *testing.T) {
	r := newHarness(t, nil)
	p, err := r.Start(sandbox.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Freeze(true); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for frozen := false; !frozen; {
		if frozen, err = r.group.Frozen(); err != nil || time.Now().After(deadline) {
			t.Fatalf("not frozen: %v", err)
		}
	}
	// A frozen plugin can be killed.
	if err := r.Kill(); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(); status != 137 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	if err := r.Freeze(false); err != nil {
		t.Error(err)
	}
}
