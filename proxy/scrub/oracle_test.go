package scrub

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// delivery is what a read returned, and how long after the write it did.
type delivery struct {
	text  string
	after time.Duration
}

// deliveries writes some pieces, each a second after the last one, and returns
// how they come out. It has to run in a bubble, where time stands still.
func deliveries(open func(io.Reader) io.Reader, pieces ...string) (all []delivery) {
	in, out := io.Pipe()
	go func() {
		for _, piece := range pieces {
			time.Sleep(time.Second)
			_, _ = io.WriteString(out, piece)
		}
		time.Sleep(time.Second)
		_ = out.Close()
	}()
	begin, r, b := time.Now(), open(in), make([]byte, 1<<15)
	for {
		n, err := r.Read(b)
		if n > 0 {
			all = append(all, delivery{string(b[:n]), time.Since(begin)})
		}
		if err != nil {
			return all
		}
	}
}

func text(all []delivery) string {
	var b strings.Builder
	for _, d := range all {
		b.WriteString(d.text)
	}
	return b.String()
}

// shape is how much came when.
func shape(all []delivery) string {
	var b strings.Builder
	for _, d := range all {
		fmt.Fprintf(&b, "%d bytes after %s; ", len(d.text), d.after)
	}
	return b.String()
}

// TestBeginningsAreNotTold tries every beginning of a secret and of what is
// injected with it: a right guess is treated as a wrong one is, to the byte and
// to the time, so that nobody who has a text come back learns the secret.
func TestBeginningsAreNotTold(t *testing.T) {
	const token = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
	n := New("Bearer "+token, token)
	for name, test := range map[string]struct {
		open func(io.Reader) io.Reader
		wrap func(string) []string
	}{
		"text":  {plainReader(n, 0), func(s string) []string { return []string{"\n" + s, " more\n"} }},
		"talk":  {plainReader(n, 5), func(s string) []string { return []string{s, "\r\n"} }},
		"split": {plainReader(n, 0), func(s string) []string { return []string{s[:len(s)/2], s[len(s)/2:], "."} }},
		"end":   {plainReader(n, 0), func(s string) []string { return []string{s} }},
		"known": {knownReader(n), func(s string) []string {
			return []string{"\n" + s, " mo", "re\nand " + s[:len(s)/2], s[len(s)/2:], "."}
		}},
		"frames": {
			func(r io.Reader) io.Reader { return NewWebSocket(r, Search{Patterns: n, Found: blankOut}) },
			func(s string) []string {
				frame := string(webSocket(0x81, nil, "a "+s+" b"))
				return []string{frame[:len(frame)-2], frame[len(frame)-2:], string(webSocket(0x81, nil, s))}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, secret := range []string{"Bearer " + token, token} {
				for size := 1; size < len(secret)-5; size++ { // nearly all of it has to be known: see clipped
					guess, other := secret[:size], alike(secret[:size])
					var right, wrong []delivery
					synctest.Test(t, func(*testing.T) { right = deliveries(test.open, test.wrap(guess)...) })
					synctest.Test(t, func(*testing.T) { wrong = deliveries(test.open, test.wrap(other)...) })
					if shape(right) != shape(wrong) || text(right) != strings.ReplaceAll(text(wrong), other, guess) {
						t.Fatalf("%q is treated as %v, another text as %v", guess, right, wrong)
					}
				}
			}
		})
	}
}

// knownReader searches a stream that is known to be as long as it is.
func knownReader(n *Patterns) func(io.Reader) io.Reader {
	return func(r io.Reader) io.Reader {
		return NewReader(r, Search{Patterns: n, Found: blankOut, LengthKnown: true})
	}
}

// TestKnownLength waits for what is still to come, however long: a line passes
// when it is whole, and a secret that comes in pieces with pauses never does.
func TestKnownLength(t *testing.T) {
	const token = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
	n := New("Bearer "+token, token)
	for size := 1; size < len(token); size++ {
		synctest.Test(t, func(t *testing.T) {
			got := deliveries(knownReader(n), "a\nb "+token[:size], token[size:], " c\nd", " e")
			want := []delivery{
				{"a\n", time.Second}, {"b " + strings.Repeat("*", len(token)) + " c\n", 3 * time.Second}, {"d e", 5 * time.Second},
			}
			if !slices.Equal(got, want) {
				t.Errorf("cut at %d: %v", size, got)
			}
		})
	}
}

// TestRoomsAreUsedAgain has readers of one credential take turns.
func TestRoomsAreUsedAgain(t *testing.T) {
	n := New("needle-in-hay")
	for i := range 10 {
		text := strings.Repeat("a needle-in-hay ", i*1000)
		got, err := io.ReadAll(knownReader(n)(strings.NewReader(text)))
		if want := strings.ReplaceAll(text, "needle-in-hay", "*************"); err != nil || string(got) != want {
			t.Fatalf("got %d bytes of %d, %v", len(got), len(want), err)
		}
	}
}

// alike is another text of the same kinds of characters: what is held back may
// depend on what kind of text it is.
func alike(text string) string {
	return strings.Map(func(r rune) rune {
		if alphanumeric(r) {
			return 'Z'
		}
		return r
	}, text)
}

func plainReader(n *Patterns, short int) func(io.Reader) io.Reader {
	return func(r io.Reader) io.Reader {
		return NewReader(r, Search{Patterns: n, Found: blankOut, PassShort: short})
	}
}

// TestCutAnswers shows neither the end of a line that broke off nor nearly all
// of a secret.
func TestCutAnswers(t *testing.T) {
	const token = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
	n := New("Bearer "+token, token)
	clipped := "bad key: " + token[:len(token)-1]
	stars := "bad key: " + strings.Repeat("*", len(token)-1)
	broken := errors.New("broken")
	got, err := io.ReadAll(plainReader(n, 0)(strings.NewReader(clipped)))
	if err != nil || string(got) != stars {
		t.Errorf("got %q, %v", got, err)
	}
	got, err = io.ReadAll(plainReader(n, 0)(io.MultiReader(strings.NewReader("a\n"+clipped), iotest.ErrReader(broken))))
	if !errors.Is(err, broken) || string(got) != "a\n" {
		t.Errorf("got %q, %v", got, err)
	}
	whole := string(webSocket(0x81, nil, clipped))
	s := Search{Patterns: n, Found: blankOut}
	got, err = io.ReadAll(NewWebSocket(strings.NewReader(whole), s))
	if err != nil || string(got) != whole[:2]+stars {
		t.Errorf("got %q, %v", got, err)
	}
	got, err = io.ReadAll(NewWebSocket(io.MultiReader(strings.NewReader(whole[:len(whole)-1]), iotest.ErrReader(broken)), s))
	if !errors.Is(err, broken) || len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
}
