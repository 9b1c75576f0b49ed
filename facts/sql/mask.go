package sql

import (
	"bytes"
	"hash/fnv"
	"strconv"
	"strings"
)

// Mask returns the text for a record: each constant is a question mark, each comment and
// run of spaces one space. Names and parameters like $1 stay. No byte of a literal is in
// it; what follows a place that cannot be read is one question mark.
func Mask(text string) string { return string(mask(text, false)) }

// Fingerprint returns 16 hexadecimal digits that statements of the same form share: those
// that differ in constants, their number in a list, spaces, comments and the case of
// words only.
func Fingerprint(text string) string {
	h := fnv.New64a()
	h.Write(mask(text, true))
	digits := strconv.FormatUint(h.Sum64(), 16)
	return strings.Repeat("0", 16-len(digits)) + digits
}

// mask masks the text. For a form, words are folded, constants and parameters are the
// same, and a list of them is one.
func mask(text string, form bool) []byte {
	tokens, reason := lex(text, room(text))
	out := make([]byte, 0, min(len(text), 1<<10))
	for i := range tokens {
		t := &tokens[i]
		if i > 0 && (form || t.start > tokens[i-1].end) {
			out = append(out, ' ')
		}
		word := text[t.start:t.end]
		switch {
		case t.kind == tokenWord && i > 0 && tokens[i-1].kind == tokenNumber && t.start == tokens[i-1].end:
			// Letters that touch a number are part of something that no version reads.
		case t.kind == tokenString, t.kind == tokenNumber, t.kind == tokenParam && form:
			out = append(out, '?')
			if form {
				out = shorten(out)
			}
		case t.kind == tokenWord && form && t.flags == 0:
			for _, c := range []byte(word) {
				out = append(out, lower(c))
			}
		default:
			out = append(out, word...)
		}
	}
	if reason != "" {
		if len(out) > 0 {
			out = append(out, ' ')
		}
		out = append(out, '?')
	}
	return out
}

// shorten makes one question mark of "? , ?".
func shorten(out []byte) []byte {
	const list = "? , ?"
	if bytes.HasSuffix(out, []byte(list)) {
		return out[:len(out)-len(list)+1]
	}
	return out
}
