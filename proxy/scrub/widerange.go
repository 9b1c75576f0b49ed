package scrub

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// WidenedRange is the one part of a representation that a Range header asks for
// (RFC 9110, section 14). A part may begin or end in the middle of a secret, so
// that a wider one is asked for, searched, and cut to what was wanted.
type WidenedRange struct {
	first, last int64 // of bytes, from 0; last is -1 for the rest of them
	suffix      int64 // instead: so many at the end
	margin      int64 // how much wider, on either side
}

// ErrRange is for an answer that is not the requested part.
var ErrRange = errors.New("the answer is not the requested part")

// NewWidenedRange reads a Range header that asks for one range of bytes, to be asked
// for by bytes wider. It is nil for any other, which a server may ignore and a
// proxy may thus leave out.
func NewWidenedRange(header string, by int) *WidenedRange {
	set, ok := strings.CutPrefix(strings.TrimSpace(header), "bytes=")
	if !ok {
		return nil
	}
	from, to, ok := strings.Cut(strings.TrimSpace(set), "-")
	if !ok {
		return nil
	}
	w := &WidenedRange{last: -1, margin: int64(by)}
	if from == "" {
		w.suffix, ok = position(to)
		ok = ok && w.suffix > 0
	} else if w.first, ok = position(from); ok && to != "" {
		w.last, ok = position(to)
		ok = ok && w.last >= w.first
	}
	if !ok {
		return nil
	}
	return w
}

// position reads a number of bytes. Numbers beyond any file are invalid.
func position(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n < 1<<62
}

// Header returns the Range header that asks for the wider part.
func (w *WidenedRange) Header() string {
	if w.suffix > 0 {
		return fmt.Sprintf("bytes=-%d", w.suffix+w.margin)
	}
	first := max(0, w.first-w.margin)
	if w.last < 0 {
		return fmt.Sprintf("bytes=%d-", first)
	}
	return fmt.Sprintf("bytes=%d-%d", first, w.last+w.margin)
}

// Part is what of an answer is passed on.
type Part struct {
	// ContentRange and Length are those of the part. An empty part, of Length 0,
	// is one that lies beyond the end: it is answered with 416.
	ContentRange string
	Length       int64
	skip         int64
}

// Part reads the Content-Range of the answer, which has to have come with
// status 206. The error is [ErrRange].
func (w *WidenedRange) Part(contentRange string) (Part, error) {
	first, last, total, ok := parseContentRange(contentRange)
	if !ok || w.suffix > 0 && total < 0 {
		return Part{}, fmt.Errorf("read Content-Range: %w", ErrRange)
	}
	from, to := w.first, w.last
	if w.suffix > 0 {
		from, to = max(0, total-w.suffix), -1
	}
	if to < 0 || to > last {
		to = last
	}
	size := "*"
	if total >= 0 {
		size = strconv.FormatInt(total, 10)
	}
	switch {
	case from > last:
		return Part{ContentRange: "bytes */" + size}, nil
	case first > from: // something is missing at the beginning
		return Part{}, fmt.Errorf("read Content-Range: %w", ErrRange)
	}
	return Part{ContentRange: fmt.Sprintf("bytes %d-%d/%s", from, to, size), Length: to - from + 1, skip: from - first}, nil
}

// parseContentRange reads "bytes 0-99/200", total being -1 for "*".
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, size, ok := strings.Cut(strings.TrimSpace(s), "/")
	if !ok {
		return 0, 0, 0, false
	}
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, 0, false
	}
	var good [3]bool
	first, good[0] = position(from)
	last, good[1] = position(to)
	total, good[2] = -1, size == "*"
	if !good[2] {
		total, good[2] = position(size)
	}
	ok = from != "" && to != "" && size != "" && good == [3]bool{true, true, true} && first <= last && (total < 0 || last < total)
	return first, last, total, ok
}

// Cut returns the part of the answer's body.
func (p Part) Cut(body io.Reader) io.Reader {
	return &rangeTrimmer{from: body, skip: p.skip, left: p.Length}
}

// rangeTrimmer passes on the middle of a stream and reads it to its end, so that the
// connection can be used again.
type rangeTrimmer struct {
	from       io.Reader
	skip, left int64
}

func (c *rangeTrimmer) Read(p []byte) (int, error) {
	for {
		n, err := c.from.Read(p)
		from := min(c.skip, int64(n))
		c.skip -= from
		part := p[from:n]
		part = part[:min(int64(len(part)), c.left)]
		c.left -= int64(len(part))
		if len(part) > 0 || err != nil {
			if err == io.EOF && c.left > 0 {
				err = io.ErrUnexpectedEOF
			}
			return copy(p, part), err
		}
	}
}
