package ratelimit

import (
	"sync"
	"time"
)

// Bucket limits how often something happens: once per Every, and a burst of
// Burst/Every at once (GCRA, the generic cell rate algorithm of ITU-T I.371: a token
// bucket whose state is one number). It is not safe for concurrent use.
type Bucket struct {
	Every time.Duration
	Burst time.Duration

	full time.Duration // when the bucket is full again
}

// Take takes one event and returns 0, or takes none and returns how long it is until
// there is one. now is the time on any monotonic clock, always the same one.
func (b *Bucket) Take(now time.Duration) (wait time.Duration) {
	full := max(b.full, now) + b.Every
	if early := full - now - b.Burst; early > 0 {
		return early
	}
	b.full = full
	return 0
}

// Backoff is a delay after repeated failures: from Shortest to a bound that begins at
// twice Shortest and doubles up to Longest.
type Backoff struct {
	Shortest, Longest time.Duration
}

// After returns the delay after a number of failures in a row, at least one. random
// is from 0 to 1 and picks it in its range, so that many waiters do not return
// together; 1 is the bound.
func (b Backoff) After(failures int, random float64) time.Duration {
	bound := b.Shortest
	for range max(failures, 1) {
		if bound >= b.Longest/2 {
			bound = b.Longest
			break
		}
		bound *= 2
	}
	return b.Shortest + time.Duration(random*float64(bound-b.Shortest))
}

// Breaker refuses requests to a server that fails, and lets one at a time try whether
// it has recovered. The zero Breaker is closed: it refuses nothing. It is not safe
// for concurrent use.
type Breaker struct {
	failures int
	until    time.Duration
	err      error
}

// Allow returns nil if a request may be made now, and otherwise the error of the last
// one and how long requests are refused. An allowed request of a breaker that has
// failed is a trial: others are refused for the duration trial, or until Record.
func (b *Breaker) Allow(now, trial time.Duration) (wait time.Duration, err error) {
	if b.failures == 0 {
		return 0, nil
	}
	if now < b.until {
		return b.until - now, b.err
	}
	b.until = now + trial
	return 0, nil
}

// Fail records a failed request; requests are refused for the duration wait.
func (b *Breaker) Fail(now, wait time.Duration, err error) {
	b.failures++
	b.until, b.err = now+wait, err
}

// Succeed records a successful request and closes the breaker.
func (b *Breaker) Succeed() { *b = Breaker{} }

// Failures returns how many requests failed in a row.
func (b *Breaker) Failures() int { return b.failures }

// Sampler reports one event per Every with the number of events it stands for; the
// zero Every is a second. It is safe for concurrent use.
type Sampler struct {
	Every time.Duration

	mu    sync.Mutex
	last  time.Time
	count int
}

// Take counts an event. It returns how many events there were since the last report
// if one is due, and otherwise 0.
func (s *Sampler) Take(now time.Time) int {
	every := s.Every
	if every == 0 {
		every = time.Second
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	if now.Sub(s.last) < every {
		return 0
	}
	n := s.count
	s.last, s.count = now, 0
	return n
}
