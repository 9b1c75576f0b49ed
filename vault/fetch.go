package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
)

// fetch is one request in progress, which all callers that need it wait for.
type fetch struct {
	done       chan struct{}
	began      dualTime
	cancel     context.CancelFunc
	old        *lease // the lease that it renews or replaces; guarded by leaseManager.mu
	oldLost    bool   // old was lost during the fetch, and is not yet to be revoked
	credential authz.Credential
	err        error
	lateLease  *revocation // the lease that arrived too late to be used
}

// cachedError is an earlier failure that answers for now.
type cachedError struct {
	err   error
	retry time.Duration
}

func (e *cachedError) Error() string { return e.err.Error() }

func (e *cachedError) Unwrap() error { return e.err }

func (e *cachedError) RetryAfter() time.Duration { return e.retry }

var (
	errNotInForce = errors.New("the credential is no longer in force")
	errStopping   = errors.New("the broker is shutting down")
)

// get is [Broker.Credential].
func (m *leaseManager) get(ctx context.Context, ref authz.CredentialRef) (authz.Credential, error) {
	if c, ok := m.cached(ref); ok {
		return c, nil
	}
	f, err := m.joinFetch(ctx, ref)
	if err != nil {
		return authz.Credential{}, err
	}
	select {
	case <-f.done:
		return f.credential, f.err
	case <-ctx.Done():
		return authz.Credential{}, fmt.Errorf("wait for Vault: %w", ctx.Err())
	}
}

// joinFetch returns the fetch of the credential that is under way, starting it if
// necessary, or an earlier failure while it is too early to try again.
func (m *leaseManager) joinFetch(ctx context.Context, ref authz.CredentialRef) (*fetch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if m.closed {
		return nil, errStopping
	}
	e := m.entries[ref]
	if e == nil {
		if err := m.checkRef(ref); err != nil {
			return nil, err
		}
		e = &entry{ref: ref, madeAt: now}
		m.entries[ref], m.named[credentialName{ref.Grant, ref.Name}] = e, e
	}
	if e.fetch != nil {
		return e.fetch, nil
	}
	if c, ok := e.serve(now); ok {
		f := &fetch{done: make(chan struct{}), credential: c}
		close(f.done)
		return f, nil
	}
	if e.err != nil && now.before(e.retryAt) {
		return nil, &cachedError{err: e.err, retry: now.until(e.retryAt)}
	}
	e.usedAt.set(now)
	return m.startFetch(ctx, e), nil
}

// startFetch begins to fetch or renew. The caller holds mu, the entry has no fetch under
// way, and the leases are not closed. A fetch is finished although its caller gives up:
// others wait for it, and a lease must not be lost.
func (m *leaseManager) startFetch(ctx context.Context, e *entry) *fetch {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callsInFlight*m.cfg.timeout)
	f := &fetch{done: make(chan struct{}), began: m.now(), cancel: cancel}
	e.fetch = f
	m.inFlight[f] = true
	m.cfg.tasks.group.Go(func() {
		defer cancel()
		m.runFetch(ctx, e, f)
	})
	return f
}

// runFetch fetches or renews the credential and passes it to all callers that wait.
func (m *leaseManager) runFetch(ctx context.Context, e *entry, f *fetch) {
	m.mu.Lock()
	old, current := e.lease, m.cfg.login.current()
	f.old = old
	m.mu.Unlock()
	began := m.cfg.clock.read()
	got, gone, err := m.obtain(ctx, e.ref, old, current)
	if m.cfg.fetched != nil {
		m.cfg.fetched(m.cfg.clock.read().Sub(began), err)
	}
	if err == nil && got.id != "" {
		m.cfg.store.add(got) // on disk before it is in use
	}
	m.finishFetch(e, f, old, got, gone, err)
}

// obtain returns a lease newer than old, which may be nil. gone is set when Vault has
// answered that old is gone.
func (m *leaseManager) obtain(ctx context.Context, ref authz.CredentialRef, old *lease, current *session) (got *lease, gone bool, err error) {
	if old != nil && old.session == current && old.renews() {
		got, gone, err = m.renew(ctx, ref, old)
		if err == nil || isTransient(err) {
			return got, gone, err
		}
	}
	got, err = m.mint(ctx, ref, old)
	return got, gone, err
}

// renew renews a lease. It is harmless to ask twice.
func (m *leaseManager) renew(ctx context.Context, ref authz.CredentialRef, old *lease) (got *lease, gone bool, err error) {
	issued := m.now()
	asked := old.increment(issued, ref.Lifetime)
	answer, err := m.cfg.client.do(ctx, call{
		op: "renew lease of " + ref.Path, method: http.MethodPut, path: "sys/leases/renew", token: old.session.token,
		body: map[string]any{"lease_id": old.id, "increment": int(asked.Seconds())},
	})
	switch {
	case err == nil && (answer == nil || answer.LeaseDuration <= 0):
		return nil, false, fmt.Errorf("renew lease of %s: the answer has no duration", ref.Path)
	case err == nil:
		return old.renewed(issued, asked, seconds(answer.LeaseDuration), ref.Lifetime, spread()), false, nil
	case isTransient(err):
		return nil, false, err
	case m.cfg.login.tokenInvalid(ctx, old.session, err):
		return nil, true, err
	}
	gone, _ = m.cfg.client.isGone(ctx, old.session, old.id)
	return nil, gone, err
}

// mint asks the path for a new answer. It is never asked again after a failure
// that leaves open whether Vault made a lease.
func (m *leaseManager) mint(ctx context.Context, ref authz.CredentialRef, old *lease) (*lease, error) {
	var need time.Duration
	if old != nil && old.id != "" {
		need = old.granted
	}
	for retried := false; ; retried = true {
		s, err := m.cfg.login.authenticate(ctx, need)
		if err != nil {
			return nil, err
		}
		if err := m.cfg.limits.check(ref.Path, old != nil && old.id == ""); err != nil {
			return nil, err
		}
		l, err := m.read(ctx, s, ref, old)
		m.cfg.limits.record(ref.Path, err)
		if !retried && m.cfg.login.tokenInvalid(ctx, s, err) {
			continue
		}
		if e := (*Error)(nil); errors.As(err, &e) && e.ambiguous && (old == nil || old.id != "") {
			m.cfg.login.markUntracked(s, ref.Path)
		}
		return l, err
	}
}

// read asks the path once, for what replaces old, which may be nil.
func (m *leaseManager) read(ctx context.Context, s *session, ref authz.CredentialRef, old *lease) (*lease, error) {
	if err := m.checkCapacity(s, ref.Path); err != nil {
		return nil, err
	}
	if err := m.checkWritable(ctx, s, ref); err != nil {
		return nil, err
	}
	issued := m.now()
	c := call{op: "read " + ref.Path, method: http.MethodGet, path: ref.Path, token: s.token}
	if ref.Parameters != "" {
		c.op, c.method, c.params = "write "+ref.Path, http.MethodPost, ref.Parameters
	}
	answer, err := m.cfg.client.do(ctx, c)
	if err != nil {
		return nil, err
	}
	l, err := m.leaseOf(answer, s, ref, issued, old)
	leased := answer != nil && answer.LeaseID != ""
	if leased {
		m.mu.Lock()
		m.leasedPaths[ref.Path] = true
		m.mu.Unlock()
	}
	if err == nil && leased && s.batch {
		err = errBatch
	}
	if err != nil && leased {
		m.cfg.revocations.revokeUnused(s, ref, answer.LeaseID)
	}
	if err != nil {
		return nil, m.cfg.errors.unusable(c.op, err)
	}
	return l, nil
}

// checkWritable refuses to send parameters to an engine that would store them in the place
// of the secret. Vault returns the kind of an engine to every token that may use the path;
// without it no parameters are sent. It is asked once for each path.
func (m *leaseManager) checkWritable(ctx context.Context, s *session, ref authz.CredentialRef) error {
	m.mu.RLock()
	known := m.writablePaths[ref.Path]
	m.mu.RUnlock()
	if ref.Parameters == "" || known {
		return nil
	}
	op := "look up the engine at " + ref.Path
	answer, err := m.cfg.client.engineAt(ctx, s, ref.Path)
	if err != nil {
		return err
	}
	var kind string
	if answer != nil {
		kind, _ = answer.Data["type"].(string)
	}
	switch kind {
	case "":
		return m.cfg.errors.unusable(op, errors.New("the answer does not say what engine is there"))
	case "kv", "generic", "cubbyhole":
		return m.cfg.errors.unusable(op, errors.New("it is a key-value engine, which would store the parameters in the place of the secret; leave vault.params out"))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.writablePaths) < maxEntries {
		m.writablePaths[ref.Path] = true
	}
	return nil
}

// errBatch is why no lease is made with a batch token: the token cannot be revoked, and its
// end revokes no lease, so that a lease whose answer was lost would stay, and so would all
// when the policy does not allow the broker to revoke them (Vault documentation, "Batch
// tokens").
var errBatch = errors.New("no lease is made with a batch token, since Vault cannot revoke it; set token_type=service on the role")

// checkCapacity refuses to mint while too many leases wait to be revoked, and a lease that
// would have to be revoked at once.
func (m *leaseManager) checkCapacity(s *session, path string) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n := m.cfg.revocations.len(); n >= maxPending {
		return fmt.Errorf("%d leases wait for Vault to confirm that they are revoked", n)
	}
	if s.batch && m.leasedPaths[path] {
		return fmt.Errorf("read %s: %w", path, errBatch)
	}
	return nil
}

// finishFetch ends a fetch: it puts the new lease in force, or records the failure.
func (m *leaseManager) finishFetch(e *entry, f *fetch, old, got *lease, gone bool, err error) {
	defer m.cfg.outbox.flush()
	m.mu.Lock()
	defer m.mu.Unlock()
	defer close(f.done)
	now := m.now()
	e.fetch = nil
	delete(m.inFlight, f)
	if gone && e.lease != nil && e.lease == old {
		m.lose(e, leaseGone)
	}
	if err == nil && got.mount == "" && got.session.dead.Load() {
		err = errors.New("the token was revoked during the request")
	}
	if err == nil && (m.closed || e.dropped) {
		err = errNotInForce
	}
	if err == nil {
		m.install(e, got)
		var ok bool
		if f.credential, ok = e.serve(now); !ok {
			err = errors.New("the lease is too short to be used")
		}
	} else if got != nil && got.id != "" {
		f.lateLease = m.cfg.revocations.enqueue(e.ref, got, now, true)
	}
	if f.oldLost && (err != nil || got.id != old.id) {
		m.cfg.revocations.revokeWhenUnused(e.ref, old, now)
	}
	if err != nil {
		m.recordFailure(e, now, err)
		f.err = &cachedError{err: err, retry: now.until(e.retryAt)}
	}
	m.cfg.wakeUp()
}

// recordFailure records a failed fetch. The caller holds mu.
func (m *leaseManager) recordFailure(e *entry, now dualTime, err error) {
	first := e.err == nil
	if held := (*cachedError)(nil); !errors.As(err, &held) || e.failures == 0 {
		e.failures++ // an earlier failure that answers again is not counted again
	}
	e.err, e.retryAt = err, now.add(retryDelay(e.failures, err))
	if first {
		m.cfg.outbox.warn("credential fetch failed", zap.String("grant", e.ref.Grant), zap.String("credential", e.ref.Name), zap.Error(err))
	}
	// A value without a lease may be used as long as Vault allows to read it.
	refused := statusOf(err) == http.StatusForbidden || statusOf(err) == http.StatusNotFound || isUnusable(err)
	if e.lease != nil && e.lease.id == "" && refused {
		m.lose(e, "Vault no longer returns it: "+err.Error())
	}
}

func isUnusable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == "answer" && !e.ambiguous
}

// backoff is how long to wait after a number of failures in a row. random is from 0
// to 1.
func backoff(failures int, random float64) time.Duration {
	return ratelimit.Backoff{Shortest: 250 * time.Millisecond, Longest: 30 * time.Second}.After(failures, random)
}

// retryDelay is how long to wait after a number of failures in a row.
func retryDelay(failures int, err error) time.Duration {
	wait := backoff(failures, random())
	if statusOf(err) == http.StatusServiceUnavailable {
		wait = min(wait, sealedRetry)
	}
	var asked interface{ RetryAfter() time.Duration }
	if errors.As(err, &asked) {
		wait = max(wait, asked.RetryAfter())
	}
	return wait
}

// cancelFetches cancels the fetches that do not end soon. Waiting is better while Vault
// works: a request that is cancelled while PostgreSQL commits leaves a user behind that no
// lease names and that is never removed.
func cancelFetches(ctx context.Context, fetches []*fetch) {
	soon := time.NewTimer(fetchGrace)
	defer soon.Stop()
	defer func() {
		for _, f := range fetches {
			f.cancel()
		}
	}()
	for _, f := range fetches {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		case <-soon.C:
			return
		}
	}
}

// waitFetches waits for fetches and returns the leases that arrived too late to be used.
func waitFetches(ctx context.Context, fetches []*fetch) []*revocation {
	var late []*revocation
	for _, f := range fetches {
		select {
		case <-f.done:
			if f.lateLease != nil {
				late = append(late, f.lateLease)
			}
		case <-ctx.Done():
			return late
		}
	}
	return late
}
