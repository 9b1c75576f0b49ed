package prove

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// counter names what a limit counts: the grant, the rule ("" for the whole plugin) and
// the kind, as in the ledger.
type counter struct{ grant, rule, kind string }

// Limit is a limit of one policy.
type Limit struct {
	counter
	Spec   authz.Limit
	Action authz.OnExceeded
}

// Name returns GRANT/RULE or GRANT, and the kind.
func (l Limit) Name() string {
	return strings.TrimSuffix(l.grant+"/"+l.rule, "/") + " " + l.kind
}

// keptBy is a limit of the old policy, and the limits of the new one that keep it for
// every pair of decisions so far.
type keptBy struct {
	limit Limit
	by    []Limit
	first Finding // the first request that the limit bounded
}

// keepLimits records which limits of the new policy keep those that applied to the
// request under the old one.
func (c *comparison) keepLimits(f Finding) {
	if f.Old.Reason != authz.Granted {
		return // an observed access is not bound by its rule's limits
	}
	now := c.after.limitsOf(f.New)
	for _, limit := range c.before.limitsOf(f.Old) {
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

// keepers returns those limits that are not higher than limit. A total must be the same
// counter: a renamed one would start at zero.
func keepers(limit Limit, now []Limit) (out []Limit) {
	for _, l := range now {
		if l.kind == limit.kind && l.Spec.Within(limit.Spec) && (limit.Spec.Period > 0 || l.counter == limit.counter) {
			out = append(out, l)
		}
	}
	return out
}

// limits reports every limit of the old policy that none of the new one keeps.
func (c *comparison) limits() {
	for _, keep := range c.kept {
		if len(keep.by) == 0 {
			f := keep.first
			f.Kind, f.Limit = KindLimit, keep.limit
			c.report(f)
		}
	}
}

// limitsOf returns the limits that apply to an answer: those of its rule and those of
// the whole plugin.
func (s *side) limitsOf(a Answer) (out []Limit) {
	if r := s.byName[a.RuleName()]; a.Reason == authz.Granted && r != nil {
		out = append(out, limitsIn(a.Grant, a.Rule, r.rule.Limits)...)
	}
	return append(out, s.shared...)
}

// limitsIn returns the limits that a document states.
func limitsIn(grant, rule string, l authz.Limits) (out []Limit) {
	for _, stated := range l.Stated() {
		out = append(out, Limit{counter{grant, rule, stated.Kind.String()}, stated.Limit, l.OnExceeded})
	}
	return out
}
