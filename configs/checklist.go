package configs

import "github.com/chaperone-proxy/chaperone/authz"

// ComplianceChecklist is the spec of a ComplianceChecklist: what a plugin has to comply with.
type ComplianceChecklist struct {
	// Items are the controls, each proved or attested.
	Items []ChecklistItem `json:"items"`
}

// ChecklistItem is a control of a checklist.
type ChecklistItem struct {
	// ID is unique in the checklist.
	ID string `json:"id"`
	// Control is the control of a standard, as in ISO27001:A.8.24.
	Control string `json:"control"`
	// Title is the control in words.
	Title string `json:"title"`
	// Proof is auto, by query over the grant and the log of a pilot, or attested by a person.
	Proof Proof `json:"proof"`
	// Query is what is proved; with proof: auto, exactly one of its fields.
	Query *ChecklistQuery `json:"query,omitempty"`
}

// Proof is how a control is proved.
type Proof string

// How a control is proved.
const (
	ProofAuto     Proof = "auto"
	ProofAttested Proof = "attested"
)

// ChecklistQuery is what is proved of a grant and of the log of a pilot.
type ChecklistQuery struct {
	// Regions are the regions that every destination has to be in.
	Regions []string `json:"regions,omitempty"`
	// TLSMin is the lowest TLS version that is accepted, "1.2" or "1.3".
	TLSMin string `json:"tlsMin,omitempty"`
	// Retention is the longest retention that a rule may state.
	Retention authz.Retention `json:"retention,omitempty"`
	// Classes are the only classes of data that rules may state.
	Classes []authz.DataClass `json:"classes,omitempty"`
	// CredentialLifetime is the longest life of a lease.
	CredentialLifetime authz.Duration `json:"credentialLifetime,omitempty"`
	// Undeclared is the largest number of accesses that the manifest does not declare.
	Undeclared *int `json:"undeclared,omitempty"`
	// Mediation is the smallest share of the plugin's connections that the sidecar decided.
	Mediation Percent `json:"mediation,omitempty"`
}
