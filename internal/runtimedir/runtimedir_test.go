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

// TestCheck checks who is found to be able to replace a path.
func TestCheck(t *testing.T) {
	needRoot(t)
	const alice, sidecar = 4242, 4343
	for name, test := range map[string]struct {
		prepare func(dir string) error // makes dir/state, in whatever way
		folder  string                 // that is found, below dir; "": none
		owner   int
	}{
		"root's":               {prepare: func(dir string) error { return os.MkdirAll(dir+"/state", 0o755) }},
		"missing":              {prepare: func(string) error { return nil }},
		"missing, in alice's":  {prepare: func(dir string) error { return os.Chown(dir, alice, alice) }, folder: ".", owner: alice},
		"the sidecar's":        {prepare: func(dir string) error { return owned(dir, "state", sidecar, 0o700) }},
		"alice's":              {prepare: func(dir string) error { return owned(dir, "state", alice, 0o700) }, folder: "state", owner: alice},
		"open to a group":      {prepare: func(dir string) error { return owned(dir, "state", 0, 0o770) }, folder: "state", owner: -1},
		"sticky itself":        {prepare: func(dir string) error { return owned(dir, "state", 0, 0o777|os.ModeSticky) }, folder: "state", owner: -1},
		"in an open folder":    {prepare: below(0o777), folder: "open", owner: -1},
		"in a sticky folder":   {prepare: below(0o777 | os.ModeSticky)},
		"a link of root's":     {prepare: link(0)},
		"a link of alice's":    {prepare: link(alice), folder: "state", owner: alice},
		"by a link to alice's": {prepare: linkBelow(alice), folder: "alice", owner: alice},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			err := check(filepath.Join(dir, "state"), sidecar, true)
			found, is := errors.AsType[*ReplaceableError](err)
			switch {
			case test.folder == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.folder != "" && (!is || found.Folder != filepath.Join(dir, test.folder) || found.Owner != test.owner):
				t.Errorf("got %+v, want %s of %d", err, test.folder, test.owner)
			}
		})
	}
}

func owned(dir, name string, uid int, mode os.FileMode) error {
	path := filepath.Join(dir, name)
	return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, uid, uid), os.Chmod(path, mode))
}

// below makes state a link to a folder in one of the mode.
func below(mode os.FileMode) func(string) error {
	return func(dir string) error {
		return errors.Join(owned(dir, "open", 0, mode), os.Mkdir(dir+"/open/state", 0o700), os.Symlink("open/state", dir+"/state"))
	}
}

func link(uid int) func(string) error {
	return func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/target", 0o700), os.Symlink(dir+"/target", dir+"/state"), os.Lchown(dir+"/state", uid, uid))
	}
}

// linkBelow makes state a link to a link in a folder of the user's, whose target is
// a folder of root's.
func linkBelow(uid int) func(string) error {
	return func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/target", 0o700), owned(dir, "alice", uid, 0o755),
			os.Symlink("../target", dir+"/alice/link"), os.Symlink("alice/link", dir+"/state"))
	}
}

// TestCheckAbove checks that the mode of the folder itself may be any, and what is
// above it may not.
func TestCheckAbove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "volume")
	if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	if err := CheckAbove(path, os.Geteuid()); err != nil {
		t.Error(err)
	}
	if err := CheckAbove(filepath.Join(path, "state"), os.Geteuid()); err == nil {
		t.Error("no error below it")
	}
}

// TestCheckLoop checks that links that lead in a circle are an error.
func TestCheckLoop(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("b", dir+"/a"), os.Symlink("a", dir+"/b")); err != nil {
		t.Fatal(err)
	}
	if err := Check(dir + "/a"); err == nil {
		t.Error("no error")
	}
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
