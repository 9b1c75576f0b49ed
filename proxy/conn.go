package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/http1head"
	"github.com/chaperone-proxy/chaperone/proxy/http2frames"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// connMode is how the destination of a connection is determined.
type connMode uint8

const (
	explicit    connMode = iota // each request names it
	tunnel                      // a CONNECT named it
	transparent                 // the kernel redirected it
)

// conn is a layer of a connection of the plugin that carries HTTP: the connection itself,
// or the intercepted TLS on it. Fields without a lock are set before the goroutine that
// next reads them receives the connection.
type conn struct {
	*session.Conn

	// The target of a tunnel or of a redirected connection.
	mode     connMode
	scheme   authz.Scheme // of the requests on it
	host     string       // "" until SNI or Host names it
	port     uint16
	mismatch string // set when the names on it disagree: every request on it is refused

	refusal *session.RefusalError // every request is refused with it; nil for none

	frames         *http2frames.Filter // of HTTP/2, if it turns out to be HTTP/2
	http1          requestHeads        // of HTTP/1.1
	handshake      handshakeState      // whether anything came after the handshake
	rewriteRefusal func([]byte) []byte // replaces a refusal of net/http's own; nil leaves it

	answering atomic.Bool  // a request was read and its answer is not complete
	isHTTP2   atomic.Bool  // it turned out to be HTTP/2
	metered   atomic.Bool  // bytes that are read are counted while a head is read
	requests  atomic.Int64 // that net/http has read from it, or streams

	ended      atomic.Bool // reading has ended, see endReading
	lingering  atomic.Bool // bytes that still come are being discarded
	lingerers  *lingerers  // nil: it does not linger
	halfClosed halfClose   // whether the plugin has ended its direction
}

// requestHeads is the Host of HTTP/1.1 requests as it is on the wire.
type requestHeads struct {
	scanner *http1head.Scanner // nil if Host beside an absolute URI is not needed
	host    string             // of the request being served
	unclear bool               // the scanner has read another request than the one being served
}

// handshakeState is what arrived on a connection during its handshake and after it.
type handshakeState struct {
	tail   *session.TailBytes // of what is read during a handshake; nil otherwise
	unused func()             // called when it is closed and nothing was sent on it; nil for nothing
	used   atomic.Bool        // something was
}

// over returns the connection that runs inside TLS on c.
func (c *conn) over(inner *tls.Conn) *conn {
	return &conn{
		Conn: c.Over(inner), mode: c.mode, scheme: c.scheme, host: c.host, port: c.port, mismatch: c.mismatch,
		refusal: c.refusal, lingerers: c.lingerers,
	}
}

// Read reads what was read ahead, then the connection.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.readAny(b)
	if c.metered.Load() && !c.answering.Load() && !c.isHTTP2.Load() {
		if full := c.CountHead(int64(n)); full != nil {
			return 0, full
		}
	}
	return n, err
}

// readAny reads for net/http. A plugin that ends its direction after a whole request may
// still wait for the answer, so that the end of file is not returned at once. net/http
// reads a single byte while it answers, and may start before ServeHTTP is called: a
// request may have been read although answering is not set yet.
func (c *conn) readAny(b []byte) (n int, err error) {
	if c.ended.Load() {
		return 0, errReadingEnded
	}
	if c.frames != nil {
		n, err = c.frames.In.Read(b)
	} else {
		n, err = c.readHeads(b)
	}
	if n == 0 && errors.Is(err, io.EOF) && len(b) == 1 && c.rewriteRefusal != nil && !c.isHTTP2.Load() {
		err = c.awaitReset()
	}
	return n, err
}

// readHeads reads past the frames of HTTP/2.
func (c *conn) readHeads(b []byte) (int, error) {
	if c.http1.scanner != nil {
		return c.http1.scanner.Read(b)
	}
	return c.read(b)
}

// passOver takes the connection over from net/http, for another protocol or for HTTP from
// its beginning.
func (c *conn) passOver() {
	c.http1.scanner, c.rewriteRefusal = nil, nil
	c.requests.Store(0)
	c.answering.Store(false)
	c.metered.Store(false)
}

func (c *conn) read(b []byte) (int, error) {
	again := len(c.Ahead()) > 0
	n, err := c.Conn.Read(b)
	if c.handshake.tail != nil && !again {
		c.handshake.tail.Add(b[:n])
	}
	return n, err
}

// Write writes an answer. If net/http itself answers a request that it could not read,
// while no request is being answered, Write records a refusal and sends that instead.
// net/http closes the connection after it.
func (c *conn) Write(b []byte) (int, error) {
	if c.ended.Load() && !c.answering.Load() {
		return 0, net.ErrClosed // net/http's read-ahead is not a request
	}
	switch {
	case c.frames == nil:
	case c.frames.Out.On.Load():
		return c.frames.Out.Write(b, c.Conn.Write)
	case c.frames.Prefaced:
		return 0, http2frames.ErrPreface // the plugin does not expect an HTTP/1.1 answer
	}
	if c.rewriteRefusal == nil || c.answering.Load() || c.isHTTP2.Load() ||
		!bytes.HasPrefix(b, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(b, []byte("HTTP/1.1 5")) {
		return c.Conn.Write(b)
	}
	_, text, _ := bytes.Cut(b, []byte("\r\n\r\n"))
	if _, err := c.Conn.Write(c.rewriteRefusal(text)); err != nil {
		return 0, err
	}
	c.ended.Store(true) // the plugin may still be sending
	return len(b), nil
}

// Close closes the connection, with a TLS close_notify where there is TLS.
func (c *conn) Close() error {
	if c.IsAbandoned() {
		return c.Cut()
	}
	if c.lingers() {
		return nil
	}
	return c.Conn.Close()
}

// CloseWrite ends the direction to the plugin. net/http calls it some time before Close
// if the plugin may still be sending.
func (c *conn) CloseWrite() error {
	if c.lingers() {
		return nil
	}
	return c.Conn.CloseWrite()
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

// connState is an http.Server's ConnState: between requests there is no answer in
// progress.
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

// chanListener is a listener of connections that were accepted elsewhere.
type chanListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newChanListener() *chanListener {
	return &chanListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// send hands over a connection, and reports false once the listener is closed.
func (h *chanListener) send(c net.Conn) bool {
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
func (h *chanListener) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *chanListener) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (*chanListener) Addr() net.Addr { return &net.TCPAddr{} }
