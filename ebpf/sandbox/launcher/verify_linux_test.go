package launcher

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// TestOpenVerified executes the file that was verified, although another one is in its
// place by then.
func TestOpenVerified(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "program")
	echo := testenv.MustGet(os.ReadFile("/bin/echo"))(t)
	for name, program := range map[string][]byte{"program": echo, "script": []byte("#!/bin/sh\necho approved\n")} {
		testenv.Must(t, os.WriteFile(path, program, 0o755))
		f, descriptor, err := OpenVerified(path, digestOf(program))
		if err != nil {
			t.Fatal(err)
		}
		testenv.Must(t, os.WriteFile(path+".new", []byte("#!/bin/sh\necho evil\n"), 0o755))
		testenv.Must(t, os.Rename(path+".new", path))
		if got := output(t, dir, descriptor); got != "approved\n" {
			t.Errorf("%s: got %q", name, got)
		}
		testenv.Must(t, f.Close())
	}
}

// output starts a program by its descriptor as the launcher does, and returns its output.
func output(t *testing.T, dir, descriptor string) string {
	t.Helper()
	out := testenv.MustGet(os.Create(filepath.Join(dir, "out")))(t)
	defer func() { _ = out.Close() }()
	pid, err := syscall.ForkExec(descriptor, []string{"program", "approved"}, &syscall.ProcAttr{Files: []uintptr{0, out.Fd(), 2}})
	if err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	testenv.MustGet(syscall.Wait4(pid, &status, 0, nil))(t)
	return string(testenv.MustGet(os.ReadFile(out.Name()))(t))
}

func TestOpenVerifiedRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "program")
	testenv.Must(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
	_, _, err := OpenVerified(path, digestOf([]byte("other")))
	if other, ok := errors.AsType[*DigestError](err); !ok || other.Got != digestOf([]byte("#!/bin/sh\n")) || other.Want != digestOf([]byte("other")) {
		t.Errorf("another program: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	testenv.Must(t, syscall.Mkfifo(fifo, 0o755))
	for name, want := range map[string]error{fifo: syscall.EACCES, dir: syscall.EACCES, filepath.Join(dir, "none"): syscall.ENOENT} {
		if _, _, err := OpenVerified(name, ""); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
