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
	maxEntries    = 1024             // credentials at a time; more are refused
	maxRetiring   = 16               // replaced tokens not yet revoked; while full none is replaced early
	maxPending    = 4096             // unconfirmed revocations; while full nothing is minted
	defaultGrace  = 10 * time.Second // see Broker.grace
	idleAfter     = 5 * time.Minute  // unused for so long, a lease is given back and not renewed
	rotateEvery   = time.Minute      // at most, for leases that may have been lost track of
	rereadToken   = time.Minute      // of the token file
	longestMove   = 5 * time.Second  // within which credentials move to a new token
	longestSleep  = 30 * time.Second // of the schedule, so that a stepped or suspended clock is noticed
	callsInFlight = 3                // requests that one fetch makes at most, each with its own timeout
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
	// against; both empty for the system's.
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
	// Recorder gets a record of kind credential for whatever happens to a
	// lease. nil records nothing.
	Recorder authz.Recorder
	// Changed is called when a credential in use was lost, so that what is
	// live is decided anew. It must not block. nil is not called.
	Changed func()
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
	cfg    Config
	log    *zap.Logger
	client *client
	base   time.Time     // where the monotonic clock counts from
	door   chan struct{} // holds one: who logs in or renews the token
	kick   chan struct{} // holds one: the schedule has changed
	// grace is how long a replaced lease stays for requests that still hold
	// its value, and a fetched one for a generation that names it.
	grace time.Duration

	flights sync.WaitGroup // Go under mu while not closed
	saving  sync.Mutex     // serialises writes of the state file
	telling sync.Mutex     // serialises what is told to Recorder

	mu         sync.RWMutex
	closed     bool
	entries    map[authz.CredentialRef]*entry
	air        map[*flight]bool             // those that have not landed
	inForce    map[authz.CredentialRef]bool // nil until the first Retain
	generation uint64                       // of the value replaced last, over all credentials
	pending    map[string]*revocation       // by lease id
	held       map[string]time.Time         // by lease id: when it ends by itself; what the state file holds

	session       *session
	retiring      []*session // replaced; revoked when nothing holds on to them
	upkeeping     bool
	loginAt       instant // not before
	loginErr      error
	loginFailures int
	rotateAt      instant // not before

	events   []authz.Record
	warnings []warning
	changed  bool
	stats    stats
}

// entry is one credential. Its fields are guarded by Broker.mu.
type entry struct {
	ref       authz.CredentialRef
	lease     *lease // nil when there is none that may be used
	refreshAt instant
	usedAt    atomicInstant
	madeAt    instant
	flight    *flight
	dropped   bool // no longer in force
	failures  int
	retryAt   instant
	err       error
}

// flight is one fetch in progress, which all that need it wait for.
type flight struct {
	done       chan struct{}
	began      instant
	cancel     context.CancelFunc
	credential authz.Credential
	err        error
	orphan     *revocation // the lease that it got too late
}

// heldError is an earlier failure that answers for now.
type heldError struct {
	err   error
	retry time.Duration
}

func (e *heldError) Error() string             { return e.err.Error() }
func (e *heldError) Unwrap() error             { return e.err }
func (e *heldError) RetryAfter() time.Duration { return e.retry }

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
		cfg:     cfg,
		log:     cfg.Logger,
		base:    cfg.Now(),
		grace:   defaultGrace,
		door:    make(chan struct{}, 1),
		kick:    make(chan struct{}, 1),
		entries: make(map[authz.CredentialRef]*entry),
		air:     make(map[*flight]bool),
		pending: make(map[string]*revocation),
		held:    make(map[string]time.Time),
		stats:   stats{errors: make(map[string]uint64)},
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
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
}

func (b *Broker) now() instant {
	t := b.cfg.Now()
	return instant{mono: int64(t.Sub(b.base)), wall: t.UnixNano()}
}

// Credential returns a credential that is valid now, fetching it if there is
// none. Its error holds no secret and has a method RetryAfter if trying again
// may help.
func (b *Broker) Credential(ctx context.Context, ref authz.CredentialRef) (authz.Credential, error) {
	if c, ok := b.warm(ref); ok {
		return c, nil
	}
	f, err := b.board(ctx, ref)
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

func (b *Broker) warm(ref authz.CredentialRef) (authz.Credential, bool) {
	now := b.now()
	b.mu.RLock()
	defer b.mu.RUnlock()
	e := b.entries[ref]
	if e == nil {
		return authz.Credential{}, false
	}
	return e.serve(now)
}

// serve returns the credential if it may be used at now. The caller holds mu,
// for reading at least.
func (e *entry) serve(now instant) (authz.Credential, bool) {
	l := e.lease
	if l == nil || l.session.dead {
		return authz.Credential{}, false
	}
	notAfter := l.usableUntil()
	if !now.before(notAfter) {
		return authz.Credential{}, false
	}
	e.usedAt.set(now)
	return authz.Credential{Fields: l.fields, Generation: l.generation, Lease: l.id, NotAfter: notAfter.time()}, true
}

// board returns the flight that fetches the credential, starting it if there
// is none, or the failure that answers for it for now.
func (b *Broker) board(ctx context.Context, ref authz.CredentialRef) (*flight, error) {
	b.mu.Lock()
	defer b.unlock()
	now := b.now()
	if b.closed {
		return nil, errStopping
	}
	e := b.entries[ref]
	if e == nil {
		if err := b.admit(ref); err != nil {
			return nil, err
		}
		e = &entry{ref: ref, madeAt: now}
		b.entries[ref] = e
	}
	if e.flight != nil {
		return e.flight, nil
	}
	if c, ok := e.serve(now); ok {
		f := &flight{done: make(chan struct{}), credential: c}
		close(f.done)
		return f, nil
	}
	if e.err != nil && now.before(e.retryAt) {
		return nil, &heldError{err: e.err, retry: now.until(e.retryAt)}
	}
	e.usedAt.set(now)
	return b.start(ctx, e), nil
}

// admit refuses what must not be fetched. The caller holds mu.
func (b *Broker) admit(ref authz.CredentialRef) error {
	if ref.Plugin != b.cfg.Plugin {
		return fmt.Errorf("the broker of plugin %s has no credentials of plugin %s", b.cfg.Plugin, ref.Plugin)
	}
	if err := checkPath(ref.Path); err != nil {
		return err
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

// start begins to fetch or renew. The caller holds mu, the entry has no
// flight, and the broker is not closed. What is begun is finished although
// the caller gives up: others wait for it, and a lease must not be lost.
func (b *Broker) start(ctx context.Context, e *entry) *flight {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callsInFlight*b.cfg.Timeout)
	f := &flight{done: make(chan struct{}), began: b.now(), cancel: cancel}
	e.flight = f
	b.air[f] = true
	b.flights.Go(func() {
		defer cancel()
		b.fly(ctx, e, f)
	})
	return f
}

// fly fetches or renews the credential and hands it to all that wait.
func (b *Broker) fly(ctx context.Context, e *entry, f *flight) {
	b.mu.RLock()
	old, current := e.lease, b.session
	b.mu.RUnlock()
	began := b.cfg.Now()
	got, gone, err := b.obtain(ctx, e.ref, old, current)
	if b.cfg.Fetched != nil {
		b.cfg.Fetched(b.cfg.Now().Sub(began), err)
	}
	if err == nil && got.id != "" {
		b.hold(got) // on disk before it is in use
	}
	b.land(e, f, old, got, gone, err)
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
	case b.outlived(ctx, old.session, err):
		return nil, true, err
	}
	gone, _ = b.isGone(ctx, old.session, old.id)
	return nil, gone, err
}

// mint reads the path for a new answer. It is never sent again after a failure
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
		l, err := b.read(ctx, s, ref)
		if !retried && b.outlived(ctx, s, err) {
			continue
		}
		if e := (*Error)(nil); errors.As(err, &e) && e.ambiguous && (old == nil || old.id != "") {
			b.suspect(s, ref.Path)
		}
		return l, err
	}
}

// read reads the path once.
func (b *Broker) read(ctx context.Context, s *session, ref authz.CredentialRef) (*lease, error) {
	if err := b.room(); err != nil {
		return nil, err
	}
	issued := b.now()
	op := "read " + ref.Path
	answer, err := b.client.do(ctx, call{op: op, method: http.MethodGet, path: ref.Path, token: s.token})
	if err != nil {
		return nil, err
	}
	fields, withheld, err := fieldsOf(answer)
	if err == nil && answer.LeaseID != "" && answer.LeaseDuration <= 0 {
		err = errors.New("the lease has no duration")
	}
	if err != nil {
		if answer != nil && answer.LeaseID != "" {
			b.giveBack(s, ref, answer.LeaseID)
		}
		return nil, b.unusable(op, err)
	}
	l := &lease{
		id: answer.LeaseID, session: s, fields: fields, withheld: withheld, renewable: answer.Renewable,
		minted: issued, granted: seconds(answer.LeaseDuration),
	}
	if l.id != "" {
		l.window = newWindow(issued, l.granted, ceiling(issued, ref.Lifetime), spread())
		return l, nil
	}
	// A duration without a lease (KV version 1) only says how soon the value
	// may be another one.
	l.window = newWindow(issued, b.cfg.Stale, ceiling(issued, ref.Lifetime), 0)
	again := b.cfg.Refresh
	if l.granted > 0 {
		again = min(again, max(l.granted, time.Second))
	}
	l.refreshAt = earliest(l.refreshAt, issued.add(time.Duration(float64(again)*(1+spread()/10))))
	return l, nil
}

// unusable returns the error of an answer that cannot be used.
func (b *Broker) unusable(op string, err error) error {
	e := &Error{Op: op, Code: "answer", Status: http.StatusOK, Reasons: []string{err.Error()}}
	b.countError(e)
	return e
}

// room refuses to mint while too much waits to be revoked.
func (b *Broker) room() error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if len(b.pending) >= maxPending {
		return fmt.Errorf("%d leases wait for Vault to confirm that they are revoked", len(b.pending))
	}
	return nil
}

// land ends a flight: it puts the new lease in force, or notes the failure.
func (b *Broker) land(e *entry, f *flight, old, got *lease, gone bool, err error) {
	b.mu.Lock()
	defer b.unlock()
	defer close(f.done)
	now := b.now()
	e.flight = nil
	delete(b.air, f)
	if gone && e.lease != nil && e.lease == old {
		b.lose(e, "Vault no longer knows the lease")
	}
	if err == nil && got.session.dead {
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
		f.orphan = b.enqueue(e.ref, got, now, true)
	}
	if err != nil {
		b.failed(e, now, err)
		f.err = &heldError{err: err, retry: now.until(e.retryAt)}
	}
	b.wake()
}

// failed notes a failure. The caller holds mu.
func (b *Broker) failed(e *entry, now instant, err error) {
	e.failures++
	wait := b.waitAfter(e.failures, err)
	e.err, e.retryAt = err, now.add(wait)
	if e.failures == 1 {
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

// waitAfter is how long to wait after a number of failures in a row.
func (b *Broker) waitAfter(failures int, err error) time.Duration {
	wait := backoff(failures, random())
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
	e.failures, e.err, e.retryAt = 0, nil, instant{}
	what := "leased"
	switch {
	case old == nil:
	case got.id != "" && got.id == old.id:
		what = "renewed"
	case got.id == "" && old.id == "" && sameFields(old.fields, got.fields):
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
	e.lease, e.refreshAt = got, got.refreshAt
	if got.session != b.session { // it was replaced meanwhile
		e.refreshAt = earliest(e.refreshAt, now.add(moveWithin(now.until(got.usableUntil()))))
	}
	if what != "" {
		b.record(what, e.ref, got.id, "")
	}
	if (what == "leased" || what == "replaced") && len(got.withheld) > 0 {
		b.warn("fields are not used: each is empty or holds a control byte (a line break at its end?)",
			zap.String("path", e.ref.Path), zap.Strings("fields", got.withheld))
	}
	if old != nil && old.id != "" && old.id != got.id {
		b.enqueue(e.ref, old, earliest(now.add(b.grace), old.usableUntil()), false)
	}
}

// lose takes a credential out of use that can no longer be. The caller holds mu.
func (b *Broker) lose(e *entry, why string) {
	l := e.lease
	e.lease = nil
	b.record("lost", e.ref, l.id, why)
	b.changed = true
	if l.id != "" {
		b.enqueue(e.ref, l, b.now(), false)
	}
}

// moveWithin is when, in the time left, a credential moves to a new token.
func moveWithin(left time.Duration) time.Duration {
	return time.Duration(random() * float64(min(longestMove, left/3)))
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

// unlock releases mu and tells what has happened meanwhile: while it is held,
// nothing waits for a disk or a terminal.
func (b *Broker) unlock() {
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
	b.telling.Lock()
	defer b.telling.Unlock()
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

// wake makes the schedule look again.
func (b *Broker) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}
