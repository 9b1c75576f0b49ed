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

// Config is what a Server is made of.
type Config struct {
	// Plugin is the plugin that this sidecar serves, and the id of the node that
	// its Envoy says it is. Required.
	Plugin authz.Principal
	// Engine says what is granted. Required.
	Engine *authz.Engine
	// Now is the wall clock. Required.
	Now func() time.Time
	// Check is the path of the unix socket on which the sidecar answers
	// ext_authz. Required.
	Check string
	// Listener is the path of the unix socket on which Envoy takes connections
	// that begin with a PROXY header of version 2. "": none.
	Listener string
	// Explicit and Transparent are where Envoy listens by itself, as a proxy that
	// the plugin knows of and for what the kernel redirects. Zero: not there.
	Explicit, Transparent netip.AddrPort
	// EgressSockets makes the unix sockets by which the places of routes are reached,
	// closes those of other routes, and returns their paths in the same order.
	// Required.
	EgressSockets func([]authz.Route) ([]string, error)
	// Leaf returns a certificate, with its chain, and the key of it in PEM, by
	// which the plugin knows a granted https host, or every name of *.NAME. Nil:
	// TLS to such hosts is refused.
	Leaf func(host string) (certificate, key []byte, err error)
	// Address returns the address by which the plugin's connections to the exact
	// host of a tcp rule are known. Nil: only rules for addresses, and CONNECT.
	Address func(host string) (netip.Addr, bool)
	// Roots are the authorities, in PEM, of upstreams whose rule names none.
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
	// renewal is how often leaves are asked for anew: well within the time that
	// one is valid for.
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
		return errors.New("Envoy would listen nowhere")
	}
	if c.MaxStreamDuration < 0 {
		return errors.New("streams must last for some time")
	}
	if c.MaxStreamDuration == 0 {
		c.MaxStreamDuration = defaultMaxStream
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return nil
}

// Server tells Envoy its configuration.
type Server struct {
	cfg      Config
	cache    cache.SnapshotCache
	grpc     *grpc.Server
	health   *grpchealth.Server
	acks     *ackTracker
	instance string // tells the versions of this process from another's

	// Of the loop alone.
	routes  []authz.Route
	current *cache.Snapshot // what is served
	stale   bool            // it must be made anew, whatever the routes are
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
	// There is one configuration, whoever asks; Server.followed sees to that only
	// the plugin's own Envoy does.
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

// anyNode is the node of every configuration.
type anyNode struct{}

// ID returns the key of the one configuration (cache.NodeHash).
func (anyNode) ID(*corev3.Node) string { return "" }

// discardLog drops the cache's own log: what matters of it is in Status.
type discardLog struct{}

func (discardLog) Debugf(string, ...any) {}
func (discardLog) Infof(string, ...any)  {}
func (discardLog) Warnf(string, ...any)  {}
func (discardLog) Errorf(string, ...any) {}

// Serve serves on listener, which it closes, until ctx ends, and returns nil then.
// An Envoy that is connected keeps what it has. Whoever can connect has the keys of
// the certificates that the plugin trusts: it is to be a unix socket for Envoy
// alone. It is to be called once.
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

// follow makes a configuration of every generation.
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

// update puts the configuration of the generation in force and reports whether
// it could be made. Where it could not, one without any route is: nothing stays
// open by mistake.
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
	s.cfg.Log.Error("Envoy is left without routes", zap.Uint64("generation", snapshot.Generation()), zap.Error(err))
	if bare := s.serve(ctx, nil, snapshot.Generation(), err.Error()); bare != nil {
		// Its exits are closed and the sidecar refuses what it asks for.
		s.acks.serving(snapshot.Generation(), nil, err.Error())
		s.cfg.Log.Error("Envoy keeps what it had", zap.Error(bare))
	}
	return false
}

// serve makes a configuration of routes and has it told to every Envoy.
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
		return fmt.Errorf("tell of configuration: %w", err)
	}
	return nil
}

// snapshot makes a snapshot of the cache. A type of resources of which nothing
// changed keeps its version.
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
