package authz

import (
	"slices"
	"strings"
)

// AdmitTogether admits n statements of a session at once, and writes one record for them,
// whose count is n. Their facts are shared, which has every command or verb and database of
// them, and names, of which there may be many: keys and channels. It does so only if the
// outcome is that of [Gate.AdmitWithin] for each statement: one rule grants all facts, so
// also those of each statement, no rule of higher precedence could grant one of them, and no
// limit counts requests. Otherwise it returns nil and records nothing, and the statements
// are to be admitted one by one. Statements that last, or have a timeout, are not admitted
// this way: no record of an end follows. The error is for the operator's log.
func (g *Gate) AdmitTogether(session *Admission, shared Facts, names []Fact, n int) (*Admission, error) {
	a, snapshot := g.begin(session)
	a.Request.Facts = shared
	if !session.isSession(g) || !shared.hasDatabase() {
		return nil, nil
	}
	// A rule that grants all facts grants the shared ones, so the winner for these is the
	// winner for all if it grants the names too.
	d := snapshot.Decide(a.Request, g.cfg.Ledger.Usage(), a.started)
	if d.Reason != Granted || d.throttled || d.Terms().Timeout > 0 || !snapshot.winsEach(&d, &a.Request) {
		return nil, nil
	}
	facts, patterns, granted := d.rule.matcher.grantedTexts(shared, names)
	if !granted {
		return nil, nil
	}
	if own, shared := d.spends(); len(own)+len(shared) > 0 {
		return nil, nil
	}
	a.Decision = d
	if a.within(session) != nil || a.Decision.Reason != Granted {
		return nil, nil // AdmitWithin refuses each, with its cause
	}
	r := g.takeRecords()
	defer g.records.Put(r)
	a.decisionRecordOf(&r.decision, facts, patterns)
	r.decision.Count = n
	if err := g.writeAt(a.started, a.started, r.pointers[:1]); err != nil {
		return nil, err
	}
	return a, nil
}

// grantedTexts returns shared facts and names as a record has them, with the patterns that
// grant the names. It reports false if the matcher does not grant one of the names.
func (m *matcher) grantedTexts(shared Facts, names []Fact) (facts, patterns []string, granted bool) {
	if m == nil || len(names) == 0 {
		return shared.All(), nil, m != nil
	}
	_, set := shared.split()
	first := strings.Count(set, factEnd) + 1
	size := 0
	for i := range names {
		size += len(names[i].Kind) + 1 + len(names[i].Name)
	}
	var b strings.Builder // one allocation for all names, and one for all texts
	b.Grow(size)
	n := first + len(names)
	memory := make([]string, 2*n)
	facts, patterns = memory[:0:n], memory[n:][:first] // shared facts have no pattern
	for text := range strings.SplitSeq(set, factEnd) {
		facts = append(facts, text)
	}
	for i := range names {
		if names[i].check() != nil {
			return nil, nil, false
		}
		from := b.Len()
		b.WriteString(string(names[i].Kind))
		b.WriteByte(':')
		b.WriteString(names[i].Name)
		text := b.String()[from:]
		if text == facts[len(facts)-1] {
			continue // the same key again, as of INCR and EXPIRE
		}
		pattern := m.pattern(text)
		if pattern == "" {
			return nil, nil, false
		}
		facts, patterns = append(facts, text), append(patterns, pattern)
	}
	return facts, patterns, true
}

// winsEach reports whether the winner of a decision on the facts of several statements is
// the winner for each of them: no rule that takes precedence over it grants a verb or a
// command of them, of which each statement has one.
func (s *Snapshot) winsEach(d *Decision, req *Request) bool {
	winner := entry{rule: d.rule}
	for e := range d.plugin.candidates(req.Destination.host) {
		winner.exact = winner.exact || e.rule == d.rule && e.exact
	}
	for e := range d.plugin.candidates(req.Destination.host) {
		r := e.rule
		if r != d.rule && r.matchesSchemePort(&req.Destination) && takesPrecedence(e, nil, winner, nil) && r.matcher.grantsAny(req.Facts, FactCommand, FactVerb) {
			return false
		}
	}
	return true
}

// grantsAny reports whether the matcher grants at least one fact of the given kinds.
func (m *matcher) grantsAny(f Facts, kinds ...FactKind) bool {
	if m == nil {
		return true
	}
	_, facts := f.split()
	for fact := range strings.SplitSeq(facts, factEnd) {
		kind, _, _ := strings.Cut(fact, ":")
		if slices.Contains(kinds, FactKind(kind)) && m.grants(fact) {
			return true
		}
	}
	return false
}
