package governance

import (
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// evidence types of the roles in [StandardRoles].
const attestation = "https://chaperone.dev/attestation/"

// StandardRoles returns the roles that a new trust root has, without keys, and what each of
// them signs. Guardrails name them; a root may have others.
func StandardRoles() []dsse.RoleSpec {
	types := func(names ...string) []string {
		out := make([]string, 0, len(names))
		for _, n := range names {
			out = append(out, attestation+n+"/v1")
		}
		return out
	}
	approval := []dsse.Kind{dsse.KindApproval}
	return []dsse.RoleSpec{
		{Name: dsse.RoleRoot, Kinds: []dsse.Kind{dsse.KindTrust}},
		{Name: "author", Kinds: []dsse.Kind{dsse.KindSubmission, dsse.KindEvidence}, PredicateTypes: types("remediation", "vex")},
		{Name: "policy", Kinds: []dsse.Kind{dsse.KindGuardrail, dsse.KindExemption, dsse.KindRubric, dsse.KindSidecar, dsse.KindChecklist}},
		{Name: "measurer", Kinds: []dsse.Kind{dsse.KindEvidence}, PredicateTypes: types("measured-performance", "runtime-trace", "compliance-checklist")},
		{Name: "scanner", Kinds: []dsse.Kind{dsse.KindEvidence}, PredicateTypes: append(types("findings", "sbom", "test-result", "provenance"), "https://slsa.dev/provenance/v1")},
		{Name: "security", Kinds: []dsse.Kind{dsse.KindApproval, dsse.KindEvidence}, PredicateTypes: types("vex", "remediation")},
		{Name: "compliance", Kinds: []dsse.Kind{dsse.KindApproval, dsse.KindEvidence}, PredicateTypes: types("compliance-checklist")},
		{Name: "performance", Kinds: approval},
		{Name: "owner", Kinds: approval},
		{Name: "executive", Kinds: approval},
		{Name: "release", Kinds: []dsse.Kind{dsse.KindGrant, dsse.KindNotice}},
	}
}

// Holder is a key of a person, and the roles that it is for.
type Holder struct {
	Roles []string
	Key   dsse.KeySpec
}

// NewTrust returns a trust root with the standard roles, and those of them that nobody
// holds. A role without a key is left out: nobody could sign in it. thresholds are how many
// people have to sign together, by role; 1 by default.
func NewTrust(name string, holders []Holder, thresholds map[string]int) (spec configs.TrustRoot, unheld []string, err error) {
	spec = configs.TrustRoot{Version: 1}
	known := map[string]bool{}
	for _, role := range StandardRoles() {
		known[role.Name] = true
		for _, h := range holders {
			if slices.Contains(h.Roles, role.Name) {
				role.Keys = append(role.Keys, h.Key)
			}
		}
		if len(role.Keys) == 0 {
			unheld = append(unheld, role.Name)
			continue
		}
		role.Threshold = thresholds[role.Name]
		spec.Roles = append(spec.Roles, role)
	}
	for _, h := range holders {
		for _, role := range h.Roles {
			if !known[role] {
				return spec, nil, fmt.Errorf("make trust root: %q is not a role of a new trust root; write one of %s", role, roleNames())
			}
		}
	}
	for role, n := range thresholds {
		switch {
		case !known[role]:
			return spec, nil, fmt.Errorf("make trust root: threshold of %q: it is not a role of a new trust root; write one of %s", role, roleNames())
		case n > 1 && role != dsse.RoleRoot && role != "policy":
			return spec, nil, fmt.Errorf("make trust root: threshold %d of role %s: each document of this role is signed by one person, so that none would ever count; people of roles root and policy sign together, and how many have to approve is stated by min in the approvals of a guardrail", n, role)
		}
	}
	if _, err := dsse.NewRoot(spec.Root(name)); err != nil {
		return spec, nil, fmt.Errorf("make trust root: %w", err)
	}
	return spec, unheld, nil
}

func roleNames() []string {
	var out []string
	for _, role := range StandardRoles() {
		out = append(out, role.Name)
	}
	return out
}
