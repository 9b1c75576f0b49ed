package testenv

import (
	"testing"
)

// TestFreePort checks that a port is given out once.
func TestFreePort(t *testing.T) {
	given := map[uint16]bool{}
	for range 50 {
		port := FreePort(t)
		if given[port] {
			t.Errorf("FreePort() = %d twice, want each port once", port)
		}
		given[port] = true
		if err := reservePort(port); err == nil {
			t.Errorf("reservePort(%d) = nil for a port that is given out, want an error", port)
		}
	}
}
