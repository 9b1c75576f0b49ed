package statehistory

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// begun returns a state directory with a history of some changes, and its root.
func begun(t *testing.T, changes int) (dir, root string) {
	t.Helper()
	base := t.TempDir()
	dir, root = filepath.Join(base, "state"), filepath.Join(base, "root")
	must(t, os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600), os.WriteFile(filepath.Join(dir, "revocations.json"), []byte("[]"), 0o600))
	for range changes {
		h, err := Open(dir, "weather", root)
		must(t, err)
		must(t, h.Unkept, h.Advance(2, "revocations.json", "rates.json"))
	}
	return dir, root
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func copied(t *testing.T, from, to string) {
	t.Helper()
	must(t, exec.CommandContext(t.Context(), "cp", "-a", from, to).Run())
}

// TestOpen compares state directories to which something has happened with what is
// remembered of them.
func TestOpen(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(t *testing.T, dir, root string) error
		why     string // in the error; "" for none
	}{
		"nothing":    {func(*testing.T, string, string) error { return nil }, ""},
		"moved away": {func(_ *testing.T, dir, _ string) error { return os.Rename(dir, dir+".gone") }, "it is missing"},
		"moved away, and made again": {func(_ *testing.T, dir, _ string) error {
			return errors.Join(os.Rename(dir, dir+".gone"), os.Mkdir(dir, 0o700))
		}, "it is empty"},
		"emptied but for its lock": {func(_ *testing.T, dir, _ string) error {
			return errors.Join(os.Remove(filepath.Join(dir, MarkName)), os.Remove(filepath.Join(dir, "revocations.json")))
		}, "it is empty"},
		"its mark removed":        {func(_ *testing.T, dir, _ string) error { return os.Remove(filepath.Join(dir, MarkName)) }, MarkName + " is missing"},
		"its revocations removed": {func(_ *testing.T, dir, _ string) error { return os.Remove(filepath.Join(dir, "revocations.json")) }, "revocations.json is missing"},
		"an older copy": {func(t *testing.T, dir, root string) error {
			copied(t, dir, dir+".copy")
			h, err := Open(dir, "weather", root)
			must(t, err, h.Advance(2))
			return errors.Join(os.RemoveAll(dir), os.Rename(dir+".copy", dir))
		}, "it is an older copy, with 3 of 4 changes"},
		"another one": {func(t *testing.T, dir, _ string) error {
			other, _ := begun(t, 9)
			must(t, os.RemoveAll(dir))
			copied(t, other, dir)
			return nil
		}, "it is another one than it was"},
		"a damaged mark": {func(_ *testing.T, dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, MarkName), []byte("{"), 0o600)
		}, "identity.json is damaged"},
		"a mark without id": {func(_ *testing.T, dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, MarkName), []byte(`{"version":1}`), 0o600)
		}, "identity.json is damaged"},
		"a damaged memory":    {func(t *testing.T, _, root string) error { return os.WriteFile(remembered(t, root), []byte("{"), 0o600) }, "its record cannot be read"},
		"a memory for others": {func(t *testing.T, _, root string) error { return os.Chmod(remembered(t, root), 0o666) }, "other users may write it"},
		"a forgotten one":     {func(_ *testing.T, _, root string) error { return os.RemoveAll(root) }, ""}, // as on another host
		"a crash between the two": {func(t *testing.T, dir, root string) error {
			copied(t, root, root+".before")
			h, err := Open(dir, "weather", root)
			must(t, err, h.Advance(2))
			return errors.Join(os.RemoveAll(root), os.Rename(root+".before", root))
		}, ""},
		"moved, and a link to it": {func(_ *testing.T, dir, _ string) error {
			return errors.Join(os.Rename(dir, dir+".disk"), os.Symlink(dir+".disk", dir))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir, root := begun(t, 3)
			must(t, c.happens(t, dir, root))
			_, err := Open(dir, "weather", root)
			lost, is := errors.AsType[*LostError](err)
			switch {
			case c.why == "" && err != nil:
				t.Fatal(err)
			case c.why == "":
				return
			case !is || !strings.Contains(lost.Error(), c.why):
				t.Fatalf("got %v, not %q", err, c.why)
			}
			if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
				must(t, os.Mkdir(dir, 0o700))
			}
			was, err := Accept(dir, "weather", 0, root)
			must(t, err)
			if was == nil {
				t.Error("got no fault, want one")
			}
			h, err := Open(dir, "weather", root)
			must(t, err)
			must(t, h.Advance(0))
			if was, err := Accept(dir, "weather", 0, root); was != nil || err != nil {
				t.Errorf("once accepted: %v, %v", was, err)
			}
		})
	}
}

// remembered returns the only file of a root.
func remembered(t *testing.T, root string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(root, folder, "*.json"))
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	return all[0]
}

// TestRoots remembers below the first folder that nobody else can change.
func TestRoots(t *testing.T) {
	base := t.TempDir()
	dir, open, good := filepath.Join(base, "state"), filepath.Join(base, "open"), filepath.Join(base, "good")
	must(t, os.Mkdir(dir, 0o700), os.Mkdir(open, 0o700), os.Chmod(open, 0o777))
	h, err := Open(dir, "weather", open, good)
	must(t, err)
	must(t, h.Unkept, h.Advance(0))
	remembered(t, good)
	h, err = Open(dir, "weather", open)
	must(t, err)
	if h.Unkept == nil {
		t.Error("it is remembered in a folder that everybody may write to")
	}
	must(t, h.Advance(0))
	h, err = Open(dir, "weather", good, open) // and good was not advanced
	must(t, err, h.Advance(0), h.Unkept)
	if _, err := os.Lstat(filepath.Join(open, folder)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
