package governance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// policyOf returns the guardrails of a plugin, the rubric and the signed checklists, in the order
// of their names.
func (r *Repository) policyOf(plugin string) []grantcheck.PolicyRef {
	var out []grantcheck.PolicyRef
	for i := range r.Guardrails {
		if g := &r.Guardrails[i]; g.AppliesTo(plugin) {
			out = append(out, g.ref())
		}
	}
	if r.Rubric.Digest != "" {
		out = append(out, r.Rubric.ref())
	}
	for i := range r.Checklists {
		if list := &r.Checklists[i]; list.Signed {
			out = append(out, grantcheck.PolicyRef{Kind: dsse.KindChecklist, Name: list.Name, Digest: list.Digest})
		}
	}
	slices.SortFunc(out, func(a, b grantcheck.PolicyRef) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}

func (g *Guardrail) ref() grantcheck.PolicyRef {
	return grantcheck.PolicyRef{Kind: dsse.KindGuardrail, Name: g.Name, Digest: g.Digest, Generation: g.Generation}
}

func (r *Rubric) ref() grantcheck.PolicyRef {
	return grantcheck.PolicyRef{Kind: dsse.KindRubric, Name: r.Name, Digest: r.Digest, Generation: r.Generation}
}

// notOlder refuses a guardrail or a rubric that is older than the one which a signed grant of
// the repository is bound to: whoever may write files could otherwise put an older one back,
// whose signature is right as well.
func (r *Repository) notOlder() error {
	files, err := list(r.fsys, dirGrants, signedEnding)
	if err != nil {
		return err
	}
	var faults []error
	for _, file := range files {
		e, err := file.envelope(r.fsys)
		if err != nil {
			continue // reported with the requests of its plugin
		}
		doc, err := r.Root.Verify(e, dsse.KindGrant)
		if err != nil {
			continue
		}
		_, binding, err := grantcheck.BindingOf(doc.Payload)
		if err != nil {
			continue
		}
		for _, text := range r.replaced(binding.Policy) {
			faults = append(faults, fmt.Errorf("%s is bound to a later policy: %s", file.path, text))
		}
	}
	return errors.Join(faults...)
}

// replaced returns why present documents must not be in the place of those that were in force.
func (r *Repository) replaced(were []grantcheck.PolicyRef) []string {
	var out []string
	for _, was := range were {
		for i := range r.Guardrails {
			if is := r.Guardrails[i].ref(); was.Kind == is.Kind && was.Name == is.Name {
				out = append(out, was.Replaced(is))
			}
		}
		if is := r.Rubric.ref(); was.Kind == is.Kind && is.Digest != "" { // one rubric, whatever its name
			out = append(out, was.Replaced(is))
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

// newPolicy describes guardrails, checklists and the rubric that are not those of the grant in
// force: one that was removed judges nothing, and a review has to show that.
func (e *Evaluation) newPolicy() []string {
	if e.Issued == nil {
		return nil
	}
	var out []string
	for _, was := range e.Issued.Object.Spec.Binding.Policy {
		i := slices.IndexFunc(e.policy, func(is grantcheck.PolicyRef) bool { return is.Kind == was.Kind && is.Name == was.Name })
		switch {
		case i < 0:
			out = append(out, fmt.Sprintf("%s %s, which the grant in force is bound to, is not there any more", was.Kind, was.Name))
		case e.policy[i].Digest != was.Digest && e.policy[i].Generation == was.Generation:
			out = append(out, fmt.Sprintf("%s %s: it is %s, and %s in the grant in force", was.Kind, was.Name, e.policy[i].Digest, was.Digest))
		case e.policy[i].Digest != was.Digest:
			out = append(out, fmt.Sprintf("%s %s: generation %d, and %d in the grant in force", was.Kind, was.Name, e.policy[i].Generation, was.Generation))
		}
	}
	return out
}

// outdated returns why the policy is older than the one that signed approvals of a request are of.
func (r *Repository) outdated(e *Evaluation) []string {
	approvals := slices.Clone(e.Count.Valid)
	for i := range e.Count.Void {
		if a := e.Count.Void[i].Approval; a != nil {
			approvals = append(approvals, *a)
		}
	}
	var out []string
	for i := range approvals {
		a := &approvals[i]
		for _, text := range r.replaced(a.Policy) {
			out = append(out, fmt.Sprintf("the approval of %s as %s is of a later policy: %s", a.Identity, a.Role, text))
		}
	}
	return out
}

// NewerThan refuses a guardrail or a rubric that is signed to take the place of another one in
// file, unless its generation is higher: without it nobody could prove which is the later one.
func NewerThan(root *dsse.Root, file string, was, is *dsse.Envelope) error {
	before, err := policyRef(root, file, was)
	if err != nil || before == nil {
		return err
	}
	after, err := parseRef(file, is)
	if err != nil || after == nil || after.Kind != before.Kind || after.Digest == before.Digest || after.Generation > before.Generation {
		return err
	}
	return fmt.Errorf("%s has generation %d of this %s in force, and the new one states %d; write spec.generation: %d", file, before.Generation, before.Kind, after.Generation, before.Generation+1)
}

// policyRef returns what a verified envelope holds; nil for one that is not in force, or of
// another kind.
func policyRef(root *dsse.Root, file string, e *dsse.Envelope) (*grantcheck.PolicyRef, error) {
	for _, kind := range []dsse.Kind{dsse.KindGuardrail, dsse.KindRubric} {
		if _, err := root.Verify(e, kind); err == nil {
			return parseRef(file, e)
		}
	}
	return nil, nil //nolint:nilnil // documents of other kinds have no generation
}

func parseRef(file string, e *dsse.Envelope) (*grantcheck.PolicyRef, error) {
	switch e.PayloadType {
	case dsse.KindGuardrail.PayloadType():
		object, err := configs.ParseObject[configs.GuardrailSpec](file, e.Unverified)
		if err != nil {
			return nil, err
		}
		return &grantcheck.PolicyRef{Kind: dsse.KindGuardrail, Name: object.Metadata.Name, Digest: e.Digest(), Generation: object.Spec.Generation}, nil
	case dsse.KindRubric.PayloadType():
		object, err := configs.ParseObject[configs.RiskRubric](file, e.Unverified)
		if err != nil {
			return nil, err
		}
		return &grantcheck.PolicyRef{Kind: dsse.KindRubric, Name: object.Metadata.Name, Digest: e.Digest(), Generation: object.Spec.Generation}, nil
	}
	return nil, nil //nolint:nilnil // documents of other kinds have no generation
}
