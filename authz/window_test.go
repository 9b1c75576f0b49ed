package authz

import (
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	start := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	var w window
	for second := range 8 {
		w.add(250_000, at(second), time.Minute)
	}
	for _, c := range []struct {
		second int
		want   uint64
	}{{8, 2_000_000}, {59, 2_000_000}, {60, 2_000_000}, {90, 1_000_000}, {119, 33_333}, {120, 0}, {1000, 0}, {-5, 2_000_000}} {
		if got := w.read(at(c.second), time.Minute); got != c.want {
			t.Errorf("after %d s: %d, want %d", c.second, got, c.want)
		}
	}
	w.add(1, at(61), time.Minute)
	if got := w.read(at(90), time.Minute); got != 1_000_001 {
		t.Errorf("with one more: %d", got)
	}
	if got := w.read(at(90), time.Hour); got != 0 {
		t.Errorf("by another period: %d", got)
	}
	w = window{}
	w.add(^uint64(0), at(0), time.Minute)
	w.add(5, at(1), time.Minute)
	w.add(5, at(61), time.Minute)
	if got := w.read(at(62), time.Minute); got < 1<<63 {
		t.Errorf("the highest counts wrap: %d", got)
	}
}

// TestReportOfRate has Report show what was used within the period, and that a
// limit refuses, although a rate's bucket drains.
func TestReportOfRate(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	b := &bucket{}
	l := Limit{Count: 60, Period: time.Minute}
	for i := range 8 {
		b.spend(l, 1, now.Add(time.Duration(i)*2*time.Second), false)
	}
	if got := b.recent.read(now.Add(20*time.Second), l.Period); got != 8 {
		t.Errorf("used within the period: %d, want 8", got)
	}
	if got := b.usedOf(l, now.Add(20*time.Second)); got != 0 {
		t.Errorf("the bucket holds %d, want 0", got)
	}
}
