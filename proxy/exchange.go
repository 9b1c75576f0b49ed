package proxy

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// exchange carries out one admitted request.
type exchange struct {
	proxy     *Proxy
	w         http.ResponseWriter
	r         *http.Request
	conn      *conn
	admission *authz.Admission
	session   session.Session
	control   *http.ResponseController
	began     time.Time

	scrub             *scrubber            // nil when no credential was injected that could come back
	placeholders      *placeholder.Matcher // nil when the plugin has no placeholders
	extensionsDropped bool                 // the plugin's extensions of WebSocket were not passed on
	reservation       *budget.Holding

	up, down session.RateLimiter // from the plugin, and to it
	outcome  authz.Outcome
	upload   uploadState

	mu       sync.Mutex // guards answer.settled and, of upstream, replay, address and wrote
	upstream upstreamState
	answer   answerState
	giveUp   context.CancelCauseFunc
}

// uploadState is how far the request's body has come.
type uploadState struct {
	window      int64        // bytes of the memory budget for received data that is not read yet
	sent        atomic.Int64 // bytes towards the upstream
	unread      atomic.Bool  // there is a body, and its end has not been read
	broken      atomic.Bool  // it could not be read
	interrupted atomic.Bool  // the end of the upstream's connection ended the reading of it
}

// upstreamState is how far the request has come at the upstream.
type upstreamState struct {
	conn     *upstream.HTTP1Conn // that carries the request, over HTTP/1.1
	answered atomic.Bool         // a byte of an answer has come
	silent   bool                // no byte of the request was written
	replay   *replayBody         // the body, while it may be sent again; nil for none
	address  string
	attempts atomic.Int32 // connections that net/http selected for the request
	wrote    bool         // its head was written on one of them
}

// answerState is how far the answer to the plugin has come.
type answerState struct {
	streams   atomic.Bool // an answer whose parts come one by one has begun
	informing atomic.Bool // an informational answer is being written
	settled   bool        // the final answer has come, or none will
}

var (
	errRepeated        = errors.New("the upstream reset the stream on every attempt")
	errUpstreamChanged = errors.New("the upstream closed the connection, and a request with a credential is not repeated at another address")
)

// exchange registers an admitted request, sends it, and forwards the answer.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request, c *conn, a *authz.Admission, held *budget.Holding) {
	x := &exchange{proxy: p, w: w, r: r, conn: c, admission: a, reservation: held, control: http.NewResponseController(w), began: time.Now()}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	x.giveUp = cancel
	x.up, x.down = p.rates.Limiter(authz.LimitSentBytes, ctx.Done()), p.rates.Limiter(authz.LimitReceivedBytes, ctx.Done())
	x.session.Admission = a
	x.session.OnCut = func(cause error) {
		cancel(cause)
		x.endReading() // a read of the rest of the plugin's body returns
		x.endInforming()
	}
	if !p.sessions.Add(&x.session) {
		defer x.end()
		x.refuse(p.sessions.ReasonNow(a), "access was revoked during the decision")
		return
	}
	defer p.sessions.Remove(&x.session) // after the end record
	c.Attribution.Begin(a.Decision.Grant, a.Decision.Rule)
	defer c.Attribution.End()
	defer x.end()
	defer x.complete()
	defer x.settleAnswer()
	defer x.allowHalfClose()()
	if timeout := a.Decision.Terms().Timeout; timeout > 0 {
		timer := time.AfterFunc(timeout, func() { x.session.Cut(session.ErrTimeout) })
		defer timer.Stop()
	}
	x.roundTrip(ctx)
}

// pool returns the connections that the request may use. HTTP/2 has no authentication of
// a connection, and some upstreams do not support HTTP/2.
func (x *exchange) pool() (*upstream.Pool, error) {
	speak := x.protocol()
	pool, err := x.proxy.pools.Get(x.admission, speak, x.down.Limited())
	if err != nil || speak != upstream.HTTP2 {
		return pool, err
	}
	if pool.OnlyHTTP1.Has(x.admission.Request.Destination.HostPort()) || upstream.ConnectionAuth(x.r.Header["Authorization"]) {
		return x.proxy.pools.Get(x.admission, upstream.HTTP1, x.down.Limited())
	}
	return pool, nil
}

// park keeps the connection to the upstream for another request.
func (x *exchange) park() {
	if l := x.upstream.conn; l != nil {
		x.upstream.conn = nil
		l.Park()
	}
}

// roundTrip sends the request and answers.
func (x *exchange) roundTrip(ctx context.Context) {
	pool, err := x.pool()
	if err != nil {
		x.proxy.cfg.Log.Error("transport creation failed", zap.Error(err))
		x.refuseAs(&session.RefusalError{
			Reason: authz.UpstreamUnreachable, Detail: "the TLS settings or the client certificate of the rule are invalid",
			Remedy: "ask the operator to check tls and the mtls credential of RULE",
		})
		return
	}
	if pool.Patterns != nil {
		x.scrub = &scrubber{needles: pool.Patterns, names: pool.NamePatterns}
	}
	if err := x.makeRoom(); err != nil {
		x.fail(err)
		return
	}
	out, err := x.outbound(ctx)
	if err != nil {
		x.fail(err)
		return
	}
	if _, err := x.up.Wait(x.up.HeadSize(x.r.RequestURI, out.Header)); err != nil {
		x.fail(err)
		return
	}
	response, err := x.send(pool, out)
	x.settleAnswer()
	if err != nil {
		x.fail(err)
		return
	}
	defer x.park() // after the body is closed
	defer response.Body.Close()
	x.credentialRefused(response.StatusCode)
	if err := x.reservation.Take(budget.Request, headCost(response.Header)); err != nil {
		x.fail(session.AsRefusal(err))
		return
	}
	switch {
	case response.StatusCode == http.StatusSwitchingProtocols:
		x.upgrade(response)
	case response.StatusCode < 200 || response.StatusCode > 999:
		x.refuse(authz.UpstreamUnreachable, "the upstream returned the invalid status code "+strconv.Itoa(response.StatusCode))
	default:
		x.respond(response)
	}
}

// makeRoom reserves memory for the bodies of both sides, except for the window of the
// answer, which its connection has reserved.
func (x *exchange) makeRoom() error {
	x.upload.window = windowCost(x.r)
	searched := 0
	if x.scrub != nil {
		searched = x.scrub.needles.ReaderSize()
	}
	if matcher := x.proxy.placeholders.Matcher(); matcher != nil && x.r.ContentLength != 0 {
		searched += matcher.BufferSize()
	}
	return session.AsRefusal(cmp.Or(
		x.reservation.Take(budget.Window, x.upload.window),
		x.reservation.Take(budget.Body, session.CopyCost+int64(searched)),
	))
}

// credentialRefused reports a credential that the upstream did not accept.
func (x *exchange) credentialRefused(status int) {
	a, report := x.admission, x.proxy.cfg.CredentialRefused
	if report == nil || a.Injection.Kind == authz.InjectNone || (status != http.StatusUnauthorized && status != http.StatusForbidden) {
		return
	}
	report(a.Decision.Grant, a.Decision.Credential, a.Injection.Generation, status)
}

// protocol returns the protocol for the upstream. It is the plugin's own, so that the
// plugin uses the same API as without a proxy.
func (x *exchange) protocol() upstream.Protocol {
	switch {
	case x.r.ProtoMajor != 2:
		return upstream.HTTP1
	case x.admission.Request.Destination.Scheme() == authz.SchemeHTTPS:
		return upstream.HTTP2
	}
	return upstream.H2C
}
