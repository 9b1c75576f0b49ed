// Package admin serves the admin socket: an HTTP/JSON API on a unix socket that
// only root and the sidecar's own user may use, and its client.
//
//	GET    /v1/status                        Status
//	GET    /v1/usage                         Usage
//	GET    /v1/decisions?limit=&follow=      audit records, one JSON object a line
//	GET    /v1/revocations                   Revocations
//	POST   /v1/revocations                   RevokeRequest -> RevokeResult
//	DELETE /v1/revocations/{id}?reason=      RestoreResult
//	POST   /v1/reload                        ReloadResult
//
// Everything else, and whatever goes wrong, is answered with an Error. The
// server knows nothing of what it serves: Config holds a function for each
// answer. The kernel reports the user of every connection (SO_PEERCRED, unix(7)),
// who becomes the actor of what is done.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Config is what a Server is made of. Every function is required, may be
// called concurrently, and returns an *Error to choose what is answered.
type Config struct {
	// Socket is the path to listen on, with or without "unix:". Its folder is
	// made, 0700, when it is missing.
	Socket string

	Status      func(ctx context.Context) (Status, error)
	Usage       func(ctx context.Context) (Usage, error)
	Revocations func(ctx context.Context) ([]authz.Revocation, error)
	// Decisions calls emit with each audit record, a line without its newline,
	// and returns when there are no more, ctx ends or emit fails.
	Decisions func(ctx context.Context, q DecisionQuery, emit func(line []byte) error) error
	// Revoke revokes access. Its context does not end with the caller's
	// connection: what was begun is finished.
	Revoke  func(ctx context.Context, r RevokeRequest, actor string) (RevokeResult, error)
	Restore func(ctx context.Context, id, reason, actor string) (RestoreResult, error)
	Reload  func(ctx context.Context, actor string) (ReloadResult, error)

	// Refuse is asked about every peer that root's or the sidecar's uid would
	// let in, and refuses it with an error: the place to keep out a plugin that
	// runs as the sidecar's own user. nil refuses nobody.
	Refuse func(Peer) error
	// Log takes what an operator should know: refused peers and broken connections.
	// It may be nil.
	Log *zap.Logger
	// Now is the clock that requests are judged by; nil is time.Now.
	Now func() time.Time
}

// Server serves the admin socket.
type Server struct {
	cfg      Config
	uid      int
	path     string
	listener *listener
	streams  chan struct{} // a place for each stream that follows
}

// maxStreams is how many streams may follow the decisions at a time.
const maxStreams = 32

// New returns a server. It opens nothing and starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Status == nil || cfg.Usage == nil || cfg.Decisions == nil || cfg.Revocations == nil ||
		cfg.Revoke == nil || cfg.Restore == nil || cfg.Reload == nil {
		return nil, errors.New("make admin server: every function is required")
	}
	path, err := socketPath(cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("make admin server: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg, uid: os.Geteuid(), path: path, streams: make(chan struct{}, maxStreams)}, nil
}

// Socket returns the absolute path of the socket.
func (s *Server) Socket() string { return s.path }

// Listen binds the socket, mode 0600, or returns an error: another sidecar answers
// there, or other users may write to the folder. A socket that a dead sidecar
// left is replaced.
func (s *Server) Listen() error {
	l, err := listen(s.path, s.admit, s.cfg.Log)
	if err != nil {
		return fmt.Errorf("listen on admin socket: %w", err)
	}
	s.listener = l
	return nil
}

// Close gives up a socket that Run was not called for.
func (s *Server) Close() error {
	if s.listener == nil {
		return nil
	}
	return s.listener.Close()
}

// shutdownGrace is how long requests in flight may take once Run's context has ended.
const shutdownGrace = 5 * time.Second

// Run serves until ctx ends, lets requests in flight end, removes the socket
// and returns nil. Listen comes first.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		return errors.New("serve admin socket: not listening")
	}
	streaming, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	server := &http.Server{
		Handler:           s.handler(streaming),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(s.cfg.Log),
		ConnContext:       withPeer,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }()
	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("serve admin socket: %w", err), server.Close())
	case <-ctx.Done():
	}
	stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	if err != nil {
		return fmt.Errorf("shut admin socket: %w", err)
	}
	return nil
}

// admit judges a peer: root and the sidecar's own user, except those that Refuse
// refuses.
func (s *Server) admit(p Peer) error {
	if p.UID != 0 && p.UID != s.uid {
		return fmt.Errorf("uid %d is neither root nor %d", p.UID, s.uid)
	}
	if s.cfg.Refuse != nil {
		return s.cfg.Refuse(p)
	}
	return nil
}

type peerKey struct{}

func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*peerConn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}
