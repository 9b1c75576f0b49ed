// Package tokens exchanges credentials for tokens: if a rule wants a token and not
// the credential itself, it gets one, by OAuth2's client credentials from a token
// endpoint or as a JSON Web Token that Vault signs, and keeps it until it expires.
//
// It keeps three promises: a token is never served past its own end, nor past the end
// of the client's credentials that it was got with; a token that was got with
// credentials that have been replaced is not served; an endpoint that is slow or down
// delays only the requests that need its token.
package tokens

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
)

const (
	maxEntries   = 1024             // credentials at a time; more are refused
	longestToken = 24 * time.Hour   // that a token is kept, whatever its endpoint answers
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
	// signed as in ref.Token. nil refuses references that need it.
	Sign func(ctx context.Context, ref authz.CredentialRef, claims map[string]any) (authz.Secret, error)
	// Dial connects to token endpoints. Required: it is what keeps the sidecar's
	// own listeners and its Vault out of reach.
	Dial Dialer
	// Proxy returns the proxy that a token endpoint is reached through. nil reaches
	// it directly, whatever the environment has.
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

// Source gets tokens, and passes on credentials that are not exchanged. It implements
// [authz.CredentialSource].
type Source struct {
	cfg       Config
	exchanges singleflight.Group // by entry.key
	running   sync.WaitGroup     // the exchanges; added to under mu while not closed

	mu         sync.RWMutex
	closed     bool
	entries    map[credentialName][]*entry
	size       int
	made       uint64                       // how many entries were made
	generation uint64                       // of the token replaced last, over all
	inForce    map[authz.CredentialRef]bool // of the last Retain
	retained   atomic.Uint64                // how often Retain was called; written under mu
}

// credentialName identifies a credential. A reload can leave two with one name, until
// the old one is dropped.
type credentialName struct{ grant, credential string }

// entry is one token. Its fields are guarded by Source.mu.
type entry struct {
	ref       authz.CredentialRef
	key       string             // of the exchange; another for each entry
	token     *token             // nil without one
	cancel    context.CancelFunc // of the exchange under way; nil without one
	dropped   bool               // no longer in force
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

// outcome is what an exchange returns to all that wait for it. It is returned with an
// error too.
type outcome struct {
	token  *token
	client uint64 // the generation of the client's credentials that it used
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

// Credential returns a token that is valid now, getting it if necessary, as field
// access_token or jwt; and the leased credential if ref wants no token. Its
// error holds no secret and nothing that an endpoint wrote, and has a method
// RetryAfter if trying again may help.
func (s *Source) Credential(ctx context.Context, ref authz.CredentialRef) (authz.Credential, error) {
	retained := s.retained.Load()
	var client authz.Credential
	if ref.Token.Kind != authz.TokenJWT { // Vault signs these with a key that stays there
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
		exchange, t, err := s.joinExchange(ctx, ref, client, retained)
		switch {
		case err != nil:
			return authz.Credential{}, err
		case t != nil:
			return t.credential(&client), nil
		}
		select {
		case result := <-exchange:
			got, _ := result.Val.(outcome)
			switch {
			case got.client < client.Generation: // it used credentials that have been replaced
			case result.Err != nil:
				return authz.Credential{}, result.Err
			default:
				return got.token.credential(&client), nil
			}
		case <-ctx.Done():
			return authz.Credential{}, fmt.Errorf("wait for a token: %w", ctx.Err())
		}
	}
}

// Newer returns a later value of a credential that is not exchanged, from a source that is
// an [authz.RenewingSource].
func (s *Source) Newer(ctx context.Context, ref authz.CredentialRef, generation uint64) (authz.Credential, error) {
	source, ok := s.cfg.Source.(authz.RenewingSource)
	if !ok || ref.Token.Kind != "" {
		return authz.Credential{}, errors.New("a token has no newer value before it is due")
	}
	return source.Newer(ctx, ref, generation)
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

// Refused reports that an upstream did not accept the value of a generation, which
// the authorization server may have revoked, and reports whether it is a
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

// usable reports whether a token may be served to a holder of the client's credentials.
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

// due reports whether the next caller exchanges for a new token before the old one's end.
func (e *entry) due(now time.Time) bool {
	return e.cancel == nil && hasPassed(now, e.token.refreshAt) && hasPassed(now, e.retryAt)
}

// joinExchange returns the token that may be served, or the exchange that gets one,
// starting it unless one is under way, or an earlier failure while it is too early to
// try again. retained is the count of calls of Retain when the client's credentials
// were asked for: a reference that was dropped since is not exchanged.
func (s *Source) joinExchange(ctx context.Context, ref authz.CredentialRef, client authz.Credential, retained uint64) (<-chan singleflight.Result, *token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if s.closed {
		return nil, nil, errStopping
	}
	if s.retained.Load() != retained && !s.inForce[ref] {
		return nil, nil, errNotInForce
	}
	e, err := s.entryOf(ref)
	switch {
	case err != nil:
		return nil, nil, err
	case e.token.usable(now, &client):
		if e.due(now) {
			s.startExchange(ctx, e, client)
		}
		return nil, e.token, nil
	case e.cancel == nil && e.err != nil && e.client >= client.Generation && !hasPassed(now, e.retryAt):
		return nil, nil, &cachedError{e.err, e.retryAt.Sub(now)}
	}
	return s.startExchange(ctx, e, client), nil, nil
}

// entryOf returns the entry of a credential, making it if necessary. The caller holds
// mu.
func (s *Source) entryOf(ref authz.CredentialRef) (*entry, error) {
	if e := s.find(&ref); e != nil {
		return e, nil
	}
	if s.size >= maxEntries {
		return nil, fmt.Errorf("more than %d tokens are in use", maxEntries)
	}
	s.made++
	e := &entry{ref: ref, key: strconv.FormatUint(s.made, 10)}
	name := credentialName{ref.Grant, ref.Name}
	s.entries[name] = append(s.entries[name], e)
	s.size++
	return e, nil
}

// startExchange begins an exchange, or joins the one under way, and returns where its
// [outcome] arrives. The caller holds mu, and the source is not closed. An exchange is
// finished although its caller gives up: others wait for it.
func (s *Source) startExchange(ctx context.Context, e *entry, client authz.Credential) <-chan singleflight.Result {
	if e.cancel == nil {
		ctx, e.cancel = context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		s.running.Add(1)
	}
	cancel := e.cancel
	return s.exchanges.DoChan(e.key, func() (any, error) {
		defer s.running.Done()
		defer cancel()
		issued := s.cfg.Now()
		value, life, err := s.fetchToken(ctx, e.ref, client, issued)
		t, err := s.finishExchange(e, client.Generation, issued, value, life, err)
		return outcome{token: t, client: client.Generation}, err
	})
}

// fetchToken gets a token and returns how long it lives.
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
		err = fmt.Errorf("unknown kind %q of token", ref.Token.Kind)
	}
	if err != nil {
		return authz.Secret{}, 0, fmt.Errorf("get token %s of grant %s: %w", ref.Name, ref.Grant, err)
	}
	return value, min(life, longest), nil
}

// finishExchange puts the new token in force, or records the failure.
func (s *Source) finishExchange(e *entry, client uint64, issued time.Time, value authz.Secret, life time.Duration, err error) (*token, error) {
	t, first, err := s.settleExchange(e, client, issued, value, life, err)
	switch {
	case err == nil:
		s.record(e.ref, t)
	case first:
		s.cfg.Logger.Warn("token exchange failed", zap.String("grant", e.ref.Grant), zap.String("credential", e.ref.Name), zap.Error(err))
	}
	return t, err
}

// settleExchange applies the outcome of an exchange to its entry. first is set for the
// first failure in a row.
func (s *Source) settleExchange(
	e *entry, client uint64, issued time.Time, value authz.Secret, life time.Duration, err error,
) (t *token, first bool, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.cancel = nil
	s.exchanges.Forget(e.key) // the next exchange does not join this one, which has ended
	if e.dropped || s.closed {
		return nil, false, errNotInForce
	}
	if err == nil {
		return s.install(e, client, issued, value, life), false, nil
	}
	e.failures++
	wait := retryDelay(e.failures)
	if asked, ok := errors.AsType[interface {
		error
		RetryAfter() time.Duration
	}](err); ok {
		wait = max(wait, min(asked.RetryAfter(), maxWait))
	}
	e.err, e.client, e.retryAt = err, client, s.cfg.Now().Add(wait)
	return nil, e.failures == 1, &cachedError{err, wait}
}

// install puts a token in force. An endpoint that answers with the token that is
// in force has replaced nothing. The caller holds mu.
func (s *Source) install(e *entry, client uint64, issued time.Time, value authz.Secret, life time.Duration) *token {
	served := life - min(expiryMargin, life/10)
	t := &token{
		value: value, client: client, notAfter: issued.Add(served),
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
		s.cfg.Logger.Error("token audit record not written", zap.Error(err))
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
			if e.cancel != nil {
				e.cancel()
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
	s.running.Wait()
	return nil
}
