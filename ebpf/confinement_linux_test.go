package ebpf

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// answer serves one connection of a listener: identifies it and answers.
func (r *harness) answer(l net.Listener) <-chan Peer {
	peers := make(chan Peer, 1)
	go func() {
		defer close(peers)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		peer, ok := r.Identify(conn)
		if !ok {
			return
		}
		if _, again := r.Identify(conn); again {
			r.t.Error("identified twice")
		}
		text, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "got %s", text)
		peers <- peer
	}()
	return peers
}

// reply answers every datagram.
func reply4(p net.PacketConn) {
	buffer := make([]byte, 512)
	for {
		n, from, err := p.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, _ = p.WriteTo([]byte("got "+string(buffer[:n])), from)
	}
}

func TestRedirect(t *testing.T) {
	r := newHarness(t, nil)
	proxy4, proxy6 := r.proxy4.Addr().String(), r.proxy6.Addr().String()
	zero := strings.Replace(proxy4, "127.0.0.1", "0.0.0.0", 1)
	for _, test := range []struct {
		Network, to, original, seen string
		listener                    net.Listener
		explicit                    bool
	}{
		{"tcp", "240.0.0.9:443", "240.0.0.9:443", "240.0.0.9:443", r.proxy4, false},
		{"tcp", "93.184.216.34:80", "93.184.216.34:80", "93.184.216.34:80", r.proxy4, false},
		{"mapped", "240.0.0.9:443", "240.0.0.9:443", "[::ffff:240.0.0.9]:443", r.proxy4, false},
		{"tcp", "[fd00::9]:443", "[fd00::9]:443", "[fd00::9]:443", r.proxy6, false},
		{"tcp", "[2001:db8::9]:443", "[2001:db8::9]:443", "[2001:db8::9]:443", r.proxy6, false},
		{"tcp", "[fe80::9%lo]:443", "[fe80::9]:443", "[fe80::9]:443", r.proxy6, false},
		{"tcp", "255.255.255.255:443", "255.255.255.255:443", "255.255.255.255:443", r.proxy4, false},
		{"tcp", proxy4, proxy4, proxy4, r.proxy4, true},
		{"tcp", proxy6, proxy6, proxy6, r.proxy6, true},
		{"tcp", zero, proxy4, proxy4, r.proxy4, true},
	} {
		t.Run(test.Network+" "+test.to, func(t *testing.T) {
			before, err := r.Usage()
			if err != nil {
				t.Fatal(err)
			}
			peers := r.answer(test.listener)
			out := r.ok(r.run("get", test.Network, test.to))
			peer, ok := <-peers
			if !ok {
				t.Fatal("not identified")
			}
			if want := netip.MustParseAddrPort(test.original); peer.Original != want || peer.Explicit != test.explicit {
				t.Errorf("original is %v, explicit %v; want %v, %v", peer.Original, peer.Explicit, want, test.explicit)
			}
			if peer.UID != uint32(r.user.UID) || !strings.HasSuffix(peer.Exe, ".test") {
				t.Errorf("caller is %+v", peer)
			}
			if out != "got hello from "+test.seen {
				t.Errorf("plugin saw %q", out)
			}
			after, err := r.Usage()
			if err != nil || after.Connections != before.Connections+1 {
				t.Errorf("counted %d connections, %v", after.Connections-before.Connections, err)
			}
		})
	}
}

// A connection that the plugin did not open has no identity, even from inside
// its network namespace.
func TestStrangerHasNoIdentity(t *testing.T) {
	r := newHarness(t, nil)
	conn, err := r.DialContext(t.Context(), "tcp", r.proxy4.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := r.proxy4.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if peer, ok := r.Identify(accepted); ok {
		t.Errorf("identified as %+v", peer)
	}
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	outside, err := net.Dial("tcp", host.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if _, ok := r.Identify(outside); ok {
		t.Error("identified a connection of the host")
	}
	if _, ok := r.Identify(nil); ok {
		t.Error("identified nothing")
	}
}

func TestResolver(t *testing.T) {
	r := newHarness(t, nil)
	go reply4(r.dns4)
	go reply4(r.dns6)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"unconnected", "10.8.8.8:53"}, "got hello from 10.8.8.8:53"},
		{[]string{"connected", "10.8.8.8:53"}, "peer 10.8.8.8:53 got hello from 10.8.8.8:53"},
		{[]string{"unconnected", "127.0.0.53:53"}, "got hello from 127.0.0.53:53"},
		{[]string{"connected", "127.0.0.53:53"}, "peer 127.0.0.53:53 got hello from 127.0.0.53:53"},
		{[]string{"unconnected", "[2001:db8::53]:53"}, "got hello from [2001:db8::53]:53"},
		{[]string{"connected", "[2001:db8::53]:53"}, "peer [2001:db8::53]:53 got hello from [2001:db8::53]:53"},
		{[]string{"unconnected", "10.8.8.8:53", "mapped"}, "got hello from [::ffff:10.8.8.8]:53"},
		{[]string{"connected", "10.8.8.8:53", "mapped"}, "peer [::ffff:10.8.8.8]:53 got hello from [::ffff:10.8.8.8]:53"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			if got := r.ok(r.run(append([]string{"dns"}, test.args...)...)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	t.Run("tcp", func(t *testing.T) {
		go func() {
			conn, err := r.dnsTCP.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.ReadAll(conn)
			fmt.Fprint(conn, "got it")
		}()
		if got := r.ok(r.run("dns", "tcp", "10.8.8.8:53")); got != "got it from 10.8.8.8:53" {
			t.Errorf("got %q", got)
		}
	})
	u, err := r.Usage()
	if err != nil || u.Connections != 0 {
		t.Errorf("DNS counted as %d connections, %v", u.Connections, err)
	}
	for _, d := range r.seen() {
		if d.Syscall != "bpf" {
			t.Errorf("refused %+v", d)
		}
	}
}

// want is how an attempt ends, and what is reported of it. An empty hook means
// that the kernel's own permissions refuse it, which is not reported, or that it
// is permitted.
type want struct {
	errno string
	hook  sandbox.Hook
	about string // the address, path or call that is reported
}

type attempt struct {
	args []string
	want want
}

// bypasses is what a plugin may try.
func bypasses(r *harness, docker, log string) []attempt {
	_, proxyPort, _ := net.SplitHostPort(r.proxy4.Addr().String())
	self := strconv.Itoa(os.Getpid())
	return []attempt{
		{[]string{"udp4", "240.0.0.9:9"}, want{"EPERM", sandbox.HookSendmsg, "240.0.0.9:9"}},
		{[]string{"udp4", "10.0.0.9:443"}, want{"EPERM", sandbox.HookSendmsg, "10.0.0.9:443"}},
		{[]string{"udp4", "255.255.255.255:67"}, want{"EPERM", sandbox.HookSendmsg, "255.255.255.255:67"}},
		{[]string{"udp4", "224.0.0.251:5353"}, want{"EPERM", sandbox.HookSendmsg, "224.0.0.251:5353"}},
		{[]string{"udp6", "[2001:db8::9]:9"}, want{"EPERM", sandbox.HookSendmsg, "[2001:db8::9]:9"}},
		{[]string{"udp6", "[::ffff:10.0.0.9]:9"}, want{"EPERM", sandbox.HookSendmsg, "10.0.0.9:9"}},
		{[]string{"udp6", "[ff02::1]:9"}, want{"EPERM", sandbox.HookSendmsg, "[ff02::1]:9"}},
		{[]string{"udp4", "127.0.0.1:" + proxyPort}, want{"EPERM", sandbox.HookSendmsg, "127.0.0.1:" + proxyPort}},
		{[]string{"udp-via-own", "10.0.0.10:9"}, want{"EPERM", sandbox.HookSendmsg, "10.0.0.10:9"}},
		{[]string{"udp-sendmmsg", "10.0.0.11:9"}, want{"EPERM", sandbox.HookSendmsg, "10.0.0.11:9"}},
		{[]string{"udp-write", "10.0.0.12:443"}, want{"EPERM", sandbox.HookEgress, "10.0.0.12:443"}},
		{[]string{"udp-write", "[2001:db8::12]:443"}, want{"EPERM", sandbox.HookEgress, "[2001:db8::12]:443"}},
		{[]string{"udp-write", "127.0.0.1:" + proxyPort}, want{"EPERM", sandbox.HookEgress, "127.0.0.1:" + proxyPort}},
		{[]string{"mapped-write", "10.0.0.15:443"}, want{"EPERM", sandbox.HookSendmsg, "10.0.0.15:443"}},
		{[]string{"udp-connect", "10.0.0.13:443"}, want{"ok", "", ""}},
		{[]string{"udp-connect", "[2001:db8::13]:443"}, want{"ok", "", ""}},
		{[]string{"udp-connect", "[::ffff:10.0.0.13]:443"}, want{"ok", "", ""}},
		{[]string{"udplite"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"udplite6"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"raw"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"raw6"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"ping"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"ping6"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"sctp"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"sctp6"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"mptcp"}, want{"EPROTONOSUPPORT", "", ""}},
		{[]string{"mptcp6"}, want{"EPROTONOSUPPORT", "", ""}},
		{[]string{"packet"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"packet-high"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"vsock"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"alg"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"xdp"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"kcm"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"netlink"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"netlink-diag"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"netlink-high"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"pair-inet"}, want{"EPERM", sandbox.HookSeccomp, "socketpair"}},
		{[]string{"routing"}, want{"ok", "", ""}},
		{[]string{"unix", docker}, want{"EPERM", sandbox.HookConnectUnix, docker}},
		{[]string{"unix-seq", docker}, want{"EPERM", sandbox.HookConnectUnix, docker}},
		{[]string{"unix-dgram", log}, want{"EPERM", sandbox.HookConnectUnix, log}},
		{[]string{"unix-send", log}, want{"EPERM", sandbox.HookSendmsgUnix, log}},
		{[]string{"unix-pair", log}, want{"EPERM", sandbox.HookSendmsgUnix, log}},
		{[]string{"unix-link", docker}, want{"EPERM", sandbox.HookConnectUnix, "x"}},
		{[]string{"unix", "@chaperone-test-host"}, want{"ECONNREFUSED", "", ""}},
		{[]string{"unix-own"}, want{"ok", "", ""}},
		{[]string{"bind", "tcp", "0.0.0.0:" + proxyPort}, want{"EPERM", sandbox.HookBind, "0.0.0.0:" + proxyPort}},
		{[]string{"bind", "tcp", "127.0.0.2:" + proxyPort}, want{"EPERM", sandbox.HookBind, "127.0.0.2:" + proxyPort}},
		{[]string{"bind", "udp", "[::]:" + proxyPort}, want{"EPERM", sandbox.HookBind, "[::]:" + proxyPort}},
		{[]string{"bind", "tcp", "127.0.0.1:8080"}, want{"ok", "", ""}},
		{[]string{"bind", "udp", "0.0.0.0:0"}, want{"ok", "", ""}},
		{[]string{"io_uring"}, want{"EPERM", sandbox.HookSeccomp, "io_uring_setup"}},
		{[]string{"pidfd_getfd"}, want{"EPERM", sandbox.HookSeccomp, "pidfd_getfd"}},
		{[]string{"ptrace"}, want{"EPERM", sandbox.HookSeccomp, "ptrace"}},
		{[]string{"vm_readv"}, want{"EPERM", sandbox.HookSeccomp, "process_vm_readv"}},
		{[]string{"bpf"}, want{"EPERM", sandbox.HookSeccomp, "bpf"}},
		{[]string{"perf"}, want{"EPERM", sandbox.HookSeccomp, "perf_event_open"}},
		{[]string{"userfaultfd"}, want{"EPERM", sandbox.HookSeccomp, "userfaultfd"}},
		{[]string{"keyctl"}, want{"EPERM", sandbox.HookSeccomp, "keyctl"}},
		{[]string{"setns"}, want{"EPERM", sandbox.HookSeccomp, "setns"}},
		{[]string{"mount"}, want{"EPERM", sandbox.HookSeccomp, "mount"}},
		{[]string{"unshare"}, want{"EPERM", sandbox.HookSeccomp, "unshare"}},
		{[]string{"unshare-time"}, want{"EPERM", sandbox.HookSeccomp, "unshare"}},
		{[]string{"clone-user"}, want{"EPERM", sandbox.HookSeccomp, "clone"}},
		{[]string{"clone-parent"}, want{"EPERM", sandbox.HookSeccomp, "clone"}},
		{[]string{"packet-old"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"vhost"}, want{"EPERM", sandbox.HookSeccomp, "ioctl"}},
		{[]string{"syslog"}, want{"EPERM", sandbox.HookSeccomp, "syslog"}},
		{[]string{"handle"}, want{"EPERM", sandbox.HookSeccomp, "open_by_handle_at"}},
		{[]string{"mm"}, want{"EPERM", "", ""}},
		{[]string{"core"}, want{"EPERM", "", ""}},
		{[]string{"memfd"}, want{"EPERM", sandbox.HookSeccomp, "socket"}},
		{[]string{"own-filter"}, want{"EBUSY", "", ""}},
		{[]string{"clone3"}, want{"ENOSYS", "", ""}},
		{[]string{"tiocsti"}, want{"EPERM", sandbox.HookSeccomp, "ioctl"}},
		{[]string{"tiocsti-high"}, want{"EPERM", sandbox.HookSeccomp, "ioctl"}},
		{[]string{"chroot"}, want{"EPERM", sandbox.HookSeccomp, "chroot"}},
		{[]string{"source-route", "10.0.0.14", "127.0.0.1:9"}, want{"set options: operation not permitted", "", ""}},
		{[]string{"repair"}, want{"EPERM", "", ""}},
		{[]string{"transparent"}, want{"EPERM", "", ""}},
		{[]string{"setuid"}, want{"EPERM", "", ""}},
		{[]string{"kill", self}, want{"EPERM", "", ""}},
		{[]string{"sidecar-mem", self}, want{"EACCES", "", ""}},
		{[]string{"cgroup", filepath.Join(filepath.Dir(r.group.Path), "cgroup.procs")}, want{"EACCES", "", ""}},
		{[]string{"unpin", filepath.Join(r.pinDir, "link_connect4")}, want{"EACCES", "", ""}},
	}
}

func TestBypasses(t *testing.T) {
	r := newHarness(t, nil)
	dir := publicDir(t)
	docker := filepath.Join(dir, "docker.sock")
	host, err := net.Listen("unix", docker)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	abstract, err := net.Listen("unix", "@chaperone-test-host")
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	syslog, err := net.ListenPacket("unixgram", filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer syslog.Close()
	for _, path := range []string{docker, filepath.Join(dir, "log")} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "log")
	attempts := bypasses(r, docker, log)
	if launcher.NativeArch == unix.AUDIT_ARCH_X86_64 {
		attempts = append(attempts, attempt{[]string{"ldt"}, want{"EPERM", sandbox.HookSeccomp, "modify_ldt"}})
	}
	ask, end := r.dialogue("/proc/self/exe", pluginName, "tries")
	for _, attempt := range attempts {
		t.Run(strings.Join(attempt.args, " "), func(t *testing.T) {
			if got := ask(strings.Join(attempt.args, " ")); got != attempt.want.errno {
				t.Errorf("ended with %s, want %s", got, attempt.want.errno)
			}
		})
	}
	if status := end(); status != 0 {
		t.Errorf("status %d", status)
	}
	seen := make(map[want]bool)
	for _, d := range r.seen() {
		about := d.Syscall
		if d.Address.IsValid() {
			about = d.Address.String()
		} else if d.Path != "" {
			about = d.Path
		}
		if d.PID == 0 || d.Comm == "" || d.UID != uint32(r.user.UID) {
			if d.Hook != sandbox.HookEgress {
				t.Errorf("caller is missing: %+v", d)
			}
		}
		seen[want{"", d.Hook, about}] = true
		seen[want{"", d.Hook, ""}] = true
	}
	for _, attempt := range attempts {
		if w := attempt.want; w.hook != "" && !seen[want{"", w.hook, w.about}] {
			t.Errorf("%v was not reported", attempt.args)
		}
	}
}
