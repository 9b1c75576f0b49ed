package governance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// grantTimes are the times of a grant, which [Repository.Compose] chooses. Everything else
// in a grant follows from the reviewed inputs.
type grantTimes struct {
	notBefore, notAfter, renewBefore time.Time
}

// Compose returns the exact payload of the grant that a request is reviewed for: the
// PluginGrant in canonical JSON. The grant begins now and lasts as long as the guardrails
// allow in its band, or less: for, if it is not 0.
func (r *Repository) Compose(e *Evaluation, lifetime time.Duration, now time.Time) ([]byte, error) {
	left, err := r.leftOut(e)
	if err != nil {
		return nil, err
	}
	return r.composeWithout(e, left, lifetime, now)
}

// composeWithout is Compose without some permissions.
func (r *Repository) composeWithout(e *Evaluation, dropped []string, lifetime time.Duration, now time.Time) ([]byte, error) {
	if problems := e.before(stageApprovals); len(problems) > 0 {
		return nil, fmt.Errorf("compose grant of %s: %w", e.Request.Dir, errors.New(problems[0].Message))
	}
	longest := shorter(e.band.lifetime, e.terms.grant)
	if longest == 0 && lifetime == 0 {
		return nil, fmt.Errorf("compose grant of %s: no guardrail states a lifetime in band %s; state one, as in --for 90d", e.Request.Dir, e.Band)
	}
	if lifetime > longest && longest > 0 {
		return nil, fmt.Errorf("compose grant of %s: a lifetime of %s is more than the %s that the guardrails allow in band %s", e.Request.Dir, authz.Duration(lifetime), authz.Duration(longest), e.Band)
	}
	t := grantTimes{notBefore: now.UTC()}
	t.notAfter = t.notBefore.Add(shorter(lifetime, longest))
	if end := e.Request.Manifest.Spec.Support.EndOfSupport; !end.IsZero() && end.Before(t.notAfter) {
		t.notAfter = end.UTC() // a grant does not outlive the version's support
	}
	if !t.notAfter.After(t.notBefore) {
		return nil, fmt.Errorf("compose grant of %s: support of version %s ended at %s", e.Request.Dir, e.Request.Version, stamp(t.notAfter))
	}
	t.renewBefore = e.renewBefore(t)
	return r.compose(e, t, dropped)
}

// renewBefore returns when a grant is to be renewed.
func (e *Evaluation) renewBefore(t grantTimes) time.Time {
	at := t.notAfter.Add(-e.terms.renewBefore)
	if at.Before(t.notBefore) {
		const share = 3 // of a short grant, the last third
		at = t.notAfter.Add(-t.notAfter.Sub(t.notBefore) / share).Truncate(time.Second)
	}
	return at
}

// compose makes the payload from the inputs, the times and the permissions that are left out
// alone.
func (r *Repository) compose(e *Evaluation, t grantTimes, dropped []string) ([]byte, error) {
	q := e.Request
	g, err := grantOf(q)
	if err != nil {
		return nil, err
	}
	if len(dropped) > 0 {
		g.Rules = slices.DeleteFunc(g.Rules, func(rule authz.Rule) bool { return slices.Contains(dropped, rule.ID) })
		g.Credentials = slices.DeleteFunc(g.Credentials, func(c authz.CredentialSpec) bool {
			return !slices.ContainsFunc(g.Rules, func(rule authz.Rule) bool { return rule.Credential == c.Name })
		})
	}
	if len(g.Rules) == 0 {
		return nil, fmt.Errorf("compose grant of %s: no permission is left", q.Dir)
	}
	g.NotAfter = t.notAfter
	spec := configs.GrantSpec{Grant: g, NotBefore: t.notBefore, Binding: e.binding(t)}
	if spec.Binding.Authorities, err = r.authorities(q, &g); err != nil {
		return nil, fmt.Errorf("compose grant of %s: %w", q.Dir, err)
	}
	object := &configs.Object[configs.GrantSpec]{Metadata: configs.Metadata{Name: q.Plugin}, Spec: spec}
	payload, err := configs.RenderObject(object)
	if err != nil {
		return nil, err
	}
	if _, err := configs.ParseObject[configs.GrantSpec](FileDraft, payload); err != nil {
		return nil, fmt.Errorf("compose grant of %s: %w", q.Dir, err)
	}
	return payload, nil
}

// binding ties the grant to what was reviewed.
func (e *Evaluation) binding(t grantTimes) *grantcheck.Binding {
	q := e.Request
	b := &grantcheck.Binding{
		Artifact: q.Submission.Artifact, Submission: q.SubmissionDigest, Manifest: q.ManifestDigest,
		Guardrail: e.terms.guardrail, Rubric: e.rubric, Policy: e.policy, Generation: 1, Score: e.Score, Band: e.Band, RenewBefore: t.renewBefore,
	}
	if e.follows.Generation > 0 {
		b.Generation, b.Previous = e.follows.Generation+1, e.follows.Digest
	}
	for i := range e.exemptions {
		b.Exemptions = append(b.Exemptions, grantcheck.Ref{Name: e.exemptions[i].Name, Digest: e.exemptions[i].Digest})
	}
	for i := range q.Evidence {
		b.Evidence = append(b.Evidence, q.Evidence[i].Ref())
	}
	slices.SortFunc(b.Evidence, func(x, y grantcheck.EvidenceRef) int { return cmp.Compare(x.Digest, y.Digest) })
	return b
}

// Moved is an input that is not the one that was reviewed.
type Moved struct {
	Input string `json:"input"` // as in evidence or guardrail
	Was   string `json:"was"`
	Is    string `json:"is"`
}

// Text names the input and both values.
func (m Moved) Text() string {
	return fmt.Sprintf("%s moved since the review: it was %s and is %s; compose and review again", m.Input, orNone(m.Was), orNone(m.Is))
}

func orNone(s string) string {
	if s == "" {
		return "absent"
	}
	return s
}

// checkDraft composes the grant once more, with the times of the draft that was reviewed,
// and returns the inputs that moved.
func (r *Repository) checkDraft(e *Evaluation) error {
	object, err := configs.ParseObject[configs.GrantSpec](FileDraft, e.Request.Draft)
	if err != nil {
		return err
	}
	was := object.Spec.Binding
	if was == nil {
		return fmt.Errorf("%s has no spec.binding; compose it again: chaperonectl plugin review", FileDraft)
	}
	t := grantTimes{object.Spec.NotBefore, object.Spec.NotAfter, was.RenewBefore}
	left, err := r.leftOut(e)
	if err != nil {
		return err
	}
	dropped := union(e.droppedFrom(object.Spec.Rules), left)
	again, err := r.compose(e, t, dropped)
	if err != nil {
		return err
	}
	if dsse.Digest(again) == dsse.Digest(e.Request.Draft) {
		e.Dropped = dropped
		return e.checkTimes(t)
	}
	e.Moved = movedInputs(was, e.binding(t))
	if len(e.Moved) == 0 {
		e.Moved = []Moved{{"rules, credentials, limits or authorities of the grant", dsse.Digest(e.Request.Draft), dsse.Digest(again)}}
	}
	var all []error
	for _, m := range e.Moved {
		all = append(all, errors.New(m.Text()))
	}
	return errors.Join(all...)
}

// droppedFrom returns the permissions that the draft's rules lack. They may lack some in a
// renewal alone: a first grant of a version has all that was submitted.
func (e *Evaluation) droppedFrom(rules []authz.Rule) []string {
	if e.previous == nil || e.previous.Dir != e.Request.Dir {
		return nil
	}
	var out []string
	for i := range e.Request.Manifest.Spec.Permissions {
		id := e.Request.Manifest.Spec.Permissions[i].ID
		if !slices.ContainsFunc(rules, func(rule authz.Rule) bool { return rule.ID == id }) {
			out = append(out, id)
		}
	}
	return out
}

// checkTimes compares the draft's times with what the guardrails and the version's support
// allow now: the draft is a file, and not necessarily one that was composed.
func (e *Evaluation) checkTimes(t grantTimes) error {
	longest := shorter(e.band.lifetime, e.terms.grant)
	support := e.Request.Manifest.Spec.Support.EndOfSupport
	switch {
	case !support.IsZero() && t.notAfter.After(support):
		return fmt.Errorf("%s ends at %s, after the version's support, which ends at %s; compose it again", FileDraft, stamp(t.notAfter), stamp(support))
	case !t.renewBefore.Equal(e.renewBefore(t)):
		return fmt.Errorf("%s: its renewBefore is %s, and the guardrails demand %s; compose it again", FileDraft, stamp(t.renewBefore), stamp(e.renewBefore(t)))
	case !t.notAfter.After(e.now):
		return fmt.Errorf("%s ends at %s, which is past; compose it again", FileDraft, stamp(t.notAfter))
	case t.notBefore.After(e.now.Add(grantcheck.MaxAhead)):
		return fmt.Errorf("%s begins at %s, which is in the future", FileDraft, stamp(t.notBefore))
	case longest > 0 && t.notAfter.Sub(t.notBefore) > longest:
		return fmt.Errorf("%s lasts %s, and the guardrails allow %s in band %s; compose it again", FileDraft, authz.Duration(t.notAfter.Sub(t.notBefore)), authz.Duration(longest), e.Band)
	}
	return nil
}

// movedInputs compares two bindings.
func movedInputs(was, is *grantcheck.Binding) []Moved {
	var out []Moved
	for _, d := range []struct{ input, was, is string }{
		{"artifact", was.Artifact.Text(), is.Artifact.Text()},
		{"submission", was.Submission, is.Submission},
		{"manifest", was.Manifest, is.Manifest},
		{"guardrail", was.Guardrail, is.Guardrail},
		{"rubric", was.Rubric, is.Rubric},
		{"previous grant", was.Previous, is.Previous},
		{"score", fmt.Sprintf("%d (%s)", was.Score, was.Band), fmt.Sprintf("%d (%s)", is.Score, is.Band)},
	} {
		if d.was != d.is {
			out = append(out, Moved{d.input, d.was, d.is})
		}
	}
	for _, d := range []struct {
		input   string
		was, is []string
	}{
		{"evidence", was.EvidenceDigests(), is.EvidenceDigests()},
		{"exemption", was.ExemptionDigests(), is.ExemptionDigests()},
		{"checklist", checklistRefs(was.Policy), checklistRefs(is.Policy)},
	} {
		for _, digest := range d.was {
			if !slices.Contains(d.is, digest) {
				out = append(out, Moved{d.input, digest, ""})
			}
		}
		for _, digest := range d.is {
			if !slices.Contains(d.was, digest) {
				out = append(out, Moved{d.input, "", digest})
			}
		}
	}
	return out
}

// checklistRefs returns the names and digests of checklists.
func checklistRefs(policy []grantcheck.PolicyRef) []string {
	var out []string
	for _, p := range policy {
		if p.Kind == dsse.KindChecklist {
			out = append(out, p.Name+" "+p.Digest)
		}
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
