package session

import (
	"sync"
	"time"
)

const (
	// finishPatience is how long a revocation waits for what follows its cuts.
	finishPatience = 8 * time.Millisecond
	// maxAwaited is for how many accesses it does: about as many end in that time. After a
	// thousand cuts the helper goes on beside the revocation.
	maxAwaited = 256
)

// afterCuts calls AfterCut of accesses that were cut, in the order of their cuts, by a
// helper that runs while there are any. The zero afterCuts is empty.
type afterCuts struct {
	mu      sync.Mutex
	waiting []afterCut
	pending int           // accesses that were added and whose call has not returned
	none    chan struct{} // closed when pending becomes 0; nil if it is not waited for
	helper  bool          // is running
}

type afterCut struct {
	access *Session
	cause  error
}

// add adds an access, for which the caller calls finish.
func (q *afterCuts) add(a *Session, cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, afterCut{a, cause})
	q.pending++
}

// start starts the helper if accesses wait, and returns for how many calls are pending.
func (q *afterCuts) start() (pending int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 && !q.helper {
		q.helper = true
		go withHighPriority(false, func(priority) { q.help() })
	}
	return q.pending
}

// help calls AfterCut until no access waits.
func (q *afterCuts) help() {
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.helper = false
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		q.next()
	}
}

// next calls AfterCut of one access, and reports whether one waited.
func (q *afterCuts) next() bool {
	q.mu.Lock()
	if len(q.waiting) == 0 {
		q.mu.Unlock()
		return false
	}
	one := q.waiting[0]
	if q.waiting = q.waiting[1:]; len(q.waiting) == 0 {
		q.waiting = nil
	}
	q.mu.Unlock()
	one.access.AfterCut(one.cause)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending--; q.pending == 0 && q.none != nil {
		close(q.none)
		q.none = nil
	}
	return true
}

// finish has the helper call AfterCut of all accesses that were added. It waits for that for
// finishPatience at most, and not if they are many. It takes no part in the calls, which may
// wait for locks of goroutines that have no high priority.
func (q *afterCuts) finish() {
	if q.start() > maxAwaited {
		return
	}
	none := q.returned()
	if none == nil {
		return
	}
	timer := time.NewTimer(finishPatience)
	defer timer.Stop()
	select {
	case <-none:
	case <-timer.C:
	}
}

// wait returns when every call has returned.
func (q *afterCuts) wait() {
	if none := q.returned(); none != nil {
		<-none
	}
}

// returned returns what is closed when every call has returned; nil if that is so.
func (q *afterCuts) returned() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending == 0 {
		return nil
	}
	if q.none == nil {
		q.none = make(chan struct{})
	}
	return q.none
}
