package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
	"go.yaml.in/yaml/v3"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// The bounds of a file that is imported. The published descriptions of large APIs are
// below them.
const (
	maxImport = 16 << 20 // bytes
	maxDepth  = 100
	maxNodes  = 2_000_000
)

// kind is the kind of a [node].
type kind uint8

const (
	nullKind kind = iota
	textKind
	otherKind // a number or a boolean
	listKind
	mapKind
)

// node is a value of a foreign file, with its place. The zero node is a value that is not
// there: every question about it has an empty answer.
type node struct {
	kind         kind
	text         string // of a scalar, as written
	items        []*node
	fields       []member
	line, column int

	// The place in the file: paths are made for those alone that are shown, since the names of
	// fields may be long.
	parent *node
	name   string // of the field
	number int    // in a list, from 1; 0 for a field

	byName map[string]*node // of many fields; made by get
}

// path returns the place of the value, as in permissions.external.fetch.backend[0].
func (n *node) path() string {
	var parts []string
	for at := n; at.parent != nil; at = at.parent {
		switch {
		case at.number > 0:
			parts = append(parts, fmt.Sprintf("[%d]", at.number-1))
		case at.parent.parent == nil:
			parts = append(parts, printable.Clip(at.name, maxText))
		default:
			parts = append(parts, "."+printable.Clip(at.name, maxText))
		}
	}
	slices.Reverse(parts)
	return strings.Join(parts, "")
}

// member is one field of a mapping.
type member struct {
	name  string
	value *node
}

// get returns the value of a field, and the zero node without it.
func (n *node) get(names ...string) *node {
	for _, name := range names {
		next := n.field(name)
		if next == nil {
			next = &node{line: n.line, column: n.column, parent: n, name: name}
		}
		n = next
	}
	return n
}

// field returns the value of a field, nil without it.
func (n *node) field(name string) *node {
	const few = 16
	if len(n.fields) > few {
		if n.byName == nil {
			n.byName = make(map[string]*node, len(n.fields))
			for _, f := range n.fields {
				n.byName[f.name] = f.value
			}
		}
		return n.byName[name]
	}
	for _, f := range n.fields {
		if f.name == name {
			return f.value
		}
	}
	return nil
}

// exists reports whether the value is in the file and is not null.
func (n *node) exists() bool { return n.kind != nullKind }

// str returns a text, and "" for any other value.
func (n *node) str() string {
	if n.kind == textKind {
		return n.text
	}
	return ""
}

// isTrue reports whether the value is the boolean true.
func (n *node) isTrue() bool { return n.kind == otherKind && n.text == "true" }

// parseTree reads a foreign file strictly: JSON, JSON with comments, or YAML without anchors, aliases, tags and
// merge keys, with every name once. It reads no other file that the file names.
func parseTree(name string, data []byte) (*node, error) {
	if len(data) > maxImport {
		return nil, fmt.Errorf("%s: is %d bytes long; at most %d are read", name, len(data), maxImport)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%s: is not UTF-8", name)
	}
	var root *node
	var err error
	if first := bytes.TrimLeft(data, " \t\r\n\ufeff"); len(first) > 0 && (first[0] == '{' || first[0] == '/') {
		root, err = parseJSON(data)
	} else {
		root, err = parseYAML(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s:%s", name, printable.Clip(err.Error(), maxText))
	}
	if root.kind != mapKind {
		return nil, fmt.Errorf("%s:%d:%d: is not a mapping", name, root.line, root.column)
	}
	return root, nil
}

// placed returns an error that begins with its place.
func placed(line, column int, format string, args ...any) error {
	return fmt.Errorf("%d:%d: %w", line, column, fmt.Errorf(format, args...))
}

// jsonReader turns the tokens of encoding/json into nodes.
type jsonReader struct {
	data  []byte
	dec   *json.Decoder
	nodes int
	at    int // the offset up to which lines and columns were counted
	line  int
	runes int // of the line, before at
}

// parseJSON reads JSON, in which comments and trailing commas are allowed, as in deno.jsonc.
func parseJSON(data []byte) (*node, error) {
	if err := boundJSON(data); err != nil {
		return nil, err
	}
	plain, err := hujson.Standardize(bytes.TrimPrefix(data, []byte("\ufeff"))) // comments become spaces, so that offsets stay
	if err != nil {
		return nil, fmt.Errorf(" %s", strings.TrimPrefix(err.Error(), "hujson: "))
	}
	r := &jsonReader{data: plain, dec: json.NewDecoder(bytes.NewReader(plain)), line: 1}
	r.dec.UseNumber()
	root, err := r.value(&node{}, 0)
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, placed(r.line, 1, "has text after the JSON value")
	}
	return root, nil
}

// boundJSON refuses JSON that nests too deep or has too many values, before the library reads
// it, which has neither bound: each level is a call of a function.
func boundJSON(data []byte) error {
	depth, values := 0, 1
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; i < len(data) && data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '/':
			end := "*/"
			if i+1 < len(data) && data[i+1] == '/' {
				end = "\n"
			}
			n := bytes.Index(data[min(i+2, len(data)):], []byte(end))
			if n < 0 {
				return nil // the comment has no end, which the library reports
			}
			i += 1 + n + len(end)
		case '{', '[':
			depth, values = depth+1, values+1
		case ',':
			values++
		case '}', ']':
			depth--
		}
		if depth > maxDepth+1 || values > maxNodes {
			return fmt.Errorf(" nests deeper than %d levels, or has more than %d values", maxDepth, maxNodes)
		}
	}
	return nil
}

// place returns the line and column of the next token.
func (r *jsonReader) place() (line, column int) {
	offset := int(r.dec.InputOffset())
	for offset < len(r.data) && strings.IndexByte(" \t\r\n,:", r.data[offset]) >= 0 {
		offset++
	}
	for ; r.at < offset; r.at++ {
		switch b := r.data[r.at]; {
		case b == '\n':
			r.line, r.runes = r.line+1, 0
		case utf8.RuneStart(b):
			r.runes++
		}
	}
	return r.line, r.runes + 1
}

func (r *jsonReader) value(n *node, depth int) (*node, error) {
	n.line, n.column = r.place()
	if r.nodes++; r.nodes > maxNodes || depth > maxDepth {
		return nil, placed(n.line, n.column, "nests deeper than %d levels, or has more than %d values", maxDepth, maxNodes)
	}
	token, err := r.dec.Token()
	if err != nil {
		return nil, placed(n.line, n.column, "not JSON: %w", err)
	}
	switch t := token.(type) {
	case json.Delim:
		if t == '{' {
			return n, r.object(n, depth)
		}
		return n, r.array(n, depth)
	case string:
		n.kind, n.text = textKind, t
	case nil:
	default:
		n.kind, n.text = otherKind, fmt.Sprint(t)
	}
	return n, nil
}

func (r *jsonReader) object(n *node, depth int) error {
	n.kind = mapKind
	seen := map[string]bool{}
	for r.dec.More() {
		line, column := r.place()
		token, err := r.dec.Token()
		if err != nil {
			return placed(line, column, "not JSON: %w", err)
		}
		name, _ := token.(string)
		if seen[name] {
			return placed(line, column, "%s is given twice; keep one of the two", quote(name))
		}
		seen[name] = true
		v, err := r.value(&node{parent: n, name: name}, depth+1)
		if err != nil {
			return err
		}
		n.fields = append(n.fields, member{name, v})
	}
	return r.end()
}

func (r *jsonReader) array(n *node, depth int) error {
	n.kind = listKind
	for r.dec.More() {
		v, err := r.value(&node{parent: n, number: len(n.items) + 1}, depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, v)
	}
	return r.end()
}

// end reads a closing bracket.
func (r *jsonReader) end() error {
	line, column := r.place()
	if _, err := r.dec.Token(); err != nil {
		return placed(line, column, "not JSON: %w", err)
	}
	return nil
}

// yamlReader turns the nodes of yaml into ours.
type yamlReader struct{ nodes int }

// parseYAML reads one document of YAML. Its library keeps aliases as they are, so that
// they are refused before anything is copied.
func parseYAML(data []byte) (*node, error) {
	marks := 0 // a value needs one of these at least
	for _, mark := range []string{",", "\n", ":", "[", "{", "-", "?"} {
		marks += bytes.Count(data, []byte(mark))
	}
	if marks > 2*maxNodes {
		return nil, fmt.Errorf(" has more than %d values", maxNodes)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf(" not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New(" holds more than one document; keep one")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errors.New(" holds no document")
	}
	r := &yamlReader{}
	return r.value(doc.Content[0], &node{}, 0)
}

func (r *yamlReader) value(y *yaml.Node, n *node, depth int) (*node, error) {
	n.line, n.column = y.Line, y.Column
	if r.nodes++; r.nodes > maxNodes || depth > maxDepth {
		return nil, placed(n.line, n.column, "nests deeper than %d levels, or has more than %d values", maxDepth, maxNodes)
	}
	if y.Kind == yaml.AliasNode || y.Anchor != "" {
		return nil, placed(n.line, n.column, "anchors (&) and aliases (*) are not read; write the value where it is needed")
	}
	if y.Style&yaml.TaggedStyle != 0 {
		return nil, placed(n.line, n.column, "tags (!) are not read; write the value without one")
	}
	switch y.Kind {
	case yaml.MappingNode:
		return n, r.mapping(y, n, depth)
	case yaml.SequenceNode:
		n.kind = listKind
		for i, item := range y.Content {
			v, err := r.value(item, &node{parent: n, number: i + 1}, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, v)
		}
	case yaml.ScalarNode:
		n.text = y.Value
		switch y.Tag {
		case "!!null":
		case "!!bool", "!!int", "!!float":
			n.kind = otherKind
		default:
			n.kind = textKind
		}
	default:
		return nil, placed(n.line, n.column, "is not plain YAML")
	}
	return n, nil
}

func (r *yamlReader) mapping(y *yaml.Node, n *node, depth int) error {
	n.kind = mapKind
	seen := map[string]bool{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		key := y.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "":
			return placed(key.Line, key.Column, "the name of a field is not a text")
		case key.Tag == "!!merge":
			return placed(key.Line, key.Column, "merge keys (<<) are not read; write the fields where they are needed")
		case seen[key.Value]:
			return placed(key.Line, key.Column, "%s is given twice; keep one of the two", quote(key.Value))
		}
		seen[key.Value] = true
		v, err := r.value(y.Content[i+1], &node{parent: n, name: key.Value}, depth+1)
		if err != nil {
			return err
		}
		n.fields = append(n.fields, member{key.Value, v})
	}
	return nil
}
