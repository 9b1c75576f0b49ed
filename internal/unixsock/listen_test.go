package unixsock

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func listen(t *testing.T, path string, cfg Config) *Listener {
	t.Helper()
	l, err := Listen(t.Context(), path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// leaveStale leaves the socket of a process that is dead.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestListen checks the mode of a socket, and that closing it leaves nothing.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "s")
	l := listen(t, path, Config{})
	for file, want := range map[string]os.FileMode{
		path:               os.ModeSocket | 0o600,
		filepath.Dir(path): os.ModeDir | 0o700,
	} {
		if info, err := os.Lstat(file); err != nil || info.Mode() != want {
			t.Errorf("%s: got mode %v, %v, want %v", file, info.Mode(), err, want)
		}
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if exists(path) || exists(path+LockSuffix) {
		t.Error("got the socket or its lock after Close, want neither")
	}
}

// TestListenGroup checks that a group given by number may connect.
func TestListenGroup(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "s")
	listen(t, path, Config{Group: "4242"})
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode() != os.ModeSocket|0o660 || stat.Gid != 4242 {
		t.Errorf("got mode %v of group %d, want %v of 4242", info.Mode(), stat.Gid, os.ModeSocket|0o660)
	}
	if _, err := Listen(t.Context(), path+"2", Config{Group: "no such group"}); err == nil {
		t.Error("got no error for an unknown group")
	}
}

// TestListenRefusesReplaceableDir checks that no socket is bound, and no directory
// made, where another user could put a socket in its place.
func TestListenRefusesReplaceableDir(t *testing.T) {
	needRoot(t)
	for name, test := range map[string]struct {
		prepare func(dir string) error // makes dir/state/run, at most
		cfg     Config
		want    string // directory at fault, below dir; "" is no fault
	}{
		"another user's directory of mode 0755": {prepare: owned("state", alice, 0o755), want: "state"},
		"trusted user's directory":              {prepare: owned("state", alice, 0o755), cfg: Config{Trusted: []int{alice, 0}}},
		"a grandparent that a user may rename": {prepare: func(dir string) error {
			return errors.Join(os.Chown(dir, alice, alice), os.MkdirAll(dir+"/state/run", 0o755))
		}, want: "."},
		"shared directory":            {prepare: shared, want: "state/run"},
		"shared directory, permitted": {prepare: shared, cfg: Config{SharedDir: true}},
		"open directory":              {prepare: open, cfg: Config{SharedDir: true}, want: "state/run"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			before := exists(dir + "/state/run")
			l, err := Listen(t.Context(), dir+"/state/run/s", test.cfg)
			if err == nil {
				defer l.Close()
			}
			checkFault(t, err, dir, test.want, ownerOf(err))
			if test.want != "" && (exists(dir+"/state/run") != before || exists(dir+"/state/run/s")) {
				t.Error("got a new directory or socket at a path that is refused")
			}
		})
	}
}

func ownerOf(err error) int {
	if found, is := errors.AsType[*ReplaceableError](err); is {
		return found.Owner
	}
	return -1
}

func shared(dir string) error {
	return errors.Join(os.MkdirAll(dir+"/state/run", 0o700), os.Chmod(dir+"/state/run", 0o777|os.ModeSticky))
}

func open(dir string) error {
	return errors.Join(os.MkdirAll(dir+"/state/run", 0o700), os.Chmod(dir+"/state/run", 0o777))
}

// TestListenOnOccupiedPath checks what is replaced and what is not.
func TestListenOnOccupiedPath(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, path string)
		want    string
	}{
		"stale socket":   {prepare: leaveStale},
		"served socket":  {func(t *testing.T, path string) { listen(t, path+"2", Config{}); _ = os.Rename(path+"2", path) }, "a process serves it"},
		"locked socket":  {func(t *testing.T, path string) { holdLock(t, path) }, "another process is starting on it"},
		"regular file":   {func(t *testing.T, path string) { _ = os.WriteFile(path, nil, 0o600) }, "is not a socket"},
		"other's socket": {otherStale, "can be replaced by uid 4242"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "other's socket" {
				needRoot(t)
			}
			path := filepath.Join(t.TempDir(), "s")
			test.prepare(t, path)
			l, err := Listen(t.Context(), path, Config{})
			if err == nil {
				l.Close()
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func holdLock(t *testing.T, path string) {
	t.Helper()
	lock, err := Acquire(path + LockSuffix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Release() }) //nolint:errcheck // the directory is removed with it
}

func otherStale(t *testing.T, path string) {
	t.Helper()
	leaveStale(t, path)
	if err := os.Lchown(path, alice, alice); err != nil {
		t.Fatal(err)
	}
}

// TestListenRace checks that of many starters on one stale path exactly one gets it,
// and is the one that answers.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	leaveStale(t, path)
	var bound atomic.Int32
	var all sync.WaitGroup
	start := make(chan struct{})
	for range 32 {
		all.Go(func() {
			<-start
			l, err := Listen(t.Context(), path, Config{})
			switch {
			case err == nil:
				bound.Add(1)
				t.Cleanup(func() { l.Close() })
			case !errors.Is(err, ErrInUse):
				t.Errorf("got %v, want %v", err, ErrInUse)
			}
		})
	}
	close(start)
	all.Wait()
	if bound.Load() != 1 {
		t.Errorf("got %d listeners on one path, want 1", bound.Load())
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("got %v, want a listener that answers", err)
	} else {
		conn.Close()
	}
}

// TestCheckName checks which paths can be bound.
func TestCheckName(t *testing.T) {
	for path, want := range map[string]string{
		"":                             "empty",
		"@abstract":                    "abstract",
		"/a\x00b":                      "abstract",
		"run/s":                        "relative",
		"/" + strings.Repeat("x", 107): "has 108 bytes; choose one of at most 107",
		"/" + strings.Repeat("x", 106): "",
	} {
		err := CheckName(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", path, err, want)
		}
	}
}

// TestLock checks that a lock excludes, and that a waiting starter gets the file that
// replaces the removed one.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(path); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want %v", err, ErrLocked)
	}
	var held atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			lock, err := AcquireWait(path)
			if err != nil {
				t.Error(err)
				return
			}
			if held.Add(1) != 1 {
				t.Error("got two holders of one lock")
			}
			held.Add(-1)
			if err := lock.Release(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if exists(path) {
		t.Error("got the file of a released lock, want none")
	}
	if err := (*FileLock)(nil).Release(); err != nil {
		t.Error(err)
	}
}

// TestPeer checks who is found at the other end of a connection.
func TestPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, path, Config{})
	client, err := new(net.Dialer).DialContext(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := Peer{PID: os.Getpid(), UID: os.Geteuid(), GID: os.Getegid()}
	if peer, err := PeerOf(conn); err != nil || peer != want {
		t.Errorf("got %+v, %v, want %+v", peer, err, want)
	}
	if err := CheckPeer(conn, -1); err != nil {
		t.Error(err)
	}
	groups, err := PeerGroups(conn)
	own, _ := os.Getgroups()
	if err != nil || len(groups) != len(own) {
		t.Errorf("got groups %v, %v, want %v", groups, err, own)
	}
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	if err := CheckPeer(left, -1); err == nil {
		t.Error("got no error for a connection that is not a Unix one")
	}
}
