package resp

import (
	"bytes"
	"strconv"
)

const (
	// maxDepth is how deep answers are nested at most.
	maxDepth = 1024
	// MaxErrorLine is how long an error is at most for [Replies] to report it; longer
	// ones pass as any other answer.
	MaxErrorLine = 1024
	// maxLine is how long a line is at most that states a length, in bytes.
	maxLine = 64
)

// Replies follows the answers of a server, RESP2 and RESP3, in bytes that arrive in
// parts, without holding them. The zero Replies is ready.
type Replies struct {
	left  int   // bytes of the current string with its end
	line  bool  // within a line whose content is not read
	stack []int // elements that are missing, of each aggregate
	push  bool  // the aggregate at the bottom is a push, which answers no command
	last  byte  // type of the last answer; see Last
	ok    bool  // it is +OK

	// Answered counts complete answers without pushes.
	Answered uint64
}

// Last returns the type of the last answer that is no push, as in '-' or '+', 0 before
// the first, and whether it is +OK.
func (s *Replies) Last() (kind byte, ok bool) { return s.last, s.ok }

// Top reports whether the next byte begins an answer.
func (s *Replies) Top() bool { return s.left == 0 && !s.line && len(s.stack) == 0 }

// Scan reads b, which begins behind what was read before, up to the end of an answer or up to
// an error. It returns how many bytes were read; if the bytes after them are a complete error,
// a line that begins with -, then also its length with its end. The caller goes on behind the
// error, for which it calls [Replies.Skip]. Bytes that were not read come again, with more.
func (s *Replies) Scan(b []byte) (n, failure int, err error) {
	for n < len(b) && (n == 0 || !s.Top()) {
		switch {
		case s.left > 0:
			k := min(s.left, len(b)-n)
			n, s.left = n+k, s.left-k
			if s.left == 0 {
				s.complete()
			}
			continue
		case s.line:
			i := bytes.IndexByte(b[n:], '\n')
			if i < 0 {
				return len(b), 0, nil
			}
			n, s.line = n+i+1, false
			s.complete()
			continue
		}
		k, failure, err := s.element(b[n:])
		if err != nil || k == 0 {
			return n, failure, err
		}
		n += k
	}
	return n, 0, nil
}

// Skip is called for an error that Scan has reported.
func (s *Replies) Skip() {
	if len(s.stack) == 0 {
		s.last, s.ok = '-', false
	}
	s.complete()
}

// element reads the beginning of an element. It returns 0 if that is not complete, or
// is an error, whose length is failure once it is complete.
func (s *Replies) element(b []byte) (n, failure int, err error) {
	kind := b[0]
	if len(s.stack) == 0 {
		if s.push = kind == '>'; !s.push && kind != '-' { // of an error, Skip does
			s.last, s.ok = kind, false
		}
	}
	switch kind {
	case '+', ':', '_', '#', ',', '(':
		return s.simple(b)
	case '-':
		i := bytes.IndexByte(b[:min(len(b), MaxErrorLine)], '\n')
		switch {
		case i >= 0:
			return 0, i + 1, nil
		case len(b) >= MaxErrorLine:
			if s.line = true; len(s.stack) == 0 {
				s.last, s.ok = kind, false
			}
			return 1, 0, nil
		}
		return 0, 0, nil
	case '$', '!', '=', '*', '~', '>', '%', '|':
	default:
		return 0, 0, malformed("an answer has the type %q", kind)
	}
	end := bytes.IndexByte(b[:min(len(b), maxLine)], '\n')
	if end < 0 {
		if len(b) >= maxLine {
			return 0, 0, malformed("the line of a length is too long")
		}
		return 0, 0, nil
	}
	size, err := length(b[1:end])
	if err != nil {
		return 0, 0, err
	}
	return end + 1, 0, s.begin(kind, size)
}

// simple reads the beginning of a line whose content does not matter, or all of it.
func (s *Replies) simple(b []byte) (n, failure int, err error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if len(b) < len("+OK\r\n") {
			return 0, 0, nil
		}
		s.line = true
		return len(b), 0, nil
	}
	if len(s.stack) == 0 {
		s.ok = string(b[:i+1]) == "+OK\r\n"
	}
	s.complete()
	return i + 1, 0, nil
}

// begin enters a string or an aggregate of the given size, -1 for one that is null.
func (s *Replies) begin(kind byte, size int) error {
	if size < 0 {
		s.complete()
		return nil
	}
	switch kind {
	case '$', '!', '=':
		s.left = size + 2
		return nil
	case '%', '|':
		size *= 2
	}
	if kind == '|' {
		size++ // the answer that the attributes belong to follows them
	}
	if size == 0 {
		s.complete()
		return nil
	}
	if len(s.stack) == maxDepth {
		return malformed("answers are nested deeper than %d", maxDepth)
	}
	s.stack = append(s.stack, size)
	return nil
}

// complete ends an element, and the aggregates of which it is the last.
func (s *Replies) complete() {
	for len(s.stack) > 0 {
		top := len(s.stack) - 1
		if s.stack[top]--; s.stack[top] > 0 {
			return
		}
		s.stack = s.stack[:top]
	}
	if !s.push {
		s.Answered++
	}
}

// length reads the number of a length, with the CR behind it.
func length(b []byte) (int, error) {
	if len(b) < 2 || b[len(b)-1] != '\r' {
		return 0, malformed("a line does not end in CR LF")
	}
	n, err := strconv.ParseInt(string(b[:len(b)-1]), 10, 64)
	const most = 1 << 48
	if err != nil || n < -1 || n > most {
		return 0, malformed("a length is not a number")
	}
	return int(n), nil
}
