package vault

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
)

// mintLimits keeps Vault from being asked too often for leases, and for a path that
// fails on its side.
type mintLimits struct {
	clock     *clock
	perMinute int
	trial     time.Duration // that one request to a path that has failed may take, while others are refused

	mu       sync.Mutex
	rate     ratelimit.Bucket
	breakers map[string]*ratelimit.Breaker // by path: those that failed on Vault's side
}

func newMintLimits(clock *clock, perMinute int, trial time.Duration) *mintLimits {
	return &mintLimits{
		clock: clock, perMinute: perMinute, trial: trial, breakers: make(map[string]*ratelimit.Breaker),
		rate: ratelimit.Bucket{Every: time.Minute / time.Duration(perMinute), Burst: time.Minute},
	}
}

// check refuses a request that would flood Vault, and one that Vault cannot answer
// now. value is set when the answer is known to be no lease.
func (m *mintLimits) check(path string, value bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.now().monotonic()
	if b := m.breakers[path]; b != nil {
		if wait, err := b.Allow(now, m.trial); err != nil {
			return &cachedError{err: err, retry: wait}
		}
	}
	if value {
		return nil
	}
	if wait := m.rate.Take(now); wait > 0 {
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
	if !failed {
		delete(m.breakers, path)
		return
	}
	b := m.breakers[path]
	if b == nil {
		if len(m.breakers) >= maxEntries {
			return
		}
		b = &ratelimit.Breaker{}
		m.breakers[path] = b
	}
	b.Fail(m.clock.now().monotonic(), retryDelay(b.Failures()+1, err), err)
}
