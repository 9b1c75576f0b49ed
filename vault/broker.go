// Package vault leases: it logs in to HashiCorp Vault for one plugin, fetches
// the credentials that the plugin's rules need, keeps them valid while they
// are needed and gives them back when they are not.
//
// Its promises, in the order in which they win over each other: a credential
// is never served past the end of its lease or of the token that holds it;
// nothing that Vault made for us is forgotten before Vault has confirmed that
// it is gone; what is leased goes on being served while Vault is away.
package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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
	idleTimeout         = 5 * time.Minute  // unused for so long, a lease is given back and not renewed
	rotateInterval      = time.Minute      // at most, for leases that may have been lost track of
	tokenRereadInterval = time.Minute      // of the token file
	longestMigration    = 5 * time.Second  // within which credentials move to a new token
	longestSleep        = 30 * time.Second // of the schedule, so that a stepped or suspended clock is noticed
	sealedRetry         = 5 * time.Second  // at most, until a sealed Vault is asked again
	callsInFlight       = 4                // requests that one fetch makes at most, each with its own timeout
)

// Config is what a Broker is made of.
type Config struct {
	// Plugin is the one plugin whose credentials are leased. Required: each
	// plugin has a token of its own, so that revoking it ends what that plugin
	// holds and nothing else, and Vault's audit log tells plugins apart.
	Plugin string
	// Address is Vault's URL, http or https. Required. The VAULT_* environment
	// is not read.
	Address string
	// Namespace is Vault Enterprise's; "" for none.
	Namespace string
	// CAFile and CA are PEM authorities that Vault's certificate is checked
	// against; both empty for the system's. CAFile is read for each connection; one
	// that is gone or half-written leaves what it held before in force.
	CAFile string
	CA     []byte
	// Auth says how to log in. Required.
	Auth Auth
	// StateFile keeps the ids of the leases that are not yet confirmed to be
	// gone, so that the next sidecar revokes what this one leaves behind. ""
	// keeps nothing: what a killed sidecar leaves then ends by itself.
	StateFile string
	// Timeout bounds one request to Vault. 0 is 10 s.
	Timeout time.Duration
	// Refresh is how often a value without a lease (KV) is read again, to
	// notice that it has changed. 0 is a minute.
	Refresh time.Duration
	// Stale is how long a value without a lease is served after Vault was last
	// heard to have it. 0 is 15 minutes.
	Stale time.Duration
	// MintsPerMinute bounds how often Vault is asked for what it may make a lease
	// or a certificate for, so that no policy and no fault floods it; a minute's
	// worth may come at once. 0 is 120.
	MintsPerMinute int
	// Recorder gets a record of kind credential for whatever happens to a
	// lease. nil records nothing.
	Recorder authz.Recorder
	// Changed is called when a credential in use was lost, so that what is
	// live is decided anew. It must not block. nil is not called.
	Changed func()
	// Renders returns why a credential that was fetched cannot be put into any
	// request; Status reports it as unavailable. It must not block. nil is not called.
	Renders func(authz.CredentialRef, authz.Credential) error
	// Fetched is called with the duration of each fetch or renewal, and its
	// error. nil is not called.
	Fetched func(took time.Duration, err error)
	// Logger is for operators. nil logs nothing.
	Logger *zap.Logger
	// Now is the wall clock with a monotonic reading. nil is time.Now.
	Now func() time.Time
}

// Broker leases credentials for one plugin. It implements
// [authz.CredentialSource].
type Broker struct {
	cfg      Config
	log      *zap.Logger
	client   *client
	base     time.Time     // where the monotonic clock counts from
	loginSem chan struct{} // holds one: who logs in or renews the token
	wakeup   chan struct{} // holds one: the schedule has changed
	// grace is how long a replaced lease stays at least, for requests that have its
	// value and are not yet counted, and a fetched one for a generation that names it.
	grace time.Duration

	tasks      sync.WaitGroup // Go under mu while not closed
	saving     sync.Mutex     // serialises writes of the state file
	delivering sync.Mutex     // serialises what is told to Recorder

	mu            sync.RWMutex
	closed        bool
	entries       map[authz.CredentialRef]*entry
	named         map[credentialName]*entry    // the same, one a name: hashing a whole ref takes a warm request longer than all the rest
	inFlight      map[*fetch]bool              // those that have not landed
	inForce       map[authz.CredentialRef]bool // nil until the first Retain
	generation    uint64                       // of the value replaced last, over all credentials
	pending       map[string]*revocation       // by lease id
	stored        map[string]storedLease       // by lease id: what the state file holds
	usedWrap      string                       // the hash of the wrapping token that was used up last; it is there too
	breakers      map[string]*breaker          // by path: those that failed on Vault's side
	leasedPaths   map[string]bool              // by path: those that Vault is known to make leases for
	writablePaths map[string]bool              // by path: those whose engine answers to parameters
	mintLimit     limiter
	keys          keyVersions             // of the transit engine
	adjustClock   func(dualTime) dualTime // moves the clocks, for tests; nil does not

	session       *session
	retiring      []*session // replaced; revoked when nothing holds on to them
	maintaining   bool
	loginAt       dualTime // not before
	loginErr      error
	loginFailures int
	loginLog      loginLog
	refusal       *refusal // nil unless Vault has refused the last login
	loginFiles    string   // the fingerprint of what the last login was made of
	wrapped       wrapped  // guarded by door
	rotateAt      dualTime // not before

	events   []authz.Record
	warnings []warning
	changed  bool
	stats    stats
}

// credentialName is what a credential is called. In one generation no other is called so.
type credentialName struct{ grant, credential string }

// entry is one credential. Its fields are guarded by Broker.mu.
type entry struct {
	ref          authz.CredentialRef
	lease        *lease // nil when there is none that may be used
	next         *lease // replaces lease at settledAt, when what it is of knows it; nil for none
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
	// refused, which is not done before askAgainAt.
	needsRecheck bool
	recheckAt    dualTime
	// unauthorized is set when the upstream has not accepted who is asking, for
	// which the lease is replaced although Vault has it, not before remintAt.
	unauthorized bool
	remintAt     dualTime
}

// fetch is one fetch in progress, which all that need it wait for.
type fetch struct {
	done       chan struct{}
	began      dualTime
	cancel     context.CancelFunc
	old        *lease // what it renews or replaces; guarded by Broker.mu
	oldLost    bool   // old was lost meanwhile, and is not yet to be revoked
	credential authz.Credential
	err        error
	lateLease  *revocation // the lease that it got too late
}

// cachedError is an earlier failure that answers for now.
type cachedError struct {
	err   error
	retry time.Duration
}

func (e *cachedError) Error() string             { return e.err.Error() }
func (e *cachedError) Unwrap() error             { return e.err }
func (e *cachedError) RetryAfter() time.Duration { return e.retry }

var (
	errNotInForce = errors.New("the credential is no longer in force")
	errStopping   = errors.New("the broker is shutting down")
)

// New returns a broker. It starts nothing and dials nothing; it reads the
// authorities and the state file.
func New(cfg Config) (*Broker, error) {
	if cfg.Plugin == "" {
		return nil, errors.New("make broker: a plugin is required")
	}
	if err := cfg.Auth.validate(); err != nil {
		return nil, fmt.Errorf("make broker: login to Vault: %w", err)
	}
	defaults(&cfg)
	b := &Broker{
		cfg:           cfg,
		log:           cfg.Logger,
		base:          cfg.Now(),
		grace:         defaultGrace,
		loginSem:      make(chan struct{}, 1),
		wakeup:        make(chan struct{}, 1),
		named:         make(map[credentialName]*entry),
		entries:       make(map[authz.CredentialRef]*entry),
		inFlight:      make(map[*fetch]bool),
		pending:       make(map[string]*revocation),
		stored:        make(map[string]storedLease),
		breakers:      make(map[string]*breaker),
		leasedPaths:   make(map[string]bool),
		writablePaths: make(map[string]bool),
		mintLimit:     limiter{every: time.Minute / time.Duration(cfg.MintsPerMinute), burst: time.Minute},
		stats:         stats{errors: make(map[string]uint64)},
	}
	var err error
	if b.client, err = newClient(&b.cfg, b.countError); err != nil {
		return nil, fmt.Errorf("make broker: %w", err)
	}
	if err := b.loadState(); err != nil {
		return nil, fmt.Errorf("make broker: %w", err)
	}
	return b, nil
}

func defaults(cfg *Config) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Refresh <= 0 {
		cfg.Refresh = time.Minute
	}
	if cfg.Stale <= 0 {
		cfg.Stale = 15 * time.Minute
	}
	if cfg.MintsPerMinute <= 0 {
		cfg.MintsPerMinute = 120
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
}

func (b *Broker) now() dualTime {
	t := b.cfg.Now()
	now := dualTime{mono: int64(t.Sub(b.base)), wall: t.UnixNano()}
	if b.adjustClock != nil {
		return b.adjustClock(now)
	}
	return now
}

// Credential returns a credential that is valid now, fetching it if there is
// none. Its error holds no secret and has a method RetryAfter if trying again
// may help.
func (b *Broker) Credential(ctx context.Context, ref authz.CredentialRef) (authz.Credential, error) {
	if c, ok := b.cached(ref); ok {
		return c, nil
	}
	f, err := b.joinFetch(ctx, ref)
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

// Refused says that an upstream answered the value of a generation with status 401
// or 403: it may have been taken back behind our back. Run then asks Vault, at most
// every five seconds about one credential however often the plugin is refused: a
// value without a lease is read again, and a lease that Vault no longer has is
// lost, so that the next request has a new one made. A lease that Vault has stays
// after a 403. After a 401 it is replaced, at most every ten minutes, since its
// user may have been removed where Vault does not see it. A certificate stays,
// since Vault is not who ends it. It does not block.
func (b *Broker) Refused(grant, credential string, generation uint64, status int) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	now := b.now()
	e := b.named[credentialName{grant, credential}]
	if e == nil || e.lease == nil || e.lease.generation != generation || e.lease.mount != "" || now.before(e.recheckAt) {
		return
	}
	e.needsRecheck, e.recheckAt = true, now.add(recheckInterval)
	e.unauthorized = status == http.StatusUnauthorized
	b.wakeUp()
}

func (b *Broker) cached(ref authz.CredentialRef) (authz.Credential, bool) {
	now := b.now()
	b.mu.RLock()
	defer b.mu.RUnlock()
	e := b.named[credentialName{ref.Grant, ref.Name}]
	if e == nil || e.ref != ref {
		e = b.entries[ref]
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

// joinFetch returns the flight that fetches the credential, starting it if there
// is none, or the failure that answers for it for now.
func (b *Broker) joinFetch(ctx context.Context, ref authz.CredentialRef) (*fetch, error) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	now := b.now()
	if b.closed {
		return nil, errStopping
	}
	e := b.entries[ref]
	if e == nil {
		if err := b.checkRef(ref); err != nil {
			return nil, err
		}
		e = &entry{ref: ref, madeAt: now}
		b.entries[ref], b.named[credentialName{ref.Grant, ref.Name}] = e, e
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
	return b.startFetch(ctx, e), nil
}

// checkRef refuses what must not be fetched. The caller holds mu.
func (b *Broker) checkRef(ref authz.CredentialRef) error {
	if ref.Plugin != b.cfg.Plugin {
		return fmt.Errorf("the broker of plugin %s has no credentials of plugin %s", b.cfg.Plugin, ref.Plugin)
	}
	if err := checkPath(ref.Path); err != nil {
		return err
	}
	if err := checkParameters(ref.Parameters); err != nil {
		return fmt.Errorf("path %s: %w", ref.Path, err)
	}
	if len(b.entries) >= maxEntries {
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

// startFetch begins to fetch or renew. The caller holds mu, the entry has no
// flight, and the broker is not closed. What is begun is finished although
// the caller gives up: others wait for it, and a lease must not be lost.
func (b *Broker) startFetch(ctx context.Context, e *entry) *fetch {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callsInFlight*b.cfg.Timeout)
	f := &fetch{done: make(chan struct{}), began: b.now(), cancel: cancel}
	e.fetch = f
	b.inFlight[f] = true
	b.tasks.Go(func() {
		defer cancel()
		b.runFetch(ctx, e, f)
	})
	return f
}

// runFetch fetches or renews the credential and hands it to all that wait.
func (b *Broker) runFetch(ctx context.Context, e *entry, f *fetch) {
	b.mu.Lock()
	old, current := e.lease, b.session
	f.old = old
	b.unlockAndNotify()
	began := b.cfg.Now()
	got, gone, err := b.obtain(ctx, e.ref, old, current)
	if b.cfg.Fetched != nil {
		b.cfg.Fetched(b.cfg.Now().Sub(began), err)
	}
	if err == nil && got.id != "" {
		b.storeLease(got) // on disk before it is in use
	}
	b.finishFetch(e, f, old, got, gone, err)
}

// obtain returns a lease newer than old, which may be nil. gone is set when
// Vault has said that old is no more.
func (b *Broker) obtain(ctx context.Context, ref authz.CredentialRef, old *lease, current *session) (got *lease, gone bool, err error) {
	if old != nil && old.session == current && old.renews() {
		got, gone, err = b.renew(ctx, ref, old)
		if err == nil || isTransient(err) {
			return got, gone, err
		}
	}
	got, err = b.mint(ctx, ref, old)
	return got, gone, err
}

// renew renews a lease. It is harmless to ask twice.
func (b *Broker) renew(ctx context.Context, ref authz.CredentialRef, old *lease) (got *lease, gone bool, err error) {
	issued := b.now()
	asked := old.increment(issued, ref.Lifetime)
	answer, err := b.client.do(ctx, call{
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
	case b.tokenInvalid(ctx, old.session, err):
		return nil, true, err
	}
	gone, _ = b.isGone(ctx, old.session, old.id)
	return nil, gone, err
}

// mint asks the path for a new answer. It is never asked again after a failure
// that leaves open whether Vault made a lease.
func (b *Broker) mint(ctx context.Context, ref authz.CredentialRef, old *lease) (*lease, error) {
	var need time.Duration
	if old != nil && old.id != "" {
		need = old.granted
	}
	for retried := false; ; retried = true {
		s, err := b.authenticate(ctx, need)
		if err != nil {
			return nil, err
		}
		if err := b.checkMint(ref.Path, old != nil && old.id == ""); err != nil {
			return nil, err
		}
		l, err := b.read(ctx, s, ref, old)
		b.recordOutcome(ref.Path, err)
		if !retried && b.tokenInvalid(ctx, s, err) {
			continue
		}
		if e := (*Error)(nil); errors.As(err, &e) && e.ambiguous && (old == nil || old.id != "") {
			b.markUntracked(s, ref.Path)
		}
		return l, err
	}
}

// read asks the path once, for what replaces old, which may be nil.
func (b *Broker) read(ctx context.Context, s *session, ref authz.CredentialRef, old *lease) (*lease, error) {
	if err := b.checkCapacity(s, ref.Path); err != nil {
		return nil, err
	}
	if err := b.checkWritable(ctx, s, ref); err != nil {
		return nil, err
	}
	issued := b.now()
	c := call{op: "read " + ref.Path, method: http.MethodGet, path: ref.Path, token: s.token}
	if ref.Parameters != "" {
		c.op, c.method, c.params = "write "+ref.Path, http.MethodPost, ref.Parameters
	}
	answer, err := b.client.do(ctx, c)
	if err != nil {
		return nil, err
	}
	l, err := b.leaseOf(answer, s, ref, issued, old)
	leased := answer != nil && answer.LeaseID != ""
	if leased {
		b.mu.Lock()
		b.leasedPaths[ref.Path] = true
		b.unlockAndNotify()
	}
	if err == nil && leased && s.batch {
		err = errBatch
	}
	if err != nil && leased {
		b.revokeUnused(s, ref, answer.LeaseID)
	}
	if err != nil {
		return nil, b.unusable(c.op, err)
	}
	return l, nil
}

// checkWritable refuses to send parameters to an engine that would store them in the
// place of the secret. Of what kind an engine is, Vault tells whoever may use
// the path; what it does not tell is not written to. It is asked once for each
// path.
func (b *Broker) checkWritable(ctx context.Context, s *session, ref authz.CredentialRef) error {
	b.mu.RLock()
	known := b.writablePaths[ref.Path]
	b.mu.RUnlock()
	if ref.Parameters == "" || known {
		return nil
	}
	op := "look up the engine at " + ref.Path
	answer, err := b.engineAt(ctx, s, ref.Path)
	if err != nil {
		return err
	}
	var kind string
	if answer != nil {
		kind, _ = answer.Data["type"].(string)
	}
	switch kind {
	case "":
		return b.unusable(op, errors.New("the answer does not say what engine is there"))
	case "kv", "generic", "cubbyhole":
		return b.unusable(op, errors.New("it is a key-value engine, which would store the parameters in the place of the secret; leave vault.params out"))
	}
	b.mu.Lock()
	defer b.unlockAndNotify()
	if len(b.writablePaths) < maxEntries {
		b.writablePaths[ref.Path] = true
	}
	return nil
}

// errBatch says why nothing is leased with a batch token: it cannot be revoked
// and takes nothing with it, so that a lease of which no answer arrived would
// stay, and so would all when the policy does not let us revoke them (Vault
// documentation, "Batch tokens").
var errBatch = errors.New("nothing is leased with a batch token, since Vault cannot revoke it; set token_type=service on the role")

// unusable returns the error of an answer that cannot be used.
func (b *Broker) unusable(op string, err error) error {
	e := &Error{Op: op, Code: "answer", Status: http.StatusOK, Reasons: []string{err.Error()}}
	b.countError(e)
	return e
}

// checkCapacity refuses to mint while too much waits to be revoked, and what would have
// to be given back at once.
func (b *Broker) checkCapacity(s *session, path string) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if len(b.pending) >= maxPending {
		return fmt.Errorf("%d leases wait for Vault to confirm that they are revoked", len(b.pending))
	}
	if s.batch && b.leasedPaths[path] {
		return fmt.Errorf("read %s: %w", path, errBatch)
	}
	return nil
}

// finishFetch ends a flight: it puts the new lease in force, or notes the failure.
func (b *Broker) finishFetch(e *entry, f *fetch, old, got *lease, gone bool, err error) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	defer close(f.done)
	now := b.now()
	e.fetch = nil
	delete(b.inFlight, f)
	if gone && e.lease != nil && e.lease == old {
		b.lose(e, leaseGone)
	}
	if err == nil && got.mount == "" && got.session.dead {
		err = errors.New("the token was revoked meanwhile")
	}
	if err == nil && (b.closed || e.dropped) {
		err = errNotInForce
	}
	if err == nil {
		b.install(e, got)
		var ok bool
		if f.credential, ok = e.serve(now); !ok {
			err = errors.New("the lease is too short to be used")
		}
	} else if got != nil && got.id != "" {
		f.lateLease = b.enqueue(e.ref, got, now, true)
	}
	if f.oldLost && (err != nil || got.id != old.id) {
		b.revokeWhenUnused(e.ref, old, now)
	}
	if err != nil {
		b.recordFailure(e, now, err)
		f.err = &cachedError{err: err, retry: now.until(e.retryAt)}
	}
	b.wakeUp()
}

// recordFailure notes a failure. The caller holds mu.
func (b *Broker) recordFailure(e *entry, now dualTime, err error) {
	first := e.err == nil
	if held := (*cachedError)(nil); !errors.As(err, &held) || e.failures == 0 {
		e.failures++ // an earlier failure that answers again is none
	}
	e.err, e.retryAt = err, now.add(b.retryDelay(e.failures, err))
	if first {
		b.warn("fetch credential", zap.String("grant", e.ref.Grant), zap.String("credential", e.ref.Name), zap.Error(err))
	}
	// A value without a lease is ours as long as Vault lets us read it.
	refused := statusOf(err) == http.StatusForbidden || statusOf(err) == http.StatusNotFound || isUnusable(err)
	if e.lease != nil && e.lease.id == "" && refused {
		b.lose(e, "Vault no longer gives it: "+err.Error())
	}
}

func isUnusable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == "answer" && !e.ambiguous
}

// retryDelay is how long to wait after a number of failures in a row.
func (b *Broker) retryDelay(failures int, err error) time.Duration {
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

// install puts a lease in force in the place of the former one, which is given
// back after a while. The caller holds mu.
func (b *Broker) install(e *entry, got *lease) {
	old := e.lease
	e.failures, e.err, e.retryAt, e.needsRecheck = 0, nil, dualTime{}, false
	what := "leased"
	switch {
	case old == nil:
	case got.id != "" && got.id == old.id:
		what = "renewed"
	case got.id == "" && old.id == "" && got.fields.equal(old.fields):
		got.generation, got.fields = old.generation, old.fields
		what = ""
	default:
		what = "replaced"
	}
	if got.generation == 0 {
		b.generation++
		got.generation = b.generation
	}
	now := b.now()
	if e.next != nil {
		b.revokeWhenUnused(e.ref, e.next, now)
		e.next = nil
	}
	if what == "replaced" && got.propagatesLate && !old.rejected && old.usable(now) {
		e.next, e.nextActiveAt = got, earliest(now.add(propagationDelay), old.usableUntil())
		e.refreshAt = e.nextActiveAt
	} else {
		b.activate(e, got)
	}
	if what != "" {
		b.record(what, e.ref, got.id, "")
	}
	if (what == "leased" || what == "replaced") && len(got.fields.unsendableNames) > 0 {
		b.warn("fields are not used: each is empty or holds a control byte (a line break at its end?)",
			zap.String("path", e.ref.Path), zap.Strings("fields", got.fields.unsendableNames))
	}
}

// activate puts a lease in the place of the one that is served, which is kept for a
// while. The caller holds mu.
func (b *Broker) activate(e *entry, got *lease) {
	now, old := b.now(), e.lease
	e.lease, e.refreshAt = got, got.refreshAt
	if got.session != b.session && got.mount == "" { // it was replaced meanwhile
		e.refreshAt = earliest(e.refreshAt, now.add(migrationDelay(now.until(got.usableUntil()))))
	}
	if old != nil && old.id != "" && old.id != got.id {
		b.revokeWhenUnused(e.ref, old, earliest(now.add(b.grace), old.usableUntil()))
	}
}

// promoteNext puts the next lease in the place of the one that is served. The caller
// holds mu.
func (b *Broker) promoteNext(e *entry) {
	next := e.next
	e.next = nil
	b.activate(e, next)
}

// lose takes a credential out of use that can no longer be. Its lease is
// revoked, but not while it is being renewed: renewed, it may be used again. The
// caller holds mu.
func (b *Broker) lose(e *entry, why string) {
	l := e.lease
	e.lease = nil
	b.record("lost", e.ref, l.id, why)
	b.changed = true
	switch {
	case l.id == "":
	case e.fetch != nil && e.fetch.old == l:
		e.fetch.oldLost = true
	case why == leaseGone || why == tokenGone:
		b.enqueue(e.ref, l, b.now(), false) // there is nothing to keep
	default:
		b.revokeWhenUnused(e.ref, l, b.now())
	}
	if e.next != nil {
		b.promoteNext(e)
	}
}

// migrationDelay is when, in the time left, a credential moves to a new token.
func migrationDelay(left time.Duration) time.Duration {
	return time.Duration(random() * float64(min(longestMigration, left/3)))
}

// record notes an event for the audit log, written when mu is released. The
// caller holds mu.
func (b *Broker) record(what string, ref authz.CredentialRef, lease, detail string) {
	if b.cfg.Recorder == nil {
		return
	}
	b.events = append(b.events, authz.Record{
		Time: b.cfg.Now(), Kind: authz.KindCredential, Plugin: b.cfg.Plugin, Grant: ref.Grant,
		Credential: ref.Name, Lease: lease, Reason: what, Detail: detail, UID: -1,
	})
}

type warning struct {
	text   string
	fields []zap.Field
}

// warn notes a line for operators, written when mu is released. The caller
// holds mu.
func (b *Broker) warn(text string, fields ...zap.Field) {
	b.warnings = append(b.warnings, warning{text, fields})
}

// unlockAndNotify releases mu and tells what has happened meanwhile: while it is held,
// nothing waits for a disk or a terminal.
func (b *Broker) unlockAndNotify() {
	changed, silent, warnings := b.changed, len(b.events) == 0, b.warnings
	b.changed, b.warnings = false, nil
	b.mu.Unlock()
	if changed && b.cfg.Changed != nil {
		b.cfg.Changed()
	}
	for _, w := range warnings {
		b.log.Warn(w.text, w.fields...)
	}
	if silent {
		return
	}
	b.delivering.Lock()
	defer b.delivering.Unlock()
	b.mu.Lock()
	events := b.events
	b.events = nil
	b.mu.Unlock()
	for i := range events {
		if err := b.cfg.Recorder.Record(&events[i]); err != nil {
			b.log.Error("write audit record of a credential", zap.Error(err))
		}
	}
}

// wakeUp makes the schedule look again.
func (b *Broker) wakeUp() {
	select {
	case b.wakeup <- struct{}{}:
	default:
	}
}
