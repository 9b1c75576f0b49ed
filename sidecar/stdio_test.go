package sidecar

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestLendStreams checks what the plugin's group gets of pipes and files, and
// that they are as before afterwards.
func TestLendStreams(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	in, out, err := os.Pipe()
	testenv.Must(t, err)
	defer in.Close()
	defer out.Close()
	log := testenv.MustGet(os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_WRONLY, 0o640))(t)
	defer log.Close()
	before := []unix.Stat_t{stat(t, in), stat(t, out), stat(t, log)}
	for _, c := range []struct {
		name                string
		gid                 int
		stdin, stdout, errs *os.File
		modes               [3]uint32 // of in, out and log
	}{
		{"pipes and a file", 61999, in, out, log, [3]uint32{0o660, 0o660, 0o620}},
		{"one pipe twice", 61999, log, out, out, [3]uint32{0o620, 0o620, 0o640}},
		{"a group with others", 100, in, log, log, [3]uint32{0o640, 0o640, 0o640}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lent chownedStreams
			testenv.Must(t, lent.chown(sandbox.Account{UID: 61999, GID: c.gid}, nil, func([]chownedFile) error { return nil }, c.stdin, c.stdout, c.errs))
			for i, file := range []*os.File{in, out, log} {
				now := stat(t, file)
				if now.Mode&0o777 != c.modes[i] || now.Uid != 0 {
					t.Errorf("stream %d: got mode %o, want %o, of uid %d", i, now.Mode&0o777, c.modes[i], now.Uid)
				}
			}
			testenv.Must(t, lent.restore())
			for i, file := range []*os.File{in, out, log} {
				if now := stat(t, file); now.Mode != before[i].Mode || now.Gid != before[i].Gid {
					t.Errorf("stream %d: mode %o of group %d afterwards", i, now.Mode, now.Gid)
				}
			}
		})
	}
}

// TestLentFilesReturn gives a file back that a killed sidecar had lent, and leaves
// one alone that took its place.
func TestLentFilesReturn(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	dir := t.TempDir()
	testenv.Must(t, os.Chmod(dir, 0o700))
	kept := testenv.MustGet(openState(filepath.Join(dir, "state")))(t)
	defer kept.Close()
	lend := func(name string) *os.File {
		file := testenv.MustGet(os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY, 0o640))(t)
		var lent chownedStreams // and no giveBack, as after SIGKILL
		keep := func(files []chownedFile) error { return kept.save(chownedFilesName, files) }
		testenv.Must(t, lent.chown(sandbox.Account{UID: 61999, GID: 61999}, nil, keep, file, file, file))
		return file
	}
	file := lend("log")
	defer file.Close()
	if now := stat(t, file); now.Gid != 61999 {
		t.Fatalf("group %d: it was not lent", now.Gid)
	}
	testenv.Must(t, restoreLeftStreams(kept))
	if now := stat(t, file); now.Gid != 0 || now.Mode&0o777 != 0o640 {
		t.Errorf("mode %o of group %d afterwards", now.Mode&0o777, now.Gid)
	}
	testenv.Must(t, restoreLeftStreams(kept)) // there is nothing left to return
	old := lend("replaced")
	defer old.Close()
	testenv.Must(t, os.Remove(old.Name()))
	other := testenv.MustGet(os.OpenFile(old.Name(), os.O_CREATE|os.O_WRONLY, 0o600))(t)
	defer other.Close()
	testenv.Must(t, other.Chown(-1, 61999))
	testenv.Must(t, restoreLeftStreams(kept))
	if now := stat(t, other); now.Gid != 61999 || now.Mode&0o777 != 0o600 {
		t.Errorf("another file was changed: mode %o of group %d", now.Mode&0o777, now.Gid)
	}
}

func stat(t *testing.T, file *os.File) (s unix.Stat_t) {
	t.Helper()
	testenv.Must(t, unix.Fstat(int(file.Fd()), &s))
	return s
}
