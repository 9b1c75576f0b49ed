package sql

import (
	"slices"
	"sort"
	"strings"
)

// Verbs are the verbs that a rule can name. Those of definitions begin with "ddl-" and
// can be granted together by "ddl-*".
func Verbs() []string {
	return []string{
		"select", "insert", "update", "delete", "merge", "truncate", "copy-in", "copy-out", "lock",
		"select-for-update", "listen", "notify", "vacuum", "two-phase", "dcl",
		"ddl-create-table", "ddl-alter-table", "ddl-drop", "ddl-create-index", "ddl-create-sequence", "ddl-alter-sequence",
		"ddl-create-schema", "ddl-comment",
	}
}

// PassingVerbs are those that every rule of a database grants: they touch no data of
// their own. The content of explain, prepare, execute and declare has its own facts.
func PassingVerbs() []string {
	return []string{
		"begin", "commit", "rollback", "savepoint", "show", "explain", "prepare", "execute", "deallocate", "declare",
		"fetch", "close", "set", "reset",
	}
}

func passes(verb string) bool { return slices.Contains(PassingVerbs(), verb) }

// ReadingVerb reports whether a verb works in a session that is pinned read-only. A rule
// reads if all its verbs do.
func ReadingVerb(verb string) bool {
	switch verb {
	case "select", "copy-out", "lock", "listen", "notify":
		return true
	}
	return false
}

// PassingSettings are the names of setting facts that every rule of a database grants.
// A name with a value, as in client_encoding=UTF8, is a fact for that value alone.
func PassingSettings() []string {
	return []string{
		"application_name", "bytea_output", settingUTF8, "client_min_messages", "constraints", "datestyle",
		"default_transaction_deferrable", "default_transaction_isolation", "extra_float_digits",
		"idle_in_transaction_session_timeout", "idle_session_timeout", "intervalstyle", "jit", "lock_timeout",
		"quote_all_identifiers", "restrict_nonsystem_relation_kind", "row_security", settingPath, settingStrings, "statement_timeout", "synchronize_seqscans",
		"timezone", "transaction_deferrable", "transaction_isolation", settingReadOnly, "transaction_timeout", "xmloption",
	}
}

// WritingSettings are the names of setting facts that a rule grants if it grants a verb
// that does not read.
func WritingSettings() []string { return []string{settingWrite} }

// SafeFunctions are the functions of pg_catalog that function:safe stands for.
func SafeFunctions() []string {
	out := make([]string, len(safeFunctions))
	for n, i := range safeFunctions {
		out[n] = builtinFunction(int(i))
	}
	return out
}

// isSafe reports whether function:safe stands for a function of pg_catalog.
func isSafe(name string) bool {
	i, ok := findBuiltin(name)
	if ok {
		_, ok = slices.BinarySearchFunc(safeFunctions[:], i, func(safe uint16, i int) int { return int(safe) - i })
	}
	return ok
}

// builtinFunction returns the function of pg_catalog at a place in their order.
func builtinFunction(i int) string {
	if i == 0 {
		return builtinNames[:builtinEnds[0]]
	}
	return builtinNames[builtinEnds[i-1]:builtinEnds[i]]
}

// findBuiltin returns the place of a function of pg_catalog in their order.
func findBuiltin(name string) (int, bool) {
	return sort.Find(len(builtinEnds), func(i int) int { return strings.Compare(name, builtinFunction(i)) })
}

func isBuiltin(name string) bool {
	_, ok := findBuiltin(name)
	return ok
}

// CatalogRelations are the relations that table:catalog stands for, as SCHEMA.NAME.
func CatalogRelations() []string { return slices.Clone(catalogRelations[:]) }
