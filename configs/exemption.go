package configs

import (
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// GrantExemption is the spec of a GrantExemption: for a time, one permission of one plugin
// may go beyond one ceiling or condition of a guardrail. It is never from a never-list.
type GrantExemption struct {
	// GuardrailRule is what the exemption is from: a ceiling as in ceilings.tlsMin, or the id of a rule in CEL as in rules.restricted-needs-readonly.
	GuardrailRule string `json:"guardrailRule"`
	// Scope is what is exempted.
	Scope ExemptionScope `json:"scope"`
	// Allow is what is allowed in place of the ceiling; not for a rule in CEL.
	Allow authz.Ceilings `json:"allow,omitzero"`
	// Owner is the team that answers for the exemption.
	Owner string `json:"owner"`
	// Ticket is where it was discussed, as in SEC-8812.
	Ticket string `json:"ticket"`
	// Justification is why it is needed.
	Justification string `json:"justification"`
	// CompensatingControls are what lowers the risk. A grant that uses the exemption has to state the limits of each.
	CompensatingControls []CompensatingControl `json:"compensatingControls,omitempty"`
	// NotAfter is when the exemption ends. Every exemption ends.
	NotAfter time.Time `json:"notAfter"`
	// MaxUses is how many accesses the exemption is for; unlimited by default.
	MaxUses int64 `json:"maxUses,omitempty"`
}

// ExemptionScope is what is exempted.
type ExemptionScope struct {
	// Plugin is the plugin.
	Plugin string `json:"plugin"`
	// Permission is the id of a permission of its manifest, and of a rule of its grant; by default all of them.
	Permission string `json:"permission,omitempty"`
}

// CompensatingControl lowers the risk of an exemption: a rule with limits that is enforced,
// or a measure outside of the sidecar.
type CompensatingControl struct {
	// Rule is the id of a rule of the grant.
	Rule string `json:"rule,omitempty"`
	// Limits are the limits that the rule has to state at least.
	Limits authz.Limits `json:"limits,omitzero"`
	// Description is a measure in words.
	Description string `json:"description,omitempty"`
}
