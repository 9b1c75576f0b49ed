package proxy

import (
	"context"
	"net"
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
		s.end(s.far, up())
	}()
	s.end(s.near.Conn, down())
	<-done
}

// end passes the end of one way on; where that cannot be, or copying has failed,
// both ways end.
func (s *pair) end(to net.Conn, err error) {
	if err != nil || !closeWrite(to) {
		s.cancel(nil) // the other way may wait for its turn
		_ = s.far.Close()
		_ = s.near.cut()
	}
}
