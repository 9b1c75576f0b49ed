package httpclean

import (
	"iter"
	"strings"
)

// Class is why a request header must not reach an upstream.
type Class uint8

// The classes. ClassNone is the zero value: the header may pass.
const (
	ClassNone Class = iota
	// ClassHop is a header of one connection (RFC 9110, section 7.6.1).
	ClassHop
	// ClassOverride makes a server see another method, path, host or client than
	// the one that was decided.
	ClassOverride
	// ClassOwn is a header of Chaperone's.
	ClassOwn
	// ClassFraming is a spelling of Content-Length that a server could read as the
	// length of the body, beside the true one.
	ClassFraming
)

// longestListed bounds the names that Classify looks up: a longer one can only
// belong to a family.
const longestListed = 32

// Families of headers.
const (
	ownFamily       = "x-chaperone-"
	forwardedFamily = "x-forwarded-"
)

// Classify returns the class of a header by its name, in any spelling.
func Classify(name string) Class {
	var buf [longestListed]byte
	folded := fold(buf[:0], name)
	switch string(folded) { // does not allocate
	case "connection", "proxy-connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
		"proxy-authentication-info", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings":
		return ClassHop
	case "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url",
		"forwarded", "host":
		return ClassOverride
	case "content-length":
		if strings.IndexByte(name, '_') >= 0 {
			return ClassFraming
		}
		return ClassNone
	}
	if len(folded) >= len(ownFamily) {
		switch string(folded[:len(ownFamily)]) { // both have the same length
		case ownFamily:
			return ClassOwn
		case forwardedFamily:
			return ClassOverride
		}
	}
	return ClassNone
}

// fold appends the name in lower case with hyphens, up to the capacity of buf.
func fold(buf []byte, name string) []byte {
	for i := range min(len(name), cap(buf)) {
		buf = append(buf, foldByte(name[i]))
	}
	if len(name) > cap(buf) { // it is not a listed one
		buf[cap(buf)-1] = 0
	}
	return buf
}

func foldByte(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c | 0x20
	case c == '_':
		return '-'
	}
	return c
}

// SameHeader reports whether a server may take one header name for the other.
func SameHeader(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if foldByte(a[i]) != foldByte(b[i]) {
			return false
		}
	}
	return true
}

// FoldName returns a header name in lower case with hyphens: names that servers may
// take for each other have the same folded name.
func FoldName(name string) string {
	for i := range len(name) {
		if foldByte(name[i]) != name[i] {
			return string(fold(make([]byte, 0, len(name)), name))
		}
	}
	return name
}

// RemovedHeaders returns the names of [ClassHop], [ClassOverride] and [ClassOwn] that
// a caller must be asked to remove although it may not have shown them, in lower case
// and sorted. The members of the families x-forwarded-* and x-chaperone-* that are
// in use are among them; others are removed when they are seen. Headers that an HTTP
// implementation consumes itself, as Connection and Host, are not.
func RemovedHeaders() [18]string {
	return [...]string{
		"forwarded",
		"keep-alive",
		"proxy-authenticate",
		"proxy-authentication-info",
		"proxy-authorization",
		"proxy-connection",
		"x-chaperone-decision",
		"x-chaperone-reason",
		"x-forwarded-for",
		"x-forwarded-host",
		"x-forwarded-port",
		"x-forwarded-prefix",
		"x-forwarded-proto",
		"x-http-method",
		"x-http-method-override",
		"x-method-override",
		"x-original-url",
		"x-rewrite-url",
	}
}

// ConsumedByHTTP reports whether an HTTP implementation consumes a header and writes
// it itself, by its folded name: removing it would break upgrades, gRPC or the
// framing of bodies.
func ConsumedByHTTP(folded string) bool {
	switch folded {
	case "close", "connection", "keep-alive", "upgrade", "te", "transfer-encoding", "trailer", "http2-settings", "content-length", "host":
		return true
	}
	return false
}

// ConnectionOptions yields the header names that the values of Connection nominate,
// folded: the sender means them for the next hop alone (RFC 9110, section 7.6.1).
// Options that are not names of headers, and those that [ConsumedByHTTP] reports, are
// left out.
func ConnectionOptions(values []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, value := range values {
			for option := range strings.SplitSeq(value, ",") {
				option = FoldName(strings.Trim(option, " \t"))
				if IsToken(option) && !ConsumedByHTTP(option) && !yield(option) {
					return
				}
			}
		}
	}
}

// HasToken reports whether the values of a comma-separated header hold a token,
// without regard to case.
func HasToken(values []string, token string) bool {
	for _, value := range values {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// IsToken reports whether s is a token (RFC 9110, section 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		alphanumeric := '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
		if !alphanumeric && c != '-' && strings.IndexByte("!#$%&'*+.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}
