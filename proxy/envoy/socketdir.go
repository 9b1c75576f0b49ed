package envoy

import (
	"context"
	"encoding/binary"
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
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	socketSuffix  = ".sock"
	maxSocketPath = 107 // sun_path less the NUL (unix(7))
)

// socketDir is a folder of unix sockets that only the sidecar's own user, root and,
// where there is one, a group can reach.
type socketDir struct {
	path  string
	group string
	gid   int // -1 for none
}

// openSocketDir makes a folder, or takes over the one that an earlier sidecar left,
// and removes the sockets that nobody serves any more.
func openSocketDir(ctx context.Context, path, group string) (socketDir, error) {
	f := socketDir{path: filepath.Clean(path), group: group, gid: -1}
	if !filepath.IsAbs(path) {
		return socketDir{}, fmt.Errorf("the folder %q must be absolute", path)
	}
	var err error
	if group != "" {
		if f.gid, err = groupID(group); err != nil {
			return socketDir{}, err
		}
	}
	if err := prepareParent(filepath.Dir(f.path)); err != nil {
		return socketDir{}, err
	}
	if err := os.Mkdir(f.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return socketDir{}, err
	}
	if err := f.own(); err != nil {
		return socketDir{}, err
	}
	return f, f.sweep(ctx)
}

// prepareParent makes the folder above, and refuses one in which others could put
// a folder of theirs in the place of ours.
func prepareParent(path string) error {
	const writable fs.FileMode = 0o022               // by anyone but the owner
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // the group looks the folder up in it
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode()&writable != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("others may write to the folder %s and replace the one in it", path)
	}
	return nil
}

// own sees that the folder is the sidecar's and opens it to the group.
func (f socketDir) own() error {
	info, err := os.Lstat(f.path)
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int64(stat.Uid) != int64(os.Geteuid()) {
		return fmt.Errorf("%s is not a folder of the sidecar's own user", f.path)
	}
	if f.gid < 0 {
		return os.Chmod(f.path, 0o700) //nolint:gosec // a folder is entered
	}
	return errors.Join(os.Chown(f.path, -1, f.gid), os.Chmod(f.path, 0o750)) //nolint:gosec // the group enters it
}

// sweep removes what a dead sidecar left.
func (f socketDir) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Type() != fs.ModeSocket || !strings.HasSuffix(entry.Name(), socketSuffix) {
			continue
		}
		path := filepath.Join(f.path, entry.Name())
		dialer := net.Dialer{Timeout: time.Second}
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return errors.Join(fmt.Errorf("another process serves %s", path), conn.Close())
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("see whether a socket is in use: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// listen binds a socket that never was anybody else's: Linux gives its file the
// mode that the unbound socket has (unix_bind_bsd in net/unix/af_unix.c).
func (f socketDir) listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path %s is %d bytes long; the kernel takes %d", path, len(path), maxSocketPath)
	}
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		err := conn.Control(func(fd uintptr) { failed = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil || f.gid < 0 {
		return listener, err
	}
	if err := errors.Join(os.Chown(path, -1, f.gid), os.Chmod(path, 0o660)); err != nil { //nolint:gosec // for the group
		return nil, errors.Join(fmt.Errorf("open the socket to group %s: %w", f.group, err), listener.Close())
	}
	return listener, nil
}

// admits returns an error unless the other end of a connection is root, the
// sidecar's own user or of the group. The modes say so already; this holds also
// when somebody has changed them.
func (f socketDir) admits(conn net.Conn) error {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a unix socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var groups []uint32
	var failed error
	err = raw.Control(func(fd uintptr) {
		if peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); failed == nil && f.gid >= 0 {
			groups, failed = peerGroups(fd)
		}
	})
	switch {
	case errors.Join(err, failed) != nil:
		return fmt.Errorf("ask who is at the other end: %w", errors.Join(err, failed))
	case peer.Uid == 0, int64(peer.Uid) == int64(os.Geteuid()):
		return nil
	case f.gid >= 0 && (int64(peer.Gid) == int64(f.gid) || slices.Contains(groups, uint32(f.gid))):
		return nil
	}
	return fmt.Errorf("process %d of user %d may not use it", peer.Pid, peer.Uid)
}

// peerGroups returns the supplementary groups of the process at the other end of
// a unix socket, as they were when it connected (SO_PEERGROUPS, Linux 4.13).
func peerGroups(fd uintptr) ([]uint32, error) {
	buf := make([]byte, 64*4)
	for {
		size := uint32(len(buf))
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // as getsockopt(2) takes them
		switch {
		case errno == syscall.ERANGE && int(size) > len(buf):
			buf = make([]byte, size)
			continue
		case errno != 0:
			return nil, errno
		}
		groups := make([]uint32, size/4)
		_, err := binary.Decode(buf[:size], binary.NativeEndian, groups)
		return groups, err
	}
}

// groupID returns the number of a group given by name or number.
func groupID(group string) (int, error) {
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("look up group: %w", err)
	}
	return strconv.Atoi(found.Gid)
}
