package placeholder

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Placeholder replaces a credential in the plugin's environment. In the credential
// slot the proxy replaces it by the credential; anywhere else it is refused, because
// the credential was not meant for that place.
type Placeholder struct {
	Grant, Credential string
	Value             authz.Secret
}

// Matcher are what is looked for in what a plugin sends. Nil: nothing.
type Matcher struct {
	from    []Placeholder
	all     *scrub.Patterns
	each    []*scrub.Patterns
	lowered []string // as they would be in a host's name, which has no case
}

// Cache holds the matcher of the current placeholders, and rebuilds it on a change.
type Cache struct {
	Placeholders func() []Placeholder // nil: none
	known        atomic.Pointer[Matcher]
}

// Finder returns a function that returns what finds a placeholder in a text, in any
// encoding and any case; nil without placeholders. It is for doors that see more of a
// request than they carry.
func Finder(placeholders func() []Placeholder) func() func(text string) (grant, credential string, found bool) {
	l := &Cache{Placeholders: placeholders}
	return func() func(text string) (grant, credential string, found bool) {
		s := l.Matcher()
		if s == nil {
			return nil
		}
		return s.find
	}
}

// find finds a placeholder in a text.
func (s *Matcher) find(text string) (grant, credential string, found bool) {
	e := s.inText(text, "")
	if e == nil {
		e = s.inName(text, "")
	}
	if e == nil || e.Misplaced == nil {
		return "", "", false
	}
	return e.Misplaced.Grant, e.Misplaced.Name, true
}

// Matcher returns the matcher, nil without placeholders.
func (l *Cache) Matcher() *Matcher {
	if l.Placeholders == nil {
		return nil
	}
	from := l.Placeholders()
	if len(from) == 0 {
		return nil
	}
	if known := l.known.Load(); known != nil && slices.Equal(known.from, from) {
		return known
	}
	s := &Matcher{from: slices.Clone(from)}
	values := make([]string, len(from))
	for i, placeholder := range from {
		values[i] = placeholder.Value.Reveal()
		s.each = append(s.each, scrub.New(values[i]))
		s.lowered = append(s.lowered, strings.ToLower(values[i]))
	}
	if s.all = scrub.New(values...); s.all == nil {
		return nil
	}
	l.known.Store(s)
	return s
}

// errMisplaced is the refusal of a placeholder outside its credential slot.
func (s *Matcher) errMisplaced(text []byte, where string) *session.RefusalError {
	e := &session.RefusalError{Reason: authz.CredentialMisplaced, Detail: where}
	for i, needles := range s.each {
		if needles.InBytes(text) {
			e.Misplaced = s.ref(i)
			break
		}
	}
	return e
}

// ref names the credential of a placeholder.
func (s *Matcher) ref(i int) *authz.CredentialRef {
	return &authz.CredentialRef{Grant: s.from[i].Grant, Name: s.from[i].Credential}
}

// inText refuses a text with a placeholder in it.
func (s *Matcher) inText(text, where string) *session.RefusalError {
	if !s.all.In(text) {
		return nil
	}
	return s.errMisplaced([]byte(text), where)
}

// inName refuses a name without case, of a host or a header, with a placeholder in it.
func (s *Matcher) inName(name, where string) *session.RefusalError {
	name = strings.ToLower(name)
	for i, lowered := range s.lowered {
		if len(lowered) > 0 && strings.Contains(name, lowered) {
			return &session.RefusalError{Reason: authz.CredentialMisplaced, Detail: where, Misplaced: s.ref(i)}
		}
	}
	return nil
}

// InHeader refuses a header or trailer with a placeholder in it.
func (s *Matcher) InHeader(h http.Header, what string) *session.RefusalError {
	for name, values := range h {
		if e := s.inName(name, "the name of a "+what); e != nil {
			return e
		}
		for _, value := range values {
			if e := s.inText(value, what+" "+strings.ToLower(name)); e != nil {
				return e
			}
		}
	}
	return nil
}

// InRequest refuses what is about to be sent, once its slot has been emptied
// and before the credential is in it.
func (s *Matcher) InRequest(r authz.Request, query string, h http.Header) *session.RefusalError {
	for _, check := range []func() *session.RefusalError{
		func() *session.RefusalError { return s.inName(r.Destination.Host(), "the host's name") },
		func() *session.RefusalError { return s.inText(r.Action.Method, "the method") },
		func() *session.RefusalError { return s.inText(r.Destination.Path(), "the path") },
		func() *session.RefusalError { return s.inText(query, "the query") },
		func() *session.RefusalError { return s.InHeader(h, "header") },
	} {
		if e := check(); e != nil {
			return e
		}
	}
	return nil
}

// Search ends a stream at a placeholder; halt is called first.
func (s *Matcher) Search(where string, halt func(error)) scrub.Search {
	return scrub.Search{Patterns: s.all, Found: func(text []byte) error {
		e := s.errMisplaced(text, where)
		halt(e)
		return e
	}}
}

// Stream searches bytes as they pass, and holds none back: a placeholder ends a stream
// before its last byte has passed, and is worthless. The zero Stream has seen nothing. One
// goroutine uses it at a time.
type Stream struct{ tail []byte }

// Find returns the refusal of a placeholder in the next bytes, or in the bytes before
// together with them; nil for none. where completes "in ...". A nil matcher finds nothing.
func (s *Stream) Find(m *Matcher, b []byte, where string) *session.RefusalError {
	if m == nil {
		s.tail = nil
		return nil
	}
	keep := m.all.Longest() - 1
	s.tail = append(s.tail, b[:min(len(b), keep)]...)
	if m.all.InBytes(s.tail) {
		return m.errMisplaced(s.tail, where)
	}
	if len(b) > keep {
		if m.all.InBytes(b) {
			return m.errMisplaced(b, where)
		}
		s.tail = append(s.tail[:0], b[len(b)-keep:]...)
	} else if over := len(s.tail) - keep; over > 0 {
		s.tail = s.tail[:copy(s.tail, s.tail[over:])]
	}
	return nil
}

// BufferSize returns how many bytes a search holds back at most.
func (s *Matcher) BufferSize() int { return s.all.ReaderSize() }

// MinHeldPrefix is how many bytes of what may be the beginning of a needle
// pass where an end may wait for them: fewer than what is searched for at all.
const MinHeldPrefix = 5
