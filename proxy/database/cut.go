package database

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

var errNotDialled = errors.New("no connection to the server was made")

const (
	// maxEnds is how many requests that end a statement are under way at once: a
	// revocation may cut a thousand sessions.
	maxEnds = 16
	// endPatience is how long such a request may take, with its turn.
	endPatience = 2 * time.Second
	// cancelGrace is how long a statement may go on after its timeout, once the server
	// was asked to end it.
	cancelGrace = 2 * time.Second
)

// Serve begins the relay. From now on abort is called once when the session is cut, before
// its sockets are reset, to send the protocol's last message by [Session.Last]. It must not
// block, nor wait for a lock that is held during a read or a write; [Session.Cause] is the
// text. idle reports whether nothing runs, and no transaction is open: only then the
// session ends when its credential has been replaced, or when the sidecar ends. If the
// session was cut already, abort is called before Serve returns.
func (s *Session) Serve(abort func(cause error), idle func() bool) {
	s.mu.Lock()
	s.hooks.abort, s.hooks.idle = abort, idle
	cause := s.cut.cause
	s.mu.Unlock()
	s.entry.SetIsIdle(s.isIdle)
	if cause != nil {
		s.down.cut.Store(true)
		s.plugin.EndsLater()
		s.callAbort(abort, cause)
		s.endPlugin(cause)
	}
}

// OnTimeout sets how the server is asked to end what the session runs: by
// [Session.DialAgain]. It is called, on a goroutine of its own, when a rule's timeout
// expires, and when a session is cut in which a statement runs.
func (s *Session) OnTimeout(cancel func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks.cancel = cancel
}

// isIdle reports whether nothing runs.
func (s *Session) isIdle() bool {
	s.mu.Lock()
	idle, busy := s.hooks.idle, s.running.n > 0
	s.mu.Unlock()
	return !busy && idle != nil && idle()
}

// stillAllowed decides the session, and every statement that runs or was kept, again.
func (s *Session) stillAllowed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended { // its sockets are closed, and the record of its end may be being written
		return true
	}
	if !s.admission.StillAllowed() {
		return false
	}
	if s.server.writes && s.onlyReads() {
		s.cut.denied = authz.StatementNotGranted
		return false
	}
	for st := s.running.first; st != nil; st = st.next {
		if !s.allows(st.admission) {
			return false
		}
	}
	for _, kept := range s.running.kept {
		if !s.allows(kept) {
			return false
		}
	}
	return true
}

// allows decides a statement again, and notes why it is denied: later, the record of its end
// may be being written. The caller holds mu.
func (s *Session) allows(a *authz.Admission) bool {
	if a.StillAllowed() {
		return true
	}
	s.cut.denied = a.ReasonNow()
	return false
}

// onCut ends the session. The registry calls it once, and its caller may have a thousand
// sessions to end: it waits for nothing.
func (s *Session) onCut(cause error) {
	s.mu.Lock()
	s.cut.cause, s.cut.abort, s.cut.busy = cause, s.hooks.abort, s.running.n > 0
	conns := s.server.take()
	s.mu.Unlock()
	if s.cut.abort != nil {
		s.down.cut.Store(true) // a message that was read before is not sent on, unless a part of it was
		s.plugin.EndsLater()
	}
	for _, conn := range conns {
		session.AbortConn(conn.Conn)
	}
}

// afterCut ends the plugin's side, with the last message, of a session whose connections
// to the server are gone.
func (s *Session) afterCut(cause error) {
	defer close(s.cut.done)
	s.mu.Lock()
	abort, cancel, busy := s.cut.abort, s.hooks.cancel, s.cut.busy // the protocol may have ended its statements since
	s.mu.Unlock()
	if abort != nil {
		s.callAbort(abort, cause)
		s.endPlugin(cause)
	}
	s.cancel(cause)
	if busy && cancel != nil {
		s.front.cfg.Work.Enter()
		go func() {
			defer s.front.cfg.Work.Leave()
			s.askToEnd(cancel)
		}()
	}
}

// callAbort calls a protocol's abort. Its failure must not keep other sessions from being
// cut.
func (s *Session) callAbort(abort func(error), cause error) {
	defer func() {
		if recover() != nil {
			s.front.cfg.Log.Error("last message panicked", zap.ByteString("stack", debug.Stack()))
		}
	}()
	abort(cause)
}

// endPlugin ends the plugin's side: in good order where the session was idle, so that a
// pool sees a server that has closed, and by a reset otherwise. A reset would take with it a
// last message that still is on its way, behind what a plugin has not read yet, or behind a
// writer: then [Session.End] sends what is left, and waits for the plugin to receive that.
func (s *Session) endPlugin(cause error) {
	if errors.Is(cause, session.ErrRetired) || errors.Is(cause, session.ErrStopping) {
		session.EndConn(s.plugin.Raw)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cut.late != nil || len(s.down.unsent.rest()) > 0:
		_ = s.hurry()
		_ = s.plugin.Raw.SetDeadline(time.Unix(1, 0)) // its reader and its writer end; an error means that it is closed
		s.cut.unsent = true
	case s.down.last.Load() && session.EndWritesIfUnsent(s.plugin.Raw):
		s.cut.unsent = true
	default:
		s.plugin.Abort()
	}
}

// finishPlugin sends a plugin what is left for it of a session that has ended.
func (s *Session) finishPlugin() {
	s.mu.Lock()
	unsent, late := s.cut.unsent, s.cut.late
	s.mu.Unlock()
	if !unsent {
		return
	}
	s.down.writing.Lock()
	defer s.down.writing.Unlock()
	if late != nil && (s.down.partial || s.sendNow(late) != nil) { // a part of a message is the end
		s.plugin.Abort()
		return
	}
	session.FinishSending(s.plugin.Raw, s.down.unsent.rest())
}

// askToEnd asks the server to end what the session runs, a few sessions at a time.
func (s *Session) askToEnd(cancel func(context.Context)) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(s.ctx), endPatience)
	defer stop()
	select {
	case s.front.ends <- struct{}{}:
		defer func() { <-s.front.ends }()
		cancel(ctx)
	case <-ctx.Done():
	}
}

// Cut ends the session for a reason of the protocol's own, as a server that reports a
// setting which must not change. detail is one line of our own words.
func (s *Session) Cut(reason authz.Reason, detail string) {
	s.entry.Cut(&session.RefusalError{Reason: reason, Detail: detail})
}

// Cause returns why the session was cut or could not be opened, for the last message to
// the plugin; nil while it was not. It does not wait.
func (s *Session) Cause() *authz.Refusal {
	s.mu.Lock()
	cause, refusal := s.cut.cause, s.cut.refusal
	denied := s.cut.denied
	s.mu.Unlock()
	if refusal != nil || cause == nil {
		return refusal
	}
	made := s.refusalFor(cause, denied)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut.refusal == nil {
		s.cut.refusal = &made
	}
	return s.cut.refusal
}

// refusalFor returns the refusal of a session that was cut for a cause.
func (s *Session) refusalFor(cause error, denied authz.Reason) authz.Refusal {
	var e *session.RefusalError
	switch {
	case errors.As(cause, &e):
		return e.Refuse(s.admission)
	case errors.Is(cause, session.ErrTimeout):
		return s.admission.Refuse(authz.UpstreamTimeout, cause.Error())
	case errors.Is(cause, session.ErrStopping):
		return s.admission.Refuse(authz.NotReady, cause.Error())
	case errors.Is(cause, session.ErrRetired):
		refusal := s.admission.Refuse(authz.CredentialUnavailable, "the credential of the session has been replaced")
		refusal.Remedy = "connect again; pools do so by themselves"
		return refusal
	case errors.Is(cause, session.ErrLeaseEnded):
		why := s.admission.Term().Why()
		if why == "" {
			why = "ended"
		}
		refusal := s.admission.Refuse(authz.CredentialUnavailable, "the lease of the credential "+why)
		refusal.Remedy = "connect again"
		return refusal
	}
	if denied == authz.NotReady {
		denied = s.admission.ReasonNow()
	}
	return s.admission.Refuse(denied, cause.Error())
}

// note returns why the session was cut for the record of its end, "" if it was not. It
// waits until every other session that is cut for the same reason has been: records are
// written after the cuts.
func (s *Session) note() string {
	s.mu.Lock()
	cause := s.cut.cause
	s.mu.Unlock()
	if cause == nil {
		return ""
	}
	s.front.cfg.Sessions.WaitPass()
	refusal := s.Cause()
	if misplaced := (*session.RefusalError)(nil); errors.As(cause, &misplaced) {
		s.front.report(*refusal, nil)
		return "cut: " + refusal.Detail
	}
	if errors.Is(cause, session.ErrStopping) {
		return cause.Error()
	}
	return "cut: " + cause.Error()
}
