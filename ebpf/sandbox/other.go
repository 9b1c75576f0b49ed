//go:build !linux

package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Process is a program in a confinement. On this platform there does not exist.
type Process struct{}

// Rootless confines a plugin without privileges. On this platform it cannot be
// made.
type Rootless struct{}

// RootlessProcess is a program in a rootless sandbox. On this platform there does not exist.
type RootlessProcess struct{}

// NewRootless returns [ErrNoUserNamespace].
func NewRootless(RootlessConfig) (*Rootless, error) {
	return nil, fmt.Errorf("make rootless sandbox: %w: %w", ErrNoUserNamespace, ErrUnsupported)
}

// Listeners do not exist.
func (*Rootless) Listeners() []net.Listener { return nil }

// Limits do not exist.
func (*Rootless) Limits() []string { return nil }

// Start returns [ErrUnsupported].
func (*Rootless) Start(Command) (*RootlessProcess, error) { return nil, ErrUnsupported }

// DialContext returns [ErrUnsupported].
func (*Rootless) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, ErrUnsupported
}

// Kill does nothing.
func (*Rootless) Kill() error { return nil }

// Close does nothing.
func (*Rootless) Close() error { return nil }

// PID is 0.
func (*RootlessProcess) PID() int { return 0 }

// Signal returns [ErrUnsupported].
func (*RootlessProcess) Signal(os.Signal) error { return ErrUnsupported }

// Wait returns [ErrUnsupported].
func (*RootlessProcess) Wait() (int, error) { return 0, ErrUnsupported }

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
func (*RootlessProcess) Terminal() *os.File { return nil }
