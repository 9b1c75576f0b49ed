package ratelimit

import (
	"errors"
	"testing"
	"time"
)

// TestBucket checks the burst, the rate after it, and that a refusal takes nothing.
func TestBucket(t *testing.T) {
	b := Bucket{Every: time.Second, Burst: 3 * time.Second}
	now := time.Hour
	for i := range 3 {
		if wait := b.Take(now); wait != 0 {
			t.Fatalf("event %d of the burst: got a wait of %v", i, wait)
		}
	}
	for range 2 {
		if wait := b.Take(now + 400*time.Millisecond); wait != 600*time.Millisecond {
			t.Errorf("got a wait of %v, want 600ms", wait)
		}
	}
	if wait := b.Take(now + time.Second); wait != 0 {
		t.Errorf("got a wait of %v after a second, want none", wait)
	}
	allowed := 0
	for ms := range 10_000 {
		if b.Take(2*now+time.Duration(ms)*time.Millisecond) == 0 {
			allowed++
		}
	}
	if allowed != 3+9 {
		t.Errorf("got %d events in 10 s, want 12: a burst of 3 and one a second", allowed)
	}
}

// TestBackoff checks the range of the delays.
func TestBackoff(t *testing.T) {
	b := Backoff{Shortest: 250 * time.Millisecond, Longest: 30 * time.Second}
	for failures, longest := range map[int]time.Duration{
		-1: 500 * time.Millisecond, 0: 500 * time.Millisecond, 1: 500 * time.Millisecond, 2: time.Second,
		6: 16 * time.Second, 7: 30 * time.Second, 8: 30 * time.Second, 1 << 40: 30 * time.Second,
	} {
		if got := b.After(failures, 0); got != b.Shortest {
			t.Errorf("%d failures: got %v at least, want %v", failures, got, b.Shortest)
		}
		if got := b.After(failures, 1); got != longest {
			t.Errorf("%d failures: got %v at most, want %v", failures, got, longest)
		}
	}
}

// TestBreaker checks that one request at a time tries a server that failed.
func TestBreaker(t *testing.T) {
	var b Breaker
	failed := errors.New("failed")
	expect := func(now, wait time.Duration, want error) {
		t.Helper()
		if got, err := b.Allow(now, time.Minute); got != wait || !errors.Is(err, want) {
			t.Errorf("at %v: got %v, %v, want %v, %v", now, got, err, wait, want)
		}
	}
	expect(0, 0, nil)
	expect(0, 0, nil)
	b.Fail(0, 10*time.Second, failed)
	expect(4*time.Second, 6*time.Second, failed)
	expect(10*time.Second, 0, nil)
	expect(11*time.Second, 59*time.Second, failed)
	expect(70*time.Second, 0, nil) // the trial never ended
	b.Fail(70*time.Second, time.Second, failed)
	if b.Failures() != 2 {
		t.Errorf("got %d failures, want 2", b.Failures())
	}
	b.Succeed()
	expect(70*time.Second, 0, nil)
}

// TestSampler checks that every event is counted in one report.
func TestSampler(t *testing.T) {
	var s Sampler
	start := time.Unix(1000, 0)
	reported := 0
	for ms := range 5001 {
		n := s.Take(start.Add(time.Duration(ms) * time.Millisecond))
		if due := ms%1000 == 0; due != (n > 0) {
			t.Fatalf("at %d ms: got %d", ms, n)
		}
		reported += n
	}
	if reported != 5001 {
		t.Errorf("got %d events in reports, want 5001", reported)
	}
}
