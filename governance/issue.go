package governance

import (
	"fmt"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Issue returns the file of a grant: the payload that was reviewed, signed by the role that
// signs grants, with the submission, every decision and the exemptions. It refuses a request
// that is not ready, and names what is missing or moved; and it refuses what a sidecar would
// not load, by the same function that the sidecar calls.
func (r *Repository) Issue(e *Evaluation, grant *dsse.Envelope, now time.Time) ([]byte, error) {
	if err := e.Refusal(); err != nil {
		return nil, err
	}
	if grant.Digest() != e.Draft {
		return nil, fmt.Errorf("issue grant of %s: the signed grant is %s, and %s was reviewed", e.Request.Dir, grant.Digest(), e.Draft)
	}
	bundle := &grantcheck.Bundle{Grant: grant, Submission: e.Request.submission}
	there := map[string]bool{}
	for _, d := range e.Request.Decisions {
		_, err := r.Root.Verify(d.Envelope, dsse.KindApproval)
		if form := string(d.Envelope.Marshal()); err == nil && !there[form] { // others count nowhere, and would fill the file
			there[form] = true
			bundle.Approvals = append(bundle.Approvals, d.Envelope)
		}
	}
	for i := range e.exemptions {
		bundle.Exemptions = append(bundle.Exemptions, e.exemptions[i].Envelope)
	}
	if _, err := grantcheck.Check(r.Root, bundle, r.Terms(e.Request.Plugin), now); err != nil {
		return nil, fmt.Errorf("issue grant of %s: %w", e.Request.Dir, err)
	}
	data, err := bundle.Marshal()
	if err == nil {
		_, err = grantcheck.ParseBundle(data) // with its bounds, as a sidecar reads it
	}
	if err != nil {
		return nil, fmt.Errorf("issue grant of %s: %w", e.Request.Dir, err)
	}
	return data, nil
}

// Terms returns what a sidecar of a plugin demands of its grant, by the guardrails and the
// grant in force.
func (r *Repository) Terms(plugin string) grantcheck.Terms {
	all := r.guardrailsOf(plugin)
	out := grantcheck.Terms{Guardrail: termsOf(all).guardrail, Rubric: r.Rubric.Digest, Approvals: map[string]grantcheck.Approvers{}, Lifetimes: map[string]time.Duration{}}
	for i := range all {
		all[i].AddTerms(&out)
	}
	issued, err := r.Issued(plugin)
	if err == nil {
		if marks, err := r.marks(plugin); err == nil {
			out.Seen = marks.before(issued)
		}
	}
	return out
}
