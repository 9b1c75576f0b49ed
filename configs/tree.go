package configs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of what is read. The parser recurses once for each level and once for
// each field of a mapping, so both are bounded before it runs.
const (
	maxFileSize  = 1 << 20
	maxDocuments = 1000
	maxDepth     = 16
	maxFields    = 1000 // of one mapping
	maxKey       = 256  // bytes of one field's name
	maxBlank     = 100  // empty lines in a row: the lexer takes their square in time
)

// kind is what a node holds.
type kind uint8

const (
	nullKind kind = iota
	textKind
	numberKind
	boolKind
	sequenceKind
	mappingKind
)

// String names the kind as a message to the writer of a file does.
func (k kind) String() string {
	switch k {
	case textKind:
		return "text"
	case numberKind:
		return "a number"
	case boolKind:
		return "true or false"
	case sequenceKind:
		return "a list"
	case mappingKind:
		return "a mapping"
	case nullKind:
	}
	return "nothing"
}

// node is one value of a document and where it was written.
type node struct {
	kind         kind
	line, column int
	text         string  // of a scalar; as it was written for numbers
	items        []*node // of a sequence
	fields       []field // of a mapping, in the order of the file, repetitions included
}

// field is one entry of a mapping.
type field struct {
	key          string
	line, column int
	value        *node
}

// find returns the node that a path as spec.rules[0].to names, and otherwise
// the deepest one on the way to it.
func (n *node) find(path string) *node {
	for path != "" {
		next, rest := n.step(path)
		if next == nil {
			return n
		}
		n, path = next, rest
	}
	return n
}

// step returns the node below n where path begins, or nil, and the rest of the
// path. The names of some fields hold dots, so the longest that fits is taken.
func (n *node) step(path string) (next *node, rest string) {
	if inner, ok := strings.CutPrefix(path, "["); ok {
		digits, rest, _ := strings.Cut(inner, "]")
		i, err := strconv.Atoi(digits)
		if err != nil || i < 0 || i >= len(n.items) {
			return nil, ""
		}
		return n.items[i], rest
	}
	path = strings.TrimPrefix(path, ".")
	longest := 0
	for _, f := range n.fields {
		after, ok := strings.CutPrefix(path, f.key)
		if ok && len(f.key) > longest && (after == "" || after[0] == '.' || after[0] == '[') {
			longest, next, rest = len(f.key), f.value, after
		}
	}
	return next, rest
}

// child returns the value of a mapping's field, or nil.
func (n *node) child(name string) *node {
	for _, f := range n.fields {
		if f.key == name {
			return f.value
		}
	}
	return nil
}

// parseYAML returns the documents of a YAML file. Documents that hold nothing
// are left out.
func parseYAML(file string, data []byte) (documents []*node, errs Errors) {
	text, errs := checkText(file, data)
	if len(errs) > 0 {
		return nil, errs
	}
	// A parser that panics on a malformed file must not take a running
	// sidecar with it: a file it cannot read is an error like any other.
	defer func() {
		if p := recover(); p != nil {
			documents, errs = nil, Errors{{File: file, Message: fmt.Sprintf("not YAML that can be read: %v", p)}}
		}
	}()
	// The lexer counts some line ends of Windows twice.
	tokens := lexer.Tokenize(strings.ReplaceAll(text, "\r\n", "\n"))
	if errs := checkTokens(file, tokens); len(errs) > 0 {
		return nil, errs
	}
	parts := splitDocuments(tokens)
	if len(parts) > maxDocuments {
		return nil, Errors{{File: file, Message: fmt.Sprintf("holds more than %d documents; use several files", maxDocuments)}}
	}
	for _, part := range parts {
		root, err := parseDocument(file, part)
		if err != nil {
			errs = append(errs, *err)
		} else {
			documents = append(documents, root)
		}
	}
	return documents, errs
}

// checkText returns data as text without a byte order mark, and refuses what
// no document may hold.
func checkText(file string, data []byte) (string, Errors) {
	text := strings.TrimPrefix(string(data), "\ufeff")
	line, column := 1, 0
	blank, empty := 0, true // empty lines in a row, and whether this one is
	for i, r := range text {
		column++
		_, size := utf8.DecodeRuneInString(text[i:])
		what := ""
		switch {
		case r == '\n' && empty && blank == maxBlank:
			return "", Errors{{File: file, Line: line, Column: 1, Message: fmt.Sprintf("holds more than %d empty lines in a row; remove them", maxBlank)}}
		case r == '\n':
			if blank++; !empty {
				blank = 0
			}
			line, column, empty = line+1, 0, true
		case r == utf8.RuneError && size == 1:
			what = "a byte that is not UTF-8"
		case r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85:
			what = "a control character"
		case r == '\u2028' || r == '\u2029' || r == 0x85 || r == '\ufeff':
			what = "a line separator or byte order mark that readers of YAML disagree on"
		}
		empty = empty && strings.ContainsRune("\n\r\t ", r)
		if what != "" {
			return "", Errors{{File: file, Line: line, Column: column, Message: "holds " + what + "; save the file as plain UTF-8 text"}}
		}
	}
	return text, nil
}

// splitDocuments cuts the tokens of a file at --- and ... into those of its
// documents. The parser's own reading of several documents drops one that
// follows an empty one, so it is given one at a time.
func splitDocuments(tokens token.Tokens) []token.Tokens {
	var parts []token.Tokens
	var part token.Tokens
	end := func() {
		if len(part) > 0 {
			parts = append(parts, part)
		}
		part = nil
	}
	for _, t := range tokens {
		switch t.Type {
		case token.DocumentHeaderType, token.DocumentEndType:
			end()
		case token.CommentType:
		default:
			part = append(part, t)
		}
	}
	end()
	return parts
}

// checkTokens refuses the parts of YAML that let a reader see something else
// than what is loaded, and shapes beyond the bounds.
func checkTokens(file string, tokens token.Tokens) Errors {
	var errs Errors
	var shape shape
	for i, t := range tokens {
		message := shape.add(tokens, i)
		if message == "" {
			message = refusedToken(t)
		}
		if message == "" && i > 0 && tokens[i-1].Type != token.LiteralType && tokens[i-1].Type != token.FoldedType {
			message = refusedLines(t)
		}
		if message != "" {
			errs = append(errs, Error{File: file, Line: t.Position.Line, Column: t.Position.Column, Field: "yaml", Message: message})
		}
		if shape.broken || t.Type == token.InvalidType || len(errs) == maxErrors {
			break
		}
	}
	return errs
}

func refusedToken(t *token.Token) string {
	switch t.Type {
	case token.AnchorType:
		return "anchors (&) are not used here; write the value where it is needed"
	case token.AliasType:
		return `aliases (*) are not used here; put a text that starts with * in quotes, as in "*.example.com"`
	case token.MergeKeyType:
		return "merge keys (<<) are not used here; write the fields where they are needed"
	case token.TagType:
		return "tags (!) are not used here; put a text in quotes, as in \"!x\", and leave other values plain"
	case token.DirectiveType:
		return "directives (%) are not used here; remove the line"
	case token.MappingKeyType:
		return "complex keys (?) are not used here; write NAME: VALUE"
	case token.InvalidType:
		return visible(t.Error)
	}
	return ""
}

// refusedLines refuses plain text that goes on in the next line, where readers
// disagree on what a dash, a colon or a comment in it means.
func refusedLines(t *token.Token) string {
	if t.Type == token.StringType && strings.ContainsAny(strings.TrimSpace(t.Origin), "\r\n") {
		return "a text on several lines is put in quotes, or begins with | or >"
	}
	return ""
}

// visible spells out the tab in a message of the parser's.
func visible(message string) string {
	return strings.ReplaceAll(message, "'\t'", "tab (indent with spaces)")
}

// shape follows how deep a file nests, how many fields its mappings have, and
// how many values are left out, which costs the parser time by their square.
type shape struct {
	flow   []flow  // open [ and {
	levels []level // of blocks outside of them
	absent int
	broken bool
}

// level is one nested block, which starts at a column.
type level struct{ column, fields int }

// flow is an open [ or {, and what its current entry has.
type flow struct{ mapping, colon, value bool }

// add follows one token and returns what is wrong with the shape there.
func (s *shape) add(tokens token.Tokens, i int) string {
	t := tokens[i]
	isField := t.Type == token.MappingValueType && i > 0
	switch {
	case t.Type == token.DocumentHeaderType || t.Type == token.DocumentEndType:
		s.flow, s.levels = nil, nil
	case len(s.flow) > 0 || t.Type == token.SequenceStartType || t.Type == token.MappingStartType:
		s.inFlow(t.Type)
	case t.Type == token.SequenceEntryType:
		s.block(t.Position.Column)
		s.inBlock(tokens, i, t)
	case isField:
		s.block(tokens[i-1].Position.Column).fields++
		s.inBlock(tokens, i, tokens[i-1])
	}
	message := ""
	switch {
	case len(s.flow)+len(s.levels) > maxDepth:
		message = fmt.Sprintf("nests deeper than %d levels", maxDepth)
	case s.absent > maxFields:
		message = fmt.Sprintf("leaves out more than %d values", maxFields)
	case isField && len(tokens[i-1].Value) > maxKey:
		message = fmt.Sprintf("a field's name is longer than %d bytes", maxKey)
	case isField && len(s.flow) == 0 && s.levels[len(s.levels)-1].fields > maxFields:
		message = fmt.Sprintf("a mapping has more than %d fields", maxFields)
	}
	s.broken = message != ""
	return message
}

// inFlow follows a token inside [ ] and { }, or one that begins them.
func (s *shape) inFlow(t token.Type) {
	var top *flow
	if len(s.flow) > 0 {
		top = &s.flow[len(s.flow)-1]
	} else {
		top = &flow{}
	}
	switch t {
	case token.SequenceStartType, token.MappingStartType:
		top.value = true
		s.flow = append(s.flow, flow{mapping: t == token.MappingStartType})
	case token.MappingValueType:
		top.colon, top.value = true, false
	case token.CollectEntryType, token.SequenceEndType, token.MappingEndType:
		ends := t != token.CollectEntryType
		empty := ends && !top.colon && !top.value // as in [] and {a: b, }
		if !empty && (!top.value || top.mapping && !top.colon) {
			s.absent++
		}
		top.colon, top.value = false, false
		if ends {
			s.flow = s.flow[:len(s.flow)-1]
		}
	default:
		top.value = true
	}
}

// inBlock notes whether the dash or colon at token i, of an entry that begins
// with start, has no value after it.
func (s *shape) inBlock(tokens token.Tokens, i int, start *token.Token) {
	if i+1 == len(tokens) {
		s.absent++
		return
	}
	next := tokens[i+1]
	list := next.Type == token.SequenceEntryType && start != tokens[i] && next.Position.Column == start.Position.Column
	if next.Position.Line > tokens[i].Position.Line && next.Position.Column <= start.Position.Column && !list {
		s.absent++
	}
}

// block enters the level that starts at column, leaving those further right.
func (s *shape) block(column int) *level {
	for len(s.levels) > 0 && s.levels[len(s.levels)-1].column > column {
		s.levels = s.levels[:len(s.levels)-1]
	}
	if len(s.levels) == 0 || s.levels[len(s.levels)-1].column < column {
		s.levels = append(s.levels, level{column: column})
	}
	return &s.levels[len(s.levels)-1]
}

// parseDocument returns the tree of one document.
func parseDocument(file string, tokens token.Tokens) (*node, *Error) {
	first := tokens[0].Position
	fail := func(at *token.Position, message string) (*node, *Error) {
		return nil, &Error{File: file, Line: at.Line, Column: at.Column, Field: "yaml", Message: visible(message)}
	}
	// Repeated fields are reported with all else that is wrong.
	parsed, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax yaml.Error
		if errors.As(err, &syntax) && syntax.GetToken() != nil {
			return fail(syntax.GetToken().Position, syntax.GetMessage())
		}
		return fail(first, err.Error())
	}
	if len(parsed.Docs) != 1 {
		return fail(first, "not one document; check the indentation and the lines of three dashes")
	}
	b := builder{}
	root := b.node(parsed.Docs[0].Body, place{})
	if b.refused != nil {
		return fail(b.refused, b.why)
	}
	// A value that the parser left out would go unnoticed: every scalar that was
	// written must be in the tree.
	if written := countScalars(tokens); written != b.scalars {
		return fail(first, fmt.Sprintf("%d of the document's %d values cannot be placed; check the indentation", written-b.scalars, written))
	}
	return root, nil
}

func countScalars(tokens token.Tokens) int {
	n := 0
	for _, t := range tokens {
		switch t.Type {
		case token.StringType, token.SingleQuoteType, token.DoubleQuoteType, token.IntegerType, token.BinaryIntegerType,
			token.OctetIntegerType, token.HexIntegerType, token.FloatType, token.InfinityType, token.NanType, token.BoolType, token.NullType:
			n++
		}
	}
	return n
}

// builder turns the parser's nodes into ours. The parser takes some files whose
// indentation other readers refuse or understand otherwise, so the builder
// checks that each block is where its columns say.
type builder struct {
	scalars int             // that were written
	refused *token.Position // the first node that has no place here
	why     string
}

// place is where a node may stand: from a column on, or anywhere inside [ ] and { }.
type place struct {
	column int
	flow   bool
}

func (b *builder) refuse(t *token.Token, why string) {
	if b.refused == nil {
		b.refused, b.why = t.Position, why
	}
}

// stand refuses a token that is not in its place.
func (b *builder) stand(t *token.Token, in place) {
	if !in.flow && t.Position.Column < in.column {
		b.refuse(t, "is not indented to where it belongs; indent what is inside a field or an item further than its name or dash")
	}
}

func (b *builder) node(n ast.Node, in place) *node {
	if n == nil {
		return &node{}
	}
	t := n.GetToken()
	out := &node{line: t.Position.Line, column: t.Position.Column, text: t.Value}
	switch n := n.(type) {
	case *ast.MappingNode:
		b.mapping(out, n, in)
	case *ast.SequenceNode:
		b.sequence(out, n, in)
	case *ast.LiteralNode:
		b.stand(t, in)
		out.kind, out.text = textKind, n.Value.Value
		if n.Value.Token.Type == token.StringType && n.Value.Token.Position != n.Start.Position {
			b.scalars++
		}
	default:
		b.scalar(out, t, in)
	}
	return out
}

func (b *builder) scalar(out *node, t *token.Token, in place) {
	b.scalars++
	switch t.Type {
	case token.StringType, token.SingleQuoteType, token.DoubleQuoteType:
		out.kind = textKind
	case token.IntegerType, token.BinaryIntegerType, token.OctetIntegerType, token.HexIntegerType, token.FloatType, token.InfinityType, token.NanType:
		out.kind = numberKind
	case token.BoolType:
		out.kind = boolKind
	case token.NullType:
	case token.ImplicitNullType:
		b.scalars--
		return
	default:
		b.refuse(t, "not plain YAML; write mappings, lists, text, numbers, true and false")
	}
	b.stand(t, in)
}

func (b *builder) sequence(out *node, n *ast.SequenceNode, in place) {
	out.kind = sequenceKind
	b.stand(n.Start, in)
	in.flow = in.flow || n.IsFlowStyle
	for i, item := range n.Values {
		if !in.flow {
			dash := n.Entries[i].Start
			if dash.Position.Column != n.Start.Position.Column {
				b.refuse(dash, "is not indented as the items before it")
			}
			in.column = dash.Position.Column + 1
		}
		out.items = append(out.items, b.node(item, in))
	}
}

func (b *builder) mapping(out *node, n *ast.MappingNode, in place) {
	out.kind = mappingKind
	if n.IsFlowStyle {
		b.stand(n.Start, in)
		in.flow = true
	}
	for i, entry := range n.Values {
		key := entry.Key.GetToken()
		switch key.Type {
		case token.StringType, token.SingleQuoteType, token.DoubleQuoteType, token.IntegerType, token.BoolType:
			b.scalars++
		default:
			b.refuse(key, "is not a name; write NAME: VALUE")
		}
		b.stand(key, in)
		if i == 0 && !n.IsFlowStyle {
			out.line, out.column = key.Position.Line, key.Position.Column
		}
		value := in
		if !in.flow {
			if key.Position.Column != out.column {
				b.refuse(key, "is not indented as the fields before it")
			}
			value.column = out.column + 1
			if list, ok := entry.Value.(*ast.SequenceNode); ok && !list.IsFlowStyle {
				value.column = out.column // a list may begin below its field's name
			}
		}
		out.fields = append(out.fields, field{key.Value, key.Position.Line, key.Position.Column, b.node(entry.Value, value)})
	}
}
