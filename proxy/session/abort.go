package session

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AbortConn ends a connection at once, in both directions: the other end of a TCP
// connection reads a reset after the data that has arrived there, and that of a unix socket
// an end of file. The connection's reader finds it ended, and closes it.
//
// Closing it here would wait until that reader has been scheduled and has released the
// descriptor, and an ordinary system call may give the processor to all the others
// that were woken. So it is one raw system call, which never blocks: a connect to AF_UNSPEC
// dissolves a TCP connection (connect(2)), which is the ABORT of RFC 9293, section 3.10.5.
// The close of a socket with SO_LINGER 0 does the same, after the reader has been scheduled.
// A shutdown would end the connection in good order, and take the kernel two packets more.
func AbortConn(conn net.Conn) {
	conn = Innermost(conn)
	if !isSocket(conn) {
		_ = conn.Close() // it is gone either way
		return
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return // closed already
	}
	_, tcp := conn.(*net.TCPConn)
	_ = raw.Control(func(fd uintptr) { // an error means that it is closed already
		if !tcp || !dissolve(fd) {
			_, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, fd, syscall.SHUT_RDWR, 0)
		}
	})
}

// EndConn ends a connection in both directions and in good order: the other end reads what
// has been sent and then an end of file. Like [AbortConn] it waits for nothing, and leaves
// the closing to the connection's reader.
func EndConn(conn net.Conn) {
	conn = Innermost(conn)
	if !isSocket(conn) {
		_ = conn.Close() // it is gone either way
		return
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return // closed already
	}
	_ = raw.Control(func(fd uintptr) { // an error means that it is closed already
		_, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, fd, syscall.SHUT_RDWR, 0)
	})
}

// SendNow sends bytes on a socket as far as the kernel takes them at once, and returns how
// many that were. It waits for nothing: not for room in the socket's buffer, nor for
// another goroutine that writes to it, whose bytes the caller must keep apart from these.
// It is for the last message before [AbortConn], which the other end reads before the reset.
func SendNow(conn net.Conn, b []byte) (sent int, err error) {
	conn = Innermost(conn)
	if !isSocket(conn) {
		return 0, errors.ErrUnsupported
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) {
		sent, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if err = errors.Join(err, failed); err == nil && sent < len(b) {
		err = io.ErrShortWrite
	}
	return max(sent, 0), err
}

// dissolve resets a TCP socket's connection. If the kernel refuses that, dissolve has the
// later close send a reset, and reports false: kernels of 2023 refuse while another
// thread waits in the socket (Linux commit 4faeee0cf8a5).
func dissolve(fd uintptr) bool {
	unspecified := syscall.RawSockaddr{Family: syscall.AF_UNSPEC}
	_, _, failed := syscall.RawSyscall(syscall.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&unspecified)), unsafe.Sizeof(unspecified)) //nolint:gosec // as connect(2) takes it; the kernel copies it
	if failed == 0 {
		return true
	}
	now := syscall.Linger{Onoff: 1}
	_, _, _ = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, fd, syscall.SOL_SOCKET, syscall.SO_LINGER,
		uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now), 0) //nolint:gosec // as setsockopt(2) takes it; the kernel copies it
	return false
}

// Innermost returns the connection that another one wraps and exposes as NetConn, as a
// connection through an upstream proxy does, and any other as it is.
func Innermost(conn net.Conn) net.Conn {
	if _, ok := conn.(*tls.Conn); ok {
		return conn
	}
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return wrapped.NetConn()
	}
	return conn
}
