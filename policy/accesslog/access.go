package accesslog

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// truncated ends a text that was too long for its record.
const truncated = "…"

// access sets a to the access of a decision's record.
func (r *Reader) access(a *Access, e *audit.Entry, p Place) {
	*a = Access{
		Time: e.Time.Add(-time.Duration(e.LatencyUS) * time.Microsecond), Recorded: e.Time, Door: authz.Door(e.Door), Decision: e.Decision,
		Plugin: e.Plugin, Allowed: e.Allowed != nil && *e.Allowed, Reason: e.Reason, Decided: e.Reason,
		Winner: Winner{e.Grant, e.Rule, e.Credential, e.Generation},
		Target: Target{e.Method, e.Scheme, e.Host, e.Port, e.Path, e.Query != ""},
		Masked: holdsMask(e), Count: max(e.Count, 1), Place: p, Seq: e.Seq,
	}
	if a.First = a.Time; !e.FirstTime.IsZero() {
		a.First = e.FirstTime
	}
	if a.NotReplayable = r.request(a, e); a.NotReplayable == "" {
		a.NotReplayable = r.state(a, e)
	}
}

// holdsMask reports whether a segment of the recorded path is a mask. Records of older
// formats do not state whether they are masked.
func holdsMask(e *audit.Entry) bool {
	if e.Masked == "" && e.Format != 0 || e.Door == string(authz.DoorKernel) {
		return false
	}
	for rest := e.Path; ; {
		at := strings.Index(rest, "/~")
		if at < 0 {
			return false
		}
		rest = rest[at+1:]
		if segment, _, _ := strings.Cut(rest, "/"); audit.IsMask(segment) {
			return true
		}
	}
}

// request sets the request of a decision's record, or returns why it has none.
func (r *Reader) request(a *Access, e *audit.Entry) string {
	scheme, port := authz.Scheme(e.Scheme), e.Port
	if e.AskedScheme != "" {
		scheme, port = authz.Scheme(e.AskedScheme), e.AskedPort
	}
	path := e.Path
	switch {
	case a.Door == authz.DoorKernel:
		return KernelDecision
	case e.Attempt, e.Method == "CONNECT", port == 0, e.Host == "", scheme.HTTP() != (path != ""):
		return NoRequest
	case a.Count > 1 && !a.Allowed:
		return FoldedRefusal // its path is that of the first
	case strings.HasSuffix(path, truncated):
		return TruncatedField
	}
	if a.Masked {
		a.MaskKey = r.keys[e.Masked]
	}
	if a.MaskKey != nil {
		path = r.maskAll(a.MaskKey, path)
	}
	to, err := r.destination(origin{scheme, e.Host, port}, path)
	if err != nil {
		return NoRequest
	}
	var action authz.Action
	if scheme.HTTP() {
		if action, err = authz.NewAction(e.Method, e.Upgrade); err != nil {
			return NoRequest
		}
	}
	a.Request = authz.Request{Principal: authz.Principal(e.Plugin), Action: action, Destination: to}
	for _, name := range e.Unenforceable {
		c, ok := authz.ParseCondition(name)
		if !ok {
			return NewerFormat
		}
		a.Request.Unenforceable |= c
	}
	if a.Request.Facts, a.MaskedFacts, err = facts(e); err != nil {
		return NewerFormat
	}
	if a.MaskedFacts != nil {
		a.Masked, a.MaskKey = e.Masked != "", r.keys[e.Masked]
	}
	switch {
	case slices.ContainsFunc(e.Facts, func(text string) bool { return strings.HasSuffix(text, truncated) }):
		return TruncatedField
	case e.Format == 0:
		return OlderFormat
	case e.Format > audit.FormatReplayable:
		return NewerFormat
	case a.Masked && a.MaskKey == nil && a.MaskedFacts == nil:
		return MaskedPath
	}
	return ""
}

// facts returns what the record has of the request's content: its facts, or those of which
// one has a masked name or which are those of several statements, more than one can have.
func facts(e *audit.Entry) (whole authz.Facts, masked []authz.Fact, err error) {
	if e.Protocol == "" && len(e.Facts) == 0 {
		return authz.Facts{}, nil, nil
	}
	all := make([]authz.Fact, len(e.Facts))
	for i, text := range e.Facts {
		kind, name, _ := strings.Cut(text, ":")
		if _, mask, _ := audit.CutMask(name); mask != "" && e.Masked != "" {
			masked, all[i] = all, authz.Fact{Kind: authz.FactKind(kind), Name: name} // it may be longer than a fact's
		} else if all[i], err = authz.ParseFact(text); err != nil {
			return authz.Facts{}, nil, err
		}
	}
	if masked != nil || len(all) > authz.MaxFacts {
		return authz.Facts{}, all, nil
	}
	whole, err = authz.NewFacts(authz.Protocol(e.Protocol), all...)
	return whole, nil, err
}

// origin is what the destinations of several accesses have in common.
type origin struct {
	scheme authz.Scheme
	host   string
	port   uint16
}

// destination returns the destination of a request. It keeps those of hosts, which
// are repeated.
func (r *Reader) destination(o origin, path string) (to authz.Destination, err error) {
	if !o.scheme.HTTP() {
		return authz.NewDestination(o.scheme, authority(o.host, o.port), path)
	}
	if r.origin != o {
		known, ok := r.roots[o]
		if !ok {
			if known, err = authz.NewDestination(o.scheme, authority(o.host, o.port), "/"); err != nil {
				return known, err
			}
			if len(r.roots) >= maxKnown {
				clear(r.roots)
			}
			r.roots[o] = known
		}
		r.origin, r.root = o, known
	}
	return r.root.WithTarget(path)
}

// authority returns host:port, with an IPv6 address in brackets.
func authority(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// maxMasks bounds the masks of readable segments that are kept. They are literals of rules.
const maxMasks = 4096

// maskAll returns a masked path with its readable segments masked too.
func (r *Reader) maskAll(key *audit.MaskKey, path string) string {
	if r.masksOf != key || len(r.masks) >= maxMasks {
		r.masksOf, r.masks = key, map[string]string{}
	}
	out := r.path[:0]
	for rest, more := path[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment != "" && !audit.IsMask(segment) {
			segment = r.mask(key, segment)
		}
		out = append(append(out, '/'), segment...)
	}
	r.path = out
	return string(out)
}

// mask returns the mask of a readable segment.
func (r *Reader) mask(key *audit.MaskKey, segment string) string {
	mask, ok := r.masks[segment]
	if !ok {
		mask = key.MaskPath(segment)
		r.masks[segment] = mask
	}
	return mask
}

// state returns the state beside the policy that decided, or "".
func (r *Reader) state(a *Access, e *audit.Entry) string {
	switch {
	case e.DecidedBy == string(authz.StateLimits):
		return UsageDecision
	case e.DecidedBy == string(authz.StateRevocation):
		return RevokedDecision
	case e.DecidedBy != "":
		return NewerFormat
	}
	if why, ok := r.states[a.Decided]; ok {
		return why
	}
	return InternalReason
}

// states returns the state beside the policy that decided with a reason, "" for none, by
// the names of the reasons that a policy and its states have.
func states() map[string]string {
	all := map[string]string{
		authz.QuotaExceeded.String(): UsageDecision,
		authz.UsageUnknown.String():  UsageDecision,
		authz.Revoked.String():       RevokedDecision,
	}
	for _, reason := range []authz.Reason{
		authz.Granted, authz.Observed, authz.MalformedRequest, authz.GuardrailDenied, authz.NoGrant, authz.DestinationNotGranted,
		authz.MethodNotGranted, authz.PathNotGranted, authz.StatementNotGranted, authz.GrantExpired, authz.NotEnforceableHere,
	} {
		all[reason.String()] = ""
	}
	return all
}

// end sets the outcome from the record of the access's end. Its reason refuses the access
// after the decision, or states why it was cut.
func (r *Reader) end(a *Access, e *audit.Entry) {
	a.Outcome = Outcome{Ended: true, Resolved: e.Resolved, Region: e.Region, SentBytes: e.SentBytes, Bytes: e.Bytes}
	dialled := r.setAddress(a, e.Address)
	if e.Allowed == nil || *e.Allowed {
		return
	}
	a.Allowed, a.Reason = false, e.Reason
	why := ""
	switch e.Reason {
	case authz.AddressNotAllowed.String(), authz.GuardrailDenied.String():
		a.RefusedAddress = !dialled && a.Address.IsValid() && len(a.Resolved) > 0
		if !a.RefusedAddress {
			why = InternalReason // the sidecar's own address, or a connection that a change of policy cut
		}
	case authz.MalformedRequest.String(), authz.DestinationMismatch.String(), authz.NotEnforceableHere.String(),
		authz.CredentialMisplaced.String(), authz.CredentialUnavailable.String():
		why = InternalReason // the request itself
	}
	if a.NotReplayable == "" {
		a.NotReplayable = why
	}
}

// setAddress sets the address that was dialled, or that is not allowed, which has no port,
// and reports whether it was dialled.
func (r *Reader) setAddress(a *Access, text string) (dialled bool) {
	if text == "" {
		return false
	}
	if text != r.address {
		r.address, r.dialled = text, true
		to, err := netip.ParseAddrPort(text)
		if r.addr = to.Addr().Unmap(); err != nil {
			refused, _ := netip.ParseAddr(text) // invalid with an error
			r.addr, r.dialled = refused.Unmap(), false
		}
	}
	a.Address = r.addr
	return r.dialled
}
