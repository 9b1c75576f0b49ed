package inbound

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostPort is one port of the host's loopback. It is bound as long as the
// sidecar runs, so that nobody else takes it, and listened on only from time to
// time: the kernel refuses a connection to a port that nobody listens on.
type hostPort struct {
	host    string
	port    uint16
	failing bool // the last attempt to listen failed; of who opens and shuts it

	mu        sync.Mutex
	socket    int // -1: closed
	listening bool
}

// bindPort binds one port. A host without IPv6 has no ::1 to listen on, which is
// no error and no door.
func bindPort(host string, port uint16) (*hostPort, error) {
	d, err := bindSocket(host, port)
	switch {
	case err == nil:
		return d, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for the plugin: process.listen: port %[2]d of %[1]s is taken; end what has it (ss -ltnp 'sport = :%[2]d'), or name another", host, port)
	case host != Loopbacks[0] && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
		return nil, nil //nolint:nilnil // as documented
	}
	return nil, fmt.Errorf("listen for the plugin: process.listen: port %d: %w", port, err)
}

func bindSocket(host string, port uint16) (*hostPort, error) {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, err
	}
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: addr.As16()})
	if addr.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Closed connections in TIME_WAIT do not keep the port (socket(7)).
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, to))
	}
	if err == nil { // a port that two have bound is taken by who listens first
		err = errors.Join(os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN)), stopListening(fd))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &hostPort{host: host, port: port, socket: fd}, nil
}

// stopListening has the kernel refuse connections, and keeps the port: shutdown(2)
// on a socket that listens turns it back into one that is only bound. Without
// SO_REUSEADDR no other process can bind the port in between.
func stopListening(fd int) error {
	return errors.Join(
		os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_RDWR)),
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)),
	)
}

// Addr is the door's address.
func (d *hostPort) Addr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP(d.host), Port: int(d.port)}
}

// open listens, and returns the listener for its caller to close; nil if it is
// listened on already, or closed.
func (d *hostPort) open() (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listening || d.socket < 0 {
		return nil, nil //nolint:nilnil // as documented
	}
	err := os.NewSyscallError("setsockopt", unix.SetsockoptInt(d.socket, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(d.socket, unix.SOMAXCONN))
	}
	if err != nil {
		return nil, err
	}
	listener, err := listenerOf(d.socket)
	if err != nil {
		return nil, errors.Join(err, stopListening(d.socket))
	}
	d.listening = true
	return listener, nil
}

// listenerOf is a listener over a descriptor of its own.
func listenerOf(socket int) (net.Listener, error) {
	fd, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), "inbound")
	listener, err := net.FileListener(file)
	return listener, errors.Join(err, file.Close())
}

// isOpen reports whether it is listened on.
func (d *hostPort) isOpen() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listening
}

// stopListening stops listening. Connections that nobody has accepted are reset.
func (d *hostPort) stopListening() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop()
}

func (d *hostPort) stop() {
	if d.listening && d.socket >= 0 {
		_ = stopListening(d.socket) // neither fails on a socket that listens
		d.listening = false
	}
}

// close gives the port back.
func (d *hostPort) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.socket < 0 {
		return
	}
	d.stop()
	_ = unix.Close(d.socket) // it was not written to
	d.socket = -1
}
