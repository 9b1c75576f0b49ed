// Package vault leases credentials: it logs in to HashiCorp Vault for one plugin,
// fetches the credentials that the plugin's rules need, keeps them valid while they
// are needed, and revokes them when they are not.
//
// It keeps three promises, the first before the others: a credential is never served
// past the end of its lease or of the token that holds it; every lease that Vault
// makes for the plugin is tracked until Vault has confirmed that it is gone; leased
// credentials are served while Vault is away.
//
// The HTTP client is the package's own and not api.Client with a LifetimeWatcher, for
// three reasons. Deadlines are kept on two clocks, the wall clock and the monotonic
// one, since the machine may be suspended and the clock be set; a LifetimeWatcher
// sleeps on one. A request whose answer is late may have made a lease, so that no
// request is repeated once Vault may have acted on it, and the lease of a late answer
// is revoked; api.Client repeats requests after errors of the server, and its
// transport those on reused connections that break. And api.NewClient reads the
// VAULT_* environment, whatever configuration it is given. Types and header names are
// those of the package api.
//
// The files are, by part:
//
//   - broker.go, scheduler.go, status.go: [Broker], which puts the parts together
//   - login.go, auth.go, session.go, retired.go, refusal.go, loginlog.go, unwrap.go,
//     checklogin.go: the login and its token
//   - leases.go, fetch.go, secret.go, lease.go, term.go: the credentials in use
//   - revocations.go, leasefile.go, irrevocable.go: the leases that are to go
//   - sign.go: signatures of the transit engine
//   - client.go, authorities.go: requests to Vault
//   - clock.go, outbox.go, ratelimit.go: shared by the parts
package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Config is what a Broker is made of.
type Config struct {
	// Plugin is the one plugin whose credentials are leased. Required: each plugin has a
	// token of its own, so that revoking it ends what that plugin holds and nothing else,
	// and Vault's audit log shows which plugin asked.
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
	// Auth is how to log in. Required.
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
	// Changed is called when a credential in use was lost, so that live accesses are
	// decided again. It must not block. nil is not called.
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
//
// It has three parts, each with a lock of its own: the authenticator logs in, the
// leaseManager holds the credentials in use, and the revocationQueue revokes what is
// not used any more. Locks are taken in this order, and any may be left out:
//
//  1. authenticator.loginSem, which is held while Vault is asked
//  2. leaseManager.mu
//  3. revocationQueue.mu
//  4. authenticator.mu
//  5. one of leaseFile.writing, outbox.delivering, mintLimits.mu, requestErrors.mu
//     and keyVersions.mu; leaseFile.mu; outbox.mu
//
// No lock but loginSem is held while Vault is asked, the disk is written or a
// callback runs: parts add records, log lines and lost credentials to the outbox,
// which is flushed once their locks are released.
type Broker struct {
	cfg    Config
	client *client
	clock  *clock
	wakeup chan struct{} // holds one: the schedule has changed
	tasks  *tasks
	outbox *outbox
	errors *requestErrors
	limits *mintLimits
	store  *leaseFile
	keys   keyVersions // of the transit engine

	login       *authenticator
	leases      *leaseManager
	revocations *revocationQueue
}

// shared is what each part uses.
type shared struct {
	client  *client
	clock   *clock
	outbox  *outbox
	errors  *requestErrors
	tasks   *tasks
	timeout time.Duration // of one request to Vault
	log     *zap.Logger
	wakeUp  func() // has the schedule looked at again; does not block
}

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
	b, err := assemble(cfg)
	if err != nil {
		return nil, fmt.Errorf("make broker: %w", err)
	}
	left, err := b.store.load()
	if err != nil {
		return nil, fmt.Errorf("make broker: %w", err)
	}
	b.revocations.load(left)
	b.outbox.flush()
	return b, nil
}

// assemble makes the parts of a broker.
func assemble(cfg Config) (*Broker, error) {
	b := &Broker{cfg: cfg, clock: newClock(cfg.Now), wakeup: make(chan struct{}, 1), errors: newRequestErrors(cfg.Now)}
	var err error
	if b.client, err = newClient(&b.cfg, b.errors.count); err != nil {
		return nil, err
	}
	b.tasks = &tasks{timeout: callsInFlight * cfg.Timeout}
	b.outbox = &outbox{cfg: outboxConfig{plugin: cfg.Plugin, recorder: cfg.Recorder, changed: cfg.Changed, log: cfg.Logger, now: cfg.Now}}
	b.limits = newMintLimits(b.clock, cfg.MintsPerMinute, callsInFlight*cfg.Timeout)
	b.store = newLeaseFile(cfg.StateFile, b.outbox, cfg.Logger)
	parts := shared{
		client: b.client, clock: b.clock, outbox: b.outbox, errors: b.errors, tasks: b.tasks,
		timeout: cfg.Timeout, log: cfg.Logger, wakeUp: b.wakeUp,
	}
	b.login = newAuthenticator(loginConfig{
		shared: parts, auth: &b.cfg.Auth, store: b.store,
		replaced: func(now dualTime) { b.leases.migrate(now) },
		ended:    func(s *session, why string) { b.leases.loseSession(s, why) },
	})
	b.revocations = newRevocationQueue(revocationConfig{shared: parts, login: b.login, store: b.store})
	b.leases = newLeaseManager(leaseConfig{
		shared: parts, plugin: cfg.Plugin, login: b.login, revocations: b.revocations, store: b.store, limits: b.limits,
		refresh: cfg.Refresh, stale: cfg.Stale, fetched: cfg.Fetched,
	})
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

// Credential returns a credential that is valid now, fetching it if none is held. Its error
// holds no secret and has a method RetryAfter if trying again may help.
func (b *Broker) Credential(ctx context.Context, ref authz.CredentialRef) (authz.Credential, error) {
	return b.leases.get(ctx, ref)
}

// Newer returns a value of a later generation than one whose login an upstream has refused,
// for [authz.RenewingSource]: its password may have been replaced since it was fetched. A
// value without a lease is read again, and a lease is replaced, one that Vault still has at
// most every ten minutes, since its user may have been removed where Vault does not see it.
// Vault is asked at most every five seconds about one credential.
func (b *Broker) Newer(ctx context.Context, ref authz.CredentialRef, generation uint64) (authz.Credential, error) {
	return b.leases.newer(ctx, ref, generation)
}

// Refused reports that an upstream answered the value of a generation with status 401 or
// 403: it may have been revoked without the broker. Run then asks Vault, at most every five
// seconds about one credential however often the plugin is refused: a value without a lease
// is read again, and a lease that Vault no longer has is lost, so that the next request has
// a new one made. A lease that Vault has stays after a 403. After a 401 it is replaced, at
// most every ten minutes, since its user may have been removed where Vault does not see it.
// A certificate stays, since Vault is not who ends it. It does not block.
func (b *Broker) Refused(grant, credential string, generation uint64, status int) {
	b.leases.recheckSoon(grant, credential, generation, status)
}

// Login logs in to Vault, once, unless it is logged in already. Its error is
// for the operator and holds no secret; Run goes on trying.
func (b *Broker) Login(ctx context.Context) error {
	if b.leases.isClosed() {
		return errStopping
	}
	return b.login.logInOnce(ctx)
}

// Retain sets which credentials are in force. The leases of all others are revoked, and
// what is being fetched for them too; it returns when Vault has confirmed that, or ctx
// ends. It is called for every generation: what is fetched for a credential that no call
// has named is revoked soon.
func (b *Broker) Retain(ctx context.Context, refs []authz.CredentialRef) Report {
	inForce := make(map[authz.CredentialRef]bool, len(refs))
	for _, ref := range refs {
		inForce[ref] = true
	}
	leases, fetches := b.leases.retain(inForce)
	report := b.revocations.revokeNow(ctx, leases)
	if late := waitFetches(ctx, fetches); len(late) > 0 {
		report = report.plus(b.revocations.revokeNow(ctx, late))
	}
	return report
}

// Revoke revokes everything that the plugin has, for an incident: all leases, and the
// tokens that hold them. The broker then logs in again, and fetches credentials on demand.
// It returns when Vault has confirmed, or ctx ends. Only Run tries again what was not
// confirmed.
func (b *Broker) Revoke(ctx context.Context) Report {
	b.leases.keepNothing()
	report, err := b.revokeAll(ctx)
	report.Err = errors.Join(report.Err, err)
	b.wakeUp()
	return report
}

// revokeAll revokes every lease and then the tokens, which takes what could
// not be revoked by itself and what was lost track of. The error is of tokens:
// those that it names are queued to be revoked again.
func (b *Broker) revokeAll(ctx context.Context) (Report, error) {
	fetches := b.leases.dropAll()
	leases := b.revocations.allUrgent()
	report := b.revocations.revokeNow(ctx, leases)
	cancelFetches(ctx, fetches)
	if late := waitFetches(ctx, fetches); len(late) > 0 {
		leases = append(leases, late...)
		report = report.plus(b.revocations.revokeNow(ctx, late))
	}
	if report.Err == nil {
		b.warnIrrevocable(ctx)
	}
	revoked, err := b.login.revokeTokens(ctx)
	if revoked > 0 && report.Confirmed < report.Leases {
		report = b.revocations.confirm(ctx, leases)
	}
	return report, err
}

// Report is the outcome of revoking leases.
type Report struct {
	// Leases is how many were to be revoked. Values without a lease, as in KV, are not
	// counted.
	Leases int
	// Confirmed is how many Vault has confirmed to be gone.
	Confirmed int
	// Unconfirmed names the others, masked. Run goes on trying.
	Unconfirmed []string
	// Err is why, nil when all are confirmed.
	Err error
}

func (r Report) plus(o Report) Report {
	return Report{
		Leases: r.Leases + o.Leases, Confirmed: r.Confirmed + o.Confirmed,
		Unconfirmed: append(r.Unconfirmed, o.Unconfirmed...), Err: errors.Join(r.Err, o.Err),
	}
}
