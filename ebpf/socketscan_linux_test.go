package ebpf

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// descriptors are the reported ones.
func descriptors(denials []sandbox.Denial) (found []sandbox.Denial) {
	for _, d := range denials {
		if d.Hook == sandbox.HookDescriptor {
			found = append(found, d)
		}
	}
	return found
}

// exchange is a listener on the loopback of a namespace that is not the
// sidecar's own, which answers every connection with what it reads.
func exchange(t *testing.T, n *sandbox.Network) string {
	t.Helper()
	var l net.Listener
	if err := n.Do(func() (err error) { l, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// handed is a process of the cgroup that inherited a socket made outside it.
func handed(t *testing.T, group *sandbox.Cgroup, n *sandbox.Network, socket *os.File) resident {
	t.Helper()
	r := settleWith(t, group, fdPath(n), []*os.File{socket}, python(t), "-c", talker)
	_ = socket.Close()
	if got := r.ask(`held.append(socket.socket(fileno=3))`); got != "ok" {
		t.Fatal(got)
	}
	return r
}

// A socket that was made outside the cgroup and handed in is ended: a connected one by
// itself, so that its holder sees the error, and another one with its holder.
func TestForeignSockets(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	port := exchange(t, n)
	number, _ := strconv.Atoi(port)
	open := func(kind int, connect bool) (file *os.File, err error) {
		err = n.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
			if err == nil && connect {
				err = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: number})
			}
			file = os.NewFile(uintptr(fd), "socket")
			return err
		})
		return file, err
	}
	for name, test := range map[string]struct {
		kind    int
		connect bool
		dies    bool
		address string
	}{
		"connection":       {unix.SOCK_STREAM, true, false, "127.0.0.1:" + port},
		"unconnected":      {unix.SOCK_STREAM, false, true, "0.0.0.0:0"},
		"datagram":         {unix.SOCK_DGRAM, false, true, "0.0.0.0:0"},
		"connected to UDP": {unix.SOCK_DGRAM, true, true, "127.0.0.1:" + port},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := open(test.kind, test.connect)
			if err != nil {
				t.Fatal(err)
			}
			plugin := handed(t, group, n, file)
			if test.kind == unix.SOCK_STREAM && test.connect {
				if got := plugin.ask(`held[0].sendall(b"hello") or held[0].recv(5)`); got != "ok" {
					t.Fatal(got)
				}
			}
			r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
			if !test.dies {
				if got := plugin.ask(`held[0].send(b"hello")`); got != "ECONNABORTED" {
					t.Errorf("sent on what was handed in: %s", got)
				}
				if got := plugin.ask(`held.pop().close()`); got != "ok" {
					t.Error(got)
				}
				time.Sleep(2 * scanInterval)
				if got := plugin.ask(`held.append(socket.socket())`); got != "ok" {
					t.Errorf("the holder that let go did not live on: %s", got)
				}
			} else if got := plugin.wait(); got != "signal: killed" {
				t.Errorf("the holder ended with %s", got)
			}
			found := descriptors(r.seen())
			if len(found) != 1 || found[0].PID != uint32(plugin.pid) || found[0].Address.String() != test.address || found[0].Comm == "" {
				t.Errorf("reported %+v", found)
			}
			if u, err := r.usage(); err != nil || u.Ended != 1 {
				t.Errorf("counted %d, %v", u.Ended, err)
			}
			plugin.end()
		})
	}
}

// A plugin that makes much of everything neither hides a socket from the scan
// nor holds it up.
func TestCensusUnderAttack(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	r := newHarness(t, func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path })
	hidden := filepath.Join(group.Path, "a", "b", "c")
	if err := os.MkdirAll(hidden, 0o700); err != nil {
		t.Fatal(err)
	}
	const packet = "import os, socket, time\ndef take(): return socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
	for name, script := range map[string]string{
		"among a thousand descriptors": `held = [socket.socket() for _ in range(1000)]; s = take(); time.sleep(30)`,
		"among children that come and go": `
if os.fork() == 0:
    until = time.time() + 4
    while time.time() < until:
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
    os._exit(0)
s = take(); time.sleep(30)`,
		"deep below": `open("` + hidden + `/cgroup.procs", "w").write("0"); s = take(); time.sleep(30)`,
		"moving to and fro": `s = take()
for _ in range(100000):
    for place in ("` + hidden + `", "` + group.Path + `"): open(place + "/cgroup.procs", "w").write("0")`,
		"by many children": `s = take()
for _ in range(300):
    if os.fork() == 0: time.sleep(30)
time.sleep(30)`,
	} {
		t.Run(name, func(t *testing.T) {
			plugin, out := guestIn(t, n, group, python(t), "-c", packet+script)
			if got := end(t, plugin); got != "signal: killed" {
				t.Errorf("the holder ended with %s: %s", got, out)
			}
			if err := group.AwaitEmpty(patience); err != nil {
				t.Error(err)
			}
		})
	}
	for _, d := range descriptors(r.seenNow()) {
		if d.Family != "packet" {
			t.Errorf("reported %+v", d)
		}
	}
	for dir := hidden; dir != group.Path; dir = filepath.Dir(dir) {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}
