package plugintest

import (
	"fmt"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Coverage is the share of a policy that expectations use. A part of a rule is a host, a
// port, a method, a path or an upgrade that it lists, or a name of what it grants of the
// content of requests.
type Coverage struct {
	Rules        int             `json:"rules"`
	CoveredRules int             `json:"coveredRules"` // by which a request of an allow that passes is granted
	Parts        int             `json:"parts"`
	CoveredParts int             `json:"coveredParts"` // that one of these requests needs
	Percent      float64         `json:"percent"`      // of the parts
	Uncovered    []UncoveredRule `json:"uncovered"`    // in the order of files
}

// UncoveredRule is a rule of which no expectation uses some part.
type UncoveredRule struct {
	Rule  string          `json:"rule"` // GRANT/ID
	Place                 // of the rule
	Whole bool            `json:"whole"` // no request is granted by it
	Parts []UncoveredPart `json:"parts"`
}

// UncoveredPart is one part of a rule that no expectation uses.
type UncoveredPart struct {
	Field string `json:"field"` // hosts, ports, methods, paths or upgrades, or as in statements.verbs
	Value string `json:"value"`
	Place
}

// Place is where something is written.
type Place struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
}

// String returns FILE:LINE:COLUMN.
func (p Place) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// Result returns whether the coverage is at least a percentage.
func (c *Coverage) Result(least float64) Result {
	r := Result{Test: "coverage", Name: fmt.Sprintf("at least %g%% of the parts of rules", least), Status: Pass}
	if c.Percent < least {
		r.Status, r.Expected, r.Got = Fail, fmt.Sprintf("%g%%", least), fmt.Sprintf("%.1f%%", c.Percent)
		r.Remedy = "add expectations for what is not covered"
		if len(c.Uncovered) > 0 {
			r.File, r.Line, r.Column = c.Uncovered[0].File, c.Uncovered[0].Line, c.Uncovered[0].Column
		}
	}
	return r
}

// Text returns the coverage as sentences: a summary, then a line for each rule that is not
// covered.
func (c *Coverage) Text() (out []string) {
	out = append(out, fmt.Sprintf("coverage: %d of %d rules; %d of %d hosts, ports, methods, paths and upgrades: %.1f%%",
		c.CoveredRules, c.Rules, c.CoveredParts, c.Parts, c.Percent))
	for _, r := range c.Uncovered {
		if r.Whole {
			out = append(out, fmt.Sprintf("not covered: %s (%s): no request is granted by it", r.Rule, r.Place))
			continue
		}
		var parts []string
		for _, p := range r.Parts {
			parts = append(parts, fmt.Sprintf("%s %s (line %d)", p.Field, p.Value, p.Line))
		}
		out = append(out, fmt.Sprintf("not covered: %s (%s): %s", r.Rule, r.Place, strings.Join(parts, ", ")))
	}
	return out
}

// rulePart is one part of a rule.
type rulePart struct {
	field, value string
	place        Place
	used         bool
	alone        *authz.Snapshot // the policy of the rule with this part alone
}

// coveredRule is a rule and what of it is used.
type coveredRule struct {
	name  string
	place Place
	used  bool
	parts []*rulePart
	spec  *authz.Rule
}

// Cover returns the coverage of all rules of the suites' policies by their expectations.
func Cover(suites []*Suite) Coverage {
	rules := map[Place]*coveredRule{}
	for _, s := range suites {
		own := s.coveredRules(rules)
		for _, e := range s.expectations {
			if e.form != "allow" {
				continue
			}
			if o := e.decide(s.subject.Snapshot); o.reason == authz.Granted && o.asExpected(e, s.subject.Snapshot) {
				own[o.decision.Grant+"/"+o.decision.Rule].use(e)
			}
		}
	}
	return coverage(rules)
}

// coveredRules returns the rules of the suite's policy by GRANT/ID, and adds those that
// are new to all.
func (s *Suite) coveredRules(all map[Place]*coveredRule) map[string]*coveredRule {
	own := map[string]*coveredRule{}
	for gi := range s.subject.Input.Grants {
		g := &s.subject.Input.Grants[gi]
		for ri := range g.Rules {
			place := s.place(g.Origin, fmt.Sprintf("spec.rules[%d]", ri))
			if all[place] == nil {
				all[place] = s.coveredRule(g, ri, place)
			}
			own[g.Name+"/"+g.Rules[ri].ID] = all[place]
		}
	}
	return own
}

func (s *Suite) place(document authz.Origin, field string) Place {
	p, _ := s.subject.FieldPosition(document, field)
	return Place{p.File, p.Line, p.Column}
}

// coveredRule returns a rule of which nothing is used yet.
func (s *Suite) coveredRule(g *authz.Grant, index int, place Place) *coveredRule {
	r := g.Rules[index]
	out := &coveredRule{name: g.Name + "/" + r.ID, place: place, spec: &g.Rules[index]}
	for _, part := range partsOf(&r) {
		for i, value := range part.values {
			one := r
			part.only(&one, i)
			at := s.place(g.Origin, fmt.Sprintf("spec.rules[%d].%s[%d]", index, part.path, i))
			out.parts = append(out.parts, &rulePart{field: part.field, value: value, place: at, alone: s.alone(g, one)})
		}
	}
	for _, part := range policy.Parts(r.Content) {
		for i, value := range part.Values {
			at := s.place(g.Origin, fmt.Sprintf("spec.rules[%d].%s[%d]", index, part.Field, i))
			out.parts = append(out.parts, &rulePart{field: part.Field, value: value, place: at})
		}
	}
	return out
}

// partList is a list of a rule, of which one part after the other can stand alone.
type partList struct {
	field, path string
	values      []string
	only        func(r *authz.Rule, i int)
}

func partsOf(r *authz.Rule) []partList {
	ports := make([]string, len(r.To.Ports))
	for i, p := range r.To.Ports {
		ports[i] = fmt.Sprint(p)
	}
	return []partList{
		{"hosts", "to.hosts", r.To.Hosts, func(r *authz.Rule, i int) { r.To.Hosts = r.To.Hosts[i : i+1] }},
		{"ports", "to.ports", ports, func(r *authz.Rule, i int) { r.To.Ports = r.To.Ports[i : i+1] }},
		{"methods", "methods", r.Methods, func(r *authz.Rule, i int) { r.Methods = r.Methods[i : i+1] }},
		{"paths", "paths", r.Paths, func(r *authz.Rule, i int) { r.Paths = r.Paths[i : i+1] }},
		{"upgrades", "upgrades", r.Upgrades, func(r *authz.Rule, i int) { r.Upgrades = r.Upgrades[i : i+1] }},
	}
}

// alone returns the policy of one rule, without a credential, a mode, limits and data: they
// do not matter for what it matches. It is nil for a rule that cannot stand alone.
func (s *Suite) alone(g *authz.Grant, r authz.Rule) *authz.Snapshot {
	if !r.To.Scheme.Database() { // its rules must have a credential
		r.Credential, r.WildcardCredential, r.Insecure = "", false, false
	}
	r.Mode, r.ObserveUntil, r.Limits, r.Data = authz.ModeEnforce, time.Time{}, authz.Limits{}, authz.Data{}
	grant := authz.Grant{Name: g.Name, Plugin: g.Plugin, NotAfter: g.NotAfter, Rules: []authz.Rule{r}}
	if r.Credential != "" {
		grant.Credentials = g.Credentials
	}
	compiled, problems := authz.Compile(authz.Input{Plugin: s.Plugin, Grants: []authz.Grant{grant}}, s.at)
	if len(problems) > 0 {
		return nil
	}
	return inForce(compiled)
}

func inForce(p *authz.Policy) *authz.Snapshot {
	var engine authz.Engine
	engine.Install(p)
	return engine.Current()
}

// use marks the parts of the rule that a request needs. Of several patterns that match,
// the most specific one counts.
func (r *coveredRule) use(e *expectation) {
	if r == nil {
		return
	}
	r.used = true
	for _, field := range []string{"hosts", "ports", "methods", "paths", "upgrades"} {
		if field == "upgrades" && e.request.Action.Upgrade == "" {
			continue
		}
		var best *rulePart
		for _, p := range r.parts {
			if p.field != field || p.alone == nil || !p.alone.Decide(e.request, authz.Usage{}, e.at).Allowed() {
				continue
			}
			if best == nil || moreSpecific(p.value, best.value) {
				best = p
			}
		}
		if best != nil {
			best.used = true
		}
	}
	r.useContent(policy.ParseFacts(e.request.Facts))
}

// useContent marks the names by which the rule grants what a request does.
func (r *coveredRule) useContent(facts []authz.Fact) {
	for _, part := range policy.Parts(r.spec.Content) {
		for _, at := range part.Used(facts) {
			for _, p := range r.parts {
				if p.field == part.Field && p.value == part.Values[at] {
					p.used = true
				}
			}
		}
	}
}

// moreSpecific reports whether pattern a is preferred to b if both match.
func moreSpecific(a, b string) bool {
	if wild := strings.Contains(a, "*"); wild != strings.Contains(b, "*") {
		return !wild
	}
	return len(strings.ReplaceAll(a, "*", "")) > len(strings.ReplaceAll(b, "*", ""))
}

// coverage counts what is used.
func coverage(rules map[Place]*coveredRule) Coverage {
	out := Coverage{Rules: len(rules), Uncovered: []UncoveredRule{}}
	for _, r := range rules {
		missing := UncoveredRule{Rule: r.name, Place: r.place, Whole: !r.used}
		if r.used {
			out.CoveredRules++
		}
		for _, p := range r.parts {
			out.Parts++
			if p.used {
				out.CoveredParts++
			} else {
				missing.Parts = append(missing.Parts, UncoveredPart{p.field, p.value, p.place})
			}
		}
		if len(missing.Parts) > 0 {
			out.Uncovered = append(out.Uncovered, missing)
		}
	}
	sortlarge.By(out.Uncovered, func(a, b *UncoveredRule) int { return comparePlaces(a.Place, b.Place) })
	out.Percent = 100
	if out.Parts > 0 {
		out.Percent = float64(out.CoveredParts) * 100 / float64(out.Parts)
	}
	return out
}
