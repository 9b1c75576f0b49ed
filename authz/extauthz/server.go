package extauthz

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	logv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
)

// ServiceName is the gRPC service that this server serves. grpc.health.v1 reports on
// it by this name and by "".
const ServiceName = "envoy.service.auth.v3.Authorization"

// HeaderRoute is the header that names the rule which allowed a request, as
// GRANT/RULE. A header of this name from the plugin is ignored.
const HeaderRoute = "x-chaperone-route"

// Limits for callers. A caller that exceeds one gets a gRPC error, which is not a
// policy outcome; Envoy then refuses the request, unless it is configured to fail
// open.
const (
	maxMessage     = 4 << 20  // a CheckRequest, including the body that the filter sends; a larger one is refused
	maxReceived    = 16 << 20 // more than Envoy's largest max_request_headers_kb; beyond it grpc answers with an error
	maxMetadata    = 64 << 10 // the headers of the gRPC call itself
	maxStreams     = 4096     // checks at once on one connection
	maxConnections = 1024     // further ones wait to be accepted
	handshakeLimit = 10 * time.Second
	idlePing       = time.Minute
	pingTimeout    = 20 * time.Second
	minClientPing  = 10 * time.Second
	healthInterval = time.Second // the delay of Watch
	defaultDrain   = 10 * time.Second
	stackOfCheck   = 7 << 10 // with grpc's own frames, a stack of 16 KiB
	streamWorkers  = 32      // goroutines that keep their stacks; further streams get one of their own

	// Flow control windows. Fixed windows save grpc's bandwidth probes, which a
	// socket on the same host does not need.
	streamWindow     = 256 << 10
	connectionWindow = 4 << 20
)

// Config configures a Server.
type Config struct {
	// Plugin is the plugin that this sidecar serves. Required.
	Plugin authz.Principal
	// SPIFFEIDs maps source.principal, the identity in the plugin's client
	// certificate as the caller verified it, to the plugin that it proves. Whole
	// strings are compared. Nil: the principal is ignored. Otherwise a check that
	// context_extensions["plugin"] does not identify must have one of them.
	SPIFFEIDs map[string]authz.Principal
	// Gate admits. Required.
	Gate *authz.Gate
	// Forbidden reports the addresses that are never reached, regardless of grants: the
	// sidecar's own listeners, its Vault. It only applies to destinations that are
	// addresses, since the caller resolves names. Nil: no address.
	Forbidden func(netip.AddrPort) bool
	// FindPlaceholder returns the function that finds the placeholder of a credential
	// in a text, in any encoding, and returns its credential; nil while there are no
	// placeholders. It is called for each admitted access, and what it returns with the
	// path, the query and the headers, without the credential's slot; bodies are not
	// visible here. Nil: there are no placeholders.
	FindPlaceholder func() func(text string) (grant, credential string, found bool)
	// Name returns the name of a virtual address that the sidecar's own resolver
	// assigned. Such an address, dialled by the plugin or in the Host header, stands
	// for its name. Nil: there are no virtual addresses.
	Name func(addr netip.Addr) (host string, ok bool)
	// RouteHeader sets the header [HeaderRoute] of an allowed request to its rule, by
	// which the caller chooses the route. An access that no rule allowed, because the
	// whole sidecar observes, has no route and is refused as not_enforceable_here.
	RouteHeader bool
	// ErrorResponse answers errors inside the sidecar, as opposed to refusals by the
	// policy, with error_response: the caller counts an error, and passes the request
	// if it is configured to fail open. A caller that does not support error_response
	// denies it. False: all are denied.
	ErrorResponse bool
	// Enforces are the conditions of rules that the caller enforces, because this
	// sidecar configured it. Zero: none, and a rule that states addresses, TLS terms or
	// a timeout is refused as not_enforceable_here.
	Enforces authz.Conditions
	// Ready reports whether the sidecar is ready, for grpc.health.v1. Checks are
	// answered in any case, since a refusal has a reason. Required.
	Ready func() bool
	// TLS is for TCP listeners, which use plain text if it is nil. Callers with a
	// verified certificate may receive credentials.
	TLS *tls.Config
	// Callers are the SPIFFE ids and DNS names of the certificates that may receive
	// credentials. Empty: every verified certificate.
	Callers []string
	// Group is the group, by name or number, whose members may use a Unix socket.
	// Empty: only the sidecar's own user.
	Group string
	// PluginElsewhere states that the plugin is in another container or on another
	// machine and cannot replace the directory of a Unix socket. The directories above
	// it may then be open to others, as a volume shared with the caller is.
	PluginElsewhere bool
	// Drain bounds the duration of checks in flight when Run ends; 0 means ten
	// seconds.
	Drain time.Duration
	// Refused is called with every refusal, before it is answered. It may be nil,
	// must be safe for concurrent use and must not block.
	Refused func(authz.Refusal)
	// Log is for operators. Nil: nothing is logged.
	Log *zap.Logger
}

// Server answers Envoy's ext_authz checks.
type Server struct {
	cfg       Config
	log       *zap.Logger
	health    *health
	listeners []net.Listener
	methods   []string // that it serves
	misuse    ratelimit.Sampler
}

// filterHTTPAuthz is the name of Envoy's ext_authz filter, under which the dynamic
// metadata of answers is kept.
const filterHTTPAuthz = "envoy.filters.http.ext_authz"

// New returns a server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Plugin == "" || cfg.Gate == nil || cfg.Ready == nil {
		return nil, errors.New("make ext_authz server: plugin, gate and readiness are required")
	}
	s := &Server{cfg: cfg, log: cfg.Log, health: newHealth(cfg.Ready), methods: servedMethods()}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.cfg.Drain <= 0 {
		s.cfg.Drain = defaultDrain
	}
	return s, nil
}

// newGRPC returns the gRPC server. It starts the stream workers, which end with it.
func (s *Server) newGRPC() *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(newTransport(s.cfg)),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxHeaderListSize(maxMetadata),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.InTapHandle(s.intercept),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: idlePing, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
	)
	server.RegisterService(serviceDesc(), s)
	grpc_health_v1.RegisterHealthServer(server, s.health)
	logv3.RegisterAccessLogServiceServer(server, accessLogs{server: s})
	return server
}

// Run serves the listeners until ctx ends, then reports NOT_SERVING, accepts no new
// checks, lets those in flight end within Config.Drain, and returns nil. It returns an
// error if a listener fails.
func (s *Server) Run(ctx context.Context) error {
	if len(s.listeners) == 0 {
		return errors.New("run ext_authz server: no listener; call Listen before")
	}
	server := s.newGRPC()
	group, ctx := errgroup.WithContext(ctx)
	for _, listener := range s.listeners {
		group.Go(func() error {
			if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serve ext_authz on %s: %w", listener.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		s.health.run(ctx)
		s.stop(server)
		return nil
	})
	return group.Wait()
}

// stop ends every connection, gracefully for as long as Config.Drain allows.
func (s *Server) stop(server *grpc.Server) {
	s.health.drain()
	force := time.AfterFunc(s.cfg.Drain, server.Stop)
	defer force.Stop()
	server.GracefulStop()
}

// Close releases a server for which Run is not called.
func (s *Server) Close() {
	for _, listener := range s.listeners {
		listener.Close()
	}
}

// serviceDesc describes the service like its generated code, except that codec reads
// checks from the wire format and writes answers in it.
func serviceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: ServiceName,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Check", Handler: handleCheck}},
		Metadata:    "envoy/service/auth/v3/external_auth.proto",
	}
}

//nolint:revive // the order of the arguments is grpc's
func handleCheck(server any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	s, ok := server.(*Server)
	if !ok {
		return nil, errors.New("handle check: not this server")
	}
	growStack()
	in := new(checkMessage)
	if err := decode(in); err != nil {
		return nil, err
	}
	out := s.respond(ctx, in)
	return &out, nil
}

// growStack grows the stack of a goroutine to the size of a check at once. grpc
// starts a goroutine with 2 KiB for each call; without this it doubles three times, and
// is copied each time. BenchmarkCheck uses 6 to 10 % more CPU time without it, client
// included.
//
//go:noinline
func growStack() {
	var room [stackOfCheck]byte
	runtime.KeepAlive(&room)
}

// checkMessage is a received check.
type checkMessage struct {
	check      check
	unreadable bool
}

// codec is grpc's own, except for checks and their answers. It passes on a check that
// is too large or cannot be read, so that it is refused like every malformed request:
// grpc would answer it with an error, and Envoy passes a request on an error if it is
// configured to fail open (CVE-2024-23324, CVE-2023-27488).
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Unmarshal decodes data into v (encoding.CodecV2).
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*checkMessage)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	in.unreadable = data.Len() > maxMessage || !in.check.read(data)
	return nil
}

// Marshal encodes v (encoding.CodecV2).
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if out, ok := v.(*answer); ok {
		return mem.BufferSlice{mem.SliceBuffer(out.encode())}, nil
	}
	return c.CodecV2.Marshal(v)
}

// respond answers whether an access may be made. It refuses the access on any error.
func (s *Server) respond(ctx context.Context, in *checkMessage) (out answer) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("ext_authz check panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			out = s.refuseUnrecorded()
		}
	}()
	if in.unreadable {
		return s.refuse(requestLine{}.malformed("the check is not a CheckRequest of at most 4 MiB in valid encoding"), false)
	}
	principal, f := s.identify(&in.check)
	var a *access
	if f == nil {
		a, f = s.read(&in.check, principal)
	}
	if f != nil {
		return s.refuse(f, in.check.wantsGRPC())
	}
	a.request.Unenforceable = s.unenforceable(ctx)
	if a.connect {
		if refusal, refused, err := s.cfg.Gate.RefuseConnect(principal, a.request.Destination, a.source); refused {
			s.logUnrecorded(refusal, err)
			return s.refusalAnswer(refusal, authz.Decision{}, a.grpc)
		}
	}
	return s.admit(ctx, a)
}

// admit asks the gate and returns the answer. The caller makes the access, so it
// ends here with the answer.
func (s *Server) admit(ctx context.Context, a *access) answer {
	early, cancel := withEarlyDeadline(ctx)
	defer cancel()
	var out answer
	admission, err := s.cfg.Gate.AdmitAndEnd(early, a.request, a.source, func(admission *authz.Admission) authz.Outcome {
		var outcome authz.Outcome
		if out, outcome.Detail = s.finish(a, admission); outcome.Detail == "" && ctx.Err() != nil {
			outcome.Detail = "the caller gave up before the answer"
		}
		return outcome
	})
	if err != nil {
		s.log.Warn("access refused by a cause outside the policy", zap.String("decision", admission.ID), zap.Error(err))
	}
	if admission.Refusal != nil {
		return s.refusalAnswer(*admission.Refusal, admission.Decision, a.grpc)
	}
	return out
}

// finish answers an admitted access, and returns why it is refused after all.
func (s *Server) finish(a *access, admission *authz.Admission) (answer, string) {
	if refusal, found := s.misplacedPlaceholder(a, admission); found {
		return s.refusalAnswer(refusal, admission.Decision, a.grpc), refusal.Detail
	}
	if refusal, refused := s.checkAddress(admission); refused {
		return s.refusalAnswer(refusal, admission.Decision, a.grpc), refusal.Detail
	}
	out, detail := s.allow(a, admission)
	if detail != "" {
		out = s.refusalAnswer(admission.Refuse(authz.NotEnforceableHere, detail), admission.Decision, a.grpc)
	}
	return out, detail
}

// checkAddress refuses a destination that is an address and must not be reached; others
// have no address here.
func (s *Server) checkAddress(admission *authz.Admission) (refusal authz.Refusal, refused bool) {
	to := admission.Request.Destination
	addr := to.Address()
	switch {
	case !addr.IsValid():
	case admission.Decision.CheckAddress(addr) != authz.Granted:
		return admission.RefuseAddress(addr), true
	case s.cfg.Forbidden != nil && s.cfg.Forbidden(netip.AddrPortFrom(addr, to.Port())):
		return admission.Refuse(authz.AddressNotAllowed, to.HostPort()+" belongs to the sidecar"), true
	}
	return authz.Refusal{}, false
}

// deadlineCtx is a context that ends shortly before the caller's deadline, so that an
// access that takes too long, as when Vault does not answer, is refused. The deadline
// itself is an error to the caller, on which Envoy passes the request if it is
// configured to fail open. Few checks wait, so the timer is made at the first use.
type deadlineCtx struct {
	context.Context //nolint:containedctx // it is a context

	deadline time.Time
	once     sync.Once
	inner    context.Context //nolint:containedctx // made at the first use
	cancel   context.CancelFunc
}

// withEarlyDeadline returns a context that ends early, and a function that releases it.
func withEarlyDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	e := &deadlineCtx{Context: ctx, deadline: deadline.Add(-time.Until(deadline) / 10)}
	return e, func() {
		e.once.Do(func() { e.inner, e.cancel = e.Context, func() {} })
		e.cancel() // without effect if no timer was made
	}
}

func (e *deadlineCtx) start() context.Context {
	e.once.Do(func() { e.inner, e.cancel = context.WithDeadline(e.Context, e.deadline) })
	return e.inner
}

// Deadline returns when it ends (context.Context).
func (e *deadlineCtx) Deadline() (time.Time, bool) { return e.deadline, true }

// Done returns what is closed when it ends (context.Context).
func (e *deadlineCtx) Done() <-chan struct{} { return e.start().Done() }

// Err returns why it ended (context.Context).
func (e *deadlineCtx) Err() error { return e.start().Err() }

// refuse answers a check that is not an access.
func (s *Server) refuse(f *rejection, wantsGRPC bool) answer {
	refusal, err := s.cfg.Gate.Refuse(f.reason, f.attempt, authz.Source{Door: authz.DoorExtAuthz, UID: -1})
	s.logUnrecorded(refusal, err)
	refusal.Remedy = cmp.Or(f.remedy, refusal.Remedy)
	return s.refusalAnswer(refusal, authz.Decision{}, wantsGRPC)
}

// logUnrecorded logs the error if a refusal could not be recorded.
func (s *Server) logUnrecorded(refusal authz.Refusal, err error) {
	if err != nil {
		s.log.Warn("refusal not recorded", zap.String("decision", refusal.Decision), zap.Error(err))
	}
}

// refuseUnrecorded answers when refusing failed as well.
func (s *Server) refuseUnrecorded() answer {
	return s.deny(authz.Refusal{Reason: authz.NotReady, Detail: "the check failed inside the sidecar"}, authz.Decision{}, false)
}

func (s *Server) refusalAnswer(refusal authz.Refusal, decision authz.Decision, wantsGRPC bool) answer {
	if s.cfg.Refused != nil {
		copied := refusal
		copied.Method = strings.Clone(copied.Method) // does not keep the whole check in memory
		s.cfg.Refused(copied)
	}
	return s.deny(refusal, decision, wantsGRPC)
}

// contextPlugin is the key of the context extensions, part of the caller's own
// configuration, in which the operator names the plugin.
const contextPlugin = "plugin"

// identify returns the plugin that the check is for: the one that the route's
// configuration names, else the verified identity in the plugin's certificate, else the
// sidecar's only plugin.
func (s *Server) identify(c *check) (authz.Principal, *rejection) {
	unknown := func(detail string) (authz.Principal, *rejection) {
		return "", &rejection{reason: authz.IdentityUnknown, attempt: authz.Attempt{Detail: detail}}
	}
	if c.hasPlugin {
		if authz.Principal(c.plugin) != s.cfg.Plugin {
			return unknown("the context extension names the plugin " + quote(c.plugin) + ", which this sidecar does not serve")
		}
		return s.cfg.Plugin, nil
	}
	if s.cfg.SPIFFEIDs == nil {
		return s.cfg.Plugin, nil
	}
	if plugin := s.cfg.SPIFFEIDs[c.principal]; c.principal == "" || plugin != s.cfg.Plugin {
		return unknown("the principal " + quote(c.principal) + " is not a plugin of this sidecar")
	}
	return s.cfg.Plugin, nil
}

// unenforceable returns the conditions that the caller does not enforce.
func (s *Server) unenforceable(ctx context.Context) authz.Conditions {
	p, ok := peer.FromContext(ctx)
	return authz.EnvoyUnenforceable(s.cfg.Enforces, ok && trusted(p.AuthInfo))
}

// wantsGRPC reports whether a rejected check came from a gRPC plugin.
func (c *check) wantsGRPC() bool {
	return slices.ContainsFunc(c.headers(), func(h header) bool { return h.name == "content-type" && httpclean.IsGRPC(h.value) })
}
