//go:build !linux

package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
)

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

// Launch returns: there is no launcher.
func Launch() {}

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
