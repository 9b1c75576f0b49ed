package inbound

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestLeftSockets has the next sidecar of a stateDir remove the sockets of a
// killed one, and nothing that is used or is something else.
func TestLeftSockets(t *testing.T) {
	dir := t.TempDir()
	dead, used, file, gone := filepath.Join(dir, "dead"), filepath.Join(dir, "used"), filepath.Join(dir, "file"), filepath.Join(dir, "gone")
	listen := func(path string) *net.UnixListener {
		l := testenv.MustGet(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))(t)
		l.SetUnlinkOnClose(false)
		return l
	}
	testenv.Must(t, listen(dead).Close())
	defer listen(used).Close()
	testenv.Must(t, os.WriteFile(file, nil, 0o600))
	var left []string
	killed := socketList{keep: func(paths []string) error { left = slices.Clone(paths); return nil }}
	for _, path := range []string{dead, used, file, gone, gone} {
		testenv.Must(t, killed.add(path))
	}
	killed.remove(gone)
	testenv.Must(t, RemoveLeftovers(left))
	for path, want := range map[string]bool{dead: false, used: true, file: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", filepath.Base(path), err == nil, want)
		}
	}
	testenv.Must(t, RemoveLeftovers(left)) // they are gone already
}

// TestLeftSocketsAreWrittenSeldom makes the same socket again and again, for which
// nothing is written.
func TestLeftSocketsAreWrittenSeldom(t *testing.T) {
	var written []string
	writes := 0
	host := socketList{keep: func(paths []string) error {
		written = slices.Clone(paths)
		writes++
		return nil
	}}
	testenv.Must(t, host.add("/one"))
	for range 10 {
		host.remove("/one")
		testenv.Must(t, host.add("/one"))
	}
	if writes != 1 {
		t.Errorf("written %d times, want once", writes)
	}
	host.remove("/one")
	testenv.Must(t, host.add("/two"))
	host.remove("/two")
	host.settle()
	if len(written) != 0 {
		t.Errorf("paths written at the end: %v, want none", written)
	}
}
