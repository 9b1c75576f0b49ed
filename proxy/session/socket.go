package session

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// Peer is the proved other end of a connection.
type Peer struct {
	PID int
	UID int
	Exe string
	// Cookie is the kernel's number of the plugin's socket (SO_COOKIE), which
	// no other socket ever has. 0: not known.
	Cookie uint64
	// Original is where the plugin connected to. The proxy's own address, or
	// none, is explicit use of the proxy; any other was redirected.
	Original netip.AddrPort
}

// Socket is an accepted connection below all TLS: the identity of its peer, the
// memory that it takes, and the ways to end it. Each layer on it, a [Conn], shares it.
// Its exported fields are set before the first Conn is handed to another goroutine.
type Socket struct {
	// Raw is the accepted connection.
	Raw net.Conn
	// Proved is set when the peer was identified as the plugin.
	Proved bool
	// Original is where the peer connected to; see [Peer].
	Original netip.AddrPort
	// Source is what the audit log records of the peer.
	Source authz.Source
	// Attribution is that of the socket's bytes to rules; nil for none.
	Attribution *Attribution
	// Memory is what the connection takes of the budget.
	Memory *budget.Holding
	// OutOfMemory records that something was refused because the budget has no room.
	OutOfMemory func()
	// Abandoned reports whether all access of the plugin was revoked since the
	// connection was made. Its peer acknowledges nothing then, and an ordinary close
	// would wait for that. Nil: never.
	Abandoned func() bool
	// Forget is called once when the connection is closed.
	Forget func(*Socket)

	// OwnsUpstream is set when connections to upstreams belong to this one, because an
	// upstream has authenticated the plugin on them.
	OwnsUpstream atomic.Bool

	once    sync.Once
	aborted atomic.Bool
	ending  atomic.Bool
	closed  atomic.Bool
}

// Redirected reports whether the kernel redirected the connection here.
func (s *Socket) Redirected() bool {
	if !s.Original.IsValid() {
		return false
	}
	own, ok := s.Raw.LocalAddr().(*net.TCPAddr)
	if !ok {
		return true
	}
	addr := own.AddrPort()
	return s.Original.Port() != addr.Port() || s.Original.Addr().Unmap() != addr.Addr().Unmap()
}

// Closed reports whether the connection has been closed. A nil Socket never is.
func (s *Socket) Closed() bool { return s != nil && s.closed.Load() }

// IsAbandoned reports whether all access of the plugin was revoked since the
// connection was made.
func (s *Socket) IsAbandoned() bool { return s.Abandoned != nil && s.Abandoned() }

// Cut closes the connection at once, whatever it is doing.
func (s *Socket) Cut() error {
	if s.IsAbandoned() {
		s.resetOnClose()
	}
	err := s.Raw.Close()
	s.ended()
	return err
}

// Reset closes the connection so that the peer reads an error and no end of file.
func (s *Socket) Reset() {
	s.resetOnClose()
	_ = s.Cut()
}

// Abort resets the connection without waiting for the goroutine that uses it; see
// [AbortConn]. The first call does so, further ones nothing.
func (s *Socket) Abort() {
	if !s.aborted.Swap(true) {
		AbortConn(s.Raw)
	}
}

// EndsLater records that a session which was cut ends the connection itself, once it has
// sent its last message.
func (s *Socket) EndsLater() { s.ending.Store(true) }

// Ends reports whether Abort or EndsLater was called.
func (s *Socket) Ends() bool { return s.aborted.Load() || s.ending.Load() }

// resetOnClose makes the next close a reset: unsent bytes are dropped.
func (s *Socket) resetOnClose() {
	if tcp, ok := s.Raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a plain close would be an orderly end
	}
}

func (s *Socket) ended() {
	s.once.Do(func() {
		s.closed.Store(true)
		if s.Forget != nil {
			s.Forget(s)
		}
	})
}

// Conn is one layer of an accepted connection: its bytes as they are, or those inside
// the TLS that is terminated on it. Bytes can be read ahead and are then read again.
type Conn struct {
	net.Conn
	*Socket

	ahead []byte       // read ahead, to be read again
	head  atomic.Int64 // bytes of the head being read that memory was taken for
}

// NewConn returns the lowest layer of a socket.
func NewConn(s *Socket) *Conn { return &Conn{Conn: s.Raw, Socket: s} }

// Over returns the layer inside TLS that is terminated on c.
func (c *Conn) Over(inner net.Conn) *Conn { return &Conn{Conn: inner, Socket: c.Socket} }

// Read reads the bytes that were read ahead, then the connection.
func (c *Conn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			c.ahead = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

// Peek returns at least n bytes and leaves them to be read again.
func (c *Conn) Peek(n int) ([]byte, error) {
	for len(c.ahead) < n {
		buf := make([]byte, 4096)
		got, err := c.Conn.Read(buf)
		if full := c.CountHead(int64(got)); full != nil {
			return c.ahead, full
		}
		c.ahead = append(c.ahead, buf[:got]...)
		if err != nil {
			return c.ahead, err
		}
	}
	return c.ahead, nil
}

// Ahead returns the bytes that were read ahead.
func (c *Conn) Ahead() []byte { return c.ahead }

// TakeAhead returns the bytes that were read ahead and does not read them again.
func (c *Conn) TakeAhead() []byte {
	ahead := c.ahead
	c.ahead = nil
	return ahead
}

// Unread has bytes be read again, before those that were read ahead.
func (c *Conn) Unread(b []byte) {
	c.ahead = append(append(make([]byte, 0, len(b)+len(c.ahead)), b...), c.ahead...)
}

// CountHead takes memory for n more bytes of a head that is being read, beyond what
// is counted with the connection. The error is one of the budget.
func (c *Conn) CountHead(n int64) error {
	before := c.head.Add(n) - n
	cost := HeadFactor * (max(before+n, FreeHead) - max(before, FreeHead))
	if cost == 0 {
		return nil
	}
	if err := c.Memory.Take(budget.Request, cost); err != nil {
		c.OutOfMemory()
		return err
	}
	return nil
}

// HeadRead gives back the memory of a head that was read: its request takes its own.
func (c *Conn) HeadRead() {
	c.Memory.Give(budget.Request, HeadFactor*max(0, c.head.Swap(0)-FreeHead))
}

// Close closes the layer, with a TLS close_notify where it is TLS, and the socket.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.ended()
	return err
}

// CloseWrite ends the layer's writing direction.
func (c *Conn) CloseWrite() error { return CloseWriteOf(c.Conn) }
