package extauthz

import (
	"context"
	"sync"
	"time"

	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// health is grpc.health.v1 over Config.Ready. Check reads it at once; Watch sends a
// change within healthInterval.
type health struct {
	*grpchealth.Server

	ready    func() bool
	mu       sync.Mutex
	drained  bool
	draining chan struct{} // closed when the server drains
}

func newHealth(ready func() bool) *health {
	h := &health{Server: grpchealth.NewServer(), ready: ready, draining: make(chan struct{})}
	h.set(false)
	return h
}

// Check asks whether the sidecar is ready.
func (h *health) Check(ctx context.Context, in *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	h.refresh()
	return h.Server.Check(ctx, in)
}

// Watch sends every change, and ends when the server drains, which would wait for it
// otherwise.
func (h *health) Watch(in *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-h.draining:
			cancel()
		case <-ctx.Done():
		}
	}()
	return h.Server.Watch(in, watch{stream, ctx})
}

// watch is a stream that also ends when the server drains.
type watch struct {
	grpc_health_v1.Health_WatchServer

	ctx context.Context //nolint:containedctx // the interface of a stream returns it
}

func (w watch) Context() context.Context { return w.ctx }

// run keeps watchers informed until ctx ends.
func (h *health) run(ctx context.Context) {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		h.refresh()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (h *health) refresh() {
	ready := h.ready()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.set(ready && !h.drained)
}

func (h *health) set(serving bool) {
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	h.SetServingStatus("", status)
	h.SetServingStatus(ServiceName, status)
}

// drain reports NOT_SERVING from now on.
func (h *health) drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.drained {
		return
	}
	h.drained = true
	h.Shutdown()
	close(h.draining)
}
