package sidecar

import (
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// TestFreshUnmediated reports an unmediated connection once, as long as it is open.
func TestFreshUnmediated(t *testing.T) {
	var m mediation
	one, two := ebpf.UnmediatedConn{PID: 1}, ebpf.UnmediatedConn{PID: 2}
	for i, c := range []struct {
		now   []ebpf.UnmediatedConn
		fresh int
	}{{nil, 0}, {[]ebpf.UnmediatedConn{one}, 1}, {[]ebpf.UnmediatedConn{one, two}, 1}, {[]ebpf.UnmediatedConn{one, two}, 0}, {nil, 0}, {[]ebpf.UnmediatedConn{one}, 1}} {
		if got := m.fresh(c.now); len(got) != c.fresh {
			t.Errorf("look %d: got %d are new, want %d", i, len(got), c.fresh)
		}
	}
	if n := m.total(ebpf.Usage{Connections: 9, Identified: 4, Abandoned: 2, Pending: 1}); n != 2 {
		t.Errorf("%d are unmediated, not 2", n)
	}
	if n := m.total(ebpf.Usage{Connections: 9, Identified: 9}); n != 2 {
		t.Errorf("the counter fell to %d", n)
	}
}
