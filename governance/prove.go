package governance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
)

// stageOf returns the stage that evidence of a type is for.
func stageOf(predicateType string) string {
	switch predicateType {
	case pilot.PerformanceType, pilot.TraceType:
		return stagePerformance
	case compliance.Type:
		return stageCompliance
	}
	return stageSecurity
}

// evidence is stages 1 to 3: the evidence that the guardrails demand in the band is there,
// of this artifact, fresh, and signed by somebody else than the author.
func (r *Repository) evidence(e *Evaluation) {
	if e.Request.Submission == nil {
		return // the subject of the evidence is not known
	}
	e.items = nil
	current := evidence.Current(itemsOf(e.Request))
	for i := range e.Request.Evidence {
		item := &e.Request.Evidence[i]
		if !slices.ContainsFunc(current, func(c evidence.Item) bool { return c.Digest == item.Digest }) {
			continue // a newer statement of the same signer replaces it
		}
		// A statement about something else, or of the future, is not left out in silence.
		var stale *evidence.StaleError
		if err := item.Check(e.target(), evidence.Requirement{PredicateType: item.PredicateType}, e.now); err != nil && !errors.As(err, &stale) {
			e.problem(stageOf(item.PredicateType), Problem{Message: fmt.Sprintf("%s: %v", item.File, err)})
			continue
		}
		if item.IssuedAt.Before(e.Request.Submission.IssuedAt) && stageOf(item.PredicateType) != stageSecurity {
			e.problem(stageOf(item.PredicateType), Problem{Message: fmt.Sprintf("%s: its issuedAt %s is before the submission of %s; measure again", item.File, stamp(item.IssuedAt), stamp(e.Request.Submission.IssuedAt))})
			continue
		}
		e.items = append(e.items, item.Item)
	}
	for _, need := range e.terms.evidence {
		if need.From == "" || bandRank(e.Band) >= bandRank(string(need.From)) {
			r.demand(e, need)
		}
	}
	r.findings(e)
	e.performance()
	r.observed(e)
	r.checklists(e)
}

func bandRank(band string) int { return slices.Index(grantcheck.Bands(), band) }

// target is what the request's evidence has to be about.
func (e *Evaluation) target() evidence.Target {
	q := e.Request
	return evidence.Target{Artifact: q.Submission.Artifact.Digest, Manifest: q.ManifestDigest, PURL: q.Manifest.Spec.Artifact.PURL, Authors: q.Authors}
}

// requirement returns the demand of a guardrail. Measurements of a pilot count only if the
// role measurer signed them.
func requirement(need configs.EvidenceRequirement) evidence.Requirement {
	out := evidence.Requirement{PredicateType: need.PredicateType, Role: need.Role, MaxAge: time.Duration(need.MaxAge)}
	if out.Role == "" && stageOf(need.PredicateType) == stagePerformance {
		out.Role = "measurer"
	}
	return out
}

// demand reports evidence that a guardrail demands and that is not there.
func (r *Repository) demand(e *Evaluation, need configs.EvidenceRequirement) {
	req := requirement(need)
	var last error
	for i := range e.items {
		item := &e.items[i]
		if item.PredicateType != req.PredicateType {
			continue
		}
		err := item.Check(e.target(), req, e.now)
		if err == nil && !item.Independent(e.Request.Authors) {
			err = fmt.Errorf("evidence %s is signed by the author alone; somebody else has to sign it", item.Digest)
		}
		if err == nil {
			return
		}
		last = err
	}
	p := Problem{Role: cmp.Or(req.Role, r.roleOf(req.PredicateType)), Message: fmt.Sprintf("evidence of type %s is missing, which the guardrail demands in band %s", req.PredicateType, e.Band)}
	if last != nil {
		p.Message += ": " + last.Error()
	}
	p.People = r.people(p.Role, e.Request.Authors)
	e.problem(stageOf(req.PredicateType), p)
}

// roleOf returns the first role that signs evidence of a type; "" without one.
func (r *Repository) roleOf(predicateType string) string {
	for _, role := range r.Root.Spec().Roles {
		if slices.Contains(role.PredicateTypes, predicateType) && role.Name != "author" {
			return role.Name
		}
	}
	return ""
}

// findings reports findings of scanners that block.
func (r *Repository) findings(e *Evaluation) {
	blocking, err := r.Blocking(e.Request, e.items, e.now)
	if err != nil {
		e.problem(stageSecurity, Problem{Message: err.Error()})
		return
	}
	for _, block := range blocking {
		text := fmt.Sprintf("%s: %s; %s", block.Finding.ID, block.Why, block.Unblock)
		e.Blocking = append(e.Blocking, text)
		e.problem(stageSecurity, Problem{Message: "finding " + text})
	}
}

// performance compares the newest measurement with the thresholds of the guardrails and with
// the version before.
func (e *Evaluation) performance() {
	now, err := measured(e.Request, e.items)
	if err != nil {
		e.problem(stagePerformance, Problem{Message: err.Error()})
	}
	if now == nil {
		return
	}
	limits := pilot.Limits{}
	for i := range e.guardrails {
		limits = limits.Strictest(pilot.LimitsOf(e.guardrails[i].Performance))
	}
	result := pilot.Evaluate(now, e.previousPerformance, limits)
	for _, check := range result.Checks {
		text := fmt.Sprintf("%s: %s", check.ID, check.Why)
		switch check.Verdict {
		case pilot.Failed:
			e.problem(stagePerformance, Problem{Message: text + "; " + check.Fix, Role: "author"})
		case pilot.Warned:
			e.Observed = append(e.Observed, "warning: "+text)
		case pilot.Passed:
		}
	}
}

// measured returns the newest measurement that role measurer signed, nil without one.
func measured(q *Request, items []evidence.Item) (*pilot.Performance, error) {
	var newest *evidence.Item
	for i := range items {
		item := &items[i]
		if item.PredicateType == pilot.PerformanceType && item.SignedAs("measurer", q.Authors) && (newest == nil || item.ObservedAt.After(newest.ObservedAt)) {
			newest = item
		}
	}
	if newest == nil {
		return nil, nil //nolint:nilnil // a request that was not measured is no error
	}
	p, err := pilot.ParsePerformance(newest.Predicate)
	if err != nil {
		return nil, fmt.Errorf("evidence %s: %w", newest.Digest, err)
	}
	if p.Plugin != q.Plugin || p.Version != q.Version {
		return nil, fmt.Errorf("evidence %s is of %s %s; measure this version", newest.Digest, p.Plugin, p.Version)
	}
	return p, nil
}

// inForce returns the exemptions for the plugin that are in force.
func (e *Evaluation) inForce() []grantcheck.Exemption {
	var out []grantcheck.Exemption
	for i := range e.exemptions {
		out = append(out, e.exemptions[i].Exemption)
	}
	return out
}
