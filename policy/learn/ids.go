package learn

// idClass is the kind of an identifier in a path, 0 for a word.
type idClass uint8

const (
	word idClass = iota
	integerID
	dateID
	uuidID
	hexID
	ulidID
	base64ID
)

// String names the class in the plural.
func (c idClass) String() string {
	switch c {
	case integerID:
		return "integers"
	case dateID:
		return "dates"
	case uuidID:
		return "UUIDs"
	case hexID:
		return "hexadecimal ids"
	case ulidID:
		return "ULIDs"
	case base64ID:
		return "base64url ids"
	case word:
	}
	return "words"
}

// unmistakable reports whether one value of the class suffices to recognise it.
func (c idClass) unmistakable() bool { return c >= uuidID }

const (
	minHex    = 16
	minBase64 = 20
	maxDigits = 20 // of a 64-bit integer
)

// characters counts what a segment consists of.
type characters struct {
	digits, lower, upper, hex, safe int // safe: - and _
	run, longestRun                 int // of letters of one case
}

func count(s string) (c characters) {
	var last byte
	for i := range len(s) {
		b, kind := s[i], byte(0)
		switch {
		case '0' <= b && b <= '9':
			c.digits++
			c.hex++
		case 'a' <= b && b <= 'z':
			kind = 'a'
			c.lower++
			if b <= 'f' {
				c.hex++
			}
		case 'A' <= b && b <= 'Z':
			kind = 'A'
			c.upper++
			if b <= 'F' {
				c.hex++
			}
		case b == '-' || b == '_':
			c.safe++
		}
		if kind != 0 && kind == last {
			c.run++
		} else {
			c.run = 1
		}
		if last = kind; kind != 0 {
			c.longestRun = max(c.longestRun, c.run)
		}
	}
	return c
}

// classify returns the class of a segment of a canonical path.
func classify(s string) idClass {
	if s == "" || len(s) > 128 {
		return word
	}
	c := count(s)
	switch {
	case c.digits == len(s) && len(s) <= maxDigits:
		return integerID
	case isDate(s):
		return dateID
	case isUUID(s, c):
		return uuidID
	case c.hex == len(s) && len(s) >= minHex && c.digits > 0:
		return hexID
	case isULID(s, c):
		return ulidID
	case isBase64(s, c):
		return base64ID
	}
	return word
}

// isDate reports whether s is YYYY-MM or YYYY-MM-DD, with or without a time after T.
func isDate(s string) bool {
	const day = "0000-00-00"
	if len(s) != len("0000-00") && len(s) != len(day) && (len(s) < len(day)+2 || s[len(day)] != 'T') {
		return false
	}
	for i := range min(len(s), len(day)) {
		if digit := '0' <= s[i] && s[i] <= '9'; digit != (day[i] == '0') || !digit && s[i] != '-' {
			return false
		}
	}
	month := (s[5]-'0')*10 + s[6] - '0'
	for i := len(day) + 1; i < len(s); i++ { // a time of ISO 8601
		if c := s[i]; (c < '0' || c > '9') && c != ':' && c != '.' && c != 'Z' && c != '+' && c != '-' {
			return false
		}
	}
	return 1 <= month && month <= 12
}

// isUUID reports whether s is a UUID in its textual form (RFC 9562, section 4).
func isUUID(s string, c characters) bool {
	return len(s) == 36 && c.hex == 32 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-'
}

// isULID reports whether s is a ULID: 26 characters of Crockford's base32.
func isULID(s string, c characters) bool {
	if len(s) != 26 || c.lower > 0 || c.digits == 0 || c.upper == 0 || s[0] > '7' {
		return false
	}
	for i := range len(s) {
		switch b := s[i]; {
		case '0' <= b && b <= '9':
		case b < 'A' || b > 'Z' || b == 'I' || b == 'L' || b == 'O' || b == 'U':
			return false
		}
	}
	return true
}

// isBase64 reports whether s looks like random bytes in base64url (RFC 4648, section 5). A
// slug and a name in camel case have its characters too, but runs of letters of one case, or
// no digits.
func isBase64(s string, c characters) bool {
	const longRun = 7 // of 40 random characters, one in 20 has it
	return len(s) >= minBase64 && c.digits+c.lower+c.upper+c.safe == len(s) &&
		c.digits >= 2 && c.lower >= 2 && c.upper >= 2 && c.longestRun < longRun
}
