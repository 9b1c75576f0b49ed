package configs

import (
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// RiskRubric is the spec of a RiskRubric: how the risk of a plugin becomes a whole number
// from 0 to 100. A field that is left out has its default.
type RiskRubric struct {
	// Generation grows with each change.
	Generation int64 `json:"generation"`
	// ReviewBy is when the rubric is to be looked at again.
	ReviewBy time.Time `json:"reviewBy,omitzero"`
	// Bands are the lowest scores of the bands above low.
	Bands RubricBands `json:"bands,omitzero"`
	// Caps are the most points that each part adds.
	Caps RubricCaps `json:"caps,omitzero"`
	// Exposure are the points of what a plugin may access.
	Exposure ExposurePoints `json:"exposure,omitzero"`
	// Vulnerabilities are the points of findings.
	Vulnerabilities VulnerabilityPoints `json:"vulnerabilities,omitzero"`
	// Provenance are the points of how the artifact was made.
	Provenance ProvenancePoints `json:"provenance,omitzero"`
	// Behaviour are the points of what a pilot measured.
	Behaviour BehaviourPoints `json:"behaviour,omitzero"`
	// Compliance are the points of the checklist and of exemptions.
	Compliance CompliancePoints `json:"compliance,omitzero"`
}

// RubricBands are the lowest scores of the bands above low.
type RubricBands struct {
	// Moderate is by default 20.
	Moderate Points `json:"moderate,omitzero"`
	// High is by default 40.
	High Points `json:"high,omitzero"`
	// Critical is by default 65.
	Critical Points `json:"critical,omitzero"`
}

// RubricCaps are the most points that each part adds.
type RubricCaps struct {
	// Exposure is by default 35.
	Exposure Points `json:"exposure,omitzero"`
	// Vulnerabilities is by default 25.
	Vulnerabilities Points `json:"vulnerabilities,omitzero"`
	// Provenance is by default 15.
	Provenance Points `json:"provenance,omitzero"`
	// Behaviour is by default 15.
	Behaviour Points `json:"behaviour,omitzero"`
	// Compliance is by default 10.
	Compliance Points `json:"compliance,omitzero"`
}

// ExposurePoints are the points of each permission: those of its class of data times those
// of its verb, and what is added. The permissions count in descending order, each with half
// the weight of the one before; an optional one counts half.
type ExposurePoints struct {
	// Public is by default 0.
	Public Points `json:"public,omitzero"`
	// Internal is by default 2.
	Internal Points `json:"internal,omitzero"`
	// Confidential is by default 6.
	Confidential Points `json:"confidential,omitzero"`
	// Restricted is by default 12.
	Restricted Points `json:"restricted,omitzero"`
	// Read is by default 1.
	Read Points `json:"read,omitzero"`
	// Write is by default 2.
	Write Points `json:"write,omitzero"`
	// Delete is by default 3.
	Delete Points `json:"delete,omitzero"`
	// WildcardHost is by default 5.
	WildcardHost Points `json:"wildcardHost,omitzero"`
	// NewInternetHost is by default 3.
	NewInternetHost Points `json:"newInternetHost,omitzero"`
	// LongLivedCredential is by default 4.
	LongLivedCredential Points `json:"longLivedCredential,omitzero"`
}

// VulnerabilityPoints are the points of each finding that affects the plugin.
type VulnerabilityPoints struct {
	// Exploited is for a finding that is known to be exploited; by default 25.
	Exploited Points `json:"exploited,omitzero"`
	// Critical is by default 10.
	Critical Points `json:"critical,omitzero"`
	// High is by default 5.
	High Points `json:"high,omitzero"`
	// Medium is by default 2.
	Medium Points `json:"medium,omitzero"`
	// Low is by default 0.
	Low Points `json:"low,omitzero"`
	// StaleScan is for a scan older than its maxAge; by default 10.
	StaleScan Points `json:"staleScan,omitzero"`
}

// ProvenancePoints are the points of how the artifact was made.
type ProvenancePoints struct {
	// An artifact without provenance has None; by default 10.
	None Points `json:"none,omitzero"`
	// Build1 is for SLSA Build L1; by default 6.
	Build1 Points `json:"build1,omitzero"`
	// Build2 is for SLSA Build L2; by default 3.
	Build2 Points `json:"build2,omitzero"`
	// Build3 is for SLSA Build L3; by default 0.
	Build3 Points `json:"build3,omitzero"`
	// SBOMMissing is for an artifact without an SBOM; by default 5.
	SBOMMissing Points `json:"sbomMissing,omitzero"`
	// NewKey is for a key of the author that is younger than newKeyAge; by default 2.
	NewKey Points `json:"newKey,omitzero"`
	// NewKeyAge is by default 30d.
	NewKeyAge authz.Duration `json:"newKeyAge,omitempty"`
}

// BehaviourPoints are the points of what a pilot measured.
type BehaviourPoints struct {
	// UndeclaredFew is for 1 to 3 accesses that the manifest does not declare; by default 4.
	UndeclaredFew Points `json:"undeclaredFew,omitzero"`
	// UndeclaredMany is for more than 3 accesses that the manifest does not declare; by default 8.
	UndeclaredMany Points `json:"undeclaredMany,omitzero"`
	// Mediation is for a pilot in which the sidecar decided less than 99.99% of the connections; by default 10.
	Mediation Points `json:"mediation,omitzero"`
	// Regression10 is for a figure more than 10% worse than the previous version's; by default 3.
	Regression10 Points `json:"regression10,omitzero"`
	// Regression25 is for a figure more than 25% worse than the previous version's; by default 6.
	Regression25 Points `json:"regression25,omitzero"`
	// LimitExceeded is for a pilot that exceeded a limit; by default 3.
	LimitExceeded Points `json:"limitExceeded,omitzero"`
	// UnseenMass is for a pilot that has not seen more than 1% of the accesses, by estimate; by default 3.
	UnseenMass Points `json:"unseenMass,omitzero"`
}

// CompliancePoints are the points of the checklist and of exemptions.
type CompliancePoints struct {
	// FailedControl is for each control that failed; by default 2.
	FailedControl Points `json:"failedControl,omitzero"`
	// Exemption is for each exemption in force; by default 2.
	Exemption Points `json:"exemption,omitzero"`
	// StaleChecklist is for a checklist older than its maxAge; by default 4.
	StaleChecklist Points `json:"staleChecklist,omitzero"`
}

// Points are added to a score, or are a bound of one: 0 to 100.
type Points int

// IsZero returns false: 0 points are stated, and are not the default.
func (Points) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (RubricBands) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (RubricCaps) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (ExposurePoints) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (VulnerabilityPoints) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (ProvenancePoints) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (BehaviourPoints) IsZero() bool { return false }

// IsZero returns false; see [Points.IsZero].
func (CompliancePoints) IsZero() bool { return false }

// DefaultRubric returns a rubric of generation 1 in which every field has its default.
func DefaultRubric() RiskRubric {
	const month = 30 * 24 * time.Hour
	return RiskRubric{
		Generation:      1,
		Bands:           RubricBands{Moderate: 20, High: 40, Critical: 65},
		Caps:            RubricCaps{Exposure: 35, Vulnerabilities: 25, Provenance: 15, Behaviour: 15, Compliance: 10},
		Exposure:        ExposurePoints{Internal: 2, Confidential: 6, Restricted: 12, Read: 1, Write: 2, Delete: 3, WildcardHost: 5, NewInternetHost: 3, LongLivedCredential: 4},
		Vulnerabilities: VulnerabilityPoints{Exploited: 25, Critical: 10, High: 5, Medium: 2, StaleScan: 10},
		Provenance:      ProvenancePoints{None: 10, Build1: 6, Build2: 3, SBOMMissing: 5, NewKey: 2, NewKeyAge: authz.Duration(month)},
		Behaviour:       BehaviourPoints{UndeclaredFew: 4, UndeclaredMany: 8, Mediation: 10, Regression10: 3, Regression25: 6, LimitExceeded: 3, UnseenMass: 3},
		Compliance:      CompliancePoints{FailedControl: 2, Exemption: 2, StaleChecklist: 4},
	}
}
