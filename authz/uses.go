package authz

import "sync/atomic"

// Uses counts the accesses that carry one value of a credential, so that its
// lease is not revoked while they last. The zero Uses is empty. It is safe for
// concurrent use, and a nil Uses counts nothing.
type Uses struct {
	open      atomic.Int64
	untracked atomic.Bool
	sessions  atomic.Bool
}

// Begin counts an access, until End is called for it.
func (u *Uses) Begin() {
	if u != nil {
		u.open.Add(1)
	}
}

// End ends an access that Begin counted.
func (u *Uses) End() {
	if u != nil {
		u.open.Add(-1)
	}
}

// MarkUntracked records that an access exists whose end is not visible, such as
// one that an Envoy makes.
func (u *Uses) MarkUntracked() {
	if u != nil {
		u.untracked.Store(true)
	}
}

// MarkSessions records that the accesses which carry the value are sessions: each lasts
// after its login, and Vault sees no request of it.
func (u *Uses) MarkSessions() {
	if u != nil {
		u.sessions.Store(true)
	}
}

// InSession reports whether a session carries the value now.
func (u *Uses) InSession() bool { return u.Open() && u.sessions.Load() }

// Open reports whether an access carries the value now.
func (u *Uses) Open() bool { return u != nil && u.open.Load() > 0 }

// Untracked reports whether such an access may carry the value.
func (u *Uses) Untracked() bool { return u != nil && u.untracked.Load() }
