package session

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"
)

// HelloTimeout is how long the first bytes of a connection may take.
const HelloTimeout = 10 * time.Second

// errNotSent stops a handshake that is only read.
var errNotSent = errors.New("no data is sent")

// ReadClientHello reads the ClientHello, leaves it to be read again, and returns its
// server name.
func ReadClientHello(ctx context.Context, c *Conn) (name string, ok bool) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(HelloTimeout)) // a broken one fails below
	defer func() { _ = c.Conn.SetReadDeadline(time.Time{}) }()
	tap := &clientHelloConn{Conn: c.Conn, c: c}
	ctx, cancel := context.WithTimeout(ctx, HelloTimeout)
	defer cancel()
	_ = tls.Server(tap, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = hello.ServerName, true
			return nil, errNotSent
		},
	}).HandshakeContext(ctx) // it always fails; ok reports whether the hello was read
	return name, ok
}

// clientHelloConn lets a handshake read a connection without consuming it, and
// swallows what it would answer.
type clientHelloConn struct {
	net.Conn
	c   *Conn
	off int
}

// maxHello is more than any ClientHello: one record is at most 16 KiB.
const maxHello = 64 << 10

func (t *clientHelloConn) Read(b []byte) (int, error) {
	if t.off >= maxHello {
		return 0, io.ErrUnexpectedEOF
	}
	ahead, err := t.c.Peek(t.off + 1)
	if err != nil {
		return 0, err
	}
	n := copy(b, ahead[t.off:])
	t.off += n
	return n, nil
}

func (*clientHelloConn) Write(b []byte) (int, error)      { return len(b), nil }
func (*clientHelloConn) Close() error                     { return nil }
func (*clientHelloConn) SetDeadline(time.Time) error      { return nil }
func (*clientHelloConn) SetReadDeadline(time.Time) error  { return nil }
func (*clientHelloConn) SetWriteDeadline(time.Time) error { return nil }
