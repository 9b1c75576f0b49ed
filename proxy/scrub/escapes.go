package scrub

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// startsEscape reports whether escapes begin with a byte: in JSON and programs, in
// URLs, and in HTML and XML.
func startsEscape(c byte) bool { return c == '\\' || c == '%' || c == '&' }

// maxNested is how often a text may have been escaped, see the package documentation.
const maxNested = 2

// findEscaped appends where secrets are of which any character is escaped, each
// in any way, or that are cut into lines. Before the first escape or end of a line
// all is as it is, so that from each of them the rest of a secret is read.
func (n *Patterns) findEscaped(b []byte, clipped bool, spans []span) []span {
	for _, begin := range []byte(`\%&`) {
		for at := indexFrom(b, 0, begin); at < len(b); at = indexFrom(b, at+1, begin) {
			if n.plausibleEscape(b[at:]) {
				spans = n.findFromEscape(b, at, clipped, spans)
			}
		}
	}
	for at := indexFrom(b, 0, '\n'); at < len(b); at = indexFrom(b, at+1, '\n') {
		from := at
		if from > 0 && b[from-1] == '\r' {
			from--
		}
		switch {
		case from == 0:
		case inBase64(b[from-1]):
			spans = n.findAcrossLines(b, from, at+1, clipped, spans)
		}
	}
	return spans
}

// indexFrom returns where a byte is next, the end for nowhere.
func indexFrom(b []byte, from int, c byte) int {
	if i := bytes.IndexByte(b[from:], c); i >= 0 {
		return from + i
	}
	return len(b)
}

func inBase64(c byte) bool {
	return alphanumeric(c) || c == '+' || c == '/' || c == '-' || c == '_'
}

// findAcrossLines appends where secrets are whose first line ends at a place, to being
// the end of what ends it.
func (n *Patterns) findAcrossLines(b []byte, at, to int, clipped bool, spans []span) []span {
	for end := to + maxBreak; to < len(b) && to < end; {
		if !isBreak(b[to]) {
			c, after, ok := unescaper{b, 1}.at(to)
			if !ok || c.size != 1 || !isBreak(c.bytes[0]) {
				break
			}
			to = after
			continue
		}
		to++
	}
	if to >= len(b) {
		return spans
	}
	c, _ := unescaper{b, maxNested}.byteAt(to)
	return n.findFrom(b, at, byte(max(c, 0)), clipped, spans)
}

// findFrom appends where secrets are that have a character c at a place, or behind
// what is to be left out there.
func (n *Patterns) findFrom(b []byte, at int, c byte, clipped bool, spans []span) []span {
	for _, p := range n.occurrences[c] {
		from := at - p.at
		if from < 0 || !p.of.same(b[from:at], p.of.text[:p.at]) {
			continue
		}
		if to, ok := p.of.read(b, at, p.at, clipped); ok {
			spans = append(spans, span{from, to})
		}
	}
	return spans
}

// plausibleEscape reports, at a glance, whether an escape may stand for a character of a
// secret: most do not.
func (n *Patterns) plausibleEscape(b []byte) bool {
	if len(b) < 2 {
		return false
	}
	next := b[1]
	switch b[0] {
	case '\\':
		return alphanumeric(next) || next == '\n' || n.relevant(next)
	case '%':
		if len(b) > 2 && digit(next) >= 0 && digit(b[2]) >= 0 {
			return n.relevant(byte(digit(next)<<4 | digit(b[2])))
		}
		return next == 'u' || startsEscape(next)
	}
	end := n.entityEnd(b[1:]) + 1
	if end == 0 || b[end] != ';' {
		return end > 0
	}
	c, _, ok := unescaper{b, 0}.entity(1)
	return ok && n.relevant(c.bytes[0]) && (c.bytes[0] != '&' || len(n.occurrences['&']) > 0 || n.entityEnd(b[end+1:]) >= 0)
}

// entityEnd returns where a name or number ends that is behind an ampersand: at a
// semicolon, or where an escape is; -1 for nowhere.
func (n *Patterns) entityEnd(b []byte) int {
	const most = 10
	for i, c := range b[:min(len(b), most)] {
		switch {
		case c == ';', startsEscape(c):
			return i
		case !alphanumeric(c) && c != '#':
			return -1
		}
	}
	return -1
}

// relevant reports whether a character is one of a secret, or may begin an escape of
// one in what was escaped twice.
func (n *Patterns) relevant(c byte) bool {
	return len(n.occurrences[c]) > 0 || startsEscape(c) || isBreak(c)
}

// findFromEscape appends where secrets are whose first escape is at a place.
func (n *Patterns) findFromEscape(b []byte, at int, clipped bool, spans []span) []span {
	for nested := 1; nested <= maxNested; nested++ {
		c, to, ok := unescaper{b, nested}.at(at)
		if !ok {
			return spans
		}
		if c.size == 0 || c.size == 1 && isBreak(c.bytes[0]) { // the following characters are at their places
			spans = n.findAcrossLines(b, at, to, clipped, spans)
		}
		if c.size > 0 {
			spans = n.findFrom(b, at, c.bytes[0], clipped, spans)
		}
		if !startsEscape(c.bytes[0]) {
			return spans
		}
	}
	return spans
}

// same reports whether a text is a part of the encoding without any escape.
func (s *encoding) same(b []byte, part string) bool {
	for i, c := range slices.Backward(b) { // near characters differ first
		if s.plain(c) != part[i] && !s.alias(c, part[i]) {
			return false
		}
	}
	return true
}

// plain returns a character of either alphabet of base64 as that of the first.
func (s *encoding) plain(c byte) byte {
	if s.in == asBase64 {
		switch c {
		case '-':
			return '+'
		case '_':
			return '/'
		}
	}
	return c
}

// alias reports whether c stands for another character: forms write a plus for a
// space.
func (s *encoding) alias(c, other byte) bool { return s.in == asText && c == '+' && other == ' ' }

// read reads the encoding from its character at on and returns where it ends.
// With clipped set it may lack its end where the text does.
func (s *encoding) read(b []byte, i, at int, clipped bool) (int, bool) {
	switch s.in {
	case asHex:
		return s.readHex(b, i, clipped)
	case asDecimals:
		return s.readDecimals(b, i, clipped)
	case asText, asBase64:
	}
	broken := 0
	for at < len(s.text) {
		if i >= len(b) || clipped && cutEscape(b[i:]) {
			return len(b), clipped && len(s.text)-at <= missingAllowed(len(s.text))
		}
		to, size := s.character(b, i, at)
		if to == 0 {
			return 0, false
		}
		if size > 0 {
			broken = 0
		} else if broken += to - i; at == 0 || broken > maxBreak {
			return 0, false
		}
		i, at = to, at+size
	}
	return i, true
}

// maxBreak is how many bytes the end of a line and the indent of the next may have.
const maxBreak = 64

// character reads the next character of an encoding, or what is to be left out,
// and returns where it ends, 0 for neither, and how many bytes of the encoding it
// is. Escapes are undone before characters are taken as they are: a backslash may
// stand for one.
func (s *encoding) character(b []byte, i, at int) (to, size int) {
	raw := b[i]
	if startsEscape(raw) {
		for nested := maxNested; nested > 0; nested-- {
			c, to, ok := unescaper{b, nested}.at(i)
			if !ok {
				continue
			}
			if c.size == 0 || s.in == asBase64 && c.size == 1 && isBreak(c.bytes[0]) {
				return to, 0
			}
			if c.size == 1 {
				c.bytes[0] = s.plain(c.bytes[0])
			}
			if c.size == 1 && s.alias(c.bytes[0], s.text[at]) {
				return to, 1
			}
			if at+c.size <= len(s.text) && string(c.bytes[:c.size]) == s.text[at:at+c.size] {
				return to, c.size
			}
		}
	}
	switch {
	case s.plain(raw) == s.text[at], s.alias(raw, s.text[at]):
		return i + 1, 1
	case s.in == asBase64 && isBreak(raw):
		return i + 1, 0
	}
	return 0, 0
}

func isBreak(c byte) bool { return c == '\n' || c == '\r' || c == ' ' || c == '\t' }

// cutEscape reports whether a text ends in the middle of an escape.
func cutEscape(b []byte) bool {
	if len(b) > 2*len(`\\u0000`) || !startsEscape(b[0]) {
		return false
	}
	_, _, whole := unescaper{b, 1}.at(0)
	return !whole && bytes.IndexByte(b[1:], ' ') < 0
}

// readHex reads two digits a byte, with little between two bytes.
func (s *encoding) readHex(b []byte, i int, clipped bool) (int, bool) {
	for at := range len(s.text) {
		if at > 0 {
			i = skipBetween(b, i, " \t\r\n:,;-'xX\\")
		}
		if i+1 < len(b) && at > 0 && b[i] == '0' && lower(b[i+1]) == 'x' && !(i+2 < len(b) && digit(b[i+2]) < 0) {
			i += 2
		}
		if i+1 >= len(b) {
			return len(b), clipped && len(s.text)-at <= missingAllowed(len(s.text))
		}
		if digit(b[i]) != int(s.text[at]>>4) || digit(b[i+1]) != int(s.text[at]&15) {
			return 0, false
		}
		i += 2
	}
	return i, true
}

// readDecimals reads a number a byte.
func (s *encoding) readDecimals(b []byte, i int, clipped bool) (int, bool) {
	for at := range len(s.text) {
		if at > 0 {
			from := i
			if i = skipBetween(b, i, " \t\r\n,"); i == from && i < len(b) {
				return 0, false
			}
		}
		number, from := 0, i
		for i < len(b) && i < from+3 && '0' <= b[i] && b[i] <= '9' {
			number = 10*number + int(b[i]-'0')
			i++
		}
		if i >= len(b) && (i == from || number != int(s.text[at])) {
			return len(b), clipped && len(s.text)-at <= missingAllowed(len(s.text))
		}
		if i == from || number != int(s.text[at]) {
			return 0, false
		}
	}
	return i, true
}

// skipBetween returns where what is between two bytes ends.
func skipBetween(b []byte, i int, set string) int {
	for end := i + maxBreak; i < len(b) && i < end && strings.IndexByte(set, b[i]) >= 0; {
		i++
	}
	return i
}

// char is a character in UTF-8, or a byte; of size 0 one that stands for nothing.
type char struct {
	bytes [utf8.UTFMax]byte
	size  int
}

func byteChar(c int) char { return char{bytes: [utf8.UTFMax]byte{byte(c)}, size: 1} }

func runeChar(r rune) (c char) {
	c.size = utf8.EncodeRune(c.bytes[:], r)
	return c
}

// unescaper is a text with its escapes undone, so many times over.
type unescaper struct {
	text   []byte
	nested int
}

// at returns the character at i and where the next begins. The last is false
// at the end of the text and, with nested above 0, where no escape begins.
func (v unescaper) at(i int) (char, int, bool) {
	if v.nested == 0 {
		if i >= len(v.text) {
			return char{}, 0, false
		}
		return byteChar(int(v.text[i])), i + 1, true
	}
	inner := unescaper{v.text, v.nested - 1}
	c, to := inner.byteAt(i)
	switch c {
	case '\\':
		return inner.backslash(to)
	case '%':
		return inner.percent(to)
	case '&':
		return inner.entity(to)
	}
	return char{}, 0, false
}

// byteAt returns the byte at i, -1 for none, escaped or not.
func (v unescaper) byteAt(i int) (c, to int) {
	if i < len(v.text) && !startsEscape(v.text[i]) {
		return int(v.text[i]), i + 1
	}
	for nested := v.nested; nested >= 0; nested-- {
		if c, to, ok := (unescaper{v.text, nested}).at(i); ok && c.size == 1 {
			return int(c.bytes[0]), to
		}
	}
	return -1, i
}

// hexNumber reads hexadecimal digits: exactly so many.
func (v unescaper) hexNumber(i, digits int) (n, to int, ok bool) {
	for range digits {
		c, next := v.byteAt(i)
		if c < 0 || digit(byte(c)) < 0 {
			return 0, 0, false
		}
		n, i = n<<4|digit(byte(c)), next
	}
	return n, i, true
}

func digit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// backslash reads what JSON, JavaScript, C, Go and Python put behind one.
func (v unescaper) backslash(i int) (char, int, bool) {
	c, to := v.byteAt(i)
	switch {
	case c < 0:
		return char{}, 0, false
	case c == 'u':
		return v.unicodeEscape(to)
	case c == 'x':
		n, to, ok := v.hexNumber(to, 2)
		return byteChar(n), to, ok
	case c == 'U':
		n, to, ok := v.hexNumber(to, 8)
		return runeChar(rune(n)), to, ok
	case c == '\n':
		return char{}, to, true // a line that goes on
	case '0' <= c && c <= '3':
		return v.octal(i)
	case alphanumeric(byte(c)):
		const letters, stand = "abtnvfre", "\a\b\t\n\v\f\r\x1b"
		if at := strings.IndexByte(letters, byte(c)); at >= 0 {
			return byteChar(int(stand[at])), to, true
		}
		return char{}, 0, false
	}
	return byteChar(c), to, true
}

// octal reads three digits.
func (v unescaper) octal(i int) (char, int, bool) {
	n := 0
	for range 3 {
		c, to := v.byteAt(i)
		if c < '0' || c > '7' {
			return char{}, 0, false
		}
		n, i = n<<3|(c-'0'), to
	}
	return byteChar(n), i, true
}

// unicodeEscape reads what is behind \u: a unit of UTF-16, two where one does not do, or
// a number in braces.
func (v unescaper) unicodeEscape(i int) (char, int, bool) {
	if c, to := v.byteAt(i); c == '{' {
		return v.codePoint(to, 16, '}')
	}
	n, to, ok := v.hexNumber(i, 4)
	if !ok || !utf16.IsSurrogate(rune(n)) {
		return runeChar(rune(n)), to, ok
	}
	if c, next := v.byteAt(to); c == '\\' {
		if c, next = v.byteAt(next); c == 'u' {
			if low, next, ok := v.hexNumber(next, 4); ok {
				return runeChar(utf16.DecodeRune(rune(n), rune(low))), next, true
			}
		}
	}
	return char{}, 0, false
}

// codePoint reads the number of a character up to its end.
func (v unescaper) codePoint(i, base, end int) (char, int, bool) {
	n := 0
	for digits := 0; digits <= 8; digits++ {
		c, to := v.byteAt(i)
		if c == end && digits > 0 {
			return runeChar(rune(n)), to, true
		}
		if c < 0 || digit(byte(c)) < 0 || digit(byte(c)) >= base {
			break
		}
		n, i = min(n*base+digit(byte(c)), utf8.MaxRune+1), to
	}
	return char{}, 0, false
}

// percent reads what URLs and forms put behind one.
func (v unescaper) percent(i int) (char, int, bool) {
	if c, to := v.byteAt(i); c == 'u' { // as ASP and JavaScript's escape write it
		n, to, ok := v.hexNumber(to, 4)
		return runeChar(rune(n)), to, ok
	}
	n, to, ok := v.hexNumber(i, 2)
	return byteChar(n), to, ok
}

// entity reads what HTML and XML put behind an ampersand.
func (v unescaper) entity(i int) (char, int, bool) {
	c, to := v.byteAt(i)
	if c == '#' {
		if c, next := v.byteAt(to); c == 'x' || c == 'X' {
			return v.codePoint(next, 16, ';')
		}
		return v.codePoint(to, 10, ';')
	}
	var name [8]byte
	for size := range name {
		c, to = v.byteAt(i)
		if c == ';' {
			return namedEntity(string(name[:size]), to)
		}
		if c < 0 || !alphanumeric(byte(c)) {
			break
		}
		name[size], i = byte(c), to
	}
	return char{}, 0, false
}

// namedEntity returns the character of a name, of those that encoders use
// (https://html.spec.whatwg.org/multipage/named-characters.html).
func namedEntity(name string, to int) (char, int, bool) {
	c := -1
	switch name {
	case "amp":
		c = '&'
	case "lt":
		c = '<'
	case "gt":
		c = '>'
	case "quot":
		c = '"'
	case "apos":
		c = '\''
	case "sol":
		c = '/'
	case "plus":
		c = '+'
	case "equals":
		c = '='
	case "colon":
		c = ':'
	case "num":
		c = '#'
	case "excl":
		c = '!'
	case "dollar":
		c = '$'
	case "percnt":
		c = '%'
	case "lpar":
		c = '('
	case "rpar":
		c = ')'
	case "ast":
		c = '*'
	case "comma":
		c = ','
	case "period":
		c = '.'
	case "semi":
		c = ';'
	case "quest":
		c = '?'
	case "commat":
		c = '@'
	case "lsqb", "lbrack":
		c = '['
	case "bsol":
		c = '\\'
	case "rsqb", "rbrack":
		c = ']'
	case "Hat":
		c = '^'
	case "lowbar":
		c = '_'
	case "grave":
		c = '`'
	case "lcub", "lbrace":
		c = '{'
	case "verbar", "vert":
		c = '|'
	case "rcub", "rbrace":
		c = '}'
	case "Tab":
		c = '\t'
	case "NewLine":
		c = '\n'
	}
	return byteChar(max(c, 0)), to, c >= 0
}
