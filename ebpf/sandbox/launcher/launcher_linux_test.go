package launcher

import "testing"

// TestStartsHandler checks which core_pattern ignores a limit of no core dumps.
func TestStartsHandler(t *testing.T) {
	for pattern, want := range map[string]bool{
		"core\n": false, "/var/crash/core.%p\n": false, "\n": false,
		"|/usr/share/apport/apport -p%p\n": true, "@/run/coredump.socket\n": true,
	} {
		if got := startsHandler(pattern); got != want {
			t.Errorf("%q: %t", pattern, got)
		}
	}
}
