package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// session is one token of ours. Its times and flags are guarded by Broker.mu.
type session struct {
	token     authz.Secret
	accessor  string // "" for a batch token
	ours      bool   // we logged in for it, so we revoke it
	batch     bool   // Vault can neither renew nor revoke it, nor what orphans of it hold
	renewable bool
	ttl       time.Duration // as first granted; 0 when it does not end

	notAfter dualTime
	renewDue dualTime
	renewAt  dualTime // renewDue, or earlier to read the token file again
	dead     bool     // revoked, or refused by Vault
	// untracked is set when Vault may have made a lease for us that we do not know
	// of. Only the token's end takes that away.
	untracked bool
	replaced  dualTime // by another one
	attempts  int      // at revoking it
	due       dualTime // when to try to revoke it again
	revoking  bool
}

// outlives reports whether a lease of length need, 0 if that is not known yet, may
// be minted with the token: it must not die much before the lease does, since
// the lease dies with it. A token is worth replacing below half of its life.
func (s *session) outlives(now dualTime, need time.Duration) bool {
	if !s.usable(now) {
		return false
	}
	if s.ttl == 0 {
		return true
	}
	half := (s.ttl - safety(s.ttl)) / 2
	if need > 0 {
		half = min(half, need)
	}
	return now.until(s.notAfter) >= half
}

func (s *session) usable(now dualTime) bool {
	return s != nil && !s.dead && now.before(s.notAfter)
}

// Login logs in to Vault, once, unless it is logged in already. Its error is
// for the operator and holds no secret; Run goes on trying.
func (b *Broker) Login(ctx context.Context) error {
	b.mu.RLock()
	closed := b.closed
	b.mu.RUnlock()
	if closed {
		return errStopping
	}
	b.checkFilesNow()
	_, err := b.authenticate(ctx, 0)
	return err
}

// authenticate returns a session that is fit for a lease of length need,
// renewing the token or logging in for it. One caller at a time talks to Vault
// and the others wait for what comes of it.
func (b *Broker) authenticate(ctx context.Context, need time.Duration) (*session, error) {
	if s, err := b.readySession(need); s != nil || err != nil {
		return s, err
	}
	if err := b.acquireLogin(ctx); err != nil {
		return nil, err
	}
	defer b.releaseLogin()
	if s, err := b.readySession(need); s != nil || err != nil {
		return s, err
	}
	return b.renewOrLogin(ctx, need)
}

func (b *Broker) acquireLogin(ctx context.Context) error {
	select {
	case b.loginSem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for login to Vault: %w", ctx.Err())
	}
}

func (b *Broker) releaseLogin() { <-b.loginSem }

// readySession returns the session if it will do as it is, or the reason why
// there is none and it is too early to try again.
func (b *Broker) readySession(need time.Duration) (*session, error) {
	now := b.now()
	b.mu.RLock()
	defer b.mu.RUnlock()
	s, held := b.session, now.before(b.loginAt)
	switch {
	case s.usable(now) && (held || (s.outlives(now, need) && !b.mustRotate(now))):
		return s, nil
	case held:
		return nil, &cachedError{err: b.loginErr, retry: now.until(b.loginAt)}
	}
	return nil, nil
}

// mustRotate reports whether the session is to be replaced because it may hold a
// lease we do not know of. The caller holds b.mu.
func (b *Broker) mustRotate(now dualTime) bool {
	return b.session != nil && b.session.untracked && b.session.ours && !now.before(b.rotateAt) && len(b.retiring) < maxRetiring
}

// renewOrLogin renews the token or logs in. The caller has entered.
func (b *Broker) renewOrLogin(ctx context.Context, need time.Duration) (*session, error) {
	now := b.now()
	b.mu.RLock()
	s := b.session
	usable := s.usable(now) && !b.mustRotate(now)
	b.mu.RUnlock()
	if usable && !s.ours && b.sameToken(s) && b.sessionOutlives(s, need) {
		b.scheduleReread(s) // it was only to see whether the file holds another token
		return s, nil
	}
	if usable && b.sameToken(s) && s.renewable {
		err := b.renewToken(ctx, s)
		switch {
		case err == nil && b.sessionOutlives(s, need):
			return s, nil
		case isUnknownToken(err):
			b.dropSession(s, tokenGone)
		case isTransient(err) && statusOf(err) != http.StatusInternalServerError: // that one may be of the login method
			return b.loginFailed(s, err)
		}
	}
	files, _ := b.cfg.Auth.fingerprint() // before they are read to log in: what changes meanwhile has changed
	b.mu.Lock()
	b.loginFiles = files
	b.unlockAndNotify()
	fresh, err := b.logIn(ctx)
	if err != nil {
		return b.loginFailed(s, err)
	}
	return b.useSession(fresh), nil
}

func (b *Broker) sessionOutlives(s *session, need time.Duration) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return s.outlives(b.now(), need)
}

func (b *Broker) scheduleReread(s *session) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	s.renewAt = earliest(s.renewDue, b.now().add(tokenRereadInterval))
}

// sameToken reports whether the token file still holds the session's token.
func (b *Broker) sameToken(s *session) bool {
	if s.ours {
		return true
	}
	token, err := readSecret(b.cfg.Auth.TokenFile)
	return err != nil || token.Equal(s.token)
}

// loginFailed notes a failed login or renewal and returns the session if it can
// still be used.
func (b *Broker) loginFailed(s *session, err error) (*session, error) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	now := b.now()
	b.loginFailures++
	var wait time.Duration
	if isRefusal(err) {
		wait, err = b.recordRefusal(err, now)
	} else {
		wait = b.retryDelay(b.loginFailures, err)
		b.loginAt = now.add(wait)
	}
	b.loginErr = err
	b.noteError(err)
	b.logLogin(err, now)
	if s.usable(now) {
		return s, nil
	}
	return nil, &cachedError{err: err, retry: wait}
}

// useSession puts a fresh session in force. What the former one holds moves over.
func (b *Broker) useSession(fresh *session) *session {
	b.mu.Lock()
	defer b.unlockAndNotify()
	now, old := b.now(), b.session
	b.loginFailures, b.loginErr, b.loginAt, b.refusal = 0, nil, dualTime{}, nil
	b.loginLog = loginLog{}
	if old != nil && old.token.Equal(fresh.token) {
		// The same token file: only its times are new. It cannot be bettered
		// by asking at once again.
		old.notAfter, old.renewDue, old.renewAt, old.renewable = fresh.notAfter, fresh.renewDue, fresh.renewAt, fresh.renewable
		b.loginAt = now.add(tokenRereadInterval / 2)
		return old
	}
	b.session = fresh
	if old != nil {
		b.rotateAt = now.add(rotateInterval)
		old.replaced = now
		b.retiring = append(b.retiring, old)
		for _, e := range b.entries {
			if e.lease != nil && e.lease.mount == "" {
				e.refreshAt = earliest(e.refreshAt, now.add(migrationDelay(now.until(e.lease.usableUntil()))))
			}
		}
	}
	b.wakeUp()
	return fresh
}

func (b *Broker) loginByToken(ctx context.Context) (*session, error) {
	token, err := readSecret(b.cfg.Auth.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	issued := b.now()
	answer, err := b.lookupSelf(ctx, token)
	if err != nil {
		return nil, err
	}
	var facts tokenFacts
	if err := facts.from(answer); err != nil {
		return nil, fmt.Errorf("look up token: %w", err)
	}
	if slices.Contains(facts.Policies, rootPolicy) {
		return nil, fmt.Errorf("log in by token: %w", errRoot)
	}
	s := b.newSession(issued, token, facts.Accessor, seconds(facts.TTL), facts.Renewable)
	s.batch = facts.Type == typeBatch
	b.warnTokenKind(s, facts.NumUses)
	return s, nil
}

func (b *Broker) newSession(issued dualTime, token authz.Secret, accessor string, ttl time.Duration, renewable bool) *session {
	s := &session{token: token, accessor: accessor, renewable: renewable, ttl: ttl}
	s.schedule(issued, ttl, b.cfg.Auth.Method)
	return s
}

// schedule sets when the token ends and when to see to it: a token from a file
// at least every minute, since the file may hold another one.
func (s *session) schedule(issued dualTime, ttl time.Duration, method Method) {
	w := window{notAfter: never(), refreshAt: never()}
	if ttl > 0 {
		w = newWindow(issued, ttl, never(), spread())
	}
	s.notAfter, s.renewDue, s.renewAt = w.notAfter, w.refreshAt, w.refreshAt
	if method == MethodToken {
		s.renewAt = earliest(w.refreshAt, issued.add(tokenRereadInterval))
	}
}

// tokenFacts are what auth/token/lookup-self says.
type tokenFacts struct {
	TTL       int      `json:"ttl"`
	Accessor  string   `json:"accessor"`
	Renewable bool     `json:"renewable"`
	NumUses   int      `json:"num_uses"`
	Policies  []string `json:"policies"`
	Type      string   `json:"type"` // service or batch
}

func (f *tokenFacts) from(answer *api.Secret) error {
	if answer == nil || answer.Data["ttl"] == nil {
		return errors.New("the answer is not that of a token")
	}
	text, err := json.Marshal(answer.Data)
	if err == nil {
		err = json.Unmarshal(text, f)
	}
	if err != nil {
		// The error may quote the answer, which holds the token.
		return errors.New("the answer cannot be read")
	}
	return nil
}

func (b *Broker) lookupSelf(ctx context.Context, token authz.Secret) (*api.Secret, error) {
	return b.client.do(ctx, call{op: "look up token", method: http.MethodGet, path: "auth/token/lookup-self", token: token})
}

const (
	tokenGone = "Vault no longer knows the token"
	leaseGone = "Vault no longer knows the lease"
)

// tokenInvalid reports whether a refusal means that Vault no longer knows the
// token, and then gives the session up. A policy that does not allow what was
// asked, or the lookup, is no such sign: giving up would lose every lease.
func (b *Broker) tokenInvalid(ctx context.Context, s *session, refusal error) bool {
	if statusOf(refusal) != http.StatusForbidden {
		return false
	}
	if !isUnknownToken(refusal) {
		if _, err := b.lookupSelf(ctx, s.token); !isUnknownToken(err) {
			return false
		}
	}
	b.dropSession(s, tokenGone)
	return true
}

func (b *Broker) renewToken(ctx context.Context, s *session) error {
	issued := b.now()
	answer, err := b.client.do(ctx, call{
		op: "renew token", method: http.MethodPost, path: "auth/token/renew-self", token: s.token,
		body: map[string]any{"increment": int(s.ttl.Seconds())},
	})
	if err != nil {
		return err
	}
	if answer == nil || answer.Auth == nil {
		return errors.New("renew token: the answer has no token")
	}
	b.mu.Lock()
	defer b.unlockAndNotify()
	s.schedule(issued, seconds(answer.Auth.LeaseDuration), b.cfg.Auth.Method)
	s.renewable = answer.Auth.Renewable
	b.loginFailures, b.loginErr, b.loginAt, b.refusal = 0, nil, dualTime{}, nil
	b.wakeUp()
	return nil
}

// dropSession gives up a session whose token Vault refuses: what it held is lost.
func (b *Broker) dropSession(s *session, why string) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	if s.dead {
		return
	}
	s.dead = true
	b.warnUntracked(s)
	if b.session == s {
		b.session = nil
	}
	if b.loginErr == nil {
		b.loginAt = dualTime{}
	}
	b.retiring = slices.DeleteFunc(b.retiring, func(r *session) bool { return r == s })
	for _, e := range b.entries {
		if e.next != nil && e.next.heldBy(s) {
			b.enqueue(e.ref, e.next, b.now(), false)
			e.next = nil
		}
		if e.lease != nil && e.lease.heldBy(s) {
			b.lose(e, why)
		}
	}
	b.wakeUp()
}

// markUntracked notes that Vault may have made a lease of which no answer arrived.
// The session is replaced and its token revoked, at most once a minute, so
// that a failing Vault is not made to mint everything anew over and over.
func (b *Broker) markUntracked(s *session, path string) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	if s.untracked {
		return
	}
	s.untracked = true
	switch {
	case s.dead:
		b.warnUntracked(s)
	case !s.ours:
		b.warn("a lease may have been made whose id never arrived; it ends by itself, since the token is not ours to revoke",
			zap.String("path", path))
	}
	b.wakeUp()
}

// warnUntracked warns of what the end of a token may not take away, since it was not
// we who ended it: Vault keeps a lease that it was about to make for a token
// while somebody revoked that, and nothing of ours names it. The caller holds
// mu.
func (b *Broker) warnUntracked(s *session) {
	if s.untracked {
		b.warn("a lease may have been made whose id never arrived; it ends by itself, since somebody else has revoked the token that it was made with",
			zap.String("accessor", mask(s.accessor)))
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
