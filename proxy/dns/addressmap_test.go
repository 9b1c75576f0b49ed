package dns

import (
	"path/filepath"
	"testing"
)

// TestNamesThatCannotBeKept gives out nothing that a restart would forget.
func TestNamesThatCannotBeKept(t *testing.T) {
	n, err := openAddressMap(filepath.Join(t.TempDir(), "names"))
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
