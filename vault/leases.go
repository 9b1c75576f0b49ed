package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	maxEntries          = 1024             // credentials at a time; more are refused
	maxRetiring         = 16               // replaced tokens not yet revoked; while full none is replaced early
	maxPending          = 4096             // unconfirmed revocations; while full nothing is minted
	defaultGrace        = 10 * time.Second // see Broker.grace
	idleTimeout         = 5 * time.Minute  // unused for so long, a lease is revoked and not renewed
	rotateInterval      = time.Minute      // at most, for leases that may have been lost track of
	tokenRereadInterval = time.Minute      // of the token file
	longestMigration    = 5 * time.Second  // within which credentials move to a new token
	longestSleep        = 30 * time.Second // of the schedule, so that a stepped or suspended clock is noticed
	sealedRetry         = 5 * time.Second  // at most, until a sealed Vault is asked again
	callsInFlight       = 4                // requests that one fetch makes at most, each with its own timeout
)

// leaseConfig is what a leaseManager is made of.
type leaseConfig struct {
	shared

	plugin      string
	login       *authenticator
	revocations *revocationQueue
	store       *leaseFile
	limits      *mintLimits
	refresh     time.Duration                       // see Config.Refresh
	stale       time.Duration                       // see Config.Stale
	fetched     func(took time.Duration, err error) // nil is not called
}

// leaseManager holds the credentials that are in use: it fetches, renews, replaces
// and drops them. Leases that it drops are queued to be revoked.
type leaseManager struct {
	cfg leaseConfig
	// grace is how long a replaced lease stays at least, for requests that have its
	// value and are not yet counted, and a fetched one for a generation that names it.
	grace time.Duration

	// mu is the first of the broker's locks, see [Broker].
	mu            sync.RWMutex
	closed        bool
	entries       map[authz.CredentialRef]*entry
	named         map[credentialName]*entry // the same, one a name: hashing a whole ref costs a cached request more than all the rest
	inFlight      map[*fetch]bool
	inForce       map[authz.CredentialRef]bool // nil until the first retain
	generation    uint64                       // of the value replaced last, over all credentials
	leasedPaths   map[string]bool              // those that Vault has made leases for
	writablePaths map[string]bool              // those whose engine answers to parameters
}

func newLeaseManager(cfg leaseConfig) *leaseManager {
	return &leaseManager{
		cfg: cfg, grace: defaultGrace,
		entries:       make(map[authz.CredentialRef]*entry),
		named:         make(map[credentialName]*entry),
		inFlight:      make(map[*fetch]bool),
		leasedPaths:   make(map[string]bool),
		writablePaths: make(map[string]bool),
	}
}

func (m *leaseManager) now() dualTime { return m.cfg.clock.now() }

// credentialName is what a credential is called. In one generation no other is called so.
type credentialName struct{ grant, credential string }

// entry is one credential. Its fields are guarded by leaseManager.mu.
type entry struct {
	ref          authz.CredentialRef
	lease        *lease // nil without one that may be used
	next         *lease // replaces lease at nextActiveAt, when its service accepts it; nil without one
	nextActiveAt dualTime
	refreshAt    dualTime
	usedAt       atomicDualTime
	madeAt       dualTime
	fetch        *fetch
	dropped      bool // no longer in force
	failures     int
	retryAt      dualTime
	err          error
	// needsRecheck is set until Vault was asked about a value that an upstream has
	// refused, which is not done before recheckAt.
	needsRecheck bool
	recheckAt    dualTime
	// rejected is set after a status 401, for which the lease is replaced although
	// Vault has it, not before remintAt.
	rejected bool
	remintAt dualTime
	watchAt  dualTime      // when to look whether Vault still has a lease that sessions carry
	former   []formerValue // replaced values without a lease that accesses carry
}

// recheckSoon is [Broker.Refused].
func (m *leaseManager) recheckSoon(grant, credential string, generation uint64, status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	e := m.named[credentialName{grant, credential}]
	if e == nil || e.lease == nil || e.lease.generation != generation || e.lease.mount != "" || now.before(e.recheckAt) {
		return
	}
	e.needsRecheck, e.recheckAt = true, now.add(recheckInterval)
	e.rejected = status == http.StatusUnauthorized
	m.cfg.wakeUp()
}

func (m *leaseManager) cached(ref authz.CredentialRef) (authz.Credential, bool) {
	now := m.now()
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.named[credentialName{ref.Grant, ref.Name}]
	if e == nil || e.ref != ref {
		e = m.entries[ref]
	}
	if e == nil {
		return authz.Credential{}, false
	}
	return e.serve(now)
}

// serve returns the credential if it may be used at now. The caller holds mu,
// for reading at least.
func (e *entry) serve(now dualTime) (authz.Credential, bool) {
	l := e.lease
	if !l.usable(now) {
		l = e.next
	}
	if !l.usable(now) {
		return authz.Credential{}, false
	}
	e.usedAt.set(now)
	return l.credential(), true
}

// checkRef refuses what must not be fetched. The caller holds mu.
func (m *leaseManager) checkRef(ref authz.CredentialRef) error {
	if ref.Plugin != m.cfg.plugin {
		return fmt.Errorf("the broker of plugin %s has no credentials of plugin %s", m.cfg.plugin, ref.Plugin)
	}
	if err := checkPath(ref.Path); err != nil {
		return err
	}
	if err := checkParameters(ref.Parameters); err != nil {
		return fmt.Errorf("path %s: %w", ref.Path, err)
	}
	if len(m.entries) >= maxEntries {
		return fmt.Errorf("more than %d credentials are in use", maxEntries)
	}
	return nil
}

// checkPath refuses paths that Vault would not read a credential from. sys,
// auth and cubbyhole would hand out the sidecar's own token and its state.
func checkPath(path string) error {
	first, _, _ := strings.Cut(path, "/")
	switch first {
	case "sys", "auth", "cubbyhole":
		return fmt.Errorf("path %q is Vault's own and holds no credential", path)
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." ||
			strings.ContainsFunc(segment, func(r rune) bool { return r < ' ' || r == 0x7f || r == '?' || r == '#' || r == '\\' }) {
			return fmt.Errorf("path %q is not one of Vault's; write it as vault read takes it, as in secret/data/weather", path)
		}
	}
	return nil
}

// checkParameters refuses what is not a JSON object.
func checkParameters(parameters string) error {
	const longest = 64 << 10
	var object map[string]json.RawMessage
	if parameters == "" {
		return nil
	}
	if len(parameters) > longest || json.Unmarshal([]byte(parameters), &object) != nil || object == nil {
		return errors.New("the parameters are not a JSON object")
	}
	return nil
}

// checkSign refuses what must not be signed.
func (m *leaseManager) checkSign(ref authz.CredentialRef) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	switch {
	case m.closed:
		return errStopping
	case m.inForce != nil && !m.inForce[ref]:
		return errNotInForce
	}
	return m.checkRef(ref)
}

// install puts a lease in force in place of the former one, which is revoked after a while.
// The caller holds mu.
func (m *leaseManager) install(e *entry, got *lease) {
	old := e.lease
	e.failures, e.err, e.retryAt, e.needsRecheck = 0, nil, dualTime{}, false
	what := "leased"
	switch {
	case old == nil:
	case got.id != "" && got.id == old.id:
		what = "renewed"
	case got.id == "" && old.id == "" && got.fields.equal(old.fields):
		got.generation, got.fields = old.generation, old.fields
		got.uses, got.term = old.uses, old.term
		what = ""
	default:
		what = "replaced"
	}
	if got.generation == 0 {
		m.generation++
		got.generation = m.generation
	}
	got.extendTerm()
	now := m.now()
	if e.next != nil {
		m.cfg.revocations.revokeWhenUnused(e.ref, e.next, now)
		e.next = nil
	}
	if what == "replaced" && got.propagatesLate && !old.rejected && old.usable(now) {
		e.next, e.nextActiveAt = got, earliest(now.add(propagationDelay), old.usableUntil())
		e.refreshAt = e.nextActiveAt
	} else {
		m.activate(e, got)
	}
	if what != "" {
		m.cfg.outbox.record(what, e.ref, got.id, "")
	}
	if (what == "leased" || what == "replaced") && len(got.fields.unsendableNames) > 0 {
		m.cfg.outbox.warn("fields not usable", zap.String("reason", "each is empty or holds a control byte, as a line break at its end"),
			zap.String("path", e.ref.Path), zap.Strings("fields", got.fields.unsendableNames))
	}
}

// activate puts a lease in the place of the one that is served, which is kept for a
// while. The caller holds mu.
func (m *leaseManager) activate(e *entry, got *lease) {
	now, old := m.now(), e.lease
	e.lease, e.refreshAt = got, got.refreshAt
	if got.session != m.cfg.login.current() && got.mount == "" { // it was replaced in between
		e.refreshAt = earliest(e.refreshAt, now.add(migrationDelay(now.until(got.usableUntil()))))
	}
	switch {
	case old == nil || old.term == got.term:
	case old.id == "":
		m.keepFormer(e, old, now)
	case old.id != got.id:
		old.retire(now)
		m.cfg.revocations.revokeWhenUnused(e.ref, old, earliest(now.add(m.grace), old.usableUntil()))
	}
}

// promoteNext puts the next lease in the place of the one that is served. The caller
// holds mu.
func (m *leaseManager) promoteNext(e *entry) {
	next := e.next
	e.next = nil
	m.activate(e, next)
}

// lose takes a credential out of use that can no longer be. Its lease is
// revoked, but not while it is being renewed: renewed, it may be used again. The
// caller holds mu.
func (m *leaseManager) lose(e *entry, why string) {
	l := e.lease
	e.lease = nil
	m.cfg.outbox.record("lost", e.ref, l.id, why)
	m.cfg.outbox.credentialLost()
	l.term.End(whyEnded(why))
	switch {
	case l.id == "":
		e.endFormer(whyEnded(why))
	case e.fetch != nil && e.fetch.old == l:
		e.fetch.oldLost = true
	case why == leaseGone || why == tokenGone:
		m.cfg.revocations.enqueue(e.ref, l, m.now(), false) // there is nothing to keep
	default:
		m.cfg.revocations.revokeWhenUnused(e.ref, l, m.now())
	}
	if e.next != nil {
		m.promoteNext(e)
	}
}

// migrationDelay is when, in the time left, a credential moves to a new token.
func migrationDelay(left time.Duration) time.Duration {
	return time.Duration(random() * float64(min(longestMigration, left/3)))
}

// loseValues takes the values without a lease out of use that were read with a token which
// has ended, when Vault refuses to give another: Vault is there, and no longer allows the
// broker to read them.
func (m *leaseManager) loseValues() {
	defer m.cfg.outbox.flush()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.lease != nil && e.lease.id == "" {
			m.lose(e, "Vault refuses the login")
		}
	}
}

// drop takes entries out of use. It returns their leases, queued to be revoked, and their
// fetches that are under way. The caller holds mu.
func (m *leaseManager) drop(entries []*entry) (leases []*revocation, fetches []*fetch) {
	for _, e := range entries {
		delete(m.entries, e.ref)
		if called := (credentialName{e.ref.Grant, e.ref.Name}); m.named[called] == e {
			delete(m.named, called)
		}
		e.dropped = true
		if e.fetch != nil {
			fetches = append(fetches, e.fetch)
		}
		for _, l := range []*lease{e.lease, e.next} {
			if l != nil && l.id != "" {
				leases = append(leases, m.cfg.revocations.enqueue(e.ref, l, m.now(), true))
			}
			if l != nil {
				l.term.End(endRevoked)
			}
		}
		e.endFormer(endRevoked)
		e.lease, e.next = nil, nil
	}
	return leases, fetches
}

// retain drops every credential but those in force. It returns the leases of the
// others, queued to be revoked, and their fetches that are under way.
func (m *leaseManager) retain(inForce map[authz.CredentialRef]bool) (leases []*revocation, fetches []*fetch) {
	defer m.cfg.outbox.flush()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inForce = inForce
	var dropped []*entry
	for ref, e := range m.entries {
		if !inForce[ref] {
			dropped = append(dropped, e)
		}
	}
	return m.drop(dropped)
}

// keepNothing has no credential in force until the next retain.
func (m *leaseManager) keepNothing() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inForce = map[authz.CredentialRef]bool{}
}

// dropAll drops every credential, as retain does, and does not change which are in force.
func (m *leaseManager) dropAll() (fetches []*fetch) {
	defer m.cfg.outbox.flush()
	m.mu.Lock()
	defer m.mu.Unlock()
	_, fetches = m.drop(slices.Collect(maps.Values(m.entries)))
	return fetches
}

// close has no fetch begin any more, and returns those that are under way.
func (m *leaseManager) close() []*fetch {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return slices.Collect(maps.Keys(m.inFlight))
}

func (m *leaseManager) isClosed() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.closed
}

// pathsLeased returns the paths that Vault has made leases for.
func (m *leaseManager) pathsLeased() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.leasedPaths))
}

// loseSession takes the credentials out of use that a session holds whose token
// Vault refuses.
func (m *leaseManager) loseSession(s *session, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.next != nil && e.next.heldBy(s) {
			m.cfg.revocations.enqueue(e.ref, e.next, m.now(), false)
			e.next = nil
		}
		if e.lease != nil && e.lease.heldBy(s) {
			m.lose(e, why)
		}
	}
}

// migrate has each credential fetched with the token that replaced another at now,
// one after the other within a few seconds.
func (m *leaseManager) migrate(now dualTime) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.lease != nil && e.lease.mount == "" {
			e.refreshAt = earliest(e.refreshAt, now.add(migrationDelay(now.until(e.lease.usableUntil()))))
		}
	}
}

// needs reports whether a credential in use or on its way, or a lease that is to be
// revoked by itself, needs the token of a session that was replaced. Once it is
// false it stays so: no fetch that began later gets that session.
func (m *leaseManager) needs(r retired) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for f := range m.inFlight {
		if !r.at.before(f.began) {
			return true
		}
	}
	for _, e := range m.entries {
		if e.lease != nil && e.lease.heldBy(r.session) || e.next != nil && e.next.heldBy(r.session) {
			return true
		}
	}
	return m.cfg.revocations.needs(r.session)
}

// maintain renews, replaces and drops the credentials for which that is due, and
// returns when to call it again.
func (m *leaseManager) maintain(ctx context.Context, now dualTime) dualTime {
	defer m.cfg.outbox.flush()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := never()
	for _, e := range m.entries {
		next = earliest(next, m.maintainEntry(ctx, e, now))
		next = earliest(next, e.maintainFormer(now))
	}
	return next
}

// maintainEntry renews, replaces or drops one credential, and returns when to call it
// again. The caller holds mu.
func (m *leaseManager) maintainEntry(ctx context.Context, e *entry, now dualTime) dualTime {
	if m.inForce != nil && !m.inForce[e.ref] {
		if until := e.madeAt.add(m.grace); now.before(until) {
			return until
		}
		m.drop([]*entry{e})
		return never()
	}
	if e.next != nil && (!now.before(e.nextActiveAt) || !e.lease.usable(now)) {
		m.promoteNext(e)
	}
	if e.lease == nil {
		return never() // fetched when it is asked for
	}
	end := e.lease.usableUntil()
	if !now.before(end) && e.lease.onDemand {
		e.lease.term.End(endReached)
		e.lease = nil
		return never()
	}
	if !now.before(end) {
		m.lose(e, endedUnrenewed)
		return never()
	}
	e.lease.term.Extend(end.time()) // the token that holds it may have been renewed
	if e.needsRecheck && e.fetch == nil {
		m.recheck(ctx, e, now)
	}
	return earliest(m.watch(ctx, e, now), m.refreshEntry(ctx, e, now))
}

// refreshEntry renews, replaces or releases a credential whose lease may be used, and
// returns when to call it again. The caller holds mu.
func (m *leaseManager) refreshEntry(ctx context.Context, e *entry, now dualTime) dualTime {
	end := e.lease.usableUntil()
	if e.next != nil {
		return earliest(end, e.nextActiveAt)
	}
	due := latest(e.refreshAt, e.retryAt)
	if e.fetch != nil || now.before(due) {
		return earliestIf(end, due, e.fetch == nil)
	}
	if e.idle(now) && !e.lease.uses.Open() {
		m.cfg.outbox.record("released", e.ref, e.lease.id, "not used")
		if l := e.lease; l.id != "" {
			m.cfg.revocations.revokeWhenUnused(e.ref, l, now)
		} else {
			l.term.End(endReached)
		}
		e.lease = nil
		return never()
	}
	m.startFetch(ctx, e)
	return end
}

// recheck asks Vault about a credential that an upstream has refused. The caller holds mu,
// and the entry has no fetch under way.
func (m *leaseManager) recheck(ctx context.Context, e *entry, now dualTime) {
	e.needsRecheck = false
	l := e.lease
	if l.id == "" {
		e.refreshAt = now
		return
	}
	remint := e.rejected && !now.before(e.remintAt)
	m.cfg.tasks.run(ctx, func(ctx context.Context) {
		gone, err := m.cfg.client.isGone(ctx, l.session, l.id)
		if !gone && (isTransient(err) || m.cfg.login.tokenInvalid(ctx, l.session, err) || !remint) {
			return
		}
		defer m.cfg.outbox.flush()
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case e.lease == nil || e.lease.id != l.id: // it was replaced in between
		case gone:
			m.lose(e, leaseGone)
		case e.fetch == nil:
			doubted := *e.lease
			doubted.rejected = true
			e.lease, e.refreshAt, e.remintAt = &doubted, m.now(), m.now().add(remintInterval)
			m.cfg.wakeUp()
		}
	})
}

func (e *entry) idle(now dualTime) bool {
	return time.Duration(now.mono-e.usedAt.mono.Load()) > idleTimeout
}
