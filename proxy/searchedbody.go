package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// maxCompressed is how long a compressed body may be that is searched, in
// bytes: it is decompressed as a whole, before any of it is sent.
const maxCompressed = scrub.MaxMessage

// searchedBody returns a request's body that ends at a placeholder, with an error.
// No byte of the placeholder passes. The held-back bytes are counted.
func searchedBody(s *placeholder.Matcher, r *http.Request, body io.Reader, room decoderMemory, halt func(error)) io.Reader {
	search := s.Search("the body", halt)
	search.Memory = room
	codings := codingsOf(r.Header)
	return &lazyReader{halt: halt, open: func() (io.Reader, error) {
		if scrub.Encoded(codings) {
			return searchWhole(&reservedReader{body, room.holding}, codings, search, room)
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
func searchWhole(body io.Reader, codings string, search scrub.Search, room decoderMemory) (io.Reader, error) {
	text, length, err := budget.ReadAll(body, maxCompressed)
	if err != nil {
		return nil, err
	}
	if length > maxCompressed {
		return nil, errUnsearchable("is compressed and longer than 4 MiB")
	}
	if scrub.Codings(codings) > 1 { // no program does this, and each needs a window
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
	var found *session.RefusalError
	switch {
	case errors.As(err, &found):
		return nil, found
	case err != nil:
		return nil, errUnsearchable("is compressed and cannot be decompressed")
	}
	return &text, nil
}

// errUnsearchable refuses a body that cannot be searched.
func errUnsearchable(why string) *session.RefusalError {
	return &session.RefusalError{
		Reason: authz.NotEnforceableHere,
		Detail: fmt.Sprintf("the body %s, so it cannot be searched for placeholders", why),
		Remedy: "send it uncompressed",
	}
}

// lazyReader opens a reader when it is first read, because reading a plugin's body sends
// it a 100. A body that cannot be searched ends the access.
type lazyReader struct {
	open func() (io.Reader, error)
	halt func(error)
	from io.Reader
	err  error
}

func (l *lazyReader) Read(p []byte) (int, error) {
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

// note turns an error of the search into a refusal.
func (l *lazyReader) note() {
	var known *session.RefusalError
	switch {
	case l.err == nil || errors.Is(l.err, io.EOF):
	case errors.As(l.err, &known):
		l.halt(known)
	case errors.Is(l.err, scrub.ErrCoding), errors.Is(l.err, scrub.ErrFrame), errors.Is(l.err, scrub.ErrBomb):
		l.err = errUnsearchable("holds messages that are compressed and cannot be decompressed")
		l.halt(l.err)
	}
}
