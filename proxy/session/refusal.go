package session

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// RefusalError is an error that is answered with a refusal: before the decision,
// when no request could be made of the input, or after it, when an admitted access
// cannot go on.
type RefusalError struct {
	Reason  authz.Reason
	Detail  string
	Address netip.Addr // denied by the decision; the refusal then names the grant to ask for
	// Misplaced is the credential whose placeholder was found outside its slot; detail
	// then has its place.
	Misplaced *authz.CredentialRef
	Remedy    string // "" for the reason's own; RULE in it stands for the rule's name
	// RetryAfter is when asking again may help, 0 for never.
	RetryAfter time.Duration
}

// Error implements error.
func (e *RefusalError) Error() string { return e.Reason.String() + ": " + e.Detail }

// Malformed refuses input that is not a request.
func Malformed(detail string) *RefusalError {
	return &RefusalError{Reason: authz.MalformedRequest, Detail: detail}
}

// Mismatch refuses a request whose names of the destination disagree.
func Mismatch(detail string) *RefusalError {
	return &RefusalError{Reason: authz.DestinationMismatch, Detail: detail}
}

// Refuse turns the admitted access into the refusal.
func (e *RefusalError) Refuse(a *authz.Admission) authz.Refusal {
	if e.Address.IsValid() {
		return a.RefuseAddress(e.Address)
	}
	if e.Misplaced != nil {
		refusal := a.RefuseMisplaced(e.Misplaced.Grant, e.Misplaced.Name)
		refusal.Detail += ": in " + e.Detail
		// The path may contain the placeholder.
		refusal.URL = string(a.Request.Destination.Scheme()) + "://" + a.Request.Destination.HostPort()
		return refusal
	}
	refusal := a.Refuse(e.Reason, e.Detail)
	if e.Remedy != "" {
		refusal.Remedy = strings.ReplaceAll(e.Remedy, "RULE", RuleName(a.Decision))
	}
	refusal.RetryAfter = max(refusal.RetryAfter, e.RetryAfter)
	return refusal
}

// RuleName names the rule of a decision, for a remedy.
func RuleName(d authz.Decision) string {
	if d.Rule == "" {
		return "a rule for it"
	}
	return "rule " + d.Rule + " of grant " + d.Grant
}

// memoryRetryAfter is when to ask again while the memory budget is exhausted: bodies
// come and go.
const memoryRetryAfter = time.Second

// ErrOutOfMemory refuses an access for which the memory budget has no room.
func ErrOutOfMemory() *RefusalError {
	return &RefusalError{
		Reason: authz.NotReady, Detail: "the plugin's memory limit is reached",
		Remedy: "reduce concurrency: use fewer connections and requests, and shorter or uncompressed bodies", RetryAfter: memoryRetryAfter,
	}
}

// AsRefusal turns an error of a budget into the refusal, and leaves any other.
func AsRefusal(err error) error {
	if errors.Is(err, budget.ErrFull) || errors.Is(err, budget.ErrEnded) {
		return ErrOutOfMemory()
	}
	return err
}
