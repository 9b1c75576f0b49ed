package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// wire is a client that sends and reads frames as they are.
type wire struct {
	t    testing.TB
	conn net.Conn
	in   io.Reader // of conn, with what a login has read in the background; nil for conn
	key  []byte    // pid and secret, nil if the server gave none
	set  map[string]string

	aside func(f frame) bool // reports whether next passes over a message; nil for none
}

// frame is one message of a server.
type frame struct {
	kind byte
	body []byte
}

func (f frame) String() string {
	if f.kind == msgErrorResponse {
		return fmt.Sprintf("E[%s %s]", f.field('C'), f.field('M'))
	}
	return fmt.Sprintf("%c%q", f.kind, f.body)
}

func (f frame) field(name byte) string {
	return errorField(append(make([]byte, headerSize), f.body...), name)
}

// encode encodes messages of a client.
func encode(messages ...pgproto3.FrontendMessage) []byte {
	var out []byte
	for _, m := range messages {
		var err error
		if out, err = m.Encode(out); err != nil {
			panic(err)
		}
	}
	return out
}

// raw returns a frame.
func raw(kind byte, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

func (c *wire) send(b []byte) {
	c.t.Helper()
	_, err := c.conn.Write(b)
	testenv.Must(c.t, err)
}

// next returns the next message that is not put aside, or the error of reading.
func (c *wire) next() (frame, error) {
	for {
		f, err := c.any()
		if err != nil || c.aside == nil || !c.aside(f) {
			return f, err
		}
	}
}

// any returns the next message, or the error of reading.
func (c *wire) any() (frame, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return frame{}, err
	}
	var in io.Reader = c.conn
	if c.in != nil {
		in = c.in
	}
	var head [headerSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return frame{}, err
	}
	f := frame{head[0], make([]byte, binary.BigEndian.Uint32(head[1:])-4)}
	_, err := io.ReadFull(in, f.body)
	return f, err
}

// until reads messages up to one of a kind, which is the last of the result.
func (c *wire) until(kind byte) []frame {
	c.t.Helper()
	var out []frame
	for {
		f, err := c.next()
		if err != nil {
			c.t.Fatalf("read up to %c: %v after %v", kind, err, out)
		}
		if out = append(out, f); f.kind == kind {
			return out
		}
	}
}

// query sends a Query and returns the answer.
func (c *wire) query(text string) []frame {
	c.t.Helper()
	c.send(encode(&pgproto3.Query{String: text}))
	return c.until(msgReadyForQuery)
}

// expectFatal reads the last message and the end of the connection.
func (c *wire) expectFatal(state, message string) {
	c.t.Helper()
	var last frame
	for {
		f, err := c.next()
		if err != nil {
			break
		}
		last = f
	}
	if last.kind != msgErrorResponse || last.field('S') != severityFatal || last.field('C') != state || !strings.Contains(last.field('M'), message) {
		c.t.Fatalf("the last message is %v, want FATAL %s with %q", last, state, message)
	}
}

// dial connects to the front without any byte.
func (w *world) dial() *wire {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	testenv.Must(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return &wire{t: w.t, conn: conn, set: map[string]string{}, aside: w.aside}
}

// startupPacket returns a startup packet of a protocol version.
func startupPacket(version uint32, parameters ...string) []byte {
	body := binary.BigEndian.AppendUint32(nil, version)
	for _, p := range parameters {
		body = append(append(body, p...), 0)
	}
	body = append(body, 0)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
}

const protocol30, protocol32 = 3 << 16, 3<<16 | 2

// open begins a session without TLS, with protocol 3.0.
func (w *world) open(parameters ...string) *wire {
	w.t.Helper()
	c := w.dial()
	c.begin(startupPacket(protocol30, append([]string{"user", "anyone", "database", databaseName}, parameters...)...))
	return c
}

// begin sends a startup packet and reads until the session is ready.
func (c *wire) begin(packet []byte) []frame {
	c.t.Helper()
	c.send(packet)
	out := c.until(msgReadyForQuery)
	for _, f := range out {
		switch f.kind {
		case 'K':
			c.key = f.body
		case msgParameterStatus:
			name, value, _ := bytes.Cut(bytes.TrimSuffix(f.body, []byte{0}), []byte{0})
			c.set[string(name)] = string(value)
		}
	}
	return out
}

// openTLS begins TLS by an SSLRequest, and a session.
func (w *world) openTLS() *wire {
	w.t.Helper()
	c := w.dial()
	c.send(encode(&pgproto3.SSLRequest{}))
	var answer [1]byte
	_, err := io.ReadFull(c.conn, answer[:])
	testenv.Must(w.t, err)
	if answer[0] != 'S' {
		w.t.Fatalf("an SSLRequest was answered %q", answer)
	}
	testenv.Must(w.t, c.startTLS(w))
	c.begin(startupPacket(protocol30, "user", "anyone", "database", databaseName))
	return c
}

func (c *wire) startTLS(w *world, protocols ...string) error {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca.Certificate)
	inner := tls.Client(c.conn, &tls.Config{ServerName: host, RootCAs: roots, NextProtos: protocols})
	c.conn = inner
	return inner.Handshake()
}

// direct begins a session at the database itself, with the settings that the front pins.
func direct(t testing.TB, to target, settings map[string]string) *wire {
	t.Helper()
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 sslmode=disable")
	testenv.Must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(to.caPEM))
	cfg.Port, cfg.User, cfg.Password, cfg.Database, cfg.Fallbacks = to.port, to.user, to.password, databaseName, nil
	cfg.TLSConfig = &tls.Config{ServerName: host, RootCAs: roots}
	cfg.RuntimeParams = settings
	var in io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		in = r
		return pgproto3.NewFrontend(&loginReader{r: r, left: maxLogin}, w)
	}
	conn, err := pgconn.ConnectConfig(context.Background(), cfg)
	testenv.Must(t, err)
	hijacked, err := conn.Hijack()
	testenv.Must(t, err)
	t.Cleanup(func() { _ = hijacked.Conn.Close() })
	return &wire{t: t, conn: hijacked.Conn, in: in}
}

// eventually waits until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	testenv.Eventually(t, what, func() (struct{}, bool) { return struct{}{}, holds() })
}
