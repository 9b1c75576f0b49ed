package paint

import "testing"

// TestPlain returns text as it is where nobody looks at a terminal, as in tests.
func TestPlain(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	if got := Bold("a") + Green("b"); got != "ab" {
		t.Errorf("%q", got)
	}
}
