package sidecar

import (
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
)

// KernelTelemetry takes in what the kernel half reports: samples of the counters, limits
// that were exceeded, denied calls, unmediated connections and the bytes of rules. It
// gives the kernel the limits and destinations of the policy in force. [New] makes it.
// Each of its parts has a lock of its own, and none is held while another is taken, but
// for limits.setting, which is taken before limits.mu.
type KernelTelemetry struct {
	cfg TelemetryConfig

	limits      limits        // that the kernel enforces
	sockets     sockets       // that the plugin may reach
	connects    connects      // that the kernel allows
	probes      libraryProbes // of the plugin's libraries
	mediation   mediation     // of connections
	ruleNumbers ruleNumbers   // under which bytes are counted
}

// TelemetryConfig is what a KernelTelemetry is made from.
type TelemetryConfig struct {
	Plugin authz.Principal
	Cgroup string // of a plugin that runs already; "" for none
	Engine *authz.Engine
	Ledger *authz.Ledger

	Confinement  func() Confinement
	Files        func() *configs.Config // in force
	ProxyAddress func() string          // HOST:PORT; "" before it is bound
	Resolver     func() *dns.Resolver   // nil without the kernel half
	SaveUsage    func() error           // writes down what is used of limits
	Charged      func() bool            // an earlier run wrote down up to where counters were charged

	Record  func(*authz.Record)       // writes a record that is not of an access
	Refused func(authz.Refusal)       // prints a refusal; nil for none
	Acted   func(what, remedy string) // prints what a limit did to the plugin; nil: it is logged
	Metrics *metrics
	Log     *zap.Logger
}
