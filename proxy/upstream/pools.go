package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Protocol is the protocol of a connection to an upstream.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota // as the plugin does, and for upgrades
	HTTP2                 // as ALPN selects; the plugin uses HTTP/2
	H2C                   // HTTP/2 without TLS
)

// poolKey separates connections that must never be used for one another. A
// rule of one generation has one set of terms and addresses; a credential of
// one generation has one value.
type poolKey struct {
	grant, rule string
	generation  uint64 // of the policy
	credential  uint64 // its generation
	protocol    Protocol
}

// maxPools bounds the pools. They are caches: beyond it some are emptied, and
// filled again on demand.
const maxPools = 4096

// Pools holds the idle connections to upstreams. Each pool belongs to one rule
// of one policy generation and one credential generation, so that a connection
// which was dialled, verified or authenticated under other terms is never
// found in it.
type Pools struct {
	dialer *Dialer
	budget *budget.Budget

	mu         sync.RWMutex
	generation uint64
	byKey      map[poolKey]*Pool
	injected   map[injected][]authz.Injection // the latest values, in the order of their first use
}

// injected names a credential that several rules of a grant may inject.
type injected struct{ grant, credential string }

// maxEarlierValues is how many values before the present one are searched for: an
// upstream may quote the last request, and what was rotated often still works.
const maxEarlierValues = 2

// Pool is the connections for one key, and what its credential looks like in
// an answer: its present value and those before. Answers under a rule without a
// credential are not searched, also where other rules of the grant inject one.
type Pool struct {
	transport    *http.Transport
	narrow       *http.Transport // where the first fails with errNoWideWindow; nil where it never does
	Idle         *IdlePool       // in place of the transport's own for HTTP/1.1; nil for HTTP/2
	OnlyHTTP1    HostSet         // those that selected HTTP/1.1 where HTTP/2 was offered
	Patterns     *scrub.Patterns // nil without a credential that could be found
	NamePatterns *scrub.Patterns // the same as it would be in a header's name
}

// NewPools returns empty pools, whose connections take their memory from b.
func NewPools(d *Dialer, b *budget.Budget) *Pools {
	return &Pools{dialer: d, budget: b, byKey: make(map[poolKey]*Pool), injected: make(map[injected][]authz.Injection)}
}

// Get returns the pool for an admitted access. slowed reports whether a limit
// slows down the plugin's receiving.
func (p *Pools) Get(a *authz.Admission, speak Protocol, slowed bool) (*Pool, error) {
	key := poolKey{a.Decision.Grant, a.Decision.Rule, a.Decision.Generation, a.Injection.Generation, speak}
	p.mu.RLock()
	found := p.byKey[key]
	p.mu.RUnlock()
	if found != nil {
		return found, nil
	}
	made, err := p.makePool(a, speak, slowed)
	if err != nil {
		return nil, err
	}
	made.Patterns, made.NamePatterns = patternsOf(p.remember(a))
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.byKey[key]; found != nil {
		return found, nil
	}
	p.dropLocked(func(old poolKey) bool {
		return old.generation < p.generation || len(p.byKey) >= maxPools || old.precedes(key)
	})
	p.byKey[key] = made
	return made, nil
}

// remember returns the values of an access's credential that are searched for.
// One that comes late, after its successor, is added to the pools of that
// too, which are rebuilt.
func (p *Pools) remember(a *authz.Admission) []authz.Injection {
	if len(a.Injection.Secrets()) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	name := injected{a.Decision.Grant, a.Decision.Credential}
	known := p.injected[name]
	if slices.ContainsFunc(known, func(slot authz.Injection) bool { return sameSecrets(slot, a.Injection) }) {
		return known
	}
	known = append(slices.Clone(known[max(0, len(known)-maxEarlierValues):]), a.Injection)
	p.injected[name] = known
	p.dropLocked(func(k poolKey) bool { return k.grant == name.grant && k.credential > a.Injection.Generation })
	return known
}

func sameSecrets(a, b authz.Injection) bool {
	return slices.EqualFunc(a.Secrets(), b.Secrets(), authz.Secret.Equal)
}

// precedes reports whether k is for an earlier value of the same credential.
func (k poolKey) precedes(next poolKey) bool {
	earlier := k.credential < next.credential
	k.credential = next.credential
	return earlier && k == next
}

// Advance empties the pools of earlier generations, and forgets the values of
// credentials that no rule needs any more.
func (p *Pools) Advance(generation uint64, needed []authz.CredentialRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.injected, func(name injected, _ []authz.Injection) bool {
		return !slices.ContainsFunc(needed, func(ref authz.CredentialRef) bool {
			return name == injected{ref.Grant, ref.Name}
		})
	})
	p.generation = max(p.generation, generation)
	p.dropLocked(func(k poolKey) bool { return k.generation < p.generation })
}

// Close empties all.
func (p *Pools) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked(func(poolKey) bool { return true })
}

// dropLocked forgets pools and closes their idle connections; those in use are
// closed when they become idle. The caller holds p.mu.
func (p *Pools) dropLocked(drop func(poolKey) bool) {
	for key, old := range p.byKey {
		if drop(key) {
			delete(p.byKey, key)
			old.close()
		}
	}
}

// close closes what is idle; what is in use is closed when it becomes so.
func (p *Pool) close() {
	p.transport.CloseIdleConnections()
	if p.narrow != nil {
		p.narrow.CloseIdleConnections()
	}
	if p.Idle != nil {
		p.Idle.close()
	}
}

// maxHosts bounds a hostSet: a rule with a wildcard has as many hosts as the plugin
// asks for.
const maxHosts = 1024

// HostSet is a set of hosts, with port, that is safe for concurrent use. Further
// ones are not added to a full set.
type HostSet struct {
	mu    sync.RWMutex
	Hosts map[string]struct{}
}

// Add adds a host, unless the set is full.
func (s *HostSet) Add(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Hosts == nil {
		s.Hosts = make(map[string]struct{})
	}
	if len(s.Hosts) < maxHosts {
		s.Hosts[host] = struct{}{}
	}
}

// Has reports whether a host is in the set.
func (s *HostSet) Has(host string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.Hosts[host]
	return ok
}

// Disown closes the connections to upstreams that belong to a connection of the
// plugin which is gone.
func (p *Pools) Disown(owner *session.Socket) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, pool := range p.byKey {
		if pool.Idle != nil {
			pool.Idle.disown(owner)
		}
	}
}

// makePool makes a pool. A slowed one needs no large windows.
func (p *Pools) makePool(a *authz.Admission, speak Protocol, slowed bool) (made *Pool, err error) {
	made = new(Pool)
	switch {
	case speak == HTTP1 || slowed:
		if made.transport, err = p.transport(a, speak, StreamWindow, ConnectionWindow, &made.OnlyHTTP1); err == nil && speak == HTTP1 {
			made.Idle = newIdlePool(made.transport)
		}
		return made, err
	default:
		if made.transport, err = p.transport(a, speak, wideStream, wideConnection, &made.OnlyHTTP1); err != nil {
			return nil, err
		}
		made.narrow, err = p.transport(a, speak, narrowStream, narrowConnection, &made.OnlyHTTP1)
		return made, err
	}
}

// transport makes a part of a pool, with these windows in bytes. Each connection
// is judged by the decision of the access that it is dialled for. Hosts that turn out not to
// speak HTTP/2 are added to onlyHTTP1.
func (p *Pools) transport(a *authz.Admission, speak Protocol, stream, connection int, onlyHTTP1 *HostSet) (*http.Transport, error) {
	config, err := clientTLS(a.Decision.Terms(), a.Injection)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                  nil, // the sidecar's own environment has no say
		DialContext:            p.dialerOf(speak, int64(connection)),
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    handshakeTimeout,
		DisableCompression:     true,
		MaxIdleConns:           512,
		MaxIdleConnsPerHost:    128, // the default of 2 makes a handshake of most requests
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		Protocols:              new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: connection,
			MaxReceiveBufferPerStream:     stream, // of answers that the plugin does not take
		},
	}
	queue := new(dialQueue)
	switch speak {
	case HTTP1:
		t.Protocols.SetHTTP1(true)
	case HTTP2:
		t.Protocols.SetHTTP1(true)
		t.Protocols.SetHTTP2(true)
		config.NextProtos = []string{"h2", "http/1.1"}
		t.DialTLSContext = queue.dialer(p.secureDialerOf(config, onlyHTTP1, int64(connection)), onlyHTTP1.Has)
	case H2C:
		t.Protocols.SetUnencryptedHTTP2(true)
		t.DialContext = queue.dialer(t.DialContext, func(string) bool { return false })
	}
	return t, nil
}

// accessContext is the context of a request, by which a transport dials for it.
type accessContext struct {
	context.Context //nolint:containedctx // it is one

	admission   *authz.Admission
	connections *atomic.Int32
}

// accessKey is the context key of the access that a transport dials for.
type accessKey struct{}

// Value implements [context.Context].
func (c *accessContext) Value(key any) any {
	if key == (accessKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// WithAccess returns a context in which the transport of a pool dials for an
// admitted access. Accesses of one pool are to several hosts, and a host that is
// an address is granted by other terms than a name. connections is how many connections
// net/http has selected for the request so far.
func WithAccess(ctx context.Context, a *authz.Admission, connections *atomic.Int32) context.Context {
	return &accessContext{ctx, a, connections}
}

// dialerOf returns a transport's DialContext, for connections with a window of so
// many bytes over HTTP/2, which is taken with them. It fails with errNoWideWindow where
// there is no room for a wide one.
func (p *Pools) dialerOf(speak Protocol, window int64) dialContext {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		holding := p.budget.Hold()
		if speak != HTTP1 {
			if err := p.takeWindow(ctx, holding, window); err != nil {
				return nil, err
			}
		}
		conn, err := p.dial(ctx, address, holding)
		if err != nil {
			holding.End()
			return nil, err
		}
		return &session.ReservedConn{Conn: conn, Reservation: holding}, nil
	}
}

// takeWindow takes the memory for the window of a connection.
func (p *Pools) takeWindow(ctx context.Context, holding *budget.Holding, window int64) error {
	if window != wideConnection {
		return p.makeRoom(ctx, holding, budget.Window, window)
	}
	if !holding.TakeShare(budget.Window, window, wideShare) {
		return errNoWideWindow
	}
	return nil
}

// secureDialerOf returns a transport's DialTLSContext for upstreams that may speak HTTP/2.
// Those that turn out not to are added to onlyHTTP1, and need no window.
func (p *Pools) secureDialerOf(config *tls.Config, onlyHTTP1 *HostSet, window int64) dialContext {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		holding := p.budget.Hold()
		known := onlyHTTP1.Has(address)
		if !known {
			if err := p.takeWindow(ctx, holding, window); err != nil {
				return nil, err
			}
		}
		raw, err := p.dial(ctx, address, holding)
		if err != nil {
			holding.End()
			return nil, err
		}
		secured, err := handshake(ctx, &session.ReservedConn{Conn: raw, Reservation: holding}, address, config)
		if err != nil {
			return nil, err
		}
		switch http2 := secured.ConnectionState().NegotiatedProtocol == "h2"; {
		case !http2:
			onlyHTTP1.Add(address)
			holding.Give(budget.Window, window)
		case known: // it has learnt HTTP/2 since
			if err := p.takeWindow(ctx, holding, window); err != nil {
				_ = secured.Close() // err is reported
				return nil, err
			}
		}
		return secured, nil
	}
}

// handshake begins TLS with an upstream on a connection, which it closes if that fails.
func handshake(ctx context.Context, conn net.Conn, address string, config *tls.Config) (*tls.Conn, error) {
	config = config.Clone()
	config.ServerName, _, _ = net.SplitHostPort(address) // it is a destination's HostPort
	secured := tls.Client(conn, config)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // err is reported
		return nil, err
	}
	return secured, nil
}

// dial dials for a transport. The transport's address is the destination's
// HostPort, which the constructor reads back as it was. A connection that another
// access to the same host and port waits for may be used by it: both were decided
// by one rule of one generation.
func (p *Pools) dial(ctx context.Context, address string, holding *budget.Holding) (net.Conn, error) {
	access, ok := ctx.Value(accessKey{}).(*accessContext)
	if !ok {
		return nil, &session.RefusalError{Reason: authz.NotReady, Detail: "the connection has no decision"}
	}
	admission := access.admission
	destination, err := authz.NewDestination(authz.SchemeTCP, address, "")
	if err != nil {
		return nil, &session.RefusalError{Reason: authz.UpstreamUnreachable, Detail: "the destination is not known"}
	}
	cost := int64(session.UpstreamCost)
	if admission.Request.Destination.Scheme() == authz.SchemeHTTPS { // a handshake follows
		cost += session.TlsCost
	}
	if err := p.makeRoom(ctx, holding, budget.Connection, cost); err != nil {
		return nil, err
	}
	return p.dialer.DialFor(ctx, admission, destination)
}

// makeRoom takes memory for a connection. If there is not enough, idle ones are closed
// first.
func (p *Pools) makeRoom(ctx context.Context, holding *budget.Holding, kind budget.Kind, n int64) error {
	if full := holding.Take(kind, n); full == nil {
		return nil
	}
	p.CloseIdle()
	return session.AsRefusal(holding.TakeWithin(ctx, idlePatience, kind, n))
}

// idlePatience is how long the closing of idle connections is waited for.
const idlePatience = 250 * time.Millisecond

// CloseIdle closes all connections that are not in use.
func (p *Pools) CloseIdle() {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, pool := range p.byKey {
		pool.transport.CloseIdleConnections()
		if pool.narrow != nil {
			pool.narrow.CloseIdleConnections()
		}
		if pool.Idle != nil {
			pool.Idle.closeIdle()
		}
	}
}

// VerifyAgain returns whether the TLS session of a connection satisfies terms. It was
// verified when it began, against earlier terms of the same rule: another authority, or a
// later version, may be required now. Most terms are the earlier ones, and need no look
// at the session.
func VerifyAgain(conn *tls.Conn, earlier authz.Terms) func(authz.Terms) bool {
	return VerifyStateAgain(conn.ConnectionState, earlier)
}

// VerifyStateAgain is [VerifyAgain] for a session of TLS whose connection another package
// has, by its state.
func VerifyStateAgain(state func() tls.ConnectionState, earlier authz.Terms) func(authz.Terms) bool {
	return func(now authz.Terms) bool {
		if now.CA == earlier.CA && now.TLSMin != "1.3" {
			return true
		}
		session := state()
		if now.TLSMin == "1.3" && session.Version < tls.VersionTLS13 {
			return false
		}
		if now.CA == earlier.CA {
			return true
		}
		config, err := clientTLS(now, authz.Injection{})
		if err != nil || len(session.PeerCertificates) == 0 {
			return false
		}
		chain := x509.VerifyOptions{Roots: config.RootCAs, DNSName: session.ServerName, Intermediates: x509.NewCertPool()}
		for _, c := range session.PeerCertificates[1:] {
			chain.Intermediates.AddCert(c)
		}
		_, err = session.PeerCertificates[0].Verify(chain)
		return err == nil
	}
}

// TLSVersion returns the name of a version of TLS as rules and records have it, "" for one
// that no connection to an upstream has.
func TLSVersion(version uint16) string {
	switch version {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return ""
}

// ClientTLS returns the TLS settings for a connection to host by a rule's terms: its
// authorities, its least version, and the name that is verified. No session is resumed, so
// that each connection is verified by the terms in force.
func ClientTLS(terms authz.Terms, host string) (*tls.Config, error) {
	config, err := clientTLS(terms, authz.Injection{})
	if err != nil {
		return nil, err
	}
	config.ServerName, config.ClientSessionCache = host, nil
	return config, nil
}

// clientTLS returns the TLS settings of a rule's terms, with the certificate
// that is injected. The name that is sent and verified is the transport's: the
// destination's host. Sessions are resumed within one transport only, so that a
// certificate which was replaced is not shown by a ticket.
func clientTLS(terms authz.Terms, slot authz.Injection) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(64)}
	if terms.TLSMin == "1.3" {
		config.MinVersion = tls.VersionTLS13
	}
	if terms.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(terms.CA)) {
			return nil, errors.New("read certificate authority of rule: no certificate in it")
		}
	}
	if slot.Kind == authz.InjectCertificate {
		pair, err := tls.X509KeyPair([]byte(slot.Certificate.Reveal()), []byte(slot.PrivateKey.Reveal()))
		if err != nil {
			return nil, errors.New("read client certificate: it and its key cannot be used") // err may quote them
		}
		// For any authorities that the server names: without the certificate the
		// request would be anonymous.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config, nil
}
