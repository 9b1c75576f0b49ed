package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
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

// socketPath returns the absolute path of a socket given as PATH or unix:PATH.
func socketPath(socket string) (string, error) {
	path := strings.TrimPrefix(socket, "unix:")
	if path == "" {
		return "", errors.New("a socket path is required")
	}
	if path[0] != '@' {
		absolute, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		path = absolute
	}
	return path, unixsock.CheckName(path)
}

// maxConns bounds the connections that are open at a time; more are closed at once.
const maxConns = 128

// listener accepts connections of admitted peers only.
type listener struct {
	*unixsock.Listener
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
	bound, err := unixsock.Listen(context.Background(), path, unixsock.Config{}) //nolint:forbidigo // binding a path does not wait
	if err != nil {
		return nil, err
	}
	return &listener{Listener: bound, admit: admit, log: log}, nil
}

// probeSocket connects to a socket and closes the connection. Its error is why it
// cannot.
func probeSocket(path string) error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(context.Background(), "unix", path) //nolint:forbidigo // bounded by a second
	if err != nil {
		return err
	}
	return conn.Close()
}

// makePrivateDir makes dir, 0700, if it is missing, and refuses one in which another
// user could replace an entry.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return unixsock.CheckDir(dir)
}

// Accept returns the next connection of an admitted peer. Others are closed
// without a word.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		credentials, err := unixsock.PeerOf(conn)
		peer := Peer(credentials)
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
