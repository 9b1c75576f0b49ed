package testenv_test

import (
	"os"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestEndWithoutDelay keeps what GORACE already has.
func TestEndWithoutDelay(t *testing.T) {
	for given, want := range map[string]string{
		"":                   "atexit_sleep_ms=0",
		"halt_on_error=1":    "halt_on_error=1 atexit_sleep_ms=0",
		"atexit_sleep_ms=50": "atexit_sleep_ms=50",
	} {
		t.Setenv("GORACE", given)
		testenv.EndWithoutDelay()
		if got := os.Getenv("GORACE"); got != want {
			t.Errorf("GORACE %q became %q, want %q", given, got, want)
		}
	}
}
