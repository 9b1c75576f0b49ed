package envoy

import (
	"context"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// idleAfter is how long no data has moved on a pair before a proxy that stops no longer
// waits for it: an Envoy keeps connections for later requests, for an hour, and does not
// report which.
const idleAfter = 2 * time.Second

// splicedPair is two connections that are copied to each other. Their accesses are
// admitted one by one elsewhere; the pair lasts as long as its own access.
type splicedPair struct {
	near   *session.Conn // the one that was accepted
	far    net.Conn      // the one that was dialled; nil until then
	access session.Session
	cancel context.CancelCauseFunc // of everything that waits
}

// splice copies both ways, until either end is done or the pair is cut.
func (s *splicedPair) splice(up, down func() error) {
	if !s.access.SetOnCut(func(cause error) {
		s.cancel(cause)
		s.near.Abort()
		session.AbortConn(s.far)
	}) {
		return
	}
	s.access.SetIsIdle(s.isIdle)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.end(s.far, s.near.Conn, up())
	}()
	s.end(s.near.Conn, s.far, down())
	<-done
}

// end passes the end of one direction on. If that is impossible, copying has failed, or
// the other direction has no reader, both directions end.
func (s *splicedPair) end(to, from net.Conn, err error) {
	if err != nil || peerClosed(from) || !session.CloseWrite(to) {
		s.cancel(nil) // the other direction may wait for its rate limiter
		_ = s.far.Close()
		_ = s.near.Cut()
	}
}

// isIdle reports whether no data has moved for a while on the TCP end of the pair, by the
// kernel's account (tcp(7), TCP_INFO), and none is in flight.
func (s *splicedPair) isIdle() bool {
	tcp, ok := session.Innermost(s.far).(*net.TCPConn)
	if !ok {
		if tcp, ok = s.near.Raw.(*net.TCPConn); !ok {
			return false
		}
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false // it is ending
	}
	var info *unix.TCPInfo
	err = raw.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err != nil || info == nil {
		return false
	}
	since := time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond
	return since >= idleAfter && info.Unacked == 0 && info.Notsent_bytes == 0
}

// peerClosed reports whether the other end of a unix socket has closed it, and not
// only half-closed: an Envoy that has dropped a connection does not end it. The
// kernel does not report this for TCP.
func peerClosed(c net.Conn) bool {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true // closed on this side
	}
	polled := []unix.PollFd{{}}
	err = raw.Control(func(fd uintptr) {
		polled[0].Fd = int32(fd)
		_, _ = unix.Poll(polled, 0) // it does not wait; an error leaves nothing reported
	})
	return err != nil || polled[0].Revents&unix.POLLHUP != 0
}
