package vault

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// limiter is how often something may be done: once every so long, and burst
// worth of it at once (GCRA).
type limiter struct {
	every, burst time.Duration
	next         int64 // on the monotonic clock: when all of it is to be had again
}

// take returns 0 and takes one, or how long it is until there is one.
func (a *limiter) take(now dualTime) time.Duration {
	next := max(a.next, now.mono) + int64(a.every)
	if early := time.Duration(next-now.mono) - a.burst; early > 0 {
		return early
	}
	a.next = next
	return 0
}

// breaker keeps everybody from a path that fails on Vault's side, as when the
// database behind it is down. One request at a time tries whether it is mended.
type breaker struct {
	failures int
	until    dualTime
	err      error
}

// checkMint refuses what would flood Vault, and what it cannot answer now. value
// says that the answer is known to be no lease.
func (b *Broker) checkMint(path string, value bool) error {
	b.mu.Lock()
	defer b.unlockAndNotify()
	now := b.now()
	if br := b.breakers[path]; br != nil {
		if now.before(br.until) {
			return &cachedError{err: br.err, retry: now.until(br.until)}
		}
		br.until = now.add(callsInFlight * b.cfg.Timeout)
	}
	if value {
		return nil
	}
	if wait := b.mintLimit.take(now); wait > 0 {
		err := fmt.Errorf("read %s: Vault was asked for %d leases within a minute, and is asked for no more now", path, b.cfg.MintsPerMinute)
		return &cachedError{err: err, retry: wait}
	}
	return nil
}

// recordOutcome notes what came of a request to a path.
func (b *Broker) recordOutcome(path string, err error) {
	e := (*Error)(nil)
	failed := errors.As(err, &e) && e.Status >= http.StatusInternalServerError
	b.mu.Lock()
	defer b.unlockAndNotify()
	br := b.breakers[path]
	if !failed {
		delete(b.breakers, path)
		return
	}
	if br == nil {
		br = &breaker{}
		if len(b.breakers) < maxEntries {
			b.breakers[path] = br
		}
	}
	br.failures++
	wait := b.retryDelay(br.failures, err)
	br.err, br.until = err, b.now().add(wait)
}
