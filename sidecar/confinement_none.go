package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/reaper"
)

// noConfinement is for a plugin that is an ordinary process, which its environment
// points to the proxy, or that another process starts.
type noConfinement struct {
	unmetered

	reaper  *reaper.Reaper
	process atomic.Pointer[unconfined] // while it runs
}

func (n *noConfinement) Description() string              { return "not confined by the kernel" }
func (n *noConfinement) OfHost() bool                     { return true }
func (n *noConfinement) Account() (sandbox.Account, bool) { return sandbox.Account{}, false }
func (n *noConfinement) Close() error                     { return nil }

// Bind binds the proxy at the address.
func (n *noConfinement) Bind(ctx context.Context, address string) (endpoints, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return endpoints{}, fmt.Errorf("listen for the proxy: %w", err)
	}
	return endpoints{proxy: []net.Listener{l}}, nil
}

// DialContext connects to the plugin, which has the network of the sidecar.
func (n *noConfinement) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// Start starts the plugin.
func (n *noConfinement) Start(command sandbox.Command) (process, bool, error) {
	if command.Files != nil {
		return nil, false, errors.New("start the plugin: process.files is stated, and nothing here can keep it")
	}
	u, err := startUnconfined(&command, n.reaper)
	if err != nil {
		return nil, false, err
	}
	n.process.Store(u)
	return u, false, nil
}

// Kill ends the plugin, if it was started and has not ended.
func (n *noConfinement) Kill() error {
	p := n.process.Load()
	if p == nil {
		return nil
	}
	if err := p.Signal(os.Kill); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill the plugin: %w", err)
	}
	return nil
}

// Flush forgets the process, which has ended: its number may be given to another.
func (n *noConfinement) Flush(context.Context) { n.process.Store(nil) }
