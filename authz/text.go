package authz

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// clip returns s as one printable line of at most 200 bytes, for messages about
// input from a plugin: it cannot move a terminal's cursor or reverse its text.
func clip(s string) string {
	const most = 200
	suffix := ""
	if len(s) > most {
		s, suffix = s[:most], "..."
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s) + suffix
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func isTokenByte(c byte) bool {
	return isAlpha(c) || isDigit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isUnreserved reports whether a URI never needs to encode c (RFC 3986, section 2.3).
func isUnreserved(c byte) bool {
	return isAlpha(c) || isDigit(c) || c == '-' || c == '.' || c == '_' || c == '~'
}

// asciiLower lower-cases ASCII letters only. strings.ToLower also maps the Kelvin
// sign to k, and so one name to another.
func asciiLower(s string) string {
	upper := func(c byte) bool { return 'A' <= c && c <= 'Z' }
	first := 0
	for first < len(s) && !upper(s[first]) {
		first++
	}
	if first == len(s) {
		return s
	}
	b := []byte(s)
	for i := first; i < len(b); i++ {
		if upper(b[i]) {
			b[i] |= 0x20
		}
	}
	return string(b)
}

// unhex returns the value of a hexadecimal digit.
func unhex(c byte) (byte, bool) {
	switch {
	case isDigit(c):
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
