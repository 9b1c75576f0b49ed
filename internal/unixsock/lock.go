package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked reports a lock that another open file holds.
var ErrLocked = errors.New("locked by another process")

// FileLock is an exclusive lock on a file (flock(2)). The kernel releases it when
// the process ends, however it ends.
type FileLock struct {
	file *os.File
	path string
}

// Acquire locks the file at path, which it creates with mode 0600. The error is
// [ErrLocked] if another process, or another open file of this one, holds the lock.
func Acquire(path string) (*FileLock, error) { return acquire(path, unix.LOCK_EX|unix.LOCK_NB) }

// AcquireWait is [Acquire] that waits until the lock is free. It blocks a thread;
// the holder must be short-lived.
func AcquireWait(path string) (*FileLock, error) { return acquire(path, unix.LOCK_EX) }

func acquire(path string, how int) (*FileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := flock(f, how); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		// The previous holder removes the file: a lock on a removed file excludes
		// nobody.
		if l := (&FileLock{file: f, path: path}); l.current() {
			return l, nil
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
	}
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrLocked
		}
		return err
	}
}

// current reports whether the locked file is still the one at the path.
func (l *FileLock) current() bool {
	var locked, named unix.Stat_t
	return unix.Fstat(int(l.file.Fd()), &locked) == nil && unix.Lstat(l.path, &named) == nil &&
		locked.Ino == named.Ino && locked.Dev == named.Dev
}

// Release removes the file and releases the lock. Releasing a nil lock does nothing.
func (l *FileLock) Release() error {
	if l == nil {
		return nil
	}
	var err error
	if l.current() {
		if err = os.Remove(l.path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err = errors.Join(err, l.file.Close()); err != nil {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}
