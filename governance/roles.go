package governance

import (
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// holders returns the identities that may sign in a role, without some, sorted.
func holders(root *dsse.Root, role string, without []string) []string {
	var out []string
	spec := root.Spec()
	for _, one := range spec.Roles {
		if one.Name != role {
			continue
		}
		for _, k := range one.Keys {
			if !slices.Contains(without, k.Identity) && !slices.Contains(spec.Revoked, keyID(k)) {
				out = append(out, k.Identity)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Unheld returns the demands of a guardrail that too few people could meet: roles that nobody
// holds in the trust root, or fewer than have to approve, and roles that sign something else.
// No grant passes such a demand.
func Unheld(root *dsse.Root, g *configs.Governance) []string {
	var out []string
	demand := func(field, role string, need int, kind dsse.Kind) {
		have := 0
		for _, one := range root.Spec().Roles {
			if one.Name == role && slices.Contains(one.Kinds, kind) {
				have = len(holders(root, role, nil))
			}
		}
		if have < need {
			out = append(out, fmt.Sprintf("%s: at least %d of role %q has to sign, and the trust root lists %d who may sign kind %s in it; have it rotated, or name another role", field, need, role, have, kind))
		}
	}
	for _, band := range configs.Bands() {
		terms, path := g.Approvals.Of(band), "spec.approvals."+string(band)
		if terms == nil {
			continue
		}
		for i, r := range terms.Roles {
			demand(fmt.Sprintf("%s.roles[%d]", path, i), r.Name, max(r.Min, 1), dsse.KindApproval)
		}
		if terms.Escalate != nil {
			demand(path+".escalate", terms.Escalate.Role, 1, dsse.KindApproval)
		}
	}
	for i, e := range g.Evidence {
		if e.Role != "" {
			demand(fmt.Sprintf("spec.evidence[%d]", i), e.Role, 1, dsse.KindEvidence)
		}
	}
	return out
}
