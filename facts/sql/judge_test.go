package sql

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	judge "github.com/wasilibs/go-pgquery/parser"

	"github.com/chaperone-proxy/chaperone/authz"
)

// The judge is libpg_query, PostgreSQL 17's own parser as WebAssembly. It is for tests
// only: its first parse takes two seconds and 255 MiB, again for each goroutine that
// parses at once, so that it is used by one.

// judged is what the judge sees that must be among the facts: each element is satisfied by
// any of its facts.
type judged [][]authz.Fact

// node is a node of the judge's tree, as it is in JSON.
type node = map[string]any

// judgement collects what a statement does from the judge's tree.
type judgement struct {
	want  judged
	scope []string
}

func (j *judgement) need(kind authz.FactKind, names ...string) {
	var facts []authz.Fact
	for _, name := range names {
		facts = append(facts, authz.Fact{Kind: kind, Name: name})
	}
	j.want = append(j.want, facts)
}

// parse returns what the judge sees in each statement of a text, and false if the text is
// not valid for it.
func parse(text string) ([]judged, bool) {
	tree, err := judge.ParseToJSON(text)
	if err != nil {
		return nil, false
	}
	var result struct{ Stmts []struct{ Stmt node } }
	if err := json.Unmarshal([]byte(tree), &result); err != nil {
		panic(err)
	}
	all := []judged{}
	for _, s := range result.Stmts {
		j := judgement{}
		j.walk(s.Stmt)
		all = append(all, j.want)
	}
	return all, true
}

// str returns a string of a node, "" if it has none.
func str(n node, key string) string {
	s, _ := n[key].(string)
	return s
}

func list(n node, key string) []any {
	l, _ := n[key].([]any)
	return l
}

func sub(n node, key string) node {
	m, _ := n[key].(node)
	return m
}

// words returns the strings of a list of String nodes.
func words(l []any) []string {
	var out []string
	for _, e := range l {
		if m, ok := e.(node); ok {
			out = append(out, str(sub(m, "String"), "sval"))
		}
	}
	return out
}

func (j *judgement) walk(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			j.walk(e)
		}
	case node:
		for key, child := range v {
			if m, ok := child.(node); ok && j.node(key, m) {
				continue
			}
			j.walk(child)
		}
	}
}

// children walks all of a node but some keys.
func (j *judgement) children(n node, but ...string) {
	for key, child := range n {
		if !slices.Contains(but, key) {
			j.walk(node{key: child})
		}
	}
}

// with walks a node with the names of its WITH in scope.
func (j *judgement) with(n node, but ...string) {
	before := len(j.scope)
	with := sub(n, "withClause")
	recursive := with["recursive"] == true
	for _, e := range list(with, "ctes") {
		cte := sub(e.(node), "CommonTableExpr")
		if recursive {
			j.scope = append(j.scope, str(cte, "ctename"))
		}
	}
	for _, e := range list(with, "ctes") {
		cte := sub(e.(node), "CommonTableExpr")
		j.walk(cte["ctequery"])
		if !recursive {
			j.scope = append(j.scope, str(cte, "ctename"))
		}
	}
	j.children(n, append(but, "withClause")...)
	j.scope = j.scope[:before]
}

// node reads a node and reports whether its children were walked.
func (j *judgement) node(kind string, n node) bool {
	switch kind {
	case "RangeVar":
		if name := str(n, "relname"); str(n, "schemaname") != "" || !slices.Contains(j.scope, name) {
			j.table(n)
		}
	case "FuncCall":
		j.call(n)
	case "A_Expr":
		if name := words(list(n, "name")); len(name) == 2 && name[0] != "pg_catalog" {
			j.need(authz.FactFunction, name[0]+".operator("+name[1]+")")
		}
	case "RangeTableSample":
		j.function(words(list(n, "method")))
	case "SelectStmt":
		j.selects(n, false)
		return true
	case "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt":
		j.changes(kind, n)
		return true
	case "CommonTableExpr":
		panic("a common table expression outside WITH")
	default:
		return j.utility(kind, n)
	}
	return false
}

func (j *judgement) table(n node) {
	schema, name := str(n, "schemaname"), str(n, "relname")
	if schema == "" {
		schema = "public"
		if strings.HasPrefix(name, "pg_") {
			schema = "pg_catalog"
		}
	}
	names := []string{schema + "." + name}
	if slices.Contains(catalogRelations[:], names[0]) {
		names = append(names, "catalog")
	}
	j.need(authz.FactTable, names...)
}

func (j *judgement) call(n node) {
	name := words(list(n, "funcname"))
	if syntax := []string{"pg_catalog", "similar_to_escape"}; str(n, "funcformat") == "COERCE_SQL_SYNTAX" || slices.Equal(name, syntax) {
		return // the syntax of an operator, as AT TIME ZONE and SIMILAR TO
	}
	j.function(name)
}

func (j *judgement) function(name []string) {
	last := name[len(name)-1]
	schema := "public"
	switch {
	case len(name) > 1:
		schema = name[len(name)-2]
	case isBuiltin(last):
		schema = "pg_catalog"
	}
	names := []authz.Fact{{Kind: authz.FactFunction, Name: schema + "." + last}}
	if schema == "pg_catalog" && slices.Contains(SafeFunctions(), last) {
		names = append(names, authz.Fact{Kind: authz.FactFunction, Name: "safe"})
	}
	if schema == "pg_catalog" && last == "current_setting" {
		names = append(names, authz.Fact{Kind: authz.FactFunction, Name: "safe"})
	}
	if schema == "pg_catalog" && last == "set_config" {
		return // its setting is a fact, or the statement is opaque
	}
	j.want = append(j.want, names)
}

// selects reads SELECT or VALUES; the one of an INSERT of values is no query.
func (j *judgement) selects(n node, inserted bool) {
	if str(n, "op") == "SETOP_NONE" && !(inserted && n["valuesLists"] != nil) {
		j.need(authz.FactVerb, "select")
	}
	if into := sub(n, "intoClause"); into != nil {
		j.need(authz.FactVerb, "ddl-create-table")
		j.table(sub(into, "rel"))
	}
	if len(list(n, "lockingClause")) > 0 {
		j.need(authz.FactVerb, "select-for-update")
	}
	// The branches of UNION are nodes without their kind.
	before := len(j.scope)
	j.scoped(n, func() {
		for _, branch := range []string{"larg", "rarg"} {
			if arg := sub(n, branch); arg != nil {
				j.selects(arg, false)
			}
		}
		j.children(n, "withClause", "larg", "rarg", "intoClause", "lockingClause")
	})
	j.scope = j.scope[:before]
}

// scoped walks the WITH of a node, and then calls f with its names in scope.
func (j *judgement) scoped(n node, f func()) {
	j.with(node{"withClause": n["withClause"]})
	for _, e := range list(sub(n, "withClause"), "ctes") {
		j.scope = append(j.scope, str(sub(e.(node), "CommonTableExpr"), "ctename"))
	}
	f()
}

func (j *judgement) changes(kind string, n node) {
	j.need(authz.FactVerb, strings.ToLower(strings.TrimSuffix(kind, "Stmt")))
	j.table(sub(n, "relation"))
	if sub(n, "onConflictClause")["action"] == "ONCONFLICT_UPDATE" {
		j.need(authz.FactVerb, "update")
	}
	for _, e := range list(n, "mergeWhenClauses") {
		switch str(sub(e.(node), "MergeWhenClause"), "commandType") {
		case "CMD_INSERT":
			j.need(authz.FactVerb, "insert")
		case "CMD_UPDATE":
			j.need(authz.FactVerb, "update")
		case "CMD_DELETE":
			j.need(authz.FactVerb, "delete")
		}
	}
	before := len(j.scope)
	j.scoped(n, func() {
		query := sub(sub(n, "selectStmt"), "SelectStmt")
		if query != nil {
			j.selects(query, true)
		}
		j.children(n, "withClause", "relation", "selectStmt")
	})
	j.scope = j.scope[:before]
}

// utility reads a statement that is no query.
func (j *judgement) utility(kind string, n node) bool {
	switch kind {
	case "CopyStmt":
		j.need(authz.FactVerb, map[bool]string{true: "copy-in", false: "copy-out"}[n["is_from"] == true])
		if n["is_program"] == true {
			j.need(authz.FactForbidden, "copy-program")
		} else if str(n, "filename") != "" {
			j.need(authz.FactForbidden, "copy-file")
		}
		if relation := sub(n, "relation"); relation != nil {
			j.table(relation)
		}
	case "VariableSetStmt":
		j.variable(n)
	case "TransactionStmt":
		j.transaction(n)
	case "PrepareStmt":
		j.need(authz.FactVerb, "prepare")
	case "ExecuteStmt":
		j.need(authz.FactVerb, "execute")
	case "ExplainStmt":
		j.need(authz.FactVerb, "explain")
	case "DeclareCursorStmt":
		j.need(authz.FactVerb, "declare")
	case "LockStmt":
		j.need(authz.FactVerb, "lock")
	case "TruncateStmt":
		j.need(authz.FactVerb, "truncate")
	case "ConstraintsSetStmt":
		j.need(authz.FactSetting, "constraints")
		return true // its names are those of constraints
	case "VacuumStmt":
		j.need(authz.FactVerb, "vacuum")
	case "VacuumRelation", "CreateStmt":
		if relation := sub(n, "relation"); relation != nil {
			j.table(relation)
		}
		if kind == "CreateStmt" {
			j.need(authz.FactVerb, "ddl-create-table")
		}
	case "CreateTableAsStmt":
		j.need(authz.FactVerb, "ddl-create-table")
		j.table(sub(sub(n, "into"), "rel"))
	case "TableLikeClause", "PartitionCmd", "Constraint":
		for _, key := range []string{"relation", "name", "pktable"} {
			if relation := sub(n, key); relation != nil {
				j.table(relation)
			}
		}
	case "IndexStmt":
		j.need(authz.FactVerb, "ddl-create-index")
		j.table(sub(n, "relation"))
	case "AlterTableStmt":
		j.need(authz.FactVerb, "ddl-alter-table", "ddl-alter-sequence")
		j.table(sub(n, "relation"))
	case "DropStmt":
		j.drop(n)
	case "GrantStmt":
		j.need(authz.FactVerb, "dcl")
	case "DoStmt":
		j.need(authz.FactOpaque, "do")
	case "CallStmt":
		j.need(authz.FactOpaque, "call")
	case "CreateFunctionStmt", "ViewStmt", "RuleStmt", "CreateTrigStmt", "AlterRoleSetStmt", "AlterSystemStmt", "AlterDatabaseSetStmt":
		j.need(authz.FactVerb, "never") // opaque or forbidden
	}
	return false
}

func (j *judgement) drop(n node) {
	j.need(authz.FactVerb, "ddl-drop")
	switch str(n, "removeType") {
	case "OBJECT_TABLE", "OBJECT_INDEX", "OBJECT_VIEW", "OBJECT_SEQUENCE", "OBJECT_MATVIEW":
		for _, e := range list(n, "objects") {
			name := words(list(sub(e.(node), "List"), "items"))
			relation := node{"relname": name[len(name)-1]}
			if len(name) > 1 {
				relation["schemaname"] = name[len(name)-2]
			}
			j.table(relation)
		}
	}
}

func (j *judgement) variable(n node) {
	kind, name := str(n, "kind"), strings.ToLower(str(n, "name"))
	switch {
	case kind == "VAR_RESET_ALL":
		j.need(authz.FactVerb, "reset")
		return
	case name == "role":
		j.need(authz.FactForbidden, "set-role")
	case name == "session_authorization":
		j.need(authz.FactForbidden, "set-session-authorization")
	case name == "transaction" || name == "session characteristics":
		j.modes(list(n, "args"))
	case kind == "VAR_RESET" && name == "transaction_isolation":
	default:
		names := []string{name}
		for _, setting := range append(PassingSettings(), WritingSettings()...) {
			if base, _, ok := strings.Cut(setting, "="); ok && (base == name || "default_"+base == name) {
				names = append(names, setting)
			}
		}
		if name == "default_transaction_read_only" {
			names = append(names, settingWrite)
		}
		j.need(authz.FactSetting, names...)
	}
	j.need(authz.FactVerb, "set", "reset")
}

// modes reads the modes of a transaction.
func (j *judgement) modes(modes []any) {
	for _, e := range modes {
		mode := sub(e.(node), "DefElem")
		ival := sub(sub(sub(mode, "arg"), "A_Const"), "ival")
		if str(mode, "defname") == "transaction_read_only" && ival["ival"] == nil {
			j.need(authz.FactSetting, settingWrite)
		}
	}
}

func (j *judgement) transaction(n node) {
	switch str(n, "kind") {
	case "TRANS_STMT_BEGIN", "TRANS_STMT_START":
		j.need(authz.FactVerb, "begin")
		j.modes(list(n, "options"))
	case "TRANS_STMT_COMMIT":
		j.need(authz.FactVerb, "commit")
	case "TRANS_STMT_ROLLBACK", "TRANS_STMT_ROLLBACK_TO":
		j.need(authz.FactVerb, "rollback")
	case "TRANS_STMT_SAVEPOINT", "TRANS_STMT_RELEASE":
		j.need(authz.FactVerb, "savepoint")
	default:
		j.need(authz.FactVerb, "two-phase")
	}
}

// verdict is how the facts of a text compare with what the judge sees.
type verdict struct {
	wrong  string // a fact that is missing
	opaque bool   // a statement is opaque, or the text unreadable
}

// compare compares the facts of a text that the judge has parsed.
func compare(text string, want []judged) verdict {
	r := Read(text)
	if r.Unreadable != "" {
		return verdict{opaque: true}
	}
	opaque := slices.ContainsFunc(r.Statements, func(st Statement) bool { return isOpaque(st) })
	if len(r.Statements) != len(want) {
		if opaque { // CREATE FUNCTION ... BEGIN ATOMIC ...; END
			return verdict{opaque: true}
		}
		return verdict{wrong: fmt.Sprintf("%d statements, want %d", len(r.Statements), len(want))}
	}
	for i, st := range r.Statements {
		if isOpaque(st) {
			continue
		}
		for _, facts := range want[i] {
			if !slices.ContainsFunc(facts, func(f authz.Fact) bool { return slices.Contains(st.Facts, f) }) {
				if never(st) && facts[0].Name == "never" {
					continue
				}
				return verdict{wrong: fmt.Sprintf("got %v, want one of %v", st.Facts, facts)}
			}
		}
	}
	return verdict{opaque: opaque}
}

func isOpaque(st Statement) bool {
	return slices.ContainsFunc(st.Facts, func(f authz.Fact) bool { return f.Kind == authz.FactOpaque })
}

// never reports whether no rule grants the statement.
func never(st Statement) bool {
	return slices.ContainsFunc(st.Facts, func(f authz.Fact) bool { return f.Kind == authz.FactForbidden })
}
