package authz

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Explanation is a decision with its reasons in words.
type Explanation struct {
	Decision Decision
	Nearest  *Nearest // the closest rule, if a change to it could allow the access
	Detail   string   // the access that was denied, and the closest one that is granted
	Remedy   string   // the change to ask for
	YAML     string   // the rule that would allow exactly this access, "" if no rule can

	pattern   string    // the nearest rule's path pattern if it matched
	grantable bool      // a rule could allow the access
	secure    bool      // that rule would be https, with tls.originate
	terms     RuleTerms // of the nearest rule for the same host
}

// Explain decides the request and explains the decision.
func (s *Snapshot) Explain(req Request, usage Usage, now time.Time) Explanation {
	return s.ExplainWith(req, usage, now, RuleTerms{})
}

// ExplainWith is Explain if more is known of the upstream: the proposed rule
// states terms, and those of the nearest rule for the same host.
func (s *Snapshot) ExplainWith(req Request, usage Usage, now time.Time, terms RuleTerms) Explanation {
	e := s.explain(req, s.Decide(req, usage, now), now)
	if e.grantable {
		e.YAML = ruleYAML(req, e.secure, terms.with(e.terms))
	}
	return e
}

// ProposeRule returns the rule that grants the request under terms, regardless of
// the current grants; "" if no rule can.
func ProposeRule(req Request, terms RuleTerms) string {
	if req.Destination.host == "" || req.Destination.scheme.HTTP() && req.Action.Method == "" {
		return ""
	}
	if never, _ := neverGranted(req.Facts, nil); never != "" || req.Destination.scheme.Database() && req.Facts.connects() {
		return ""
	}
	return ruleYAML(req, false, terms)
}

// explain explains a decision, without the proposed rule, which refusals do not
// contain.
func (s *Snapshot) explain(req Request, d Decision, now time.Time) Explanation {
	e := Explanation{Decision: d}
	if d.Allowed() {
		e.Detail = fmt.Sprintf("%s may %s", req.Principal, access(req))
		switch {
		case d.Reason == Granted:
			e.Detail += ", by " + d.rule.name()
		case d.unmetered:
			e.Detail += " while the sidecar observes, without a credential"
		default:
			e.Detail += " while " + d.rule.name() + " observes, without a credential"
		}
		return e
	}
	near := s.nearest(req, d, now)
	if differs := near.differs(req, d); len(differs) > 0 {
		e.Nearest = &Nearest{near.rule.grant.Name, near.rule.spec.ID, differs}
	}
	if near.path != nil {
		e.pattern = near.path.text
	}
	e.Detail = s.detail(req, d, near, now)
	// If https is granted, the rule should accept plain http for it.
	e.secure = near.sameHost && near.rule.couldOriginate(&req.Destination)
	e.terms = near.terms()
	e.Remedy, e.grantable = remedy(req, d, near, e.secure)
	return e
}

// ExplainHost is Explain for a host whose request is not known. Its remedy names
// neither method nor path.
func (s *Snapshot) ExplainHost(p Principal, dest Destination, now time.Time) Explanation {
	req := Request{Principal: p, Destination: dest}
	if dest.scheme.HTTP() {
		req.Action.Method = "GET"
	}
	e := s.explain(req, s.Decide(req, Usage{}, now), now)
	if e.Nearest != nil {
		unseen := func(field string) bool {
			return field == "method" || field == "path" || field == "upgrade" || field == "encodedSlash"
		}
		if e.Nearest.Differs = slices.DeleteFunc(e.Nearest.Differs, unseen); len(e.Nearest.Differs) == 0 {
			e.Nearest = nil
		}
	}
	if e.grantable && dest.scheme.HTTP() && strings.Contains(e.Remedy, shortYAML(req, e.secure)) {
		what := "rule"
		if e.Decision.Reason == NoGrant {
			what = "grant with a rule"
		}
		e.Remedy = "ask for a " + what + " with " + toYAML(dest, e.secure) + "; add methods and paths, which are not known yet"
	}
	return e
}

// refusal returns the refusal of a denied request.
func (s *Snapshot) refusal(req Request, d Decision, id string, now time.Time) *Refusal {
	e := s.explain(req, d, now)
	return &Refusal{
		Reason: d.Reason, Detail: e.Detail, Plugin: string(req.Principal), Decision: id,
		Method: req.Action.Method, URL: req.displayURL(), Nearest: e.Nearest, Remedy: e.Remedy,
		RetryAfter: d.RetryAfter, pattern: e.pattern,
	}
}

func (r *rule) name() string { return fmt.Sprintf("rule %s of grant %s", r.spec.ID, r.grant.Name) }

// candidate is a rule and what it has in common with a request.
type candidate struct {
	rule                                                 *rule
	host                                                 string       // the rule's host that matches, or is similar to the request's
	path                                                 *pathPattern // the pattern that matches, or nil
	closestPath                                          *pathPattern // the pattern that matches, or has the longest common prefix
	sameHost, scheme, port, method, upgrade, slash, live bool
	missing                                              []Fact // facts of the request that the rule does not grant
	unread                                               bool   // the rule has a matcher, and the content was not read
	prefix                                               int    // bytes of path in common
}

// score orders candidates by how far each gets in the order of the reasons, so
// that the nearest rule fails for the reason that the refusal states.
func (n candidate) score() int {
	score := 0
	for _, ok := range [...]bool{
		n.sameHost, n.scheme, n.port, n.method && n.upgrade, n.method, n.path != nil && n.slash, n.path != nil, len(n.missing) == 0 && !n.unread, n.live,
	} {
		score <<= 1
		if ok {
			score |= 1
		}
	}
	return score<<16 | min(n.prefix, 1<<16-1)
}

// differs returns the fields of the rule that do not match the request.
func (n candidate) differs(req Request, d Decision) []string {
	switch d.Reason {
	case MalformedRequest:
		if !req.Destination.encodedSlash {
			return nil
		}
	case DestinationNotGranted, MethodNotGranted, PathNotGranted, StatementNotGranted, GrantExpired:
	case QuotaExceeded, AddressNotAllowed, NotEnforceableHere:
		return differsInRule(req, d)
	default:
		return nil // no change to a rule would allow the access
	}
	if never, _ := neverGranted(req.Facts, n.missing); n.rule == nil || never != "" {
		return nil
	}
	var out []string
	for _, f := range []struct {
		name string
		same bool
	}{
		{"host", n.sameHost},
		{"scheme", n.scheme},
		{"port", n.port},
		{"method", n.method},
		{"upgrade", n.upgrade},
		{"path", n.path != nil},
		{"encodedSlash", n.slash},
		{"notAfter", n.live},
	} {
		if !f.same {
			out = append(out, f.name)
		}
	}
	if n.unread {
		out = append(out, "content")
	}
	for _, f := range n.missing {
		if kind := string(f.Kind); !slices.Contains(out, kind) {
			out = append(out, kind)
		}
	}
	return out
}

// differsInRule returns the fields of the deciding rule that deny the request.
func differsInRule(req Request, d Decision) []string {
	switch {
	case d.rule == nil:
		return nil
	case d.Reason == QuotaExceeded:
		return []string{"limits"}
	case d.outsideRegions():
		return []string{"regions"}
	case d.Reason == AddressNotAllowed:
		return []string{"addresses"}
	}
	return d.rule.conditionsFor(&req).names(req.Unenforceable)
}

// names returns the fields of the conditions that are also in other.
func (c Conditions) names(other Conditions) []string {
	var out []string
	for _, f := range []struct {
		condition Conditions
		name      string
	}{
		{ConditionAddresses, "addresses"},
		{ConditionTLS | ConditionOriginate, "tls"},
		{ConditionTimeout, "timeout"},
		{ConditionCredential | ConditionCertificate | ConditionSignature, "credential"},
		{ConditionContent, "content"},
	} {
		if c&other&f.condition != 0 {
			out = append(out, f.name)
		}
	}
	return out
}

// maxNear bounds the search for the nearest rule: the cost of a refusal must not
// grow with a plugin's policy.
const maxNear = 256

// nearest returns the rule that decided or, if no rule did, the rule with the
// highest score. Rules for other hosts are considered only if no rule is for this
// host, and only if their host is similar.
func (s *Snapshot) nearest(req Request, d Decision, now time.Time) candidate {
	if d.rule != nil {
		return compare(d.rule, &req, now)
	}
	pol := s.pluginPolicy(req.Principal)
	if pol == nil {
		return candidate{}
	}
	var best candidate
	take := func(n candidate) {
		if best.rule == nil || n.score() > best.score() {
			best = n
		}
	}
	looked := 0
	for e := range pol.candidates(req.Destination.host) {
		if s.revoked(req.Principal, e.rule, now) == nil { // a change to a revoked rule would not help
			n := compare(e.rule, &req, now)
			n.host, n.sameHost = e.pattern(), true
			take(n)
		}
		if looked++; looked == maxNear {
			break
		}
	}
	if best.rule != nil {
		return best
	}
	for _, r := range pol.rules[:min(len(pol.rules), maxNear)] {
		hosts := r.spec.To.Hosts
		i := slices.IndexFunc(hosts[:min(len(hosts), maxNear)], func(h string) bool { return similarHost(h, req.Destination.host) })
		if i >= 0 && s.revoked(req.Principal, r, now) == nil {
			n := compare(r, &req, now)
			n.host = hosts[i]
			take(n)
		}
		if looked += len(hosts); looked >= maxNear {
			break
		}
	}
	return best
}

// compare compares a rule with a request, except for the host.
func compare(r *rule, req *Request, now time.Time) candidate {
	d, a := &req.Destination, &req.Action
	n := candidate{
		rule: r, host: r.spec.To.Hosts[0], scheme: r.scheme == d.scheme || r.originates(d),
		port: r.hasPort(d.port) || r.couldOriginate(d), live: now.Before(r.notAfter),
		method: true, upgrade: true, slash: true,
	}
	n.missing = r.matcher.missing(req)
	n.unread = req.Facts.IsZero() && !r.matcher.matches(req)
	if !r.scheme.HTTP() {
		n.path, n.prefix = &pathPattern{}, n.nearFacts()
		return n
	}
	n.closestPath = &r.paths[0]
	n.prefix = commonPrefix(n.closestPath.text, d.path)
	for i := range r.paths {
		p := &r.paths[i]
		if length := commonPrefix(p.text, d.path); length > n.prefix {
			n.closestPath, n.prefix = p, length
		}
		if d.scheme.HTTP() && n.path == nil && p.matches(d.path) {
			n.path = p
		}
	}
	if n.path != nil {
		n.closestPath = n.path
	}
	if !d.scheme.HTTP() {
		n.path = n.closestPath // a tunnel has no path
	} else {
		n.method = r.allowsAction(&Action{Method: a.Method})
		n.upgrade = a.Upgrade == "" || slices.Contains(r.spec.Upgrades, a.Upgrade)
		n.slash = !d.encodedSlash || r.encodedSlash
	}
	return n
}

// nearFacts returns how near the rule comes to granting the facts of a request: its
// database first, then the number of missing facts.
func (n candidate) nearFacts() int {
	near := 2 * MaxFacts
	if len(n.missingOf(FactDatabase)) > 0 {
		near -= MaxFacts
	}
	return near - len(n.missing)
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// similarHost reports whether host may be a misspelling of pattern's name, or a
// sibling of it: one or two letters differ, or all labels but the first are equal.
func similarHost(pattern, host string) bool {
	name := strings.TrimLeft(pattern, "*.")
	if _, parent, ok := strings.Cut(host, "."); ok && strings.Contains(parent, ".") {
		if _, other, ok := strings.Cut(name, "."); parent == name || ok && parent == other {
			return true
		}
	}
	const short = 8 // in so short a name, two letters are too many
	if len(host) < short {
		return levenshteinAtMost(name, host, 1)
	}
	return levenshteinAtMost(name, host, 2)
}

// levenshteinAtMost reports whether the Levenshtein distance of two names is at most most.
func levenshteinAtMost(a, b string, most int) bool {
	const longest = 64 // longer names are not typed by hand
	if len(b) > longest || len(a)-len(b) > most || len(b)-len(a) > most {
		return false
	}
	var row [longest + 1]int
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal, least := row[0], i+1
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
			least = min(least, row[j+1])
		}
		if least > most {
			return false
		}
	}
	return row[len(b)] <= most
}

// access describes a request.
func access(req Request) string {
	switch {
	case req.Destination.scheme.Database() && !req.Facts.IsZero():
		return statement(&req)
	case req.Action.Method == "":
		return "reach " + clip(req.Destination.URL())
	}
	return req.Action.Method + " " + clip(req.Destination.URL())
}

// grants describes the part of a rule that concerns the request.
func (n candidate) grants() string {
	url := string(n.rule.scheme) + "://" + n.host
	if strings.Contains(n.host, ":") {
		url = string(n.rule.scheme) + "://[" + n.host + "]"
	}
	if n.rule.ports[0] != n.rule.scheme.DefaultPort() {
		url += ":" + strconv.Itoa(int(n.rule.ports[0]))
	}
	switch {
	case !n.rule.scheme.HTTP():
		return "reach " + url
	case n.rule.anyMethod:
		return "use any method at " + url + n.closestPath.text
	}
	return strings.Join(n.rule.spec.Methods, " or ") + " " + url + n.closestPath.text
}

// detail describes the access that was denied, and the closest one that is granted.
func (s *Snapshot) detail(req Request, d Decision, n candidate, now time.Time) string {
	plugin, dest := string(req.Principal), req.Destination
	switch d.Reason {
	case NotReady:
		return "no policy is loaded yet"
	case MalformedRequest:
		switch {
		case dest.host == "":
			return "the request names no destination"
		case dest.scheme.HTTP() && req.Action.Method == "":
			return "the request names no method"
		}
		return "the path holds an encoded slash, which no rule for this host allows"
	case IdentityUnknown:
		return "caller is not identified as a plugin"
	case Revoked:
		return s.revokedDetail(plugin, d, now)
	case GuardrailDenied:
		return dest.HostPort() + " is blocked by " + s.guardrailOf(d, dest)
	case NoGrant:
		return plugin + " holds no grant"
	case QuotaExceeded:
		return fmt.Sprintf("%s has used up a limit that applies to %s", plugin, access(req))
	case UsageUnknown:
		return fmt.Sprintf("usage of %s is unknown at the moment, and a limit depends on it", plugin)
	case AuditUnavailable:
		return "the access could not be recorded"
	case StatementUnreadable:
		return "the statement cannot be read"
	case StatementTooLarge:
		return "the statement is too large to be read"
	case CredentialMisplaced:
		return "placeholder of a credential found outside the credential's slot"
	case AddressNotAllowed:
		return addressDetail(d, dest)
	case UpstreamUnreachable:
		return dest.HostPort() + " cannot be reached"
	case UpstreamTimeout:
		return dest.HostPort() + " did not answer in time"
	default:
	}
	if n.rule != nil {
		return n.detail(req, d)
	}
	return fmt.Sprintf("%s may not %s", plugin, access(req))
}

// detail describes how the rule differs from the request.
func (n candidate) detail(req Request, d Decision) string {
	switch d.Reason {
	case GrantExpired:
		return fmt.Sprintf("%s ended at %s", n.rule.name(), n.rule.notAfter.UTC().Format(time.RFC3339))
	case NotEnforceableHere:
		return strings.TrimSuffix(n.rule.name()+" states a condition that this door cannot enforce: "+strings.Join(n.differs(req, d), ", "), ": ")
	case CredentialUnavailable:
		return fmt.Sprintf("credential of %s is not available at the moment", n.rule.name())
	case DestinationNotGranted, MethodNotGranted, PathNotGranted, StatementNotGranted:
		if req.Destination.scheme.Database() {
			return n.statementDetail(&req)
		}
		return fmt.Sprintf("%s may %s, %s", req.Principal, n.grants(), n.contrast(req, d))
	default:
		return fmt.Sprintf("%s may not %s", req.Principal, access(req))
	}
}

// contrast describes the part of the request that the rule does not grant.
func (n candidate) contrast(req Request, d Decision) string {
	switch differs := n.differs(req, d); {
	case len(differs) != 1:
	case differs[0] == "method":
		return "not " + req.Action.Method
	case differs[0] == "upgrade":
		return "without an upgrade to " + req.Action.Upgrade
	case differs[0] == "path":
		return "not " + clip(req.Destination.path)
	case differs[0] == "encodedSlash":
		return "not with an encoded slash"
	case len(n.missing) > 0:
		return "not " + differs[0] + " " + clip(strings.Join(n.missingNames(), ", "))
	case differs[0] == "port":
		return "not at port " + strconv.Itoa(int(req.Destination.port))
	}
	return "not " + access(req)
}

// missingNames returns the names of the facts that the rule does not grant.
func (n candidate) missingNames() []string {
	var names []string
	for _, f := range n.missing {
		names = append(names, f.Name)
	}
	return names
}

// missingField returns the field that grants the missing facts, which are of one kind;
// "" without any.
func (n candidate) missingField() string {
	if len(n.missing) == 0 {
		return ""
	}
	var names []string
	for _, name := range n.missingNames() {
		names = append(names, yamlString(name))
	}
	return string(n.missing[0].Kind) + ": [" + strings.Join(names, ", ") + "]"
}

func (s *Snapshot) revokedDetail(plugin string, d Decision, now time.Time) string {
	what := "access of " + plugin
	v := s.revoked(Principal(plugin), nil, now)
	if v == nil && d.rule != nil {
		what += " by " + d.rule.name()
		v = s.revoked(Principal(plugin), d.rule, now)
	}
	if v == nil {
		return what + " is revoked"
	}
	return fmt.Sprintf("%s is revoked (%s, %s)", what, v.Level, v.ID)
}

// guardrailOf names the guardrail and its never-list entry that deny the destination.
func (s *Snapshot) guardrailOf(d Decision, dest Destination) string {
	if d.plugin != nil {
		if n := d.plugin.refuses(&dest); n != nil {
			return "guardrail " + n.name
		}
		if n := d.plugin.refusesAddress(d.address); n != nil {
			return "guardrail " + n.name
		}
	}
	return "a guardrail"
}

// misplacedPlaceholder returns the detail and the remedy for a placeholder outside its slot.
func (s *Snapshot) misplacedPlaceholder(p Principal, d Decision, grant, credential string) (detail, remedy string) {
	what := fmt.Sprintf("placeholder of credential %s of grant %s", credential, grant)
	if d.Allowed() && d.Grant == grant && d.Credential == credential {
		place := d.rule.credential.place()
		return what + " found outside " + place, fmt.Sprintf("send the placeholder of credential %s in %s only", credential, place)
	}
	detail = what + " found in a request that does not carry this credential"
	if pol := s.pluginPolicy(p); pol != nil {
		for _, r := range pol.rules {
			if r.grant.Name == grant && r.credential != nil && r.credential.ref.Name == credential {
				return detail, fmt.Sprintf("send the placeholder of credential %s only in %s of requests that %s grants",
					credential, r.credential.place(), r.name())
			}
		}
	}
	return detail, "remove the placeholder: no rule uses this credential any more"
}

// place names the credential's slot in a request.
func (c *credentialSpec) place() string {
	switch c.kind {
	case InjectHeader:
		return "header " + c.name
	case InjectQuery:
		return "query parameter " + c.name
	case InjectCookie:
		return "cookie " + c.name
	case InjectSigV4:
		return "the signature"
	case InjectDatabase:
		return "the login"
	case InjectNone, InjectCertificate:
	}
	return "no part" // of the request
}

// addressDetail describes the resolved address that is not allowed.
func addressDetail(d Decision, dest Destination) string {
	what := "not an allowed address"
	switch {
	case d.address.IsValid() && unusable(d.address.Unmap()):
		what = "not the address of a server"
	case d.rule == nil || len(d.rule.addresses) == 0:
		what = "not public"
	case d.rule != nil:
		what = "not among the addresses of " + d.rule.name()
	}
	if d.outsideRegions() {
		what = d.regionDetail()
	}
	if !d.address.IsValid() {
		return fmt.Sprintf("%s resolves to an address that is %s", dest.host, what)
	}
	return fmt.Sprintf("%s resolves to %s, which is %s", dest.host, d.address.Unmap(), what)
}

// remedy returns the change to ask for, and whether a rule could allow the access.
func remedy(req Request, d Decision, n candidate, secure bool) (text string, grantable bool) {
	switch d.Reason {
	case MalformedRequest, DestinationNotGranted, NoGrant, MethodNotGranted, PathNotGranted, StatementNotGranted:
		return ask(req, d, n, secure)
	case GrantExpired:
		switch {
		case n.rule == nil:
			return "ask for a later notAfter", false
		case n.rule.notAfter.Before(n.rule.grant.NotAfter):
			return "ask for a later notAfter on " + n.rule.name(), false
		}
		return "ask for a later notAfter on grant " + n.rule.grant.Name, false
	case QuotaExceeded:
		if d.RetryAfter > 0 {
			return fmt.Sprintf("wait %s, or ask for a higher limit", max(d.RetryAfter.Round(time.Millisecond), time.Millisecond)), false
		}
		return "the total is used up; ask for a higher limit", false
	case AddressNotAllowed:
		switch {
		case !d.address.IsValid():
		case unusable(d.address.Unmap()):
			return "make the name resolve to its server's address; no rule can allow this one", false
		case d.outsideRegions():
			return "make the name resolve to an address in region " + strings.Join(d.rule.spec.Data.Regions, " or ") + ", or have a guardrail include this one", false
		case d.rule != nil:
			return fmt.Sprintf("ask for addresses: [%s] on %s", joinPrefixes(neededPrefixes(d.address)), n.rule.name()), false
		default: // a sidecar observes, and no rule names the host
			return "ask for a rule with " + termsYAML(req.Destination, secure, RuleTerms{Addresses: neededPrefixes(d.address)}), false
		}
	case StatementUnreadable, StatementTooLarge:
		return statementRemedy(d.Reason, req.Destination.scheme), false
	default:
	}
	return remedyFor(d.Reason), false
}

// neededPrefixes returns the prefixes that a rule's addresses must contain to allow
// addr: addr itself, and every address that it reaches which is not public.
func neededPrefixes(addr netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for i, at := range Reaches(addr) {
		if i == 0 || !PublicUnicast(at) {
			out = append(out, netip.PrefixFrom(at, at.BitLen()))
		}
	}
	return out
}

func joinPrefixes(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}

// ask returns the field to ask for on the nearest rule if only one differs, and
// otherwise the rule to ask for.
func ask(req Request, d Decision, n candidate, secure bool) (text string, grantable bool) {
	dest := req.Destination
	switch {
	case dest.host == "", dest.scheme.HTTP() && req.Action.Method == "":
		return remedyFor(MalformedRequest), false
	case req.Action.Method == "TRACE":
		return "use another method: TRACE echoes the request, and no rule can grant it", false
	case miscased(req.Action.Method):
		return "send " + strings.ToUpper(req.Action.Method) + ": methods are case-sensitive", false
	case req.Action.Upgrade != "" && !upgradable(req.Action.Upgrade):
		return "ask for another protocol: no rule can grant an upgrade to " + req.Action.Upgrade, false
	}
	if dest.scheme.Database() {
		return askStatement(&req, d, n)
	}
	differs := n.differs(req, d)
	field := ""
	if len(differs) == 1 {
		switch differs[0] {
		case "scheme":
			if secure {
				return "use https, or ask for tls: {originate: true} on " + n.rule.name(), true
			}
		case "method":
			field = "methods: [" + req.Action.Method + "]"
		case "upgrade":
			field = "upgrades: [" + req.Action.Upgrade + "]"
		case "path":
			field = "paths: [" + yamlString(patternFor(dest.path)) + "]"
		case "encodedSlash":
			field = "encodedSlash: allow"
		case "port": // with those it has: to name a port is to lose the default
			field = "ports: " + strings.ReplaceAll(fmt.Sprint(append(slices.Clone(n.rule.ports), dest.port)), " ", ", ")
		default:
			field = n.missingField()
		}
	}
	switch {
	case field != "":
		return fmt.Sprintf("ask for %s on %s", field, n.rule.name()), true
	case d.Reason == NoGrant:
		return "ask for a grant with a rule with " + shortYAML(req, secure), true
	}
	return "ask for a rule with " + shortYAML(req, secure), true
}

// remedyFor returns the remedy for a reason that no rule can change.
func remedyFor(r Reason) string {
	switch r {
	case MalformedRequest:
		return "send the request in its canonical form"
	case DestinationMismatch:
		return "send the same host in the URL, the Host header and TLS"
	case IdentityUnknown:
		return "connect from the plugin's own process, through the settings it was started with"
	case Revoked:
		return "ask the operator to restore the access"
	case GuardrailDenied:
		return "use another destination: no grant can allow this one"
	case NotEnforceableHere:
		return "use Chaperone's own proxy for this rule"
	case CredentialUnavailable:
		return "ask the operator: chaperone status shows why Vault returns no credential"
	case AuditUnavailable:
		return "ask the operator: chaperone status shows why the audit log cannot be written"
	case UsageUnknown, NotReady, UpstreamUnreachable, UpstreamTimeout:
		return "try again later"
	case CredentialMisplaced:
		return "send the placeholder of a credential in the credential's own slot only"
	case AddressNotAllowed:
		return "ask for the address under to.addresses of a rule, if the name should resolve to it"
	default:
		return ""
	}
}

// toYAML returns the to of a rule that would match the request; with secure, the
// rule accepts plain http for https.
func toYAML(d Destination, secure bool) string {
	scheme := d.scheme
	if scheme == SchemeTLS && d.addr.IsValid() {
		scheme = SchemeTCP // tls matches server names
	}
	out := "to: {"
	if scheme != SchemeHTTPS && !secure {
		out += "scheme: " + string(scheme) + ", "
	}
	out += "hosts: [" + yamlString(d.host) + "]"
	if d.port != scheme.DefaultPort() {
		out += ", ports: [" + strconv.Itoa(int(d.port)) + "]"
	}
	if secure {
		out += ", tls: {originate: true}"
	}
	return out + "}"
}

// shortYAML returns the fields of a rule that would match the request, on one line.
func shortYAML(req Request, secure bool) string {
	out := toYAML(req.Destination, secure)
	if req.Action.Method != "" {
		out += ", methods: [" + req.Action.Method + "], paths: [" + yamlString(patternFor(req.Destination.path)) + "]"
	}
	if req.Action.Upgrade != "" {
		out += ", upgrades: [" + req.Action.Upgrade + "]"
	}
	if req.Destination.encodedSlash {
		out += ", encodedSlash: allow"
	}
	if content := contentYAML(&req, ", "); content != "" {
		out += ", " + content
	}
	return out
}

// RuleTerms are further fields of a proposed rule, "" and nil without them: those
// known of the upstream, or those of a rule for the same host.
type RuleTerms struct {
	Addresses  []netip.Prefix
	CAFile     string
	TLSMin     string
	Credential string
	Insecure   bool // the credential may cross the network in the clear
	Data       Data
}

// terms returns the terms of the nearest rule if it is for the same host.
func (n candidate) terms() RuleTerms {
	if n.rule == nil || !n.sameHost || !n.scheme {
		return RuleTerms{}
	}
	to := n.rule.spec.To
	return RuleTerms{Addresses: to.Addresses, CAFile: to.TLS.CAFile, TLSMin: to.TLS.Min, Credential: n.rule.spec.Credential, Insecure: n.rule.spec.Insecure, Data: n.rule.spec.Data}
}

// with returns the terms, completed by those of more.
func (t RuleTerms) with(more RuleTerms) RuleTerms {
	if len(t.Addresses) == 0 {
		t.Addresses = more.Addresses
	}
	t.CAFile, t.TLSMin = cmp.Or(t.CAFile, more.CAFile), cmp.Or(t.TLSMin, more.TLSMin)
	if t.Credential == "" {
		t.Credential, t.Insecure = more.Credential, more.Insecure
	}
	if t.Data.IsZero() {
		t.Data = more.Data
	}
	return t
}

// ruleYAML returns a complete rule that would allow exactly the request. Its id
// is unique among the rules for other paths.
func ruleYAML(req Request, secure bool, terms RuleTerms) string {
	var out strings.Builder
	fmt.Fprintf(&out, "- id: %s\n  reason: SAY WHY THE PLUGIN NEEDS IT\n  %s\n", slug(req), termsYAML(req.Destination, secure, terms))
	if req.Action.Method != "" {
		fmt.Fprintf(&out, "  methods: [%s]\n  paths: [%s]\n", yamlString(req.Action.Method), yamlString(patternFor(req.Destination.path)))
	}
	if req.Action.Upgrade != "" {
		fmt.Fprintf(&out, "  upgrades: [%s]\n", yamlString(req.Action.Upgrade))
	}
	if req.Destination.encodedSlash {
		out.WriteString("  encodedSlash: allow\n")
	}
	if content := contentYAML(&req, "\n  "); content != "" {
		out.WriteString("  " + content + "\n")
	}
	if !terms.Data.IsZero() {
		out.WriteString("  data: " + terms.Data.String() + "\n")
	}
	if terms.Credential == "" && req.Destination.scheme == SchemePostgres {
		out.WriteString("  # credential: NAME, of a login that may do this and no more\n")
	}
	if terms.Credential != "" {
		fmt.Fprintf(&out, "  credential: %s\n", yamlString(terms.Credential))
		if terms.Insecure {
			out.WriteString("  insecure: true\n")
		}
	}
	return out.String()
}

// termsYAML is toYAML with addresses and terms of TLS.
func termsYAML(d Destination, secure bool, terms RuleTerms) string {
	out := strings.TrimSuffix(toYAML(d, secure), "}")
	if len(terms.Addresses) > 0 {
		words := make([]string, len(terms.Addresses))
		for i, p := range terms.Addresses {
			words[i] = yamlString(p.String())
		}
		out += ", addresses: [" + strings.Join(words, ", ") + "]"
	}
	var tls []string
	if terms.TLSMin != "" {
		tls = append(tls, "min: "+strconv.Quote(terms.TLSMin))
	}
	if terms.CAFile != "" {
		tls = append(tls, "caFile: "+yamlString(terms.CAFile))
	}
	switch stated := strings.Join(tls, ", "); {
	case stated == "":
	case secure:
		out = strings.TrimSuffix(out, "}") + ", " + stated + "}"
	case d.scheme == SchemeHTTPS, d.scheme.Database():
		out += ", tls: {" + stated + "}"
	}
	return out + "}"
}

const maxSlug = 60

// slug returns an id for a rule that allows the request, as in
// post-api-weather-example-v1-alerts. A truncated id ends in a hash of the full text.
func slug(req Request) string {
	whole := req.Action.Method + "-" + req.Destination.host
	if req.Destination.port != req.Destination.scheme.DefaultPort() {
		whole += "-" + strconv.Itoa(int(req.Destination.port))
	}
	whole += "-" + req.Destination.path
	if req.Destination.scheme.Database() {
		parts := append(req.Facts.names(FactVerb), req.Facts.names(FactCommand)...)
		parts = append(append(parts, whole, req.database()), req.Facts.names(FactTable)...)
		whole = strings.Join(append(parts, req.Facts.names(FactKey)...), "-")
	}
	words := strings.FieldsFunc(asciiLower(whole), func(r rune) bool {
		return !('a' <= r && r <= 'z') && !('0' <= r && r <= '9')
	})
	id := strings.Join(words, "-")
	if len(id) <= maxSlug {
		return id
	}
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(whole)) // never fails
	return strings.TrimRight(id[:maxSlug-9], "-") + fmt.Sprintf("-%08x", sum.Sum32())
}

// patternFor returns the narrowest pattern that matches the path. A segment that
// contains * becomes a wildcard, since patterns cannot quote it.
func patternFor(path string) string {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		if strings.Contains(segment, "*") {
			segments[i] = "*"
		}
	}
	return strings.Join(segments, "/")
}

// yamlString writes ASCII text for a YAML flow sequence, quoted if YAML would
// read it as another type.
func yamlString(s string) string {
	for i := range len(s) {
		if c := s[i]; !isUnreserved(c) && strings.IndexByte("/%@=+$()!", c) < 0 {
			return strconv.Quote(s)
		}
	}
	number := strings.Trim(s, "0123456789.e+-_") == "" && strings.Count(s, ".") < 2
	switch asciiLower(s) {
	case "null", "true", "false", "yes", "no", "on", "off", "y", "n":
		return strconv.Quote(s)
	}
	if number || s[0] != '/' && !isAlpha(s[0]) && !isDigit(s[0]) {
		return strconv.Quote(s)
	}
	return s
}
