package vault

import (
	"math"
	"sync/atomic"
	"time"
)

// dualTime is one reading of both clocks. A deadline has passed when it has on either
// clock: the monotonic clock cannot be stepped, but stands still while the machine is
// suspended; the wall clock goes on, but can be stepped.
type dualTime struct{ mono, wall int64 } // nanoseconds

// never is after every instant.
func never() dualTime { return dualTime{math.MaxInt64, math.MaxInt64} }

// add returns the instant d later. never stays never.
func (i dualTime) add(d time.Duration) dualTime {
	return dualTime{addSaturated(i.mono, int64(d)), addSaturated(i.wall, int64(d))}
}

func addSaturated(a, b int64) int64 {
	if a == math.MaxInt64 || (b > 0 && a > math.MaxInt64-b) {
		return math.MaxInt64
	}
	return a + b
}

// before reports whether i is before o on both clocks.
func (i dualTime) before(o dualTime) bool { return i.mono < o.mono && i.wall < o.wall }

// until returns the time left from i to o, by the clock that has less.
func (i dualTime) until(o dualTime) time.Duration {
	if o == never() {
		return math.MaxInt64
	}
	return time.Duration(min(o.mono-i.mono, o.wall-i.wall))
}

// monotonic returns the time on the monotonic clock.
func (i dualTime) monotonic() time.Duration { return time.Duration(i.mono) }

// time returns the wall time, the zero time for never.
func (i dualTime) time() time.Time {
	if i.wall == math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, i.wall)
}

// earliest returns the earlier of the two on each clock.
func earliest(a, b dualTime) dualTime {
	return dualTime{min(a.mono, b.mono), min(a.wall, b.wall)}
}

func latest(a, b dualTime) dualTime { return dualTime{max(a.mono, b.mono), max(a.wall, b.wall)} }

func earliestIf(end, due dualTime, both bool) dualTime {
	if both {
		return earliest(end, due)
	}
	return end
}

// atomicDualTime is a monotonic time, exact to a second, that many readers set.
type atomicDualTime struct{ mono atomic.Int64 }

func (a *atomicDualTime) set(now dualTime) {
	if now.mono-a.mono.Load() > int64(time.Second) || a.mono.Load() == 0 {
		a.mono.Store(max(now.mono, 1))
	}
}

// clock reads both clocks. Its fields do not change once the broker is running.
type clock struct {
	read   func() time.Time        // the wall clock with a monotonic reading
	start  time.Time               // where the monotonic clock counts from
	adjust func(dualTime) dualTime // moves the clocks in tests; nil does not
}

func newClock(read func() time.Time) *clock { return &clock{read: read, start: read()} }

func (c *clock) now() dualTime {
	t := c.read()
	now := dualTime{mono: int64(t.Sub(c.start)), wall: t.UnixNano()}
	if c.adjust != nil {
		return c.adjust(now)
	}
	return now
}
