package policy

import (
	"iter"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

// readText returns the facts of a text in a database's language, in a session of a database.
func readText(protocol authz.Protocol, text string, database authz.Fact) ([]authz.Fact, error) {
	if protocol == authz.ProtocolRedis {
		return readCommand(text, database)
	}
	reading := sql.Read(text)
	if reading.Unreadable != "" {
		return nil, &UnreadableError{reading.Unreadable}
	}
	out := []authz.Fact{database}
	prepared := map[string][]authz.Fact{}
	for _, st := range reading.Statements {
		out = append(out, st.Facts...)
		if st.Prepares != "" {
			prepared[st.Prepares] = append(prepared[st.Prepares], st.Facts...)
		}
		if facts, ok := prepared[st.Executes]; ok {
			out = append(out, facts...)
		} else if st.Executes != "" {
			out = append(out, sql.UnknownName())
		}
		if delete(prepared, st.Deallocates); st.DeallocatesAll {
			clear(prepared)
		}
	}
	if len(out) == 1 {
		return nil, &UnreadableError{"it has no statement"}
	}
	return out, nil
}

// writeStatement returns a statement that has exactly the facts in a session of a database,
// "" if it finds none.
func writeStatement(facts authz.Facts, database authz.Fact) string {
	protocol, all := facts.Protocol(), ParseFacts(facts)
	candidates := sqlTexts(all)
	if protocol == authz.ProtocolRedis {
		candidates = commandTexts(slices.DeleteFunc(all, func(f authz.Fact) bool { return f == database }))
	}
	for text := range candidates {
		read, err := readText(protocol, text, database)
		if err != nil {
			continue
		}
		if got, err := authz.NewFacts(protocol, read...); err == nil && got == facts {
			return text
		}
	}
	return ""
}

// HasStatement reports whether [Text] finds a statement for the content of a request.
func HasStatement(req authz.Request) bool { return !strings.HasPrefix(Text(req).Statement, "[") }

// namesOf returns the names of the facts of one kind.
func namesOf(facts []authz.Fact, kind authz.FactKind) (out []string) {
	for _, f := range facts {
		if f.Kind == kind {
			out = append(out, f.Name)
		}
	}
	return out
}

// sqlTexts yields texts of SQL that may have the facts, the simplest first.
func sqlTexts(facts []authz.Fact) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, quoted := range []bool{false, true} {
			w := sqlWriter{
				verbs: namesOf(facts, authz.FactVerb), settings: namesOf(facts, authz.FactSetting),
				opaque: append(namesOf(facts, authz.FactOpaque), namesOf(facts, authz.FactForbidden)...),
			}
			for _, name := range namesOf(facts, authz.FactTable) {
				w.tables = append(w.tables, relation(name, quoted))
			}
			for _, name := range namesOf(facts, authz.FactFunction) {
				w.functions = append(w.functions, function(name, quoted))
			}
			if text := w.write(); text != "" && !yield(text) {
				return
			}
		}
	}
}

// relation returns a relation in SQL.
func relation(name string, quoted bool) string {
	if name == "catalog" {
		return "pg_catalog.pg_class"
	}
	return identifier(name, quoted)
}

// function returns the call of a function in SQL.
func function(name string, quoted bool) string {
	if name == "safe" {
		return "lower('')"
	}
	return identifier(name, quoted) + "()"
}

// identifier returns SCHEMA.NAME in SQL.
func identifier(name string, quoted bool) string {
	schema, rest, ok := strings.Cut(name, ".")
	if !ok {
		return word(name, quoted)
	}
	return word(schema, quoted) + "." + word(rest, quoted)
}

// word returns a name in SQL, in quotes if the server would fold or not read it without.
func word(name string, quoted bool) string {
	plain := name != "" && (name[0] < '0' || name[0] > '9') && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
	if plain && !quoted {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// sqlWriter writes statements with given facts.
type sqlWriter struct {
	verbs, settings, opaque []string
	tables, functions       []string // in SQL
}

// write returns the statements, "" if there is no form for one of the facts.
func (w *sqlWriter) write() string {
	verbs := w.verbs
	if slices.Contains(verbs, "select-for-update") { // it selects too
		verbs = slices.DeleteFunc(slices.Clone(verbs), func(v string) bool { return v == "select" })
	}
	carrier := w.carrier(verbs)
	var out []string
	for _, verb := range verbs {
		tables, functions := w.tables, w.functions
		if verb != carrier {
			tables, functions = tables[:min(1, len(tables))], nil
		}
		text := w.statement(verb, tables, functions)
		if text == "" {
			return ""
		}
		out = append(out, text)
	}
	for _, name := range w.opaque {
		text := opaqueText(name)
		if text == "" {
			return ""
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// carrier returns the verb whose statement names all tables and functions.
func (w *sqlWriter) carrier(verbs []string) string {
	for _, verb := range []string{"select", "select-for-update", "insert", "update", "delete", "truncate", "lock", "merge"} {
		if slices.Contains(verbs, verb) {
			return verb
		}
	}
	for _, verb := range verbs {
		if w.statement(verb, []string{"a"}, nil) != w.statement(verb, []string{"b"}, nil) {
			return verb
		}
	}
	return ""
}

// statement returns statements of one verb that name tables and call functions.
func (w *sqlWriter) statement(verb string, tables, functions []string) string {
	switch verb {
	case "select", "select-for-update":
		return selects(verb, tables, functions)
	case "set", "reset":
		return w.sets(verb)
	}
	if text, ok := simpleTexts()[verb]; ok {
		return text
	}
	form, ok := tableForms()[verb]
	if !ok || len(tables) == 0 {
		return ""
	}
	value := "NULL"
	if len(functions) > 0 {
		value = "coalesce(" + strings.Join(functions, ", ") + ")"
	}
	var out []string
	for i, table := range tables {
		if i > 0 {
			value = "NULL"
		}
		out = append(out, strings.NewReplacer("$t", table, "$v", value).Replace(form))
	}
	return strings.Join(out, "; ")
}

func selects(verb string, tables, functions []string) string {
	text := "SELECT *"
	switch {
	case len(functions) > 0:
		text = "SELECT " + strings.Join(functions, ", ")
	case len(tables) == 0:
		text = "SELECT 1"
	}
	if len(tables) > 0 {
		text += " FROM " + strings.Join(tables, ", ")
	}
	if verb == "select-for-update" {
		text += " FOR UPDATE"
	}
	return text
}

// sets returns statements that set or reset the settings.
func (w *sqlWriter) sets(verb string) string {
	var out []string
	for _, name := range w.settings {
		name, value, valued := strings.Cut(name, "=")
		switch {
		case verb == "reset":
			out = append(out, "RESET "+name)
		case valued:
			out = append(out, "SET "+name+" TO '"+strings.ReplaceAll(value, "'", "''")+"'")
		default:
			out = append(out, "SET "+name+" TO DEFAULT")
		}
	}
	if len(out) == 0 && verb == "reset" {
		return "RESET ALL"
	}
	return strings.Join(out, "; ")
}

// simpleTexts returns statements of verbs that name no table.
func simpleTexts() map[string]string {
	return map[string]string{
		"begin": "BEGIN", "commit": "COMMIT", "rollback": "ROLLBACK", "savepoint": "SAVEPOINT a", "show": "SHOW datestyle",
		"deallocate": "DEALLOCATE a", "fetch": "FETCH a", "close": "CLOSE a", "listen": "LISTEN a", "notify": "NOTIFY a",
		"two-phase": "COMMIT PREPARED 'a'", "ddl-create-schema": "CREATE SCHEMA a",
		"explain": "EXPLAIN SELECT 1", "prepare": "PREPARE a AS SELECT 1", "declare": "DECLARE a CURSOR FOR SELECT 1",
	}
}

// tableForms returns statements of verbs that name a table, and what can hold a value.
func tableForms() map[string]string {
	return map[string]string{
		"insert": "INSERT INTO $t VALUES ($v)", "update": "UPDATE $t SET a = $v", "delete": "DELETE FROM $t WHERE $v IS NULL",
		"merge": "MERGE INTO $t USING $t a ON $v IS NULL WHEN MATCHED THEN DO NOTHING", "truncate": "TRUNCATE $t",
		"copy-in": "COPY $t FROM STDIN", "copy-out": "COPY $t TO STDOUT", "lock": "LOCK TABLE $t", "vacuum": "VACUUM $t",
		"dcl": "GRANT SELECT ON $t TO a", "ddl-create-table": "CREATE TABLE $t ()", "ddl-alter-table": "ALTER TABLE $t ADD a int",
		"ddl-drop": "DROP TABLE $t", "ddl-create-index": "CREATE INDEX ON $t (a)", "ddl-create-sequence": "CREATE SEQUENCE $t",
		"ddl-alter-sequence": "ALTER SEQUENCE $t RESTART", "ddl-comment": "COMMENT ON TABLE $t IS NULL",
	}
}

// opaqueText returns a statement that is opaque, or forbidden, in a way; "" if none is found.
func opaqueText(name string) string {
	for _, text := range []string{
		"DO ''", "CALL a()", "EXECUTE a", "CREATE FUNCTION a() RETURNS int LANGUAGE sql AS ''", "CREATE PROCEDURE a() LANGUAGE sql AS ''",
		"CREATE VIEW a AS SELECT 1", "CREATE RULE a AS ON SELECT TO a DO NOTHING", "CREATE TRIGGER a BEFORE INSERT ON a EXECUTE FUNCTION a()",
		"SET ROLE a", "SET SESSION AUTHORIZATION a", "COPY a TO PROGRAM 'a'", "COPY a TO 'a'", "SET search_path TO a", "LOAD 'a'",
		"ALTER SYSTEM SET a = 1", "CREATE EXTENSION a",
	} {
		reading := sql.Read(text)
		if len(reading.Statements) == 1 && len(reading.Statements[0].Facts) == 1 && reading.Statements[0].Facts[0].Name == name {
			return text
		}
	}
	return ""
}
