package database

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const (
	// freeStatements is how many statements of a session run at a time within SessionCost.
	freeStatements = 8
	// statementCost is the memory of each further one.
	statementCost = 1 << 10
)

// Statement is an admitted statement. It runs until its End: a policy that no longer
// allows it cuts its session.
type Statement struct {
	session    *Session
	admission  *authz.Admission
	until      time.Time // of the rule's timeout; zero for none
	prev, next *Statement
	asked      bool // the server was asked to end it
	costs      bool // statementCost is held for it
	ended      bool
}

// statements are those that run, in the order in which they began, and the timer of the
// earliest timeout. The session's mu guards them.
type statements struct {
	first, last *Statement
	n           int
	kept        []*authz.Admission // of statements that are decided again after their end
	timer       *time.Timer
	armed       time.Time // when timer fires; zero if it is not armed
}

func (l *statements) add(st *Statement) {
	if st.prev = l.last; st.prev != nil {
		st.prev.next = st
	} else {
		l.first = st
	}
	l.last = st
	l.n++
}

func (l *statements) remove(st *Statement) {
	if st.prev != nil {
		st.prev.next = st.next
	} else {
		l.first = st.next
	}
	if st.next != nil {
		st.next.prev = st.prev
	} else {
		l.last = st.prev
	}
	st.prev, st.next = nil, nil
	l.n--
}

func (l *statements) all() []*Statement {
	out := make([]*Statement, 0, l.n)
	for st := l.first; st != nil; st = st.next {
		out = append(out, st)
	}
	return out
}

func (l *statements) stopTimer() {
	if l.timer != nil {
		l.timer.Stop()
	}
	l.armed = time.Time{}
}

// Admit decides on a statement, whose facts name the session's database. It spends,
// records, and may wait for a limit that throttles. A statement that is refused must not
// reach the server. ctx may end the wait earlier than the session does.
func (s *Session) Admit(ctx context.Context, facts authz.Facts) (*Statement, *authz.Refusal) {
	ctx, stop := s.waitContext(ctx)
	defer stop()
	a, err := s.front.cfg.Gate.AdmitWithin(ctx, s.admission, facts)
	switch {
	case errors.Is(err, authz.ErrSessionEnded): // the end of the connection has its own message and record
		return nil, a.Refusal
	case err != nil:
		s.front.cfg.Log.Warn("statement admission failed", zap.String("decision", a.ID), zap.Error(err))
	}
	if a.Refusal != nil {
		s.front.count(s.protocol, s.front.verbs.of(facts), a.Refusal.Reason)
		s.front.report(*a.Refusal, nil)
		return nil, a.Refusal
	}
	st := &Statement{session: s, admission: a}
	if reason, detail := s.begin(st); reason != authz.Granted {
		refusal := a.Refuse(reason, detail)
		s.endAdmission(a, authz.Outcome{Detail: refusal.Detail})
		s.front.count(s.protocol, s.front.verbs.of(facts), refusal.Reason)
		s.front.report(refusal, nil)
		return nil, &refusal
	}
	s.front.count(s.protocol, s.front.verbs.of(facts), a.Decision.Reason)
	return st, nil
}

// waitContext returns ctx if it is the session's, otherwise one that ends with both.
func (s *Session) waitContext(ctx context.Context) (context.Context, func()) {
	if ctx == s.ctx {
		return ctx, func() {}
	}
	return s.within(ctx)
}

// begin has an admitted statement run. A policy that came since its decision either finds
// it running, or is found here. It returns [authz.Granted], or why it must not run.
func (s *Session) begin(st *Statement) (authz.Reason, string) {
	if timeout := st.admission.Decision.Terms().Timeout; timeout > 0 {
		st.until = s.front.cfg.Now().Add(timeout)
	}
	s.mu.Lock()
	if s.ended || s.cut.cause != nil {
		s.mu.Unlock()
		return authz.NotReady, "the session has ended"
	}
	if s.running.n >= freeStatements {
		if st.costs = s.held.Take(budget.Request, statementCost) == nil; !st.costs {
			s.mu.Unlock()
			return authz.NotReady, session.ErrOutOfMemory().Detail
		}
	}
	s.running.add(st)
	s.arm(st.until)
	s.mu.Unlock()
	if s.front.cfg.Engine.Current().Generation() != st.admission.Decision.Generation && !st.admission.StillAllowed() {
		s.remove(st)
		return st.admission.ReasonNow(), "access was revoked during the decision"
	}
	s.plugin.Attribution.Change(st.admission.Decision.Grant, st.admission.Decision.Rule)
	return authz.Granted, ""
}

// remove takes a statement out of those that run, and reports whether it was there.
func (s *Session) remove(st *Statement) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.ended {
		return false
	}
	st.ended = true
	s.running.remove(st)
	if st.costs {
		s.held.Give(budget.Request, statementCost)
	}
	return true
}

// Refuse refuses and records a statement that did not become facts: one that is
// unreadable or too large. detail is one line of our own words.
func (s *Session) Refuse(reason authz.Reason, detail string) *authz.Refusal {
	refusal, err := s.front.cfg.Gate.RefuseWithin(s.admission, reason, detail)
	s.front.count(s.protocol, verbUnreadable, reason)
	s.front.report(refusal, err)
	return &refusal
}

// maxKept is how many statements a session decides again after their end. Each is one more
// decision before a revocation is through with the session, and most sessions that listen
// do so by one set of facts.
const maxKept = 16

// Keep has the session decide the statement again until the session ends, also after the
// end of the statement: its effect goes on, as that of LISTEN. It reports false if there are too
// many such statements, or no memory for another.
func (st *Statement) Keep() bool {
	s, a := st.session, st.admission
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kept := range s.running.kept {
		if kept.Request == a.Request && kept.Decision.Grant == a.Decision.Grant && kept.Decision.Rule == a.Decision.Rule {
			return true
		}
	}
	cost := statementCost
	for _, fact := range a.Request.Facts.All() {
		cost += len(fact)
	}
	if len(s.running.kept) == maxKept || s.held.Take(budget.Request, int64(cost)) != nil {
		return false
	}
	s.running.kept = append(s.running.kept, a)
	return true
}

// ID returns the id of the statement's decision.
func (st *Statement) ID() string { return st.admission.ID }

// Allowed reports whether the policy in force still allows the statement, for one that
// begins later than it was admitted.
func (st *Statement) Allowed() bool { return st.admission.StillAllowed() }

// End records the end of a statement. Calling it again has no effect.
func (st *Statement) End(o authz.Outcome) {
	s := st.session
	if !s.remove(st) {
		return
	}
	s.mu.Lock()
	cause := s.cut.cause
	s.mu.Unlock()
	if cause != nil && o.Detail == "" {
		o.Detail = "cut: " + cause.Error()
		s.refuseCut(st.admission, cause)
	}
	s.endAdmission(st.admission, o)
}

// refuseCut turns a statement whose session was cut into a refusal, for its record.
func (s *Session) refuseCut(a *authz.Admission, cause error) {
	var e *session.RefusalError
	switch {
	case errors.As(cause, &e):
		a.Refuse(e.Reason, "")
	case errors.Is(cause, session.ErrTimeout):
		a.Refuse(authz.UpstreamTimeout, "")
	case errors.Is(cause, session.ErrLeaseEnded), errors.Is(cause, session.ErrRetired):
		a.Refuse(authz.CredentialUnavailable, "")
	case errors.Is(cause, session.ErrStopping):
	default:
		a.Refuse(s.front.cfg.Sessions.ReasonNow(a), "")
	}
}

// arm sets the timer for a timeout, unless an earlier one is awaited: when that fires it
// looks for the next. The caller holds mu.
func (s *Session) arm(until time.Time) {
	if until.IsZero() || !s.running.armed.IsZero() && !until.Before(s.running.armed) {
		return
	}
	wait := max(0, until.Sub(s.front.cfg.Now()))
	s.running.armed = until
	if s.running.timer == nil {
		s.running.timer = time.AfterFunc(wait, s.expire)
		return
	}
	s.running.timer.Reset(wait)
}

// expire asks the server to end a statement whose timeout has expired, and cuts the
// session if it still runs a while later.
func (s *Session) expire() {
	now := s.front.cfg.Now()
	s.mu.Lock()
	s.running.armed = time.Time{}
	if s.ended || s.cut.cause != nil {
		s.mu.Unlock()
		return
	}
	cancel := s.hooks.cancel
	ask, cut := s.late(now, cancel != nil)
	s.mu.Unlock()
	switch {
	case cut:
		s.entry.Cut(session.ErrTimeout)
	case ask:
		s.askToEnd(cancel)
	}
}

// late looks for statements whose timeout has expired, and sets the timer for the others.
// The server is asked once for each, if it can be, and then has some time to end it; the
// session is cut otherwise. The caller holds mu.
func (s *Session) late(now time.Time, canAsk bool) (ask, cut bool) {
	for st := s.running.first; st != nil; st = st.next {
		if !st.until.IsZero() && !st.until.After(now) {
			if st.asked || !canAsk {
				return false, true
			}
			st.asked, st.until, ask = true, now.Add(cancelGrace), true
		}
		s.arm(st.until)
	}
	return ask, false
}
