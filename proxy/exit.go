package proxy

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

// egressConfig is what the exits of an Envoy are made of. All is required.
type egressConfig struct {
	plugin       authz.Principal
	gate         *authz.Gate
	engine       *authz.Engine
	live         *registry
	dialer       *dialer
	budget       *budget.Budget
	work         *inflight // counts goroutines until they have ended
	placeholders *lookout
	// maxConnections bounds the open connections of all exits together.
	maxConnections int
	// refused reports a refusal and returns it; err is why it could not be recorded.
	refused func(r authz.Refusal, err error) authz.Refusal
	// outOfMemory records that something was refused because the budget has no room.
	outOfMemory func()
	now         func() time.Time
	log         *zap.Logger
}

// exits is the set of all exits.
type exits struct {
	egressConfig

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
	set      *exits
	route    authz.Route
	path     string
	listener net.Listener
	paces    logLimiters
}

func newExits(cfg egressConfig) *exits {
	s := &exits{egressConfig: cfg, byRoute: make(map[exitKey]*exit)}
	s.ctx, s.stop = context.WithCancel(context.Background()) //nolint:forbidigo // exits may be there before Serve
	return s
}

func (s *exits) replace(dir, group string, routes []authz.Route) (paths []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errStopping
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
				return nil, fmt.Errorf("%s/%s to %s: %w", route.Grant, route.Rule, joinPort(route.Host, route.Port), err)
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
		s.work.enter()
		go e.serve()
	}
	s.byRoute = next
	return paths, nil
}

// open binds the exit of a route.
func (s *exits) open(route authz.Route) (*exit, error) {
	path := filepath.Join(s.folder.path, keyOf(route).file())
	listener, err := s.folder.listen(s.ctx, path)
	if err != nil {
		return nil, err
	}
	return &exit{set: s, route: route, path: path, listener: listener}, nil
}

// settle takes the folder over at the first call.
func (s *exits) settle(dir, group string) error {
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

// close closes all exits and ends what was accepted and is not live yet.
func (s *exits) close() {
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
	defer s.work.leave()
	if err := accept(s.ctx, e.listener, s.log, e.take); err != nil {
		s.log.Error("accept connection of exit", zap.String("rule", e.name()), zap.Error(err))
	}
}

// take begins with one connection.
func (e *exit) take(raw net.Conn) {
	s := e.set
	if err := s.folder.admits(raw); err != nil {
		s.log.Warn("accept connection of exit", zap.String("rule", e.name()), zap.Error(err))
		_ = raw.Close() // nothing was read from it
		return
	}
	if n := s.conns.Add(1); n > int64(s.maxConnections) {
		s.conns.Add(-1)
		_ = raw.Close() // nothing was read from it
		e.refuse("", authz.NotReady, tooManyConnections(s.maxConnections, 1))
		return
	}
	memory := s.budget.Hold()
	c := NewConn(&Socket{Raw: raw, Memory: memory, OutOfMemory: s.outOfMemory, Forget: func(*Socket) { s.conns.Add(-1); memory.End() }})
	if memory.Take(budget.Request, connectionCost+tunnelCost) != nil {
		_ = c.Cut() // nothing was read from it
		e.refuse("", authz.NotReady, errOutOfMemory().detail)
		return
	}
	s.work.enter()
	go func() {
		defer s.work.leave()
		e.pass(c)
	}()
}

func (e *exit) name() string { return e.route.Grant + "/" + e.route.Rule }

// refuse records that a connection was refused, for each reason once a second:
// an Envoy connects as often as it is asked to. host is "" where it is not known.
func (e *exit) refuse(host string, reason authz.Reason, detail string) {
	s := e.set
	n := e.paces.of(reason).take(s.now())
	if n == 0 {
		return
	}
	detail = "the exit of " + e.name() + ": " + detail
	if n > 1 {
		detail += fmt.Sprintf("; so were %d before it", n-1)
	}
	to := string(e.route.Scheme) + "://" + joinPort(cmp.Or(host, e.route.Host), e.route.Port)
	s.refused(s.gate.Refuse(reason, authz.Attempt{
		Principal: s.plugin, URL: to, Host: host, Detail: detail,
	}, authz.Source{Door: authz.DoorExtAuthz, UID: -1}))
	s.log.Warn("refuse connection of exit",
		zap.String("to", to), zap.Stringer("reason", reason), zap.String("detail", detail))
}

// logLimiters is a pace for each reason.
type logLimiters struct {
	mu       sync.Mutex
	byReason map[authz.Reason]*logLimiter
}

func (r *logLimiters) of(reason authz.Reason) *logLimiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byReason == nil {
		r.byReason = make(map[authz.Reason]*logLimiter)
	}
	if r.byReason[reason] == nil {
		r.byReason[reason] = new(logLimiter)
	}
	return r.byReason[reason]
}
