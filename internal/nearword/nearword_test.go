package nearword_test

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/nearword"
)

func TestSuggest(t *testing.T) {
	known := []string{"status", "revoke", "restore", "top", "decision"}
	for word, want := range map[string]string{
		"stauts": "status", "revok": "revoke", "RESTORE": "restore", "decisoin": "decision", "tpo": "top",
		"": "", "xyz": "", "unrelated": "", strings.Repeat("a", 1000): "",
	} {
		if got := nearword.Suggest(word, known); got != want {
			t.Errorf("Suggest(%.20q) = %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := nearword.Distance(c.a, c.b); got != c.want {
			t.Errorf("Distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
