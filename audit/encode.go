package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	// hashLen is the length of a hash in base64url without padding.
	hashLen = (sha256.Size*8 + 5) / 6
	// linkRoom is kept free in front of a line's body for a newline, seq and prev.
	linkRoom = len("\n"+openSeq+"18446744073709551615"+openPrev+`"`) + hashLen
	// hashRoom is how long the end of a line is.
	hashRoom = len(openHash+closeHash) + hashLen
	// maxText is how many bytes a string takes in a line, once escaped.
	maxText = 2048
	// maxFact is the same of a fact, whose name has at most authz.MaxFactName bytes.
	maxFact = maxText / 2
	// maxFiles and maxFileText bound the files of a reload.
	maxFiles    = 64
	maxFileText = 512
	// maxLine is longer than any line that is written: about 25 strings and the
	// files are bounded as above.
	maxLine = 128 << 10

	openSeq   = `{"seq":`
	openPrev  = `,"prev":"`
	openHash  = `,"hash":"`
	closeHash = `"}`

	ellipsis = "…"
)

// line is one line in the making: its body is encoded before the log's lock is
// taken, and its place in the chain is put in front of it under the lock.
type line struct {
	buf   []byte // linkRoom bytes, then the body
	start int    // where the line begins in buf, once it is linked
	place tail   // of the line in the chain, once it is sealed
	end   int    // where it ends in what it is written with
	masks *masker
	clock clock
}

func newLine(masks *masker) *line { return &line{buf: make([]byte, linkRoom, 1024), masks: masks} }

// size returns how long the finished line will be at most.
func (e *line) size() int { return len(e.buf) + hashRoom + 1 }

// encode makes the body of the line. Its fields are in the order of Record;
// empty ones are left out.
func (e *line) encode(r *authz.Record, full bool) {
	e.buf = e.buf[:linkRoom]
	e.time(r.Time)
	e.text(`,"kind":"`, string(r.Kind))
	e.text(`,"plugin":"`, r.Plugin)
	e.text(`,"door":"`, string(r.Door))
	e.text(`,"decision":"`, r.Decision)
	access := r.Kind == authz.KindDecision || r.Kind == authz.KindEnd
	if access {
		e.buf = append(e.buf, `,"allowed":`...)
		e.buf = strconv.AppendBool(e.buf, r.Allowed)
	}
	e.text(`,"reason":"`, r.Reason)
	e.text(`,"grant":"`, r.Grant)
	e.text(`,"rule":"`, r.Rule)
	e.uint(`,"generation":`, r.Generation)
	e.text(`,"method":"`, r.Method)
	e.text(`,"scheme":"`, r.Scheme)
	e.text(`,"host":"`, r.Host)
	e.uint(`,"port":`, uint64(r.Port))
	e.target(r, full)
	if r.Kind == authz.KindDecision {
		e.asked(r, full)
	}
	e.statement(r, full)
	e.text(`,"address":"`, r.Address)
	e.addresses(r.Resolved)
	e.text(`,"region":"`, r.Region)
	e.text(`,"tls":"`, r.TLS)
	e.text(`,"credential":"`, r.Credential)
	if r.Lease != "" {
		e.buf = append(e.buf, `,"lease":"`...)
		e.buf = e.masks.appendLease(e.buf, r.Lease)
		e.buf = append(e.buf, '"')
	}
	if r.Kind == authz.KindEnd {
		e.int(`,"sent_bytes":`, r.SentBytes)
		e.int(`,"bytes":`, r.Bytes)
		e.int(`,"latency_us":`, r.Latency.Microseconds())
	} else {
		e.intIf(`,"sent_bytes":`, r.SentBytes)
		e.intIf(`,"bytes":`, r.Bytes)
		e.intIf(`,"latency_us":`, r.Latency.Microseconds())
	}
	e.intIf(`,"pid":`, int64(r.PID))
	e.text(`,"exe":"`, r.Exe)
	// 0 is root and, without a process, what nobody filled in.
	if r.UID > 0 || r.UID == 0 && r.PID != 0 {
		e.int(`,"uid":`, int64(r.UID))
	}
	e.text(`,"actor":"`, r.Actor)
	e.text(`,"trace_id":"`, r.TraceID)
	e.text(`,"span_id":"`, r.SpanID)
	e.text(`,"detail":"`, r.Detail)
	if r.Count > 1 {
		e.int(`,"count":`, int64(r.Count))
	}
	e.uint(`,"lost":`, r.Lost)
	e.files(r.Files)
	e.fold(r, full)
}

// fold writes what is kept of counted refusals.
func (e *line) fold(r *authz.Record, full bool) {
	if r.Fold == nil {
		return
	}
	for _, at := range []struct {
		name string
		time time.Time
	}{{`,"first_time":"`, r.Fold.First}, {`,"last_time":"`, r.Fold.Last}} {
		e.buf = append(e.buf, at.name...)
		e.buf = at.time.UTC().AppendFormat(e.buf, time.RFC3339Nano)
		e.buf = append(e.buf, '"')
	}
	e.uint(`,"paths":`, uint64(r.Fold.Paths))
	e.path(`,"last_path":"`, r.Fold.LastPath, r.Fold.LastPattern, full || r.Door == authz.DoorKernel)
}

// FormatReplayable is the format of decisions that have every field that they depend on.
// Records of older formats state no format.
const FormatReplayable = 2

// asked writes what a decision depends on beside method, scheme, host, port and path.
func (e *line) asked(r *authz.Record, full bool) {
	e.buf = append(e.buf, `,"format":2`...)
	if r.Attempt {
		e.buf = append(e.buf, `,"attempt":true`...)
	}
	e.text(`,"asked_scheme":"`, r.AskedScheme)
	e.uint(`,"asked_port":`, uint64(r.AskedPort))
	e.text(`,"upgrade":"`, r.Upgrade)
	open := `,"unenforceable":["`
	for left := r.Unenforceable; left != 0; left &= left - 1 {
		e.buf = append(append(e.buf, open...), (left & -left).Name()...)
		open = `","`
	}
	if r.Unenforceable != 0 {
		e.buf = append(e.buf, `"]`...)
	}
	e.text(`,"decided_by":"`, string(r.DecidedBy))
	e.facts(r, full)
}

// facts writes what was read of a request's content, with names of keys and channels
// masked unless full.
func (e *line) facts(r *authz.Record, full bool) {
	e.text(`,"protocol":"`, r.Protocol)
	if len(r.Facts) == 0 {
		return
	}
	open := `,"facts":["`
	for i, fact := range r.Facts {
		e.buf = append(e.buf, open...)
		open = `","`
		switch {
		case full || !isMasked(fact):
			e.buf = appendText(e.buf, fact, maxFact)
		case i < len(r.Patterns):
			e.maskedFact(fact, r.Patterns[i])
		default:
			e.maskedFact(fact, "")
		}
	}
	e.buf = append(e.buf, `"]`...)
}

// statement writes what only statements of a database's session have. Their text shows
// more than the names in their facts, so it is for logs that are full.
func (e *line) statement(r *authz.Record, full bool) {
	e.text(`,"session":"`, r.Session)
	e.intIf(`,"rows":`, r.Rows)
	if full {
		e.text(`,"statement":"`, r.Statement)
	}
}

// addresses writes the addresses that a name resolved to.
func (e *line) addresses(all []netip.Addr) {
	if len(all) == 0 {
		return
	}
	open := `,"resolved":["`
	for _, addr := range all {
		e.buf = addr.AppendTo(append(e.buf, open...))
		open = `","`
	}
	e.buf = append(e.buf, `"]`...)
}

// target writes path and query, masked unless full. The path of a Unix socket is
// the destination itself, as a host is, and stays readable.
func (e *line) target(r *authz.Record, full bool) {
	full = full || r.Door == authz.DoorKernel
	e.path(`,"path":"`, r.Path, r.Pattern, full)
	if full || r.Query == "" {
		e.text(`,"query":"`, r.Query)
	} else {
		e.buf = append(e.buf, `,"query":"`...)
		e.buf = e.masks.appendQuery(e.buf, r.Query)
		e.buf = append(e.buf, '"')
	}
	if !full && (r.Path != "" || r.Query != "" || r.Kind == authz.KindDecision && holdsMasked(r)) {
		e.buf = append(e.buf, `,"masked":"`...)
		e.buf = append(e.buf, e.masks.id...)
		e.buf = append(e.buf, '"')
	}
}

// path writes a path, masked unless full.
func (e *line) path(open, path, pattern string, full bool) {
	if full || path == "" {
		e.text(open, path)
		return
	}
	e.buf = append(e.buf, open...)
	if m := e.masks; len(m.masked) == 0 || m.path != path || m.pattern != pattern {
		begin := len(e.buf)
		e.maskedPath(path, pattern)
		m.path, m.pattern, m.masked = path, pattern, append(m.masked[:0], e.buf[begin:]...)
	} else {
		e.buf = append(e.buf, m.masked...)
	}
	e.buf = append(e.buf, '"')
}

// truncatedTail adds the proof of the bytes before a record of kind lost.
func (e *line) truncatedTail(t *truncatedTail) {
	e.int(`,"torn_bytes":`, t.size)
	e.buf = append(e.buf, `,"torn_sha256":"`...)
	e.buf = hex.AppendEncode(e.buf, t.sum.Sum(nil))
	e.buf = append(e.buf, '"')
}

// unproved marks a record of kind lost before which records may be missing.
func (e *line) unproved() { e.buf = append(e.buf, `,"unproved":true`...) }

// link puts the line's place in front of its body, with a newline before it
// when the record before lacks one, and returns what the hash is taken over.
func (e *line) link(seq uint64, prev [hashLen]byte, newline bool) []byte {
	var digits [20]byte
	number := strconv.AppendUint(digits[:0], seq, 10)
	begin := linkRoom - len(openSeq) - len(number) - len(openPrev) - hashLen - 1
	at := begin
	at += copy(e.buf[at:], openSeq)
	at += copy(e.buf[at:], number)
	at += copy(e.buf[at:], openPrev)
	at += copy(e.buf[at:], prev[:])
	e.buf[at] = '"'
	e.start = begin
	if newline {
		e.start--
		e.buf[e.start] = '\n'
	}
	return e.buf[begin:]
}

// finish ends the line with its hash, and returns the hash as text.
func (e *line) finish(mac hash.Hash) [hashLen]byte {
	var text [hashLen]byte
	body := len(e.buf)
	// The sum is made in the room behind the body and then encoded there: a
	// buffer on the stack would escape through the interface.
	e.buf = mac.Sum(e.buf)
	base64.RawURLEncoding.Encode(text[:], e.buf[body:])
	e.buf = append(e.buf[:body], openHash...)
	e.buf = append(e.buf, text[:]...)
	e.buf = append(e.buf, closeHash...)
	e.buf = append(e.buf, '\n')
	return text
}

// time writes when the record was made.
func (e *line) time(t time.Time) {
	b := append(e.buf, `,"time":"`...)
	b = e.clock.append(b, t)
	e.buf = append(b, '"')
}

// clock formats times. It keeps the last second, which stands in record after record.
type clock struct {
	unix   int64
	second []byte // with a point behind it; empty before the first
}

// append appends t as time.RFC3339Nano has it, in UTC.
func (c *clock) append(b []byte, t time.Time) []byte {
	if unix := t.Unix(); unix != c.unix || len(c.second) == 0 {
		c.unix, c.second = unix, t.UTC().AppendFormat(c.second[:0], "2006-01-02T15:04:05.")
	}
	b = append(b, c.second...)
	digits := t.Nanosecond()
	if digits == 0 {
		return append(b[:len(b)-1], 'Z')
	}
	width := 9
	for ; digits%10 == 0; digits /= 10 {
		width--
	}
	b = append(b, "000000000"[:width]...)
	for at := len(b) - 1; digits > 0; at-- {
		b[at] = byte('0' + digits%10)
		digits /= 10
	}
	return append(b, 'Z')
}

// text writes a string field; open is everything up to and with the opening
// quote. An empty value is left out.
func (e *line) text(open, value string) {
	if value == "" {
		return
	}
	b := append(e.buf, open...)
	b = appendText(b, value, maxText)
	e.buf = append(b, '"')
}

func (e *line) uint(open string, value uint64) {
	if value == 0 {
		return
	}
	e.buf = append(e.buf, open...)
	e.buf = strconv.AppendUint(e.buf, value, 10)
}

func (e *line) intIf(open string, value int64) {
	if value != 0 {
		e.int(open, value)
	}
}

func (e *line) int(open string, value int64) {
	e.buf = append(e.buf, open...)
	e.buf = strconv.AppendInt(e.buf, value, 10)
}

// files writes the files of a reload by name. Files beyond the bound are
// counted under the name "…".
func (e *line) files(files map[string]string) {
	if len(files) == 0 {
		return
	}
	e.buf = append(e.buf, `,"files":{`...)
	for i, name := range slices.Sorted(maps.Keys(files)) {
		if i > 0 {
			e.buf = append(e.buf, ',')
		}
		if i == maxFiles {
			e.buf = append(e.buf, `"`+ellipsis+`":"and `...)
			e.buf = strconv.AppendInt(e.buf, int64(len(files)-maxFiles), 10)
			e.buf = append(e.buf, ` more"`...)
			break
		}
		e.buf = append(e.buf, '"')
		e.buf = appendText(e.buf, name, maxFileText)
		e.buf = append(e.buf, `":"`...)
		e.buf = appendText(e.buf, files[name], maxFileText)
		e.buf = append(e.buf, '"')
	}
	e.buf = append(e.buf, '}')
}

// appendText appends s as the inside of a JSON string (RFC 8259, section 7) of
// at most limit bytes; what is longer is cut and ends in an ellipsis. Bytes
// that are not UTF-8 become U+FFFD. Unprintable text (control
// characters, line separators, bidirectional overrides) is escaped, so that a
// plugin's names cannot paint over a terminal that shows the log.
func appendText(b []byte, s string, limit int) []byte {
	if len(s) <= limit && allPlain(s) {
		return append(b, s...)
	}
	begin, whole := len(b), len(b) // whole: where an ellipsis still fits
	for i := 0; i < len(s); {
		if len(b)-begin <= limit-len(ellipsis) {
			whole = len(b)
		}
		size := 1
		if c := s[i]; isPlain(c) {
			b = append(b, c)
		} else {
			b, size = appendEscaped(b, s[i:])
		}
		if len(b)-begin > limit {
			return append(b[:whole], ellipsis...)
		}
		i += size
	}
	return b
}

// isPlain reports whether a byte is an ASCII character that needs no escape.
func isPlain(c byte) bool { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\' }

// allPlain reports whether isPlain is true for all bytes of s. It judges eight bytes at
// a time, since most of a record is plain text.
func allPlain(s string) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; len(s) >= 8; s = s[8:] {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, backslash := w^'"'*ones, w^'\\'*ones // 0 in the byte that is one
		// The top bit of a byte is set for one below 0x20, a quote, a backslash, and one
		// above 0x7e, and otherwise only above such a byte.
		marks := (w-' '*ones)&^w | (quote-ones)&^quote | (backslash-ones)&^backslash | (w + ones) | w
		if marks&tops != 0 {
			return false
		}
	}
	for i := range len(s) {
		if !isPlain(s[i]) {
			return false
		}
	}
	return true
}

// appendEscaped appends the first character of s, which is not plain ASCII,
// and returns its size in s.
func appendEscaped(b []byte, s string) ([]byte, int) {
	r, size := utf8.DecodeRuneInString(s)
	switch {
	case r == '"' || r == '\\':
		return append(b, '\\', byte(r)), size
	case r == utf8.RuneError && size == 1:
		return append(b, `\ufffd`...), size
	case unicode.IsPrint(r):
		return append(b, s[:size]...), size
	case r > 0xffff:
		high, low := utf16.EncodeRune(r)
		return appendUnit(appendUnit(b, high), low), size
	}
	return appendUnit(b, r), size
}

func appendUnit(b []byte, unit rune) []byte {
	const digits = "0123456789abcdef"
	return append(b, '\\', 'u', digits[unit>>12&15], digits[unit>>8&15], digits[unit>>4&15], digits[unit&15])
}

func joinNotes(notes []string) string { return strings.Join(notes, "; ") }
