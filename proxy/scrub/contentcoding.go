package scrub

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// Bounds of what is decompressed: an answer of a few kilobytes can otherwise
// stand for terabytes.
const (
	maxRatio    = 1000    // of decompressed to compressed bytes,
	ratioExempt = 1 << 20 // beyond so many decompressed bytes
	maxDecoded  = 4 << 30 // bytes in all
	maxWindow   = 8 << 20 // bytes that zstd may look back (RFC 9659 allows no more on the web)
	maxCodings  = 4       // on top of one another
)

// The memory of a coding's decoder, in bytes: its window, the tables of its codes and
// decoded bytes that were not forwarded yet.
const (
	inflateSize = 64 << 10
	brotliSize  = 16<<20 + 1<<20      // of the largest window (RFC 7932, section 9.1)
	zstdSize    = 2*maxWindow + 2<<20 // the window slides in a buffer twice as large
)

// DecoderSize returns how many bytes the decoders of a Content-Encoding hold at
// most, 0 for none.
func DecoderSize(header string) int64 {
	var n int64
	for _, coding := range codingsIn(header) {
		switch coding {
		case "br":
			n += brotliSize
		case "zstd":
			n += zstdSize
		default:
			n += inflateSize
		}
	}
	return n
}

// Errors of bodies that cannot be searched.
var (
	// ErrCoding is for a body in an unknown coding.
	ErrCoding = errors.New("an unknown content coding")
	// ErrBomb is for a body that exceeds the limit when it is decompressed.
	ErrBomb = errors.New("a compressed body exceeds the limit when it is decompressed")
)

// Decode returns a body without its content codings, of which header is the
// Content-Encoding as it was sent (RFC 9110, section 8.4): gzip, deflate, br
// and zstd, also several. The error is [ErrCoding] for any other. Reading
// yields [ErrBomb] when the body grows by more than a factor of 1,000 or to
// more than 4 GiB. Until it is not used any more it holds [DecoderSize] bytes.
func Decode(header string, body io.Reader) (io.Reader, error) {
	codings := codingsIn(header)
	if len(codings) == 0 {
		return body, nil
	}
	if len(codings) > maxCodings {
		return nil, fmt.Errorf("decode body: %w: %d on top of one another", ErrCoding, len(codings))
	}
	in := &countingReader{from: body}
	decoded := io.Reader(in)
	for _, coding := range slices.Backward(codings) { // the last was applied last
		open := openerOf(coding)
		if open == nil {
			return nil, fmt.Errorf("decode body: %w %q", ErrCoding, shorten(coding))
		}
		decoded = &lazyDecoder{from: bufio.NewReader(decoded), open: open}
	}
	return &boundedReader{from: decoded, in: in}, nil
}

// codingsIn returns the content codings of a header, without identity.
func codingsIn(header string) []string {
	var codings []string
	for coding := range strings.SplitSeq(header, ",") {
		coding = strings.ToLower(strings.TrimSpace(coding))
		if coding != "" && coding != "identity" {
			codings = append(codings, coding)
		}
	}
	return codings
}

// Codings returns how many content codings a header names, but for identity.
func Codings(header string) int { return len(codingsIn(header)) }

// Encoded reports whether a Content-Encoding names any coding but identity.
func Encoded(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			return true
		}
	}
	return false
}

func shorten(s string) string { return s[:min(len(s), 32)] }

// openerOf returns what opens a coding (IANA, HTTP Content Coding Registry), nil
// for one that is not known.
func openerOf(coding string) func(*bufio.Reader) (io.Reader, error) {
	switch coding {
	case "gzip", "x-gzip":
		return func(r *bufio.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	case "deflate":
		return inflate
	case "br":
		return func(r *bufio.Reader) (io.Reader, error) { return brotli.NewReader(r), nil }
	case "zstd":
		return func(r *bufio.Reader) (io.Reader, error) {
			// One at a time: without goroutines, which nobody would end.
			return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		}
	}
	return nil
}

// inflate opens deflate, which is the zlib format (RFC 9110, section 8.4.1.2)
// and which some servers send without it.
func inflate(r *bufio.Reader) (io.Reader, error) {
	head, err := r.Peek(2)
	if err == nil && head[0]&0x0f == 8 && (uint(head[0])<<8|uint(head[1]))%31 == 0 { // RFC 1950, section 2.2
		return zlib.NewReader(r)
	}
	return flate.NewReader(r), nil
}

// lazyDecoder opens a decoder at the first byte: an answer to HEAD names a coding and
// has none.
type lazyDecoder struct {
	from    *bufio.Reader
	open    func(*bufio.Reader) (io.Reader, error)
	decoder io.Reader
	err     error
}

func (l *lazyDecoder) Read(p []byte) (int, error) {
	if l.err == nil && l.decoder == nil {
		if _, l.err = l.from.Peek(1); l.err == nil {
			l.decoder, l.err = l.open(l.from)
		}
	}
	if l.err != nil {
		return 0, l.err
	}
	return l.decoder.Read(p)
}

// countingReader counts what is read.
type countingReader struct {
	from io.Reader
	n    int64
}

func (m *countingReader) Read(p []byte) (int, error) {
	n, err := m.from.Read(p)
	m.n += int64(n)
	return n, err
}

// boundedReader ends a body that grows beyond the bounds.
type boundedReader struct {
	from io.Reader
	in   *countingReader
	n    int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.n += int64(n)
	if b.n > maxDecoded || b.n > ratioExempt && b.n/maxRatio > b.in.n {
		return 0, ErrBomb
	}
	return n, err
}
