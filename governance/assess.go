package governance

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/governance/risk"
)

// checkManifest is the part of stage 0 that is about what the manifest asks for.
func (r *Repository) checkManifest(ctx context.Context, e *Evaluation) {
	q := e.Request
	in := manifest.Input{File: q.Manifest, Now: e.now, PluginFolder: q.Plugin, VersionFolder: q.Version, Exemptions: e.inForce()}
	if q.Submission != nil {
		in.Band = configs.Band(e.Band) // before, no risk is known
	}
	for i := range e.guardrails {
		g := &e.guardrails[i]
		in.Guardrails = append(in.Guardrails, manifest.Guardrail{Name: g.Name, Path: g.File, Spec: g.GuardrailSpec, Rules: g.rules})
	}
	var err error
	if in.Dir, err = fs.Sub(r.fsys, q.Dir); err != nil {
		e.problem(stageEligibility, Problem{Message: err.Error()})
		return
	}
	result := manifest.Check(ctx, in)
	if result.Never {
		e.stops = append(e.stops, risk.Stop{Code: risk.StopNever, Text: "a never-list refuses a part of what is asked for"})
		r.assess(e) // with the hard stop
	}
	for _, f := range result.Findings {
		if f.Level == manifest.LevelError {
			e.problem(stageEligibility, Problem{Message: f.Text(), Role: "author", People: q.Authors})
			continue
		}
		e.Findings = append(e.Findings, f.Text())
	}
	r.delta(ctx, e)
}

// delta compares the manifest with that of the version in force, whose step it demands.
func (r *Repository) delta(ctx context.Context, e *Evaluation) {
	sources := e.newSources()
	e.Differences = append(e.Differences, sources...)
	e.Differences = append(e.Differences, e.newPolicy()...)
	if e.previous == nil || e.previous.Version == e.Request.Version {
		return
	}
	delta, err := manifest.Diff(ctx, e.grantedFile(), e.Request.Manifest, e.now)
	if err != nil {
		e.problem(stageEligibility, Problem{Message: err.Error(), Role: "author"})
		return
	}
	for _, p := range delta.Permissions {
		for _, change := range p.Changes {
			text := fmt.Sprintf("%s: %s: %s", change.Class, permissionName(p.Permission), change.Summary)
			if change.Request != "" {
				text += ", as in " + change.Request
			}
			e.Differences = append(e.Differences, text)
		}
	}
	e.Class = string(delta.Class)
	if later, err := manifest.CompareVersions(e.Request.Version, e.previous.Version); len(sources) > 0 && err == nil && later > 0 && delta.Step == manifest.StepPatch {
		e.problem(stageEligibility, Problem{Message: sources[0] + "; another source of a credential demands a minor version at least", Role: "author", People: e.Request.Authors})
	}
	if _, err := r.WasIssued(e.Request); err == nil && delta.Refused != "" {
		e.Findings = append(e.Findings, "a return to a version that was issued before: "+delta.Refused)
	} else if delta.Refused != "" {
		e.problem(stageEligibility, Problem{Message: delta.Refused, Role: "author", People: e.Request.Authors})
	}
}

// grantedFile returns the manifest of the version in force with the permissions that its grant
// has. One that a renewal left out is a new one when it is asked for again.
func (e *Evaluation) grantedFile() *manifest.File {
	granted := *e.previous.Manifest
	granted.Spec.Permissions = slices.DeleteFunc(slices.Clone(granted.Spec.Permissions), func(p configs.Permission) bool { return !hasRule(e.Issued, p.ID) })
	return &granted
}

// hasRule reports whether a grant has a rule.
func hasRule(grant *Issued, id string) bool {
	return slices.ContainsFunc(grant.Object.Spec.Rules, func(rule authz.Rule) bool { return rule.ID == id })
}

// newSources describes credentials whose source is not the one of the grant in force. A manifest
// names credentials alone, so that comparing two manifests does not show it.
func (e *Evaluation) newSources() []string {
	if e.Issued == nil {
		return nil
	}
	var out []string
	for _, was := range e.Issued.Object.Spec.Credentials {
		if is, ok := e.Request.credentials[was.Name]; ok && rest(is) != rest(was) {
			out = append(out, fmt.Sprintf("source of credential %s: it is %s, and in the grant in force %s", was.Name, rest(is), rest(was)))
		}
	}
	return out
}

func permissionName(id string) string {
	if id == "" {
		return "the plugin"
	}
	return "permission " + id
}

// findPrevious finds the version whose grant is in force, and what was measured of it. The
// manifest has to be the one that was granted, byte for byte: the folder is the author's, who
// could otherwise choose what a new version is compared with.
func (r *Repository) findPrevious(e *Evaluation) error {
	if e.Issued == nil {
		return nil
	}
	versions, err := r.Versions(e.Request.Plugin)
	if err != nil {
		return err
	}
	for _, version := range versions {
		q, err := e.Request, error(nil)
		if version != q.Version {
			q, err = r.other(q.Plugin, version)
		}
		if err != nil || q.ManifestDigest != e.Issued.Object.Spec.Binding.Manifest || q.Manifest.Spec.Version != version {
			continue // another version, or one that was changed or cannot be read
		}
		e.previous = q
		if version != e.Request.Version {
			e.previousPerformance, err = measured(q, itemsOf(q))
			if err != nil {
				e.Findings = append(e.Findings, "the version in force: "+err.Error())
			}
			r.measuredBefore(e)
		}
		return nil
	}
	if !e.issuedAlready() {
		e.problem(stageEligibility, Problem{Message: fmt.Sprintf("no version of plugin %s has the manifest of the grant in force (%s), so that nothing shows what is new; restore its folder as it was issued, and submit a change as a later version",
			e.Request.Plugin, e.Issued.Object.Spec.Binding.Manifest), Role: "author", People: e.Request.Authors})
	}
	return nil
}

// measuredBefore demands the measurements that the grant in force is bound to: without them the
// regressions of a new version would not be seen.
func (r *Repository) measuredBefore(e *Evaluation) {
	for _, ref := range e.Issued.Object.Spec.Binding.Evidence {
		if ref.PredicateType != pilot.PerformanceType || slices.ContainsFunc(e.previous.Evidence, func(x Evidence) bool { return x.Digest == ref.Digest }) {
			continue
		}
		if r.holds(path.Join(e.previous.Dir, dirEvidence), ref.Digest) { // as when its key was revoked
			e.Findings = append(e.Findings, fmt.Sprintf("measurement %s of the version in force does not verify any more, and is not compared", ref.Digest))
			continue
		}
		e.problem(stagePerformance, Problem{Message: fmt.Sprintf("measurement %s of version %s, which the grant in force is bound to, is missing in %s/%s, so that regressions cannot be seen; restore the file",
			ref.Digest, e.previous.Version, e.previous.Dir, dirEvidence), Role: "measurer", People: r.people("measurer", nil)})
	}
}

// holds reports whether a folder has an envelope with a digest, verified or not.
func (r *Repository) holds(dir, digest string) bool {
	files, _ := list(r.fsys, dir, signedEnding)
	return slices.ContainsFunc(files, func(file entry) bool {
		e, err := file.envelope(r.fsys)
		return err == nil && e.Digest() == digest
	})
}

func itemsOf(q *Request) []evidence.Item {
	out := make([]evidence.Item, 0, len(q.Evidence))
	for i := range q.Evidence {
		out = append(out, q.Evidence[i].Item)
	}
	return out
}

// assess is stage 4: the risk by the signed rubric.
func (r *Repository) assess(e *Evaluation) {
	e.Score, e.Band = maxScore, grantcheck.BandCritical // until there is another
	e.stage(stageRisk).Problems = nil
	if e.rubric == "" {
		e.problem(stageRisk, Problem{Message: "no signed rubric: chaperonectl plugin sign rubric.yaml", Role: "policy", People: r.people("policy", nil)})
		return
	}
	if by := r.Rubric.ReviewBy; !by.IsZero() && !e.now.Before(by) {
		e.Findings = append(e.Findings, "the rubric was to be reviewed by "+stamp(by))
	}
	result, err := risk.Score(r.RiskRubric(), r.RiskRequest(e))
	if err != nil {
		e.problem(stageRisk, Problem{Message: err.Error()})
		return
	}
	e.Risk, e.Score, e.Band = result, result.Score, result.Band
	for _, stop := range result.Stops {
		if stop.Code == risk.StopUnsigned {
			continue // stage 0 reports it
		}
		e.problem(stageRisk, Problem{Message: "hard stop: " + stop.Text})
	}
}

const maxScore = 100

// RiskRequest returns what the score of a request is computed from.
func (r *Repository) RiskRequest(e *Evaluation) *risk.Request {
	q := e.Request
	out := &risk.Request{
		Plugin: q.Plugin, Version: q.Version, Manifest: &q.Manifest.Spec, PreviousPerformance: e.previousPerformance,
		Submission: q.SubmissionDigest, Guardrail: e.terms.guardrail, Evidence: itemsOf(q), Exemptions: r.exemptionsOf(q.Plugin),
		AuthorSince: r.knownSince(q), Stops: e.stops, AsOf: e.now.UTC().Truncate(time.Second),
	}
	if q.Submission != nil {
		out.Target = e.target()
	}
	if e.previous != nil && e.previous.Version != q.Version {
		out.Previous, out.PreviousDigest = &e.previous.Manifest.Spec, e.previous.ManifestDigest
	}
	for _, need := range e.terms.evidence {
		out.Requirements = append(out.Requirements, requirement(need))
	}
	return out
}

// grantOf returns the grant that the manifest asks for.
func grantOf(q *Request) (authz.Grant, error) {
	return manifest.Grant(q.Plugin, &q.Manifest.Spec, q.credentials)
}
