package sidecar

import (
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// Plugin is the plugin's process and what it is started with: its environment, its
// standard streams, its trust store and its placeholders. [New] makes it.
type Plugin struct {
	cfg          PluginConfig
	placeholders *placeholders
	trust        *trustBundle   // nil: the plugin has no proxy here
	streams      chownedStreams // standard streams that were given to the plugin's user
	pid          atomic.Int64   // 0 before it is started
}

// PluginConfig is what a Plugin is made from.
type PluginConfig struct {
	Name   authz.Principal
	Token  authz.Secret // proves the plugin to the proxy while the kernel does not
	Engine *authz.Engine

	Confinement    func() Confinement
	Files          func() *configs.Config // in force
	State          func() *state
	ProxyAddress   func() string // HOST:PORT; "" without a proxy
	RenewAuthority func() error  // has the trust store hold an authority for the granted hosts

	Verified func(grantcheck.Artifact) // notes the artifact that is started

	Record  func(*authz.Record) // writes a record that is not of an access
	Metrics *metrics
	Log     *zap.Logger
}
