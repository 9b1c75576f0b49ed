package sql

import (
	"strings"
	"unicode/utf8"
)

// The lexer is PostgreSQL's src/backend/parser/scan.l of 13 to 18, with
// standard_conforming_strings on. Where the versions differ it follows the one that takes
// the text apart further, because the others report an error: a number with letters behind
// it is a number and a word until 14.

type tokenKind uint8

const (
	tokenWord   tokenKind = iota // an identifier or keyword, quoted or not
	tokenString                  // every form of string and bit string
	tokenNumber
	tokenParam    // $1
	tokenOperator // also * + - / < > = % ^ and => := :: ..
	tokenPunct    // one of , ( ) [ ] . ; :
)

const (
	// flagQuoted is set for a word in quotes.
	flagQuoted = 1 << iota
	// flagUnicode is set for U&"word", with the escape character in the token's match.
	flagUnicode
	// flagPlain is set for 'string' without continuation, whose value is what is between the
	// quotes.
	flagPlain
)

// token is a piece of the text.
type token struct {
	kind       tokenKind
	flags      uint8
	char       byte    // the first byte, for operators and punctuation
	keyword    keyword // of a word that is not quoted
	start, end int32
	match      int32 // the index of the other bracket
}

// The reasons of an unreadable text.
const (
	reasonEncoding  = "the statement is not UTF-8, or holds a zero byte"
	reasonString    = "a string, a quoted name or a comment of the statement does not end"
	reasonCharacter = "the statement holds a character that PostgreSQL reads in no version, or only in some"
	reasonName      = "a quoted name of the statement is empty or has an escape that is not valid"
	reasonBrackets  = "the brackets of the statement do not match"
	reasonDepth     = "the statement is nested too deeply"
	reasonLength    = "the statement is too long"
	reasonTokens    = "the statement has more words than are read"
)

const (
	// maxText is how long a text may be, in bytes.
	maxText = 16 << 20
	// maxTokens bounds the memory of a reading, to some MiB.
	maxTokens = 1 << 18
	// maxDepth is how deeply brackets may be nested. PostgreSQL's own limit is that of its
	// stack, some thousands.
	maxDepth = 500
	// maxName is how long a name is in PostgreSQL, in bytes; the rest is cut off.
	maxName = 63
)

// byteClass are what a byte can begin or continue, as bits.
type byteClass uint8

const (
	classWordStart byteClass = 1 << iota
	classWord
	classDigit
	classOperator
	classSpace
	classHex
)

// classOf returns the classes of a byte.
func classOf(c byte) byteClass { return classes[c] }

// classes are the classes of each byte.
//
//nolint:gochecknoglobals // a constant table
var classes = func() (t [256]byteClass) {
	for c := range 256 {
		switch b := byte(c); {
		case b >= '0' && b <= '9':
			t[c] = classWord | classDigit | classHex
		case b >= 'a' && b <= 'f', b >= 'A' && b <= 'F':
			t[c] = classWordStart | classWord | classHex
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b == '_', b >= 0x80:
			t[c] = classWordStart | classWord
		case b == '$':
			t[c] = classWord
		case strings.IndexByte(" \t\n\r\f", b) >= 0:
			t[c] = classSpace
		case strings.IndexByte("~!@#^&|`?+-*/%<>=", b) >= 0:
			t[c] = classOperator
		}
	}
	return t
}()

type lexer struct {
	text   string
	pos    int
	reason string
}

// lex appends the tokens of the text, without comments and spaces. The reason is "" if all
// of the text was read; otherwise the tokens are those before the place that was not.
func lex(text string, tokens []token) (_ []token, reason string) {
	if len(text) > maxText {
		return nil, reasonLength
	}
	if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
		return nil, reasonEncoding
	}
	l := lexer{text: text}
	for l.space() {
		start := l.pos
		t := l.next()
		if l.reason != "" {
			break
		}
		t.start, t.end = int32(start), int32(l.pos)
		if t.keyword == kwUescape && len(tokens) > 0 && tokens[len(tokens)-1].flags&flagUnicode != 0 {
			if !l.escapeOf(&tokens[len(tokens)-1]) {
				l.fail(reasonName)
				break
			}
			continue
		}
		if len(tokens) == maxTokens {
			l.fail(reasonTokens)
			break
		}
		tokens = append(tokens, t)
	}
	return tokens, l.reason
}

func (l *lexer) fail(reason string) { l.reason, l.pos = reason, len(l.text) }

func (l *lexer) peek(ahead int) byte {
	if l.pos+ahead < len(l.text) {
		return l.text[l.pos+ahead]
	}
	return 0
}

func (l *lexer) skip(class byteClass) {
	for l.pos < len(l.text) && classOf(l.text[l.pos])&class != 0 {
		l.pos++
	}
}

// space skips spaces and comments, and reports whether something follows.
func (l *lexer) space() bool {
	for l.pos < len(l.text) {
		switch c := l.text[l.pos]; {
		case classOf(c)&classSpace != 0:
			l.pos++
		case c == '-' && l.peek(1) == '-':
			l.line()
		case c == '/' && l.peek(1) == '*':
			l.comment()
		default:
			return true
		}
	}
	return false
}

// line skips the rest of a line.
func (l *lexer) line() {
	if n := strings.IndexAny(l.text[l.pos:], "\r\n"); n >= 0 {
		l.pos += n
	} else {
		l.pos = len(l.text)
	}
}

// comment skips a comment, which may hold others.
func (l *lexer) comment() {
	depth := 0
	for l.pos < len(l.text) {
		switch {
		case l.text[l.pos] == '/' && l.peek(1) == '*':
			depth++
			l.pos += 2
		case l.text[l.pos] == '*' && l.peek(1) == '/':
			depth--
			l.pos += 2
			if depth == 0 {
				return
			}
		default:
			l.pos++
		}
	}
	l.fail(reasonString)
}

// next reads one token.
func (l *lexer) next() token {
	c := l.text[l.pos]
	switch class := classOf(c); {
	case class&classWordStart != 0:
		return l.word(c)
	case class&classDigit != 0, c == '.' && classOf(l.peek(1))&classDigit != 0:
		return l.number()
	case class&classOperator != 0:
		return l.operator(c)
	}
	switch c {
	case '\'':
		return l.quoted(1, false)
	case '"':
		return l.name(1, flagQuoted)
	case '$':
		return l.dollar()
	case '.', ':':
		if next := l.peek(1); next == c || c == ':' && next == '=' {
			l.pos += 2
			return token{kind: tokenOperator, char: c}
		}
	case ',', '(', ')', '[', ']', ';':
	default:
		l.fail(reasonCharacter)
		return token{}
	}
	l.pos++
	return token{kind: tokenPunct, char: c}
}

// word reads an identifier, a keyword, or a string or name with a letter before its quote.
func (l *lexer) word(c byte) token {
	switch quote := l.peek(1); {
	case quote == '\'' && (c == 'e' || c == 'E'):
		return l.quoted(2, true)
	case quote == '\'' && strings.IndexByte("bBxX", c) >= 0:
		return l.bits()
	case quote == '\'' && (c == 'n' || c == 'N'):
		l.pos++
		return token{kind: tokenWord, keyword: kwNchar}
	case quote == '&' && (c == 'u' || c == 'U') && l.peek(2) == '\'':
		t := l.quoted(3, false)
		t.flags = flagUnicode
		return t
	case quote == '&' && (c == 'u' || c == 'U') && l.peek(2) == '"':
		t := l.name(3, flagQuoted|flagUnicode)
		t.match = '\\'
		return t
	}
	start := l.pos
	l.skip(classWord)
	return token{kind: tokenWord, keyword: keywordOf(l.text[start:l.pos])}
}

// longestKeyword is the length of current_transform_group_for_type and its like, rounded up.
const longestKeyword = 24

// keywordOf returns the keyword of a word, which is folded as ASCII.
func keywordOf(word string) keyword {
	if len(word) > longestKeyword || len(word) < 2 {
		return noKeyword
	}
	var buf [longestKeyword]byte
	for i := range len(word) {
		buf[i] = lower(word[i])
	}
	return findKeyword(buf[:len(word)])
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// name reads a quoted name, whose quote is at the given distance.
func (l *lexer) name(ahead int, flags uint8) token {
	l.pos += ahead
	for start := l.pos; ; l.pos++ {
		n := strings.IndexByte(l.text[l.pos:], '"')
		if n < 0 {
			l.fail(reasonString)
			return token{}
		}
		l.pos += n + 1
		if l.peek(0) != '"' {
			if l.pos-1 == start {
				l.fail(reasonName)
			}
			return token{kind: tokenWord, flags: flags}
		}
	}
}

// quoted reads a string whose first quote is at the given distance less one, with what
// continues it on further lines.
func (l *lexer) quoted(ahead int, escapes bool) token {
	l.pos += ahead
	t := token{kind: tokenString, flags: flagPlain}
	if escapes {
		t.flags = 0
	}
	for {
		var n int
		if escapes {
			n = strings.IndexAny(l.text[l.pos:], `'\`)
		} else {
			n = strings.IndexByte(l.text[l.pos:], '\'')
		}
		if n < 0 {
			l.fail(reasonString)
			return token{}
		}
		l.pos += n + 1
		switch {
		case l.text[l.pos-1] == '\\':
			if l.pos++; l.pos > len(l.text) {
				l.fail(reasonString)
				return token{}
			}
		case l.peek(0) == '\'':
			l.pos++
			t.flags = 0
		default:
			end := l.continued()
			if end < 0 {
				return t
			}
			l.pos, t.flags = end, 0
		}
	}
}

// bits reads a bit string, in which a quote is never doubled.
func (l *lexer) bits() token {
	l.pos += 2
	for {
		n := strings.IndexByte(l.text[l.pos:], '\'')
		if n < 0 {
			l.fail(reasonString)
			return token{}
		}
		l.pos += n + 1
		end := l.continued()
		if end < 0 {
			return token{kind: tokenString}
		}
		l.pos = end
	}
}

// continued returns where a string goes on after its quote, -1 if it does not: behind
// spaces and comments to the end of the line, of which there is at least one line end.
func (l *lexer) continued() int {
	line := false
	for p := l.pos; p < len(l.text); {
		switch c := l.text[p]; {
		case c == '\n' || c == '\r':
			line = true
			p++
		case classOf(c)&classSpace != 0:
			p++
		case c == '-' && strings.HasPrefix(l.text[p:], "--"):
			n := strings.IndexAny(l.text[p:], "\r\n")
			if n < 0 {
				return -1
			}
			p += n
		case c == '\'' && line:
			return p + 1
		default:
			return -1
		}
	}
	return -1
}

// dollar reads a parameter or a string between dollars.
func (l *lexer) dollar() token {
	if classOf(l.peek(1))&classDigit != 0 {
		l.pos++
		l.skip(classDigit)
		return token{kind: tokenParam}
	}
	end := l.pos + 1
	if end < len(l.text) && classOf(l.text[end])&classWordStart != 0 {
		for end < len(l.text) && classOf(l.text[end])&classWord != 0 && l.text[end] != '$' {
			end++
		}
	}
	if end >= len(l.text) || l.text[end] != '$' {
		l.fail(reasonCharacter)
		return token{}
	}
	tag := l.text[l.pos : end+1]
	n := strings.Index(l.text[end+1:], tag)
	if n < 0 {
		l.fail(reasonString)
		return token{}
	}
	l.pos = end + 1 + n + len(tag)
	return token{kind: tokenString}
}

// number reads a number. Letters behind it are the next token.
func (l *lexer) number() token {
	if l.text[l.pos] == '0' && l.radix() {
		return token{kind: tokenNumber}
	}
	l.digits(classDigit)
	if l.peek(0) == '.' && l.peek(1) != '.' {
		l.pos++
		if classOf(l.peek(0))&classDigit != 0 {
			l.digits(classDigit)
		}
	}
	if c := l.peek(0); c == 'e' || c == 'E' {
		sign := 1
		if s := l.peek(1); s == '+' || s == '-' {
			sign = 2
		}
		if classOf(l.peek(sign))&classDigit != 0 {
			l.pos += sign
			l.digits(classDigit)
		}
	}
	return token{kind: tokenNumber}
}

// radix reads 0x1F, 0o17 or 0b1, and reports whether it did.
func (l *lexer) radix() bool {
	class, digits := classDigit, "01"
	switch l.peek(1) {
	case 'x', 'X':
		class, digits = classHex, ""
	case 'o', 'O':
		digits = "01234567"
	case 'b', 'B':
	default:
		return false
	}
	first := l.peek(2)
	if first == '_' {
		first = l.peek(3)
	}
	if classOf(first)&class == 0 || digits != "" && strings.IndexByte(digits, first) < 0 {
		return false
	}
	l.pos += 2
	l.digits(class)
	return true
}

// digits reads digits with single underscores between them.
func (l *lexer) digits(class byteClass) {
	for {
		l.skip(class)
		if l.peek(0) != '_' || classOf(l.peek(1))&class == 0 {
			return
		}
		l.pos++
	}
}

// operator reads an operator, which ends before a comment. One of several characters ends
// in + or - only if it holds one of ~ ! @ # ^ & | ` ? %.
func (l *lexer) operator(c byte) token {
	start := l.pos
	l.skip(classOperator)
	op := l.text[start:l.pos]
	for _, comment := range []string{"/*", "--"} {
		if n := strings.Index(op, comment); n > 0 {
			op = op[:n]
		}
	}
	if len(op) > 1 && !strings.ContainsAny(op, "~!@#^&|`?%") {
		op = op[:1+len(strings.TrimRight(op[1:], "+-"))]
	}
	l.pos = start + len(op)
	return token{kind: tokenOperator, char: c}
}

// escapeOf reads the string behind UESCAPE.
func (l *lexer) escapeOf(t *token) bool {
	if !l.space() || l.peek(0) != '\'' || l.peek(2) != '\'' {
		return false
	}
	c := l.peek(1)
	start := l.pos
	l.pos += 3
	if classOf(c)&(classHex|classSpace) != 0 || strings.IndexByte(`+'"`, c) >= 0 || c >= 0x80 || l.peek(0) == '\'' || l.continued() >= 0 {
		l.pos = start
		return false
	}
	t.match = int32(c)
	return true
}
