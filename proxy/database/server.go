package database

import (
	"context"
	"net"
	"net/netip"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// serverConn is a connection to the server, which a cut of its session ends.
type serverConn struct {
	net.Conn
	session *Session
}

// Close implements [net.Conn].
func (c *serverConn) Close() error {
	c.session.mu.Lock()
	delete(c.session.server.conns, c)
	c.session.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite passes the end of file on.
func (c *serverConn) CloseWrite() error { return session.CloseWriteOf(c.Conn) }

// Dial connects to the server: TCP, to an address that is checked at the dial. A cut ends
// the dial and the connection.
func (s *Session) Dial(ctx context.Context) (net.Conn, *authz.Refusal) {
	ctx, stop := s.within(ctx)
	defer stop()
	to := s.admission.Request.Destination
	// The stacks and the buffers of this side are part of SessionCost.
	if s.held.Take(budget.Connection, session.TlsCost) != nil {
		return nil, s.failed(session.ErrOutOfMemory())
	}
	conn, err := s.front.cfg.Dialer.DialFor(ctx, s.admission, to)
	if err != nil {
		return nil, s.Failed(err, "connect to "+to.HostPort())
	}
	if !s.admission.Connected(authz.Connection{Address: upstream.Address(conn)}) {
		_ = conn.Close() // no bytes were sent
		s.entry.Cut(session.ErrRevoked)
		return nil, s.failed(&session.RefusalError{Reason: authz.NotReady, Detail: "the policy changed during the dial"})
	}
	tracked := &serverConn{Conn: conn, session: s}
	if !s.track(tracked) {
		_ = conn.Close() // no bytes were sent
		return nil, s.failed(&session.RefusalError{Reason: authz.NotReady, Detail: "the session has ended"})
	}
	return tracked, nil
}

// DialAgain connects to the address of the last Dial again, for a request that ends a
// statement at the server. It works for a session that was cut, too, so that the server
// stops what the plugin may no longer do. The caller limits it by ctx, and closes the
// connection.
func (s *Session) DialAgain(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	address := s.server.address
	s.mu.Unlock()
	if !address.IsValid() {
		return nil, errNotDialled
	}
	return s.front.cfg.Dialer.DialAddress(ctx, s.admission.Decision, s.admission.Request.Destination, address)
}

// track remembers a connection, unless the session was cut or has ended.
func (s *Session) track(c *serverConn) bool {
	address := addressOf(c.Conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server.closed {
		return false
	}
	if s.server.conns == nil {
		s.server.conns = make(map[*serverConn]struct{}, 1)
	}
	s.server.conns[c], s.server.address = struct{}{}, address
	return true
}

// addressOf returns the address of a connection's upstream, also behind a proxy.
func addressOf(conn net.Conn) netip.AddrPort {
	address := upstream.Address(conn)
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && address.IsValid() {
		return netip.AddrPortFrom(address, uint16(tcp.Port))
	}
	return netip.AddrPort{}
}

// within returns a context that ends with ctx and with the session.
func (s *Session) within(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
