package database

import (
	"crypto/tls"
	"net"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// immediate is the plugin's connection below TLS. Once it is hurried, a write that would
// wait fails instead: a session that is cut encrypts its last message, and neither a plugin
// that reads nothing nor crypto/tls, which answers a KeyUpdate within a read (RFC 8446,
// section 4.6.3), may delay the cut.
type immediate struct {
	net.Conn
	raw     net.Conn
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
	if i.hurried.Load() {
		return session.SendNow(i.raw, b)
	}
	return i.Conn.Write(b)
}

// hurry makes later writes immediate, and reports whether no earlier one is under way: a
// write either sees that it is hurried, or is seen here.
func (i *immediate) hurry() bool {
	i.hurried.Store(true)
	return i.writing.Load() == 0
}

// sendLast sends bytes to the plugin without waiting, and reports whether all were sent.
// Its caller keeps other writers out.
func sendLast(c *session.Conn, b []byte) bool {
	inner, ok := c.Conn.(*tls.Conn)
	if !ok {
		_, err := session.SendNow(c.Raw, b)
		return err == nil
	}
	under, ok := inner.NetConn().(*immediate)
	if !ok || !under.hurry() {
		return false
	}
	_, err := inner.Write(b)
	return err == nil
}
