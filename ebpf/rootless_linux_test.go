package ebpf

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
)

// parentName as argv[0] makes the test binary the sidecar of a rootless sandbox.
const parentName = "chaperone-test-rootless"

// The user nobody is an ordinary one.
const nobody = 65534

// parentReport is what a parent writes first.
type parentReport struct {
	Err       string
	PID       int
	Addresses []string
	Denials   int
}

// rootlessParent makes a rootless sandbox and starts the test binary in it, which has its standard
// input and output; on standard error it reports what it made.
func rootlessParent(private []string, args ...string) error {
	say := json.NewEncoder(os.Stderr)
	denials := make(chan sandbox.Denial, 100)
	f, err := sandbox.NewRootless(sandbox.RootlessConfig{
		Plugin: "test", Proxy: []string{"127.0.0.1:0", "[::1]:0"}, Private: private,
		Denied: func(d sandbox.Denial) { denials <- d },
	})
	if err != nil {
		return say.Encode(parentReport{Err: err.Error()})
	}
	defer f.Close()
	made := parentReport{}
	for _, l := range f.Listeners() {
		made.Addresses = append(made.Addresses, l.Addr().String())
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, "hello")
				_ = conn.Close()
			}
		}()
	}
	p, err := f.Start(sandbox.Command{
		Path: "/proc/self/exe", Args: append([]string{pluginName}, args...), Env: pluginEnv(), Stdin: os.Stdin, Stdout: os.Stdout,
	})
	if err != nil {
		return say.Encode(parentReport{Err: err.Error()})
	}
	made.PID = p.PID()
	if err := say.Encode(made); err != nil {
		return err
	}
	status, err := p.Wait()
	if err != nil {
		return err
	}
	if err := say.Encode(parentReport{Denials: len(denials)}); err != nil {
		return err
	}
	os.Exit(status)
	return nil
}

// runParent is main's part: the private paths, then the plugin's arguments.
func runParent(args []string) error {
	var private []string
	if err := json.Unmarshal([]byte(args[0]), &private); err != nil {
		return err
	}
	return rootlessParent(private, args[1:]...)
}

// startParent runs a parent as an ordinary user.
func startParent(t *testing.T, private []string, args ...string) (cmd *exec.Cmd, stdin io.WriteCloser, stdout *bufio.Scanner, said *json.Decoder) {
	t.Helper()
	needKernel(t)
	list, err := json.Marshal(private)
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe", append([]string{string(list)}, args...)...)
	cmd.Args[0] = parentName
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd, stdin, bufio.NewScanner(out), json.NewDecoder(errs)
}

func TestRootless(t *testing.T) {
	dir := publicDir(t)
	secret, state := filepath.Join(dir, "secret-id"), mkdir(t, dir, "state")
	if err := errors.Join(os.WriteFile(secret, []byte("s3cret"), 0o600), os.WriteFile(state+"/audit", []byte("s3cret"), 0o600),
		os.Chown(secret, nobody, nobody), os.Chown(state, nobody, nobody), os.Chown(state+"/audit", nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	abstract := fmt.Sprintf("@chaperone-test-rootless-%d", os.Getpid())
	serveUnix(t, "unix", abstract)
	serveUnix(t, "unix", filepath.Join(dir, "docker.sock"))
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	cmd, stdin, stdout, said := startParent(t, []string{secret, state}, "tries")
	var made, after parentReport
	if err := said.Decode(&made); err != nil || made.Err != "" {
		t.Fatalf("%v %s", err, made.Err)
	}
	self := strconv.Itoa(cmd.Process.Pid)
	for _, test := range []struct{ attempt, want string }{
		{"dial " + made.Addresses[0], "ok"},
		{"dial " + made.Addresses[1], "ok"},
		{"dial " + host.Addr().String(), "ECONNREFUSED"},
		{"dial 192.0.2.1:443", "ENETUNREACH"},
		{"dial 240.0.0.9:443", "ENETUNREACH"},
		{"dial [2001:db8::9]:443", "ENETUNREACH"},
		{"dial [fe80::1%lo]:443", "ENETUNREACH"},
		{"udp4 192.0.2.1:53", "ENETUNREACH"},
		{"udp6 [2001:db8::9]:53", "ENETUNREACH"},
		{"udp4 127.0.0.53:53", "ok"}, // it goes nowhere
		{"unix " + abstract, "EPERM"},
		{"unix-send " + abstract, "EPERM"},
		{"unix-pair " + abstract, "EPERM"},
		{"unix " + dir + "/docker.sock", "EPERM"},
		{"pair-stream", "ok"},
		{"packet", "EPERM"},
		{"raw", "EPERM"},
		{"vsock", "EPERM"},
		{"netlink", "EPERM"},
		{"io_uring", "EPERM"},
		{"unshare", "EPERM"},
		{"setns", "EPERM"},
		{"mount", "EPERM"},
		{"clone-user", "EPERM"},
		{"clone-parent", "EPERM"},
		{"ptrace", "EPERM"},
		{"pidfd_getfd", "EPERM"},
		{"bpf", "EPERM"},
		{"tiocsti", "EPERM"},
		{"chroot", "EPERM"},
		{"content " + secret, "nothing"},
		{"list " + state, "EACCES"},
		{"read " + state + "/audit", "EACCES"},
		{"unmount " + state, "EPERM"},
		{"memory 1", "EACCES"},
		{"sidecar-mem 1", "EACCES"},
		{"kill " + self, "ESRCH"},
		{"read /proc/" + self + "/status", "ENOENT"},
		{"bind tcp 127.0.0.1:8080", "ok"},
	} {
		fmt.Fprintln(stdin, test.attempt)
		if !stdout.Scan() {
			t.Fatalf("%s: the plugin ended: %v", test.attempt, stdout.Err())
		}
		if got := stdout.Text(); got != test.want {
			t.Errorf("%s ended with %s, want %s", test.attempt, got, test.want)
		}
	}
	if pid := made.PID; pid == 0 || unix.Kill(pid, 0) != nil {
		t.Errorf("its number is %d", pid)
	}
	_ = stdin.Close()
	if err := said.Decode(&after); err != nil || after.Denials == 0 {
		t.Errorf("%d refusals were reported, %v", after.Denials, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// The plugin in a rootless sandbox has no privilege and no way up.
func TestRootlessPrivileges(t *testing.T) {
	cmd, _, stdout, said := startParent(t, nil, "status")
	var out strings.Builder
	for stdout.Scan() {
		fmt.Fprintln(&out, stdout.Text())
	}
	var made parentReport
	if err := said.Decode(&made); err != nil || made.Err != "" {
		t.Fatalf("%v %s", err, made.Err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"Uid:\t65534\t65534\t65534\t65534", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Core:\t1 1", "Session:\ttrue",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("missing %q in\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if fd, ok := strings.CutPrefix(line, "FD:\t"); ok && fd[0] > '2' && !strings.Contains(fd, "/sys/fs/cgroup/cpu") { // Go's own
			t.Errorf("plugin holds %s", fd)
		}
		if strings.HasPrefix(line, "Interface:") && !strings.Contains(line, "lo ") {
			t.Errorf("plugin has %s", line)
		}
	}
}

// A process that a plugin leaves in the background ends with it, and with a sidecar that
// is killed.
func TestRootlessEndsEverything(t *testing.T) {
	for _, how := range []string{"by itself", "with its sidecar"} {
		t.Run(how, func(t *testing.T) {
			marker := fmt.Sprintf("86%07d", os.Getpid()%1e7)
			cmd, stdin, stdout, said := startParent(t, nil, "daemon", marker)
			var made parentReport
			if err := said.Decode(&made); err != nil || made.Err != "" {
				t.Fatalf("%v %s", err, made.Err)
			}
			if !stdout.Scan() || sleeping(marker) == 0 {
				t.Fatalf("no process is left behind: %s", stdout.Text())
			}
			if how == "by itself" {
				_ = stdin.Close()
			} else if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			for deadline := time.Now().Add(patience); sleeping(marker) > 0 || unix.Kill(made.PID, 0) == nil; {
				if time.Now().After(deadline) {
					t.Fatal("something lives on")
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// sleeping counts the processes that sleep for as long as a marker specifies.
func sleeping(marker string) int {
	n := 0
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && string(text) == "sleep\x00"+marker+"\x00" {
			n++
		}
	}
	return n
}

// newRootless makes one as root, for a user that nobody has.
func newRootless(t *testing.T) *sandbox.Rootless {
	t.Helper()
	needKernel(t)
	f, err := sandbox.NewRootless(sandbox.RootlessConfig{Plugin: "test", Proxy: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, l := range f.Listeners() {
			_ = l.Close()
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestRootlessStart(t *testing.T) {
	f := newRootless(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	for _, test := range []struct {
		command sandbox.Command
		want    int
	}{
		{sandbox.Command{Args: []string{"sh", "-c", "id -u; pwd"}, Dir: "/usr", Stdout: write}, 0},
		{sandbox.Command{Args: []string{"sh", "-c", "exit 3"}}, 3},
		{sandbox.Command{Args: []string{"sh", "-c", "kill -TERM $$"}}, 143},
		{sandbox.Command{Args: []string{"no-such-program"}}, 127},
		{sandbox.Command{Args: []string{"cat", "/etc/hostname"}, Files: &sandbox.Files{}}, 1},
		{sandbox.Command{Args: []string{"cat", "/etc/hostname"}, Files: &sandbox.Files{Read: []string{"/etc/hostname"}}}, 0},
		{sandbox.Command{Args: []string{"cat", "/proc/self/status"}, Files: &sandbox.Files{}}, 0},
	} {
		test.command.Env = pluginEnv()
		p, err := f.Start(test.command)
		status := 0
		if failed, ok := errors.AsType[*sandbox.ExecError](err); ok {
			status = failed.Status
		} else if err != nil {
			t.Fatal(err)
		} else if status, err = p.Wait(); err != nil {
			t.Error(err)
		}
		if status != test.want {
			t.Errorf("%v ended with %d, want %d", test.command.Args, status, test.want)
		}
	}
	_ = write.Close()
	if out, err := io.ReadAll(read); string(out) != strconv.Itoa(f.Account().UID)+"\n/usr\n" || f.Account().UID == 0 || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := f.Start(sandbox.Command{}); err == nil {
		t.Error("started nothing")
	}
	if _, err := f.Start(sandbox.Command{Args: []string{"true"}, Dir: "/no/such/directory"}); err == nil {
		t.Error("started nowhere")
	}
	if len(f.Limits()) < 6 {
		t.Errorf("limits are %q", f.Limits())
	}
}

func TestRootlessSignalsAndKill(t *testing.T) {
	f := newRootless(t)
	p, err := f.Start(sandbox.Command{Args: []string{"sleep", "1000"}, Env: pluginEnv()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(sandbox.Command{Args: []string{"true"}}); err == nil {
		t.Error("started two")
	}
	if err := p.Signal(unix.SIGINT); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(); status != 130 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if p, err = f.Start(sandbox.Command{Args: []string{"sh", "-c", "trap '' TERM INT; (setsid sleep 1000 &) ; sleep 1000"}, Env: pluginEnv()}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := f.Kill(); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(); status != 137 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	t.Logf("everything was dead after %v", time.Since(begun))
	if _, err := f.Start(sandbox.Command{Args: []string{"true"}}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("started after the end: %v", err)
	}
}

// A port that the plugin serves is reached from outside.
func TestRootlessDial(t *testing.T) {
	f := newRootless(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if _, err := f.DialContext(t.Context(), "tcp", "127.0.0.1:8080"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("no server: %v", err)
	}
	p, err := f.Start(sandbox.Command{Env: pluginEnv(), Stdout: write, Args: []string{"/usr/bin/python3", "-c", `
import socket
l = socket.create_server(("127.0.0.1", 8080)); print("ready", flush=True)
c, _ = l.accept(); c.sendall(b"served"); c.close()`}})
	_ = write.Close()
	if err != nil {
		t.Fatal(err)
	}
	bufio.NewScanner(read).Scan()
	conn, err := f.DialContext(t.Context(), "tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "served" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if status, err := p.Wait(); status != 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	for _, address := range []string{"192.0.2.1:80", "localhost:80", "nonsense"} {
		if _, err := f.DialContext(t.Context(), "tcp", address); err == nil {
			t.Errorf("dialled %s", address)
		}
	}
}

// Where no sandbox can be made, the error reports it: in a confinement, whose
// filter refuses namespaces.
func TestNoRootless(t *testing.T) {
	r := newHarness(t, nil)
	got := r.ok(r.run("rootless"))
	if !strings.HasPrefix(got, "true ") || !strings.Contains(got, "user namespaces are refused") {
		t.Errorf("got %q", got)
	}
	for _, address := range []string{"192.0.2.1:80", "localhost:80", "[::]:0"} {
		if f, err := sandbox.NewRootless(sandbox.RootlessConfig{Proxy: []string{address}}); err == nil {
			t.Errorf("listens on %s", address)
			_ = f.Close()
		}
	}
	for _, path := range []string{"", "state", "./state"} {
		f, err := sandbox.NewRootless(sandbox.RootlessConfig{Private: []string{path}})
		if err == nil {
			_ = f.Close()
		}
		if !strings.Contains(fmt.Sprint(err), "not absolute") {
			t.Errorf("hides %q: %v", path, err)
		}
	}
}
