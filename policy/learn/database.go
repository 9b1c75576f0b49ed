package learn

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
	"github.com/chaperone-proxy/chaperone/policy"
)

// databaseKey is what the statements of one rule have in common.
type databaseKey struct {
	scheme    authz.Scheme
	host      string
	port      uint16
	databases string // separated by NUL
	// verbs are those of the statement, or its commands, separated by NUL: a rule grants each
	// of its verbs on each of its tables, so that statements with other verbs are in another.
	verbs string
}

// statements are those of one key.
type statements struct {
	count       uint64
	peak        peak
	credentials []string
	tables      map[string]uint64
	functions   map[string]uint64
	keys        nameSet
	channels    nameSet
	opaque      map[string]uint64 // statements whose effect their text does not show, by kind
}

// nameSet holds keys or channels.
type nameSet struct {
	words     map[string]uint64
	templates map[string]*template // by the part before the id
	all       uint64               // times that every name was asked for, as by SCAN
}

// template is a prefix behind which ids stand.
type template struct {
	star
	count uint64
	exact map[string]uint64 // names while they are few
}

// addStatement takes a statement, or a connection, to a database.
func (l *Learner) addStatement(a Access) {
	to, facts := a.Request.Destination, policy.ParseFacts(a.Request.Facts)
	passing := sql.PassingVerbs()
	if to.Scheme() == authz.SchemeRedis {
		passing = resp.Always()
	}
	key := databaseKey{scheme: to.Scheme(), host: to.Host(), port: to.Port()}
	var databases, verbs []string
	for _, f := range facts {
		switch {
		case f.Kind == authz.FactForbidden:
			l.left.Ungrantable++
			return
		case policy.IsDatabase(f):
			databases = append(databases, f.Name)
		case (f.Kind == authz.FactVerb || f.Kind == authz.FactCommand) && !slices.Contains(passing, f.Name):
			verbs = append(verbs, f.Name)
		}
	}
	l.calendar.add(a.Time)
	l.peak.add(a.Time)
	key.databases, key.verbs = strings.Join(databases, "\x00"), strings.Join(verbs, "\x00")
	s := l.statements[key]
	if s == nil {
		if len(l.statements) >= l.most || len(databases) == 0 {
			l.left.Bounded++
			return
		}
		s = &statements{tables: map[string]uint64{}, functions: map[string]uint64{}, opaque: map[string]uint64{}}
		key.host, key.databases, key.verbs = strings.Clone(key.host), strings.Clone(key.databases), strings.Clone(key.verbs)
		l.statements[key] = s
	}
	if kept := s.add(facts, &l.budget); !kept {
		l.left.Bounded++
		return
	}
	s.count++
	s.peak.add(a.Time)
	if a.Credential != "" && !slices.Contains(s.credentials, a.Credential) {
		s.credentials = append(s.credentials, strings.Clone(a.Credential))
	}
}

// add takes the facts of a statement. It reports false beyond the bounds.
func (s *statements) add(facts []authz.Fact, b *budget) (kept bool) {
	kept = true
	for _, f := range facts {
		switch f.Kind {
		case authz.FactTable:
			kept = note(s.tables, f.Name, b) && kept
		case authz.FactFunction:
			kept = note(s.functions, f.Name, b) && kept
		case authz.FactKey:
			kept = s.keys.add(f.Name, b) && kept
		case authz.FactChannel:
			kept = s.channels.add(f.Name, b) && kept
		case authz.FactOpaque:
			kept = note(s.opaque, f.Name, b) && kept
		default:
		}
	}
	return kept
}

// note counts a name. It reports false for a new one beyond the bounds.
func note(counts map[string]uint64, name string, b *budget) bool {
	if _, known := counts[name]; !known {
		if len(counts) >= maxValues || b.left <= 0 {
			return false
		}
		b.left--
		name = strings.Clone(name)
	}
	counts[name]++
	return true
}

// add counts the name of a key or a channel.
func (n *nameSet) add(name string, b *budget) bool {
	if n.words == nil {
		n.words, n.templates = map[string]uint64{}, map[string]*template{}
	}
	prefix, id, class := cutID(name)
	switch {
	case name == "*":
		n.all++
		return true
	case class == word:
		return note(n.words, name, b)
	}
	t := n.templates[prefix]
	if t == nil {
		if len(n.templates) >= maxValues || b.left <= 0 {
			return false
		}
		b.left--
		t = &template{exact: map[string]uint64{}}
		n.templates[strings.Clone(prefix)] = t
	}
	t.count++
	if !slices.Contains(t.classes, class) {
		t.classes = append(t.classes, class)
	}
	if len(t.samples) < maxSamples && !slices.Contains(t.samples, id) {
		t.samples = append(t.samples, strings.Clone(id))
	}
	if len(t.exact) < maxSamples {
		t.exact[strings.Clone(name)]++
	}
	return true
}

// cutID cuts a name before its first piece that is an id. The first piece never is one.
func cutID(name string) (prefix, id string, class idClass) {
	rest, at := name, 0
	for first := true; rest != ""; first = false {
		piece, more := audit.CutName(rest)
		if class := classify(piece); !first && class != word {
			return name[:at], piece, class
		}
		at += len(piece)
		if more != "" {
			more = more[1:]
			at++
		}
		rest = more
	}
	return name, "", word
}

// granted returns the names to grant, with how often each was used, the evidence for those
// that end in *, and prefixes for which only observation speaks.
func (n *nameSet) granted() (counts map[string]uint64, stars map[string]star, suggested []suggestion) {
	counts, stars = maps.Clone(n.words), map[string]star{}
	if counts == nil {
		counts = map[string]uint64{}
	}
	for prefix, t := range n.templates {
		if sure := len(t.samples) > 1 || slices.ContainsFunc(t.classes, idClass.unmistakable); sure {
			counts[prefix+"*"], stars[prefix+"*"] = t.count, t.star
			continue
		}
		maps.Copy(counts, t.exact)
		suggested = append(suggested, suggestion{text: prefix + "*", ids: true, samples: t.samples})
	}
	byPrefix := map[string][]string{}
	for name := range n.words {
		if at := strings.LastIndexAny(name, ":/."); at >= 0 && !strings.HasSuffix(name, "*") {
			byPrefix[name[:at+1]] = append(byPrefix[name[:at+1]], name[at+1:])
		}
	}
	for prefix, words := range byPrefix {
		if len(words) >= manyValues {
			slices.Sort(words)
			suggested = append(suggested, suggestion{text: prefix + "*", values: len(words), samples: words[:maxSamples]})
		}
	}
	if n.all > 0 {
		suggested = append(suggested, suggestion{text: "*", values: int(n.all), depths: 0})
	}
	sortlarge.By(suggested, func(a, b *suggestion) int { return cmp.Compare(a.text, b.text) })
	for name := range counts { // a shorter prefix grants them too
		for other := range stars {
			if prefix := strings.TrimSuffix(other, "*"); other != name && strings.HasPrefix(name, prefix) {
				delete(counts, name)
			}
		}
	}
	return counts, stars, suggested
}

// databaseRules returns the rules for the statements.
func (l *Learner) databaseRules() []Rule {
	merged := map[string]*Rule{}
	var order []string
	keys := slices.SortedFunc(maps.Keys(l.statements), func(a, b databaseKey) int {
		return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port), cmp.Compare(a.databases, b.databases), cmp.Compare(a.verbs, b.verbs))
	})
	for _, key := range keys {
		r := databaseRule(key, l.statements[key])
		if len(verbsOf(&r)) == 0 && slices.ContainsFunc(keys, func(k databaseKey) bool {
			return k.verbs != "" && k.host == key.host && k.port == key.port && k.databases == key.databases
		}) {
			continue // every rule of the database grants it
		}
		same := r.key("", "") + r.To.Hosts[0]
		if known := merged[same]; known != nil { // the same names: each statement by itself is granted as before
			known.addVerbs(&r)
			continue
		}
		merged[same] = &r
		order = append(order, same)
	}
	out := make([]Rule, 0, len(order))
	for _, same := range order {
		r := merged[same]
		if r.To.Scheme == authz.SchemePostgres && len(r.Statements.Verbs) == 0 {
			r.Statements.Verbs = []string{"select"} // a rule has a verb; without tables this one reads nothing
		}
		if r.To.Scheme == authz.SchemeRedis && len(r.Commands) == 0 {
			r.Commands = []string{"ping"}
		}
		r.Matcher = configs.Matcher(&r.Rule)
		out = append(out, *r)
	}
	return out
}

func verbsOf(r *Rule) []string {
	if r.Statements != nil {
		return r.Statements.Verbs
	}
	return r.Commands
}

// addVerbs adds the verbs, and the evidence, of a rule with the same names.
func (r *Rule) addVerbs(other *Rule) {
	if r.Statements != nil {
		r.Statements.Verbs = compact(append(r.Statements.Verbs, other.Statements.Verbs...))
	}
	r.Commands = compact(append(r.Commands, other.Commands...))
	r.Count, r.Peak = r.Count+other.Count, max(r.Peak, other.Peak)
	r.patterns = append(r.patterns, other.patterns...)
	for _, name := range other.Credentials {
		if !slices.Contains(r.Credentials, name) {
			r.Credentials = append(r.Credentials, name)
		}
	}
}

func compact(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}

// databaseRule returns the rule for the statements of one key, without its matcher.
func databaseRule(key databaseKey, s *statements) Rule {
	r := Rule{Count: s.count, Peak: s.peak.most, Credentials: s.credentials, opaque: slices.Sorted(maps.Keys(s.opaque)), patterns: []pattern{{count: s.count}}}
	r.Reason = authz.ReasonTodo
	r.To = authz.To{Scheme: key.scheme, Hosts: []string{key.host}}
	if key.port != key.scheme.DefaultPort() {
		r.To.Ports = []uint16{key.port}
	}
	for d := range strings.SplitSeq(key.databases, "\x00") {
		r.Databases = append(r.Databases, authz.DatabaseName(d))
	}
	var verbs []string
	if key.verbs != "" {
		verbs = strings.Split(key.verbs, "\x00")
	}
	if key.scheme == authz.SchemePostgres {
		r.Statements = &authz.Statements{Verbs: verbs, Tables: slices.Sorted(maps.Keys(s.tables)), Functions: slices.Sorted(maps.Keys(s.functions))}
		return r
	}
	r.Commands = verbs
	r.evidence = map[string][]suggestion{}
	r.stars = map[string]star{}
	for field, n := range map[string]*nameSet{"keys": &s.keys, "channels": &s.channels} {
		counts, stars, suggested := n.granted()
		policy.SetPart(&r.Rule, field, slices.Sorted(maps.Keys(counts)))
		maps.Copy(r.stars, stars)
		r.evidence[field] = suggested
	}
	return r
}
