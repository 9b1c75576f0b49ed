package proxy

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/chaperone-proxy/chaperone/authz"
)

// minNeedle is the shortest text that is searched for: anything shorter occurs
// by chance.
const minNeedle = 6

// maxNeedle is how much of a very long credential is searched for: a needle in
// base64 must fit a buffer with room to spare.
const maxNeedle = bufferSize / 4

// needles are what an injected credential looks like in an answer: as it was
// sent, and in base64. They are blanked out byte for byte, so that lengths stay
// true. What an upstream transforms in any other way is not found.
type needles struct {
	all     [][]byte
	longest int
}

// newNeedles returns what to search for, nil for nothing.
func newNeedles(slot authz.Injection) *needles {
	if slot.Kind == authz.InjectNone {
		return nil
	}
	s := &needles{}
	value := slot.Value.Reveal()
	s.add(value)
	if scheme, rest, ok := strings.Cut(value, " "); ok { // Bearer and the like
		s.add(rest)
		if strings.EqualFold(scheme, "Basic") {
			if pair, err := base64.StdEncoding.DecodeString(rest); err == nil {
				_, password, _ := strings.Cut(string(pair), ":")
				s.add(string(pair))
				s.add(password)
			}
		}
	}
	return s
}

// add searches for a text and its base64, without the padding and without the
// last character, which depends on what follows.
func (s *needles) add(text string) {
	if len(text) < minNeedle {
		return
	}
	text = text[:min(len(text), maxNeedle)]
	encoded := base64.RawStdEncoding.EncodeToString([]byte(text))
	if len(text)%3 != 0 {
		encoded = encoded[:len(encoded)-1]
	}
	inURL := strings.NewReplacer("+", "-", "/", "_").Replace(encoded)
	for _, needle := range []string{text, encoded, inURL} {
		if !s.has(needle) {
			s.all = append(s.all, []byte(needle))
			s.longest = max(s.longest, len(needle))
		}
	}
}

func (s *needles) has(needle string) bool {
	return slices.ContainsFunc(s.all, func(n []byte) bool { return string(n) == needle })
}

// in reports whether a text holds a needle.
func (s *needles) in(text string) bool {
	return slices.ContainsFunc(s.all, func(n []byte) bool { return strings.Contains(text, string(n)) })
}

// blank overwrites every needle in b and reports whether there was one.
func (s *needles) blank(b []byte) (found bool) {
	for _, needle := range s.all {
		for rest := b; ; {
			i := bytes.Index(rest, needle)
			if i < 0 {
				break
			}
			found = true
			for j := range needle {
				rest[i+j] = '*'
			}
			rest = rest[i+len(needle):]
		}
	}
	return found
}

// tail returns how many bytes at the end of b may be the beginning of a needle.
func (s *needles) tail(b []byte) int {
	for n := min(s.longest-1, len(b)); n > 0; n-- {
		end := b[len(b)-n:]
		for _, needle := range s.all {
			if n < len(needle) && bytes.HasPrefix(needle, end) {
				return n
			}
		}
	}
	return 0
}

// scrubber searches one answer.
type scrubber struct {
	*needles
	mu    sync.Mutex
	where string // where a needle was found first, "" for nowhere
}

// found notes where a needle was.
func (s *scrubber) found(where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.where == "" {
		s.where = where
	}
}

// scrubHeader blanks the credential out of a header or trailer.
func (x *exchange) scrubHeader(h http.Header) {
	if x.scrub == nil {
		return
	}
	for name, values := range h {
		for i, value := range values {
			if x.scrub.in(value) {
				b := []byte(value)
				x.scrub.blank(b)
				values[i] = string(b)
				x.scrub.found("header " + strings.ToLower(name))
			}
		}
	}
}

// scrubBody returns the answer's body with the credential blanked out, where
// it is text as it is on the wire. Anything else passes untouched and unslowed.
func (x *exchange) scrubBody(response *http.Response) io.Reader {
	if x.scrub == nil || !scannable(response.Header) {
		return response.Body
	}
	return &scrubReader{from: response.Body, scrubber: x.scrub}
}

// scannable reports whether a body is text that is not compressed.
func scannable(h http.Header) bool {
	if encoding := h.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return false
	}
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case err != nil: // none: it may be anything, also text
		return true
	case strings.HasPrefix(kind, "text/"), strings.HasSuffix(kind, "+json"), strings.HasSuffix(kind, "+xml"):
		return true
	}
	switch kind {
	case "application/json", "application/xml", "application/javascript", "application/x-www-form-urlencoded",
		"application/x-ndjson", "application/yaml", "application/graphql", "multipart/form-data":
		return true
	}
	return false
}

// scrubReader blanks needles out of a stream. It holds back what may be the
// beginning of one, and nothing else, so that events pass as they come.
type scrubReader struct {
	from     io.Reader
	scrubber *scrubber
	held     []byte // may be the beginning of a needle
	err      error  // of from, once everything before it was returned
}

// Read implements io.Reader. b must be longer than every needle.
func (r *scrubReader) Read(b []byte) (int, error) {
	for r.err == nil {
		n := copy(b, r.held)
		got, err := r.from.Read(b[n:])
		n += got
		r.err = err
		if r.scrubber.blank(b[:n]) {
			r.scrubber.found("body")
		}
		keep := 0
		if err == nil {
			keep = r.scrubber.tail(b[:n])
		}
		r.held = append(r.held[:0], b[n-keep:n]...)
		if n > keep {
			return n - keep, nil
		}
	}
	return 0, r.err
}

// echoed tells of a credential that came back.
func (x *exchange) echoed() {
	if x.scrub == nil || x.scrub.where == "" || x.proxy.cfg.Echo == nil {
		return
	}
	a, d := x.admission, x.admission.Request.Destination
	x.proxy.cfg.Echo(&authz.Record{
		Time: x.proxy.cfg.Now(), Kind: authz.KindEcho, Plugin: string(a.Request.Principal), Door: authz.DoorProxy,
		Decision: a.ID, Grant: a.Decision.Grant, Rule: a.Decision.Rule, Generation: a.Decision.Generation,
		Credential: a.Decision.Credential, Method: a.Request.Action.Method, Scheme: string(d.Scheme()),
		Host: d.Host(), Port: d.Port(), PID: a.Source.PID, UID: a.Source.UID, Exe: a.Source.Exe,
		Detail: "the upstream answered with the credential in its " + x.scrub.where + "; it was blanked out",
	})
}
