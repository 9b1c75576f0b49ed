package session

import (
	"net"

	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// DefaultBudget is the memory that a plugin and its upstreams can make a sidecar use,
// in bytes. The actual use is somewhat more than the count, and garbage is added
// until it is collected: the process stays below 128 MiB over what it has
// when it is idle (measured by the floods of internal/e2e; bench/README.md).
const DefaultBudget = 72 << 20

// The share of the budget for each part, in bytes, as measured with many at once,
// including the stacks of their goroutines.
const (
	ConnectionCost = 14 << 10 // net/http's two buffers of 4 KiB, two stacks
	TlsCost        = 20 << 10 // a handshake's and a record's buffers, on either side
	Http2Cost      = 40 << 10 // HPACK's tables, frames of 16 KiB, a stack
	StreamCost     = 24 << 10 // of HTTP/2: the buffers of a stream on either side
	UpstreamCost   = 16 << 10 // net/http's two buffers of 4 KiB, two stacks
	RequestCost    = 16 << 10 // a stack, the request and its admission
	CopyCost       = BufferSize
	TunnelCost     = 20 << 10 // two stacks, the admission
	// HeadFactor is how many times a head is there: as it was read, and as a map of
	// its lines.
	HeadFactor = 2
	// MaxWholeSearches is how many compressed bodies are decompressed whole at a
	// time. Each is counted once, and the windows of those before it are there until
	// they are collected.
	MaxWholeSearches = 2
	// FreeHead is the head that is counted with its connection.
	FreeHead = 4 << 10
)

// ReservedConn is a connection to an upstream, held until it is closed.
type ReservedConn struct {
	net.Conn
	Reservation *budget.Holding
}

// Close implements net.Conn.
func (c *ReservedConn) Close() error {
	defer c.Reservation.End()
	return c.Conn.Close()
}

// CloseWrite passes the end of file on.
func (c *ReservedConn) CloseWrite() error {
	return CloseWriteOf(c.Conn)
}
