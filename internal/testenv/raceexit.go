package testenv

import (
	"os"
	"strings"
)

// EndWithoutDelay has the processes that tests start end at once where they have the
// race detector: it holds each one for a second at its exit otherwise, for races of
// other threads (atexit_sleep_ms, https://go.dev/doc/articles/race_detector). A value
// that GORACE already has stays. TestMain calls it; the tests' own process has read
// GORACE by then.
func EndWithoutDelay() {
	options := os.Getenv("GORACE")
	if !strings.Contains(options, "atexit_sleep_ms") {
		_ = os.Setenv("GORACE", strings.TrimSpace(options+" atexit_sleep_ms=0")) // fails for a name that is no name
	}
}
