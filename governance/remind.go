package governance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Reminder is one thing that is due.
type Reminder struct {
	What   string    `json:"what"`
	At     time.Time `json:"at"` // when it is due, or ends
	Turn   string    `json:"turn,omitempty"`
	Detail string    `json:"detail"`
}

// Reminders returns what is overdue, and what ends within a time, the first end first. As with
// [Repository.EvaluateAll], a folder that cannot be read is an error beside the others.
func (r *Repository) Reminders(ctx context.Context, now time.Time, within time.Duration) ([]Reminder, error) {
	all, unread := r.EvaluateAll(ctx, now)
	soon := now.Add(within)
	out := []Reminder{}
	for _, e := range all {
		if at := e.Current(); at != nil && !at.Due.IsZero() && at.Due.Before(soon) {
			out = append(out, Reminder{"stage " + at.Name, at.Due, waitsFor(at), e.Request.Plugin + " " + e.Request.Version})
		}
		if e.issuedAlready() {
			spec := &e.Issued.Object.Spec
			ends := spec.NotAfter
			if !now.Before(e.Ends) { // perhaps because of an approval, which does not count any more
				ends = e.Ends
			}
			if ends.Before(soon) || !spec.Binding.RenewBefore.IsZero() && !spec.Binding.RenewBefore.After(now) {
				out = append(out, Reminder{"grant ends", ends, "role release", "renew " + e.Request.Dir})
			}
			for i := range e.Count.Valid {
				// The grant ends with an approval that it needs.
				if a := &e.Count.Valid[i]; !a.ExpiresAt.IsZero() && a.ExpiresAt.Before(soon) {
					out = append(out, Reminder{"approval ends", a.ExpiresAt, a.Identity, "as " + a.Role + " of " + e.Request.Plugin + " " + e.Request.Version})
				}
			}
		}
	}
	for i := range r.Exemptions {
		if x := &r.Exemptions[i]; x.NotAfter.Before(soon) && x.NotAfter.After(now) {
			out = append(out, Reminder{"exemption ends", x.NotAfter, x.Owner, x.Name + " of " + x.Plugin + ", " + x.Ticket})
		}
	}
	slices.SortStableFunc(out, func(a, b Reminder) int { return a.At.Compare(b.At) })
	return out, unread
}

// Ends returns when a grant ends: at the latest when an approval that it needs does.
func (r *Repository) Ends(g *Issued, now time.Time) time.Time {
	var ended *grantcheck.EndedError
	v, err := grantcheck.Check(r.Root, g.Bundle, r.Terms(g.Object.Spec.Plugin), now)
	switch {
	case errors.As(err, &ended):
		return ended.Verified.NotAfter
	case err == nil:
		return v.NotAfter
	}
	return g.Object.Spec.NotAfter // a sidecar refuses it for another reason
}

// Checked is the result of [Repository.VerifyFile].
type Checked struct {
	Kind    dsse.Kind
	Digest  string
	Signed  []dsse.Signed
	Details []string
}

// VerifyFile verifies a signed document of any kind: its signatures by the role that signs
// the kind, the form of its payload, and for a grant everything that it is bound to.
func (r *Repository) VerifyFile(data []byte, now time.Time) (*Checked, error) {
	e, err := dsse.Parse(data)
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(strings.TrimPrefix(e.PayloadType, "application/vnd.chaperone."), ".v1+json")
	doc, err := r.Root.Verify(e, dsse.Kind(name))
	if err != nil {
		return nil, err
	}
	out := &Checked{Kind: doc.Kind, Digest: doc.Digest, Signed: doc.Signed}
	switch doc.Kind {
	case dsse.KindGrant:
		return out, r.verifyGrant(data, out, now)
	case dsse.KindEvidence:
		item, err := evidence.Read(r.Root, e)
		if err != nil {
			return nil, err
		}
		out.Signed = item.Signed
		out.Details = append(out.Details, item.PredicateType+" of "+stamp(item.IssuedAt))
	case dsse.KindGuardrail, dsse.KindExemption, dsse.KindRubric, dsse.KindSidecar, dsse.KindChecklist:
		return out, CheckPayload(name, e)
	case dsse.KindSubmission:
		var s grantcheck.Submission
		err = dsse.Decode(doc.Payload, &s)
		out.Details = append(out.Details, fmt.Sprintf("%s %s: manifest %s, artifact %s", s.Plugin, s.Version, s.Manifest, s.Artifact.Text()))
	case dsse.KindApproval:
		var a grantcheck.Approval
		if err = dsse.Decode(doc.Payload, &a); err == nil && !slices.ContainsFunc(doc.Signed, func(s dsse.Signed) bool { return s.Role == a.Role && s.Identity == a.Identity }) {
			return nil, fmt.Errorf("it states identity %q in role %q, and no key of these signed it, so that it counts for nothing", a.Identity, a.Role)
		}
		out.Details = append(out.Details, fmt.Sprintf("%s by %s as %s of submission %s at %s", a.Decision, a.Identity, a.Role, a.Submission, stamp(a.IssuedAt)))
		if a.Grant != "" {
			out.Details = append(out.Details, "of grant "+a.Grant)
		}
	case dsse.KindNotice:
		err = dsse.Decode(doc.Payload, &Notice{})
	default:
	}
	return out, err
}

// verifyGrant calls the function that the sidecar calls.
func (r *Repository) verifyGrant(data []byte, out *Checked, now time.Time) error {
	bundle, err := grantcheck.ParseBundle(data)
	if err != nil {
		return err
	}
	_, object, err := parseSigned[configs.GrantSpec](r.Root, "grant.dsse.json", bundle.Grant, dsse.KindGrant)
	if err != nil {
		return err
	}
	terms := r.Terms(object.Spec.Plugin)
	if b := object.Spec.Binding; b != nil && terms.Seen.Generation > b.Generation {
		terms.Seen = grantcheck.HighWater{}
		out.Details = append(out.Details, "a later generation was issued: a sidecar that has loaded it refuses this one")
	}
	v, err := grantcheck.Check(r.Root, bundle, terms, now)
	if err != nil {
		return err
	}
	out.Details = append(out.Details, fmt.Sprintf("grant %s of plugin %s, generation %d, score %d (%s), from %s to %s",
		v.Name, v.Plugin, v.Binding.Generation, v.Binding.Score, v.Binding.Band, stamp(v.NotBefore), stamp(v.NotAfter)))
	for _, a := range v.Approvals {
		out.Details = append(out.Details, fmt.Sprintf("approved by %s as %s at %s", a.Identity, a.Role, stamp(a.IssuedAt)))
	}
	return nil
}
