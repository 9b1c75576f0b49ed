package scrub

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// A secret is searched for in two ways. Its fixed forms are patterns: its two
// bytes a character, and its long runs of letters and digits. A form with more
// spellings than can be listed is an encoding, which is found at its plain form, or at
// an escape or the end of a line in it, and is then read character by character.

// exactPatterns returns the texts of a secret that are searched for as they are.
func exactPatterns(secret string) []pattern {
	texts := []pattern{{text: secret}}
	if form := strings.ReplaceAll(secret, " ", "+"); form != secret {
		texts = append(texts, pattern{text: form})
	}
	if len(secret) >= minFolded { // a field that has no case
		texts = append(texts, pattern{text: strings.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				return r + 'a' - 'A'
			}
			return r
		}, secret), folded: true})
	}
	little, big := utf16Of(secret)
	texts = append(texts, pattern{text: little}, pattern{text: big})
	for _, run := range plainRuns(secret) {
		texts = append(texts, pattern{text: run})
	}
	for alignment := range 3 {
		for _, run := range runs(base64At(secret, alignment), minBase64Run) {
			texts = append(texts, pattern{text: run})
		}
	}
	return texts
}

// utf16Of is UTF-16, in both orders of bytes.
func utf16Of(s string) (little, big string) {
	var l, b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		l = append(l, byte(unit), byte(unit>>8))
		b = append(b, byte(unit>>8), byte(unit))
	}
	return string(l), string(b)
}

// base64At is base64 of a longer text in which the secret begins so many bytes
// after a group of three, without the characters that its neighbours have a
// part in; "" for nothing.
func base64At(s string, alignment int) string {
	standard := base64.RawStdEncoding.EncodeToString([]byte("\x00\x00"[:alignment] + s))
	head := []int{0, 2, 3}[alignment]
	tail := 0
	if (alignment+len(s))%3 != 0 {
		tail = 1
	}
	if len(standard) <= head+tail {
		return ""
	}
	return standard[head : len(standard)-tail]
}

// Runs of letters and digits are searched for by themselves from these lengths
// on: no encoder of text changes them, whatever it does to what is between them.
const (
	minRun       = 12
	minBase64Run = 16
	minWord      = 20 // of a run that may be a word, or a name
	minFolded    = 20 // of a secret whose case programs may change
)

// plainRuns is what of a secret every encoder of text leaves as it is.
func plainRuns(s string) []string {
	if header, rest, ok := strings.Cut(s, "."); ok && strings.Contains(header, "eyJ") {
		s = rest // the header of a JSON Web Token is that of any other
	}
	return runs(s, minRun)
}

// runs returns the longest runs of letters and digits, without words.
func runs(s string, shortest int) []string {
	return slices.DeleteFunc(strings.FieldsFunc(s, func(r rune) bool { return !alphanumeric(r) }), func(run string) bool {
		return len(run) < shortest || len(run) < minWord && isWord(run)
	})
}

func alphanumeric[C rune | byte](r C) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// isWord reports whether a run is letters of one case, but for the first.
func isWord(run string) bool {
	rest := run[1:]
	return !strings.ContainsAny(run, "0123456789") && (rest == strings.ToLower(rest) || rest == strings.ToUpper(rest))
}

// alphabet is how the characters of an encoding are written.
type alphabet uint8

const (
	asText     alphabet = iota // any of them escaped
	asBase64                   // in either alphabet, any of them escaped, and in lines
	asHex                      // two digits a byte, with or without something between
	asDecimals                 // a number a byte, with something between
)

// encoding is a secret in an alphabet.
type encoding struct {
	text string // for hexadecimal and decimals the secret itself
	in   alphabet
}

// encodingsOf returns those of a secret.
func encodingsOf(secret string) []*encoding {
	all := []*encoding{{secret, asText}, {secret, asHex}, {secret, asDecimals}}
	for alignment := range 3 {
		if text := base64At(secret, alignment); len(text) >= minPattern {
			all = append(all, &encoding{text, asBase64})
		}
	}
	return all
}

// longestEncoding is how many bytes a secret of so many may take. Most take six
// bytes for one at most, as \u0073 does; numbers in an indented list, and what was
// escaped twice, take up to thirteen, and of a secret that is very long those are
// found only where a stream is not cut in the middle of them.
func longestEncoding(secret int) int {
	const most, usual, enough = 13, 6, 4 << 10
	return min(max(usual*secret, min(most*secret, enough)), maxPattern)
}

// joinedLength is how many bytes of digits and numbers are searched for, of which
// short secrets have fewer.
const joinedLength = 24

// patterns returns the patterns that an encoding begins with.
func (s *encoding) patterns() []pattern {
	switch s.in {
	case asHex:
		return s.joinedPatterns(joinedLength, func(c byte) string { return hex.EncodeToString([]byte{c}) },
			"", ":", "-", " ", ",", ", ", "0x", " 0x", ",0x", ", 0x")
	case asDecimals:
		return s.joinedPatterns(joinedLength, func(c byte) string { return strconv.Itoa(int(c)) },
			" ", ",", ", ", ",\n", ",\n  ", ",\n    ", ",\n      ", ",\n        ", ",\n\t", ",\n\t\t")
	case asText, asBase64:
	}
	all := []pattern{{text: s.text, encoding: s}}
	if other := strings.NewReplacer("+", "-", "/", "_").Replace(s.text); s.in == asBase64 && other != s.text {
		all = append(all, pattern{text: other, encoding: s})
	}
	return all
}

// joinedPatterns returns the first bytes of an encoding that has something between them.
func (s *encoding) joinedPatterns(size int, format func(byte) string, between ...string) []pattern {
	var all []pattern
	for _, separator := range between {
		text := format(s.text[0])
		for i := 1; i < len(s.text) && len(text) < size; i++ {
			text += separator + format(s.text[i])
		}
		all = append(all, pattern{text: text, folded: s.in == asHex, encoding: s})
	}
	return all
}
