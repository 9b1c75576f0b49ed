package usage

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// tally counts the uses of one plugin's policy.
type tally struct {
	subject  *policy.Subject
	snapshot *authz.Snapshot // that observes nothing
	names    *policy.Names   // for masked names of keys and channels
	rules    []*ruleTally
	byName   map[string]*ruleTally
	grants   []*grantTally
	wild     []*ruleTally // those with a wildcard in a path
}

// grantTally counts the accesses of the whole plugin for the limit of one grant.
type grantTally struct {
	name string
	peak peak
}

// ruleTally counts the uses of one rule.
type ruleTally struct {
	grant       string
	spec        *authz.Rule
	uses        uint64
	first, last time.Time
	values      []*valueTally
	peak        peak
	unclear     bool // the host or the path of a use is not known, so that none is proved unused

	hosts, paths *authz.Snapshot // that hold each host and each path as a rule of its own
	parts        []policy.Part   // of what the rule grants of the content of requests
	learner      *learn.Learner  // of its accesses with readable paths; nil without a wildcard in a path
}

// valueTally counts the uses of one value.
type valueTally struct {
	field    Field
	value    string
	index    int
	uses     uint64
	seen     map[string]bool // different values of a wildcard, nil for others
	wildcard bool
}

// maxSeen bounds the different values of a wildcard that are kept.
const maxSeen = 1000

func newTally(s *policy.Subject, now time.Time) (*tally, error) {
	t := &tally{subject: s, names: policy.NewNames(s.Input), byName: map[string]*ruleTally{}}
	var err error
	if t.snapshot, err = policy.Enforced(s.Input, now); err != nil {
		return nil, err
	}
	for i := range s.Input.Grants {
		g := &s.Input.Grants[i]
		if g.Plugin != s.Plugin {
			continue
		}
		if limit := g.Limits.Requests; !limit.IsZero() {
			t.grants = append(t.grants, &grantTally{g.Name, peak{limit: limit}})
		}
		for j := range g.Rules {
			r, err := newRuleTally(s.Plugin, g, &g.Rules[j], now)
			if err != nil {
				return nil, err
			}
			t.rules = append(t.rules, r)
			if slices.ContainsFunc(r.spec.Paths, func(path string) bool { return strings.Contains(path, "*") }) {
				t.wild = append(t.wild, r)
			}
			t.byName[g.Name+"/"+r.spec.ID] = r
		}
	}
	for _, r := range t.wild {
		r.learner = learn.NewShare(len(t.wild))
	}
	return t, nil
}

// maxUsedAs bounds how many paths are reported of a rule's use.
const maxUsedAs = 20

// usedAs returns the paths, as templates, by which the rule was used, and whether there are more.
func (r *ruleTally) usedAs(plugin string, now time.Time) (paths []string, more bool) {
	if r.learner == nil {
		return nil, false
	}
	p := r.learner.Propose(learn.Terms{Plugin: plugin, Name: "used", NotAfter: now.Add(time.Hour), Now: now})
	for i := range p.Rules {
		for _, path := range p.Rules[i].Paths {
			if !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	slices.Sort(paths)
	if len(paths) > maxUsedAs {
		return paths[:maxUsedAs], true
	}
	return paths, p.Left.Bounded > 0
}

func newRuleTally(plugin string, g *authz.Grant, spec *authz.Rule, now time.Time) (*ruleTally, error) {
	r := &ruleTally{grant: g.Name, spec: spec, peak: peak{limit: spec.Limits.Requests}}
	add := func(field Field, values ...string) {
		for i, value := range values {
			v := &valueTally{field: field, value: value, index: i, wildcard: strings.Contains(value, "*") && field != Upgrades}
			if v.wildcard {
				v.seen = map[string]bool{}
			}
			r.values = append(r.values, v)
		}
	}
	var ports []string
	for _, port := range spec.To.Ports {
		ports = append(ports, strconv.Itoa(int(port)))
	}
	add(Hosts, spec.To.Hosts...)
	add(Ports, ports...)
	add(Methods, spec.Methods...)
	add(Paths, spec.Paths...)
	add(Upgrades, spec.Upgrades...)
	if spec.Credential != "" {
		add(Credential, spec.Credential)
	}
	if spec.Opaque == authz.OpaqueAllow {
		add(Opaque, string(spec.Opaque))
	}
	r.parts = policy.Parts(spec.Content)
	for _, p := range r.parts {
		add(Field(p.Field), p.Values...)
		for _, v := range r.values[len(r.values)-len(p.Values):] {
			if v.wildcard = p.Wild(v.value); v.wildcard {
				v.seen = map[string]bool{}
			}
		}
	}
	var err error
	if r.hosts, err = split(plugin, g, spec, len(spec.To.Hosts), now, func(one *authz.Rule, i int) { one.To.Hosts = spec.To.Hosts[i : i+1] }); err == nil {
		r.paths, err = split(plugin, g, spec, len(spec.Paths), now, func(one *authz.Rule, i int) { one.Paths = spec.Paths[i : i+1] })
	}
	return r, err
}

// split returns a policy that holds n versions of a rule, with the version's number as its
// id, so that Decide returns which of a rule's values an access has used.
func split(plugin string, of *authz.Grant, spec *authz.Rule, n int, now time.Time, keep func(one *authz.Rule, i int)) (*authz.Snapshot, error) {
	if n == 0 {
		return nil, nil //nolint:nilnil // a tunnel has no paths, and nothing to split
	}
	const years = 100 // longer than any log
	g := authz.Grant{Name: "split", Plugin: plugin, NotAfter: now.AddDate(years, 0, 0)}
	for i := range n {
		one := *spec
		one.ID, one.NotAfter = strconv.Itoa(i), time.Time{}
		if one.To.Scheme.Database() { // its rules must have one
			g.Credentials = of.Credentials
		} else {
			one.Credential, one.WildcardCredential, one.Insecure = "", false, false
		}
		one.Limits, one.Data = authz.Limits{}, authz.Data{} // regions are of guardrails
		keep(&one, i)
		g.Rules = append(g.Rules, one)
	}
	return policy.Enforced(authz.Input{Plugin: plugin, Grants: []authz.Grant{g}}, now)
}

// winner returns the number of the version that wins a request, and the port that the
// request is forwarded to; -1 and 0 without one.
func winner(s *authz.Snapshot, req authz.Request, at time.Time) (version int, port uint16) {
	if s == nil {
		return -1, 0
	}
	d := s.Decide(req, authz.Usage{}, at)
	if d.Reason != authz.Granted {
		return -1, 0
	}
	version, err := strconv.Atoi(d.Rule)
	if err != nil {
		return -1, 0
	}
	return version, d.Upstream(req.Destination).Port()
}

// take counts an access, and reports whether a rule allows it today.
func (t *tally) take(a *accesslog.Access) bool {
	req, name, masked := a.Request, "", a.Masked
	if a.MaskedFacts != nil {
		if facts, ok := t.names.Resolve(req.Destination.Scheme().Protocol(), a.MaskedFacts, a.MaskKey); ok {
			req.Facts, masked = facts[0], false // one rule grants them all
		}
	}
	if masked || req.Destination.Host() == "" {
		if a.Rule == "" {
			return false
		}
		name, req = a.Grant+"/"+a.Rule, recorded(a)
	} else if d := t.snapshot.Decide(req, authz.Usage{}, a.Time); d.Reason == authz.Granted {
		name = d.Grant + "/" + d.Rule
	}
	r := t.byName[name]
	if r == nil {
		return false
	}
	for _, g := range t.grants {
		g.peak.add(a.Time)
	}
	r.use(a, req)
	r.useContent(a, t.names)
	return true
}

// recorded returns the request of an access as it is recorded, with masks in its path. A
// mask stands for a segment that the rule does not spell out, so that the path matches
// what the access matched. It is the zero Request if that cannot be read.
func recorded(a *accesslog.Access) authz.Request {
	host := a.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	scheme := authz.Scheme(a.Scheme)
	to, err := authz.NewDestination(scheme, host+":"+strconv.Itoa(int(a.Port)), a.Path)
	if err != nil {
		return authz.Request{}
	}
	req := authz.Request{Principal: authz.Principal(a.Plugin), Destination: to}
	if scheme.HTTP() {
		if req.Action, err = authz.NewAction(a.Method, a.Request.Action.Upgrade); err != nil {
			return authz.Request{}
		}
	}
	return req
}

// use counts one use of the rule.
func (r *ruleTally) use(a *accesslog.Access, req authz.Request) {
	r.uses += uint64(max(a.Count, 1))
	if r.first.IsZero() || a.Time.Before(r.first) {
		r.first = a.Time
	}
	if a.Time.After(r.last) {
		r.last = a.Time
	}
	r.peak.add(a.Time)
	if r.learner != nil && !a.Masked {
		r.learner.Add(learn.Access{Request: req, Time: a.Time})
	}
	if session, ok := connection(a, req); ok {
		req = session // each version of the rule grants the connection
	}
	host, port := winner(r.hosts, req, a.Time)
	path, _ := winner(r.paths, req, a.Time)
	if host < 0 || path < 0 && r.paths != nil {
		r.unclear = true
	}
	for _, v := range r.values {
		switch v.field {
		case Hosts:
			v.count(v.index == host, a.Host)
		case Ports:
			v.count(v.value == strconv.Itoa(int(port)), "")
		case Methods:
			v.count(v.value == a.Method || v.value == "*", a.Method)
		case Paths:
			v.count(v.index == path, a.Path)
		case Upgrades:
			v.count(v.value == req.Action.Upgrade, "")
		case Credential:
			v.count(true, "")
		case Databases, Verbs, Tables, Functions, Commands, Keys, Channels, Opaque: // see useContent
		}
	}
}

// connection returns the request to connect of an access's session; false for other accesses.
func connection(a *accesslog.Access, req authz.Request) (authz.Request, bool) {
	for _, f := range a.MaskedFacts {
		if policy.IsDatabase(f) {
			facts, err := authz.NewFacts(req.Destination.Scheme().Protocol(), f)
			req.Facts = facts
			return req, err == nil
		}
	}
	return policy.Connection(req)
}

// useContent counts the values by which the rule grants what a request does.
func (r *ruleTally) useContent(a *accesslog.Access, names *policy.Names) {
	if len(r.parts) == 0 {
		return
	}
	facts := a.MaskedFacts
	if facts == nil {
		facts = policy.ParseFacts(a.Request.Facts)
	}
	for _, f := range facts {
		resolved, ok := names.Fact(f, a.MaskKey)
		if !ok {
			r.unclear = true
			continue
		}
		if f.Kind == authz.FactOpaque && r.spec.Opaque == authz.OpaqueAllow {
			r.value(Opaque, 0).count(true, f.Name)
		}
		for _, p := range r.parts {
			for _, at := range p.Used([]authz.Fact{resolved}) {
				r.value(Field(p.Field), at).count(true, f.Name)
			}
		}
	}
}

// value returns the value at a place of a field.
func (r *ruleTally) value(field Field, at int) *valueTally {
	return r.values[slices.IndexFunc(r.values, func(v *valueTally) bool { return v.field == field && v.index == at })]
}

func (v *valueTally) count(used bool, value string) {
	if !used {
		return
	}
	v.uses++
	if v.wildcard && len(v.seen) < maxSeen && !v.seen[value] {
		v.seen[strings.Clone(value)] = true
	}
}

// grantLimits returns the limits of whole grants.
func (t *tally) grantLimits() []Limit {
	var out []Limit
	for _, g := range t.grants {
		out = append(out, g.peak.report(g.name))
	}
	return out
}

// report judges the rule. why is why the absence of a use proves nothing, or "".
func (r *ruleTally) report(why string) Rule {
	out := Rule{Grant: r.grant, ID: r.spec.ID, Uses: r.uses, First: r.first, Last: r.last, Why: why, Verdict: verdict(r.uses, why == "")}
	for _, v := range r.values {
		proved := why == "" && !r.unclear
		out.Values = append(out.Values, Value{Field: v.field, Value: v.value, Uses: v.uses, Different: len(v.seen), Verdict: verdict(v.uses, proved), Index: v.index})
		granted, used := v.atoms()
		out.granted, out.used = out.granted+granted, out.used+used
	}
	if !r.peak.limit.IsZero() {
		out.Limits = []Limit{r.peak.report(out.Name())}
	}
	return out
}

func verdict(uses uint64, proved bool) Verdict {
	switch {
	case uses > 0:
		return Used
	case proved:
		return Unused
	}
	return NotProved
}

// atoms returns how much the value grants, and how much of it was used.
func (v *valueTally) atoms() (granted, used float64) {
	weight := map[Field]float64{
		Hosts: 4, Credential: 4, Databases: 4, Opaque: 4, Methods: 2, Paths: 2, Verbs: 2, Tables: 2, Commands: 2, Keys: 2, Channels: 2, Functions: 1, Ports: 1, Upgrades: 1,
	}[v.field]
	switch {
	case v.wildcard:
		return weight * WildcardAtoms, weight * float64(min(len(v.seen), WildcardAtoms))
	case v.uses > 0:
		return weight, weight
	}
	return weight, 0
}

// peak finds the most accesses in one period of a limit, counted from multiples of the
// period on.
type peak struct {
	limit   authz.Limit
	period  int64
	n, most uint64
}

func (p *peak) add(at time.Time) {
	if p.limit.Period > 0 {
		if period := at.UnixNano() / int64(p.limit.Period); period != p.period {
			p.period, p.n = period, 0
		}
	}
	p.n++
	p.most = max(p.most, p.n)
}

func (p *peak) report(name string) Limit {
	return Limit{Name: name, Limit: p.limit.String(), Peak: p.most, Ratio: float64(p.most) / float64(p.limit.Count)}
}
