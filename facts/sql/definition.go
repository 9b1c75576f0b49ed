package sql

import "github.com/chaperone-proxy/chaperone/authz"

// ddl is the statement of definitions that is read. Only those of tables, indexes,
// sequences and schemas are; functions, views, rules, triggers and the others are opaque,
// because what they do later is not in a fact.
type ddl uint8

const (
	ddlNone ddl = iota
	ddlCreateTable
	ddlAlterTable
	ddlIndex
	ddlSequence
)

// create reads CREATE.
func (r *reader) create(i int) {
	i++
	for k := r.key(i); k == kwGlobal || k == kwLocal || k == kwTemp || k == kwTemporary || k == kwUnlogged || k == kwUnique; k = r.key(i) {
		i++
	}
	switch r.key(i) {
	case kwTable:
		r.relationOf("ddl-create-table", ddlCreateTable, i+1)
	case kwSequence:
		r.relationOf("ddl-create-sequence", ddlSequence, i+1)
	case kwIndex:
		for i < r.end && r.key(i) != kwOn {
			i++
		}
		r.relationOf("ddl-create-index", ddlIndex, i+1)
	case kwSchema:
		r.verb("ddl-create-schema")
		for j := i; j < r.end; j++ {
			if k := r.key(j); k == kwCreate || k == kwGrant { // elements of the schema
				r.account(opaqueDefinition)
			}
		}
	case kwRole, kwUser, kwGroup:
		r.roles(i)
	default:
		r.account(opaqueDefinition)
	}
}

// relationOf reads the table at i, and what follows it.
func (r *reader) relationOf(verb string, kind ddl, i int) {
	r.verb(verb)
	if i = r.existence(i); r.key(i) == kwOnly {
		i++
	}
	if !r.isName(i) {
		r.account(opaqueDefinition)
		return
	}
	j := r.chain(i)
	r.table(i, j, true)
	if kind == ddlAlterTable || kind == ddlSequence {
		r.moves(i, j)
	}
	r.ddl = kind
	r.query(j)
}

// moves reads RENAME TO and SET SCHEMA behind the relation i..j-1, which has another name then.
func (r *reader) moves(i, j int) {
	k := j
	if r.at(k).kind == tokenOperator { // *
		k++
	}
	renames := r.key(k) == kwRename && r.key(k+1) == kwTo
	if !renames && (r.key(k) != kwSet || r.key(k+1) != kwSchema) {
		return
	}
	schema, name := r.parts(i, j)
	to := r.name(k + 2)
	r.shown(to)
	if !renames {
		schema = to
	} else if name = to; schema == "" {
		schema = "public"
	}
	r.add(authz.FactTable, schema+"."+name)
}

// alter reads ALTER. The settings of roles, databases and the server hold for later
// sessions, whose facts rest on them: they are never granted.
func (r *reader) alter(i int) {
	i++
	switch r.key(i) {
	case kwTable:
		r.relationOf("ddl-alter-table", ddlAlterTable, i+1)
	case kwSequence:
		r.relationOf("ddl-alter-sequence", ddlSequence, i+1)
	case kwSystem:
		r.forbid("alter-system")
	case kwRole, kwUser, kwGroup, kwDatabase:
		r.roles(i)
	case kwDefault:
		r.account(opaqueGrants)
	default:
		r.account(opaqueDefinition)
	}
}

// roles reads the rest of a statement on roles or databases, which begins with their kind.
func (r *reader) roles(i int) {
	database, alters := r.key(i) == kwDatabase, r.key(i-1) == kwAlter
	for j := i + 1; j < r.end; j++ {
		switch k := r.key(j); {
		case k == kwSet || k == kwReset:
			r.forbid("alter-role-set")
		case k == kwPassword && alters:
			// A role may change its own password, and the plugin would then know one.
			r.forbid("alter-role-password")
		}
	}
	if database || r.key(i+1) == kwMapping {
		r.account(opaqueDefinition)
		return
	}
	r.verb("dcl")
}

// drop reads DROP.
func (r *reader) drop(i int) {
	i++
	if r.key(i) == kwMaterialized && r.key(i+1) == kwView {
		i++
	}
	switch r.key(i) {
	case kwTable, kwIndex, kwSequence, kwView:
	case kwRole, kwUser, kwGroup:
		r.roles(i)
		return
	default:
		r.account(opaqueDefinition)
		return
	}
	r.verb("ddl-drop")
	i++
	if r.key(i) == kwConcurrently {
		i++
	}
	r.targets(r.existence(i))
}

// existence returns what follows IF EXISTS or IF NOT EXISTS at i, i if they are not there.
func (r *reader) existence(i int) int {
	switch {
	case r.key(i) != kwIf:
	case r.key(i+1) == kwExists:
		return i + 2
	case r.key(i+1) == kwNot && r.key(i+2) == kwExists:
		return i + 3
	}
	return i
}

// comment reads COMMENT ON a table, its like, or a column.
func (r *reader) comment(i int) {
	i += 2
	if r.key(i) == kwMaterialized {
		i++
	}
	j := r.chain(i + 1)
	switch r.key(i) {
	case kwTable, kwIndex, kwSequence, kwView:
	case kwColumn:
		j -= 2
	default:
		r.account(opaqueDefinition)
		return
	}
	if !r.isName(i+1) || j < i+2 {
		r.account(opaqueStatement)
		return
	}
	r.verb("ddl-comment")
	r.table(i+1, j, true)
}

// definition reads a word within the definition of a table or its like.
func (r *reader) definition(i int, k keyword) (next int, ok bool) {
	switch k {
	case kwReferences, kwInherit:
		if k == kwInherit && r.is(i+1, '(') {
			return 0, false
		}
		r.want = wantTarget
	case kwInherits:
		if r.ddl != ddlCreateTable || len(r.frames) > 1 {
			return 0, false
		}
		r.want = wantRelation
	case kwLike:
		if !r.is(i-1, '(') && !r.is(i-1, ',') || !r.isName(i+1) {
			return 0, false
		}
		r.want = wantRelation
	case kwOf:
		if r.key(i-1) != kwPartition {
			return 0, false
		}
		r.want = wantTarget
	case kwPartition:
		if before := r.key(i - 1); r.ddl != ddlAlterTable || before != kwAttach && before != kwDetach {
			return 0, false
		}
		r.want = wantTarget
	case kwKey:
		if before := r.key(i - 1); before != kwPrimary && before != kwForeign {
			return 0, false
		}
	case kwOwned:
		if r.key(i+1) != kwBy || r.key(i+2) == kwNone {
			return 0, false
		}
		j := r.chain(i + 2)
		if j > i+3 {
			r.table(i+2, j-2, true)
		}
		return j, true
	case kwCascade:
		if before := r.key(i - 1); r.key(i-2) != kwOn || before != kwDelete && before != kwUpdate {
			r.account(opaqueCascade)
		}
	default:
		return 0, false
	}
	return i + 1, true
}
