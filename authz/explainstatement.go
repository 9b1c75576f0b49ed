package authz

import (
	"fmt"
	"slices"
	"strings"
)

// maxNamed bounds the names of one kind in a text. A statement has up to [MaxFacts].
const maxNamed = 6

// names returns the names of the facts of a kind, in order.
func (f Facts) names(kind FactKind) (out []string) {
	for _, text := range f.All() {
		if k, name, _ := strings.Cut(text, ":"); k == string(kind) {
			out = append(out, name)
		}
	}
	return out
}

// grantedKinds returns the kinds of facts of databases that rules can grant, in the order
// of the fields of a rule.
func grantedKinds() []FactKind {
	return []FactKind{FactDatabase, FactVerb, FactTable, FactFunction, FactOpaque, FactCommand, FactKey, FactChannel}
}

// field returns the field of a rule that grants facts of the kind.
func (k FactKind) field() string {
	switch k {
	case FactOpaque:
		return "opaque"
	case FactDatabase, FactVerb, FactTable, FactFunction, FactCommand, FactKey, FactChannel:
		return string(k) + "s"
	default: // of another protocol
		return string(k)
	}
}

// yaml returns the field that grants the names.
func (k FactKind) yaml(names []string) string {
	if k == FactOpaque {
		return "opaque: allow"
	}
	words := make([]string, len(names))
	for i, name := range names {
		words[i] = yamlString(name)
	}
	return k.field() + ": [" + strings.Join(words, ", ") + "]"
}

// listed returns names for a text.
func listed(names []string) string {
	more := ""
	if n := len(names) - maxNamed; n > 0 {
		names, more = names[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	return clip(strings.Join(names, ", ")) + more
}

// statement describes what a request to a database does, as in
// run select on public.orders in database shop at db.internal:5432.
func statement(req *Request) string {
	facts := req.Facts
	where := "database " + listed(facts.names(FactDatabase)) + " at " + req.Destination.HostPort()
	if facts.connects() {
		return "use " + where
	}
	var did, on []string
	for _, kind := range []FactKind{FactForbidden, FactOpaque, FactVerb, FactCommand} {
		did = append(did, facts.names(kind)...)
	}
	for _, kind := range []FactKind{FactTable, FactKey, FactChannel} {
		on = append(on, facts.names(kind)...)
	}
	text := "run " + listed(did)
	if len(on) > 0 {
		text += " on " + listed(on)
	}
	return text + " in " + where
}

// neverGranted returns what of a statement no rule can grant, for a text, and the remedy;
// "" without any. missing are the facts that the nearest rule does not grant.
func neverGranted(facts Facts, missing []Fact) (what, remedy string) {
	if names := facts.names(FactForbidden); len(names) > 0 {
		return listed(names) + ", which is never granted", "remove " + listed(names) + ": no rule can grant it"
	}
	var settings []string
	for _, f := range missing {
		if f.Kind == FactSetting {
			settings = append(settings, f.Name)
		}
	}
	if len(settings) == 0 {
		return "", ""
	}
	return "setting " + listed(settings) + ", on which the decision of later statements rests",
		"remove the change of " + listed(settings) + ": no rule can grant it for this session"
}

// missingOf returns the names of the missing facts of a kind.
func (n candidate) missingOf(kind FactKind) (out []string) {
	for _, f := range n.missing {
		if f.Kind == kind {
			out = append(out, f.Name)
		}
	}
	return out
}

// atDatabase reports whether the nearest rule is for the server of a request to a database.
func (n candidate) atDatabase() bool { return n.rule != nil && n.sameHost && n.scheme && n.port }

// statementDetail describes a denied request to a database, and the part of the nearest
// rule that differs.
func (n candidate) statementDetail(req *Request) string {
	denied := fmt.Sprintf("%s may not %s", req.Principal, statement(req))
	if what, _ := neverGranted(req.Facts, n.missing); what != "" {
		return fmt.Sprintf("%s may not use %s", req.Principal, what)
	}
	if !n.atDatabase() || len(n.missing) == 0 {
		return denied
	}
	var parts []string
	var kind FactKind
	for _, k := range grantedKinds() {
		if names := n.missingOf(k); len(names) > 0 {
			parts, kind = append(parts, string(k)+" "+listed(names)), k
		}
	}
	in := " in database " + listed(req.Facts.names(FactDatabase))
	if kind == FactDatabase {
		in = ""
	}
	text := fmt.Sprintf("%s may not use %s%s at %s", req.Principal, strings.Join(parts, " and "), in, req.Destination.HostPort())
	if len(parts) > 1 {
		return text
	}
	return text + "; " + n.rule.name() + " grants " + n.rule.granted(kind)
}

// granted returns what a rule grants of a kind, for a text.
func (r *rule) granted(kind FactKind) string {
	c := &r.spec.Content
	var names []string
	switch kind {
	case FactDatabase:
		for _, name := range c.Databases {
			names = append(names, string(name))
		}
	case FactVerb, FactTable, FactFunction:
		if c.Statements != nil {
			names = map[FactKind][]string{FactVerb: c.Statements.Verbs, FactTable: c.Statements.Tables, FactFunction: c.Statements.Functions}[kind]
		}
	case FactCommand:
		names = c.Commands
	case FactKey:
		names = c.Keys
	case FactChannel:
		names = c.Channels
	default: // opaque
		return "no statement whose text does not show its effect"
	}
	if len(names) == 0 {
		return "no " + kind.field()
	}
	return kind.field() + " " + listed(names)
}

// askStatement returns what to ask for of a request to a database: the missing names on the
// nearest rule, or a rule of its own where the names would combine to more than was asked.
func askStatement(req *Request, d Decision, n candidate) (text string, grantable bool) {
	if _, remedy := neverGranted(req.Facts, n.missing); remedy != "" {
		return remedy, false
	}
	connects := req.Facts.IsZero() || req.Facts.connects()
	if fields := n.missingFields(); n.atDatabase() && n.live && fields != "" {
		text = fmt.Sprintf("ask for %s on %s", fields, n.rule.name())
		if slices.Contains(n.missingOf(FactOpaque), "statement") { // its first word is not known
			text = "correct the first word of the statement; if it is right, " + text
		}
		return text, !connects
	}
	what := "rule"
	if d.Reason == NoGrant {
		what = "grant with a rule"
	}
	text = "ask for a " + what + " with " + shortYAML(*req, false)
	if connects {
		text += "; add what it may do there, which is not known yet"
	}
	return text, !connects
}

// missingFields returns the fields that grant the missing facts; "" without any, and if
// both an action and what it is done to are missing: the rule would then also grant the new
// action on what it has, and its own actions on what is new.
func (n candidate) missingFields() string {
	var fields []string
	acts, objects := false, false
	for _, kind := range grantedKinds() {
		names := n.missingOf(kind)
		if len(names) == 0 {
			continue
		}
		fields = append(fields, kind.yaml(names))
		switch kind {
		case FactVerb, FactCommand:
			acts = true
		case FactDatabase, FactTable, FactKey, FactChannel:
			objects = true
		default:
		}
	}
	if acts && objects {
		return ""
	}
	return strings.Join(fields, ", ")
}

// contentYAML returns the fields of a rule that grant the facts of a request to a database,
// separated by between.
func contentYAML(req *Request, between string) string {
	var fields, statements []string
	for _, kind := range grantedKinds() {
		names := req.Facts.names(kind)
		switch {
		case len(names) == 0:
		case kind == FactVerb, kind == FactTable, kind == FactFunction:
			statements = append(statements, kind.yaml(names))
		default:
			fields = append(fields, kind.yaml(names))
		}
	}
	if len(statements) > 0 {
		at := min(1, len(fields)) // behind the databases
		fields = slices.Insert(fields, at, "statements: {"+strings.Join(statements, ", ")+"}")
	}
	return strings.Join(fields, between)
}

// database returns the database that a request is for, "" if it is not known.
func (r *Request) database() string {
	if names := r.Facts.names(FactDatabase); len(names) > 0 {
		return names[0]
	}
	return ""
}

// displayURL returns the destination as a URL, with the database of a request to one.
func (r *Request) displayURL() string {
	url := r.Destination.URL()
	if r.Destination.scheme.Database() && !r.Facts.IsZero() {
		url += "/" + clip(r.database())
	}
	return url
}

// statementRemedy returns what to do about a statement that could not be read, or was too
// large, in the words of its protocol.
func statementRemedy(r Reason, scheme Scheme) string {
	switch {
	case r == StatementTooLarge && scheme == SchemeRedis:
		return "split the command into smaller ones"
	case r == StatementTooLarge:
		return "send a shorter statement: pass long values as parameters"
	case scheme == SchemeRedis:
		return "send a command of Redis 7 with the arguments that it has there"
	}
	return "send the statement in a form that can be read: in UTF-8, and with settings and prepared names that the session has seen"
}
