package envoy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// ExitPaths returns the paths that Exits gives the sockets of routes in dir, and
// makes none.
func ExitPaths(dir string, routes []authz.Route) []string {
	paths := make([]string, len(routes))
	for i, route := range routes {
		paths[i] = filepath.Join(dir, keyOf(route).file())
	}
	return paths
}

// exitKey is what makes two routes one exit.
type exitKey struct {
	grant, rule string
	scheme      authz.Scheme
	host        string
	port        uint16
}

func keyOf(r authz.Route) exitKey { return exitKey{r.Grant, r.Rule, r.Scheme, r.Host, r.Port} }

// file returns the name of the exit's socket, which is short whatever the names
// are, and the same in every process.
func (k exitKey) file() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %d", k.grant, k.rule, k.scheme, k.host, k.port))
	name := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
	return strings.ToLower(name) + socketSuffix
}

// EgressConfig is what the exits of an Envoy are made of. All is required.
type EgressConfig struct {
	Plugin       authz.Principal
	Gate         *authz.Gate
	Engine       *authz.Engine
	Live         *session.Registry
	Dialer       *upstream.Dialer
	Budget       *budget.Budget
	Work         *session.Inflight // counts goroutines until they have ended
	Placeholders *placeholder.Lookout
	// MaxConnections bounds the open connections of all exits together.
	MaxConnections int
	// Refused reports a refusal and returns it; err is why it could not be recorded.
	Refused func(r authz.Refusal, err error) authz.Refusal
	// OutOfMemory records that something was refused because the budget has no room.
	OutOfMemory func()
	Now         func() time.Time
	Log         *zap.Logger
}

// Exits is the set of all exits.
type Exits struct {
	EgressConfig

	ctx   context.Context //nolint:containedctx // of all connections; ends with the proxy
	stop  context.CancelFunc
	conns atomic.Int64 // open ones

	mu      sync.Mutex // held while the set is replaced
	folder  folder
	byRoute map[exitKey]*exit
	closed  bool
}

// exit is the way out of one route.
type exit struct {
	set      *Exits
	route    authz.Route
	path     string
	listener net.Listener
	paces    logLimiters
}

func NewExits(cfg EgressConfig) *Exits {
	s := &Exits{EgressConfig: cfg, byRoute: make(map[exitKey]*exit)}
	s.ctx, s.stop = context.WithCancel(context.Background()) //nolint:forbidigo // exits may be there before Serve
	return s
}

func (s *Exits) Replace(dir, group string, routes []authz.Route) (paths []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, session.ErrStopping
	}
	if err := s.settle(dir, group); err != nil {
		return nil, err
	}
	next, made := make(map[exitKey]*exit, len(routes)), []*exit(nil)
	for _, route := range routes {
		key := keyOf(route)
		e := cmp.Or(next[key], s.byRoute[key])
		if e == nil {
			if e, err = s.open(route); err != nil {
				for _, e := range made {
					_ = e.listener.Close() // nobody was served
				}
				return nil, fmt.Errorf("%s/%s to %s: %w", route.Grant, route.Rule, session.JoinPort(route.Host, route.Port), err)
			}
			made = append(made, e)
		}
		next[key], paths = e, append(paths, e.path)
	}
	for key, e := range s.byRoute {
		if next[key] == nil {
			_ = e.listener.Close() // and removes the socket
		}
	}
	for _, e := range made {
		s.Work.Enter()
		go e.serve()
	}
	s.byRoute = next
	return paths, nil
}

// open binds the exit of a route.
func (s *Exits) open(route authz.Route) (*exit, error) {
	path := filepath.Join(s.folder.path, keyOf(route).file())
	listener, err := s.folder.listen(s.ctx, path)
	if err != nil {
		return nil, err
	}
	return &exit{set: s, route: route, path: path, listener: listener}, nil
}

// settle takes the folder over at the first call.
func (s *Exits) settle(dir, group string) error {
	if s.folder.path == "" {
		taken, err := takeFolder(s.ctx, dir, group)
		if err != nil {
			return err
		}
		s.folder = taken
	}
	if s.folder.path != filepath.Clean(dir) || s.folder.group != group {
		return fmt.Errorf("they are in %s for group %q", s.folder.path, s.folder.group)
	}
	return nil
}

// Close closes all exits and ends what was accepted and is not live yet.
func (s *Exits) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.stop()
	for _, e := range s.byRoute {
		_ = e.listener.Close() // and removes the socket
	}
	clear(s.byRoute)
}

// serve takes connections until the exit is closed.
func (e *exit) serve() {
	s := e.set
	defer s.Work.Leave()
	if err := session.Accept(s.ctx, e.listener, s.Log, e.take); err != nil {
		s.Log.Error("accept connection of exit", zap.String("rule", e.name()), zap.Error(err))
	}
}

// take begins with one connection.
func (e *exit) take(raw net.Conn) {
	s := e.set
	if err := s.folder.admits(raw); err != nil {
		s.Log.Warn("accept connection of exit", zap.String("rule", e.name()), zap.Error(err))
		_ = raw.Close() // nothing was read from it
		return
	}
	if n := s.conns.Add(1); n > int64(s.MaxConnections) {
		s.conns.Add(-1)
		_ = raw.Close() // nothing was read from it
		e.refuse("", authz.NotReady, session.TooManyConnections(s.MaxConnections, 1))
		return
	}
	memory := s.Budget.Hold()
	c := session.NewConn(&session.Socket{Raw: raw, Memory: memory, OutOfMemory: s.OutOfMemory, Forget: func(*session.Socket) { s.conns.Add(-1); memory.End() }})
	if memory.Take(budget.Request, session.ConnectionCost+session.TunnelCost) != nil {
		_ = c.Cut() // nothing was read from it
		e.refuse("", authz.NotReady, session.ErrOutOfMemory().Detail)
		return
	}
	s.Work.Enter()
	go func() {
		defer s.Work.Leave()
		e.pass(c)
	}()
}

func (e *exit) name() string { return e.route.Grant + "/" + e.route.Rule }

// refuse records that a connection was refused, for each reason once a second:
// an Envoy connects as often as it is asked to. host is "" where it is not known.
func (e *exit) refuse(host string, reason authz.Reason, detail string) {
	s := e.set
	n := e.paces.of(reason).Take(s.Now())
	if n == 0 {
		return
	}
	detail = "the exit of " + e.name() + ": " + detail
	if n > 1 {
		detail += fmt.Sprintf("; so were %d before it", n-1)
	}
	to := string(e.route.Scheme) + "://" + session.JoinPort(cmp.Or(host, e.route.Host), e.route.Port)
	s.Refused(s.Gate.Refuse(reason, authz.Attempt{
		Principal: s.Plugin, URL: to, Host: host, Detail: detail,
	}, authz.Source{Door: authz.DoorExtAuthz, UID: -1}))
	s.Log.Warn("refuse connection of exit",
		zap.String("to", to), zap.Stringer("reason", reason), zap.String("detail", detail))
}

// logLimiters is a pace for each reason.
type logLimiters struct {
	mu       sync.Mutex
	byReason map[authz.Reason]*session.LogLimiter
}

func (r *logLimiters) of(reason authz.Reason) *session.LogLimiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byReason == nil {
		r.byReason = make(map[authz.Reason]*session.LogLimiter)
	}
	if r.byReason[reason] == nil {
		r.byReason[reason] = new(session.LogLimiter)
	}
	return r.byReason[reason]
}
