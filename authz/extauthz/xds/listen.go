package xds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Modes of a unix socket.
const (
	ownerOnly    fs.FileMode = 0o600
	ownerOrGroup fs.FileMode = 0o660
	writable     fs.FileMode = 0o022 // by anyone but the owner
)

// Listen binds address, which is unix:PATH, once and before Run.
//
// The socket is for the sidecar's own user alone from the moment it exists, and
// for Config.Group as well once bound: who may read it has the keys of the
// certificates that the plugin trusts. Missing folders are created; a folder
// that others may write to is refused. A socket that a dead sidecar left is
// replaced; one that somebody still serves is not.
func (s *Server) Listen(ctx context.Context, address string) error {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok || s.listener != nil {
		return fmt.Errorf("listen for xDS on %s: it takes one address, unix:PATH", address)
	}
	listener, err := listenUnix(ctx, path, s.cfg.Group)
	if err != nil {
		return fmt.Errorf("listen for xDS on %s: %w", address, err)
	}
	s.listener = listener
	return nil
}

func listenUnix(ctx context.Context, path, group string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path of a unix socket must be absolute")
	}
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if err := prepareFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: ownSocket}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if group == "" {
		return listener, nil
	}
	err = os.Chown(path, -1, gid)
	if err == nil {
		err = os.Chmod(path, ownerOrGroup)
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("open the socket to group %s: %w", group, err)
	}
	return listener, nil
}

// ownSocket sets the mode that the socket's file will be created with, which
// Linux takes from the unbound socket (unix_bind_bsd in net/unix/af_unix.c):
// there is no moment at which another user could connect, and no process-wide
// umask to change.
func ownSocket(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = syscall.Fchmod(int(fd), uint32(ownerOnly))
	})
	return errors.Join(err, failed)
}

// groupID returns the number of a group given by name or number.
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("look up group: %w", err)
	}
	return strconv.Atoi(found.Gid)
}

func prepareFolder(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // the caller, another user, looks the socket up in it
		return err
	}
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	if info.Mode()&writable != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("others may write to the folder %s and replace the socket; use a folder of its own in it", folder)
	}
	return nil
}

// removeStale removes a socket that nobody serves.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("something that is not a socket is in its place")
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return errors.New("another process serves it")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("see whether the socket is in use: %w", err)
	}
	return os.Remove(path)
}
