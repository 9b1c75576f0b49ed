package vault

import (
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/authz"
)

// session is one token of the sidecar's and its state. The fields of the first
// group do not change; dead and life are read without a lock, for each request;
// the others are guarded by authenticator.mu.
type session struct {
	token    authz.Secret
	accessor string        // "" for a batch token
	ours     bool          // the sidecar logged in for it, so that it revokes it
	batch    bool          // Vault can neither renew nor revoke it, nor leases made with it whose ids are unknown
	ttl      time.Duration // as first granted; 0 when it does not end

	dead atomic.Bool // revoked, or refused by Vault
	life atomic.Pointer[tokenLife]

	// untracked is set when Vault may have made a lease whose id never arrived.
	// Only the end of the token revokes that lease.
	untracked bool
	replaced  dualTime // by another session
	attempts  int      // at revoking the token
	due       dualTime // when to try to revoke it again
	revoking  bool
}

// tokenLife is when a token ends and when it is due for renewal.
type tokenLife struct {
	notAfter  dualTime
	renewDue  dualTime
	renewAt   dualTime // renewDue, or earlier to read the token file again
	renewable bool
}

// end returns when the token ends.
func (s *session) end() dualTime { return s.life.Load().notAfter }

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
	return now.until(s.end()) >= half
}

func (s *session) usable(now dualTime) bool {
	return s != nil && !s.dead.Load() && now.before(s.end())
}

// schedule sets when the token ends and when it is renewed: a token from a file at least
// every minute, since the file may hold another one.
func (s *session) schedule(issued dualTime, ttl time.Duration, method Method, renewable bool) {
	w := window{notAfter: never(), refreshAt: never()}
	if ttl > 0 {
		w = newWindow(issued, ttl, never(), spread())
	}
	life := tokenLife{notAfter: w.notAfter, renewDue: w.refreshAt, renewAt: w.refreshAt, renewable: renewable}
	if method == MethodToken {
		life.renewAt = earliest(w.refreshAt, issued.add(tokenRereadInterval))
	}
	s.life.Store(&life)
}

func (a *authenticator) newSession(issued dualTime, token authz.Secret, accessor string, ttl time.Duration, renewable bool) *session {
	s := &session{token: token, accessor: accessor, ttl: ttl}
	s.schedule(issued, ttl, a.cfg.auth.Method, renewable)
	return s
}

// tokenFacts are the answer of auth/token/lookup-self.
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
