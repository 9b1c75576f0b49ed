package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// h2Peer is one end of an HTTP/2 connection, frame by frame. Writing fails a test
// no more than a connection that the other end has closed.
type h2Peer struct {
	*http2.Framer
	net.Conn
	block   bytes.Buffer
	encoder *hpack.Encoder
}

func newH2Peer(c net.Conn) *h2Peer {
	p := &h2Peer{Framer: http2.NewFramer(c, c), Conn: c}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.encoder = hpack.NewEncoder(&p.block)
	return p
}

// head returns the fields, as names and values in turn, compressed.
func (p *h2Peer) head(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = p.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // a buffer takes everything
	}
	return bytes.Clone(p.block.Bytes())
}

// headers sends a complete header block.
func (p *h2Peer) headers(stream uint32, end bool, fields ...string) {
	_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.head(fields...), EndHeaders: true, EndStream: end})
}

// each calls f with every frame until the connection ends or f returns false. It
// acknowledges settings and pings, and gives the window of data back.
func (p *h2Peer) each(f func(http2.Frame) bool) error {
	for {
		frame, err := p.ReadFrame()
		if err != nil {
			if stream := (http2.StreamError{}); errors.As(err, &stream) {
				continue
			}
			return err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = p.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = p.WritePing(true, frame.Data)
			}
		case *http2.DataFrame:
			if n := uint32(len(frame.Data())); n > 0 {
				_ = p.WriteWindowUpdate(0, n)
				_ = p.WriteWindowUpdate(frame.StreamID, n)
			}
		}
		if !f(frame) {
			return nil
		}
	}
}

// h2Upstream is an upstream of which a test writes each frame.
type h2Upstream struct {
	addr netip.AddrPort
	ca   *testenv.CA // nil without TLS
}

// newH2Upstream serves each connection with serve, which is called after the
// preface and the settings, and whose return closes the connection.
func newH2Upstream(t testing.TB, plain bool, serve func(*h2Peer)) *h2Upstream {
	t.Helper()
	return newScripted(t, plain, "h2", func(conn net.Conn) {
		if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		p := newH2Peer(conn)
		_ = p.WriteSettings()
		serve(p)
	})
}

// newScripted serves each connection with serve, whose return closes it.
func newScripted(t testing.TB, plain bool, protocol string, serve func(net.Conn)) *h2Upstream {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	u := &h2Upstream{addr: netip.MustParseAddrPort(listener.Addr().String())}
	if !plain {
		u.ca = testenv.MustGet(testenv.NewCA("an upstream"))(t)
		pair := testenv.MustGet(u.ca.Issue("api.weather.example"))(t)
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS12})
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(t.Context(), func() { _ = conn.Close() })
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return u
}

// rule grants everything of the upstream.
func (u *h2Upstream) rule() authz.Rule {
	r := authz.Rule{
		ID: "h2", Reason: "a test", Methods: []string{"*"}, Paths: []string{"/**"},
		To: authz.To{Hosts: []string{"api.weather.example"}, Ports: []uint16{u.addr.Port()}, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}
	if u.ca == nil {
		r.To.Scheme = authz.SchemeHTTP
	} else {
		r.To.TLS = authz.TLS{CA: string(u.ca.PEM()), CAFile: "ca.pem"}
	}
	return r
}

// url is the address of a path of the upstream.
func (u *h2Upstream) url(path string) string {
	scheme := "https"
	if u.ca == nil {
		scheme = "http"
	}
	return scheme + "://" + u.authority() + path
}

// authority is the upstream's name and port.
func (u *h2Upstream) authority() string { return fmt.Sprintf("api.weather.example:%d", u.addr.Port()) }

// h2Client opens an HTTP/2 connection of the plugin's to a host, by CONNECT and
// TLS, and sends the preface and settings.
func (w *world) h2Client(authority string) *h2Peer {
	w.t.Helper()
	host, _, err := net.SplitHostPort(authority)
	testenv.Must(w.t, err)
	c := w.tunnel(authority)
	inner := tls.Client(c.Conn, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	testenv.Must(w.t, inner.HandshakeContext(w.t.Context()))
	_, err = io.WriteString(inner, http2.ClientPreface)
	testenv.Must(w.t, err)
	p := newH2Peer(inner)
	testenv.Must(w.t, p.WriteSettings())
	return p
}

// priorKnowledge is a client that speaks HTTP/2 without TLS to the proxy (RFC
// 9113, section 3.3).
func (w *world) priorKnowledge() *http.Client {
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", w.addr.String())
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
