package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/sigv4"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// exchange carries one admitted request out.
type exchange struct {
	proxy             *Proxy
	w                 http.ResponseWriter
	r                 *http.Request
	conn              *conn
	admission         *authz.Admission
	session           session.Session
	control           *http.ResponseController
	scrub             *scrubber            // nil when nothing was injected that could come back
	placeholders      *placeholder.Matcher // nil when there is nothing to look for
	extensionsDropped bool                 // the plugin's extensions of WebSocket were not passed on
	reservation       *budget.Holding
	upload            int64 // of it, for what comes of the request's body

	began       time.Time
	upstream    *upstream.HTTP1Conn // that carries the request, over HTTP/1.1
	answered    atomic.Bool         // something of an answer has come
	silent      bool                // nothing was written to the upstream
	broken      atomic.Bool         // the body could not be read
	interrupted atomic.Bool         // the upstream's end has ended the reading of the body
	streams     atomic.Bool         // an answer whose parts come one by one has begun
	informing   atomic.Bool         // an informational answer is being written

	up, down session.RateLimiter // from the plugin, and to it
	outcome  authz.Outcome
	sent     atomic.Int64 // body bytes towards the upstream
	unread   atomic.Bool  // there is a body, and its end has not been read

	mu       sync.Mutex  // guards the answer against informational ones that come late
	replay   *replayBody // the body, while it may be sent again; nil for none
	settled  bool        // the final answer has come, or none will
	address  string
	attempts int  // connections that the request was given
	wrote    bool // its head was written on one of them
	giveUp   context.CancelCauseFunc
}

// maxAttempts bounds how often net/http repeats a request over HTTP/2: an
// upstream that answers each with PROTOCOL_ERROR would keep it going for ever
// (golang/go, http2 canRetryError), and only one was admitted.
const maxAttempts = 3

var (
	errRepeated        = errors.New("the upstream ended the stream each time")
	errUpstreamChanged = errors.New("the upstream ended the connection, and what carries a credential is not sent again to another address")
)

// exchange registers an admitted request, sends it, and answers with what
// comes back.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request, c *conn, a *authz.Admission, held *budget.Holding) {
	x := &exchange{proxy: p, w: w, r: r, conn: c, admission: a, reservation: held, control: http.NewResponseController(w), began: time.Now()}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	x.giveUp = cancel
	x.up, x.down = p.rates.Limiter(authz.LimitSentBytes, ctx.Done()), p.rates.Limiter(authz.LimitReceivedBytes, ctx.Done())
	x.session.Admission = a
	x.session.OnCut = func(cause error) {
		cancel(cause)
		x.endReading() // whoever waits for the rest of the plugin's body waits no longer
		x.endInforming()
	}
	if !p.sessions.Add(&x.session) {
		defer x.end()
		x.refuse(p.sessions.ReasonNow(a), "access was taken away while it was being decided")
		return
	}
	defer p.sessions.Remove(&x.session) // once its end is recorded
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

// pool returns the connections that the request may use. Over HTTP/2 nothing
// authenticates a connection, and some upstreams have no HTTP/2.
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
	if l := x.upstream; l != nil {
		x.upstream = nil
		l.Park()
	}
}

// roundTrip sends the request and answers.
func (x *exchange) roundTrip(ctx context.Context) {
	pool, err := x.pool()
	if err != nil {
		x.proxy.cfg.Log.Error("make transport", zap.Error(err))
		x.refuseAs(&session.RefusalError{
			Reason: authz.UpstreamUnreachable, Detail: "the rule's TLS terms or its client certificate cannot be used",
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
		x.refuse(authz.UpstreamUnreachable, "the upstream answered with a status that is none")
	default:
		x.respond(response)
	}
}

// makeRoom takes what the exchange may hold of the bodies of both sides, but for
// the window of the answer, which its connection took.
func (x *exchange) makeRoom() error {
	x.upload = windowCost(x.r)
	searched := 0
	if x.scrub != nil {
		searched = x.scrub.needles.ReaderSize()
	}
	if standIns := x.proxy.placeholders.Matcher(); standIns != nil && x.r.ContentLength != 0 {
		searched += standIns.BufferSize()
	}
	return session.AsRefusal(cmp.Or(
		x.reservation.Take(budget.Window, x.upload),
		x.reservation.Take(budget.Body, session.CopyCost+int64(searched)),
	))
}

// credentialRefused tells of a credential that the upstream did not accept.
func (x *exchange) credentialRefused(status int) {
	a, told := x.admission, x.proxy.cfg.CredentialRefused
	if told == nil || a.Injection.Kind == authz.InjectNone || (status != http.StatusUnauthorized && status != http.StatusForbidden) {
		return
	}
	told(a.Decision.Grant, a.Decision.Credential, a.Injection.Generation, status)
}

// protocol returns what is spoken to the upstream: what the plugin speaks, so
// that it meets the API that it would meet without a proxy.
func (x *exchange) protocol() upstream.Protocol {
	switch {
	case x.r.ProtoMajor != 2:
		return upstream.HTTP1
	case x.admission.Request.Destination.Scheme() == authz.SchemeHTTPS:
		return upstream.HTTP2
	}
	return upstream.H2C
}

// outbound makes the request that is sent. The plugin's header map becomes the
// upstream's: net/http has no more use for it. The slot is emptied, what is left
// is searched for stand-ins, and only then is the credential put in.
func (x *exchange) outbound(ctx context.Context) (*http.Request, error) {
	destination, slot, h := x.admission.Request.Destination, x.admission.Injection, x.r.Header
	if e := x.sendsInClear(); e != nil {
		return nil, e
	}
	upgrade := x.askedUpgrade(h)
	stripRequest(h, slot)
	query := emptySlot(h, destination, slot)
	if x.placeholders = x.proxy.placeholders.Matcher(); x.placeholders != nil {
		if e := x.placeholders.InRequest(x.admission.Request, query, h); e != nil {
			return nil, e
		}
	}
	x.askUpgrade(h, upgrade)
	if x.scrub != nil {
		x.scrub.ask(x.r.Method, h)
	}
	target := inject(h, destination, query, slot)
	out := &http.Request{
		Method: x.r.Method,
		// Opaque goes on the wire as it is: the canonical bytes that were decided.
		URL:           &url.URL{Scheme: string(destination.Scheme()), Host: destination.HostPort(), Opaque: target},
		Host:          destination.Authority(),
		Header:        h,
		ContentLength: x.r.ContentLength,
		Proto:         "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if x.r.ContentLength != 0 && x.r.Body != nil && x.r.Body != http.NoBody {
		x.body(out)
	}
	if slot.Kind == authz.InjectSigV4 {
		if err := x.sign(ctx, out, query); err != nil {
			return nil, err
		}
	}
	return out.WithContext(httptrace.WithClientTrace(upstream.WithDecision(ctx, x.admission), &httptrace.ClientTrace{
		GotConn: x.gotConn, WroteHeaders: x.wroteHeaders, Got1xxResponse: x.passInformational,
		GotFirstResponseByte: func() { x.answered.Store(true) },
	})), nil
}

// sendsInClear refuses to send a credential where a third party would read it.
func (x *exchange) sendsInClear() *session.RefusalError {
	destination, slot := x.admission.Request.Destination, x.admission.Injection
	switch plain := destination.Scheme() != authz.SchemeHTTPS; {
	case slot.Kind == authz.InjectNone || !plain:
		return nil
	case slot.Kind == authz.InjectCertificate:
		return &session.RefusalError{Reason: authz.NotEnforceableHere, Detail: "a client certificate is shown over https only"}
	case x.proxy.dialer.ViaProxy(destination):
		return &session.RefusalError{
			Reason: authz.NotEnforceableHere, Detail: "the credential would pass the upstream proxy in clear",
			Remedy: "use https, or list " + destination.Host() + " in upstreamProxy.noProxy",
		}
	}
	return nil
}

// askedUpgrade returns the protocol to change to that was decided, in the
// plugin's spelling, or "".
func (x *exchange) askedUpgrade(h http.Header) string {
	for _, protocol := range authz.UpgradesAsked(h["Upgrade"]) {
		if strings.EqualFold(protocol, x.admission.Request.Action.Upgrade) {
			return protocol
		}
	}
	return ""
}

// askUpgrade asks for the change of protocols that was decided. What is to be
// searched must not be compressed: a WebSocket then has no extensions.
func (x *exchange) askUpgrade(h http.Header, upgrade string) {
	if upgrade == "" {
		return
	}
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{upgrade}
	if x.scrub == nil && x.placeholders == nil {
		return
	}
	x.extensionsDropped = true
	for name := range h {
		if httpclean.SameHeader(name, "Sec-Websocket-Extensions") {
			delete(h, name)
		}
	}
}

// sign signs what is about to be sent, which nothing changes afterwards.
func (x *exchange) sign(ctx context.Context, out *http.Request, query string) error {
	slot, destination := x.admission.Injection, x.admission.Request.Destination
	r := &sigv4.Request{
		Method: out.Method, Scheme: string(destination.Scheme()), Host: out.Host, Path: destination.Path(), Query: query,
		Header: out.Header, Length: out.ContentLength,
	}
	if out.Body != nil {
		r.Body = &reservedReader{out.Body, x.reservation} // whose bytes count only if Sign reads them
	}
	body, err := sigv4.Sign(ctx, r, sigv4.Scope{Service: slot.Service, Region: slot.Region},
		sigv4.Key{ID: slot.KeyID, Secret: slot.Value, Session: slot.Session}, x.proxy.cfg.Now())
	switch {
	case errors.Is(err, sigv4.ErrChunks):
		return unsignable(err, "have the SDK send the body unsigned or whole; over https most do")
	case errors.Is(err, sigv4.ErrBody):
		return unsignable(err, "send the body in parts of at most 16 MiB")
	case errors.Is(err, sigv4.ErrExceedsRule):
		return &session.RefusalError{
			Reason: authz.NotEnforceableHere, Detail: err.Error(),
			Remedy: "leave it out: read and write an object instead of copying it, and have the bucket's owner say who may read it",
		}
	case errors.Is(err, sigv4.ErrQuery):
		return unsignable(err, "escape + and ; in the query")
	case err != nil:
		return err
	}
	if read := body != r.Body; read {
		out.Body, out.ContentLength, out.Trailer = readBody{body, out.Body}, r.Length, nil
	}
	return nil
}

// readBody is a body that was read to be signed.
type readBody struct {
	io.Reader
	io.Closer
}

// unsignable refuses a request that no signature can be made for.
func unsignable(err error, remedy string) *session.RefusalError {
	return &session.RefusalError{Reason: authz.MalformedRequest, Detail: "the request cannot be signed: " + err.Error(), Remedy: remedy}
}

// body attaches the plugin's body, which is counted, and its trailers.
func (x *exchange) body(out *http.Request) {
	if x.r.ProtoMajor == 1 {
		// Without it net/http would read the rest of the body before the
		// first byte of the answer, while the transport reads it too.
		_ = x.control.EnableFullDuplex() // HTTP/2 has it anyway
	}
	x.unread.Store(true)
	body := &countedBody{ReadCloser: x.r.Body, exchange: x}
	body.from = x.r.Body
	if x.placeholders != nil {
		body.from = searchedBody(x.placeholders, x.r, x.r.Body, x.decoderMemory(), x.halt)
	}
	if x.r.Trailer != nil {
		out.Trailer = make(http.Header, len(x.r.Trailer))
		for name := range x.r.Trailer {
			if x.passesAsTrailer(name) {
				out.Trailer[name] = nil // announced; the values come after the body
			}
		}
		body.trailer = out.Trailer
	}
	out.Body = body
}

// passesAsTrailer reports whether a request trailer may pass: nothing may
// follow as a trailer that would be removed from the head, nor the credential.
func (x *exchange) passesAsTrailer(name string) bool {
	return httpclean.Classify(name) == httpclean.ClassNone && !inSlot(name, x.admission.Injection) &&
		!httpclean.SameHeader(name, "Cookie") && !sigv4.Replaces(canonicalHeader(name)) // Authorization is among those
}

// countedBody counts and slows the plugin's body, and takes its trailers over at
// its end.
type countedBody struct {
	io.ReadCloser
	from     io.Reader // it, searched
	exchange *exchange
	trailer  http.Header
}

// errBodyUnreadable is a body that the plugin sent and that is none.
var errBodyUnreadable = errors.New("the request's body could not be read")

func (b *countedBody) Read(buf []byte) (int, error) {
	up := &b.exchange.up
	n, err := b.from.Read(buf[:up.Chunk(len(buf))])
	if _, cut := up.Wait(n); cut != nil {
		return 0, cut
	}
	b.exchange.sent.Add(int64(n))
	switch {
	case err == nil:
	case !errors.Is(err, io.EOF):
		b.exchange.broken.Store(true)
		return n, errors.Join(errBodyUnreadable, err)
	default:
		b.exchange.unread.Store(false)
		b.exchange.reservation.Give(budget.Window, b.exchange.upload)
		if e := b.exchange.trailerHolds(); e != nil {
			return n, e
		}
		for name, values := range b.exchange.r.Trailer {
			if _, announced := b.trailer[name]; announced {
				b.trailer[name] = values
			}
		}
	}
	return n, err
}

// Close ends the body. Over HTTP/1.1 net/http's own Close would read on, for as
// long as the plugin takes to send, and net/http's server calls it by itself.
func (b *countedBody) Close() error {
	if b.exchange.r.ProtoMajor == 1 {
		return nil
	}
	return b.ReadCloser.Close()
}

// trailerHolds refuses the plugin's trailer with a stand-in in it. The result
// is nil, and no *refusalError, for none.
func (x *exchange) trailerHolds() error {
	if x.placeholders == nil {
		return nil
	}
	if e := x.placeholders.InHeader(x.r.Trailer, "trailer"); e != nil {
		x.halt(e)
		return e
	}
	return nil
}

// halt ends the exchange because of what the plugin has sent: it is refused with
// cause, or what has begun of its answer is cut.
func (x *exchange) halt(cause error) { x.session.Cut(cause) }

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
	if x.wrote && x.address != address && x.admission.Injection.Kind != authz.InjectNone {
		x.giveUp(errUpstreamChanged)
		_ = conn.Close() // or it would be written before anybody hears of that
		return false
	}
	x.replay.restart()
	x.address = address
	if x.attempts++; x.attempts > maxAttempts && x.protocol() != upstream.HTTP1 {
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
	x.wrote = true
}

// passInformational passes an informational answer on (RFC 9110, section 15.2).
// 100 is not passed: net/http sends it by itself when the transport, which has
// got it, begins to read the plugin's body. 101 is none over HTTP/2 (RFC 9113,
// section 8.6), and over HTTP/1.1 it is no informational answer to net/http.
func (x *exchange) passInformational(code int, header textproto.MIMEHeader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.settled || code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return nil
	}
	h := x.w.Header()
	stripAnswer(http.Header(header))
	x.scrubHeader(http.Header(header))
	maps.Copy(h, header)
	x.inform(code)
	clear(h)
	return nil
}

// inform writes the head of an informational answer. The caller holds x.mu.
func (x *exchange) inform(code int) {
	x.informing.Store(true)
	defer x.informing.Store(false)
	x.w.WriteHeader(code)
}

// endInforming ends, after an access was cut, the writing of an informational
// answer to a plugin that does not read: the final one would wait behind it, and so
// would the end of the access. Over HTTP/2 the other streams wait behind it as well.
func (x *exchange) endInforming() {
	time.AfterFunc(resetPatience, func() {
		if x.informing.Load() {
			x.conn.Abort()
		}
	})
}

// settleAnswer ends the time of informational answers.
func (x *exchange) settleAnswer() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.settled = true
}

// fail answers for an upstream that did not.
func (x *exchange) fail(err error) {
	if cause := x.session.CutCause(); cause != nil {
		x.cutShort(cause)
		return
	}
	if x.r.Context().Err() != nil && !x.interrupted.Load() {
		x.outcome.Detail = "the plugin left before the answer"
		panic(http.ErrAbortHandler)
	}
	if x.endStream(err) {
		return
	}
	if errors.Is(err, errStale) && x.r.ProtoMajor == 1 && x.conn.requests.Load() > 1 {
		// Without a proxy the plugin would have met this on its own connection,
		// where it has used that before, and knows what it may repeat.
		x.outcome.Detail = errStale.Error() + ", and the plugin's was closed"
		panic(http.ErrAbortHandler)
	}
	err = x.failure(err)
	var e *session.RefusalError
	switch {
	case errors.As(err, &e):
	case errors.Is(err, errBodyUnreadable):
		e = &session.RefusalError{Reason: authz.MalformedRequest, Detail: errBodyUnreadable.Error()}
	case errors.Is(err, errRepeated), errors.Is(err, errUpstreamChanged):
		e = &session.RefusalError{Reason: authz.UpstreamUnreachable, Detail: err.Error()}
	default:
		e = upstream.Unreachable(err, "ask "+x.admission.Request.Destination.HostPort())
	}
	x.refuseAs(e)
}

// cutShort answers, before any other answer has begun, that the access ended.
func (x *exchange) cutShort(cause error) {
	var e *session.RefusalError
	switch {
	case errors.As(cause, &e):
		x.refuseAs(e)
	case errors.Is(cause, session.ErrTimeout):
		x.refuse(authz.UpstreamTimeout, "the upstream did not answer within the rule's timeout")
	case errors.Is(cause, session.ErrStopping):
		x.refuse(authz.NotReady, cause.Error())
	default:
		x.refuse(x.proxy.sessions.ReasonNow(x.admission), cause.Error())
	}
}

// refuse turns the admitted request into a refusal and answers with it.
func (x *exchange) refuse(reason authz.Reason, detail string) {
	x.refuseAs(&session.RefusalError{Reason: reason, Detail: detail})
}

func (x *exchange) refuseAs(e *session.RefusalError) {
	x.settleAnswer()
	refusal := x.proxy.report(e.Refuse(x.admission), nil)
	x.outcome.Detail = refusal.Detail
	x.proxy.answer(x.w, x.r, refusal)
}

// respond passes the upstream's answer to the plugin.
func (x *exchange) respond(response *http.Response) {
	body, err := x.scrubBody(response)
	var full *session.RefusalError
	switch {
	case errors.As(err, &full):
		x.refuseAs(full)
		return
	case err != nil:
		x.refuse(authz.UpstreamUnreachable, err.Error())
		return
	}
	streaming := isStreaming(response)
	h := x.w.Header()
	announced := x.header(h, response)
	if x.closesEarly(response) {
		h["Connection"] = []string{"close"}
	}
	if _, err := x.down.Wait(x.down.HeadSize("", h)); err != nil {
		x.fail(err)
		return
	}
	if !x.session.SetOnCut(x.abort) {
		clear(h)
		x.cutShort(x.session.CutCause())
		return
	}
	x.streams.Store(streaming)
	x.w.WriteHeader(response.StatusCode)
	if streaming || announced > 0 {
		_ = x.control.Flush() // the plugin may wait for the head before it sends more
	}
	err = x.copyBody(body, streaming)
	if err == nil {
		_ = response.Body.Close() // it is whole
		x.park()                  // before the plugin sends the next request
		x.trailer(h, response, announced)
		if x.r.ProtoMajor == 1 && response.ContentLength >= 0 {
			_ = x.control.Flush() // it is whole: the plugin need not wait for the end record
		}
		x.endBody(response)
		return
	}
	x.incomplete(err)
	if x.endMessages(h, response, err) {
		return
	}
	if x.session.CutCause() == nil {
		_ = x.control.Flush() // what came before the upstream broke off came without a proxy too
	}
	panic(http.ErrAbortHandler) // the plugin must see that the answer is not whole
}

// abort ends an answer that has begun, on both sides. Over HTTP/2 it ends the
// stream alone; but where the plugin does not read, no reset can be written
// either, and the connection goes.
func (x *exchange) abort(cause error) {
	x.giveUp(cause)
	if x.r.ProtoMajor != 2 {
		x.conn.Abort() // closing it would wait for whoever writes to it
		return
	}
	_ = x.control.SetWriteDeadline(time.Unix(1, 0)) // of this stream alone
	_ = x.control.SetReadDeadline(time.Unix(1, 0))
	time.AfterFunc(resetPatience, func() {
		if x.session.Live() {
			_ = x.conn.Cut()
		}
	})
}

// resetPatience is how long a stream that was cut may take to end before its
// whole connection is closed.
const resetPatience = 250 * time.Millisecond

// incomplete notes why an answer ended early.
func (x *exchange) incomplete(err error) {
	cause := x.session.CutCause()
	var broken *writeError
	var e *session.RefusalError
	switch {
	case errors.As(cause, &e):
		x.outcome.Detail = "cut: " + x.proxy.report(e.Refuse(x.admission), nil).Detail
	case errors.Is(cause, session.ErrTimeout):
		x.admission.Refuse(authz.UpstreamTimeout, "")
		x.outcome.Detail = cause.Error()
	case errors.Is(cause, session.ErrStopping):
		x.outcome.Detail = cause.Error()
	case cause != nil:
		x.admission.Refuse(x.proxy.sessions.ReasonNow(x.admission), "")
		x.outcome.Detail = "cut: " + cause.Error()
	case errors.As(err, &broken) || x.r.Context().Err() != nil:
		x.outcome.Detail = "the plugin left before the end of the answer"
	default:
		x.outcome.Detail = "the upstream broke off: " + upstream.CauseOf(err)
		if code, ok := resetCode(err); ok {
			x.conn.frames.ResetWith(x.r, code)
			x.outcome.Detail = "the upstream reset the stream: " + code.String()
		}
	}
}

// isStreaming reports whether the answer's parts matter one by one.
func isStreaming(response *http.Response) bool {
	return response.ContentLength < 0 || strings.HasPrefix(response.Header.Get("Content-Type"), "text/event-stream")
}

// header makes the head of the answer and returns how many trailers it announces.
func (x *exchange) header(h http.Header, response *http.Response) (announced int) {
	stripAnswer(response.Header)
	x.scrubHeader(response.Header)
	maps.Copy(h, response.Header)
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // net/http would guess one
	}
	if code := response.StatusCode; code == http.StatusNoContent || code == http.StatusNotModified && x.r.ProtoMajor == 2 {
		// A 204 has none (RFC 9110, section 8.6); servers send one, HTTP/1.1 clients
		// tolerate it, and HTTP/2 clients end the stream because of it. A 304 may
		// have one, and Go's HTTP/2 client then waits for what it states.
		delete(h, "Content-Length")
	}
	for name := range response.Trailer {
		if passesBack(name) && !x.quotedIn(name) {
			h["Trailer"] = append(h["Trailer"], name)
			announced++
		}
	}
	return announced
}

// trailer passes the answer's trailers on, announced or not. One that was
// announced and did not come is left out: a nil value in the server's header
// has net/http's HTTP/2 wait for it for ever.
func (x *exchange) trailer(h http.Header, response *http.Response, announced int) {
	if len(response.Trailer) == 0 {
		return
	}
	x.scrubHeader(response.Trailer)
	prefix := http.TrailerPrefix
	if announced == len(response.Trailer) {
		prefix = "" // exactly those that were announced
	}
	for name, values := range response.Trailer {
		if len(values) > 0 && passesBack(name) {
			h[prefix+name] = values
		}
	}
}

// writeError is a failure to write to the plugin.
type writeError struct{ error }

// copyBody copies the answer's body, and flushes each part at once where parts
// matter.
func (x *exchange) copyBody(body io.Reader, flush bool) error {
	buf := x.proxy.buffers.Get()
	defer x.proxy.buffers.Put(buf)
	to := newAnswerWriter(x.w, x.control)
	defer to.close()
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if werr := x.write(to, (*buf)[:n], flush); werr != nil {
				return &writeError{werr}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write writes a part of the answer's body, in pieces that have waited for
// their turn.
func (x *exchange) write(to *answerWriter, b []byte, flush bool) error {
	for len(b) > 0 {
		piece := b[:x.down.Chunk(len(b))]
		waited, err := x.down.Wait(len(piece))
		if err != nil {
			return err
		}
		n, err := to.write(piece, flush || waited)
		x.outcome.Bytes += int64(n)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// complete gathers what became of the request.
func (x *exchange) complete() {
	x.echoed()
	x.mu.Lock()
	x.outcome.Address = x.address
	x.mu.Unlock()
	x.outcome.SentBytes = x.sent.Load()
}

// end writes the end record, once, however the exchange ends.
func (x *exchange) end() {
	if err := x.admission.End(x.outcome); err != nil {
		x.proxy.cfg.Log.Error("end request", zap.String("decision", x.admission.ID), zap.Error(err))
	}
}
