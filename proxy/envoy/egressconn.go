package envoy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// egressConn is one connection through an egress socket.
type egressConn struct {
	splicedPair
	listener *egressListener
	to       authz.Destination

	mu      sync.Mutex
	granted authz.Decision // the last decision that allowed the connection
	dialled netip.Addr     // of the upstream; not valid before
}

// pass forwards one connection to the upstream of its route.
func (e *egressListener) pass(c *session.Conn) {
	defer func() {
		if cause := recover(); cause != nil { // an unexpected failure is refused
			e.egress.Log.Error("egress connection panicked", zap.ByteString("stack", debug.Stack()))
		}
	}()
	ctx, cancel := context.WithCancelCause(e.egress.ctx)
	defer cancel(nil)
	defer c.Cut() //nolint:errcheck // it is gone either way
	stop := context.AfterFunc(ctx, func() { _ = c.Cut() })
	defer stop()
	to, f := e.destination(ctx, c)
	if f != nil {
		e.refuse("", f.Reason, f.Detail)
		return
	}
	s := &egressConn{splicedPair: splicedPair{near: c, cancel: cancel}, listener: e, to: to}
	decision := s.decide()
	if !decision.Allowed() {
		s.refuse(decision.Reason, "the route is not granted")
		return
	}
	s.granted = decision
	s.access = session.Session{Recheck: s.stillAllowed, Generation: decision.Generation, OnCut: cancel}
	if !e.egress.Live.Add(&s.access) {
		s.refuse(s.decide().Reason, "access was revoked during the decision")
		return
	}
	defer e.egress.Live.Remove(&s.access)
	if !s.dial(ctx, decision) {
		return
	}
	defer s.far.Close()
	s.splice(s.up, s.down)
	if misplaced, ok := errors.AsType[*session.RefusalError](s.access.CutCause()); ok {
		s.refuse(misplaced.Reason, misplaced.Detail)
	}
}

func (s *egressConn) refuse(reason authz.Reason, detail string) {
	s.listener.refuse(s.to.Host(), reason, detail)
}

func (s *egressConn) decide() authz.Decision {
	set, route := s.listener.egress, s.listener.route
	return set.Engine.Current().DecideRoute(set.Plugin, route.Grant, route.Rule, s.to, set.Now())
}

// stillAllowed reports whether the rule is in force and still allows everything that it
// allowed. Only the Envoy sees which part of it the requests inside use.
func (s *egressConn) stillAllowed() bool {
	d := s.decide()
	if !d.Allowed() {
		return !d.Cuts()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dialled.IsValid() && d.CheckAddress(s.dialled) != authz.Granted || !d.Covers(s.granted) {
		return false
	}
	s.granted = d
	return true
}

// dial connects to the upstream.
func (s *egressConn) dial(ctx context.Context, decision authz.Decision) bool {
	far, err := s.listener.egress.Dialer.Dial(ctx, decision, s.to)
	if err == nil {
		s.far = far
		s.mu.Lock()
		s.dialled = upstream.Address(far)
		s.mu.Unlock()
		// The address may be denied by a policy that was installed during the dial.
		if s.listener.egress.Engine.Current().Generation() == decision.Generation || s.stillAllowed() {
			return true
		}
		_ = far.Close() // no bytes were sent
		err = &session.RefusalError{Reason: authz.AddressNotAllowed, Detail: "access was revoked during the dial"}
	}
	var e *session.RefusalError
	if !errors.As(err, &e) {
		e = upstream.Unreachable(err, "connect to "+s.to.HostPort())
	}
	if ctx.Err() == nil { // otherwise it was cut, and the upstream did not fail
		s.refuse(e.Reason, e.Detail)
	}
	return false
}

// down copies the upstream's data. The kernel moves it (splice(2)). It is not
// rate-limited here, because the plugin's side of it is.
func (s *egressConn) down() error {
	_, err := io.Copy(s.near.Conn, s.far)
	return err
}

// up copies Envoy's bytes. If the plugin has placeholders, and the bytes are not inside
// Envoy's own TLS, they are searched: a placeholder here is outside of a credential slot.
func (s *egressConn) up() error {
	ahead := s.near.TakeAhead()
	matcher := s.listener.egress.Placeholders.Matcher()
	if matcher != nil && s.to.Scheme() != authz.SchemeHTTPS {
		search := matcher.Search("the traffic to "+s.to.HostPort(), func(cause error) { s.access.Cut(cause) })
		search.PassShort = placeholder.MinHeldPrefix
		_, err := io.Copy(s.far, scrub.NewReader(io.MultiReader(bytes.NewReader(ahead), s.near.Conn), search))
		return err
	}
	if len(ahead) > 0 {
		if _, err := s.far.Write(ahead); err != nil {
			return err
		}
	}
	_, err := io.Copy(s.far, s.near.Conn)
	return err
}

// destination returns the destination of a connection. If the route is to one host it is
// that host; otherwise the first bytes from the Envoy name it.
func (e *egressListener) destination(ctx context.Context, c *session.Conn) (authz.Destination, *session.RefusalError) {
	authority := session.JoinHostPort(e.route.Host, e.route.Port)
	switch {
	case e.route.Scheme == authz.SchemeTLS, e.route.Scheme == authz.SchemeHTTPS && !e.route.Exact():
		name, ok := session.ReadClientHello(ctx, c)
		switch {
		case !ok:
			return authz.Destination{}, session.Malformed("the TLS handshake could not be read")
		case name == "" && !e.route.Exact():
			return authz.Destination{}, session.Malformed("the TLS handshake names no server")
		case !e.route.Exact():
			authority = session.JoinHostPort(name, e.route.Port)
		case name != "":
			return e.namedAs(authority, name)
		}
	case e.route.Scheme == authz.SchemeHTTP && !e.route.Exact():
		host, f := peekHost(c)
		if f != nil {
			return authz.Destination{}, f
		}
		authority = session.WithPort(host, e.route.Port)
	}
	return e.named(authority)
}

// namedAs returns the destination of an exact host that the server name must be.
func (e *egressListener) namedAs(authority, name string) (authz.Destination, *session.RefusalError) {
	to, f := e.named(authority)
	if f == nil && !to.AgreesName(name) {
		return authz.Destination{}, session.Mismatch("the server name is " + session.Quote(name) + ", the egress socket is for " + authority)
	}
	return to, f
}

// named returns the destination that an authority names, if the route includes it.
func (e *egressListener) named(authority string) (authz.Destination, *session.RefusalError) {
	target := ""
	if e.route.Scheme.HTTP() {
		target = "/"
	}
	to, err := authz.NewDestination(e.route.Scheme, authority, target)
	if err != nil {
		return authz.Destination{}, session.Malformed(err.Error())
	}
	if to.Port() != e.route.Port || !e.route.Matches(to.Host()) {
		return authz.Destination{}, session.Mismatch("the connection is for " + to.HostPort() + ", the egress socket is for " + session.JoinHostPort(e.route.Host, e.route.Port))
	}
	return to, nil
}

// maxHead bounds the head of the request that names the host, in bytes.
const maxHead = 64 << 10

// peekHost returns the Host of the HTTP/1.1 request that a connection begins with, and
// leaves it to be read again. The Envoy opens a connection for each request there, so
// later requests are not inspected.
func peekHost(c *session.Conn) (string, *session.RefusalError) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(session.HelloTimeout)) // a broken one fails below
	defer func() { _ = c.Conn.SetReadDeadline(time.Time{}) }()
	for n := 1; ; n = len(c.Ahead()) + 1 {
		if n > maxHead {
			return "", session.Malformed("the head of the request is too long")
		}
		ahead, err := c.Peek(n)
		if head, _, whole := bytes.Cut(ahead, []byte("\r\n\r\n")); whole {
			return hostOf(string(head))
		}
		if err != nil {
			return "", session.Malformed("the head of the request could not be read")
		}
	}
}

// hostOf returns the one Host of a head of HTTP/1.1 (RFC 9112, section 3.2).
func hostOf(head string) (host string, f *session.RefusalError) {
	first, fields, _ := strings.Cut(head, "\r\n")
	parts := strings.Split(first, " ")
	if len(parts) != 3 || parts[2] != "HTTP/1.1" || parts[1] != "*" && !strings.HasPrefix(parts[1], "/") {
		return "", session.Malformed("the connection does not begin with an HTTP/1.1 request for a path and Host")
	}
	count := 0
	for line := range strings.SplitSeq(fields, "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(line, "\r\n\x00") {
			return "", session.Malformed("a header field of the request is invalid")
		}
		if strings.EqualFold(name, "Host") {
			host, count = strings.Trim(value, " \t"), count+1
		}
	}
	if count != 1 || host == "" {
		return "", session.Malformed("the request does not have exactly one Host")
	}
	return host, nil
}
