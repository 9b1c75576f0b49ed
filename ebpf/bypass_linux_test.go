package ebpf

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// outside is what a plugin is not to reach: listeners on the loopback of a
// network that it shares with others.
type outside struct {
	port    string // of TCP and UDP, on both families
	reached atomic.Uint64
}

func newOutside(t *testing.T, n *sandbox.Network) *outside {
	t.Helper()
	o := new(outside)
	var tcp4, tcp6 net.Listener
	var udp net.PacketConn
	err := n.Do(func() (err error) {
		if tcp4, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return err
		}
		_, o.port, _ = net.SplitHostPort(tcp4.Addr().String())
		if tcp6, err = net.Listen("tcp6", "[::1]:"+o.port); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp", ":"+o.port)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, closer := range []io.Closer{tcp4, tcp6, udp} {
		t.Cleanup(func() { _ = closer.Close() })
	}
	for _, l := range []net.Listener{tcp4, tcp6} {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					if n, _ := conn.Read(make([]byte, 64)); n > 0 {
						o.reached.Add(1)
					}
				}()
			}
		}()
	}
	go func() {
		for {
			if _, _, err := udp.ReadFrom(make([]byte, 64)); err != nil {
				return
			}
			o.reached.Add(1)
		}
	}()
	return o
}

// ringConnect connects by io_uring, with a kernel thread that submits or not,
// and sends on it: no system call of connect is made.
const ringConnect = `
import ctypes, mmap, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
sqpoll, port = sys.argv[1] == "sqpoll", int(sys.argv[2])
params = ctypes.create_string_buffer(120)
if sqpoll: struct.pack_into("III", params, 8, 2, 0, 2000)
ring = libc.syscall(425, 8, params)
if ring < 0: raise OSError(ctypes.get_errno(), "io_uring_setup")
head, tail, mask, entries, flags, dropped, array = struct.unpack_from("7I", params, 40)
chead, ctail, cmask, centries, overflow, cqes = struct.unpack_from("6I", params, 80)
shared = mmap.mmap(ring, max(array + entries * 4, cqes + centries * 16))
sqes = mmap.mmap(ring, entries * 64, offset=0x10000000)
def submit(i, opcode, fd, addr, size, off):
    struct.pack_into("=BBHiQQI", sqes, i * 64, opcode, 0, 0, fd, off, addr, size)
    struct.pack_into("I", shared, array + i * 4, i)
    struct.pack_into("I", shared, tail, i + 1)
    libc.syscall(426, ring, 0 if sqpoll else 1, 0 if sqpoll else 1, 2 if sqpoll else 1, 0, 0)
    for _ in range(1000):
        if struct.unpack_from("I", shared, ctail)[0] > i: break
        time.sleep(0.01)
    else: raise SystemExit("no completion")
    return struct.unpack_from("i", shared, cqes + i * 16 + 8)[0]
s = socket.socket()
address = ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack("!H4s8x", port, socket.inet_aton("127.0.0.1")))
data = ctypes.create_string_buffer(b"out")
print(submit(0, 16, s.fileno(), ctypes.addressof(address), 0, 16), submit(1, 26, s.fileno(), ctypes.addressof(data), 3, 0))
`

// oldConnect makes the system calls of i386 from a program of this architecture.
const oldConnect = `
import ctypes, mmap, socket, struct, sys
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7) # MAP_32BIT
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
def call(number, *args):
    code = b"\x53" + b"\xb8" + struct.pack("I", number)
    for register, value in zip((b"\xbb", b"\xb9", b"\xba"), args): code += register + struct.pack("I", value)
    page[0:len(code) + 4] = code + b"\xcd\x80\x5b\xc3"
    return ctypes.CFUNCTYPE(ctypes.c_int)(at)()
page[1024:1040] = struct.pack("=H", 2) + struct.pack("!H4s8x", int(sys.argv[1]), socket.inet_aton("127.0.0.1"))
page[2048:2051] = b"out"
s = socket.socket()
print(call(362, s.fileno(), at + 1024, 16), call(4, s.fileno(), at + 2048, 3))
`

// fastConnect connects with the first data, in both ways that there are.
const fastConnect = `
import socket, sys
way, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
if way == "sendto": s.sendto(b"out", socket.MSG_FASTOPEN, (host, port))
else:
    s.setsockopt(socket.IPPROTO_TCP, 30, 1) # TCP_FASTOPEN_CONNECT
    s.connect((host, port)); s.send(b"out")
print(s.getpeername()[1])
`

// Ways to connect that no system call of that name shows, as root with every
// capability and without a filter: all of them reach the sidecar.
func TestWaysToConnect(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	o := newOutside(t, n)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	peers := make(chan Peer, 16)
	for _, l := range []net.Listener{r.proxy4, r.proxy6} {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				peer, _ := r.Identify(conn)
				got, _ := io.ReadAll(conn)
				if string(got) != "out" {
					t.Errorf("the sidecar got %q", got)
				}
				_ = conn.Close()
				peers <- peer
			}
		}()
	}
	ways := map[string][]string{
		"fast open, IPv4":         {fastConnect, "sendto", "127.0.0.1", o.port},
		"fast open, IPv6":         {fastConnect, "sendto", "::1", o.port},
		"fast open connect, IPv4": {fastConnect, "connect", "127.0.0.1", o.port},
		"fast open connect, IPv6": {fastConnect, "connect", "::1", o.port},
		"io_uring":                {ringConnect, "enter", o.port},
		"io_uring, kernel thread": {ringConnect, "sqpoll", o.port},
	}
	if runtime.GOARCH == "amd64" {
		ways["i386"] = []string{oldConnect, o.port}
	}
	for name, args := range ways {
		t.Run(name, func(t *testing.T) {
			plugin, out := guestIn(t, n, group, python(t), append([]string{"-c"}, args...)...)
			if got := end(t, plugin); got != "exit status 0" {
				t.Fatalf("ended with %s: %s", got, out)
			}
			select {
			case peer := <-peers:
				if strconv.Itoa(int(peer.Original.Port())) != o.port || peer.PID != uint32(plugin.Process.Pid) {
					t.Errorf("the sidecar saw %+v of %d", peer, plugin.Process.Pid)
				}
			case <-time.After(patience):
				t.Errorf("the sidecar saw nothing; the plugin says %s", out)
			}
		})
	}
	if reached := o.reached.Load(); reached > 0 {
		t.Errorf("reached the outside %d times", reached)
	}
}

// Sockets that are no way out, on IPv4 and IPv6, also where the kernel's own
// permissions are open, and in a network namespace that the plugin made.
func TestPrivilegedSockets(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	err = n.Do(func() error { // open to every group, as distributions have it
		return os.WriteFile("/proc/thread-self/../../sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	})
	if err != nil {
		err = n.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0) })
	}
	if err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	attempts := settle(t, group, path, "/proc/self/exe", "tries")
	for _, attempt := range []string{
		"ping", "ping6", "raw", "raw6", "udplite", "udplite6", "mptcp", "mptcp6",
		"udp6 [2001:db8::9]:9", "udp6 [::ffff:10.0.0.9]:9", "udp-write [2001:db8::9]:9",
	} {
		if got := attempts.ask(attempt); got != "EPERM" {
			t.Errorf("%s ended with %s", attempt, got)
		}
	}
	refused := len(r.seenNow())
	if refused < 8 {
		t.Errorf("%d refusals were reported", refused)
	}
	for _, attempt := range []string{
		"unshare-net-connect 240.0.0.9:80", "unshare-net-connect [2001:db8::9]:80", "udp4 10.0.0.9:53", "udp6 [2001:db8::9]:53",
	} {
		if got := attempts.ask(attempt); got != "EPERM" {
			t.Errorf("from a namespace of the plugin's: %s ended with %s", attempt, got)
		}
	}
	seen := 0
	for _, d := range r.seen() {
		if d.Cause == sandbox.CauseNamespace {
			seen++
		}
	}
	if seen < 3 {
		t.Errorf("%d refusals from another namespace were reported", seen)
	}
}

// Data hidden in questions for names goes to the sidecar's resolver, whoever
// is asked, and each question is counted.
func TestTunnelThroughNames(t *testing.T) {
	r := newHarness(t, nil)
	go reply4(r.dns4)
	go reply4(r.dns6)
	before, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	const each = 20
	servers := []string{"10.8.8.8:53", "93.184.216.34:53", "[2001:db8::53]:53"}
	r.ok(r.run(append([]string{"tunnel", strconv.Itoa(each)}, servers...)...))
	after, err := r.Usage()
	if err != nil || after.DNSQueries-before.DNSQueries != uint64(each*len(servers)) || after.Connections != before.Connections {
		t.Errorf("counted %d questions, %v; want %d", after.DNSQueries-before.DNSQueries, err, each*len(servers))
	}
}

// tunnel asks each server so many things, and wants them answered.
func tunnel(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for _, server := range args[1:] {
		conn, err := net.Dial("udp", server)
		if err != nil {
			return err
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		answer := make([]byte, 64)
		for range n {
			if _, err := conn.Write([]byte("secret")); err != nil {
				return err
			}
			if n, err := conn.Read(answer); err != nil || !strings.HasSuffix(string(answer[:n]), "secret") {
				return errors.Join(errors.New("not answered"), err)
			}
		}
		_ = conn.Close()
	}
	return nil
}

// Privileged ways to a socket that no hook governs, and processes that bring
// theirs along: each ends with its holder, or with the socket, and is reported.
func TestWaysToSockets(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	o := newOutside(t, n)
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	donor := exec.Command(python(t), "-c", `
import socket, sys
s = socket.socket(); s.connect(("127.0.0.1", int(sys.argv[1]))); u = socket.socket()
print(s.fileno(), u.fileno(), flush=True); sys.stdin.read()`, o.port)
	in, err := donor.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := donor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Do(donor.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = donor.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	fds := strings.Fields(line)
	if err != nil || len(fds) != 2 {
		t.Fatalf("the donor wrote %q, %v", line, err)
	}
	take := `
import ctypes, socket, sys, time
libc = ctypes.CDLL(None)
fd = libc.syscall(438, libc.syscall(434, int(sys.argv[1]), 0), int(sys.argv[2]), 0)
s = socket.socket(fileno=fd)
time.sleep(30)`
	pid := strconv.Itoa(donor.Process.Pid)
	for name, args := range map[string][]string{
		"taken, connected":   {take, pid, fds[0]},
		"taken, unconnected": {take, pid, fds[1]},
		"packet":             {"import socket, time; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); time.sleep(30)"},
		"vsock":              {"import socket, time; s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); time.sleep(30)"},
		"in a thread": {`
import ctypes, socket, threading, time
def hide():
    ctypes.CDLL(None).unshare(0x400) # CLONE_FILES: a table of its own
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); time.sleep(30)
threading.Thread(target=hide).start(); time.sleep(30)`},
	} {
		t.Run(name, func(t *testing.T) {
			plugin, out := guestIn(t, n, group, python(t), append([]string{"-c"}, args...)...)
			if got := end(t, plugin); got != "signal: killed" { // and not by itself, after thirty seconds
				t.Errorf("the holder ended with %s: %s", got, out)
			}
			reported := false
			for _, d := range descriptors(r.seenNow()) {
				reported = reported || d.PID == uint32(plugin.Process.Pid)
			}
			if !reported {
				t.Error("it was not reported")
			}
		})
	}
	t.Run("joined", func(t *testing.T) {
		for script, want := range map[string]string{
			`import socket, sys, time
s = socket.socket(); print(flush=True); time.sleep(30)`: "signal: killed",
			`import errno, socket, sys, time
s = socket.socket(); s.connect(("127.0.0.1", ` + o.port + `)); print(flush=True)
for _ in range(100):
    time.sleep(0.05)
    try: s.setblocking(False); s.recv(1)
    except BlockingIOError: continue
    except OSError as e: sys.exit(7 if e.errno == errno.ECONNABORTED else 8)`: "exit status 7",
		} {
			joiner := exec.Command(python(t), "-c", script)
			ready, err := joiner.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Do(joiner.Start); err != nil {
				t.Fatal(err)
			}
			if _, err := ready.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := group.Set("cgroup.procs", strconv.Itoa(joiner.Process.Pid)); err != nil {
				t.Fatal(err)
			}
			if got := end(t, joiner); got != want {
				t.Errorf("brought along, it ended with %s, want %s", got, want)
			}
		}
	})
	if reached := o.reached.Load(); reached > 0 {
		t.Errorf("reached the outside %d times", reached)
	}
}

// A plugin under the launcher that is handed a socket by its own standard input.
func TestHandedOver(t *testing.T) {
	r := newHarness(t, nil)
	n, err := sandbox.NewNetwork(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	o := newOutside(t, n)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	done := r.start(&sandbox.Command{Stdin: theirs, Args: []string{"python3", "-c", `
import socket, time
stdin = socket.socket(fileno=0)
_, fds, _, _ = socket.recv_fds(stdin, 1, 1)
time.sleep(30)`}})
	_ = theirs.Close()
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		port, _ := strconv.Atoi(o.port)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil {
			return err
		}
		return unix.Sendmsg(int(ours.Fd()), []byte("x"), unix.UnixRights(fd), nil, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := done(); got.status != 137 {
		t.Errorf("the holder ended with %d: %s", got.status, got.stderr)
	}
	found := descriptors(r.seen())
	if len(found) != 1 || found[0].Address.String() != "127.0.0.1:"+o.port || found[0].PID == 0 {
		t.Errorf("reported %+v", found)
	}
}
