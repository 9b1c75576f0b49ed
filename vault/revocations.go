package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	maxRevoking   = 8                      // revocations sent to Vault at a time
	confirmWithin = 2 * time.Second        // for leases whose token was revoked instead
	confirmEvery  = 100 * time.Millisecond // between looks at whether they are gone
	fetchGrace    = 2 * time.Second        // before what is being fetched is given up
	confirmGrace  = time.Minute            // after a lease's own end it is taken to be gone
	maxKept       = 4                      // replaced leases of one credential that accesses carry; the oldest goes for another
	inUseInterval = time.Second            // between looks at whether an access still carries one
)

// revocationConfig is what a revocationQueue is made of.
type revocationConfig struct {
	shared

	login *authenticator
	store *leaseFile
}

// revocationQueue holds the leases that are to go, until Vault confirms that they
// are gone.
type revocationQueue struct {
	cfg revocationConfig

	// mu comes after leaseManager.mu and before authenticator.mu, see [Broker].
	mu      sync.RWMutex
	pending map[string]*revocation // by lease id
}

func newRevocationQueue(cfg revocationConfig) *revocationQueue {
	return &revocationQueue{cfg: cfg, pending: make(map[string]*revocation)}
}

func (q *revocationQueue) now() dualTime { return q.cfg.clock.now() }

// revocation is a lease that is to go, until Vault confirms that it is gone.
// Its fields are guarded by revocationQueue.mu, but id, mount, ref, session and ends,
// which do not change.
type revocation struct {
	id       string
	mount    string // of the engine that a certificate is revoked at; "" for a lease
	ref      authz.CredentialRef
	session  *session // the end of its token ends the lease too; nil for a lease of an earlier sidecar
	ends     dualTime // by itself
	due      dualTime
	urgent   bool // it is not to be used any more
	running  bool
	done     bool // confirmed, or past its own end
	denied   bool // the policy does not allow the broker to revoke leases
	attempts int
	// uses are the accesses that carry it. While there are any it is not revoked
	// before keptUntil, when it ends by itself, unless it is urgent. nil once it is
	// not waited for any more.
	uses      *authz.Uses
	keptUntil dualTime
	lease     *lease   // its term ends before it is revoked; nil for a lease that was never in use
	watchAt   dualTime // when to look whether Vault still has it
}

// enqueue queues a lease to be revoked at due.
func (q *revocationQueue) enqueue(ref authz.CredentialRef, l *lease, due dualTime, urgent bool) *revocation {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.add(revocationOf(ref, l, due, urgent))
}

func revocationOf(ref authz.CredentialRef, l *lease, due dualTime, urgent bool) *revocation {
	return &revocation{id: l.id, mount: l.mount, ref: ref, session: l.session, lease: l, ends: l.ends, due: due, urgent: urgent}
}

// revokeWhenUnused queues a lease to be revoked at due, or later: as soon as no access carries
// it, or by its own end.
func (q *revocationQueue) revokeWhenUnused(ref authz.CredentialRef, l *lease, due dualTime) {
	q.mu.Lock()
	defer q.mu.Unlock()
	until := l.ends
	if l.mount == "" {
		until = earliest(until, l.session.end())
	}
	r := q.add(revocationOf(ref, l, due, false))
	r.uses, r.keptUntil, r.watchAt = l.uses, until, q.now().add(watchPause())
	var oldest *revocation
	kept := 0
	for _, other := range q.pending {
		if other.ref != ref || other.uses == nil || other.urgent {
			continue
		}
		if kept++; oldest == nil || other.keptUntil.before(oldest.keptUntil) {
			oldest = other
		}
	}
	if kept > maxKept {
		oldest.uses = nil
	}
}

// inUse reports whether a lease is not yet to be revoked, since an access carries
// it, or may do so. The caller holds mu.
func (r *revocation) inUse(now dualTime) bool {
	return !r.urgent && r.uses != nil && now.before(r.keptUntil) && (r.uses.Open() || r.uses.Untracked())
}

// add queues a revocation, and returns the one of the lease that was queued before,
// if there is one. The caller holds mu.
func (q *revocationQueue) add(r *revocation) *revocation {
	q.cfg.wakeUp()
	if earlier := q.pending[r.id]; earlier != nil {
		earlier.due = earliest(earlier.due, r.due)
		earlier.urgent = earlier.urgent || r.urgent
		r = earlier
	}
	q.pending[r.id] = r
	if r.urgent {
		r.endTermNow()
	}
	return r
}

// revokeUnused queues a lease that was never in use.
func (q *revocationQueue) revokeUnused(s *session, ref authz.CredentialRef, id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(&revocation{id: id, ref: ref, session: s, ends: never(), due: q.now(), urgent: true})
}

// revokeNow revokes leases and reports. One that Run is revoking just now may
// be revoked twice, which does no harm.
func (q *revocationQueue) revokeNow(ctx context.Context, leases []*revocation) Report {
	errs := q.forEachRevocation(leases, func(r *revocation) error {
		if q.isDone(r) {
			return nil
		}
		err := q.revokeLease(ctx, r)
		q.finishRevocation(r, err)
		return err
	})
	return q.report(leases, errs)
}

func (q *revocationQueue) isDone(r *revocation) bool {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return r.done
}

// forEachRevocation calls f for each lease, some at a time.
func (q *revocationQueue) forEachRevocation(leases []*revocation, f func(*revocation) error) []error {
	errs := make([]error, len(leases))
	slots := make(chan struct{}, maxRevoking)
	var all sync.WaitGroup
	for i, r := range leases {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(r)
		})
	}
	all.Wait()
	return errs
}

func (q *revocationQueue) report(leases []*revocation, errs []error) Report {
	report := Report{Leases: len(leases)}
	for i, r := range leases {
		if errs[i] == nil {
			report.Confirmed++
			continue
		}
		report.Unconfirmed = append(report.Unconfirmed, mask(r.id))
		if report.Err == nil { // the others fail alike
			report.Err = errs[i]
		}
	}
	slices.Sort(report.Unconfirmed)
	return report
}

// revokeLease revokes one lease. nil means that Vault has confirmed that it is
// gone. Vault answers the same for a lease that it never had.
func (q *revocationQueue) revokeLease(ctx context.Context, r *revocation) error {
	s, err := q.sessionFor(ctx, r)
	if err != nil {
		return err
	}
	if r.mount != "" {
		return q.revokeCertificate(ctx, s, r)
	}
	op := "revoke lease " + mask(r.id)
	_, err = q.cfg.client.do(ctx, call{
		op: op, method: http.MethodPut, path: "sys/leases/revoke", token: s.token,
		body: map[string]any{"lease_id": r.id, "sync": true},
	})
	if statusOf(err) != http.StatusForbidden {
		return err
	}
	// The policy does not allow it (the default one does not), or the token
	// has died, and the lease with it. Looking a lease up is allowed.
	gone, lookupErr := q.cfg.client.isGone(ctx, s, r.id)
	if gone {
		return nil
	}
	if q.cfg.login.tokenInvalid(ctx, s, lookupErr) {
		return fmt.Errorf("%s: %s", op, tokenGone)
	}
	return err
}

// revokeCertificate revokes a certificate by its serial number. Revoking one
// twice does no harm (Vault API, "PKI secrets engine", revoke certificate).
func (q *revocationQueue) revokeCertificate(ctx context.Context, s *session, r *revocation) error {
	_, err := q.cfg.client.do(ctx, call{
		op: "revoke certificate " + mask(r.id), method: http.MethodPost, path: r.mount + "/revoke", token: s.token,
		body: map[string]any{"serial_number": strings.TrimPrefix(r.id, r.mount+"/cert/")},
	})
	q.cfg.login.tokenInvalid(ctx, s, err)
	return err
}

// sessionFor returns the session to revoke with: the one that made the lease
// while it lasts, or the one in force.
func (q *revocationQueue) sessionFor(ctx context.Context, r *revocation) (*session, error) {
	if r.session.usable(q.now()) {
		return r.session, nil
	}
	return q.cfg.login.authenticate(ctx, 0)
}

// finishRevocation applies the outcome of a revocation.
func (q *revocationQueue) finishRevocation(r *revocation, err error) {
	if q.settle(r, err) {
		q.cfg.store.remove(r.id)
	}
	q.cfg.outbox.flush()
}

// settle applies the outcome of a revocation, and reports whether the lease is gone
// from now on.
func (q *revocationQueue) settle(r *revocation, err error) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.cfg.wakeUp()
	now := q.now()
	r.running = false
	switch {
	case r.done:
		return false
	case err == nil:
		q.removeRevocation(r, "revoked", "")
	case r.mount != "" && statusOf(err) >= http.StatusBadRequest && !isTransient(err) && !isUnknownToken(err):
		// The policy does not allow it, or the engine cannot: the certificate
		// ends by itself, and not with a token.
		q.removeRevocation(r, "left", "it is not revoked and ends by itself: "+err.Error())
	case !isTransient(err) && r.ends.add(confirmGrace).before(now):
		q.removeRevocation(r, "ended", "it was not revoked and ended by itself: "+err.Error())
	default:
		r.attempts++
		r.due = now.add(retryDelay(r.attempts, err))
		if r.attempts == 1 && r.urgent {
			q.cfg.outbox.record("revocation_unconfirmed", r.ref, r.id, err.Error())
		}
		if statusOf(err) == http.StatusForbidden {
			q.markDenied(r)
		}
	}
	return r.done
}

// removeRevocation records that a lease is gone. The caller holds mu.
func (q *revocationQueue) removeRevocation(r *revocation, what, detail string) {
	r.done = true
	delete(q.pending, r.id)
	q.cfg.outbox.record(what, r.ref, r.id, detail)
}

// markDenied records that the policy does not allow the broker to revoke a lease. The token
// is then replaced and revoked, which ends the lease too. The caller holds mu.
func (q *revocationQueue) markDenied(r *revocation) {
	r.denied = true
	if r.urgent && r.session != nil {
		q.cfg.login.rotateFor(r.session)
	}
}

// confirm looks, with a new token, whether leases have gone whose token was
// revoked, and revokes those that have not.
func (q *revocationQueue) confirm(ctx context.Context, leases []*revocation) Report {
	ctx, cancel := context.WithTimeout(ctx, confirmWithin)
	defer cancel()
	errs := q.forEachRevocation(leases, func(r *revocation) error {
		for {
			err := q.revokeLease(ctx, r)
			if err == nil || isTransient(err) || ctx.Err() != nil {
				q.finishRevocation(r, err)
				return err
			}
			select {
			case <-time.After(confirmEvery):
			case <-ctx.Done():
			}
		}
	})
	return q.report(leases, errs)
}

// load queues the leases that an earlier sidecar left.
func (q *revocationQueue) load(leases []storedLease) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for _, l := range leases {
		end := never()
		if !l.Ends.IsZero() {
			end = now.add(time.Duration(l.Ends.UnixNano() - now.wall))
		}
		q.add(&revocation{id: l.ID, mount: l.Mount, ends: end, due: now, urgent: true})
	}
}

// len returns how many leases wait for Vault to confirm that they are gone.
func (q *revocationQueue) len() int {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return len(q.pending)
}

// states returns how many leases are to be revoked, and how many of replaced
// credentials are kept for the accesses that carry them.
func (q *revocationQueue) states(now dualTime) (revoking, replaced int) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	for _, r := range q.pending {
		if r.inUse(now) {
			replaced++
		} else {
			revoking++
		}
	}
	return revoking, replaced
}

// allUrgent makes every queued lease one that is revoked at once, and returns them.
func (q *revocationQueue) allUrgent() []*revocation {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]*revocation, 0, len(q.pending))
	for _, r := range q.pending {
		r.urgent = true
		r.endTermNow()
		all = append(all, r)
	}
	return all
}

// needs reports whether a lease that is to be revoked by itself needs the token of
// a session that was replaced.
func (q *revocationQueue) needs(s *session) bool {
	q.mu.RLock()
	defer q.mu.RUnlock()
	kept, urgent, now := false, false, q.now()
	for _, r := range q.pending {
		switch {
		case r.session != s:
		case r.denied: // it ends with the token
			urgent = urgent || r.urgent
		case r.inUse(now):
			kept = true
		default:
			return true
		}
	}
	return kept && !urgent
}

// maintain revokes the leases for which that is due, and returns when to call it
// again.
func (q *revocationQueue) maintain(ctx context.Context, now dualTime) dualTime {
	q.mu.Lock()
	defer q.mu.Unlock()
	next, running := never(), 0
	for _, r := range q.pending {
		if r.running {
			running++
		}
	}
	for _, r := range q.pending {
		next = earliest(next, r.endTerm(now))
		switch {
		case r.running:
		case now.before(r.due):
			next = earliest(next, r.due)
		case r.inUse(now):
			next = earliest(next, earliest(now.add(inUseInterval), r.keptUntil))
			next = earliest(next, q.watch(ctx, r, now))
		case running < maxRevoking: // the end of one wakes the schedule for the next
			running++
			r.running = true
			r.endTermNow()
			q.cfg.tasks.run(ctx, func(ctx context.Context) { q.finishRevocation(r, q.revokeLease(ctx, r)) })
		}
	}
	return next
}

// mask returns a name for a lease or an accessor that cannot be used as one:
// the path it is of, and a short hash.
func mask(id string) string {
	sum := sha256.Sum256([]byte(id))
	name := hex.EncodeToString(sum[:6])
	if i := strings.LastIndexByte(id, '/'); i >= 0 {
		return id[:i] + "/#" + name
	}
	return "#" + name
}
