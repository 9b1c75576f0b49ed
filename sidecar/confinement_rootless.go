package sidecar

import (
	"context"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// rootlessConfinement is a sandbox that an ordinary user can make: namespaces, seccomp
// and Landlock, without the kernel programs.
type rootlessConfinement struct {
	unmetered
	*sandbox.Rootless
}

func (r rootlessConfinement) Description() string {
	return "not metered, and confined without the kernel half"
}

func (r rootlessConfinement) OfHost() bool                     { return false }
func (r rootlessConfinement) Account() (sandbox.Account, bool) { return r.Rootless.Account(), true }

// Bind returns the listeners that the sandbox was made with.
func (r rootlessConfinement) Bind(context.Context, string) (endpoints, error) {
	return endpoints{proxy: r.Listeners()}, nil
}

// Start starts the plugin.
func (r rootlessConfinement) Start(command sandbox.Command) (process, bool, error) {
	p, err := r.Rootless.Start(command)
	if err != nil {
		return nil, false, err
	}
	return p, false, nil
}
