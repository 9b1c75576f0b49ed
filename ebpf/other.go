//go:build !linux

package ebpf

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Cage confines a plugin. On this platform it cannot be made.
type Cage struct{}

// Process is a program in a cage. On this platform there is none.
type Process struct{}

// Fence confines a plugin without privileges. On this platform it cannot be
// made.
type Fence struct{}

// FenceProcess is a program behind a fence. On this platform there is none.
type FenceProcess struct{}

// NewFence returns [ErrNoFence].
func NewFence(FenceConfig) (*Fence, error) {
	return nil, fmt.Errorf("make fence: %w: %w", ErrNoFence, ErrUnsupported)
}

// Listeners are none.
func (*Fence) Listeners() []net.Listener { return nil }

// Limits are none.
func (*Fence) Limits() []string { return nil }

// Start returns [ErrUnsupported].
func (*Fence) Start(Command) (*FenceProcess, error) { return nil, ErrUnsupported }

// DialContext returns [ErrUnsupported].
func (*Fence) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, ErrUnsupported
}

// Kill does nothing.
func (*Fence) Kill() error { return nil }

// Close does nothing.
func (*Fence) Close() error { return nil }

// PID is 0.
func (*FenceProcess) PID() int { return 0 }

// Signal returns [ErrUnsupported].
func (*FenceProcess) Signal(os.Signal) error { return ErrUnsupported }

// Wait returns [ErrUnsupported].
func (*FenceProcess) Wait() (int, error) { return 0, ErrUnsupported }

// New returns [ErrUnsupported].
func New(Config) (*Cage, error) { return nil, ErrUnsupported }

// Launch returns: there is no launcher.
func Launch() {}

// Detach returns [ErrUnsupported].
func Detach(string, bool) error { return ErrUnsupported }

// ShutLeft returns [ErrUnsupported].
func ShutLeft(string, bool) (Left, error) { return Left{}, ErrUnsupported }

// Probe says that confinement is missing.
func Probe() []Finding {
	return []Finding{{
		Name: "platform", Err: ErrUnsupported, Required: true,
		Lost: "confinement and metering", Remedy: "run the plugin on Linux 5.15 or later",
	}}
}

// Listen returns [ErrUnsupported].
func (*Cage) Listen(string, string) (net.Listener, error) {
	return nil, ErrUnsupported
}

// ListenPacket returns [ErrUnsupported].
func (*Cage) ListenPacket(string, string) (net.PacketConn, error) {
	return nil, ErrUnsupported
}

// DialContext returns [ErrUnsupported].
func (*Cage) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, ErrUnsupported
}

// Attach returns [ErrUnsupported].
func (*Cage) Attach(Endpoints) error { return ErrUnsupported }

// Start returns [ErrUnsupported].
func (*Cage) Start(Command) (*Process, error) { return nil, ErrUnsupported }

// Identify knows nobody.
func (*Cage) Identify(net.Conn) (Peer, bool) { return Peer{}, false }

// Shut returns [ErrUnsupported].
func (*Cage) Shut(bool) error { return ErrUnsupported }

// AllowSockets returns [ErrUnsupported].
func (*Cage) AllowSockets([]string) error { return ErrUnsupported }

// Asker finds nobody.
func (*Cage) Asker(net.Addr) (Peer, bool) { return Peer{}, false }

// CutDirect returns [ErrUnsupported].
func (*Cage) CutDirect() (int, error) { return 0, ErrUnsupported }

// Bound returns [ErrUnsupported].
func (*Cage) Bound([]uint64) (map[uint64]bool, error) { return nil, ErrUnsupported }

// Freeze returns [ErrUnsupported].
func (*Cage) Freeze(bool) error { return ErrUnsupported }

// Kill returns [ErrUnsupported].
func (*Cage) Kill() error { return ErrUnsupported }

// Check returns [ErrUnsupported].
func (*Cage) Check() error { return ErrUnsupported }

// Usage returns [ErrUnsupported].
func (*Cage) Usage() (Usage, error) { return Usage{}, ErrUnsupported }

// Limit returns [ErrUnsupported].
func (*Cage) Limit([]Limit) error { return ErrUnsupported }

// Attribute does nothing.
func (*Cage) Attribute(uint64, uint32) {}

// Traffic returns [ErrUnsupported].
func (*Cage) Traffic() ([]Traffic, error) { return nil, ErrUnsupported }

// Strays returns [ErrUnsupported].
func (*Cage) Strays() ([]Stray, error) { return nil, ErrUnsupported }

// Info describes nothing.
func (*Cage) Info() Info { return Info{} }

// Run returns [ErrUnsupported].
func (*Cage) Run(context.Context) error { return ErrUnsupported }

// Close does nothing.
func (*Cage) Close() error { return nil }

// Wait returns [ErrUnsupported].
func (*Process) Wait() (int, error) { return 0, ErrUnsupported }

// Signal returns [ErrUnsupported].
func (*Process) Signal(os.Signal) error { return ErrUnsupported }

// PID is 0.
func (*Process) PID() int { return 0 }

// Terminal is nil.
func (*Process) Terminal() *os.File { return nil }

// Stops is nil.
func (*Process) Stops() <-chan syscall.Signal { return nil }

// Terminal is nil.
func (*FenceProcess) Terminal() *os.File { return nil }

// AllowConnects returns [ErrUnsupported].
func (*Cage) AllowConnects(Destinations) error { return ErrUnsupported }

// Listening returns [ErrUnsupported].
func (*Cage) Listening() (map[uint16]bool, error) { return nil, ErrUnsupported }

// Flush does nothing.
func (*Cage) Flush(context.Context) {}

// Left knows nothing.
func (*Cage) Left(Limit) (Standing, bool) { return Standing{}, false }
