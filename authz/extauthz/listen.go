package extauthz

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
	"sync"
	"syscall"
	"time"
)

// Modes of a unix socket.
const (
	ownerOnly    fs.FileMode = 0o600
	ownerOrGroup fs.FileMode = 0o660
	writable     fs.FileMode = 0o022 // by anyone but the owner
)

// Listen binds address, which is unix:PATH or host:port, and returns where it
// listens. It may be called several times, before Run. A unix socket is bound as
// [ListenUnix] does, for Config.Group.
func (s *Server) Listen(ctx context.Context, address string) (net.Addr, error) {
	var listener net.Listener
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		listener, err = ListenUnix(ctx, path, s.cfg.Group)
	} else if _, _, err = net.SplitHostPort(address); err == nil {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for ext_authz on %s: %w", address, err)
	}
	s.listeners = append(s.listeners, limitConns(listener, maxConnections))
	return listener.Addr(), nil
}

// ListenUnix binds the unix socket at path, which must be absolute, for callers
// that are told secrets. It is for the sidecar's own user alone from the moment it
// exists, and for group, a name or a number, as well once bound; "" is nobody
// else. Missing folders are created; a folder that others may write to is
// refused, because they could put a socket of their own in its place and answer
// the caller themselves. A socket that a dead sidecar left is replaced; one that
// somebody still serves is not.
func ListenUnix(ctx context.Context, path, group string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path of a unix socket must be absolute")
	}
	gid, err := GroupID(group)
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

// GroupID returns the number of a group given by name or number, and -1, which
// chown(2) takes for no change, for "".
func GroupID(group string) (int, error) {
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

// limitListener is a listener with at most so many connections at once; further ones
// wait to be accepted.
type limitListener struct {
	net.Listener

	slots     chan struct{}
	closed    chan struct{}
	closeOnce sync.Once
}

func limitConns(listener net.Listener, most int) *limitListener {
	return &limitListener{Listener: listener, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept waits for a slot and a connection.
func (b *limitListener) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &limitConn{Conn: conn, release: sync.OnceFunc(func() { <-b.slots })}, nil
}

// Close closes the listener and ends Accept.
func (b *limitListener) Close() error {
	b.closeOnce.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type limitConn struct {
	net.Conn

	release func()
}

func (c *limitConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
