package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		must(t, err)
	}
	return string(data)
}

func namesIn(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " ")
}

// TestWriteSurvivesPowerCut cuts the power after each operation: the old content or
// the new one is left, and the new one once Write returned nil.
func TestWriteSurvivesPowerCut(t *testing.T) {
	for name, test := range map[string]struct {
		write func(fsys atomicfile.FS, path string, data []byte, mode fs.FileMode) error
		old   string
	}{
		"Write":            {atomicfile.WriteFS, "old"},
		"Write, new file":  {atomicfile.WriteFS, ""},
		"Create, new file": {atomicfile.CreateFS, ""},
	} {
		for _, loss := range powercut.Losses() {
			t.Run(name+", "+loss.String(), func(t *testing.T) {
				done := false
				for n := 0; !done; n++ {
					path := filepath.Join(t.TempDir(), "file")
					if test.old != "" {
						must(t, os.WriteFile(path, []byte(test.old), 0o600))
					}
					disk, err := powercut.New(filepath.Dir(path))
					must(t, err)
					disk.CutAfter(n)
					done = test.write(disk, path, []byte("new"), 0o640) == nil
					must(t, disk.Cut(loss))
					if got := contentOf(t, path); got != "new" && (done || got != test.old) {
						t.Errorf("got %q after %d operations (returned nil: %v), want %q or %q", got, n, done, test.old, "new")
					}
					must(t, atomicfile.RemoveTemporary(path))
					if names := namesIn(t, filepath.Dir(path)); names != "" && names != "file" {
						t.Errorf("got %q after RemoveTemporary, want file alone", names)
					}
					if n > 20 {
						t.Fatal("Write never returned nil")
					}
				}
			})
		}
	}
}

// TestWriteSetsMode checks that the umask does not change the mode, and that a link
// at the path is replaced and not followed.
func TestWriteSetsMode(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(dir+"/other", []byte("other"), 0o600))
	must(t, os.Symlink("other", path))
	must(t, atomicfile.Write(path, []byte("new"), 0o444))
	info, err := os.Lstat(path)
	must(t, err)
	if info.Mode() != 0o444 || contentOf(t, path) != "new" || contentOf(t, dir+"/other") != "other" {
		t.Errorf("got mode %v, %q, other %q, want 0444, new, other", info.Mode(), contentOf(t, path), contentOf(t, dir+"/other"))
	}
}

// TestCreateKeepsExisting checks that of many creators one wins.
func TestCreateKeepsExisting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	results := make([]error, 16)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() { results[i] = atomicfile.Create(path, []byte{byte('a' + i)}, 0o600) })
	}
	all.Wait()
	created := 0
	for i, err := range results {
		switch {
		case err == nil:
			created++
			if got, want := contentOf(t, path), string(byte('a'+i)); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		case !errors.Is(err, fs.ErrExist):
			t.Errorf("got %v, want %v", err, fs.ErrExist)
		}
	}
	if created != 1 || namesIn(t, filepath.Dir(path)) != "file" {
		t.Errorf("got %d creators and %q, want 1 and file alone", created, namesIn(t, filepath.Dir(path)))
	}
}

// TestWriteFails checks that a failure leaves the old file and nothing else.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/full/entry", 0o700))
	if err := atomicfile.Write(dir+"/full", []byte("new"), 0o600); err == nil || namesIn(t, dir) != "full" {
		t.Errorf("got %v and %q, want an error and full alone", err, namesIn(t, dir))
	}
	if err := atomicfile.Write(dir+"/missing/file", nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
}

// TestRead checks which files are read.
func TestRead(t *testing.T) {
	const limit = 8
	write := func(data string, mode fs.FileMode) func(string) error {
		return func(path string) error { return atomicfile.Write(path, []byte(data), mode) }
	}
	for name, test := range map[string]struct {
		prepare func(path string) error
		want    string // of the error
	}{
		"as long as permitted": {write("12345678", 0o644), ""},
		"too long":             {write("123456789", 0o644), "more than 8 bytes"},
		"open to a group":      {write("x", 0o620), "other users may write it (mode 0620)"},
		"a pipe":               {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "not a regular file"},
		"a link": {func(path string) error {
			return errors.Join(os.WriteFile(path+"2", nil, 0o600), os.Symlink(path+"2", path))
		}, "too many levels"},
		"missing": {func(string) error { return nil }, "no such file"},
		"another user's": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 4242, -1))
		}, "belongs to uid 4242"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "another user's" && os.Geteuid() != 0 {
				if os.Getenv("CHAPERONE_REQUIRE") == "1" {
					t.Fatal("needs root")
				}
				t.Skip("needs root")
			}
			path := filepath.Join(t.TempDir(), "file")
			must(t, test.prepare(path))
			data, err := atomicfile.Read(path, limit)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, %v, want error %q", data, err, test.want)
			}
		})
	}
}
