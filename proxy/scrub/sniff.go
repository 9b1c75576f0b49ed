package scrub

import (
	"bytes"
	"io"
)

// sniffLength is how many bytes distinguish text from anything else.
const sniffLength = 512

// IsText reports whether a content begins as text: without any byte that text has
// not (https://mimesniff.spec.whatwg.org/#binary-data-byte), or with the mark of
// UTF-16. No format of pictures, sound or archives does.
func IsText(begin []byte) bool {
	if bytes.HasPrefix(begin, []byte("\xfe\xff")) || bytes.HasPrefix(begin, []byte("\xff\xfe")) {
		return true
	}
	for _, c := range begin[:min(len(begin), sniffLength)] {
		if c <= 0x08 || c == 0x0b || 0x0e <= c && c <= 0x1a || 0x1c <= c && c <= 0x1f {
			return false
		}
	}
	return true
}

// SniffingReader is a stream that is declared as other than text: it is searched if its
// first bytes are text. It does not wait for more bytes than arrive at once, so it adds
// no delay, and a stream that is not text passes unchanged.
type SniffingReader struct {
	from    io.Reader
	search  Search
	decided io.Reader // once its beginning has come
}

// NewSniffingReader returns what reads from r and searches it if it is text.
func NewSniffingReader(r io.Reader, s Search) *SniffingReader {
	return &SniffingReader{from: r, search: s}
}

// Read implements [io.Reader].
func (u *SniffingReader) Read(p []byte) (int, error) {
	for u.decided == nil {
		n, err := u.from.Read(p)
		switch {
		case n == 0:
			return 0, err
		case !IsText(p[:n]):
			u.decided = u.from
			return n, err
		}
		begin := bytes.NewReader(bytes.Clone(p[:n]))
		u.decided = NewReader(io.MultiReader(begin, &remainder{u.from, err}), u.search)
	}
	return u.decided.Read(p)
}

// remainder is what follows a read.
type remainder struct {
	from io.Reader
	err  error // of that read
}

func (r *remainder) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.from.Read(p)
}
