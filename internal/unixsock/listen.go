package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxPath is the length of the longest path that fits a socket address with its
	// NUL (unix(7)).
	MaxPath = 107
	// LockSuffix follows a socket's path in the name of its lock.
	LockSuffix = ".lock"

	ownerMode fs.FileMode = 0o600
	groupMode fs.FileMode = 0o660
	// probeTimeout bounds connecting to a socket that may be stale.
	probeTimeout = time.Second
)

// ErrInUse reports a socket that a living process may serve.
var ErrInUse = errors.New("in use")

// Config describes the socket that [Listen] binds. The zero Config is a socket for
// the process's own user, in a directory of mode 0700.
type Config struct {
	// Group may connect as well, by name or number; "" is no group.
	Group string
	// DirMode is the mode of the directories that are made; 0 is 0700.
	DirMode fs.FileMode
	// Trusted are the uids, besides root, that may own the directory and what is
	// above it; nil is the effective user of the process.
	Trusted []int
	// SharedDir permits a directory that others may write to if it is sticky: they
	// cannot replace the socket there, but they can bind the path first.
	SharedDir bool
	// DirChecked leaves the directory and those above it unchecked: the caller has
	// made the directory, and checked who may replace it.
	DirChecked bool
}

// Listener is a Unix listener that holds the lock of its path.
type Listener struct {
	*net.UnixListener
	lock  *FileLock
	close func() error
}

// Listen binds the Unix socket at path, which must be absolute.
//
// Missing directories are made. A directory in which a user that is not trusted
// could put another socket in the place of this one is refused with a
// [*ReplaceableError]. The socket of a process that is dead is replaced; one that is
// served, or whose path another starter has locked, is refused with [ErrInUse]. The
// socket has its final mode from the moment it exists, before the group is added.
func Listen(ctx context.Context, path string, cfg Config) (*Listener, error) {
	if err := CheckName(path); err != nil {
		return nil, err
	}
	gid, err := GroupID(cfg.Group)
	if err != nil {
		return nil, err
	}
	if err := prepareDir(path, cfg); err != nil {
		return nil, err
	}
	lock, err := Acquire(path + LockSuffix)
	if errors.Is(err, ErrLocked) {
		err = fmt.Errorf("%s is %w: another process is starting on it or serves it", path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	if err := RemoveStale(ctx, path, cfg.Trusted...); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	bound, err := bind(ctx, path, gid)
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	l := &Listener{UnixListener: bound, lock: lock}
	l.close = sync.OnceValue(func() error { return errors.Join(l.UnixListener.Close(), l.lock.Release()) })
	return l, nil
}

// Close stops listening, removes the socket and releases its lock.
func (l *Listener) Close() error { return l.close() }

// CheckName reports a path that is not absolute, not in the file system, or too long
// for a socket address.
func CheckName(path string) error {
	switch {
	case path == "":
		return errors.New("the path of a Unix socket is empty; write an absolute path")
	case path[0] == '@' || strings.ContainsRune(path, 0):
		return fmt.Errorf("socket %q is abstract: it has no owner and no mode; write an absolute path", path)
	case !filepath.IsAbs(path):
		return fmt.Errorf("socket path %q is relative; write an absolute path", path)
	case len(path) > MaxPath:
		return fmt.Errorf("socket path %s has %d bytes; choose one of at most %d (unix(7))", path, len(path), MaxPath)
	}
	return nil
}

func prepareDir(path string, cfg Config) error {
	mode := cfg.DirMode
	if mode == 0 {
		mode = privateMode
	}
	dir := filepath.Dir(path)
	if cfg.DirChecked {
		return nil
	}
	// The existing part is checked first: nothing is made below a directory of a
	// user who is not trusted.
	if err := CheckPath(path, cfg.Trusted...); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make directory of socket: %w", err)
	}
	if cfg.SharedDir {
		return CheckPath(path, cfg.Trusted...)
	}
	return CheckDir(dir, cfg.Trusted...)
}

// bind binds the socket. The mode that a socket has before it is bound becomes, less
// the umask, the mode of its file (unix_bind_bsd in net/unix/af_unix.c): no other
// user can connect at any moment, and the umask of the process is not changed.
func bind(ctx context.Context, path string, gid int) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		err := conn.Control(func(fd uintptr) { failed = syscall.Fchmod(int(fd), uint32(ownerMode)) })
		return errors.Join(err, failed)
	}}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	bound, ok := listener.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen on %s: not a Unix listener", path), listener.Close())
	}
	if gid < 0 {
		return bound, nil
	}
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, groupMode)); err != nil {
		return nil, errors.Join(fmt.Errorf("give socket to group %d: %w", gid, err), bound.Close())
	}
	return bound, nil
}

// RemoveStale removes the socket at path if no process serves it. The error is
// [ErrInUse] if one does or may; a file that is not a socket, and a socket of a user
// other than root, uids or, without uids, the process's own, is refused. A path that
// does not exist is no error.
func RemoveStale(ctx context.Context, path string, uids ...int) error {
	stale, err := IsStale(ctx, path, uids...)
	if err != nil || !stale {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// IsStale reports whether a socket lies at path that no process serves. Its errors
// are those of [RemoveStale].
func IsStale(ctx context.Context, path string, uids ...int) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("%s exists and is not a socket; remove it, or choose another path", path)
	}
	if len(uids) == 0 {
		uids = []int{os.Geteuid()}
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 0 && !slices.Contains(uids, int(stat.Uid)) {
		return false, fmt.Errorf("%s is a socket of another user; remove it, or choose another path", path)
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return false, errors.Join(fmt.Errorf("%s is %w: a process serves it (ss -xlp names it)", path, ErrInUse), conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // removed since
	}
	return false, fmt.Errorf("%s may be %w: %w", path, ErrInUse, err)
}

// GroupID returns the number of a group that is given by name or number. For "" it
// returns -1, which chown(2) takes for no change.
func GroupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("look up group %q: %w", group, err)
	}
	gid, err := strconv.ParseUint(found.Gid, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("look up group %q: %w", group, err)
	}
	return int(gid), nil
}
