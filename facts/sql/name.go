package sql

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
)

// opaqueName is the opaque fact of a statement with a name that a fact cannot show.
const opaqueName = "name"

// chain returns the end of the dotted name at i.
func (r *reader) chain(i int) int {
	i++
	for r.is(i, '.') && r.at(i+1).kind == tokenWord {
		i += 2
	}
	return i
}

// name returns the name of a word as the server reads it: folded or taken out of its
// quotes, and cut to 63 bytes. A statement with a name that cannot be read is opaque.
func (r *reader) name(i int) string {
	t := r.at(i)
	s := r.text[t.start:t.end]
	switch {
	case t.flags&flagUnicode != 0:
		decoded, ok := unescape(strings.ReplaceAll(s[3:len(s)-1], `""`, `"`), byte(t.match))
		if !ok {
			r.account(opaqueName)
		}
		s = decoded
	case t.flags&flagQuoted != 0:
		s = strings.ReplaceAll(s[1:len(s)-1], `""`, `"`)
	default:
		s = r.fold(s)
	}
	if len(s) > maxName {
		if strings.ContainsFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) {
			r.account(opaqueName) // where it is cut depends on the encoding of the database
		}
		s = s[:maxName]
	}
	return s
}

// fold folds a name without quotes as the server does: ASCII only. A database whose
// encoding has one byte for each character folds others too, so that those are opaque.
func (r *reader) fold(s string) string {
	upper := false
	for _, c := range s {
		upper = upper || c >= 'A' && c <= 'Z'
		if c >= utf8.RuneSelf && unicode.ToLower(c) != c {
			r.account(opaqueName)
		}
	}
	if !upper {
		return s
	}
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, s)
}

// unescape decodes a name of the form U&"d\0061t\+000061", without its quotes.
func unescape(s string, escape byte) (string, bool) {
	var out strings.Builder
	for i := 0; i < len(s); {
		if s[i] != escape {
			out.WriteByte(s[i])
			i++
			continue
		}
		if i+1 < len(s) && s[i+1] == escape {
			out.WriteByte(escape)
			i += 2
			continue
		}
		c, n := codepoint(s[i+1:])
		i += 1 + n
		if utf16.IsSurrogate(c) {
			if i >= len(s) || s[i] != escape {
				return "", false
			}
			low, m := codepoint(s[i+1:])
			c, i = utf16.DecodeRune(c, low), i+1+m
		}
		if n == 0 || c <= 0 || c == unicode.ReplacementChar || !utf8.ValidRune(c) {
			return "", false
		}
		out.WriteRune(c)
	}
	return out.String(), true
}

// codepoint reads XXXX or +XXXXXX and returns how long it is, 0 if it is neither.
func codepoint(s string) (rune, int) {
	from, to := 0, 4
	if strings.HasPrefix(s, "+") {
		from, to = 1, 7
	}
	if len(s) < to {
		return 0, 0
	}
	var c rune
	for _, d := range []byte(s[from:to]) {
		switch {
		case d >= '0' && d <= '9':
			c = c<<4 | rune(d-'0')
		case lower(d) >= 'a' && lower(d) <= 'f':
			c = c<<4 | rune(lower(d)-'a'+10)
		default:
			return 0, 0
		}
	}
	return c, to
}

// shown checks that a name can be part of SCHEMA.NAME without being taken for another, or
// for a prefix.
func (r *reader) shown(name string) {
	for i := range len(name) {
		if c := name[i]; c == '.' || c == '*' || c < ' ' || c == 0x7f {
			r.account(opaqueName)
		}
	}
	if name == "" {
		r.account(opaqueName)
	}
}

// parts returns the last two names of the dotted name i..j-1; the schema is "" if it has one.
func (r *reader) parts(i, j int) (schema, name string) {
	name = r.name(j - 1)
	r.shown(name)
	if j-i > 1 {
		schema = r.name(j - 3)
		r.shown(schema)
	}
	return schema, name
}

// table adds the fact of the relation i..j-1. One without a schema is in pg_catalog if
// that has it, or else in public: the session's search_path is pinned. A name like pg_x
// that this package does not have may be in either.
func (r *reader) table(i, j int, target bool) {
	schema, name := r.parts(i, j)
	if schema == "" {
		schema = "public"
		if strings.HasPrefix(name, "pg_") {
			schema = "pg_catalog"
			if !contains(systemRelations[:], "pg_catalog."+name) {
				r.add(authz.FactTable, "public."+name)
			}
		}
	}
	full := schema + "." + name
	if !target && (schema == "pg_catalog" || schema == "information_schema") && contains(catalogRelations[:], full) {
		if !slices.Contains(r.catalog, full) && len(r.catalog) <= authz.MaxFacts {
			r.catalog = append(r.catalog, full)
		}
		return
	}
	r.add(authz.FactTable, full)
}

// function adds the fact of a call of i..j-1, whose arguments begin behind the parenthesis
// at j.
func (r *reader) function(i, j int) {
	schema, name := r.parts(i, j)
	if schema == "" {
		switch {
		case isBuiltin(name):
			schema = "pg_catalog"
		case strings.HasPrefix(name, "pg_"):
			schema = "pg_catalog"
			r.add(authz.FactFunction, "public."+name)
		default:
			schema = "public"
		}
	}
	if schema != "pg_catalog" {
		r.add(authz.FactFunction, schema+"."+name)
		return
	}
	// The first argument of some functions names what they touch.
	switch name {
	case "set_config":
		r.setConfig(j)
	case "current_setting":
		r.currentSetting(j)
	case "nextval", "currval", "setval":
		r.sequence(name, j)
	default:
		if isSafe(name) {
			r.add(authz.FactFunction, "safe")
			return
		}
		r.add(authz.FactFunction, "pg_catalog."+name)
	}
}

// constant returns the value of the argument at i, if it is a plain string and nothing
// more.
func (r *reader) constant(i int) (string, bool) {
	t := r.at(i)
	if t.kind != tokenString || t.flags&flagPlain == 0 || !r.is(i+1, ',') && !r.is(i+1, ')') {
		return "", false
	}
	return r.text[t.start+1 : t.end-1], true
}

// setConfig reads set_config(name, value, is_local). The name must be constant, and the
// value too where it matters.
func (r *reader) setConfig(open int) {
	name, ok := r.constant(open + 1)
	if !ok {
		r.account("set-config")
		return
	}
	value, ok := r.constant(open + 3)
	r.setting(name, value, ok)
}

// currentSetting reads current_setting(name): of a setting that sessions may set, it shows
// what they set.
func (r *reader) currentSetting(open int) {
	if setting, ok := r.constant(open + 1); ok && harmless(strings.ToLower(setting)) {
		r.add(authz.FactFunction, "safe")
		return
	}
	r.add(authz.FactFunction, "pg_catalog.current_setting")
}

// sequence reads nextval('SCHEMA.NAME') and its like: the sequence is a table fact. Any
// other argument is opaque.
func (r *reader) sequence(name string, open int) {
	r.add(authz.FactFunction, "pg_catalog."+name)
	text, ok := r.constant(open + 1)
	if cast := r.at(open + 2); !ok && cast.kind == tokenOperator && r.text[cast.start:cast.end] == "::" && r.key(open+3) == noKeyword && r.at(open+3).kind == tokenWord &&
		r.name(open+3) == "regclass" && r.is(open+4, ')') { // 'name'::regclass
		t := r.at(open + 1)
		ok = t.kind == tokenString && t.flags&flagPlain != 0
		if ok {
			text = r.text[t.start+1 : t.end-1]
		}
	}
	if !ok {
		r.account("sequence")
		return
	}
	// The server reads the text as a dotted name.
	inner := reader{text: text}
	tokens, reason := lex(text, nil)
	inner.tokens, inner.end = tokens, len(tokens)
	if reason != "" || len(tokens) == 0 || tokens[0].kind != tokenWord || inner.chain(0) != len(tokens) {
		r.account("sequence")
		return
	}
	inner.table(0, len(tokens), true)
	for _, f := range inner.st.Facts {
		r.add(f.Kind, f.Name)
	}
	if inner.opaque != "" {
		r.account(inner.opaque)
	}
}
