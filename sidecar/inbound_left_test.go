package sidecar

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestLeftSockets has the next sidecar of a stateDir remove the sockets of a
// killed one, and nothing that is used or is something else.
func TestLeftSockets(t *testing.T) {
	st := testState(t)
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
	killed := hostSockets{state: st}
	for _, path := range []string{dead, used, file, gone, gone} {
		testenv.Must(t, killed.add(path))
	}
	killed.remove(gone)
	testenv.Must(t, removeLeftSockets(st))
	for path, want := range map[string]bool{dead: false, used: true, file: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", filepath.Base(path), err == nil, want)
		}
	}
	testenv.Must(t, removeLeftSockets(st)) // of a clean one
}

// TestLeftSocketsAreWrittenSeldom makes the same socket again and again, for which
// nothing is written.
func TestLeftSocketsAreWrittenSeldom(t *testing.T) {
	st := testState(t)
	host := hostSockets{state: st}
	written := func() (paths []string, file os.FileInfo) {
		testenv.Must(t, st.load(socketsFile, &paths))
		return paths, testenv.MustGet(os.Stat(st.path(socketsFile)))(t)
	}
	testenv.Must(t, host.add("/one"))
	_, first := written()
	for range 10 {
		host.remove("/one")
		testenv.Must(t, host.add("/one"))
	}
	if _, now := written(); !os.SameFile(first, now) {
		t.Error("it is written again")
	}
	host.remove("/one")
	testenv.Must(t, host.add("/two"))
	host.remove("/two")
	host.settle()
	if paths, _ := written(); len(paths) != 0 {
		t.Errorf("%v is left", paths)
	}
}
