package authz

import (
	"context"
	"errors"
	"time"
)

// ErrSessionEnded is of a statement whose session has ended, as its connection can while the
// statement is read, or was not admitted by the gate.
var ErrSessionEnded = errors.New("admit statement: its session has ended, or no gate admitted it")

// AdmitWithin admits a statement within the session of an admitted connection to a
// database: the same principal, destination and source, with the statement's facts, which
// name its database. It decides, spends and writes the audit record, in this order, and
// may wait as [Gate.Admit] does. It fetches no credential: a statement that another
// credential would be for than the session's is refused, and so is one whose rule has terms
// that the session's connection does not meet. The error is for the operator's log.
func (g *Gate) AdmitWithin(ctx context.Context, session *Admission, facts Facts) (*Admission, error) {
	a, snapshot, cause := g.admitWithin(ctx, session, facts)
	return a, g.recordDecision(a, snapshot, cause)
}

func (g *Gate) admitWithin(ctx context.Context, session *Admission, facts Facts) (*Admission, *Snapshot, error) {
	a, snapshot := g.begin(session)
	a.Request.Facts = facts
	var cause error
	switch {
	case !session.isSession(g):
		cause = ErrSessionEnded
	case !facts.hasDatabase():
		a.Decision.Reason = StatementUnreadable
	default:
		if a.Decision = g.decide(snapshot, a.Request, a.started); a.Decision.throttled {
			a.waited = true
			snapshot = g.throttle(ctx, a)
		}
		cause = g.persist(a)
		cause = errors.Join(cause, a.within(session))
	}
	if !a.Decision.Allowed() {
		a.Refusal = snapshot.refusal(a.Request, a.Decision, a.ID, a.started)
	}
	if errors.Is(cause, ErrSessionEnded) {
		a.Refusal.Detail, a.Refusal.Remedy = "the session has ended", "connect again"
	}
	return a, snapshot, cause
}

// begin returns an admission of a statement of the session, which is not decided yet, and
// the snapshot in force.
func (g *Gate) begin(session *Admission) (*Admission, *Snapshot) {
	now, snapshot := g.cfg.Now(), g.cfg.Engine.Current()
	a := &Admission{ID: g.ids.next(now), gate: g, started: now, Decision: Decision{Generation: snapshot.generation}}
	if session != nil {
		a.Request, a.Source, a.session = session.Request, session.Source, session.ID
		session.mu.Lock()
		defer session.mu.Unlock()
		a.connection, a.lease, a.term = session.connection, session.lease, session.term // the session counts as the use
	}
	return a, snapshot
}

// isSession reports whether the admission is a session of g that statements can be part of.
func (a *Admission) isSession(g *Gate) bool {
	if a == nil || a.gate != g || a.Decision.Reason != Granted || !a.Request.Destination.scheme.Database() || a.session != "" {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.ended && !a.late.refused
}

// within refuses an allowed statement that the session was not opened for.
func (a *Admission) within(session *Admission) error {
	d := &a.Decision
	if !d.Allowed() {
		return nil
	}
	if !a.observedWithin(d) && !sameCredential(d.rule, session.Decision.rule) {
		d.Reason = CredentialUnavailable
		return errors.New("admit statement: its rule has another credential than the session")
	}
	select {
	case <-a.term.Ended():
		d.Reason = CredentialUnavailable
		return errors.New("admit statement: the credential of its session " + a.term.Why())
	default:
	}
	if reason := a.connection.check(d); reason != Granted && !a.observedWithin(d) {
		d.Reason, d.address = reason, a.connection.Address
	}
	return nil
}

// RefuseWithin refuses a statement of the session that did not become facts, for a reason
// as [StatementUnreadable] or [StatementTooLarge], and records the refusal like any other. A
// reason that allows is treated as [NotReady]; detail is one line of text that states what is
// wrong. The error is for the operator's log.
func (g *Gate) RefuseWithin(session *Admission, reason Reason, detail string) (Refusal, error) {
	if reason.Allowed() {
		reason = NotReady
	}
	a, snapshot := g.begin(session)
	a.Request.Facts, a.Decision.Reason = Facts{}, reason
	refusal := snapshot.refusal(a.Request, a.Decision, a.ID, a.started)
	if detail != "" {
		refusal.Detail = detail
	}
	r := g.takeRecords()
	defer g.records.Put(r)
	a.decisionRecord(&r.decision)
	r.decision.Attempt, r.decision.Protocol, r.decision.Detail = true, string(a.Request.Destination.scheme.Protocol()), refusal.Detail
	return *refusal, g.write(time.Time{}, r.pointers[:1])
}

// SessionReadOnly reports whether every rule in force that grants a plugin's sessions of a
// database only reads, so that the session must be pinned read-only.
func (s *Snapshot) SessionReadOnly(p Principal, to Destination, database string, now time.Time) bool {
	pol := s.pluginPolicy(p)
	if pol == nil {
		return true
	}
	fact := Fact{FactDatabase, database}.String()
	for e := range pol.candidates(to.host) {
		r := e.rule
		if r.matchesSchemePort(&to) && r.matcher != nil && r.spec.Matcher.Writes && r.matcher.grants(fact) &&
			now.Before(r.notAfter) && s.revoked(p, r, now) == nil {
			return false
		}
	}
	return true
}
