package risk

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
)

// The parts of a score.
const (
	PartExposure        = "exposure"
	PartVulnerabilities = "vulnerabilities"
	PartProvenance      = "provenance"
	PartBehaviour       = "behaviour"
	PartCompliance      = "compliance"
)

// maxScore is the highest score, and that of a hard stop.
const maxScore = 100

// Score computes the risk of a request. An error is one of evidence that cannot be read; a
// request with such evidence has no score.
func Score(rubric Rubric, req *Request) (*Result, error) {
	f, err := read(req)
	if err != nil {
		return nil, fmt.Errorf("score %s %s: %w", req.Plugin, req.Version, err)
	}
	out := &Result{Plugin: req.Plugin, Version: req.Version, AsOf: req.AsOf.UTC().Truncate(time.Second), Inputs: f.inputs(rubric.Digest), Stops: f.stops}
	for _, part := range []struct {
		name    string
		limit   configs.Points
		addends []Addend
	}{
		{PartExposure, rubric.Caps.Exposure, f.exposure(rubric.Exposure)},
		{PartVulnerabilities, rubric.Caps.Vulnerabilities, f.vulnerabilities(rubric.Vulnerabilities)},
		{PartProvenance, rubric.Caps.Provenance, f.provenance(rubric.Provenance)},
		{PartBehaviour, rubric.Caps.Behaviour, f.behaviour(rubric.Behaviour)},
		{PartCompliance, rubric.Caps.Compliance, f.compliance(rubric.Compliance)},
	} {
		out.add(part.name, int(part.limit), part.addends)
	}
	out.finish(rubric.Bands)
	return out, nil
}

// add adds a part.
func (r *Result) add(name string, limit int, addends []Addend) {
	sum := 0
	for i := range addends {
		addends[i].Part = name
		sum += addends[i].Counted
	}
	slices.SortFunc(addends, func(a, b Addend) int {
		return cmp.Or(cmp.Compare(b.Counted, a.Counted), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Evidence, b.Evidence))
	})
	r.Parts = append(r.Parts, Part{Name: name, Sum: sum, Cap: limit, Points: min(sum, limit)})
	r.Addends = append(r.Addends, addends...)
}

// finish sets score and band.
func (r *Result) finish(bands configs.RubricBands) {
	for _, p := range r.Parts {
		r.Score += p.Points
	}
	r.Score = min(r.Score, maxScore)
	slices.SortFunc(r.Stops, func(a, b Stop) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Evidence, b.Evidence), cmp.Compare(a.Text, b.Text))
	})
	if r.Stops = slices.Compact(r.Stops); len(r.Stops) > 0 {
		r.Score = maxScore
	}
	r.Band = grantcheck.BandLow
	for _, b := range []struct {
		name string
		from configs.Points
	}{
		{grantcheck.BandModerate, bands.Moderate}, {grantcheck.BandHigh, bands.High}, {grantcheck.BandCritical, bands.Critical},
	} {
		if r.Score >= int(b.from) {
			r.Band = b.name
		}
	}
	if len(r.Stops) > 0 {
		r.Band = grantcheck.BandCritical
	}
	if r.Addends == nil {
		r.Addends = []Addend{}
	}
}

// point returns an addend that counts in full.
func point(code, ref string, points configs.Points, digest, format string, args ...any) Addend {
	return Addend{Code: code, Ref: ref, Points: int(points), Counted: int(points), Evidence: digest, Text: fmt.Sprintf(format, args...)}
}

// vulnerabilities are the points of findings.
func (f *facts) vulnerabilities(p configs.VulnerabilityPoints) []Addend {
	var out []Addend
	for i := range f.findings {
		if a := f.finding(&f.findings[i], p); a.Points > 0 {
			out = append(out, a)
		}
	}
	if f.fresh(evidence.TypeFindings, "") == nil {
		out = append(out, point("stale_scan", "", p.StaleScan, "", "no scan of this artifact that the guardrails accept is as young as its maxAge"))
	}
	return out
}

// likely is a probability of exploitation, in thousandths, that counts like exploitation.
const likely = 500

func (f *facts) finding(found *evidence.Finding, p configs.VulnerabilityPoints) Addend {
	points := map[evidence.Severity]configs.Points{
		evidence.Critical: p.Critical, evidence.High: p.High, evidence.Unknown: p.High, evidence.Medium: p.Medium, evidence.Low: p.Low,
	}[found.Severity]
	code := "finding_" + string(found.Severity)
	if found.Exploited || found.EPSS >= likely {
		points, code = max(points, p.Exploited), "finding_exploited"
	}
	a := point(code, found.ID, points, found.Evidence, "%s, severity %s", found.Name(), found.Severity)
	switch j := found.Judge(f.vex, f.Target); {
	case j.Cleared():
		a.Counted, a.Text = 0, a.Text+": "+string(j.Status)+" by role security ("+j.Evidence+")"
	case j.Status == evidence.NotAffected || j.Status == evidence.Fixed:
		a.Counted, a.Text = half(a.Points), a.Text+": "+string(j.Status)+" without a signature of role security counts half ("+j.Evidence+")"
	case j.Status != "":
		a.Text += ": " + string(j.Status) + " (" + j.Evidence + ")"
	}
	return a
}

// half rounds up, so that a half of something is never nothing.
func half(n int) int { return (n + 1) / 2 }

// provenance are the points of how the artifact was made.
func (f *facts) provenance(p configs.ProvenancePoints) []Addend {
	var out []Addend
	level, item := 0, (*evidence.Item)(nil)
	for _, predicateType := range []string{evidence.TypeProvenance, evidence.TypeSLSA} {
		if i := f.fresh(predicateType, ""); i != nil {
			if l := i.BuildLevel(f.Target.Authors); l > level {
				level, item = l, i
			}
		}
	}
	switch level {
	case 0:
		out = append(out, point("provenance_missing", "", p.None, "", "no provenance"))
	case 1:
		out = append(out, point("provenance_build_1", "", p.Build1, item.Digest, "provenance of SLSA Build L1: the author's own, or of no higher level"))
	case 2:
		out = append(out, point("provenance_build_2", "", p.Build2, item.Digest, "provenance of SLSA Build L2"))
	default:
		out = append(out, point("provenance_build_3", "", p.Build3, item.Digest, "provenance of SLSA Build L3"))
	}
	if f.fresh(evidence.TypeSBOM, "") == nil {
		out = append(out, point("sbom_missing", "", p.SBOMMissing, "", "no bill of materials that counts"))
	}
	if f.AuthorSince.IsZero() || f.AsOf.Sub(f.AuthorSince) < time.Duration(p.NewKeyAge) {
		out = append(out, point("new_key", "", p.NewKey, f.Submission, "the author's key was first seen less than %s ago", p.NewKeyAge))
	}
	return slices.DeleteFunc(out, func(a Addend) bool { return a.Points == 0 })
}

// Thresholds of the behaviour in a pilot.
const (
	fewUndeclared  = 3
	wholeMediation = 999_900 // millionths
	smallUnseen    = 10_000  // millionths
)

// behaviour are the points of what a pilot measured. Without one, mediation and coverage are
// unknown, and count like bad ones.
func (f *facts) behaviour(p configs.BehaviourPoints) []Addend {
	var out []Addend
	if f.trace == nil {
		out = append(out,
			point("mediation", "", p.Mediation, "", "no pilot that counts has measured which connections the sidecar decided"),
			point("unseen", "", p.UnseenMass, "", "no pilot that counts has estimated the accesses that it did not see"))
	} else {
		out = append(out, traced(f.trace, p)...)
	}
	if f.speed != nil {
		out = append(out, f.measuredSpeed(p)...)
	}
	return slices.DeleteFunc(out, func(a Addend) bool { return a.Points == 0 })
}

func traced(m *measured[pilot.Trace], p configs.BehaviourPoints) []Addend {
	var out []Addend
	t := m.predicate
	switch n := len(t.Undeclared); {
	case n > fewUndeclared || t.UndeclaredMore > 0:
		out = append(out, point("undeclared", "", p.UndeclaredMany, m.digest, "%d undeclared accesses or more", n))
	case n > 0:
		out = append(out, point("undeclared", "", p.UndeclaredFew, m.digest, "%d undeclared accesses", n))
	}
	if !t.Mediation.Known || t.Mediation.CompletenessPPM < wholeMediation || t.Mediation.Ended > 0 || t.Lost > 0 {
		out = append(out, point("mediation", "", p.Mediation, m.digest, "mediation is %d of 1,000,000 connections, %d escapes, %d lost events",
			t.Mediation.CompletenessPPM, t.Mediation.Ended, t.Lost))
	}
	if !t.Coverage.Known || t.Coverage.UnseenPPM > smallUnseen {
		unseen := fmt.Sprintf("an estimated %d of 1,000,000 accesses are of a kind that the pilot did not see", t.Coverage.UnseenPPM)
		if !t.Coverage.Known {
			unseen = fmt.Sprintf("the %d accesses of the pilot are too few to estimate what it did not see", t.Coverage.Accesses)
		}
		out = append(out, point("unseen", "", p.UnseenMass, m.digest, "%s", unseen))
	}
	return out
}

// measuredSpeed compares with the version before. Only the worst regression counts.
func (f *facts) measuredSpeed(p configs.BehaviourPoints) []Addend {
	var out []Addend
	m := f.speed
	for _, step := range []struct {
		percent int
		points  configs.Points
	}{{25, p.Regression25}, {10, p.Regression10}} {
		if name := regression(m.predicate, f.PreviousPerformance, step.percent); name != "" {
			out = append(out, point("regression", name, step.points, m.digest, "%s is more than %d %% worse than in version %s", name, step.percent, f.PreviousPerformance.Version))
			break
		}
	}
	if limited := m.predicate.Network.Limited; limited > 0 {
		out = append(out, point("limit_exceeded", "", p.LimitExceeded, m.digest, "a limit refused %d connections in the pilot", limited))
	}
	return out
}

// regression returns the first figure that is worse by more than a percentage.
func regression(now, before *pilot.Performance, percent int) string {
	if before == nil {
		return ""
	}
	const hundredths = 100
	for _, c := range pilot.Evaluate(now, before, pilot.Limits{Regression: percent * hundredths}).Checks {
		if c.Previous != nil && c.Verdict == pilot.Failed {
			return c.ID
		}
	}
	return ""
}

// compliance are the points of the checklist and of exemptions.
func (f *facts) compliance(p configs.CompliancePoints) []Addend {
	var out []Addend
	switch c := f.controls; {
	case c == nil:
		out = append(out, point("stale_checklist", "", p.StaleChecklist, "", "no checklist that counts"))
	case c.stale != "":
		out = append(out, point("stale_checklist", "", p.StaleChecklist, c.stale, "the checklist does not meet the guardrail's maxAge and role"))
	default:
		for _, id := range slices.Sorted(maps.Keys(c.failed)) {
			out = append(out, point("failed_control", id, p.FailedControl, c.failed[id], "control %s is not met", id))
		}
	}
	for _, e := range f.Exemptions {
		if e.Plugin == f.Plugin && e.State(f.AsOf, 0) == grantcheck.ExemptionActive {
			out = append(out, point("exemption", e.Name, p.Exemption, e.Digest, "exemption %s from %s until %s", e.Name, e.GuardrailRule, e.NotAfter.UTC().Format(time.RFC3339)))
		}
	}
	return slices.DeleteFunc(out, func(a Addend) bool { return a.Points == 0 })
}
