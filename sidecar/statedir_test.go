package sidecar

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestStateDir: a stateDir is the sidecar's alone, whatever it was before.
func TestStateDir(t *testing.T) {
	dir := func(t *testing.T, mode os.FileMode, content ...string) string {
		path := filepath.Join(t.TempDir(), "state")
		err := os.Mkdir(path, 0o700)
		for _, name := range content {
			err = errors.Join(err, os.WriteFile(filepath.Join(path, name), nil, 0o600))
		}
		if err := errors.Join(err, os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name string
		dir  string
		want string // in the error
	}{
		{"one that is missing", filepath.Join(t.TempDir(), "a", "b"), ""},
		{"a private one", dir(t, 0o700, "names"), ""},
		{"a volume just mounted", dir(t, 0o777), ""},
		{"one that others could fill", dir(t, 0o770, "revocations.json"), "can be read by others"},
		{"a file", filepath.Join(dir(t, 0o700, "file"), "file"), "not a directory"},
	} {
		s, err := openState(c.dir)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			continue
		}
		if info, err := os.Stat(c.dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s has the mode %v, %v", c.name, info.Mode(), err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestStateDirOfOthersStays names a folder by mistake that everybody uses, as root.
func TestStateDirOfOthersStays(t *testing.T) {
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "somebody's"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const mode = os.ModeDir | os.ModeSticky | os.ModeSetgid | 0o777
	if err := os.Chmod(shared, mode); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(shared); err == nil {
		t.Error("it is taken")
	}
	if info, err := os.Stat(shared); err != nil || info.Mode() != mode {
		t.Errorf("it has the mode %v, %v", info.Mode(), err)
	}
}

// TestStateDirCannotBeReplaced: nobody can put another stateDir, one without the
// revocations, in the place of the one that a plugin is started beside.
func TestStateDirCannotBeReplaced(t *testing.T) {
	above := filepath.Join(t.TempDir(), "volume")
	dir := filepath.Join(above, "weather", "state")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]string{
		0o755: "", 0o777 | os.ModeSticky: "", 0o777: "folder " + above + " may be written by others",
	} {
		if err := os.Chmod(above, mode); err != nil {
			t.Fatal(err)
		}
		if err := checkPlace(dir, "weather", os.Geteuid()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("below a folder of mode %v: %v", mode, err)
		}
	}
}
