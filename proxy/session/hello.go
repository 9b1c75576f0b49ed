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
var errNotSent = errors.New("nothing is sent")

// ReadHello reads the ClientHello, leaves it to be read again, and returns its
// server name.
func ReadHello(ctx context.Context, c *Conn) (name string, ok bool) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(HelloTimeout)) // a broken one fails below
	defer func() { _ = c.Conn.SetReadDeadline(time.Time{}) }()
	tap := &helloTap{Conn: c.Conn, c: c}
	ctx, cancel := context.WithTimeout(ctx, HelloTimeout)
	defer cancel()
	_ = tls.Server(tap, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = hello.ServerName, true
			return nil, errNotSent
		},
	}).HandshakeContext(ctx) // it always fails; ok says how far it came
	return name, ok
}

// helloTap lets a handshake read a connection without consuming it, and
// swallows what it would answer.
type helloTap struct {
	net.Conn
	c   *Conn
	off int
}

// maxHello is more than any ClientHello: one record is at most 16 KiB.
const maxHello = 64 << 10

func (t *helloTap) Read(b []byte) (int, error) {
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

func (*helloTap) Write(b []byte) (int, error)      { return len(b), nil }
func (*helloTap) Close() error                     { return nil }
func (*helloTap) SetDeadline(time.Time) error      { return nil }
func (*helloTap) SetReadDeadline(time.Time) error  { return nil }
func (*helloTap) SetWriteDeadline(time.Time) error { return nil }
