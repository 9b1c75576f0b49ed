package resp

import (
	"bytes"
	"errors"
	"fmt"
)

// Limits of requests.
const (
	// MaxArgs is how many arguments a request has at most, as for the server.
	MaxArgs = 1 << 20
	// MaxHeldArgs is how many arguments of a request are held at most: each takes more memory
	// than its bytes. 10,000 keys with a value for each are fewer.
	MaxHeldArgs = 64 << 10
	// MaxBulk is how long an argument is at most, in bytes: the server's default of
	// proto-max-bulk-len.
	MaxBulk = 512 << 20
	// maxHeader is how long the line of a length is at most, without its end.
	maxHeader = 32
)

// ErrMalformed is wrapped by the errors of bytes that are not a request or an answer.
// The connection cannot go on: where the next one begins is not known.
var ErrMalformed = errors.New("malformed RESP")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// span is a range of bytes from the start of a request.
type span struct{ from, to int }

// Request splits off one request, an array of bulk strings, from bytes that arrive in
// parts. It is strict where the server is not: the server does not look at the end of
// a string, so that it and another reader could disagree. The zero Request is ready.
type Request struct {
	argc int    // as stated; 0 before the header was read
	args []span // complete ones, while they are held
	seen int    // complete ones
	pos  int    // of the next byte to read; from the start of the request while it is held
	left int    // bytes of the current argument with its end, 0 between arguments
	size int    // of the current argument

	views [][]byte // memory for Args
}

// Reset makes q ready for the next request and keeps its memory.
func (q *Request) Reset() {
	*q = Request{args: q.args[:0], views: q.views[:0]}
	const kept = 1024
	if cap(q.args) > kept {
		q.args, q.views = nil, nil
	}
}

// Argc returns how many arguments the request states, 0 before that is known.
func (q *Request) Argc() int { return q.argc }

// Scan goes on reading a request that begins at b[0] and is held: b is what it was at
// the last call, and more. It returns the length of the request once it is complete,
// and 0 before. A request without arguments is complete and has an Argc of 0; so has an
// empty line. A request of more than [MaxHeldArgs] arguments is not complete for it: the
// caller goes on with [Request.Skip].
func (q *Request) Scan(b []byte) (n int, err error) {
	for q.argc == 0 {
		const empty = "\r\n" // a line that the server skips; redis-cli --pipe ends its input with one
		if rest := b[q.pos:]; len(rest) > 0 && rest[0] == empty[0] {
			switch {
			case len(rest) < len(empty):
				return 0, nil
			case rest[1] == empty[1]:
				return q.pos + len(empty), nil
			}
		}
		n, end, err := header(b[q.pos:], '*', MaxArgs)
		switch {
		case err != nil || end == 0:
			return 0, err
		case n <= 0:
			return q.pos + end, nil
		}
		q.argc, q.pos = n, q.pos+end
	}
	for q.seen < q.argc {
		if len(q.args) == MaxHeldArgs {
			return 0, nil
		}
		if q.left == 0 {
			size, end, err := header(b[q.pos:], '$', MaxBulk)
			switch {
			case err != nil || end == 0:
				return 0, err
			case size < 0:
				return 0, malformed("an argument has the length %d", size)
			}
			q.pos, q.size, q.left = q.pos+end, size, size+2
		}
		if len(b)-q.pos < q.left {
			return 0, nil
		}
		end := q.pos + q.size
		if b[end] != '\r' || b[end+1] != '\n' {
			return 0, malformed("an argument of %d bytes does not end where its length states", q.size)
		}
		q.args = append(q.args, span{q.pos, end})
		q.pos, q.left = end+2, 0
		q.seen++
	}
	return q.pos, nil
}

// Args returns the complete arguments of a request that is held in b. They are valid
// until b changes and the next call.
func (q *Request) Args(b []byte) [][]byte {
	q.views = q.views[:0]
	for _, s := range q.args {
		q.views = append(q.views, b[s.from:s.to:s.to])
	}
	return q.views
}

// Scanned returns how many bytes of the held request were read, without those of an
// argument that is not complete.
func (q *Request) Scanned() int { return q.pos }

// Skip goes on reading a request that is no longer held, behind what Scan has read:
// b begins at [Request.Scanned]. It returns how many bytes of b belong to the request
// and were read, and whether it is complete. Bytes that were not read come again.
func (q *Request) Skip(b []byte) (n int, done bool, err error) {
	for q.seen < q.argc {
		if q.left == 0 {
			size, end, err := header(b[n:], '$', MaxBulk)
			switch {
			case err != nil || end == 0:
				return n, false, err
			case size < 0:
				return n, false, malformed("an argument has the length %d", size)
			}
			n, q.left = n+end, size+2
		}
		body := min(max(q.left-2, 0), len(b)-n)
		n, q.left = n+body, q.left-body
		for ; q.left > 0; q.left-- {
			if n == len(b) {
				return n, false, nil
			}
			if b[n] != "\n\r"[q.left-1] {
				return n, false, malformed("an argument does not end where its length states")
			}
			n++
		}
		q.seen++
	}
	return n, true, nil
}

// header reads a line of a type and a number. end is the length of the line with its
// end, 0 if it is not complete.
func header(b []byte, kind byte, most int) (n, end int, err error) {
	if len(b) == 0 {
		return 0, 0, nil
	}
	if b[0] != kind {
		return 0, 0, malformed("a request must be an array of bulk strings; %q is in the place of %q", b[0], kind)
	}
	line := b[1:min(len(b), maxHeader)]
	i := bytes.IndexByte(line, '\n')
	if i < 0 {
		if len(b) >= maxHeader {
			return 0, 0, malformed("the line of a length is too long")
		}
		return 0, 0, nil
	}
	if i == 0 || line[i-1] != '\r' {
		return 0, 0, malformed("a line does not end in CR LF")
	}
	n, ok := number(line[:i-1])
	if !ok || n > most || n < -1 {
		return 0, 0, malformed("a length is not a number from -1 to %d", most)
	}
	return n, i + 2, nil
}
