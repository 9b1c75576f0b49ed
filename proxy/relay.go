package proxy

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
)

const (
	// relayTimeout bounds how long an Envoy may take to take a connection.
	relayTimeout = 5 * time.Second
	// relayAgain is how long a queue that is full is left alone.
	relayAgain = 2 * time.Millisecond
)

// relay gives a connection to the Envoy, which is told where it was for by a
// PROXY protocol header, and reports false when it may not or cannot: everything
// on it is then refused, as c.fault says.
//
// What runs on it is decided there, request by request: a rule that is taken away
// ends its exits and leaves the connection to the others. It ends itself when
// everything is taken from the plugin.
func (p *Proxy) relay(ctx context.Context, c *conn) bool {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &pair{near: c, cancel: cancel}
	s.access = access{cut: cancel, still: func() bool { return !p.abandoned(p.cfg.Engine.Current()) }}
	if !p.live.add(&s.access) {
		c.fault = &fault{authz.Revoked, errRevoked.Error()}
		return false
	}
	defer p.live.remove(&s.access)
	var err error
	if s.far, err = p.openRelay(ctx, c); err != nil {
		c.fault = &fault{authz.NotReady, "the Envoy that carries out requests does not answer"}
		if cause := s.access.cutBy(); cause != nil {
			c.fault = &fault{authz.Revoked, cause.Error()}
		} else if p.relayPace.take(p.cfg.Now()) > 0 {
			p.cfg.Log.Warn("relay connection", zap.Error(err))
		}
		return false
	}
	defer c.Close()
	defer s.far.Close()
	up, down := p.pacer(authz.LimitSentBytes, ctx.Done()), p.pacer(authz.LimitReceivedBytes, ctx.Done())
	s.splice(
		func() error { _, err := up.copyConn(s.far, c); return err },
		func() error { _, err := down.copyConn(c, s.far); return err },
	)
	return true
}

// openRelay connects to the Envoy and says where the connection was for.
func (p *Proxy) openRelay(ctx context.Context, c *conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	own, _ := c.raw.LocalAddr().(*net.TCPAddr)
	plugin, _ := c.raw.RemoteAddr().(*net.TCPAddr)
	if own == nil || plugin == nil {
		return nil, errors.New("the connection is not one of TCP")
	}
	to := own.AddrPort()
	if c.redirected() {
		to = c.original
	}
	for {
		envoy, err := new(net.Dialer).DialContext(ctx, "unix", p.cfg.Relay)
		if err == nil {
			_ = envoy.SetWriteDeadline(time.Now().Add(relayTimeout)) // a broken one fails below
			if _, err = envoy.Write(proxyHeader(plugin.AddrPort(), to)); err == nil {
				return envoy, envoy.SetWriteDeadline(time.Time{})
			}
			_ = envoy.Close() // err says what matters
			return nil, err
		}
		// A full queue fails at once on a unix socket (connect(2), EAGAIN), and
		// says no more than that many came together.
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

// proxyHeader is the header of version 2 of the PROXY protocol for a connection
// over TCP (haproxy, doc/proxy-protocol.txt, section 2.2). The family is the
// destination's, which is what matters to who reads it.
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
