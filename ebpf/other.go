//go:build !linux

package ebpf

import (
	"context"
	"io"
	"net"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// Confinement confines a plugin. On this platform it cannot be made.
type Confinement struct{}

// New returns [sandbox.ErrUnsupported].
func New(Config) (*Confinement, error) { return nil, sandbox.ErrUnsupported }

// Preloaded are programs for a confinement. On this platform there is no program.
type Preloaded struct{}

// Preload loads no program.
func Preload(Config) *Preloaded { return nil }

// New returns [sandbox.ErrUnsupported].
func (*Preloaded) New(Config) (*Confinement, error) { return nil, sandbox.ErrUnsupported }

// Close does nothing.
func (*Preloaded) Close() error { return nil }

// Detach returns [sandbox.ErrUnsupported].
func Detach(string, bool) error { return sandbox.ErrUnsupported }

// BlockLeftover returns [sandbox.ErrUnsupported].
func BlockLeftover(string, bool) (Leftover, error) { return Leftover{}, sandbox.ErrUnsupported }

// Probe reports that confinement is missing.
func Probe() []Finding {
	return []Finding{{
		Name: "platform", Err: sandbox.ErrUnsupported, Required: true,
		Lost: "confinement and metering", Remedy: "run the plugin on Linux 5.15 or later",
	}}
}

// Listen returns [sandbox.ErrUnsupported].
func (*Confinement) Listen(string, string) (net.Listener, error) {
	return nil, sandbox.ErrUnsupported
}

// ListenPacket returns [sandbox.ErrUnsupported].
func (*Confinement) ListenPacket(string, string) (net.PacketConn, error) {
	return nil, sandbox.ErrUnsupported
}

// DialContext returns [sandbox.ErrUnsupported].
func (*Confinement) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, sandbox.ErrUnsupported
}

// Attach returns [sandbox.ErrUnsupported].
func (*Confinement) Attach(Endpoints) error { return sandbox.ErrUnsupported }

// Start returns [sandbox.ErrUnsupported].
func (*Confinement) Start(sandbox.Command) (*sandbox.Process, error) {
	return nil, sandbox.ErrUnsupported
}

// Identify returns no process.
func (*Confinement) Identify(net.Conn) (Peer, bool) { return Peer{}, false }

// Block returns [sandbox.ErrUnsupported].
func (*Confinement) Block(bool) error { return sandbox.ErrUnsupported }

// AllowSockets returns [sandbox.ErrUnsupported].
func (*Confinement) AllowSockets([]string) error { return sandbox.ErrUnsupported }

// DNSClient returns no process.
func (*Confinement) DNSClient(net.Addr) (Peer, bool) { return Peer{}, false }

// CutDirect returns [sandbox.ErrUnsupported].
func (*Confinement) CutDirect() (int, error) { return 0, sandbox.ErrUnsupported }

// Bound returns [sandbox.ErrUnsupported].
func (*Confinement) Bound([]uint64) (map[uint64]bool, error) { return nil, sandbox.ErrUnsupported }

// Freeze returns [sandbox.ErrUnsupported].
func (*Confinement) Freeze(bool) error { return sandbox.ErrUnsupported }

// Kill returns [sandbox.ErrUnsupported].
func (*Confinement) Kill() error { return sandbox.ErrUnsupported }

// Check returns [sandbox.ErrUnsupported].
func (*Confinement) Check() error { return sandbox.ErrUnsupported }

// Usage returns [sandbox.ErrUnsupported].
func (*Confinement) Usage() (Usage, error) { return Usage{}, sandbox.ErrUnsupported }

// Limit returns [sandbox.ErrUnsupported].
func (*Confinement) Limit([]Limit) error { return sandbox.ErrUnsupported }

// Attribute does nothing.
func (*Confinement) Attribute(uint64, uint32) {}

// Traffic returns [sandbox.ErrUnsupported].
func (*Confinement) Traffic() ([]Traffic, error) { return nil, sandbox.ErrUnsupported }

// Unmediated returns [sandbox.ErrUnsupported].
func (*Confinement) Unmediated() ([]UnmediatedConn, error) { return nil, sandbox.ErrUnsupported }

// Info describes nothing.
func (*Confinement) Info() Info { return Info{} }

// Run returns [sandbox.ErrUnsupported].
func (*Confinement) Run(context.Context) error { return sandbox.ErrUnsupported }

// Close does nothing.
func (*Confinement) Close() error { return nil }

// AllowConnects returns [sandbox.ErrUnsupported].
func (*Confinement) AllowConnects(Destinations) error { return sandbox.ErrUnsupported }

// Listening returns [sandbox.ErrUnsupported].
func (*Confinement) Listening() (map[uint16]bool, error) { return nil, sandbox.ErrUnsupported }

// Flush does nothing.
func (*Confinement) Flush(context.Context) {}

// AttachEmptyTrace returns [sandbox.ErrUnsupported].
func AttachEmptyTrace(string) (io.Closer, error) { return nil, sandbox.ErrUnsupported }

// UsedBefore returns no usage.
func (*Confinement) UsedBefore(Limit) (LimitUsage, bool) { return LimitUsage{}, false }
