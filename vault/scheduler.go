package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// shutdownWithin bounds giving everything back when the broker ends.
const shutdownWithin = 10 * time.Second

// Run keeps the token and the leases alive, gives back what is not used, and
// revokes what Vault has not yet confirmed. When ctx ends it revokes every
// lease, and the token if it logged in for it, and returns nil; or an error
// that says what Vault did not confirm within ten seconds, which the state
// file keeps for the next sidecar. It is called once.
func (b *Broker) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return b.shutDown(context.WithoutCancel(ctx))
		case <-b.wakeup:
		case <-timer.C:
		}
		timer.Reset(b.step(ctx))
	}
}

func (b *Broker) shutDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownWithin)
	defer cancel()
	b.mu.Lock()
	b.closed = true
	flights := slices.Collect(maps.Keys(b.inFlight))
	b.unlockAndNotify()
	cancelFetches(ctx, flights) // a lease that one may have got all the same goes with the token
	b.tasks.Wait()
	report, _ := b.revokeAll(ctx)
	// To look whether everything is gone, it may have logged in again. Tokens
	// that were not revoked are among these once more.
	_, err := b.revokeTokens(ctx)
	report.Err = errors.Join(report.Err, err)
	b.log.Info("gave back what was leased", zap.Int("leases", report.Leases), zap.Int("confirmed", report.Confirmed))
	if report.Err != nil {
		return fmt.Errorf("give back what was leased: %d of %d leases confirmed: %w", report.Confirmed, report.Leases, report.Err)
	}
	return nil
}

// step starts what is due and returns how long to sleep.
func (b *Broker) step(ctx context.Context) time.Duration {
	b.mu.Lock()
	defer b.unlockAndNotify()
	now := b.now()
	next := now.add(longestSleep)
	for _, e := range b.entries {
		next = earliest(next, b.maintainEntry(ctx, e, now))
	}
	next = earliest(next, b.maintainRefusal(ctx, now))
	next = earliest(next, b.maintainSession(ctx, now))
	next = earliest(next, b.maintainRevocations(ctx, now))
	next = earliest(next, b.maintainRetired(ctx, now))
	return max(now.until(next), time.Millisecond)
}

// maintainEntry sees to one credential and returns when to look again. The caller
// holds mu.
func (b *Broker) maintainEntry(ctx context.Context, e *entry, now dualTime) dualTime {
	if b.inForce != nil && !b.inForce[e.ref] {
		if until := e.madeAt.add(b.grace); now.before(until) {
			return until
		}
		b.drop([]*entry{e})
		return never()
	}
	if e.next != nil && (!now.before(e.nextActiveAt) || !e.lease.usable(now)) {
		b.promoteNext(e)
	}
	if e.lease == nil {
		return never() // fetched when it is asked for
	}
	end := e.lease.usableUntil()
	if !now.before(end) && e.lease.onDemand {
		e.lease = nil
		return never()
	}
	if !now.before(end) {
		b.lose(e, "it ended and could not be renewed")
		return never()
	}
	if e.needsRecheck && e.fetch == nil {
		b.recheck(ctx, e, now)
	}
	if e.next != nil {
		return earliest(end, e.nextActiveAt)
	}
	due := latest(e.refreshAt, e.retryAt)
	if e.fetch != nil || now.before(due) {
		return earliestIf(end, due, e.fetch == nil)
	}
	if e.idle(now) && !e.lease.uses.Open() {
		b.record("released", e.ref, e.lease.id, "not used")
		if l := e.lease; l.id != "" {
			b.revokeWhenUnused(e.ref, l, now)
		}
		e.lease = nil
		return never()
	}
	b.startFetch(ctx, e)
	return end
}

// recheck asks Vault about a credential that an upstream has refused. The
// caller holds mu, and the entry has no flight.
func (b *Broker) recheck(ctx context.Context, e *entry, now dualTime) {
	e.needsRecheck = false
	l := e.lease
	if l.id == "" {
		e.refreshAt = now
		return
	}
	remint := e.unauthorized && !now.before(e.remintAt)
	b.background(ctx, func(ctx context.Context) {
		gone, err := b.isGone(ctx, l.session, l.id)
		if !gone && (isTransient(err) || b.tokenInvalid(ctx, l.session, err) || !remint) {
			return
		}
		b.mu.Lock()
		defer b.unlockAndNotify()
		switch {
		case e.lease == nil || e.lease.id != l.id: // it was replaced meanwhile
		case gone:
			b.lose(e, leaseGone)
		case e.fetch == nil:
			doubted := *e.lease
			doubted.rejected = true
			e.lease, e.refreshAt, e.remintAt = &doubted, b.now(), b.now().add(remintInterval)
			b.wakeUp()
		}
	})
}

func earliestIf(end, due dualTime, both bool) dualTime {
	if both {
		return earliest(end, due)
	}
	return end
}

func latest(a, b dualTime) dualTime { return dualTime{max(a.mono, b.mono), max(a.wall, b.wall)} }

func (e *entry) idle(now dualTime) bool {
	return time.Duration(now.mono-e.usedAt.mono.Load()) > idleTimeout
}

// atomicDualTime is a monotonic time, exact to a second, that many readers set.
type atomicDualTime struct{ mono atomic.Int64 }

func (a *atomicDualTime) set(now dualTime) {
	if now.mono-a.mono.Load() > int64(time.Second) || a.mono.Load() == 0 {
		a.mono.Store(max(now.mono, 1))
	}
}

// maintainSession logs in or renews the token if that is due. The caller holds mu.
func (b *Broker) maintainSession(ctx context.Context, now dualTime) dualTime {
	if b.maintaining {
		return never()
	}
	var due dualTime
	if b.refusal != nil && !b.session.usable(now) {
		b.loseValues()
	}
	if b.session.usable(now) {
		due = b.session.renewAt
		if b.session.untracked && b.session.ours {
			due = earliest(due, b.rotateAt)
		}
	}
	due = latest(due, b.loginAt)
	if now.before(due) {
		return due
	}
	b.maintaining = true
	b.background(ctx, func(ctx context.Context) {
		err := b.acquireLogin(ctx)
		if err == nil {
			b.mu.RLock()
			early := b.now().before(b.loginAt) // somebody else has tried while this waited
			b.mu.RUnlock()
			if !early {
				_, _ = b.renewOrLogin(ctx, 0) // its failure is kept, and logged by holdLogin
			}
			b.releaseLogin()
		}
		b.mu.Lock()
		b.maintaining = false
		b.wakeUp()
		b.unlockAndNotify()
	})
	return never()
}

// background runs f, bounded in time and ended with Run's ctx. The caller holds
// mu, and the broker is not closed, since only Run closes it.
func (b *Broker) background(ctx context.Context, f func(ctx context.Context)) {
	b.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, callsInFlight*b.cfg.Timeout)
		defer cancel()
		f(ctx)
	})
}

// maintainRevocations revokes what is due. The caller holds mu.
func (b *Broker) maintainRevocations(ctx context.Context, now dualTime) dualTime {
	next, running := never(), 0
	for _, r := range b.pending {
		if r.running {
			running++
		}
	}
	for _, r := range b.pending {
		switch {
		case r.running:
		case now.before(r.due):
			next = earliest(next, r.due)
		case r.inUse(now):
			next = earliest(next, earliest(now.add(inUseInterval), r.keptUntil))
		case running < maxRevoking: // the end of one wakes the schedule for the next
			running++
			r.running = true
			b.background(ctx, func(ctx context.Context) { b.finishRevocation(r, b.revokeLease(ctx, r)) })
		}
	}
	return next
}

// maintainRetired revokes the tokens that were replaced, once nothing holds on to
// them. The caller holds mu.
func (b *Broker) maintainRetired(ctx context.Context, now dualTime) dualTime {
	next := never()
	b.retiring = slices.DeleteFunc(b.retiring, func(s *session) bool { return !s.ours || !now.before(s.notAfter) })
	for _, s := range b.retiring {
		switch {
		case s.revoking || b.isNeeded(s):
		case now.before(s.due):
			next = earliest(next, s.due)
		default:
			s.revoking, s.dead = true, true
			b.background(ctx, func(ctx context.Context) { b.finishTokenRevocation(s, b.revokeToken(ctx, s)) })
		}
	}
	return next
}

// isNeeded reports whether a credential in use or on its way, or a lease that is
// to be revoked by itself, needs the token. The caller holds mu.
func (b *Broker) isNeeded(s *session) bool {
	for f := range b.inFlight {
		if !s.replaced.before(f.began) {
			return true
		}
	}
	for _, e := range b.entries {
		if e.lease != nil && e.lease.heldBy(s) || e.next != nil && e.next.heldBy(s) {
			return true
		}
	}
	kept, urgent, now := false, false, b.now()
	for _, r := range b.pending {
		switch {
		case r.session != s:
		case r.denied: // the token's end takes it along
			urgent = urgent || r.urgent
		case r.inUse(now):
			kept = true
		default:
			return true
		}
	}
	return kept && !urgent
}

func (b *Broker) finishTokenRevocation(s *session, err error) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	s.revoking = false
	if err == nil {
		b.retiring = slices.DeleteFunc(b.retiring, func(r *session) bool { return r == s })
	} else {
		s.attempts++
		s.due = b.now().add(b.retryDelay(s.attempts, err))
	}
	b.wakeUp()
}

// stats are what is counted. They are guarded by Broker.mu.
type stats struct {
	errors   map[string]uint64
	lastErr  string
	lastAt   time.Time
	stateErr error
}

func (b *Broker) countError(e *Error) {
	text := e.Error()
	b.mu.Lock()
	defer b.unlockAndNotify()
	b.stats.errors[e.Code]++
	b.stats.lastErr, b.stats.lastAt = text, b.cfg.Now()
}

func (b *Broker) noteError(err error) {
	b.stats.lastErr, b.stats.lastAt = err.Error(), b.cfg.Now()
}

// The states of a credential.
const (
	StateActive      = "active"      // may be used
	StateFailing     = "failing"     // may be used, but was not renewed when it was due
	StateUnavailable = "unavailable" // cannot be had now
	StateIdle        = "idle"        // not fetched, since nothing asks for it
	StateRevoking    = "revoking"    // given back, not yet confirmed by Vault
	StateReplaced    = "replaced"    // kept for the accesses that carry it
)

// LeaseStatus is the state of one credential.
type LeaseStatus struct {
	Grant, Credential, Path string
	State                   string
	Lease                   string // masked; "" for a value without a lease
	Generation              uint64
	NotAfter                time.Time // zero when it does not end, or is not held
	Err                     string    // why it is failing or unavailable

	served *servedNow // until it was rendered
}

// Status is the state of a broker. It holds no secret.
type Status struct {
	LoggedIn     bool
	Method       Method
	TokenExpires time.Time // zero when it does not end, or there is none
	LoginErr     string    // why it is not logged in, or not for longer
	Leases       []LeaseStatus
	States       map[string]int    // leases by state, all states
	Errors       map[string]uint64 // failed requests by code, since the start
	LastErr      string
	LastErrAt    time.Time
	Unconfirmed  int    // leases that Vault has not yet confirmed to be revoked
	StateErr     string // why the state file cannot be written
}

// Status returns the state of the broker.
func (b *Broker) Status() Status {
	s := b.status(b.now())
	for i := range s.Leases {
		l := &s.Leases[i]
		if l.served != nil && b.cfg.Renders != nil {
			if err := b.cfg.Renders(l.served.ref, l.served.credential); err != nil {
				l.State, l.Err = StateUnavailable, err.Error()
			}
		}
		l.served = nil
		s.States[l.State]++
	}
	return s
}

// servedNow is a credential that may be used.
type servedNow struct {
	ref        authz.CredentialRef
	credential authz.Credential
}

// status returns the state of the broker, but for how many leases are in which.
func (b *Broker) status(now dualTime) Status {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s := Status{
		LoggedIn: b.session.usable(now), Method: b.cfg.Auth.Method,
		States:  map[string]int{StateActive: 0, StateFailing: 0, StateUnavailable: 0, StateIdle: 0, StateRevoking: 0, StateReplaced: 0},
		Errors:  maps.Clone(b.stats.errors),
		LastErr: b.stats.lastErr, LastErrAt: b.stats.lastAt,
	}
	if s.LoggedIn {
		s.TokenExpires = b.session.notAfter.time()
	}
	for _, r := range b.pending {
		if r.inUse(now) {
			s.States[StateReplaced]++
		} else {
			s.States[StateRevoking]++
		}
	}
	s.Unconfirmed = s.States[StateRevoking]
	s.LoginErr, s.StateErr = text(b.loginErr), text(b.stats.stateErr)
	for _, e := range b.entries {
		s.Leases = append(s.Leases, e.status(now))
	}
	slices.SortFunc(s.Leases, func(x, y LeaseStatus) int {
		return strings.Compare(x.Grant+"/"+x.Credential, y.Grant+"/"+y.Credential)
	})
	return s
}

func (e *entry) status(now dualTime) LeaseStatus {
	s := LeaseStatus{Grant: e.ref.Grant, Credential: e.ref.Name, Path: e.ref.Path, Err: text(e.err)}
	usable := e.lease.usable(now)
	switch {
	case usable && e.err == nil:
		s.State = StateActive
	case usable:
		s.State = StateFailing
	case e.err != nil:
		s.State = StateUnavailable
	default:
		s.State = StateIdle
	}
	if usable {
		s.served = &servedNow{e.ref, e.lease.credential()}
		s.Generation, s.NotAfter = e.lease.generation, e.lease.usableUntil().time()
		if e.lease.id != "" {
			s.Lease = mask(e.lease.id)
		}
	}
	return s
}

func text(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, context.Canceled) {
		return "given up"
	}
	return err.Error()
}
