package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// kernelConfinement is the kernel half.
type kernelConfinement struct {
	*ebpf.Confinement
}

func (k kernelConfinement) Kernel() bool { return true }

func (k kernelConfinement) Description() string {
	if k.Info().SameUser {
		return "unsafeSameUser: it can end its own confinement"
	}
	return ""
}

func (k kernelConfinement) UID() int                         { return k.Info().UID }
func (k kernelConfinement) OfHost() bool                     { return !k.Info().OwnNetwork }
func (k kernelConfinement) Account() (sandbox.Account, bool) { return k.Confinement.Account(), true }

// Start starts the plugin. Only in a view does a first process report that the program
// wants the foreground.
func (k kernelConfinement) Start(command sandbox.Command) (process, bool, error) {
	command.Background = command.Background && k.Info().View
	p, err := k.Confinement.Start(command)
	if err != nil {
		return nil, false, err
	}
	return p, command.Background, nil
}

// Identify returns the process that connected, as the kernel recorded it.
func (k kernelConfinement) Identify(conn net.Conn) (session.Peer, bool) {
	p, ok := k.Confinement.Identify(conn)
	if !ok {
		return session.Peer{}, false
	}
	peer := session.Peer{PID: int(p.PID), UID: int(p.UID), Exe: p.Exe, Original: p.Original, Cookie: p.Cookie}
	if p.Explicit {
		peer.Original = netip.AddrPort{}
	}
	return peer, true
}

// IdentifyQuery returns the process that asked the resolver.
func (k kernelConfinement) IdentifyQuery(from net.Addr) (session.Peer, bool) {
	p, ok := k.DNSClient(from)
	return session.Peer{PID: int(p.PID), UID: int(p.UID), Exe: p.Exe}, ok
}

// Bind binds the proxy and the resolver on both loopback addresses of the plugin's
// network, and then attaches the kernel programs, so that what they redirect has a
// destination.
func (k kernelConfinement) Bind(_ context.Context, address string) (out endpoints, err error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return out, fmt.Errorf("listen for the proxy: %w", err)
	}
	var ends ebpf.Endpoints
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := k.Listen("tcp", net.JoinHostPort(host, port))
		if err != nil {
			return out, fmt.Errorf("listen for the proxy: %w", err)
		}
		out.proxy = append(out.proxy, l)
		resolver, err := k.bindResolver(host)
		if err != nil {
			return out, fmt.Errorf("listen for the resolver: %w", err)
		}
		out.resolvers = append(out.resolvers, resolver)
		at := addrPort(l.Addr())
		if host == "127.0.0.1" {
			ends.Proxy4, ends.Resolver4 = at, addrPort(resolver.tcp.Addr())
			port = fmt.Sprint(at.Port()) // port 0 picks one, for both
		} else {
			ends.Proxy6, ends.Resolver6 = at, addrPort(resolver.tcp.Addr())
		}
	}
	if err := k.Attach(ends); err != nil {
		return out, fmt.Errorf("attach kernel programs: %w", err)
	}
	return out, nil
}

// bindResolver binds one port for TCP and UDP.
func (k kernelConfinement) bindResolver(host string) (out resolverEnds, err error) {
	for range 10 { // the port that TCP picks may be taken for UDP
		if out.tcp, err = k.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
			return out, err
		}
		if out.udp, err = k.ListenPacket("udp", out.tcp.Addr().String()); err == nil {
			return out, nil
		}
		err = errors.Join(err, out.tcp.Close())
	}
	return out, err
}
