package prove

import (
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/policy"
)

// narrowed returns a finding with no more facts than show it: one finding for each kind of
// facts of which a single one shows it, or else one with as few facts as can be.
func (c *comparison) narrowed(f Finding) (out []Finding) {
	protocol, all := f.Request.Facts.Protocol(), policy.ParseFacts(f.Request.Facts)
	var session []authz.Fact // the database, which every request to one has
	if i := slices.IndexFunc(all, policy.IsDatabase); i >= 0 {
		session = all[i : i+1 : i+1]
	}
	if len(all) == 0 || len(session) > 0 && c.shows(f, protocol, session) {
		return []Finding{c.with(f, protocol, session, session)}
	}
	var alone []authz.Fact
	for _, fact := range all {
		if !slices.Contains(session, fact) && c.shows(f, protocol, append(session, fact)) {
			alone = append(alone, fact)
		}
	}
	slices.SortStableFunc(alone, func(a, b authz.Fact) int { return settingsLast(a) - settingsLast(b) })
	index := map[authz.FactKind]int{}
	for _, fact := range alone {
		i, known := index[fact.Kind]
		if !known {
			i = len(out)
			index[fact.Kind] = i
			out = append(out, c.worded(c.with(f, protocol, append(session, fact), nil), all, alone))
		}
		if p, ok := c.patterns[fact]; ok {
			fact = p
		}
		out[i].Facts = append(out[i].Facts, fact)
	}
	if len(out) > 0 {
		return out
	}
	few := slices.Clone(all)
	for _, fact := range all {
		less := slices.DeleteFunc(slices.Clone(few), func(other authz.Fact) bool { return other == fact })
		if !slices.Contains(session, fact) && len(less) > 0 && c.shows(f, protocol, less) {
			few = less
		}
	}
	return []Finding{c.worded(c.with(f, protocol, few, slices.DeleteFunc(slices.Clone(few), policy.IsDatabase)), all, nil)}
}

// settingsLast orders facts: with each verb that writes, a rule grants settings that are less
// worth showing.
func settingsLast(f authz.Fact) int {
	if f.Kind == authz.FactSetting {
		return 1
	}
	return 0
}

// worded returns a finding whose request has a statement, if more of all facts make one: no
// statement has a table alone, and one that selects from it has. Facts that show the finding
// by themselves are the last to be added.
func (c *comparison) worded(f Finding, all, alone []authz.Fact) Finding {
	if !f.Request.Destination.Scheme().Database() || policy.HasStatement(f.Request) {
		return f
	}
	protocol, few := f.Request.Facts.Protocol(), policy.ParseFacts(f.Request.Facts)
	for _, more := range additions(all, alone) {
		facts := append(slices.Clone(few), more...)
		if one := c.with(f, protocol, facts, f.Facts); c.shows(f, protocol, facts) && policy.HasStatement(one.Request) {
			return one
		}
	}
	return f
}

// additions returns what may make facts a statement: a verb or a name by itself, and then a
// verb with a name.
func additions(all, alone []authz.Fact) (out [][]authz.Fact) {
	const most = 4 // names of each kind
	passing := sql.PassingVerbs()
	rank := func(f authz.Fact) int {
		if slices.Contains(alone, f) || f.Kind == authz.FactVerb && slices.Contains(passing, f.Name) {
			return 1
		}
		return 0
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b authz.Fact) int { return rank(a) - rank(b) })
	var verbs, names []authz.Fact
	count := map[authz.FactKind]int{}
	for _, f := range all {
		switch f.Kind {
		case authz.FactVerb, authz.FactCommand:
			verbs = append(verbs, f)
		case authz.FactTable, authz.FactKey, authz.FactChannel, authz.FactSetting:
			if count[f.Kind]++; count[f.Kind] <= most {
				names = append(names, f)
			}
		default:
		}
	}
	for _, f := range slices.Concat(names, verbs) {
		out = append(out, []authz.Fact{f})
	}
	for _, v := range verbs {
		for _, n := range names {
			out = append(out, []authz.Fact{v, n})
		}
	}
	return out
}

// with returns the finding with other facts of its request.
func (c *comparison) with(f Finding, protocol authz.Protocol, facts, shown []authz.Fact) Finding {
	if content, err := authz.NewFacts(protocol, facts...); err == nil {
		f.Request.Facts, f.Facts = content, shown
	}
	for i, fact := range f.Facts {
		if p, ok := c.patterns[fact]; ok && p != fact {
			f.Facts = slices.Clone(f.Facts)
			f.Facts[i] = p
		}
	}
	return f
}

// shows reports whether both policies decide the finding's request as they do, by the same
// rules, if its content has these facts.
func (c *comparison) shows(f Finding, protocol authz.Protocol, facts []authz.Fact) bool {
	content, err := authz.NewFacts(protocol, facts...)
	if err != nil {
		return false
	}
	req := f.Request
	req.Facts = content
	now := answer(c.after.snapshot.Decide(req, authz.Usage{}, f.At), req)
	if now.Reason != f.New.Reason || now.RuleName() != f.New.RuleName() {
		return false
	}
	if f.Never {
		return c.never.holds(req, req.Destination, f.At) || c.never.holds(req, now.Upstream, f.At)
	}
	was := answer(c.before.snapshot.Decide(req, authz.Usage{}, f.At), req)
	return was.Reason == f.Old.Reason && was.RuleName() == f.Old.RuleName()
}
