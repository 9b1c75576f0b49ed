package sql

import (
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// query reads the tokens from..r.end-1, which are a query or a statement that holds
// expressions: every name at the place of a relation, and every name before a
// parenthesis. Only reserved words end a list of relations or cannot be called.
func (r *reader) query(from int) {
	r.frames = append(r.frames, frame{start: int32(from), ctes: int32(len(r.ctes))})
	for i := from; i < r.end && !r.many; {
		t := &r.tokens[i]
		want := r.want
		r.want = wantNothing
		switch {
		case t.kind == tokenWord:
			i = r.word(i, want)
			continue
		case t.kind == tokenOperator:
			if t.char == ':' && t.end-t.start == 2 && r.text[t.start+1] == ':' {
				r.cast(i + 1)
			}
		case t.kind != tokenPunct:
		case t.char == '(' || t.char == '[':
			r.open(i, want)
		case t.char == ')' || t.char == ']':
			r.close()
		case t.char == ',':
			if r.top().with && r.bodyOf(i+1) >= 0 {
				i = r.commonTable(i + 1)
				continue
			}
			if r.top().list {
				r.want = wantRelation
			}
		}
		i++
	}
}

// open begins the frame of a bracket. In the place of a relation, it is a join or a query.
func (r *reader) open(i int, want want) {
	f := frame{start: int32(i + 1), ctes: int32(len(r.ctes))}
	if r.is(i, '(') {
		f.list, r.want = want != wantNothing, want
		before := r.key(i - 1)
		f.sugar = before.in(kwExtract, kwSubstring, kwTrim, kwOverlay, kwPosition)
		f.options = before == kwXmltable
		f.grouping = before == kwSets && r.key(i-2) == kwGrouping
	}
	if top := r.top(); top.with {
		top.with = false // the query of the WITH is in parentheses
	}
	r.frames = append(r.frames, f)
}

// close ends a frame, and the scope of its common table expressions.
func (r *reader) close() {
	f := *r.top()
	if len(r.frames) > 1 {
		r.frames = r.frames[:len(r.frames)-1]
	}
	r.ctes = r.ctes[:f.ctes]
	if f.cte != "" {
		r.ctes = append(r.ctes, f.cte)
	}
}

// word reads the word at i and returns where to go on.
func (r *reader) word(i int, want want) int {
	k := r.key(i)
	if want != wantNothing {
		switch {
		case k == kwOnly || k == kwLateral:
			r.want = want
			return i + 1
		case k == kwRows && r.key(i+1) == kwFrom && r.is(i+2, '('):
			r.want = want
			return i + 2
		case want == wantRelation && k != noKeyword && !k.callable() && r.is(i+1, '('):
			// A function with a syntax of its own, as xmltable and extract.
		case r.isRelation(i), r.is(i+1, '(') && want == wantRelation && k.callable() && k != kwJoin:
			return r.relation(i, want)
		}
	}
	if k == noKeyword {
		return r.call(i)
	}
	if next, ok := r.clause(i, k); ok {
		return next
	}
	if next, ok := r.dml(i, k); ok {
		return next
	}
	if r.ddl != ddlNone {
		if next, ok := r.definition(i, k); ok {
			return next
		}
	}
	if k.reserved() {
		return i + 1
	}
	return r.call(i)
}

// relation reads the relation at i.
func (r *reader) relation(i int, want want) int {
	j := r.chain(i)
	called := r.is(j, '(')
	if called && want != wantTarget {
		switch k := r.key(i); {
		case j-i > 1 || k == noKeyword || k.callable():
			r.function(i, j)
		case k == kwTreat:
			r.account("treat")
		}
		if want == wantRelation {
			return j
		}
	}
	if want == wantRelation && j-i == 1 && slices.Contains(r.ctes, r.name(i)) {
		return j
	}
	r.table(i, j, want != wantRelation)
	return j
}

// clause reads a word that begins a clause.
func (r *reader) clause(i int, k keyword) (next int, ok bool) {
	top := r.top()
	switch k {
	case kwSelect:
		r.verb("select")
		top.selected, top.list, top.grouping, top.with = true, false, false, false
	case kwFrom:
		r.from(i)
	case kwJoin:
		if r.is(i+1, '(') && !r.joins(i) {
			r.function(i, i+1)
		}
		r.want = wantRelation
	case kwUsing:
		return r.using(i), true
	case kwOnly:
		r.want = wantRelation
	case kwTable:
		r.verb("select")
		top.with, r.want = false, wantRelation
	case kwWith:
		return r.with(i), true
	case kwAs:
		return r.as(i), true
	case kwGroup:
		if r.key(i+1) == kwBy {
			top.list, top.grouping = false, true
			return i + 2, true
		}
	case kwFor:
		// collation for (x) is an expression.
		top.list = top.list && r.is(i+1, '(')
	case kwWhere, kwHaving, kwWindow, kwOrder, kwLimit, kwOffset, kwFetch, kwDo:
		top.list, top.grouping = false, false
	case kwUnion, kwIntersect, kwExcept:
		top.list, top.grouping, top.inserts = false, false, false
	case kwReturning:
		top.list = false
		r.endLate()
	case kwOn:
		return r.on(i), true
	default:
		return 0, false
	}
	return i + 1, true
}

// endLate ends the scope of a WITH in the middle of an INSERT: it belongs to the query,
// and RETURNING and ON CONFLICT to the INSERT.
func (r *reader) endLate() {
	if top := r.top(); top.late > 0 {
		r.ctes = r.ctes[:top.late-1]
		top.late = 0
	}
}

// from reads FROM, which begins a list of relations but in IS DISTINCT FROM and between
// arguments.
func (r *reader) from(i int) {
	top := r.top()
	if top.sugar && !top.selected {
		return
	}
	if r.ddl != ddlNone && r.key(i-1) == kwValues && r.key(i-2) == kwFor { // bounds of a partition
		return
	}
	if r.key(i-1) == kwDistinct && (r.compares(i-2) || r.key(i-2) == kwNot && r.compares(i-3)) {
		return
	}
	top.list, r.want = true, wantRelation
	if r.key(i-1) == kwDelete {
		r.want = wantDeleted
	}
}

// compares reports whether the word at i is IS behind an expression, and not the name of a
// type, whose column could have the label distinct: a :: is distinct FROM t.
func (r *reader) compares(i int) bool {
	before := r.at(i - 1)
	return r.key(i) == kwIs && before.kind != tokenOperator && (before.kind != tokenPunct || before.char == ')' || before.char == ']') &&
		r.key(i-1) != kwSetof && r.key(i-1) != kwAs
}

// joins reports whether JOIN before a parenthesis surely joins, and is no call.
func (r *reader) joins(i int) bool {
	return r.key(i-1).in(kwLeft, kwRight, kwFull, kwInner, kwOuter, kwCross, kwNatural) || r.endsExpression(i-1)
}

// using reads USING: columns of a join, or relations of DELETE and MERGE.
func (r *reader) using(i int) int {
	top := r.top()
	switch {
	case top.with: // of CYCLE
		return i + 1
	case r.ddl == ddlAlterTable && len(r.frames) == 1: // of ALTER COLUMN TYPE
		return i + 1
	case r.ddl != ddlNone && r.isName(i+1) && (len(r.frames) == 1 || r.key(i-1) == kwExclude):
		return r.chain(i + 1) // the method of an index or a table
	case r.isNameList(i + 1):
		return int(r.at(i+1).match) + 1
	}
	if !top.merges {
		top.list = true
	}
	r.want = wantRelation
	return i + 1
}

// isNameList reports whether the parenthesis at i holds words and commas only.
func (r *reader) isNameList(i int) bool {
	if !r.is(i, '(') {
		return false
	}
	for j := i + 1; ; j += 2 {
		if !r.isName(j) {
			return false
		}
		if r.is(j+1, ')') {
			return true
		}
		if !r.is(j+1, ',') {
			return false
		}
	}
}

// on reads ON. The columns behind ON CONFLICT are no arguments.
func (r *reader) on(i int) int {
	if r.key(i+1) != kwConflict {
		return i + 1
	}
	r.endLate()
	if r.is(i+2, '(') && r.upserts(int(r.at(i+2).match)+1) {
		return i + 2
	}
	return i + 1
}

// upserts reports whether DO follows at i, or WHERE and then DO: a condition of a join that
// calls a function named conflict has no DO behind it without another ON.
func (r *reader) upserts(i int) bool {
	if r.key(i) == kwWhere {
		for i++; i < r.end; i++ {
			switch {
			case r.is(i, '('), r.is(i, '['):
				i = int(r.at(i).match)
			case r.is(i, ')'), r.key(i) == kwOn:
				return false
			case r.key(i) == kwDo:
				return true
			}
		}
	}
	return r.key(i) == kwDo
}

// as reads AS with the name behind it: a label, an alias or a type; or the query of CREATE
// TABLE, in which the words of definitions are names like all others.
func (r *reader) as(i int) int {
	switch k := r.key(i + 1); {
	case r.ddl == ddlCreateTable && len(r.frames) == 1:
		r.ddl, r.top().start = ddlNone, int32(i+1)
		if k == kwExecute {
			r.execute(i + 1)
			return i + 3
		}
		return i + 1
	case r.at(i+1).kind != tokenWord, k == kwSelect, k == kwWith, k == kwTable, k == kwNot:
		return i + 1
	}
	r.cast(i + 1)
	return r.chain(i + 1)
}

// cast reads the type at i. The conversion to a type of another schema is the call of a
// function; types without a schema are like operators, which no text shows.
func (r *reader) cast(i int) {
	if r.at(i).kind != tokenWord {
		return
	}
	if j := r.chain(i); j-i > 1 {
		if schema, name := r.parts(i, j); schema != "pg_catalog" {
			r.add(authz.FactFunction, schema+"."+name)
		}
	}
}

// with reads WITH, which begins common table expressions if they follow. In a list of
// relations it is that of WITH ORDINALITY.
func (r *reader) with(i int) int {
	top := r.top()
	if (top.list || top.merges) && i != int(top.start) {
		return i + 1
	}
	recursive := r.key(i+1) == kwRecursive
	first := i + 1
	if recursive {
		first++
	}
	if r.bodyOf(first) < 0 {
		return i + 1
	}
	top.recursive, top.list = recursive, false
	if i != int(top.start) && top.late == 0 {
		top.late = int32(len(r.ctes)) + 1
	}
	return r.commonTable(first)
}

// bodyOf returns the parenthesis of the common table expression at i, -1 if that is not
// one. It follows NAME AS, with columns behind the name, and how it is stored behind AS.
func (r *reader) bodyOf(i int) int {
	if !r.isName(i) {
		return -1
	}
	i++
	if r.is(i, '(') {
		if !r.isNameList(i) {
			return -1
		}
		i = int(r.at(i).match) + 1
	}
	if r.key(i) != kwAs {
		return -1
	}
	i++
	if r.key(i) == kwNot && r.key(i+1) == kwMaterialized {
		i++
	}
	if r.key(i) == kwMaterialized {
		i++
	}
	if !r.is(i, '(') {
		return -1
	}
	return i
}

// commonTable reads the name of a common table expression at i and begins its body. It is
// in scope behind its body, in a recursive list also within it.
func (r *reader) commonTable(i int) int {
	body := r.bodyOf(i)
	if body < 0 {
		return i
	}
	name := r.name(i)
	if k := r.key(i); k == kwOrdinality || k == kwTime { // f() WITH ORDINALITY AS (a int)
		name = ""
	}
	top := r.top()
	recursive := top.recursive
	if recursive && name != "" {
		r.ctes = append(r.ctes, name)
		name = ""
	}
	r.many = r.many || len(r.ctes) > mostNames
	top.with = false
	r.open(body, wantNothing)
	r.top().cte = name
	r.frames[len(r.frames)-2].with = true
	return body + 1
}

// dml reads a word that changes data.
func (r *reader) dml(i int, k keyword) (next int, ok bool) {
	top := r.top()
	switch k {
	case kwInsert:
		if r.key(i-1) != kwOn {
			r.verb("insert")
		}
		top.with, top.inserts = false, true
		if r.is(i+1, '(') && !(r.key(i-1) == kwThen && r.mergeInserts(i+1)) {
			r.function(i, i+1)
		}
	case kwUpdate:
		return r.update(i), true
	case kwShare:
		if r.key(i-1) != kwFor && (r.key(i-1) != kwKey || r.key(i-2) != kwFor) {
			return 0, false
		}
		r.verb("select-for-update")
	case kwDelete:
		if r.key(i-1) != kwOn {
			r.verb("delete")
		}
		top.with = false
		if r.is(i+1, '(') {
			r.function(i, i+1)
		}
	case kwMerge:
		if r.key(i+1) != kwInto {
			return 0, false
		}
		r.verb("merge")
		top.with, top.merges, top.inserts = false, true, true
	case kwValues:
		if !r.is(i+1, '(') {
			return 0, false
		}
		if !top.inserts {
			r.verb("select")
		}
		if top.with || i == int(top.start) { // otherwise it may be the alias of a relation, with columns
			top.with, top.list = false, false
		}
	case kwInto:
		return r.into(i), true
	default:
		return r.expression(i, k)
	}
	return i + 1, true
}

// mergeInserts reports whether the parenthesis at i holds the columns of INSERT in a MERGE.
func (r *reader) mergeInserts(i int) bool {
	return r.key(int(r.at(i).match)+1).in(kwValues, kwOverriding, kwDefault)
}

// update reads UPDATE: a statement, an action of another, or a lock of rows.
func (r *reader) update(i int) int {
	r.top().with = false
	before := r.key(i - 1)
	switch {
	case before == kwFor, before == kwKey && r.key(i-2) == kwNo && r.key(i-3) == kwFor:
		r.verb("select-for-update")
	case before == kwDo, before == kwThen:
		r.verb("update")
		if r.key(i+1) == kwSet && r.is(i+2, '(') {
			return i + 2
		}
	case before == kwOn:
	default:
		r.verb("update")
		if r.updates(i + 1) {
			r.want = wantTarget
		}
	}
	if r.is(i+1, '(') {
		r.function(i, i+1)
		r.want = wantNothing
	}
	return i + 1
}

// updates reports whether the table of an UPDATE is at i: [ONLY] NAME [*] [[AS] ALIAS] SET.
// Otherwise the word is an alias or a label.
func (r *reader) updates(i int) bool {
	if r.key(i) == kwOnly {
		i++
	}
	switch {
	case r.is(i, '('):
		i = int(r.at(i).match) + 1
	case r.isRelation(i):
		i = r.chain(i)
	default:
		return false
	}
	if t := r.at(i); t.kind == tokenOperator && t.char == '*' {
		i++
	}
	if r.key(i) == kwAs {
		i++
	}
	return r.key(i) == kwSet || r.isRelation(i) && r.key(i+1) == kwSet
}

// into reads INTO, behind SELECT with the words for kinds of tables.
func (r *reader) into(i int) int {
	r.want = wantTarget
	if !r.top().selected {
		return i + 1
	}
	r.verb("ddl-create-table")
	for i++; ; i++ {
		kind := r.key(i).in(kwLocal, kwGlobal, kwTemp, kwTemporary, kwUnlogged)
		if r.key(i) != kwTable && !(kind && (r.isName(i+1) || r.key(i+1) == kwTable)) {
			return i
		}
	}
}

// expression reads a word whose parenthesis is no call.
func (r *reader) expression(i int, k keyword) (next int, ok bool) {
	switch k {
	case kwTreat:
		// treat(x AS f) is f(x).
		if r.is(i+1, '(') {
			r.account("treat")
		}
	case kwOperator:
		if next, ok := r.operator(i); ok {
			return next, true
		}
		return 0, false
	case kwBy:
		if !r.key(i-1).in(kwGroup, kwOrder, kwPartition) {
			return 0, false
		}
	case kwSets:
		if r.key(i-1) != kwGrouping {
			return 0, false
		}
	case kwFirst, kwNext:
		if r.key(i-1) != kwFetch {
			return 0, false
		}
	case kwZone:
		if r.key(i-1) != kwTime || r.key(i-2) != kwAt {
			return 0, false
		}
	case kwVarying:
		if !r.key(i-1).in(kwCharacter, kwChar, kwNchar, kwBit) {
			return 0, false
		}
	case kwSecond:
		if r.key(i-1) != kwInterval && (r.key(i-1) != kwTo || !r.key(i-2).in(kwDay, kwHour, kwMinute)) {
			return 0, false
		}
	case kwExtract, kwSubstring, kwTrim, kwOverlay, kwPosition, kwNormalize:
		if !r.is(i+1, '(') {
			return 0, false
		}
		r.add(authz.FactFunction, "safe")
	case kwCube, kwRollup:
		if !r.top().grouping || !r.beginsGroup(i) {
			return 0, false
		}
	default:
		return 0, false
	}
	return i + 1, true
}

// beginsGroup reports whether the word at i is the first of an element of GROUP BY.
func (r *reader) beginsGroup(i int) bool {
	return r.key(i-1).in(kwBy, kwAll, kwDistinct) || r.is(i-1, ',') || i == int(r.top().start)
}

// operator reads OPERATOR(SCHEMA.+), which is a call if the schema is not pg_catalog. Its
// name does not end in *, which a rule would take for a prefix.
func (r *reader) operator(i int) (next int, ok bool) {
	if !r.is(i+1, '(') {
		return 0, false
	}
	j := i + 2
	for r.at(j).kind == tokenWord && r.is(j+1, '.') {
		j += 2
	}
	t := r.at(j)
	if t.kind != tokenOperator || !r.is(j+1, ')') || j == i+2 && t.char == '*' {
		return 0, false
	}
	if j > i+2 {
		if schema := r.name(j - 2); schema != "pg_catalog" {
			r.shown(schema)
			r.add(authz.FactFunction, schema+".operator("+r.text[t.start:t.end]+")")
		}
	}
	return j + 2, true
}

// call reads the name at i, which is called if a parenthesis follows.
func (r *reader) call(i int) int {
	j := r.chain(i)
	if r.at(j).kind == tokenString { // a constant of a type
		r.cast(i)
	}
	if !r.is(j, '(') || r.dotted(i) {
		r.attributes(i, j)
		return j
	}
	if r.ddl != ddlNone && len(r.frames) == 1 && r.key(i-1) == kwBy && r.key(i-2) == kwPartition { // PARTITION BY RANGE
		return j
	}
	if j-i == 1 {
		if k := r.key(i); k != noKeyword && !k.callable() || r.endsExpression(i-1) {
			return j
		}
		if r.key(i-1) == kwOrdinality && r.key(i-2) == kwWith { // an alias with columns
			return j
		}
	}
	r.function(i, j)
	return j
}

// attributes reads the names i..j-1 that are no call with a parenthesis. The server takes
// x.f and (x).f for f(x) where x has no column f, and (x).ts_stat runs the text x. Built-in
// functions that are not safe are calls therefore; for every other name, a column and a
// function look the same. The type of x does not narrow this: in FROM unnest(ARRAY['...']) x,
// x is a text, and the alias of a relation is not distinguished from it without its
// definition. So a column with the name of such a function is refused as t.f, and not as f.
func (r *reader) attributes(i, j int) {
	if !r.dotted(i) {
		if j-i == 1 {
			return
		}
		i = j - 1 // before it, names are those of a schema, a table or a column
	}
	for ; i < j; i += 2 {
		if name := r.name(i); isBuiltin(name) && !isSafe(name) {
			r.add(authz.FactFunction, "pg_catalog."+name)
		}
	}
}

// endsExpression reports whether the token surely ends an expression or a relation. A word
// behind it is an alias, a clause or an operator, and not a function.
func (r *reader) endsExpression(i int) bool {
	switch t := r.at(i); {
	case t.kind == tokenWord && r.top().options: // "path" f(x), as PATH f(x)
		return false
	case t.kind == tokenWord:
		return t.keyword == noKeyword || r.dotted(i)
	case t.kind == tokenString, t.kind == tokenNumber, t.kind == tokenParam:
		return true
	case t.kind == tokenPunct && t.char == ')':
		// DISTINCT ON (a) f(b), a OPERATOR(+) f(b), RETURNING WITH (OLD AS o) f(b)
		return !r.key(int(t.match)-1).in(kwOn, kwOperator, kwWith)
	default:
		return t.kind == tokenPunct && t.char == ']'
	}
}
