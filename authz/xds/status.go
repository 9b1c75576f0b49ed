package xds

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	xdsserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"go.uber.org/zap"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Status describes the served configuration and the state of every Envoy.
type Status struct {
	Generation uint64 // of the served policy; 0 before Run
	Pending    bool   // the configuration of another generation is being made
	Problem    string // why the configuration has no routes; "" if it has
	Envoys     []Envoy
}

// Envoy is the state of one connected Envoy.
type Envoy struct {
	Version   string    // as Envoy states it, as in 1.40.0
	Delta     bool      // it uses the delta protocol, not the state of the world
	Connected time.Time // the start of its stream
	// Acknowledged is the generation that it has acknowledged (ACK) of each type of
	// resource that it requested: Cluster, Listener, RouteConfiguration and Secret.
	Acknowledged map[string]uint64
	// Refused is its error for resources that it refused (NACK), by their type. It
	// keeps the previous ones.
	Refused map[string]string
}

// Current reports whether the Envoy has acknowledged the served configuration.
func (s Status) Current(e Envoy) bool {
	if s.Pending || len(e.Refused) > 0 || len(e.Acknowledged) < 3 {
		return false // at least listeners, routes and clusters
	}
	for _, generation := range e.Acknowledged {
		if generation != s.Generation {
			return false
		}
	}
	return true
}

// Status returns the served configuration's status and the state of every Envoy.
func (s *Server) Status() Status { return s.acks.status() }

// ackTracker tracks the responses and acknowledgements of every stream. Its callbacks
// are called for each message of a stream, in order.
type ackTracker struct {
	xdsserver.CallbackFuncs

	plugin authz.Principal
	now    func() time.Time
	log    *zap.Logger

	mu         sync.Mutex
	generation uint64
	pending    bool
	problem    string
	versions   map[string]string // the served versions, by type
	streams    map[stream]*ackState
}

// stream identifies a stream: the two protocols number theirs separately.
type stream struct {
	delta bool
	id    int64
}

// ackState is the state of one Envoy.
type ackState struct {
	version   string
	connected time.Time
	types     map[string]*typeState
}

// typeState is the state of one Envoy's resources of one type.
type typeState struct {
	nonce, sent string // of the last response
	accepted    string // the last acknowledged version
	refused     string // the error of the last response
	initial     bool   // it stated the resources that it already had; equal ones are not sent
}

func newAckTracker(cfg *Config) *ackTracker {
	return &ackTracker{plugin: cfg.Plugin, now: cfg.Now, log: cfg.Log, streams: map[stream]*ackState{}}
}

// preparing records that the configuration of another generation is being made: the
// egress sockets are already those of that generation, but it is not served yet.
func (f *ackTracker) preparing() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = true
}

// serving records the served versions; nil versions are the previous ones.
func (f *ackTracker) serving(generation uint64, versions map[string]string, problem string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.generation, f.pending, f.problem = generation, false, problem
	if versions != nil {
		f.versions = versions
	}
}

func (f *ackTracker) status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := Status{Generation: f.generation, Pending: f.pending, Problem: f.problem}
	for name, t := range f.streams {
		e := Envoy{Version: t.version, Delta: name.delta, Connected: t.connected, Acknowledged: map[string]uint64{}, Refused: map[string]string{}}
		for url, of := range t.types {
			kind := url[strings.LastIndexByte(url, '.')+1:]
			switch {
			case of.refused != "":
				e.Refused[kind] = of.refused
			case of.initial && of.sent == "":
				e.Acknowledged[kind] = f.generation
			case of.accepted == "":
			case of.accepted == f.versions[url]:
				e.Acknowledged[kind] = f.generation
			default:
				e.Acknowledged[kind] = generationOf(of.accepted)
			}
		}
		out.Envoys = append(out.Envoys, e)
	}
	slices.SortFunc(out.Envoys, func(x, y Envoy) int { return x.Connected.Compare(y.Connected) })
	return out
}

// versionOf returns the version of a generation. instance distinguishes it from those
// of another run of the sidecar.
func versionOf(instance string, generation uint64) string {
	return instance + "." + strconv.FormatUint(generation, 10)
}

func generationOf(version string) uint64 {
	_, text, _ := strings.Cut(version, ".")
	generation, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0 // of another program
	}
	return generation
}

func (f *ackTracker) open(s stream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[s] = &ackState{connected: f.now(), types: map[string]*typeState{}}
	return nil
}

func (f *ackTracker) closed(s stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.streams, s)
	f.log.Info("envoy disconnected")
}

func (f *ackTracker) requested(s stream, node *corev3.Node, url, nonce string, detail *statuspb.Status) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.streams[s]
	if node != nil {
		if node.GetId() != string(f.plugin) {
			f.log.Warn("envoy of another plugin refused", zap.String("node", node.GetId()))
			return status.Error(codes.PermissionDenied, fmt.Sprintf("this is the configuration of %q, not of %q", f.plugin, node.GetId()))
		}
		if t.version == "" {
			v := node.GetUserAgentBuildVersion().GetVersion()
			t.version = fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
			f.log.Info("envoy connected", zap.String("version", t.version))
		}
	}
	of := t.types[url]
	if of == nil {
		of = &typeState{}
		t.types[url] = of
	}
	if nonce == "" || nonce != of.nonce {
		return nil
	}
	if of.refused = detail.GetMessage(); detail != nil {
		f.log.Error("envoy configuration refused", zap.String("type", url), zap.String("error", of.refused))
		return nil
	}
	of.accepted = of.sent
	return nil
}

// hasResources records that an Envoy which was configured by an earlier server has
// resources of a type. It gets a response at once if they differ from the served ones.
func (f *ackTracker) hasResources(s stream, url string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[s].types[url].initial = true
}

func (f *ackTracker) sent(s stream, url, nonce, version string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.streams[s]; t != nil && t.types[url] != nil {
		t.types[url].nonce, t.types[url].sent = nonce, version
	}
}

// The callbacks of the two protocols follow.

// OnStreamOpen records a new stream.
func (f *ackTracker) OnStreamOpen(_ context.Context, id int64, _ string) error {
	return f.open(stream{false, id})
}

// OnStreamClosed records the end of a stream.
func (f *ackTracker) OnStreamClosed(id int64, _ *corev3.Node) { f.closed(stream{false, id}) }

// OnStreamRequest records a request.
func (f *ackTracker) OnStreamRequest(id int64, in *discoveryv3.DiscoveryRequest) error {
	return f.requested(stream{false, id}, in.GetNode(), in.GetTypeUrl(), in.GetResponseNonce(), in.GetErrorDetail())
}

// OnStreamResponse records a response.
func (f *ackTracker) OnStreamResponse(_ context.Context, id int64, _ *discoveryv3.DiscoveryRequest, out *discoveryv3.DiscoveryResponse) {
	f.sent(stream{false, id}, out.GetTypeUrl(), out.GetNonce(), out.GetVersionInfo())
}

// OnDeltaStreamOpen records a new stream.
func (f *ackTracker) OnDeltaStreamOpen(_ context.Context, id int64, _ string) error {
	return f.open(stream{true, id})
}

// OnDeltaStreamClosed records the end of a stream.
func (f *ackTracker) OnDeltaStreamClosed(id int64, _ *corev3.Node) { f.closed(stream{true, id}) }

// OnStreamDeltaRequest records a request.
func (f *ackTracker) OnStreamDeltaRequest(id int64, in *discoveryv3.DeltaDiscoveryRequest) error {
	err := f.requested(stream{true, id}, in.GetNode(), in.GetTypeUrl(), in.GetResponseNonce(), in.GetErrorDetail())
	if err == nil && len(in.GetInitialResourceVersions()) > 0 {
		f.hasResources(stream{true, id}, in.GetTypeUrl())
	}
	return err
}

// OnStreamDeltaResponse records a response.
func (f *ackTracker) OnStreamDeltaResponse(id int64, _ *discoveryv3.DeltaDiscoveryRequest, out *discoveryv3.DeltaDiscoveryResponse) {
	f.sent(stream{true, id}, out.GetTypeUrl(), out.GetNonce(), out.GetSystemVersionInfo())
}
