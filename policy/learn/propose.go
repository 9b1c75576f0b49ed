package learn

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Terms say what a proposal is for.
type Terms struct {
	Plugin   string
	Name     string    // of the grant
	NotAfter time.Time // of the grant
	Now      time.Time // at which it has to be valid
	// Present is the policy in force, nil without one. Rules for a host that it names are
	// proposed under the addresses and the terms of TLS that it states for the host.
	Present *policy.Subject
	// Folder is the one that the grant is for, so that files are named relative to it; "" names
	// them by absolute paths.
	Folder string
}

// Proposal is a grant that was learned, with the evidence for it.
type Proposal struct {
	Terms    Terms
	Rules    []Rule
	Estimate Estimate
	Calendar Calendar
	Left     Left
	Peak     uint64 // accesses of the plugin in a minute
	// Dropped are rules that no policy may hold, each with the reason.
	Dropped []string
}

// Rule is one rule of a proposal.
type Rule struct {
	authz.Rule
	// Undeclared reports that no present rule names the host. It is false without a present policy.
	Undeclared bool
	// Count is how many accesses the rule is for, Peak how many of one group were made in a minute.
	Count, Peak uint64
	// Credentials are the names of those that were injected.
	Credentials []string

	patterns   []pattern // of Paths, in their order
	suggested  []suggestion
	wildcard   string   // a host that is suggested
	below      []string // hosts of the rule below it
	credential string   // of a present rule for the host
	listed     bool     // one of its patterns is listed

	// Of a rule for a database.
	stars    map[string]star         // by name that ends in *
	evidence map[string][]suggestion // by field
	opaque   []string                // kinds of statements that are not granted
}

// Grant returns the grant, with reason in every rule.
func (p *Proposal) Grant(reason string) authz.Grant {
	g := authz.Grant{Name: p.Terms.Name, Plugin: p.Terms.Plugin, NotAfter: p.Terms.NotAfter}
	for i := range p.Rules {
		r := p.Rules[i].Rule
		r.Reason = reason
		for _, c := range p.credentialFor(&r) {
			if !slices.ContainsFunc(g.Credentials, func(known authz.CredentialSpec) bool { return known.Name == c.Name }) {
				g.Credentials = append(g.Credentials, c)
			}
		}
		g.Rules = append(g.Rules, r)
	}
	return g
}

// Propose returns the grant for what was added. The learner is not used afterwards.
func (l *Learner) Propose(t Terms) *Proposal {
	p := &Proposal{Terms: t, Calendar: l.calendar, Left: l.left, Peak: l.peak.most}
	e := Estimate{Uncovered: l.left.Bounded}
	var rules []Rule
	for key, g := range l.groups {
		w := &walker{b: &l.budget}
		if key.scheme.HTTP() {
			w.walk(&g.root, "", 0, nil)
			w.b = &budget{} // suggestions are copies, which no bound is for
			w.suggest(&g.root, "", 0)
		} else {
			w.granted = []pattern{{count: g.count}}
		}
		e.Accesses += g.count
		e.Uncovered += w.uncovered
		if len(w.granted) > 0 {
			rules = append(rules, newRule(key, g, w))
		}
	}
	for _, r := range l.databaseRules() {
		e.Accesses += r.Count
		rules = append(rules, r)
	}
	e.Accesses += l.left.Bounded
	slices.SortFunc(rules, compareRules)
	e.Uncovered += bound(rules)
	rules = slices.DeleteFunc(rules, func(r Rule) bool { return len(r.patterns) == 0 })
	e.count(rules)
	p.Left.Bounded = e.Uncovered
	p.Estimate = e.complete()
	for i := range rules {
		rules[i].complete(&t)
	}
	rules = mergeRules(rules, sameButMethod, func(a, b *Rule) { a.Methods = append(a.Methods, b.Methods...) })
	rules = mergeRules(rules, sameButHost, func(a, b *Rule) { a.To.Hosts = append(a.To.Hosts, b.To.Hosts...) })
	// Hosts that nobody declared are what a reviewer has to see first.
	slices.SortStableFunc(rules, func(a, b Rule) int { return compareBool(b.Undeclared, a.Undeclared) })
	p.take(rules)
	return p
}

// credentialFor sets the credential of a rule for a database to that of the present rule for
// it, since the login comes before the first statement, and returns its source. Without one
// it is a name that somebody has to fill in.
func (p *Proposal) credentialFor(r *authz.Rule) []authz.CredentialSpec {
	if !r.To.Scheme.Database() {
		return nil
	}
	if t := p.Terms.Present; t != nil {
		for i := range t.Input.Grants {
			g := &t.Input.Grants[i]
			for j := range g.Rules {
				if known := &g.Rules[j]; known.To.Scheme != r.To.Scheme || !slices.Contains(known.To.Hosts, r.To.Hosts[0]) || !slices.ContainsFunc(known.Databases, func(d authz.DatabaseName) bool { return slices.Contains(r.Databases, d) }) {
					continue
				}
				for _, c := range g.Credentials {
					if c.Name == g.Rules[j].Credential {
						c.Placeholder = nil // the present grant has it
						r.Credential = c.Name
						return []authz.CredentialSpec{c}
					}
				}
			}
		}
	}
	r.Credential = "todo"
	return []authz.CredentialSpec{{Name: r.Credential, Vault: authz.VaultPath{Path: "database/creds/TODO"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}}}}
}

// maxText is how long the rules of a proposal are, in bytes: a file of grants is at most
// 1 MiB long.
const maxText = 700 << 10

// bound drops patterns, the least used ones first, and suggestions beyond what a file holds.
// It returns how many accesses the dropped patterns are for.
func bound(rules []Rule) (uncovered uint64) {
	type place struct{ rule, pattern int }
	var all []place
	for i := range rules {
		for j := range rules[i].patterns {
			all = append(all, place{i, j})
		}
	}
	slices.SortStableFunc(all, func(a, b place) int {
		return cmp.Compare(rules[b.rule].patterns[b.pattern].count, rules[a.rule].patterns[a.pattern].count)
	})
	left := maxText
	drop := map[place]bool{}
	for _, at := range all {
		const markup, rule, sample = 32, 512, maxSamples * (maxSample + 8)
		r := &rules[at.rule]
		cost := markup + len(r.patterns[at.pattern].text) + len(r.patterns[at.pattern].stars)*sample
		if !r.listed {
			cost += rule + len(r.To.Hosts[0])
		}
		if cost > left {
			drop[at] = true
			uncovered += r.patterns[at.pattern].count
			continue
		}
		left, r.listed = left-cost, true
	}
	for i := range rules {
		r := &rules[i]
		kept := r.patterns[:0]
		for j, one := range r.patterns {
			if !drop[place{i, j}] {
				kept = append(kept, one)
			}
		}
		r.setPatterns(kept)
		r.suggested = slices.DeleteFunc(r.suggested, func(s suggestion) bool {
			left -= len(s.text) + maxSamples*(maxSample+8)
			return left < 0
		})
	}
	return uncovered
}

// setPatterns sets the paths of the rule; a tunnel has none.
func (r *Rule) setPatterns(patterns []pattern) {
	r.patterns, r.Paths = patterns, nil
	for _, p := range patterns {
		if len(r.Methods) > 0 {
			r.Paths = append(r.Paths, p.text)
		}
	}
}

// count counts the patterns that were used once and twice.
func (e *Estimate) count(rules []Rule) {
	for i := range rules {
		for _, one := range rules[i].patterns {
			switch one.count {
			case 1:
				e.Once++
			case 2:
				e.Twice++
			}
		}
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func newRule(key groupKey, g *group, w *walker) Rule {
	r := Rule{
		Count: g.count, Peak: g.peak.most, Credentials: slices.Clone(g.credentials),
		patterns: w.granted, suggested: w.suggested,
	}
	r.Reason = authz.ReasonTodo
	r.To.Hosts = []string{key.host}
	if key.scheme != authz.SchemeHTTPS {
		r.To.Scheme = key.scheme
	}
	if key.port != key.scheme.DefaultPort() {
		r.To.Ports = []uint16{key.port}
	}
	if !key.scheme.HTTP() {
		return r
	}
	r.Methods = []string{key.action.Method}
	if key.action.Upgrade != "" {
		r.Upgrades = []string{key.action.Upgrade}
	}
	if key.slash {
		r.EncodedSlash = "allow"
	}
	return r
}

// scheme returns the rule's scheme, https by default.
func scheme(to authz.To) authz.Scheme { return cmp.Or(to.Scheme, authz.SchemeHTTPS) }

// compareRules orders rules by host, then by everything that a rule is for.
func compareRules(a, b Rule) int {
	return cmp.Or(
		strings.Compare(a.To.Hosts[0], b.To.Hosts[0]), cmp.Compare(scheme(a.To), scheme(b.To)), slices.Compare(a.To.Ports, b.To.Ports),
		slices.Compare(a.Methods, b.Methods), slices.Compare(a.Upgrades, b.Upgrades), strings.Compare(a.EncodedSlash, b.EncodedSlash),
	)
}

// complete adds what the present policy states for the rule's host.
func (r *Rule) complete(t *Terms) {
	if t.Present == nil {
		return
	}
	r.Undeclared = true
	for i := range t.Present.Input.Grants {
		g := &t.Present.Input.Grants[i]
		for j := range g.Rules {
			known := &g.Rules[j]
			if scheme(known.To) != scheme(r.To) || !slices.ContainsFunc(known.To.Hosts, func(h string) bool { return names(h, r.To.Hosts[0]) }) {
				continue
			}
			if r.Undeclared || len(r.To.Addresses) == 0 {
				r.To.Addresses, r.To.TLS, r.credential = known.To.Addresses, known.To.TLS, cmp.Or(r.credential, known.Credential)
				r.Data = known.Data
				r.To.TLS.Originate, r.To.TLS.CAFile = false, t.file(g.Name, known.To.TLS.CAFile)
			}
			r.Undeclared = false
		}
	}
}

// file returns how the proposal names a file that a present grant names.
func (t *Terms) file(grant, name string) string {
	at, ok := t.Present.Position(grant, "")
	if name == "" || filepath.IsAbs(name) || !ok {
		return name
	}
	whole, err := filepath.Abs(filepath.Join(filepath.Dir(at.File), name))
	if err != nil {
		return name
	}
	if folder, err := filepath.Abs(t.Folder); err == nil && t.Folder != "" && filepath.Dir(whole) == folder {
		return filepath.Base(whole)
	}
	return whole
}

// names reports whether a host of a rule is host or a wildcard above it.
func names(pattern, host string) bool {
	if base, ok := strings.CutPrefix(pattern, "**."); ok {
		return strings.HasSuffix(host, "."+base)
	}
	if base, ok := strings.CutPrefix(pattern, "*."); ok {
		_, parent, _ := strings.Cut(host, ".")
		return parent == base
	}
	return pattern == host
}

// mergeRules merges rules that are the same, which neither widens nor narrows them.
func mergeRules(rules []Rule, key func(*Rule) string, join func(a, b *Rule)) []Rule {
	var out []Rule
	at := map[string]int{}
	for i := range rules {
		r := &rules[i]
		k := key(r)
		j, ok := at[k]
		if !ok {
			at[k] = len(out)
			out = append(out, *r)
			continue
		}
		a := &out[j]
		join(a, r)
		a.Count, a.Peak = a.Count+r.Count, a.Peak+r.Peak
		for k := range min(len(a.patterns), len(r.patterns)) {
			a.patterns[k].merge(r.patterns[k])
		}
		for _, name := range r.Credentials {
			if !slices.Contains(a.Credentials, name) {
				a.Credentials = append(a.Credentials, name)
			}
		}
	}
	return out
}

// merge adds the evidence of an equal pattern.
func (p *pattern) merge(other pattern) {
	p.count += other.count
	p.stars = slices.Clone(p.stars)
	for i := range p.stars {
		for _, sample := range other.stars[i].samples {
			if len(p.stars[i].samples) < maxSamples && !slices.Contains(p.stars[i].samples, sample) {
				p.stars[i].samples = append(slices.Clone(p.stars[i].samples), sample)
			}
		}
	}
}

func sameButMethod(r *Rule) string { return r.key(strings.Join(r.To.Hosts, " "), "") }
func sameButHost(r *Rule) string {
	return r.key("", strings.Join(append(slices.Clone(r.Methods), verbsOf(r)...), " "))
}

// key returns a text of everything that makes two rules differ, but for what it is not given.
func (r *Rule) key(hosts, methods string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q %v %q %q %v %v %+v %q %s", hosts, methods, r.To.Scheme, r.To.Ports, r.Upgrades, r.EncodedSlash, r.Undeclared, r.To.Addresses, r.To.TLS, r.credential, r.Data)
	for _, path := range r.Paths {
		fmt.Fprintf(&b, " %q", path)
	}
	for _, p := range policy.Parts(r.Content) {
		if p.Kind != authz.FactVerb && p.Kind != authz.FactCommand || hosts != "" || methods != "" {
			fmt.Fprintf(&b, " %s %q", p.Field, p.Values)
		}
	}
	fmt.Fprintf(&b, " %q", r.opaque)
	for _, s := range r.suggested {
		fmt.Fprintf(&b, " ~%q", s.text)
	}
	return b.String()
}

// take names the rules, and keeps those that a policy may hold.
func (p *Proposal) take(rules []Rule) {
	used := map[string]bool{}
	for _, r := range rules {
		slices.Sort(r.Methods)
		r.ID = ruleID(&r, used)
		r.wildcard, r.below = wildcardHost(r.To.Hosts)
		grant := authz.Grant{Name: p.Terms.Name, Plugin: p.Terms.Plugin, NotAfter: p.Terms.NotAfter, Rules: []authz.Rule{r.Rule}}
		grant.Rules[0].Data.Regions = nil // guardrails define them
		grant.Rules[0].Reason = "compiled to see whether a rule may state this"
		grant.Credentials = p.credentialFor(&grant.Rules[0])
		if _, problems := authz.Compile(authz.Input{Plugin: p.Terms.Plugin, Grants: []authz.Grant{grant}}, p.Terms.Now); len(problems) > 0 {
			p.Dropped = append(p.Dropped, fmt.Sprintf("%s: %s %s", r.ID, problems[0].Path, problems[0].Message))
			p.Estimate.Uncovered += r.Count
			continue
		}
		p.Rules = append(p.Rules, r)
	}
}

// maxID is how long the id of a rule is at most, before a number.
const maxID = 50

// ruleID returns an id that no other rule has.
func ruleID(r *Rule, used map[string]bool) string {
	words := slices.Concat(r.Methods, r.Upgrades, verbsOf(r), []string{r.To.Hosts[0]})
	if len(r.Methods) == 0 {
		words = append([]string{string(r.To.Scheme)}, words...)
	}
	for _, port := range r.To.Ports {
		words = append(words, strconv.Itoa(int(port)))
	}
	base := strings.Join(strings.FieldsFunc(strings.ToLower(strings.Join(words, "-")), func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9')
	}), "-")
	base = strings.TrimRight(base[:min(len(base), maxID)], "-")
	id := base
	for n := 2; used[id]; n++ {
		id = base + "-" + strconv.Itoa(n)
	}
	used[id] = true
	return id
}

// wildcardHost returns the wildcard that hosts suggest, or "", and the hosts that are below
// it. It is below a public suffix (https://publicsuffix.org), since names directly below one
// belong to different owners.
func wildcardHost(hosts []string) (wildcard string, below []string) {
	byParent := map[string][]string{}
	for _, host := range hosts {
		_, parent, ok := strings.Cut(host, ".")
		if _, err := netip.ParseAddr(host); err == nil || !ok {
			continue
		}
		byParent[parent] = append(byParent[parent], host)
	}
	for _, parent := range slices.Sorted(maps.Keys(byParent)) {
		names := byParent[parent]
		if _, err := publicsuffix.EffectiveTLDPlusOne(parent); err == nil && len(names) >= max(manyValues, len(below)+1) {
			wildcard, below = "*."+parent, names
		}
	}
	return wildcard, below
}
