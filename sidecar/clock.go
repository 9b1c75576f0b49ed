package sidecar

import (
	"sync/atomic"
	"time"
)

// clock is the system's clock, which with spec.trust does not go back: what has ended
// stays ended. The zero clock is the system's.
type clock struct{ latest atomic.Pointer[instant] }

// instant is a time, and the reading of the monotonic clock at it.
type instant struct{ at, read time.Time }

// Now returns the system's time, or the one that has passed since the latest time that
// was seen if that is later.
func (c *clock) Now() time.Time {
	now := time.Now()
	if l := c.latest.Load(); l != nil {
		if at := l.at.Add(now.Sub(l.read)); at.After(now) {
			return at
		}
	}
	return now
}

// see notes a time, from which on the clock does not go back. It returns the time now.
func (c *clock) see(at time.Time) time.Time {
	now := c.Now()
	if at.After(now) {
		now = at
	}
	now = now.Round(0) // without a reading of the monotonic clock
	c.latest.Store(&instant{now, time.Now()})
	return now
}
