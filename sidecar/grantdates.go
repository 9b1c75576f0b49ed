package sidecar

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// machineActor is the actor of revocations that no person asked for.
const machineActor = "chaperone/containment"

// generations keeps what a sidecar with spec.trust has seen in its stateDir.
type generations struct {
	mu    sync.Mutex
	seen  configs.Generations
	due   map[string]bool // digests of grants whose renewal was logged
	clock clock
}

// keepGenerations writes the generations of files before they are put in force: what
// they replace is not loaded again.
func (c *PolicyControl) keepGenerations(cfg *configs.Config) error {
	if cfg.Trust == nil {
		return nil
	}
	c.generations.mu.Lock()
	defer c.generations.mu.Unlock()
	next := cfg.Trust.Generations
	next.Contained = slices.Clone(c.generations.seen.Contained)
	for _, digest := range cfg.Trust.Generations.Contained {
		if !slices.Contains(next.Contained, digest) {
			next.Contained = append(next.Contained, digest)
		}
	}
	next.Time = c.generations.clock.see(next.Time)
	if err := c.state.save(configs.GenerationsFile, next); err != nil {
		return fmt.Errorf("keep generations: %w", err)
	}
	c.generations.seen = next
	return nil
}

// Intervals of looking at the dates of grants, and of writing the latest time that was seen.
const (
	datesInterval = time.Second
	timeInterval  = time.Minute
)

// maintainGenerations writes the latest time that was seen, and acts on the dates of signed
// grants, until ctx ends.
func (c *PolicyControl) maintainGenerations(ctx context.Context) {
	written := time.Now()
	tick(ctx, datesInterval, func() {
		cfg := c.config.Load()
		if cfg.Trust == nil {
			return
		}
		c.followDates(ctx, cfg)
		if time.Since(written) < timeInterval {
			return
		}
		written = time.Now()
		if err := c.saveTime(); err != nil {
			c.cfg.Log.Error("latest time not written", zap.Error(err))
		}
	})
}

// saveTime writes the time, if generations were written before.
func (c *PolicyControl) saveTime() error {
	c.generations.mu.Lock()
	defer c.generations.mu.Unlock()
	if c.generations.seen.Trust == 0 {
		return nil
	}
	c.generations.seen.Time = c.generations.clock.see(time.Now())
	return c.state.save(configs.GenerationsFile, c.generations.seen)
}

// followDates warns of grants that are to be renewed, and revokes the plugin when the
// evidence of one is stale for longer than the guardrail allows: once for each
// grant, so that a person may restore it.
func (c *PolicyControl) followDates(ctx context.Context, cfg *configs.Config) {
	now := c.generations.clock.Now()
	for i := range cfg.Trust.Grants {
		g := &cfg.Trust.Grants[i]
		if !now.Before(g.RenewBefore) && now.Before(g.NotAfter) && c.renewalDue(g.Digest) {
			c.cfg.Log.Warn("grant renewal due", zap.String("grant", g.Name), zap.Time("ends", g.NotAfter))
		}
		if g.OnStale == "" || now.Before(g.StaleAt) || !now.Before(g.NotAfter) || !c.contain(g.Digest) {
			continue
		}
		reason := fmt.Sprintf("evidence of grant %s is stale since %s", g.Name, g.Stale.UTC().Format(time.RFC3339))
		c.revokeByItself(ctx, g.OnStale, reason)
	}
}

// renewalDue reports whether the renewal of a grant is not logged yet, and notes it.
func (c *PolicyControl) renewalDue(digest string) bool {
	c.generations.mu.Lock()
	defer c.generations.mu.Unlock()
	if c.generations.due[digest] {
		return false
	}
	c.generations.due = map[string]bool{digest: true} // a grant is seldom replaced
	return true
}

// contain reports whether a grant has caused no revocation yet, and writes that it
// does.
func (c *PolicyControl) contain(digest string) bool {
	c.generations.mu.Lock()
	defer c.generations.mu.Unlock()
	seen := &c.generations.seen
	if slices.Contains(seen.Contained, digest) {
		return false
	}
	const most = 64 // digests of grants that were replaced go first
	seen.Contained = append(seen.Contained, digest)
	seen.Contained = seen.Contained[max(len(seen.Contained)-most, 0):]
	if err := c.state.save(configs.GenerationsFile, *seen); err != nil {
		c.cfg.Log.Error("revocation for stale evidence not noted", zap.Error(err))
	}
	return true
}

// revokeByItself revokes the plugin, unless it is revoked at this level or a higher one.
func (c *PolicyControl) revokeByItself(ctx context.Context, level authz.Level, reason string) {
	if at := c.engine.Current().RevokedLevel(c.cfg.Plugin, time.Now()); rank(at) >= rank(level) {
		return
	}
	out, err := c.revoke(ctx, RevocationRequest{Level: level, Reason: reason, Actor: machineActor})
	if err != nil {
		c.cfg.Log.Error("plugin not revoked", zap.String("reason", reason), zap.Error(err))
		return
	}
	c.cfg.Log.Warn("plugin revoked", zap.String("level", string(level)), zap.String("reason", reason), zap.String("id", out.revocation.ID), zap.Strings("failed", out.failed))
}

// rank orders levels by how much they revoke; no level has 0.
func rank(level authz.Level) int {
	return slices.Index([]authz.Level{authz.LevelPause, authz.LevelQuarantine, authz.LevelHalt}, level) + 1
}
