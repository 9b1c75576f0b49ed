// Package tokens exchanges: where a rule wants a token and not the credential
// itself, it gets one, by OAuth2's client credentials from a token endpoint or
// as a JSON Web Token that Vault signs, and keeps it as long as it may be used.
//
// Its promises: a token is never served past its own end, nor past the end of
// the client's credentials that it was got with; what was got with credentials
// that have been replaced is not served; an endpoint that is slow or down holds
// up nobody but those that need its token.
package tokens

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
)

const (
	maxEntries   = 1024             // credentials at a time; more are refused
	longestToken = 24 * time.Hour   // that a token is kept, whatever its endpoint says
	defaultLife  = 5 * time.Minute  // that a token is kept whose endpoint does not say how long it lives
	expiryMargin = 10 * time.Second // before its end, or a tenth of its life if that is less, a token is not served any more
	maxWait      = time.Minute      // after failures in a row

	replaceInterval = time.Minute // at most, what an upstream has refused is replaced
)

// Config is what a Source is made of.
type Config struct {
	// Source leases what tokens are got with, and whatever is no token.
	// Required.
	Source authz.CredentialSource
	// Sign returns a JSON Web Token of claims that the key at ref.Path has
	// signed as ref.Token says. nil refuses those that need it.
	Sign func(ctx context.Context, ref authz.CredentialRef, claims map[string]any) (authz.Secret, error)
	// Dial connects to token endpoints. Required: it is what keeps the sidecar's
	// own listeners and its Vault out of reach.
	Dial Dialer
	// Proxy returns the proxy that a token endpoint is reached through. nil is
	// none, whatever the environment says.
	Proxy func(endpoint *url.URL) (*url.URL, error)
	// Timeout bounds one exchange. 0 is 10 s.
	Timeout time.Duration
	// Recorder gets a record of kind credential for each token. nil records
	// nothing.
	Recorder authz.Recorder
	// Logger is for operators. nil logs nothing.
	Logger *zap.Logger
	// Now is the wall clock with a monotonic reading. nil is time.Now.
	Now func() time.Time
}

// Source gets tokens, and hands on what is none. It implements
// [authz.CredentialSource].
type Source struct {
	cfg     Config
	flights sync.WaitGroup // Go under mu while not closed

	mu         sync.RWMutex
	closed     bool
	entries    map[credentialName][]*entry
	size       int
	generation uint64                       // of the token replaced last, over all
	inForce    map[authz.CredentialRef]bool // as the last Retain said
	retained   atomic.Uint64                // how often Retain was called; written under mu
}

// credentialName is what a credential is called. A reload can leave two that are called
// the same, until the old one is let go.
type credentialName struct{ grant, credential string }

// entry is one token. Its fields are guarded by Source.mu.
type entry struct {
	ref       authz.CredentialRef
	token     *token // nil when there is none
	flight    *flight
	dropped   bool // no longer in force
	failures  int
	retryAt   time.Time
	replaceAt time.Time // Refused makes no earlier token due before
	client    uint64    // the generation of the client's credentials that failed
	err       error
}

// token is one that is served. It does not change.
type token struct {
	value      authz.Secret
	fields     map[string]authz.Secret
	generation uint64
	client     uint64 // the generation of the client's credentials
	refreshAt  time.Time
	notAfter   time.Time
}

// flight is one exchange in progress, which all that need it wait for.
type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
	client authz.Credential
	token  *token
	err    error
}

// cachedError is a failure that answers for now.
type cachedError struct {
	err   error
	retry time.Duration
}

func (e *cachedError) Error() string             { return e.err.Error() }
func (e *cachedError) Unwrap() error             { return e.err }
func (e *cachedError) RetryAfter() time.Duration { return e.retry }

var (
	errNotInForce = errors.New("the credential is no longer in force")
	errStopping   = errors.New("the sidecar is shutting down")
)

// New returns a source. It starts nothing.
func New(cfg Config) (*Source, error) {
	if cfg.Source == nil || cfg.Dial == nil {
		return nil, errors.New("make token source: a credential source and a dialer are required")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Source{cfg: cfg, entries: make(map[credentialName][]*entry)}, nil
}

// Credential returns a token that is valid now, getting it if there is none, as
// field access_token or jwt; and what ref leases, where it wants no token. Its
// error holds no secret and nothing that an endpoint wrote, and has a method
// RetryAfter if trying again may help.
func (s *Source) Credential(ctx context.Context, ref authz.CredentialRef) (authz.Credential, error) {
	retained := s.retained.Load()
	var client authz.Credential
	if ref.Token.Kind != authz.TokenJWT { // which Vault signs with a key that it keeps
		var err error
		client, err = s.cfg.Source.Credential(ctx, ref)
		if err != nil || ref.Token.Kind == "" {
			return client, err
		}
	}
	if c, ok := s.cached(&ref, &client); ok {
		return c, nil
	}
	for {
		f, err := s.board(ctx, ref, client, retained)
		if err != nil {
			return authz.Credential{}, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return authz.Credential{}, fmt.Errorf("wait for a token: %w", ctx.Err())
		}
		if f.client.Generation < client.Generation {
			continue // it was got with what has been replaced
		}
		if f.err != nil {
			return authz.Credential{}, f.err
		}
		return f.token.credential(&client), nil
	}
}

func (s *Source) cached(ref *authz.CredentialRef, client *authz.Credential) (authz.Credential, bool) {
	now := s.cfg.Now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.find(ref)
	if e == nil || !e.token.usable(now, client) || e.due(now) {
		return authz.Credential{}, false
	}
	return e.token.credential(client), true
}

// Refused says that an upstream did not accept the value of a generation, which
// the authorization server may have taken back, and reports whether it is a
// token of this source. The next request then has a new one got, at most one a
// minute however often the plugin is refused; the old one is served until then,
// since a refusal proves nothing. It does not block.
func (s *Source) Refused(grant, credential string, generation uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.entries[credentialName{grant, credential}]
	for _, e := range all {
		now := s.cfg.Now()
		if e.token == nil || e.token.generation != generation || !hasPassed(now, e.replaceAt) {
			continue
		}
		e.replaceAt = now.Add(replaceInterval)
		doubted := *e.token
		doubted.refreshAt = now
		e.token = &doubted
	}
	return len(all) > 0
}

// find returns the entry of a credential. The caller holds mu, for reading at
// least.
func (s *Source) find(ref *authz.CredentialRef) *entry {
	for _, e := range s.entries[credentialName{ref.Grant, ref.Name}] {
		if e.ref == *ref {
			return e
		}
	}
	return nil
}

// usable reports whether a token may be served to who has the client's
// credentials.
func (t *token) usable(now time.Time, client *authz.Credential) bool {
	return t != nil && t.client >= client.Generation && !hasPassed(now, t.notAfter)
}

// hasPassed reports whether t has come, by the wall clock or by the monotonic one:
// the one stands still while the machine is suspended, the other is set.
func hasPassed(now, t time.Time) bool {
	return !now.Before(t) || now.UnixNano() >= t.UnixNano()
}

// credential returns the token as a credential, which ends with the client's.
func (t *token) credential(client *authz.Credential) authz.Credential {
	c := authz.Credential{Fields: t.fields, Generation: t.generation, Lease: client.Lease, NotAfter: t.notAfter, Uses: client.Uses}
	if !client.NotAfter.IsZero() && client.NotAfter.Before(c.NotAfter) {
		c.NotAfter = client.NotAfter
	}
	return c
}

// due reports whether a new token is to be got ahead of the old one's end, by
// whoever asks next.
func (e *entry) due(now time.Time) bool {
	return e.flight == nil && hasPassed(now, e.token.refreshAt) && hasPassed(now, e.retryAt)
}

// board returns the flight that gets the token, starting it if there is none,
// or the failure that answers for it for now. One that has landed stands for a
// token that is there. retained is what it was when the client's credentials
// were asked for: what was taken away since is not got with them.
func (s *Source) board(ctx context.Context, ref authz.CredentialRef, client authz.Credential, retained uint64) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if s.closed {
		return nil, errStopping
	}
	if s.retained.Load() != retained && !s.inForce[ref] {
		return nil, errNotInForce
	}
	e := s.find(&ref)
	if e == nil {
		if s.size >= maxEntries {
			return nil, fmt.Errorf("more than %d tokens are in use", maxEntries)
		}
		e = &entry{ref: ref}
		key := credentialName{ref.Grant, ref.Name}
		s.entries[key] = append(s.entries[key], e)
		s.size++
	}
	if e.token.usable(now, &client) {
		if e.due(now) {
			s.start(ctx, e, client)
		}
		landed := &flight{done: make(chan struct{}), client: client, token: e.token}
		close(landed.done)
		return landed, nil
	}
	if e.flight != nil {
		return e.flight, nil
	}
	if e.err != nil && e.client >= client.Generation && !hasPassed(now, e.retryAt) {
		return nil, &cachedError{e.err, e.retryAt.Sub(now)}
	}
	return s.start(ctx, e, client), nil
}

// start begins an exchange. The caller holds mu, the entry has no flight, and
// the source is not closed. What is begun is finished although the caller gives
// up: others wait for it.
func (s *Source) start(ctx context.Context, e *entry, client authz.Credential) *flight {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	f := &flight{done: make(chan struct{}), cancel: cancel, client: client}
	e.flight = f
	s.flights.Go(func() {
		defer cancel()
		issued := s.cfg.Now()
		value, life, err := s.fetchToken(ctx, e.ref, client, issued)
		s.land(e, f, issued, value, life, err)
	})
	return f
}

// fetchToken gets a token and says how long it lives.
func (s *Source) fetchToken(ctx context.Context, ref authz.CredentialRef, client authz.Credential, now time.Time) (authz.Secret, time.Duration, error) {
	longest := longestToken
	if ref.Lifetime > 0 {
		longest = min(longest, ref.Lifetime)
	}
	var value authz.Secret
	var life time.Duration
	var err error
	switch ref.Token.Kind {
	case authz.TokenOAuth2:
		value, life, err = s.oauth2Token(ctx, ref.Token, client.Fields)
	case authz.TokenJWT:
		life = min(ref.Token.Lifetime, longest)
		value, err = s.signedToken(ctx, ref, now, life)
	default:
		err = fmt.Errorf("kind %q is none of those that are known", ref.Token.Kind)
	}
	if err != nil {
		return authz.Secret{}, 0, fmt.Errorf("get token %s of grant %s: %w", ref.Name, ref.Grant, err)
	}
	return value, min(life, longest), nil
}

// land ends a flight: it puts the new token in force, or notes the failure.
func (s *Source) land(e *entry, f *flight, issued time.Time, value authz.Secret, life time.Duration, err error) {
	s.mu.Lock()
	defer close(f.done)
	e.flight = nil
	now := s.cfg.Now()
	if e.dropped || s.closed {
		f.err = errNotInForce
		s.mu.Unlock()
		return
	}
	if err == nil {
		f.token = s.install(e, f, issued, value, life)
		s.mu.Unlock()
		s.record(e.ref, f.token)
		return
	}
	e.failures++
	wait := retryDelay(e.failures)
	var asked interface{ RetryAfter() time.Duration }
	if errors.As(err, &asked) {
		wait = max(wait, min(asked.RetryAfter(), maxWait))
	}
	e.err, e.client, e.retryAt = err, f.client.Generation, now.Add(wait)
	first := e.failures == 1
	s.mu.Unlock()
	f.err = &cachedError{err, wait}
	if first {
		s.cfg.Logger.Warn("get token", zap.String("grant", e.ref.Grant), zap.String("credential", e.ref.Name), zap.Error(err))
	}
}

// install puts a token in force. An endpoint that answers with the one that is
// there has replaced nothing. The caller holds mu.
func (s *Source) install(e *entry, f *flight, issued time.Time, value authz.Secret, life time.Duration) *token {
	served := life - min(expiryMargin, life/10)
	t := &token{
		value: value, client: f.client.Generation, notAfter: issued.Add(served),
		refreshAt: issued.Add(served * 2 / 3).Add(-rand.N(served/10 + 1)), //nolint:gosec // spreads load
	}
	if old := e.token; old != nil && old.value.Equal(value) {
		t.value, t.fields, t.generation = old.value, old.fields, old.generation
	} else {
		s.generation++
		t.fields, t.generation = map[string]authz.Secret{fieldName(e.ref.Token.Kind): value}, s.generation
	}
	e.token, e.failures, e.err, e.retryAt = t, 0, nil, time.Time{}
	return t
}

// fieldName is what a token is called in a template.
func fieldName(kind authz.TokenKind) string {
	if kind == authz.TokenJWT {
		return "jwt"
	}
	return "access_token"
}

// retryDelay is how long to wait after a number of failures in a row: half a second,
// doubled for each, less at most a fifth at random.
func retryDelay(failures int) time.Duration {
	backoff := ratelimit.Backoff{Shortest: time.Second / 4, Longest: maxWait}
	return backoff.After(failures, 1-rand.Float64()/5) //nolint:gosec // spreads load
}

func (s *Source) record(ref authz.CredentialRef, t *token) {
	if s.cfg.Recorder == nil {
		return
	}
	err := s.cfg.Recorder.Record(&authz.Record{
		Time: s.cfg.Now(), Kind: authz.KindCredential, Plugin: ref.Plugin, Grant: ref.Grant, Credential: ref.Name,
		Reason: "leased", Detail: fmt.Sprintf("%s token until %s", ref.Token.Kind, t.notAfter.UTC().Format(time.RFC3339)), UID: -1,
	})
	if err != nil {
		s.cfg.Logger.Error("write audit record of a token", zap.Error(err))
	}
}

// Retain forgets every token but those of refs, and gives up getting them. It
// waits for nothing.
func (s *Source) Retain(refs []authz.CredentialRef) {
	keep := make(map[authz.CredentialRef]bool, len(refs))
	for _, ref := range refs {
		keep[ref] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inForce = keep
	s.retained.Add(1)
	for key, all := range s.entries {
		var kept []*entry
		for _, e := range all {
			if keep[e.ref] {
				kept = append(kept, e)
				continue
			}
			e.dropped, e.token = true, nil
			s.size--
			if e.flight != nil {
				e.flight.cancel()
			}
		}
		if s.entries[key] = kept; kept == nil {
			delete(s.entries, key)
		}
	}
}

// Close forgets everything, ends what is being got and waits for that. From
// then on no token is served.
func (s *Source) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Retain(nil)
	s.flights.Wait()
	return nil
}
