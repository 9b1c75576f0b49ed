package authz

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Explanation is a decision with its why.
type Explanation struct {
	Decision Decision
	Nearest  *Nearest // the rule that came closest, for a refusal
	Detail   string   // what is granted and what was asked
	Remedy   string   // exactly what to ask for
	YAML     string   // the piece of a grant that would allow it, "" when none would

	pattern string // of the nearest rule's path when it matched
}

// Explain decides the request and says why.
func (s *Snapshot) Explain(req Request, usage Usage, now time.Time) Explanation {
	req = s.originate(req, now)
	return s.explain(req, s.Decide(req, usage, now), now)
}

// explain finds the words for a decision.
func (s *Snapshot) explain(req Request, d Decision, now time.Time) Explanation {
	e := Explanation{Decision: d}
	if d.Allowed() {
		e.Detail = fmt.Sprintf("%s may %s", req.Principal, access(req))
		if d.Rule != "" {
			e.Detail += fmt.Sprintf(", by rule %s of grant %s", d.Rule, d.Grant)
		}
		return e
	}
	near := s.nearest(req, now)
	if near.rule != nil && explainable(d.Reason) {
		e.Nearest = &Nearest{near.rule.grant.Name, near.rule.spec.ID, near.differs()}
	}
	if near.rule != nil && near.path {
		if p, ok := near.rule.matchPath(req.Destination); ok && p != nil {
			e.pattern = p.text
		}
	}
	e.Detail = s.detail(req, d, near, now)
	e.Remedy, e.YAML = s.remedy(req, d, near)
	return e
}

// refusal returns the refusal of a denied request.
func (s *Snapshot) refusal(req Request, d Decision, id string, usage Usage, now time.Time) Refusal {
	e := s.explain(req, d, now)
	return Refusal{
		Reason: d.Reason, Detail: e.Detail, Plugin: string(req.Principal), Decision: id,
		Method: req.Action.Method, URL: req.Destination.URL(), Nearest: e.Nearest, Remedy: e.Remedy,
		RetryAfter: d.RetryAfter, pattern: e.pattern,
	}
}

// explainable reports whether another rule could have changed the answer.
func explainable(r Reason) bool {
	switch r {
	case DestinationNotGranted, MethodNotGranted, PathNotGranted, GrantExpired, NotEnforceableHere, QuotaExceeded,
		UsageUnknown, CredentialUnavailable, AddressNotAllowed:
		return true
	default:
		return false
	}
}

// near is a rule and what it has in common with a request.
type near struct {
	rule                                                   *rule
	host, scheme, port, method, upgrade, path, slash, live bool
	prefix                                                 int // bytes of path in common
}

// score orders near rules: the host counts more than the rest together.
func (n near) score() int {
	score := min(n.prefix, 255)
	for i, ok := range []bool{n.live, n.upgrade, n.method, n.path, n.port, n.scheme, n.host} {
		if ok {
			score += 256 << i
		}
	}
	return score
}

// differs names what would have to be different.
func (n near) differs() []string {
	var out []string
	for _, f := range []struct {
		name string
		same bool
	}{
		{"host", n.host}, {"scheme", n.scheme}, {"port", n.port}, {"method", n.method},
		{"upgrade", n.upgrade}, {"path", n.path}, {"notAfter", n.live},
	} {
		if !f.same {
			out = append(out, f.name)
		}
	}
	return out
}

// maxNear bounds the search for the nearest rule: a refusal must not cost a
// plugin's whole policy.
const maxNear = 1000

// nearest returns the rule with most in common with the request. Rules for
// another host are looked at only when none names this one, and count only
// when the names are alike.
func (s *Snapshot) nearest(req Request, now time.Time) near {
	sub := s.subject(req.Principal)
	if sub == nil {
		return near{}
	}
	var best near
	looked := 0
	sub.candidates(req.Destination.host, func(e entry) bool {
		if n := compare(e.rule, req, true, now); best.rule == nil || n.score() > best.score() {
			best = n
		}
		looked++
		return looked < maxNear
	})
	if best.rule != nil {
		return best
	}
	for _, r := range sub.rules[:min(len(sub.rules), maxNear)] {
		if !slices.ContainsFunc(r.spec.To.Hosts, func(h string) bool { return alike(h, req.Destination.host) }) {
			continue
		}
		if n := compare(r, req, false, now); best.rule == nil || n.score() > best.score() {
			best = n
		}
	}
	return best
}

func compare(r *rule, req Request, host bool, now time.Time) near {
	d, a := req.Destination, req.Action
	n := near{
		rule: r, host: host, scheme: r.scheme == d.scheme, port: slices.Contains(r.ports, d.port),
		live: now.Before(r.notAfter), method: true, upgrade: true, path: true,
	}
	if !r.scheme.HTTP() || !d.scheme.HTTP() {
		return n
	}
	n.upgrade = a.Upgrade == "" || slices.Contains(r.spec.Upgrades, a.Upgrade)
	n.method = r.allowsAction(Action{Method: a.Method})
	_, n.path = r.matchPath(d)
	for i := range r.paths {
		n.prefix = max(n.prefix, commonPrefix(r.paths[i].text, d.path))
	}
	return n
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// alike reports whether two host names are near enough for one to be meant by
// the other: they differ by at most two letters, or share all but the first label.
func alike(pattern, host string) bool {
	name := strings.TrimLeft(pattern, "*.")
	if name == "" {
		return false
	}
	if _, parent, ok := strings.Cut(host, "."); ok && strings.Contains(parent, ".") {
		if _, other, ok := strings.Cut(name, "."); parent == name || ok && parent == other {
			return true
		}
	}
	return distance(name, host, 2) <= 2
}

// distance returns the Levenshtein distance of two short strings, or more than
// most as soon as it is known to be.
func distance(a, b string, most int) int {
	if len(a)-len(b) > most || len(b)-len(a) > most {
		return most + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// access says what a request asks for.
func access(req Request) string {
	if req.Action.Method == "" {
		return "reach " + req.Destination.URL()
	}
	return req.Action.Method + " " + req.Destination.URL()
}

// grants says what a rule grants, as far as it concerns the request.
func (n near) grants() string {
	r := n.rule
	host := r.spec.To.Hosts[0]
	for _, h := range r.spec.To.Hosts {
		if alike(h, host) {
			host = h
			break
		}
	}
	url := string(r.scheme) + "://" + host
	if r.ports[0] != r.scheme.DefaultPort() {
		url += ":" + strconv.Itoa(int(r.ports[0]))
	}
	if !r.scheme.HTTP() {
		return "reach " + url
	}
	return strings.Join(r.spec.Methods, ", ") + " " + url + r.spec.Paths[0]
}

// detail says what is granted and what was asked.
func (s *Snapshot) detail(req Request, d Decision, n near, now time.Time) string {
	plugin := string(req.Principal)
	switch d.Reason {
	case MethodNotGranted:
		if n.rule != nil && !n.upgrade {
			return fmt.Sprintf("%s may %s, without an upgrade to %s", plugin, n.grants(), req.Action.Upgrade)
		}
		if n.rule != nil {
			return fmt.Sprintf("%s may %s, not %s", plugin, n.grants(), req.Action.Method)
		}
	case PathNotGranted:
		if n.rule != nil {
			return fmt.Sprintf("%s may %s, not %s", plugin, n.grants(), clip(req.Destination.path))
		}
	case DestinationNotGranted:
		if n.rule != nil {
			return fmt.Sprintf("%s may %s, not %s", plugin, n.grants(), access(req))
		}
	case GrantExpired:
		if n.rule != nil {
			return fmt.Sprintf("rule %s of grant %s ended at %s", n.rule.spec.ID, n.rule.grant.Name, n.rule.notAfter.UTC().Format(time.RFC3339))
		}
	case Revoked:
		return s.revokedDetail(req, now)
	case GuardrailDenied:
		return fmt.Sprintf("a guardrail never lets a plugin reach %s", req.Destination.HostPort())
	case NoGrant:
		return fmt.Sprintf("%s holds no grant", plugin)
	case QuotaExceeded:
		return fmt.Sprintf("%s has used up a limit that holds for %s", plugin, access(req))
	case UsageUnknown:
		return fmt.Sprintf("what %s has used is not known at the moment, and a limit depends on it", plugin)
	case NotEnforceableHere:
		return fmt.Sprintf("rule %s of grant %s states a condition that this door cannot enforce", d.Rule, d.Grant)
	case CredentialUnavailable:
		return fmt.Sprintf("the credential of rule %s of grant %s is not available at the moment", d.Rule, d.Grant)
	case AuditUnavailable:
		return "the access could not be recorded"
	case NotReady:
		return "no policy is loaded yet"
	case MalformedRequest:
		return "path holds an encoded slash, which no rule for this host allows"
	default:
	}
	return fmt.Sprintf("%s may not %s", plugin, access(req))
}

func (s *Snapshot) revokedDetail(req Request, now time.Time) string {
	for _, v := range s.revocations {
		if v.Plugin == string(req.Principal) && v.inForce(now) {
			return fmt.Sprintf("access of %s was taken away (%s, %s)", req.Principal, v.Level, v.ID)
		}
	}
	return fmt.Sprintf("access of %s was taken away", req.Principal)
}

// remedy says exactly what to ask for.
func (s *Snapshot) remedy(req Request, d Decision, n near) (text, yaml string) {
	on := ""
	if n.rule != nil {
		on = fmt.Sprintf("rule %s of grant %s", n.rule.spec.ID, n.rule.grant.Name)
	}
	switch {
	case d.Reason == MethodNotGranted && on != "" && !n.upgrade:
		return fmt.Sprintf("ask for upgrades: [%s] on %s", req.Action.Upgrade, on), ruleYAML(req)
	case d.Reason == MethodNotGranted && on != "":
		return fmt.Sprintf("ask for methods: [%s] on %s", req.Action.Method, on), ruleYAML(req)
	case d.Reason == PathNotGranted && on != "":
		return fmt.Sprintf("ask for paths: [%s] on %s", quotePath(req.Destination.path), on), ruleYAML(req)
	case d.Reason == DestinationNotGranted || d.Reason == NoGrant || d.Reason == MethodNotGranted || d.Reason == PathNotGranted:
		return "ask for a rule with " + toYAML(req), ruleYAML(req)
	case d.Reason == GrantExpired && on != "":
		return "ask for a later notAfter on " + on, ""
	case d.Reason == QuotaExceeded && d.RetryAfter > 0:
		return fmt.Sprintf("wait %s, or ask for a higher limit", d.RetryAfter.Round(time.Millisecond)), ""
	case d.Reason == QuotaExceeded:
		return "the total is used up; ask for a higher limit", ""
	case d.Reason == AddressNotAllowed && on != "":
		return "ask for addresses: [ADDRESS/LENGTH] on " + on, ""
	}
	return remedyFor(d.Reason), ""
}

// remedyFor returns what to do about a reason that no rule can change.
func remedyFor(r Reason) string {
	switch r {
	case MalformedRequest:
		return "send the request in its canonical form"
	case DestinationMismatch:
		return "send the same host in the URL, the Host header and TLS"
	case IdentityUnknown:
		return "connect from the plugin's own process, through the settings it was started with"
	case Revoked:
		return "ask the operator who took it away"
	case GuardrailDenied:
		return "nothing grants this; use another destination"
	case NotEnforceableHere:
		return "use Chaperone's own proxy for this rule"
	case UsageUnknown, CredentialUnavailable, AuditUnavailable, NotReady, UpstreamUnreachable, UpstreamTimeout:
		return "try again later"
	case CredentialMisplaced:
		return "send the placeholder in the credential's own place only"
	case AddressNotAllowed:
		return "the name resolves to an address that is not public; ask for it under to.addresses"
	default:
		return ""
	}
}

// toYAML returns the to of a rule that would match the request.
func toYAML(req Request) string {
	d := req.Destination
	host := d.host
	if d.addr.Is6() {
		host = strconv.Quote(host)
	}
	out := "to: {"
	if d.scheme != SchemeHTTPS {
		out += "scheme: " + string(d.scheme) + ", "
	}
	out += "hosts: [" + host + "]"
	if d.port != d.scheme.DefaultPort() {
		out += ", ports: [" + strconv.Itoa(int(d.port)) + "]"
	}
	return out + "}"
}

// ruleYAML returns a whole rule that would allow the request and nothing more.
func ruleYAML(req Request) string {
	var out strings.Builder
	fmt.Fprintf(&out, "- id: CHOOSE-AN-ID\n  reason: SAY WHY THE PLUGIN NEEDS IT\n  %s\n", toYAML(req))
	if req.Action.Method != "" {
		fmt.Fprintf(&out, "  methods: [%s]\n  paths: [%s]\n", req.Action.Method, quotePath(req.Destination.path))
	}
	if req.Action.Upgrade != "" {
		fmt.Fprintf(&out, "  upgrades: [%s]\n", req.Action.Upgrade)
	}
	if req.Destination.encodedSlash {
		out.WriteString("  encodedSlash: allow\n")
	}
	return out.String()
}

// quotePath quotes a path for a YAML flow sequence where it must be.
func quotePath(path string) string {
	if strings.ContainsAny(path, ",[]{}*&!|>'\"%@`: ") {
		return strconv.Quote(path)
	}
	return path
}
