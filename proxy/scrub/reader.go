package scrub

import "io"

// Search is what a stream is searched for, and what becomes of it.
type Search struct {
	Needles *Needles
	// Found is called with a part of the stream in which a secret is. When it
	// returns nil the secret is blanked out and the stream goes on; any other error
	// ends the stream with it, and nothing of that secret has passed.
	Found func(text []byte) error
	// Short is how many bytes pass at once although they may be the beginning of a
	// secret. They are remembered: the rest of the secret does not pass. 0 holds
	// back every beginning, which is for streams whose parts nobody waits for.
	Short int
}

// look searches a part of the stream.
func (s Search) look(b []byte) error {
	if !s.Needles.InBytes(b) {
		return nil
	}
	if err := s.Found(b); err != nil {
		return err
	}
	s.Needles.Blank(b)
	return nil
}

// Reader searches a stream. It holds back what may be the beginning of a
// secret, and nothing else, so that events pass as they come.
type Reader struct {
	from   io.Reader
	search Search

	held  []byte // may be the beginning of a needle
	sent  int    // bytes of held that have passed
	ready []byte // searched, and more than the caller had room for
	err   error  // of from, once everything before it was returned
}

// NewReader returns what reads from r and searches it.
func NewReader(r io.Reader, s Search) *Reader { return &Reader{from: r, search: s} }

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
	if len(p) >= 2*r.search.Needles.longest {
		return r.fill(p)
	}
	room := make([]byte, 2*r.search.Needles.longest)
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
		if found := r.search.look(b[:n]); found != nil {
			r.err = found
			break
		}
		keep := 0
		if err == nil {
			keep = r.search.Needles.tail(b[:n])
		}
		passed := max(n-keep, r.sent)
		if keep <= r.search.Short {
			passed = n
		}
		r.held = append(r.held[:0], b[n-keep:n]...)
		out := copy(b, b[r.sent:passed])
		if r.sent = passed - (n - keep); out > 0 {
			return out, nil
		}
	}
	return 0, r.err
}
