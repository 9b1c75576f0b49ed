package authz

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const defaultTLSMin = "1.2"

// Input is the input of Compile.
type Input struct {
	// Plugin is the plugin that the sidecar serves; "" to compile grants alone.
	Plugin     string
	Grants     []Grant
	Guardrails []Guardrail
	// Observe allows accesses that are not granted, without a credential, until ObserveUntil.
	Observe      bool
	ObserveUntil time.Time
	// Exemptions relax ceilings of the guardrails.
	Exemptions []Exemption
	// MaskPath, if not nil, replaces each literal segment of the rules' paths, so that the
	// policy decides on paths whose segments are masked alike, as in an audit log. Rules
	// keep the precedence of their paths as written. A mask is not empty, holds neither a
	// slash nor *, and holds %2F if the segment does.
	MaskPath func(segment string) string
}

// Problem is one error in a document. Compile returns no policy if it finds any.
type Problem struct {
	Origin  Origin
	Kind    string // PluginGrant or PluginGuardrail
	Name    string // of the document
	Path    string // of the field, as in spec.rules[0].to.hosts[1]
	Message string // fault, value and fix
}

// Policy is a compiled set of grants and guardrails. It is immutable.
type Policy struct {
	plugins  map[Principal]*pluginPolicy
	expiries []time.Time // sorted: when any part of the policy ends
	input    Input
}

// pluginPolicy is the policy of one plugin, indexed by host so that the cost of
// a decision does not grow with the number of grants.
type pluginPolicy struct {
	name         Principal
	grants       []*Grant           // including expired ones
	exact        map[string]entries // by host
	single       map[string]entries // *.NAME, by NAME
	deep         map[string]entries // **.NAME, by NAME
	rules        []*rule            // in the order of precedence of grant name and id
	credentials  []*credentialSpec  // of all grants, in their order
	limits       []limit            // of the whole plugin
	guardrails   []*Guardrail       // that apply to the plugin
	never        []neverEntry       // of all guardrails
	regions      []*region          // that the guardrails define, by name
	observeUntil time.Time          // of the sidecar; zero when it enforces
}

// entry is one host of one rule.
type entry struct {
	rule  *rule
	host  int32 // in the rule's hosts
	exact bool
}

// pattern returns the host pattern as written.
func (e entry) pattern() string { return e.rule.spec.To.Hosts[e.host] }

// entries are the entries of one host, in the order of grant name and rule id.
// Most hosts have one entry, which first holds without another pointer.
type entries struct {
	first entry
	more  []entry
}

// rule is a compiled Rule. The fields that every decision reads come first and
// are not behind a pointer: with many rules, the cost of a decision is the cost of
// fetching them from memory.
type rule struct {
	scheme       Scheme
	notAfter     time.Time // of the rule and its grant
	observeUntil time.Time
	port         uint16 // the first of ports
	methods      uint16 // the common methods, as bits
	anyMethod    bool   // "*": every method but TRACE, which sends credentials back
	encodedSlash bool
	conditions   Conditions
	path         pathPattern // the first of paths
	id           string
	grant        *Grant
	credential   *credentialSpec
	limits       []limit // the rule's own; the plugin's limits apply as well

	spec      *Rule
	paths     []pathPattern // the longest literal first
	ports     []uint16
	addresses []netip.Prefix
	regions   []*region // one of them must contain the destination; any if there is no entry
	terms     Terms
	matcher   *matcher // nil without one
}

// allowsMethod reports whether the rule is for the method.
func (r *rule) allowsMethod(method string) bool {
	bit := commonMethod(method)
	switch {
	case r.methods&bit != 0:
		return true
	case r.anyMethod:
		return method != "TRACE"
	}
	return bit == 0 && slices.Contains(r.spec.Methods, method)
}

// commonMethod returns the bit of a common method, 0 for any other.
func commonMethod(method string) uint16 {
	switch method {
	case "GET":
		return 1
	case "HEAD":
		return 2
	case "POST":
		return 4
	case "PUT":
		return 8
	case "PATCH":
		return 16
	case "DELETE":
		return 32
	case "OPTIONS":
		return 64
	}
	return 0
}

// neverEntry is a compiled Never.
type neverEntry struct {
	name      string // GUARDRAIL/ID
	hosts     []hostPattern
	addresses []netip.Prefix
	sockets   []string
}

// Compile checks the input and compiles it. It returns either a policy or every
// problem that it finds. The policy keeps the input, which callers must not change
// afterwards. now is the start of grantLifetime.
func Compile(in Input, now time.Time) (*Policy, []Problem) {
	c := &compiler{in: in, now: now, policy: &Policy{plugins: map[Principal]*pluginPolicy{}, input: in}, texts: map[string]string{}}
	if in.Plugin != "" {
		c.pluginPolicy(in.Plugin)
	}
	names := map[string]bool{}
	for i := range in.Guardrails {
		c.guardrail(&in.Guardrails[i], names)
	}
	clear(names)
	for i := range in.Grants {
		c.grant(&in.Grants[i], names)
	}
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	if c.finish(); len(c.problems) > 0 {
		return nil, c.problems
	}
	return c.policy, nil
}

const (
	kindGrant     = "PluginGrant"
	kindGuardrail = "PluginGuardrail"
)

type compiler struct {
	in       Input
	now      time.Time
	policy   *Policy
	problems []Problem
	texts    map[string]string
}

// intern returns the one shared copy of a text that many rules hold, so that it
// stays in the CPU cache.
func (c *compiler) intern(s string) string {
	if known, ok := c.texts[s]; ok {
		return known
	}
	c.texts[s] = s
	return s
}

func (c *compiler) report(origin Origin, kind, name, path, format string, args ...any) {
	c.problems = append(c.problems, Problem{origin, kind, name, path, fmt.Sprintf(format, args...)})
}

// pluginPolicy returns the policy of a plugin, making it at the first call.
func (c *compiler) pluginPolicy(plugin string) *pluginPolicy {
	s := c.policy.plugins[Principal(plugin)]
	if s != nil {
		return s
	}
	s = &pluginPolicy{
		name: Principal(plugin), exact: map[string]entries{}, single: map[string]entries{}, deep: map[string]entries{},
	}
	if plugin == c.in.Plugin && c.in.Observe {
		s.observeUntil = c.in.ObserveUntil
		c.addExpiry(s.observeUntil)
	}
	c.policy.plugins[Principal(plugin)] = s
	for i := range c.in.Guardrails {
		if g := &c.in.Guardrails[i]; g.AppliesTo(plugin) {
			s.guardrails = append(s.guardrails, g)
			s.never = append(s.never, compileNever(g)...)
			s.addRegions(g)
		}
	}
	return s
}

func (c *compiler) addExpiry(at time.Time) {
	if !at.IsZero() {
		c.policy.expiries = append(c.policy.expiries, at)
	}
}

// grant compiles one grant. names are the names of earlier grants.
func (c *compiler) grant(g *Grant, names map[string]bool) {
	s := c.pluginPolicy(g.Plugin)
	s.grants = append(s.grants, g)
	check := grantCheck{c, g, s.guardrails}
	check.document(names)
	needed := check.ceilings()
	c.addExpiry(g.NotAfter)
	s.limits = append(s.limits, compileLimits(g, "", g.Limits)...)
	credentials, before := map[string]*credentialSpec{}, map[string]bool{}
	for i := range g.Credentials {
		credential := check.credential(i, before)
		credentials[g.Credentials[i].Name] = credential
		s.credentials = append(s.credentials, credential)
	}
	rules := make([]rule, len(g.Rules))
	for i := range rules {
		r := &rules[i]
		check.rule(i, r, credentials)
		r.exempt(g, needed)
		check.data(func(field string) string { return fmt.Sprintf("spec.rules[%d].%s", i, field) }, &g.Rules[i], r, s)
		s.rules = append(s.rules, r)
		c.addExpiry(r.notAfter)
		c.addExpiry(r.observeUntil)
	}
}

// index adds the rule under each of its hosts.
func (s *pluginPolicy) index(r *rule) {
	for i, host := range r.spec.To.Hosts {
		p, _ := parseHostPattern(host) // checked before
		by := s.exact
		switch p.kind {
		case hostExact:
		case hostSingle:
			by = s.single
		case hostDeep:
			by = s.deep
		}
		e := entry{rule: r, host: int32(i), exact: p.kind == hostExact} // #nosec G115 -- no document holds so many hosts
		if list := by[p.name]; list.first.rule == nil {
			by[p.name] = entries{first: e}
		} else {
			list.more = append(list.more, e)
			by[p.name] = list
		}
	}
}

// finish sorts the rules by precedence (docs/configuration.md), indexes them in that order,
// and refuses those that contradict each other.
func (c *compiler) finish() {
	slices.SortFunc(c.policy.expiries, time.Time.Compare)
	for _, s := range c.policy.plugins {
		slices.SortFunc(s.rules, compareRules)
		for _, r := range s.rules {
			s.index(r)
		}
		c.conflicts(s)
		slices.SortFunc(s.limits, func(a, b limit) int {
			return cmp.Or(strings.Compare(a.key.Value().grant, b.key.Value().grant), cmp.Compare(a.kind, b.kind))
		})
	}
}

// compareRules orders by grant name, then rule id.
func compareRules(a, b *rule) int {
	return cmp.Or(strings.Compare(a.grant.Name, b.grant.Name), strings.Compare(a.id, b.id))
}

// guardrail checks one guardrail. compileNever compiles its never-list for each
// plugin. names are the names of earlier guardrails.
func (c *compiler) guardrail(g *Guardrail, names map[string]bool) {
	report := func(path, format string, args ...any) {
		c.report(g.Origin, kindGuardrail, g.Name, path, format, args...)
	}
	checkName(g.Name, "metadata.name", "guardrail", names, report)
	if len(g.Plugins) == 0 {
		report("spec.plugins", `is empty; name plugins, or "**" for every one`)
	}
	for i, p := range g.Plugins {
		if err := checkPluginPattern(p); err != nil {
			report(fmt.Sprintf("spec.plugins[%d]", i), "%v", err)
		}
	}
	ids := map[string]bool{}
	for i, n := range g.Never {
		path := fmt.Sprintf("spec.never[%d]", i)
		checkName(n.ID, path+".id", "entry", ids, report)
		if len(n.Hosts)+len(n.Addresses)+len(n.Sockets) == 0 {
			report(path, "names no hosts, addresses or sockets")
		}
		for j, h := range n.Hosts {
			if _, err := parseHostPattern(h); err != nil {
				report(fmt.Sprintf("%s.hosts[%d]", path, j), "%v", err)
			}
		}
		for j, a := range n.Addresses {
			if err := checkPrefix(a); err != nil {
				report(fmt.Sprintf("%s.addresses[%d]", path, j), "%v", err)
			}
		}
		for j, s := range n.Sockets {
			if rest, all := strings.CutSuffix(s, "**"); all {
				s = rest + "x" // any name that the pattern matches
			}
			if err := checkSocket(s); err != nil {
				report(fmt.Sprintf("%s.sockets[%d]", path, j), "%v", err)
			}
		}
	}
	checkCeilings(g.Ceilings, report)
	checkRegions(g.Regions, report)
}

func checkCeilings(l Ceilings, report func(path, format string, args ...any)) {
	const path = "spec.ceilings."
	for i, s := range l.Schemes {
		if s.DefaultPort() == 0 && s != SchemeTCP && !isPlannedScheme(s) {
			report(fmt.Sprintf(path+"schemes[%d]", i), "%q is not a scheme; use https, http, tls, tcp, postgres or redis", clip(string(s)))
		}
	}
	if l.TLSMin != "" && !validTLSMin(l.TLSMin) {
		report(path+"tlsMin", `%q is not a version; use "1.2" or "1.3"`, clip(l.TLSMin))
	}
	switch l.WildcardHosts {
	case "", WildcardNone, WildcardSingle, WildcardAny:
	default:
		report(path+"wildcardHosts", "%q is not none, single or any", clip(string(l.WildcardHosts)))
	}
	if l.HostsPerGrant < 0 {
		report(path+"hostsPerGrant", "is below 0")
	}
	if l.Limits.OnExceeded != "" {
		report(path+"limits.onExceeded", "is not a ceiling; leave it out")
	}
	if l.Limits.CountSyscalls != "" {
		report(path+"limits.countSyscalls", "is not a ceiling; leave it out")
	}
	checkLimits(path+"limits", l.Limits, report)
}

// isPlannedScheme reports whether the contract names the scheme although it is not
// enforced yet. A ceiling may name it, since ceilings only restrict.
func isPlannedScheme(s Scheme) bool { return s == "mysql" }

func validTLSMin(v string) bool { return v == "1.2" || v == "1.3" }

// compileNever compiles a never-list. A host that is an IP literal is also an
// address that no name may resolve to.
func compileNever(g *Guardrail) []neverEntry {
	out := make([]neverEntry, 0, len(g.Never))
	for _, n := range g.Never {
		e := neverEntry{name: g.Name + "/" + n.ID, addresses: slices.Clone(n.Addresses), sockets: n.Sockets}
		for _, h := range n.Hosts {
			p, err := parseHostPattern(h)
			if err != nil {
				continue // the check has reported it, and nothing is compiled
			}
			e.hosts = append(e.hosts, p)
			if p.addr.IsValid() {
				e.addresses = append(e.addresses, netip.PrefixFrom(p.addr, p.addr.BitLen()))
			}
		}
		out = append(out, e)
	}
	return out
}

// checkName checks a name that must differ from those before it, and adds it to
// them.
func checkName(name, path, what string, before map[string]bool, report func(path, format string, args ...any)) {
	switch {
	case !IsName(name):
		report(path, notName, clip(name))
	case before[name]:
		report(path, "%q is the name of an earlier %s", name, what)
	}
	before[name] = true
}

const notName = "%q is not a name; use lower-case letters and digits, with dashes, dots and underscores between them"

// IsName reports whether s can name a grant, a plugin, a rule, a credential or a
// document: lower-case letters and digits, with dashes, dots and underscores between
// them. It holds no slash, so that GRANT/ID is never ambiguous.
func IsName(s string) bool {
	if s == "" || len(s) > maxHost {
		return false
	}
	for i := range len(s) {
		c := s[i]
		inner := i > 0 && i < len(s)-1 && (c == '-' || c == '.' || c == '_')
		if !('a' <= c && c <= 'z') && !isDigit(c) && !inner {
			return false
		}
	}
	return true
}
