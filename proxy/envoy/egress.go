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
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// EgressSocketPaths returns the paths that [Egress.Replace] gives the sockets of routes
// in dir, and creates none.
func EgressSocketPaths(dir string, routes []authz.Route) []string {
	paths := make([]string, len(routes))
	for i, route := range routes {
		paths[i] = filepath.Join(dir, keyOf(route).file())
	}
	return paths
}

// routeKey identifies the egress socket of a route.
type routeKey struct {
	grant, rule string
	scheme      authz.Scheme
	host        string
	port        uint16
}

func keyOf(r authz.Route) routeKey { return routeKey{r.Grant, r.Rule, r.Scheme, r.Host, r.Port} }

// file returns the name of the egress socket, which is short whatever the names are, and
// the same in every process.
func (k routeKey) file() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %d", k.grant, k.rule, k.scheme, k.host, k.port))
	name := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
	return strings.ToLower(name) + socketSuffix
}

// EgressConfig is the configuration of an [Egress]. Every field is required.
type EgressConfig struct {
	Plugin       authz.Principal
	Gate         *authz.Gate
	Engine       *authz.Engine
	Live         *session.Registry
	Dialer       *upstream.Dialer
	Budget       *budget.Budget
	Work         *session.Inflight // counts goroutines until they have ended
	Placeholders *placeholder.Cache
	// MaxConnections bounds the open connections of all egress sockets together.
	MaxConnections int
	// Refused reports a refusal and returns it; err is why it could not be recorded.
	Refused func(r authz.Refusal, err error) authz.Refusal
	// OutOfMemory records that something was refused because the budget has no room.
	OutOfMemory func()
	Now         func() time.Time
	Log         *zap.Logger
}

// Egress is the set of all egress sockets.
type Egress struct {
	EgressConfig

	ctx   context.Context //nolint:containedctx // of all connections; ends with the proxy
	stop  context.CancelFunc
	conns atomic.Int64 // open ones

	mu      sync.Mutex // held while the set is replaced
	dir     socketDir
	byRoute map[routeKey]*egressListener
	closed  bool
}

// egressListener is the egress socket of one route.
type egressListener struct {
	egress   *Egress
	route    authz.Route
	path     string
	listener net.Listener
	refusals samplers
}

// NewEgress returns the egress sockets of an Envoy, none of which is bound yet.
func NewEgress(cfg EgressConfig) *Egress {
	s := &Egress{EgressConfig: cfg, byRoute: make(map[routeKey]*egressListener)}
	s.ctx, s.stop = context.WithCancel(context.Background()) //nolint:forbidigo // egress sockets may exist before Serve
	return s
}

// Replace binds the sockets of routes in dir and returns their paths in the order of the
// routes. It closes the sockets of routes that are removed, and their connections stay
// open. After an error the set is unchanged.
func (s *Egress) Replace(dir, group string, routes []authz.Route) (paths []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, session.ErrStopping
	}
	if err := s.prepare(dir, group); err != nil {
		return nil, err
	}
	next, made := make(map[routeKey]*egressListener, len(routes)), []*egressListener(nil)
	for _, route := range routes {
		key := keyOf(route)
		e := cmp.Or(next[key], s.byRoute[key])
		if e == nil {
			if e, err = s.open(route); err != nil {
				for _, e := range made {
					_ = e.listener.Close() // no connection was served
				}
				return nil, fmt.Errorf("%s/%s to %s: %w", route.Grant, route.Rule, session.JoinHostPort(route.Host, route.Port), err)
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

// open binds the egress socket of a route.
func (s *Egress) open(route authz.Route) (*egressListener, error) {
	path := filepath.Join(s.dir.path, keyOf(route).file())
	listener, err := s.dir.listen(s.ctx, path)
	if err != nil {
		return nil, err
	}
	return &egressListener{egress: s, route: route, path: path, listener: listener}, nil
}

// prepare creates the directory, or takes it over, at the first call.
func (s *Egress) prepare(dir, group string) error {
	if s.dir.path == "" {
		taken, err := openSocketDir(s.ctx, dir, group)
		if err != nil {
			return err
		}
		s.dir = taken
	}
	if s.dir.path != filepath.Clean(dir) || s.dir.group != group {
		return fmt.Errorf("directory %q and group %q differ from those of the first call, %q and %q", dir, group, s.dir.path, s.dir.group)
	}
	return nil
}

// Close closes all egress sockets, and the connections that are not live yet.
func (s *Egress) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.stop()
	for _, e := range s.byRoute {
		_ = e.listener.Close() // and removes the socket
	}
	clear(s.byRoute)
}

// serve accepts connections until the socket is closed.
func (e *egressListener) serve() {
	s := e.egress
	defer s.Work.Leave()
	if err := session.Accept(s.ctx, e.listener, s.Log, e.take); err != nil {
		s.Log.Error("egress socket failed", zap.String("rule", e.name()), zap.Error(err))
	}
}

// take starts the handling of one connection.
func (e *egressListener) take(raw net.Conn) {
	s := e.egress
	if err := unixsock.CheckPeer(raw, s.dir.gid); err != nil {
		s.Log.Warn("egress connection not accepted", zap.String("rule", e.name()), zap.Error(err))
		_ = raw.Close() // it was not read from
		return
	}
	if n := s.conns.Add(1); n > int64(s.MaxConnections) {
		s.conns.Add(-1)
		_ = raw.Close() // it was not read from
		e.refuse("", authz.NotReady, session.TooManyConnections(s.MaxConnections, 1))
		return
	}
	memory := s.Budget.Hold()
	c := session.NewConn(&session.Socket{Raw: raw, Memory: memory, OutOfMemory: s.OutOfMemory, Forget: func(*session.Socket) { s.conns.Add(-1); memory.End() }})
	if memory.Take(budget.Request, session.ConnectionCost+session.TunnelCost) != nil {
		_ = c.Cut() // it was not read from
		e.refuse("", authz.NotReady, session.ErrOutOfMemory().Detail)
		return
	}
	s.Work.Enter()
	go func() {
		defer s.Work.Leave()
		e.pass(c)
	}()
}

func (e *egressListener) name() string { return e.route.Grant + "/" + e.route.Rule }

// refuse records that a connection was refused, for each reason once a second: an Envoy
// connects as often as it is asked to. host is "" if it is unknown.
func (e *egressListener) refuse(host string, reason authz.Reason, detail string) {
	s := e.egress
	n := e.refusals.of(reason).Take(s.Now())
	if n == 0 {
		return
	}
	detail = "the egress socket of " + e.name() + ": " + detail
	if n > 1 {
		detail += fmt.Sprintf("; %d refusals before it were not recorded", n-1)
	}
	to := string(e.route.Scheme) + "://" + session.JoinHostPort(cmp.Or(host, e.route.Host), e.route.Port)
	s.Refused(s.Gate.Refuse(reason, authz.Attempt{
		Principal: s.Plugin, URL: to, Host: host, Detail: detail,
	}, authz.Source{Door: authz.DoorExtAuthz, UID: -1}))
	s.Log.Warn("egress connection refused",
		zap.String("to", to), zap.Stringer("reason", reason), zap.String("detail", detail))
}

// samplers has one sampler for each reason.
type samplers struct {
	mu       sync.Mutex
	byReason map[authz.Reason]*ratelimit.Sampler
}

func (r *samplers) of(reason authz.Reason) *ratelimit.Sampler {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byReason == nil {
		r.byReason = make(map[authz.Reason]*ratelimit.Sampler)
	}
	if r.byReason[reason] == nil {
		r.byReason[reason] = new(ratelimit.Sampler)
	}
	return r.byReason[reason]
}
