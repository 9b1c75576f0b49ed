package prove

import (
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// counter names what a limit counts: the grant, the rule ("" for the whole plugin) and
// the kind, as in the ledger.
type counter struct{ grant, rule, kind string }

// Limit is a limit of one policy.
type Limit struct {
	counter
	Spec   authz.Limit
	Action authz.OnExceeded // deny by default
	Exact  bool             // every system call is counted
}

// Name returns GRANT/RULE or GRANT, and the kind.
func (l Limit) Name() string {
	return strings.TrimSuffix(l.grant+"/"+l.rule, "/") + " " + l.kind
}

// Grant returns the name of the grant that states the limit.
func (l Limit) Grant() string { return l.grant }

// Rule returns the id of the rule that states the limit, "" for one of the whole plugin.
func (l Limit) Rule() string { return l.rule }

// Kind returns what is counted, as in requests.
func (l Limit) Kind() string { return l.kind }

// severity orders what happens at a limit.
func severity(a authz.OnExceeded) int {
	switch a {
	case authz.OnExceededThrottle:
		return 0
	case authz.OnExceededStop:
		return 2
	case authz.OnExceededKill:
		return 3
	case authz.OnExceededDeny:
	}
	return 1
}

// keptBy is a limit of the old policy, and the limits of the new one that keep it for
// every pair of decisions so far.
type keptBy struct {
	limit Limit
	by    []Limit
	first Finding // the first request that the limit bounded
}

// limitPair identifies the limits that apply to a pair of decisions.
type limitPair struct {
	before, after       counter
	wasReason, isReason authz.Reason
	at                  int64
}

// keepLimits records which limits of the new policy keep those that applied to the
// request under the old one.
func (c *comparison) keepLimits(f Finding) {
	if f.Old.Reason != authz.Granted && len(c.before.shared) == 0 {
		return // an observed access is not bound by its rule's limits
	}
	pair := limitPair{counter{f.Old.Grant, f.Old.Rule, ""}, counter{f.New.Grant, f.New.Rule, ""}, f.Old.Reason, f.New.Reason, f.At.UnixNano()}
	if c.limited[pair] {
		return
	}
	c.limited[pair] = true
	now := c.after.limitsOf(f.New, f.At)
	for _, limit := range c.before.limitsOf(f.Old, f.At) {
		keep := c.kept[limit.counter]
		if keep == nil {
			keep = &keptBy{limit: limit, by: keepers(limit, now), first: f}
			c.kept[limit.counter] = keep
			continue
		}
		before := len(keep.by)
		keep.by = slices.DeleteFunc(keep.by, func(l Limit) bool { return !slices.Contains(now, l) })
		if before > 0 && len(keep.by) == 0 {
			keep.first = f
		}
	}
}

// keepers returns those limits that are not higher than limit, and not milder once it is
// used up. A total must be the same counter: a renamed one would start at zero.
func keepers(limit Limit, now []Limit) (out []Limit) {
	for _, l := range now {
		if l.kind == limit.kind && l.Spec.Within(limit.Spec) && severity(l.Action) >= severity(limit.Action) && (l.Exact || !limit.Exact) &&
			(limit.Spec.Period > 0 || l.counter == limit.counter) {
			out = append(out, l)
		}
	}
	return out
}

// limits reports every limit of the old policy that none of the new one keeps.
func (c *comparison) limits() {
	for _, name := range c.keptNames() {
		if keep := c.kept[name]; len(keep.by) == 0 {
			f := keep.first
			f.Kind, f.Limit = KindLimit, keep.limit
			c.report(f)
		}
	}
}

func (c *comparison) keptNames() (out []counter) {
	for name := range c.kept {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b counter) int {
		return strings.Compare(a.grant+"\x00"+a.rule+"\x00"+a.kind, b.grant+"\x00"+b.rule+"\x00"+b.kind)
	})
	return out
}

// sharedLimit is a limit of the whole plugin, which ends with its grant.
type sharedLimit struct {
	Limit
	until time.Time
}

// limitsOf returns the limits that bound an access at an instant: those of its rule and
// those of the whole plugin. While a rule observes, its limits do not refuse; while the
// sidecar observes, no limit does.
func (s *side) limitsOf(a Answer, at time.Time) (out []Limit) {
	if at.Before(s.observeUntil) {
		return nil
	}
	if r := s.byName[ruleName{a.Grant, a.Rule}]; a.Reason == authz.Granted && r != nil && !(r.observes() && at.Before(r.rule.ObserveUntil)) {
		out = append(out, limitsIn(a.Grant, a.Rule, r.rule.Limits)...)
	}
	for _, l := range s.shared {
		if at.Before(l.until) {
			out = append(out, l.Limit)
		}
	}
	return out
}

// limitEnds returns the instants at which a limit of the whole plugin ends, if the two
// policies differ in these limits.
func limitEnds(before, after *side) (out []time.Time) {
	if slices.Equal(before.shared, after.shared) {
		return nil
	}
	for _, s := range []*side{before, after} {
		for _, l := range s.shared {
			out = append(out, l.until)
		}
	}
	return out
}

// limitsIn returns the limits that a document states.
func limitsIn(grant, rule string, l authz.Limits) (out []Limit) {
	for _, stated := range l.Stated() {
		exact := stated.Kind == authz.LimitSyscalls && l.CountSyscalls == authz.CountExact
		out = append(out, Limit{counter{grant, rule, stated.Kind.String()}, stated.Limit, l.OnExceeded, exact})
	}
	return out
}
