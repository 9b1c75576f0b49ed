package plugintest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Mutation is the result of changing a policy on purpose: a change that no test notices
// could be made by mistake.
type Mutation struct {
	Mutants    int `json:"mutants"`    // changes that were made
	Noticed    int `json:"noticed"`    // by a test that fails
	Equivalent int `json:"equivalent"` // proved to change no decision
	Refused    int `json:"refused"`    // by a ceiling, when the policy is loaded
	Undecided  int `json:"undecided"`  // neither noticed nor compared in time
	// Survived are the changes that no test notices, in the order of files.
	Survived []Survivor `json:"survived"`
}

// Survivor is a change that no test notices.
type Survivor struct {
	Change string `json:"change"` // as in weather/read-forecast: methods ["*"]
	Place         // of what was changed
	// Test is the file of a test of this policy, and Expectation what to add under its
	// spec.expect; "" if no single request shows the change, and only atMost does.
	Test        string `json:"test"`
	Expectation string `json:"expectation,omitempty"`
	Finding     string `json:"finding"` // the change in words
}

// mutant is a policy with one change.
type mutant struct {
	change      string
	place       Place
	input       authz.Input
	grant, rule string // that the change is about; "" of a guardrail
}

// verdict is the result of one mutant in one suite.
type verdict int

// The verdicts, from the weakest to the one that decides for all suites.
const (
	unknown verdict = iota
	equivalent
	refused
	undecided
	survived
	noticed
)

// Mutate changes the policy of each suite in turn, and reports the changes that no
// expectation of any suite notices. All expectations must pass before. progress, if it is
// not nil, is called before each mutant. When ctx ends, the rest is undecided.
func Mutate(ctx context.Context, suites []*Suite, progress func(done, total int)) Mutation {
	type key struct {
		place  Place
		change string
	}
	verdicts, survivors := map[key]verdict{}, map[key]Survivor{}
	var order []key
	all := make([][]mutant, len(suites))
	total, done := 0, 0
	for i, s := range suites {
		all[i] = s.mutants()
		total += len(all[i])
	}
	for i, s := range suites {
		for _, m := range all[i] {
			if progress != nil {
				progress(done, total)
			}
			done++
			k := key{m.place, m.change}
			if _, known := verdicts[k]; !known {
				order = append(order, k)
			}
			if verdicts[k] == noticed {
				continue
			}
			v, survivor := s.judge(ctx, m)
			if verdicts[k] = max(verdicts[k], v); v == survived {
				survivors[k] = survivor
			}
		}
	}
	out := Mutation{Mutants: len(order), Survived: []Survivor{}}
	for _, k := range order {
		out.count(verdicts[k], survivors[k])
	}
	slices.SortStableFunc(out.Survived, func(a, b Survivor) int { return comparePlaces(a.Place, b.Place) })
	return out
}

func (m *Mutation) count(v verdict, s Survivor) {
	switch v {
	case noticed:
		m.Noticed++
	case equivalent:
		m.Equivalent++
	case refused:
		m.Refused++
	case undecided, unknown:
		m.Undecided++
	case survived:
		m.Survived = append(m.Survived, s)
	}
}

// judge tests one mutant.
func (s *Suite) judge(ctx context.Context, m mutant) (verdict, Survivor) {
	if ctx.Err() != nil { // compiling a large policy for each of many mutants takes minutes
		return undecided, Survivor{}
	}
	compiled, problems := authz.Compile(m.input, s.at)
	if len(problems) > 0 {
		return refused, Survivor{}
	}
	changed := inForce(compiled)
	if s.notices(ctx, changed) {
		return noticed, Survivor{}
	}
	if out, ok := s.shortcut(ctx, m, changed); ok {
		return survived, out
	}
	findings, complete := s.differences(ctx, s.subject.Snapshot, changed)
	switch {
	case len(findings) > 0:
		return survived, s.survivor(m, changed, findings, true)
	case complete:
		return equivalent, Survivor{}
	}
	return undecided, Survivor{}
}

// differences returns requests that two policies decide differently, and whether all were
// compared.
func (s *Suite) differences(ctx context.Context, one, other *authz.Snapshot) (findings []prove.Finding, complete bool) {
	o := prove.Options{Plugin: authz.Principal(s.Plugin), At: s.at}
	wider, err := prove.Compare(ctx, one, other, o)
	narrower, err2 := prove.Compare(ctx, other, one, o)
	return append(wider.Findings, narrower.Findings...), err == nil && err2 == nil && wider.Complete && narrower.Complete
}

// shortcut looks for an expectation that notices the change among the requests which the
// changed rule by itself decides differently. The whole policies decide whether it does.
// Comparing them would take time for each rule that the change is not about.
func (s *Suite) shortcut(ctx context.Context, m mutant, changed *authz.Snapshot) (Survivor, bool) {
	if m.rule == "" {
		return Survivor{}, false
	}
	one, problems := authz.Compile(s.only(s.subject.Input, m), s.at)
	other, more := authz.Compile(s.only(m.input, m), s.at)
	if len(problems)+len(more) > 0 {
		return Survivor{}, false
	}
	findings, _ := s.differences(ctx, inForce(one), inForce(other))
	if len(findings) == 0 {
		return Survivor{}, false
	}
	out := s.survivor(m, changed, findings, false)
	return out, out.Expectation != ""
}

// only returns the input with the mutant's rule alone, and without any if it has no such
// rule.
func (s *Suite) only(in authz.Input, m mutant) authz.Input {
	grants := in.Grants
	in.Grants, in.Plugin = nil, s.Plugin
	for _, g := range grants {
		g.Rules = slices.DeleteFunc(slices.Clone(g.Rules), func(r authz.Rule) bool { return g.Name != m.grant || r.ID != m.rule })
		if len(g.Rules) > 0 {
			in.Grants = append(in.Grants, g)
		}
	}
	return in
}

// notices reports whether an expectation fails for the policy. Those that ask one request
// come first: a proof takes longer.
func (s *Suite) notices(ctx context.Context, changed *authz.Snapshot) bool {
	for _, proofs := range []bool{false, true} {
		for _, e := range s.expectations {
			if (e.form == "never" || e.form == "atMost") == proofs && e.test(ctx, changed).status == Fail {
				return true
			}
		}
	}
	return false
}

// survivor describes a mutant that no test notices, with an expectation that does. If it is
// not certain that the findings are of the whole policies, an expectation that only another
// rule's name would contradict does not count.
func (s *Suite) survivor(m mutant, changed *authz.Snapshot, findings []prove.Finding, certain bool) Survivor {
	out := Survivor{Change: m.change, Place: m.place, Test: s.File, Finding: findings[0].Summary()}
	slices.SortStableFunc(findings, func(a, b prove.Finding) int { return preference(a) - preference(b) })
	for _, f := range findings {
		if f.Kind == prove.KindSocket {
			continue
		}
		e := s.ask(f)
		now := e.decide(s.subject.Snapshot)
		if e.form = "allow"; !now.reason.Allowed() {
			e.form = "deny"
		}
		e.state(now)
		if o := e.decide(changed); !o.asExpected(e, changed) && (certain || differ(o, now)) {
			out.Expectation, out.Finding = "- "+flow(append(e.asIs(now), e.selectors()...)), f.Summary()
			return out
		}
	}
	return out
}

// differ reports whether two decisions differ in more than the rule that wins, and the
// name of a credential.
func differ(a, b outcome) bool {
	return a.reason.Allowed() != b.reason.Allowed() || a.reason.Allowed() && (a.decision.Credential == "") != (b.decision.Credential == "")
}

// state sets what is expected to a decision.
func (e *expectation) state(o outcome) {
	for _, f := range e.asIs(o) {
		switch f.name {
		case "rule":
			e.Rule = f.value
		case "credential":
			e.Credential = &f.value
		case "reason":
			e.Reason = f.value
		}
	}
}

// preference orders findings: the simplest request to write down first.
func preference(f prove.Finding) int {
	rank := map[prove.Kind]int{prove.KindAccess: 0, prove.KindCredential: 2, prove.KindAddress: 4, prove.KindUpstream: 6, prove.KindTerms: 8, prove.KindLimit: 10}[f.Kind]
	if f.Door.Name != "proxy" {
		rank += 20
	}
	if f.Request.Action.Upgrade != "" {
		rank++
	}
	return rank
}

// mutants returns every change of the suite's policy that is tried.
func (s *Suite) mutants() (out []mutant) {
	in := s.subject.Input
	for gi := range in.Grants {
		g := &in.Grants[gi]
		if g.Plugin != s.Plugin {
			continue
		}
		for ri := range g.Rules {
			out = append(out, s.ruleMutants(gi, ri)...)
		}
		out = append(out, mutant{
			g.Name + ": notAfter 30 days later", s.place(g.Origin, "spec.notAfter"),
			edit(in, gi, func(g *authz.Grant) { g.NotAfter = g.NotAfter.Add(30 * 24 * time.Hour) }), g.Name, g.Rules[0].ID,
		})
	}
	for gi := range in.Guardrails {
		for ni := range in.Guardrails[gi].Never {
			out = append(out, s.neverMutants(gi, ni)...)
		}
	}
	return out
}

// neverMutants returns the changes of one entry of a never-list: without it, and without
// each of its hosts and addresses.
func (s *Suite) neverMutants(gi, ni int) (out []mutant) {
	in := s.subject.Input
	g := &in.Guardrails[gi]
	n := g.Never[ni]
	add := func(field, change string, never ...authz.Never) {
		changed := in
		changed.Guardrails = slices.Clone(in.Guardrails)
		changed.Guardrails[gi].Never = slices.Concat(g.Never[:ni], never, g.Never[ni+1:])
		place := s.place(g.Origin, fmt.Sprintf("spec.never[%d]%s", ni, field))
		out = append(out, mutant{change: g.Name + "/" + n.ID + ": " + change, place: place, input: changed})
	}
	add("", "never-entry removed")
	if len(n.Hosts)+len(n.Addresses) < 2 {
		return out
	}
	for i, h := range n.Hosts {
		less := n
		less.Hosts = slices.Delete(slices.Clone(n.Hosts), i, i+1)
		add(fmt.Sprintf(".hosts[%d]", i), "without "+h, less)
	}
	for i, a := range n.Addresses {
		less := n
		less.Addresses = slices.Delete(slices.Clone(n.Addresses), i, i+1)
		add(fmt.Sprintf(".addresses[%d]", i), "without "+a.String(), less)
	}
	return out
}

// edit returns the input with a changed copy of one grant.
func edit(in authz.Input, grant int, change func(g *authz.Grant)) authz.Input {
	in.Grants = slices.Clone(in.Grants)
	g := &in.Grants[grant]
	g.Rules = slices.Clone(g.Rules)
	if change(g); len(g.Rules) == 0 {
		in.Grants = slices.Delete(in.Grants, grant, grant+1)
	}
	return in
}

// ruleMutants returns the changes of one rule: without it, and wider in each of its fields.
func (s *Suite) ruleMutants(gi, ri int) (out []mutant) {
	in := s.subject.Input
	g := &in.Grants[gi]
	r := &g.Rules[ri]
	add := func(field, change string, edited func(r *authz.Rule)) {
		out = append(out, mutant{
			g.Name + "/" + r.ID + ": " + change, s.place(g.Origin, fmt.Sprintf("spec.rules[%d]%s", ri, field)),
			edit(in, gi, func(g *authz.Grant) { edited(&g.Rules[ri]) }), g.Name, r.ID,
		})
	}
	out = append(out, mutant{
		g.Name + "/" + r.ID + ": removed", s.place(g.Origin, fmt.Sprintf("spec.rules[%d]", ri)),
		edit(in, gi, func(g *authz.Grant) { g.Rules = slices.Delete(g.Rules, ri, ri+1) }), g.Name, r.ID,
	})
	for i, h := range r.To.Hosts {
		if wide := widerHost(h); wide != "" && !slices.Contains(r.To.Hosts, wide) {
			add(fmt.Sprintf(".to.hosts[%d]", i), "hosts with "+quote(wide), func(r *authz.Rule) {
				r.To.Hosts, r.WildcardCredential = append(slices.Clone(r.To.Hosts), wide), r.Credential != ""
			})
		}
	}
	port := extraPort(r)
	add(".to", fmt.Sprintf("ports with %d", port), func(r *authz.Rule) { r.To.Ports = append(portsOf(r), port) })
	if len(r.To.Addresses) > 0 {
		add(".to.addresses", "without addresses", func(r *authz.Rule) { r.To.Addresses = nil })
	}
	if len(r.Data.Regions) > 0 {
		add(".data.regions", "without regions", func(r *authz.Rule) { r.Data.Regions = nil })
	}
	httpMutants(r, add)
	contentMutants(r, add)
	if r.Mode != authz.ModeObserve {
		add("", "mode observe", func(r *authz.Rule) { r.Mode, r.ObserveUntil = authz.ModeObserve, g.NotAfter })
	}
	if !r.NotAfter.IsZero() && r.NotAfter.Before(g.NotAfter) {
		add(".notAfter", "notAfter of the grant", func(r *authz.Rule) { r.NotAfter = time.Time{} })
	}
	credentialMutants(g, r, add)
	return out
}

// httpMutants adds the changes of what only rules for http and https have.
func httpMutants(r *authz.Rule, add func(field, change string, edited func(r *authz.Rule))) {
	if len(r.Methods) == 0 {
		return
	}
	if r.Methods[0] != "*" {
		add(".methods", `methods "*"`, func(r *authz.Rule) { r.Methods = []string{"*"} })
	}
	for i, p := range r.Paths {
		if wide := widerPath(p); wide != p {
			add(fmt.Sprintf(".paths[%d]", i), "path "+quote(wide)+" in place of "+quote(p), func(r *authz.Rule) {
				r.Paths = slices.Clone(r.Paths)
				r.Paths[i] = wide
			})
		}
	}
	if r.EncodedSlash != "allow" {
		add("", "encodedSlash allow", func(r *authz.Rule) { r.EncodedSlash = "allow" })
	}
}

// contentMutants adds what is wider in each list of what a rule grants of a database, and
// opaque statements.
func contentMutants(r *authz.Rule, add func(field, change string, edited func(r *authz.Rule))) {
	if !r.To.Scheme.Database() {
		return
	}
	parts := policy.Parts(r.Content)
	set := func(p policy.Part, place string, values ...string) {
		if change := values[len(values)-1]; !slices.Contains(values[:len(values)-1], change) {
			add(place, p.Field+" with "+quote(change), func(r *authz.Rule) { policy.SetPart(r, p.Field, values) })
		}
	}
	for _, p := range parts {
		place := "." + p.Field
		switch p.Kind {
		case authz.FactVerb:
			for _, verb := range []string{"select", "insert", "delete"} {
				set(p, place, append(slices.Clone(p.Values), verb)...)
			}
		case authz.FactCommand:
			set(p, place, append(slices.Clone(p.Values), "@all")...)
		case authz.FactDatabase:
			set(p, place, append(slices.Clone(p.Values), "*")...)
		default:
			for i, value := range p.Values {
				if wide := widerName(value); wide != "" {
					set(p, fmt.Sprintf("%s[%d]", place, i), append(slices.Clone(p.Values), wide)...)
				}
			}
		}
	}
	if r.Opaque != authz.OpaqueAllow {
		add("", "opaque allow", func(r *authz.Rule) {
			r.Opaque = authz.OpaqueAllow
			r.Matcher = configs.Matcher(r)
		})
	}
}

// widerName returns the prefix over a name of a table, a function, a key or a channel: up to
// its last separator, or every name. It is "" if every name is granted already.
func widerName(name string) string {
	name = strings.TrimSuffix(name, "*")
	if name == "" || name == "safe" || name == "catalog" {
		return ""
	}
	return name[:strings.LastIndexAny(name[:len(name)-1], ".:/")+1] + "*"
}

// credentialMutants adds the rule without its credential and with another of the grant.
func credentialMutants(g *authz.Grant, r *authz.Rule, add func(field, change string, edited func(r *authz.Rule))) {
	if r.Credential == "" || r.To.Scheme.Database() { // a session needs its one credential
		return
	}
	add(".credential", "without its credential", func(r *authz.Rule) { r.Credential, r.WildcardCredential, r.Insecure = "", false, false })
	for _, c := range g.Credentials {
		if c.Name != r.Credential {
			add(".credential", "credential "+c.Name, func(r *authz.Rule) { r.Credential = c.Name })
			return
		}
	}
}

// widerHost returns the wildcard over a host, "" without one.
func widerHost(host string) string {
	if _, err := netip.ParseAddr(host); err == nil || strings.HasPrefix(host, "**.") {
		return ""
	}
	if strings.HasPrefix(host, "*.") {
		return "*" + host
	}
	_, parent, ok := strings.Cut(host, ".")
	if !ok || parent == "" {
		return ""
	}
	return "*." + parent
}

// widerPath returns the pattern with ** in place of its last segment, or one segment
// shorter if it ends in ** already.
func widerPath(path string) string {
	path = strings.TrimSuffix(path, "/**")
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "/**"
	}
	return path[:i] + "/**"
}

// portsOf returns the rule's ports, the scheme's by default.
func portsOf(r *authz.Rule) []uint16 {
	if len(r.To.Ports) > 0 {
		return slices.Clone(r.To.Ports)
	}
	if r.To.Scheme == "" {
		return []uint16{authz.SchemeHTTPS.DefaultPort()}
	}
	return []uint16{r.To.Scheme.DefaultPort()}
}

// extraPort returns a port that the rule does not have.
func extraPort(r *authz.Rule) uint16 {
	port := uint16(8443)
	for slices.Contains(r.To.Ports, port) {
		port++
	}
	return port
}

// Results returns a result for each survivor, one for the changes that were not decided,
// and one for all that were noticed.
func (m *Mutation) Results() (out []Result) {
	const test = "mutants"
	for _, s := range m.Survived {
		r := Result{
			Test: test, Name: s.Change, File: s.File, Line: s.Line, Column: s.Column, Status: Fail,
			Expected: "a test that fails", Got: "every test passes", Detail: s.Finding,
			Remedy: "add to spec.expect of " + s.Test, Add: s.Expectation,
		}
		if s.Expectation == "" {
			r.Remedy = "no request alone shows the change; state an approved file under atMost in " + s.Test
		}
		out = append(out, r)
	}
	if m.Undecided > 0 {
		out = append(out, Result{
			Test: test, Name: fmt.Sprintf("%d changes", m.Undecided), Status: Undecided, Expected: "a test that fails", Got: "undecided",
			Detail: "the budget was used up before they were tried", Remedy: "say a longer --budget",
		})
	}
	if len(out) == 0 {
		out = append(out, Result{Test: test, Name: fmt.Sprintf("%d of %d changes are noticed, the others change no decision", m.Noticed, m.Mutants), Status: Pass})
	}
	return out
}
