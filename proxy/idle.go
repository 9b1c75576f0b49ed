package proxy

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

var errNoAnswer = errors.New("the upstream's answer is not valid HTTP")

// errStale reports that an upstream closed a connection with a request in flight that
// cannot be repeated.
var errStale = errors.New("the upstream closed its connection before it answered")

// overHTTP1 sends a request over HTTP/1.1, on an idle connection or a new one. It is
// repeated once, on a new connection, if that is harmless.
func (x *exchange) overHTTP1(out *http.Request, pool *upstream.IdlePool) (*http.Response, error) {
	l, err := x.link(out, pool)
	if err != nil {
		return nil, err
	}
	kept := x.keep(out, l)
	if kept != nil {
		defer kept.release() // no attempt follows an answer
	}
	response, err := x.sendOn(l, out)
	if err == nil || !l.Reused || x.upstream.answered.Load() || out.Context().Err() != nil && !x.upload.interrupted.Load() {
		return response, err
	}
	if !x.mayRepeat(out) {
		return nil, errors.Join(errStale, x.failure(err))
	}
	if kept != nil {
		if !kept.whole() {
			return nil, errors.Join(errStale, err)
		}
		out.Body = kept.attempt()
	}
	if l, err = pool.Dial(out.Context(), out.URL.Scheme, out.URL.Host); err != nil {
		return nil, err
	}
	return x.sendOn(l, out)
}

// keep retains a short body while it may have to be sent again. It returns nil if it
// retains no body.
func (x *exchange) keep(out *http.Request, l *upstream.HTTP1Conn) *replayBody {
	if !l.Reused || out.Body == nil || !replayable(out) {
		return nil
	}
	kept := &replayBody{from: out.Body, holding: x.reservation}
	kept.changed.L = &kept.mu
	out.Body = kept.attempt()
	return kept
}

// link returns a connection for a request.
func (x *exchange) link(out *http.Request, pool *upstream.IdlePool) (*upstream.HTTP1Conn, error) {
	most := upstream.IdleAtMost
	switch {
	case repeatable(out):
	case x.conn.requests.Load() > 1:
		most = upstream.IdleUnrepeatable
	default:
		most = 0
	}
	l := pool.Take(out.URL.Host, x.conn.Socket, most)
	if l == nil {
		var err error
		if l, err = pool.Dial(out.Context(), out.URL.Scheme, out.URL.Host); err != nil {
			return nil, err
		}
	}
	if upstream.ConnectionAuth(out.Header["Authorization"]) {
		l.ReserveFor(x.conn.Socket)
	}
	return l, nil
}

// sendOn sends a request on a connection. If the connection ends before the answer,
// sendOn ends the reading of the plugin's body too: otherwise net/http would wait for the
// rest.
func (x *exchange) sendOn(l *upstream.HTTP1Conn, out *http.Request) (*http.Response, error) {
	x.upstream.conn = l
	before := l.Raw.Written.Load()
	if !x.onConnection(l.Conn) {
		_ = l.Client.Close()
		return nil, context.Cause(out.Context())
	}
	stop := x.stopBody
	if kept, ok := out.Body.(*attemptBody); ok {
		stop = func() { _ = kept.Close() } // the next attempt reads on
	}
	l.Raw.OnClose(stop)
	response, err := l.Client.RoundTrip(out)
	l.Raw.OnClose(nil)
	x.upstream.silent = l.Raw.Written.Load() == before
	if err != nil {
		_ = l.Client.Close()
		return nil, err
	}
	l.Observe(response, x.conn.Socket)
	return response, nil
}

// mayRepeat reports whether a request that failed on a reused connection may be sent
// again. It must be idempotent (RFC 9110, section 9.2.2), or unsent, and its body must be
// retained.
func (x *exchange) mayRepeat(out *http.Request) bool {
	return !x.upload.interrupted.Load() && (repeatable(out) || x.upstream.silent && replayable(out))
}

func repeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return replayable(r)
	}
	return (len(r.Header["Idempotency-Key"]) > 0 || len(r.Header["X-Idempotency-Key"]) > 0) && replayable(r)
}

// replayable reports whether a request has no body, or one that can be retained.
func replayable(r *http.Request) bool {
	return r.Body == nil || r.ContentLength > 0 && r.ContentLength <= maxReplayed
}

// failure returns why a request failed. If the end of the upstream's connection ended the
// wait for the plugin's body, the reason is that end, and not the wait.
func (x *exchange) failure(err error) error {
	if x.upstream.conn == nil || !x.upload.interrupted.Load() && !errors.Is(err, errReplaced) {
		return err
	}
	if cause := x.upstream.conn.Raw.Cause(); cause != nil {
		return cause
	}
	return errNoAnswer
}

// stopBody ends the reading of a body whose end has not been read.
func (x *exchange) stopBody() {
	if !x.upload.unread.Load() || x.upload.broken.Load() {
		return
	}
	x.upload.interrupted.Store(true)
	x.endReading()
}

// endReading ends the reading of the body. Over HTTP/1.1 it ends the reading of the
// connection: net/http takes a failed read for the end of the connection, and cancels the
// contexts of all later requests on it.
func (x *exchange) endReading() {
	if x.r.ProtoMajor == 1 {
		x.conn.endReading()
		return
	}
	_ = x.control.SetReadDeadline(time.Unix(1, 0)) // of this stream alone
}
