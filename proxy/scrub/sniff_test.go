package scrub

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// TestUnsure searches what begins as text, however it comes, and keeps its error.
func TestUnsure(t *testing.T) {
	n := New("needle-in-hay")
	stars := strings.Repeat("*", len("needle-in-hay"))
	for text, want := range map[string]string{
		"": "", "a needle-in-hay": "a " + stars, "needle-in-hay": stars, "\xff\xfea needle-in-hay": "\xff\xfea " + stars,
		"\x00needle-in-hay": "\x00needle-in-hay", "\x1f\x8bneedle-in-hay": "\x1f\x8bneedle-in-hay",
		"\t\r\n\x1b\fneedle-in-hay" + strings.Repeat("x", 600) + "\x00": "\t\r\n\x1b\f" + stars + strings.Repeat("x", 600) + "\x00",
	} {
		for name, pieces := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "with its error": iotest.DataErrReader, "in halves": iotest.HalfReader,
		} {
			r := NewSniffingReader(pieces(strings.NewReader(text)), Search{Patterns: n, Found: blankOut, LengthKnown: true})
			if got, err := readBy(r, 1<<10); err != nil || string(got) != want {
				t.Errorf("%s: %q became %q, %v", name, text, got, err)
			}
		}
	}
	broken := NewSniffingReader(iotest.ErrReader(io.ErrUnexpectedEOF), Search{Patterns: n, Found: blankOut})
	if _, err := io.ReadAll(broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}
