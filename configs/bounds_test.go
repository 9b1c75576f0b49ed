package configs

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml/lexer"
)

// TestBounds gives the parser what it would recurse on, or take time for by
// the square of its size.
func TestBounds(t *testing.T) {
	const size = maxFileSize / 8
	full := func(unit string) string { return strings.Repeat(unit, size/len(unit)) }
	for name, c := range map[string]struct{ text, want string }{
		"lists in lists":     {full("["), "nests deeper than 16 levels"},
		"mappings in lists":  {full("{a: "), "nests deeper than 16 levels"},
		"dashes":             {full("- "), "nests deeper than 16 levels"},
		"colons":             {full(": "), "nests deeper than 16 levels"},
		"fields":             {full("a: 1\n"), "a mapping has more than 1000 fields"},
		"empty fields":       {full("a:\n"), "leaves out more than 1000 values"},
		"empty items":        {full("-\n"), "leaves out more than 1000 values"},
		"empty flow fields":  {"{" + full("a,"), "leaves out more than 1000 values"},
		"empty flow values":  {"{" + full("a:,"), "leaves out more than 1000 values"},
		"empty maps in flow": {"[" + full("{a},"), "leaves out more than 1000 values"},
		"commas":             {"[" + full(","), "leaves out more than 1000 values"},
		"a long name":        {strings.Repeat("k", 257) + ": 1", "longer than 256 bytes"},
		"documents":          {strings.Repeat("--- a\n", maxDocuments+1), "holds more than 1000 documents"},
		"aliases":            {full("*a "), "aliases (*) are not used here"},
	} {
		t.Run(name, func(t *testing.T) {
			roots, errs := parseYAML("f.yaml", []byte(c.text))
			if len(roots) > 0 || len(errs) == 0 || len(errs) > maxErrors || !strings.Contains(errs[0].Message, c.want) {
				t.Errorf("got %d documents and %.200s, want: %s", len(roots), errs, c.want)
			}
		})
	}
	if roots, errs := parseJSON("f.json", []byte(full("["))); len(roots) > 0 || !strings.Contains(errs.Error(), "nests deeper than 16 levels") {
		t.Errorf("got %d documents and %v", len(roots), errs)
	}
	// Within the bounds, all is well, however it is written.
	var many strings.Builder
	many.WriteString("list:\n")
	for range 3 * maxFields {
		many.WriteString("- names:\n  - a\n  - {b: [c, {d: e}], f: {}, }\n  - []\n")
	}
	if _, errs := parseYAML("f.yaml", []byte(many.String())); len(errs) > 0 {
		t.Errorf("got %.300s for what is within the bounds", errs)
	}
}

// TestNothingIsDropped gives the parser several documents at once, of which it
// drops those that follow an empty one.
func TestNothingIsDropped(t *testing.T) {
	for _, text := range []string{"---\n---\nb: 2\n", "a: 1\n---\n---\nb: 2\n"} {
		if root, err := parseDocument("f.yaml", lexer.Tokenize(text)); err == nil {
			t.Errorf("%q: got %+v, want an error", text, root)
		}
		if roots, errs := parseYAML("f.yaml", []byte(text)); len(errs) > 0 || len(roots) != strings.Count(text, ":") {
			t.Errorf("%q: got %d documents, %v", text, len(roots), errs)
		}
	}
}
