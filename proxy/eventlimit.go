package proxy

import (
	"sync"
	"time"
)

// logLimiter allows one event a second to be recorded, with the number of events that
// it stands for.
type logLimiter struct {
	mu    sync.Mutex
	last  time.Time
	count int
}

// take counts an event and returns how many are to be recorded now as one, or 0.
func (r *logLimiter) take(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	if now.Sub(r.last) < time.Second {
		return 0
	}
	n := r.count
	r.last, r.count = now, 0
	return n
}
