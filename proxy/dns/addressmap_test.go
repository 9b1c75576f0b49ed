package dns

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut"
)

// TestNamesThatCannotBeKept gives out nothing that a restart would forget.
func TestNamesThatCannotBeKept(t *testing.T) {
	n, err := openAddressMap(atomicfile.OS{}, filepath.Join(t.TempDir(), "names"))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := n.assign("a.example", "a.example")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.file.Close(); err != nil { // every write fails from here on
		t.Fatal(err)
	}
	for range 2 {
		if addr, err := n.assign("b.example", "b.example"); err == nil {
			t.Errorf("b.example was given %s", addr)
		}
	}
	if addr, err := n.assign("a.example", "a.example"); err != nil || addr != kept {
		t.Errorf("a.example is %s, %v", addr, err)
	}
}

// TestNamesSurvivePowerCut cuts the power after each operation on the disk. A name
// that was given an address has the same one afterwards, and no other name has it.
func TestNamesSurvivePowerCut(t *testing.T) {
	for _, loss := range powercut.Losses() {
		t.Run(loss.String(), func(t *testing.T) {
			for after, done := 0, false; !done; after++ {
				path := filepath.Join(t.TempDir(), "names")
				disk, err := powercut.New(filepath.Dir(path))
				if err != nil {
					t.Fatal(err)
				}
				disk.CutAfter(after)
				given := assignNames(disk, path)
				done = len(given) == 3
				if err := disk.Cut(loss); err != nil {
					t.Fatal(err)
				}
				checkNames(t, path, given, after)
			}
		})
	}
}

// assignNames gives addresses to three names and returns those that were given.
func assignNames(disk *powercut.Disk, path string) map[string]netip.Addr {
	given := make(map[string]netip.Addr)
	n, err := openAddressMap(disk, path)
	if err != nil {
		return given
	}
	for i := range 3 {
		name := fmt.Sprintf("host%d.example", i)
		if addr, err := n.assign(name, "*.example"); err == nil {
			given[name] = addr
		}
	}
	_ = n.close() // the power may be cut
	return given
}

func checkNames(t *testing.T, path string, given map[string]netip.Addr, after int) {
	t.Helper()
	n, err := openAddressMap(atomicfile.OS{}, path)
	if err != nil {
		t.Fatalf("after %d operations: %v", after, err)
	}
	fresh, err := n.assign("fresh.example", "*.example")
	if err != nil {
		t.Errorf("after %d operations: %v", after, err)
	}
	for name, want := range given {
		got, err := n.assign(name, "*.example")
		if err != nil || got != want || fresh == want {
			t.Errorf("after %d operations: %s got %v, %v, want %v; a new name got %v", after, name, got, err, want, fresh)
		}
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}
