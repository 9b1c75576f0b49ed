// Package authz decides whether a plugin may make one outbound access now. The
// decision depends on the grants, the guardrails, the revocations and the usage so
// far, and no other package makes it.
//
// A door (the proxy, Envoy's ext_authz) turns its input into a [Request], whose
// [Destination] is always canonical. [Gate.Admit] decides on the current [Snapshot],
// spends from the [Ledger], fetches the credential and writes the audit record, in
// that order, and returns an [Admission]. [Engine] holds the snapshot and replaces
// it: every change that revokes access is a new generation.
//
// The zero [Decision] denies. A denial is a value and never an error.
//
// The package imports the standard library only, without net/http, os and clocks:
// callers pass the time.
package authz

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Door is the enforcement point where a request arrived.
type Door string

// The doors: the enforcement points.
const (
	DoorProxy    Door = "proxy"
	DoorExtAuthz Door = "ext_authz"
	DoorKernel   Door = "kernel"
)

// Principal is a plugin's name, proved by the door that states it. The empty
// Principal is granted nothing.
type Principal string

// Request is one outbound access. It is comparable and holds only what the
// decision depends on.
type Request struct {
	Principal   Principal
	Action      Action
	Destination Destination

	// Unenforceable holds the conditions that the asking door cannot enforce.
	// A rule that states one of them is not usable there.
	Unenforceable Conditions

	// Facts are what the request's content does, the zero Facts if it was not read.
	Facts Facts
}

// Action is the operation at the destination. For a tunnel (schemes tls and
// tcp) it is the zero value.
type Action struct {
	// Method is the HTTP method, case-sensitive (RFC 9110, section 9.1).
	Method string
	// Upgrade is the protocol requested by the Upgrade header, in lower case, with
	// its version if stated, as in spdy/3.1; "" without an upgrade.
	Upgrade string
}

// maxMethod is longer than any registered method and short enough for a log line.
const maxMethod = 64

// NewAction returns the action of an HTTP request. Its error states what is
// malformed; upgrade may be empty.
func NewAction(method, upgrade string) (Action, error) {
	if !isToken(method) || len(method) > maxMethod {
		return Action{}, fmt.Errorf("method %q is not a token of at most %d bytes", clip(method), maxMethod)
	}
	if method == "CONNECT" || method == "PRI" {
		return Action{}, fmt.Errorf("method %s is not a request; use another method", method)
	}
	if upgrade == "" {
		return Action{Method: method}, nil
	}
	lower := asciiLower(upgrade)
	if !isProtocol(lower) {
		return Action{}, fmt.Errorf("upgrade %q is not one protocol; name one, as in websocket", clip(upgrade))
	}
	return Action{Method: method, Upgrade: lower}, nil
}

// isProtocol reports whether s is one protocol of an Upgrade header: a name, with
// or without a version (RFC 9110, section 7.8).
func isProtocol(s string) bool {
	name, version, versioned := strings.Cut(s, "/")
	return isToken(name) && (!versioned || isToken(version)) && len(s) <= maxMethod
}

// UpgradesAsked returns the protocols that the values of a request's Upgrade header
// name, in order. TLS and other versions of HTTP are left out: the server may ignore
// them (RFC 9110, section 7.8), and no rule can grant them, since their content would
// not be decided.
func UpgradesAsked(values []string) (asked []string) {
	for _, value := range values {
		for protocol := range strings.SplitSeq(value, ",") {
			protocol = strings.Trim(protocol, " \t")
			switch name, _, _ := strings.Cut(asciiLower(protocol), "/"); name {
			case "", "h2", "h2c", "http", "tls":
			default:
				asked = append(asked, protocol)
			}
		}
	}
	return asked
}

// Conditions is a set of conditions that a rule may state and a door may be
// unable to enforce.
type Conditions uint8

// The conditions.
const (
	ConditionAddresses   Conditions = 1 << iota // the resolved address
	ConditionTLS                                // the TLS floor or certificate authority of a rule
	ConditionTimeout                            // the exchange's timeout
	ConditionCredential                         // a credential, if the door's transport must not carry one
	ConditionOriginate                          // plain http accepted for https
	ConditionCertificate                        // a client certificate, which only the TLS client can present
	ConditionSignature                          // a signature, which only the sender of the request can make
	ConditionContent                            // the request's content, which a matcher is about
)

// Name returns the stable name of one condition, as the audit log records it, and "" for
// any other set.
func (c Conditions) Name() string {
	switch c {
	case ConditionAddresses:
		return "addresses"
	case ConditionTLS:
		return "tls"
	case ConditionTimeout:
		return "timeout"
	case ConditionCredential:
		return "credential"
	case ConditionOriginate:
		return "originate"
	case ConditionCertificate:
		return "certificate"
	case ConditionSignature:
		return "signature"
	case ConditionContent:
		return "content"
	default: // several conditions, or none
		return ""
	}
}

// ParseCondition returns the condition with the given [Conditions.Name].
func ParseCondition(name string) (Conditions, bool) {
	for c := Conditions(1); c != 0; c <<= 1 {
		if name != "" && c.Name() == name {
			return c, true
		}
	}
	return 0, false
}

// ManagedEnvoyEnforces are the conditions that the Envoy which the sidecar configures
// enforces, together with the sidecar's exits. A client certificate and a signature are
// not among them: they need a key that Envoy is not given.
const ManagedEnvoyEnforces = ConditionAddresses | ConditionTLS | ConditionTimeout | ConditionOriginate

// EnvoyUnenforceable returns the conditions that an ext_authz client cannot enforce.
// enforces are those that it is known to enforce; trusted reports whether its transport
// may carry a credential. No ext_authz answer can carry a client certificate or a
// signature, and no part of the content is asked of Envoy.
func EnvoyUnenforceable(enforces Conditions, trusted bool) Conditions {
	c := (ConditionAddresses | ConditionTLS | ConditionTimeout) &^ enforces
	c |= ConditionCertificate | ConditionSignature | ConditionContent
	if !trusted {
		c |= ConditionCredential
	}
	return c
}

// Reason is the reason of a decision. The zero Reason denies.
type Reason uint8

// The reasons, as in the contract. NotReady is the zero value, so an unset
// decision denies.
const (
	NotReady Reason = iota
	Granted
	Observed
	MalformedRequest
	DestinationMismatch
	IdentityUnknown
	Revoked
	GuardrailDenied
	NoGrant
	DestinationNotGranted
	MethodNotGranted
	PathNotGranted
	StatementUnreadable
	StatementTooLarge
	StatementNotGranted
	GrantExpired
	NotEnforceableHere
	QuotaExceeded
	UsageUnknown
	CredentialMisplaced
	CredentialUnavailable
	AuditUnavailable
	AddressNotAllowed
	UpstreamUnreachable
	UpstreamTimeout
	reasonCount
)

// String returns the reason's stable name, the same in refusals, the audit
// log and metric labels.
func (r Reason) String() string { return r.text().name }

// Title returns the title of a refusal for this reason.
func (r Reason) Title() string { return r.text().title }

// Status returns the HTTP status of a refusal for this reason, and 200 for
// the two reasons that allow.
func (r Reason) Status() int { return r.text().status }

// Allowed reports whether the reason allows.
func (r Reason) Allowed() bool { return r == Granted || r == Observed }

// Reasons returns every reason, in the order of the constants.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonCount)
	for r := range reasonCount {
		all = append(all, r)
	}
	return all
}

type reasonText struct {
	name, title string
	status      int
}

func (r Reason) text() reasonText {
	switch r {
	case NotReady:
		return reasonText{"not_ready", "Not ready", 503}
	case Granted:
		return reasonText{"granted", "Granted", 200}
	case Observed:
		return reasonText{"observed", "Observed", 200}
	case MalformedRequest:
		return reasonText{"malformed_request", "Malformed request", 400}
	case DestinationMismatch:
		return reasonText{"destination_mismatch", "Destination mismatch", 421}
	case IdentityUnknown:
		return reasonText{"identity_unknown", "Identity unknown", 403}
	case Revoked:
		return reasonText{"revoked", "Revoked", 403}
	case GuardrailDenied:
		return reasonText{"guardrail", "Refused by a guardrail", 403}
	case NoGrant:
		return reasonText{"no_grant", "No grant", 403}
	case DestinationNotGranted:
		return reasonText{"destination_not_granted", "Destination not granted", 403}
	case MethodNotGranted:
		return reasonText{"method_not_granted", "Method not granted", 403}
	case PathNotGranted:
		return reasonText{"path_not_granted", "Path not granted", 403}
	case StatementUnreadable:
		return reasonText{"statement_unreadable", "Statement unreadable", 403}
	case StatementTooLarge:
		return reasonText{"statement_too_large", "Statement too large", 413}
	case StatementNotGranted:
		return reasonText{"statement_not_granted", "Statement not granted", 403}
	case GrantExpired:
		return reasonText{"grant_expired", "Grant expired", 403}
	case NotEnforceableHere:
		return reasonText{"not_enforceable_here", "Not enforceable at this door", 403}
	case QuotaExceeded:
		return reasonText{"quota_exceeded", "Quota exceeded", 429}
	case UsageUnknown:
		return reasonText{"usage_unknown", "Usage unknown", 503}
	case CredentialMisplaced:
		return reasonText{"credential_misplaced", "Credential misplaced", 403}
	case CredentialUnavailable:
		return reasonText{"credential_unavailable", "Credential unavailable", 503}
	case AuditUnavailable:
		return reasonText{"audit_unavailable", "Audit unavailable", 503}
	case AddressNotAllowed:
		return reasonText{"address_not_allowed", "Address not allowed", 403}
	case UpstreamUnreachable:
		return reasonText{"upstream_unreachable", "Upstream unreachable", 502}
	case UpstreamTimeout:
		return reasonText{"upstream_timeout", "Upstream timeout", 504}
	case reasonCount:
	}
	return reasonText{"not_ready", "Not ready", 503}
}

// Decision is the answer to a request. The zero Decision denies.
type Decision struct {
	Reason     Reason
	Grant      string        // the winning rule's grant, "" without a winner
	Rule       string        // the winning rule's id, "" without a winner
	Credential string        // the winning rule's credential, "" without one
	Generation uint64        // of the policy that decided
	RetryAfter time.Duration // for QuotaExceeded: when to ask again; 0 for never

	rule            *rule         // the winner, or the rule that observes, or nil
	path            *pathPattern  // the winner's pattern that matched
	plugin          *pluginPolicy // its never-lists are checked against the address
	literal         netip.Addr    // the host, if it is an IP literal
	host            string        // of the destination, which may be in a region
	address         netip.Addr    // the resolved address that was refused
	sparesInFlight  bool          // a denial that lets accesses in flight end: a pause, a rate
	limitExceeded   bool          // a limit of the winner or the plugin refuses the access
	throttled       bool          // QuotaExceeded: the limits delay the access by RetryAfter and then allow it
	ownLimitsExempt bool          // the rule only observes the access, and its own limits do not apply
	unmetered       bool          // the whole sidecar observes, and nothing is spent
	unobservable    bool          // an access of a database that is never only observed; see [matcher.observes]
	observerRevoked bool          // no rule wins, and one that would observe the access was revoked
}

// Allowed reports whether the access may proceed.
func (d Decision) Allowed() bool { return d.Reason.Allowed() }

// Cuts reports whether an access in flight must end if it is decided again with
// this result. A pause, a rate and a stale meter deny new accesses only.
func (d Decision) Cuts() bool { return !d.Allowed() && !d.sparesInFlight }

// Upstream returns the destination that an allowed access to requested connects to:
// https for plain http that the winning rule originates, otherwise requested itself.
func (d Decision) Upstream(requested Destination) Destination {
	if d.rule == nil {
		return requested
	}
	return d.rule.destination(requested)
}

// CredentialRef returns what the credential of an allowed access is fetched by; false
// without one.
func (d Decision) CredentialRef() (CredentialRef, bool) {
	if !d.Allowed() || d.Credential == "" || d.rule == nil || d.rule.credential == nil {
		return CredentialRef{}, false
	}
	return d.rule.credential.ref, true
}

// Terms are the winning rule's requirements for the exchange itself. Terms are
// comparable, so that a connection pool can be keyed by them.
type Terms struct {
	TLSMin  string        // "1.2" or "1.3"
	CA      string        // PEM of the authorities that verify the upstream; "" for the system's
	Timeout time.Duration // of the whole exchange; 0 without one
}

// Terms returns the terms of the winning rule, and the defaults without a winner
// (an observed access).
func (d Decision) Terms() Terms {
	if d.rule == nil {
		return Terms{TLSMin: defaultTLSMin}
	}
	return d.rule.terms
}
