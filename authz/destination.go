package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Destination is the destination of an access, in its one canonical form.
// [NewDestination] is its only constructor. The decision, the credential, DNS,
// the dial, SNI, the certificate check and the Host header all use it. It is
// comparable; the zero Destination is invalid.
type Destination struct {
	scheme       Scheme
	host         string // lower-case ASCII name, or an address without brackets
	port         uint16
	path         string // canonical; "" for a tunnel
	query        string // as sent, without "?"
	hasQuery     bool   // "?" was present, even if the query is empty
	encodedSlash bool   // path holds %2F
	addr         netip.Addr
}

// Maximum sizes. DNS allows 253 bytes of name (RFC 1035, section 3.1) and 63 bytes
// of label.
const (
	maxTarget = 32 << 10
	maxPath   = 8 << 10
	maxHost   = 253
	maxLabel  = 63
)

// NewDestination returns the canonical destination of an access to target at
// authority, or an error that states what is malformed.
//
// Authority is host or host:port. Hosts are lower-cased and lose one trailing
// dot; IP literals in any spelling that URL parsers accept become the address
// they denote. Target is the origin-form (RFC 9112, section 3.2.1) for http and
// https, where "" means "/", and "" for other schemes. canonicalPath lists what is
// canonicalised and what is refused.
func NewDestination(scheme Scheme, authority, target string) (Destination, error) {
	d := Destination{scheme: scheme.shared()}
	var err error
	if d.host, d.port, d.addr, err = parseAuthority(authority); err != nil {
		return Destination{}, err
	}
	if d.port == 0 {
		d.port = scheme.DefaultPort()
	}
	switch scheme {
	case SchemeHTTP, SchemeHTTPS:
		err = d.setTarget(target)
	case SchemeTLS, SchemeTCP, SchemePostgres, SchemeRedis:
		if target != "" {
			err = errors.New("tunnel has a path")
		}
	default:
		err = fmt.Errorf("scheme %q is not http, https, tls, tcp, postgres or redis", clip(string(scheme)))
	}
	if err == nil && d.port == 0 {
		err = errors.New("port is missing")
	}
	if err != nil {
		return Destination{}, err
	}
	return d, nil
}

// WithTarget returns the destination with another target, which [NewDestination] describes.
func (d Destination) WithTarget(target string) (Destination, error) {
	if !d.scheme.HTTP() {
		return Destination{}, errors.New("tunnel has a path")
	}
	if err := d.setTarget(target); err != nil {
		return Destination{}, err
	}
	return d, nil
}

// Scheme returns the destination's scheme.
func (d Destination) Scheme() Scheme { return d.scheme }

// Host returns the canonical name or address, without brackets.
func (d Destination) Host() string { return d.host }

// Port returns the port, which is not 0 in a valid destination.
func (d Destination) Port() uint16 { return d.port }

// Path returns the canonical path, "" for a tunnel.
func (d Destination) Path() string { return d.path }

// Query returns the query as it was sent, without "?".
func (d Destination) Query() string { return d.query }

// Address returns the address if the host is an IP literal, and the zero Addr if
// it is a name.
func (d Destination) Address() netip.Addr { return d.addr }

// HostPort returns host:port for dialling, with an IPv6 address in brackets.
func (d Destination) HostPort() string {
	return d.bracketed() + ":" + strconv.Itoa(int(d.port))
}

// Authority returns the Host header's value: the scheme's default port is
// left out (RFC 9110, section 7.2).
func (d Destination) Authority() string {
	if d.port == d.scheme.DefaultPort() {
		return d.bracketed()
	}
	return d.HostPort()
}

// Target returns the canonical path and the query, as they go on the wire.
func (d Destination) Target() string {
	if d.hasQuery {
		return d.path + "?" + d.query
	}
	return d.path
}

// URL returns the destination as a URL without its query, for display.
func (d Destination) URL() string {
	return string(d.scheme) + "://" + d.Authority() + d.path
}

// Agrees reports whether authority (a Host header, an :authority) is another
// spelling of this destination's host and port. An authority without a port
// means its scheme's default port, as for the server that reads it (RFC 9110,
// section 7.2); if the scheme has no default port, any port agrees.
func (d Destination) Agrees(authority string) bool {
	host, port, _, err := parseAuthority(authority)
	if err != nil || host != d.host {
		return false
	}
	if port == 0 {
		port = d.scheme.DefaultPort()
	}
	return port == d.port || port == 0
}

// AgreesName is Agrees for a server name, which has no port.
func (d Destination) AgreesName(name string) bool {
	host, port, _, err := parseAuthority(name)
	return err == nil && port == 0 && host == d.host
}

func (d Destination) bracketed() string {
	if d.addr.Is6() {
		return "[" + d.host + "]"
	}
	return d.host
}

// parseAuthority reads host[:port]. The port is 0 if it is not stated.
func parseAuthority(s string) (host string, port uint16, addr netip.Addr, err error) {
	fail := func(format string, args ...any) (string, uint16, netip.Addr, error) {
		return "", 0, netip.Addr{}, fmt.Errorf(format, args...)
	}
	if s == "" {
		return fail("host is missing")
	}
	if strings.Contains(s, "@") { // not quoted: it may contain a password
		return fail("host holds user information, which is not allowed (RFC 9110, section 4.2.4)")
	}
	name, portText, hasPort := strings.Cut(s, ":")
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return fail("host %q has no closing bracket", clip(s))
		}
		rest := s[end+1:]
		name = s[:end+1]
		if portText, hasPort = strings.CutPrefix(rest, ":"); !hasPort && rest != "" {
			return fail("host %q has bytes after its bracket", clip(s))
		}
	}
	if hasPort {
		n, perr := strconv.ParseUint(portText, 10, 16)
		if perr != nil || n == 0 || portText[0] == '0' || portText[0] == '+' {
			return fail("port %q is not a number from 1 to 65535", clip(portText))
		}
		port = uint16(n)
	}
	host, addr, err = canonicalHost(name)
	return host, port, addr, err
}

// canonicalHost returns the canonical spelling of a host, and its address if it
// is an IP literal.
func canonicalHost(s string) (string, netip.Addr, error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", netip.Addr{}, fmt.Errorf("host %q is not an IPv6 address without a zone", clip(s))
		}
		addr = addr.Unmap()
		return addr.String(), addr, nil
	}
	host := asciiLower(strings.TrimSuffix(s, "."))
	if err := checkHostName(host); err != nil {
		return "", netip.Addr{}, err
	}
	if !endsInNumber(host) {
		return host, netip.Addr{}, nil
	}
	addr, ok := parseIPv4(host)
	if !ok {
		return "", netip.Addr{}, fmt.Errorf("host %q ends in a number but is not an IPv4 address", clip(s))
	}
	return addr.String(), addr, nil
}

// checkHostName returns an error for text that is not a lower-case ASCII host name.
func checkHostName(host string) error {
	if host == "" || len(host) > maxHost {
		return fmt.Errorf("host %q is not 1 to %d bytes long", clip(host), maxHost)
	}
	label := 0
	for i := range len(host) {
		c := host[i]
		switch {
		case c == '.':
			if label == 0 {
				return fmt.Errorf("host %q has an empty label", clip(host))
			}
			label = 0
			continue
		case c >= 0x80:
			return fmt.Errorf("host %q is not ASCII", clip(host))
		case !isAlpha(c) && !isDigit(c) && c != '-' && c != '_':
			return fmt.Errorf("host %q holds %q, which is not allowed in a host name", clip(host), c)
		}
		if label++; label > maxLabel {
			return fmt.Errorf("host %q has a label over %d bytes", clip(host), maxLabel)
		}
	}
	if label == 0 {
		return fmt.Errorf("host %q has an empty label", clip(host))
	}
	return nil
}

// endsInNumber reports whether a host must be an IPv4 address because its last
// label is a number (WHATWG URL Standard, "ends in a number checker"). Otherwise
// 127.1 and 0x7f000001 would pass as names and resolve to an address.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if strings.Trim(last, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(last, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// parseIPv4 reads an IPv4 address in any spelling that inet_aton accepts: one to
// four parts, each decimal, octal or hexadecimal (WHATWG URL Standard, "IPv4
// parser").
func parseIPv4(host string) (netip.Addr, bool) {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var value uint64
	for i, part := range parts {
		n, ok := parseIPv4Part(part)
		last := i == len(parts)-1
		switch {
		case !ok, !last && n > 0xff:
			return netip.Addr{}, false
		case last:
			room := 8 * (4 - i) // the last part fills the remaining bytes
			if n >= 1<<room {
				return netip.Addr{}, false
			}
			value = value<<room | n
		default:
			value = value<<8 | n
		}
	}
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}), true
}

func parseIPv4Part(s string) (uint64, bool) {
	base := 10
	if digits, ok := strings.CutPrefix(s, "0x"); ok {
		if digits == "" {
			return 0, true
		}
		s, base = digits, 16
	} else if len(s) > 1 && s[0] == '0' {
		s, base = s[1:], 8
	}
	n, err := strconv.ParseUint(s, base, 33)
	return n, err == nil
}

// setTarget sets path and query from an origin-form.
func (d *Destination) setTarget(target string) error {
	if len(target) > maxTarget {
		return fmt.Errorf("target is over %d bytes long", maxTarget)
	}
	path, query, hasQuery := strings.Cut(target, "?")
	if path == "" {
		path = "/"
	}
	var err error
	if d.path, d.encodedSlash, err = canonicalPath(path); err != nil {
		return err
	}
	if d.query, err = canonicalQuery(query); err != nil {
		return err
	}
	// The canonical form is measured, since encoding may have made it longer.
	switch d.hasQuery = hasQuery; {
	case len(d.path) > maxPath:
		return fmt.Errorf("path is over %d bytes long", maxPath)
	case len(d.path)+len("?")+len(d.query) > maxTarget:
		return fmt.Errorf("target is over %d bytes long", maxTarget)
	}
	return nil
}

// canonicalPath returns the one spelling of a path that every server reads in
// the same way. It decodes percent-encoded unreserved characters once, upper-cases
// other escapes, and encodes bytes that a URI never holds raw (bytes outside ASCII,
// braces, quotes, ...). It refuses text that two servers may read differently: dot
// segments, empty segments, backslashes, parameters (";"), double encoding and
// control bytes, raw or encoded. It keeps and reports an encoded slash, since a
// rule may allow it.
func canonicalPath(s string) (path string, encodedSlash bool, err error) {
	if s[0] != '/' {
		return "", false, errors.New("path does not start with /")
	}
	if plainPath(s) {
		if !strings.Contains(s, "//") && !strings.Contains(s, "/.") {
			return s, false, nil // no segment is empty, nor begins as a dot segment does
		}
		return s, false, checkSegments(s)
	}
	out := make([]byte, 0, len(s)+8)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			decoded, ok := unescape(s[i:])
			if !ok {
				return "", false, errors.New("path holds a broken escape")
			}
			if out, err = appendEscaped(out, decoded); err != nil {
				return "", false, err
			}
			encodedSlash = encodedSlash || decoded == '/'
			i += 2
		case c <= 0x20 || c == 0x7f:
			return "", false, fmt.Errorf("path holds the control byte or space %#02x", c)
		case strings.IndexByte(`\;#`, c) >= 0:
			return "", false, fmt.Errorf("path holds %q", c)
		case c >= 0x80 || strings.IndexByte("\"<>^`{|}", c) >= 0:
			out = appendEscape(out, c)
		default:
			out = append(out, c)
		}
	}
	path = string(out)
	if encodedTwice(path) {
		return "", false, errors.New("path is encoded twice")
	}
	return path, encodedSlash, checkSegments(path)
}

// plainPath reports whether every byte of s represents itself, so that only its
// segments must be checked.
func plainPath(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isUnreserved(c) && c != '/' {
			return false
		}
	}
	return true
}

// appendEscaped appends a decoded byte in its canonical spelling.
func appendEscaped(out []byte, c byte) ([]byte, error) {
	switch {
	case isUnreserved(c):
		return append(out, c), nil
	case c < 0x20 || c == 0x7f:
		return nil, fmt.Errorf("path holds the encoded control byte %#02x", c)
	case c == '\\':
		return nil, errors.New("path holds an encoded backslash")
	}
	return appendEscape(out, c), nil
}

func appendEscape(out []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(out, '%', digits[c>>4], digits[c&0xf])
}

// unescape decodes the escape that s starts with.
func unescape(s string) (byte, bool) {
	if len(s) < 3 || !twoHex(s[1:]) {
		return 0, false
	}
	high, _ := unhex(s[1])
	low, _ := unhex(s[2])
	return high<<4 | low, true
}

func twoHex(s string) bool {
	if len(s) < 2 {
		return false
	}
	_, high := unhex(s[0])
	_, low := unhex(s[1])
	return high && low
}

// encodedTwice reports whether decoding a canonical path leaves another escape
// in it. It takes the canonical form, because the digits after %25 may have
// been encoded themselves, as in %25%32%65.
func encodedTwice(path string) bool {
	for {
		_, rest, found := strings.Cut(path, "%25")
		if !found {
			return false
		}
		if twoHex(rest) {
			return true
		}
		path = rest
	}
}

// checkSegments refuses empty segments and dot segments, also if the dots are
// beside an encoded slash or an encoded parameter.
func checkSegments(path string) error {
	for rest := path[1:]; ; {
		segment, tail, more := strings.Cut(rest, "/")
		if segment == "" && more {
			return errors.New("path has an empty segment")
		}
		for part := range strings.SplitSeq(segment, "%2F") {
			part, _, _ = strings.Cut(part, "%3B")
			if part == "." || part == ".." {
				return errors.New("path has a dot segment")
			}
		}
		if !more {
			return nil
		}
		rest = tail
	}
}

// canonicalQuery encodes bytes that must not be raw in a query, and refuses bytes
// that end a line or a target.
func canonicalQuery(s string) (string, error) {
	var out []byte
	for i := range len(s) {
		c := s[i]
		switch {
		case c <= 0x20 || c == 0x7f || c == '#':
			return "", fmt.Errorf("query holds the byte %#02x", c)
		case c >= 0x80 && out == nil:
			out = append(make([]byte, 0, len(s)+16), s[:i]...)
		}
		if out != nil {
			if c >= 0x80 {
				out = appendEscape(out, c)
			} else {
				out = append(out, c)
			}
		}
	}
	if out != nil {
		return string(out), nil
	}
	return s, nil
}
