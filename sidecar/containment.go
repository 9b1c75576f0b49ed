package sidecar

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// maxContainment bounds the refusals that one rule of containment counts.
const maxContainment = 100_000

// containment counts refusals, and reports when there were too many in a time: the
// containment rules of the guardrails.
type containment struct {
	active  atomic.Bool   // there are rules; read at each decision
	tripped chan struct{} // there are rules to take

	mu    sync.Mutex
	rules []*refusalWindow
	due   []configs.Containment // rules that were met, each once
}

// refusalWindow has the times of the last refusals that one rule counts.
type refusalWindow struct {
	rule  configs.Containment
	times []int64 // a ring, in nanoseconds
	next  int
}

func newContainment() *containment { return &containment{tripped: make(chan struct{}, 1)} }

// follow takes the rules that are in force now. Rules that stay keep their counts.
func (c *containment) follow(rules []configs.Containment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next []*refusalWindow
	for _, rule := range rules {
		i := slices.IndexFunc(c.rules, func(w *refusalWindow) bool {
			return w.rule.ID == rule.ID && w.rule.Count == rule.Count && w.rule.Within == rule.Within && w.rule.Then == rule.Then && slices.Equal(w.rule.Reasons, rule.Reasons)
		})
		if i >= 0 {
			next = append(next, c.rules[i])
			continue
		}
		next = append(next, &refusalWindow{rule: rule})
	}
	c.rules = next
	c.active.Store(len(next) > 0)
}

// observe counts a refusal for a reason that a rule names: a decision, or the end of an
// access that was refused after its decision, as one whose name resolves to an address
// that is not allowed.
func (c *containment) observe(r *authz.Record, now time.Time) {
	if r.Kind != authz.KindDecision && r.Kind != authz.KindEnd || r.Allowed || !c.active.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.rules {
		if !slices.Contains(w.rule.Reasons, r.Reason) || !w.add(now.UnixNano()) {
			continue
		}
		c.isDue(&w.rule)
		select {
		case c.tripped <- struct{}{}:
		default: // they are taken together
		}
	}
}

// take returns the rules that were met, one that revokes the most first: refusals that meet a
// rule many times must not hide another one.
func (c *containment) take() []configs.Containment {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.due
	c.due = nil
	return out
}

// isDue notes that a rule was met.
func (c *containment) isDue(rule *configs.Containment) {
	for i := range c.due {
		if c.due[i].ID == rule.ID && c.due[i].Then == rule.Then {
			return
		}
	}
	c.due = append(c.due, *rule)
	if last := len(c.due) - 1; rank(rule.Then.Level()) > rank(c.due[0].Then.Level()) {
		c.due[0], c.due[last] = c.due[last], c.due[0]
	}
}

// add notes a refusal, and reports whether it is one too many. It begins again then.
func (w *refusalWindow) add(at int64) (tripped bool) {
	most := min(max(w.rule.Count, 1), maxContainment)
	if len(w.times) < most {
		w.times = append(w.times, at)
	} else {
		w.times[w.next] = at
		w.next = (w.next + 1) % most
	}
	if len(w.times) < most || at-w.times[w.next%len(w.times)] > int64(w.rule.Within) {
		return false
	}
	w.times, w.next = w.times[:0], 0
	return true
}

// followContainment revokes the plugin when a rule of containment is met, until ctx ends.
func (c *PolicyControl) followContainment(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.containment.tripped:
			for _, rule := range c.containment.take() {
				c.cfg.Metrics.contained.WithLabelValues(rule.ID).Inc()
				c.revokeByItself(ctx, rule.Then.Level(), fmt.Sprintf("containment %s: %d refusals within %s", rule.ID, rule.Count, rule.Within))
			}
		}
	}
}
