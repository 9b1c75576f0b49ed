package session

import "testing"

func TestConnectionsOfDescriptors(t *testing.T) {
	for _, c := range []struct {
		files   uint64
		relayed bool
		want    int
	}{{0, false, 1}, {1024, false, 128}, {1024, true, 64}, {20000, false, 2500}, {20000, true, 1250}} {
		if got := connsForFiles(c.files, c.relayed); got != c.want {
			t.Errorf("%d descriptors, relayed %t: %d connections, want %d", c.files, c.relayed, got, c.want)
		}
	}
	const unlimited = ^uint64(0) // RLIM_INFINITY
	if got := connsForFiles(unlimited, true); got < 4096 {
		t.Errorf("without a limit: %d", got)
	}
}
