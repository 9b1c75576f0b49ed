package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Why the term of a value ends; each completes "the lease of the credential ...".
const (
	endRevoked  = "was revoked"
	endReached  = "reached its end"
	endLost     = "is gone from Vault"
	endReplaced = "was replaced"
)

// endedUnrenewed is why a lease is lost that no renewal has lengthened in time.
const endedUnrenewed = "it ended and could not be renewed"

const (
	// retireAfter is the part of a replaced lease's life from which idle sessions end.
	retireAfter = 0.8
	// watchInterval is between looks at whether Vault still has a lease that sessions carry.
	// A renewal would notice it too, but only after two thirds of the lease.
	watchInterval = 10 * time.Second
	// watchDenied is until Vault is asked again after its policy denied the look.
	watchDenied = 5 * time.Minute
)

// extendTerm gives the lease the term of its value: the one of the lease that it renews,
// moved to the new end, or else a new one.
func (l *lease) extendTerm() {
	if l.term.Term().Why() != "" {
		l.term = nil // it was lost while it was renewed, and may be used again
	}
	if end := l.usableUntil().time(); l.term == nil {
		l.term = authz.NewTerm(end)
	} else {
		l.term.Extend(end)
	}
}

// retire ends the idle sessions of a lease that another one replaces at now.
func (l *lease) retire(now dualTime) {
	from, end := now, l.usableUntil()
	if l.id != "" && end != never() {
		from = latest(now, l.minted.add(time.Duration(retireAfter*float64(l.minted.until(end)))))
	}
	l.term.Retire(from.time())
}

// formerValue is a value without a lease, which another one has replaced, while accesses
// carry it. A former lease is a revocation.
type formerValue struct {
	term *authz.TermControl
	uses *authz.Uses
	kept dualTime // at least, for accesses that have it and are not yet counted
	ends dualTime
}

// keepFormer retires a value without a lease at now. The caller holds mu.
func (m *leaseManager) keepFormer(e *entry, old *lease, now dualTime) {
	old.retire(now)
	end := now.add(m.cfg.stale)
	old.term.Extend(end.time())
	if len(e.former) >= maxKept {
		e.former[0].term.End(endReplaced)
		e.former = e.former[1:]
	}
	e.former = append(e.former, formerValue{term: old.term, uses: old.uses, kept: now.add(m.grace), ends: end})
}

// maintainFormer ends former values that are past their end, forgets those that no access
// carries, and returns when to call it again. The caller holds mu.
func (e *entry) maintainFormer(now dualTime) dualTime {
	next := never()
	e.former = slices.DeleteFunc(e.former, func(f formerValue) bool {
		over := !now.before(f.ends)
		if over {
			f.term.End(endReached)
		}
		if over || !now.before(f.kept) && !f.uses.Open() {
			return true
		}
		next = earliest(next, f.ends)
		return false
	})
	return next
}

// endFormer ends every former value. The caller holds mu.
func (e *entry) endFormer(why string) {
	for _, f := range e.former {
		f.term.End(why)
	}
	e.former = nil
}

// watch asks Vault at times whether it still has the lease of an entry that sessions carry,
// and returns when to call it again. The caller holds mu.
func (m *leaseManager) watch(ctx context.Context, e *entry, now dualTime) dualTime {
	l := e.lease
	switch {
	case l.id == "" || l.mount != "":
		return never()
	case e.fetch != nil || !l.uses.InSession():
		return now.add(watchInterval) // a session may have begun then
	case now.before(e.watchAt):
		return e.watchAt
	}
	e.watchAt = now.add(watchPause())
	m.cfg.tasks.run(ctx, func(ctx context.Context) {
		gone, next := watchLease(ctx, m.cfg.shared, m.cfg.login, l)
		defer m.cfg.outbox.flush()
		m.mu.Lock()
		defer m.mu.Unlock()
		e.watchAt = next
		if gone && e.lease != nil && e.lease.id == l.id && !l.session.dead.Load() {
			m.lose(e, leaseGone)
		}
		m.cfg.wakeUp()
	})
	return e.watchAt
}

// watch is leaseManager.watch for a lease that another has replaced. The caller holds mu.
func (q *revocationQueue) watch(ctx context.Context, r *revocation, now dualTime) dualTime {
	if r.lease == nil || r.mount != "" || !r.uses.InSession() {
		return never() // it is looked at again while an access carries it
	}
	if now.before(r.watchAt) {
		return r.watchAt
	}
	r.watchAt = now.add(watchPause())
	q.cfg.tasks.run(ctx, func(ctx context.Context) {
		gone, next := watchLease(ctx, q.cfg.shared, q.cfg.login, r.lease)
		q.mu.Lock()
		defer q.mu.Unlock()
		if r.watchAt = next; gone {
			r.lease.term.End(endLost)
			r.uses = nil
		}
		q.cfg.wakeUp()
	})
	return r.watchAt
}

// watchLease asks Vault whether it still has a lease, and returns when to ask again.
func watchLease(ctx context.Context, s shared, login *authenticator, l *lease) (gone bool, next dualTime) {
	gone, err := s.client.isGone(ctx, l.session, l.id)
	pause := watchPause()
	if statusOf(err) == http.StatusForbidden && !login.tokenInvalid(ctx, l.session, err) {
		pause = watchDenied
	}
	return gone, s.clock.now().add(pause)
}

// watchPause is watchInterval, spread so that many sidecars do not ask at once.
func watchPause() time.Duration {
	return time.Duration(float64(watchInterval) * (1 + spread()/5))
}

// endTerm ends the value of a lease that must not be used any more, and returns when it
// will have to. The caller holds mu.
func (r *revocation) endTerm(now dualTime) dualTime {
	switch {
	case r.lease == nil:
		return never()
	case r.mount == "" && r.session.dead.Load():
		r.lease.term.End(endLost)
	case !now.before(r.lease.usableUntil()):
		r.lease.term.End(endReached)
	default:
		return r.lease.usableUntil()
	}
	return never()
}

// endTermNow ends the value of a lease that is about to be revoked. The caller holds mu.
func (r *revocation) endTermNow() {
	switch {
	case r.lease == nil:
	case r.urgent:
		r.lease.term.End(endRevoked)
	default:
		r.lease.term.End(endReplaced)
	}
}

// whyEnded returns why a term ends with a lease that was lost.
func whyEnded(lost string) string {
	if lost == endedUnrenewed {
		return endReached
	}
	return endLost
}

var (
	errStillCurrent = errors.New("there is no newer value in Vault")
	errAskedLately  = fmt.Errorf("%w: it was asked less than %s ago", errStillCurrent, recheckInterval)
)

// newer is [Broker.Newer].
func (m *leaseManager) newer(ctx context.Context, ref authz.CredentialRef, generation uint64) (authz.Credential, error) {
	c, err := m.get(ctx, ref)
	if err != nil || c.Generation > generation {
		return c, err
	}
	f, err := m.replaceRefused(ctx, ref, generation)
	if err != nil {
		return authz.Credential{}, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return authz.Credential{}, fmt.Errorf("wait for Vault: %w", ctx.Err())
	}
	if f.err == nil && f.credential.Generation <= generation {
		return authz.Credential{}, errStillCurrent
	}
	return f.credential, f.err
}

// replaceRefused returns a fetch after which the credential has a newer value, if Vault has
// one or makes one: a value without a lease is read again, a lease that Vault no longer has
// is replaced, and one that it has too, at most every ten minutes.
func (m *leaseManager) replaceRefused(ctx context.Context, ref authz.CredentialRef, generation uint64) (*fetch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, e := m.now(), m.entries[ref]
	switch {
	case m.closed:
		return nil, errStopping
	case e == nil || e.lease == nil:
		return nil, errStillCurrent // it was dropped or lost in between
	case e.fetch != nil:
		return e.fetch, nil
	case e.lease.generation > generation:
		f := &fetch{done: make(chan struct{}), credential: e.lease.credential()}
		close(f.done)
		return f, nil
	case now.before(e.recheckAt):
		return nil, errAskedLately
	}
	e.recheckAt = now.add(recheckInterval)
	switch l := e.lease; {
	case l.id == "":
	case !now.before(e.remintAt):
		doubted := *l
		doubted.rejected = true
		e.lease, e.remintAt = &doubted, now.add(remintInterval)
	case !l.renews():
		return nil, errStillCurrent
	}
	return m.startFetch(ctx, e), nil
}
