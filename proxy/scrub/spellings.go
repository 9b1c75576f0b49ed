package scrub

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"iter"
	"net/url"
	"strings"
	"unicode/utf16"
)

// spellings yields every text that a secret is looked for as. Some are the
// same; some are too short to be looked for.
func spellings(secret string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, family := range []func(string) []string{percent, escaped, entities, digits, wide} {
			for _, spelling := range family(secret) {
				if !yield(spelling) {
					return
				}
			}
		}
		for alignment := range 3 {
			for _, spelling := range base64At(secret, alignment) {
				if !yield(spelling) {
					return
				}
			}
		}
	}
}

// percent is how URLs and forms spell text: not at all, where they must (with
// either case of digits, and a plus or %20 for a space), and everywhere.
func percent(s string) []string {
	form, path := url.QueryEscape(s), url.PathEscape(s)
	component := strings.ReplaceAll(form, "+", "%20")
	return []string{
		s, form, path, component, lowerEscapes(form), lowerEscapes(path), lowerEscapes(component),
		each(s, "%%%02X"), each(s, "%%%02x"),
	}
}

// lowerEscapes spells percent escapes with lower-case digits.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i:i+3], strings.ToLower(s[i:i+3]))
			i += 2
		}
	}
	return string(b)
}

// escaped is how JSON and JavaScript spell text: where they must, with the
// slash escaped as PHP does, with <, > and & escaped as Go does, in ASCII only
// as Python does, and everywhere.
func escaped(s string) []string {
	var plain strings.Builder
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(s) != nil {
		return nil
	}
	quoted := strings.TrimSpace(plain.String())
	quoted = quoted[1 : len(quoted)-1]
	safe, err := json.Marshal(s)
	if err != nil {
		return nil
	}
	safeText := string(safe[1 : len(safe)-1])
	ascii := asciiOnly(quoted)
	return []string{
		quoted, strings.ReplaceAll(quoted, "/", `\/`), safeText, strings.ReplaceAll(safeText, "/", `\/`),
		ascii, strings.ReplaceAll(ascii, "/", `\/`),
		units(s, `\u%04x`), units(s, `\u%04X`), each(s, `\x%02x`), each(s, `\x%02X`),
	}
}

// asciiOnly spells what is beyond ASCII as \uXXXX.
func asciiOnly(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 {
			b.WriteRune(r)
			continue
		}
		b.WriteString(units(string(r), `\u%04x`))
	}
	return b.String()
}

// entities is how HTML and XML spell text, by what their writers escape.
func entities(s string) []string {
	usual := html.EscapeString(s) // &#34; and &#39;
	return []string{
		usual,
		strings.NewReplacer("&#34;", "&quot;").Replace(usual),
		strings.NewReplacer("&#34;", "&quot;", "&#39;", "&apos;").Replace(usual),
		strings.NewReplacer("&#34;", "&quot;", "&#39;", "&#x27;").Replace(usual),
		strings.NewReplacer("&#34;", `"`, "&#39;", "'").Replace(usual),
		strings.ReplaceAll(usual, "+", "&#43;"),                                                                // html/template
		strings.NewReplacer("&#34;", "&quot;", "&#39;", "&#x27;", "`", "&#x60;", "=", "&#x3D;").Replace(usual), // Handlebars
		strings.NewReplacer("&#34;", "&quot;", "/", "&#x2F;", "`", "&#x60;", "=", "&#x3D;").Replace(usual),     // templates in {{ }}
		each(s, "&#%d;"), each(s, "&#x%x;"), each(s, "&#x%X;"),
	}
}

// digits is hexadecimal.
func digits(s string) []string {
	lower := hex.EncodeToString([]byte(s))
	return []string{lower, strings.ToUpper(lower)}
}

// wide is UTF-16.
func wide(s string) []string {
	var little, big []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		little = append(little, byte(unit), byte(unit>>8))
		big = append(big, byte(unit>>8), byte(unit))
	}
	return []string{string(little), string(big)}
}

// base64At is base64 of a longer text in which the secret begins so many bytes
// after a group of three, without the characters that its neighbours have a
// part in: in both alphabets, and as URLs, forms and JSON spell these.
func base64At(s string, alignment int) []string {
	standard := base64.RawStdEncoding.EncodeToString([]byte("\x00\x00"[:alignment] + s))
	head := []int{0, 2, 3}[alignment]
	tail := 0
	if (alignment+len(s))%3 != 0 {
		tail = 1
	}
	if len(standard) <= head+tail {
		return nil
	}
	standard = standard[head : len(standard)-tail]
	escapedText := strings.NewReplacer("+", "%2B", "/", "%2F").Replace(standard)
	return []string{
		standard,
		strings.NewReplacer("+", "-", "/", "_").Replace(standard),
		escapedText, lowerEscapes(escapedText),
		strings.ReplaceAll(standard, "/", `\/`),
		strings.ReplaceAll(standard, "+", `\u002b`),
		strings.NewReplacer("+", `\u002b`, "/", `\/`).Replace(standard),
	}
}

// each formats every byte.
func each(s, format string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, format, s[i])
	}
	return b.String()
}

// units formats every unit of UTF-16.
func units(s, format string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(s)) {
		fmt.Fprintf(&b, format, unit)
	}
	return b.String()
}
