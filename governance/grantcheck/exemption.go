package grantcheck

import (
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// SeverityRule is the guardrailRule of an exemption for findings. Its scope has the finding's
// id, or its vulnerability, as permission.
const SeverityRule = "severities.block"

// Exemption is an exemption from one rule of a guardrail: the part of a GrantExemption
// that decides whether it is in force.
type Exemption struct {
	Name   string // metadata.name
	Digest string // of Payload
	// Payload is the GrantExemption in JSON.
	Payload []byte
	// GuardrailRule is the ceiling, as in ceilings.tlsMin, or the id of the rule.
	GuardrailRule string
	Plugin        string
	Permission    string // id of the grant's rule; "" for the whole grant
	// Allow is what is allowed instead of the ceiling.
	Allow authz.Ceilings
	// Controls are its compensating controls; [Check] demands the limits that they state.
	Controls []Control
	Owner    string
	Ticket   string
	NotAfter time.Time
	MaxUses  int64 // 0 for any number
}

// ExemptionState is the state of an exemption.
type ExemptionState string

// The states of an exemption.
const (
	ExemptionActive  ExemptionState = "active"
	ExemptionExpired ExemptionState = "expired"
	ExemptionUsedUp  ExemptionState = "used up"
)

// State returns the state at a time, after a number of uses. An exemption without an
// end has expired.
func (e Exemption) State(now time.Time, uses int64) ExemptionState {
	switch {
	case e.NotAfter.IsZero() || !now.Before(e.NotAfter):
		return ExemptionExpired
	case e.MaxUses > 0 && uses >= e.MaxUses:
		return ExemptionUsedUp
	}
	return ExemptionActive
}
