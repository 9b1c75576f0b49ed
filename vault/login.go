package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// loginConfig is what an authenticator is made of.
type loginConfig struct {
	shared

	auth *Auth
	// store holds the hash of the wrapping token that was unwrapped last.
	store *leaseFile
	// replaced is called after another token was put in force, and ended after
	// Vault refused one. Both are called without authenticator.mu.
	replaced func(now dualTime)
	ended    func(s *session, why string)
}

// authenticator logs in to Vault, renews the token, replaces it, and revokes the
// replaced ones. Its other methods than Login are called by the other parts.
type authenticator struct {
	cfg loginConfig

	// loginSem holds one: the caller that logs in or renews the token. It is
	// acquired before every lock of the broker.
	loginSem chan struct{}
	wrapped  wrapped // guarded by loginSem

	// mu comes after leaseManager.mu and revocationQueue.mu, see [Broker].
	mu            sync.RWMutex
	session       *session
	retiring      []*session // replaced; revoked when no lease needs them
	maintaining   bool
	loginAt       dualTime // not before
	loginErr      error
	loginFailures int
	loginLog      loginLog
	refusal       *refusal // nil unless Vault has refused the last login
	loginFiles    string   // the fingerprint of the files of the last login
	rotateAt      dualTime // not before
}

func newAuthenticator(cfg loginConfig) *authenticator {
	return &authenticator{cfg: cfg, loginSem: make(chan struct{}, 1)}
}

func (a *authenticator) now() dualTime { return a.cfg.clock.now() }

// current returns the session in force, nil for none.
func (a *authenticator) current() *session {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.session
}

// logInOnce logs in unless it is logged in already.
func (a *authenticator) logInOnce(ctx context.Context) error {
	a.checkFilesNow()
	_, err := a.authenticate(ctx, 0)
	return err
}

// authenticate returns a session that is fit for a lease of length need,
// renewing the token or logging in for it. One caller at a time talks to Vault
// and the others wait for what comes of it.
func (a *authenticator) authenticate(ctx context.Context, need time.Duration) (*session, error) {
	if s, err := a.readySession(need); s != nil || err != nil {
		return s, err
	}
	if err := a.acquireLogin(ctx); err != nil {
		return nil, err
	}
	defer a.releaseLogin()
	if s, err := a.readySession(need); s != nil || err != nil {
		return s, err
	}
	return a.renewOrLogin(ctx, need)
}

func (a *authenticator) acquireLogin(ctx context.Context) error {
	select {
	case a.loginSem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for login to Vault: %w", ctx.Err())
	}
}

func (a *authenticator) releaseLogin() { <-a.loginSem }

// readySession returns the session if it can be used as it is, or an error while it is too
// early to log in again.
func (a *authenticator) readySession(need time.Duration) (*session, error) {
	now := a.now()
	a.mu.RLock()
	defer a.mu.RUnlock()
	s, held := a.session, now.before(a.loginAt)
	switch {
	case s.usable(now) && (held || (s.outlives(now, need) && !a.mustRotate(now))):
		return s, nil
	case held:
		return nil, &cachedError{err: a.loginErr, retry: now.until(a.loginAt)}
	}
	return nil, nil
}

// mustRotate reports whether the session is to be replaced because Vault may hold an
// untracked lease of it. The caller holds mu.
func (a *authenticator) mustRotate(now dualTime) bool {
	return a.session != nil && a.session.untracked && a.session.ours && !now.before(a.rotateAt) && len(a.retiring) < maxRetiring
}

// renewOrLogin renews the token or logs in. The caller holds loginSem.
func (a *authenticator) renewOrLogin(ctx context.Context, need time.Duration) (*session, error) {
	now := a.now()
	a.mu.RLock()
	s := a.session
	usable := s.usable(now) && !a.mustRotate(now)
	a.mu.RUnlock()
	if usable && !s.ours && a.sameToken(s) && s.outlives(a.now(), need) {
		a.scheduleReread(s) // it was only to see whether the file holds another token
		return s, nil
	}
	if usable && a.sameToken(s) && s.life.Load().renewable {
		err := a.renewToken(ctx, s)
		switch {
		case err == nil && s.outlives(a.now(), need):
			return s, nil
		case isUnknownToken(err):
			a.dropSession(s, tokenGone)
		case isTransient(err) && statusOf(err) != http.StatusInternalServerError: // that one may be of the login method
			return a.loginFailed(s, err)
		}
	}
	files, _ := a.cfg.auth.fingerprint() // before they are read to log in, so that a later change is noticed
	a.mu.Lock()
	a.loginFiles = files
	a.mu.Unlock()
	fresh, err := a.logIn(ctx)
	if err != nil {
		return a.loginFailed(s, err)
	}
	return a.useSession(fresh), nil
}

func (a *authenticator) scheduleReread(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	life := *s.life.Load()
	life.renewAt = earliest(life.renewDue, a.now().add(tokenRereadInterval))
	s.life.Store(&life)
}

// sameToken reports whether the token file still holds the session's token.
func (a *authenticator) sameToken(s *session) bool {
	if s.ours {
		return true
	}
	token, err := readSecret(a.cfg.auth.TokenFile)
	return err != nil || token.Equal(s.token)
}

// loginFailed records a failed login or renewal and returns the session if it can still be
// used.
func (a *authenticator) loginFailed(s *session, err error) (*session, error) {
	defer a.cfg.outbox.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	a.loginFailures++
	var wait time.Duration
	if isRefusal(err) {
		wait, err = a.recordRefusal(err, now)
	} else {
		wait = retryDelay(a.loginFailures, err)
		a.loginAt = now.add(wait)
	}
	a.loginErr = err
	a.cfg.errors.note(err)
	a.logLogin(err, now)
	if s.usable(now) {
		return s, nil
	}
	return nil, &cachedError{err: err, retry: wait}
}

// useSession puts a fresh session in force and returns it. The credentials that
// the former one holds move over.
func (a *authenticator) useSession(fresh *session) *session {
	now := a.now()
	used, replaced := a.replaceSession(fresh, now)
	if replaced {
		a.cfg.replaced(now)
	}
	return used
}

// replaceSession returns the session in force from now on, and whether it replaced
// another one.
func (a *authenticator) replaceSession(fresh *session, now dualTime) (used *session, replaced bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.session
	a.loginFailures, a.loginErr, a.loginAt, a.refusal = 0, nil, dualTime{}, nil
	a.loginLog = loginLog{}
	if old != nil && old.token.Equal(fresh.token) {
		// The same token file: only its times are new. It cannot be bettered
		// by asking at once again.
		old.life.Store(fresh.life.Load())
		a.loginAt = now.add(tokenRereadInterval / 2)
		return old, false
	}
	a.session = fresh
	if old != nil {
		a.rotateAt = now.add(rotateInterval)
		old.replaced = now
		a.retiring = append(a.retiring, old)
	}
	a.cfg.wakeUp()
	return fresh, old != nil
}

func (a *authenticator) renewToken(ctx context.Context, s *session) error {
	issued := a.now()
	answer, err := a.cfg.client.do(ctx, call{
		op: "renew token", method: http.MethodPost, path: "auth/token/renew-self", token: s.token,
		body: map[string]any{"increment": int(s.ttl.Seconds())},
	})
	if err != nil {
		return err
	}
	if answer == nil || answer.Auth == nil {
		return errors.New("renew token: the answer has no token")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.schedule(issued, seconds(answer.Auth.LeaseDuration), a.cfg.auth.Method, answer.Auth.Renewable)
	a.loginFailures, a.loginErr, a.loginAt, a.refusal = 0, nil, dualTime{}, nil
	a.cfg.wakeUp()
	return nil
}

// lacksToken reports whether Vault has refused the last login and no token is left.
func (a *authenticator) lacksToken(now dualTime) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.refusal != nil && !a.session.usable(now)
}

// maintain logs in or renews the token if that is due, and returns when to call it
// again.
func (a *authenticator) maintain(ctx context.Context, now dualTime) dualTime {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.maintaining {
		return never()
	}
	var due dualTime
	if a.session.usable(now) {
		due = a.session.life.Load().renewAt
		if a.session.untracked && a.session.ours {
			due = earliest(due, a.rotateAt)
		}
	}
	due = latest(due, a.loginAt)
	if now.before(due) {
		return due
	}
	a.maintaining = true
	a.cfg.tasks.run(ctx, a.renewOrLoginOnce)
	return never()
}

// renewOrLoginOnce renews the token or logs in, unless another caller has just
// tried.
func (a *authenticator) renewOrLoginOnce(ctx context.Context) {
	if a.acquireLogin(ctx) == nil {
		a.mu.RLock()
		early := a.now().before(a.loginAt)
		a.mu.RUnlock()
		if !early {
			_, _ = a.renewOrLogin(ctx, 0) // loginFailed keeps and logs its error
		}
		a.releaseLogin()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.maintaining = false
	a.cfg.wakeUp()
}

const (
	tokenGone = "Vault no longer has the token"
	leaseGone = "Vault no longer has the lease"
)

// tokenInvalid reports whether a refusal means that Vault no longer has the token, and then
// drops the session. A policy that denies the request, or the lookup, is no such sign:
// dropping the session would lose every lease.
func (a *authenticator) tokenInvalid(ctx context.Context, s *session, refusal error) bool {
	if statusOf(refusal) != http.StatusForbidden {
		return false
	}
	if !isUnknownToken(refusal) {
		if _, err := a.cfg.client.lookupSelf(ctx, s.token); !isUnknownToken(err) {
			return false
		}
	}
	a.dropSession(s, tokenGone)
	return true
}

// dropSession drops a session whose token Vault refuses: the credentials that it holds are
// lost.
func (a *authenticator) dropSession(s *session, why string) {
	if a.removeSession(s) {
		a.cfg.ended(s, why)
		a.cfg.outbox.flush()
	}
}

// removeSession takes a session out of force, and reports whether it still was in
// use. It is dead from then on, so that a lease that arrives later is not used.
func (a *authenticator) removeSession(s *session) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.dead.Load() {
		return false
	}
	s.dead.Store(true)
	a.warnUntracked(s)
	if a.session == s {
		a.session = nil
	}
	if a.loginErr == nil {
		a.loginAt = dualTime{}
	}
	a.retiring = slices.DeleteFunc(a.retiring, func(r *session) bool { return r == s })
	a.cfg.wakeUp()
	return true
}

// rotateFor has the session in force replaced at once, if it is s and the sidecar
// logged in for it: the end of its token revokes leases that cannot be revoked
// otherwise.
func (a *authenticator) rotateFor(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s == a.session && s.ours {
		s.untracked, a.rotateAt = true, dualTime{}
	}
}

// markUntracked records that Vault may have made a lease whose answer was lost. The session
// is replaced and its token revoked, at most once a minute, so that a failing Vault does
// not have to mint everything again and again.
func (a *authenticator) markUntracked(s *session, path string) {
	defer a.cfg.outbox.flush()
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.untracked {
		return
	}
	s.untracked = true
	switch {
	case s.dead.Load():
		a.warnUntracked(s)
	case !s.ours:
		a.cfg.outbox.warn("untracked lease possible", zap.String("path", path),
			zap.String("reason", "the answer was lost, and the token of the token file is not revoked"), zap.String("effect", "the lease ends by itself"))
	}
	a.cfg.wakeUp()
}

// warnUntracked warns of a lease that may outlive a token which was revoked by another
// party: Vault keeps a lease that it was making for a token while that was revoked, and its
// id never arrived. The caller holds mu, for reading at least.
func (a *authenticator) warnUntracked(s *session) {
	if s.untracked {
		a.cfg.outbox.warn("untracked lease possible", zap.String("accessor", mask(s.accessor)),
			zap.String("reason", "the answer was lost, and the token was revoked by another party"), zap.String("effect", "the lease ends by itself"))
	}
}

// readSecret reads a file that holds one word.
func readSecret(path string) (authz.Secret, error) {
	const longest = 64 << 10
	file, err := os.Open(path)
	if err != nil {
		return authz.Secret{}, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, longest+1))
	if err != nil {
		return authz.Secret{}, err
	}
	word := strings.TrimSpace(string(text))
	if word == "" || len(text) > longest || strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return authz.Secret{}, fmt.Errorf("%s does not hold one word of printable ASCII", path)
	}
	return authz.NewSecret(word), nil
}
