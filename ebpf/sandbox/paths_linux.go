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

// EnsurePrivate makes a directory for this process alone, and refuses one that
// another user could have prepared.
func EnsurePrivate(path string) error {
	if err := unixsock.MakePrivateDir(path); err != nil {
		return fmt.Errorf("%w%s", err, directoryHint(path, err))
	}
	return nil
}

// directoryHint returns what to do where a directory cannot be made.
func directoryHint(path string, err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "; make " + filepath.Dir(path) + " writable (in a systemd unit: ReadWritePaths=" + filepath.Dir(path) + ")"
	case errors.Is(err, fs.ErrPermission):
		return "; run it as root"
	}
	return ""
}

// Paths are the runtime directory of a sidecar, and its state directory, which
// names its confinement.
type Paths struct {
	Dir   string
	State string
	ID    string
}

// FindPaths finds the runtime directory, and makes it if it is missing.
func FindPaths(stateDir string) (Paths, error) {
	id, err := runtimedir.ID(stateDir)
	if err != nil {
		return Paths{}, err
	}
	dir, err := runtimedir.Find(stateDir)
	return Paths{Dir: dir.Path, State: stateDir, ID: id}, err
}

// Take locks a name under the runtime directory. The error is
// [unixsock.ErrLocked] when another process has it, unless wait is set.
func (p Paths) Take(name string, wait bool) (*unixsock.FileLock, error) {
	path := filepath.Join(p.Dir, name)
	if dir := filepath.Dir(path); dir != p.Dir {
		if err := EnsurePrivate(dir); err != nil {
			return nil, err
		}
	}
	if wait {
		return unixsock.AcquireWait(path)
	}
	return unixsock.Acquire(path)
}

// StateLock makes a process the only one that handles a confinement.
type StateLock struct {
	name  *unixsock.FileLock // under the runtime directory
	state *os.File           // the state directory, locked; nil: it does not exist
}

// Release releases the lock. Releasing a nil lock does nothing.
func (l *StateLock) Release() error {
	if l == nil {
		return nil
	}
	err := l.name.Release()
	if l.state != nil {
		err = errors.Join(err, l.state.Close())
	}
	return err
}

// LockStateDir makes this process the only one that handles the confinement. The
// state directory is locked as well, if it exists: a process that may write to
// another part of /run than this one has another runtime directory. The error is
// [ErrBusy] when another process has the lock.
func (p Paths) LockStateDir() (*StateLock, error) {
	name, err := p.Take("cages/"+p.ID, false)
	if errors.Is(err, unixsock.ErrLocked) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	l := &StateLock{name: name}
	l.state, err = os.Open(p.State)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = unix.Flock(int(l.state.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		return l, nil
	}
	if released := l.Release(); released != nil || !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("lock state directory: %w", err), released)
	}
	return nil, ErrBusy
}
