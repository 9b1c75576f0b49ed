package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

const privateAccess = 0o700

// EnsurePrivate is [unixsock.MakePrivateDir], with advice where the directory cannot be
// made.
func EnsurePrivate(path string) error {
	err := unixsock.MakePrivateDir(path)
	if err != nil {
		return fmt.Errorf("%w%s", err, directoryHint(path, err))
	}
	return nil
}

// directoryHint says what to do where a directory cannot be made.
func directoryHint(path string, err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "; make " + filepath.Dir(path) + " writable (in a systemd unit: ReadWritePaths=" + filepath.Dir(path) + ")"
	case errors.Is(err, fs.ErrPermission):
		return "; run it as root"
	}
	return ""
}

// places are the runtime directory of a sidecar, and its state directory, which
// names its cage.
type Paths struct {
	Dir   string
	State string
	ID    string
}

// findPlaces finds the runtime directory, and makes it if it is missing.
func FindPaths(stateDir string) (Paths, error) {
	id, err := runtimedir.ID(stateDir)
	if err != nil {
		return Paths{}, err
	}
	dir, err := runtimedir.Find(stateDir)
	return Paths{Dir: dir.Path, State: stateDir, ID: id}, err
}

// lock holds a name under the runtime directory until it is released or the process
// ends, however that happens: it is the kernel's lock on the open file.
type FileLock struct {
	File  *os.File
	path  string
	State *os.File // the state directory, of a cage's lock
}

// take takes a name. The error is EWOULDBLOCK when somebody else has it, unless
// it is to wait.
func (p Paths) Take(name string, wait bool) (*FileLock, error) {
	path := filepath.Join(p.Dir, name)
	if dir := filepath.Dir(path); dir != p.Dir {
		if err := EnsurePrivate(dir); err != nil {
			return nil, err
		}
	}
	how := unix.LOCK_EX | unix.LOCK_NB
	if wait {
		how = unix.LOCK_EX
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), how); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		// Whoever had it may have removed the file after we opened it.
		var ours, there unix.Stat_t
		if unix.Fstat(int(f.Fd()), &ours) == nil && unix.Stat(path, &there) == nil && ours.Ino == there.Ino {
			return &FileLock{File: f, path: path}, nil
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
	}
}

// release gives the name back. A nil lock has none.
func (l *FileLock) Release() error {
	if l == nil {
		return nil
	}
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, l.File.Close())
	if l.State != nil {
		err = errors.Join(err, l.State.Close())
	}
	if err != nil {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}

// lockCage makes this process the only one that handles the cage. The state
// directory is locked as well, if it exists: a process that may write to another
// part of /run than this one has another runtime directory.
func (p Paths) LockStateDir() (*FileLock, error) {
	l, err := p.Take("cages/"+p.ID, false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	l.State, err = os.Open(p.State)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = unix.Flock(int(l.State.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		return l, nil
	}
	if released := l.Release(); released != nil || !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("lock state directory: %w", err), released)
	}
	return nil, ErrBusy
}
