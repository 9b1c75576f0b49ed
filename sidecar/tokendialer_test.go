package sidecar

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// A grant's author chooses where tokens are got: what a guardrail forbids, and
// what is the sidecar's own, is not dialled, by whatever name.
func TestTokenDialer(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	own := netip.Addr{}
	d := &tokenDialer{
		hosts:     map[string][]netip.Addr{"id.example": {netip.MustParseAddr("127.0.0.1")}, "evil.example": {netip.MustParseAddr("127.0.0.1")}},
		forbidden: func(to netip.AddrPort) bool { return to.Addr() == own },
		never: func(host string, addr netip.Addr) bool {
			return host == "evil.example" || addr == netip.MustParseAddr("127.0.0.1") && own == netip.IPv6Loopback()
		},
	}
	dial := func(host string) error {
		conn, err := d.dial(context.WithoutCancel(t.Context()), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := dial("id.example"); err != nil {
		t.Errorf("an endpoint that nothing forbids: %v", err)
	}
	if err := dial("evil.example"); !errors.Is(err, errNever) {
		t.Errorf("a host that is forbidden: %v", err)
	}
	own = netip.MustParseAddr("127.0.0.1")
	if err := dial("id.example"); !errors.Is(err, errOwnAddress) {
		t.Errorf("the sidecar's own address: %v", err)
	}
	own = netip.IPv6Loopback()
	if err := dial("id.example"); !errors.Is(err, errNever) {
		t.Errorf("an address that is forbidden: %v", err)
	}
	d.proxy = net.JoinHostPort("127.0.0.1", port)
	if err := dial("127.0.0.1"); err != nil {
		t.Errorf("the operator's proxy: %v", err)
	}
}

// TestTokenDialerResolves resolves an endpoint by dns.servers, as the proxy does.
func TestTokenDialerResolves(t *testing.T) {
	listener := testenv.MustGet((&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	server := testenv.MustDNS(t)
	server.Set("id.example", netip.MustParseAddr("127.0.0.1"))
	d := &tokenDialer{
		resolver:  upstream.NewResolver([]netip.AddrPort{server.Addr}),
		forbidden: func(netip.AddrPort) bool { return false },
		never:     func(string, netip.Addr) bool { return false },
	}
	testenv.Must(t, testenv.MustGet(d.dial(t.Context(), "tcp", net.JoinHostPort("id.example", port)))(t).Close())
}
