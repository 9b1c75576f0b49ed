package session

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
)

// CopyConn copies from one connection to another. To a TCP socket the kernel
// does it (splice(2)) while no limit is in force.
func (p *RateLimiter) CopyConn(to, from net.Conn) (moved int64, err error) {
	if c, ok := from.(*Conn); ok {
		if ahead := c.TakeAhead(); len(ahead) > 0 {
			if moved, err = p.Copy(to, bytes.NewReader(ahead), p.buffer()); err != nil {
				return moved, err
			}
		}
		from = c.Conn
	}
	if c, ok := to.(*Conn); ok {
		to = c.Conn
	}
	tcp, both := to.(*net.TCPConn)
	if both {
		both = isSocket(from)
	}
	for {
		var n int64
		if both && !p.Limited() {
			n, err = splice(tcp, from)
		} else {
			n, err = p.stream(to, from)
		}
		moved += n
		if errors.Is(err, io.EOF) {
			return moved, nil
		}
		if err != nil {
			return moved, err
		}
	}
}

// isSocket reports whether a connection is a socket itself.
func isSocket(c net.Conn) bool {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// splice has the kernel move up to spliceSize bytes. Its error is io.EOF at the end.
func splice(to *net.TCPConn, from net.Conn) (int64, error) {
	const spliceSize = 1 << 20 // after which limits are looked at again
	n, err := to.ReadFrom(&io.LimitedReader{R: from, N: spliceSize})
	if err == nil && n < spliceSize {
		err = io.EOF
	}
	return n, err
}

// CloseWrite passes the end of file on, and reports whether it could.
func CloseWrite(to io.Writer) bool { return CloseWriteOf(to) == nil }

// CloseWriteOf ends the writing direction of a connection, or returns
// [errors.ErrUnsupported].
func CloseWriteOf(to io.Writer) error {
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// BufferSize is the most that is held of a body at one time.
const BufferSize = 32 << 10

// BufferPool lends buffers for copying.
type BufferPool struct{ pool sync.Pool }

// Get lends a buffer of [BufferSize] bytes.
func (b *BufferPool) Get() *[]byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, BufferSize)
	return &buf
}

// Put takes a buffer back.
func (b *BufferPool) Put(buf *[]byte) { b.pool.Put(buf) }
