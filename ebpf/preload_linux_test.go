package ebpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// A confinement uses the programs that were preloaded for it, with its own cgroup in them.
func TestPreload(t *testing.T) {
	needKernel(t)
	p := Preload(Config{})
	<-p.loaded
	preloaded := p.programs
	c, err := p.New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if c.programs != preloaded {
		t.Error("the programs were loaded a second time")
	}
	for name, collection := range map[string]*ebpf.Collection{"hooks": preloaded.base, "proctrack": preloaded.proctrack, "socketscan": preloaded.scan} {
		var id uint64
		if err := collection.Maps[cgroupMap].Lookup(zero, &id); err != nil || id != c.group.ID {
			t.Errorf("%s: governs cgroup %d, want %d (%v)", name, id, c.group.ID, err)
		}
	}
	if err := c.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	started, err := c.Start(sandbox.Command{Path: "/bin/true"})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := started.Wait(); status != 0 || err != nil {
		t.Errorf("got status %d, %v", status, err)
	}
	if _, err := c.Usage(); err != nil {
		t.Error(err)
	}
}

// Programs that were preloaded for another kind of confinement are not used, and go.
func TestPreloadOfAnotherKind(t *testing.T) {
	needKernel(t)
	p := Preload(Config{View: true})
	<-p.loaded
	preloaded := p.programs
	c, err := p.New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if c.programs == preloaded || p.programs != nil {
		t.Error("programs for a view confine a plugin without one")
	}
	if fd := preloaded.base.Programs["connect4"].FD(); fd >= 0 {
		t.Errorf("connect4 is still open: %d", fd)
	}
}
