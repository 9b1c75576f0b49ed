package configs

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

// Names that stand for generated lists of PostgreSQL's own relations and functions.
const (
	catalogTables = "catalog"
	safeFunctions = "safe"
)

// postgresMatcher returns the condition of a rule on statements of SQL: the names that it
// states, and what every session may do.
func postgresMatcher(c authz.Content) *authz.Matcher {
	m := matcherOf(authz.ProtocolPostgres, c)
	m.Facts = append(m.Facts, factsOf(authz.FactVerb, sql.PassingVerbs())...)
	m.Facts = append(m.Facts, factsOf(authz.FactSetting, sql.PassingSettings())...)
	if s := c.Statements; s != nil {
		m.Facts = append(m.Facts, factsOf(authz.FactVerb, s.Verbs)...)
		m.Facts = append(m.Facts, factsOf(authz.FactTable, s.Tables)...)
		m.Facts = append(m.Facts, factsOf(authz.FactFunction, s.Functions)...)
	}
	if m.Writes = c.Opaque == authz.OpaqueAllow || len(writingVerbs(c.Statements)) > 0; m.Writes {
		m.Facts = append(m.Facts, factsOf(authz.FactSetting, sql.WritingSettings())...)
	}
	return m
}

// writingVerbs returns the verbs of statements that may change data.
func writingVerbs(s *authz.Statements) (out []string) {
	if s == nil {
		return nil
	}
	for _, verb := range s.Verbs {
		if verb == everyName || slices.ContainsFunc(matching(verb, sql.Verbs()), isWriting) {
			out = append(out, verb)
		}
	}
	return out
}

// postgres checks a rule of scheme postgres.
func (c contentCheck) postgres() {
	content := c.rule.Content
	if len(content.Databases) == 0 {
		c.report(c.path+".databases", "is missing; name the databases, as in [shop]")
	}
	const longest = 63 // bytes of an identifier; the server cuts longer ones
	c.names("databases", databaseNames(content), func(name string, _ bool) string {
		if len(name) > longest || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return strconv.Quote(clip(name)) + " is not the name of a database; write at most 63 bytes of text"
		}
		return ""
	})
	c.opaque("statements as DO, CALL and CREATE FUNCTION")
	s := content.Statements
	if s == nil || len(s.Verbs) == 0 {
		if content.Opaque != authz.OpaqueAllow {
			c.report(c.path+".statements.verbs", "is missing; name the verbs, as in [select]")
		}
		if s == nil {
			return
		}
	}
	c.names("statements.verbs", s.Verbs, c.verb)
	c.names("statements.tables", s.Tables, c.table)
	c.names("statements.functions", s.Functions, c.function)
	c.doubts(s)
}

func databaseNames(c authz.Content) []string {
	names := make([]string, len(c.Databases))
	for i, name := range c.Databases {
		names[i] = string(name)
	}
	return names
}

// verb returns what is wrong with the name of a verb.
func (c contentCheck) verb(name string, pattern bool) string {
	word := name
	if pattern {
		word += everyName
	}
	known := append(sql.Verbs(), sql.PassingVerbs()...)
	if len(matching(word, known)) > 0 {
		return ""
	}
	return unknownWord(word, "verb", known)
}

// table returns what is wrong with the name of a table.
func (c contentCheck) table(name string, pattern bool) string {
	if name == catalogTables && !pattern {
		return ""
	}
	return qualified(name, pattern, "public.orders", catalogTables+" stands for the relations that describe types and structure")
}

// function returns what is wrong with the name of a function.
func (c contentCheck) function(name string, pattern bool) string {
	if name == safeFunctions && !pattern {
		return ""
	}
	return qualified(name, pattern, "public.price_of", safeFunctions+" stands for the built-in functions that read no data by themselves")
}

// qualified returns what is wrong with SCHEMA.NAME as a server folds it.
func qualified(name string, pattern bool, example, word string) string {
	schema, rest, found := strings.Cut(name, ".")
	quoted := strconv.Quote(clip(name))
	switch {
	case !found:
		return quoted + " has no schema; write SCHEMA.NAME, as in " + example + " (" + word + ")"
	case strings.ContainsAny(name, "\"'`"):
		return quoted + " has quotes; write the name as the server keeps it, as in public.Orders for public.\"Orders\""
	case strings.Contains(rest, "."):
		return quoted + " has more than one dot; write SCHEMA.NAME, as in " + example
	case schema == "", rest == "" && !pattern, strings.TrimSpace(name) != name, strings.ContainsFunc(name, isControl):
		return quoted + " is not SCHEMA.NAME; write one as in " + example
	}
	return ""
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }

// doubts warns of statements that are hardly meant.
func (c contentCheck) doubts(s *authz.Statements) {
	at := c.path + ".statements"
	if writing := writingVerbs(s); len(writing) > 0 && namedReader(c.rule.ID) {
		c.warn(at+".verbs", "grants %s, and the rule is called %s; without verbs that write its sessions are read-only", strings.Join(writing, ", "), c.rule.ID)
	}
	for field, names := range map[string][]string{"tables": s.Tables, "functions": s.Functions} {
		for i, name := range names {
			path := at + "." + field + "[" + strconv.Itoa(i) + "]"
			switch {
			case name == everyName, strings.HasPrefix(name, "pg_catalog.") && strings.HasSuffix(name, everyName):
				c.warn(path, "%q grants %s; name those that the plugin needs", name, everythingOf(field))
			case name != asFolded(name):
				c.warn(path, "%q is only a name that was created in quotes; the server folds others to %s", name, asFolded(name))
			}
		}
	}
}

// everythingOf describes what the built-in names of a list hold.
func everythingOf(field string) string {
	if field == "tables" {
		return "every relation, also those of pg_catalog that hold statistics of data and sessions of others"
	}
	return "every function, also those that run SQL from text and read the server's files, as far as the role may"
}

// asFolded returns a name as the server folds one without quotes: only ASCII letters
// change in a database of UTF-8.
func asFolded(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, name)
}

// namedReader reports whether the id of a rule is that of a rule that reads.
func namedReader(id string) bool {
	words := strings.FieldsFunc(id, func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	return slices.ContainsFunc(words, func(w string) bool { return w == "read" || w == "reader" || w == "readonly" || w == "ro" }) &&
		!slices.Contains(words, "write")
}
