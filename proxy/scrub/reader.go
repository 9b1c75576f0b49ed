package scrub

import "io"

// Reader blanks secrets out of a stream. It holds back what may be the
// beginning of one, and nothing else, so that events pass as they come.
type Reader struct {
	from    io.Reader
	needles *Needles
	found   func()

	held  []byte // may be the beginning of a needle
	ready []byte // searched, and more than the caller had room for
	err   error  // of from, once everything before it was returned
}

// NewReader returns what reads from r without the secrets of n. found is called
// whenever one was blanked out.
func NewReader(r io.Reader, n *Needles, found func()) *Reader {
	return &Reader{from: r, needles: n, found: found}
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.ready) > 0 {
		n := copy(p, r.ready)
		r.ready = r.ready[n:]
		return n, nil
	}
	if len(p) >= 2*r.needles.longest {
		return r.fill(p)
	}
	room := make([]byte, 2*r.needles.longest)
	n, err := r.fill(room)
	took := copy(p, room[:n])
	r.ready = room[took:n]
	if len(r.ready) > 0 {
		return took, nil // the error comes again
	}
	return took, err
}

// fill reads into b, which is longer than what is held.
func (r *Reader) fill(b []byte) (int, error) {
	for r.err == nil {
		n := copy(b, r.held)
		got, err := r.from.Read(b[n:])
		n += got
		r.err = err
		if r.needles.Blank(b[:n]) {
			r.found()
		}
		keep := 0
		if err == nil {
			keep = r.needles.tail(b[:n])
		}
		r.held = append(r.held[:0], b[n-keep:n]...)
		if n > keep {
			return n - keep, nil
		}
	}
	return 0, r.err
}
