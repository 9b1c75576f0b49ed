package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestPrivateDirectories refuses directories on the host that another user could have made.
func TestPrivateDirectories(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	for name, prepare := range map[string]func(string) error{
		"open to others": func(path string) error {
			return errors.Join(os.MkdirAll(filepath.Join(path, "planted"), 0o700), os.Chmod(path, 0o755))
		},
		"a link":    func(path string) error { return os.Symlink(dir, path) },
		"a file":    func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"another's": func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 4242, 4242)) },
	} {
		path := filepath.Join(dir, name)
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		if err := EnsurePrivate(path); err == nil {
			t.Errorf("took one that is %s", name)
		}
	}
	shared := filepath.Join(dir, "shared")
	const mode = os.ModeDir | os.ModeSticky | 0o777
	if err := errors.Join(os.MkdirAll(filepath.Join(shared, "planted"), 0o700), os.Chmod(shared, mode)); err != nil {
		t.Fatal(err)
	}
	if err := EnsurePrivate(shared); err == nil {
		t.Error("took one that is everybody's")
	}
	if info, err := os.Stat(shared); err != nil || info.Mode() != mode {
		t.Errorf("a directory open to everybody is %v, %v", info.Mode(), err)
	}
	path, volume := filepath.Join(dir, "new"), filepath.Join(dir, "volume")
	if err := errors.Join(os.Mkdir(volume, 0o700), os.Chmod(volume, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, path, volume} {
		if err := EnsurePrivate(path); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v", path, info.Mode(), err)
		}
	}
}
