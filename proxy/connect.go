package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

const established = "HTTP/1.1 200 Connection Established\r\n\r\n"

// serverFirst is how long a tunnel that may be tcp waits for the plugin to send first, if
// another protocol is granted at the same host and port.
const serverFirst = 300 * time.Millisecond

// connect handles a CONNECT. If only a tunnel is granted, the proxy decides and dials the
// upstream before it answers. Otherwise the first bytes select the protocol, and each
// request inside is decided.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request, c *conn, held *budget.Holding) {
	if c.mode != explicit || r.ProtoMajor != 1 {
		p.refuse(w, r, c, session.Malformed("CONNECT is supported only over HTTP/1.1 and outside a tunnel"))
		return
	}
	named, err := authz.NewDestination(authz.SchemeTCP, r.RequestURI, "")
	if err != nil {
		p.refuse(w, r, c, session.Malformed(err.Error()))
		return
	}
	if f := c.agreeWire(named); f != nil {
		p.refuse(w, r, c, f)
		return
	}
	if r.ContentLength > 0 || len(r.TransferEncoding) > 0 {
		p.refuse(w, r, c, session.Malformed("the CONNECT request has a body (RFC 9110, section 9.3.6)"))
		return
	}
	schemes := p.schemes(named)
	if scheme, ok := databaseScheme(schemes); ok {
		held.End() // the session has its own
		p.connectDatabase(w, r, c, named, scheme)
		return
	}
	switch {
	case onlyTunnels(schemes):
		held.End() // the tunnel has its own
		p.openTunnel(w, r, c, named, schemes)
	case len(schemes) == 0 && !p.authority.covers(named.Host()):
		// The client would trust no certificate for this host: it can read the refusal
		// here, but not inside TLS.
		p.answer(w, r, p.refuseHost(c, named))
	default:
		if p.hijack(w, c) {
			c.mode, c.host, c.port = tunnel, named.Host(), named.Port()
			p.enter(context.WithoutCancel(r.Context()), c, schemes, []byte(established))
		}
	}
}

func (p *Proxy) schemes(d authz.Destination) []authz.Scheme {
	return p.cfg.Engine.Current().Schemes(p.cfg.Plugin, d.Host(), d.Port(), p.cfg.Now())
}

// onlyTunnels reports whether a tunnel is granted, and no scheme whose requests are
// decided one by one.
func onlyTunnels(schemes []authz.Scheme) bool {
	return len(schemes) > 0 && !slices.ContainsFunc(schemes, authz.Scheme.HTTP)
}

// refuseHost refuses a host that no rule names, with the detail of a decision.
func (p *Proxy) refuseHost(c *conn, named authz.Destination) authz.Refusal {
	return p.report(p.cfg.Gate.RefuseHost(p.cfg.Engine.Current(), authz.HostAttempt{
		Principal: p.cfg.Plugin, Host: named.Host(), Port: named.Port(), Connect: true,
		Detail: string(p.cfg.Plugin) + " may not connect to " + named.HostPort(),
	}, p.cfg.Now(), c.Source))
}

// hijack takes over the connection of a CONNECT from net/http, with the bytes that
// net/http has read ahead.
func (p *Proxy) hijack(w http.ResponseWriter, c *conn) bool {
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false // the plugin has disconnected
	}
	ahead, _ := buffered.Reader.Peek(buffered.Reader.Buffered()) // no more than there is
	c.Unread(ahead)
	c.passOver()
	return true
}

// openTunnel decides about a tunnel by CONNECT, dials, answers and splices.
func (p *Proxy) openTunnel(w http.ResponseWriter, r *http.Request, c *conn, named authz.Destination, schemes []authz.Scheme) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context())) // a tunnel outlives its CONNECT
	t, refusal := p.admitTunnel(ctx, cancel, c, named, tunnelScheme(schemes))
	if refusal != nil {
		p.answer(w, r, *refusal)
		return
	}
	if refusal := t.dial(ctx); refusal != nil {
		p.answer(w, r, *refusal)
		t.end()
		return
	}
	defer t.end()
	if !p.hijack(w, c) {
		t.outcome.Detail = "the plugin disconnected"
		return
	}
	defer c.Close()
	if _, err := io.WriteString(c.Conn, established); err != nil {
		t.outcome.Detail = "the plugin disconnected"
		return
	}
	if t.scheme() == authz.SchemeTLS && !t.helloAgrees(ctx) {
		return
	}
	t.splice()
}

// tunnelScheme returns the scheme of a tunnel: tcp includes tls.
func tunnelScheme(schemes []authz.Scheme) authz.Scheme {
	if slices.Contains(schemes, authz.SchemeTCP) {
		return authz.SchemeTCP
	}
	return authz.SchemeTLS
}

// tunnelSession is one live tunnel that is not intercepted.
type tunnelSession struct {
	proxy       *Proxy
	reservation *budget.Holding
	plugin      *conn
	upstream    net.Conn
	admission   *authz.Admission
	session     session.Session
	cancel      context.CancelCauseFunc // ends the dial and the waits of the rate limiters
	ended       <-chan struct{}         // closed by cancel
	timer       *time.Timer
	outcome     authz.Outcome
}

// admitTunnel decides about a tunnel and registers it. The caller must
// end the result, which cancels.
func (p *Proxy) admitTunnel(
	ctx context.Context, cancel context.CancelCauseFunc, c *conn, named authz.Destination, scheme authz.Scheme,
) (*tunnelSession, *authz.Refusal) {
	destination, err := authz.NewDestination(scheme, named.HostPort(), "")
	f := c.refusal
	if err != nil {
		f = session.Malformed(err.Error())
	}
	if f != nil {
		refusal := p.report(p.cfg.Gate.Refuse(f.Reason, authz.Attempt{
			Principal: p.cfg.Plugin, URL: named.HostPort(), Detail: f.Detail,
		}, c.Source))
		cancel(nil)
		return nil, &refusal
	}
	held := p.budget.Hold()
	if held.Take(budget.Request, session.TunnelCost) != nil {
		e := session.ErrOutOfMemory()
		refusal := p.report(p.cfg.Gate.Refuse(e.Reason, authz.Attempt{
			Principal: p.cfg.Plugin, URL: named.HostPort(), Detail: e.Detail,
		}, c.Source))
		refusal.Remedy, refusal.RetryAfter = e.Remedy, e.RetryAfter
		cancel(nil)
		return nil, &refusal
	}
	request := authz.Request{Principal: p.cfg.Plugin, Destination: destination}
	admission, err := p.cfg.Gate.Admit(ctx, request, c.Source)
	if err != nil {
		p.cfg.Log.Warn("tunnel admission failed", zap.String("decision", admission.ID), zap.Error(err))
	}
	if admission.Refusal != nil {
		refusal := p.report(*admission.Refusal, nil)
		held.End()
		cancel(nil)
		return nil, &refusal
	}
	t := &tunnelSession{proxy: p, reservation: held, plugin: c, admission: admission, cancel: cancel, ended: ctx.Done()}
	t.session.Admission, t.session.OnCut = admission, cancel
	if !p.sessions.Add(&t.session) {
		refusal := t.refuse(p.sessions.ReasonNow(admission), "access was revoked during the decision")
		t.cancel(nil)
		held.End()
		p.endTunnel(admission, t.outcome)
		return nil, &refusal
	}
	c.Attribution.Begin(admission.Decision.Grant, admission.Decision.Rule)
	if timeout := admission.Decision.Terms().Timeout; timeout > 0 {
		t.timer = time.AfterFunc(timeout, func() { t.session.Cut(session.ErrTimeout) })
	}
	return t, nil
}

func (t *tunnelSession) scheme() authz.Scheme { return t.admission.Request.Destination.Scheme() }

// refuse turns the admitted tunnel into a refusal.
func (t *tunnelSession) refuse(reason authz.Reason, detail string) authz.Refusal {
	return t.refuseAs(&session.RefusalError{Reason: reason, Detail: detail})
}

func (t *tunnelSession) refuseAs(e *session.RefusalError) authz.Refusal {
	refusal := t.proxy.report(e.Refuse(t.admission), nil)
	t.outcome.Detail = refusal.Detail
	return refusal
}

// dial connects to the upstream.
func (t *tunnelSession) dial(ctx context.Context) *authz.Refusal {
	conn, err := t.proxy.dialer.DialFor(ctx, t.admission, t.admission.Request.Destination)
	if err == nil && !t.admission.Connected(authz.Connection{Address: upstream.Address(conn)}) {
		_ = conn.Close() // no bytes were sent
		t.session.Cut(session.ErrRevoked)
		err = session.ErrRevoked
	}
	if err == nil {
		t.upstream = conn
		t.outcome.Address = conn.RemoteAddr().String()
		return nil
	}
	var e *session.RefusalError
	if !errors.As(err, &e) {
		e = upstream.Unreachable(err, "connect to "+t.admission.Request.Destination.HostPort())
	}
	if cause := t.session.CutCause(); cause != nil {
		e = &session.RefusalError{Reason: t.proxy.sessions.ReasonNow(t.admission), Detail: cause.Error()}
	}
	refusal := t.refuseAs(e)
	return &refusal
}

// helloAgrees reads the plugin's ClientHello and refuses a server name that differs from
// the tunnel's.
func (t *tunnelSession) helloAgrees(ctx context.Context) bool {
	name, ok := session.ReadClientHello(ctx, t.plugin.Conn)
	destination := t.admission.Request.Destination
	switch {
	case !ok:
		t.refuse(authz.MalformedRequest, "the tunnel is granted for TLS, but does not begin with a ClientHello")
	case name != "" && !destination.AgreesName(name):
		t.refuse(authz.DestinationMismatch, "the server name is "+session.Quote(name)+", the tunnel is for "+destination.HostPort())
	default:
		return true
	}
	t.plugin.alert()
	return false
}

// splice copies both ways until either end is done or the tunnel is cut.
func (t *tunnelSession) splice() {
	plugin, upstream := t.plugin, t.upstream
	if !t.session.SetOnCut(func(cause error) {
		t.cancel(cause)
		plugin.Abort()
		session.AbortConn(upstream)
	}) {
		t.note()
		return
	}
	done := make(chan int64, 1)
	go func() {
		n := t.copy(upstream, plugin.Conn, authz.LimitSentBytes)
		done <- n
	}()
	t.outcome.Bytes = t.copy(plugin.Conn, upstream, authz.LimitReceivedBytes)
	t.outcome.SentBytes = <-done
	t.note()
}

// copy copies one way and passes the end of file on. If that is impossible, or copying
// fails, both ways end.
func (t *tunnelSession) copy(to, from net.Conn, kind authz.LimitKind) int64 {
	pace := t.proxy.rates.Limiter(kind, t.ended)
	n, err := t.copyAll(&pace, to, from, kind)
	if err != nil || !session.CloseWrite(to) {
		t.cancel(nil) // the other way may wait for its rate limiter
		_ = t.upstream.Close()
		_ = t.plugin.Cut()
	}
	return n
}

// copyAll copies everything. If the plugin has placeholders, its bytes are searched and
// not copied by the kernel.
func (t *tunnelSession) copyAll(pace *session.RateLimiter, to, from net.Conn, kind authz.LimitKind) (int64, error) {
	matcher := t.proxy.placeholders.Matcher()
	if kind != authz.LimitSentBytes || matcher == nil {
		return pace.CopyConn(to, from)
	}
	search := matcher.Search("the tunnel", func(cause error) { t.session.Cut(cause) })
	search.PassShort = placeholder.MinHeldPrefix
	buf := t.proxy.buffers.Get()
	defer t.proxy.buffers.Put(buf)
	return pace.Copy(to, scrub.NewReader(from, search), *buf)
}

// note records why a tunnel was cut.
func (t *tunnelSession) note() {
	var e *session.RefusalError
	switch cause := t.session.CutCause(); {
	case cause == nil:
	case errors.As(cause, &e):
		t.outcome.Detail = "cut: " + t.refuseAs(e).Detail
	case errors.Is(cause, session.ErrTimeout):
		t.admission.Refuse(authz.UpstreamTimeout, "")
		t.outcome.Detail = cause.Error()
	case errors.Is(cause, session.ErrStopping):
		t.outcome.Detail = cause.Error()
	default:
		t.admission.Refuse(t.proxy.sessions.ReasonNow(t.admission), "")
		t.outcome.Detail = "cut: " + cause.Error()
	}
}

// end closes the upstream's side and writes the end record.
func (t *tunnelSession) end() {
	defer t.reservation.End()
	if t.timer != nil {
		t.timer.Stop()
	}
	t.cancel(nil)
	if t.upstream != nil {
		_ = t.upstream.Close()
	}
	t.plugin.Attribution.End()
	t.proxy.endTunnel(t.admission, t.outcome)
	t.proxy.sessions.Remove(&t.session)
}

func (p *Proxy) endTunnel(a *authz.Admission, o authz.Outcome) {
	if err := a.End(o); err != nil {
		p.cfg.Log.Error("tunnel end not recorded", zap.String("decision", a.ID), zap.Error(err))
	}
}
