package extauthz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// socketDirMode is the mode of the directories that Listen makes: the caller, often
// another user, must be able to find the socket.
const socketDirMode fs.FileMode = 0o755

// Listen binds address, which is unix:PATH or host:port, and returns the bound
// address. It may be called several times, before Run. A Unix socket is bound by
// [unixsock.Listen], for the sidecar's own user and Config.Group. Its directory must
// not be writable or replaceable by another user, who could otherwise put a socket in
// its place that allows everything.
func (s *Server) Listen(ctx context.Context, address string) (net.Addr, error) {
	var listener net.Listener
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		listener, err = s.listenUnix(ctx, path)
	} else if _, _, err = net.SplitHostPort(address); err == nil {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for ext_authz on %s: %w", address, err)
	}
	s.AddListener(listener)
	return listener.Addr(), nil
}

// listenUnix binds a Unix socket. With Config.PluginElsewhere the directories above
// the socket's own are reported and not refused.
func (s *Server) listenUnix(ctx context.Context, path string) (net.Listener, error) {
	cfg := unixsock.Config{Group: s.cfg.Group, DirMode: socketDirMode}
	if dir := filepath.Dir(path); s.cfg.PluginElsewhere && filepath.IsAbs(path) {
		if err := os.MkdirAll(dir, socketDirMode); err != nil {
			return nil, fmt.Errorf("make directory of socket: %w", err)
		}
		err := unixsock.CheckDir(dir)
		if replaceable, ok := errors.AsType[*unixsock.ReplaceableError](err); ok && replaceable.Dir != dir {
			s.log.Info("socket directory replaceable", zap.Error(err))
			cfg.DirChecked = true
		}
	}
	return unixsock.Listen(ctx, path, cfg)
}

// AddListener adds a listener for Run to serve and close. It may be called several
// times, before Run.
func (s *Server) AddListener(listener net.Listener) {
	s.listeners = append(s.listeners, limitConns(listener, maxConnections))
}

// limitListener is a listener with a limited number of open connections; further ones
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
