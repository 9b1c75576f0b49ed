package evidence

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// MaxPlan is how far ahead of its statement a remediation plan may be due.
const MaxPlan = 90 * 24 * time.Hour

// RoleSecurity is the role whose VEX statements unblock.
const RoleSecurity = "security"

// VEX is a statement with its signers.
type VEX struct {
	Statement
	Signed   []dsse.Signed
	Evidence string    // digest
	At       time.Time // of the statement, or of the evidence

	need map[string]int // as that of [Item]
}

// Findings returns the findings of all items of [TypeFindings], each id once with the worst
// of its reports, sorted.
func Findings(items []Item) ([]Finding, error) {
	byID := map[string]Finding{}
	for i := range items {
		item := &items[i]
		if item.PredicateType != TypeFindings {
			continue
		}
		p, err := readFindings(item)
		if err != nil {
			return nil, err
		}
		for _, f := range p.Findings {
			if f.ID == "" || f.Rule == "" && f.Vulnerability == "" || !validSeverity(f.Severity) {
				return nil, fmt.Errorf("evidence %s: finding %s has no id, no rule or no severity", item.Digest, quote(f.ID))
			}
			f.Evidence = item.Digest
			if other, again := byID[f.ID]; again {
				evidence := min(other.Evidence, f.Evidence)
				f = mergeFinding(other, f)
				f.Evidence = evidence
			}
			byID[f.ID] = f
		}
		if len(byID) > maxFindings {
			return nil, fmt.Errorf("the evidence has more than %d findings", maxFindings)
		}
	}
	out := make([]Finding, 0, len(byID))
	for _, f := range byID {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity.rank(), a.Severity.rank()), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// readFindings reads a predicate of [TypeFindings] once. The caller must not change it.
func readFindings(item *Item) (*FindingsPredicate, error) {
	if item.findings != nil {
		return item.findings, nil
	}
	p := &FindingsPredicate{}
	if err := strict(item, p); err != nil {
		return nil, err
	}
	return p, nil
}

func validSeverity(s Severity) bool {
	_, known := ParseSeverity(string(s))
	return known || s == Unknown
}

// strict reads a predicate of this project. An unknown field is an error: it could be one
// that a later version relies on.
func strict(item *Item, out any) error {
	d := json.NewDecoder(bytes.NewReader(item.Predicate))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("evidence %s: predicate of %s: %w", item.Digest, item.PredicateType, err)
	}
	return nil
}

// Statements returns the VEX statements of all items.
func Statements(items []Item) ([]VEX, error) {
	var out []VEX
	for i := range items {
		item := &items[i]
		if item.PredicateType != TypeVEX {
			continue
		}
		var p VEXPredicate
		if err := strict(item, &p); err != nil {
			return nil, err
		}
		for _, s := range p.Statements {
			at := item.ObservedAt
			if s.At != nil {
				at = *s.At
			}
			if at.After(item.IssuedAt.Add(maxAhead)) {
				return nil, fmt.Errorf("evidence %s: a statement about %s is of %s, later than its signature: it would count as the newest one until then", item.Digest, quote(s.Vulnerability), at.Format(time.RFC3339))
			}
			if !slices.Contains([]Status{NotAffected, Affected, Fixed, UnderInvestigation}, s.Status) || s.Vulnerability == "" {
				return nil, fmt.Errorf("evidence %s: a statement has no vulnerability, or the status %s", item.Digest, quote(string(s.Status)))
			}
			out = append(out, VEX{s, item.Signed, item.Digest, at, item.need})
		}
		if len(out) > maxStatements {
			return nil, fmt.Errorf("the evidence has more than %d VEX statements", maxStatements)
		}
	}
	return out, nil
}

// Plans returns the remediation plans of all items.
func Plans(items []Item) ([]Plan, error) {
	var out []Plan
	for i := range items {
		item := &items[i]
		if item.PredicateType != TypeRemediation {
			continue
		}
		var p RemediationPredicate
		if err := strict(item, &p); err != nil {
			return nil, err
		}
		for _, plan := range p.Plans {
			if err := plan.check(item.IssuedAt); err != nil {
				return nil, fmt.Errorf("evidence %s: %w", item.Digest, err)
			}
			plan.IssuedAt, plan.Evidence = item.IssuedAt, item.Digest
			out = append(out, plan)
		}
		if len(out) > maxStatements {
			return nil, fmt.Errorf("the evidence has more than %d plans", maxStatements)
		}
	}
	return out, nil
}

func (p *Plan) check(issued time.Time) error {
	switch {
	case p.Finding == "" || strings.TrimSpace(p.Plan) == "" || strings.TrimSpace(p.Owner) == "":
		return fmt.Errorf("plan for %s: finding, plan and owner are required", quote(p.Finding))
	case p.Due.IsZero() || p.Due.After(issued.Add(MaxPlan)):
		return fmt.Errorf("plan for %s: due %s is missing, or more than %d days after the plan", quote(p.Finding), p.Due.Format(time.RFC3339), int(MaxPlan.Hours()/24))
	}
	return nil
}

// NewRemediation returns the predicate of plans.
func NewRemediation(plans []Plan, o Options) (Normalised, error) {
	if len(plans) == 0 {
		return Normalised{}, fmt.Errorf("make remediation: no plan is given")
	}
	p := RemediationPredicate{Head: o.head()}
	for _, plan := range plans {
		if err := plan.check(p.IssuedAt); err != nil {
			return Normalised{}, fmt.Errorf("make remediation: %w", err)
		}
		plan.Plan, plan.Owner, plan.Due = text(plan.Plan), text(plan.Owner), plan.Due.UTC().Truncate(time.Second)
		p.Plans = append(p.Plans, plan)
	}
	return makePredicate(TypeRemediation, p, nil, fmt.Sprintf("%d remediation plans", len(plans)))
}

// named reports whether the finding is one of this vulnerability.
func (f *Finding) named(id string) bool {
	return id != "" && (strings.EqualFold(f.Vulnerability, id) || slices.ContainsFunc(f.Aliases, func(a string) bool { return strings.EqualFold(a, id) }))
}

// Judgement is the VEX status of a finding.
type Judgement struct {
	Status   Status // empty without a statement
	BySecure bool   // the statement is signed by role security, and not by an author alone
	Evidence string
}

// Judge returns the status of a finding. The newest statement of role security counts, and
// without one that of others. Of two statements of one time the worse counts.
func (f *Finding) Judge(vex []VEX, t Target) Judgement {
	var best *VEX
	secure := false
	for i := range vex {
		v := &vex[i]
		if !v.applies(f, t) {
			continue
		}
		item := Item{Signed: v.Signed, need: v.need}
		s := item.SignedAs(RoleSecurity, t.Authors)
		if best == nil || s && !secure || s == secure && v.over(best) {
			best, secure = v, s
		}
	}
	if best == nil {
		return Judgement{}
	}
	return Judgement{best.Status, secure, best.Evidence}
}

// over reports whether v counts instead of another statement.
func (v *VEX) over(other *VEX) bool {
	if !v.At.Equal(other.At) {
		return v.At.After(other.At)
	}
	if a, b := v.Status.rank(), other.Status.rank(); a != b {
		return a > b
	}
	return v.Evidence < other.Evidence
}

func (s Status) rank() int {
	switch s {
	case Fixed:
		return 0
	case NotAffected:
		return 1
	case UnderInvestigation:
		return 2
	case Affected:
		return 3
	}
	return 4
}

// applies reports whether a statement is about a finding: its vulnerability, or the
// finding's own id, in a component of it or in the whole artifact.
func (v *VEX) applies(f *Finding, t Target) bool { return v.isOf(t) && v.names(f) && v.isIn(f, t) }

// isOf reports whether a statement is about the artifact, or about a component in any product.
func (v *VEX) isOf(t Target) bool {
	return len(v.Products) == 0 || slices.ContainsFunc(v.Products, func(p string) bool {
		return p != "" && slices.Contains([]string{t.Artifact, t.PURL, bare(t.PURL)}, p)
	})
}

// names reports whether a statement names a finding, in whatever product and component.
func (v *VEX) names(f *Finding) bool {
	ids := append([]string{v.Vulnerability}, v.Aliases...)
	return slices.ContainsFunc(ids, func(id string) bool { return f.named(id) || id == f.ID })
}

// isIn reports whether a statement is about the component of a finding, or about the whole artifact.
func (v *VEX) isIn(f *Finding, t Target) bool {
	if len(v.Components) == 0 {
		return true
	}
	whole := []string{t.Artifact, t.PURL, f.Component, bare(f.Component)}
	return slices.ContainsFunc(v.Components, func(c string) bool { return c != "" && slices.Contains(whole, c) })
}

// bare returns a package URL without qualifiers and subpath.
func bare(purl string) string {
	if !strings.HasPrefix(purl, "pkg:") {
		return purl
	}
	purl, _, _ = strings.Cut(purl, "#")
	purl, _, _ = strings.Cut(purl, "?")
	return purl
}

// Block is a finding that blocks a grant.
type Block struct {
	Finding Finding `json:"finding"`
	Why     string  `json:"why"`
	// Unblock is what the author or a reviewer can do.
	Unblock string `json:"unblock"`
}

// Blocking returns the findings from a severity that block a grant at a time, in the order
// of findings. A finding does not block if role security states not_affected or fixed, if a
// plan of remediation is not due yet, or if exempt reports an exemption for it; exempt may
// be nil.
func Blocking(findings []Finding, vex []VEX, plans []Plan, t Target, threshold Severity, exempt func(*Finding) bool, now time.Time) []Block {
	var out []Block
	for i := range findings {
		f := &findings[i]
		if !f.Severity.AtLeast(threshold) {
			continue
		}
		judged := f.Judge(vex, t)
		if judged.Cleared() {
			continue
		}
		why, planned := f.planned(plans, now)
		if planned || exempt != nil && exempt(f) {
			continue
		}
		if judged.Status != "" {
			why += "; " + judged.text()
		} else {
			why += f.besides(vex, t)
		}
		out = append(out, Block{*f, why, f.unblock(judged)})
	}
	return out
}

// besides describes a statement that names the finding, and is about something else.
func (f *Finding) besides(vex []VEX, t Target) string {
	i := slices.IndexFunc(vex, func(v VEX) bool { return v.names(f) })
	switch {
	case i < 0:
		return ""
	case !vex[i].isOf(t):
		return fmt.Sprintf("; VEX states %s in product %s, which is not this artifact (%s)", vex[i].Status, text(vex[i].Products[0]), cmp.Or(t.PURL, t.Artifact))
	case f.Component == "":
		return fmt.Sprintf("; VEX states %s of component %s, and the scan states no component: write it about the artifact (%s), or add a scan as CycloneDX", vex[i].Status, text(vex[i].Components[0]), cmp.Or(t.PURL, t.Artifact))
	}
	return fmt.Sprintf("; VEX states %s of component %s, and the finding is in %s", vex[i].Status, text(vex[i].Components[0]), text(f.Component))
}

// Cleared reports whether role security states that the finding does no harm.
func (j Judgement) Cleared() bool {
	return j.BySecure && (j.Status == NotAffected || j.Status == Fixed)
}

// Name returns the vulnerability or the rule, with the component.
func (f *Finding) Name() string {
	name := f.Vulnerability
	if name == "" {
		name = f.Rule
	}
	if f.Component != "" {
		name += " in " + f.Component
	}
	return name
}

func (j Judgement) text() string {
	if j.BySecure {
		return "role security states " + string(j.Status)
	}
	return "VEX states " + string(j.Status) + ", but role security did not sign it"
}

// planned reports whether a plan for the finding is not due yet, and otherwise why not.
func (f *Finding) planned(plans []Plan, now time.Time) (why string, ok bool) {
	why = fmt.Sprintf("severity %s without a VEX statement of role security and without a plan", f.Severity)
	var newest *Plan
	for i := range plans {
		p := &plans[i]
		if p.Finding != f.ID && !f.named(p.Finding) {
			continue
		}
		// The newest plan counts. Of two of one time, the one that is due first.
		if newest == nil || p.IssuedAt.After(newest.IssuedAt) || p.IssuedAt.Equal(newest.IssuedAt) && p.Due.Before(newest.Due) {
			newest = p
		}
	}
	switch {
	case newest == nil:
		return why, false
	case !now.Before(newest.Due):
		return fmt.Sprintf("severity %s, and its plan was due %s", f.Severity, newest.Due.Format(time.RFC3339)), false
	}
	return "", true
}

func (f *Finding) unblock(j Judgement) string {
	id := f.Vulnerability
	if id == "" {
		id = f.ID
	}
	out := fmt.Sprintf("fix it and add a new scan; or a plan: chaperonectl plugin evidence add DIR --plan %s --due TIME --owner WHO", f.ID)
	if j.Status != Affected {
		out += fmt.Sprintf("; or an OpenVEX statement about %s signed by role security; or an exemption", text(id))
	}
	return out
}

// Exempt returns a function for [Blocking] that reports the exemptions of a plugin that are
// in force. One without a permission is for no finding: it would be for all of them.
func Exempt(plugin string, exemptions []grantcheck.Exemption, now time.Time) func(*Finding) bool {
	return func(f *Finding) bool {
		return slices.ContainsFunc(exemptions, func(e grantcheck.Exemption) bool {
			return e.GuardrailRule == grantcheck.SeverityRule && e.Plugin == plugin && (e.Permission == f.ID || f.named(e.Permission)) &&
				e.State(now, 0) == grantcheck.ExemptionActive
		})
	}
}
