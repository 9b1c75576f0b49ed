package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"html/template"
	"io"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf16"
)

// programs are what echoes a text.
func programs() map[string]func(string) string {
	shifted := func(before string, encoding *base64.Encoding) func(string) string {
		return func(s string) string { return encoding.EncodeToString([]byte(before + s + " and more")) }
	}
	return map[string]func(string) string{
		"as it is":              func(s string) string { return "<" + s + ">" },
		"twice":                 func(s string) string { return s + s },
		"JSON":                  quoted,
		"JSON in an object":     func(s string) string { return `{"a":` + quoted(s) + `}` },
		"JSON, slashes":         phpJSON,
		"JSON in JSON":          func(s string) string { return quoted(quoted(s)) },
		"JSON in JSON, slashes": func(s string) string { return phpJSON(phpJSON(s)) },
		"JSON in a form":        func(s string) string { return url.QueryEscape(quoted(s)) },
		"HTML in JSON":          func(s string) string { return quoted(html.EscapeString(s)) },
		"JSON in HTML":          func(s string) string { return html.EscapeString(quoted(s)) },
		"form":                  url.QueryEscape,
		"form, twice":           func(s string) string { return url.QueryEscape(url.QueryEscape(s)) },
		"path":                  url.PathEscape,
		"form, small digits":    func(s string) string { return lowerEscapes(url.QueryEscape(s)) },
		"form, mixed digits":    mixedEscapes,
		"HTML":                  html.EscapeString,
		"HTML, template":        template.HTMLEscapeString,
		"HTML, PHP":             func(s string) string { return strings.ReplaceAll(html.EscapeString(s), "&#39;", "&#039;") },
		"JavaScript":            template.JSEscapeString,
		"hex":                   func(s string) string { return hex.EncodeToString([]byte("x" + s)) },
		"HEX":                   func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s + "x"))) },
		"hex, 0x":               func(s string) string { return fmt.Sprintf("%#x", s) },
		"hex, spaces":           func(s string) string { return fmt.Sprintf("% x", s) },
		"hex, 0x and spaces":    func(s string) string { return fmt.Sprintf("% #x", s) },
		"HEX, colons":           func(s string) string { return strings.ReplaceAll(fmt.Sprintf("% X", s), " ", ":") },
		"hex, dashes":           func(s string) string { return strings.ReplaceAll(fmt.Sprintf("% x", s), " ", "-") },
		"Go's bytes":            func(s string) string { return fmt.Sprintf("%#v", []byte(s)) },
		"hex in lines":          func(s string) string { return lines(strings.ReplaceAll(fmt.Sprintf("% x", s), " ", ":"), 45, "\n    ") },
		"numbers":               func(s string) string { return fmt.Sprint([]byte(s)) },
		"numbers, JSON":         func(s string) string { return strings.ReplaceAll(fmt.Sprint([]byte(s)), " ", ",") },
		"numbers, Python":       func(s string) string { return strings.ReplaceAll(fmt.Sprint([]byte(s)), " ", ", ") },
		"numbers, indented":     func(s string) string { return strings.ReplaceAll(fmt.Sprint([]byte(s)), " ", ",\n        ") },
		"base64":                shifted("", base64.StdEncoding),
		"base64, one before":    shifted("u", base64.StdEncoding),
		"base64, two before":    shifted("us", base64.StdEncoding),
		"base64, basic":         shifted("user:", base64.StdEncoding),
		"base64 for URLs":       shifted("", base64.URLEncoding),
		"base64 for URLs, one":  shifted("a", base64.RawURLEncoding),
		"base64 for URLs, two":  shifted("ab", base64.RawURLEncoding),
		"base64 in a form":      func(s string) string { return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))) },
		"base64 in JSON":        func(s string) string { return phpJSON(base64.StdEncoding.EncodeToString([]byte(s))) },
		"every character, JSON": func(s string) string { return units(s, `\u%04X`) },
		"every one, JSON twice": func(s string) string { return units(s, `\\u%04x`) },
		"every byte, URL":       func(s string) string { return each(s, "%%%02x") },
		"every byte, octal":     func(s string) string { return each(s, `\%03o`) },
		"every byte, Python":    func(s string) string { return each(s, `\x%02x`) },
		"every rune, HTML":      func(s string) string { return runes(s, "&#%d;") },
		"every rune, HTML, hex": func(s string) string { return runes(s, "&#x%04X;") },
		"every rune, CSS":       func(s string) string { return runes(s, `\u{%x}`) },
		"UTF-16":                func(s string) string { return "\xff\xfe" + utf16Bytes(s, 0, 8) },
		"UTF-16, other order":   func(s string) string { return utf16Bytes(s, 8, 0) },
	}
}

func quoted(s string) string { b, _ := json.Marshal(s); return string(b) }

// phpJSON escapes slashes too.
func phpJSON(s string) string { return strings.ReplaceAll(quoted(s), "/", `\/`) }

// each formats every byte, runes every character and units every unit of UTF-16.
func each(s, format string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, format, s[i])
	}
	return b.String()
}

func runes(s, format string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, format, r)
	}
	return b.String()
}

func units(s, format string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(s)) {
		fmt.Fprintf(&b, format, unit)
	}
	return b.String()
}

func utf16Bytes(s string, first, second int) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		b = append(b, byte(unit>>first), byte(unit>>second))
	}
	return string(b)
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

// mixedEscapes escapes some of what need not be, with digits of either case.
func mixedEscapes(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch {
		case i%3 == 0:
			fmt.Fprintf(&b, "%%%02x", s[i])
		case i%3 == 1 || !alphanumeric(s[i]):
			fmt.Fprintf(&b, "%%%02X", s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// lines breaks a text.
func lines(s string, columns int, end string) string {
	var b strings.Builder
	for len(s) > columns {
		b.WriteString(s[:columns] + end)
		s = s[columns:]
	}
	return b.String() + s
}

// secrets are of many kinds.
var secrets = []string{
	secret, "ghp_0123456789abcdefghijABCDEFGHIJ012345", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY==", `pa/ss!wo=rd"`, "a/b+c=d&e\\f%41",
	"Bearer sk_live_51H/8x+y", "ключ-от-всего-42", "p\U0001F511ss/w0rd",
}

// TestEncodings finds every secret in every encoding, alone and in the middle of
// a text, and leaves nothing of it.
func TestEncodings(t *testing.T) {
	for name, program := range programs() {
		for _, secret := range secrets {
			t.Run(name+" "+strconv.QuoteToASCII(secret), func(t *testing.T) {
				n := New(secret)
				text := program(secret)
				if !n.In("before " + text + " after") {
					t.Fatalf("not found in %q", text)
				}
				b := []byte(text)
				if !n.Blank(b) || len(b) != len(text) || n.In(string(b)) {
					t.Errorf("left %q of %q", b, text)
				}
				for i := 0; i+5 <= len(secret); i++ {
					if bytes.Contains(b, []byte(secret[i:i+5])) {
						t.Errorf("left %q in %q", secret[i:i+5], b)
					}
				}
				if stars := bytes.Count(b, []byte("*")); stars < len(secret) || stars < len(text)/3 && !strings.HasPrefix(name, "base64") {
					t.Errorf("left %q of %q", b, text)
				}
			})
		}
	}
}

// TestEncodingsInPieces cuts every encoding at every place: what is found does
// not depend on it.
func TestEncodingsInPieces(t *testing.T) {
	for name, program := range programs() {
		for _, secret := range secrets {
			n := New(secret)
			text := "a line\nbefore " + program(secret) + " after\n"
			want := []byte(text)
			n.Blank(want)
			for cut := range len(text) {
				pieces := io.MultiReader(strings.NewReader(text[:cut]), strings.NewReader(text[cut:]))
				if got, err := io.ReadAll(knownReader(n)(pieces)); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s, cut at %d: %q, %v", name, cut, got, err)
				}
			}
			got, err := io.ReadAll(knownReader(n)(iotest.OneByteReader(strings.NewReader(text))))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s, byte by byte: %q, %v", name, got, err)
			}
		}
	}
}

// TestBase64InLines finds base64 that was cut into lines, wherever the secret is
// in it, and wherever a stream is cut.
func TestBase64InLines(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	long := strings.Repeat("0123456789/+?>abcdef", 12)
	for _, secret := range append([]string{long}, secrets...) {
		n := New(secret)
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			for _, end := range []string{"\n", "\r\n", "\n\t", `\n`, `\r\n`, "%0A", "%0d%0a", "&#10;", "\\\n"} {
				for _, columns := range []int{64, 76} {
					for before := 0; before < columns; before += 1 + 4*len(end) - 4 { // all of them for \n
						padding := make([]byte, before)
						for i := range padding {
							padding[i] = byte(random.Uint32())
						}
						plain := string(padding) + secret + "and more"
						text := lines(encoding.EncodeToString([]byte(plain)), columns, end)
						b := []byte(text)
						n.Blank(b)
						if left := strings.ReplaceAll(string(b), end, ""); strings.Count(left, "*") < len(secret)*4/3-5 {
							t.Fatalf("%q, %d columns, %d before: left %q of %q", end, columns, before, b, text)
						}
						if before != 12 {
							continue
						}
						for cut := range len(text) {
							pieces := io.MultiReader(strings.NewReader(text[:cut]), strings.NewReader(text[cut:]))
							if got, err := io.ReadAll(knownReader(n)(pieces)); err != nil || !bytes.Equal(got, b) {
								t.Fatalf("%q, %d columns, cut at %d: %q, %q, %v", end, columns, cut, got, b, err)
							}
						}
					}
				}
			}
		}
	}
}
