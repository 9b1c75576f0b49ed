package proxy

import (
	"errors"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// halt ends the exchange because of data that the plugin sent: the request is refused
// with cause, or an answer that has begun is cut.
func (x *exchange) halt(cause error) { x.session.Cut(cause) }

// fail answers in place of an upstream that did not answer.
func (x *exchange) fail(err error) {
	if cause := x.session.CutCause(); cause != nil {
		x.cutShort(cause)
		return
	}
	if x.r.Context().Err() != nil && !x.upload.interrupted.Load() {
		x.outcome.Detail = "the plugin disconnected before the answer"
		panic(http.ErrAbortHandler)
	}
	if x.endStream(err) {
		return
	}
	if errors.Is(err, errStale) && x.r.ProtoMajor == 1 && x.conn.requests.Load() > 1 {
		// Without a proxy the upstream would have closed the plugin's own connection, and
		// the plugin decides which requests it repeats.
		x.outcome.Detail = errStale.Error() + ", and the plugin's connection was closed"
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

// abort ends an answer that has begun, on both sides. Over HTTP/2 it ends the stream
// only; but if the plugin does not read, a reset cannot be written either, and the
// connection is closed.
func (x *exchange) abort(cause error) {
	x.giveUp(cause)
	if x.r.ProtoMajor != 2 {
		x.conn.Abort() // Close would wait for a writer
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

// incomplete records why an answer ended early.
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
		x.outcome.Detail = "the plugin disconnected before the end of the answer"
	default:
		x.outcome.Detail = "the upstream ended the answer early: " + upstream.CauseOf(err)
		if code, ok := resetCode(err); ok {
			x.conn.frames.ResetWith(x.r, code)
			x.outcome.Detail = "the upstream reset the stream: " + code.String()
		}
	}
}

// complete fills in the outcome of the request.
func (x *exchange) complete() {
	x.echoed()
	x.mu.Lock()
	x.outcome.Address = x.upstream.address
	x.mu.Unlock()
	x.outcome.SentBytes = x.upload.sent.Load()
}

// end writes the end record, once, however the exchange ends.
func (x *exchange) end() {
	if err := x.admission.End(x.outcome); err != nil {
		x.proxy.cfg.Log.Error("request end not recorded", zap.String("decision", x.admission.ID), zap.Error(err))
	}
}
