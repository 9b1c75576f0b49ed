package accesslog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// scanner decodes the lines of accesses as the log writes them: without spaces, with the
// fields in their order, each at most once, and in plain text. Every other line is decoded
// by encoding/json, so that the result is that of encoding/json for every line.
//
// Most of a line is the text of the line of its kind before it, so that text is compared
// and not decoded (see form). The text between a decision's id and the end of its path is
// also that of its end, which is often the next line.
//
// It does not decode fields that no Access has, such as exe and detail, nor those of an end
// that its decision has, nor the hashes of the chain.
type scanner struct {
	names [fieldCount]string
	last  [fieldCount]string // the last value of each field, which is often repeated
	known map[string]string  // one copy of each value of fields that have few values

	decision, end form
	target        []byte      // the last decision's text between its id and the end of its path; empty for none
	other         audit.Entry // of the last line of any other form

	day   [len("2006-01-02")]byte // of the last time
	begin int64                   // of that day, in seconds since 1970
}

// form is what the lines of one kind had in common so far. The entry has the values of the
// last line, so that they stay where a line repeats its text.
type form struct {
	entry   audit.Entry // its fields from kind on are those of the last line
	allowed bool        // the entry points to it
	// runs are the texts behind the value of kind and of each varying field in the last line
	// that had the field. A run is invalid if another line may have set its fields since.
	runs [fieldCount]run
}

// run is the text from the comma behind a field's value to the value of the next varying
// field, or to the end of the line.
type run struct {
	valid bool
	next  field // fieldCount at the end
	text  []byte
}

// follows reports whether the run is at the beginning of the text.
func (r *run) follows(text []byte) bool {
	return r.valid && bytes.HasPrefix(text, r.text) && (r.next != fieldCount || len(text) == len(r.text))
}

// forget makes the form that of no line.
func (f *form) forget() {
	f.entry = audit.Entry{Kind: f.entry.Kind}
	for i := range f.runs {
		f.runs[i].valid = false
	}
}

// field is a field of a line behind its time, in the order in which the log writes them.
type field = uint8

const (
	fieldKind field = iota
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
	fieldRegion
	fieldTLS
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
		fieldKind: `"kind":`, fieldPlugin: `"plugin":`, fieldDoor: `"door":`, fieldDecision: `"decision":`,
		fieldAllowed: `"allowed":`, fieldReason: `"reason":`, fieldGrant: `"grant":`, fieldRule: `"rule":`, fieldGeneration: `"generation":`,
		fieldMethod: `"method":`, fieldScheme: `"scheme":`, fieldHost: `"host":`, fieldPort: `"port":`, fieldPath: `"path":`, fieldQuery: `"query":`,
		fieldMasked: `"masked":`, fieldFormat: `"format":`, fieldAttempt: `"attempt":`, fieldAskedScheme: `"asked_scheme":`,
		fieldAskedPort: `"asked_port":`, fieldUpgrade: `"upgrade":`, fieldUnenforceable: `"unenforceable":`, fieldDecidedBy: `"decided_by":`,
		fieldAddress: `"address":`, fieldResolved: `"resolved":`, fieldRegion: `"region":`, fieldTLS: `"tls":`,
		fieldCredential: `"credential":`, fieldLease: `"lease":`,
		fieldSentBytes: `"sent_bytes":`, fieldBytes: `"bytes":`, fieldLatency: `"latency_us":`, fieldPID: `"pid":`, fieldExe: `"exe":`,
		fieldUID: `"uid":`, fieldActor: `"actor":`, fieldTraceID: `"trace_id":`, fieldSpanID: `"span_id":`, fieldDetail: `"detail":`,
	}
}

// maxKnown bounds the copies of values that are kept.
const maxKnown = 4096

func newScanner() *scanner {
	s := &scanner{names: names(), known: map[string]string{}}
	s.decision.entry.Kind, s.end.entry.Kind = string(authz.KindDecision), string(authz.KindEnd)
	return s
}

// decode reads a line. The entry is that of the scanner until the next line. Hashes and
// fields that no Access has may be left out of an access's entry.
func (s *scanner) decode(line []byte) (*audit.Entry, error) {
	if entry := s.access(line); entry != nil {
		return entry, nil
	}
	s.other = audit.Entry{}
	if err := json.Unmarshal(line, &s.other); err != nil {
		return nil, err
	}
	if e := &s.other; e.Seq == 0 || e.Kind == "" || len(e.Hash) == 0 || e.Time.IsZero() {
		return nil, errors.New("it is not a record of an audit log")
	}
	return &s.other, nil
}

// access reads the line of an access, or returns nil.
func (s *scanner) access(line []byte) *audit.Entry {
	const kind = `,"kind":"`
	seq, body, ok := linked(line)
	if !ok {
		return nil
	}
	at, body, ok := s.time(body)
	if !ok || at.IsZero() {
		return nil
	}
	body, ok = bytes.CutPrefix(body, []byte(kind))
	if !ok {
		return nil
	}
	f := &s.decision
	if rest, ok := bytes.CutPrefix(body, []byte(`decision"`)); ok {
		body, s.target = rest, s.target[:0]
	} else if rest, ok := bytes.CutPrefix(body, []byte(`end"`)); ok {
		body, f = rest, &s.end
	} else {
		return nil // others have further fields
	}
	if !s.fields(f, body) {
		f.forget()
		s.target = s.target[:0]
		return nil
	}
	f.entry.Seq, f.entry.Time = seq, at
	return &f.entry
}

// fields reads the fields behind kind.
func (s *scanner) fields(f *form, body []byte) (ok bool) {
	var target []byte
	for at := fieldKind; ; {
		if run := &f.runs[at]; run.follows(body) {
			at, body = run.next, body[len(run.text):]
		} else if at, body, ok = s.run(f, at, body); !ok {
			return false
		}
		if at == fieldCount {
			return true
		}
		if body, ok = s.value(f, at, body); !ok {
			return false
		}
		switch {
		case at == fieldDecision && f == &s.decision:
			target = body
		case at == fieldPath && f == &s.decision && target != nil:
			s.target = append(s.target[:0], target[:len(target)-len(body)]...)
		case at == fieldDecision && len(s.target) > 0 && bytes.HasPrefix(body, s.target):
			at, body = fieldPath, body[len(s.target):]
			f.setAllowed(s.decision.allowed && s.decision.entry.Allowed != nil, s.decision.entry.Allowed != nil)
			f.entry.Reason = s.decision.entry.Reason
			f.runs[fieldDecision].valid = false // of allowed and reason
		}
	}
}

// run reads the fields behind a varying field to the next one, or to the end of the line,
// and keeps their text.
func (s *scanner) run(f *form, last field, body []byte) (next field, rest []byte, ok bool) {
	next, rest, ok = s.untilVarying(f, last+1, body)
	if ok {
		r := &f.runs[last]
		r.valid, r.next, r.text = true, next, append(r.text[:0], body[:len(body)-len(rest)]...)
	}
	return next, rest, ok
}

func (s *scanner) untilVarying(f *form, next field, rest []byte) (_ field, _ []byte, ok bool) {
	for all := &s.names; len(rest) > 0; next++ {
		if rest[0] != ',' || len(rest) < 3 {
			return 0, nil, false
		}
		rest = rest[1:]
		// Most names differ in their first letter.
		for next < fieldCount && (all[next][1] != rest[1] || !bytes.HasPrefix(rest, []byte(all[next]))) {
			f.clear(next)
			next++
		}
		if next == fieldCount {
			return 0, nil, false
		}
		if rest = rest[len(all[next]):]; varies(next) {
			return next, rest, true
		}
		if rest, ok = s.value(f, next, rest); !ok {
			return 0, nil, false
		}
	}
	for ; next < fieldCount; next++ {
		f.clear(next)
	}
	return fieldCount, rest, true
}

// varies reports whether a field often has another value than in the line before.
func varies(f field) bool {
	switch f {
	case fieldDecision, fieldGrant, fieldRule, fieldMethod, fieldHost, fieldPath, fieldQuery, fieldAddress, fieldResolved, fieldRegion, fieldTLS, fieldCredential,
		fieldLease, fieldSentBytes, fieldBytes, fieldLatency, fieldPID, fieldTraceID, fieldSpanID, fieldDetail:
		return true
	}
	return false
}

// clear sets a field that a line does not have to its zero value.
func (f *form) clear(at field) {
	f.runs[at].valid = false
	e := &f.entry
	switch at {
	case fieldAllowed:
		e.Allowed = nil
	case fieldAttempt:
		e.Attempt = false
	case fieldUnenforceable:
		e.Unenforceable = nil
	case fieldResolved:
		e.Resolved = nil
	default:
		if to := textOf(e, at); to != nil {
			*to = ""
		} else {
			setNumber(e, at, 0)
		}
	}
}

func (f *form) setAllowed(allowed, stated bool) {
	if f.allowed, f.entry.Allowed = allowed, nil; stated {
		f.entry.Allowed = &f.allowed
	}
}

// hashLen is the length of a hash of the chain.
const hashLen = 43

// linked returns the number of a line's record and its fields between its prev and its
// hash, each behind a comma.
func linked(line []byte) (seq uint64, body []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return 0, nil, false
	}
	n, rest, ok := number(rest)
	if !ok || n < 1 {
		return 0, nil, false
	}
	const prev, hash, end = `,"prev":"`, `,"hash":"`, `"}`
	rest, ok = bytes.CutPrefix(rest, []byte(prev))
	tail := len(rest) - len(hash) - hashLen - len(end)
	if !ok || tail <= hashLen || rest[hashLen] != '"' || !plain(rest[:hashLen]) {
		return 0, nil, false
	}
	if last := rest[tail:]; string(last[:len(hash)]) != hash || string(last[len(hash)+hashLen:]) != end || !plain(last[len(hash):][:hashLen]) {
		return 0, nil, false
	}
	return uint64(n), rest[hashLen+1 : tail], true
}

// prevAndHash returns the hashes of a line that linked accepts.
func prevAndHash(line []byte) (prev, hash []byte) {
	at := bytes.IndexByte(line, ',') + len(`,"prev":"`)
	end := len(line) - len(`"}`)
	return line[at : at+hashLen], line[end-hashLen : end]
}

// plain reports whether a text between quotes stands for itself: printable ASCII without a
// quote and a backslash. It judges eight bytes at a time.
func plain(text []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; len(text) >= 8; text = text[8:] {
		w := binary.LittleEndian.Uint64(text)
		backslash, quote := w^'\\'*ones, w^'"'*ones
		if ((w-' '*ones)&^w|(backslash-ones)&^backslash|(quote-ones)&^quote|w)&tops != 0 {
			return false
		}
	}
	for _, c := range text {
		if c < ' ' || c >= 0x80 || c == '\\' || c == '"' {
			return false
		}
	}
	return true
}

// quoted cuts a text off, without its quotes. It does not judge it.
func quoted(b []byte) (text, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	end := bytes.IndexByte(b[1:], '"')
	if end < 0 {
		return nil, nil, false
	}
	return b[1 : 1+end], b[end+2:], true
}

// value reads the value of a field and returns the bytes behind it.
func (s *scanner) value(f *form, at field, b []byte) (rest []byte, ok bool) {
	switch at {
	case fieldAllowed, fieldAttempt:
		return f.boolean(at, b)
	case fieldGeneration, fieldPort, fieldFormat, fieldAskedPort, fieldSentBytes, fieldBytes, fieldLatency, fieldPID, fieldUID:
		n, rest, ok := number(b)
		if !ok || !inRange(at, n) {
			return nil, false
		}
		if f != &s.end || at != fieldGeneration && at != fieldPort { // its decision has them
			setNumber(&f.entry, at, n)
		}
		return rest, true
	case fieldUnenforceable, fieldResolved:
		return s.list(f, at, b)
	}
	text, rest, ok := quoted(b)
	if !ok {
		return nil, false
	}
	var to *string
	if f != &s.end || at == fieldDecision || at == fieldReason || at == fieldAddress || at == fieldRegion {
		to = textOf(&f.entry, at)
	}
	if to == nil {
		return rest, plain(text) // its decision has it, or no Access
	}
	*to, ok = s.text(at, text)
	return rest, ok
}

// text returns the one copy of a value, if it stands for itself.
func (s *scanner) text(f field, b []byte) (text string, ok bool) {
	last := &s.last[f]
	if *last == string(b) {
		return *last, true
	}
	if !plain(b) {
		return "", false
	}
	switch f {
	case fieldDecision, fieldPath, fieldQuery, fieldAddress:
		*last = string(b) // they have as many values as there are accesses
		return *last, true
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
	return known, true
}

// textOf returns where a text is decoded to, nil for one that is not.
func textOf(e *audit.Entry, f field) *string {
	switch f {
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
	case fieldRegion:
		return &e.Region
	case fieldCredential:
		return &e.Credential
	}
	return nil
}

// inRange reports whether the entry's field can hold a number.
func inRange(f field, n int64) bool {
	switch f {
	case fieldGeneration:
		return n >= 0
	case fieldPort, fieldAskedPort:
		return 0 <= n && n <= math.MaxUint16
	}
	return true
}

// setNumber sets a number that is in the field's range.
func setNumber(e *audit.Entry, f field, n int64) {
	switch f {
	case fieldGeneration:
		e.Generation = uint64(max(n, 0))
	case fieldPort:
		e.Port = uint16(n & math.MaxUint16)
	case fieldAskedPort:
		e.AskedPort = uint16(n & math.MaxUint16)
	case fieldFormat:
		e.Format = int(n)
	case fieldSentBytes:
		e.SentBytes = n
	case fieldBytes:
		e.Bytes = n
	case fieldLatency:
		e.LatencyUS = n
	}
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

func (f *form) boolean(at field, b []byte) (rest []byte, ok bool) {
	value := false
	if rest, ok = bytes.CutPrefix(b, []byte("true")); ok {
		value = true
	} else if rest, ok = bytes.CutPrefix(b, []byte("false")); !ok {
		return nil, false
	}
	if at == fieldAttempt {
		f.entry.Attempt = value
	} else {
		f.setAllowed(value, true)
	}
	return rest, true
}

// list reads a list of texts that is not empty. It makes a new list, since an Access keeps
// the one of the line before.
func (s *scanner) list(f *form, at field, b []byte) (rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '[' {
		return nil, false
	}
	if at == fieldUnenforceable {
		f.entry.Unenforceable = nil
	} else {
		f.entry.Resolved = nil
	}
	for first := true; first || b[0] == ','; first = false {
		text, rest, ok := quoted(b[1:])
		if !ok || len(rest) == 0 {
			return nil, false
		}
		b = rest
		known, ok := s.text(at, text)
		if !ok {
			return nil, false
		}
		if at == fieldUnenforceable {
			f.entry.Unenforceable = append(f.entry.Unenforceable, known)
			continue
		}
		addr, err := netip.ParseAddr(known)
		if err != nil {
			return nil, false
		}
		f.entry.Resolved = append(f.entry.Resolved, addr)
	}
	return b[1:], b[0] == ']'
}

// time reads the first field, the time as the log writes it: RFC 3339 in UTC with up to 9
// digits behind the point.
func (s *scanner) time(body []byte) (at time.Time, rest []byte, ok bool) {
	body, ok = bytes.CutPrefix(body, []byte(`,"time":`))
	if !ok {
		return at, nil, false
	}
	text, rest, ok := quoted(body)
	if !ok {
		return at, nil, false
	}
	at, ok = s.parseTime(text)
	return at, rest, ok
}

func (s *scanner) parseTime(b []byte) (time.Time, bool) {
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
