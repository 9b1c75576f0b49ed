package vault

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
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

// mintLimits keeps Vault from being asked too often for leases, and for a path that
// fails on its side.
type mintLimits struct {
	clock     *clock
	perMinute int
	wait      time.Duration // that one request to a path may take, while others are refused

	mu       sync.Mutex
	rate     limiter
	breakers map[string]*breaker // by path: those that failed on Vault's side
}

func newMintLimits(clock *clock, perMinute int, wait time.Duration) *mintLimits {
	return &mintLimits{
		clock: clock, perMinute: perMinute, wait: wait, breakers: make(map[string]*breaker),
		rate: limiter{every: time.Minute / time.Duration(perMinute), burst: time.Minute},
	}
}

// check refuses a request that would flood Vault, and one that Vault cannot answer
// now. value is set when the answer is known to be no lease.
func (m *mintLimits) check(path string, value bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.now()
	if br := m.breakers[path]; br != nil {
		if now.before(br.until) {
			return &cachedError{err: br.err, retry: now.until(br.until)}
		}
		br.until = now.add(m.wait)
	}
	if value {
		return nil
	}
	if wait := m.rate.take(now); wait > 0 {
		err := fmt.Errorf("read %s: Vault was asked for %d leases within a minute, and is asked for no more now", path, m.perMinute)
		return &cachedError{err: err, retry: wait}
	}
	return nil
}

// record applies the outcome of a request to a path.
func (m *mintLimits) record(path string, err error) {
	e := (*Error)(nil)
	failed := errors.As(err, &e) && e.Status >= http.StatusInternalServerError
	m.mu.Lock()
	defer m.mu.Unlock()
	br := m.breakers[path]
	if !failed {
		delete(m.breakers, path)
		return
	}
	if br == nil {
		br = &breaker{}
		if len(m.breakers) < maxEntries {
			m.breakers[path] = br
		}
	}
	br.failures++
	br.err, br.until = err, m.clock.now().add(retryDelay(br.failures, err))
}
