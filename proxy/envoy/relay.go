package envoy

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const (
	// relayTimeout bounds how long an Envoy may take to accept a connection.
	relayTimeout = 5 * time.Second
	// relayAgain is the interval between attempts to connect while the queue is full.
	relayAgain = 2 * time.Millisecond
)

// Relay forwards connections of the plugin to an Envoy.
type Relay struct {
	Socket    string // of the Envoy
	Live      *session.Registry
	Rates     *session.RateLimits
	Abandoned func() bool // all access of the plugin is revoked
	Now       func() time.Time
	Log       *zap.Logger
	warnings  ratelimit.Sampler // of an Envoy that takes no connection
}

// Take forwards a connection to the Envoy, with a PROXY protocol header that states its
// target, and returns nil when the connection has ended. If the Envoy accepts no
// connection, or must not receive this one, it returns the refusal for everything on the
// connection.
//
// Requests on it are decided through ext_authz one by one: a rule that is revoked ends
// the egress connections of its rule and leaves this one to the other rules. This one is
// cut when all access of the plugin is revoked.
func (r *Relay) Take(ctx context.Context, c *session.Conn) *session.RefusalError {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &splicedPair{near: c, cancel: cancel}
	s.access = session.Session{OnCut: cancel, Recheck: func() bool { return !r.Abandoned() }}
	if !r.Live.Add(&s.access) {
		return &session.RefusalError{Reason: authz.Revoked, Detail: session.ErrRevoked.Error()}
	}
	defer r.Live.Remove(&s.access)
	var err error
	if s.far, err = r.open(ctx, c); err != nil {
		if cause := s.access.CutCause(); cause != nil {
			return &session.RefusalError{Reason: authz.Revoked, Detail: cause.Error()}
		}
		if r.warnings.Take(r.Now()) > 0 {
			r.Log.Warn("connection not relayed to envoy", zap.Error(err))
		}
		return &session.RefusalError{Reason: authz.NotReady, Detail: "the Envoy does not accept connections"}
	}
	defer c.Close()
	defer s.far.Close()
	up, down := r.Rates.Limiter(authz.LimitSentBytes, ctx.Done()), r.Rates.Limiter(authz.LimitReceivedBytes, ctx.Done())
	s.splice(
		func() error { _, err := up.CopyConn(s.far, c); return err },
		func() error { _, err := down.CopyConn(c, s.far); return err },
	)
	return nil
}

// open connects to the Envoy and states the target of the connection.
func (r *Relay) open(ctx context.Context, c *session.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	own, _ := c.Raw.LocalAddr().(*net.TCPAddr)
	plugin, _ := c.Raw.RemoteAddr().(*net.TCPAddr)
	if own == nil || plugin == nil {
		return nil, errors.New("the connection is not a TCP connection")
	}
	to := own.AddrPort()
	if c.Redirected() {
		to = c.Original
	}
	for {
		envoy, err := new(net.Dialer).DialContext(ctx, "unix", r.Socket)
		if err == nil {
			_ = envoy.SetWriteDeadline(time.Now().Add(relayTimeout)) // a broken one fails below
			if _, err = envoy.Write(proxyHeader(plugin.AddrPort(), to)); err == nil {
				return envoy, envoy.SetWriteDeadline(time.Time{})
			}
			_ = envoy.Close() // err is reported
			return nil, err
		}
		// A full queue fails at once on a Unix socket (connect(2), EAGAIN), and only
		// shows that many connections arrived together.
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(relayAgain):
		}
	}
}

// proxyHeader is the header of version 2 of the PROXY protocol for a connection over TCP
// (haproxy, doc/proxy-protocol.txt, section 2.2). The family is the destination's, which
// is the one that the Envoy uses.
func proxyHeader(from, to netip.AddrPort) []byte {
	const (
		signature    = "\r\n\r\n\x00\r\nQUIT\n"
		versionProxy = 0x21 // version 2, command PROXY
		overTCP4     = 0x11
		overTCP6     = 0x21
		ports        = 4
	)
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	family := byte(overTCP4)
	switch {
	case dst.Is6():
		family, src = overTCP6, netip.AddrFrom16(src.As16())
	case src.Is6():
		src = netip.IPv4Unspecified()
	}
	addresses := append(src.AsSlice(), dst.AsSlice()...)
	header := append([]byte(signature), versionProxy, family)
	header = binary.BigEndian.AppendUint16(header, uint16(len(addresses)+ports))
	header = append(header, addresses...)
	header = binary.BigEndian.AppendUint16(header, from.Port())
	return binary.BigEndian.AppendUint16(header, to.Port())
}
