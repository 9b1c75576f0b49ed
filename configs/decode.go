package configs

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/nearword"
)

// maxErrors bounds what is collected of one document.
const maxErrors = 1000

// decoder fills Go values from a tree and collects everything that is wrong.
// Fields are named by their json tags; one without omitempty or omitzero is
// required. Types that read themselves (encoding.TextUnmarshaler) do.
type decoder struct {
	file   string
	errs   Errors
	fields map[reflect.Type][]structField // of the types that were met: lists hold many of one
}

// fieldsOf returns the fields of a type, which are found once.
func (d *decoder) fieldsOf(t reflect.Type) []structField {
	known, ok := d.fields[t]
	if !ok {
		if d.fields == nil {
			d.fields = map[reflect.Type][]structField{}
		}
		known = fieldsOf(t)
		d.fields[t] = known
	}
	return known
}

func (d *decoder) report(line, column int, path, format string, args ...any) {
	if len(d.errs) < maxErrors {
		d.errs = append(d.errs, Error{d.file, line, column, path, fmt.Sprintf(format, args...)})
	}
}

// value fills v, which is addressable, from n.
func (d *decoder) value(n *node, v reflect.Value, path string) {
	if n.kind == nullKind {
		d.report(n.line, n.column, path, "has no value; write %s, or remove the field", wanted(v.Type()))
		return
	}
	if text, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		d.text(n, v, text, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		if d.is(n, mappingKind, v, path) {
			d.structure(n, v, path)
		}
	case reflect.Map:
		if d.is(n, mappingKind, v, path) {
			d.mapping(n, v, path)
		}
	case reflect.Slice:
		if d.is(n, sequenceKind, v, path) {
			d.slice(n, v, path)
		}
	default:
		d.scalar(n, v, path)
	}
}

// is reports whether n is of the kind that v needs, and records a problem if not.
func (d *decoder) is(n *node, want kind, v reflect.Value, path string) bool {
	if n.kind == want {
		return true
	}
	got := n.kind.String()
	if n.kind == textKind || n.kind == numberKind || n.kind == boolKind {
		got = strconv.Quote(clip(n.text))
	}
	hint := ""
	switch {
	case want == textKind && (n.kind == numberKind || n.kind == boolKind):
		hint = ", as in " + strconv.Quote(clip(n.text)) + " with the quotes"
	case want == textKind && n.kind == mappingKind:
		hint = "; one that holds a colon may need quotes"
	case (want == numberKind || want == boolKind) && n.kind == textKind:
		hint = ", without quotes"
	}
	d.report(n.line, n.column, path, "is %s; write %s%s", got, wanted(v.Type()), hint)
	return false
}

// text fills a type that reads itself.
func (d *decoder) text(n *node, v reflect.Value, target encoding.TextUnmarshaler, path string) {
	if n.kind != textKind && n.kind != numberKind {
		d.is(n, textKind, v, path)
		return
	}
	if err := target.UnmarshalText([]byte(n.text)); err != nil {
		message := err.Error()
		if example := exampleOf(v.Type()); example != "" {
			message = strconv.Quote(clip(n.text)) + " is not " + example
		}
		d.report(n.line, n.column, path, "%s", message)
	}
}

func (d *decoder) scalar(n *node, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.String:
		if d.is(n, textKind, v, path) {
			v.SetString(n.text)
		}
	case reflect.Bool:
		if d.is(n, boolKind, v, path) {
			v.SetBool(strings.EqualFold(n.text, "true"))
		}
	case reflect.Int, reflect.Int64, reflect.Uint16:
		if d.is(n, numberKind, v, path) {
			d.number(n, v, path)
		}
	default:
		d.report(n.line, n.column, path, "cannot be read into %s", v.Type())
	}
}

// number reads a decimal number. YAML's other spellings (0x1f, 0o17, 017,
// 1_000) are refused: readers of YAML disagree on what they mean.
func (d *decoder) number(n *node, v reflect.Value, path string) {
	digits := strings.TrimPrefix(n.text, "-")
	plain := digits != "" && strings.Trim(digits, "0123456789") == "" && (digits == "0" || digits[0] != '0')
	i, err := strconv.ParseInt(n.text, 10, 64)
	if !plain || err != nil || v.CanInt() && v.OverflowInt(i) || v.CanUint() && (i < 0 || v.OverflowUint(uint64(i))) {
		d.report(n.line, n.column, path, "is %q; write %s", clip(n.text), wanted(v.Type()))
		return
	}
	if v.CanInt() {
		v.SetInt(i)
	} else {
		v.SetUint(uint64(i))
	}
}

func (d *decoder) slice(n *node, v reflect.Value, path string) {
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
}

func (d *decoder) mapping(n *node, v reflect.Value, path string) {
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.fields)))
	for f := range d.unique(n, path) {
		value := reflect.New(v.Type().Elem()).Elem()
		d.value(f.value, value, join(path, f.key))
		v.SetMapIndex(reflect.ValueOf(f.key), value)
	}
}

// unique ranges over the fields of n and reports those that come again.
func (d *decoder) unique(n *node, path string) func(func(field) bool) {
	return func(yield func(field) bool) {
		lines := make(map[string]int, len(n.fields))
		for _, f := range n.fields {
			if line, ok := lines[f.key]; ok {
				d.report(f.line, f.column, join(path, f.key), "is already given in line %d; keep one of the two", line)
				continue
			}
			lines[f.key] = f.line
			if !yield(f) {
				return
			}
		}
	}
}

func (d *decoder) structure(n *node, v reflect.Value, path string) {
	known := d.fieldsOf(v.Type())
	given := make(map[string]bool, len(n.fields))
	for f := range d.unique(n, path) {
		at := join(path, f.key)
		given[f.key] = true
		i := slices.IndexFunc(known, func(k structField) bool { return k.name == f.key })
		switch {
		case i >= 0:
			target := v.FieldByIndex(known[i].index)
			d.value(f.value, target, at)
			if known[i].required && target.Kind() == reflect.String && f.value.kind == textKind && f.value.text == "" {
				d.report(f.value.line, f.value.column, at, "is empty; write %s", wanted(target.Type()))
			}
		case notYetField(v.Type(), f.key):
			d.report(f.line, f.column, at, "is not supported yet; remove it")
		default:
			d.report(f.line, f.column, at, "is not a field here; %s", suggest(f.key, known))
		}
	}
	for _, k := range known {
		if k.required && !given[k.name] {
			d.report(n.line, n.column, join(path, k.name), "is missing; write %s", wanted(v.FieldByIndex(k.index).Type()))
		}
	}
}

// structField is one field of a Go struct as files name it.
type structField struct {
	name     string
	index    []int
	required bool
}

func fieldsOf(t reflect.Type) []structField {
	var fields []structField
	for i := range t.NumField() { // reflect.VisibleFields takes most of the time of a small document
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name != "" && name != "-":
			fields = append(fields, structField{name, f.Index, options == ""})
		case name == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			for _, inner := range fieldsOf(f.Type) {
				fields = append(fields, structField{inner.name, append([]int{i}, inner.index...), inner.required})
			}
		}
	}
	return fields
}

// suggest returns what the writer of an unknown field may have meant.
func suggest(name string, known []structField) string {
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = k.name
	}
	if best := nearword.Suggest(name, names); best != "" {
		return "did you mean " + best + "?"
	}
	return "known are " + strings.Join(names, ", ")
}

// wanted describes what a value of type t looks like in a file.
func wanted(t reflect.Type) string {
	if example := exampleOf(t); example != "" {
		return example
	}
	if t.Kind() == reflect.Pointer {
		return wanted(t.Elem())
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "a text"
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "a mapping (NAME: VALUE)"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct && exampleOf(t.Elem()) == "" {
			return "a list of mappings"
		}
		return "a list, as in [A, B]"
	case reflect.Bool:
		return "true or false"
	case reflect.Uint16:
		return "a whole number from 0 to 65535"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	}
	return "a text"
}

// exampleOf returns the words for types of the standard library, whose own
// errors do not say what is right.
func exampleOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Time]():
		return "a time as RFC 3339 has it, as in 2027-01-31T00:00:00Z"
	case reflect.TypeFor[netip.Prefix]():
		return "an address range, as in 203.0.113.0/24 or 203.0.113.7/32"
	case reflect.TypeFor[netip.Addr]():
		return "an IP address, as in 192.0.2.7"
	case reflect.TypeFor[netip.AddrPort]():
		return "an IP address and a port, as in 10.0.0.2:53"
	}
	return ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// clip shortens what is quoted in a message.
func clip(s string) string {
	const longest = 64
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "..."
}
