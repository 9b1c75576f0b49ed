package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// upstreamProxy is the proxy that upstreams are reached through. It gets an
// address, never a name, and carries a tunnel: a request with a credential is inside
// TLS.
type upstreamProxy struct {
	address  string // host:port
	host     string
	port     string
	tls      bool
	Roots    *x509.CertPool // nil: the system's
	user     authz.Secret   // the value of Proxy-Authorization; empty for none
	names    []string       // reached directly: themselves and below
	below    []string       // reached directly: below, with the leading dot
	prefixes []netip.Prefix
}

func newUpstreamProxy(u *url.URL, direct []string) *upstreamProxy {
	if u == nil {
		return nil
	}
	p := &upstreamProxy{host: u.Hostname(), tls: u.Scheme == "https"}
	if p.port = u.Port(); p.port == "" {
		p.port = fmt.Sprint(authz.Scheme(u.Scheme).DefaultPort())
	}
	p.address = net.JoinHostPort(p.host, p.port)
	if u.User != nil {
		p.user = authz.NewSecret(basicOf(u.User))
	}
	for _, entry := range direct {
		p.addDirect(strings.ToLower(strings.TrimSuffix(entry, ".")))
	}
	return p
}

func basicOf(user *url.Userinfo) string {
	password, _ := user.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password))
}

// addDirect takes in what is reached directly.
func (p *upstreamProxy) addDirect(entry string) {
	prefix, err := netip.ParsePrefix(entry)
	if addr, wrong := netip.ParseAddr(entry); wrong == nil {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case entry == "":
	case err == nil:
		p.prefixes = append(p.prefixes, prefix)
	case entry[0] == '.':
		p.below = append(p.below, entry)
	default:
		p.names, p.below = append(p.names, entry), append(p.below, "."+entry)
	}
}

// ViaProxy reports whether a destination is reached through an upstream proxy.
func (d *Dialer) ViaProxy(to authz.Destination) bool { return d.Proxy.applies(to) }

// applies reports whether a destination is reached through the proxy.
func (p *upstreamProxy) applies(d authz.Destination) bool {
	if p == nil {
		return false
	}
	if addr := d.Address(); addr.IsValid() {
		for _, prefix := range p.prefixes {
			if prefix.Contains(addr) {
				return false
			}
		}
		return true
	}
	for _, name := range p.names {
		if d.Host() == name {
			return false
		}
	}
	for _, suffix := range p.below {
		if strings.HasSuffix(d.Host(), suffix) {
			return false
		}
	}
	return true
}

// proxyError is a failure of the upstream proxy, in our words.
type proxyError struct{ detail string }

func (e *proxyError) Error() string { return e.detail }

// connectVia connects to one address through the proxy. The address is judged
// here, since no socket of ours is connected to it.
func (d *Dialer) connectVia(ctx context.Context, decision authz.Decision, to netip.AddrPort, last bool) (net.Conn, error) {
	if err := d.check(decision, to); err != nil {
		return nil, err
	}
	if !last {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
	}
	conn, err := d.openProxy(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	through, err := d.Proxy.connect(conn, to)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close() // err is reported
		return nil, err
	}
	return through, nil
}

// openProxy connects to the proxy itself.
func (d *Dialer) openProxy(ctx context.Context) (net.Conn, error) {
	p, address := d.Proxy, d.Proxy.address
	if known := d.hosts[strings.ToLower(p.host)]; len(known) > 0 {
		address = net.JoinHostPort(known[0].String(), p.port)
	}
	conn, err := (&net.Dialer{Resolver: d.resolver}).DialContext(ctx, "tcp", address)
	if err != nil {
		if IsTimeout(err) {
			return nil, err
		}
		return nil, &proxyError{"the upstream proxy cannot be reached: " + CauseOf(err)}
	}
	if !p.tls {
		return conn, nil
	}
	secured := tls.Client(conn, &tls.Config{ServerName: p.host, MinVersion: tls.VersionTLS12, RootCAs: p.Roots})
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // err is reported
		return nil, &proxyError{"TLS with the upstream proxy failed: " + CauseOf(err)}
	}
	return secured, nil
}

// connect asks the proxy for a tunnel to an address.
func (p *upstreamProxy) connect(conn net.Conn, to netip.AddrPort) (net.Conn, error) {
	head := "CONNECT " + to.String() + " HTTP/1.1\r\nHost: " + to.String() + "\r\n"
	if user := p.user.Reveal(); user != "" {
		head += "Proxy-Authorization: " + user + "\r\n"
	}
	if _, err := conn.Write([]byte(head + "\r\n")); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(&limitedReader{Conn: conn, left: maxProxyAnswer}, 4096)
	response, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // what follows is the tunnel
	if err != nil {
		if IsTimeout(err) {
			return nil, err
		}
		return nil, &proxyError{"the upstream proxy's answer is invalid"}
	}
	if response.StatusCode != http.StatusOK {
		return nil, &proxyError{fmt.Sprintf("the upstream proxy answered %d", response.StatusCode)}
	}
	ahead, _ := in.Peek(in.Buffered()) // no more than there is
	return &tunnelConn{Conn: conn, ahead: ahead, to: net.TCPAddrFromAddrPort(to)}, nil
}

// maxProxyAnswer bounds the head of the proxy's answer, in bytes.
const maxProxyAnswer = 64 << 10

// limitedReader bounds what is read of the proxy's answer.
type limitedReader struct {
	net.Conn
	left int
}

func (c *limitedReader) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, &proxyError{"the upstream proxy's answer is too long"}
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// tunnelConn is a connection through the proxy.
type tunnelConn struct {
	net.Conn
	ahead []byte // of what the upstream sent, read with the proxy's answer
	to    net.Addr
}

func (c *tunnelConn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// NetConn returns the connection to the proxy itself.
func (c *tunnelConn) NetConn() net.Conn { return c.Conn }

// RemoteAddr returns the upstream's address.
func (c *tunnelConn) RemoteAddr() net.Addr { return c.to }

// CloseWrite ends the sending direction.
func (c *tunnelConn) CloseWrite() error {
	return session.CloseWriteOf(c.Conn)
}
