package prove

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/policy"
)

// A rule with a matcher grants a request if it grants every fact of it. Of all requests
// that one rule grants, the largest set of facts is therefore matched by the fewest other
// rules, and of all requests that a rule of each policy grants, the largest set that both
// grant. These sets are compared; in the place of a pattern stands a name that only
// patterns match which match everything that the pattern matches.
//
// A request has at most authz.MaxFacts facts. In the place of a larger set stands a part
// of it that holds, for each rule which does not grant the whole set, a fact that the rule
// does not grant. Exactly the rules that grant the whole set grant this part, and they also
// grant each request within the set: whatever wins such a request, wins the part.

// contents returns the facts of the requests by which a new rule with the matcher, or
// without one, is compared.
func (l *local) contents(m *authz.Matcher) (out []authz.Facts) {
	if n := l.c.never; n != nil && m != nil && len(n.facts) > 0 {
		return l.reaching(m, n.facts)
	}
	if m == nil {
		out = append(out, authz.Facts{})
	} else {
		out = append(out, l.largest(m.Protocol, m.Facts)...)
	}
	for _, r := range l.before {
		for _, q := range r.matchers(!l.c.before.observeUntil.IsZero()) {
			switch {
			case m == nil:
				out = append(out, l.largest(q.Protocol, q.Facts)...)
			case m.Protocol == q.Protocol:
				out = append(out, l.largest(m.Protocol, meetFacts(m.Facts, q.Facts))...)
			}
		}
	}
	seen := map[authz.Facts]bool{}
	return slices.DeleteFunc(out, func(f authz.Facts) bool {
		again := seen[f]
		seen[f] = true
		return again
	})
}

// matchers returns what the rule grants of the content of requests, and what it lets pass
// while it, or the sidecar, observes.
func (r *ruleText) matchers(sidecar bool) (out []*authz.Matcher) {
	m := r.rule.Matcher
	if m == nil {
		return nil
	}
	if out = append(out, m); r.scheme().Database() && (sidecar || r.observes()) {
		out = append(out, observed(m))
	}
	return out
}

// observed returns what passes while a rule for a database observes: in a database of the
// rule, with settings that it grants, everything that can be granted.
func observed(m *authz.Matcher) *authz.Matcher {
	out := &authz.Matcher{Protocol: m.Protocol}
	for _, f := range m.Facts {
		if f.Kind == authz.FactDatabase || f.Kind == authz.FactSetting {
			out.Facts = append(out.Facts, f)
		}
	}
	kinds := []authz.FactKind{authz.FactVerb, authz.FactTable, authz.FactFunction, authz.FactOpaque}
	if m.Protocol == authz.ProtocolRedis {
		kinds = []authz.FactKind{authz.FactCommand, authz.FactKey, authz.FactChannel, authz.FactOpaque}
	}
	for _, kind := range kinds {
		out.Facts = append(out.Facts, authz.Fact{Kind: kind, Name: "*"})
	}
	return out
}

// reaching returns facts that a rule grants and that a pattern of facts holds,
// if there are any: the pattern holds each request that has a fact for each of its own.
func (l *local) reaching(m *authz.Matcher, patterns []authz.Fact) []authz.Facts {
	var set []authz.Fact
	for _, p := range append(slices.Clone(patterns), authz.Fact{Kind: authz.FactDatabase, Name: "*"}) {
		if p.Kind == authz.FactDatabase && slices.ContainsFunc(set, policy.IsDatabase) {
			continue
		}
		both := meetFacts([]authz.Fact{p}, m.Facts)
		if len(both) == 0 {
			return nil
		}
		set = append(set, l.c.fresh.instance(m.Protocol, both[0]))
	}
	for _, p := range m.Facts { // with more, the request can be shown by a statement
		if !policy.IsDatabase(p) && len(set) < l.c.opts.maxFacts() {
			set = append(set, l.c.fresh.instance(m.Protocol, p))
		}
	}
	facts, err := authz.NewFacts(m.Protocol, set...)
	if err != nil {
		return nil
	}
	return []authz.Facts{facts}
}

// largest returns the largest sets of facts that the patterns grant, or what stands for them.
func (l *local) largest(protocol authz.Protocol, patterns []authz.Fact) (out []authz.Facts) {
	var all []authz.Fact
	for _, p := range patterns {
		f := l.c.fresh.instance(protocol, p)
		l.c.patterns[f] = p
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b authz.Fact) int { return strings.Compare(a.String(), b.String()) })
	for _, set := range byDatabase(protocol, slices.Compact(all)) {
		if len(set) > l.c.opts.maxFacts() {
			set = l.telling(protocol, set)
		}
		if facts, err := authz.NewFacts(protocol, set...); err == nil {
			out = append(out, facts)
		}
	}
	return out
}

// byDatabase returns the sets of facts that requests of a protocol can have of all: for a
// database, those of connecting to each database by itself, and of statements within each.
func byDatabase(protocol authz.Protocol, all []authz.Fact) (out [][]authz.Fact) {
	var databases, other []authz.Fact
	for _, f := range all {
		if f.Kind == authz.FactDatabase {
			databases = append(databases, f)
		} else {
			other = append(other, f)
		}
	}
	for _, f := range databases {
		out = append(out, []authz.Fact{f}, append([]authz.Fact{f}, other...)) // a connection, and a statement
	}
	if len(databases) == 0 || len(databases) > 1 && spansDatabases(protocol, other) {
		out = append(out, all)
	}
	return out
}

// spansDatabases reports whether one request can have several databases, as MOVE and COPY of
// Redis have.
func spansDatabases(protocol authz.Protocol, facts []authz.Fact) bool {
	if protocol != authz.ProtocolRedis {
		return false
	}
	return slices.ContainsFunc(facts, func(f authz.Fact) bool {
		return f.Kind == authz.FactCommand && slices.Contains([]string{"move", "copy", "flushall"}, f.Name)
	})
}

// telling returns a part of a set that is as large as a request can be: with the databases,
// of which each request to one has one, and with a fact for each rule that does not grant the
// whole set.
func (l *local) telling(protocol authz.Protocol, set []authz.Fact) (out []authz.Fact) {
	for _, f := range set {
		if policy.IsDatabase(f) {
			out = append(out, f)
		}
	}
	for _, r := range l.rules() {
		m := r.rule.Matcher
		if m == nil || m.Protocol != protocol || slices.ContainsFunc(out, func(f authz.Fact) bool { return !grantsFact(m.Facts, f) }) {
			continue
		}
		if i := slices.IndexFunc(set, func(f authz.Fact) bool { return !grantsFact(m.Facts, f) }); i >= 0 {
			out = append(out, set[i])
		}
	}
	most := l.c.opts.maxFacts()
	if len(out) > most {
		l.c.largeContent = true
		return out[:most]
	}
	for _, f := range set { // the more facts, the more requests of the set can be shown
		if len(out) < most && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// grantsFact reports whether one of the patterns grants a fact.
func grantsFact(patterns []authz.Fact, f authz.Fact) bool {
	return slices.ContainsFunc(patterns, func(p authz.Fact) bool {
		prefix, wild := strings.CutSuffix(p.Name, "*")
		return p.Kind == f.Kind && (p.Name == f.Name || wild && strings.HasPrefix(f.Name, prefix))
	})
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

// instance returns a fact that the pattern grants, and otherwise only patterns that grant all
// that the pattern grants. A request with a name that the protocol has is shown best.
func (f *fresh) instance(protocol authz.Protocol, p authz.Fact) authz.Fact {
	prefix, wild := strings.CutSuffix(p.Name, "*")
	if !wild {
		return p
	}
	for _, name := range append(knownNames(protocol, p.Kind), "") {
		if strings.HasPrefix(name, prefix) && f.alone(p.Kind, prefix, name) {
			return authz.Fact{Kind: p.Kind, Name: name}
		}
	}
	const ascii = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for _, c := range ascii {
		if name := prefix + string(c); len(name) <= authz.MaxFactName && f.alone(p.Kind, prefix, name) {
			return authz.Fact{Kind: p.Kind, Name: name}
		}
	}
	for c := '\u00e0'; len(prefix)+utf8.RuneLen(c) <= authz.MaxFactName; c++ {
		if name := prefix + string(c); unicode.IsLetter(c) && f.alone(p.Kind, prefix, name) {
			return authz.Fact{Kind: p.Kind, Name: name}
		}
	}
	return authz.Fact{Kind: p.Kind, Name: prefix} // no longer name can be
}

// alone reports whether no pattern but prefixes of prefix grants a name.
func (f *fresh) alone(kind authz.FactKind, prefix, name string) bool {
	return name != "" && !slices.ContainsFunc(f.facts, func(p authz.Fact) bool {
		other, wild := strings.CutSuffix(p.Name, "*")
		return p.Kind == kind && (p.Name == name || wild && len(other) > len(prefix) && strings.HasPrefix(name, other))
	})
}

// knownNames returns names that the facts of a kind can have, nil if any name is possible.
func knownNames(protocol authz.Protocol, kind authz.FactKind) []string {
	switch {
	case kind == authz.FactVerb:
		return sql.Verbs()
	case kind == authz.FactCommand:
		return []string{"get", "set", "del", "mget", "lpush", "hget", "hset"}
	case kind == authz.FactTable, kind == authz.FactFunction:
		return []string{"public.a", "public.b", "public.c"}
	case kind == authz.FactDatabase && protocol == authz.ProtocolRedis:
		return []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"}
	case kind == authz.FactOpaque && protocol == authz.ProtocolPostgres:
		return []string{"do", "call"}
	case kind == authz.FactOpaque && protocol == authz.ProtocolRedis:
		return []string{"eval", "fcall"}
	}
	return nil
}

// patternsOf returns the patterns of facts of both policies.
func patternsOf(sides ...*side) (out []authz.Fact) {
	for _, s := range sides {
		for _, r := range s.rules {
			if r.rule.Matcher != nil {
				out = append(out, r.rule.Matcher.Facts...)
			}
		}
	}
	return out
}
