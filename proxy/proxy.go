package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
	"github.com/chaperone-proxy/chaperone/proxy/envoy"
	"github.com/chaperone-proxy/chaperone/proxy/http1head"
	"github.com/chaperone-proxy/chaperone/proxy/http2frames"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// Config is what a Proxy is made of. Plugin, Gate and Engine are required.
type Config struct {
	// Plugin is the principal of every connection whose peer is proved.
	Plugin authz.Principal
	Gate   *authz.Gate
	Engine *authz.Engine

	// Identify returns the peer of a connection, and false if it cannot be
	// proved. It is called once for each connection. Nil: Token proves it.
	Identify func(net.Conn) (session.Peer, bool)
	// Token proves the caller where Identify is nil: the password, for the
	// user chaperone, of Proxy-Authorization. Empty: no caller is proved.
	Token authz.Secret

	// Resolver returns the name of a virtual address. Nil: redirected connections
	// are identified by SNI, Host or address only.
	Resolver *dns.Resolver
	// Upstream is how upstreams are resolved and reached. Its Forbidden is to report the
	// sidecar's own listeners, its admin socket and its Vault.
	Upstream upstream.Config

	// Relay is the Unix socket of an Envoy that receives every connection whose peer is
	// proved, in place of the proxy's own handling. The relay sends a header of version 2
	// of the PROXY protocol first, with the plugin's socket as the source and the address
	// that the plugin dialled as the destination (the proxy's own address for explicit
	// use, a virtual one for a name of the Resolver), then the plugin's bytes, unread. It
	// needs Identify. If the Envoy does not accept a connection within five seconds, it
	// is refused as not_ready. Rules are not attributed (see Attribute) and requests are
	// not admitted here then: the Envoy asks for each, and reaches upstreams by
	// [Proxy.EgressSockets]. Empty: none.
	Relay string

	// Placeholders returns the present placeholders of credentials in the plugin's
	// environment. It is called for every access and answers from memory, with the
	// same values until they change. Nil: no placeholders.
	Placeholders func() []placeholder.Placeholder

	// Attribute is called with the rule to which the bytes on a plugin's socket are
	// attributed from now on: when a tunnel or a request on it begins, before any of its
	// bytes is sent. The rule of a connection is that of the request that began last,
	// also if several run over HTTP/2, and remains between two requests, because the head
	// of the next arrives before it is decided. A refusal sets two empty names, unless
	// another access still runs. It must not block. Nil: not called. It is not called
	// without a cookie.
	Attribute func(cookie uint64, grant, rule string)

	// Databases are the protocols of databases.
	Databases Databases

	// Refused is called with every refusal after it is recorded. It must not
	// block. Nil: not called.
	Refused func(authz.Refusal)
	// Event is called with a record of kind echo when an upstream answered with the
	// credential that it received, which is redacted in any case, and with one of kind
	// handshake when the plugin's side ends a TLS connection that the proxy answers itself:
	// in its handshake, or before it sends any data. It must not block. Nil: not called.
	Event func(*authz.Record)
	// CredentialRefused is called when an upstream answered with status 401 or 403 to a
	// request with an injected credential, with its name and the generation of its value:
	// the issuer may have revoked it. Upstreams also return these for ordinary
	// authorization errors, so the plugin can trigger this at will. It must not block.
	// Nil: not called.
	CredentialRefused func(grant, credential string, generation uint64, status int)
	// CAChanged is called with the certificate authority, in PEM, each time its
	// certificate is renewed because the granted hosts changed. It must not call
	// the Proxy. Nil: not called.
	CAChanged func(pem []byte)

	// Budget is the memory budget for everything that the plugin and its upstreams can
	// make the proxy hold. Nil: one of its own, of [DefaultBudget].
	Budget *budget.Budget
	// MaxConnections bounds the plugin's connections at one time, and those of the egress
	// sockets; more are refused. 0: 4096, or as many as the process may open files for.
	MaxConnections int
	// Drain is how long Serve lets live accesses continue after its context has ended. 0:
	// they are cut at once.
	Drain time.Duration
	// Now is the wall clock. Nil: time.Now.
	Now func() time.Time
	// Log is the operator's log. Nil: none.
	Log *zap.Logger
}

// Limits of the plugin's side of a connection.
const (
	defaultMaxConnections = 4096
	maxHeaderBytes        = 64 << 10
	headerTimeout         = 10 * time.Second // also for a TLS handshake and the first bytes of a tunnel
	idleTimeout           = 2 * time.Minute
	maxStreams            = 250 // of one HTTP/2 connection
)

// Proxy enforces the policy on what one plugin sends.
type Proxy struct {
	cfg          Config
	authority    *authority
	dialer       *upstream.Dialer
	pools        *upstream.Pools
	sessions     *session.Registry
	envoy        envoyEnds
	databases    *database.Front
	server       *http.Server
	http         *chanListener // connections on their way to server
	serverTLS    *tls.Config
	buffers      *session.BufferPool
	rates        *session.RateLimits
	placeholders placeholder.Cache
	budget       *budget.Budget
	// wholeSearches holds one for each body that is decompressed as a whole.
	wholeSearches chan struct{}
	lingerers     lingerers

	mu       sync.Mutex
	conns    map[*session.Socket]struct{} // every open connection of the plugin; nil once closed
	full     ratelimit.Sampler            // of connections refused because there are too many
	inflight *session.Inflight            // everything that may still write a record
}

// envoyEnds are the proxy's ends of an Envoy.
type envoyEnds struct {
	relay  *envoy.Relay // nil: none
	egress *envoy.Egress
}

// New returns a proxy. It starts nothing.
func New(cfg Config) (*Proxy, error) {
	if cfg.Plugin == "" || cfg.Gate == nil || cfg.Engine == nil {
		return nil, errors.New("make proxy: plugin, gate and engine are required")
	}
	if cfg.Relay != "" && cfg.Identify == nil {
		return nil, errors.New("make proxy: Relay is set without Identify; set both, because a token arrives only in the first request")
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = min(defaultMaxConnections, session.MaxConnsForRlimit(cfg.Relay != ""))
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Databases.Serve == nil {
		cfg.Databases.Serve = databaseProtocols(cfg.Databases.Texts)
	}
	if cfg.Budget == nil {
		cfg.Budget = budget.New(session.DefaultBudget)
	}
	p := &Proxy{cfg: cfg, conns: make(map[*session.Socket]struct{}), http: newChanListener(), inflight: new(session.Inflight), budget: cfg.Budget, wholeSearches: make(chan struct{}, session.MaxWholeSearches)}
	p.placeholders.Placeholders = cfg.Placeholders
	p.buffers = new(session.BufferPool)
	p.rates = session.NewRateLimits(cfg.Plugin, cfg.Gate, cfg.Engine, p.buffers)
	var err error
	if p.authority, err = newAuthority(cfg); err != nil {
		return nil, err
	}
	p.dialer = upstream.NewDialer(cfg.Upstream)
	p.pools = upstream.NewPools(p.dialer, p.budget)
	p.sessions = session.NewRegistry(cfg.Engine)
	if cfg.Relay != "" {
		p.envoy.relay = &envoy.Relay{
			Socket: cfg.Relay, Live: p.sessions, Rates: p.rates, Now: cfg.Now, Log: cfg.Log,
			Abandoned: func() bool { return p.abandoned(cfg.Engine.Current()) },
		}
	}
	p.envoy.egress = envoy.NewEgress(envoy.EgressConfig{
		Plugin: cfg.Plugin, Gate: cfg.Gate, Engine: cfg.Engine, Live: p.sessions, Dialer: p.dialer, Work: p.inflight, Budget: p.budget,
		Placeholders: &p.placeholders, MaxConnections: cfg.MaxConnections, Refused: p.report, OutOfMemory: p.refuseFull,
		Now: cfg.Now, Log: cfg.Log,
	})
	p.databases = p.newFront()
	p.serverTLS = p.interceptConfig()
	p.server = &http.Server{
		Handler:           p,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       withConn,
		ConnState:         connState,
		ErrorLog:          log.New(io.Discard, "", 0), // its messages are about the plugin's bytes
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: upstream.ConnectionWindow,
			MaxReceiveBufferPerStream:     upstream.StreamWindow,
			MaxReadFrameSize:              http2frames.MaxFrame,
		},
		// OPTIONS * is refused in our own words.
		DisableGeneralOptionsHandler: true,
	}
	p.server.Protocols.SetHTTP1(true)
	p.server.Protocols.SetHTTP2(true)
	p.server.Protocols.SetUnencryptedHTTP2(true)
	return p, nil
}

// CAPool returns the certificate of the plugin's authority, in PEM. Its key
// never leaves memory and ends with the process.
func (p *Proxy) CAPool() []byte { return p.authority.pem() }

// RenewAuthority makes the certificate of the plugin's authority cover the hosts
// of the policy in force, and returns when [Config.CAChanged] has returned for
// it. Serve does so after each change of the policy, but a program that starts
// just then could read the certificate before.
func (p *Proxy) RenewAuthority() error { return p.authority.renew(p.cfg.Engine.Current()) }

// Open returns how many accesses are live: exchanges, upgraded connections and
// tunnels.
func (p *Proxy) Open() int { return p.sessions.Len() }

// Revalidate decides every live access again, cuts denied ones and returns their
// number. Serve does it after each change of the
// policy; a revocation calls it to know when it has had its effect.
func (p *Proxy) Revalidate() (cut int) { return p.sessions.Revalidate() }

// Serve accepts the plugin's connections on the listeners, which it closes,
// until ctx ends. Then live accesses continue for Config.Drain; Serve cuts the
// rest and returns nil. A connection of an Envoy, which keeps connections for later
// requests, is live until it has been idle for two seconds. Call it once.
func (p *Proxy) Serve(ctx context.Context, listeners ...net.Listener) error {
	var running sync.WaitGroup
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	running.Go(func() { p.watch(watching) })
	running.Go(func() { _ = p.server.Serve(p.http) }) // ends when it is shut down
	failed := make(chan error, len(listeners))
	var accepting sync.WaitGroup
	for _, l := range listeners {
		accepting.Go(func() {
			if err := session.Accept(ctx, l, p.cfg.Log, func(raw net.Conn) { p.take(context.WithoutCancel(ctx), raw) }); err != nil {
				failed <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, l := range listeners {
		_ = l.Close() // accept reports what matters
	}
	accepting.Wait()
	p.drain(context.WithoutCancel(ctx))
	stopWatching()
	running.Wait()
	return err
}

// watch decides every live access again in each generation.
func (p *Proxy) watch(ctx context.Context) {
	for {
		snapshot := p.cfg.Engine.Current()
		p.Revalidate()
		p.authority.follow(snapshot)
		p.pools.Advance(snapshot.Generation(), snapshot.CredentialRefs(p.cfg.Plugin, p.cfg.Now()))
		select {
		case <-ctx.Done():
			return
		case <-snapshot.Changed():
		}
	}
}

// drain ends everything, and waits for live accesses as long as it may.
func (p *Proxy) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Drain)
	defer cancel()
	_ = p.server.Shutdown(ctx) // remaining connections are closed below
	p.sessions.WaitEmpty(ctx)
	p.envoy.egress.Close()
	p.sessions.CutAll(session.ErrStopping)
	_ = p.http.Close() // it has no error
	_ = p.server.Close()
	p.closeConns()
	p.inflight.Wait()
	p.pools.Close()
}

// take starts the handling of one connection of the plugin.
func (p *Proxy) take(ctx context.Context, raw net.Conn) {
	s := &session.Socket{
		Raw: raw, Memory: p.budget.Hold(), OutOfMemory: p.refuseFull, Forget: p.forget,
		Abandoned: p.abandonedSince(p.cfg.Engine.Current().Generation()),
	}
	c := &conn{Conn: session.NewConn(s), lingerers: &p.lingerers}
	if s.Memory.Take(budget.Connection, session.ConnectionCost) != nil || !p.remember(s) {
		if p.cfg.Identify != nil {
			_, _ = p.cfg.Identify(s.Raw) // the kernel's identity record is removed
		}
		p.refuseFull()
		_ = c.Close() // it was not read from
		return
	}
	p.inflight.Enter()
	go func() {
		defer p.inflight.Leave()
		p.handle(ctx, c)
	}()
}

// remember adds a connection, unless there are too many.
func (p *Proxy) remember(s *session.Socket) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil || len(p.conns) >= p.cfg.MaxConnections {
		return false
	}
	p.conns[s] = struct{}{}
	return true
}

func (p *Proxy) forget(s *session.Socket) {
	s.Memory.End()
	if s.OwnsUpstream.Load() {
		p.pools.Disown(s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, s)
}

// closeConns closes every open connection, and prevents later ones.
func (p *Proxy) closeConns() {
	p.mu.Lock()
	open := p.conns
	p.conns = nil
	p.mu.Unlock()
	for s := range open {
		_ = s.Cut() // it is gone either way
	}
}

// refuseFull records a connection refused because there are too many, or too
// much is held in memory, at most one a second: a flood must not become a flood of
// records.
func (p *Proxy) refuseFull() {
	if n := p.full.Take(p.cfg.Now()); n > 0 {
		p.report(p.cfg.Gate.Refuse(authz.NotReady, authz.Attempt{
			Principal: p.cfg.Plugin, Detail: session.TooManyConnections(p.cfg.MaxConnections, n),
		}, authz.Source{Door: authz.DoorProxy, UID: -1}))
	}
}

// report calls Refused with a refusal and returns it. err is why it could not be recorded.
func (p *Proxy) report(r authz.Refusal, err error) authz.Refusal {
	if err != nil {
		p.cfg.Log.Error("refuse request", zap.Error(err))
	}
	if p.cfg.Refused != nil {
		p.cfg.Refused(r)
	}
	return r
}

// handle identifies the peer of a connection and selects how it is served.
func (p *Proxy) handle(ctx context.Context, c *conn) {
	defer func() {
		if cause := recover(); cause != nil { // an unexpected failure is refused
			p.cfg.Log.Error("connection handler panicked", zap.ByteString("stack", debug.Stack()))
			_ = c.Cut()
		}
	}()
	c.Source = authz.Source{Door: authz.DoorProxy, UID: -1}
	if p.cfg.Identify != nil {
		peer, ok := p.cfg.Identify(c.Raw)
		c.Proved = ok
		if ok {
			c.Source.PID, c.Source.UID, c.Source.Exe = peer.PID, peer.UID, peer.Exe
			c.Original = netip.AddrPortFrom(dns.ToIPv4(peer.Original.Addr()), peer.Original.Port())
			c.Attribution = session.NewAttribution(peer.Cookie, p.cfg.Attribute)
		}
	}
	if c.Proved && p.envoy.relay != nil {
		if c.refusal = p.envoy.relay.Take(ctx, c.Conn); c.refusal == nil {
			return
		}
	}
	if c.Redirected() {
		p.transparent(ctx, c)
		return
	}
	c.http1.scanner, c.rewriteRefusal = http1head.NewScanner(readerFunc(c.read), maxHeaderBytes), p.unreadable(c)
	p.frame(c, false)
	p.serveHTTP(c)
}

// serveHTTP hands a connection to the HTTP server, which closes it.
func (p *Proxy) serveHTTP(c *conn) {
	c.HeadRead() // buffered bytes are read again
	c.metered.Store(true)
	if !p.http.send(c) {
		_ = c.Close() // the proxy is stopping
	}
}
