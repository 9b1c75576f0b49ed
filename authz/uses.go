package authz

import "sync/atomic"

// Uses counts the accesses that carry one value of a credential, so that its
// lease is not ended under them. The zero Uses has none. It is safe for
// concurrent use, and a nil one counts nothing.
type Uses struct {
	open      atomic.Int64
	untracked atomic.Bool
}

// Begin counts an access, until End is called for it.
func (u *Uses) Begin() {
	if u != nil {
		u.open.Add(1)
	}
}

// End ends one access that Begin has counted.
func (u *Uses) End() {
	if u != nil {
		u.open.Add(-1)
	}
}

// MarkUntracked notes an access whose end nobody sees, as of one that an Envoy makes.
func (u *Uses) MarkUntracked() {
	if u != nil {
		u.untracked.Store(true)
	}
}

// Open reports whether an access carries the value now.
func (u *Uses) Open() bool { return u != nil && u.open.Load() > 0 }

// Untracked reports whether an access may carry the value whose end nobody sees.
func (u *Uses) Untracked() bool { return u != nil && u.untracked.Load() }
