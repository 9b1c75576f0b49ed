package scrub

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

const secret = `s3cr3t/K+y&"<é>:42`

func TestInnocentTextPasses(t *testing.T) {
	n := New(secret, "another-one")
	for _, text := range []string{"", "s3cr3t", "s3cr3t/K+y", "another-on", strings.Repeat("another-on ", 1000), "\x00\xff"} {
		b := []byte(text)
		if n.In(text) || n.Blank(b) || string(b) != text {
			t.Errorf("found something in %q", text)
		}
	}
}

func TestShortSecretsAreNotSearchedFor(t *testing.T) {
	if New() != nil || New("", "12345") != nil {
		t.Error("found patterns")
	}
	var none *Patterns
	if none.In("12345") || none.Blank([]byte("12345")) || none.Longest() != 0 {
		t.Error("got no match, want one")
	}
}

// Two secrets that overlap are both gone, to the last byte.
func TestOverlaps(t *testing.T) {
	n := New("abcdefgh", "fghijklm")
	b := []byte("--abcdefghijklm--")
	if !n.Blank(b) || string(b) != "--*************--" {
		t.Errorf("left %q", b)
	}
}

// The stream is searched alike however it comes in pieces.
func TestReader(t *testing.T) {
	n := New(secret)
	var text, want bytes.Buffer
	for name, program := range programs() {
		text.WriteString(name + "=" + program(secret) + "; ")
	}
	want.Write(text.Bytes())
	n.Blank(want.Bytes())
	for name, pieces := range map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
		"in halves": iotest.HalfReader, "with its error": iotest.DataErrReader,
	} {
		for _, size := range []int{1, 7, 64, 1 << 15} {
			found := 0
			search := Search{Patterns: n, LengthKnown: size%2 == 0, Found: func([]byte) error { found++; return nil }}
			var got []byte
			var err error
			synctest.Test(t, func(*testing.T) { // where nothing waits for a busy machine
				got, err = readBy(NewReader(pieces(bytes.NewReader(text.Bytes())), search), size)
			})
			if err != nil || !bytes.Equal(got, want.Bytes()) || found == 0 {
				at := 0
				for at < min(len(got), want.Len()) && got[at] == want.Bytes()[at] {
					at++
				}
				t.Errorf("%s, by %d: found %d, %v, %q instead of %q", name, size, found, err, got[max(0, at-400):], want.Bytes()[max(0, at-400):])
			}
		}
	}
}

func blankOut([]byte) error { return nil }

func readBy(r io.Reader, size int) (all []byte, err error) {
	b := make([]byte, size)
	for {
		n, err := r.Read(b)
		all = append(all, b[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// Whole lines, and so events, pass as they come, also after what was held back.
func TestReaderPassesLines(t *testing.T) {
	in, out := io.Pipe()
	defer in.Close()
	r := NewReader(in, Search{Patterns: New("needle-in-hay"), Found: blankOut})
	go fmt.Fprint(out, "data: 1\n\nnee")
	b := make([]byte, 1<<15)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "data: 1\n\n" {
		t.Fatalf("got %q, %v", b[:n], err)
	}
	go fmt.Fprint(out, "d\n\n")
	if got, err := io.ReadAll(io.LimitReader(r, 6)); err != nil || string(got) != "need\n\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("before s3cr3t-value after"), uint64(1), uint16(3))
	for _, program := range programs() {
		f.Add([]byte("before "+program("s3cr3t-value")+" and "+program("other/value+")), uint64(2), uint16(5))
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64, size uint16) {
		n := New("s3cr3t-value", "other/value+")
		want := bytes.Clone(text)
		n.Blank(want)
		for _, s := range n.findTruncated(text, nil) {
			copy(want[s.from:s.to], bytes.Repeat([]byte("*"), s.to-s.from))
		}
		if n.In(string(want)) {
			t.Fatalf("left a secret in %q", want)
		}
		for name, program := range programs() {
			if spelled := program("s3cr3t-value"); bytes.Contains(want, []byte(spelled)) {
				t.Fatalf("%s: left %q in %q", name, spelled, want)
			}
		}
		random := rand.New(rand.NewPCG(seed, 0))
		got, err := readBy(NewReader(&chunks{text, random}, Search{Patterns: n, Found: blankOut, LengthKnown: true}), int(size)%4096+1)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %q, want %q, %v", got, want, err)
		}
	})
}

type chunks struct {
	rest   []byte
	random *rand.Rand
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.rest[:1+c.random.IntN(len(c.rest))])
	c.rest = c.rest[n:]
	return n, nil
}

func BenchmarkBlank(b *testing.B) {
	n := New("ghp_0123456789abcdefghijABCDEFGHIJ012345")
	line := `{"id":12345,"name":"a plain name","url":"https://api.example.com/v1/items/12345?x=1","hash":"dGhpcyBpcyBiYXNlNjQgdGV4dA=="},`
	for name, size := range map[string]int{"2KiB": 2 << 10, "1MiB": 1 << 20} {
		text := []byte(strings.Repeat(line, size/len(line)+1)[:size])
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				n.Blank(text)
			}
		})
	}
}

// BenchmarkReader is what an answer of a known length costs.
func BenchmarkReader(b *testing.B) {
	n := New("ghp_0123456789abcdefghijABCDEFGHIJ012345")
	line := `{"id":12345,"name":"a plain name","url":"https://api.example.com/v1/items/12345?x=1","hash":"dGhpcyBpcyBiYXNlNjQgdGV4dA=="},`
	into := make([]byte, 32<<10)
	for name, size := range map[string]int{"2KiB": 2 << 10, "1MiB": 1 << 20} {
		text := strings.Repeat(line, size/len(line)+1)[:size]
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				r := NewReader(strings.NewReader(text), Search{Patterns: n, Found: blankOut, LengthKnown: true})
				for {
					if _, err := r.Read(into); err != nil {
						break
					}
				}
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		New("ghp_0123456789abcdefghijABCDEFGHIJ012345")
	}
}

// TestRuns finds what no encoder of text changes, and leaves what is not secret.
func TestRuns(t *testing.T) {
	const aws = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY=="
	const token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ3ZWF0aGVyIn0.c2lnbmF0dXJlLWNhbmFyeS0xMjM0NTY"
	for _, test := range []struct {
		secret, text string
		want         bool
	}{
		{aws, `wJalrXUtnFEMI/K7MDENG\u002BbPxRfiCYEXAMPLEKEY==`, true},
		{aws, `wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\u003d\u003d`, true},
		{aws, "wJalrXUtnFEMI/K7MDENG%2BbPxRfiCYEXAMPLEKEY%3D%3D", true},
		{aws, "wJalrXUtnFEMI%252FK7MDENG%252BbPxRfiCYEXAMPLEKEY%253D%253D", true},
		{aws, "<unknown>wJalrXUtnFEMI<slash>", true},
		{aws, strings.ToUpper(aws), true},
		{"pa/ss!wo=rd", "pa/ss%21wo%3Drd", true},
		{"pa/ss!wo=rd", "pa%2Fss!wo%3Drd", true},
		{"pa+ss'wo=rd", `pa\u002Bss\u0027wo=rd`, true},
		{"pa+ss'wo=rd", `pa+ss\u0027wo\u003drd`, true},
		{token, "the signature is c2lnbmF0dXJlLWNhbmFyeS0xMjM0NTY", true},
		{token, "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJvdGhlciJ9.b3RoZXI", false}, // the same header
		{"administrator:pa/ss/wo", "the administrator", false},
	} {
		if got := New(test.secret).In(test.text); got != test.want {
			t.Errorf("%q in %q: %v", test.secret, test.text, got)
		}
	}
}

// A secret that is longer than what is searched for at a time is blanked out to
// its last byte, and a search for it never panics.
func TestLongSecrets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	of := func(n int, alphabet string) string {
		runes, b := []rune(alphabet), make([]rune, n)
		for i := range b {
			b[i] = runes[random.IntN(len(runes))]
		}
		return string(b)
	}
	letters := func(n int) string {
		return of(n, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
	}
	var words []string
	for range 3000 {
		words = append(words, letters(6))
	}
	for name, secret := range map[string]string{
		"at the limit": letters(MaxSecret), "beyond it": letters(MaxSecret + 1), "a piece and a byte": letters(2*MaxSecret + 1),
		"100 KiB": letters(100 << 10), "words": strings.Join(words, " "), "two bytes a character": of(MaxSecret, "äöüéèêçñß"),
		"no letter": of(2*MaxSecret, `"{}[]():;,.?!`),
	} {
		n := New(secret, "another-one")
		if n.Longest() > MaxSecret {
			t.Errorf("%s: %d bytes are kept of a stream", name, n.Longest())
		}
		little, big := utf16Of(secret)
		for form, text := range map[string]string{"as it is": secret, "UTF-16": little, "UTF-16, big-endian": big} {
			got, err := io.ReadAll(NewReader(strings.NewReader("before "+text+" after"), Search{Patterns: n, LengthKnown: true, Found: blankOut}))
			if want := "before " + strings.Repeat("*", len(text)) + " after"; err != nil || string(got) != want {
				t.Errorf("%s, %s: %d bytes are left, %v", name, form, len(want)-strings.Count(string(got), "*"), err)
			}
		}
		if n.In(secret[:minRun-1] + "|" + secret[len(secret)-minRun+1:]) {
			t.Errorf("%s is found in a few bytes of it", name)
		}
	}
}

func FuzzNewNeverPanics(f *testing.F) {
	f.Add("abcdef", 1, []byte("abcdef"))
	f.Add(strings.Repeat("a", 100), 400, bytes.Repeat([]byte("a"), 99))
	f.Fuzz(func(t *testing.T, secret string, times int, text []byte) {
		if times < 0 || times > 1000 || len(secret)*times > 2*MaxSecret || len(text) > 1<<10 {
			t.Skip()
		}
		n := New(strings.Repeat(secret, times), secret)
		_ = n.InBytes(text)
		_, _ = io.Copy(io.Discard, NewReader(bytes.NewReader(text), Search{Patterns: n, LengthKnown: true, Found: blankOut}))
	})
}
