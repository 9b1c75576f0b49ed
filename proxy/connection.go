package proxy

import (
	"crypto/tls"
	"net"
	"net/http/httptrace"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// maxAttempts bounds how often net/http repeats a request over HTTP/2. Only one request
// was admitted, and an upstream that answers each attempt with PROTOCOL_ERROR would be
// asked forever (golang/go, http2 canRetryError).
const maxAttempts = 3

// gotConn is httptrace's GotConn, for connections that net/http keeps.
func (x *exchange) gotConn(info httptrace.GotConnInfo) { x.onConnection(info.Conn) }

// onConnection records the connection of the request, and reports whether the request may
// be sent on it. It rejects a connection that the policy no longer allows.
func (x *exchange) onConnection(conn net.Conn) bool {
	c, shared := x.connection(conn)
	if !x.admission.Connected(c) {
		x.session.Cut(session.ErrRevoked)
		if !shared {
			_ = conn.Close() // otherwise net/http could write the request before it notices the end of the context
		}
		return false
	}
	address := conn.RemoteAddr().String()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.upstream.wrote && x.upstream.address != address && x.admission.Injection.Kind != authz.InjectNone {
		x.giveUp(errUpstreamChanged)
		_ = conn.Close() // otherwise net/http could write the request before it notices giveUp
		return false
	}
	x.upstream.replay.restart()
	x.upstream.address = address
	if x.upstream.attempts.Add(1) > maxAttempts && x.protocol() != upstream.HTTP1 {
		x.giveUp(errRepeated)
		return false
	}
	return true
}

// connection describes the connection of the request for later policies, and reports
// whether it carries other requests too.
func (x *exchange) connection(conn net.Conn) (c authz.Connection, shared bool) {
	c.Address = upstream.Address(conn)
	secured, ok := conn.(*tls.Conn)
	if !ok || x.admission.Request.Destination.Scheme() != authz.SchemeHTTPS {
		return c, x.protocol() == upstream.H2C
	}
	c.Meets = upstream.VerifyAgain(secured, x.admission.Decision.Terms())
	if x.upstream.conn != nil && x.upstream.conn.Conn == conn {
		c.TLS = x.upstream.conn.TLS
		return c, false // HTTP/1.1, without a copy of the whole state of TLS
	}
	state := secured.ConnectionState()
	c.TLS = upstream.TLSVersion(state.Version)
	return c, state.NegotiatedProtocol == "h2"
}

// wroteHeaders records that the upstream may have the request.
func (x *exchange) wroteHeaders() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.upstream.wrote = true
}
