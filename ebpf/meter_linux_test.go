package ebpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// sniff counts the IP bytes on the loopback of the plugin's network, by
// direction, as a packet socket sees them.
func (r *harness) sniff(port uint16) (stop func() (sent, received uint64)) {
	r.t.Helper()
	fd := -1
	err := r.network.Do(func() error {
		var err error
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		r.t.Fatal(err)
	}
	return func() (sent, received uint64) {
		defer unix.Close(fd)
		buffer := make([]byte, 1<<17)
		for {
			n, from, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			if errors.Is(err, unix.EAGAIN) {
				return sent, received
			}
			if err != nil {
				r.t.Fatal(err)
			}
			if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
				continue
			}
			ports := buffer[20:]
			if buffer[0]>>4 == 6 {
				ports = buffer[40:]
			}
			if binary.BigEndian.Uint16(ports[2:]) == port {
				sent += uint64(n)
			} else if binary.BigEndian.Uint16(ports) == port {
				received += uint64(n)
			}
		}
	}
}

// The byte counts are those of the wire, to within the packets that the kernel
// exchanges after the plugin's socket is gone.
func TestBytesAreTheWires(t *testing.T) {
	r := newHarness(t, nil)
	for _, test := range []struct {
		name, to string
		listener net.Listener
	}{{"IPv4", "240.0.0.9:80", r.proxy4}, {"IPv6", "[2001:db8::9]:80", r.proxy6}} {
		t.Run(test.name, func(t *testing.T) {
			before, err := r.Usage()
			if err != nil {
				t.Fatal(err)
			}
			stop := r.sniff(tcpPort(test.listener).Port())
			done := make(chan error, 1)
			go func() {
				conn, err := test.listener.Accept()
				if err != nil {
					done <- err
					return
				}
				_, err = conn.Write(make([]byte, 3<<20))
				_ = conn.Close()
				done <- err
			}()
			got := r.run("stream", test.to)
			if len(got.stdout) != 3<<20 {
				t.Fatalf("the plugin got %d bytes: %s", len(got.stdout), got.stderr)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			after, err := r.Usage()
			if err != nil {
				t.Fatal(err)
			}
			sent, received := stop()
			within(t, "sent", after.SentBytes-before.SentBytes, sent)
			within(t, "received", after.ReceivedBytes-before.ReceivedBytes, received)
			if received < 3<<20 {
				t.Errorf("the wire carried %d bytes", received)
			}
		})
	}
}

func within(t *testing.T, what string, got, want uint64) {
	t.Helper()
	if got > want || want-got > 200 {
		t.Errorf("counted %d bytes %s, the wire carried %d", got, what, want)
	}
}

// UDP has no tail: the count is exact.
func TestDatagramsAreExact(t *testing.T) {
	r := newHarness(t, nil)
	go reply4(r.dns4)
	const n = 20
	for range n {
		r.ok(r.run("dns", "connected", "10.8.8.8:53"))
	}
	u, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	const headers = 20 + 8
	if u.SentBytes != n*(headers+5) || u.ReceivedBytes != n*(headers+9) || u.SentPackets != n || u.ReceivedPackets != n {
		t.Errorf("usage is %+v", u)
	}
}

// Traffic on the plugin's own loopback is neither refused nor counted.
func TestOwnLoopbackDoesNotCount(t *testing.T) {
	r := newHarness(t, nil)
	r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import socket, threading
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "127.9.9.9")):
    l = socket.create_server((host, 0), family=family)
    c = socket.create_connection(l.getsockname()[:2])
    s, _ = l.accept()
    c.sendall(b"x" * 100000); s.recv(10)
    u = socket.socket(family, socket.SOCK_DGRAM); u.bind((host, 0))
    v = socket.socket(family, socket.SOCK_DGRAM); v.sendto(b"x" * 1000, u.getsockname()[:2]); u.recv(10)
`}}))
	u, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	u.Time = time.Time{}
	if diff := cmp.Diff(Usage{}, u); diff != "" {
		t.Error(diff)
	}
}

// A port that the plugin serves is reached through the confinement, and is no
// connection of the plugin's.
func TestServe(t *testing.T) {
	r := newHarness(t, nil)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	p, err := r.Start(sandbox.Command{Path: "/usr/bin/python3", Args: []string{"python3", "-c", `
import socket, os
l = socket.create_server(("127.0.0.1", 0))
os.write(1, b"%d\n" % l.getsockname()[1])
c, _ = l.accept()
c.sendall(b"served"); c.close()
`}, Stdout: write})
	_ = write.Close()
	if err != nil {
		t.Fatal(err)
	}
	var port int
	if _, err := fmt.Fscan(read, &port); err != nil {
		t.Fatal(err)
	}
	conn, err := r.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if string(text) != "served" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	_ = conn.Close()
	if status, err := p.Wait(); status != 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	if u, err := r.Usage(); u.Connections != 0 || err != nil {
		t.Errorf("counted %d connections, %v", u.Connections, err)
	}
	for _, address := range []string{"10.0.0.1:80", "plugin.example:80", "[2001:db8::1]:80", "nonsense"} {
		if conn, err := r.DialContext(t.Context(), "tcp", address); err == nil {
			_ = conn.Close()
			t.Errorf("dialled %s", address)
		}
	}
}

// dialogue starts a program that answers a line for each line it gets.
func (r *harness) dialogue(path string, args ...string) (ask func(line string) string, end func() int) {
	r.t.Helper()
	stdin, toPlugin, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	fromPlugin, stdout, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := r.Start(sandbox.Command{Path: path, Args: args, Env: pluginEnv(), Stdin: stdin, Stdout: stdout, Stderr: os.Stderr})
	_, _ = stdin.Close(), stdout.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	lines := bufio.NewScanner(fromPlugin)
	ask = func(line string) string {
		r.t.Helper()
		if line != "" {
			fmt.Fprintln(toPlugin, line)
		}
		if !lines.Scan() {
			r.t.Fatalf("the plugin ended: %v", lines.Err())
		}
		return lines.Text()
	}
	end = func() int {
		_ = toPlugin.Close()
		status, err := p.Wait()
		if err != nil {
			r.t.Error(err)
		}
		_ = fromPlugin.Close()
		return status
	}
	return ask, end
}

// talker tries what each line asks for and answers with the error's name.
const talker = `
import socket, sys, errno
held = []
def tcp(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM); s.settimeout(5); s.connect((host, port)); held.append(s)
def udp(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((host, port))
def early(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setblocking(False); s.connect((host, 9)); held.append(s)
def bound(device, host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM); s.settimeout(0.5)
    s.setsockopt(socket.SOL_SOCKET, 25, device.encode()); s.connect((host, port))
def dns(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("10.8.8.8", 53))
def listen(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM); s.bind(("127.0.0.1", port)); s.listen(); held.append(s)
def silent():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM); s.listen(); held.append(s); raise SystemExit(s.getsockname()[1])
def unix(name):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.connect(name)
for line in sys.stdin:
    try: eval(line); answer = "ok"
    except OSError as e: answer = errno.errorcode.get(e.errno, str(e))
    except SystemExit as e: answer = str(e.code)
    print(answer, flush=True)
`

// TestDoor blocks the plugin: new connections are refused, and open ones are silenced.
func TestDoor(t *testing.T) {
	r := newHarness(t, nil)
	ask, end := r.dialogue("python3", "python3", "-c", talker)
	if got := ask(`tcp("240.0.0.9", 80)`); got != "ok" {
		t.Fatal(got)
	}
	conn, err := r.proxy4.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := ask(`held[0].send(b"hello")`); got != "ok" {
		t.Fatal(got)
	}
	buffer := make([]byte, 16)
	if _, err := io.ReadFull(conn, buffer[:5]); err != nil {
		t.Fatal(err)
	}
	if err := r.Block(true); err != nil {
		t.Fatal(err)
	}
	for attempt, want := range map[string]string{
		`tcp("240.0.0.9", 80)`:   "EPERM",
		`tcp("127.0.0.1", 1)`:    "EPERM",
		`udp("240.0.0.9", 80)`:   "EPERM",
		`dns()`:                  "EPERM",
		`unix("/nowhere")`:       "EPERM",
		`unix("\0own")`:          "ECONNREFUSED", // no listener; abstract names stay within the namespace
		`held[0].send(b"more")`:  "ok",           // it stays in the plugin's send buffer
		`listen(8080)`:           "ok",
		`tcp("127.0.0.1", 8080)`: "EPERM",
	} {
		if got := ask(attempt); got != want {
			t.Errorf("%s ended with %s, want %s", attempt, got, want)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(buffer); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes while the plugin was blocked, %v", n, err)
	}
	// The plugin sees the close of the sidecar.
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got := ask(`held[0].recv(1)`); got != "ECONNRESET" {
		t.Errorf("the cut connection ended with %s", got)
	}
	if err := r.Block(false); err != nil {
		t.Fatal(err)
	}
	if got := ask(`tcp("240.0.0.9", 80)`); got != "ok" {
		t.Errorf("after opening: %s", got)
	}
	if status := end(); status != 0 {
		t.Errorf("status %d", status)
	}
	doors := 0
	for _, d := range r.seen() {
		if d.Cause == sandbox.CauseBlocked {
			doors++
		}
	}
	if doors != 6 {
		t.Errorf("%d refusals by the door were reported", doors)
	}
}

// TestDoorStaysShut blocks the plugin before the hooks are attached; it is still blocked afterwards.
func TestDoorStaysShut(t *testing.T) {
	needKernel(t)
	c, err := New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Block(true); err != nil {
		t.Fatal(err)
	}
	l, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := c.Attach(Endpoints{Proxy4: tcpPort(l)}); err != nil {
		t.Fatal(err)
	}
	p, err := c.Start(sandbox.Command{Path: "/proc/self/exe", Args: []string{pluginName, "get", "tcp", "240.0.0.9:80"}})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); status != 1 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	if u, err := c.Usage(); u.Connections != 0 || u.Refused == 0 || err != nil {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// Without an endpoint of a family what would go there is refused.
func TestMissingEndpoints(t *testing.T) {
	r := newHarness(t, nil)
	if err := r.Attach(Endpoints{Proxy4: tcpPort(r.proxy4)}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"get", "tcp", "[2001:db8::9]:80"}, {"get", "tcp", "10.8.8.8:53"}, {"dns", "unconnected", "10.8.8.8:53"}} {
		if got := r.run(args...); got.status != 1 || !strings.Contains(got.stderr, "not permitted") {
			t.Errorf("%v ended with %d: %s", args, got.status, got.stderr)
		}
	}
	endpoints := 0
	for _, d := range r.seen() {
		if d.Cause == sandbox.CauseEndpoint {
			endpoints++
		}
	}
	if endpoints != 3 {
		t.Errorf("%d were reported", endpoints)
	}
}

func TestEndpointsAreChecked(t *testing.T) {
	for _, address := range []string{"10.0.0.1:80", "0.0.0.0:80", "127.0.0.1:0", "[::1]:80", "[::ffff:127.0.0.1]:80"} {
		if err := (Endpoints{Proxy4: netip.MustParseAddrPort(address)}).check(); err == nil {
			t.Errorf("took %s for Proxy4", address)
		}
	}
	for _, address := range []string{"127.0.0.1:80", "[::]:80", "[fe80::1%lo]:80", "[::ffff:127.0.0.1]:80"} {
		if err := (Endpoints{Resolver6: netip.MustParseAddrPort(address)}).check(); err == nil {
			t.Errorf("took %s for Resolver6", address)
		}
	}
	if err := (Endpoints{}).check(); err != nil {
		t.Error(err)
	}
}

// entries counts the identities that wait to be taken.
func (r *harness) entries() int {
	n := 0
	var key hooksPeerKey
	var value hooksPeer
	for entries := r.programs.pinnedMaps["peers"].Iterate(); entries.Next(&key, &value); {
		n++
	}
	return n
}

// The identity of a connection that was closed in good order before it was
// accepted is still there; that of one that failed is not.
func TestIdentityLifetime(t *testing.T) {
	r := newHarness(t, nil)
	r.ok(r.run("close", "240.0.0.9:80"))
	const finWait1 = " 04 " // include/net/tcp_states.h, as /proc/net/tcp shows it
	for sockets := finWait1; strings.Contains(sockets, finWait1); {
		err := r.network.Do(func() error {
			text, err := os.ReadFile("/proc/thread-self/net/tcp")
			sockets = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := r.entries(); n != 1 {
		t.Errorf("%d entries after a close", n)
	}
	conn, err := r.proxy4.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if peer, ok := r.Identify(conn); !ok || peer.Original.String() != "240.0.0.9:80" {
		t.Errorf("identified as %+v, %v", peer, ok)
	}
	_ = conn.Close()
	if n := r.entries(); n != 0 {
		t.Errorf("%d entries after the identification", n)
	}
	own, err := r.Listen("tcp", "127.0.0.1:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if got := r.ok(r.run("try", "reconnect", "240.0.0.9:80")); got != "127.0.0.1:9999" {
		t.Errorf("after a reconnect the peer is %s", got)
	}
	if n := r.entries(); n != 0 { // the first is reset by the second
		t.Errorf("%d entries after a reconnect", n)
	}
	_ = r.proxy4.Close()
	if got := r.run("get", "tcp", "240.0.0.9:80"); !strings.Contains(got.stderr, "connection refused") {
		t.Errorf("without a listener: %+v", got)
	}
	if n := r.entries(); n != 0 {
		t.Errorf("%d entries after a refused connect", n)
	}
	// Reset by the plugin, with the connection in the queue.
	r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import socket, struct
s = socket.socket(socket.AF_INET6); s.connect(("2001:db8::9", 80))
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); s.close()
`}}))
	if n := r.entries(); n != 0 {
		t.Errorf("%d entries after a reset", n)
	}
}

// Refusals faster than anyone can read are counted, folded, and never block.
func TestFlood(t *testing.T) {
	r := newHarness(t, nil)
	const n = 20_000
	r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", fmt.Sprintf(`
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(%d):
    try: s.sendto(b"x", ("10.0.%%d.1" %% (i %% 4), 9))
    except PermissionError: pass
`, n)}}))
	u, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.Refused != n {
		t.Errorf("counted %d refusals, want %d", u.Refused, n)
	}
	var described, lost uint64
	records := 0
	for _, d := range r.seen() {
		records++
		described += d.Count
		lost += d.Lost
	}
	if described+lost != n {
		t.Errorf("%d described and %d lost, want %d together", described, lost, n)
	}
	if records > n/10 {
		t.Errorf("%d records", records)
	}
}

// Different refusals are bounded, too.
func TestFoldIsBounded(t *testing.T) {
	var told int
	m := &meter{confinement: &Confinement{config: Config{Denied: func(sandbox.Denial) { told++ }}}, denials: make(map[sandbox.Denial]*repeated)}
	for i := range 10 * maxDistinct {
		m.denied(sandbox.Denial{Hook: sandbox.HookSendmsg, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(i)), Count: 1})
	}
	if told != maxDistinct || m.confinement.droppedDenials.Load() != 9*maxDistinct {
		t.Errorf("received %d, dropped %d", told, m.confinement.droppedDenials.Load())
	}
}
