package session

import (
	"crypto/tls"
	"net"
	"runtime"
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

// dissolve resets a TCP socket's connection. When the kernel refuses that, dissolve
// makes the close to come a reset and reports false: kernels of 2023 refuse while another
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

// AtHighPriority runs f, which cuts accesses, on a thread that goes before all others,
// where the sidecar may have one. Between the steps of a cut a busy machine would
// otherwise have it take turns.
func AtHighPriority(f func()) {
	withHighPriority(runtime.NumCPU() > 1, func(bool) { f() })
}

// withHighPriority runs f on a thread that goes before all others, where the sidecar
// may have one (root, CAP_SYS_NICE): every connection that is cut wakes the
// processes at both its ends, and the last one must not take turns with them. A realtime
// thread takes no turns at all (sched(7), SCHED_RR): f is to end within milliseconds, and
// another CPU is to be left for threads that f may wait for. It is passed to f whether the
// thread is one.
func withHighPriority(realtime bool, f func(realtime bool)) {
	runtime.LockOSThread() // should the priority not come back, the thread ends with the goroutine
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		f(false)
		runtime.UnlockOSThread()
		return
	}
	if realtime = realtime && makeRealtime(); !realtime && !lowerNice() {
		f(false)
		runtime.UnlockOSThread()
		return
	}
	f(realtime)
	if unix.SchedSetAttr(0, before, 0) == nil {
		runtime.UnlockOSThread()
	}
}

// makeRealtime makes the calling thread, and not those that it starts, a realtime one,
// and reports whether it may be one.
func makeRealtime() bool {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	return unix.SchedSetAttr(0, &attr, 0) == nil
}

// lowerNice gives the calling thread, and not those that it starts, the highest priority
// among threads that take turns, and reports whether it may have it.
func lowerNice() bool {
	const highest = -20
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: highest, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	return unix.SchedSetAttr(0, &attr, 0) == nil
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
