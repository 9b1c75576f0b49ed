package scrub

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"iter"
	"net/url"
	"slices"
	"strings"
	"unicode/utf16"
)

// spellings yields every text that a secret is looked for as. Some are the
// same; some are too short to be looked for.
func spellings(secret string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, family := range []func(string) []string{percent, escaped, entities, digits, wide, cased, plainRuns} {
			for _, spelling := range family(secret) {
				if !yield(spelling) {
					return
				}
			}
		}
		for alignment := range 3 {
			for _, spelling := range slices.Concat(base64At(secret, alignment), base64Runs(secret, alignment)) {
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
		strings.ReplaceAll(component, "%2F", "/"),                                                          // Python
		strings.NewReplacer("%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*").Replace(component), // JavaScript
		url.QueryEscape(form), url.QueryEscape(component), // twice
		quotedPrintable(s),
	}
}

// quotedPrintable is how mail spells text, but for the ends of its lines.
func quotedPrintable(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '=' {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "=%02X", s[i])
	}
	return b.String()
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
		unitsOf(quoted, `+"&'<>`+"`", `\u%04X`), // .NET
		unitsOf(quoted, `=<>&'`, `\u%04x`),      // Gson
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

// Runs of letters and digits are searched for by themselves from these lengths
// on: no encoder of text changes them, whatever it does to what is between them.
const (
	minRun       = 12
	minBase64Run = 16
	minWord      = 20 // of a run that may be a word, or a name
	minCased     = 20 // of a secret whose case programs may change
)

// plainRuns is what of a secret every encoder of text leaves as it is.
func plainRuns(s string) []string {
	if header, rest, ok := strings.Cut(s, "."); ok && strings.Contains(header, "eyJ") {
		s = rest // the header of a JSON Web Token is that of any other
	}
	return runs(s, minRun)
}

// base64Runs is what of a longer text's base64 every encoder leaves as it is.
func base64Runs(s string, alignment int) []string {
	spellings := base64At(s, alignment)
	if len(spellings) == 0 {
		return nil
	}
	return runs(spellings[0], minBase64Run)
}

// runs returns the longest runs of letters and digits, without words.
func runs(s string, shortest int) []string {
	return slices.DeleteFunc(strings.FieldsFunc(s, func(r rune) bool { return !alphanumeric(r) }), func(run string) bool {
		return len(run) < shortest || len(run) < minWord && isWord(run)
	})
}

func alphanumeric(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// isWord reports whether a run is letters of one case, but for the first.
func isWord(run string) bool {
	rest := run[1:]
	return !strings.ContainsAny(run, "0123456789") && (rest == strings.ToLower(rest) || rest == strings.ToUpper(rest))
}

// cased is a secret in a field that has no case.
func cased(s string) []string {
	if len(s) < minCased {
		return nil
	}
	return []string{strings.ToUpper(s), strings.ToLower(s)}
}

// each formats every byte.
func each(s, format string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, format, s[i])
	}
	return b.String()
}

// unitsOf formats the characters that are in a set.
func unitsOf(s, set, format string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune(set, r) {
			fmt.Fprintf(&b, format, r)
			continue
		}
		b.WriteRune(r)
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
