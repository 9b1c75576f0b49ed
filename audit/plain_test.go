package audit

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// Eight bytes at a time are judged as they are one by one: each byte at each place,
// alone, beside bytes at the bounds, and among random ones.
func TestAllPlain(t *testing.T) {
	check := func(s []byte) {
		t.Helper()
		want := true
		for _, c := range s {
			want = want && isPlain(c)
		}
		if allPlain(string(s)) != want {
			t.Fatalf("allPlain(%q) = %t", s, !want)
		}
	}
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				s := []byte(strings.Repeat("a", length))
				s[at] = byte(c)
				check(s)
				for _, before := range []byte("\x00\x1f !\"#[\\]~\x7f\x80\xff") {
					if at > 0 {
						s[at-1] = before
						check(s)
					}
				}
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		s := make([]byte, 8)
		for i := range s {
			s[i] = byte(0x18 + random.IntN(0x70)) // mostly plain
		}
		check(s)
	}
}
