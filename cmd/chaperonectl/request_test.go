package main

import (
	"io"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// TestAskGrant: a reviewer states which grant was read.
func TestAskGrant(t *testing.T) {
	const draft = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	short := draft[7:39]
	for answer, want := range map[string]bool{
		short + "\n": true, "sha256:" + strings.ToUpper(short) + "\n": true, draft + "\n": true, " " + short + "0123 ": true,
		short[:31] + "\n": false, "sha256:\n": false, "": false, "\n": false, "yes\n": false, "1" + short[1:] + "\n": false, draft + "0\n": false,
	} {
		var out strings.Builder
		c := &cli{stdin: strings.NewReader(answer), stderr: printable.NewWriter(&out)}
		got, err := c.askGrant()
		if ok := err == nil && governance.IsShortOf(draft, got); ok != want {
			t.Errorf("%q: %q, %v", answer, got, err)
		}
		if !strings.Contains(out.String(), "in the packet") {
			t.Errorf("asked %q", out.String())
		}
	}
	// Of so few digits two grants are soon found that share them.
	if c := 4 * governance.ShortDigest / 2; c < 64 {
		t.Errorf("2^%d attempts find two grants with the same digits, want 2^64 or more", c)
	}
	if isTerminal(strings.NewReader("")) || isTerminal(io.Reader(nil)) {
		t.Error("a reader is taken for a terminal")
	}
}
