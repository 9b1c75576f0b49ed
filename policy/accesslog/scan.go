package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// scanner decodes the lines of accesses as the log writes them: without spaces, with the
// fields in their order, each at most once, and in plain text. Every other line is decoded
// by encoding/json, so that the result is that of encoding/json for every line.
//
// It does not decode fields that no Access has, such as exe and detail, nor texts of an end
// that its decision has, nor the hashes of the chain.
type scanner struct {
	names [fieldCount]string
	last  [fieldCount]string // the last value of each field, which is often repeated
	known map[string]string  // one copy of each value of fields that have few values

	allowed bool // of the last entry, which points to it

	day   [len("2006-01-02")]byte // of the last time
	begin int64                   // of that day, in seconds since 1970
}

// field is a field of a line, in the order in which the log writes them.
type field = uint8

const (
	fieldTime field = iota
	fieldKind
	fieldPlugin
	fieldDoor
	fieldDecision
	fieldAllowed
	fieldReason
	fieldGrant
	fieldRule
	fieldGeneration
	fieldMethod
	fieldScheme
	fieldHost
	fieldPort
	fieldPath
	fieldQuery
	fieldMasked
	fieldFormat
	fieldAttempt
	fieldAskedScheme
	fieldAskedPort
	fieldUpgrade
	fieldUnenforceable
	fieldDecidedBy
	fieldAddress
	fieldResolved
	fieldCredential
	fieldLease
	fieldSentBytes
	fieldBytes
	fieldLatency
	fieldPID
	fieldExe
	fieldUID
	fieldActor
	fieldTraceID
	fieldSpanID
	fieldDetail

	fieldCount // the number of fields
)

// names are the fields' names as they stand in a line.
func names() [fieldCount]string {
	return [...]string{ //nolint:gosec // they name fields, and hold no credential
		fieldTime: `"time":`, fieldKind: `"kind":`, fieldPlugin: `"plugin":`, fieldDoor: `"door":`, fieldDecision: `"decision":`,
		fieldAllowed: `"allowed":`, fieldReason: `"reason":`, fieldGrant: `"grant":`, fieldRule: `"rule":`, fieldGeneration: `"generation":`,
		fieldMethod: `"method":`, fieldScheme: `"scheme":`, fieldHost: `"host":`, fieldPort: `"port":`, fieldPath: `"path":`, fieldQuery: `"query":`,
		fieldMasked: `"masked":`, fieldFormat: `"format":`, fieldAttempt: `"attempt":`, fieldAskedScheme: `"asked_scheme":`,
		fieldAskedPort: `"asked_port":`, fieldUpgrade: `"upgrade":`, fieldUnenforceable: `"unenforceable":`, fieldDecidedBy: `"decided_by":`,
		fieldAddress: `"address":`, fieldResolved: `"resolved":`, fieldCredential: `"credential":`, fieldLease: `"lease":`,
		fieldSentBytes: `"sent_bytes":`, fieldBytes: `"bytes":`, fieldLatency: `"latency_us":`, fieldPID: `"pid":`, fieldExe: `"exe":`,
		fieldUID: `"uid":`, fieldActor: `"actor":`, fieldTraceID: `"trace_id":`, fieldSpanID: `"span_id":`, fieldDetail: `"detail":`,
	}
}

// maxKnown bounds the copies of values that are kept.
const maxKnown = 4096

func newScanner() *scanner { return &scanner{names: names(), known: map[string]string{}} }

// decode reads a line into an entry, whose fields must be zero. Hashes and fields that no
// Access has may be left out of an access's entry.
func (s *scanner) decode(line []byte, entry *audit.Entry) error {
	if s.access(line, entry) {
		return nil
	}
	*entry = audit.Entry{}
	if err := json.Unmarshal(line, entry); err != nil {
		return err
	}
	if entry.Seq == 0 || entry.Kind == "" || len(entry.Hash) == 0 || entry.Time.IsZero() {
		return errors.New("it is not a record of an audit log")
	}
	return nil
}

// access reads the line of an access, or reports false and leaves entry in any state.
func (s *scanner) access(line []byte, entry *audit.Entry) bool {
	body, ok := linked(line, &entry.Seq)
	if !ok || !plain(line) {
		return false
	}
	all := &s.names
	for next := fieldTime; len(body) > 0; next++ {
		if body = body[1:]; len(body) < 2 { // a comma
			return false
		}
		// Most names differ in their first letter.
		for next < fieldCount && (all[next][1] != body[1] || !bytes.HasPrefix(body, []byte(all[next]))) {
			next++
		}
		if next == fieldCount {
			return false
		}
		if body, ok = s.value(entry, next, body[len(all[next]):]); !ok {
			return false
		}
		if next == fieldKind && entry.Kind != "decision" && entry.Kind != "end" {
			return false // others have further fields
		}
		if len(body) > 0 && body[0] != ',' {
			return false
		}
	}
	return entry.Kind != "" && !entry.Time.IsZero()
}

// hashLen is the length of a hash of the chain.
const hashLen = 43

// linked returns the fields of a line between its prev and its hash, each behind a comma.
func linked(line []byte, seq *uint64) (body []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return nil, false
	}
	n, rest, ok := number(rest)
	if !ok || n < 1 {
		return nil, false
	}
	*seq = uint64(n)
	const prev, hash, end = `,"prev":"`, `,"hash":"`, `"}`
	rest, ok = bytes.CutPrefix(rest, []byte(prev))
	tail := len(rest) - len(hash) - hashLen - len(end)
	if !ok || tail <= hashLen || rest[hashLen] != '"' || bytes.IndexByte(rest[:hashLen], '"') >= 0 {
		return nil, false
	}
	if string(rest[tail:][:len(hash)]) != hash || string(rest[len(rest)-len(end):]) != end || bytes.IndexByte(rest[len(rest)-len(end)-hashLen:][:hashLen], '"') >= 0 {
		return nil, false
	}
	return rest[hashLen+1 : tail], rest[hashLen+1] == ','
}

// prevAndHash returns the hashes of a line that linked accepts.
func prevAndHash(line []byte) (prev, hash []byte) {
	at := bytes.IndexByte(line, ',') + len(`,"prev":"`)
	end := len(line) - len(`"}`)
	return line[at : at+hashLen], line[end-hashLen : end]
}

// plain reports whether a line is printable ASCII without a backslash, so that each text
// in it stands for itself. It judges eight bytes at a time.
func plain(line []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; len(line) >= 8; line = line[8:] {
		w := uint64(line[0]) | uint64(line[1])<<8 | uint64(line[2])<<16 | uint64(line[3])<<24 |
			uint64(line[4])<<32 | uint64(line[5])<<40 | uint64(line[6])<<48 | uint64(line[7])<<56
		backslash := w ^ '\\'*ones
		if ((w-' '*ones)&^w|(backslash-ones)&^backslash|w)&tops != 0 {
			return false
		}
	}
	for _, c := range line {
		if c < ' ' || c >= 0x80 || c == '\\' {
			return false
		}
	}
	return true
}

// value reads the value of a field and returns the bytes behind it.
func (s *scanner) value(e *audit.Entry, f field, b []byte) (rest []byte, ok bool) {
	switch f {
	case fieldAllowed, fieldAttempt:
		return s.boolean(e, f, b)
	case fieldGeneration, fieldPort, fieldFormat, fieldAskedPort, fieldSentBytes, fieldBytes, fieldLatency, fieldPID, fieldUID:
		n, rest, ok := number(b)
		return rest, ok && setNumber(e, f, n)
	case fieldUnenforceable, fieldResolved:
		return s.list(e, f, b)
	}
	if len(b) == 0 || b[0] != '"' {
		return nil, false
	}
	end := bytes.IndexByte(b[1:], '"')
	if end < 0 {
		return nil, false
	}
	text, rest := b[1:1+end], b[end+2:]
	if f == fieldTime {
		e.Time, ok = s.time(text)
		return rest, ok
	}
	if e.Kind == string(authz.KindEnd) && f != fieldDecision && f != fieldReason && f != fieldAddress {
		return rest, true // its decision has it
	}
	if to := textOf(e, f); to != nil {
		*to = s.text(f, text)
	}
	return rest, true
}

// text returns the one copy of a value.
func (s *scanner) text(f field, b []byte) string {
	last := &s.last[f]
	if *last == string(b) {
		return *last
	}
	switch f {
	case fieldDecision, fieldPath, fieldQuery, fieldAddress:
		*last = string(b) // they have as many values as there are accesses
		return *last
	}
	known, ok := s.known[string(b)]
	if !ok {
		if len(s.known) >= maxKnown {
			clear(s.known)
		}
		known = string(b)
		s.known[known] = known
	}
	*last = known
	return known
}

// textOf returns where a text is decoded to, nil for one that is not.
func textOf(e *audit.Entry, f field) *string {
	switch f {
	case fieldKind:
		return &e.Kind
	case fieldPlugin:
		return &e.Plugin
	case fieldDoor:
		return &e.Door
	case fieldDecision:
		return &e.Decision
	case fieldReason:
		return &e.Reason
	case fieldGrant:
		return &e.Grant
	case fieldRule:
		return &e.Rule
	case fieldMethod:
		return &e.Method
	case fieldScheme:
		return &e.Scheme
	case fieldHost:
		return &e.Host
	case fieldPath:
		return &e.Path
	case fieldQuery:
		return &e.Query
	case fieldMasked:
		return &e.Masked
	case fieldAskedScheme:
		return &e.AskedScheme
	case fieldUpgrade:
		return &e.Upgrade
	case fieldDecidedBy:
		return &e.DecidedBy
	case fieldAddress:
		return &e.Address
	case fieldCredential:
		return &e.Credential
	}
	return nil
}

// setNumber sets a number, and reports whether it is in the field's range.
func setNumber(e *audit.Entry, f field, n int64) bool {
	switch f {
	case fieldGeneration:
		e.Generation = uint64(max(n, 0))
		return n >= 0
	case fieldPort:
		e.Port = uint16(n & 0xffff)
		return int64(e.Port) == n
	case fieldAskedPort:
		e.AskedPort = uint16(n & 0xffff)
		return int64(e.AskedPort) == n
	case fieldFormat:
		e.Format = int(n)
	case fieldSentBytes:
		e.SentBytes = n
	case fieldBytes:
		e.Bytes = n
	case fieldLatency:
		e.LatencyUS = n
	}
	return true
}

// number reads an integer of at most 18 digits.
func number(b []byte) (n int64, rest []byte, ok bool) {
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	i := 0
	for ; i < len(b) && '0' <= b[i] && b[i] <= '9'; i++ {
		n = n*10 + int64(b[i]-'0')
		if i == 18 {
			return 0, nil, false
		}
	}
	if i == 0 || b[0] == '0' && (i > 1 || negative) {
		return 0, nil, false
	}
	if negative {
		n = -n
	}
	return n, b[i:], true
}

func (s *scanner) boolean(e *audit.Entry, f field, b []byte) (rest []byte, ok bool) {
	value := false
	if rest, ok = bytes.CutPrefix(b, []byte("true")); ok {
		value = true
	} else if rest, ok = bytes.CutPrefix(b, []byte("false")); !ok {
		return nil, false
	}
	if f == fieldAttempt {
		e.Attempt = value
	} else {
		s.allowed = value
		e.Allowed = &s.allowed
	}
	return rest, true
}

// list reads a list of texts that is not empty.
func (s *scanner) list(e *audit.Entry, f field, b []byte) (rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '[' {
		return nil, false
	}
	for first := true; first || b[0] == ','; first = false {
		b = b[1:]
		if len(b) == 0 || b[0] != '"' {
			return nil, false
		}
		end := bytes.IndexByte(b[1:], '"')
		if end < 0 {
			return nil, false
		}
		text := s.text(f, b[1:1+end])
		if b = b[end+2:]; len(b) == 0 {
			return nil, false
		}
		if f == fieldUnenforceable {
			e.Unenforceable = append(e.Unenforceable, text)
			continue
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, false
		}
		e.Resolved = append(e.Resolved, addr)
	}
	return b[1:], b[0] == ']'
}

// time reads a time as the log writes it: RFC 3339 in UTC with up to 9 digits behind the
// point.
func (s *scanner) time(b []byte) (time.Time, bool) {
	const day, seconds = len("2006-01-02"), len("2006-01-02T15:04:05")
	if len(b) < seconds+1 || len(b) > seconds+len(".999999999Z") || b[day] != 'T' || b[13] != ':' || b[16] != ':' || b[len(b)-1] != 'Z' {
		return time.Time{}, false
	}
	if string(b[:day]) != string(s.day[:]) {
		at, err := time.Parse(time.DateOnly, string(b[:day]))
		if err != nil {
			return time.Time{}, false
		}
		copy(s.day[:], b)
		s.begin = at.Unix()
	}
	hour, ok1 := twoDigits(b[11:])
	minute, ok2 := twoDigits(b[14:])
	second, ok3 := twoDigits(b[17:])
	nanos, ok4 := fraction(b[seconds : len(b)-1])
	if !ok1 || !ok2 || !ok3 || !ok4 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	return time.Unix(s.begin+hour*3600+minute*60+second, nanos).UTC(), true
}

func twoDigits(b []byte) (int64, bool) {
	return int64(b[0]-'0')*10 + int64(b[1]-'0'), b[0]-'0' <= 9 && b[1]-'0' <= 9
}

// fraction reads "" or a point and 1 to 9 digits, in nanoseconds.
func fraction(b []byte) (n int64, ok bool) {
	if len(b) == 0 {
		return 0, true
	}
	if b[0] != '.' || len(b) < 2 {
		return 0, false
	}
	for i := range 9 {
		digit := byte(0)
		if i+1 < len(b) {
			digit = b[i+1] - '0'
		}
		if digit > 9 {
			return 0, false
		}
		n = n*10 + int64(digit)
	}
	return n, true
}
