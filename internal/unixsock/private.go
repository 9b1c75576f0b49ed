package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// privateMode is the mode of a directory that its owner alone can read and enter.
const privateMode fs.FileMode = 0o700

// NotPrivateError reports a directory that is not the caller's alone.
type NotPrivateError struct {
	Dir    string
	NotDir bool        // another kind of file is in its place
	Owner  int         // uid that owns it
	Mode   fs.FileMode // permission bits
}

// Error names the directory, the fault and the fix.
func (e *NotPrivateError) Error() string {
	switch {
	case e.NotDir:
		return fmt.Sprintf("%s is not a directory; remove it, or choose another path", e.Dir)
	case e.Owner != os.Geteuid():
		return fmt.Sprintf("%s belongs to uid %d and not to uid %d; choose another directory, or run chown on it", e.Dir, e.Owner, os.Geteuid())
	}
	return fmt.Sprintf("%s is open to other users (mode %04o); run chmod 700 %s", e.Dir, e.Mode.Perm(), e.Dir)
}

// MakePrivateDir makes a directory of mode 0700 in an existing one, and returns a
// [*NotPrivateError] if it exists and is a link, another user's, or open to others.
// An empty directory of the caller's that is open to others, as a volume is that was
// just mounted, is closed first ([CloseEmpty]). The directories above it are not
// checked; see [CheckPath].
func MakePrivateDir(dir string) error {
	if err := os.Mkdir(dir, privateMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make private directory: %w", err)
	}
	err := checkPrivate(dir)
	if open, is := errors.AsType[*NotPrivateError](err); is && !open.NotDir && open.Owner == os.Geteuid() {
		CloseEmpty(dir)
		err = checkPrivate(dir)
	}
	if err != nil {
		return fmt.Errorf("use private directory: %w", err)
	}
	return nil
}

func checkPrivate(dir string) error {
	var stat unix.Stat_t
	if err := unix.Lstat(dir, &stat); err != nil {
		return fmt.Errorf("inspect %s: %w", dir, err)
	}
	isDir := stat.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && int(stat.Uid) == os.Geteuid() && stat.Mode&0o077 == 0 {
		return nil
	}
	return &NotPrivateError{Dir: dir, NotDir: !isDir, Owner: int(stat.Uid), Mode: fs.FileMode(stat.Mode & 0o777)}
}

// CloseEmpty sets the mode of an empty directory to 0700, and restores its mode if
// another user added an entry before the mode was set. A directory that is not empty
// keeps its mode.
func CloseEmpty(dir string) {
	isEmpty := func() bool {
		entries, err := os.ReadDir(dir)
		return err == nil && len(entries) == 0
	}
	var stat unix.Stat_t
	if unix.Lstat(dir, &stat) != nil || !isEmpty() || os.Chmod(dir, privateMode) != nil {
		return
	}
	if !isEmpty() {
		_ = unix.Chmod(dir, stat.Mode&0o7777) // the caller checks the mode and refuses it
	}
}
