package authz

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Snapshot is a policy, what was revoked from it, and the generation that put
// both in force. It is immutable.
type Snapshot struct {
	policy      *Policy // nil before the first one is loaded
	revocations []Revocation
	generation  uint64
	changed     chan struct{}
}

func newSnapshot(p *Policy, revocations []Revocation, generation uint64) *Snapshot {
	return &Snapshot{p, revocations, generation, make(chan struct{})}
}

// Generation returns the snapshot's generation; 0 before anything is installed.
func (s *Snapshot) Generation() uint64 { return s.generation }

// Changed returns a channel that is closed once a newer snapshot is in force.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Ready reports whether a policy is loaded.
func (s *Snapshot) Ready() bool { return s.policy != nil }

// Revocations returns the revocations, also those whose time is over.
func (s *Snapshot) Revocations() []Revocation { return slices.Clone(s.revocations) }

// Input returns what the policy was compiled from. It is not to be changed.
func (s *Snapshot) Input() Input {
	if s.policy == nil {
		return Input{}
	}
	return s.policy.input
}

// nextExpiry returns when the first part of the policy after seen ends, or a
// revocation does; zero for never.
func (s *Snapshot) nextExpiry(seen time.Time) time.Time {
	var next time.Time
	if s.policy != nil {
		all := s.policy.expiries
		i, _ := slices.BinarySearchFunc(all, seen, func(at, seen time.Time) int {
			if at.After(seen) {
				return 1
			}
			return -1
		})
		if i < len(all) {
			next = all[i]
		}
	}
	for _, r := range s.revocations {
		if r.Until.After(seen) && (next.IsZero() || r.Until.Before(next)) {
			next = r.Until
		}
	}
	return next
}

// subject returns what is known of a plugin, or nil.
func (s *Snapshot) subject(p Principal) *subject {
	if s.policy == nil {
		return nil
	}
	return s.policy.subjects[p]
}

// Decide answers a request. It is pure: the same arguments give the same
// answer. It does not allocate, and its cost does not grow with the number of
// grants, nor with that of rules for other hosts.
func (s *Snapshot) Decide(req Request, usage Usage, now time.Time) Decision {
	d := Decision{Generation: s.generation}
	if s.policy == nil {
		return d
	}
	d.subject = s.subject(req.Principal)
	switch {
	case req.Destination.host == "", req.Destination.scheme.HTTP() && req.Action.Method == "",
		req.Destination.encodedSlash && !d.subject.allowsEncodedSlash(req.Destination.host):
		return d.because(MalformedRequest)
	case req.Principal == "":
		return d.because(IdentityUnknown)
	}
	if v := s.revoked(req.Principal, nil, now); v != nil {
		return d.revoked(v)
	}
	if d.subject == nil {
		return d.because(NoGrant)
	}
	if d.subject.refuses(req.Destination) != nil {
		return d.because(GuardrailDenied)
	}
	d = s.match(d, &req, now)
	if d.Allowed() {
		d = d.limited(usage, now)
	}
	if d.relaxable() && now.Before(d.subject.observeUntil) {
		d.free = true
		return d.observed()
	}
	return d
}

// because returns the decision with its reason.
func (d Decision) because(r Reason) Decision {
	d.Reason = r
	return d
}

// revoked returns the refusal that v asks for.
func (d Decision) revoked(v *Revocation) Decision {
	d.spares = v.Level == LevelPause
	return d.because(Revoked)
}

// relaxable reports whether a sidecar that observes passes the access all the
// same: not past a never-list, a revocation, or what nobody can judge.
func (d Decision) relaxable() bool {
	switch d.Reason {
	case NoGrant, DestinationNotGranted, MethodNotGranted, PathNotGranted, GrantExpired, QuotaExceeded:
		return true
	default:
		return false
	}
}

// observed passes the access without a credential.
func (d Decision) observed() Decision {
	d.Credential, d.RetryAfter, d.spares = "", 0, false
	return d.because(Observed)
}

// candidates yields every entry whose host matches.
func (sub *subject) candidates(host string) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		if !each(sub.exact[host], yield) || len(sub.single)+len(sub.deep) == 0 {
			return
		}
		_, parent, _ := strings.Cut(host, ".")
		if !each(sub.single[parent], yield) || len(sub.deep) == 0 {
			return
		}
		for parent != "" {
			if !each(sub.deep[parent], yield) {
				return
			}
			_, parent, _ = strings.Cut(parent, ".")
		}
	}
}

// each yields the entries and reports whether more are wanted.
func each(entries []entry, yield func(entry) bool) bool {
	for i := range entries {
		if !yield(entries[i]) {
			return false
		}
	}
	return true
}

// search is what has been found among the rules whose host matches.
type search struct {
	best     entry // the winner so far, revoked or not
	path     *pathPattern
	observer *rule // a rule that observes what its host matches
	lost     *rule // a rule that matches and was revoked before it expired
	host     bool  // scheme, host and port match
	method   bool  // and the method
	expired  bool  // and the path, of a rule that has expired
}

// match finds the winner, or the reason why there is none.
func (s *Snapshot) match(d Decision, req *Request, now time.Time) Decision {
	var found search
	for e := range d.subject.candidates(req.Destination.host) {
		s.consider(&found, e, req, now)
	}
	r := found.best.rule
	if r == nil {
		r = found.lost
	}
	if r != nil {
		d = d.won(r, found.path, req)
		// The winner may be revoked, and then no lesser rule stands in for it:
		// a revocation only takes away.
		if v := s.revoked(req.Principal, r, now); v != nil {
			d.Credential = ""
			return d.revoked(v)
		}
		if r.states(req)&req.Unenforceable != 0 {
			return d.because(NotEnforceableHere)
		}
		return d.because(Granted)
	}
	switch {
	case found.observer != nil:
		d = d.won(found.observer, nil, req)
		if d.rule.states(req)&req.Unenforceable&^ConditionCredential != 0 {
			return d.because(NotEnforceableHere)
		}
		return d.observed()
	case !d.subject.granted:
		return d.because(NoGrant)
	case !found.host:
		return d.because(DestinationNotGranted)
	case !found.method:
		return d.because(MethodNotGranted)
	case !found.expired:
		return d.because(PathNotGranted)
	}
	return d.because(GrantExpired)
}

// won names the rule that decides.
func (d Decision) won(r *rule, path *pathPattern, req *Request) Decision {
	d.rule, d.path, d.literal = r, path, req.Destination.addr
	d.Grant, d.Rule = r.grant.Name, r.spec.ID
	d.Credential = r.spec.Credential
	return d
}

// consider takes one rule whose host matches into account.
func (s *Snapshot) consider(found *search, e entry, req *Request, now time.Time) {
	r := e.rule
	if !r.takes(req.Destination) {
		return
	}
	found.host = true
	live := now.Before(r.notAfter)
	if live && now.Before(r.observeUntil) && (found.observer == nil || compareRules(r, found.observer) < 0) &&
		s.revoked(req.Principal, r, now) == nil {
		found.observer = r
	}
	if !r.allowsAction(req.Action) {
		return
	}
	found.method = true
	path, ok := r.matchPath(req.Destination)
	switch {
	case !ok:
	case !live:
		found.expired = true
		if s.revoked(req.Principal, r, now) != nil && (found.lost == nil || compareRules(r, found.lost) < 0) {
			found.lost = r
		}
	case found.best.rule == nil || wins(e, path, found.best, found.path):
		found.best, found.path = e, path
	}
}

// wins orders two matching rules: exact host over wildcard, longer literal
// path, then grant name, then rule id.
func wins(a entry, aPath *pathPattern, b entry, bPath *pathPattern) bool {
	if a.exact != b.exact {
		return a.exact
	}
	if la, lb := aPath.length(), bPath.length(); la != lb {
		return la > lb
	}
	return compareRules(a.rule, b.rule) < 0
}

// takes reports whether the rule is for the destination's scheme and port.
func (r *rule) takes(d Destination) bool {
	if r.scheme == d.scheme {
		return slices.Contains(r.ports, d.port)
	}
	return r.originates(d)
}

// originates reports whether plain http is taken as this https rule.
func (r *rule) originates(d Destination) bool {
	return r.spec.To.TLS.Originate && r.couldOriginate(d)
}

// couldOriginate reports whether plain http would be taken as this https rule
// if it said so.
func (r *rule) couldOriginate(d Destination) bool {
	return r.scheme == SchemeHTTPS && d.scheme == SchemeHTTP &&
		(d.port == SchemeHTTP.DefaultPort() || slices.Contains(r.ports, d.port))
}

// destination returns where the rule goes for a destination that it takes:
// https for plain http that it originates, on the same port where it has that
// one, else on its first.
func (r *rule) destination(d Destination) Destination {
	if r.scheme != d.scheme {
		d.scheme = r.scheme
		if !slices.Contains(r.ports, d.port) {
			d.port = r.ports[0]
		}
	}
	return d
}

// states returns the conditions that the rule states, as far as they concern
// the request.
func (r *rule) states(req *Request) Conditions {
	if r.scheme == req.Destination.scheme {
		return r.conditions &^ ConditionOriginate
	}
	return r.conditions
}

func (r *rule) allowsAction(a Action) bool {
	if !r.scheme.HTTP() {
		return true
	}
	if a.Upgrade != "" && !slices.Contains(r.spec.Upgrades, a.Upgrade) {
		return false
	}
	if r.methods == nil { // "*" is every method but the one that sends credentials back
		return a.Method != "TRACE"
	}
	return slices.Contains(r.methods, a.Method)
}

// matchPath returns the longest of the rule's patterns that matches.
func (r *rule) matchPath(d Destination) (best *pathPattern, ok bool) {
	if !r.scheme.HTTP() {
		return nil, true
	}
	if d.encodedSlash && !r.encodedSlash {
		return nil, false
	}
	for i := range r.paths {
		p := &r.paths[i]
		if (best == nil || p.literal > best.literal) && p.matches(d.path) {
			best = p
		}
	}
	return best, best != nil
}

// revoked returns the hardest revocation in force of the whole plugin, or of
// the rule when one is given. One that names a rule and no grant means the rule
// in every grant; one that names a grant and no rule means the whole plugin.
func (s *Snapshot) revoked(p Principal, r *rule, now time.Time) *Revocation {
	var hardest *Revocation
	for i := range s.revocations {
		v := &s.revocations[i]
		if v.Plugin != string(p) || !v.inForce(now) {
			continue
		}
		hits := v.Rule == ""
		if r != nil {
			hits = v.Rule == r.spec.ID && (v.Grant == "" || v.Grant == r.grant.Name)
		}
		if hits && v.harderThan(hardest) {
			hardest = v
		}
	}
	return hardest
}

// RevokedLevel returns the hardest level at which the whole plugin is revoked
// at now, or "".
func (s *Snapshot) RevokedLevel(p Principal, now time.Time) Level {
	if v := s.revoked(p, nil, now); v != nil {
		return v.Level
	}
	return ""
}

// shut reports whether a revocation leaves the plugin, or the rule when one is
// given, nothing at all: a pause leaves it what is in flight.
func (s *Snapshot) shut(p Principal, r *rule, now time.Time) bool {
	v := s.revoked(p, r, now)
	return v != nil && v.Level != LevelPause
}

// limited applies usage to an access that rules let through. The winner's own
// limits bound what it grants; the plugin's bound what a rule observes too.
func (d Decision) limited(usage Usage, now time.Time) Decision {
	own, shared := usage.check(d.ownLimits(), d.subject.limits, now)
	if own.over && now.Before(d.rule.observeUntil) {
		d, own = d.observed(), standing{}
		d.over = true
	}
	both := own.and(shared)
	switch {
	case both.over && both.unknown && now.Before(d.subject.observeUntil), !both.over && both.unknown:
		// Observing passes what a limit refuses, and not what cannot be judged.
		d.spares = true
		return d.because(UsageUnknown)
	case both.over:
		d.over, d.spares, d.RetryAfter = true, !both.total, both.retry
		return d.because(QuotaExceeded)
	}
	return d
}

// ownLimits returns the winner's limits, and none for what it only observes.
func (d Decision) ownLimits() []limit {
	if d.Reason != Granted {
		return nil
	}
	return d.rule.limits
}

// spends returns the limits that the access spends from. What passes because
// the whole sidecar observes spends nothing.
func (d Decision) spends() (own, shared []limit) {
	if !d.Allowed() || d.free {
		return nil, nil
	}
	return d.ownLimits(), d.subject.limits
}

// allowsEncodedSlash reports whether any rule for the host takes %2F in paths.
func (sub *subject) allowsEncodedSlash(host string) bool {
	if sub == nil {
		return false
	}
	for e := range sub.candidates(host) {
		if e.rule.encodedSlash {
			return true
		}
	}
	return false
}

// refuses returns the entry of a never-list that names the destination, or nil.
func (sub *subject) refuses(d Destination) *neverEntry {
	for i := range sub.never {
		n := &sub.never[i]
		if slices.ContainsFunc(n.hosts, func(p hostPattern) bool { return p.matches(d.host) }) || n.holds(d.addr) {
			return n
		}
	}
	return nil
}

// refusesAddress returns the entry of a never-list that holds addr, or nil.
func (sub *subject) refusesAddress(addr netip.Addr) *neverEntry {
	for i := range sub.never {
		if n := &sub.never[i]; n.holds(addr) {
			return n
		}
	}
	return nil
}

// holds reports whether the entry names addr, or the IPv4 address that it leads
// to. A zone does not hide an address.
func (n *neverEntry) holds(addr netip.Addr) bool {
	if !addr.IsValid() || len(n.addresses) == 0 {
		return false
	}
	addr = addr.Unmap().WithZone("")
	if containsAddr(n.addresses, addr) {
		return true
	}
	inner, ok := embeddedIPv4(addr)
	return ok && containsAddr(n.addresses, inner)
}

// pluginLimits returns the limits of the whole plugin.
func (s *Snapshot) pluginLimits(p Principal) []limit {
	if sub := s.subject(p); sub != nil {
		return sub.limits
	}
	return nil
}

// allLimits returns every limit of a plugin: its own, then its rules'.
func (s *Snapshot) allLimits(p Principal) []limit {
	sub := s.subject(p)
	if sub == nil {
		return nil
	}
	out := slices.Clone(sub.limits)
	for _, r := range sub.rules {
		out = append(out, r.limits...)
	}
	return out
}

// HasLimit reports whether any limit of the plugin counts kind, so that a
// meter which costs something runs only while it is needed.
func (s *Snapshot) HasLimit(p Principal, kind LimitKind) bool {
	return slices.ContainsFunc(s.pluginLimits(p), func(l limit) bool { return l.key.kind == kind })
}

// Observing reports whether the sidecar observes: what is not granted passes.
func (s *Snapshot) Observing(p Principal, now time.Time) bool {
	sub := s.subject(p)
	return sub != nil && now.Before(sub.observeUntil)
}

// Name reports whether the plugin's resolver may answer host, a name in
// canonical form, and the host pattern that says so ("" while observing).
// What is quarantined, the plugin or the rule, resolves nothing; what is paused
// still does.
func (s *Snapshot) Name(p Principal, host string, now time.Time) (pattern string, ok bool) {
	sub := s.subject(p)
	if sub == nil || s.shut(p, nil, now) || sub.refuses(Destination{host: host}) != nil {
		return "", false
	}
	for e := range sub.candidates(host) {
		if now.Before(e.rule.notAfter) && !s.shut(p, e.rule, now) {
			return e.pattern, true
		}
	}
	return "", now.Before(sub.observeUntil)
}

// Schemes returns the schemes that rules in force grant to the plugin at
// host:port, in the order https, http, tls, tcp. Plain http counts where
// tls.originate takes it.
func (s *Snapshot) Schemes(p Principal, host string, port uint16, now time.Time) []Scheme {
	sub := s.subject(p)
	if sub == nil {
		return nil
	}
	all := [...]Scheme{SchemeHTTPS, SchemeHTTP, SchemeTLS, SchemeTCP}
	var found [len(all)]bool
	for e := range sub.candidates(host) {
		for i, scheme := range all {
			if now.Before(e.rule.notAfter) && e.rule.takes(Destination{scheme: scheme, port: port}) {
				found[i] = true
			}
		}
	}
	var out []Scheme
	for i, ok := range found {
		if ok {
			out = append(out, all[i])
		}
	}
	return out
}

// HostPatterns returns the hosts that the plugin's grants name, sorted and
// each once, for the constraints of its certificate authority.
func (s *Snapshot) HostPatterns(p Principal) []string {
	sub := s.subject(p)
	if sub == nil {
		return nil
	}
	var out []string
	for _, r := range sub.rules {
		out = append(out, r.spec.To.Hosts...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// CredentialRefs returns the credentials that some rule in force needs. What
// is not among them is to be revoked.
func (s *Snapshot) CredentialRefs(p Principal, now time.Time) []CredentialRef {
	sub := s.subject(p)
	if sub == nil || s.shut(p, nil, now) {
		return nil
	}
	var out []CredentialRef
	seen := map[CredentialRef]bool{}
	for _, r := range sub.rules {
		if r.credential == nil || !now.Before(r.notAfter) || seen[r.credential.ref] || s.shut(p, r, now) {
			continue
		}
		seen[r.credential.ref] = true
		out = append(out, r.credential.ref)
	}
	return out
}
