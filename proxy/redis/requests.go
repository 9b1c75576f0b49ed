package redis

import (
	"errors"
	"io"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/proxy/database"
)

// errEnding is for a connection that ends behind a marker.
var errEnding = errors.New("the connection ends behind its last answer")

// requests is the state of the goroutine that reads the plugin.
type requests struct {
	in      []byte
	at, end int // bytes of in that are not read yet
	read    int // bytes of the last read
	request resp.Request
	reading resp.Reading

	batch batch

	// Bytes to be sent are out, and behind it in[from:to].
	out      []byte
	from, to int

	opened  int  // the database that the session was opened for
	current int  // the database of the connection
	multi   bool // within a transaction

	generation uint64                // of the policy at the MULTI
	partial    []*database.Statement // the request that is forwarded in parts
}

// readRequests reads the plugin until its end, for which it returns nil, or an error.
func (r *relay) readRequests() error {
	q := &r.requests
	for {
		if err := r.readBuffered(); err != nil {
			return err
		}
		if err := r.flush(); err != nil {
			return err
		}
		if err := r.fill(); err != nil {
			if errors.Is(err, io.EOF) && q.at == q.end {
				return nil
			}
			return err
		}
	}
}

// readBuffered reads the requests that are complete in the buffer, and decides them.
func (r *relay) readBuffered() error {
	q := &r.requests
	for q.at < q.end {
		n, err := q.request.Scan(q.in[q.at:q.end])
		switch {
		case err != nil:
			return r.malformed()
		case n == 0:
			return r.readPart()
		case q.request.Argc() > 0: // the server skips a request without arguments
			err = r.command(q.at, n)
		}
		if q.at += n; err != nil {
			return err
		}
		q.request.Reset()
	}
	return r.decideBatch()
}

// malformed ends the connection behind the answers of what came before.
func (r *relay) malformed() error {
	if err := r.decideBatch(); err != nil {
		return err
	}
	refusal := r.s.Refuse(authz.StatementUnreadable, "a request must be an array of bulk strings")
	r.mark(marker{text: protocolError(refusal), last: true}, refusalName(refusal))
	if err := r.flush(); err != nil {
		return err
	}
	return errEnding
}

func protocolError(refusal *authz.Refusal) []byte {
	return []byte("-ERR Protocol error: chaperone: " + refusal.Detail + " (decision " + refusal.Decision + ")\r\n")
}

// readPart looks at a request that is not complete. One that is large is held no longer
// than its facts need.
func (r *relay) readPart() error {
	if err := r.decideBatch(); err != nil {
		return err
	}
	q := &r.requests
	held := q.end - q.at
	if held < largeBuffer {
		return nil
	}
	args := q.request.Args(q.in[q.at:q.end])
	switch {
	case len(args) == 0:
		return r.discard(r.s.Refuse(authz.StatementUnreadable, "a command has a name of more than 64 KiB"))
	case resp.Complete(args, q.request.Argc()):
		return r.stream(args)
	case len(args) == resp.MaxHeldArgs:
		return r.discard(r.s.Refuse(authz.StatementTooLarge, "a command whose keys are behind its values, or that has only keys, has more than 65,536 arguments"))
	case held >= maxHeld:
		return r.discard(r.s.Refuse(authz.StatementTooLarge, "a command whose keys are behind its values, or that has only keys, has more than 8 MiB"))
	}
	return nil
}

// stream decides a request whose first arguments have all its facts, and forwards or
// discards the rest.
func (r *relay) stream(args [][]byte) error {
	q := &r.requests
	q.reading.ReadFirst(args, q.request.Argc())
	r.addDatabase(&q.reading)
	refusal := r.decideOne(&q.reading, true)
	if refusal != nil {
		return r.discard(refusal)
	}
	n := q.request.Scanned()
	r.send(q.at, q.at+n)
	q.at += n
	if err := r.rest(true); err != nil {
		return err
	}
	for _, st := range q.partial {
		st.End(authz.Outcome{})
	}
	q.partial = nil
	return r.readBuffered()
}

// discard refuses a request and reads the rest of it.
func (r *relay) discard(refusal *authz.Refusal) error {
	q := &r.requests
	r.refuse(refusal)
	q.at += q.request.Scanned()
	if err := r.rest(false); err != nil {
		return err
	}
	return r.readBuffered()
}

// rest reads the rest of a request, and forwards it or not.
func (r *relay) rest(forward bool) error {
	q := &r.requests
	for {
		n, done, err := q.request.Skip(q.in[q.at:q.end])
		if err != nil {
			return err // a request that was forwarded in part cannot be completed
		}
		if forward {
			r.send(q.at, q.at+n)
		}
		q.at += n
		if done {
			q.request.Reset()
			return nil
		}
		if err := r.flush(); err != nil {
			return err
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// fill reads more into the buffer, behind what is not read yet. The caller has sent what was to be sent.
func (r *relay) fill() error {
	q := &r.requests
	if q.at > 0 {
		copy(q.in, q.in[q.at:q.end])
		q.at, q.end = 0, q.end-q.at
	}
	switch {
	case q.end == len(q.in):
		if err := r.grow(max(largeBuffer, 2*len(q.in))); err != nil {
			return err
		}
	case q.end == 0 && len(q.in) > smallBuffer && q.read < smallBuffer:
		r.shrink()
	}
	n, err := r.s.Read(q.in[q.end:])
	q.read = n
	q.end += n
	if n > 0 {
		return nil
	}
	return err
}

// grow makes the buffer larger, within the plugin's memory.
func (r *relay) grow(size int) error {
	q := &r.requests
	if size > largeBuffer {
		if err := r.s.Hold(int64(size)); err != nil {
			return err
		}
		if len(q.in) > largeBuffer {
			r.s.Release(int64(len(q.in)))
		}
	}
	grown := make([]byte, size)
	copy(grown, q.in[:q.end])
	q.in = grown
	return nil
}

// shrink returns the memory of what was large, so that a connection which waits has little.
func (r *relay) shrink() {
	q := &r.requests
	if len(q.in) > largeBuffer {
		r.s.Release(int64(len(q.in)))
	}
	q.in, q.out = make([]byte, smallBuffer), nil
}

// send adds in[from:to] to what is to be sent.
func (r *relay) send(from, to int) {
	q := &r.requests
	if q.to != from {
		q.out = append(q.out, q.in[q.from:q.to]...)
		q.from = from
	}
	q.to = to
}

// mark adds a marker to what is to be sent.
func (r *relay) mark(as marker, name string) {
	q := &r.requests
	q.out = r.markers.add(append(q.out, q.in[q.from:q.to]...), as, name)
	q.from, q.to = 0, 0
	r.sent.Add(1)
}

// refuse has the server answer a command by the error of its refusal.
func (r *relay) refuse(refusal *authz.Refusal) {
	r.mark(marker{text: errorOf(refusal)}, refusalName(refusal))
}

// flush sends what is to be sent.
func (r *relay) flush() error {
	q := &r.requests
	b := q.in[q.from:q.to]
	if len(q.out) > 0 {
		b = append(q.out, b...)
		if q.out = b[:0]; cap(b) > largeBuffer {
			q.out = nil
		}
	}
	q.from, q.to = 0, 0
	if len(b) == 0 {
		return nil
	}
	_, err := r.s.Forward(r.server, b)
	return err
}
