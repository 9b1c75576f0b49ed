package authz

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// grantCheck checks one grant by itself and against the guardrails, and compiles
// its parts. It reports every problem.
type grantCheck struct {
	c          *compiler
	g          *Grant
	guardrails []*Guardrail // that apply to its plugin
}

func (k grantCheck) report(path, format string, args ...any) {
	k.c.report(k.g.Origin, kindGrant, k.g.Name, path, format, args...)
}

// document checks the grant as a whole. names are the names of earlier grants.
func (k grantCheck) document(names map[string]bool) {
	g := k.g
	checkName(g.Name, "metadata.name", "grant", names, k.report)
	if !IsName(g.Plugin) {
		k.report("spec.plugin", notName, clip(g.Plugin))
	}
	if g.NotAfter.IsZero() {
		k.report("spec.notAfter", "is missing; write when the grant ends, as in 2027-01-31T00:00:00Z")
	}
	if len(g.Rules) == 0 {
		k.report("spec.rules", "is empty; write at least one rule")
	}
	checkLimits("spec.limits", g.Limits, k.report)
	for i, s := range g.Sockets {
		if err := checkSocket(s); err != nil {
			k.report(fmt.Sprintf("spec.sockets[%d]", i), "%v", err)
		} else if slices.Contains(g.Sockets[:i], s) {
			k.report(fmt.Sprintf("spec.sockets[%d]", i), "%q is given twice; write it once", s)
		}
	}
	ids := map[string]bool{}
	for i, r := range g.Rules {
		checkName(r.ID, rulePath(i, "id"), "rule", ids, k.report)
	}
}

func rulePath(i int, field string) string { return fmt.Sprintf("spec.rules[%d].%s", i, field) }

// checkLimits checks the limits of a grant, a rule or a ceiling.
func checkLimits(path string, l Limits, report func(path, format string, args ...any)) {
	switch l.OnExceeded {
	case "", OnExceededDeny, OnExceededThrottle, OnExceededStop, OnExceededKill:
	default:
		report(path+".onExceeded", "%q is not deny, throttle, stop or kill", clip(string(l.OnExceeded)))
	}
	switch l.CountSyscalls {
	case "", CountWhenNear, CountExact:
	default:
		report(path+".countSyscalls", "%q is not whenNear or exact", clip(string(l.CountSyscalls)))
	}
	if l.CountSyscalls != "" && l.Syscalls.IsZero() {
		report(path+".countSyscalls", "is set without syscalls; state syscalls or remove it")
	}
	stated := l.Stated()
	if l.OnExceeded != "" && len(stated) == 0 {
		report(path+".onExceeded", "is set without a limit; state a limit or remove it")
	}
	if l.OnExceeded == OnExceededStop && len(stated) == 1 && !l.Requests.IsZero() {
		report(path+".onExceeded", "stop does not work for requests, which the kernel does not count; use deny, throttle or kill")
	}
	for _, s := range stated {
		if s.Limit.Count == 0 || s.Limit.Count > math.MaxInt64 || s.Limit.Period < 0 || s.Limit.Period > maxPeriod {
			report(path+"."+s.Kind.String(), "is not a limit; write COUNT/PERIOD or COUNT, with a period of at most %s", Duration(maxPeriod))
		}
	}
}

// ceilings checks the grant as a whole against the guardrails of its plugin, and returns
// the exemptions that it needs.
func (k grantCheck) ceilings() (needed []*Exemption) {
	hosts := 0
	for _, r := range k.g.Rules {
		hosts += len(r.To.Hosts)
	}
	for _, guardrail := range k.guardrails {
		needed = append(needed, k.exempted("", guardrail.Ceilings, func(c Ceilings, report reportFunc) {
			k.grantCeilings(guardrail, c, hosts, report)
		})...)
	}
	return needed
}

// grantCeilings checks the grant as a whole against the ceilings of a guardrail.
func (k grantCheck) grantCeilings(guardrail *Guardrail, ceiling Ceilings, hosts int, report reportFunc) {
	at := func(field string) string {
		return fmt.Sprintf("guardrail %s%s", guardrail.Name, originSuffix(guardrail.Origin, "spec.ceilings."+field))
	}
	if life := time.Duration(ceiling.GrantLifetime); life > 0 && k.g.NotAfter.Sub(k.c.now) > life {
		report("spec.notAfter", "is over %s away, the longest %s allows; write %s or earlier",
			ceiling.GrantLifetime, at("grantLifetime"), k.c.now.Add(life).UTC().Format(time.RFC3339))
	}
	if ceiling.HostsPerGrant > 0 && hosts > ceiling.HostsPerGrant {
		report("spec.rules", "name %d hosts, more than the %d that %s allows", hosts, ceiling.HostsPerGrant, at("hostsPerGrant"))
	}
	stated := k.g.Limits.Stated()
	for _, top := range ceiling.Limits.Stated() {
		path := "spec.limits." + top.Kind.String()
		i := slices.IndexFunc(stated, func(l StatedLimit) bool { return l.Kind == top.Kind })
		switch {
		case i < 0:
			report("spec.limits", "does not state %s, which %s requires; write %s or less", top.Kind, at("limits."+top.Kind.String()), top.text)
		case !stated[i].Limit.Within(top.Limit):
			report(path, "%s is more than the %s that %s allows", stated[i].text, top.text, at("limits."+top.Kind.String()))
		}
	}
}

// originSuffix names the location of a guardrail's field. The loader replaces the
// marker by the line.
func originSuffix(origin Origin, field string) string {
	if origin == "" {
		return " (" + field + ")"
	}
	return fmt.Sprintf(" (%s: %s)", origin, field)
}

// ReasonTodo is the reason of a rule that a program has proposed. No policy that has it compiles, so that
// a person states why the plugin needs the access.
const ReasonTodo = "TODO"

// rule checks one rule and compiles it into out.
func (k grantCheck) rule(i int, out *rule, credentials map[string]*credentialSpec) {
	spec := &k.g.Rules[i]
	at := func(field string) string { return rulePath(i, field) }
	*out = rule{
		grant: k.g, spec: spec, id: spec.ID, scheme: spec.To.Scheme, ports: spec.To.Ports, addresses: spec.To.Addresses,
		encodedSlash: spec.EncodedSlash == "allow", notAfter: k.g.NotAfter,
	}
	switch reason := strings.TrimSpace(spec.Reason); {
	case reason == "":
		k.report(at("reason"), "is missing; write for the reviewer why the plugin needs this access")
	case strings.EqualFold(strings.TrimRight(reason, ".:!"), ReasonTodo):
		k.report(at("reason"), "is still %s; write for the reviewer why the plugin needs this access", ReasonTodo)
	}
	k.destination(at, spec, out)
	k.databaseHosts(at, spec, out)
	k.http(at, spec, out)
	if out.scheme.Database() && (spec.Matcher == nil || spec.Matcher.Protocol != out.scheme.Protocol()) {
		k.report(at("to.scheme"), "%s has no condition on statements; load the rule from a file that states them", out.scheme)
	}
	if spec.Matcher != nil {
		var err error
		if out.matcher, err = spec.Matcher.compile(); err != nil {
			k.report(at("matcher"), "%v", err)
		}
	}
	k.checkCredential(at, spec, out, credentials)
	k.times(at, spec, out)
	checkLimits(at("limits"), spec.Limits, k.report)
	out.limits = compileLimits(k.g, spec.ID, spec.Limits)
	for _, l := range spec.Limits.Stated() {
		if l.Kind != LimitRequests {
			k.report(at("limits."+l.Kind.String()), "is not supported yet on a rule; state it in the grant's limits")
		}
	}
	for _, guardrail := range k.guardrails {
		out.exempt(k.g, k.exempted(spec.ID, guardrail.Ceilings, func(c Ceilings, report reportFunc) {
			ruleCeilings(at, spec, out, guardrail, c, report)
		}))
	}
	if out.credential != nil {
		out.exempt(k.g, out.credential.exemptions)
	}
	out.terms = Terms{TLSMin: spec.To.TLS.Min, CA: spec.To.TLS.CA, Timeout: time.Duration(spec.Timeout)}
	if out.terms.TLSMin == "" {
		out.terms.TLSMin = defaultTLSMin
	}
	out.conditions = stateConditions(spec) | out.credential.conditions()
}

// stateConditions returns the conditions that the rule states, except those of
// its credential's kind.
func stateConditions(r *Rule) Conditions {
	var c Conditions
	if len(r.To.Addresses) > 0 || len(r.Data.Regions) > 0 {
		c |= ConditionAddresses
	}
	if r.To.TLS.Min != "" || r.To.TLS.CA != "" || r.To.TLS.CAFile != "" {
		c |= ConditionTLS
	}
	if r.To.TLS.Originate {
		c |= ConditionOriginate
	}
	if r.Timeout > 0 {
		c |= ConditionTimeout
	}
	if r.Credential != "" {
		c |= ConditionCredential
	}
	if r.Matcher != nil {
		c |= ConditionContent
	}
	return c
}

// destination checks the to of a rule.
func (k grantCheck) destination(at func(string) string, spec *Rule, out *rule) {
	if out.scheme == "" {
		out.scheme = SchemeHTTPS
	}
	out.scheme = out.scheme.shared()
	switch all := schemes(); {
	case isPlannedScheme(out.scheme):
		k.report(at("to.scheme"), "%s is not supported yet; use https, http, tls, tcp, postgres or redis", out.scheme)
	case !slices.Contains(all[:], out.scheme):
		k.report(at("to.scheme"), "%q is not a scheme; use https, http, tls, tcp, postgres or redis", clip(string(out.scheme)))
	}
	if len(spec.To.Hosts) == 0 {
		k.report(at("to.hosts"), "is empty; name the hosts, as in [api.weather.example]")
	}
	for j, h := range spec.To.Hosts {
		p, err := parseHostPattern(h)
		switch {
		case h == "*" || h == "**":
			k.report(fmt.Sprintf("%s[%d]", at("to.hosts"), j), "%q matches every host; name the hosts, or write *.NAME for those under one name", h)
		case err != nil:
			k.report(fmt.Sprintf("%s[%d]", at("to.hosts"), j), "%v", err)
		case p.addr.IsValid() && unusable(p.addr):
			k.report(fmt.Sprintf("%s[%d]", at("to.hosts"), j), "%s is unspecified, multicast or broadcast, not the address of a server; name the server", h)
		case p.addr.IsValid() && out.scheme == SchemeTLS:
			k.report(fmt.Sprintf("%s[%d]", at("to.hosts"), j), "%s is an address, and scheme tls matches server names; use tcp", h)
		}
	}
	if len(out.ports) == 0 && out.scheme.DefaultPort() != 0 {
		out.ports = []uint16{out.scheme.DefaultPort()}
	} else if len(out.ports) == 0 && out.scheme == SchemeTCP {
		k.report(at("to.ports"), "is missing; tcp has no default port")
	}
	if len(out.ports) > 0 {
		out.port = out.ports[0]
	}
	for j, p := range out.ports {
		switch at := fmt.Sprintf("%s[%d]", at("to.ports"), j); {
		case p == 0:
			k.report(at, "%d is not a port; write a number from 1 to 65535", p)
		case slices.Contains(out.ports[:j], p):
			k.report(at, "%d is given twice; write it once", p)
		}
	}
	for j, a := range spec.To.Addresses {
		if err := checkPrefix(a); err != nil {
			k.report(fmt.Sprintf("%s[%d]", at("to.addresses"), j), "%v", err)
		}
	}
	if v := spec.To.TLS.Min; v != "" && !validTLSMin(v) {
		k.report(at("to.tls.min"), `%q is not a version; use "1.2" or "1.3"`, clip(v))
	}
	if spec.To.TLS.CAFile != "" && strings.TrimSpace(spec.To.TLS.CA) == "" {
		k.report(at("to.tls.caFile"), "%q holds no certificate; without one every authority of the system would be trusted", clip(spec.To.TLS.CAFile))
	}
	switch {
	case spec.To.TLS.Originate && out.scheme.Database():
		k.report(at("to.tls.originate"), "applies to scheme https only; remove it")
	case spec.To.TLS != (TLS{}) && out.scheme != SchemeHTTPS && !out.scheme.Database():
		k.report(at("to.tls"), "does not apply to scheme %s, for which Chaperone does not speak TLS; remove it", out.scheme)
	}
}

// http checks what only http and https rules have.
func (k grantCheck) http(at func(string) string, spec *Rule, out *rule) {
	if !out.scheme.HTTP() {
		k.notHTTP(at, spec, out)
		return
	}
	if len(spec.Methods) == 0 {
		k.report(at("methods"), `is missing; name the methods, or "*" for every one`)
	}
	for j, m := range spec.Methods {
		if m == "*" && len(spec.Methods) == 1 {
			out.anyMethod = true
			continue
		}
		out.methods |= commonMethod(m)
		switch _, err := NewAction(m, ""); {
		case m == "*":
			k.report(fmt.Sprintf("%s[%d]", at("methods"), j), `"*" is beside other methods; write it alone`)
		case m == "TRACE":
			k.report(fmt.Sprintf("%s[%d]", at("methods"), j), "TRACE echoes the request with its credential; remove it")
		case err != nil:
			k.report(fmt.Sprintf("%s[%d]", at("methods"), j), "%v", err)
		case miscased(m):
			k.report(fmt.Sprintf("%s[%d]", at("methods"), j), "%q never matches, because methods are case-sensitive; write %s", m, strings.ToUpper(m))
		}
	}
	if len(spec.Paths) == 0 {
		k.report(at("paths"), `is missing; name the paths, or "/**" for every one`)
	}
	switch spec.EncodedSlash {
	case "", "refuse", "allow":
	default:
		k.report(at("encodedSlash"), "%q is not refuse or allow", clip(spec.EncodedSlash))
	}
	for j, text := range spec.Paths {
		p, err := parsePathPattern(text, out.encodedSlash)
		if err != nil {
			k.report(fmt.Sprintf("%s[%d]", at("paths"), j), "%v", err)
			continue
		}
		if mask := k.c.in.MaskPath; mask != nil {
			p = p.masked(mask)
		}
		p.text = k.c.intern(p.text)
		out.paths = append(out.paths, p)
	}
	slices.SortStableFunc(out.paths, func(a, b pathPattern) int { return cmp.Compare(b.literal, a.literal) })
	if len(out.paths) > 0 {
		out.path = out.paths[0]
	}
	for j, u := range spec.Upgrades {
		if u != asciiLower(u) || !isProtocol(u) || !upgradable(u) {
			k.report(fmt.Sprintf("%s[%d]", at("upgrades"), j), "%q is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1", clip(u))
		}
	}
}

// notHTTP refuses what only http and https rules have.
func (k grantCheck) notHTTP(at func(string) string, spec *Rule, out *rule) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"methods", len(spec.Methods) > 0},
		{"paths", len(spec.Paths) > 0},
		{"upgrades", len(spec.Upgrades) > 0},
		{"encodedSlash", spec.EncodedSlash != ""},
		{"credential", spec.Credential != "" && !out.scheme.Database()},
	} {
		switch {
		case f.set && out.scheme.Database():
			k.report(at(f.name), "does not apply to scheme %s; remove it", out.scheme)
		case f.set:
			k.report(at(f.name), "does not apply to scheme %s, whose content Chaperone does not see; remove it", out.scheme)
		}
	}
}

// upgradable reports whether a rule may grant an upgrade to the protocol. The
// excluded ones carry accesses that would not be decided: further requests, and
// datagrams to any destination.
func upgradable(protocol string) bool {
	name, _, _ := strings.Cut(protocol, "/")
	return name != "connect-udp" && name != "connect-ip" && len(UpgradesAsked([]string{name})) > 0
}

// miscased reports whether a method is a common one in the wrong case.
func miscased(method string) bool {
	switch upper := strings.ToUpper(method); upper {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return method != upper
	}
	return false
}

// checkCredential checks the credential of a rule.
func (k grantCheck) checkCredential(at func(string) string, spec *Rule, out *rule, credentials map[string]*credentialSpec) {
	wildcard := slices.ContainsFunc(spec.To.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
	if spec.Credential == "" {
		if out.scheme == SchemePostgres {
			k.report(at("credential"), "is missing; name the credential that sessions log in with")
		}
		if spec.WildcardCredential {
			k.report(at("wildcardCredential"), "is set without a credential; remove it")
		}
		if spec.Insecure {
			k.report(at("insecure"), "is set without a credential; remove it")
		}
		return
	}
	out.credential = credentials[spec.Credential]
	if out.credential == nil {
		k.report(at("credential"), "%q is not one of the grant's credentials; add it under spec.credentials", clip(spec.Credential))
	} else if out.scheme.Database() != (out.credential.kind == InjectDatabase) {
		k.report(at("credential"), "%q is for the %s, which scheme %s does not use; use one with inject: %s", clip(spec.Credential),
			k.g.Credentials[slices.IndexFunc(k.g.Credentials, func(c CredentialSpec) bool { return c.Name == spec.Credential })].Inject.Describe(),
			out.scheme, injectFor(out.scheme))
	}
	switch {
	case out.scheme.Database(): // databaseHosts reports wildcards
	case wildcard && !spec.WildcardCredential:
		k.report(at("credential"), "would be sent to every host of a wildcard; name the hosts, or set wildcardCredential: true")
	case !wildcard && spec.WildcardCredential:
		k.report(at("wildcardCredential"), "is set without a wildcard host; remove it")
	}
	switch {
	case out.scheme == SchemeHTTP && out.credential != nil && out.credential.kind == InjectCertificate:
		k.report(at("credential"), "is a client certificate, which needs TLS; use scheme https, with tls: {originate: true} if the plugin speaks plain http")
	case out.scheme == SchemeHTTP && !spec.Insecure:
		k.report(at("credential"), "would cross the network in clear text; use scheme https, or set insecure: true")
	case out.scheme != SchemeHTTP && spec.Insecure:
		k.report(at("insecure"), "applies to scheme http only; remove it")
	}
}

// injectFor returns an example of how rules of the scheme inject credentials.
func injectFor(s Scheme) string {
	if s.Database() {
		return "{database: {}}"
	}
	return `{header: Authorization, value: "Bearer {api_key}"}`
}

// times checks the end of a rule and of its mode observe.
func (k grantCheck) times(at func(string) string, spec *Rule, out *rule) {
	if !spec.NotAfter.IsZero() {
		if spec.NotAfter.After(k.g.NotAfter) {
			k.report(at("notAfter"), "is later than the grant's; write %s or earlier", k.g.NotAfter.UTC().Format(time.RFC3339))
		}
		out.notAfter = spec.NotAfter
	}
	switch spec.Mode {
	case "", ModeEnforce:
		if !spec.ObserveUntil.IsZero() {
			k.report(at("observeUntil"), "applies to mode: observe only; remove it")
		}
	case ModeObserve:
		out.observeUntil = spec.ObserveUntil
		if spec.ObserveUntil.IsZero() {
			k.report(at("observeUntil"), "is missing; write when mode observe ends, as in 2027-01-31T00:00:00Z")
		}
	default:
		k.report(at("mode"), "%q is not enforce or observe", clip(string(spec.Mode)))
	}
}

// ruleCeilings checks a rule against the ceilings of a guardrail.
func ruleCeilings(at func(string) string, spec *Rule, out *rule, guardrail *Guardrail, ceiling Ceilings, report reportFunc) {
	by := func(field string) string {
		return fmt.Sprintf("guardrail %s%s", guardrail.Name, originSuffix(guardrail.Origin, field))
	}
	if len(ceiling.Schemes) > 0 && !slices.Contains(ceiling.Schemes, out.scheme) {
		report(at("to.scheme"), "%s is not among %v, the ceiling of %s", out.scheme, ceiling.Schemes, by("spec.ceilings.schemes"))
	}
	if len(ceiling.Methods) > 0 && out.scheme.HTTP() {
		for j, m := range spec.Methods {
			if !slices.Contains(ceiling.Methods, m) {
				report(fmt.Sprintf("%s[%d]", at("methods"), j), "%s is not among %v, the ceiling of %s", clip(m), ceiling.Methods, by("spec.ceilings.methods"))
			}
		}
	}
	floor := spec.To.TLS.Min
	if floor == "" {
		floor = defaultTLSMin
	}
	if ceiling.TLSMin > floor && (out.scheme == SchemeHTTPS || out.scheme.Database()) {
		report(at("to.tls"), "accepts TLS %s, below %s of %s; write tls: {min: %q}", floor, ceiling.TLSMin, by("spec.ceilings.tlsMin"), ceiling.TLSMin)
	}
	hostCeilings(at, spec, ceiling.WildcardHosts, by, report)
}

// hostCeilings refuses wildcards beyond the ceiling. It does not check hosts
// against never-lists, which apply to each access: otherwise a new entry could make a
// policy unloadable and so keep the old one, without the entry, in force.
func hostCeilings(at func(string) string, spec *Rule, ceiling WildcardHosts, by func(string) string, report reportFunc) {
	for j, h := range spec.To.Hosts {
		path := fmt.Sprintf("%s[%d]", at("to.hosts"), j)
		deep, wild := strings.HasPrefix(h, "**."), strings.HasPrefix(h, "*")
		switch {
		case ceiling == WildcardNone && wild:
			report(path, "%q is a wildcard, which %s does not allow", h, by("spec.ceilings.wildcardHosts"))
		case ceiling == WildcardSingle && deep:
			report(path, "%q is a wildcard over more than one label, which %s does not allow", h, by("spec.ceilings.wildcardHosts"))
		}
	}
}
