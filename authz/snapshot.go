package authz

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Snapshot is a policy, the revocations that apply to it, and the generation
// that put both in force. It is immutable.
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

// Revocations returns the revocations, including those that have ended.
func (s *Snapshot) Revocations() []Revocation { return slices.Clone(s.revocations) }

// Input returns the input that the policy was compiled from. Callers must not change it.
func (s *Snapshot) Input() Input {
	if s.policy == nil {
		return Input{}
	}
	return s.policy.input
}

// nextExpiry returns when the first part of the policy or the first revocation
// after seen ends; zero for never.
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

// pluginPolicy returns the policy of a plugin, or nil when it has none.
func (s *Snapshot) pluginPolicy(p Principal) *pluginPolicy {
	if s.policy == nil {
		return nil
	}
	return s.policy.plugins[p]
}

// Decide answers a request. It is pure: the same arguments give the same
// answer. It does not allocate, and its cost does not grow with the number of
// grants, nor with the number of rules for other hosts.
func (s *Snapshot) Decide(req Request, usage Usage, now time.Time) (d Decision) {
	d.Generation = s.generation
	if s.policy == nil {
		return d
	}
	d.plugin = s.pluginPolicy(req.Principal)
	s.decide(&d, &req, usage, now)
	if d.passesWhileObserving() && d.plugin != nil && now.Before(d.plugin.observeUntil) {
		d.unmetered = true
		d.observe()
	}
	return d
}

// decide decides without regard to whether the sidecar observes. Decisions are
// large, so they are filled in place.
func (s *Snapshot) decide(d *Decision, req *Request, usage Usage, now time.Time) {
	to := &req.Destination
	switch {
	case to.host == "", to.scheme.HTTP() && req.Action.Method == "", to.encodedSlash && !d.plugin.allowsEncodedSlash(to.host):
		d.Reason = MalformedRequest
	case req.Principal == "":
		d.Reason = IdentityUnknown
	case d.applyRevocation(s.revoked(req.Principal, nil, now)):
	case d.plugin == nil:
		d.Reason = NoGrant
	case d.plugin.refuses(to) != nil:
		d.Reason = GuardrailDenied
	default:
		if s.match(d, req, now); d.Allowed() {
			d.applyLimits(usage, now)
		}
	}
}

// applyRevocation denies the access when v is not nil, and reports whether it is.
func (d *Decision) applyRevocation(v *Revocation) bool {
	if v == nil {
		return false
	}
	d.Reason, d.Credential, d.sparesInFlight = Revoked, "", v.Level == LevelPause
	return true
}

// observe allows the access without a credential.
func (d *Decision) observe() {
	d.Reason, d.Credential, d.RetryAfter, d.sparesInFlight, d.throttled = Observed, "", 0, false, false
}

// passesWhileObserving reports whether a sidecar that observes still allows the
// access. It never does so for a guardrail, a revocation, or an access that cannot
// be judged.
func (d *Decision) passesWhileObserving() bool {
	switch d.Reason {
	case NoGrant, DestinationNotGranted, MethodNotGranted, PathNotGranted, StatementNotGranted, GrantExpired, QuotaExceeded:
		return !d.unobservable
	default:
		return false
	}
}

// candidates yields every entry whose host pattern matches.
func (pol *pluginPolicy) candidates(host string) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		if !yieldAll(pol.exact[host], yield) || len(pol.single)+len(pol.deep) == 0 {
			return
		}
		_, parent, _ := strings.Cut(host, ".")
		if !yieldAll(pol.single[parent], yield) || len(pol.deep) == 0 {
			return
		}
		for parent != "" {
			if !yieldAll(pol.deep[parent], yield) {
				return
			}
			_, parent, _ = strings.Cut(parent, ".")
		}
	}
}

// yieldAll yields the entries and reports whether the caller wants more.
func yieldAll(list entries, yield func(entry) bool) bool {
	if list.first.rule != nil && !yield(list.first) {
		return false
	}
	for _, e := range list.more {
		if !yield(e) {
			return false
		}
	}
	return true
}

// search holds the results so far among the rules whose host matches.
type search struct {
	best     entry // the winner so far, revoked or not
	path     *pathPattern
	observer *rule // a rule in mode observe whose scheme, host and port match
	revoked  *rule // a rule that matches, was revoked, and has expired or grants a connection
	muted    bool  // a rule in mode observe whose scheme, host and port match was revoked
	host     bool  // scheme, host and port match
	method   bool  // the method matches too
	content  bool  // the path matches too, and the matcher does not
	expired  bool  // the path matches too, of a rule that has expired
	database *rule // a rule of a database at the port, of a tunnel whose content the door does not read
}

// match finds the winning rule, or the reason why no rule wins.
func (s *Snapshot) match(d *Decision, req *Request, now time.Time) {
	var found search
	for e := range d.plugin.candidates(req.Destination.host) {
		s.consider(&found, e, req, now)
	}
	winner := found.best.rule
	if winner == nil {
		winner = found.revoked
	}
	d.observerRevoked = winner == nil && found.muted
	if req.Destination.scheme.Database() {
		d.unobservable = req.Facts.connects() || winner == nil && !s.observable(d.plugin, req, now)
	}
	switch {
	case winner != nil:
		d.setWinner(winner, found.path, req)
		// A revoked winner is not replaced by a rule of lower precedence: a
		// revocation never grants.
		switch {
		case d.applyRevocation(s.revoked(req.Principal, winner, now)):
		case winner.conditionsFor(req)&req.Unenforceable != 0:
			d.Reason = NotEnforceableHere
		default:
			d.Reason = Granted
		}
	case found.observer != nil:
		d.setWinner(found.observer, nil, req)
		if d.observe(); d.rule.conditionsFor(req)&req.Unenforceable&^conditionsOfCredentials != 0 {
			d.Reason = NotEnforceableHere
		}
	case len(d.plugin.grants) == 0:
		d.Reason = NoGrant
	case !found.host && found.database != nil:
		d.setWinner(found.database, nil, req)
		d.Reason, d.Credential = NotEnforceableHere, ""
	case !found.host:
		d.Reason = DestinationNotGranted
	case !found.method:
		d.Reason = MethodNotGranted
	case !found.expired && found.content:
		d.Reason = StatementNotGranted
	case !found.expired:
		d.Reason = PathNotGranted
	default:
		d.Reason = GrantExpired
	}
}

// observable reports whether a sidecar that observes may allow a statement that no rule
// grants: only within a session that a rule in force grants.
func (s *Snapshot) observable(pol *pluginPolicy, req *Request, now time.Time) bool {
	for e := range pol.candidates(req.Destination.host) {
		r := e.rule
		if r.matchesSchemePort(&req.Destination) && now.Before(r.notAfter) && r.matcher.observes(req.Facts) && s.revoked(req.Principal, r, now) == nil {
			return true
		}
	}
	return false
}

// setWinner records the rule that decides.
func (d *Decision) setWinner(r *rule, path *pathPattern, req *Request) {
	d.rule, d.path, d.literal, d.host = r, path, req.Destination.addr, req.Destination.host
	d.Grant, d.Rule = r.grant.Name, r.id
	if r.credential != nil {
		d.Credential = r.credential.ref.Name
	}
}

// consider takes one rule whose host matches into account.
func (s *Snapshot) consider(found *search, e entry, req *Request, now time.Time) {
	r := e.rule
	if !r.matchesSchemePort(&req.Destination) {
		if r.scheme.Database() && !req.Destination.scheme.HTTP() && found.database == nil &&
			req.Unenforceable&ConditionContent != 0 && r.hasPort(req.Destination.port) {
			found.database = r
		}
		return
	}
	found.host = true
	live := now.Before(r.notAfter)
	if live && !r.observeUntil.IsZero() && now.Before(r.observeUntil) && (found.observer == nil || compareRules(r, found.observer) < 0) &&
		(!r.scheme.Database() || r.matcher.observes(req.Facts)) {
		if s.revoked(req.Principal, r, now) == nil {
			found.observer = r
		} else {
			found.muted = true
		}
	}
	if !r.allowsAction(&req.Action) {
		return
	}
	found.method = true
	path, ok := r.matchPath(&req.Destination)
	switch {
	case !ok:
	case !r.matcher.matches(req):
		found.content = true
	case !live:
		found.expired = true
		if s.revoked(req.Principal, r, now) != nil && (found.revoked == nil || compareRules(r, found.revoked) < 0) {
			found.revoked = r
		}
	case r.scheme.Database() && req.Facts.connects() && s.revoked(req.Principal, r, now) != nil:
		// A connection may serve statements of several rules, and the others remain.
		if found.revoked == nil || compareRules(r, found.revoked) < 0 {
			found.revoked = r
		}
	case found.best.rule == nil || takesPrecedence(e, path, found.best, found.path):
		found.best, found.path = e, path
	}
}

// takesPrecedence orders two matching rules: exact host over wildcard, longer
// literal path, then grant name, then rule id.
func takesPrecedence(a entry, aPath *pathPattern, b entry, bPath *pathPattern) bool {
	if a.exact != b.exact {
		return a.exact
	}
	if la, lb := aPath.length(), bPath.length(); la != lb {
		return la > lb
	}
	return compareRules(a.rule, b.rule) < 0
}

// matchesSchemePort reports whether the rule is for the destination's scheme and port.
func (r *rule) matchesSchemePort(d *Destination) bool {
	if r.scheme == d.scheme {
		return r.hasPort(d.port)
	}
	return r.originates(d)
}

func (r *rule) hasPort(port uint16) bool { return port == r.port || slices.Contains(r.ports, port) }

// originates reports whether plain http to d matches this https rule.
func (r *rule) originates(d *Destination) bool {
	return r.spec.To.TLS.Originate && r.couldOriginate(d)
}

// couldOriginate reports whether plain http to d would match this https rule if
// the rule stated tls.originate.
func (r *rule) couldOriginate(d *Destination) bool {
	return r.scheme == SchemeHTTPS && d.scheme == SchemeHTTP &&
		(d.port == SchemeHTTP.DefaultPort() || r.hasPort(d.port))
}

// destination returns the upstream of the rule for a destination that matches:
// https for plain http that the rule originates, on the same port if the rule
// has it, otherwise on the rule's first port.
func (r *rule) destination(d Destination) Destination {
	if r.scheme != d.scheme {
		d.scheme = r.scheme
		if !r.hasPort(d.port) {
			d.port = r.port
		}
	}
	return d
}

// conditionsFor returns the conditions that the rule states for this request.
func (r *rule) conditionsFor(req *Request) Conditions {
	c := r.conditions
	if r.scheme == req.Destination.scheme {
		c &^= ConditionOriginate
	}
	if len(r.regions) > 0 && len(r.addresses) == 0 && r.regionByHost(req.Destination.host) {
		c &^= ConditionAddresses
	}
	return c
}

func (r *rule) allowsAction(a *Action) bool {
	if !r.scheme.HTTP() {
		return true
	}
	if a.Upgrade != "" && !slices.Contains(r.spec.Upgrades, a.Upgrade) {
		return false
	}
	return r.allowsMethod(a.Method)
}

// matchPath returns the longest of the rule's patterns that matches the path.
func (r *rule) matchPath(d *Destination) (*pathPattern, bool) {
	if !r.scheme.HTTP() {
		return nil, true
	}
	if d.encodedSlash && !r.encodedSlash {
		return nil, false
	}
	if r.path.matches(d.path) {
		return &r.path, true
	}
	for i := 1; i < len(r.paths); i++ { // the first is r.path
		if p := &r.paths[i]; p.matches(d.path) {
			return p, true
		}
	}
	return nil, false
}

// revoked returns the strictest revocation in force of the whole plugin, or of
// the rule if r is not nil. A revocation that names a rule and no grant covers
// that rule in every grant; one that names a grant and no rule covers the whole plugin.
func (s *Snapshot) revoked(p Principal, r *rule, now time.Time) *Revocation {
	var hardest *Revocation
	for i := range s.revocations {
		v := &s.revocations[i]
		if v.Plugin != string(p) || !v.inForce(now) {
			continue
		}
		hits := v.Rule == ""
		if r != nil {
			hits = v.Rule == r.id && (v.Grant == "" || v.Grant == r.grant.Name)
		}
		if hits && v.harderThan(hardest) {
			hardest = v
		}
	}
	return hardest
}

// RevokedLevel returns the strictest level at which the whole plugin is revoked
// at now, or "".
func (s *Snapshot) RevokedLevel(p Principal, now time.Time) Level {
	if v := s.revoked(p, nil, now); v != nil {
		return v.Level
	}
	return ""
}

// quarantined reports whether a revocation also ends accesses in flight, of the
// plugin or of the rule if r is not nil. A pause does not.
func (s *Snapshot) quarantined(p Principal, r *rule, now time.Time) bool {
	v := s.revoked(p, r, now)
	return v != nil && v.Level != LevelPause
}

// applyLimits applies usage to an access that the rules allow. The winner's own
// limits bound what it grants; the plugin's limits bound observed accesses too.
func (d *Decision) applyLimits(usage Usage, now time.Time) {
	d.ownLimitsExempt = d.Reason == Observed
	own, shared := usage.check(d.plugin.name, d.ownLimits(), d.plugin.limits, now)
	if own.over && now.Before(d.rule.observeUntil) && !d.unobservable {
		d.observe()
		d.limitExceeded, d.ownLimitsExempt, own = true, true, limitStatus{}
	}
	both := own.and(shared)
	switch {
	case both.unknown && (!both.over || now.Before(d.plugin.observeUntil)):
		// Observing allows an access over a limit, but not one that cannot be judged.
		d.Reason, d.sparesInFlight = UsageUnknown, true
	case both.over:
		d.Reason, d.limitExceeded, d.sparesInFlight, d.RetryAfter = QuotaExceeded, true, !both.total, both.retry
		d.throttled = !both.hard && !both.unknown
	}
}

// ownLimits returns the winner's limits; nil while the rule only observes.
func (d *Decision) ownLimits() []limit {
	if d.ownLimitsExempt {
		return nil
	}
	return d.rule.limits
}

// spends returns the limits that the access spends from now or after it has
// waited. An access that is allowed because the sidecar observes spends nothing.
func (d *Decision) spends() (own, shared []limit) {
	if d.unmetered || !d.Allowed() && !d.throttled {
		return nil, nil
	}
	return d.ownLimits(), d.plugin.limits
}

// allowsEncodedSlash reports whether any rule for the host allows %2F in paths.
func (pol *pluginPolicy) allowsEncodedSlash(host string) bool {
	if pol == nil {
		return false
	}
	for e := range pol.candidates(host) {
		if e.rule.encodedSlash {
			return true
		}
	}
	return false
}

// refuses returns the entry of a never-list that names the destination, or nil.
func (pol *pluginPolicy) refuses(d *Destination) *neverEntry {
	for i := range pol.never {
		n := &pol.never[i]
		if slices.ContainsFunc(n.hosts, func(p hostPattern) bool { return p.matches(d.host) }) || n.holds(d.addr) {
			return n
		}
	}
	return nil
}

// refusesAddress returns the entry of a never-list that holds addr, or nil.
func (pol *pluginPolicy) refusesAddress(addr netip.Addr) *neverEntry {
	for i := range pol.never {
		if n := &pol.never[i]; n.holds(addr) {
			return n
		}
	}
	return nil
}

// holds reports whether the entry names addr, or an address that addr reaches.
func (n *neverEntry) holds(addr netip.Addr) bool {
	if !addr.IsValid() || len(n.addresses) == 0 {
		return false
	}
	if addr.Is4() && !addr.IsUnspecified() { // the common case, without allocating
		return containsAddr(n.addresses, addr)
	}
	return slices.ContainsFunc(Reaches(addr), func(at netip.Addr) bool { return containsAddr(n.addresses, at) })
}

// pluginLimits returns the limits of the whole plugin.
func (s *Snapshot) pluginLimits(p Principal) []limit {
	if pol := s.pluginPolicy(p); pol != nil {
		return pol.limits
	}
	return nil
}

// allLimits returns every limit of a plugin: the plugin's, then its rules'.
func (s *Snapshot) allLimits(p Principal) []limit {
	pol := s.pluginPolicy(p)
	if pol == nil {
		return nil
	}
	out := slices.Clone(pol.limits)
	for _, r := range pol.rules {
		out = append(out, r.limits...)
	}
	return out
}

// HasLimit reports whether any limit of the plugin counts kind, so that an
// expensive meter runs only while a limit needs it.
func (s *Snapshot) HasLimit(p Principal, kind LimitKind) bool {
	return slices.ContainsFunc(s.pluginLimits(p), func(l limit) bool { return l.kind == kind })
}

// Delays reports whether an access of the plugin may wait for a limit.
func (s *Snapshot) Delays(p Principal) bool {
	return slices.ContainsFunc(s.allLimits(p), func(l limit) bool { return l.throttles })
}

// Observing reports whether the sidecar observes: accesses that are not granted
// are allowed and recorded.
func (s *Snapshot) Observing(p Principal, now time.Time) bool {
	pol := s.pluginPolicy(p)
	return pol != nil && now.Before(pol.observeUntil)
}

// Name reports whether the plugin's resolver may answer host, a name in
// canonical form, and returns the host pattern that matches ("" while observing).
// A quarantined plugin or rule resolves no names; a paused one still does.
func (s *Snapshot) Name(p Principal, host string, now time.Time) (pattern string, ok bool) {
	pol := s.pluginPolicy(p)
	if pol == nil || s.quarantined(p, nil, now) || pol.refuses(&Destination{host: host}) != nil {
		return "", false
	}
	for e := range pol.candidates(host) {
		if now.Before(e.rule.notAfter) && !s.quarantined(p, e.rule, now) {
			return e.pattern(), true
		}
	}
	return "", now.Before(pol.observeUntil)
}

// Schemes returns the schemes that rules in force grant to the plugin at
// host:port, in the order https, http, tls, tcp, postgres, redis. It includes plain http if
// tls.originate allows it.
func (s *Snapshot) Schemes(p Principal, host string, port uint16, now time.Time) []Scheme {
	pol := s.pluginPolicy(p)
	if pol == nil {
		return nil
	}
	all := schemes()
	var found [len(all)]bool
	for e := range pol.candidates(host) {
		for i, scheme := range all {
			if now.Before(e.rule.notAfter) && e.rule.matchesSchemePort(&Destination{scheme: scheme, port: port}) {
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

// HostPatterns returns the hosts of the plugin's grants, sorted and without
// duplicates, for the name constraints of its certificate authority.
func (s *Snapshot) HostPatterns(p Principal) []string {
	pol := s.pluginPolicy(p)
	if pol == nil {
		return nil
	}
	var out []string
	for _, r := range pol.rules {
		out = append(out, r.spec.To.Hosts...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// CredentialRefs returns the credentials that some rule in force needs. The
// caller revokes the leases of all others.
func (s *Snapshot) CredentialRefs(p Principal, now time.Time) []CredentialRef {
	pol := s.pluginPolicy(p)
	if pol == nil || s.quarantined(p, nil, now) {
		return nil
	}
	var out []CredentialRef
	seen := map[CredentialRef]bool{}
	for _, r := range pol.rules {
		if r.credential == nil || !now.Before(r.notAfter) || seen[r.credential.ref] || s.quarantined(p, r, now) {
			continue
		}
		seen[r.credential.ref] = true
		out = append(out, r.credential.ref)
	}
	return out
}

// Renders returns nil if the credential that ref names can be put into a request
// as the rules in force state, or if no rule needs it; otherwise an error with the
// reason, which holds no secret.
func (s *Snapshot) Renders(ref CredentialRef, credential Credential) error {
	pol := s.pluginPolicy(Principal(ref.Plugin))
	if pol == nil {
		return nil
	}
	for _, r := range pol.rules {
		if r.credential == nil || r.credential.ref != ref {
			continue
		}
		var err error
		switch ref.Token.Kind {
		case TokenOAuth2:
			if _, _, err = ref.Token.Client(credential.Fields); err != nil {
				err = credential.explain(err)
			}
		case TokenJWT: // its key stays in Vault
		default:
			_, err = r.credential.render(credential)
		}
		return err
	}
	return nil
}

// Placeholders returns the placeholders of those credentials, in the order of
// grants and of the credentials in them.
func (s *Snapshot) Placeholders(p Principal, now time.Time) []Placeholder {
	pol := s.pluginPolicy(p)
	if pol == nil {
		return nil
	}
	refs := s.CredentialRefs(p, now)
	var out []Placeholder
	for _, c := range pol.credentials {
		if c.placeholder != nil && slices.Contains(refs, c.ref) {
			out = append(out, *c.placeholder)
		}
	}
	return out
}
