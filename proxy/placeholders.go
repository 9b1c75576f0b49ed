package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
)

// Placeholder is the stand-in for a credential in the plugin's environment. In
// the credential's place it is replaced; anywhere else it is on its way to where
// the credential was never meant to be.
type Placeholder struct {
	Grant, Credential string
	Value             authz.Secret
}

// standIns are what is looked for in what a plugin sends. Nil: nothing.
type standIns struct {
	from    []Placeholder
	all     *scrub.Patterns
	each    []*scrub.Patterns
	lowered []string // as they would be in a host's name, which has no case
}

// lookout knows what to look for, and makes it ready when it changes.
type lookout struct {
	placeholders func() []Placeholder // nil: none
	known        atomic.Pointer[standIns]
}

// FindPlaceholder returns what finds a stand-in in a text, in any spelling and in
// any case, which names lose. It is for doors that see more of a request than they
// carry.
func FindPlaceholder(placeholders func() []Placeholder) func(text string) (grant, credential string, found bool) {
	l := &lookout{placeholders: placeholders}
	return func(text string) (grant, credential string, found bool) {
		s := l.now()
		if s == nil {
			return "", "", false
		}
		e := s.in(text, "")
		if e == nil {
			e = s.inName(text, "")
		}
		if e == nil || e.standIn == nil {
			return "", "", false
		}
		return e.standIn.Grant, e.standIn.Credential, true
	}
}

// now returns what to look for, nil for nothing.
func (l *lookout) now() *standIns {
	if l.placeholders == nil {
		return nil
	}
	from := l.placeholders()
	if len(from) == 0 {
		return nil
	}
	if known := l.known.Load(); known != nil && slices.Equal(known.from, from) {
		return known
	}
	s := &standIns{from: slices.Clone(from)}
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

// errMisplaced is a stand-in elsewhere than in its credential's place.
func (s *standIns) errMisplaced(text []byte, where string) *dialError {
	e := &dialError{reason: authz.CredentialMisplaced, detail: where}
	for i, needles := range s.each {
		if needles.InBytes(text) {
			e.standIn = &s.from[i]
			break
		}
	}
	return e
}

// in refuses a text with a stand-in in it.
func (s *standIns) in(text, where string) *dialError {
	if !s.all.In(text) {
		return nil
	}
	return s.errMisplaced([]byte(text), where)
}

// inName refuses a name without case, of a host or a header, with a stand-in in it.
func (s *standIns) inName(name, where string) *dialError {
	name = strings.ToLower(name)
	for i, lowered := range s.lowered {
		if len(lowered) > 0 && strings.Contains(name, lowered) {
			return &dialError{reason: authz.CredentialMisplaced, detail: where, standIn: &s.from[i]}
		}
	}
	return nil
}

// inHeader refuses a header or trailer with a stand-in in it.
func (s *standIns) inHeader(h http.Header, what string) *dialError {
	for name, values := range h {
		if e := s.inName(name, "the name of a "+what); e != nil {
			return e
		}
		for _, value := range values {
			if e := s.in(value, what+" "+strings.ToLower(name)); e != nil {
				return e
			}
		}
	}
	return nil
}

// inRequest refuses what is about to be sent, once its slot has been emptied
// and before the credential is in it.
func (s *standIns) inRequest(r authz.Request, query string, h http.Header) *dialError {
	for _, check := range []func() *dialError{
		func() *dialError { return s.inName(r.Destination.Host(), "the host's name") },
		func() *dialError { return s.in(r.Action.Method, "the method") },
		func() *dialError { return s.in(r.Destination.Path(), "the path") },
		func() *dialError { return s.in(query, "the query") },
		func() *dialError { return s.inHeader(h, "header") },
	} {
		if e := check(); e != nil {
			return e
		}
	}
	return nil
}

// search ends a stream at a stand-in; halt is told first.
func (s *standIns) search(where string, halt func(error)) scrub.Search {
	return scrub.Search{Patterns: s.all, Found: func(text []byte) error {
		e := s.errMisplaced(text, where)
		halt(e)
		return e
	}}
}

// maxCompressed is how long a compressed body may be that is searched, in
// bytes: it is decompressed as a whole, before any of it is sent.
const maxCompressed = scrub.MaxMessage

// inBody returns a request's body that ends at a stand-in, with an error.
// Nothing of the stand-in passes. What is held of it meanwhile is counted.
func (s *standIns) inBody(r *http.Request, body io.Reader, room decoders, halt func(error)) io.Reader {
	search := s.search("the body", halt)
	search.Memory = room
	codings := codingsOf(r.Header)
	return &later{halt: halt, open: func() (io.Reader, error) {
		if scrub.Encoded(codings) {
			return searchWhole(&heldReader{body, room.holding}, codings, search, room)
		}
		if contentOf(r.Header) == grpcContent {
			return scrub.NewGRPCGuard(body, search, r.Header.Get("Grpc-Encoding"))
		}
		return scrub.NewReader(body, search), nil
	}}
}

// codingsOf returns the content codings of a request, without AWS's, which
// cuts into chunks and compresses nothing.
func codingsOf(h http.Header) string {
	codings := strings.Split(strings.Join(h["Content-Encoding"], ","), ",")
	return strings.Join(slices.DeleteFunc(codings, func(coding string) bool {
		return strings.EqualFold(strings.TrimSpace(coding), "aws-chunked")
	}), ",")
}

// searchWhole searches a compressed body and returns it as it was.
func searchWhole(body io.Reader, codings string, search scrub.Search, room decoders) (io.Reader, error) {
	text, length, err := budget.ReadAll(body, maxCompressed)
	if err != nil {
		return nil, err
	}
	if length > maxCompressed {
		return nil, errUnsearchable("is compressed and longer than 4 MiB")
	}
	if scrub.Codings(codings) > 1 { // which no program does, and each takes a window
		return nil, errUnsearchable("is compressed more than once")
	}
	done, err := room.turn(scrub.DecoderSize(codings))
	if err != nil {
		return nil, err
	}
	defer done()
	again := slices.Clone(text) // reading it takes it apart
	plain, err := scrub.Decode(codings, &again)
	if err == nil {
		_, err = io.Copy(io.Discard, scrub.NewReader(plain, search))
	}
	var found *dialError
	switch {
	case errors.As(err, &found):
		return nil, found
	case err != nil:
		return nil, errUnsearchable("is compressed and cannot be decompressed")
	}
	return &text, nil
}

// errUnsearchable refuses a body that may hold anything.
func errUnsearchable(why string) *dialError {
	return &dialError{
		reason: authz.NotEnforceableHere,
		detail: fmt.Sprintf("the body %s, so that it cannot be searched for stand-ins of credentials", why),
		remedy: "send it uncompressed",
	}
}

// later opens a reader when it is first read: reading a plugin's body sends it
// 100-continue. Errors of what is searched end the access.
type later struct {
	open func() (io.Reader, error)
	halt func(error)
	from io.Reader
	err  error
}

func (l *later) Read(p []byte) (int, error) {
	if l.from == nil && l.err == nil {
		l.from, l.err = l.open()
		l.note()
	}
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.from.Read(p)
	l.err = err
	l.note()
	return n, err
}

// note turns what a search cannot look into into a refusal.
func (l *later) note() {
	var known *dialError
	switch {
	case l.err == nil || errors.Is(l.err, io.EOF):
	case errors.As(l.err, &known):
		l.halt(known)
	case errors.Is(l.err, scrub.ErrCoding), errors.Is(l.err, scrub.ErrFrame), errors.Is(l.err, scrub.ErrBomb):
		l.err = errUnsearchable("holds messages that are compressed and cannot be decompressed")
		l.halt(l.err)
	}
}
