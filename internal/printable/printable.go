// Package printable makes text safe to show to an operator. Text of a
// plugin, an upstream or a log file may contain line ends, escape sequences of a
// terminal (ECMA-48), controls of the C1 set, bidirectional overrides or bytes that
// are not UTF-8; unescaped, they forge lines or overwrite true ones.
//
// [Text] is for a field within a line, [Writer] for a stream of lines, [JSON] for a document.
package printable

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Text returns s with everything escaped that has no glyph, also line ends and
// tabs: as \u001b where it is a character, which JSON and YAML read back, beyond U+FFFF as
// \U000e0001, which YAML alone reads back, and as \xff where it is a byte that is no UTF-8.
func Text(s string) string {
	if isPlain(s, "") {
		return s
	}
	return string(appendText(nil, []byte(s), ""))
}

// Clip is [Text] of at most limit bytes of s. A longer text is truncated and ends in
// "...".
func Clip(s string, limit int) string {
	if len(s) <= limit {
		return Text(s)
	}
	end := max(limit, 0)
	for end > 0 && end > limit-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return Text(s[:end]) + "..."
}

// layout are the characters that a stream may have beside those with a glyph.
const layout = "\n\t"

func isPlain(s, allowed string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < ' ' || c >= 0x7f) && strings.IndexByte(allowed, c) < 0 {
			return strings.IndexFunc(s[i:], func(r rune) bool {
				return r == utf8.RuneError || !unicode.IsPrint(r) && !strings.ContainsRune(allowed, r)
			}) < 0
		}
	}
	return true
}

// appendText appends text with what does not print escaped, but for the
// characters that are allowed.
func appendText(b, text []byte, allowed string) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			b = fmt.Appendf(b, `\x%02x`, text[0])
		case unicode.IsPrint(r) || strings.ContainsRune(allowed, r):
			b = append(b, text[:size]...)
		case r > 0xffff:
			b = fmt.Appendf(b, `\U%08x`, r)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		text = text[size:]
	}
	return b
}

// JSON returns JSON with everything escaped that has no glyph, as JSON reads it back: beyond U+FFFF
// as two units of UTF-16 (RFC 8259, section 7), where [Text] and [Writer] have the form of YAML.
func JSON(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch high, low := utf16.EncodeRune(r); {
		case unicode.IsPrint(r) || strings.ContainsRune(layout, r):
			out = utf8.AppendRune(out, r)
		case high != unicode.ReplacementChar:
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// Writer passes a stream on with everything escaped that has no glyph, line feeds
// and tabs excepted. A line that begins like a priority of the journal (<3>, see
// sd-daemon(3)) has its first character escaped. It is safe for concurrent use.
type Writer struct {
	to io.Writer

	mu     sync.Mutex
	rest   []byte // the beginning of a character whose end is still to come
	inside bool   // the last byte did not end a line
}

// NewWriter returns a Writer in front of to.
func NewWriter(to io.Writer) *Writer { return &Writer{to: to} }

// Destination returns what the Writer writes to.
func (w *Writer) Destination() io.Writer { return w.to }

// Write passes p on with one call of the destination's Write.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := p
	if len(w.rest) > 0 {
		text = append(w.rest, p...)
		w.rest = nil
	}
	whole := len(text) - partial(text)
	w.rest = append(w.rest, text[whole:]...)
	if text = text[:whole]; len(text) == 0 {
		return len(p), nil
	}
	if _, err := w.to.Write(w.escape(text)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// escape returns text as it is passed on.
func (w *Writer) escape(text []byte) []byte {
	out := make([]byte, 0, len(text)+16)
	for len(text) > 0 {
		end := len(text)
		for i, c := range text {
			if c == '\n' {
				end = i + 1
				break
			}
		}
		line := text[:end]
		text = text[end:]
		if !w.inside && len(line) > 1 && line[0] == '<' && '0' <= line[1] && line[1] <= '9' {
			out, line = append(out, `\u003c`...), line[1:]
		}
		out = appendText(out, line, layout)
		w.inside = line[len(line)-1] != '\n'
	}
	return out
}

// partial returns how many bytes at the end of text are the beginning of a
// character that may go on.
func partial(text []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if c := text[len(text)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(text[len(text)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}
