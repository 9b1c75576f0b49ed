package powercut

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

const lost = "(no file)"

func contentOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return lost
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// writer writes a file in the way that is examined. The first name is the path.
type writer func(d *Disk, path string) error

func open(d *Disk, path string, flag int, data string, sync bool) error {
	f, err := d.OpenFile(path, flag, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	return errors.Join(err, f.Close())
}

// replace replaces a file by another, with the syncs that are stated.
func replace(syncFile, syncDir bool) writer {
	return func(d *Disk, path string) error {
		err := errors.Join(
			open(d, path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, "newnew", syncFile),
			d.Rename(path+".new", path))
		if syncDir {
			err = errors.Join(err, d.SyncDir(filepath.Dir(path)))
		}
		return err
	}
}

// TestCut checks what each way of writing loses: a harness that loses nothing would
// pass every test that uses it.
func TestCut(t *testing.T) {
	appending := os.O_WRONLY | os.O_APPEND
	for name, test := range map[string]struct {
		write writer
		want  [3]string // by Loss
	}{
		"renamed without any sync":      {replace(false, false), [3]string{"old", "", "new"}},
		"renamed without a file sync":   {replace(false, true), [3]string{"", "", "new"}},
		"renamed without a dir sync":    {replace(true, false), [3]string{"old", "newnew", "newnew"}},
		"renamed with both":             {replace(true, true), [3]string{"newnew", "newnew", "newnew"}},
		"appended without sync":         {func(d *Disk, path string) error { return open(d, path, appending, "more", false) }, [3]string{"old", "old", "oldmo"}},
		"appended with sync":            {func(d *Disk, path string) error { return open(d, path, appending, "more", true) }, [3]string{"oldmore", "oldmore", "oldmore"}},
		"removed without a dir sync":    {func(d *Disk, path string) error { return d.Remove(path) }, [3]string{"old", lost, lost}},
		"removed with one":              {func(d *Disk, path string) error { return errors.Join(d.Remove(path), d.SyncDir(filepath.Dir(path))) }, [3]string{lost, lost, lost}},
		"past the disk":                 {func(_ *Disk, path string) error { return os.WriteFile(path, []byte("newnew"), 0o600) }, [3]string{"old", "old", "new"}},
		"atomically, by the leaf":       {func(d *Disk, path string) error { return atomicfile.WriteFS(d, path, []byte("newnew"), 0o600) }, [3]string{"newnew", "newnew", "newnew"}},
		"truncated without a file sync": {func(d *Disk, path string) error { return open(d, path, os.O_WRONLY|os.O_TRUNC, "newnew", false) }, [3]string{"old", "old", "new"}},
	} {
		for _, loss := range Losses() {
			t.Run(name+", "+loss.String(), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
				d, err := New(filepath.Dir(path))
				if err != nil {
					t.Fatal(err)
				}
				if err := test.write(d, path); err != nil {
					t.Fatal(err)
				}
				if err := d.Cut(loss); err != nil {
					t.Fatal(err)
				}
				if got := contentOf(t, path); got != test.want[loss] {
					t.Errorf("got %q after the power cut, want %q", got, test.want[loss])
				}
			})
		}
	}
}

// TestCutAfter checks that operations after the cut change nothing.
func TestCutAfter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	d, err := New(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	d.CutAfter(2)
	f, err := d.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.WriteString("a")
	_, cut := f.WriteString("b")
	if err != nil || !errors.Is(cut, ErrCut) || !errors.Is(d.SyncDir(filepath.Dir(path)), ErrCut) {
		t.Errorf("got %v, then %v, want the third operation to be cut", err, cut)
	}
	if got := contentOf(t, path); got != "a" || d.Steps() != 2 {
		t.Errorf("got %q after %d operations, want %q after 2", got, d.Steps(), "a")
	}
}
