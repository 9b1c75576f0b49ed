package manifest

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// composed judges the grant that the manifest would become. Every answer is that of
// authz.Compile and authz.Snapshot.Decide, as at the sidecar.
func (c *checker) composed(ctx context.Context) {
	if len(c.m.Permissions) == 0 {
		c.add(checkPermission, LevelError, "spec.permissions", "add one, or do without a grant", "asks for nothing")
		return
	}
	grant := c.compose()
	guardrails := c.bounds()
	_, problems := authz.Compile(authz.Input{Plugin: c.in.File.Plugin, Grants: []authz.Grant{grant}, Guardrails: guardrails}, c.in.Now)
	bad := map[int]bool{}
	for _, p := range problems {
		if p.Kind == "PluginGuardrail" {
			g := c.guardrailOf(p.Origin)
			c.addFinding(Finding{
				Check: checkGuardrail, Level: LevelError, Position: g.position(p.Path), Bound: g.Name,
				Message: fmt.Sprintf("guardrail %s: %s: %s", g.Name, p.Path, p.Message), Fix: "the guardrail has to be corrected before anything passes it",
			})
			continue
		}
		if c.problem(&grant, guardrails, p) {
			bad[permissionIndex(c.field(p.Path))] = true
		}
	}
	delete(bad, -1)
	c.never(ctx, without(grant, bad), guardrails)
}

// compose returns the grant with sources assumed for its credentials, also for those that
// the manifest does not list, which are reported elsewhere.
func (c *checker) compose() authz.Grant {
	m := *c.m
	m.Credentials = slices.Clone(m.Credentials)
	m.Permissions = slices.Clone(m.Permissions)
	end := c.in.Now.Add(time.Second)
	seen := map[string]bool{"": true}
	m.Credentials = slices.DeleteFunc(m.Credentials, func(cr configs.ManifestCredential) bool {
		again := seen[cr.Name] || !knownKind(cr.Kind)
		seen[cr.Name] = true
		return again
	})
	for i := range m.Permissions {
		p := &m.Permissions[i]
		if p.NotAfter.After(end) {
			end = p.NotAfter
		}
		if p.To.TLS.CAFile != "" && p.To.TLS.CA == "" {
			p.To.TLS.CA = "of " + p.To.TLS.CAFile // the file is beside the grant
		}
		if p.Mode != "" || !p.ObserveUntil.IsZero() {
			c.add(checkPermission, LevelError, fmt.Sprintf("spec.permissions[%d].mode", i), "remove it; a pilot observes", "is not for a manifest to ask")
			p.Mode, p.ObserveUntil = "", time.Time{}
		}
		if !slices.ContainsFunc(m.Credentials, func(cr configs.ManifestCredential) bool { return cr.Name == p.Credential }) && p.Credential != "" {
			kind := configs.CredentialBearer
			if p.To.Scheme.Database() {
				kind = configs.CredentialDatabase
			}
			m.Credentials = append(m.Credentials, configs.ManifestCredential{Name: p.Credential, Kind: kind})
		}
	}
	grant, err := Grant(c.in.File.Plugin, &m, assumed(&m))
	if err != nil {
		c.add(checkCredential, LevelError, "spec.credentials", "", "%v", err)
	}
	grant.NotAfter = end
	return grant
}

// bounds returns the guardrails that apply to the plugin, named by their index.
func (c *checker) bounds() (out []authz.Guardrail) {
	for i, g := range c.applying() {
		spec := g.Spec.Guardrail
		spec.Name, spec.Origin = g.Name, origin(i)
		out = append(out, spec)
	}
	return out
}

const originPrefix = "applying-guardrail-"

func origin(i int) authz.Origin { return authz.Origin(originPrefix + strconv.Itoa(i)) }

func (c *checker) guardrailOf(o authz.Origin) *Guardrail {
	for i, g := range c.applying() {
		if origin(i) == o {
			return &g
		}
	}
	return &Guardrail{}
}

// field returns the field of the manifest for one of the grant.
func (c *checker) field(path string) string {
	if rest, ok := strings.CutPrefix(path, "spec.rules"); ok {
		return "spec.permissions" + rest
	}
	if path == "spec.plugin" {
		return "metadata.name"
	}
	return path
}

// problem reports a problem of the composed grant, and whether it makes its permission one that
// cannot be compiled.
func (c *checker) problem(grant *authz.Grant, guardrails []authz.Guardrail, p authz.Problem) bool {
	if p.Path == "spec.notAfter" || strings.HasPrefix(p.Path, "spec.credentials") {
		return false // the end of a grant and the sources of credentials are stated when it is issued
	}
	f := Finding{Check: checkPermission, Level: LevelError, Field: c.field(p.Path), Message: p.Message}
	bound := regexp.MustCompile(` ?\(` + originPrefix + `(\d+): spec\.([^)]*)\)`).FindStringSubmatch(p.Message)
	if bound == nil {
		if strings.Contains(p.Message, "is still "+authz.ReasonTodo) {
			f.Check = checkTodo
		}
		f.Permission = c.in.File.permission(permissionIndex(f.Field))
		c.addFinding(f)
		return f.Check != checkTodo
	}
	i, err := strconv.Atoi(bound[1])
	if err != nil || i >= len(guardrails) {
		c.addFinding(f)
		return false
	}
	name := bound[2] // as in ceilings.tlsMin
	f.Check, f.Bound = checkCeiling, guardrails[i].Name+"/"+name
	f.Message = strings.ReplaceAll(p.Message, bound[0], " ("+name+")")
	if !strings.Contains(f.Message, "; write ") {
		f.Fix = ceilingFix(name, guardrails[i].Ceilings)
	}
	f.Permission = c.in.File.permission(permissionIndex(f.Field))
	if e := c.exemption(func(e *grantcheck.Exemption) bool {
		return e.GuardrailRule == name && (e.Permission == "" || e.Permission == f.Permission) && c.helps(e, grant, guardrails[i], p)
	}); e != nil {
		c.use(&f, e)
	}
	c.addFinding(f)
	return false
}

// helps reports whether a problem is gone under the ceilings of an exemption in place of
// the guardrail's. An exemption states the one ceiling that it is for.
func (c *checker) helps(e *grantcheck.Exemption, grant *authz.Grant, g authz.Guardrail, p authz.Problem) bool {
	g.Never, g.Ceilings = nil, Relaxed(g.Ceilings, e)
	_, problems := authz.Compile(authz.Input{Plugin: grant.Plugin, Grants: []authz.Grant{*grant}, Guardrails: []authz.Guardrail{g}}, c.in.Now)
	return !slices.ContainsFunc(problems, func(q authz.Problem) bool {
		return q.Path == p.Path && strings.Contains(q.Message, e.GuardrailRule+")")
	})
}

// Relaxed returns ceilings in which the one of an exemption is replaced.
func Relaxed(c authz.Ceilings, e *grantcheck.Exemption) authz.Ceilings {
	field, allow := strings.TrimPrefix(e.GuardrailRule, "ceilings."), e.Allow
	switch field {
	case "schemes":
		c.Schemes = slices.Concat(c.Schemes, allow.Schemes)
	case "methods":
		c.Methods = slices.Concat(c.Methods, allow.Methods)
	case "tlsMin":
		if allow.TLSMin != "" {
			c.TLSMin = allow.TLSMin
		}
	case "wildcardHosts":
		if allow.WildcardHosts != "" {
			c.WildcardHosts = allow.WildcardHosts
		}
	case "hostsPerGrant":
		if allow.HostsPerGrant > 0 {
			c.HostsPerGrant = allow.HostsPerGrant
		}
	}
	limits := &c.Limits
	for _, l := range allow.Limits.Stated() {
		if field != "limits."+l.Kind.String() {
			continue
		}
		switch l.Kind {
		case authz.LimitRequests:
			limits.Requests = l.Limit
		case authz.LimitConnections:
			limits.Connections = l.Limit
		case authz.LimitSentBytes:
			limits.SentBytes = authz.ByteLimit(l.Limit)
		case authz.LimitReceivedBytes:
			limits.ReceivedBytes = authz.ByteLimit(l.Limit)
		case authz.LimitSyscalls:
			limits.Syscalls = l.Limit
		case authz.LimitProcesses:
			limits.Processes = l.Limit
		}
	}
	return c
}

// ceilingFix returns the nearest change under a ceiling whose message names none.
func ceilingFix(name string, c authz.Ceilings) string {
	switch name {
	case "ceilings.schemes":
		return fmt.Sprintf("write one of %v", c.Schemes)
	case "ceilings.methods":
		return fmt.Sprintf("remove it, or write one of %v", c.Methods)
	case "ceilings.wildcardHosts":
		if c.WildcardHosts == authz.WildcardSingle {
			return "write *. for one label, or name the hosts"
		}
		return "name the hosts"
	case "ceilings.hostsPerGrant":
		return fmt.Sprintf("name at most %d hosts, or split the plugin", c.HostsPerGrant)
	}
	if strings.HasPrefix(name, "ceilings.limits.") {
		return "state a limit within it under spec.limits"
	}
	return ""
}

// without returns the grant without the bad rules that cannot be compiled even without
// their credential. A reason that is still to be written is no obstacle.
func without(g authz.Grant, bad map[int]bool) authz.Grant {
	kept := make([]authz.Rule, 0, len(g.Rules))
	for i, r := range g.Rules {
		if strings.TrimSpace(r.Reason) == "" || isTodo(r.Reason) {
			r.Reason = "not stated yet"
		}
		if bad[i] {
			r.Credential, r.WildcardCredential, r.Insecure = "", false, false
			if refused(r) != "" {
				continue
			}
		}
		kept = append(kept, r)
	}
	g.Rules = kept
	return g
}

// never finds what a never-list refuses of what is asked for: it compares the grant under
// the never-lists with the grant without them.
func (c *checker) never(ctx context.Context, grant authz.Grant, guardrails []authz.Guardrail) {
	if len(grant.Rules) == 0 || !slices.ContainsFunc(guardrails, func(g authz.Guardrail) bool { return len(g.Never) > 0 }) {
		return
	}
	bare := slices.Clone(guardrails)
	for i := range bare {
		bare[i].Ceilings, bare[i].Never = authz.Ceilings{}, nil
	}
	listed := slices.Clone(bare)
	for i := range listed {
		listed[i].Never = guardrails[i].Never
	}
	free, err := c.snapshot(grant, bare)
	if err != nil {
		return // the grant is wrong, which is reported
	}
	bound, err := c.snapshot(grant, listed)
	if err != nil {
		return // the guardrail is wrong, which is reported
	}
	if !c.neverCompared(ctx, bound, free, guardrails, grant) || len(grant.Rules) == 1 && len(grant.Rules[0].To.Hosts) == 1 {
		return
	}
	// One request shows each rule; the others of its hosts are found host by host.
	for i := range grant.Rules {
		for _, host := range grant.Rules[i].To.Hosts {
			one := grant
			one.Rules, one.Sockets = []authz.Rule{grant.Rules[i]}, nil
			one.Rules[0].To.Hosts = []string{host}
			free, err1 := c.snapshot(one, bare)
			bound, err2 := c.snapshot(one, listed)
			if err1 == nil && err2 == nil {
				c.neverCompared(ctx, bound, free, guardrails, one)
			}
		}
	}
}

func (c *checker) snapshot(grant authz.Grant, guardrails []authz.Guardrail) (*authz.Snapshot, error) {
	return policy.Enforced(authz.Input{Plugin: grant.Plugin, Grants: []authz.Grant{grant}, Guardrails: guardrails}, c.in.Now)
}

// neverCompared reports what bound refuses and free allows, and whether there is anything.
func (c *checker) neverCompared(ctx context.Context, bound, free *authz.Snapshot, guardrails []authz.Guardrail, grant authz.Grant) bool {
	result, err := prove.Compare(ctx, bound, free, prove.Options{Plugin: authz.Principal(grant.Plugin), At: c.in.Now})
	if err != nil || ctx.Err() != nil {
		c.add(checkNever, LevelError, "spec.permissions", "ask for fewer hosts and paths, or allow more time", "the never-lists could not be compared with what is asked for in time")
		return false
	}
	for _, found := range result.Findings {
		c.refusedByNever(found, guardrails, grant)
	}
	return len(result.Findings) > 0
}

func (c *checker) refusedByNever(found prove.Finding, guardrails []authz.Guardrail, grant authz.Grant) {
	f := Finding{Check: checkNever, Level: LevelError, Fix: "remove it: nothing exempts from a never-list"}
	if found.Kind == prove.KindSocket {
		f.Field = fmt.Sprintf("spec.sockets[%d]", slices.Index(c.m.Sockets, found.Socket))
		f.Message = fmt.Sprintf("the socket %s is on a never-list", quote(found.Socket))
		c.out.Never = true
		c.addFinding(f)
		return
	}
	i := slices.IndexFunc(c.m.Permissions, func(p configs.Permission) bool { return p.ID == found.New.Rule })
	if i < 0 {
		return
	}
	rule := c.m.Permissions[i].Rule
	f.Field = fmt.Sprintf("spec.permissions[%d].to.hosts", i)
	f.Request = policy.Text(found.Request).String()
	host := found.Request.Destination.Host()
	if found.Kind == prove.KindAddress {
		if len(rule.To.Addresses) == 0 {
			return // of the public addresses, those on a never-list are refused at each access
		}
		f.Field, f.Level = fmt.Sprintf("spec.permissions[%d].to.addresses", i), LevelWarning
		f.Message = fmt.Sprintf("%s is on a never-list, and refused at each access", found.Address)
		f.Fix = "state ranges without it"
		if all := wholly(rule.To.Addresses, guardrails); all {
			f.Level, f.Fix = LevelError, "remove it: nothing exempts from a never-list"
		}
	} else {
		if j := slices.IndexFunc(grant.Rules, func(r authz.Rule) bool { return r.ID == rule.ID }); len(grant.Rules[j].To.Hosts) == 1 {
			f.Field = fmt.Sprintf("%s[%d]", f.Field, slices.Index(rule.To.Hosts, grant.Rules[j].To.Hosts[0]))
		} else if j := slices.Index(rule.To.Hosts, host); j >= 0 {
			f.Field = fmt.Sprintf("%s[%d]", f.Field, j)
		} else {
			return // a wildcard; it is found host by host
		}
		f.Message = fmt.Sprintf("%s is on a never-list", quote(host))
	}
	c.out.Never = c.out.Never || f.Level == LevelError
	if !slices.ContainsFunc(c.out.Findings, func(o Finding) bool { return o.Check == checkNever && o.Field == f.Field }) { // one request shows it
		f.Bound = c.entry(found, guardrails, grant)
		c.addFinding(f)
	}
}

// wholly reports whether every range is within one of a never-list.
func wholly(ranges []netip.Prefix, guardrails []authz.Guardrail) bool {
	return !slices.ContainsFunc(ranges, func(r netip.Prefix) bool {
		for _, g := range guardrails {
			for _, n := range g.Never {
				if slices.ContainsFunc(n.Addresses, func(never netip.Prefix) bool { return never.Bits() <= r.Bits() && never.Contains(r.Addr()) }) {
					return false
				}
			}
		}
		return true
	})
}

// entry names the entry of a never-list that refuses a request.
func (c *checker) entry(found prove.Finding, guardrails []authz.Guardrail, grant authz.Grant) string {
	for i := range guardrails {
		for _, n := range guardrails[i].Never {
			one := slices.Clone(guardrails)
			for j := range one {
				one[j].Ceilings, one[j].Never = authz.Ceilings{}, nil
			}
			one[i].Never = []authz.Never{n}
			s, err := c.snapshot(grant, one)
			if err != nil {
				continue
			}
			d := s.Decide(found.Request, authz.Usage{}, found.At)
			if d.Reason == authz.GuardrailDenied || found.Address.IsValid() && d.CheckAddress(found.Address) == authz.GuardrailDenied {
				return guardrails[i].Name + "/never/" + n.ID
			}
		}
	}
	return ""
}
