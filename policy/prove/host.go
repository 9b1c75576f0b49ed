package prove

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// fresh holds texts that neither policy holds.
type fresh struct {
	label   string // of a host name
	segment string // the beginning of a path segment
	method  string
	upgrade string
	facts   []authz.Fact // the patterns of facts that the policies hold
	port    uint16
}

func newFresh(before, after *side) fresh {
	labels, methods, upgrades, ports := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[uint16]bool{}
	var segments []string
	for _, s := range []*side{before, after} {
		for _, name := range s.hostTexts() {
			for label := range strings.SplitSeq(name, ".") {
				labels[label] = true
			}
		}
		for _, r := range s.rules {
			for _, p := range r.paths {
				segments = append(segments, p.segments...)
			}
			for _, m := range r.rule.Methods {
				methods[m] = true
			}
			for _, u := range r.rule.Upgrades {
				upgrades[u] = true
			}
			for _, p := range r.ports() {
				ports[p] = true
			}
		}
	}
	f := fresh{
		label: unusedLabel(labels),
		segment: unused(func(s string) bool {
			return slices.ContainsFunc(segments, func(t string) bool { return strings.HasPrefix(t, s) })
		}),
		method:  strings.ToUpper(unused(func(s string) bool { return methods[strings.ToUpper(s)] })),
		upgrade: unused(func(s string) bool { return upgrades[s] }),
		facts:   patternsOf(before, after),
		port:    4433,
	}
	for ports[f.port] {
		f.port++
	}
	return f
}

// unused returns "any" with as many x behind it as make it unused.
func unused(used func(string) bool) string {
	text := "any"
	for used(text) {
		text += "x"
	}
	return text
}

// unusedLabel returns the shortest label that it can, so that a long name leaves room
// for it.
func unusedLabel(used map[string]bool) string {
	for c := 'x'; c >= 'a'; c-- {
		if !used[string(c)] {
			return string(c)
		}
	}
	return unused(func(s string) bool { return used[s] })
}

// hostTexts returns every host that the policy names, wildcards included.
func (s *side) hostTexts() (out []string) {
	for _, r := range s.rules {
		out = append(out, r.rule.To.Hosts...)
	}
	for _, g := range s.guardrails {
		for _, n := range g.Never {
			out = append(out, n.Hosts...)
		}
		for _, region := range slices.Sorted(maps.Keys(g.Regions)) {
			for _, place := range g.Regions[region] {
				if !strings.Contains(string(place), "/") {
					out = append(out, string(place))
				}
			}
		}
	}
	return out
}

// maxHost is how long a name is at most, in bytes (RFC 1035, section 3.1).
const maxHost = 253

// hosts returns a host of every class that the policies distinguish.
func (c *comparison) hosts() []string {
	set := map[string]bool{}
	for _, text := range append(c.before.hostTexts(), c.after.hostTexts()...) {
		base, deep := strings.CutPrefix(text, "**.")
		base, single := strings.CutPrefix(base, "*.")
		set[base] = true
		if deep || single {
			set[c.fresh.label+"."+base] = true
			set[c.fresh.label+"."+c.fresh.label+"."+base] = true
		}
	}
	if c.observing() {
		set[c.fresh.label] = true
		for _, addr := range c.addresses.judgedApart() {
			set[addr.String()] = true
		}
		if c.never != nil && c.never.address.IsValid() {
			set[c.never.address.String()] = true
		}
	}
	// A label of one byte is the shortest: no name of the class is shorter than this one.
	maps.DeleteFunc(set, func(host string, _ bool) bool { return len(c.fresh.label) == 1 && len(host) > maxHost })
	return slices.Sorted(maps.Keys(set))
}

// observing reports whether the new policy's sidecar observes.
func (c *comparison) observing() bool { return c.opts.At.Before(c.after.observeUntil) }

// local is what both policies hold about one host.
type local struct {
	c             *comparison
	host          string
	before, after []*ruleText
}

func (c *comparison) localRules(host string) *local {
	l := &local{c: c, host: host, before: c.before.at(host), after: c.after.at(host)}
	if c.never != nil {
		l.before = c.before.rules // a pattern may match any host
	}
	return l
}

// empty reports whether the new policy allows nothing at the host.
func (l *local) empty() bool { return len(l.after) == 0 && !l.c.observing() }

func (l *local) rules() []*ruleText { return slices.Concat(l.before, l.after) }

// depth returns the number of segments up to which paths are compared.
func (l *local) depth() int {
	longest := 0
	for _, r := range l.rules() {
		for _, p := range r.paths {
			longest = max(longest, len(p.segments))
		}
	}
	return longest + 2
}

// encodedSlash reports whether any rule allows an encoded slash.
func (l *local) encodedSlash() bool {
	return slices.ContainsFunc(l.rules(), func(r *ruleText) bool { return r.rule.EncodedSlash != "" })
}

// methods returns the methods that rules for the host name, TRACE and one that none names.
func (l *local) methods() []string {
	out := []string{"TRACE", l.c.fresh.method}
	for _, r := range l.rules() {
		out = append(out, r.rule.Methods...)
	}
	return compact(slices.DeleteFunc(out, func(m string) bool { return m == "*" }))
}

// upgrades returns the upgrades that rules for the host name, none, and one that none names.
func (l *local) upgrades() []string {
	out := []string{"", l.c.fresh.upgrade}
	for _, r := range l.rules() {
		out = append(out, r.rule.Upgrades...)
	}
	return compact(out)
}

func compact(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}

// shape is a set of requests to one host: the product of its parts.
type shape struct {
	scheme            authz.Scheme
	ports             []uint16
	methods, upgrades []string
	paths             []string
	contents          []authz.Facts
}

// shapes returns the requests that the new policy may allow at the host.
func (l *local) shapes() (out []shape) {
	for _, r := range l.after {
		s := shape{scheme: r.scheme(), ports: r.ports(), methods: r.rule.Methods, upgrades: append([]string{""}, r.rule.Upgrades...), paths: l.paths(r.paths), contents: l.contents(r.rule.Matcher)}
		if slices.Contains(s.methods, "*") {
			s.methods = l.methods()
		}
		if r.observes() {
			// The rule still wins what it grants, and then observes everything else.
			s.methods, s.upgrades, s.paths = l.methods(), l.upgrades(), l.paths(append([]pattern{anyPath()}, r.paths...))
			s.contents = append(s.contents, l.contents(nil)...)
		}
		if s.scheme.Database() {
			s.contents = nil
			for _, m := range r.matchers(l.c.observing()) {
				s.contents = append(s.contents, l.contents(m)...)
			}
		}
		out = append(out, s)
		if r.rule.To.TLS.Originate {
			s.scheme, s.ports = authz.SchemeHTTP, append([]uint16{authz.SchemeHTTP.DefaultPort()}, s.ports...)
			out = append(out, s)
		}
	}
	if !l.c.observing() {
		return out
	}
	ports := []uint16{l.c.fresh.port, authz.SchemeHTTP.DefaultPort(), authz.SchemeHTTPS.DefaultPort()}
	for _, r := range l.rules() {
		ports = append(ports, r.ports()...)
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	for _, scheme := range []authz.Scheme{authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP} {
		out = append(out, shape{scheme, ports, l.methods(), l.upgrades(), l.paths([]pattern{anyPath()}), l.contents(nil)})
	}
	return out
}

// paths returns the generic instances of the patterns, and of their intersections with
// every pattern of the old policy at the host.
func (l *local) paths(patterns []pattern) []string {
	depth, slash := l.depth(), l.encodedSlash()
	var out []string
	for _, p := range patterns {
		out = append(out, p.instances(l.c.fresh.segment, depth, slash)...)
		for _, r := range l.before {
			for _, q := range r.paths {
				if both, ok := p.meet(q); ok {
					out = append(out, both.instances(l.c.fresh.segment, depth, slash)...)
				}
			}
		}
	}
	return compact(out)
}

// requests yields the shape's requests of a plugin to a host. It calls tooLong for each that
// is longer than a request can be: a shorter one of its class may exist.
func (s shape) requests(plugin authz.Principal, host string, tooLong func()) iter.Seq[authz.Request] {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	actions, paths := s.actions(tooLong), s.paths
	if !s.scheme.HTTP() {
		actions, paths = []authz.Action{{}}, []string{""}
	}
	return func(yield func(authz.Request) bool) {
		for _, port := range s.ports {
			for _, path := range paths {
				to, err := authz.NewDestination(s.scheme, hostPort(host, port), path)
				if err != nil {
					tooLong()
					continue
				}
				for _, action := range actions {
					for _, content := range s.contents {
						if !yield(authz.Request{Principal: plugin, Action: action, Destination: to, Facts: content}) {
							return
						}
					}
				}
			}
		}
	}
}

// actions returns the methods with each of the upgrades.
func (s shape) actions(tooLong func()) (out []authz.Action) {
	for _, method := range s.methods {
		for _, upgrade := range s.upgrades {
			action, err := authz.NewAction(method, upgrade)
			if err != nil {
				tooLong()
				continue
			}
			out = append(out, action)
		}
	}
	return out
}
