package printable_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                   "plain",
		"größe 漢字":                "größe 漢字",
		"a\nb\r\tc":               `a\u000ab\u000d\u0009c`,
		"\x1b[2J\x1b]0;owned\x07": `\u001b[2J\u001b]0;owned\u0007`,
		"\u009b2J\u0085":          `\u009b2J\u0085`,
		"\u202eevil\u2066":        `\u202eevil\u2066`,
		"\xff\x9b":                `\xff\x9b`,
		"\u2028\ufeff\u00a0":      `\u2028\ufeff\u00a0`,
		"\U000e0001":              `\U000e0001`,
		"\x00\x7f":                `\u0000\u007f`,
	} {
		if got := printable.Text(in); got != want {
			t.Errorf("%q is shown as %s, not %s", in, got, want)
		}
	}
}

func TestClip(t *testing.T) {
	for in, want := range map[string]string{"short": "short", "123456789": "12345678...", "1234567ü": "1234567..."} {
		if got := printable.Clip(in, 8); got != want {
			t.Errorf("%q is shown as %s, not %s", in, got, want)
		}
	}
}

// hostile makes text of characters and bytes that harm more often than not.
func hostile(r *rand.Rand) string {
	parts := []string{
		"\x1b[2J", "\n", "\r", "\u009b", "\u202e", "\xff", "\xc3", "<3>", "\x00", "a", "漢", "\t", "\u2028",
		"chaperone: FORGED", "\x7f", "\xf0\x9f", "\U000e0001", string(rune(r.IntN(0x300))), string([]byte{byte(r.IntN(256))}),
	}
	var text strings.Builder
	for range r.IntN(20) {
		text.WriteString(parts[r.IntN(len(parts))])
	}
	return text.String()
}

// No text has a character that controls anything, and a text without one stays.
func TestTextPrints(t *testing.T) {
	for seed := range uint64(20_000) {
		in := hostile(rand.New(rand.NewPCG(seed, 1)))
		out := printable.Text(in)
		for _, r := range out {
			if !unicode.IsPrint(r) || r == utf8.RuneError && !strings.ContainsRune(in, r) {
				t.Fatalf("%q is shown as %q", in, out)
			}
		}
		if again := printable.Text(out); again != out {
			t.Fatalf("%q is shown as %q the second time", out, again)
		}
		if long := printable.Clip(in, 20); len(long) > 6*20+3 {
			t.Fatalf("%q is clipped to %d bytes", in, len(long))
		}
	}
}

// JSON without a character that controls anything means the same, also behind a Writer.
func TestJSON(t *testing.T) {
	for seed := range uint64(20_000) {
		in := hostile(rand.New(rand.NewPCG(seed, 4)))
		document, err := json.MarshalIndent(map[string]string{in: in}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		var want, got map[string]string
		var out strings.Builder
		if _, err := printable.NewWriter(&out).Write(printable.JSON(document)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(json.Unmarshal(document, &want), json.Unmarshal([]byte(out.String()), &got)); err != nil || !maps.Equal(got, want) {
			t.Fatalf("%s is read back as %q, want %q: %v", out.String(), got, want, err)
		}
	}
}

// However a stream is cut into writes, it has the line ends that it was given,
// nothing else that controls, and no line that begins with a priority.
func TestWriterPrints(t *testing.T) {
	for seed := range uint64(20_000) {
		r := rand.New(rand.NewPCG(seed, 2))
		in := hostile(r) + "\n"
		var out, whole bytes.Buffer
		w := printable.NewWriter(&out)
		for rest := []byte(in); len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			if got, err := w.Write(rest[:n]); got != n || err != nil {
				t.Fatalf("wrote %d of %d: %v", got, n, err)
			}
			rest = rest[n:]
		}
		if _, err := printable.NewWriter(&whole).Write([]byte(in)); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if strings.Count(text, "\n") != strings.Count(in, "\n") {
			t.Fatalf("%q is passed on as %q", in, text)
		}
		for _, r := range text {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				t.Fatalf("%q is passed on as %q", in, text)
			}
		}
		for line := range strings.Lines(whole.String()) {
			if len(line) > 1 && line[0] == '<' && line[1] >= '0' && line[1] <= '9' {
				t.Fatalf("%q is passed on as %q", in, whole.String())
			}
		}
	}
}

// JSON stays JSON with the same value.
func TestWriterKeepsJSON(t *testing.T) {
	in := map[string]string{"path": "/\u009b\u202e\x7f\x1b\n漢"}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if _, err := printable.NewWriter(&text).Write(data); err != nil {
		t.Fatal(err)
	}
	var out map[string]string
	if err := json.Unmarshal(text.Bytes(), &out); err != nil || out["path"] != in["path"] {
		t.Errorf("%s is read as %q: %v", text.Bytes(), out, err)
	}
}
