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
	for answer, want := range map[string]bool{
		"0123456789ab\n": true, "sha256:0123456789AB\n": true, draft + "\n": true, " 0123456789abcdef ": true,
		"0123456789a\n": false, "sha256:\n": false, "": false, "\n": false, "yes\n": false, "1123456789ab\n": false, draft + "0\n": false,
	} {
		var out strings.Builder
		c := &cli{stdin: strings.NewReader(answer), stderr: printable.NewWriter(&out)}
		got, err := c.askGrant(draft)
		if ok := err == nil && governance.IsShortOf(draft, got); ok != want {
			t.Errorf("%q: %q, %v", answer, got, err)
		}
		if !strings.Contains(out.String(), draft) {
			t.Errorf("asked %q", out.String())
		}
	}
	if isTerminal(strings.NewReader("")) || isTerminal(io.Reader(nil)) {
		t.Error("a reader is taken for a terminal")
	}
}
