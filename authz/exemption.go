package authz

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unique"
)

// Exemption relaxes one ceiling of the guardrails for one rule of a grant, or for all of
// it, until it ends. It never relaxes a never-list. Its caller has verified it.
type Exemption struct {
	Name    string
	Grant   string   // name of the grant
	Rule    string   // id of the rule; "" for each rule of the grant
	Ceiling string   // as in ceilings.tlsMin
	Allow   Ceilings // holds the value in place of the ceiling
	// NotAfter is when the rules that need the exemption end.
	NotAfter time.Time
	// MaxUses is how many accesses the rules that need it may make; 0 for any number. They
	// are counted in either case, as a total with the name that [Exemption.Total] returns.
	MaxUses uint64
}

// Total returns the name of the grant under which a [Ledger] counts the uses.
func (e *Exemption) Total() string { return "exemption:" + e.Name }

// relax returns the ceilings with the one of the exemption replaced; false if it is not
// one that can be exempted from, or if Allow does not state it: that would be no ceiling.
func (e *Exemption) relax(c Ceilings) (Ceilings, bool) {
	stated := true
	switch e.Ceiling {
	case "ceilings.grantLifetime":
		c.GrantLifetime, stated = e.Allow.GrantLifetime, e.Allow.GrantLifetime > 0
	case "ceilings.credentialLifetime":
		c.CredentialLifetime, stated = e.Allow.CredentialLifetime, e.Allow.CredentialLifetime > 0
	case "ceilings.schemes":
		c.Schemes = append(slices.Clone(c.Schemes), e.Allow.Schemes...)
	case "ceilings.methods":
		c.Methods = append(slices.Clone(c.Methods), e.Allow.Methods...)
	case "ceilings.tlsMin":
		c.TLSMin, stated = e.Allow.TLSMin, e.Allow.TLSMin != ""
	case "ceilings.wildcardHosts":
		c.WildcardHosts, stated = e.Allow.WildcardHosts, e.Allow.WildcardHosts != ""
	case "ceilings.hostsPerGrant":
		c.HostsPerGrant, stated = e.Allow.HostsPerGrant, e.Allow.HostsPerGrant > 0
	default:
		kind, ok := strings.CutPrefix(e.Ceiling, "ceilings.limits.")
		return c, ok && relaxLimit(&c.Limits, &e.Allow.Limits, kind)
	}
	return c, stated
}

// relaxLimit replaces one limit of a ceiling by one that allow states.
func relaxLimit(c, allow *Limits, kind string) bool {
	switch kind {
	case LimitRequests.String():
		c.Requests = allow.Requests
		return !allow.Requests.IsZero()
	case LimitConnections.String():
		c.Connections = allow.Connections
		return !allow.Connections.IsZero()
	case LimitSentBytes.String():
		c.SentBytes = allow.SentBytes
		return !allow.SentBytes.IsZero()
	case LimitReceivedBytes.String():
		c.ReceivedBytes = allow.ReceivedBytes
		return !allow.ReceivedBytes.IsZero()
	case LimitSyscalls.String():
		c.Syscalls = allow.Syscalls
		return !allow.Syscalls.IsZero()
	case LimitProcesses.String():
		c.Processes = allow.Processes
		return !allow.Processes.IsZero()
	}
	return false
}

// ceilingProblem is a problem that is reported if no exemption is for it.
type ceilingProblem struct{ path, message string }

// exempted has ceilings checked, and checks them relaxed where they are exceeded. It
// reports what remains, and returns the exemptions that are needed. An exemption that has
// ended counts: the rules that need it have ended, and the policy can still be loaded.
func (k grantCheck) exempted(rule string, ceiling Ceilings, check func(c Ceilings, report reportFunc)) (needed []*Exemption) {
	collect := func(c Ceilings) (out []ceilingProblem) {
		check(c, func(path, format string, args ...any) {
			out = append(out, ceilingProblem{path, fmt.Sprintf(format, args...)})
		})
		return out
	}
	problems := collect(ceiling)
	for i := range k.c.in.Exemptions {
		e := &k.c.in.Exemptions[i]
		if len(problems) == 0 {
			break
		}
		relaxed, ok := e.relax(ceiling)
		if e.Grant != k.g.Name || e.Rule != "" && e.Rule != rule || !ok {
			continue
		}
		if left := collect(relaxed); len(left) < len(problems) {
			ceiling, problems = relaxed, left
			needed = append(needed, e)
		}
	}
	for _, p := range problems {
		k.report(p.path, "%s", p.message)
	}
	return needed
}

// reportFunc reports a problem at the path of a field.
type reportFunc = func(path, format string, args ...any)

// exempt ends a rule with the exemptions that it needs, and counts their uses.
func (r *rule) exempt(g *Grant, needed []*Exemption) {
	for _, e := range needed {
		if e.NotAfter.Before(r.notAfter) {
			r.notAfter = e.NotAfter
		}
		most := e.MaxUses
		if most == 0 {
			most = math.MaxInt64
		}
		key := unique.Make(limitName{g.Plugin, e.Total(), "", LimitRequests})
		if slices.ContainsFunc(r.limits, func(l limit) bool { return l.key == key }) {
			continue
		}
		r.limits = append(r.limits, limit{key: key, kind: LimitRequests, spec: Limit{Count: most}, until: g.NotAfter, action: OnExceededDeny, refuses: true})
	}
}
