// Package decompress reads files that may be compressed.
package decompress

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory of a zstd stream, in bytes. It is above the window of every
// level of compression; only --long makes larger ones.
const maxWindow = 32 << 20

// Reader returns the content of in, decompressed if it begins as a stream of gzip
// (RFC 1952) or zstd (RFC 8878) does. The memory that it takes is bounded, and does not
// depend on the content's length.
func Reader(in io.Reader) (io.Reader, error) {
	magic := make([]byte, 4)
	n, err := io.ReadFull(in, magic)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	magic = magic[:n]
	whole := io.MultiReader(bytes.NewReader(magic), in)
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		return gzip.NewReader(whole)
	case string(magic) == "\x28\xb5\x2f\xfd":
		// Without concurrency the decoder has no goroutine that must be ended.
		return zstd.NewReader(whole, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	}
	return whole, nil
}

// TrimName returns the name that a compressed file had before it was compressed.
func TrimName(name string) string {
	return strings.TrimSuffix(strings.TrimSuffix(name, ".gz"), ".zst")
}
