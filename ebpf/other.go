//go:build !linux

package ebpf

import (
	"context"
	"net"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// Cage confines a plugin. On this platform it cannot be made.
type Cage struct{}

// New returns [sandbox.ErrUnsupported].
func New(Config) (*Cage, error) { return nil, sandbox.ErrUnsupported }

// Detach returns [sandbox.ErrUnsupported].
func Detach(string, bool) error { return sandbox.ErrUnsupported }

// ShutLeft returns [sandbox.ErrUnsupported].
func ShutLeft(string, bool) (Left, error) { return Left{}, sandbox.ErrUnsupported }

// Probe says that confinement is missing.
func Probe() []Finding {
	return []Finding{{
		Name: "platform", Err: sandbox.ErrUnsupported, Required: true,
		Lost: "confinement and metering", Remedy: "run the plugin on Linux 5.15 or later",
	}}
}

// Listen returns [sandbox.ErrUnsupported].
func (*Cage) Listen(string, string) (net.Listener, error) {
	return nil, sandbox.ErrUnsupported
}

// ListenPacket returns [sandbox.ErrUnsupported].
func (*Cage) ListenPacket(string, string) (net.PacketConn, error) {
	return nil, sandbox.ErrUnsupported
}

// DialContext returns [sandbox.ErrUnsupported].
func (*Cage) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, sandbox.ErrUnsupported
}

// Attach returns [sandbox.ErrUnsupported].
func (*Cage) Attach(Endpoints) error { return sandbox.ErrUnsupported }

// Start returns [sandbox.ErrUnsupported].
func (*Cage) Start(sandbox.Command) (*sandbox.Process, error) { return nil, sandbox.ErrUnsupported }

// Identify knows nobody.
func (*Cage) Identify(net.Conn) (Peer, bool) { return Peer{}, false }

// Shut returns [sandbox.ErrUnsupported].
func (*Cage) Shut(bool) error { return sandbox.ErrUnsupported }

// AllowSockets returns [sandbox.ErrUnsupported].
func (*Cage) AllowSockets([]string) error { return sandbox.ErrUnsupported }

// Asker finds nobody.
func (*Cage) Asker(net.Addr) (Peer, bool) { return Peer{}, false }

// CutDirect returns [sandbox.ErrUnsupported].
func (*Cage) CutDirect() (int, error) { return 0, sandbox.ErrUnsupported }

// Bound returns [sandbox.ErrUnsupported].
func (*Cage) Bound([]uint64) (map[uint64]bool, error) { return nil, sandbox.ErrUnsupported }

// Freeze returns [sandbox.ErrUnsupported].
func (*Cage) Freeze(bool) error { return sandbox.ErrUnsupported }

// Kill returns [sandbox.ErrUnsupported].
func (*Cage) Kill() error { return sandbox.ErrUnsupported }

// Check returns [sandbox.ErrUnsupported].
func (*Cage) Check() error { return sandbox.ErrUnsupported }

// Usage returns [sandbox.ErrUnsupported].
func (*Cage) Usage() (Usage, error) { return Usage{}, sandbox.ErrUnsupported }

// Limit returns [sandbox.ErrUnsupported].
func (*Cage) Limit([]Limit) error { return sandbox.ErrUnsupported }

// Attribute does nothing.
func (*Cage) Attribute(uint64, uint32) {}

// Traffic returns [sandbox.ErrUnsupported].
func (*Cage) Traffic() ([]Traffic, error) { return nil, sandbox.ErrUnsupported }

// Strays returns [sandbox.ErrUnsupported].
func (*Cage) Strays() ([]Stray, error) { return nil, sandbox.ErrUnsupported }

// Info describes nothing.
func (*Cage) Info() Info { return Info{} }

// Run returns [sandbox.ErrUnsupported].
func (*Cage) Run(context.Context) error { return sandbox.ErrUnsupported }

// Close does nothing.
func (*Cage) Close() error { return nil }

// AllowConnects returns [sandbox.ErrUnsupported].
func (*Cage) AllowConnects(Destinations) error { return sandbox.ErrUnsupported }

// Listening returns [sandbox.ErrUnsupported].
func (*Cage) Listening() (map[uint16]bool, error) { return nil, sandbox.ErrUnsupported }

// Flush does nothing.
func (*Cage) Flush(context.Context) {}

// Left knows nothing.
func (*Cage) Left(Limit) (Standing, bool) { return Standing{}, false }
