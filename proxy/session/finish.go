package session

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// finishSendingPatience is how long the other end may take to receive what was sent to it.
	finishSendingPatience = time.Second
	// finishInterval is after how long its receipt is looked for, at first; then after twice as
	// long each time up to maxFinishInterval: a thousand sessions may wait at once.
	finishInterval    = 2 * time.Millisecond
	maxFinishInterval = 64 * time.Millisecond
	// mostDiscarded is how many bytes of the other end are read while it does.
	mostDiscarded = 64 << 10
)

// EndWritesIfUnsent ends the writing direction of a TCP connection that has bytes which were
// not sent yet, as the other end has no room for them, and reports whether it did. It is for a
// connection that has its last message, in place of [AbortConn], with which that would be
// lost; [FinishSending] follows. It waits for nothing, and wakes the connection's reader.
func EndWritesIfUnsent(conn net.Conn) bool {
	ended := false
	control(conn, func(fd int) {
		if queued(fd, unix.SIOCOUTQNSD) {
			_, _, failed := syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(fd), syscall.SHUT_WR, 0)
			ended = failed == 0
		}
	})
	if ended {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // an error means that it is closed
	}
	return ended
}

// FinishSending sends the rest as the other end makes room for it, waits until that has received
// everything, for a second at most in all, and ends the connection as [AbortConn] does. Bytes of
// the other end are discarded: unread bytes would make the end a reset before its time. The
// caller is the last reader and the last writer.
func FinishSending(conn net.Conn, rest []byte) {
	defer AbortConn(conn)
	left := true
	var buf [4096]byte
	late, interval := time.Now().Add(finishSendingPatience), finishInterval
	for discarded := 0; left && time.Now().Before(late); interval = min(2*interval, maxFinishInterval, time.Until(late)) {
		if len(rest) > 0 {
			rest, left = sendMore(conn, rest)
		} else {
			left = false
			control(conn, func(fd int) { left = queued(fd, unix.TIOCOUTQ) })
		}
		switch {
		case !left:
		case discarded >= mostDiscarded || conn.SetReadDeadline(time.Now().Add(interval)) != nil:
			time.Sleep(interval)
		default:
			n, err := conn.Read(buf[:])
			if discarded += n; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				discarded = mostDiscarded // there is no more
			}
		}
	}
}

// sendMore sends what the kernel takes at once of the last bytes, behind which it ends the writing
// direction. It reports whether the connection can go on.
func sendMore(conn net.Conn, b []byte) (rest []byte, ok bool) {
	n, err := SendNow(conn, b)
	if n == len(b) {
		control(conn, func(fd int) { _, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(fd), syscall.SHUT_WR, 0) })
	}
	return b[n:], err == nil || errors.Is(err, io.ErrShortWrite) || errors.Is(err, unix.EAGAIN)
}

// control calls f with the descriptor of a TCP connection, unless it is closed.
func control(conn net.Conn, f func(fd int)) {
	tcp, ok := Innermost(conn).(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // an error means that it is closed
	}
}

// queued reports whether a TCP connection has bytes that were not acknowledged (SIOCOUTQ of
// tcp(7), the same number as TIOCOUTQ), or not sent (SIOCOUTQNSD).
func queued(fd int, request uint) bool {
	n, err := unix.IoctlGetInt(fd, request)
	return err == nil && n > 0
}
