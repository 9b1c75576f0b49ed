package launcher

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestPlanted finds the paths through a link which the plugin may have made.
func TestPlanted(t *testing.T) {
	dir := t.TempDir()
	data, outside, root := filepath.Join(dir, "data"), filepath.Join(dir, "outside"), filepath.Join(dir, "root")
	err := errors.Join(os.MkdirAll(filepath.Join(data, "real", "deep"), 0o700), os.Mkdir(outside, 0o700),
		os.Symlink(outside, filepath.Join(data, "link")), os.Symlink("../../outside", filepath.Join(data, "real", "relative")),
		os.Symlink("data", root), os.Symlink(filepath.Join(data, "link"), filepath.Join(outside, "back")),
		os.Symlink("loop", filepath.Join(dir, "loop")))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"data": false, "data/real": false, "data/real/deep": false, "data/none": false, "outside": false, "root": false, "root/real": false,
		"data/link": true, "data/link/below": true, "data/real/relative": true, "data/real/../link": true, "root/link": true,
		"outside/back": true, "loop": true,
	} {
		if err := crossesWritableLink(dir+"/"+path, ResolveLinks([]string{data})); (err != nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := crossesWritableLink(filepath.Join(data, "link"), []string{"/"}); err != nil {
		t.Errorf("where everything may be written: %v", err)
	}
}
