package prove

import (
	"slices"
	"strings"
	"unicode"

	"github.com/chaperone-proxy/chaperone/authz"
)

// A rule with a matcher grants a request if it grants every fact of it. Of all requests
// that one rule grants, the largest set of facts is therefore matched by the fewest other
// rules, and of all requests that a rule of each policy grants, the largest set that both
// grant. These sets are compared; in the place of a pattern stands a name that only
// patterns match which match everything that the pattern matches.

// contents returns the facts of the requests by which a new rule with the matcher, or
// without one, is compared.
func (l *local) contents(m *authz.Matcher) (out []authz.Facts) {
	if m == nil {
		out = append(out, authz.Facts{})
	} else {
		out = append(out, l.largest(m.Protocol, m.Facts)...)
	}
	for _, r := range l.before {
		q := r.rule.Matcher
		switch {
		case q == nil:
		case m == nil:
			out = append(out, l.largest(q.Protocol, q.Facts)...)
		case m.Protocol == q.Protocol:
			out = append(out, l.largest(m.Protocol, meetFacts(m.Facts, q.Facts))...)
		}
	}
	seen := map[authz.Facts]bool{}
	return slices.DeleteFunc(out, func(f authz.Facts) bool {
		again := seen[f]
		seen[f] = true
		return again
	})
}

// largest returns the largest set of facts that the patterns grant. If it is larger than a
// request can have, it returns it in parts, and for each matcher of the old policy the first
// fact that it does not grant.
func (l *local) largest(protocol authz.Protocol, patterns []authz.Fact) []authz.Facts {
	var all []authz.Fact
	for _, p := range patterns {
		all = append(all, l.c.fresh.instance(p))
	}
	slices.SortFunc(all, func(a, b authz.Fact) int { return strings.Compare(a.String(), b.String()) })
	all = slices.Compact(all)
	var sets [][]authz.Fact
	if len(all) > authz.MaxFacts {
		l.c.largeContent = true
		sets = append(sets, l.uncovered(all))
	}
	sets = slices.AppendSeq(sets, slices.Chunk(all, authz.MaxFacts))
	var out []authz.Facts
	for _, set := range sets {
		if facts, err := authz.NewFacts(protocol, set...); err == nil {
			out = append(out, facts)
		}
	}
	return out
}

// uncovered returns, for each matcher of the old policy that does not grant all facts, the
// first fact that it does not grant, as many as a request can have.
func (l *local) uncovered(all []authz.Fact) (out []authz.Fact) {
	for _, r := range l.before {
		if r.rule.Matcher == nil {
			continue
		}
		i := slices.IndexFunc(all, func(f authz.Fact) bool { return len(meetFacts([]authz.Fact{f}, r.rule.Matcher.Facts)) == 0 })
		if i >= 0 && !slices.Contains(out, all[i]) && len(out) < authz.MaxFacts {
			out = append(out, all[i])
		}
	}
	return out
}

// meetFacts returns patterns of the facts that both grant.
func meetFacts(a, b []authz.Fact) (out []authz.Fact) {
	for _, p := range a {
		for _, q := range b {
			if both, ok := meetFact(p, q); ok {
				out = append(out, both)
			}
		}
	}
	return out
}

func meetFact(p, q authz.Fact) (authz.Fact, bool) {
	pPrefix, pWild := strings.CutSuffix(p.Name, "*")
	qPrefix, qWild := strings.CutSuffix(q.Name, "*")
	switch {
	case p.Kind != q.Kind:
		return authz.Fact{}, false
	case !pWild && !qWild:
		return p, p == q
	case !qWild || pWild && len(pPrefix) < len(qPrefix): // q is the narrower
		return q, pWild && strings.HasPrefix(qPrefix, pPrefix)
	}
	return p, strings.HasPrefix(pPrefix, qPrefix)
}

// instance returns a fact that the pattern grants and that no other pattern grants, unless
// it grants all that the pattern grants.
func (f *fresh) instance(p authz.Fact) authz.Fact {
	prefix, wild := strings.CutSuffix(p.Name, "*")
	switch {
	case !wild:
		return p
	case len(prefix)+len(f.fact) > authz.MaxFactName:
		return authz.Fact{Kind: p.Kind, Name: prefix} // no longer name can be
	}
	return authz.Fact{Kind: p.Kind, Name: prefix + f.fact}
}

// freshFact returns a letter that no pattern of either policy holds.
func freshFact(sides ...*side) string {
	used := map[rune]bool{}
	for _, s := range sides {
		for _, r := range s.rules {
			if r.rule.Matcher == nil {
				continue
			}
			for _, p := range r.rule.Matcher.Facts {
				for _, c := range p.Name {
					used[c] = true
				}
			}
		}
	}
	c := 'a'
	for used[c] || !unicode.IsLetter(c) {
		c++
	}
	return string(c)
}
