package database

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// maxUnsent is how many bytes [unsent] keeps at most: a message that fits into the buffer of a
// protocol, or a record of TLS with the rest of such a message, and the last message.
const maxUnsent = 96 << 10

var errUnsent = errors.New("too much is unsent")

// unsent is what follows, on the plugin's connection below TLS, when its session is cut and the
// kernel does not take it at once: the rest of a message that was begun, and the last message.
type unsent struct {
	mu sync.Mutex
	b  []byte
}

// send sends bytes without waiting, behind those that are kept, and keeps what is left of them.
func (u *unsent) send(s *session.Socket, b []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.b) == 0 {
		n, _ := session.SendNow(s.Raw, b) // a connection that has failed fails again
		b = b[n:]
	}
	if len(b) == 0 {
		return nil
	}
	if len(u.b)+len(b) > maxUnsent {
		return errUnsent
	}
	if err := s.Memory.Take(budget.Body, int64(len(b))); err != nil {
		return err
	}
	u.b = append(u.b, b...)
	return nil
}

// rest returns what is kept.
func (u *unsent) rest() []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.b
}

// immediate is the plugin's connection below TLS. Once it is hurried, a write keeps what would
// wait, also one that is interrupted then: a session that is cut encrypts its last message, and
// neither a plugin that reads nothing nor crypto/tls, which answers a KeyUpdate within a read
// (RFC 8446, section 4.6.3), may delay the cut. The records stay whole and in their order.
type immediate struct {
	net.Conn
	socket  *session.Socket
	unsent  *unsent // of the session; set before the connection is hurried
	hurried atomic.Bool
	writing atomic.Int32
	shaken  atomic.Bool       // the handshake has ended
	tail    session.TailBytes // of what was read in it
}

// Read implements [net.Conn].
func (i *immediate) Read(b []byte) (int, error) {
	n, err := i.Conn.Read(b)
	if !i.shaken.Load() {
		i.tail.Add(b[:n])
	}
	return n, err
}

// Write implements [net.Conn].
func (i *immediate) Write(b []byte) (int, error) {
	i.writing.Add(1)
	defer i.writing.Add(-1)
	sent := 0
	if !i.hurried.Load() {
		n, err := i.Conn.Write(b)
		if err == nil || !i.hurried.Load() {
			return n, err
		}
		sent = n
	}
	if err := i.unsent.send(i.socket, b[sent:]); err != nil {
		return sent, err
	}
	return len(b), nil
}

// hurry makes later writes immediate, and reports whether no earlier one is under way: a
// write either sees that it is hurried, or is seen here.
func (i *immediate) hurry() bool {
	i.hurried.Store(true)
	return i.writing.Load() == 0
}

// belowTLS returns the plugin's connection below TLS, nil for one without.
func belowTLS(c *session.Conn) *immediate {
	inner, ok := c.Conn.(*tls.Conn)
	if !ok {
		return nil
	}
	under, _ := inner.NetConn().(*immediate)
	return under
}

// hurry makes later writes immediate, and reports whether [Session.sendNow] would not wait.
func (s *Session) hurry() bool {
	under := belowTLS(s.plugin)
	return under == nil || under.hurry()
}

// sendNow sends bytes to a plugin whose connection is hurried, and keeps what the kernel does not
// take at once. Its caller keeps other writers out.
func (s *Session) sendNow(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if belowTLS(s.plugin) == nil {
		return s.down.unsent.send(s.plugin.Socket, b)
	}
	_, err := s.plugin.Conn.Write(b)
	return err
}
