package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	xdsserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Config configures a Server.
type Config struct {
	// Plugin is the plugin that this sidecar serves, and the node id that its Envoy
	// states. Required.
	Plugin authz.Principal
	// Engine holds the policy. Required.
	Engine *authz.Engine
	// Now is the wall clock. Required.
	Now func() time.Time
	// Check is the path of the unix socket on which the sidecar answers
	// ext_authz. Required.
	Check string
	// Listener is the path of the Unix socket on which Envoy accepts connections
	// that begin with a PROXY header of version 2. "": no such socket.
	Listener string
	// Explicit and Transparent are Envoy's own listeners: as a proxy that the plugin
	// is configured with, and for connections that the kernel redirects. Zero: absent.
	Explicit, Transparent netip.AddrPort
	// EgressSockets makes the Unix sockets through which the destinations of routes are
	// reached, closes those of other routes, and returns their paths in the same order.
	// Required.
	EgressSockets func([]authz.Route) ([]string, error)
	// Leaf returns a certificate with its chain, and its key, in PEM, that the plugin
	// trusts for a granted https host, or for every name of *.NAME. Nil: TLS to such
	// hosts is refused.
	Leaf func(host string) (certificate, key []byte, err error)
	// Address returns the address that identifies the plugin's connections to the exact
	// host of a tcp rule. Nil: only rules for addresses, and CONNECT.
	Address func(host string) (netip.Addr, bool)
	// Roots are the authorities, in PEM, for upstreams whose rule states none of its own.
	Roots string
	// MaxStreamDuration bounds every request and connection; 0 means an hour.
	MaxStreamDuration time.Duration
	// AccessLog is stdout (also ""), off, or an absolute path, Envoy's own.
	AccessLog string
	// Group is the group, by name or number, whose members may use the sockets.
	// Empty: only the user that makes them.
	Group string
	// Log is for operators. Nil: nothing is logged.
	Log *zap.Logger
}

const (
	defaultMaxStream = time.Hour
	// renewal is the interval at which leaf certificates are renewed, well within their
	// validity.
	renewal       = time.Hour
	retry         = time.Second
	maxEnvoys     = 64
	maxReceived   = 16 << 20 // a request names every resource that an Envoy has
	minClientPing = 10 * time.Second
)

func (c *Config) check() error {
	if c.Plugin == "" || c.EgressSockets == nil || !filepath.IsAbs(c.Check) {
		return errors.New("plugin, exits and the absolute path of the check socket are required")
	}
	if c.Listener == "" && !c.Explicit.IsValid() && !c.Transparent.IsValid() {
		return errors.New("Envoy has no listener; set listener, explicit or transparent")
	}
	if c.MaxStreamDuration < 0 {
		return fmt.Errorf("maxStreamDuration %s is negative; write a positive one", c.MaxStreamDuration)
	}
	if c.MaxStreamDuration == 0 {
		c.MaxStreamDuration = defaultMaxStream
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return nil
}

// Server serves Envoy its configuration.
type Server struct {
	cfg      Config
	cache    cache.SnapshotCache
	grpc     *grpc.Server
	health   *grpchealth.Server
	acks     *ackTracker
	instance string // distinguishes the versions of this process from those of another

	// Used by the goroutine of follow only.
	routes  []authz.Route
	current *cache.Snapshot // the served one
	stale   bool            // it must be made again, even if the routes are the same
}

// New returns a server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Engine == nil || cfg.Now == nil {
		return nil, errors.New("make xDS server: engine and clock are required")
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("make xDS server: %w", err)
	}
	s := &Server{
		cfg: cfg, health: grpchealth.NewServer(), acks: newAckTracker(&cfg),
		instance: strconv.FormatInt(cfg.Now().UnixNano(), 36),
	}
	// There is one configuration for every node; Server.acks refuses Envoys of other
	// plugins.
	s.cache = cache.NewSnapshotCache(true, anyNode{}, discardLog{})
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxConcurrentStreams(maxEnvoys),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
	)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// anyNode maps every node to the one configuration.
type anyNode struct{}

// ID returns the key of the one configuration (cache.NodeHash).
func (anyNode) ID(*corev3.Node) string { return "" }

// discardLog discards the cache's own log; Status has the relevant part.
type discardLog struct{}

func (discardLog) Debugf(string, ...any) {}
func (discardLog) Infof(string, ...any)  {}
func (discardLog) Warnf(string, ...any)  {}
func (discardLog) Errorf(string, ...any) {}

// Serve serves on listener, which it closes, until ctx ends, and then returns nil. A
// connected Envoy keeps its configuration. Clients receive the keys of certificates that
// the plugin trusts, so listener must be a Unix socket for Envoy alone. Call it once.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, xdsserver.NewServer(ctx, s.cache, s.acks))
	s.update(ctx)
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	group.Go(func() error {
		if err := s.grpc.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve xDS: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		s.follow(ctx)
		s.health.Shutdown()
		s.grpc.Stop()
		return nil
	})
	return group.Wait()
}

// follow serves a configuration of every generation.
func (s *Server) follow(ctx context.Context) {
	timer := time.NewTimer(renewal)
	defer timer.Stop()
	for {
		changed := s.cfg.Engine.Current().Changed()
		wait := renewal
		if !s.update(ctx) {
			wait = retry
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
			s.stale = true // certificates may have to be renewed
		}
	}
}

// update serves the configuration of the current generation and reports whether it
// could be made. If not, it serves one without routes, so that nothing stays open by
// mistake.
func (s *Server) update(ctx context.Context) bool {
	snapshot := s.cfg.Engine.Current()
	routes := snapshot.Routes(s.cfg.Plugin, s.cfg.Now())
	if s.current != nil && !s.stale && slices.Equal(routes, s.routes) {
		s.acks.serving(snapshot.Generation(), nil, "")
		return true
	}
	s.routes, s.stale = routes, false
	err := s.serve(ctx, routes, snapshot.Generation(), "")
	if err == nil {
		return true
	}
	s.stale = true
	s.cfg.Log.Error("envoy left without routes", zap.Uint64("generation", snapshot.Generation()), zap.Error(err))
	if bare := s.serve(ctx, nil, snapshot.Generation(), err.Error()); bare != nil {
		// The egress sockets are closed and the sidecar refuses its checks.
		s.acks.serving(snapshot.Generation(), nil, err.Error())
		s.cfg.Log.Error("envoy configuration unchanged", zap.Error(bare))
	}
	return false
}

// serve makes a configuration of routes and serves it to every Envoy.
func (s *Server) serve(ctx context.Context, routes []authz.Route, generation uint64, problem string) error {
	s.acks.preparing()
	r, err := build(&s.cfg, routes, false)
	if err != nil {
		return err
	}
	next, err := s.snapshot(r, generation)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	versions := map[string]string{}
	for url := range next.VersionMap {
		versions[url] = next.GetVersion(url)
	}
	s.acks.serving(generation, versions, problem)
	s.current = next
	if err := s.cache.SetSnapshot(ctx, anyNode{}.ID(nil), next); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve configuration: %w", err)
	}
	return nil
}

// snapshot makes a snapshot of the cache. A type of resources without a change keeps
// its version.
func (s *Server) snapshot(r *resources, generation uint64) (*cache.Snapshot, error) {
	out := &cache.Snapshot{}
	version := versionOf(s.instance, generation)
	out.Resources[types.Cluster] = cache.NewResources(version, resourcesOf(r.clusters))
	out.Resources[types.Listener] = cache.NewResources(version, resourcesOf(r.listeners))
	out.Resources[types.Route] = cache.NewResources(version, resourcesOf(r.routes))
	out.Resources[types.Secret] = cache.NewResources(version, resourcesOf(r.secrets))
	if err := out.Consistent(); err != nil {
		return nil, err
	}
	if err := out.ConstructVersionMap(); err != nil {
		return nil, err
	}
	for i := range out.Resources {
		url, err := cache.GetResponseTypeURL(types.ResponseType(i))
		if err != nil {
			return nil, err
		}
		if s.current != nil && maps.Equal(out.VersionMap[url], s.current.VersionMap[url]) {
			out.Resources[i].Version = s.current.Resources[i].Version
		}
	}
	return out, nil
}

func resourcesOf[T types.Resource](list []T) []types.Resource {
	out := make([]types.Resource, len(list))
	for i, r := range list {
		out[i] = r
	}
	return out
}
