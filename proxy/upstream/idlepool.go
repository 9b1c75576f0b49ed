package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// How long a connection to an upstream may have been idle when it is used again.
// An upstream closes what is idle too long for it, and its FIN is under way when
// the next request is: what cannot be repeated is sent on a connection that no
// upstream gives up yet, else on a new one. The first request of a plugin's
// connection that cannot be repeated is always sent on a new one: without a proxy
// it would be, and the plugin does not expect that it fails.
const (
	IdleAtMost       = 90 * time.Second
	IdleUnrepeatable = time.Second
	// keepAliveMargin is what an announced time is taken to be shorter by: the
	// upstream's clock runs from when it sent its answer.
	keepAliveMargin = time.Second
)

// Bounds of the connections that are idle in one pool.
const (
	maxIdle     = 512
	maxIdleHost = 128
)

// IdlePool holds connections to upstreams that speak HTTP/1.1 while no request is
// on them. net/http's Transport has a pool of its own, but chooses from it without
// regard to how long a connection has been idle, to what its upstream has announced
// and to whom an upstream has authenticated on it.
type IdlePool struct {
	transport *http.Transport // dials

	mu     sync.Mutex
	closed bool
	idle   map[idleKey][]*HTTP1Conn // the one that has been idle longest first
	count  int
}

// idleKey separates the idle connections of a pool.
type idleKey struct {
	host  string          // with its port
	owner *session.Socket // the plugin's connection that it belongs to; nil for any
}

// HTTP1Conn is a connection to an upstream that speaks HTTP/1.1.
type HTTP1Conn struct {
	Client *http.ClientConn
	Raw    *RawConn
	Conn   net.Conn // TLS, or bottom
	TLS    string   // the version of its TLS session; see [TLSVersion]
	pool   *IdlePool
	key    idleKey
	Reused bool

	idleFor time.Duration // for how long it may be idle at most
	since   time.Time     // when it became idle
	timer   *time.Timer
}

func newIdlePool(t *http.Transport) *IdlePool {
	p := &IdlePool{transport: t, idle: make(map[idleKey][]*HTTP1Conn)}
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		raw, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		bottom := &RawConn{Conn: raw}
		if l, ok := ctx.Value(http1ConnKey{}).(*HTTP1Conn); ok {
			l.Raw, l.Conn = bottom, bottom
		}
		return bottom, nil
	}
	t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		bottom, err := t.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		secured, err := handshake(ctx, bottom, address, t.TLSClientConfig)
		if err != nil {
			return nil, err
		}
		if l, ok := ctx.Value(http1ConnKey{}).(*HTTP1Conn); ok {
			l.Conn, l.TLS = secured, TLSVersion(secured.ConnectionState().Version)
		}
		return secured, nil
	}
	return p
}

// http1ConnKey is the context key of the link that a transport dials for.
type http1ConnKey struct{}

// Dial makes a connection for one request to begin with.
func (p *IdlePool) Dial(ctx context.Context, scheme, host string) (*HTTP1Conn, error) {
	l := &HTTP1Conn{pool: p, key: idleKey{host: host}, idleFor: IdleAtMost}
	client, err := p.transport.NewClientConn(context.WithValue(ctx, http1ConnKey{}, l), scheme, host)
	if err != nil {
		return nil, err
	}
	l.Client = client
	return l, nil
}

// Take returns the connection that became idle last, if it has been idle for less
// than most, or nil. One that belongs to the plugin's connection goes before all
// others, however long it has been idle: a login is on it.
func (p *IdlePool) Take(host string, owner *session.Socket, most time.Duration) *HTTP1Conn {
	if l := p.pop(idleKey{host, owner}, IdleAtMost); l != nil {
		return l
	}
	return p.pop(idleKey{host: host}, most)
}

func (p *IdlePool) pop(key idleKey, most time.Duration) *HTTP1Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for list := p.idle[key]; len(list) > 0; list = p.idle[key] {
		l := list[len(list)-1]
		age := time.Since(l.since)
		if age >= most {
			return nil
		}
		p.removeLocked(l)
		if age < l.idleFor && l.Client.Available() > 0 {
			l.Reused = true
			return l
		}
		_ = l.Client.Close() // it is of no use
	}
	return nil
}

// Park keeps a connection for the next request, unless none can be sent on it.
func (l *HTTP1Conn) Park() {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || l.idleFor <= 0 || l.Client.Available() == 0 || p.count >= maxIdle || l.key.owner.Closed() {
		_ = l.Client.Close() // it may be closed already
		return
	}
	if list := p.idle[l.key]; len(list) >= maxIdleHost {
		p.removeLocked(list[0])
		_ = list[0].Client.Close()
	}
	l.since = time.Now()
	p.idle[l.key] = append(p.idle[l.key], l)
	p.count++
	if l.timer == nil {
		l.timer = time.AfterFunc(l.idleFor, l.expire)
	} else {
		l.timer.Reset(l.idleFor) // it was stopped when the connection was taken
	}
}

// expire closes a connection that is still idle.
func (l *HTTP1Conn) expire() {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	if l.pool.removeLocked(l) {
		_ = l.Client.Close()
	}
}

// removeLocked takes a connection out, and reports whether it was idle.
func (p *IdlePool) removeLocked(l *HTTP1Conn) bool {
	list := p.idle[l.key]
	i := slices.Index(list, l)
	if i < 0 {
		return false
	}
	l.timer.Stop()
	p.count--
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(p.idle, l.key)
	} else {
		p.idle[l.key] = list
	}
	return true
}

// close closes what is idle, and what becomes so.
func (p *IdlePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.closeLocked(func(idleKey) bool { return true })
}

// closeIdle closes what is idle now.
func (p *IdlePool) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeLocked(func(idleKey) bool { return true })
}

// disown closes what belongs to a connection of the plugin that is gone.
func (p *IdlePool) disown(owner *session.Socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeLocked(func(key idleKey) bool { return key.owner == owner })
}

func (p *IdlePool) closeLocked(which func(idleKey) bool) {
	for key, list := range p.idle {
		if !which(key) {
			continue
		}
		delete(p.idle, key)
		p.count -= len(list)
		for _, l := range list {
			l.timer.Stop()
			_ = l.Client.Close()
		}
	}
}

// Observe reads from an answer how long its connection may be idle, whether its
// upstream has authenticated it, and whether bytes beyond its framing may follow.
func (l *HTTP1Conn) Observe(response *http.Response, owner *session.Socket) {
	l.idleFor = IdleAtMost
	if announced, ok := keepAliveTimeout(response.Header); ok {
		l.idleFor = min(IdleAtMost, announced-keepAliveMargin)
	}
	if response.StatusCode == http.StatusNoContent && (response.Header.Get("Content-Length") != "" || len(response.TransferEncoding) > 0) {
		l.idleFor = 0 // a 204 has no body, and what follows this one may be taken for the next answer
	}
	if ConnectionAuth(response.Header["Www-Authenticate"]) || ConnectionAuth(response.Header["Proxy-Authenticate"]) {
		l.ReserveFor(owner)
	}
}

// ReserveFor reserves the connection for one of the plugin's.
func (l *HTTP1Conn) ReserveFor(owner *session.Socket) {
	l.key.owner = owner
	owner.OwnsUpstream.Store(true)
}

// keepAliveTimeout returns the time that a Keep-Alive header announces
// (https://httpwg.org/specs/rfc2068.html, section 19.7.1.1, and every server since).
func keepAliveTimeout(h http.Header) (time.Duration, bool) {
	for _, value := range h["Keep-Alive"] {
		for parameter := range strings.SplitSeq(value, ",") {
			name, text, _ := strings.Cut(parameter, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "timeout") {
				continue
			}
			if seconds, err := strconv.ParseUint(strings.Trim(text, ` "`), 10, 31); err == nil {
				return time.Duration(seconds) * time.Second, true
			}
		}
	}
	return 0, false
}

// ConnectionAuth reports whether the values of a header of HTTP authentication
// name a scheme that authenticates a connection and not a request (RFC 4559,
// section 6; [MS-NTHT]).
func ConnectionAuth(values []string) bool {
	for _, value := range values {
		for challenge := range strings.SplitSeq(value, ",") {
			switch scheme, _, _ := strings.Cut(strings.TrimSpace(challenge), " "); strings.ToLower(scheme) {
			case "ntlm", "negotiate":
				return true
			}
		}
	}
	return false
}

// RawConn is a connection to an upstream, below its TLS.
type RawConn struct {
	net.Conn
	Written atomic.Int64

	mu      sync.Mutex
	cause   error  // why it failed, nil while it has not
	onClose func() // called once when net/http has closed it; nil for nobody
	closed  bool
}

// Read reads, and remembers why nothing more comes.
func (c *RawConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.fail(err)
	}
	return n, err
}

// Write writes. An upstream that no longer reads may have answered before: the
// failure is left for Read to find, which comes upon the answer first.
func (c *RawConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.Written.Add(int64(n))
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		c.Written.Add(1) // some of it may have arrived
		c.fail(err)
		return len(b), nil
	}
	return n, err
}

// CloseWrite ends the sending direction.
func (c *RawConn) CloseWrite() error {
	return session.CloseWriteOf(c.Conn)
}

// Close closes the connection, and reports it to the request on it.
func (c *RawConn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	c.closed = true
	report := c.onClose
	c.onClose = nil
	c.mu.Unlock()
	if report != nil {
		report()
	}
	return err
}

func (c *RawConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil && !c.closed {
		c.cause = err
	}
}

// Cause returns why the connection failed. Nil: what came on it was no answer.
func (c *RawConn) Cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// OnClose has report called when the connection is closed. Nil ends that.
func (c *RawConn) OnClose(report func()) {
	c.mu.Lock()
	closed := c.closed
	c.onClose = report
	c.mu.Unlock()
	if closed && report != nil {
		report()
	}
}
