package printable

import (
	"regexp"
	"strings"
)

// Markdown returns text that others wrote as one line, or one cell of a table, of Markdown: it
// begins no emphasis, link, image, HTML, table, list or heading, and no address in it becomes a
// link (https://spec.commonmark.org/0.31.2/#backslash-escapes and the autolinks of GitHub's).
func Markdown(text string) string {
	plain := strings.TrimSpace(Text(strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(text)))
	var out strings.Builder
	for i, c := range plain {
		switch {
		case strings.ContainsRune("\\`*_{}[]<>()|!&#~@$", c),
			c == ':' && strings.HasPrefix(plain[i:], "://"),
			c == '.' && i >= 3 && strings.EqualFold(plain[i-3:i], "www"),
			i == 0 && strings.ContainsRune("-+=", c),
			c == '.' && numbered(plain[:i]) && (i+1 == len(plain) || plain[i+1] == ' '):
			out.WriteByte('\\')
		}
		out.WriteRune(c)
	}
	return out.String()
}

// numbered reports whether a text before a point begins an ordered list.
func numbered(before string) bool { return regexp.MustCompile(`^[0-9]{1,9}$`).MatchString(before) }
