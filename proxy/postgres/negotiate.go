package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"io"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// tlsHandshake is the first byte of a TLS connection (RFC 8446, section 5.1).
const tlsHandshake = 22

// negotiation is the beginning of a connection, until the packet of a startup or cancel.
type negotiation struct {
	front  *database.Front
	to     authz.Destination
	conn   *session.Conn // the innermost layer
	secure bool          // it is TLS
	gss    bool          // GSSAPI encryption was refused
}

// errEnded is for a connection that has ended, or that another has refused already.
var errEnded = errors.New("the connection ended before a session began")

// run negotiates, and returns the packet that begins a session or cancels.
func (n *negotiation) run(ctx context.Context) (packet, error) {
	ahead, err := n.conn.Peek(1)
	if err != nil {
		return packet{}, errEnded
	}
	if ahead[0] == tlsHandshake {
		if err := n.accept(ctx); err != nil {
			return packet{}, err
		}
		if inner, ok := n.conn.Conn.(*tls.Conn); !ok || inner.ConnectionState().NegotiatedProtocol != alpn {
			return packet{}, &startupError{stateProtocolViolation, "a connection that begins with TLS must negotiate the protocol " + alpn}
		}
	}
	for {
		p, err := readPacket(n.conn)
		switch {
		case errors.Is(err, errPacket):
			return packet{}, &startupError{stateProtocolViolation, err.Error()}
		case err != nil:
			return packet{}, errEnded
		}
		switch p.code {
		case codeTLS:
			err = n.startTLS(ctx, p)
		case codeGSS:
			err = n.refuseGSS(p)
		default:
			return p, nil
		}
		if err != nil {
			return packet{}, err
		}
	}
}

// startTLS answers an SSLRequest. Bytes that came behind it would be taken as if they had
// come over TLS (CVE-2021-23214).
func (n *negotiation) startTLS(ctx context.Context, p packet) error {
	if n.secure || len(p.body) > 0 || len(n.conn.Ahead()) > 0 {
		return &startupError{stateProtocolViolation, "an SSLRequest came twice, or with data behind it"}
	}
	if _, err := io.WriteString(n.conn, "S"); err != nil {
		return errEnded
	}
	return n.accept(ctx)
}

func (n *negotiation) accept(ctx context.Context) error {
	inner, err := n.front.AcceptTLS(ctx, n.conn, n.to, []string{alpn})
	if err != nil {
		return errEnded
	}
	n.conn, n.secure = inner, true
	return nil
}

// refuseGSS answers a GSSENCRequest: the client goes on without.
func (n *negotiation) refuseGSS(p packet) error {
	if n.secure || n.gss || len(p.body) > 0 || len(n.conn.Ahead()) > 0 {
		return &startupError{stateProtocolViolation, "a GSSENCRequest came twice, or with data behind it"}
	}
	n.gss = true
	if _, err := io.WriteString(n.conn, "N"); err != nil {
		return errEnded
	}
	return nil
}
