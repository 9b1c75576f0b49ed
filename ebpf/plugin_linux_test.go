package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// plugin is the test binary in the role of a plugin.
func plugin(args []string) error {
	runtime.LockOSThread()
	plugins := map[string]func(args []string) error{
		"get":       get,
		"try":       try,
		"tries":     tries,
		"many":      many,
		"dns":       dns,
		"status":    status,
		"stream":    stream,
		"talk":      talk,
		"persist":   persist,
		"close":     closeEarly,
		"flood":     flood,
		"worker":    work,
		"daemon":    leaveDaemon,
		"rootless":  tryRootless,
		"storm":     storm,
		"tunnel":    tunnel,
		"probe":     probe,
		callsPlugin: burstCalls,
	}
	f := plugins[args[0]]
	if f == nil {
		return fmt.Errorf("no such plugin: %v", args)
	}
	return f(args[1:])
}

// get connects, sends hello and prints the answer, with its idea of the peer.
func get(args []string) error {
	if args[0] == "mapped" {
		return getMapped(netip.MustParseAddrPort(args[1]))
	}
	conn, err := net.DialTimeout(args[0], args[1], 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	fmt.Printf("%s from %s", answer, conn.RemoteAddr())
	return err
}

// getMapped is get by an IPv6 socket to an IPv4 address.
func getMapped(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(unix.AF_INET6, to)); err != nil {
		return err
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		return err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return err
	}
	buffer := make([]byte, 64)
	n, err := unix.Read(fd, buffer)
	if err != nil {
		return err
	}
	fmt.Printf("%s from %v", buffer[:n], addrPort(peer))
	return nil
}

// closeEarly connects, sends hello and is gone.
func closeEarly(args []string) error {
	conn, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Fprint(conn, "hello")
	return conn.Close()
}

// stream connects, reports it, and copies to standard output until the end.
func stream(args []string) error {
	conn, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	n, err := io.Copy(os.Stdout, conn)
	fmt.Fprintf(os.Stderr, "copied %d: %v", n, err)
	return nil
}

// persist tries to get out for ever, and reports each result.
func persist(args []string) error {
	for {
		conn, err := net.DialTimeout("tcp", args[0], time.Second)
		if err == nil {
			conn.Close()
		}
		fmt.Println(errno(err))
		time.Sleep(time.Millisecond)
	}
}

// talk connects at each line of standard input, and reports the result.
func talk(args []string) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		conn, err := net.DialTimeout("tcp", args[0], time.Second)
		if err == nil {
			conn.Close()
		}
		fmt.Println(errno(err))
	}
	return nil
}

// errno names an error the way a table can compare it.
func errno(err error) string {
	var n syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &n):
		return unix.ErrnoName(n)
	}
	return err.Error()
}

// status prints what the process is.
func status([]string) error {
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err
	}
	fmt.Printf("%s", text)
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return err
	}
	adjustment, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	fmt.Printf("Shelter:\t%s", adjustment)
	session, _ := unix.Getsid(0)
	fmt.Printf("Core:\t%d %d\nSession:\t%v\n", core.Cur, core.Max, session == os.Getpid())
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	fmt.Printf("%s", cgroup)
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, link := range links {
		target, err := os.Readlink("/proc/self/fd/" + link.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "/proc/") {
			fmt.Printf("FD:\t%s %s\n", link.Name(), target)
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		fmt.Printf("Interface:\t%s %s\n", i.Name, i.Flags)
	}
	return nil
}

// dns asks a server for bytes and prints the answer and whom it came from.
// Modes: connected, unconnected, tcp.
func dns(args []string) error {
	mode, server := args[0], netip.MustParseAddrPort(args[1])
	if mode == "tcp" {
		return get([]string{"tcp", args[1]})
	}
	family := unix.AF_INET
	if len(args) > 2 || server.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	timeout := unix.NsecToTimeval(int64(20 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	to := sockaddr(family, server)
	if mode == "connected" {
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return err
		}
		fmt.Printf("peer %v ", addrPort(peer))
		if _, err := unix.Write(fd, []byte("hello")); err != nil {
			return err
		}
	} else if err := unix.Sendto(fd, []byte("hello"), 0, to); err != nil {
		return err
	}
	buffer := make([]byte, 512)
	n, from, err := unix.Recvfrom(fd, buffer, 0)
	if err != nil {
		return err
	}
	fmt.Printf("%s from %v", buffer[:n], addrPort(from))
	return nil
}

func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(s unix.Sockaddr) netip.AddrPort {
	switch a := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// try makes one attempt to get around the hooks and prints how it ended.
func try(args []string) error {
	f := attempts()[args[0]]
	if f == nil {
		f = fileAttempts()[args[0]]
	}
	if f == nil {
		f = ownSockets()[args[0]]
	}
	if f == nil {
		return fmt.Errorf("no such attempt: %s", args[0])
	}
	fmt.Println(errno(f(args[1:])))
	return nil
}

// many opens connections to as many ports, some at a time, and wants each to
// answer with its port.
func many(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	at, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	failed := make(chan error, at)
	for worker := range at {
		go func() {
			for port := 1000 + worker; port < 1000+n; port += at {
				conn, err := net.Dial("tcp", fmt.Sprintf("240.0.0.9:%d", port))
				if err != nil {
					failed <- err
					return
				}
				answer, err := io.ReadAll(conn)
				_ = conn.Close()
				if err != nil || string(answer) != strconv.Itoa(port) {
					failed <- fmt.Errorf("port %d answered %q: %w", port, answer, err)
					return
				}
			}
			failed <- nil
		}()
	}
	for range at {
		err = errors.Join(err, <-failed)
	}
	return err
}

// tries makes the attempt that each line of standard input names.
func tries([]string) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := try(strings.Fields(lines.Text())); err != nil {
			return err
		}
	}
	return nil
}

// open makes a socket that is closed with the process.
func open(domain, kind, protocol int) func([]string) error {
	return func([]string) error {
		_, err := unix.Socket(domain, kind, protocol)
		return err
	}
}

// call makes a system call with up to three arguments.
func call(number uintptr, args ...uintptr) func([]string) error {
	return func([]string) error {
		args = append(args, 0, 0, 0)
		if _, _, errno := unix.Syscall(number, args[0], args[1], args[2]); errno != 0 {
			return errno
		}
		return nil
	}
}

// datagram sends to an address from a socket of a family.
func datagram(family, protocol int) func([]string) error {
	return func(args []string) error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, protocol)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		return unix.Sendto(fd, []byte("out"), 0, sockaddr(family, netip.MustParseAddrPort(args[0])))
	}
}

// archLDT is modify_ldt, which only x86 has.
const archLDT = 154

func attempts() map[string]func([]string) error {
	return map[string]func([]string) error{
		"udp4":         datagram(unix.AF_INET, 0),
		"udp6":         datagram(unix.AF_INET6, 0),
		"udp-via-own":  udpViaOwn,
		"udp-connect":  udpConnect,
		"udp-write":    udpWrite,
		"udp-sendmmsg": sendmmsg,
		"udplite":      open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE),
		"udplite6":     open(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE),
		"ping6":        open(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6),
		"sctp6":        open(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_SCTP),
		"mptcp6":       open(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		"raw":          open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW),
		"raw6":         open(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6),
		"ping":         open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
		"sctp":         open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP),
		"mptcp":        open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		"packet":       open(unix.AF_PACKET, unix.SOCK_RAW, 0x300),
		"vsock":        open(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"alg":          open(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
		"xdp":          open(unix.AF_XDP, unix.SOCK_RAW, 0),
		"kcm":          open(unix.AF_KCM, unix.SOCK_DGRAM, 0),
		"netlink":      open(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT),
		"netlink-diag": open(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG),
		"netlink-high": call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 1<<32|unix.NETLINK_SOCK_DIAG),
		"packet-high":  call(unix.SYS_SOCKET, 1<<32|unix.AF_PACKET, unix.SOCK_RAW, 0x300),
		"pair-inet":    call(unix.SYS_SOCKETPAIR, unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"routing":      open(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE),
		"unix":         unixConnect(unix.SOCK_STREAM),
		"unix-seq":     unixConnect(unix.SOCK_SEQPACKET),
		"unix-dgram":   unixConnect(unix.SOCK_DGRAM),
		"unix-send":    unixSend,
		"unix-pair":    unixPairSend,
		"unix-raw":     unixRaw,
		"unix-link":    unixLink,
		"unix-own":     unixOwn,
		"pair-stream":  pairStream,
		"bind":         bindPort,
		"io_uring":     call(unix.SYS_IO_URING_SETUP, 8, 0),
		"pidfd_getfd":  pidfdGetfd,
		"ptrace":       call(unix.SYS_PTRACE, unix.PTRACE_TRACEME),
		"vm_readv":     call(unix.SYS_PROCESS_VM_READV, 1),
		"bpf":          call(unix.SYS_BPF, 0),
		"perf":         call(unix.SYS_PERF_EVENT_OPEN, 0),
		"userfaultfd":  call(unix.SYS_USERFAULTFD, 1),
		"keyctl":       call(unix.SYS_KEYCTL, 0),
		"setns":        setns,
		"mount":        call(unix.SYS_MOUNT, 0),
		"unshare":      call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER|unix.CLONE_NEWNET),
		"unshare-time": call(unix.SYS_UNSHARE, unix.CLONE_NEWTIME),
		"clone-user":   call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)),
		"clone-parent": call(unix.SYS_CLONE, unix.CLONE_PARENT|uintptr(unix.SIGCHLD)),
		"packet-old":   open(unix.AF_INET, unix.SOCK_PACKET, 0x300),
		"vhost":        call(unix.SYS_IOCTL, 0, 0xaf01),
		"syslog":       call(unix.SYS_SYSLOG, 3, 0, 0),
		"handle":       call(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0),
		"ldt":          call(archLDT, 0, 0, 0),
		"mm":           call(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_BRK, 0),
		"core":         raiseCore,
		"memfd":        execMemory,
		"dial":         dial,
		"content":      content,
		"unmount":      func(args []string) error { return unix.Unmount(args[0], unix.MNT_DETACH) },
		"own-filter":   ownFilter,
		"clone3":       call(unix.SYS_CLONE3, 0, 0),
		"tiocsti":      call(unix.SYS_IOCTL, 0, unix.TIOCSTI),
		"tiocsti-high": call(unix.SYS_IOCTL, 0, 1<<32|unix.TIOCSTI),
		"x32":          call(0x40000000|39, 0),
		"reconnect":    reconnect,
		"fastopen":     fastOpen,
		"source-route": sourceRoute,
		"mapped-write": mappedWrite,

		"unshare-net-connect": unshareNetConnect,
		"cgroup":              leaveCgroup,
		"born-outside":        bornOutside,
		"kill":                killSidecar,
		"memory":              writeMemory,
		"rename":              rename,
		"unpin":               unpinLinks,
		"setuid":              call(unix.SYS_SETUID, 0),
		"chroot":              call(unix.SYS_CHROOT, uintptr(unsafe.Pointer(unsafe.StringData("/\x00")))),
		"sidecar-mem":         sidecarMemory,
		"repair": func([]string) error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
		},
		"transparent": func([]string) error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
		},
	}
}

// udpViaOwn connects to its own loopback and then sends elsewhere.
func udpViaOwn(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9999}); err != nil {
		return fmt.Errorf("connect to own loopback: %w", err)
	}
	return unix.Sendto(fd, []byte("out"), 0, sockaddr(unix.AF_INET, netip.MustParseAddrPort(args[0])))
}

// udpConnect is how C libraries probe an address.
func udpConnect(args []string) error {
	to := netip.MustParseAddrPort(args[0])
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	return unix.Connect(fd, sockaddr(family, to))
}

func udpWrite(args []string) error {
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if got := conn.RemoteAddr().String(); got != args[0] {
		return fmt.Errorf("peer is %s", got)
	}
	_, err = conn.Write([]byte("out"))
	return err
}

// mappedWrite sends on an IPv6 socket connected to an IPv4 address.
func mappedWrite(args []string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(unix.AF_INET6, netip.MustParseAddrPort(args[0]))); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	_, err = unix.Write(fd, []byte("out"))
	return err
}

// sendmmsg hides a destination behind an allowed one in one call.
func sendmmsg(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	type mmsghdr struct {
		unix.Msghdr
		length uint32
		_      [4]byte
	}
	payload := []byte("out")
	var messages [2]mmsghdr
	var names [2]unix.RawSockaddrInet4
	var vectors [2]unix.Iovec
	for i, to := range []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9999"), netip.MustParseAddrPort(args[0])} {
		_, port := kernelAddress(to)
		names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: to.Addr().As4()}
		vectors[i] = unix.Iovec{Base: &payload[0], Len: uint64(len(payload))}
		messages[i].Name, messages[i].Namelen = (*byte)(unsafe.Pointer(&names[i])), unix.SizeofSockaddrInet4
		messages[i].Iov, messages[i].Iovlen = &vectors[i], 1
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), 2, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if n != 1 {
		return fmt.Errorf("%d datagrams were sent", n)
	}
	_, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[1])), 1, 0, 0, 0)
	if errno == 0 {
		return nil
	}
	return errno
}

func unixConnect(kind int) func([]string) error {
	return func(args []string) error {
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrUnix{Name: args[0]})
	}
}

func unixSend(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("out"), 0, &unix.SockaddrUnix{Name: args[0]})
}

// unixRaw gives a name as few libraries would: with the zero that ends it, with
// nothing behind it, or with more behind that zero.
func unixRaw(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	name := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i, b := range []byte(args[1]) {
		name.Path[i] = int8(b)
	}
	length := len(args[1])
	if args[1][0] == '@' {
		name.Path[0] = 0
	}
	switch args[0] {
	case "nul":
		length++
	case "long":
		length++
		name.Path[length] = 'x'
		length = len(name.Path)
	}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(2+length))
	if errno != 0 {
		return errno
	}
	return nil
}

// unixPairSend sends from one of a pair to a name.
func unixPairSend(args []string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	return unix.Sendto(fds[0], []byte("out"), 0, &unix.SockaddrUnix{Name: args[0]})
}

// unixLink goes by a link and a relative name.
func unixLink(args []string) error {
	dir, err := os.MkdirTemp("", "link-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := os.Symlink(args[0], "x"); err != nil {
		return err
	}
	return unixConnect(unix.SOCK_STREAM)([]string{"x"})
}

// unixOwn uses what the plugin may use: pairs and abstract names.
func unixOwn([]string) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if _, err := unix.Write(pair[0], []byte("x")); err != nil {
		return err
	}
	listener, err := net.Listen("unix", "@own")
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := net.Dial("unix", "@own")
	if err != nil {
		return err
	}
	return conn.Close()
}

func pairStream([]string) error {
	_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	return err
}

func bindPort(args []string) error {
	a := netip.MustParseAddrPort(args[1])
	kind := unix.SOCK_STREAM
	if args[0] == "udp" {
		kind = unix.SOCK_DGRAM
	}
	family := unix.AF_INET
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return err
	}
	return unix.Bind(fd, sockaddr(family, a))
}

func pidfdGetfd([]string) error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	_, err = unix.PidfdGetfd(fd, 0, 0)
	return err
}

func setns([]string) error {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return unix.Setns(fd, 0)
}

// fastOpen connects by a sendto with data.
func fastOpen(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("hello"), unix.MSG_FASTOPEN, sockaddr(unix.AF_INET, netip.MustParseAddrPort(args[0])))
}

// sourceRoute asks for the packet to pass another host first (RFC 791, 3.1).
func sourceRoute(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	to := netip.MustParseAddrPort(args[1])
	via := netip.MustParseAddr(args[0]).As4()
	options := append([]byte{131, 7, 4}, via[:]...)
	options = append(options, 1)
	if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(options)); err != nil {
		return errors.New("set options: " + err.Error())
	}
	return unix.Sendto(fd, []byte("out"), 0, sockaddr(unix.AF_INET, to))
}

// reconnect uses one socket for a connection that leads out and then for one
// that does not (connect(2): AF_UNSPEC dissolves the first), and names its peer.
func reconnect(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort(args[0]))); err != nil {
		return err
	}
	var none unix.RawSockaddrInet4
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unix.SizeofSockaddrInet4); errno != 0 {
		return errno
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9999}); err != nil {
		return err
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	return errors.New(addrPort(peer).String())
}

func leaveCgroup(args []string) error {
	return os.WriteFile(args[0], []byte(strconv.Itoa(os.Getpid())), 0)
}

// bornOutside starts a process straight in another cgroup (clone3), and returns how
// it ended.
func bornOutside(args []string) error {
	dir, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer dir.Close()
	command := exec.Command("sleep", "60")
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return command.Run()
}

func killSidecar(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return unix.Kill(pid, 0)
}

// writeMemory opens another process's memory, past ptrace and its like.
func writeMemory(args []string) error {
	_, err := os.OpenFile("/proc/"+args[0]+"/mem", os.O_RDWR, 0)
	return err
}

// rename moves and links a file between directories.
func rename(args []string) error {
	from, to := args[0]+"/from", args[0]+"/to"
	if err := errors.Join(os.Mkdir(from, 0o700), os.Mkdir(to, 0o700), os.WriteFile(from+"/x", nil, 0o600)); err != nil {
		return err
	}
	return errors.Join(os.Link(from+"/x", to+"/y"), os.Rename(from+"/x", to+"/x"))
}

func unpinLinks(args []string) error { return os.Remove(args[0]) }

func sidecarMemory(args []string) error {
	_, err := os.ReadFile("/proc/" + args[0] + "/environ")
	return err
}

// dial connects, and wants to be answered.
func dial(args []string) error {
	conn, err := net.DialTimeout("tcp", args[0], time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.ReadAll(conn)
	return err
}

// content returns what a file holds.
func content(args []string) error {
	text, err := os.ReadFile(args[0])
	if err == nil && len(text) == 0 {
		return errors.New("nothing")
	}
	return errors.Join(errors.New(string(text)), err)
}

// leaveDaemon leaves a process behind that nobody waits for, in a session of its
// own, and stays until standard input ends.
func leaveDaemon(args []string) error {
	err := exec.Command("/bin/sh", "-c", "trap '' TERM HUP; (setsid setsid sleep "+args[0]+" <&- >/dev/null 2>&1 &) &").Run()
	if err != nil {
		return err
	}
	for sleeping(args[0]) == 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("left")
	_, err = io.ReadAll(os.Stdin)
	return err
}

// tryRootless tries to make a rootless sandbox, and returns the name of the error.
func tryRootless([]string) error {
	f, err := sandbox.NewRootless(sandbox.RootlessConfig{Proxy: []string{"127.0.0.1:0"}})
	if err == nil {
		return f.Close()
	}
	fmt.Println(errors.Is(err, sandbox.ErrNoUserNamespace), err)
	return nil
}

// raiseCore asks for core dumps again.
func raiseCore([]string) error {
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
}

// execMemory runs a program that no file holds, which then tries a connect.
func execMemory([]string) error {
	fd, err := unix.MemfdCreate("program", 0)
	if err != nil {
		return err
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, program); err != nil {
		return err
	}
	child := exec.Command(fmt.Sprintf("/proc/self/fd/%d", fd), "try", "packet")
	child.Args[0] = pluginName
	out, err := child.Output()
	if err != nil {
		return err
	}
	return errors.New(strings.TrimSpace(string(out)))
}

// ownFilter puts a filter over the sidecar's that would hear and answer in its
// place.
func ownFilter([]string) error {
	p := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	chain := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&chain)))
	if errno != 0 {
		return errno
	}
	return nil
}

// unshareNetConnect makes a network namespace, raises its loopback and connects.
func unshareNetConnect(args []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return errors.New("unshare: " + err.Error())
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return errors.New("raise: " + err.Error())
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(control, unix.SIOCSIFFLAGS, lo); err != nil {
		return errors.New("raise: " + err.Error())
	}
	to, family := netip.MustParseAddrPort(args[0]), unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Connect(fd, sockaddr(family, to))
}
