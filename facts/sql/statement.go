package sql

import (
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// The opaque facts of statements that are not read.
const (
	opaqueStatement  = "statement"  // this package does not have it
	opaqueDefinition = "definition" // CREATE, ALTER and DROP of all but tables, indexes, sequences and schemas
	opaqueCascade    = "cascade"    // CASCADE reaches what the statement does not name
	opaqueGrants     = "grants"     // GRANT and REVOKE on all but tables
	opaqueMaintains  = "maintenance"
)

// head reads the statement that begins at i.
func (r *reader) head(i int) {
	switch k := r.key(i); k {
	case kwBegin, kwStart:
		r.verb("begin")
		r.modes(i + 1)
	case kwCommit, kwEnd, kwRollback, kwAbort, kwSavepoint, kwRelease:
		r.transaction(i, k)
	case kwPrepare:
		r.prepare(i)
	case kwExecute:
		r.execute(i)
	case kwDeallocate:
		r.deallocate(i)
	case kwExplain:
		r.explain(i)
	case kwShow:
		r.verb("show")
		// With a dot, it may be what an application keeps. The server compares a name in quotes likewise.
		if name, _ := r.settingName(i + 1); strings.EqualFold(name, "all") || strings.Contains(name, ".") {
			r.add(authz.FactFunction, "pg_catalog.current_setting")
		}
	case kwSet:
		r.set(i)
	case kwReset:
		r.reset(i)
	case kwDiscard:
		r.verb("reset")
		if r.key(i+1) == kwAll {
			r.st.ResetsPins, r.st.DeallocatesAll = true, true
		}
	case kwDeclare:
		r.declare(i)
	case kwFetch, kwMove:
		r.verb("fetch")
		if r.isName(r.end - 1) {
			r.st.Fetches = r.name(r.end - 1)
		}
	case kwClose:
		r.verb("close")
	case kwUnlisten:
		r.verb("reset")
	case kwListen:
		r.verb("listen")
	case kwNotify:
		r.verb("notify")
	case kwCopy:
		r.copy(i)
	case kwLock, kwTruncate, kwVacuum, kwAnalyze, kwAnalyse:
		r.tables(i, k)
	default:
		if !r.isQuery(i) {
			r.define(i, k)
			return
		}
		r.query(i)
		if r.st.Verb == "" {
			r.account(opaqueStatement)
		}
	}
}

// isQuery reports whether a query or a statement that changes data begins at i.
func (r *reader) isQuery(i int) bool {
	k := r.key(i)
	return k.in(kwSelect, kwWith, kwTable, kwInsert, kwUpdate, kwDelete, kwMerge) || k == kwValues && r.is(i+1, '(') || r.is(i, '(')
}

// isSelect reports whether a query begins at i, and not the options of EXPLAIN.
func (r *reader) isSelect(i int) bool {
	return r.isQuery(i) && !r.key(i).in(kwInsert, kwUpdate, kwDelete, kwMerge)
}

// transaction reads the words that end a transaction or mark a place in it. Prepared
// transactions outlive the session.
func (r *reader) transaction(i int, k keyword) {
	switch {
	case r.key(i+1) == kwPrepared:
		r.verb("two-phase")
	case k == kwCommit || k == kwEnd:
		r.verb("commit")
	case k == kwRollback || k == kwAbort:
		r.verb("rollback")
	default:
		r.verb("savepoint")
	}
}

// modes reads the modes of a transaction: READ WRITE is the setting transaction_read_only.
func (r *reader) modes(from int) {
	for i := from; i < r.end; i++ {
		switch {
		case r.key(i) == kwRead && r.key(i+1) == kwWrite:
			r.setting("transaction_read_only", "off", true)
		case r.key(i) == kwSnapshot:
			r.setting("transaction_snapshot", "", false)
		}
	}
}

// prepare reads PREPARE NAME [(TYPES)] AS and its content.
func (r *reader) prepare(i int) {
	if r.key(i+1) == kwTransaction && r.at(i+2).kind == tokenString {
		r.verb("two-phase")
		return
	}
	j := i + 2
	if r.is(j, '(') {
		j = int(r.at(j).match) + 1
	}
	if !r.isName(i+1) || r.key(j) != kwAs || !r.isQuery(j+1) {
		r.account(opaqueStatement)
		return
	}
	r.verb("prepare")
	r.st.Prepares = r.name(i + 1)
	r.query(j + 1)
}

// execute reads EXECUTE NAME with its arguments.
func (r *reader) execute(i int) {
	if !r.isName(i + 1) {
		r.account(opaqueStatement)
		return
	}
	r.verb("execute")
	r.st.Executes = r.name(i + 1)
	if r.is(i+2, '(') && len(r.frames) == 0 {
		r.query(i + 2)
	}
}

func (r *reader) deallocate(i int) {
	r.verb("deallocate")
	if r.key(i+1) == kwPrepare && i+2 < r.end {
		i++
	}
	switch {
	case r.key(i+1) == kwAll:
		r.st.DeallocatesAll = true
	case r.isName(i + 1):
		r.st.Deallocates = r.name(i + 1)
	default:
		r.account(opaqueStatement)
	}
}

// explain reads EXPLAIN with its options, and its content as if it ran.
func (r *reader) explain(i int) {
	r.verb("explain")
	i++
	if r.is(i, '(') && !r.isSelect(i+1) {
		i = int(r.at(i).match) + 1
	} else {
		for k := r.key(i); k == kwAnalyze || k == kwAnalyse || k == kwVerbose; k = r.key(i) {
			i++
		}
	}
	switch k := r.key(i); {
	case r.isQuery(i):
		r.query(i)
	case k == kwExecute:
		r.execute(i)
	case k == kwDeclare:
		r.declare(i)
	case k == kwCreate:
		r.define(i, k)
	default:
		r.account(opaqueStatement)
	}
}

// declare reads DECLARE NAME [OPTIONS] CURSOR [WITH HOLD] FOR and its query.
func (r *reader) declare(i int) {
	r.verb("declare")
	if r.st.Verb == "declare" && r.isName(i+1) { // EXPLAIN declares none
		r.st.Declares = r.name(i + 1)
	}
	for i += 2; i < r.end; i++ {
		if r.key(i) == kwFor {
			r.query(i + 1)
			return
		}
	}
	r.account(opaqueStatement)
}

// copy reads COPY. Files and programs are the server's, and are never granted.
func (r *reader) copy(i int) {
	i++
	if r.key(i) == kwBinary {
		i++
	}
	query := r.is(i, '(')
	var from, to int
	switch {
	case query:
		from, to = i+1, int(r.at(i).match)
		i = to + 1
	case r.isName(i):
		from, to = i, r.chain(i)
		i = to
		if r.isNameList(i) {
			i = int(r.at(i).match) + 1
		}
	default:
		r.account(opaqueStatement)
		return
	}
	switch r.key(i) {
	case kwFrom:
		r.verb("copy-in")
		r.st.CopiesIn = true
	case kwTo:
		r.verb("copy-out")
	default:
		r.account(opaqueStatement)
		return
	}
	if query {
		end := r.end
		r.end = to
		r.query(from)
		r.end = end
	} else {
		r.table(from, to, r.key(i) == kwFrom)
	}
	switch k := r.key(i + 1); {
	case k == kwStdin || k == kwStdout:
	case k == kwProgram:
		r.forbid("copy-program")
	case r.at(i+1).kind == tokenString:
		r.forbid("copy-file")
	default:
		r.account(opaqueStatement)
	}
	for i += 2; i < r.end; i++ {
		switch {
		case r.is(i, '('):
			i = int(r.at(i).match)
		case r.key(i) == kwWhere:
			r.query(i)
			return
		}
	}
}

// tables reads the statements that consist of a list of tables.
func (r *reader) tables(i int, k keyword) {
	i++
	switch k {
	case kwLock:
		r.verb("lock")
	case kwTruncate:
		r.verb("truncate")
	default:
		r.verb("vacuum")
		if r.is(i, '(') {
			i = int(r.at(i).match) + 1
		}
		for k := r.key(i); k == kwFull || k == kwFreeze || k == kwVerbose || k == kwAnalyze || k == kwAnalyse; k = r.key(i) {
			i++
		}
		if i >= r.end { // every table
			r.account(opaqueMaintains)
			return
		}
	}
	if r.key(i) == kwTable {
		i++
	}
	r.targets(i)
}

// targets reads a list of tables and what follows it.
func (r *reader) targets(i int) {
	for {
		if r.key(i) == kwOnly {
			i++
		}
		from := i
		if r.is(i, '(') {
			from++
		}
		if !r.isName(from) {
			r.account(opaqueStatement)
			return
		}
		to := r.chain(from)
		r.table(from, to, true)
		i = to
		if r.is(from-1, '(') {
			i++
		}
		if t := r.at(i); t.kind == tokenOperator && t.char == '*' {
			i++
		}
		if r.isNameList(i) { // the columns of VACUUM
			i = int(r.at(i).match) + 1
		}
		if !r.is(i, ',') {
			break
		}
		i++
	}
	for ; i < r.end; i++ {
		switch k := r.key(i); {
		case k == kwCascade:
			r.account(opaqueCascade)
		case k == noKeyword:
			r.account(opaqueStatement)
		}
	}
}

// set reads SET.
func (r *reader) set(i int) {
	r.verb("set")
	i++
	if k := r.key(i); (k == kwSession || k == kwLocal) && !r.assigns(i+1) && r.key(i+1) != kwAuthorization && r.key(i+1) != kwCharacteristics {
		i++
	}
	k, next := r.key(i), r.key(i+1)
	switch {
	case k == kwSession && next == kwAuthorization:
		r.forbid("set-session-authorization")
	case k == kwRole:
		r.forbid("set-role")
	case k == kwSession && next == kwCharacteristics, k == kwTransaction && !r.assigns(i+1):
		r.modes(i + 1)
	case k == kwTime && next == kwZone:
		r.setting("timezone", "", false)
	case k == kwXml && next == kwOption:
		r.setting("xmloption", "", false)
	case k == kwConstraints:
		r.setting("constraints", "", false)
	case k == kwNames && !r.assigns(i+1):
		r.assign("client_encoding", i+1)
	case k == kwSchema && !r.assigns(i+1):
		r.assign("search_path", i+1)
	case r.isName(i):
		name, j := r.settingName(i)
		if r.assigns(j) {
			r.assign(name, j+1)
		} else {
			r.account(opaqueStatement)
		}
	default:
		r.account(opaqueStatement)
	}
}

func (r *reader) assigns(i int) bool {
	t := r.at(i)
	return r.key(i) == kwTo || t.kind == tokenOperator && t.char == '=' && t.end-t.start == 1
}

// assign adds the fact of a setting whose value begins at i and ends the statement.
func (r *reader) assign(name string, i int) {
	value, constant := "", i == r.end-1
	switch t := r.at(i); {
	case t.kind == tokenString && t.flags&flagPlain != 0:
		value = r.text[t.start+1 : t.end-1]
	case t.kind == tokenWord && r.key(i) != kwDefault:
		value = r.name(i)
	case t.kind == tokenNumber:
		value = r.text[t.start:t.end]
	default:
		constant = false
	}
	r.setting(name, value, constant)
}

// settingName returns the name at i, with its dots, and its end.
func (r *reader) settingName(i int) (string, int) {
	j := r.chain(i)
	var parts []string
	for k := i; k < j; k += 2 {
		parts = append(parts, r.name(k))
	}
	return strings.Join(parts, "."), j
}

// reset reads RESET.
func (r *reader) reset(i int) {
	r.verb("reset")
	i++
	switch k, next := r.key(i), r.key(i+1); {
	case k == kwAll:
		r.st.ResetsPins = true
	case k == kwSession && next == kwAuthorization:
		r.forbid("set-session-authorization")
	case k == kwRole:
		r.forbid("set-role")
	case k == kwTransaction && next == kwIsolation:
	case k == kwTime && next == kwZone:
		r.setting("timezone", "", false)
	case r.isName(i):
		name, _ := r.settingName(i)
		// RESET returns to what the session began with, which for search_path is the pin.
		r.setting(name, "pg_catalog", name == "search_path")
	default:
		r.account(opaqueStatement)
	}
}

// define reads the statements that change definitions and rights, and those that are
// opaque.
func (r *reader) define(i int, k keyword) {
	switch k {
	case kwCreate:
		r.create(i)
	case kwAlter:
		r.alter(i)
	case kwDrop:
		r.drop(i)
	case kwComment:
		r.comment(i)
	case kwGrant, kwRevoke:
		r.grant(i)
	case kwReassign:
		r.account(opaqueGrants)
	case kwDo:
		r.account("do")
	case kwCall:
		r.account("call")
	case kwLoad:
		r.forbid("load")
	case kwCluster, kwReindex, kwRefresh, kwCheckpoint:
		r.account(opaqueMaintains)
	case kwImport, kwSecurity:
		r.account(opaqueDefinition)
	default:
		r.account(opaqueStatement)
	}
}

// grant reads GRANT and REVOKE: of roles, or on tables.
func (r *reader) grant(i int) {
	r.verb("dcl")
	for ; i < r.end && r.key(i) != kwOn; i++ {
		if r.is(i, '(') {
			i = int(r.at(i).match)
		}
	}
	if i >= r.end { // of roles
		return
	}
	i++
	if r.key(i) == kwTable {
		i++
	}
	for r.isName(i) {
		j := r.chain(i)
		r.table(i, j, true)
		if i = j; !r.is(i, ',') {
			break
		}
		i++
	}
	if k := r.key(i); k != kwTo && k != kwFrom {
		r.account(opaqueGrants)
	}
}
