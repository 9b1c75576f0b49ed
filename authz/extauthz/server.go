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

// ServiceName is the gRPC service that this door serves, and the name under
// which grpc.health.v1 reports on it, besides "".
const ServiceName = "envoy.service.auth.v3.Authorization"

// HeaderRoute is the header that names the rule which allowed a request, as
// GRANT/RULE. What the plugin sends by this name is never believed.
const HeaderRoute = "x-chaperone-route"

// What a caller may take. A caller that goes beyond gets a gRPC error, which
// is not a policy outcome; Envoy refuses the request then, unless it is
// configured to fail open.
const (
	maxMessage     = 4 << 20  // a CheckRequest, with whatever body the filter was told to send; a larger one is refused
	maxReceived    = 16 << 20 // more than Envoy's largest max_request_headers_kb; beyond it grpc answers an error
	maxMetadata    = 64 << 10 // the headers of the gRPC call itself
	maxStreams     = 4096     // checks at once on one connection
	maxConnections = 1024     // further ones wait to be accepted
	handshakeLimit = 10 * time.Second
	idlePing       = time.Minute
	pingTimeout    = 20 * time.Second
	minClientPing  = 10 * time.Second
	healthInterval = time.Second // how soon Watch hears of a change
	defaultDrain   = 10 * time.Second
	stackOfCheck   = 7 << 10 // with what grpc uses, a stack of 16 KiB

	// Windows of flow control. That they are fixed saves grpc its probes for
	// larger ones, which a socket on the same host does not need.
	streamWindow     = 256 << 10
	connectionWindow = 4 << 20
)

// Config is what a Server is made of.
type Config struct {
	// Plugin is the plugin that this sidecar serves. Required.
	Plugin authz.Principal
	// SPIFFEIDs maps source.principal, the identity in the plugin's client
	// certificate as the caller verified it, to the plugin it proves. Whole
	// strings are compared. Nil: the principal is not looked at. Otherwise a
	// check that context_extensions["plugin"] does not identify must have one
	// of them.
	SPIFFEIDs map[string]authz.Principal
	// Gate admits. Required.
	Gate *authz.Gate
	// Forbidden reports the addresses that are never reached, whatever is
	// granted: the sidecar's own listeners, its Vault. Only a destination that is
	// an address can be held against it here; names are resolved by the caller.
	// Nil: none.
	Forbidden func(netip.AddrPort) bool
	// FindPlaceholder finds the stand-in for a credential in a text, in any spelling, and
	// says which one's it is. It is asked for the path, the query and the headers of
	// what is admitted, without the credential's place; bodies are not seen here.
	// Nil: there are none.
	FindPlaceholder func(text string) (grant, credential string, found bool)
	// Name returns the name that a virtual address was given out for, as the
	// sidecar's own resolver does. Such an address, where the plugin dialled it or
	// put it into Host, stands for its name. Nil: there are none.
	Name func(addr netip.Addr) (host string, ok bool)
	// RouteHeader has an allowed request say in the header [HeaderRoute] which rule
	// allowed it, for the caller to choose the rule's route by. An access that no
	// rule allowed, since the whole sidecar observes, has no route and is refused
	// as not_enforceable_here.
	RouteHeader bool
	// ErrorResponse answers what failed inside the sidecar, as opposed to what the
	// policy refuses, with error_response: the caller counts it as an error, and
	// passes the request where it is configured to fail open. A caller that does
	// not know error_response denies it. False: all is denied.
	ErrorResponse bool
	// Enforces are the conditions of rules that the caller is known to
	// enforce, because this sidecar configured it. Zero: it enforces none, and
	// a rule that states its addresses, TLS terms or a timeout is refused as
	// not_enforceable_here.
	Enforces authz.Conditions
	// Ready reports whether the sidecar is ready, for grpc.health.v1. Checks
	// are answered regardless, since a refusal says more. Required.
	Ready func() bool
	// TLS serves listeners on TCP, which are plain text when it is nil. Callers
	// whose certificate it verified are trusted with credentials.
	TLS *tls.Config
	// Callers are the SPIFFE ids and DNS names of certificates that are trusted
	// with credentials. Empty: every certificate that TLS verified.
	Callers []string
	// Group is the group, by name or number, whose members may use a unix
	// socket. Empty: only the sidecar's own user.
	Group string
	// PluginElsewhere states that the plugin is in another container or on another
	// machine and cannot replace the directory of a Unix socket. The directories above
	// it may then be open to others, as a volume shared with the caller is.
	PluginElsewhere bool
	// Drain bounds how long checks in flight may take when Run ends; 0 means
	// ten seconds.
	Drain time.Duration
	// Refused is told of every refusal, before it is answered. It may be nil,
	// must be safe for concurrent use and must not block.
	Refused func(authz.Refusal)
	// Log is for operators. Nil: nothing is logged.
	Log *zap.Logger
}

// Server is Envoy's door.
type Server struct {
	cfg       Config
	log       *zap.Logger
	grpc      *grpc.Server
	health    *health
	listeners []net.Listener
	methods   []string // that it has
	misuse    ratelimit.Sampler
}

// filterHTTPAuthz is the name of Envoy's filter that asks, under which answers'
// facts are kept.
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
	s.grpc = grpc.NewServer(
		grpc.Creds(newTransport(cfg)),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxHeaderListSize(maxMetadata),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.InTapHandle(s.intercept),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: idlePing, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
	)
	s.grpc.RegisterService(serviceDesc(), s)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	logv3.RegisterAccessLogServiceServer(s.grpc, accessLogs{server: s})
	return s, nil
}

// Run serves what Listen bound until ctx ends, then reports NOT_SERVING, takes
// no new checks, lets those in flight end within Config.Drain, and returns
// nil. It returns an error when a listener fails.
func (s *Server) Run(ctx context.Context) error {
	if len(s.listeners) == 0 {
		return errors.New("run ext_authz server: it listens nowhere")
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, listener := range s.listeners {
		group.Go(func() error {
			if err := s.grpc.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serve ext_authz on %s: %w", listener.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		s.health.run(ctx)
		s.stop()
		return nil
	})
	return group.Wait()
}

// stop ends every connection, gracefully for as long as Config.Drain allows.
func (s *Server) stop() {
	s.health.drain()
	force := time.AfterFunc(s.cfg.Drain, s.grpc.Stop)
	defer force.Stop()
	s.grpc.GracefulStop()
}

// Close gives up a server that Run was never called for.
func (s *Server) Close() { s.grpc.Stop(); s.closeListeners() }

func (s *Server) closeListeners() {
	for _, listener := range s.listeners {
		listener.Close()
	}
}

// serviceDesc describes the service as its generated code does, but that a check
// is read off the wire, and its answer put there, by codec.
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

// growStack makes the stack of a goroutine large enough for a check at once.
// grpc starts one for each call, on 2 KiB; left alone it doubles three times, and
// each time all of it is walked and copied, which takes longer than to decide.
//
//go:noinline
func growStack() {
	var room [stackOfCheck]byte
	runtime.KeepAlive(&room)
}

// checkMessage is a check on its way in.
type checkMessage struct {
	check      check
	unreadable bool
}

// codec is grpc's own, but for checks and their answers. A check that cannot be
// read or is too large is handed on as such, to be refused as every malformed
// request is: grpc would answer it with an error, and Envoy passes a request on
// an error where it is configured to fail open; CVE-2024-23324 and CVE-2023-27488
// came in by that way.
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

// respond answers whether an access may be made. Whatever goes wrong here is a
// refusal.
func (s *Server) respond(ctx context.Context, in *checkMessage) (out answer) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("check panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
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

// admit asks the gate and answers what it said. The access itself is the
// caller's to make, so it ends with the answer.
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
		s.log.Warn("access has a cause outside the policy", zap.String("decision", admission.ID), zap.Error(err))
	}
	if admission.Refusal != nil {
		return s.refusalAnswer(*admission.Refusal, admission.Decision, a.grpc)
	}
	return out
}

// finish answers an admitted access, and says why when it is refused after all.
func (s *Server) finish(a *access, admission *authz.Admission) (answer, string) {
	if refusal, found := s.misplacedPlaceholder(a, admission); found {
		return s.refusalAnswer(refusal, admission.Decision, a.grpc), refusal.Detail
	}
	reason, detail := s.checkAddress(admission)
	var out answer
	if detail == "" {
		reason = authz.NotEnforceableHere
		out, detail = s.allow(a, admission)
	}
	if detail != "" {
		out = s.refusalAnswer(admission.Refuse(reason, detail), admission.Decision, a.grpc)
	}
	return out, detail
}

// checkAddress judges a destination that is an address, the only one that this
// door knows. It returns why it may not be reached, "" when it may.
func (s *Server) checkAddress(admission *authz.Admission) (authz.Reason, string) {
	to := admission.Request.Destination
	addr := to.Address()
	if !addr.IsValid() {
		return authz.Granted, ""
	}
	if reason := admission.Decision.CheckAddress(addr); reason != authz.Granted {
		return reason, addr.String() + " is not an address that may be reached"
	}
	if s.cfg.Forbidden != nil && s.cfg.Forbidden(netip.AddrPortFrom(addr, to.Port())) {
		return authz.AddressNotAllowed, to.HostPort() + " belongs to the sidecar"
	}
	return authz.Granted, ""
}

// deadlineCtx is a context that ends a little before the caller's deadline, so that
// what takes too long, a credential from a Vault that does not answer, is a
// refusal: the deadline itself is an error to the caller, which Envoy passes a
// request on where it is configured to fail open. Few checks wait for anything,
// so the timer is made when somebody asks for it.
type deadlineCtx struct {
	context.Context //nolint:containedctx // it is one

	deadline time.Time
	once     sync.Once
	inner    context.Context //nolint:containedctx // made late
	cancel   context.CancelFunc
}

// withEarlyDeadline returns a context that ends early, and what releases it.
func withEarlyDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	e := &deadlineCtx{Context: ctx, deadline: deadline.Add(-time.Until(deadline) / 10)}
	return e, func() {
		e.once.Do(func() { e.inner, e.cancel = e.Context, func() {} })
		e.cancel() // of a timer that was never made, nothing
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

// refuse answers what is no access.
func (s *Server) refuse(f *rejection, wantsGRPC bool) answer {
	refusal, err := s.cfg.Gate.Refuse(f.reason, f.attempt, authz.Source{Door: authz.DoorExtAuthz, UID: -1})
	s.logUnrecorded(refusal, err)
	refusal.Remedy = cmp.Or(f.remedy, refusal.Remedy)
	return s.refusalAnswer(refusal, authz.Decision{}, wantsGRPC)
}

// logUnrecorded logs that a refusal could not be recorded, if it could not.
func (s *Server) logUnrecorded(refusal authz.Refusal, err error) {
	if err != nil {
		s.log.Warn("refusal is not recorded", zap.String("decision", refusal.Decision), zap.Error(err))
	}
}

// refuseUnrecorded answers when even refusing went wrong.
func (s *Server) refuseUnrecorded() answer {
	return s.deny(authz.Refusal{Reason: authz.NotReady, Detail: "the check failed inside the sidecar"}, authz.Decision{}, false)
}

func (s *Server) refusalAnswer(refusal authz.Refusal, decision authz.Decision, wantsGRPC bool) answer {
	if s.cfg.Refused != nil {
		told := refusal
		told.Method = strings.Clone(told.Method) // who keeps it does not keep the whole check
		s.cfg.Refused(told)
	}
	return s.deny(refusal, decision, wantsGRPC)
}

// contextPlugin is the key of the context extensions, which are part of the
// caller's own configuration, under which the operator names the plugin.
const contextPlugin = "plugin"

// identify returns the plugin that the check is for: the operator's word for
// the route, else the verified identity in the plugin's certificate, else the
// one plugin of the sidecar.
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
		return unknown("the principal " + quote(c.principal) + " is no plugin that this sidecar serves")
	}
	return s.cfg.Plugin, nil
}

// unenforceable returns the conditions that nobody enforces on the other side
// of this call.
func (s *Server) unenforceable(ctx context.Context) authz.Conditions {
	conditions := authz.ConditionAddresses | authz.ConditionTLS | authz.ConditionTimeout
	conditions &^= s.cfg.Enforces
	// No answer carries these, whatever the caller could do with them.
	conditions |= authz.ConditionCertificate | authz.ConditionSignature
	if p, ok := peer.FromContext(ctx); !ok || !trusted(p.AuthInfo) {
		conditions |= authz.ConditionCredential
	}
	return conditions
}

// wantsGRPC reports whether a check that is no access came from a gRPC plugin.
func (c *check) wantsGRPC() bool {
	return slices.ContainsFunc(c.headers(), func(h header) bool { return h.name == "content-type" && httpclean.IsGRPC(h.value) })
}
