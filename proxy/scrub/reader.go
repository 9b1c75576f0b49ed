package scrub

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// Search is what a stream is searched for, and what becomes of it.
type Search struct {
	Patterns *Patterns
	// Found is called with a part of the stream in which a secret is. When it
	// returns nil the secret is blanked out and the stream goes on; any other error
	// ends the stream with it, and nothing of that secret has passed.
	Found func(text []byte) error
	// PassShort is for streams that an end may wait for at any byte: so many bytes
	// of a line pass at once, and the others after 2 ms instead of 20.
	PassShort int
	// LengthKnown is set for a stream whose sender has declared its length, so that it
	// ends: held-back bytes wait for the rest and not for a time, see [Reader].
	LengthKnown bool
	// Memory is the budget of decoders and messages. Nil: unbounded.
	Memory MemoryBudget
}

// MemoryBudget is what memory is taken from before it is held. Its methods are called by
// one goroutine at a time.
type MemoryBudget interface {
	// Take takes so many bytes, or returns an error, which the stream ends with.
	Take(bytes int64) error
	// Give gives back what was taken.
	Give(bytes int64)
}

// take takes from a budget that may be nil.
func (s Search) take(bytes int64) error {
	if s.Memory == nil {
		return nil
	}
	return s.Memory.Take(bytes)
}

func (s Search) give(bytes int64) {
	if s.Memory != nil {
		s.Memory.Give(bytes)
	}
}

// searchPart searches a part of the stream.
func (s Search) searchPart(b []byte) error {
	if !s.Patterns.InBytes(b) {
		return nil
	}
	if err := s.Found(b); err != nil {
		return err
	}
	s.Patterns.Blank(b)
	return nil
}

// searchEnd searches the end of a text, after which nothing comes, for a secret
// that lacks its own.
func (s Search) searchEnd(b []byte) error {
	spans := s.Patterns.findTruncated(b, nil)
	if len(spans) == 0 {
		return nil
	}
	if err := s.Found(b); err != nil {
		return err
	}
	for _, s := range spans {
		for i := s.from; i < s.to; i++ {
			b[i] = '*'
		}
	}
	return nil
}

const (
	// holdTime is how long the end of a line is waited for. It is the same for
	// every text: who sees that a text is held back learns nothing from it.
	holdTime = 20 * time.Millisecond
	// shortHoldTime is that of a stream that is a conversation.
	shortHoldTime = 2 * time.Millisecond
	// readSize is how many bytes are asked for at a time.
	readSize = 16 << 10
)

// Reader searches a stream. It holds back the end of a line that is not whole,
// for a while: whole lines pass as they come, and so do events. The held-back
// part does not depend on the secret, because it would otherwise reveal the secret to
// a peer, character by character.
//
// Of a stream of a known length the end of a line waits for what follows it,
// however long that takes: it will come, or the stream breaks off and the part is of
// no use. A peer that sends slowly, or requests slow answers, sees everything pass
// when the next byte from the other side comes, or the end: that time depends on the
// sender, and not on the secret. So no
// clock is needed, nor a reader beside the caller's. A stream of an unknown length
// may be one side of a conversation, in which the next byte comes only once the
// last one was answered: there, and only there, waiting has to end by the clock.
type Reader struct {
	from   io.Reader
	search Search

	text  []byte // the last forwarded bytes, the bytes to forward, and the held-back ones
	sent  int    // bytes of text that have passed
	ready int    // bytes of text that may pass
	spans []span // of text that are secret
	err   error  // of from, once everything before it was returned

	reading bool         // a read is under way, into what is behind text
	arrived chan arrival // the result
}

// arrival is what a read got.
type arrival struct {
	n   int
	err error
}

// NewReader returns what reads from r and searches it. A read of r may be under
// way after Read has returned, until r is closed.
func NewReader(r io.Reader, s Search) *Reader { return &Reader{from: r, search: s} }

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.sent == r.ready {
		if r.err != nil {
			r.releaseBuffer()
			return 0, r.err
		}
		r.next()
	}
	n := copy(p, r.text[r.sent:r.ready])
	for _, s := range r.spans {
		for i := max(s.from, r.sent); i < min(s.to, r.sent+n); i++ {
			p[i-r.sent] = '*'
		}
	}
	r.sent += n
	return n, nil
}

// next waits for more, and sees what of it may pass.
func (r *Reader) next() {
	if !r.reading {
		r.compact()
	}
	got, came := r.receive()
	end := !came || errors.Is(got.err, io.EOF) // of the stream, or of waiting
	r.text = r.text[:len(r.text)+got.n]
	if err := r.searchText(end); err != nil {
		r.err = err
		return
	}
	if came {
		r.err = got.err
	}
	r.ready = len(r.text)
	if !end { // a stream that breaks off in the middle of a line loses the line
		r.ready = max(r.sent, r.ready-r.holdBack())
	}
}

// compact makes room: what passed is remembered as far as a secret may have
// begun in it.
func (r *Reader) compact() {
	longest := r.search.Patterns.longest
	if r.text == nil {
		r.text = r.search.Patterns.buffer()
	}
	from := max(0, r.sent-longest+1)
	r.text = r.text[:copy(r.text, r.text[from:])]
	r.sent -= from
	r.ready = r.sent
}

// releaseBuffer gives the room back, unless a read may still write to it.
func (r *Reader) releaseBuffer() {
	if !r.reading {
		r.search.Patterns.putBuffer(r.text)
		r.text, r.sent, r.ready, r.spans = nil, 0, 0, nil
	}
}

// receive returns what comes next, and false when something is held back that has
// waited long enough.
func (r *Reader) receive() (arrival, bool) {
	room, waits := r.text[len(r.text):cap(r.text)], r.sent < len(r.text)
	if !r.reading {
		if !waits || r.search.LengthKnown {
			n, err := r.from.Read(room)
			return arrival{n, err}, true
		}
		if r.arrived == nil {
			r.arrived = make(chan arrival, 1) // so that nobody has to wait for it
		}
		r.reading = true
		go func() {
			n, err := r.from.Read(room)
			r.arrived <- arrival{n, err}
		}()
	}
	var late <-chan time.Time // never
	if waits {
		timer := time.NewTimer(r.holdTime())
		defer timer.Stop()
		late = timer.C
	}
	select {
	case got := <-r.arrived:
		r.reading = false
		return got, true
	case <-late:
		return arrival{}, false
	}
}

func (r *Reader) holdTime() time.Duration {
	if r.search.PassShort > 0 {
		return shortHoldTime
	}
	return holdTime
}

// searchText searches the text and reports what has not passed of a secret. At an end
// the secret may lack its own.
func (r *Reader) searchText(end bool) error {
	r.spans = r.search.Patterns.find(r.text, r.spans[:0])
	if end {
		r.spans = r.search.Patterns.findTruncated(r.text, r.spans)
	}
	for _, s := range r.spans {
		if s.to > r.sent {
			return r.search.Found(r.text)
		}
	}
	return nil
}

// holdBack returns how many bytes at the end of the text are held back: those of a
// line that is not whole, as far as a secret could have begun in it. A long
// text that is cut into lines is one line.
func (r *Reader) holdBack() int {
	end := r.text[max(0, len(r.text)-r.search.Patterns.longest+1):]
	keep := len(end)
	for line := end; ; {
		i := bytes.LastIndexByte(line, '\n')
		if i < 0 {
			break
		}
		if line = line[:i]; !continues(line) {
			keep = len(end) - 1 - i
			break
		}
	}
	if keep <= r.search.PassShort {
		return 0
	}
	return keep
}

// continues reports whether a line was cut because what is in it is long: it ends in
// base64, in a backslash, or between two numbers.
func continues(line []byte) bool {
	const sure = 16 // characters of base64, which few words have
	line = bytes.TrimRight(line, " \r")
	if len(line) < 2 {
		return false
	}
	switch last := line[len(line)-1]; last {
	case '\\':
		return true
	case ',', ':':
		return digit(line[len(line)-2]) >= 0
	}
	for i := range sure {
		if i == len(line) {
			return false
		}
		if c := line[len(line)-1-i]; !alphanumeric(c) && c != '+' && c != '/' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
