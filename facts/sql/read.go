package sql

import (
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Reading is what one text, as in a Query or Parse message, does.
type Reading struct {
	// Statements are those of the text in their order, without empty ones.
	Statements []Statement
	// Unreadable is why the text could not be read, "" if it could. It is a fixed sentence
	// without a word of the text. Statements are then nil.
	Unreadable string
}

// Statement is one statement of a text.
type Statement struct {
	// Verb is the first verb, as in select, copy-in or begin; for an opaque statement it is
	// the kind of its opaque fact, as in do.
	Verb string
	// Facts are what the statement does, without the database, each once. An opaque
	// statement has its opaque fact and forbidden facts only.
	Facts []authz.Fact
	// Start and End are where the statement is in the text, in bytes.
	Start, End int
	// Prepares is the name that a PREPARE gives its content, whose facts are part of Facts.
	// The server refuses a name in use, so that facts of a name add up until it is
	// deallocated.
	Prepares string
	// Executes is the name that an EXECUTE runs, also in EXPLAIN and CREATE TABLE AS. The
	// facts of that name, or [UnknownName], belong to the statement.
	Executes string
	// Declares is the name that a DECLARE gives a cursor, and Fetches the cursor that FETCH
	// or MOVE reads. A cursor has the name of a portal.
	Declares, Fetches string
	// Deallocates is the name that a DEALLOCATE forgets.
	Deallocates string
	// DeallocatesAll is set for DEALLOCATE ALL and DISCARD ALL.
	DeallocatesAll bool
	// CopiesIn is set for COPY FROM, also of an opaque one: the client's data follow.
	CopiesIn bool
	// ResetsPins is set for RESET ALL and DISCARD ALL: the settings that the session pins
	// are to be sent again before the next statement.
	ResetsPins bool
}

// UnknownName returns the fact of an EXECUTE of a name that was not seen prepared.
func UnknownName() authz.Fact { return authz.Fact{Kind: authz.FactOpaque, Name: "execute"} }

const (
	reasonMany = "the statement does more than a request can have facts"
	// mostStatements is how many statements a text has at most.
	mostStatements = 1000
	// mostNames is how many common table expressions are in scope at most.
	mostNames = 256
	// fewFrames is how deeply the brackets of most texts are nested.
	fewFrames = 4
)

// restrictRelations is what pg_dump sends before it reads tables, so that no view is read
// in their place (CVE-2024-7348). It sets one setting, on servers that have it.
const restrictRelations = "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'"

// Read reads a text. It takes time in proportion to the length of the text, and nothing
// of the text is kept but names.
func Read(text string) Reading {
	if text == restrictRelations {
		return Reading{Statements: []Statement{{Verb: "select", End: len(text), Facts: []authz.Fact{
			{Kind: authz.FactVerb, Name: "select"}, {Kind: authz.FactSetting, Name: "restrict_nonsystem_relation_kind"},
		}}}}
	}
	tokens, reason := lex(text, room(text))
	if reason == "" {
		reason = matchBrackets(tokens)
	}
	if reason != "" {
		return Reading{Unreadable: reason}
	}
	r := reader{text: text, tokens: tokens, frames: make([]frame, 0, fewFrames)}
	var out []Statement
	for from := 0; from < len(tokens); {
		end := r.statementEnd(from)
		if end > from {
			st, ok := r.statement(from, end)
			if !ok || len(out) == mostStatements {
				return Reading{Unreadable: reasonMany}
			}
			out = append(out, st)
		}
		from = end + 1
	}
	return Reading{Statements: out}
}

// room returns a list for the tokens of a text, which need to be moved for few texts only.
func room(text string) []token {
	const letters, least, most = 3, 8, 1 << 12
	return make([]token, 0, min(len(text)/letters+least, most))
}

// matchBrackets gives each bracket the index of the other. It returns a reason if one has
// no other, or if they are nested too deeply: PostgreSQL refuses both.
func matchBrackets(tokens []token) (reason string) {
	var few [32]int32
	open := few[:0]
	for i := range tokens {
		t := &tokens[i]
		if t.kind != tokenPunct {
			continue
		}
		switch t.char {
		case '(', '[':
			if len(open) == maxDepth {
				return reasonDepth
			}
			open = append(open, int32(i))
		case ')', ']':
			if len(open) == 0 {
				return reasonBrackets
			}
			last := open[len(open)-1]
			open = open[:len(open)-1]
			if (tokens[last].char == '(') != (t.char == ')') {
				return reasonBrackets
			}
			t.match, tokens[last].match = last, int32(i)
		}
	}
	if len(open) > 0 {
		return reasonBrackets
	}
	return ""
}

// want is what a name at the next token would be.
type want uint8

const (
	wantNothing want = iota
	wantRelation
	wantTarget  // a table that is written, which is never a common table expression
	wantDeleted // a target, or a relation behind a column that is named delete
)

// reader reads the statements of a text, one at a time.
type reader struct {
	text   string
	tokens []token

	st      Statement
	end     int // of the tokens of the statement
	want    want
	ddl     ddl
	frames  []frame
	ctes    []string // the names of common table expressions in scope
	catalog []string // the relations that may become the fact table:catalog
	opaque  string
	many    bool
}

// frame is what is known of the tokens between two brackets, or of a statement.
type frame struct {
	list      bool // a comma separates relations
	sugar     bool // FROM separates arguments, as in extract(day FROM d)
	selected  bool // SELECT was seen
	inserts   bool // INSERT was seen: VALUES is no query of its own
	merges    bool // MERGE INTO was seen: USING takes one relation
	options   bool // of the columns of XMLTABLE: a word may be before an expression
	grouping  bool // CUBE and ROLLUP are no functions
	with      bool // in the list of a WITH, between its bodies
	recursive bool // that list is recursive

	start int32  // the index of its first token
	ctes  int32  // the number of names when the frame began
	late  int32  // those of a WITH that ends at RETURNING or ON CONFLICT begin here, plus one
	cte   string // the name that comes into scope when the frame ends
}

// top returns the innermost frame.
func (r *reader) top() *frame { return &r.frames[len(r.frames)-1] }

func (r *reader) statementEnd(from int) int {
	for i := from; i < len(r.tokens); i++ {
		switch t := &r.tokens[i]; {
		case t.kind != tokenPunct:
		case t.char == ';':
			return i
		case t.char == '(' || t.char == '[':
			i = int(t.match)
		}
	}
	return len(r.tokens)
}

// statement reads the statement of the tokens from..end-1; not ok if it has too many facts.
func (r *reader) statement(from, end int) (_ Statement, ok bool) {
	r.st = Statement{Start: int(r.tokens[from].start), End: int(r.tokens[end-1].end)}
	r.end, r.opaque, r.want, r.ddl = end, "", wantNothing, ddlNone
	r.frames, r.ctes, r.catalog = r.frames[:0], r.ctes[:0], r.catalog[:0]
	r.head(from)
	r.finish()
	return r.st, !r.many
}

// finish adds the facts that need the whole statement, and leaves those of an opaque one
// that hold whatever it does.
func (r *reader) finish() {
	if r.opaque != "" {
		facts := slices.DeleteFunc(r.st.Facts, func(f authz.Fact) bool { return f.Kind != authz.FactForbidden })
		r.st.Facts = append(facts, authz.Fact{Kind: authz.FactOpaque, Name: r.opaque})
		r.st.Verb = r.opaque
		return
	}
	if len(r.catalog) == 0 {
		return
	}
	reads := !slices.ContainsFunc(r.st.Facts, func(f authz.Fact) bool {
		return f.Kind == authz.FactVerb && !ReadingVerb(f.Name) && !passes(f.Name)
	})
	for _, name := range r.catalog {
		if reads {
			name = "catalog"
		}
		r.add(authz.FactTable, name)
	}
}

// add adds a fact once.
func (r *reader) add(kind authz.FactKind, name string) {
	for _, f := range r.st.Facts {
		if f.Kind == kind && f.Name == name {
			return
		}
	}
	if len(r.st.Facts) == authz.MaxFacts-1 { // one is the database
		r.many = true
		return
	}
	if r.st.Facts == nil {
		r.st.Facts = make([]authz.Fact, 0, 4)
	}
	r.st.Facts = append(r.st.Facts, authz.Fact{Kind: kind, Name: name})
}

func (r *reader) verb(name string) {
	if r.st.Verb == "" {
		r.st.Verb = name
	}
	r.add(authz.FactVerb, name)
}

func (r *reader) forbid(what string) {
	if r.st.Verb == "" {
		r.st.Verb = what
	}
	r.add(authz.FactForbidden, what)
}

// account notes that the statement is opaque, for the first reason.
func (r *reader) account(kind string) {
	if r.opaque == "" {
		r.opaque = kind
	}
}

// at returns a token of the statement, or an empty one.
func (r *reader) at(i int) token {
	if i < 0 || i >= r.end {
		return token{kind: tokenPunct}
	}
	return r.tokens[i]
}

// key returns the keyword at a place, noKeyword for other words and in a dotted name.
func (r *reader) key(i int) keyword {
	t := r.at(i)
	if t.keyword == noKeyword || r.dotted(i) || r.is(i+1, '.') && !t.keyword.reserved() {
		return noKeyword
	}
	return t.keyword
}

func (r *reader) is(i int, punct byte) bool {
	t := r.at(i)
	return t.kind == tokenPunct && t.char == punct
}

// dotted reports whether a dot is before the token.
func (r *reader) dotted(i int) bool { return i > 0 && r.is(i-1, '.') }

// isName reports whether the token is a word that can be a name where it stands.
func (r *reader) isName(i int) bool {
	t := r.at(i)
	return t.kind == tokenWord && (t.keyword == noKeyword || r.dotted(i) || !t.keyword.reserved())
}

// isRelation reports whether the token is a word that can be the name of a relation.
func (r *reader) isRelation(i int) bool {
	t := r.at(i)
	return t.kind == tokenWord && (t.keyword == noKeyword || t.keyword.relation())
}
