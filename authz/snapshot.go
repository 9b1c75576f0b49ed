package authz

import (
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
// grants.
func (s *Snapshot) Decide(req Request, usage Usage, now time.Time) Decision {
	d := Decision{Generation: s.generation}
	if s.policy == nil {
		return d
	}
	d.subject = s.subject(req.Principal)
	switch {
	case req.Destination.host == "" || req.Destination.encodedSlash && !d.subject.allowsEncodedSlash(req.Destination.host):
		return d.because(MalformedRequest)
	case req.Principal == "":
		return d.because(IdentityUnknown)
	}
	if r := s.revoked(req.Principal, nil, now); r != nil {
		d.spares = r.Level == LevelPause
		return d.because(Revoked)
	}
	if d.subject == nil {
		return d.because(NoGrant)
	}
	if d.subject.refuses(req.Destination) {
		return d.because(GuardrailDenied)
	}
	d = s.match(d, req, now)
	if d.Reason == Granted {
		d = d.limited(usage, now)
	}
	if !d.Allowed() && d.observable() && now.Before(d.subject.observeUntil) {
		return d.observed()
	}
	return d
}

// because returns the decision with its reason.
func (d Decision) because(r Reason) Decision {
	d.Reason = r
	return d
}

// observable reports whether the mode observe relaxes the reason.
func (d Decision) observable() bool {
	switch d.Reason {
	case NoGrant, DestinationNotGranted, MethodNotGranted, PathNotGranted, GrantExpired, QuotaExceeded:
		return true
	default:
		return false
	}
}

// observes reports whether the winner, or the whole sidecar, observes.
func (d Decision) observes(now time.Time) bool {
	return d.rule != nil && now.Before(d.rule.observeUntil) || d.subject != nil && now.Before(d.subject.observeUntil)
}

// observed passes the access without a credential.
func (d Decision) observed() Decision {
	d.Credential, d.RetryAfter, d.spares = "", 0, false
	return d.because(Observed)
}

// candidates calls visit with every entry whose host matches, until visit
// returns false.
func (sub *subject) candidates(host string, visit func(entry) bool) {
	for _, e := range sub.exact[host] {
		if !visit(e) {
			return
		}
	}
	if len(sub.single)+len(sub.deep) == 0 {
		return
	}
	first := true
	for rest := host; ; {
		_, tail, more := strings.Cut(rest, ".")
		if !more {
			return
		}
		if first {
			for _, e := range sub.single[tail] {
				if !visit(e) {
					return
				}
			}
			first = false
		}
		for _, e := range sub.deep[tail] {
			if !visit(e) {
				return
			}
		}
		if len(sub.deep) == 0 {
			return
		}
		rest = tail
	}
}

// progress is how far the best rule has come.
type progress struct {
	best     entry // the winner so far
	path     *pathPattern
	observer *rule // a rule that observes what its host matches
	host     bool
	method   bool
	matched  bool // also by a rule that has expired or was revoked
	revoked  *Revocation
}

// match finds the winner, or the reason why there is none.
func (s *Snapshot) match(d Decision, req Request, now time.Time) Decision {
	var m progress
	d.subject.candidates(req.Destination.host, func(e entry) bool {
		s.consider(&m, e, req, now)
		return true
	})
	if r := m.best.rule; r != nil {
		d = d.won(r, m.path)
		if r.conditions&req.Unenforceable != 0 {
			return d.because(NotEnforceableHere)
		}
		return d.because(Granted)
	}
	switch {
	case m.revoked != nil:
		d.spares = m.revoked.Level == LevelPause
		return d.because(Revoked)
	case !d.subject.granted:
		return d.because(NoGrant)
	case !m.host:
		return d.because(DestinationNotGranted)
	case m.observer != nil && !m.matched:
		d.rule = m.observer
		d.Grant, d.Rule = m.observer.grant.Name, m.observer.spec.ID
		return d.observed()
	case !m.method:
		return d.because(MethodNotGranted)
	case !m.matched:
		return d.because(PathNotGranted)
	}
	return d.because(GrantExpired)
}

// won names the winner.
func (d Decision) won(r *rule, path *pathPattern) Decision {
	d.rule, d.path = r, path
	d.Grant, d.Rule = r.grant.Name, r.spec.ID
	d.Credential = r.spec.Credential
	return d
}

// consider takes one rule whose host matches into account.
func (s *Snapshot) consider(m *progress, e entry, req Request, now time.Time) {
	r := e.rule
	if r.scheme != req.Destination.scheme || !slices.Contains(r.ports, req.Destination.port) {
		return
	}
	m.host = true
	expired := !now.Before(r.notAfter)
	var revoked *Revocation
	if len(s.revocations) > 0 {
		revoked = s.revoked(req.Principal, r, now)
	}
	if !expired && revoked == nil && now.Before(r.observeUntil) && (m.observer == nil || compareRules(r, m.observer) < 0) {
		m.observer = r
	}
	if !r.allowsAction(req.Action) {
		return
	}
	m.method = true
	path, ok := r.matchPath(req.Destination)
	if !ok {
		return
	}
	m.matched = true
	switch {
	case expired:
	case revoked != nil:
		m.revoked = revoked
	case m.best.rule == nil || wins(e, path, m.best, m.path):
		m.best, m.path = e, path
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

func (p *pathPattern) length() int {
	if p == nil {
		return 0
	}
	return p.literal
}

func (r *rule) allowsAction(a Action) bool {
	if !r.scheme.HTTP() {
		return true
	}
	if a.Upgrade != "" && !slices.Contains(r.spec.Upgrades, a.Upgrade) {
		return false
	}
	if r.methods == nil { // "*" is every method but the one that sends credentials back
		return a.Method != "" && a.Method != "TRACE"
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

// revoked returns the hardest revocation in force of the plugin, or of the
// rule when one is given.
func (s *Snapshot) revoked(p Principal, r *rule, now time.Time) *Revocation {
	var found *Revocation
	for i := range s.revocations {
		v := &s.revocations[i]
		if v.Plugin != string(p) || !v.inForce(now) {
			continue
		}
		if r == nil && v.Rule != "" || r != nil && (v.Rule != r.spec.ID || v.Grant != r.grant.Name) {
			continue
		}
		if found == nil || v.Level != LevelPause {
			found = v
		}
	}
	return found
}

// RevokedLevel returns the hardest level at which the whole plugin is revoked
// at now, or "".
func (s *Snapshot) RevokedLevel(p Principal, now time.Time) Level {
	var hardest Level
	for _, v := range s.revocations {
		if v.Plugin == string(p) && v.Rule == "" && v.inForce(now) && rank(v.Level) > rank(hardest) {
			hardest = v.Level
		}
	}
	return hardest
}

func rank(l Level) int {
	switch l {
	case LevelPause:
		return 1
	case LevelQuarantine:
		return 2
	case LevelHalt:
		return 3
	}
	return 0
}

// limited applies usage to a granted decision.
func (d Decision) limited(usage Usage, now time.Time) Decision {
	reason, retry, spares := usage.check(d.rule.limits, now)
	if reason == Granted {
		return d
	}
	if reason == QuotaExceeded && d.observes(now) {
		return d.observed()
	}
	d.RetryAfter, d.spares = retry, spares
	return d.because(reason)
}

// limits returns those that the winner spends from.
func (d Decision) limits() []limit {
	if d.rule == nil || d.Reason != Granted {
		return nil
	}
	return d.rule.limits
}

// allowsEncodedSlash reports whether any rule for the host takes %2F in paths.
func (sub *subject) allowsEncodedSlash(host string) bool {
	if sub == nil {
		return false
	}
	allows := false
	sub.candidates(host, func(e entry) bool {
		allows = allows || e.rule.encodedSlash
		return !allows
	})
	return allows
}

// refuses reports whether a never-list names the destination.
func (sub *subject) refuses(d Destination) bool {
	for _, n := range sub.never {
		if n.refuses(d.host, d.addr) {
			return true
		}
	}
	return false
}

func (n neverEntry) refuses(host string, addr netip.Addr) bool {
	for _, p := range n.hosts {
		if p.matches(host) {
			return true
		}
	}
	return addr.IsValid() && containsAddr(n.addresses, addr)
}

func (sub *subject) neverAddress(addr netip.Addr) bool {
	for _, n := range sub.never {
		if containsAddr(n.addresses, addr) {
			return true
		}
	}
	return false
}

// allowsAddress reports whether the rule itself names the address.
func (r *rule) allowsAddress(addr netip.Addr) bool {
	return containsAddr(r.addresses, addr) || slices.Contains(r.literals, addr)
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
		out = append(out, r.limits[:len(r.limits)-len(sub.limits)]...)
	}
	return out
}

// HasLimit reports whether any limit of the plugin counts kind, so that a
// meter which costs something runs only while it is needed.
func (s *Snapshot) HasLimit(p Principal, kind LimitKind) bool {
	return slices.ContainsFunc(s.pluginLimits(p), func(l limit) bool { return l.key.kind == kind })
}

// originate turns plain http into the https that a rule with tls.originate
// takes it as. Without such a rule the request stays as it is.
func (s *Snapshot) originate(req Request, now time.Time) Request {
	sub := s.subject(req.Principal)
	if sub == nil || req.Destination.scheme != SchemeHTTP {
		return req
	}
	out := req
	sub.candidates(req.Destination.host, func(e entry) bool {
		r := e.rule
		if !now.Before(r.notAfter) {
			return true
		}
		if r.scheme == SchemeHTTP && slices.Contains(r.ports, req.Destination.port) {
			out = req // granted as plain http: that is what was asked for
			return false
		}
		if r.scheme != SchemeHTTPS || !r.spec.To.TLS.Originate || out.Destination.scheme == SchemeHTTPS {
			return true
		}
		port := req.Destination.port
		if port == SchemeHTTP.DefaultPort() {
			port = r.ports[0]
		}
		if slices.Contains(r.ports, port) {
			out.Destination.scheme, out.Destination.port = SchemeHTTPS, port
		}
		return true
	})
	return out
}

// Observing reports whether the sidecar observes: what is not granted passes.
func (s *Snapshot) Observing(p Principal, now time.Time) bool {
	sub := s.subject(p)
	return sub != nil && now.Before(sub.observeUntil)
}

// Name reports whether the plugin's resolver may answer host, a name in
// canonical form, and the host pattern that says so ("" while observing).
// A quarantined plugin resolves nothing; a paused one still does.
func (s *Snapshot) Name(p Principal, host string, now time.Time) (pattern string, ok bool) {
	sub := s.subject(p)
	if sub == nil || rank(s.RevokedLevel(p, now)) > rank(LevelPause) || sub.refuses(Destination{host: host}) {
		return "", false
	}
	sub.candidates(host, func(e entry) bool {
		if ok = now.Before(e.rule.notAfter); ok {
			pattern = e.pattern
		}
		return !ok
	})
	return pattern, ok || now.Before(sub.observeUntil)
}

// Schemes returns the schemes that rules in force grant to the plugin at
// host:port, in the order https, http, tls, tcp. Plain http counts where
// tls.originate takes it.
func (s *Snapshot) Schemes(p Principal, host string, port uint16, now time.Time) []Scheme {
	var found [4]bool
	all := [...]Scheme{SchemeHTTPS, SchemeHTTP, SchemeTLS, SchemeTCP}
	sub := s.subject(p)
	if sub == nil {
		return nil
	}
	sub.candidates(host, func(e entry) bool {
		r := e.rule
		if !now.Before(r.notAfter) {
			return true
		}
		if slices.Contains(r.ports, port) {
			found[slices.Index(all[:], r.scheme)] = true
		}
		if r.spec.To.TLS.Originate && (port == 80 || slices.Contains(r.ports, port)) {
			found[1] = true
		}
		return true
	})
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
	if sub == nil || rank(s.RevokedLevel(p, now)) > rank(LevelPause) {
		return nil
	}
	var out []CredentialRef
	for _, r := range sub.rules {
		if r.credential == nil || !now.Before(r.notAfter) || slices.Contains(out, r.credential.ref) {
			continue
		}
		if v := s.revoked(p, r, now); v == nil || v.Level == LevelPause {
			out = append(out, r.credential.ref)
		}
	}
	return out
}
