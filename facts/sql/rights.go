package sql

import (
	"slices"
	"strings"
)

// Rights are what the statements that create a role give to it, as far as their text
// shows. They are read for people, to compare a role with the rules that use it; no access
// is decided by them.
type Rights struct {
	// Tables are the rights on tables, each once.
	Tables []TableRight
	// Powers are rights that no rule is compared with, for a reader to judge, as in
	// "SUPERUSER" and "member of admin".
	Powers []string
	// Unread counts the statements whose rights are not read, as of ALTER DEFAULT PRIVILEGES,
	// and those of a text that could not be read.
	Unread int
}

// TableRight is a right on a table.
type TableRight struct {
	// Privilege is select, insert, update, delete, truncate, references, trigger or maintain.
	Privilege string
	// Table is SCHEMA.NAME, SCHEMA.* for all tables of a schema, or * for all.
	Table string
}

// tablePrivileges are what ALL is, on a table.
func tablePrivileges() []string {
	return []string{"select", "insert", "update", "delete", "truncate", "references", "trigger", "maintain"}
}

// RightsOf reads statements that create a role, each a text of one or more.
func RightsOf(texts ...string) Rights {
	var out Rights
	for _, text := range texts {
		tokens, reason := lex(text, nil)
		if reason == "" {
			reason = matchBrackets(tokens)
		}
		if reason != "" {
			out.Unread++
			continue
		}
		r := reader{text: text, tokens: tokens}
		for from := 0; from < len(tokens); {
			end := r.statementEnd(from)
			if end > from {
				p := rightsReader{reader: &r, at: from, end: end, out: &out}
				p.statement()
			}
			from = end + 1
		}
	}
	return out
}

// rightsReader reads one statement, word by word.
type rightsReader struct {
	reader  *reader
	at, end int
	out     *Rights
}

// word returns the next word in lower case, "" if the next token is quoted or something else.
func (p *rightsReader) word() string {
	if p.at >= p.end {
		return ""
	}
	t := p.reader.tokens[p.at]
	if t.kind != tokenWord || t.flags&flagQuoted != 0 {
		return ""
	}
	return strings.ToLower(p.reader.text[t.start:t.end])
}

// take moves past words that come next, and reports whether they did.
func (p *rightsReader) take(words ...string) bool {
	at := p.at
	for _, w := range words {
		if p.word() != w {
			p.at = at
			return false
		}
		p.at++
	}
	return true
}

func (p *rightsReader) punct(c byte) bool {
	if p.at >= p.end {
		return false
	}
	if t := p.reader.tokens[p.at]; t.kind != tokenPunct || t.char != c {
		return false
	}
	p.at++
	return true
}

// name reads a dotted name; "" if it is absent.
func (p *rightsReader) name() string {
	if p.at >= p.end || p.reader.tokens[p.at].kind != tokenWord {
		return ""
	}
	p.reader.end = p.end
	names := []string{p.reader.name(p.at)}
	for p.at++; p.at+1 < p.end && p.reader.is(p.at, '.') && p.reader.tokens[p.at+1].kind == tokenWord; p.at += 2 {
		names = append(names, p.reader.name(p.at+1))
	}
	return strings.Join(names, ".")
}

// names reads names that commas separate, without a list in brackets behind each.
func (p *rightsReader) names() (all []string) {
	for {
		name := p.name()
		if name == "" {
			return nil
		}
		all = append(all, name)
		p.skipBrackets()
		if !p.punct(',') {
			return all
		}
	}
}

// skipBrackets moves past columns or arguments, if there are any.
func (p *rightsReader) skipBrackets() {
	if p.at < p.end && p.reader.is(p.at, '(') {
		p.at = int(p.reader.tokens[p.at].match) + 1
	}
}

func (p *rightsReader) statement() {
	ok := false
	switch {
	case p.take("grant"):
		ok = p.grant()
	case p.take("create", "role"), p.take("create", "user"), p.take("alter", "role"), p.take("alter", "user"):
		p.name()
		p.roleOptions()
		ok = true
	case p.take("revoke"), p.take("set"), p.take("select"), p.take("begin"), p.take("commit"), p.take("reset"):
		ok = true // they give no right
	}
	if !ok {
		p.out.Unread++
	}
}

// roleOptions reads the options of CREATE ROLE and ALTER ROLE.
func (p *rightsReader) roleOptions() {
	for p.at < p.end {
		switch w := p.word(); w {
		case "superuser", "createrole", "createdb", "replication", "bypassrls":
			p.power(strings.ToUpper(w))
		case "in":
			p.at += 2 // ROLE or GROUP
			for _, role := range p.names() {
				p.member(role)
			}
			continue
		case "set", "reset", "role", "admin", "user":
			return // settings of the role's sessions, and members of it
		}
		p.at++
	}
}

// grant reads a GRANT behind its first word.
func (p *rightsReader) grant() bool {
	privileges := p.privileges()
	if privileges == nil {
		return false
	}
	if p.take("on") {
		return p.on(privileges)
	}
	for _, role := range privileges { // GRANT ROLE TO ROLE
		p.member(role)
	}
	return p.word() == "to"
}

// privileges reads what is granted: privileges, or roles.
func (p *rightsReader) privileges() (all []string) {
	if p.take("all") {
		p.take("privileges")
		p.skipBrackets()
		return []string{"all"}
	}
	return p.names()
}

// on reads the objects of a GRANT.
func (p *rightsReader) on(privileges []string) bool {
	switch {
	case p.take("all", "tables", "in", "schema"):
		for _, schema := range p.names() {
			p.table(privileges, schema+".*")
		}
		return p.word() == "to"
	case p.take("schema"):
		return p.create(privileges, "schema")
	case p.take("database"):
		return p.create(privileges, "database")
	}
	for _, kind := range []string{"sequence", "function", "procedure", "routine", "language", "type", "domain", "tablespace", "large", "parameter", "foreign", "all"} {
		if p.word() == kind {
			return kind != "parameter" && kind != "foreign" && kind != "large" && kind != "tablespace"
		}
	}
	p.take("table")
	tables := p.names()
	for _, table := range tables {
		if !strings.Contains(table, ".") {
			table = "public." + table // the search path of Vault's connection
		}
		p.table(privileges, table)
	}
	return len(tables) > 0 && p.word() == "to"
}

// create reads rights on schemas or databases: CREATE is one to write.
func (p *rightsReader) create(privileges []string, kind string) bool {
	names := p.names()
	if slices.Contains(privileges, "create") || slices.Contains(privileges, "all") {
		for _, name := range names {
			p.power("CREATE on " + kind + " " + name)
		}
	}
	return len(names) > 0 && p.word() == "to"
}

// member adds the rights of a role that the created one is a member of.
func (p *rightsReader) member(role string) {
	switch role {
	case "pg_read_all_data":
		p.table([]string{"select"}, "*")
	case "pg_write_all_data":
		p.table([]string{"insert", "update", "delete"}, "*")
	default:
		p.power("member of " + role)
	}
}

func (p *rightsReader) power(power string) {
	if !slices.Contains(p.out.Powers, power) {
		p.out.Powers = append(p.out.Powers, power)
	}
}

func (p *rightsReader) table(privileges []string, table string) {
	if slices.Contains(privileges, "all") {
		privileges = tablePrivileges()
	}
	for _, privilege := range privileges {
		right := TableRight{privilege, table}
		if !slices.Contains(tablePrivileges(), privilege) {
			p.out.Unread++
		} else if !slices.Contains(p.out.Tables, right) {
			p.out.Tables = append(p.out.Tables, right)
		}
	}
}
