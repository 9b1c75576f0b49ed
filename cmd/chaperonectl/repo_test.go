package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// exchanged has a named pipe where a regular file was looked at.
type exchanged struct{ repoFS }

// Lstat looks at another file (fs.ReadLinkFS).
func (e exchanged) Lstat(string) (fs.FileInfo, error) { return e.repoFS.Lstat("regular") }

// TestNamedPipe: no command waits for the writer of a named pipe.
func TestNamedPipe(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	testenv.Must(t, syscall.Mkfifo(pipe, 0o600))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "regular"), []byte("text"), 0o600))
	root := testenv.MustGet(os.OpenRoot(dir))(t)
	defer root.Close()
	r := &repo{dir: dir, root: root}
	files, ok := r.files().(repoFS)
	if !ok {
		t.Fatal("the files of a repository may wait")
	}
	for name, read := range map[string]func() ([]byte, error){
		"exchanged":     func() ([]byte, error) { return governance.ReadFile(exchanged{files}, "pipe") },
		"repository":    func() ([]byte, error) { return governance.ReadFile(files, "pipe") },
		"readDocument":  func() ([]byte, error) { return readDocument(pipe) },
		"readBounded":   func() ([]byte, error) { return readBounded(pipe) },
		"artifact":      func() ([]byte, error) { s, err := digestOf("file", pipe); return []byte(s), err },
		"artifact tree": func() ([]byte, error) { s, err := digestOf("tree", dir); return []byte(s), err },
	} {
		done := make(chan error, 1)
		go func() {
			_, err := read()
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "regular file") {
				t.Errorf("%s: got %v", name, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: waits for a writer", name)
		}
	}
	if data, err := governance.ReadFile(files, "regular"); err != nil || string(data) != "text" {
		t.Errorf("a regular file is %q, %v", data, err)
	}
}

// TestWriteStaysInside: a link that takes the place of a folder after it was looked at does not
// lead a file out of the repository.
func TestWriteStaysInside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	root := testenv.MustGet(os.OpenRoot(dir))(t)
	defer root.Close()
	r := &repo{dir: dir, root: root}
	exchange := func(fsys atomicfile.FS, name string, data []byte, mode fs.FileMode) error {
		testenv.Must(t, os.Remove(filepath.Join(dir, "grants")))
		testenv.Must(t, os.Symlink(outside, filepath.Join(dir, "grants")))
		return atomicfile.WriteFS(fsys, name, data, mode)
	}
	if err := r.put("grants/weather.dsse.json", []byte("text"), exchange); err == nil {
		t.Error("written through a link")
	}
	if entries := testenv.MustGet(os.ReadDir(outside))(t); len(entries) > 0 {
		t.Errorf("outside are %v", entries)
	}
	testenv.Must(t, os.Remove(filepath.Join(dir, "grants")))
	testenv.Must(t, r.create("grants/weather.dsse.json", []byte("one")))
	testenv.Must(t, r.write("grants/weather.dsse.json", []byte("two")))
	if err := r.create("grants/weather.dsse.json", []byte("three")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	if data := testenv.MustGet(os.ReadFile(filepath.Join(dir, "grants/weather.dsse.json")))(t); string(data) != "two" {
		t.Errorf("the file is %q", data)
	}
}

// TestCreateOnce: a decision that is not written is an error.
func TestCreateOnce(t *testing.T) {
	dir := t.TempDir()
	root := testenv.MustGet(os.OpenRoot(dir))(t)
	r := &repo{dir: dir, root: root}
	defer r.close()
	const name = "approvals/security-reject-0123456789ab.dsse.json"
	for _, test := range []struct {
		data string
		ok   bool
	}{{"signed", true}, {"signed", true}, {"other", false}} {
		if err := r.createOnce(name, []byte(test.data)); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.data, err)
		}
	}
	testenv.Must(t, os.Remove(filepath.Join(dir, name)))
	testenv.Must(t, os.Symlink("elsewhere", filepath.Join(dir, name)))
	if err := r.createOnce(name, []byte("signed")); err == nil {
		t.Error("a link in the place of a decision is taken for it")
	}
}
