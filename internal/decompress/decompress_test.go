package decompress_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/chaperone-proxy/chaperone/internal/decompress"
)

// TestReader reads content as it is, and from each kind of stream.
func TestReader(t *testing.T) {
	for _, content := range []string{"", "a", "abc", strings.Repeat("a line\n", 100_000)} {
		var gz, zst bytes.Buffer
		g := gzip.NewWriter(&gz)
		z, err := zstd.NewWriter(&zst)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []io.WriteCloser{g, z} {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, data := range []string{content, gz.String(), zst.String()} {
			if content == "" && data == zst.String() {
				continue // zstd writes no frame for no content
			}
			in, err := decompress.Reader(strings.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(in)
			if err != nil || string(got) != content {
				t.Errorf("got %d bytes and %v, want %d", len(got), err, len(content))
			}
			if len(data) > 20 && data != content {
				in, err := decompress.Reader(strings.NewReader(data[:len(data)-4]))
				if err == nil {
					_, err = io.ReadAll(in)
				}
				if err == nil {
					t.Errorf("a truncated stream of %d bytes is read without an error", len(data))
				}
			}
		}
	}
}
