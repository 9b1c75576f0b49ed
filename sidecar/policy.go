package sidecar

import (
	"context"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/inbound"
)

// PolicyControl holds the policy in force: it loads and reloads the files, revokes and
// restores access, follows the revocations of the host, and writes down what is used of
// limits. [New] makes it.
//
// # Locks
//
// They are taken in this order, and a later one is never held while an earlier one is
// waited for: reloading, leasing, host.mu, cutting, enforcing. Where a revocation takes
// leasing after cutting, it only tries: see revoke. saving is taken alone.
type PolicyControl struct {
	cfg    PolicyConfig
	engine *authz.Engine
	ledger *authz.Ledger

	state   *state
	history *statehistory.History
	lost    *statehistory.LostError // that the stateDir had, which was begun again; nil for none

	advancing sync.WaitGroup // of the start that is being counted in history

	running   configs.Sidecar                    // as it was when the sidecar started
	config    atomic.Pointer[configs.Config]     // replaced by a reload
	stopWatch atomic.Pointer[context.CancelFunc] // of the files that config names

	reloading sync.Mutex // one reload at a time
	leasing   sync.Mutex // one change of what is leased at a time
	host      hostWide   // revocations of the whole host

	cutting sync.Mutex                  // one revocation at a time; guards answers
	answers map[string]revocationResult // by id

	governed

	enforcing sync.Mutex // one reconciliation of the kernel with the policy at a time

	saving   sync.Mutex  // guards used
	used     authz.State // as it was last written down
	restored bool        // the use by earlier runs was read
}

// governed is what governance needs of a running sidecar.
type governed struct {
	generations generations
	artifact    atomic.Pointer[grantcheck.Artifact] // that was started; nil before, or without signed grants
	containment *containment
}

// PolicyConfig is what a PolicyControl is made from. Functions return nil for what the
// sidecar does not have.
type PolicyConfig struct {
	Plugin   authz.Principal
	Cgroup   string // of a plugin that runs already; "" for none
	External bool   // another process starts the plugin
	Engine   *authz.Engine
	Ledger   *authz.Ledger

	Telemetry    *KernelTelemetry
	Credentials  *credentials
	Confinement  func() Confinement
	Inbound      func() *inbound.Forwarder
	Proxy        func() *proxy.Proxy
	Placeholders func() *placeholders
	ExtAuthzTLS  func() *extAuthzTLS

	Record   func(*authz.Record) // writes a record that is not of an access
	Recorder func() authz.BatchRecorder
	Metrics  *metrics
	Log      *zap.Logger
	SetLevel func(configs.LogLevel) // of Log; nil: it stays
}

// newPolicyControl returns the control of a policy that is not in force yet.
func newPolicyControl(files *configs.Config, cfg PolicyConfig) *PolicyControl {
	c := &PolicyControl{cfg: cfg, engine: cfg.Engine, ledger: cfg.Ledger, running: files.Sidecar, governed: governed{containment: newContainment()}}
	c.config.Store(files)
	return c
}
