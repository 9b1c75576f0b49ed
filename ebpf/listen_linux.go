package ebpf

import (
	"context"
	"net"
)

// Listen opens a TCP listener in the plugin's network namespace. The address is
// an IP address and a port; port 0 picks one.
func (c *Confinement) Listen(Network, address string) (net.Listener, error) {
	return c.network.Listen(Network, address)
}

// ListenPacket opens a UDP socket in the plugin's network namespace.
func (c *Confinement) ListenPacket(Network, address string) (net.PacketConn, error) {
	return c.network.ListenPacket(Network, address)
}

// DialContext connects to the plugin inside its network namespace: how a port
// that it may serve is reached from outside. The address is an IP address and a
// port, and must be on the loopback.
func (c *Confinement) DialContext(ctx context.Context, Network, address string) (net.Conn, error) {
	return c.network.DialContext(ctx, Network, address)
}
