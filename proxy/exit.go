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

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// Exits makes the unix sockets by which an Envoy reaches upstreams, one for each
// route, and returns their paths in the order of the routes. Each call replaces
// the set: an exit that stays keeps its path and its connections, one whose route
// is not among them any more takes no more connections, and what it has is cut
// by [Proxy.Reconsider] alone. After an error the set is what it was.
//
// What is accepted there was admitted, access by access, through another door.
// The exit sees to the rest: that the rule still stands, where the name leads,
// and that the connection ends when the rule does.
//
// dir is the exits' own: it is made if it is missing, for the sidecar's own user
// and, to look up sockets in, for group, which is a name or a number and may use
// the sockets too; "" for nobody else. Both stay what they are at the first call.
// dir has at most 75 bytes, since a socket's path has at most 107 (unix(7)).
//
// It may be called before Serve, which closes the exits when it ends, and at any
// time after; without Serve, Exits of no routes closes them.
func (p *Proxy) Exits(dir, group string, routes []authz.Route) ([]string, error) {
	paths, err := p.exits.replace(dir, group, routes)
	if err != nil {
		return nil, fmt.Errorf("make exits: %w", err)
	}
	return paths, nil
}

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

// exits is the set of all exits.
type exits struct {
	proxy *Proxy
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
	paces    refusalPaces
}

func newExits(p *Proxy) *exits {
	s := &exits{proxy: p, byRoute: make(map[exitKey]*exit)}
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
		s.proxy.work.enter()
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
	p := e.set.proxy
	defer p.work.leave()
	if err := p.accept(e.set.ctx, e.listener, e.take); err != nil {
		p.cfg.Log.Error("accept connection of exit", zap.String("rule", e.name()), zap.Error(err))
	}
}

// take begins with one connection.
func (e *exit) take(raw net.Conn) {
	p := e.set.proxy
	if err := e.set.folder.admits(raw); err != nil {
		p.cfg.Log.Warn("accept connection of exit", zap.String("rule", e.name()), zap.Error(err))
		_ = raw.Close() // nothing was read from it
		return
	}
	if n := e.set.conns.Add(1); n > int64(p.cfg.MaxConnections) {
		e.set.conns.Add(-1)
		_ = raw.Close() // nothing was read from it
		e.refuse("", authz.NotReady, tooManyConnections(p.cfg.MaxConnections, 1))
		return
	}
	memory := p.budget.Hold()
	c := newConn(raw, func(*conn) { e.set.conns.Add(-1); memory.End() }, func() bool { return false })
	c.memory, c.outOfMemory = memory, p.refuseFull
	if memory.Take(budget.Request, connectionCost+tunnelCost) != nil {
		_ = c.cut() // nothing was read from it
		e.refuse("", authz.NotReady, errHeld().detail)
		return
	}
	p.work.enter()
	go func() {
		defer p.work.leave()
		e.pass(c)
	}()
}

func (e *exit) name() string { return e.route.Grant + "/" + e.route.Rule }

// refuse records that a connection was refused, for each reason once a second:
// an Envoy connects as often as it is asked to. host is "" where it is not known.
func (e *exit) refuse(host string, reason authz.Reason, detail string) {
	p := e.set.proxy
	n := e.paces.of(reason).take(p.cfg.Now())
	if n == 0 {
		return
	}
	detail = "the exit of " + e.name() + ": " + detail
	if n > 1 {
		detail += fmt.Sprintf("; so were %d before it", n-1)
	}
	to := string(e.route.Scheme) + "://" + joinPort(cmp.Or(host, e.route.Host), e.route.Port)
	p.refused(p.cfg.Gate.Refuse(reason, authz.Attempt{
		Principal: p.cfg.Plugin, URL: to, Host: host, Detail: detail,
	}, authz.Source{Door: authz.DoorExtAuthz, UID: -1}))
	p.cfg.Log.Warn("refuse connection of exit",
		zap.String("to", to), zap.Stringer("reason", reason), zap.String("detail", detail))
}

// refusalPaces is a pace for each reason.
type refusalPaces struct {
	mu       sync.Mutex
	byReason map[authz.Reason]*refusalPace
}

func (r *refusalPaces) of(reason authz.Reason) *refusalPace {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byReason == nil {
		r.byReason = make(map[authz.Reason]*refusalPace)
	}
	if r.byReason[reason] == nil {
		r.byReason[reason] = new(refusalPace)
	}
	return r.byReason[reason]
}
