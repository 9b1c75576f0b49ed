package authz

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Level is the strength of a revocation.
type Level string

// The levels of a revocation, from the mildest to the strictest.
const (
	// LevelPause denies new accesses and lets those in flight end.
	LevelPause Level = "pause"
	// LevelQuarantine also cuts live connections, revokes leases and closes
	// the kernel door, while the process keeps running.
	LevelQuarantine Level = "quarantine"
	// LevelHalt also kills the plugin.
	LevelHalt Level = "halt"
)

// Revocation revokes the access of a plugin, or of one of its rules.
type Revocation struct {
	ID       string    `json:"id"`
	Plugin   string    `json:"plugin"`
	Grant    string    `json:"grant,omitempty"` // with Rule: only that rule; "" for the whole plugin
	Rule     string    `json:"rule,omitempty"`
	Level    Level     `json:"level"`
	Reason   string    `json:"reason"`
	Incident string    `json:"incident,omitempty"` // the case it belongs to
	Actor    string    `json:"actor"`
	At       time.Time `json:"at"`
	Until    time.Time `json:"until,omitzero"` // zero: until restored
}

// inForce reports whether the revocation applies at now.
func (r Revocation) inForce(now time.Time) bool {
	return r.Until.IsZero() || now.Before(r.Until)
}

// harderThan reports whether r is stricter than other; either may be nil. An
// unknown level is the strictest.
func (r *Revocation) harderThan(other *Revocation) bool {
	return r != nil && (other == nil || r.Level.rank() > other.Level.rank())
}

func (l Level) rank() int {
	switch l {
	case LevelPause:
		return 1
	case LevelQuarantine:
		return 2
	default:
		return 3
	}
}

// Engine holds the snapshot that decides, and replaces it. Every replacement
// is a new generation and closes the previous snapshot's Changed channel. The
// zero Engine holds no policy: its decisions are not_ready.
type Engine struct {
	mu      sync.Mutex // serialises replacements
	current atomic.Pointer[Snapshot]
}

// Current returns the snapshot in force. It is never nil.
func (e *Engine) Current() *Snapshot {
	if s := e.current.Load(); s != nil {
		return s
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.currentLocked()
}

// currentLocked returns the snapshot in force, making the first one. The caller holds e.mu.
func (e *Engine) currentLocked() *Snapshot {
	s := e.current.Load()
	if s == nil {
		s = &Snapshot{changed: make(chan struct{})}
		e.current.Store(s)
	}
	return s
}

// replace installs the next generation and then signals the change.
func (e *Engine) replace(policy *Policy, revocations []Revocation) uint64 {
	old := e.currentLocked()
	next := newSnapshot(policy, revocations, old.generation+1)
	e.current.Store(next)
	close(old.changed)
	return next.generation
}

// Install puts policy in force, keeps the revocations, and returns its generation.
func (e *Engine) Install(policy *Policy) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.replace(policy, e.currentLocked().revocations)
}

// Revoke puts revocations in force and returns the generation that does so.
// A revocation with the id of an earlier one replaces it.
func (e *Engine) Revoke(revocations ...Revocation) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.currentLocked()
	next := slices.DeleteFunc(slices.Clone(s.revocations), func(old Revocation) bool {
		return slices.ContainsFunc(revocations, func(r Revocation) bool { return r.ID == old.ID })
	})
	return e.replace(s.policy, append(next, revocations...))
}

// Restore lifts the revocation with the given id and reports whether it existed.
func (e *Engine) Restore(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.currentLocked()
	next := slices.DeleteFunc(slices.Clone(s.revocations), func(r Revocation) bool { return r.ID == id })
	if len(next) == len(s.revocations) {
		return false
	}
	e.replace(s.policy, next)
	return true
}

// Bump makes a new generation of the same policy, so that every live access is
// decided again: a total is used up, a lease is lost, a grant has expired.
func (e *Engine) Bump() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.currentLocked()
	return e.replace(s.policy, s.revocations)
}

// Run makes a generation at every expiry: of a grant, a rule, a rule's observe
// mode or a revocation. It returns nil when ctx ends. now is the wall clock; it
// is read at least once a minute, so that Run notices a suspended machine or a
// stepped clock.
func (e *Engine) Run(ctx context.Context, now func() time.Time) error {
	const longest = time.Minute
	timer := time.NewTimer(0)
	defer timer.Stop()
	// Times are wall-clock times without the monotonic reading, because
	// documents state times of day.
	var seen time.Time // every expiry up to here has had its generation
	for {
		s := e.Current()
		at := now().Round(0)
		if at.Before(seen) {
			seen = at // the clock was set back: later expiries come again
		}
		next := s.nextExpiry(seen)
		if !next.IsZero() && !at.Before(next) {
			seen = at
			e.Bump()
			continue
		}
		wait := longest
		if !next.IsZero() {
			wait = min(wait, next.Sub(at))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		case <-timer.C:
		}
	}
}
