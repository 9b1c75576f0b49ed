package xds

import (
	"fmt"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	xdsserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Status says how Envoys stand to what is served.
type Status struct {
	Generation uint64 // the policy's that is served
	Envoys     []EnvoyStatus
}

// EnvoyStatus is how one connected Envoy stands.
type EnvoyStatus struct {
	Version   string // of Envoy, as it says
	Connected time.Time
}

type followed struct {
	xdsserver.CallbackFuncs

	plugin authz.Principal
	log    *zap.Logger
	mu     sync.Mutex
	gen    uint64
}

func newFollowed(p authz.Principal, log *zap.Logger) *followed { return &followed{plugin: p, log: log} }

func (f *followed) generation(g uint64, _ *cache.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gen = g
}

func (f *followed) node(n *corev3.Node) error {
	if n != nil && n.GetId() != string(f.plugin) {
		return status.Error(codes.PermissionDenied, fmt.Sprintf("this sidecar configures the Envoy of %q", f.plugin))
	}
	return nil
}

// OnStreamRequest sees a request (state of the world).
func (f *followed) OnStreamRequest(_ int64, in *discoveryv3.DiscoveryRequest) error {
	if e := in.GetErrorDetail(); e != nil {
		f.log.Warn("Envoy refused its configuration", zap.String("type", in.GetTypeUrl()), zap.String("error", e.GetMessage()))
	}
	return f.node(in.GetNode())
}

// OnStreamDeltaRequest sees a request (delta).
func (f *followed) OnStreamDeltaRequest(_ int64, in *discoveryv3.DeltaDiscoveryRequest) error {
	if e := in.GetErrorDetail(); e != nil {
		f.log.Warn("Envoy refused its configuration", zap.String("type", in.GetTypeUrl()), zap.String("error", e.GetMessage()))
	}
	return f.node(in.GetNode())
}
