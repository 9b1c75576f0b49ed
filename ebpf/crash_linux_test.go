package ebpf

import (
	"bufio"
	"context"
	"crypto/rand"
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
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// sidecarName as argv[0] makes the test binary a sidecar that is to be killed.
const sidecarName = "chaperone-test-sidecar"

// doomed is what that sidecar reports about itself.
type doomed struct {
	Info Info
	PID  int // the plugin's
}

// doomedLimit is how many connections a doomed sidecar's plugin may open in an
// hour, if it is limited.
const doomedLimit = 20

// sidecar runs a plugin that tries to get out for ever, until it is killed. The
// action is what happens at its limit; without one there does not exist.
func sidecar(stateDir, out string, action ...string) error {
	c, err := New(Config{StateDir: stateDir})
	if err != nil {
		return err
	}
	proxy, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := c.Attach(Endpoints{Proxy4: tcpPort(proxy)}); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := proxy.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	if len(action) > 0 {
		l := Limit{Name: "doomed", Kind: LimitConnections, Count: doomedLimit, Period: time.Hour}
		if action[0] == ActionStop.String() {
			l.Action = ActionStop
		}
		if action[0] == callsPlugin {
			if l, err = farCalls(ActionDeny); err != nil {
				return err
			}
		}
		if err := c.Limit([]Limit{l}); err != nil {
			return err
		}
		go func() { _ = c.Run(context.Background()) }()
	}
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	command := sandbox.Command{Path: "/proc/self/exe", Args: []string{pluginName, "persist", "240.0.0.9:80"}, Stdout: file}
	if len(action) > 0 && action[0] == callsPlugin {
		if err := file.Truncate(int64(os.Getpagesize())); err != nil {
			return err
		}
		command.Args, command.Stdin = []string{pluginName, callsPlugin, "2"}, os.Stdin
	}
	p, err := c.Start(command)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(doomed{c.Info(), p.PID()}); err != nil {
		return err
	}
	_, err = p.Wait()
	return err
}

// awaitLines waits until the file holds n more lines, and returns those.
func awaitLines(t *testing.T, path string, from, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(lines) >= from+n {
			return lines[from:]
		}
		if time.Now().After(deadline) {
			t.Fatalf("the plugin wrote %d lines, waited for %d more after %d", len(lines), n, from)
		}
	}
}

// TestKilledSidecar: a killed sidecar leaves the plugin blocked, and no other one starts
// until what it left is removed.
func TestKilledSidecar(t *testing.T) {
	needKernel(t)
	dir := publicDir(t)
	state, out := filepath.Join(dir, "state"), filepath.Join(dir, "out")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/proc/self/exe", state, out)
	command.Args[0] = sidecarName
	command.Stderr = os.Stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var left doomed
	if err := json.NewDecoder(stdout).Decode(&left); err != nil {
		t.Fatal(err)
	}
	before := awaitLines(t, out, 0, 10)
	if before[9] != "ok" {
		t.Fatalf("the plugin could not connect: %v", before)
	}
	if err := Detach(state, true); !errors.Is(err, sandbox.ErrBusy) {
		t.Errorf("detached a running sidecar: %v", err)
	}
	if _, err := New(Config{StateDir: state}); !errors.Is(err, sandbox.ErrBusy) {
		t.Errorf("two sidecars: %v", err)
	}
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, stdout)
	_ = command.Wait()
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	// The one that was under way may still be reported as it was.
	after := awaitLines(t, out, strings.Count(string(text), "\n")+1, 50)
	for _, line := range after {
		if line != "ECONNREFUSED" {
			t.Fatalf("with the sidecar gone, connect ended with %s", line)
		}
	}
	if _, err := New(Config{StateDir: state}); !errors.Is(err, ErrPopulated) {
		t.Errorf("started beside a plugin that was left: %v", err)
	}
	if err := Detach(state, false); !errors.Is(err, ErrPopulated) {
		t.Errorf("detached a living plugin: %v", err)
	}
	if names, err := pinned(left.Info.Pins); err != nil || len(names) < 16 {
		t.Errorf("pins are %v, %v", names, err)
	}
	if err := Detach(state, true); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(left.PID, 0); err == nil && !zombie(left.PID) {
		t.Error("the plugin lives")
	}
	for _, path := range []string{left.Info.Cgroup, left.Info.Pins} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if err := Detach(state, false); err != nil {
		t.Errorf("detach of nothing: %v", err)
	}
	c, err := New(Config{StateDir: state})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func zombie(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(text), ") Z ")
}

// The next sidecar removes what a sidecar left whose plugin has ended since.
func TestLeftoversAreSwept(t *testing.T) {
	needKernel(t)
	state := t.TempDir()
	first, err := New(Config{StateDir: state})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	// As if killed: handles close, and nothing else is done.
	if err := errors.Join(first.programs.close(), first.group.Close(), first.network.Close(), first.user.Release(), first.stateLock.Release()); err != nil {
		t.Fatal(err)
	}
	second, err := New(Config{StateDir: state})
	if err != nil {
		t.Fatal(err)
	}
	if second.group.ID == first.group.ID {
		t.Error("the cgroup is the same")
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// given is a cgroup that a process is already in, and a network namespace that
// stands for the host's: nothing in these tests touches the real one.
func given(t *testing.T) (*sandbox.Cgroup, string) {
	t.Helper()
	needKernel(t)
	h, err := hostPlaces.FindCgroupMount()
	if err != nil {
		t.Fatal(err)
	}
	group, err := sandbox.MakeCgroup(h, "chaperone-test-given-"+rand.Text())
	if err != nil {
		t.Fatal(err)
	}
	if err := group.Set("cgroup.max.descendants", "max"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(group.Kill(), unpinFrom(group), group.Remove(), group.Close()); err != nil {
			t.Error(err)
		}
	})
	n, err := sandbox.NewNetwork(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return group, fdPath(n)
}

// unpinFrom takes every confinement's programs off a cgroup, where they would stay as
// long as it does.
func unpinFrom(group *sandbox.Cgroup) error {
	root, err := bpfRoot(hostPlaces)
	if err != nil {
		return err
	}
	cages, err := pinned(root)
	if err != nil {
		return err
	}
	for _, confinement := range cages {
		dir := filepath.Join(root, confinement)
		if pinnedTo(filepath.Join(dir, linkPrefix+"egress")) == group.ID {
			err = errors.Join(err, unpin(dir))
		}
	}
	return err
}

// resident is a privileged process in a given cgroup: no seccomp filter, every
// capability, so that the hooks stand alone.
type resident struct {
	pid  int
	ask  func(string) string
	end  func()
	wait func() string // says how it ended by itself
}

func settle(t *testing.T, group *sandbox.Cgroup, path string, program ...string) resident {
	t.Helper()
	return settleWith(t, group, path, nil, program...)
}

// settleWith is settle with open files, which the process has from number 3 on.
func settleWith(t *testing.T, group *sandbox.Cgroup, path string, files []*os.File, program ...string) resident {
	t.Helper()
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	command := exec.Command(program[0], program[1:]...)
	if program[0] == "/proc/self/exe" {
		command.Args[0] = pluginName
	}
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Dir.Fd())}
	command.Stderr = os.Stderr
	command.Env = pluginEnv()
	command.ExtraFiles = files
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Do(command.Start); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	wait := sync.OnceValue(func() string { _ = command.Wait(); return command.ProcessState.String() })
	r := resident{
		pid: command.Process.Pid,
		ask: func(line string) string {
			t.Helper()
			fmt.Fprintln(stdin, line)
			if !lines.Scan() {
				t.Fatalf("the process ended: %v", lines.Err())
			}
			return lines.Text()
		},
		end: func() {
			_ = stdin.Close()
			wait()
		},
		wait: func() string {
			t.Helper()
			timer := time.AfterFunc(5*scanInterval, func() {
				t.Error("the process lives")
				_ = command.Process.Kill()
			})
			defer timer.Stop()
			return wait()
		},
	}
	t.Cleanup(r.end)
	return r
}

// python is Python itself: a shim that looks for it would pass other hooks first.
func python(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestGivenCgroup confines a cgroup that was given, in a network that others use, as root
// with every capability and without a filter: the hooks alone confine it.
func TestGivenCgroup(t *testing.T) {
	group, path := given(t)
	old := settle(t, group, path, python(t), "-c", talker)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	var stranger net.Listener
	if err := n.Do(func() (err error) { stranger, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_, port, _ := net.SplitHostPort(stranger.Addr().String())
	// From before the hooks: one connected socket, one that is not.
	if got := old.ask(`tcp("127.0.0.1", ` + port + `)`); got != "ok" {
		t.Fatal(got)
	}
	if got := old.ask(`held.append(socket.socket())`); got != "ok" {
		t.Fatal(got)
	}
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath, c.Serve = group.Path, path, []uint16{8080} })
	if r.Info().OwnNetwork {
		t.Error("takes the host's network for the plugin's own")
	}
	if got := old.ask(`held[0].send(b"x" * 10)`); got != "ECONNABORTED" {
		t.Fatalf("on a connection from before send ended with %s", got)
	}
	accepted, err := stranger.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if err := accepted.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := accepted.Read(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes came through on a connection from before", n)
	}
	peers := r.answer(r.proxy4)
	if got := old.ask(`held[1].connect(("127.0.0.1", ` + port + `))`); got != "ok" {
		t.Fatal(got)
	}
	if got := old.ask(`held[1].shutdown(1)`); got != "ok" {
		t.Fatal(got)
	}
	if peer := <-peers; peer.Original != tcpPort(stranger) || peer.UID != 0 {
		t.Errorf("the host's loopback: %+v", peer)
	}
	attempts := settle(t, group, path, "/proc/self/exe", "tries")
	for attempt, want := range map[string]string{
		"udp4 127.0.0.1:9":          "EPERM",
		"udp4 10.0.0.9:9":           "EPERM",
		"udp6 [::1]:9":              "EPERM",
		"udp-write 127.0.0.1:9":     "EPERM",
		"udplite":                   "EPERM",
		"raw":                       "EPERM",
		"raw6":                      "EPERM",
		"ping":                      "EACCES", // the kernel comes first
		"mptcp":                     "EPERM",
		"unix @chaperone-test-host": "EPERM",
		"unix /run/docker.sock":     "EPERM",
		"unix-send /dev/log":        "EPERM",
		"unix-pair /dev/log":        "EPERM",
		"bind tcp 127.0.0.1:8081":   "EPERM",
		"bind tcp 127.0.0.1:0":      "EPERM",
		"bind udp 127.0.0.1:8080":   "EPERM",
		"bind udp 0.0.0.0:0":        "ok",
		"bind tcp 127.0.0.1:8080":   "ok",
		"source-route 10.0.0.9 127.0.0.1:" + port: "EPERM",
	} {
		if got := attempts.ask(attempt); got != want {
			t.Errorf("%s ended with %s, want %s", attempt, got, want)
		}
	}
	// Another network namespace is no way out, whatever is in it.
	if got := attempts.ask("unshare-net-connect 240.0.0.9:80"); got != "EPERM" {
		t.Errorf("from another namespace connect ended with %s", got)
	}
	seen := make(map[sandbox.Hook]int)
	for _, d := range r.seen() {
		seen[d.Hook]++
	}
	for _, hook := range []sandbox.Hook{
		sandbox.HookConnect, sandbox.HookSendmsg, sandbox.HookSocket, sandbox.HookBind, sandbox.HookEgress, sandbox.HookConnectUnix, sandbox.HookSendmsgUnix, sandbox.HookDescriptor,
	} {
		if seen[hook] == 0 {
			t.Errorf("no denial was reported by %s", hook)
		}
	}
}

// lead gives a network namespace a way out: an interface with a route, to
// nowhere.
func lead(t *testing.T, n *sandbox.Network) {
	t.Helper()
	for _, args := range []string{
		"link add out0 type veth peer name out1", "address add 10.9.9.1/24 dev out0", "link set out0 up",
		"link set out1 up", "route add default via 10.9.9.2",
	} {
		err := n.Do(func() error {
			out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// fdPath names a namespace for [openNetwork].
func fdPath(n *sandbox.Network) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.File.Fd())
}

// Should a way out ever appear in the plugin's own network, and a socket that
// passed no hook, packets still end at the last hook.
func TestLastWall(t *testing.T) {
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
	lead(t, c.network)
	local, err := c.ListenPacket("udp4", "10.9.9.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	plugin := settle(t, c.group, fdPath(c.network), python(t), "-c", talker)
	for _, attempt := range []string{`early("10.9.9.2")`, `held[0].send(b"x")`, `early("10.9.9.1")`, `held[1].send(b"x")`} {
		if got := plugin.ask(attempt); got != "ok" {
			t.Fatalf("before the walls: %s", got)
		}
	}
	// Without the scan, which ends such sockets.
	if err := c.attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	for _, attempt := range []string{`held[0].send(b"x")`, `held[1].send(b"x")`} {
		if got := plugin.ask(attempt); got != "EPERM" {
			t.Errorf("a datagram to an open way out ended with %s", got)
		}
	}
	if u, err := c.Usage(); u.Refused != 2 || u.SentBytes != 0 || err != nil {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// A socket that is bound to a device takes the proxy's address out of it.
func TestBoundToDevice(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	lead(t, n)
	plugin := settle(t, group, path, python(t), "-c", talker)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	if got := plugin.ask(`bound("out0", "240.0.0.9", 80)`); got == "ok" {
		t.Errorf("connected past the loopback")
	}
	egress := 0
	for _, d := range r.seen() {
		if d.Hook == sandbox.HookEgress {
			egress++
		}
	}
	if egress == 0 {
		t.Error("no denial was reported")
	}
	if u, err := r.usage(); u.SentBytes != 0 || err != nil {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// In a shared network the plugin is reachable only on the ports that it may serve.
func TestGivenCgroupServes(t *testing.T) {
	group, path := given(t)
	plugin := settle(t, group, path, python(t), "-c", talker)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath, c.Serve = group.Path, path, []uint16{8080} })
	if got := plugin.ask(`listen(8080)`); got != "ok" {
		t.Fatal(got)
	}
	conn, err := r.DialContext(t.Context(), "tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	if got := plugin.ask(`held.append(held[0].accept()[0])`); got != "ok" {
		t.Fatal(got)
	}
	if got := plugin.ask(`held[1].send(b"served")`); got != "ok" {
		t.Fatal(got)
	}
	buffer := make([]byte, 6)
	if _, err := io.ReadFull(conn, buffer); err != nil {
		t.Error(err)
	}
	u, err := r.Usage()
	if err != nil || u.SentBytes < 6 || u.Connections != 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	// Blocking ends it, and admits no other.
	if err := r.Block(true); err != nil {
		t.Fatal(err)
	}
	if got := plugin.ask(`held[1].recv(1)`); got != "ECONNABORTED" {
		t.Errorf("with the plugin blocked the served connection ended with %s", got)
	}
	if _, err := conn.Read(buffer); err == nil {
		t.Error("the visitor's connection stands")
	}
	_ = conn.Close()
	if err := r.Block(false); err != nil {
		t.Fatal(err)
	}
	visitor, err := r.DialContext(t.Context(), "tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer visitor.Close()
	if got := plugin.ask(`held.append(held[0].accept()[0]) or held[-1].settimeout(0.5)`); got != "ok" {
		t.Fatal(got)
	}
	if err := r.programs.setOpen(false); err != nil { // without an end
		t.Fatal(err)
	}
	if _, err := visitor.Write([]byte("in")); err != nil {
		t.Fatal(err)
	}
	if got := plugin.ask(`held[-1].recv(1)`); got == "ok" {
		t.Error("a packet to a blocked plugin was delivered")
	}
	if err := r.Block(false); err != nil {
		t.Fatal(err)
	}
	// listen without bind picks a port that was not given.
	port := plugin.ask(`silent()`)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if conn, err := r.DialContext(ctx, "tcp", "127.0.0.1:"+port); err == nil {
		_ = conn.Close()
		t.Error("reached a port that the plugin may not serve")
	}
	inbound := 0
	for _, d := range r.seen() {
		if d.Hook == sandbox.HookIngress {
			inbound++
		}
	}
	if inbound == 0 {
		t.Error("the connection to it was not reported")
	}
}

// Processes in a cgroup below the one that was given are confined and counted.
func TestDescendants(t *testing.T) {
	group, path := given(t)
	if err := os.Mkdir(filepath.Join(group.Path, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	below, err := sandbox.OpenCgroup(filepath.Join(group.Path, "below"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(below.Kill(), below.Remove(), below.Close()); err != nil {
			t.Error(err)
		}
	})
	plugin := settle(t, below, path, python(t), "-c", talker)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath, c.CountSyscalls = group.Path, path, true })
	if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != "ok" {
		t.Error(got)
	}
	if got := plugin.ask(`unix("/run/docker.sock")`); got != "EPERM" {
		t.Error(got)
	}
	if u, err := r.Usage(); u.Connections != 1 || u.Refused != 1 || u.Syscalls.Network == 0 || err != nil {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// A sidecar that is restarted takes over what it left, without a gap, and its
// counters go on.
func TestTakeOver(t *testing.T) {
	group, path := given(t)
	plugin := settle(t, group, path, python(t), "-c", talker)
	state := t.TempDir()
	open := func() (*Confinement, net.Listener) {
		t.Helper()
		c, err := New(Config{StateDir: state, CgroupPath: group.Path, NetworkPath: path, CountSyscalls: true})
		if err != nil {
			t.Fatal(err)
		}
		l, err := c.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Attach(Endpoints{Proxy4: tcpPort(l)}); err != nil {
			t.Fatal(err)
		}
		return c, l
	}
	first, l := open()
	if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != "ok" {
		t.Fatal(got)
	}
	if got := plugin.ask(`udp("240.0.0.9", 80)`); got != "ok" {
		t.Fatal(got)
	}
	if u, err := first.Usage(); err != nil || u.Connections != 1 || u.Syscalls.Total == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	pins := first.Info().Pins
	_ = l.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := pinned(pins); err != nil || len(names) < 14 {
		t.Errorf("the walls went with the sidecar: %v, %v", names, err)
	}
	if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != "ECONNREFUSED" {
		t.Errorf("between two sidecars connect ended with %s", got)
	}
	if err := Detach(state, false); !errors.Is(err, ErrPopulated) {
		t.Errorf("let a living plugin out: %v", err)
	}
	if c, err := New(Config{StateDir: state}); !errors.Is(err, ErrPopulated) {
		t.Errorf("a cage of its own took the walls of another: %v", err)
		_ = c.Close()
	}
	other, _ := given(t)
	if c, err := New(Config{StateDir: state, CgroupPath: other.Path, NetworkPath: path}); !errors.Is(err, ErrPopulated) {
		t.Errorf("another cgroup took the walls of this: %v", err)
		_ = c.Close()
	}
	second, l := open()
	if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != "ok" {
		t.Fatal(got)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := second.Identify(conn); !ok {
		t.Error("not identified after a restart")
	}
	_ = conn.Close()
	if u, err := second.Usage(); err != nil || u.Connections != 3 {
		t.Errorf("after a restart %+v, %v", u, err)
	}
	if err := second.Check(); err != nil {
		t.Error(err)
	}
	// The cgroup is empty for a moment: whoever enters it next is confined, too.
	plugin.end()
	if err := errors.Join(l.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	next := settle(t, group, path, python(t), "-c", talker)
	if got := next.ask(`tcp("240.0.0.9", 80)`); got != "ECONNREFUSED" {
		t.Errorf("a process that entered the empty cgroup connected with %s", got)
	}
	next.end()
	if err := Detach(state, false); err != nil {
		t.Fatal(err)
	}
	if names, err := pinned(pins); err != nil || len(names) != 0 {
		t.Errorf("pins are left: %v, %v", names, err)
	}
}

// With the cgroup goes what stood on it.
func TestGoneCgroup(t *testing.T) {
	group, path := given(t)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	r.stop()
	if err := <-r.stopped; err != nil {
		t.Error(err)
	}
	r.stop = nil
	if err := group.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := pinned(r.pinDir); err != nil || len(names) != 0 {
		t.Errorf("pins are left: %v, %v", names, err)
	}
	if err := os.Mkdir(group.Path, 0o700); err != nil { // for who tidies up
		t.Fatal(err)
	}
}

// TestSevered detects that a cgroup was removed and made again, and so carries no programs.
func TestSevered(t *testing.T) {
	needKernel(t)
	c, err := New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Check(); !errors.Is(err, ErrNotAttached) {
		t.Errorf("before: %v", err)
	}
	if err := c.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.group.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.group.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); !errors.Is(err, ErrDetached) {
		t.Errorf("after: %v", err)
	}
	if _, err := c.Start(sandbox.Command{Args: []string{"true"}}); !errors.Is(err, ErrDetached) {
		t.Errorf("started without walls: %v", err)
	}
}

// TestRemadeCgroup detects at the next check that a given cgroup was removed and made
// again at the same path, and has the next sidecar attach its hooks to the new one.
func TestRemadeCgroup(t *testing.T) {
	group, path := given(t)
	config := Config{StateDir: t.TempDir(), CgroupPath: group.Path, NetworkPath: path}
	first, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- first.Run(t.Context()) }()
	if err := errors.Join(group.Remove(), os.Mkdir(group.Path, 0o700)); err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	select {
	case err := <-ran:
		if !errors.Is(err, ErrDetached) {
			t.Errorf("Run ended with %v, want %v", err, ErrDetached)
		}
		t.Logf("noticed after %v, want about %v", time.Since(removed), checkInterval)
	case <-time.After(patience):
		t.Fatal("a cgroup that was removed is not noticed")
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	remade, err := sandbox.OpenCgroup(group.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = remade.Close() }()
	plugin := settle(t, remade, path, "/proc/self/exe", "tries")
	r := newHarness(t, func(c *Config) { c.StateDir, c.CgroupPath, c.NetworkPath = config.StateDir, config.CgroupPath, path })
	if got := plugin.ask("udp4 10.0.0.9:9"); got != "EPERM" {
		t.Errorf("in the cgroup made again a datagram ended with %s", got)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	plugin.end()
}

// Inside a cgroup namespace, as in a container, everything works: with a
// hierarchy that was mounted again, and with none or one that may not be written
// to, since then one is mounted. Where that is not allowed, the error names the mount to make.
func TestInsideCgroupNamespace(t *testing.T) {
	needKernel(t)
	h, err := hostPlaces.FindCgroupMount()
	if err != nil {
		t.Fatal(err)
	}
	group, err := sandbox.MakeCgroup(h, "chaperone-test-container-"+rand.Text())
	if err != nil {
		t.Fatal(err)
	}
	if err := group.Set("cgroup.max.descendants", "max"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(group.Kill(), group.Remove(), group.Close()); err != nil {
			t.Error(err)
		}
	})
	mount := t.TempDir()
	for script, want := range map[string]string{
		`mount -t cgroup2 none "$1" && exec "$0" probe`:                                  "",
		`mount -t cgroup2 none "$1" && mount -o remount,bind,ro "$1" && exec "$0" probe`: "",
		`exec "$0" probe`: "",
		`exec setpriv --bounding-set=-sys_admin bash -c 'exec "$0" probe' "$0"`: "mount this cgroup namespace's own part",
	} {
		binary, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command("unshare", "-C", "-m", "bash", "-c", strings.Replace(script, `exec "$0"`, `exec -a `+pluginName+` "$0"`, 1), binary, mount)
		command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Dir.Fd())}
		out, err := command.CombinedOutput()
		if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

// probe is [Probe] by another process.
func probe([]string) error {
	var errs []error
	for _, f := range Probe() {
		if f.Required && f.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Name, f.Err))
		}
	}
	return errors.Join(errs...)
}
