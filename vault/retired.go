package vault

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// revokeTokens revokes the tokens that the sidecar logged in for and returns how many Vault
// has revoked. The session ends whatever Vault answers.
func (a *authenticator) revokeTokens(ctx context.Context) (revoked int, err error) {
	a.mu.Lock()
	tokens := a.retiring
	a.retiring = nil
	if a.session != nil && a.session.ours {
		tokens = append(tokens, a.session)
		a.session = nil
		if a.refusal == nil {
			a.loginAt, a.loginErr = dualTime{}, nil
		}
	}
	for _, s := range tokens {
		s.dead.Store(true)
	}
	a.mu.Unlock()
	for _, s := range tokens {
		refused := a.revokeToken(ctx, s)
		if refused != nil {
			err = errors.Join(err, refused)
			a.retryTokenRevocation(s)
			continue
		}
		revoked++
	}
	return revoked, err
}

// retryTokenRevocation queues a token to be revoked later.
func (a *authenticator) retryTokenRevocation(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.attempts++
	s.due = a.now().add(backoff(s.attempts, 1))
	a.retiring = append(a.retiring, s)
	a.cfg.wakeUp()
}

// revokeToken revokes a token that the sidecar logged in for, and so every lease of it.
func (a *authenticator) revokeToken(ctx context.Context, s *session) error {
	if !s.ours || s.accessor == "" {
		return nil // of a token file, or a batch token, which cannot be revoked
	}
	_, err := a.cfg.client.do(ctx, call{
		op: "revoke token " + mask(s.accessor), method: http.MethodPost, path: "auth/token/revoke-self", token: s.token,
	})
	gone := isUnknownToken(err)
	if gone {
		err = nil
	}
	if err == nil {
		if gone {
			a.mu.RLock()
			a.warnUntracked(s)
			a.mu.RUnlock()
		}
		a.cfg.outbox.record("revoked", authz.CredentialRef{}, "", "login token "+mask(s.accessor))
		a.cfg.outbox.flush()
	}
	return err
}

// retiredSessions returns the replaced sessions whose tokens are to be revoked, and
// when each became one.
func (a *authenticator) retiredSessions(now dualTime) []retired {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retiring = slices.DeleteFunc(a.retiring, func(s *session) bool { return !s.ours || !now.before(s.end()) })
	var all []retired
	for _, s := range a.retiring {
		if !s.revoking {
			all = append(all, retired{s, s.replaced})
		}
	}
	return all
}

// retired is a session that was replaced by another one.
type retired struct {
	session *session
	at      dualTime
}

// revokeRetired revokes the token of a replaced session that no lease needs, when
// that is due, and returns when to call it again.
func (a *authenticator) revokeRetired(ctx context.Context, s *session, now dualTime) dualTime {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case s.revoking || !slices.Contains(a.retiring, s):
		return never()
	case now.before(s.due):
		return s.due
	}
	s.revoking = true
	s.dead.Store(true)
	a.cfg.tasks.run(ctx, func(ctx context.Context) { a.finishTokenRevocation(s, a.revokeToken(ctx, s)) })
	return never()
}

func (a *authenticator) finishTokenRevocation(s *session, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.revoking = false
	if err == nil {
		a.retiring = slices.DeleteFunc(a.retiring, func(r *session) bool { return r == s })
	} else {
		s.attempts++
		s.due = a.now().add(retryDelay(s.attempts, err))
	}
	a.cfg.wakeUp()
}
