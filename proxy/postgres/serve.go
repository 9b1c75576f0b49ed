package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const (
	// startupTimeout is how long a plugin may take until its startup is complete.
	startupTimeout = 10 * time.Second
	// lastTimeout is how long the last message to a plugin may take, with its reading of it.
	lastTimeout = time.Second
	// endTimeout is how long the server may take to close after a Terminate, or after the
	// last answer to a plugin that has ended without one.
	endTimeout = 5 * time.Second
	// maxDiscard is how much of a plugin's is read and discarded after the last message, so
	// that the plugin can read that.
	maxDiscard = 4 << 20
)

// alpn is the protocol of a client that begins with TLS (PostgreSQL 17, sslnegotiation=direct).
const alpn = "postgresql"

// Config is what a Server is made of.
type Config struct {
	// Texts has the texts of statements, without constants, be part of the records.
	Texts bool
}

// Server serves a plugin's connections to databases of PostgreSQL. One server serves all
// connections of a plugin: a cancel comes on another connection than the statement.
type Server struct {
	cancels  cancels
	reader   *reader
	buffers  buffers
	relaying func(*relay) // called as a relay begins, in tests; nil otherwise
}

// New returns a server. It starts nothing.
func New(cfg Config) *Server { return &Server{reader: newReader(cfg.Texts)} }

// Serve serves one connection; it is a [database.Serve]. The caller closes c.
func (v *Server) Serve(ctx context.Context, f *database.Front, c *session.Conn, to authz.Destination) {
	n := &negotiation{front: f, to: to, conn: c}
	_ = c.SetDeadline(time.Now().Add(startupTimeout)) // a broken one fails below
	first, err := n.run(ctx)
	defer endTLS(n.conn)
	var want *startup
	if err == nil && first.code != codeCancel {
		want, err = readStartup(first)
	}
	_ = c.SetDeadline(time.Time{})
	switch {
	case err != nil:
		v.refuse(f, n.conn, to, err)
	case want == nil:
		v.cancel(ctx, f, n.conn, first.body)
	default:
		v.session(ctx, f, n.conn, to, want)
	}
}

// endTLS ends the plugin's TLS in good order, if there is one.
func endTLS(c *session.Conn) {
	if inner, ok := c.Conn.(*tls.Conn); ok {
		_ = inner.SetWriteDeadline(time.Now().Add(lastTimeout))
		_ = inner.CloseWrite() // the socket is closed either way
	}
}

// refuse refuses a connection whose startup is not one, or is not granted.
func (v *Server) refuse(f *database.Front, c *session.Conn, to authz.Destination, err error) {
	var bad *startupError
	if !errors.As(err, &bad) {
		return // it has ended
	}
	reason := authz.MalformedRequest
	if bad.state == statePrivilege {
		reason = authz.StatementNotGranted
	}
	sayFatal(c, errorMessage(severityFatal, bad.state, f.Refuse(c, to, reason, bad.detail)))
}

// sayFatal sends the last message on a connection without a session.
func sayFatal(c *session.Conn, message []byte) {
	_ = c.SetDeadline(time.Now().Add(lastTimeout))
	if _, err := c.Write(message); err == nil {
		discard(c)
	}
}

// discard reads what a plugin still sends. A close with unread bytes would be a reset, and
// the plugin would not read the last message.
func discard(c *session.Conn) {
	if session.CloseWriteOf(c) != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(lastTimeout))
	_, _ = io.CopyN(io.Discard, c, maxDiscard)
}

// cancel serves a CancelRequest: a key that was not given, or a cancel that fails, is not
// answered either (PostgreSQL 18, protocol-flow, canceling requests).
func (v *Server) cancel(ctx context.Context, f *database.Front, c *session.Conn, body []byte) {
	found := v.cancels.find(body)
	if found == nil || !c.Proved {
		f.Log().Debug("cancel request ignored", zap.String("cause", "no session has its key"))
		return
	}
	err := found.once(ctx)
	f.Log().Info("cancel request served", zap.String("decision", found.session.Decision()), zap.Bool("sent", err == nil))
}

// session serves a session.
func (v *Server) session(ctx context.Context, f *database.Front, c *session.Conn, to authz.Destination, want *startup) {
	connect, err := setOf(want.database, nil)
	if err != nil {
		v.refuse(f, c, to, &startupError{stateInvalidCatalog, "the name of the database is not one"})
		return
	}
	s, refusal := f.Open(ctx, c, to, connect)
	if refusal != nil {
		sayFatal(c, errorMessage(severityFatal, stateOf(refusal.Reason), refusal))
		return
	}
	defer s.End(authz.Outcome{})
	up, failure := login(s.Context(), s, to, want)
	if failure != nil {
		sayFatal(c, failure.encode())
		return
	}
	defer up.conn.Close()
	r := newRelay(v, s, c, up, want)
	defer r.close()
	r.run()
}

// encode returns the last message of a session that did not begin: the server's error where
// there is one, with the decision.
func (e *loginFailure) encode() []byte {
	if e.state == "" {
		return errorMessage(severityFatal, stateOf(e.refusal.Reason), e.refusal)
	}
	return appendError(severityFatal, stateText(e.state), e.message, "reason "+e.refusal.Reason.String()+", decision "+e.refusal.Decision, e.refusal.Remedy)
}
