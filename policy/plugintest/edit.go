package plugintest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document is the text of a file of which mappings are edited in place. The syntax tree
// locates them; printing the tree would change the layout of the whole file.
type document struct {
	text     string
	lines    []int // the offset of each line
	mappings map[[2]int]*ast.MappingNode
	json     bool
	crlf     bool // lines end as on Windows, in text as elsewhere
	edits    []textEdit
}

// textEdit replaces the bytes from start to end.
type textEdit struct {
	start, end int
	text       string
}

// parseDocument parses a file that the loader has accepted.
func parseDocument(data []byte, json bool) (d *document, err error) {
	defer func() { // as in configs: a parser that panics is an error
		if p := recover(); p != nil {
			d, err = nil, fmt.Errorf("the text cannot be edited: %v", p)
		}
	}()
	d = &document{text: strings.ReplaceAll(string(data), "\r\n", "\n"), lines: []int{0}, mappings: map[[2]int]*ast.MappingNode{}, json: json}
	d.crlf = len(d.text) < len(data)
	switch {
	case strings.HasPrefix(d.text, "\ufeff"):
		return nil, errors.New("the text begins with a byte order mark; remove it")
	case d.crlf && len(data)-len(d.text) != strings.Count(d.text, "\n"):
		return nil, errors.New("some lines end in CR LF and some in LF; use one of the two")
	}
	for i := range len(d.text) {
		if d.text[i] == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	file, err := parser.ParseBytes([]byte(d.text), 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, fmt.Errorf("the text cannot be edited: %w", err)
	}
	for _, doc := range file.Docs {
		if doc.Body != nil {
			ast.Walk(d, doc.Body)
		}
	}
	return d, nil
}

// Visit notes where mappings begin (ast.Visitor).
func (d *document) Visit(n ast.Node) ast.Visitor {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		at := m.Values[0].Key.GetToken().Position
		if m.IsFlowStyle {
			at = m.Start.Position
		}
		d.mappings[[2]int{at.Line, at.Column}] = m
	}
	return d
}

// offset returns where a line and a column, both from 1 and in characters, are in the text.
func (d *document) offset(p *token.Position) (int, error) {
	if p.Line < 1 || p.Line > len(d.lines) {
		return 0, fmt.Errorf("line %d is not in the text", p.Line)
	}
	at := d.lines[p.Line-1]
	for range p.Column - 1 {
		_, size := utf8.DecodeRuneInString(d.text[at:])
		at += size
	}
	return at, nil
}

// span returns where a scalar is in the text.
func (d *document) span(t *token.Token) (start, end int, err error) {
	if start, err = d.offset(t.Position); err != nil {
		return 0, 0, err
	}
	rest := d.text[start:]
	switch t.Type {
	case token.DoubleQuoteType:
		for i := 1; i < len(rest); i++ {
			switch rest[i] {
			case '\\':
				i++
			case '"':
				return start, start + i + 1, nil
			}
		}
	case token.SingleQuoteType:
		for i := 1; i < len(rest); i++ {
			if rest[i] != '\'' {
				continue
			}
			if i+1 < len(rest) && rest[i+1] == '\'' {
				i++
				continue
			}
			return start, start + i + 1, nil
		}
	default:
		if value := strings.TrimSpace(t.Value); value != "" && strings.HasPrefix(rest, value) {
			return start, start + len(value), nil
		}
	}
	return 0, 0, errSeveralLines
}

var errSeveralLines = errors.New("a value is not written on one line; write the expectation on one line")

// entry is one field of a mapping in the text.
type entry struct {
	name                                   string
	keyStart, keyEnd, valueStart, valueEnd int
}

func (d *document) entries(m *ast.MappingNode) (out []entry, err error) {
	for _, v := range m.Values {
		e := entry{name: v.Key.GetToken().Value}
		if _, block := v.Value.(*ast.LiteralNode); block {
			return nil, errSeveralLines
		}
		if e.keyStart, e.keyEnd, err = d.span(v.Key.GetToken()); err == nil {
			e.valueStart, e.valueEnd, err = d.span(v.Value.GetToken())
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// set has the mapping at a place state the fields. form is the field of the mapping that
// the first one replaces.
func (d *document) set(line, column int, form string, fields []field) error {
	m := d.mappings[[2]int{line, column}]
	if m == nil {
		return errors.New("the expectation is not found in the text")
	}
	entries, err := d.entries(m)
	if err != nil {
		return err
	}
	var kept []field
	for _, f := range fields {
		if f.value != "" || f.name == "credential" {
			kept = append(kept, f)
		}
	}
	if m.IsFlowStyle {
		return d.setFlow(m, entries, form, kept)
	}
	return d.setBlock(entries, form, kept)
}

// value writes a text in the file's syntax.
func (d *document) value(s string) string {
	if d.json {
		return quote(s)
	}
	return scalar(s)
}

func (d *document) key(s string) string {
	if d.json {
		return quote(s)
	}
	return s
}

// setFlow writes a mapping in braces again. A value that is kept keeps its spelling.
func (d *document) setFlow(m *ast.MappingNode, entries []entry, form string, fields []field) error {
	start, err := d.offset(m.Start.Position)
	if err != nil {
		return err
	}
	end, err := d.offset(m.End.Position)
	if err != nil {
		return err
	}
	end++ // behind the brace
	if old := d.text[start:end]; !d.json && strings.Contains(old, "\n") && strings.Contains(old, "#") {
		return errors.New("the expectation is in braces and has a comment inside; write the comment above it")
	}
	var parts []string
	for _, f := range ordered(entries, form, fields) {
		part := d.key(f.name) + ": " + d.value(f.value)
		i := slices.IndexFunc(entries, func(e entry) bool { return e.name == f.name || f.name == fields[0].name && e.name == form })
		if i >= 0 && !d.differs(entries[i], f) {
			part = d.key(f.name) + ": " + d.text[entries[i].valueStart:entries[i].valueEnd]
		}
		parts = append(parts, part)
	}
	d.edits = append(d.edits, textEdit{start, end, "{" + strings.Join(parts, ", ") + "}"})
	return nil
}

// differs reports whether a field's value is not the one that is written.
func (d *document) differs(e entry, f field) bool {
	raw := d.text[e.valueStart:e.valueEnd]
	return raw != f.value && raw != d.value(f.value) && raw != quote(f.value) && raw != "'"+f.value+"'"
}

// ordered returns the fields in the order of the entries, and new ones after the first.
func ordered(entries []entry, form string, fields []field) []field {
	rank := func(f field) int {
		for i, e := range entries {
			if e.name == f.name || f.name == fields[0].name && e.name == form {
				return 2 * i
			}
		}
		return 1 // behind the first
	}
	out := slices.Clone(fields)
	slices.SortStableFunc(out, func(a, b field) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

// setBlock edits a mapping with a field on each line.
func (d *document) setBlock(entries []entry, form string, fields []field) error {
	written := map[string]bool{}
	for i, e := range entries {
		name := e.name
		if name == form {
			name = fields[0].name
		}
		j := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if j < 0 {
			if i == 0 {
				return fmt.Errorf("the expectation begins with %s, which is to be removed; begin it with %s", e.name, form)
			}
			d.remove(e)
			continue
		}
		written[name] = true
		if name != e.name {
			d.edits = append(d.edits, textEdit{e.keyStart, e.keyEnd, d.key(name)})
		}
		if d.differs(e, fields[j]) {
			d.edits = append(d.edits, textEdit{e.valueStart, e.valueEnd, d.value(fields[j].value)})
		}
	}
	at, indent := d.endOfLine(entries[0].valueEnd), entries[0].keyStart-d.startOfLine(entries[0].keyStart)
	var added strings.Builder
	for _, f := range fields {
		if !written[f.name] {
			added.WriteString("\n" + strings.Repeat(" ", indent) + d.key(f.name) + ": " + d.value(f.value))
		}
	}
	if added.Len() > 0 {
		d.edits = append(d.edits, textEdit{at, at, added.String()})
	}
	return nil
}

// remove removes a field with its line. A comment behind it stays on a line of its own.
func (d *document) remove(e entry) {
	start, end := d.startOfLine(e.keyStart), d.endOfLine(e.valueEnd)
	rest := strings.TrimSpace(d.text[e.valueEnd:end])
	if rest != "" {
		comment := strings.Index(d.text[e.valueEnd:end], "#")
		d.edits = append(d.edits, textEdit{e.keyStart, e.valueEnd + max(comment, 0), ""})
		return
	}
	d.edits = append(d.edits, textEdit{start, min(end+1, len(d.text)), ""})
}

func (d *document) startOfLine(at int) int { return strings.LastIndexByte(d.text[:at], '\n') + 1 }

// endOfLine returns where the line's text ends, before its line end.
func (d *document) endOfLine(at int) int {
	if i := strings.IndexByte(d.text[at:], '\n'); i >= 0 {
		return at + i
	}
	return len(d.text)
}

// apply returns the edited text.
func (d *document) apply() []byte {
	slices.SortStableFunc(d.edits, func(a, b textEdit) int { return cmp.Compare(a.start, b.start) })
	var out strings.Builder
	at := 0
	for _, e := range d.edits {
		out.WriteString(d.text[at:e.start] + e.text)
		at = e.end
	}
	out.WriteString(d.text[at:])
	if d.crlf {
		return []byte(strings.ReplaceAll(out.String(), "\n", "\r\n"))
	}
	return []byte(out.String())
}
