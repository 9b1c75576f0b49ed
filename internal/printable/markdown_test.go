package printable

import (
	"bytes"
	"html"
	"regexp"
	"strings"
	"testing"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
)

// rendered returns what a reader of Markdown sees of a text as a paragraph, an item of a list
// and a cell of a table, each as HTML without the element around it.
func rendered(t testing.TB, text string) []string {
	t.Helper()
	var out bytes.Buffer
	source := text + "\n\n- " + text + "\n\n| a |\n|---|\n| " + text + " |\n"
	if err := goldmark.New(goldmark.WithExtensions(extension.GFM)).Convert([]byte(source), &out); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)^<p>(.*)</p>\n<ul>\n<li>(.*)</li>\n</ul>\n<table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td>(.*)</td>\n</tr>\n</tbody>\n</table>\n$`).FindStringSubmatch(out.String())
	if m == nil {
		return []string{out.String()}
	}
	return m[1:]
}

func attacks() []string {
	return []string{
		"plain text", "a_b_c", "_emphasis_", "__strong__", "*emphasis*", "**strong**", "***both***", "~~struck~~", "~x~", "`code`", "``", "```", "~~~",
		"<script>alert(1)</script>", "<b", "<!-- c -->", "<https://evil.example>", "<a@evil.example>", "https://evil.example/", "http://evil.example", "ftp://evil.example/x",
		"www.evil.example", "WWW.evil.example/x", "a@evil.example", "mailto:a@evil.example", "[a](//evil.example)", "[a]", "[a]: //evil.example", "![i](//evil.example)", "[a][b]", "[^1]", "[x] done", "[ ] open",
		"| a | b |", "a | b", "# heading", "#", "- item", "-", "---", "+ item", "1. item", "1) item", "123456789. item", "1.5 MiB", "> quote", "===", "= x", "    indented",
		"&amp;", "&#60;b&#62;", "&lt;", "\\", "a\\", "\\|", "\\*", "$x$", "{{x}}", ":smile:", "a\n# b", "a\n\n- b", "a\r\nb", "a\tb", "\x00", "\x1b[31mred", "\u202etxt", "*a_b`c",
	}
}

// TestMarkdown: a renderer shows a text as it is, and makes no element of it.
func TestMarkdown(t *testing.T) {
	for _, text := range attacks() {
		checkMarkdown(t, text)
	}
}

func checkMarkdown(t testing.TB, text string) {
	t.Helper()
	one := strings.TrimSpace(Text(strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(text)))
	for _, got := range rendered(t, Markdown(text)) {
		if strings.ContainsRune(got, '<') || html.UnescapeString(got) != one {
			t.Errorf("%q is rendered as %q by %q, want %q", text, got, Markdown(text), one)
		}
	}
}

// FuzzMarkdown looks for a text that becomes an element.
func FuzzMarkdown(f *testing.F) {
	for _, text := range attacks() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1000 || Markdown(text) == "" || strings.Contains(text, "  ") {
			return // empty, or spaces that a renderer joins
		}
		checkMarkdown(t, text)
	})
}
