package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// TestKeptLinks plants links as a plugin would, to see how a path of the host's
// resolves that the view covers.
func TestKeptLinks(t *testing.T) {
	needKernel(t)
	const uid = 61184
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(name, to string, owner int) string {
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
		return path
	}
	planted := link("planted", target, uid)
	for path, want := range map[string]bool{
		target:                            true,
		link("administrator", target, 0):  true,
		planted:                           false,
		link("relative", "./target", uid): false,
		link("through", "planted", 0):     false,
		link("loop", "loop", 0):           false,
	} {
		config := ViewConfig{User: &User{UID: uid}, Command: Command{Kept: []string{path}}}
		if got := slices.ContainsFunc(config.keptPaths("/"), func(k launcher.Kept) bool { return k.Path == target }); got != want {
			t.Errorf("%s: the target is kept: %t, want %t", filepath.Base(path), got, want)
		}
	}
}
