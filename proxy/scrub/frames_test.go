package scrub

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// webSocket makes a frame; mask nil sends it as a server does.
func webSocket(first byte, mask []byte, payload string) []byte {
	b := []byte{first}
	bit := byte(0)
	if mask != nil {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, bit|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, bit|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, bit|127), uint64(n))
	}
	b = append(b, mask...)
	for i := range len(payload) {
		c := payload[i]
		if mask != nil {
			c ^= mask[i%4]
		}
		b = append(b, c)
	}
	return b
}

func message(flags byte, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(payload))), payload...)
}

func TestWebSocketFrames(t *testing.T) {
	mask := []byte{1, 0xfe, 3, 0x80}
	filler := strings.Repeat("filler ", 5_000) // twice, it needs a length of 64 bits
	for _, m := range [][]byte{nil, mask} {
		var in, want bytes.Buffer
		for _, pattern := range []string{"%s", "a %s b", strings.Repeat("x", 200) + "%s", filler + "%s" + filler, "", "s3cr3t-", "value"} {
			text := strings.ReplaceAll(pattern, "%s", secret)
			clean := strings.ReplaceAll(pattern, "%s", strings.Repeat("*", len(secret)))
			in.Write(webSocket(0x81, m, text))
			want.Write(webSocket(0x81, m, clean))
		}
		for name, pieces := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "in halves": iotest.HalfReader,
		} {
			for _, size := range []int{1, 1000, 1 << 16} {
				got, err := readBy(NewWebSocket(pieces(bytes.NewReader(in.Bytes())), Search{Patterns: New(secret), Found: blankOut}), size)
				if err != nil || !bytes.Equal(got, want.Bytes()) {
					t.Errorf("%s, by %d, masked %v: %d bytes, want %d, %v", name, size, m != nil, len(got), want.Len(), err)
				}
			}
		}
	}
	for name, in := range map[string][]byte{
		"compressed": webSocket(0xc1, nil, "hello"), "length": {0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0, 1},
	} {
		if _, err := io.ReadAll(NewWebSocket(bytes.NewReader(in), Search{Patterns: New(secret), Found: blankOut})); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGuardsPassNothing ends streams at a secret.
func TestGuardsPassNothing(t *testing.T) {
	stop := errors.New("stop")
	s := Search{Patterns: New(secret), Found: func([]byte) error { return stop }}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	fmt.Fprint(w, secret)
	w.Close()
	guard := func(r io.Reader) io.Reader {
		g, err := NewGRPCGuard(r, s, "gzip")
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	for name, test := range map[string]struct {
		open func(io.Reader) io.Reader
		in   string
		want string
	}{
		"text":      {func(r io.Reader) io.Reader { return NewReader(r, s) }, "before\n" + secret + " after", "before\n"},
		"WebSocket": {func(r io.Reader) io.Reader { return NewWebSocket(r, s) }, string(webSocket(0x82, []byte("mask"), "hi")) + string(webSocket(0x82, []byte("mask"), secret)), ""},
		"gRPC":      {guard, string(message(0, []byte(secret))), ""},
		"gzip":      {guard, string(message(1, zipped.Bytes())), ""},
	} {
		got, err := io.ReadAll(test.open(iotest.OneByteReader(strings.NewReader(test.in))))
		if !errors.Is(err, stop) || strings.Contains(string(got), secret[:2]) || !strings.HasPrefix(string(got), test.want) {
			t.Errorf("%s: passed %q, %v", name, got, err)
		}
	}
}

func TestGRPCMessages(t *testing.T) {
	zip := func(text string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		fmt.Fprint(w, text)
		w.Close()
		return b.Bytes()
	}
	stars := strings.Repeat("*", len(secret))
	in := slicesOf(message(0, []byte("a "+secret)), message(1, zip("b "+secret)), message(0, nil), message(0x80, []byte("grpc-status: 0")))
	want := slicesOf(message(0, []byte("a "+stars)), message(0, []byte("b "+stars)), message(0, nil), message(0x80, []byte("grpc-status: 0")))
	for _, size := range []int{1, 100, 1 << 15} {
		r, err := NewGRPC(iotest.HalfReader(bytes.NewReader(in)), Search{Patterns: New(secret), Found: blankOut}, "gzip")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readBy(r, size); err != nil || !bytes.Equal(got, want) {
			t.Errorf("by %d: %q, %v", size, got, err)
		}
	}
	if _, err := NewGRPC(nil, Search{}, "snappy"); !errors.Is(err, ErrCoding) {
		t.Errorf("unknown encoding: %v", err)
	}
	for name, test := range map[string]struct {
		in       []byte
		encoding string
		want     error
	}{
		"no encoding": {message(1, zip("x")), "", ErrFrame},
		"too long":    {[]byte{1, 0xff, 0, 0, 0}, "gzip", ErrFrame},
		"bomb":        {message(1, zip(strings.Repeat("x", MaxMessage+1))), "gzip", ErrBomb},
		"cut short":   {message(1, zip("x"))[:12], "gzip", io.ErrUnexpectedEOF},
	} {
		r, err := NewGRPC(bytes.NewReader(test.in), Search{Patterns: New(secret), Found: blankOut}, test.encoding)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFalseFrames searches streams that are declared as gRPC or a WebSocket and are not.
func TestFalseFrames(t *testing.T) {
	const token = "hvs_canary_5f3a9c77"
	s := Search{Patterns: New(token), Found: blankOut}
	grpc := func(r io.Reader) io.Reader { g, _ := NewGRPC(r, s, "gzip"); return g }
	socket := func(r io.Reader) io.Reader { return NewWebSocket(r, s) }
	for _, test := range []struct {
		open func(io.Reader) io.Reader
		text string
		want error
	}{
		{grpc, token, ErrFrame},
		{grpc, token[:3], ErrFrame},
		{grpc, string(message(0, nil)) + token, ErrFrame},
		{grpc, "\x00" + token, nil},
		{grpc, "\x80\x00" + token, nil},
		{grpc, "\x00\x00\x00" + token, nil},
		{grpc, "\x01" + token, ErrFrame},
		{socket, "\x81\x7f\x00" + token, nil},
		{socket, "\x81\x7e" + token, nil},
	} {
		for name, pieces := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
		} {
			got, err := io.ReadAll(test.open(pieces(strings.NewReader(test.text))))
			if !errors.Is(err, test.want) || strings.Contains(string(got), token[4:8]) {
				t.Errorf("%q, %s: passed %q, %v", test.text, name, got, err)
			}
		}
	}
}

// TestAnnouncedLengths makes no room for what does not come.
func TestAnnouncedLengths(t *testing.T) {
	s := Search{Patterns: New(secret), Found: blankOut}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, _ := NewGRPC(strings.NewReader("\x01\x00\x3f\xff\xff"), s, "gzip")
	if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if size := after.TotalAlloc - before.TotalAlloc; size > 1<<20 {
		t.Errorf("5 bytes make room for %d", size)
	}
}

func slicesOf(all ...[]byte) []byte { return bytes.Join(all, nil) }

// TestFramesPassAtTheirEnd holds nothing of a message back that is complete.
func TestFramesPassAtTheirEnd(t *testing.T) {
	text := "now " + secret[:3] // may be the beginning
	for name, test := range map[string]struct {
		open  func(io.Reader) io.Reader
		frame []byte
	}{
		"WebSocket": {func(r io.Reader) io.Reader { return NewWebSocket(r, Search{Patterns: New(secret), Found: blankOut}) }, webSocket(0x81, nil, text)},
		"gRPC": {func(r io.Reader) io.Reader {
			g, _ := NewGRPC(r, Search{Patterns: New(secret), Found: blankOut}, "")
			return g
		}, message(0, []byte(text))},
	} {
		in, out := io.Pipe()
		timer := time.AfterFunc(5*time.Second, func() { in.CloseWithError(errors.New("it was held back")) })
		go func() { _, _ = out.Write(test.frame) }()
		got := make([]byte, len(test.frame))
		if _, err := io.ReadFull(test.open(in), got); err != nil || !bytes.Equal(got, test.frame) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		timer.Stop()
		in.Close()
	}
}

// TestConversations forwards held-back bytes after a while, and still finds the rest
// of a secret.
func TestConversations(t *testing.T) {
	stop := errors.New("stop")
	for _, short := range []int{0, 5} {
		in, out := io.Pipe()
		defer in.Close()
		r := NewReader(in, Search{Patterns: New(secret), Found: func([]byte) error { return stop }, PassShort: short})
		b := make([]byte, 1<<15)
		for _, piece := range []string{"hello " + secret[:1], secret[1:3], secret[3:9]} {
			go fmt.Fprint(out, piece)
			if n, err := r.Read(b); err != nil || string(b[:n]) != piece {
				t.Fatalf("got %q, %v, want %q", b[:n], err, piece)
			}
		}
		go fmt.Fprint(out, secret[9:])
		if n, err := r.Read(b); !errors.Is(err, stop) {
			t.Errorf("got %q, %v", b[:n], err)
		}
	}
}
