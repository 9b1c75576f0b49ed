package scrub

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// compress writes text in a coding.
func compress(t *testing.T, coding string, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch coding {
	case "gzip", "x-gzip":
		w = gzip.NewWriter(&out)
	case "deflate":
		w = zlib.NewWriter(&out)
	case "raw deflate":
		w, err = flate.NewWriter(&out, 6)
	case "br":
		w = brotli.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestDecode(t *testing.T) {
	text := []byte(strings.Repeat("a line of text that is somewhat longer\n", 5000))
	for header, codings := range map[string][]string{
		"gzip": {"gzip"}, "X-GZIP": {"x-gzip"}, "deflate": {"deflate"}, "br": {"br"}, "zstd": {"zstd"},
		"deflate, identity": {"raw deflate"}, "gzip, br": {"gzip", "br"}, " zstd ,gzip,, identity": {"zstd", "gzip"}, "": nil, "identity": nil,
	} {
		body := text
		for _, coding := range codings {
			body = compress(t, coding, body)
		}
		if Encoded(header) != (len(codings) > 0) {
			t.Errorf("%q: encoded is %v", header, Encoded(header))
		}
		for _, in := range []io.Reader{bytes.NewReader(body), iotest.OneByteReader(bytes.NewReader(body))} {
			r, err := Decode(header, in)
			if err != nil {
				t.Errorf("%q: %v", header, err)
				continue
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%q: %d bytes, %v", header, len(got), err)
			}
		}
		r, err := Decode(header, strings.NewReader(""))
		if err != nil {
			t.Errorf("%q: %v", header, err)
		} else if got, err := io.ReadAll(r); err != nil || len(got) > 0 {
			t.Errorf("%q without a body: %q, %v", header, got, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, header := range []string{"compress", "gzip, dcb", "br;q=1", "gzip,gzip,gzip,gzip,gzip"} {
		if _, err := Decode(header, strings.NewReader("")); !errors.Is(err, ErrCoding) {
			t.Errorf("%q: %v", header, err)
		}
	}
	for _, coding := range []string{"gzip", "deflate", "br", "zstd"} {
		r, err := Decode(coding, strings.NewReader("this is not compressed, whatever they say"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err == nil {
			t.Errorf("%s: read %q", coding, got)
		}
	}
}

func TestDecodeEndsBombs(t *testing.T) {
	zeros := make([]byte, 64<<20)
	for header, codings := range map[string][]string{"gzip": {"gzip"}, "br": {"br"}, "zstd": {"zstd"}, "gzip, gzip": {"gzip", "gzip"}} {
		body := zeros
		for _, coding := range codings {
			body = compress(t, coding, body)
		}
		r, err := Decode(header, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if !errors.Is(err, ErrBomb) || n > 16<<20 {
			t.Errorf("%s: %d bytes, %v", header, n, err)
		}
	}
}

func TestWindow(t *testing.T) {
	text := "0123456789abcdefghij"
	for _, test := range []struct {
		asked, wide, got  string // got: the Content-Range of the answer
		cut, contentRange string
		err               bool
	}{
		{asked: "bytes=5-9", wide: "bytes=2-12", got: "bytes 2-12/20", cut: "56789", contentRange: "bytes 5-9/20"},
		{asked: "bytes=1-1", wide: "bytes=0-4", got: "bytes 0-4/20", cut: "1", contentRange: "bytes 1-1/20"},
		{asked: "bytes=0-", wide: "bytes=0-", got: "bytes 0-19/20", cut: text, contentRange: "bytes 0-19/20"},
		{asked: "bytes=18-", wide: "bytes=15-", got: "bytes 15-19/*", cut: "ij", contentRange: "bytes 18-19/*"},
		{asked: "bytes=17-99", wide: "bytes=14-102", got: "bytes 14-19/20", cut: "hij", contentRange: "bytes 17-19/20"},
		{asked: "bytes=-2", wide: "bytes=-5", got: "bytes 15-19/20", cut: "ij", contentRange: "bytes 18-19/20"},
		{asked: "bytes=-99", wide: "bytes=-102", got: "bytes 0-19/20", cut: text, contentRange: "bytes 0-19/20"},
		{asked: "bytes=21-30", wide: "bytes=18-33", got: "bytes 18-19/20", contentRange: "bytes */20"},
		{asked: "bytes=-2", wide: "bytes=-5", got: "bytes 15-19/*", err: true},
		{asked: "bytes=5-9", wide: "bytes=2-12", got: "bytes 6-12/20", err: true},
		{asked: "bytes=5-9", wide: "bytes=2-12", got: "bytes 12-2/20", err: true},
		{asked: "bytes=5-9", wide: "bytes=2-12", got: "bytes 2-20/20", err: true},
		{asked: "bytes=5-9", wide: "bytes=2-12", got: "", err: true},
		{asked: "bytes=5-9", wide: "bytes=2-12", got: "lines 2-12/20", err: true},
	} {
		w := NewWidenedRange(test.asked, 3)
		if w == nil || w.Header() != test.wide {
			t.Errorf("%s: %v", test.asked, w)
			continue
		}
		part, err := w.Part(test.got)
		if (err != nil) != test.err || err != nil && !errors.Is(err, ErrRange) || part.ContentRange != test.contentRange {
			t.Errorf("%s: %+v, %v", test.asked, part, err)
			continue
		}
		if test.err || part.Length == 0 {
			continue
		}
		first, last, _, _ := parseContentRange(test.got)
		for _, read := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.DataErrReader} {
			got, err := io.ReadAll(part.Cut(read(strings.NewReader(text[first : last+1]))))
			if err != nil || string(got) != test.cut || int64(len(got)) != part.Length {
				t.Errorf("%s: cut %q, %v", test.asked, got, err)
			}
		}
	}
	for _, other := range []string{
		"", "bytes", "bytes=", "bytes=-", "bytes=-0", "bytes=a-b", "bytes=5-4", "bytes=1-2,4-5", "lines=1-2", "bytes=+1-2", "bytes=1-9999999999999999999",
	} {
		if w := NewWidenedRange(other, 3); w != nil {
			t.Errorf("%q: %+v", other, w)
		}
	}
}

// A cut answer is not passed on as a whole one.
func TestCutMissesTheEnd(t *testing.T) {
	part, err := NewWidenedRange("bytes=5-9", 3).Part("bytes 2-12/20")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(part.Cut(strings.NewReader("23456"))); !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "56" {
		t.Errorf("got %q, %v", got, err)
	}
}
