package proxy

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
)

// pair is two connections of which each is sent what the other says. What they
// carry was, or will be, admitted access by access somewhere else; the pair
// itself stands as long as its access does.
type pair struct {
	near   *conn    // the one that was accepted
	far    net.Conn // the one that was dialled; nil until then
	access access
	cancel context.CancelCauseFunc // of everything that waits
}

// splice copies both ways, until either end is done or the pair is cut.
func (s *pair) splice(up, down func() error) {
	if !s.access.onCut(func(cause error) {
		s.cancel(cause)
		s.near.sever()
		sever(s.far)
	}) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.end(s.far, s.near.Conn, up())
	}()
	s.end(s.near.Conn, s.far, down())
	<-done
}

// end passes the end of one way on. Where that cannot be, copying has failed, or
// nobody is left to take the other way's bytes, both ways end.
func (s *pair) end(to, from net.Conn, err error) {
	if err != nil || hungUp(from) || !closeWrite(to) {
		s.cancel(nil) // the other way may wait for its turn
		_ = s.far.Close()
		_ = s.near.cut()
	}
}

// hungUp reports whether the other end of a unix socket has closed it, and not
// just said all it had to say: an Envoy that is done with a connection leaves
// nobody who would end it. Of TCP the kernel does not know.
func hungUp(c net.Conn) bool {
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
