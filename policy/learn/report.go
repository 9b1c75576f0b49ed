package learn

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
)

// Report is a proposal for programs.
type Report struct {
	Plugin   string      `json:"plugin"`
	Name     string      `json:"name"`
	Grant    authz.Grant `json:"grant"`
	Evidence []Evidence  `json:"evidence"` // of the grant's rules, in their order
	Estimate Estimate    `json:"estimate"`
	Calendar Calendar    `json:"calendar"`
	Left     Left        `json:"left"`
	Notes    []string    `json:"notes"` // sentences without a period
}

// Evidence is what speaks for a rule.
type Evidence struct {
	Rule       string     `json:"rule"`
	Accesses   uint64     `json:"accesses"`
	Peak       uint64     `json:"peak"` // accesses in one minute
	Undeclared bool       `json:"undeclared,omitempty"`
	Widenings  []Widening `json:"widenings,omitempty"`
	Suggested  []Widening `json:"suggested,omitempty"` // not part of the grant
}

// Widening is a path or a host with a wildcard, and why it has it.
type Widening struct {
	Value   string   `json:"value"`
	Why     string   `json:"why"`
	Samples []string `json:"samples,omitempty"`
}

// Report returns the proposal for programs, with further notes.
func (p *Proposal) Report(notes []string) Report {
	out := Report{
		Plugin: p.Terms.Plugin, Name: p.Terms.Name, Grant: p.Grant(authz.ReasonTodo), Estimate: p.Estimate, Calendar: p.Calendar, Left: p.Left,
		Notes: append(p.Summary(), notes...),
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		e := Evidence{Rule: r.ID, Accesses: r.Count, Peak: r.Peak, Undeclared: r.Undeclared}
		for _, one := range r.patterns {
			for _, s := range one.stars {
				e.Widenings = append(e.Widenings, Widening{one.text, s.String(), s.samples})
			}
		}
		for name, s := range r.stars {
			e.Widenings = append(e.Widenings, Widening{name, s.String(), s.samples})
		}
		if len(r.stars) > 0 {
			sortlarge.By(e.Widenings, func(a, b *Widening) int { return strings.Compare(a.Value, b.Value) })
		}
		for _, s := range slices.Concat(r.suggested, r.evidence["keys"], r.evidence["channels"]) {
			e.Suggested = append(e.Suggested, Widening{s.text, s.String(), s.samples})
		}
		if r.wildcard != "" {
			e.Suggested = append(e.Suggested, Widening{r.wildcard, "many hosts below one name", r.below})
		}
		out.Evidence = append(out.Evidence, e)
	}
	return out
}
