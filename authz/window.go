package authz

import (
	"math/bits"
	"time"
)

// window counts the usage within the last period, for display; the bucket beside
// it decides. It keeps the counts of the current and the previous period, and
// assumes an even flow within the previous one.
type window struct {
	start       time.Time // of the current period
	period      time.Duration
	now, before uint64
}

// add counts cost at a time.
func (w *window) add(cost uint64, at time.Time, period time.Duration) {
	w.roll(at, period)
	w.now += min(cost, ^uint64(0)-w.now)
}

// roll begins a new period if the current one has ended.
func (w *window) roll(at time.Time, period time.Duration) {
	elapsed := at.Sub(w.start)
	switch {
	case w.period != period || elapsed >= 2*period:
		*w = window{start: at, period: period}
	case elapsed >= period:
		w.start, w.before, w.now = w.start.Add(period), w.now, 0
	}
}

// read returns the usage in the period before a time.
func (w window) read(at time.Time, period time.Duration) uint64 {
	w.roll(at, period)
	left := period - max(at.Sub(w.start), 0)
	if left <= 0 || w.before == 0 {
		return w.now
	}
	high, low := bits.Mul64(w.before, uint64(left))
	share, _ := bits.Div64(high, low, uint64(period)) // high < period, as left <= period
	return w.now + min(share, ^uint64(0)-w.now)
}
