package configs

import (
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// GrantSpec is the spec of a PluginGrant: what decisions need, and what governance added
// when it issued the grant.
type GrantSpec struct {
	authz.Grant
	// NotBefore is when the grant begins. It is required of a signed grant.
	NotBefore time.Time `json:"notBefore,omitzero"`
	// Binding ties a signed grant to what was reviewed. It counts only in a grant whose signatures were verified.
	Binding *grantcheck.Binding `json:"binding,omitempty"`
}

// GuardrailSpec is the spec of a PluginGuardrail: what decisions need, and what a plugin
// has to meet before a grant is issued for it.
type GuardrailSpec struct {
	authz.Guardrail
	Governance
}

// Governance is what a plugin has to meet before a grant is issued for it, and while the
// grant is in force.
type Governance struct {
	// Generation grows with each change, from 1. One that is put back after a later one was in force is refused.
	Generation int64 `json:"generation,omitempty"`
	// Rules are conditions on the permissions of a manifest, in CEL. They are evaluated when a manifest is checked and when a grant is issued.
	Rules []GovernanceRule `json:"rules,omitempty"`
	// Approvals are the approvals that a grant needs, by its band of risk. Without an entry for a band, no grant of that band is issued or loaded.
	Approvals Approvals `json:"approvals,omitzero"`
	// Evidence is the evidence that a grant needs.
	Evidence []EvidenceRequirement `json:"evidence,omitempty"`
	// Performance are the thresholds that a pilot has to meet.
	Performance Performance `json:"performance,omitzero"`
	// Lifetimes are the longest lives of grants, by band of risk.
	Lifetimes Lifetimes `json:"lifetimes,omitzero"`
	// RenewBefore is how long before its end a grant is to be renewed; by default 14d.
	RenewBefore authz.Duration `json:"renewBefore,omitempty"`
	// OnStaleEvidence is what happens to a plugin whose evidence is older than its maxAge; by default only a warning.
	OnStaleEvidence *StaleEvidence `json:"onStaleEvidence,omitempty"`
	// Containment are the refusals at which a plugin is revoked without a person.
	Containment []Containment `json:"containment,omitempty"`
	// Severities are the thresholds of findings.
	Severities Severities `json:"severities,omitzero"`
}

// Band is a band of risk.
type Band string

// The bands of risk, from the lowest to the highest.
const (
	BandLow      Band = grantcheck.BandLow
	BandModerate Band = grantcheck.BandModerate
	BandHigh     Band = grantcheck.BandHigh
	BandCritical Band = grantcheck.BandCritical
)

// Bands returns the bands, from the lowest to the highest.
func Bands() []Band { return []Band{BandLow, BandModerate, BandHigh, BandCritical} }

// GovernanceRule is a condition on each permission of a manifest.
type GovernanceRule struct {
	// ID is unique among the rules of the guardrail.
	ID string `json:"id"`
	// When is a condition in CEL on the permission p and the plugin; by default the rule is for every permission.
	When string `json:"when,omitempty"`
	// Require is the condition in CEL that has to be true.
	Require string `json:"require"`
	// Message is what the author reads: what is wrong, and the fix.
	Message string `json:"message"`
}

// Approvals are the approvals that a grant needs, by its band of risk.
type Approvals struct {
	// Low are the approvals of a grant of low risk.
	Low *ApprovalTerms `json:"low,omitempty"`
	// Moderate are the approvals of a grant of moderate risk.
	Moderate *ApprovalTerms `json:"moderate,omitempty"`
	// High are the approvals of a grant of high risk.
	High *ApprovalTerms `json:"high,omitempty"`
	// Critical are the approvals of a grant of critical risk.
	Critical *ApprovalTerms `json:"critical,omitempty"`
}

// Of returns the approvals of a band, nil if none are stated.
func (a Approvals) Of(band Band) *ApprovalTerms {
	switch band {
	case BandLow:
		return a.Low
	case BandModerate:
		return a.Moderate
	case BandHigh:
		return a.High
	case BandCritical:
		return a.Critical
	}
	return nil
}

// ApprovalTerms are the approvals of one band of risk.
type ApprovalTerms struct {
	// Roles are the roles of the trust root that have to approve.
	Roles []RoleCount `json:"roles"`
	// SLA is how long the approvers have, from the end of the stage before.
	SLA authz.Duration `json:"sla,omitempty"`
	// Escalate names a role that is asked as well after a time; it approves in addition, and never in place of another.
	Escalate *Escalation `json:"escalate,omitempty"`
}

// RoleCount is how many people of a role have to sign.
type RoleCount struct {
	// Name is a role of the trust root.
	Name string `json:"name"`
	// Min is how many different identities of the role have to sign, from 1.
	Min int `json:"min"`
}

// Escalation is when a further role is asked.
type Escalation struct {
	// After is the time from the end of the stage before.
	After authz.Duration `json:"after"`
	// Role is a role of the trust root.
	Role string `json:"role"`
}

// EvidenceRequirement is a kind of evidence that a grant needs.
type EvidenceRequirement struct {
	// PredicateType is the in-toto predicate type, as in https://chaperone.dev/attestation/findings/v1.
	PredicateType string `json:"predicateType"`
	// From is the lowest band of risk that needs the evidence; by default low.
	From Band `json:"from,omitempty"`
	// MaxAge is how old the evidence may be; by default as old as the grant.
	MaxAge authz.Duration `json:"maxAge,omitempty"`
	// Role is the role of the trust root that has to sign it; by default any that lists the predicate type.
	Role string `json:"role,omitempty"`
}

// Performance are the thresholds that a pilot has to meet. A zero field sets none.
type Performance struct {
	// Startup is the longest time from the start of the plugin to its first access.
	Startup authz.Duration `json:"startup,omitempty"`
	// MemoryP95 is the largest resident memory, at the 95th percentile of the samples.
	MemoryP95 authz.Size `json:"memoryP95,omitempty"`
	// CPUPer1000 is the largest CPU time for 1000 accesses.
	CPUPer1000 authz.Duration `json:"cpuPer1000,omitempty"`
	// LatencyP99 is the longest latency of an access, at the 99th percentile.
	LatencyP99 authz.Duration `json:"latencyP99,omitempty"`
	// Regression is how much worse than the previous version each figure may be.
	Regression Percent `json:"regression,omitempty"`
	// Mediation is the smallest share of the plugin's connections that the sidecar has to have decided.
	Mediation Percent `json:"mediation,omitempty"`
}

// Lifetimes are the longest lives of grants, by band of risk.
type Lifetimes struct {
	// Low is for grants of low risk.
	Low authz.Duration `json:"low,omitempty"`
	// Moderate is for grants of moderate risk.
	Moderate authz.Duration `json:"moderate,omitempty"`
	// High is for grants of high risk.
	High authz.Duration `json:"high,omitempty"`
	// Critical is for grants of critical risk.
	Critical authz.Duration `json:"critical,omitempty"`
}

// Of returns the longest life of a grant of a band, 0 if none is stated.
func (l Lifetimes) Of(band Band) authz.Duration {
	switch band {
	case BandLow:
		return l.Low
	case BandModerate:
		return l.Moderate
	case BandHigh:
		return l.High
	case BandCritical:
		return l.Critical
	}
	return 0
}

// StaleEvidence is what happens to a plugin whose evidence is older than its maxAge.
type StaleEvidence struct {
	// After is the time from the end of the evidence's maxAge.
	After authz.Duration `json:"after"`
	// Then is pause or quarantine.
	Then authz.Level `json:"then"`
}

// Containment revokes a plugin that is refused too often.
type Containment struct {
	// ID is unique among the entries of the guardrail.
	ID string `json:"id"`
	// Reasons are the reasons of the refusals that count, as in address_not_allowed.
	Reasons []string `json:"reasons"`
	// Count is how many refusals are too many, from 1.
	Count int `json:"count"`
	// Within is the time in which they are counted.
	Within authz.Duration `json:"within"`
	// Then is pause, quarantine or stop: stop halts the plugin.
	Then ContainmentAction `json:"then"`
}

// ContainmentAction is what happens to a plugin that is refused too often.
type ContainmentAction string

// The actions of containment.
const (
	ContainPause      ContainmentAction = "pause"
	ContainQuarantine ContainmentAction = "quarantine"
	ContainStop       ContainmentAction = "stop"
)

// Level returns the level of the revocation.
func (a ContainmentAction) Level() authz.Level {
	switch a {
	case ContainPause:
		return authz.LevelPause
	case ContainStop:
		return authz.LevelHalt
	case ContainQuarantine:
	}
	return authz.LevelQuarantine
}

// Severities are the thresholds of findings.
type Severities struct {
	// Block is the lowest severity at which a finding without a remediation or a VEX statement blocks; by default high.
	Block Severity `json:"block,omitempty"`
}

// Severity is how bad a finding is.
type Severity string

// The severities of findings, from the lowest to the highest.
const (
	SeverityNone     Severity = "none"
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)
