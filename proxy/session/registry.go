package session

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Why something live was ended.
var (
	ErrRevoked  = errors.New("access was revoked")
	ErrStopping = errors.New("the sidecar is stopping")
	ErrTimeout  = errors.New("the rule's timeout expired")
	// ErrLeaseEnded is for a session that carries a credential which ended before it.
	ErrLeaseEnded = errors.New("the credential has ended")
	// ErrRetired is for an idle session whose credential has been replaced by another.
	ErrRetired = errors.New("the credential has been replaced")
)

// idleInterval is how often a proxy that ends looks for accesses on which nothing moves.
const idleInterval = 100 * time.Millisecond

// Session is one live access: an exchange, an upgraded connection or a tunnel; or
// a connection that carries accesses of an Envoy.
type Session struct {
	// Admission is what allowed it, nil for what was not admitted by itself.
	Admission *authz.Admission
	// Recheck decides again, in place of the admission, for a connection whose accesses
	// were admitted one by one.
	Recheck func() bool
	// Generation is the generation that last allowed it.
	Generation uint64
	// AfterCut does what may wait until other accesses of the same revocation were cut, as
	// to send a last message. It is called once after OnCut, without mu, and must not block.
	// Nil: nothing.
	AfterCut func(error)

	mu     sync.Mutex
	ended  bool
	cause  error       // why it was cut
	OnCut  func(error) // ends it now, on both sides; called once, with mu held
	isIdle func() bool // reports that nothing moves on it; nil for what is in flight as long as it is there
}

// stillAllowed decides the access again.
func (a *Session) stillAllowed() bool {
	if a.Recheck != nil {
		return a.Recheck()
	}
	return a.Admission.StillAllowed()
}

// Cut cuts the access unless it has ended, and reports whether it did.
func (a *Session) Cut(cause error) bool {
	if !a.cutNow(cause) {
		return false
	}
	if a.AfterCut != nil {
		a.AfterCut(cause)
	}
	return true
}

// cutNow is Cut without AfterCut.
func (a *Session) cutNow(cause error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.cause != nil {
		return false
	}
	a.cause = cause
	a.OnCut(cause)
	return true
}

// SetOnCut replaces what a cut does, as the access enters another stage. It
// reports false when the access was cut already.
func (a *Session) SetOnCut(cut func(error)) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cause != nil {
		return false
	}
	a.OnCut = cut
	return true
}

// SetIsIdle sets the function that reports an idle access, so that a proxy that ends
// need not wait for it.
func (a *Session) SetIsIdle(quiet func() bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isIdle = quiet
}

// closeIfIdle ends the access if nothing moves on it.
func (a *Session) closeIfIdle() {
	a.mu.Lock()
	quiet := a.isIdle
	a.mu.Unlock()
	if quiet != nil && quiet() {
		a.Cut(ErrStopping)
	}
}

// Live reports whether the access has not ended yet.
func (a *Session) Live() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.ended
}

// CutCause returns why the access was cut, or nil.
func (a *Session) CutCause() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause
}

// Registry holds the live sessions of a plugin. A revocation takes effect in this sequence:
//
//  1. A reload, a revocation, an expiry or a used-up total installs a new snapshot: the
//     engine increments the generation and closes [authz.Snapshot.Changed] of the old one.
//  2. The proxy, which waits for that, calls [Registry.Revalidate]. A revocation by the
//     operator calls it as well, to report how many sessions were cut.
//  3. Revalidate decides each session again that an earlier generation allowed, by
//     [authz.Admission.StillAllowed] or [Session.Recheck].
//  4. A session that is denied is ended by [Session.Cut], which calls [Session.OnCut]. A
//     tunnel then resets its two sockets ([AbortConn]); a request is cancelled towards the
//     upstream, and its answer is refused or, once it has begun, broken off.
//  5. The goroutine that serves the session writes the end record, and calls
//     [Registry.Remove].
//
// A session is added under the lock under which Revalidate lists them, with its generation
// compared: a policy that changes between decision and registration either finds the
// session in the registry or is found by the registration.
//
// Lock order: passMu, mu. A Session's own lock is not held while either is taken.
type Registry struct {
	engine *authz.Engine

	mu    sync.Mutex
	live  map[*Session]struct{}
	empty chan struct{} // closed when live becomes empty; nil when nobody waits

	passMu     sync.Mutex                    // held during a pass of reconsider; never taken under mu
	pass       atomic.Pointer[chan struct{}] // closed when the pass under way has ended; nil between passes
	generation uint64                        // of the latest pass
	cuts       int                           // of all passes in that generation

	after afterCuts
}

// NewRegistry returns an empty registry that decides by the engine's policy.
func NewRegistry(engine *authz.Engine) *Registry {
	return &Registry{engine: engine, live: make(map[*Session]struct{})}
}

// Add registers an access, unless it is no longer allowed.
func (r *Registry) Add(a *Session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Admission != nil {
		a.Generation = a.Admission.Decision.Generation
	}
	if current := r.engine.Current().Generation(); current != a.Generation {
		if !a.stillAllowed() {
			return false
		}
		a.Generation = current
	}
	r.live[a] = struct{}{}
	return true
}

// Remove takes an access out once its end is recorded.
func (r *Registry) Remove(a *Session) {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, a)
	if len(r.live) == 0 && r.empty != nil {
		close(r.empty)
		r.empty = nil
	}
}

// Len returns how many sessions are live.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.live)
}

// list returns what is live and was last allowed before generation.
func (r *Registry) list(generation uint64) []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := make([]*Session, 0, len(r.live))
	for a := range r.live {
		if a.Generation < generation {
			old = append(old, a)
		}
	}
	return old
}

// Revalidate decides again the accesses of earlier generations, cuts denied ones, and
// returns how many accesses were cut in this generation, also by an earlier pass and by one
// that was under way when the generation came. Deciding and cutting happen outside the lock
// that requests need, so that an access which is slow to end does not delay them.
func (r *Registry) Revalidate() (cut int) {
	r.passMu.Lock()
	defer r.passMu.Unlock()
	done := make(chan struct{})
	r.pass.Store(&done)
	defer close(done)
	defer r.pass.Store(nil)
	if generation := r.engine.Current().Generation(); generation != r.generation {
		r.generation, r.cuts = generation, 0
	}
	cut = r.cutAll(r.list(r.generation), ErrRevoked, func(a *Session) bool { return !a.stillAllowed() })
	// A generation that came during the pass has been used; its installer calls next.
	if generation := r.engine.Current().Generation(); generation != r.generation {
		r.generation, r.cuts = generation, 0
	}
	r.cuts += cut
	return r.cuts
}

// WaitPass returns when no pass is under way. The cut accesses of a pass wait for
// its end before they are recorded: writing a thousand records first would take the
// CPU from cutting what is still live.
func (r *Registry) WaitPass() {
	if done := r.pass.Load(); done != nil {
		<-*done
	}
	r.after.wait()
}

// ReasonNow returns why an admitted access is no longer allowed, once everything else
// has been cut for it too.
func (r *Registry) ReasonNow(a *authz.Admission) authz.Reason {
	r.WaitPass()
	return a.ReasonNow()
}

// InParallel calls f with every access and returns how often it was true: closing a
// socket takes the kernel some five microseconds, and a thousand of them are to be gone at
// once. The caller begins at once. Helpers on the other processors share what remains as
// they come, and InParallel waits only for calls of f that have begun.
//
// If the caller's thread alone takes no turns, one processor has no helper. The readers
// that f wakes run there: they would interrupt a helper in the middle of its share for
// milliseconds, for which InParallel would wait. Within [AtHighPriority] they do not.
func InParallel[T any](all []T, f func(T) bool) int {
	if len(all) == 0 {
		return 0
	}
	const portion = 8
	var taken, ended, count atomic.Int64
	done := make(chan struct{})
	work := func() {
		for {
			end := int(taken.Add(portion))
			part := all[min(end-portion, len(all)):min(end, len(all))]
			if len(part) == 0 {
				return
			}
			for _, one := range part {
				if f(one) {
					count.Add(1)
				}
			}
			if ended.Add(int64(len(part))) == int64(len(all)) {
				close(done)
			}
		}
	}
	withHighPriority(runtime.NumCPU() > 1, func(p priority) {
		processors := min(runtime.GOMAXPROCS(0), 8)
		if p.realtime {
			processors-- // the last one is for those that the cut wakes
		}
		for range min(processors, (len(all)+portion-1)/portion) - 1 {
			go withHighPriority(false, func(priority) { work() })
		}
		work()
	})
	<-done
	return int(count.Load())
}

// CutAll cuts everything.
func (r *Registry) CutAll(cause error) {
	r.cutAll(r.list(^uint64(0)), cause, func(*Session) bool { return true })
}

// cutAll cuts those of all that are to be, and returns how many that were. Calls of
// AfterCut follow on another processor, once all are cut; for a few accesses they have returned
// when cutAll does.
func (r *Registry) cutAll(all []*Session, cause error, which func(*Session) bool) (cut int) {
	cut = InParallel(all, func(a *Session) bool {
		if !which(a) || !a.cutNow(cause) {
			return false
		}
		if a.AfterCut != nil {
			r.after.add(a, cause)
		}
		return true
	})
	r.after.finish()
	return cut
}

// WaitEmpty returns when nothing is live or ctx ends. It ends idle accesses.
func (r *Registry) WaitEmpty(ctx context.Context) {
	r.mu.Lock()
	if len(r.live) == 0 {
		r.mu.Unlock()
		return
	}
	if r.empty == nil {
		r.empty = make(chan struct{})
	}
	none := r.empty
	r.mu.Unlock()
	look := time.NewTicker(idleInterval)
	defer look.Stop()
	for {
		for _, a := range r.list(^uint64(0)) {
			a.closeIfIdle()
		}
		select {
		case <-none:
			return
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}
