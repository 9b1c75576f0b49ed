package vault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// shutdownWithin bounds revoking everything when the broker ends.
const shutdownWithin = 10 * time.Second

// Run renews the token and the leases, revokes those that are not used, and retries
// revocations that Vault has not yet confirmed. When ctx ends it revokes every lease, and
// the token if it logged in for it, and returns nil; or an error with the leases that Vault
// did not confirm within ten seconds, which the state file keeps for the next sidecar. It
// is called once.
func (b *Broker) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return b.shutDown(context.WithoutCancel(ctx))
		case <-b.wakeup:
		case <-timer.C:
		}
		timer.Reset(b.step(ctx))
	}
}

func (b *Broker) shutDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownWithin)
	defer cancel()
	cancelFetches(ctx, b.leases.close()) // a lease of a cancelled fetch ends with the token
	b.tasks.group.Wait()
	report, _ := b.revokeAll(ctx)
	// To look whether everything is gone, it may have logged in again. Tokens
	// that were not revoked are among these once more.
	_, err := b.login.revokeTokens(ctx)
	report.Err = errors.Join(report.Err, err)
	b.cfg.Logger.Info("leases revoked at shutdown", zap.Int("leases", report.Leases), zap.Int("confirmed", report.Confirmed))
	if report.Err != nil {
		return fmt.Errorf("revoke leases at shutdown: %d of %d confirmed: %w", report.Confirmed, report.Leases, report.Err)
	}
	return nil
}

// step starts what is due and returns how long to sleep.
func (b *Broker) step(ctx context.Context) time.Duration {
	now := b.clock.now()
	next := earliest(now.add(longestSleep), b.leases.maintain(ctx, now))
	next = earliest(next, b.login.maintainRefusal(ctx, now))
	if b.login.lacksToken(now) {
		b.leases.loseValues()
	}
	next = earliest(next, b.login.maintain(ctx, now))
	next = earliest(next, b.revocations.maintain(ctx, now))
	for _, r := range b.login.retiredSessions(now) {
		if !b.leases.needs(r) {
			next = earliest(next, b.login.revokeRetired(ctx, r.session, now))
		}
	}
	return max(now.until(next), time.Millisecond)
}

// wakeUp makes Run look at the schedule again. It does not block.
func (b *Broker) wakeUp() {
	select {
	case b.wakeup <- struct{}{}:
	default:
	}
}

// tasks are the goroutines of a broker, which shutDown waits for.
type tasks struct {
	timeout time.Duration
	// group is added to by Run's goroutine, and by others under leaseManager.mu
	// while the leases are not closed.
	group sync.WaitGroup
}

// run runs f, bounded in time and ended with Run's ctx. It is called by Run's
// goroutine only.
func (t *tasks) run(ctx context.Context, f func(ctx context.Context)) {
	t.group.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		f(ctx)
	})
}
