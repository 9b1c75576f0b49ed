package budget

import (
	"errors"
	"io"
	"net"
)

// Chunks grow from the first to the last of these sizes, in bytes.
const (
	firstChunk = 4 << 10
	lastChunk  = 256 << 10
)

// ReadAll reads a stream of up to most bytes to its end, and returns what reads it
// again, with its length. It makes room as bytes come, and never copies what has
// come into a larger room: what is held is little more than the stream is long.
// A stream that is longer is read one byte too far, and then length is most+1.
func ReadAll(r io.Reader, most int64) (chunks net.Buffers, length int64, err error) {
	r = io.LimitReader(r, most+1)
	for size := firstChunk; ; size = min(2*size, lastChunk) {
		chunk, n := make([]byte, size), 0
		for n < size && err == nil {
			var more int
			more, err = r.Read(chunk[n:])
			n += more
		}
		if n > 0 {
			chunks = append(chunks, chunk[:n])
			length += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return chunks, length, nil
		case err != nil:
			return nil, length, err
		}
	}
}
