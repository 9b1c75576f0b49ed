package sidecar

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/envoy"
)

// EnvoyBootstrap returns the bootstrap that the Envoy of a sidecar is started with, as
// YAML. The configuration has spec.envoy.
func EnvoyBootstrap(cfg *configs.Config) ([]byte, error) {
	return xds.Bootstrap(envoyParams(&cfg.Sidecar))
}

func envoyParams(spec *configs.Sidecar) xds.Params {
	e := spec.Envoy
	return xds.Params{Plugin: authz.Principal(spec.Plugin), Socket: e.XDS(), Admin: e.Admin(), Group: e.Group}
}

// EnvoyStatic makes the configuration of a sidecar that does not run: with exits
// that nobody serves, and certificates of an authority that ends with the command.
func EnvoyStatic(cfg *configs.Config) ([]byte, error) {
	spec := &cfg.Sidecar
	engine, err := OfflineEngine(cfg)
	if err != nil {
		return nil, err
	}
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Recorder: discardRecorder{}, Ledger: authz.NewLedger(), Now: time.Now})
	if err != nil {
		return nil, err
	}
	plugin := authz.Principal(spec.Plugin)
	authority, err := proxy.New(proxy.Config{Plugin: plugin, Gate: gate, Engine: engine})
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	whole := envoyConfig(spec, plugin)
	whole.Engine, whole.Leaf = engine, authority.Leaf
	whole.EgressSockets = func(routes []authz.Route) ([]string, error) {
		return envoy.EgressSocketPaths(spec.Envoy.Exits(), routes), nil
	}
	if spec.Kernel != configs.KernelOff {
		whole.Address = virtualAddresses()
	}
	text, err := xds.Static(whole, envoyParams(spec))
	if err != nil {
		return nil, fmt.Errorf("make Envoy's configuration: %w", err)
	}
	return text, nil
}

// virtualAddresses returns a giver of addresses as the resolver's are, to each
// name its own.
func virtualAddresses() func(host string) (netip.Addr, bool) {
	next, given := netip.MustParseAddr("240.0.0.1"), map[string]netip.Addr{}
	return func(host string) (netip.Addr, bool) {
		if _, ok := given[host]; !ok {
			given[host], next = next, next.Next()
		}
		return given[host], true
	}
}

// discardRecorder is an authz.Recorder for a gate that admits nothing.
type discardRecorder struct{}

func (discardRecorder) Record(*authz.Record) error { return errors.New("nothing is recorded here") }
