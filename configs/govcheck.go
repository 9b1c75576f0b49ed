package configs

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// maxLine bounds texts that people read on one line, in bytes.
const maxLine = 1024

// line reports a required text that is not one line to read.
func line(report reporter, path, value string) {
	if strings.TrimSpace(value) == "" {
		report(path, "is empty; write one line of text")
		return
	}
	optionalLine(report, path, value)
}

func optionalLine(report reporter, path, value string) {
	if len(value) > maxLine {
		report(path, "has %d bytes; write %d at most", len(value), maxLine)
	} else if strings.ContainsFunc(value, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }) {
		report(path, "holds a line break, a control character or one that is not visible; write one line of text")
	}
}

// unique reports a name that is invalid, or that an earlier entry has.
func unique(report reporter, path, name string, before map[string]bool) {
	switch {
	case name == "": // reported as missing
	case !authz.IsName(name):
		report(path, notAName, clip(name))
	case before[name]:
		report(path, "%q is the name of an earlier entry", clip(name))
	}
	before[name] = true
}

// word reports a text that is not one word: names of roles, identities, tickets.
func word(report reporter, path, value string) {
	if value == "" || len(value) > 256 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		report(path, "%q is not one word of ASCII letters, digits and signs", clip(value))
	}
}

// digestForm is how documents refer to others and to artifacts.
const digestForm = `^sha256:[0-9a-f]{64}$`

// versionForm is the expression that semver.org 2.0.0 suggests.
const versionForm = `^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$`

func matches(form, text string) bool {
	return len(text) <= 256 && regexp.MustCompile(form).MatchString(text)
}

// validate reports what is wrong in the governance fields of a guardrail by themselves.
// Its conditions in CEL are compiled by chaperone plugin check.
func (g *Governance) validate(report, warn reporter) {
	if g.Generation < 0 {
		report("spec.generation", "is %d; write 1, and one more with each change", g.Generation)
	}
	ids := map[string]bool{}
	for i, r := range g.Rules {
		path := at("spec.rules", i)
		unique(report, path+".id", r.ID, ids)
		line(report, path+".message", r.Message)
		if strings.TrimSpace(r.Require) == "" {
			report(path+".require", "is empty; write a condition in CEL")
		}
	}
	for _, band := range Bands() {
		if terms := g.Approvals.Of(band); terms != nil {
			terms.validate("spec.approvals."+string(band), report, warn)
		}
	}
	g.validateEvidence(report)
	if m := g.Performance.Mediation; m > 10000 {
		report("spec.performance.mediation", "%s is more than 100%%", m)
	}
	longest, of := authz.Duration(0), Band("")
	for _, band := range Bands() {
		life := g.Lifetimes.Of(band)
		if longest > 0 && life > longest {
			report("spec.lifetimes."+string(band), "%s is longer than the %s of band %s; a higher risk ends no later", life, longest, of)
		}
		if life > 0 {
			longest, of = life, band
		}
	}
	if s := g.OnStaleEvidence; s != nil {
		oneOf(report, "spec.onStaleEvidence.then", s.Then, authz.LevelPause, authz.LevelQuarantine)
	}
	clear(ids)
	for i := range g.Containment {
		g.Containment[i].validate(at("spec.containment", i), ids, report)
	}
	oneOf(report, "spec.severities.block", g.Severities.Block, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical)
}

func (g *Governance) validateEvidence(report reporter) {
	types := map[string]bool{}
	for i, e := range g.Evidence {
		path := at("spec.evidence", i)
		if !strings.HasPrefix(e.PredicateType, "https://") {
			report(path+".predicateType", "%q is not a predicate type; write its URL, as in https://chaperone.dev/attestation/findings/v1", clip(e.PredicateType))
		} else {
			word(report, path+".predicateType", e.PredicateType)
		}
		if types[e.PredicateType+" "+e.Role] {
			report(path+".predicateType", "%q is required by an earlier entry", clip(e.PredicateType))
		}
		types[e.PredicateType+" "+e.Role] = true
		oneOf(report, path+".from", e.From, Bands()...)
		if e.Role != "" {
			word(report, path+".role", e.Role)
		}
	}
}

func (t *ApprovalTerms) validate(path string, report, warn reporter) {
	if len(t.Roles) == 0 {
		warn(path+".roles", "is empty: a grant of this band needs no approval; write who has to approve, as in [{name: security, min: 1}]")
	}
	names := map[string]bool{}
	for i, r := range t.Roles {
		field := at(path+".roles", i)
		word(report, field+".name", r.Name)
		if names[r.Name] {
			report(field+".name", "%q is given twice", clip(r.Name))
		}
		names[r.Name] = true
		if r.Min < 1 {
			report(field+".min", "is %d; write how many people have to approve, from 1", r.Min)
		}
	}
	if e := t.Escalate; e != nil {
		word(report, path+".escalate.role", e.Role)
	}
}

func (c *Containment) validate(path string, ids map[string]bool, report reporter) {
	unique(report, path+".id", c.ID, ids)
	if len(c.Reasons) == 0 {
		report(path+".reasons", "is empty; write reasons of refusals, as in address_not_allowed")
	}
	var known []string
	for _, r := range authz.Reasons() {
		if !r.Allowed() {
			known = append(known, r.String())
		}
	}
	for i, reason := range c.Reasons {
		if !slices.Contains(known, reason) {
			report(at(path+".reasons", i), "%q is not a reason of a refusal; write some of %s", clip(reason), strings.Join(known, ", "))
		} else if slices.Contains(c.Reasons[:i], reason) {
			report(at(path+".reasons", i), "%q is given twice", reason)
		}
	}
	if c.Count < 1 {
		report(path+".count", "is %d; write how many refusals are too many, from 1", c.Count)
	}
	oneOf(report, path+".then", c.Then, ContainPause, ContainQuarantine, ContainStop)
}

// roles returns the roles of a trust root that the guardrail names, by field.
func (g *Governance) roles() map[string]string {
	out := map[string]string{}
	for _, band := range Bands() {
		terms, path := g.Approvals.Of(band), "spec.approvals."+string(band)
		if terms == nil {
			continue
		}
		for i, r := range terms.Roles {
			out[at(path+".roles", i)+".name"] = r.Name
		}
		if terms.Escalate != nil {
			out[path+".escalate.role"] = terms.Escalate.Role
		}
	}
	for i, e := range g.Evidence {
		if e.Role != "" {
			out[at("spec.evidence", i)+".role"] = e.Role
		}
	}
	return out
}

// checkRoles reports the roles that guardrails name and no trust root beside them has.
func (l *loader) checkRoles(documents []*source) {
	known := map[string]bool{}
	for _, d := range documents {
		if d.trust != nil {
			for _, r := range d.trust.Spec.Roles {
				known[r.Name] = true
			}
		}
	}
	if len(known) == 0 {
		return
	}
	for _, d := range documents {
		if d.guardrail == nil {
			continue
		}
		for field, role := range d.guardrail.Spec.roles() {
			if !known[role] {
				d.reporter(&l.errs)(field, "%q is not a role of the trust root; add it there, or name one that is", clip(role))
			}
		}
	}
}

// validate reports what is wrong in an exemption by itself.
func (e *GrantExemption) validate(report reporter) {
	e.validateRule(report)
	if !authz.IsName(e.Scope.Plugin) && e.Scope.Plugin != "" {
		report("spec.scope.plugin", notAName, clip(e.Scope.Plugin))
	}
	if e.Scope.Permission != "" {
		word(report, "spec.scope.permission", e.Scope.Permission)
	}
	line(report, "spec.owner", e.Owner)
	line(report, "spec.ticket", e.Ticket)
	line(report, "spec.justification", e.Justification)
	for i, c := range e.CompensatingControls {
		path := at("spec.compensatingControls", i)
		switch {
		case c.Rule == "" && strings.TrimSpace(c.Description) == "":
			report(path, "states nothing; write rule with limits, or a description")
		case c.Rule == "" && len(c.Limits.Stated()) > 0:
			report(path+".limits", "are of no rule; write its id under rule")
		case c.Rule != "" && !authz.IsName(c.Rule):
			report(path+".rule", notAName, clip(c.Rule))
		}
		optionalLine(report, path+".description", c.Description)
	}
	if e.NotAfter.IsZero() {
		report("spec.notAfter", "is not a time; every exemption ends, write when")
	}
	if e.MaxUses < 0 {
		report("spec.maxUses", "is %d; write a number from 1, or leave it out for any number", e.MaxUses)
	}
}

// validateRule reports a bound that no exemption can be from, and one that allow does not
// go with.
func (e *GrantExemption) validateRule(report reporter) {
	const path = "spec.guardrailRule"
	stated := statedFields(e.Allow)
	part, rest, _ := strings.Cut(e.GuardrailRule, ".")
	switch {
	case e.GuardrailRule == "": // reported as missing
		return
	case part == "never":
		report(path, "%q is a never-list; nothing is exempted from it", clip(e.GuardrailRule))
		return
	case part == "ceilings":
		ceiling, _, _ := strings.Cut(rest, ".")
		var known []string
		for _, f := range fieldsOf(reflect.TypeFor[authz.Ceilings]()) {
			known = append(known, f.name)
		}
		switch {
		case !slices.Contains(known, ceiling):
			report(path, "%q is not a ceiling; write ceilings. and one of %s", clip(e.GuardrailRule), strings.Join(known, ", "))
		case !slices.Equal(stated, []string{ceiling}):
			report("spec.allow", "states %s; write what is allowed in place of %s, and no other ceiling", listed(stated), ceiling)
		}
		return
	case e.GuardrailRule == grantcheck.SeverityRule:
		if e.Scope.Permission == "" {
			report("spec.scope.permission", "is missing; write the id of the finding or its vulnerability")
		}
	case !authz.IsName(strings.TrimPrefix(e.GuardrailRule, "rules.")):
		report(path, "%q is not a bound of a guardrail; write a ceiling as in ceilings.tlsMin, the id of a rule as in rules.read-only, or %s", clip(e.GuardrailRule), grantcheck.SeverityRule)
	}
	if len(stated) > 0 {
		report("spec.allow", "states %s, and %s is not a ceiling; remove it", listed(stated), clip(e.GuardrailRule))
	}
}

func listed(names []string) string {
	if len(names) == 0 {
		return "no ceiling"
	}
	return strings.Join(names, ", ")
}

// statedFields returns the names of the fields of a struct that are not zero.
func statedFields(v any) (out []string) {
	value := reflect.ValueOf(v)
	for _, f := range fieldsOf(value.Type()) {
		if !value.FieldByIndex(f.index).IsZero() {
			out = append(out, f.name)
		}
	}
	return out
}

// validate reports what is wrong in a rubric by itself.
func (r *RiskRubric) validate(report reporter) {
	if r.Generation < 1 {
		report("spec.generation", "is %d; write 1, and one more with each change", r.Generation)
	}
	checkPoints(reflect.ValueOf(*r), "spec", report)
	if b := r.Bands; b.Moderate <= 0 || b.High <= b.Moderate || b.Critical <= b.High {
		report("spec.bands", "are moderate %d, high %d, critical %d; each has to begin above the one before, and moderate above 0", b.Moderate, b.High, b.Critical)
	}
	if sum := r.Caps.Exposure + r.Caps.Vulnerabilities + r.Caps.Provenance + r.Caps.Behaviour + r.Caps.Compliance; sum > 100 {
		report("spec.caps", "add up to %d; a score is at most 100", sum)
	}
}

// checkPoints reports points below v that are not from 0 to 100.
func checkPoints(v reflect.Value, path string, report reporter) {
	for _, f := range fieldsOf(v.Type()) {
		at, field := join(path, f.name), v.FieldByIndex(f.index)
		switch {
		case field.Type() == reflect.TypeFor[Points]():
			if p := field.Int(); p < 0 || p > 100 {
				report(at, "is %d; write points from 0 to 100", p)
			}
		case field.Kind() == reflect.Struct && field.Type().PkgPath() == v.Type().PkgPath():
			checkPoints(field, at, report)
		}
	}
}

// validate reports what is wrong in a trust root by itself, at the role and the key.
func (t *TrustRoot) validate(name string, report reporter) {
	if name == "" || t.Version == 0 {
		return // reported as missing
	}
	_, err := dsse.NewRoot(t.Root(name))
	if err == nil {
		return
	}
	message, path := strings.TrimPrefix(err.Error(), "trust root "+name+": "), "spec"
	for _, list := range []string{"roles", "keys"} {
		place := regexp.MustCompile(`(?:^|: )` + list + `\[(\d+)\]: `).FindStringSubmatchIndex(message)
		if place == nil {
			continue
		}
		path += fmt.Sprintf(".%s[%s]", list, message[place[2]:place[3]])
		message = message[place[1]:]
	}
	report(path, "%s", message)
}

// validate reports what is wrong in a checklist by itself.
func (c *ComplianceChecklist) validate(report reporter) {
	if len(c.Items) == 0 {
		report("spec.items", "is empty; write the controls")
	}
	ids := map[string]bool{}
	for i := range c.Items {
		item, path := &c.Items[i], at("spec.items", i)
		unique(report, path+".id", item.ID, ids)
		line(report, path+".control", item.Control)
		line(report, path+".title", item.Title)
		oneOf(report, path+".proof", item.Proof, ProofAuto, ProofAttested)
		item.validateQuery(path+".query", report)
	}
}

func (i *ChecklistItem) validateQuery(path string, report reporter) {
	switch {
	case i.Proof == ProofAttested && i.Query != nil:
		report(path, "is beside proof: attested; remove it, or write proof: auto")
	case i.Proof == ProofAuto && i.Query == nil:
		report(path, "is missing; proof: auto needs one, as in {tlsMin: \"1.3\"}")
	}
	if i.Query == nil {
		return
	}
	q := *i.Query
	if stated := statedFields(q); len(stated) != 1 {
		report(path, "states %d conditions; write exactly one", len(stated))
	}
	for j, region := range q.Regions {
		if !authz.IsName(region) {
			report(at(path+".regions", j), notAName, clip(region))
		}
	}
	if q.TLSMin != "" && q.TLSMin != "1.2" && q.TLSMin != "1.3" {
		report(path+".tlsMin", `%q is not a version; use "1.2" or "1.3"`, clip(q.TLSMin))
	}
	for j, class := range q.Classes {
		if class == "" {
			report(at(path+".classes", j), "is empty; write a class of data")
		}
		oneOf(report, at(path+".classes", j), class, authz.DataPublic, authz.DataInternal, authz.DataConfidential, authz.DataRestricted)
	}
	if q.Undeclared != nil && *q.Undeclared < 0 {
		report(path+".undeclared", "is %d; write a number from 0", *q.Undeclared)
	}
	if q.Mediation > 10000 {
		report(path+".mediation", "%s is more than 100%%", q.Mediation)
	}
}
