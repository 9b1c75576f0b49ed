package proxy

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// refusalError is an error that is answered with a refusal: before the decision,
// when no request could be made of the input, or after it, when an admitted access
// cannot go on.
type refusalError struct {
	reason  authz.Reason
	detail  string
	address netip.Addr // denied by the decision; the refusal then names the grant to ask for
	// misplaced is the credential whose placeholder was found outside its slot; detail
	// then says where.
	misplaced *authz.CredentialRef
	remedy    string // "" for the reason's own; RULE in it stands for the rule's name
	// retryAfter is when asking again may help, 0 for never.
	retryAfter time.Duration
}

func (e *refusalError) Error() string { return e.reason.String() + ": " + e.detail }

func malformed(detail string) *refusalError {
	return &refusalError{reason: authz.MalformedRequest, detail: detail}
}

func mismatch(detail string) *refusalError {
	return &refusalError{reason: authz.DestinationMismatch, detail: detail}
}

// refuse turns the admitted access into the refusal.
func (e *refusalError) refuse(a *authz.Admission) authz.Refusal {
	if e.address.IsValid() {
		return a.RefuseAddress(e.address)
	}
	if e.misplaced != nil {
		refusal := a.RefuseMisplaced(e.misplaced.Grant, e.misplaced.Name)
		refusal.Detail += ": in " + e.detail
		// The path may contain the placeholder.
		refusal.URL = string(a.Request.Destination.Scheme()) + "://" + a.Request.Destination.HostPort()
		return refusal
	}
	refusal := a.Refuse(e.reason, e.detail)
	if e.remedy != "" {
		refusal.Remedy = strings.ReplaceAll(e.remedy, "RULE", ruleName(a.Decision))
	}
	refusal.RetryAfter = max(refusal.RetryAfter, e.retryAfter)
	return refusal
}

// ruleName names the rule of a decision, for a remedy.
func ruleName(d authz.Decision) string {
	if d.Rule == "" {
		return "a rule for it"
	}
	return "rule " + d.Rule + " of grant " + d.Grant
}

// memoryRetryAfter is when to ask again while the memory budget is exhausted: bodies
// come and go.
const memoryRetryAfter = time.Second

// errOutOfMemory refuses an access for which the memory budget has no room.
func errOutOfMemory() *refusalError {
	return &refusalError{
		reason: authz.NotReady, detail: "as much is held in memory for the plugin as may be",
		remedy: "do less at a time: fewer connections and requests, shorter bodies or none that are compressed", retryAfter: memoryRetryAfter,
	}
}

// refusalOf turns an error of a budget into the refusal, and leaves any other.
func refusalOf(err error) error {
	if errors.Is(err, budget.ErrFull) || errors.Is(err, budget.ErrEnded) {
		return errOutOfMemory()
	}
	return err
}
