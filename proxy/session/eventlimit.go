package session

import (
	"sync"
	"time"
)

// LogLimiter allows one event a second to be recorded, with the number of events that
// it stands for.
type LogLimiter struct {
	mu    sync.Mutex
	last  time.Time
	count int
}

// Take counts an event and returns how many are to be recorded now as one, or 0.
func (r *LogLimiter) Take(now time.Time) int {
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
