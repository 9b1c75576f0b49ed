package envoy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// bytesConn is a connection on which bytes arrive, one at a time, and then no more.
type bytesConn struct {
	net.Conn
	io.Reader
}

func (c bytesConn) Read(b []byte) (int, error)    { return c.Reader.Read(b) }
func (bytesConn) Write([]byte) (int, error)       { return 0, errors.New("nobody is answered") }
func (bytesConn) Close() error                    { return nil }
func (bytesConn) SetReadDeadline(time.Time) error { return nil }

// hello is a ClientHello for a name.
func hello(name string) []byte {
	var sent bytes.Buffer
	_ = tls.Client(recordedConn{w: &sent}, &tls.Config{ServerName: name, InsecureSkipVerify: true}).HandshakeContext(context.Background())
	return sent.Bytes()
}

type recordedConn struct {
	net.Conn
	w io.Writer
}

func (c recordedConn) Write(b []byte) (int, error) { return c.w.Write(b) }
func (recordedConn) Read([]byte) (int, error)      { return 0, io.EOF }
func (recordedConn) Close() error                  { return nil }

// FuzzExitDestination sends arbitrary bytes to egress sockets of each kind: the
// destination that they determine is within the route, is the one that net/http and
// crypto/tls read too, and all bytes are still available to be forwarded.
func FuzzExitDestination(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a.weather.example\r\n\r\nrest", "GET / HTTP/1.1\r\nHost: a.weather.example:80\r\nhost: b.weather.example\r\n\r\n",
		"GET http://b.weather.example/ HTTP/1.1\r\nHost: a.weather.example\r\n\r\n", "GET / HTTP/1.1\r\nX: y\r\n Host: b\r\nHost: a.weather.example\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost:a.weather.example\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost : a.weather.example\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", string(hello("a.weather.example")), string(hello("evil.example")), string(hello("")),
	} {
		f.Add([]byte(seed))
	}
	set := new(Egress)
	f.Fuzz(func(t *testing.T, sent []byte) {
		for _, scheme := range []authz.Scheme{authz.SchemeHTTP, authz.SchemeHTTPS, authz.SchemeTLS} {
			for _, host := range []string{"*.weather.example", "a.weather.example"} {
				e := &egressListener{egress: set, route: authz.Route{Scheme: scheme, Host: host, Port: 80}}
				c := session.NewConn(&session.Socket{Raw: bytesConn{Reader: iotest.OneByteReader(bytes.NewReader(sent))}})
				to, fault := e.destination(t.Context(), c)
				if !bytes.HasPrefix(sent, c.Ahead()) {
					t.Fatalf("of %q %q is left", sent, c.Ahead())
				}
				if fault != nil {
					continue
				}
				if !e.route.Matches(to.Host()) || to.Port() != 80 || to.Scheme() != scheme {
					t.Fatalf("%s %s: got the destination %s", scheme, host, to.URL())
				}
				if scheme == authz.SchemeHTTP && !e.route.Exact() {
					r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(sent)))
					if err == nil && (!to.Agrees(r.Host) || len(r.Header["Host"]) > 0) {
						t.Fatalf("%q: net/http reads the host %q, the exit %s", sent, r.Host, to.HostPort())
					}
					if err == nil && strings.Contains(r.RequestURI, "://") && !strings.HasPrefix(r.RequestURI, "/") {
						t.Fatalf("%q names two hosts", sent)
					}
				}
			}
		}
	})
}
