package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
	"unique"
)

// Protocol is the protocol of a request's content, as in postgres or mcp.
type Protocol string

// The protocols whose content is read.
const (
	ProtocolPostgres Protocol = "postgres"
	ProtocolRedis    Protocol = "redis"
)

// FactKind is the kind of a fact, as in verb, table or tool.
type FactKind string

// The kinds of facts of databases.
const (
	// FactDatabase is the database of the session. It is the only fact of a connection.
	FactDatabase FactKind = "database"
	// FactForbidden is what no rule grants, because it would undo what the decision rests on:
	// another role, other session settings, replication, programs and files of the server.
	FactForbidden FactKind = "forbidden"
	// FactOpaque is a statement whose effect its text does not show, as of DO, CALL or EVAL.
	FactOpaque FactKind = "opaque"

	// Kinds of SQL.

	FactVerb     FactKind = "verb"     // as in select or copy-out
	FactTable    FactKind = "table"    // SCHEMA.NAME, or catalog
	FactFunction FactKind = "function" // SCHEMA.NAME, or safe
	FactSetting  FactKind = "setting"  // a parameter that a statement sets

	// Kinds of Redis.

	FactCommand FactKind = "command" // with its subcommand, in lower case, as in config get
	FactKey     FactKind = "key"
	FactChannel FactKind = "channel"
)

// Fact is one thing that a request does: a verb that it has, a table that it touches,
// a tool that it calls.
type Fact struct {
	Kind FactKind
	Name string
}

// String returns KIND:NAME. A kind has no colon, so that the form is unambiguous.
func (f Fact) String() string { return string(f.Kind) + ":" + f.Name }

// ParseFact reads KIND:NAME.
func ParseFact(s string) (Fact, error) {
	kind, name, ok := strings.Cut(s, ":")
	f := Fact{FactKind(kind), name}
	if !ok {
		return Fact{}, fmt.Errorf("fact %q has no kind; write KIND:NAME", clip(s))
	}
	return f, f.check()
}

const (
	// MaxFacts is how many facts a request has at most. The content of a request with
	// more is unreadable.
	MaxFacts = 64
	// MaxFactName is how long the name of a fact is at most, in bytes. Names of
	// PostgreSQL have 63 for each of schema and table.
	MaxFactName = 256
	// factEnd separates the facts of a set.
	factEnd = "\x00"
)

func (f Fact) check() error {
	switch {
	case !isWord(string(f.Kind)):
		return fmt.Errorf("fact %q: kind %q is not a word of lower-case letters", clip(f.String()), clip(string(f.Kind)))
	case f.Name == "", len(f.Name) > MaxFactName:
		return fmt.Errorf("fact %q: its name has %d bytes; 1 to %d are allowed", clip(f.String()), len(f.Name), MaxFactName)
	case !utf8.ValidString(f.Name), strings.Contains(f.Name, factEnd):
		return fmt.Errorf("fact %q: its name is not text", clip(f.String()))
	}
	return nil
}

// isWord reports whether s is made of lower-case letters, with dashes and dots between them.
func isWord(s string) bool {
	for i, c := range []byte(s) {
		inner := i > 0 && i < len(s)-1 && (c == '-' || c == '.')
		if !inner && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}

// Facts are what the content of a request does, as a reader of its protocol found it: at
// least one fact, in a set. They are comparable. The zero Facts are those of a request
// whose content was not read; a rule with a [Matcher] never grants it.
type Facts struct {
	set unique.Handle[string] // the protocol, and then each fact in order, separated by factEnd
}

// NewFacts returns the set of facts. Its error states why the content must be taken as
// unreadable.
func NewFacts(protocol Protocol, facts ...Fact) (Facts, error) {
	if !isWord(string(protocol)) {
		return Facts{}, fmt.Errorf("facts: protocol %q is not a word of lower-case letters", clip(string(protocol)))
	}
	if len(facts) == 0 {
		return Facts{}, errors.New("facts: none; every readable request has a fact")
	}
	texts := make([]string, len(facts))
	for i, f := range facts {
		if err := f.check(); err != nil {
			return Facts{}, err
		}
		texts[i] = f.String()
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	if len(texts) > MaxFacts {
		return Facts{}, fmt.Errorf("facts: %d facts; at most %d are allowed", len(texts), MaxFacts)
	}
	return Facts{unique.Make(string(protocol) + factEnd + strings.Join(texts, factEnd))}, nil
}

// IsZero reports whether the content was not read.
func (f Facts) IsZero() bool { return f == Facts{} }

// split returns the protocol and the facts; both are empty for the zero Facts.
func (f Facts) split() (protocol, facts string) {
	if f.IsZero() {
		return "", ""
	}
	protocol, facts, _ = strings.Cut(f.set.Value(), factEnd)
	return protocol, facts
}

// Protocol returns the protocol, "" for the zero Facts.
func (f Facts) Protocol() Protocol {
	protocol, _ := f.split()
	return Protocol(protocol)
}

// All returns the facts in their order, each in the form of [Fact.String]; nil for the
// zero Facts.
func (f Facts) All() []string {
	if f.IsZero() {
		return nil
	}
	_, facts := f.split()
	return strings.Split(facts, factEnd)
}

// database is how facts hold the start of a database's fact.
const databaseFact = factEnd + string(FactDatabase) + ":"

// hasDatabase reports whether the facts name a database.
func (f Facts) hasDatabase() bool {
	return !f.IsZero() && strings.Contains(f.set.Value(), databaseFact)
}

// connects reports whether the facts are those of a connection: one database and no more.
func (f Facts) connects() bool {
	if f.IsZero() {
		return false
	}
	set := f.set.Value()
	first := strings.Index(set, factEnd)
	return strings.HasPrefix(set[first:], databaseFact) && strings.LastIndex(set, factEnd) == first
}

// Matcher is a condition of a rule on the content of requests: it grants a request of its
// protocol if it grants every fact of it. A rule without one grants whatever the content is.
type Matcher struct {
	Protocol Protocol
	// Facts are granted. A name that ends in * is a prefix, and * alone is every name of its
	// kind. A kind that is not there grants no name.
	Facts []Fact
	// Writes is that statements which it grants may change data. A session in which no rule's
	// does is read-only.
	Writes bool
}

// matcher is a compiled Matcher.
type matcher struct {
	protocol string
	database bool                // of a database: facts that name no database are never granted
	exact    map[string]struct{} // by Fact.String
	prefixes []string            // of Fact.String
	patterns []string            // the same with their *
}

// compile reports what is wrong with the matcher.
func (m *Matcher) compile() (*matcher, error) {
	if !isWord(string(m.Protocol)) {
		return nil, fmt.Errorf("protocol %q is not a word of lower-case letters", clip(string(m.Protocol)))
	}
	out := &matcher{protocol: string(m.Protocol), database: Scheme(m.Protocol).Database(), exact: map[string]struct{}{}}
	for _, f := range m.Facts {
		if err := f.check(); err != nil {
			return nil, err
		}
		if f.Kind == FactForbidden {
			return nil, fmt.Errorf("fact %q: no rule can grant what is forbidden", clip(f.String()))
		}
		if prefix, ok := strings.CutSuffix(f.String(), "*"); ok {
			out.prefixes, out.patterns = append(out.prefixes, prefix), append(out.patterns, f.String())
		} else {
			out.exact[f.String()] = struct{}{}
		}
	}
	return out, nil
}

// matches reports whether the rule may grant the content. If the door cannot read it, it
// may, and the condition of the rule then denies the request at that door.
func (m *matcher) matches(req *Request) bool {
	if m == nil || req.Unenforceable&ConditionContent != 0 {
		return true
	}
	protocol, facts := req.Facts.split()
	if protocol != m.protocol || m.database && !req.Facts.hasDatabase() {
		return false
	}
	for more := true; more; {
		var fact string
		if fact, facts, more = strings.Cut(facts, factEnd); !m.grants(fact) {
			return false
		}
	}
	return true
}

func (m *matcher) grants(fact string) bool {
	if _, ok := m.exact[fact]; ok {
		return true
	}
	return slices.ContainsFunc(m.prefixes, func(prefix string) bool { return strings.HasPrefix(fact, prefix) })
}

// observes reports whether a statement may be allowed that is only observed: within a
// session whose database the rule grants, if it does nothing that would undo what further
// decisions of the session rest on. A connection needs a credential, and is never only observed.
func (m *matcher) observes(f Facts) bool {
	protocol, facts := f.split()
	if protocol != m.protocol || !f.hasDatabase() || f.connects() {
		return false
	}
	for fact := range strings.SplitSeq(facts, factEnd) {
		kind, _, _ := strings.Cut(fact, ":")
		switch FactKind(kind) {
		case FactDatabase, FactSetting, FactForbidden:
			if !m.grants(fact) {
				return false
			}
		default:
		}
	}
	return true
}

// missing returns the facts of the request that the matcher does not grant, all of them
// if the protocol is another.
func (m *matcher) missing(req *Request) []Fact {
	if m.matches(req) {
		return nil
	}
	var out []Fact
	for _, text := range req.Facts.All() {
		if string(req.Facts.Protocol()) != m.protocol || !m.grants(text) {
			kind, name, _ := strings.Cut(text, ":")
			out = append(out, Fact{FactKind(kind), name})
		}
	}
	return out
}

// patterns returns, for each fact of a key or a channel, the longest pattern of the rule that
// grants it, "" for other facts; nil without a key or a channel.
func (r *rule) patterns(facts []string) (out []string) {
	if r == nil || r.matcher == nil || r.matcher.protocol != string(ProtocolRedis) {
		return nil
	}
	for i, fact := range facts {
		if kind, _, _ := strings.Cut(fact, ":"); kind != string(FactKey) && kind != string(FactChannel) {
			continue
		}
		if out == nil {
			out = make([]string, len(facts))
		}
		out[i] = r.matcher.pattern(fact)
	}
	return out
}

// pattern returns the longest pattern that grants a fact, "" without one.
func (m *matcher) pattern(fact string) string {
	if _, ok := m.exact[fact]; ok {
		return fact
	}
	longest := ""
	for i, prefix := range m.prefixes {
		if strings.HasPrefix(fact, prefix) && len(prefix) >= len(longest) {
			longest = m.patterns[i]
		}
	}
	return longest
}
