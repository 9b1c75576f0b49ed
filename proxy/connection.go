package proxy

import (
	"crypto/tls"
	"net"
	"net/http/httptrace"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// maxAttempts bounds how often net/http repeats a request over HTTP/2: an
// upstream that answers each with PROTOCOL_ERROR would keep it going for ever
// (golang/go, http2 canRetryError), and only one was admitted.
const maxAttempts = 3

// gotConn is httptrace's GotConn, for connections that net/http keeps.
func (x *exchange) gotConn(info httptrace.GotConnInfo) { x.onConnection(info.Conn) }

// onConnection notes where the request goes, and keeps it from a connection that
// the policy no longer allows. It reports whether the request may be sent there.
func (x *exchange) onConnection(conn net.Conn) bool {
	c, shared := x.connection(conn)
	if !x.admission.Connected(c) {
		x.session.Cut(session.ErrRevoked)
		if !shared {
			_ = conn.Close() // or the request could be written before its context is seen to have ended
		}
		return false
	}
	address := conn.RemoteAddr().String()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.upstream.wrote && x.upstream.address != address && x.admission.Injection.Kind != authz.InjectNone {
		x.giveUp(errUpstreamChanged)
		_ = conn.Close() // or it would be written before anybody hears of that
		return false
	}
	x.upstream.replay.restart()
	x.upstream.address = address
	if x.upstream.attempts++; x.upstream.attempts > maxAttempts && x.protocol() != upstream.HTTP1 {
		x.giveUp(errRepeated)
		return false
	}
	return true
}

// connection describes what carries the request, for the policies to come, and
// whether it carries others too.
func (x *exchange) connection(conn net.Conn) (c authz.Connection, shared bool) {
	c.Address = upstream.Address(conn)
	secured, ok := conn.(*tls.Conn)
	if !ok || x.admission.Request.Destination.Scheme() != authz.SchemeHTTPS {
		return c, x.protocol() == upstream.H2C
	}
	session := secured.ConnectionState()
	c.Meets = upstream.VerifyAgain(session, x.admission.Decision.Terms())
	return c, session.NegotiatedProtocol == "h2"
}

// wroteHeaders notes that the upstream may have the request.
func (x *exchange) wroteHeaders() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.upstream.wrote = true
}
