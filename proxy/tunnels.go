package proxy

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
	errRevoked  = errors.New("access was taken away")
	errStopping = errors.New("the sidecar is stopping")
	errTimeout  = errors.New("the rule's timeout is over")
)

// lookForQuiet is how often a proxy that ends looks for accesses on which nothing moves.
const lookForQuiet = 100 * time.Millisecond

// access is one live access: an exchange, an upgraded connection or a tunnel; or
// a connection that carries accesses of an Envoy.
type access struct {
	// admission is what allowed it, nil for what was not admitted by itself.
	admission *authz.Admission
	// still decides anew, in place of the admission, what carries accesses that
	// were admitted one by one.
	still func() bool
	// decided is the generation that last allowed it.
	decided uint64

	mu    sync.Mutex
	ended bool
	cause error       // why it was cut
	cut   func(error) // ends it now, on both sides; called once, with mu held
	quiet func() bool // reports that nothing moves on it; nil for what is in flight as long as it is there
}

// stillAllowed decides the access anew.
func (a *access) stillAllowed() bool {
	if a.still != nil {
		return a.still()
	}
	return a.admission.StillAllowed()
}

// end cuts the access unless it has ended, and reports whether it did.
func (a *access) end(cause error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.cause != nil {
		return false
	}
	a.cause = cause
	a.cut(cause)
	return true
}

// onCut replaces what a cut does, as the access enters another stage. It
// reports false when the access was cut already.
func (a *access) onCut(cut func(error)) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cause != nil {
		return false
	}
	a.cut = cut
	return true
}

// onStop says how to see that nothing moves on the access, so that a proxy that
// ends need not wait for it.
func (a *access) onStop(quiet func() bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quiet = quiet
}

// letGo ends the access if nothing moves on it.
func (a *access) letGo() {
	a.mu.Lock()
	quiet := a.quiet
	a.mu.Unlock()
	if quiet != nil && quiet() {
		a.end(errStopping)
	}
}

// live reports whether the access has not ended yet.
func (a *access) live() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.ended
}

// cutBy returns why the access was cut, or nil.
func (a *access) cutBy() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause
}

// registry holds everything live. An access is added under the lock that a
// reconsideration lists them under, with its generation compared: a policy that
// changes between decision and registration either sees the access in the
// registry or is seen by the registration.
type registry struct {
	engine *authz.Engine

	mu   sync.Mutex
	live map[*access]struct{}
	none chan struct{} // closed when live becomes empty; nil when nobody waits

	passing    sync.Mutex                    // held during a pass of reconsider; never taken under mu
	pass       atomic.Pointer[chan struct{}] // closed when the pass under way has ended; nil between passes
	generation uint64                        // of the latest pass
	cuts       int                           // of all passes in that generation
}

func newRegistry(engine *authz.Engine) *registry {
	return &registry{engine: engine, live: make(map[*access]struct{})}
}

// add registers an access, unless it is no longer allowed.
func (r *registry) add(a *access) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.admission != nil {
		a.decided = a.admission.Decision.Generation
	}
	if current := r.engine.Current().Generation(); current != a.decided {
		if !a.stillAllowed() {
			return false
		}
		a.decided = current
	}
	r.live[a] = struct{}{}
	return true
}

// remove takes an access out once its end is recorded.
func (r *registry) remove(a *access) {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, a)
	if len(r.live) == 0 && r.none != nil {
		close(r.none)
		r.none = nil
	}
}

func (r *registry) open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.live)
}

// list returns what is live and was last allowed before generation.
func (r *registry) list(generation uint64) []*access {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := make([]*access, 0, len(r.live))
	for a := range r.live {
		if a.decided < generation {
			old = append(old, a)
		}
	}
	return old
}

// reconsider decides anew what an earlier generation allowed, cuts what is
// denied, and returns how many accesses were cut in this generation, also by
// an earlier pass, and by one that was under way when the generation came. Deciding and cutting happen outside the lock that requests
// need: nothing that is slow to end holds them up.
func (r *registry) reconsider() (cut int) {
	r.passing.Lock()
	defer r.passing.Unlock()
	done := make(chan struct{})
	r.pass.Store(&done)
	defer close(done)
	defer r.pass.Store(nil)
	if generation := r.engine.Current().Generation(); generation != r.generation {
		r.generation, r.cuts = generation, 0
	}
	cut = inParallel(r.list(r.generation), func(a *access) bool {
		return !a.stillAllowed() && a.end(errRevoked)
	})
	// What came meanwhile has been decided by, and whoever brought it asks next.
	if generation := r.engine.Current().Generation(); generation != r.generation {
		r.generation, r.cuts = generation, 0
	}
	r.cuts += cut
	return r.cuts
}

// settle returns when no pass is under way. What a pass has cut waits for its
// end before it records that: writing a thousand records first would take the
// CPU from cutting what is still live.
func (r *registry) settle() {
	if done := r.pass.Load(); done != nil {
		<-*done
	}
}

// reasonNow returns why an admitted access is no longer allowed, once everything else
// has been cut for it too.
func (r *registry) reasonNow(a *authz.Admission) authz.Reason {
	r.settle()
	return a.ReasonNow()
}

// inParallel calls f with every access, on every processor, and returns how
// often it was true: closing a socket takes the kernel some ten microseconds,
// and a thousand of them are to be gone at once.
func inParallel[T any](all []T, f func(T) bool) int {
	var count atomic.Int64
	var running sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), 8, len(all)/32+1)
	for i := range workers {
		part := all[len(all)*i/workers : len(all)*(i+1)/workers]
		running.Go(func() {
			withHighPriority(func() {
				for _, one := range part {
					if f(one) {
						count.Add(1)
					}
				}
			})
		})
	}
	running.Wait()
	return int(count.Load())
}

// cutAll cuts everything.
func (r *registry) cutAll(cause error) {
	inParallel(r.list(^uint64(0)), func(a *access) bool { return a.end(cause) })
}

// idle returns when nothing is live or ctx ends, and lets go of that on which
// nothing moves.
func (r *registry) idle(ctx context.Context) {
	r.mu.Lock()
	if len(r.live) == 0 {
		r.mu.Unlock()
		return
	}
	if r.none == nil {
		r.none = make(chan struct{})
	}
	none := r.none
	r.mu.Unlock()
	look := time.NewTicker(lookForQuiet)
	defer look.Stop()
	for {
		for _, a := range r.list(^uint64(0)) {
			a.letGo()
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
