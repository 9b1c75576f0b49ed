package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// parseJSON returns the documents of a JSON file: one value after the other.
func parseJSON(file string, data []byte) ([]*node, Errors) {
	text, errs := checkText(file, data)
	if len(errs) > 0 {
		return nil, errs
	}
	r := jsonReader{text: text, decoder: json.NewDecoder(strings.NewReader(text))}
	r.decoder.UseNumber()
	var documents []*node
	for {
		root, err := r.value(0)
		if errors.Is(err, io.EOF) && root == nil {
			return documents, nil
		}
		if err == nil && len(documents) == maxDocuments {
			err = fmt.Errorf("holds more than %d documents; use several files", maxDocuments)
		}
		if err != nil {
			line, column := r.position(r.errorOffset(err))
			return nil, Errors{{File: file, Line: line, Column: column, Field: "json", Message: plainJSON(err)}}
		}
		documents = append(documents, root)
	}
}

// jsonReader builds nodes from the tokens of encoding/json, which returns
// where each one ends.
type jsonReader struct {
	text    string
	decoder *json.Decoder

	// The place up to which lines have been counted.
	offset, line, column int
}

// value reads one value at a depth. It returns io.EOF and no node at the end of the text.
func (r *jsonReader) value(depth int) (*node, error) {
	start := r.start()
	t, err := r.decoder.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("nests deeper than %d levels", maxDepth)
	}
	n := &node{}
	n.line, n.column = r.position(start)
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			n.kind = mappingKind
		} else {
			n.kind = sequenceKind
		}
		return n, r.inside(n, depth)
	case string:
		n.kind, n.text = textKind, t
	case json.Number:
		n.kind, n.text = numberKind, t.String()
	case bool:
		n.kind, n.text = boolKind, fmt.Sprint(t)
	}
	return n, nil
}

// inside reads what an object or an array holds, and its end.
func (r *jsonReader) inside(n *node, depth int) error {
	for r.decoder.More() {
		var f field
		if n.kind == mappingKind {
			f.line, f.column = r.position(r.start())
			key, err := r.decoder.Token()
			if err != nil {
				return unexpectedEnd(err)
			}
			f.key, _ = key.(string) // encoding/json takes no other key
		}
		value, err := r.value(depth + 1)
		if err != nil {
			return unexpectedEnd(err)
		}
		if n.kind == mappingKind {
			f.value = value
			n.fields = append(n.fields, f)
		} else {
			n.items = append(n.items, value)
		}
	}
	_, err := r.decoder.Token()
	return unexpectedEnd(err)
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// start returns the offset at which the next token begins.
func (r *jsonReader) start() int {
	at := int(r.decoder.InputOffset())
	rest := r.text[at:]
	return at + len(rest) - len(strings.TrimLeft(rest, " \t\r\n,:"))
}

func (r *jsonReader) errorOffset(err error) int {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return max(0, int(syntax.Offset)-1)
	}
	return int(r.decoder.InputOffset())
}

// position returns the line and column of an offset. Offsets mostly grow, so
// lines are counted on from the last one.
func (r *jsonReader) position(offset int) (line, column int) {
	offset = min(offset, len(r.text))
	if offset < r.offset || r.line == 0 {
		r.offset, r.line, r.column = 0, 1, 1
	}
	passed := r.text[r.offset:offset]
	if i := strings.LastIndexByte(passed, '\n'); i >= 0 {
		r.line += strings.Count(passed, "\n")
		r.column = 1
		passed = passed[i+1:]
	}
	r.column += utf8.RuneCountInString(passed)
	r.offset = offset
	return r.line, r.column
}

// plainJSON returns what is wrong with JSON, in other words than encoding/json's.
func plainJSON(err error) string {
	text := strings.TrimPrefix(err.Error(), "json: ")
	if errors.Is(err, io.ErrUnexpectedEOF) || strings.HasPrefix(text, "unexpected end of JSON") {
		return "the file ends within a value; close every quote, [ and { that is open"
	}
	rest, ok := strings.CutPrefix(text, "invalid character ")
	if !ok {
		return text
	}
	for _, known := range []struct{ goes, says string }{
		{" looking for beginning of object key string", " stands where a name in double quotes should; remove the comma before it, or write the quotes"},
		{" looking for beginning of value", " stands where a value should; remove the comma before it, or quote a text"},
		{" after object key:value pair", " stands where a comma or } should; write one of the two before it"},
		{" after array element", " stands where a comma or ] should; write one of the two before it"},
		{" after object key", " stands where a colon should; write : before it"},
		{" after top-level value", " stands after the end of the document; remove it, or write the documents in YAML with --- between them"},
		{" in string literal", " is in a text; write it as an escape, as in \\n"},
		{" in string escape code", " is no escape; write \\\\ for a backslash"},
	} {
		if character, ok := strings.CutSuffix(rest, known.goes); ok {
			return character + known.says
		}
	}
	return text
}
