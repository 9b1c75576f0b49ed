package admin

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
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// Peer is the process at the other end, as the kernel recorded it when it
// connected (SO_PEERCRED).
type Peer struct {
	PID int
	UID int
	GID int
}

// Actor returns how the peer stands in the audit log: uid:1000/alice, or
// uid:1000 when the uid has no name.
func (p Peer) Actor() string {
	uid := strconv.Itoa(p.UID)
	if u, err := user.LookupId(uid); err == nil && printable(u.Username) {
		return "uid:" + uid + "/" + u.Username
	}
	return "uid:" + uid
}

// maxPath is the longest path that fits a socket address with its NUL (unix(7)).
const maxPath = 107

// socketPath returns the absolute path of a socket given as PATH or unix:PATH.
func socketPath(socket string) (string, error) {
	path := strings.TrimPrefix(socket, "unix:")
	if path == "" {
		return "", errors.New("a socket path is required")
	}
	if path[0] == '@' || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("socket %q is not in the file system, and has no owner", socket)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if len(path) > maxPath {
		return "", fmt.Errorf("socket path %s has %d bytes; a unix socket's may have %d", path, len(path), maxPath)
	}
	return path, nil
}

// maxConns bounds the connections that are open at a time; more are closed at once.
const maxConns = 128

// listener accepts connections of admitted peers only.
type listener struct {
	*net.UnixListener
	lock  *os.File
	admit func(Peer) error
	log   *zap.Logger
	conns atomic.Int32
}

// peerConn is a connection whose peer is known.
type peerConn struct {
	net.Conn
	peer   Peer
	closed atomic.Bool
	conns  *atomic.Int32
}

// Close closes the connection and frees its place.
func (c *peerConn) Close() error {
	if !c.closed.Swap(true) {
		c.conns.Add(-1)
	}
	return c.Conn.Close()
}

func listen(path string, admit func(Peer) error, log *zap.Logger) (*listener, error) {
	if err := makePrivateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	// Of two sidecars that start at once, one gets the lock: without it both
	// could find the old socket dead, and the slower remove the faster's.
	held, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another sidecar", path), held.Close())
	}
	if err := removeStale(path); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	// The mode of a socket before it is bound is, less the umask, the mode of
	// its file (Linux, unix_bind): it is never open to others, not for a moment.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		return errors.Join(c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) }), chmod)
	}}
	l, err := config.Listen(context.Background(), "unix", path) //nolint:forbidigo // binding a path does not wait
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("not a unix listener"), l.Close(), held.Close())
	}
	return &listener{UnixListener: unixListener, lock: held, admit: admit, log: log}, nil
}

// removeStale removes a socket that nobody answers on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket", path)
	}
	if err = knock(path); err == nil {
		return fmt.Errorf("%s is in use: something answers on it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s may be in use: %w", path, err)
	}
	return os.Remove(path)
}

// knock connects to a socket and hangs up. Its error says why it cannot.
func knock(path string) error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(context.Background(), "unix", path) //nolint:forbidigo // bounded by a second
	if err != nil {
		return err
	}
	return conn.Close()
}

// makePrivateDir makes dir, 0700, if it is missing, and refuses one that
// others could put a socket of their own into.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return runtimedir.Check(dir)
}

// Accept returns the next connection of an admitted peer. Others are closed
// without a word.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(conn)
		if err == nil {
			err = l.admit(peer)
		}
		if err == nil && l.conns.Load() >= maxConns {
			err = fmt.Errorf("%d connections are open", maxConns)
		}
		if err != nil {
			l.log.Warn("refused connection to the admin socket", zap.Int("pid", peer.PID), zap.Int("uid", peer.UID), zap.Error(err))
			if err := conn.Close(); err != nil {
				l.log.Debug("closed refused connection", zap.Error(err))
			}
			continue
		}
		l.conns.Add(1)
		return &peerConn{Conn: conn, peer: peer, conns: &l.conns}, nil
	}
}

// Close stops listening, removes the socket and gives up its lock.
func (l *listener) Close() error {
	return errors.Join(l.UnixListener.Close(), l.lock.Close())
}

func peerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{UID: -1}, fmt.Errorf("identify peer: %w", err)
	}
	var credentials *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) {
		credentials, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, asked); err != nil {
		return Peer{UID: -1}, fmt.Errorf("identify peer: %w", err)
	}
	return Peer{PID: int(credentials.Pid), UID: int(credentials.Uid), GID: int(credentials.Gid)}, nil
}
