package postgres

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/proxy/database"
)

// cancelTimeout is how long a cancel may take.
const cancelTimeout = 5 * time.Second

// cancels are the cancel keys that were given to the plugin's sessions.
type cancels struct {
	mu sync.Mutex
	of map[string]*canceller
}

// canceller ends what a session runs.
type canceller struct {
	session *database.Session
	server  *server
	busy    atomic.Bool
}

// Sizes of the keys that are given to plugins: 32 bits in protocol 3.0, and what
// PostgreSQL 18 gives in 3.2.
const (
	shortKey = 4
	longKey  = 32
)

// add gives a session a key of its own, pid and secret, in the size that its protocol has.
func (c *cancels) add(s *canceller, minor uint16) (pid uint32, secret []byte) {
	secret = make([]byte, shortKey)
	if minor >= newestMinor {
		secret = make([]byte, longKey)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[string]*canceller)
	}
	for {
		var number [4]byte
		_, _ = rand.Read(number[:]) // it never fails
		_, _ = rand.Read(secret)
		pid = binary.BigEndian.Uint32(number[:])&0x3fffffff + 1 // positive, as a process id is
		if key := keyOf(pid, secret); c.of[key] == nil {
			c.of[key] = s
			return pid, secret
		}
	}
}

func keyOf(pid uint32, secret []byte) string {
	return string(append(binary.BigEndian.AppendUint32(nil, pid), secret...))
}

func (c *cancels) remove(pid uint32, secret []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, keyOf(pid, secret))
}

// find returns the session of a CancelRequest's body, nil for a key that was not given.
func (c *cancels) find(body []byte) *canceller {
	if len(body) < 4+shortKey || len(body) > 4+maxKey {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[string(body)]
}

// once cancels unless a cancel of the session is under way.
func (c *canceller) once(ctx context.Context) error {
	if !c.busy.CompareAndSwap(false, true) {
		return nil
	}
	defer c.busy.Store(false)
	return c.cancel(ctx)
}

var errNoKey = errors.New("the server gave no cancel key")

// cancel asks the server, at the same address and with the same terms of TLS, to end what
// the session runs. The server does not answer; it closes.
func (c *canceller) cancel(ctx context.Context) error {
	if len(c.server.key) == 0 {
		return errNoKey
	}
	ctx, stop := context.WithTimeout(ctx, cancelTimeout)
	defer stop()
	raw, err := c.session.DialAgain(ctx)
	if err != nil {
		return err
	}
	defer raw.Close()
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return err
	}
	conn, err := c.secure(ctx, raw)
	if err != nil {
		return err
	}
	request, err := (&pgproto3.CancelRequest{ProcessID: c.server.pid, SecretKey: c.server.key}).Encode(nil)
	if err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, conn, 1) // its end is the answer, however it comes
	return nil
}

// secure begins TLS on a connection for a cancel.
func (c *canceller) secure(ctx context.Context, raw net.Conn) (net.Conn, error) {
	if _, ok := c.server.conn.(*tls.Conn); !ok {
		return raw, nil
	}
	request, err := (&pgproto3.SSLRequest{}).Encode(nil)
	if err != nil {
		return nil, err
	}
	if _, err := raw.Write(request); err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(raw, answer[:]); err != nil {
		return nil, err
	}
	if answer[0] != 'S' {
		return nil, errors.New("the server offers no TLS")
	}
	conn := tls.Client(raw, c.session.TLSConfigAgain()) // the session may have been cut
	return conn, conn.HandshakeContext(ctx)
}
