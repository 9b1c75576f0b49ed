package prove

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// side is one of the two policies, with an index of the texts that it holds. The index
// only chooses requests: the snapshot decides them.
type side struct {
	snapshot     *authz.Snapshot
	rules        []*ruleText
	byHost       map[string][]*ruleText // by host pattern as written
	byName       map[ruleName]*ruleText
	shared       []sharedLimit // of the whole plugin
	grants       []*authz.Grant
	guardrails   []*authz.Guardrail
	observeUntil time.Time           // of the sidecar; zero when it enforces
	credentials  map[ruleName]string // by grant and name: what the credential is
}

// ruleName names a rule, or a credential, of a grant.
type ruleName struct{ grant, name string }

// ruleText is the text of one rule.
type ruleText struct {
	grant *authz.Grant
	rule  *authz.Rule
	paths []pattern
}

func newSide(s *authz.Snapshot, plugin authz.Principal) *side {
	in := s.Input()
	out := &side{snapshot: s, byHost: map[string][]*ruleText{}, byName: map[ruleName]*ruleText{}, credentials: map[ruleName]string{}}
	if in.Observe && in.Plugin == string(plugin) {
		out.observeUntil = in.ObserveUntil
	}
	for i := range in.Guardrails {
		if g := &in.Guardrails[i]; g.AppliesTo(string(plugin)) {
			out.guardrails = append(out.guardrails, g)
		}
	}
	for i := range in.Grants {
		if g := &in.Grants[i]; g.Plugin == string(plugin) {
			out.addGrant(g)
		}
	}
	return out
}

func (s *side) addGrant(g *authz.Grant) {
	s.grants = append(s.grants, g)
	for _, l := range limitsIn(g.Name, "", g.Limits) {
		s.shared = append(s.shared, sharedLimit{l, g.NotAfter})
	}
	for i := range g.Credentials {
		s.credentials[ruleName{g.Name, g.Credentials[i].Name}] = identity(&g.Credentials[i])
	}
	for i := range g.Rules {
		r := &ruleText{grant: g, rule: &g.Rules[i]}
		for _, p := range r.rule.Paths {
			r.paths = append(r.paths, parsePattern(p))
		}
		s.rules = append(s.rules, r)
		s.byName[ruleName{g.Name, r.rule.ID}] = r
		for _, h := range r.rule.To.Hosts {
			s.byHost[h] = append(s.byHost[h], r)
		}
	}
}

// identity returns what a credential is: its source and its place in the request,
// without its name and its placeholder, which change nothing at the upstream. A file of
// authorities counts by its content.
func identity(c *authz.CredentialSpec) string {
	inject, ca := c.Inject, ""
	if inject.OAuth2 != nil {
		oauth := *inject.OAuth2
		oauth.CAFile, ca = "", oauth.CA
		inject.OAuth2 = &oauth
	}
	text, err := json.Marshal(struct {
		Vault   authz.VaultPath
		Inject  authz.Inject
		OAuthCA string
	}{c.Vault, inject, ca})
	if err != nil { // these types hold texts and numbers only
		return c.Name
	}
	return string(text)
}

// credential returns what the credential of a decision is, "" without one.
func (s *side) credential(d authz.Decision) string {
	if d.Credential == "" {
		return ""
	}
	return s.credentials[ruleName{d.Grant, d.Credential}]
}

// otherCredential reports whether the new decision injects a credential that the old one
// does not, or for longer.
func (c *comparison) otherCredential(was, now authz.Decision) bool {
	is, ok := now.CredentialRef()
	if !ok {
		return false
	}
	old, _ := was.CredentialRef()
	longer := old.Lifetime > 0 && (is.Lifetime == 0 || is.Lifetime > old.Lifetime)
	return longer || c.after.credential(now) != c.before.credential(was)
}

// at returns the rules of which a host pattern may match host.
func (s *side) at(host string) []*ruleText {
	out := slices.Clone(s.byHost[host])
	_, parent, _ := strings.Cut(host, ".")
	out = append(out, s.byHost["*."+parent]...)
	for parent != "" {
		out = append(out, s.byHost["**."+parent]...)
		_, parent, _ = strings.Cut(parent, ".")
	}
	return out
}

// times returns from and every later instant at which a part of the policy ends.
func (s *side) times(from time.Time) []time.Time {
	out := []time.Time{from, s.observeUntil}
	for _, r := range s.rules {
		out = append(out, r.ends()...)
	}
	for _, g := range s.grants {
		out = append(out, g.NotAfter)
	}
	for _, v := range s.snapshot.Revocations() {
		out = append(out, v.Until)
	}
	return since(from, out)
}

// ends returns the instants at which the rule or a part of it ends.
func (r *ruleText) ends() []time.Time {
	return []time.Time{r.grant.NotAfter, r.rule.NotAfter, r.rule.ObserveUntil}
}

// since returns the times from an instant on, sorted and without duplicates.
func since(from time.Time, times []time.Time) []time.Time {
	times = slices.DeleteFunc(times, func(t time.Time) bool { return t.Before(from) })
	slices.SortFunc(times, time.Time.Compare)
	return slices.CompactFunc(times, time.Time.Equal)
}

// scheme returns the rule's scheme, https by default.
func (r *ruleText) scheme() authz.Scheme {
	if r.rule.To.Scheme == "" {
		return authz.SchemeHTTPS
	}
	return r.rule.To.Scheme
}

// ports returns the rule's ports, the scheme's by default.
func (r *ruleText) ports() []uint16 {
	if len(r.rule.To.Ports) == 0 {
		return []uint16{r.scheme().DefaultPort()}
	}
	return r.rule.To.Ports
}

// observes reports whether the rule can observe.
func (r *ruleText) observes() bool { return r.rule.Mode == authz.ModeObserve }

// hostPort returns host:port as an authority.
func hostPort(host string, port uint16) string { return host + ":" + strconv.Itoa(int(port)) }

// times returns the first instant, and each at which a part of the policies ends that
// matters for the host.
func (l *local) times(from time.Time) []time.Time {
	out := append([]time.Time{from, l.c.before.observeUntil, l.c.after.observeUntil}, l.c.limitEnds...)
	for _, r := range l.rules() {
		out = append(out, r.ends()...)
	}
	for _, s := range []*side{l.c.before, l.c.after} {
		for _, v := range s.snapshot.Revocations() {
			out = append(out, v.Until)
		}
	}
	return since(from, out)
}

// doors returns the doors that differ in what they cannot enforce of the rules for the
// host.
func (l *local) doors(all []policy.Door) []policy.Door {
	var stated authz.Conditions
	for _, r := range l.rules() {
		stated |= r.conditions()
	}
	var out []policy.Door
	seen := map[authz.Conditions]bool{}
	for _, d := range all {
		if d.Unenforceable &= stated; !seen[d.Unenforceable] {
			seen[d.Unenforceable] = true
			out = append(out, d)
		}
	}
	return out
}

// conditions returns conditions among which are all that the rule states.
func (r *ruleText) conditions() (c authz.Conditions) {
	if len(r.rule.To.Addresses) > 0 || len(r.rule.Data.Regions) > 0 {
		c |= authz.ConditionAddresses
	}
	if r.rule.To.TLS != (authz.TLS{}) {
		c |= authz.ConditionTLS | authz.ConditionOriginate
	}
	if r.rule.Timeout > 0 {
		c |= authz.ConditionTimeout
	}
	if r.rule.Credential != "" {
		c |= authz.ConditionCredential | authz.ConditionCertificate | authz.ConditionSignature
	}
	if r.rule.Matcher != nil {
		c |= authz.ConditionContent
	}
	return c
}
