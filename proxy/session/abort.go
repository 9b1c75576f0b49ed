package session

import (
	"crypto/tls"
	"net"
	"runtime"
	"syscall"
	"unsafe"
)

// AbortConn ends a connection at once, in both directions, and makes the close to
// come a reset, except for a unix socket, whose other end reads an end of
// file. Its reader finds it ended, and closes it.
//
// Closing it here would wait until that reader has been scheduled and has let
// go of the descriptor, and an ordinary system call may give the processor away
// to all the others that were woken: a thousand tunnels have time for neither.
// So it is two raw system calls, which never block.
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
	now := syscall.Linger{Onoff: 1}
	_ = raw.Control(func(fd uintptr) { // an error means that it is closed already
		_, _, _ = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, fd, syscall.SOL_SOCKET, syscall.SO_LINGER,
			uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now), 0) //nolint:gosec // as setsockopt(2) takes it; the kernel copies it
		_, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, fd, syscall.SHUT_RDWR, 0)
	})
}

// withHighPriority runs f on a thread that goes before all others, where the sidecar
// may have one (root, CAP_SYS_NICE): every connection that is cut wakes the
// processes at both its ends, and the last one must not take turns with them.
func withHighPriority(f func()) {
	const self, highest = 0, -20
	runtime.LockOSThread() // for good, should the priority not come back: the thread then ends with the goroutine
	before, err := syscall.Getpriority(syscall.PRIO_PROCESS, self)
	if err == nil {
		err = syscall.Setpriority(syscall.PRIO_PROCESS, self, highest)
	}
	f()
	if err != nil {
		runtime.UnlockOSThread()
		return
	}
	// The system call answers 20 minus the priority (getpriority(2), notes).
	if syscall.Setpriority(syscall.PRIO_PROCESS, self, 20-before) == nil {
		runtime.UnlockOSThread()
	}
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
