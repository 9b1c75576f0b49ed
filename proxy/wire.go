package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// way is how a connection's destination is known.
type way uint8

const (
	explicit    way = iota // each request names it
	tunnel                 // a CONNECT named it
	transparent            // the kernel redirected it
)

// conn is a connection of the plugin, as it is or inside the TLS that was
// intercepted on it. Its fields are set before whoever reads it next gets it.
type conn struct {
	net.Conn
	raw    net.Conn // the bottom of it
	prefix []byte   // read ahead, to be read again

	proved   bool // by Identify
	original netip.AddrPort
	source   authz.Source
	rule     *attribution // of the plugin's socket

	// Of tunnels and redirected connections:
	way      way
	scheme   authz.Scheme // of the requests on it
	host     string       // "" until SNI or Host says it
	port     uint16
	mismatch string // set when the names on it disagree: every request on it is refused

	fault *fault // set when nothing on it is served: what it is refused with

	frames  *frames     // of what may be HTTP/2
	heads   *headReader // of explicit connections: sees the Host beside an absolute URI
	wire    string      // that Host, of the request being served
	unclear bool        // what was seen is not the request being served

	refusal   func(text []byte) []byte // what net/http's own refusal becomes; nil leaves it
	answering atomic.Bool              // a request was read and its answer is not complete
	framed    atomic.Bool              // it turned out to be HTTP/2

	tail   *lastBytes  // of what is read, during a handshake
	unused func()      // called when it is closed and nothing was sent on it; nil for nothing
	used   atomic.Bool // something was

	memory      *budget.Holding // of the bottom
	outOfMemory func()          // records that something was refused for want of it
	metered     atomic.Bool     // what is read is counted while a head is read
	ahead       atomic.Int64    // bytes of the head being read, and what was taken for them
	bottom      *conn           // what the registry of connections knows it by
	once        *sync.Once
	forget      func(*conn)
	severed     atomic.Bool // of the bottom: it was ended at once
	forgotten   atomic.Bool // of the bottom: it was closed
	// abandoned reports whether everything was taken from the plugin since the
	// connection was made. Nothing that the plugin acknowledges arrives then, and
	// an ordinary close would wait for it.
	abandoned func() bool

	requests   atomic.Int64 // that net/http has read from it, or streams
	ended      atomic.Bool  // nothing more is read from it, see endReading
	lingering  atomic.Bool  // what still comes is being discarded
	lingerers  *lingerers   // nil: it does not linger
	owns       atomic.Bool  // of the bottom: connections to upstreams belong to it
	halfClosed halfClose    // whether the plugin has ended its direction
}

func newConn(raw net.Conn, forget func(*conn), abandoned func() bool) *conn {
	c := &conn{Conn: raw, raw: raw, once: new(sync.Once), forget: forget, abandoned: abandoned}
	c.bottom = c
	return c
}

// over returns the connection that runs inside TLS on c.
func (c *conn) over(inner *tls.Conn) *conn {
	return &conn{
		Conn: inner, raw: c.raw, proved: c.proved, original: c.original, source: c.source, rule: c.rule,
		way: c.way, scheme: c.scheme, host: c.host, port: c.port, mismatch: c.mismatch, fault: c.fault,
		once: c.once, forget: c.forget, bottom: c.bottom, abandoned: c.abandoned, memory: c.memory, outOfMemory: c.outOfMemory, lingerers: c.lingerers,
	}
}

// redirected reports whether the kernel brought the connection here.
func (c *conn) redirected() bool {
	if !c.original.IsValid() {
		return false
	}
	own, ok := c.raw.LocalAddr().(*net.TCPAddr)
	if !ok {
		return true
	}
	addr := own.AddrPort()
	return c.original.Port() != addr.Port() || c.original.Addr().Unmap() != addr.Addr().Unmap()
}

// Read reads what was read ahead, then the connection.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.readAny(b)
	if c.metered.Load() && !c.answering.Load() && !c.framed.Load() {
		if full := c.readOfHead(int64(n)); full != nil {
			return 0, full
		}
	}
	return n, err
}

// readAny reads for net/http. The end of the plugin's direction after a whole
// request is not the end of the plugin: it may wait for the answer. net/http reads
// a single byte while it answers, and may begin to before ServeHTTP is called:
// answering does not say yet that a request was read.
func (c *conn) readAny(b []byte) (n int, err error) {
	if c.ended.Load() {
		return 0, errReadingEnded
	}
	if c.frames != nil {
		n, err = c.frames.in.Read(b)
	} else {
		n, err = c.readHeads(b)
	}
	if n == 0 && errors.Is(err, io.EOF) && len(b) == 1 && c.refusal != nil && !c.framed.Load() {
		err = c.awaitReset()
	}
	return n, err
}

// readHeads reads past the frames of HTTP/2.
func (c *conn) readHeads(b []byte) (int, error) {
	if c.heads != nil {
		return c.heads.Read(b)
	}
	return c.read(b)
}

// readOfHead takes memory for a head of a request that is being read, beyond
// what is counted with the connection.
func (c *conn) readOfHead(n int64) error {
	before := c.ahead.Add(n) - n
	cost := headFactor * (max(before+n, freeHead) - max(before, freeHead))
	if cost == 0 {
		return nil
	}
	if err := c.memory.Take(budget.Request, cost); err != nil {
		c.outOfMemory()
		return err
	}
	return nil
}

// readHead gives back what a head took that was read: the request has its own.
func (c *conn) readHead() {
	c.memory.Give(budget.Request, headFactor*max(0, c.ahead.Swap(0)-freeHead))
}

// passOver takes the connection from net/http, for what is not HTTP or is HTTP
// from its beginning.
func (c *conn) passOver() {
	c.heads, c.refusal = nil, nil
	c.requests.Store(0)
	c.answering.Store(false)
	c.metered.Store(false)
}

// gone reports whether the connection has been closed. Nil is none that could.
func (c *conn) gone() bool { return c != nil && c.forgotten.Load() }

func (c *conn) read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		if c.prefix = c.prefix[n:]; len(c.prefix) == 0 {
			c.prefix = nil
		}
		return n, nil
	}
	n, err := c.Conn.Read(b)
	if c.tail != nil {
		c.tail.add(b[:n])
	}
	return n, err
}

// peek returns at least n bytes without consuming them.
func (c *conn) peek(n int) ([]byte, error) {
	for len(c.prefix) < n {
		buf := make([]byte, 4096)
		got, err := c.Conn.Read(buf)
		if full := c.readOfHead(int64(got)); full != nil {
			return c.prefix, full
		}
		c.prefix = append(c.prefix, buf[:got]...)
		if err != nil {
			return c.prefix, err
		}
	}
	return c.prefix, nil
}

// Write writes an answer. What net/http itself answers to a request that it
// could not read, while no request is being answered, is recorded and said in
// our words; net/http closes the connection after it.
func (c *conn) Write(b []byte) (int, error) {
	if c.ended.Load() && !c.answering.Load() {
		return 0, net.ErrClosed // what net/http has read ahead is no request
	}
	switch {
	case c.frames == nil:
	case c.frames.out.on.Load():
		return c.frames.out.write(b, c.Conn.Write)
	case c.frames.in.prefaced:
		return 0, errPreface // it is no answer in HTTP/1.1 that the plugin waits for
	}
	if c.refusal == nil || c.answering.Load() || c.framed.Load() ||
		!bytes.HasPrefix(b, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(b, []byte("HTTP/1.1 5")) {
		return c.Conn.Write(b)
	}
	_, text, _ := bytes.Cut(b, []byte("\r\n\r\n"))
	if _, err := c.Conn.Write(c.refusal(text)); err != nil {
		return 0, err
	}
	c.ended.Store(true) // the plugin may still be sending
	return len(b), nil
}

// Close closes the connection, with a TLS goodbye where there is TLS.
func (c *conn) Close() error {
	if c.abandoned() {
		return c.cut()
	}
	if c.lingers() {
		return nil
	}
	return c.shut()
}

func (c *conn) shut() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.forget(c.bottom) })
	return err
}

// CloseWrite says that nothing more will be sent. net/http calls it some time
// before Close where the plugin may still be sending.
func (c *conn) CloseWrite() error {
	if c.lingers() {
		return nil
	}
	return c.closeWrite()
}

func (c *conn) closeWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// cut closes the connection at once, whatever it is doing.
func (c *conn) cut() error {
	if c.abandoned() {
		c.linger()
	}
	err := c.raw.Close()
	c.once.Do(func() { c.forget(c.bottom) })
	return err
}

// reset closes the connection so that the other end sees an error and no end
// of file.
func (c *conn) reset() {
	c.linger()
	_ = c.cut()
}

// linger makes the close to come a reset: what was not sent is dropped.
func (c *conn) linger() {
	if tcp, ok := c.raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a plain close says less
	}
}

type connKey struct{}

// withConn is an http.Server's ConnContext.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, connOf(nc))
}

func connOf(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	c, _ := nc.(*conn)
	return c
}

// connState is an http.Server's ConnState: between requests nothing is being
// answered.
func connState(nc net.Conn, state http.ConnState) {
	c := connOf(nc)
	if c == nil {
		return
	}
	c.watchUse(state)
	if state == http.StateIdle {
		c.answering.Store(false)
	}
}

// handoff is a listener of connections that were accepted elsewhere.
type handoff struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandoff() *handoff {
	return &handoff{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give hands a connection over, and reports false when nobody takes it any more.
func (h *handoff) give(c net.Conn) bool {
	select {
	case <-h.closed:
		return false
	default:
	}
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (*handoff) Addr() net.Addr { return &net.TCPAddr{} }

// tracker counts work that must end before Serve returns.
type tracker struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // set by who waits
}

func (t *tracker) enter() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

func (t *tracker) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

func (t *tracker) wait() {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	none := t.none
	t.mu.Unlock()
	<-none
}

// refusalPace lets one event a second through, with how many it stands for.
type refusalPace struct {
	mu    sync.Mutex
	last  time.Time
	count int
}

// take counts an event and returns how many are to be told of now, or 0.
func (r *refusalPace) take(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	if now.Sub(r.last) < time.Second {
		return 0
	}
	n := r.count
	r.last, r.count = now, 0
	return n
}

func tooManyConnections(limit, n int) string {
	return fmt.Sprintf("%d connections are open; %d more were refused", limit, n)
}

// isTemporary reports whether accepting may work again later.
func isTemporary(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ECONNABORTED)
}
