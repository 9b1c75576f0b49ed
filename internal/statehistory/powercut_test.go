package statehistory

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut"
)

// TestHistorySurvivesPowerCut cuts the power at each operation of a change. A sidecar
// starts on what is left, and a confirmed change is remembered: an older copy of the state
// directory is still refused.
func TestHistorySurvivesPowerCut(t *testing.T) {
	for _, loss := range powercut.Losses() {
		t.Run(loss.String(), func(t *testing.T) {
			for after, confirmed := 0, false; !confirmed; after++ {
				dir, root := begun(t, 3)
				older := filepath.Join(t.TempDir(), "older")
				copied(t, dir, older)
				h, err := Open(dir, "weather", root)
				must(t, err)
				disk, err := powercut.New(filepath.Dir(dir))
				must(t, err)
				disk.CutAfter(after)
				h.files = disk
				confirmed = h.Advance(1) == nil
				must(t, disk.Cut(loss))
				if _, err := Open(dir, "weather", root); err != nil {
					t.Errorf("got %v after %d operations, want the state to be accepted", err, after)
				}
				if !confirmed {
					continue
				}
				must(t, os.RemoveAll(dir), os.Rename(older, dir))
				if _, err := Open(dir, "weather", root); err == nil {
					t.Error("got no error for a copy that is older than a confirmed change")
				}
			}
		})
	}
}
