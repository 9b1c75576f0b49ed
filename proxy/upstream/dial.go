package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Limits of the upstream's side of a connection.
const (
	dialTimeout      = 10 * time.Second // of resolving a name and connecting
	attemptTimeout   = 5 * time.Second  // of one address, where there are more
	handshakeTimeout = 10 * time.Second
)

// Dialer connects to decided destinations, and to no address that the decision
// does not allow.
type Dialer struct {
	resolver  *net.Resolver
	hosts     map[string][]netip.Addr
	forbidden func(netip.AddrPort) bool
	Proxy     *upstreamProxy // nil: straight on
}

// Config is what a dialer is made of. Its zero value dials directly and asks the
// host's name servers.
type Config struct {
	// Servers are asked for the addresses of upstreams. Empty: the host's.
	Servers []netip.AddrPort
	// Hosts are looked up before any server, by canonical name.
	Hosts map[string][]netip.Addr
	// Forbidden reports the addresses that are never dialled, whatever is granted. Nil: none.
	Forbidden func(netip.AddrPort) bool
	// Proxy is an HTTP proxy for connections to upstreams, by CONNECT to the address that
	// was resolved and checked here: http or https, with a host, a port, and a user if the
	// proxy requires one. Its own address is not checked against rules. Nil: upstreams are
	// dialled directly.
	Proxy *url.URL
	// NoProxy are the hosts that are dialled directly: a name (itself and all below it),
	// a name with a leading dot (all below it), an address or a prefix of addresses, for
	// hosts that are addresses.
	NoProxy []string
}

// NewDialer returns a dialer.
func NewDialer(cfg Config) *Dialer {
	return &Dialer{
		resolver: NewResolver(cfg.Servers), hosts: cfg.Hosts, forbidden: cfg.Forbidden,
		Proxy: newUpstreamProxy(cfg.Proxy, cfg.NoProxy),
	}
}

// Dial resolves the destination and connects to the first of its addresses
// that is allowed and answers. The address is judged where the socket is
// connected, after every resolution and rewriting, so that there is no time
// between check and use.
func (d *Dialer) Dial(ctx context.Context, decision authz.Decision, destination authz.Destination) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addresses, err := d.resolve(ctx, destination)
	if err != nil {
		return nil, err
	}
	return d.dialAny(ctx, decision, destination, addresses)
}

// DialFor is Dial for an admitted access, whose record gets the addresses that the
// destination resolved to, unless one is the sidecar's own: the policy alone does not show
// why that is refused.
func (d *Dialer) DialFor(ctx context.Context, admission *authz.Admission, destination authz.Destination) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addresses, err := d.resolve(ctx, destination)
	if err != nil {
		return nil, err
	}
	own := func(addr netip.Addr) bool {
		return d.forbidden != nil && d.forbidden(netip.AddrPortFrom(addr.Unmap(), destination.Port()))
	}
	if !slices.ContainsFunc(addresses, own) {
		admission.Resolved(addresses)
	}
	return d.dialAny(ctx, admission.Decision, destination, addresses)
}

// dialAny connects to the first of the addresses that is allowed and answers.
func (d *Dialer) dialAny(ctx context.Context, decision authz.Decision, destination authz.Destination, addresses []netip.Addr) (net.Conn, error) {
	var refused, failed, err error
	for i, addr := range addresses {
		to, last := netip.AddrPortFrom(addr, destination.Port()), i == len(addresses)-1
		var conn net.Conn
		if d.Proxy.applies(destination) {
			conn, err = d.connectVia(ctx, decision, to, last)
		} else {
			conn, err = d.connect(ctx, decision, to, last)
		}
		var e *session.RefusalError
		switch {
		case err == nil:
			return conn, nil
		case errors.As(err, &e):
			refused = e
		default:
			failed = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if failed == nil && refused != nil {
		return nil, refused
	}
	if e := (*proxyError)(nil); errors.As(failed, &e) {
		return nil, &session.RefusalError{Reason: authz.UpstreamUnreachable, Detail: "connect to " + destination.HostPort() + ": " + e.Error(), Remedy: "ask the operator to check upstreamProxy"}
	}
	return nil, Unreachable(failed, "connect to "+destination.HostPort())
}

// connect connects to one address.
func (d *Dialer) connect(ctx context.Context, decision authz.Decision, to netip.AddrPort, last bool) (net.Conn, error) {
	dialer := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		actual, err := netip.ParseAddrPort(address)
		if err != nil {
			return &session.RefusalError{Reason: authz.AddressNotAllowed, Detail: "the address of the connection is unknown"}
		}
		return d.check(decision, actual)
	}}
	if !last {
		dialer.Timeout = attemptTimeout
	}
	return dialer.DialContext(ctx, "tcp", to.String())
}

// DialAddress connects to one address of a destination, which an earlier connection of the
// same access was made to: a request that ends a statement must reach the server that runs
// it. The address is checked as in [Dialer.Dial].
func (d *Dialer) DialAddress(ctx context.Context, decision authz.Decision, destination authz.Destination, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if d.Proxy.applies(destination) {
		return d.connectVia(ctx, decision, to, true)
	}
	return d.connect(ctx, decision, to, true)
}

// Address returns the address of a connection's upstream, also behind a proxy; the
// zero Addr if it is unknown.
func Address(conn net.Conn) netip.Addr {
	remote := conn.RemoteAddr()
	if tcp, ok := remote.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	at, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// check refuses an address that the decision, or the sidecar's own safety,
// does not allow.
func (d *Dialer) check(decision authz.Decision, to netip.AddrPort) error {
	addr := to.Addr().Unmap()
	if reason := decision.CheckAddress(addr); reason != authz.Granted {
		detail := "the address of the destination is " + addr.String()
		if outside := decision.OutsideRegions(addr); outside != "" {
			detail += ", which is " + outside
		}
		return &session.RefusalError{Reason: reason, Detail: detail, Address: addr}
	}
	if d.forbidden != nil && d.forbidden(netip.AddrPortFrom(addr, to.Port())) {
		return &session.RefusalError{Reason: authz.AddressNotAllowed, Detail: fmt.Sprintf("%s belongs to the sidecar", to), Remedy: "use another destination; nothing grants the sidecar's own addresses"}
	}
	return nil
}

// resolve returns the destination's addresses. Names are looked up as they
// are, without the host's search list.
func (d *Dialer) resolve(ctx context.Context, destination authz.Destination) ([]netip.Addr, error) {
	if addr := destination.Address(); addr.IsValid() {
		return []netip.Addr{addr}, nil
	}
	if addresses := d.hosts[destination.Host()]; len(addresses) > 0 {
		return addresses, nil
	}
	addresses, err := d.resolver.LookupNetIP(ctx, "ip", destination.Host()+".")
	if err != nil {
		var missing *net.DNSError
		if errors.As(err, &missing) && missing.IsNotFound {
			return nil, &session.RefusalError{
				Reason: authz.UpstreamUnreachable, Detail: "the name " + destination.Host() + " has no address",
				Remedy: "check the name; if it is a local one, ask the operator for its addresses under dns.hosts, or for the servers that resolve it under dns.servers",
			}
		}
		e := Unreachable(err, "resolve "+destination.Host())
		e.Remedy = "ask the operator to check dns.servers, or the name servers of the host, which do not answer"
		return nil, e
	}
	return addresses, nil
}

// Unreachable returns a failure as the refusal it becomes. Its words are ours
// and the system's, never the upstream's: those could hold what it was sent.
func Unreachable(err error, doing string) *session.RefusalError {
	if IsTimeout(err) {
		return &session.RefusalError{Reason: authz.UpstreamTimeout, Detail: doing + ": no answer in time"}
	}
	cause, remedy := explainCause(err)
	return &session.RefusalError{Reason: authz.UpstreamUnreachable, Detail: doing + ": " + cause, Remedy: remedy}
}

// IsTimeout reports whether an error is that of a deadline.
func IsTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// CauseOf describes the cause of an error.
func CauseOf(err error) string {
	cause, _ := explainCause(err)
	return cause
}

// explainCause is causeOf with what to do about it; remedy is "" for what may pass
// by itself.
func explainCause(err error) (cause, remedy string) {
	if cause, remedy = certificateCause(err); cause != "" {
		return cause, remedy
	}
	var errno syscall.Errno
	var alert tls.AlertError
	var remote *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &errno):
		return errno.Error(), remedyForErrno(errno)
	case errors.Is(err, scrub.ErrBomb):
		return "its answer exceeds the limit when it is decompressed", "ask for it uncompressed (Accept-Encoding: identity)"
	case errors.Is(err, scrub.ErrFrame):
		return "its answer has a frame that cannot be searched", "ask for it uncompressed (Accept-Encoding: identity)"
	case errors.As(err, &alert):
		return alert.Error(), handshakeRemedy
	case errors.As(err, &remote) && remote.Op == "remote error": // an alert, of which crypto/tls exports nothing else
		return remote.Err.Error(), handshakeRemedy
	case errors.As(err, &record):
		return "it does not speak TLS", "check the port; if the server speaks plain http there, ask for scheme: http on RULE"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection", ""
	}
	return "its answer is invalid", ""
}

// UntrustedAuthority is in the detail of a refusal whose upstream showed the
// certificate of an authority that the rule, or the system, does not trust.
const UntrustedAuthority = "its certificate is signed by an authority that is not trusted"

const handshakeRemedy = "ask the operator to check tls.min and the client certificate (mtls) of RULE against what the server asks for"

// certificateCause is causeOf for a certificate that is not accepted; "" for
// anything else.
func certificateCause(err error) (cause, remedy string) {
	var verification *tls.CertificateVerificationError
	var hostname x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &hostname):
		return "its certificate is for another name", "use the name that the certificate is for, or have the server show one for this name"
	case errors.As(err, &unknown):
		return UntrustedAuthority,
			"if the authority is to be trusted there, ask for its certificate (PEM) under to.tls.caFile of RULE"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its certificate has expired or is not valid yet", "have the server's certificate renewed, and check the clock of this host"
	case errors.As(err, &invalid):
		return "its certificate is not valid", "have the server show another certificate"
	case errors.As(err, &verification):
		return "its certificate could not be verified", "have the server show another certificate"
	}
	return "", ""
}

func remedyForErrno(errno syscall.Errno) string {
	if errno == syscall.ECONNREFUSED {
		return "check host and port, and that the server runs"
	}
	if errno == syscall.ENETUNREACH || errno == syscall.EHOSTUNREACH {
		return "check that this host has a route there"
	}
	return ""
}
