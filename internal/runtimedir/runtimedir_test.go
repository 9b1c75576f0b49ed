package runtimedir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// needRoot skips where folders of other users cannot be made. With
// CHAPERONE_REQUIRE=1 that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func owned(dir, name string, uid int, mode os.FileMode) error {
	path := filepath.Join(dir, name)
	return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, uid, uid), os.Chmod(path, mode))
}

// TestUsable checks what becomes of directories that may be the runtime directory.
func TestUsable(t *testing.T) {
	needRoot(t)
	for name, test := range map[string]struct {
		prepare func(dir string) error
		mode    os.FileMode // afterwards; 0: it is refused
	}{
		"missing":         {func(string) error { return nil }, 0o711},
		"closed":          {func(dir string) error { return owned(dir, "run", 0, 0o700) }, 0o711},
		"made by systemd": {func(dir string) error { return owned(dir, "run", 0, 0o755) }, 0o755},
		"an empty volume": {func(dir string) error { return owned(dir, "run", 0, 0o777) }, 0o711},
		"another's":       {func(dir string) error { return owned(dir, "run", 4242, 0o700) }, 0},
		"open, with something in it": {func(dir string) error {
			return errors.Join(owned(dir, "run", 0, 0o777), os.Mkdir(dir+"/run/planted", 0o700))
		}, 0},
		"a link": {func(dir string) error { return errors.Join(os.Mkdir(dir+"/x", 0o700), os.Symlink("x", dir+"/run")) }, 0o711},
		"a file": {func(dir string) error { return os.WriteFile(dir+"/run", nil, 0o600) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			err := usable(dir+"/run", sharedMode)
			if (err == nil) != (test.mode != 0) {
				t.Fatalf("got %v", err)
			}
			if info, statErr := os.Stat(dir + "/run"); test.mode != 0 && (statErr != nil || info.Mode().Perm() != test.mode) {
				t.Errorf("it is %v, %v", info.Mode(), statErr)
			}
		})
	}
}

// TestOthers checks where a sidecar looks that cannot use the shared directory.
func TestOthers(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "/run/chaperone:/run/chaperone/weather:relative")
	got := others("/var/lib/x")
	if len(got) != 2 || got[0] != "/run/chaperone/weather" || got[1] != "/var/lib/x/run" {
		t.Errorf("got %q", got)
	}
}
