package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
	"github.com/chaperone-proxy/chaperone/proxy/http2frames"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// tlsHandshake is the first byte of a TLS connection (RFC 8446, section 5.1).
const tlsHandshake = 22

// transparent handles a connection that the kernel redirected. Its host is the name that
// the virtual address stands for. Without one, SNI or Host names the host, which is
// resolved again: the dialled address is never used.
func (p *Proxy) transparent(ctx context.Context, c *conn) {
	c.mode, c.port = transparent, c.Original.Port()
	address := c.Original.Addr()
	host := address.String()
	if dns.IsVirtual(address) {
		name, ok := "", false
		if p.cfg.Resolver != nil {
			name, ok = p.cfg.Resolver.Host(address)
		}
		if !ok {
			p.drop(c, authz.DestinationNotGranted, "the virtual address is not assigned to a name")
			return
		}
		c.host, host = name, name
	}
	named, err := authz.NewDestination(authz.SchemeTCP, session.JoinHostPort(host, c.port), "")
	if err != nil {
		p.drop(c, authz.MalformedRequest, err.Error())
		return
	}
	schemes := p.schemes(named)
	if scheme, ok := databaseScheme(schemes); ok {
		p.serveDatabase(ctx, c, named, scheme)
		return
	}
	if onlyTunnels(schemes) && tunnelScheme(schemes) == authz.SchemeTCP {
		p.spliceTransparent(ctx, c, named, authz.SchemeTCP)
		return
	}
	p.enter(ctx, c, schemes, nil)
}

// drop refuses a connection before any of it was understood.
func (p *Proxy) drop(c *conn, reason authz.Reason, detail string) {
	p.report(p.cfg.Gate.Refuse(reason, authz.Attempt{
		Principal: p.cfg.Plugin, URL: c.Original.String(), Detail: detail,
	}, c.Source))
	c.Reset()
}

// spliceTransparent decides about a tunnel that was redirected, and splices.
func (p *Proxy) spliceTransparent(ctx context.Context, c *conn, named authz.Destination, scheme authz.Scheme) {
	ctx, cancel := context.WithCancelCause(ctx)
	t, refusal := p.admitTunnel(ctx, cancel, c, named, scheme)
	if refusal != nil {
		c.hangUp(scheme)
		return
	}
	defer t.end()
	if t.dial(ctx) != nil {
		c.hangUp(scheme)
		return
	}
	defer c.Close()
	t.splice()
}

// hangUp ends a connection whose protocol cannot carry a reason.
func (c *conn) hangUp(scheme authz.Scheme) {
	if scheme == authz.SchemeTLS {
		c.alert()
		return
	}
	c.Reset()
}

// alert ends a TLS connection before its handshake with a fatal access_denied (RFC 8446,
// section 6.2), which clients report by that name.
func (c *conn) alert() {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Conn.Write([]byte{21, 3, 3, 0, 2, 2, 49}) // it is closed either way
	_ = c.Close()
}

// enter detects the protocol of a tunnel or a redirected connection, and serves it. It
// writes greeting first.
func (p *Proxy) enter(ctx context.Context, c *conn, schemes []authz.Scheme, greeting []byte) {
	if len(greeting) > 0 {
		if _, err := c.Conn.Write(greeting); err != nil {
			_ = c.Cut()
			return
		}
	}
	if !p.awaitFirst(ctx, c, schemes) {
		return
	}
	if c.Ahead()[0] == tlsHandshake {
		p.enterTLS(ctx, c)
		return
	}
	if slices.Contains(schemes, authz.SchemeTCP) && !(slices.Contains(schemes, authz.SchemeHTTP) && looksLikeHTTP(c.Ahead())) {
		p.spliceNamed(ctx, c, authz.SchemeTCP)
		return
	}
	c.scheme = authz.SchemeHTTP
	c.rewriteRefusal = p.unreadable(c)
	p.frame(c, false)
	p.serveHTTP(c)
}

// awaitFirst waits for the plugin's first bytes. If tcp is granted too, the server may be
// the one that sends first.
func (p *Proxy) awaitFirst(ctx context.Context, c *conn, schemes []authz.Scheme) bool {
	wait := headerTimeout
	mayBeTCP := slices.Contains(schemes, authz.SchemeTCP)
	if mayBeTCP || len(schemes) == 0 { // without a grant there is no protocol to wait for
		wait = serverFirst
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(wait)) // a broken one fails in peek
	_, err := c.Peek(1)
	_ = c.Conn.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		return true
	case upstream.IsTimeout(err) && mayBeTCP:
		p.spliceNamed(ctx, c, authz.SchemeTCP)
	case upstream.IsTimeout(err) && len(schemes) == 0:
		if named, err := authz.NewDestination(authz.SchemeTCP, session.JoinHostPort(c.hostOrAddress(), c.port), ""); err == nil {
			p.refuseHost(c, named)
		}
		c.Reset()
	case upstream.IsTimeout(err):
		p.drop(c, authz.MalformedRequest, "the plugin sent no data")
	default:
		_ = c.Cut() // it was opened and closed, as a probe does
	}
	return false
}

// spliceNamed splices a connection to the host that has been determined.
func (p *Proxy) spliceNamed(ctx context.Context, c *conn, scheme authz.Scheme) {
	named, err := authz.NewDestination(authz.SchemeTCP, session.JoinHostPort(c.host, c.port), "")
	if err != nil {
		p.drop(c, authz.MalformedRequest, err.Error())
		return
	}
	p.spliceTransparent(ctx, c, named, scheme)
}

func (c *conn) hostOrAddress() string {
	if c.host != "" {
		return c.host
	}
	return c.Original.Addr().Unmap().String()
}

// looksLikeHTTP reports whether bytes begin like a request line.
func looksLikeHTTP(b []byte) bool {
	word, _, found := bytes.Cut(b, []byte(" "))
	return (found || len(b) < 20) && len(word) > 0 && len(word) < 20 && bytes.IndexFunc(word, func(r rune) bool { return r < 'A' || r > 'Z' }) < 0
}

// enterTLS handles a connection that starts with TLS. It splices the connection if only
// passthrough is granted, intercepts it if requests may be decided, and refuses it with
// an alert if the plugin could not read a refusal inside TLS.
func (p *Proxy) enterTLS(ctx context.Context, c *conn) {
	name, ok := session.ReadClientHello(ctx, c.Conn)
	if !ok {
		p.drop(c, authz.MalformedRequest, "the TLS handshake could not be read")
		return
	}
	f := p.nameTLS(c, name)
	c.host = c.hostOrAddress() // without a server name the certificate is for the address
	named, err := authz.NewDestination(authz.SchemeTCP, session.JoinHostPort(c.hostOrAddress(), c.port), "")
	switch {
	case f != nil:
		p.refuseTLS(c, f)
		return
	case err != nil:
		p.refuseTLS(c, session.Malformed(err.Error()))
		return
	case p.cfg.Identify == nil && c.mode != tunnel || p.cfg.Identify != nil && !c.Proved:
		p.refuseTLS(c, &session.RefusalError{Reason: authz.IdentityUnknown, Detail: "the caller is not identified"})
		return
	}
	schemes := slices.DeleteFunc(p.schemes(named), func(s authz.Scheme) bool { return s == authz.SchemeHTTP }) // that is not TLS
	scheme, isDatabase := databaseScheme(schemes)
	switch {
	case c.mismatch == "" && isDatabase:
		p.serveDatabase(ctx, c, named, scheme)
	case c.mismatch == "" && onlyTunnels(schemes):
		p.spliceNamed(ctx, c, tunnelScheme(schemes))
	case len(schemes) == 0 && !p.authority.covers(named.Host()):
		p.refuseHost(c, named)
		c.alert()
	default:
		p.intercept(ctx, c)
	}
}

// nameTLS applies the server name. If the connection has a name already, both must agree:
// a mismatch is stored, and each request is refused with it. Clients send no server name
// for addresses, and some (Java) send none for names without a dot.
func (p *Proxy) nameTLS(c *conn, name string) *session.RefusalError {
	if name == "" {
		return nil
	}
	named, err := authz.NewDestination(authz.SchemeTLS, session.JoinHostPort(name, c.port), "")
	if err != nil {
		return session.Malformed(err.Error())
	}
	switch {
	case c.host == "":
		c.host = named.Host()
	case c.host != named.Host():
		c.mismatch = "the server name is " + session.Quote(name) + ", the connection is for " + session.JoinHostPort(c.host, c.port)
	}
	return nil
}

// refuseTLS refuses a TLS connection before its handshake.
func (p *Proxy) refuseTLS(c *conn, f *session.RefusalError) {
	p.report(p.cfg.Gate.Refuse(f.Reason, authz.Attempt{
		Principal: p.cfg.Plugin, URL: session.JoinHostPort(c.hostOrAddress(), c.port), Detail: f.Detail,
	}, c.Source))
	c.alert()
}

// interceptConfig is the TLS configuration of intercepted connections.
func (p *Proxy) interceptConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := connOf(hello.Conn)
			if c == nil {
				return nil, errors.New("get certificate: unexpected type of connection")
			}
			return p.authority.leaf(c.hostOrAddress())
		},
	}
}

// intercept ends the plugin's TLS and serves the requests inside.
func (p *Proxy) intercept(ctx context.Context, c *conn) {
	c.scheme = authz.SchemeHTTPS
	c.HeadRead() // the ClientHello
	if c.Memory.Take(budget.Connection, session.TlsCost) != nil {
		p.refuseFull()
		_ = c.Cut()
		return
	}
	inner := tls.Server(c, p.serverTLS)
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	c.handshake.tail = new(session.TailBytes)
	err := inner.HandshakeContext(ctx)
	if err != nil {
		if c.mismatch != "" { // the client rejected the certificate; the mismatch is still recorded
			p.report(p.cfg.Gate.Refuse(authz.DestinationMismatch, authz.Attempt{
				Principal: p.cfg.Plugin, URL: session.JoinHostPort(c.host, c.port), Detail: c.mismatch,
			}, c.Source))
		} else {
			p.refusedHandshake(c, err)
		}
		_ = c.Close()
		return
	}
	c.handshake.tail = nil
	plain := c.over(inner)
	p.greeted(plain, inner)
	if inner.ConnectionState().NegotiatedProtocol == "h2" {
		p.frame(plain, true)
		p.serveHTTP(plain)
		return
	}
	plain.rewriteRefusal = p.unreadable(plain)
	p.serveHTTP(plain)
}

// frame filters the HTTP/2 frames on c once it turns out to be HTTP/2. If prefaced is set
// it must be HTTP/2.
func (p *Proxy) frame(c *conn, prefaced bool) {
	c.frames = http2frames.New(http2frames.Config{
		Source: readerFunc(c.readHeads), Prefaced: prefaced, MaxHeaderBytes: maxHeaderBytes, MaxStreams: maxStreams,
		Budget: p.budget, Reserve: func(n int64) error {
			err := c.Memory.Take(budget.Connection, n)
			if err != nil {
				c.OutOfMemory()
			}
			return err
		},
		Target: func() (scheme, authority string) {
			if c.host == "" {
				return string(authz.SchemeHTTP), "unknown.invalid"
			}
			return string(c.scheme), session.JoinHostPort(c.host, c.port)
		},
		Report: func(detail string) {
			p.report(p.cfg.Gate.Refuse(authz.MalformedRequest, authz.Attempt{
				Principal: p.cfg.Plugin, Scheme: c.scheme, Host: c.host, Detail: detail,
			}, c.Source))
		},
	})
}

// readerFunc is a function as an io.Reader.
type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// unreadable returns a function that turns net/http's own refusal of a request on c into
// an ordinary refusal.
func (p *Proxy) unreadable(c *conn) func([]byte) []byte {
	return func(text []byte) []byte {
		detail := "the request could not be read"
		if _, what, ok := bytes.Cut(text, []byte(": ")); ok {
			detail += ": " + string(what)
		} else if bytes.HasPrefix(text, []byte("431")) {
			detail = "the request's header is too large"
		}
		refusal := p.report(p.cfg.Gate.Refuse(authz.MalformedRequest, authz.Attempt{
			Principal: p.cfg.Plugin, Scheme: c.scheme, Host: c.host, Detail: detail,
		}, c.Source))
		return rawRefusal(refusal)
	}
}
