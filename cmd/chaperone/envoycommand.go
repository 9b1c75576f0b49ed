package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/proxy"
)

func (c *cli) envoyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "envoy", Short: "Print what the Envoy beside a sidecar is configured with", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.withConfig(&cobra.Command{
		Use:   "bootstrap --config FILE",
		Short: "Print what Envoy is started with, for --config-path (YAML)",
		Long: "Print what Envoy is started with, as YAML. It names the sidecar's sockets in spec.envoy.dir, from\n" +
			"which everything else comes. It changes only when spec.envoy or the plugin's name does. A\n" +
			"sidecar that runs keeps the same in bootstrap.yaml beside its sockets.\n\n" +
			"  chaperone envoy bootstrap --config sidecar.yaml > envoy.yaml\n" +
			"  envoy --config-path envoy.yaml",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return c.printEnvoy("bootstrap", envoyBootstrap) },
	}), c.withConfig(&cobra.Command{
		Use:   "config --config FILE",
		Short: "Print the whole configuration that grants make, to review or to validate (JSON)",
		Long: "Print what the sidecar would configure Envoy with now, whole and static, as JSON: the grants of the\n" +
			"files less the revocations of the stateDir. It is for people to read and for envoy --mode validate,\n" +
			"and not to be run: nothing would change in it when access is taken away. No plugin trusts its\n" +
			"certificates, and its addresses of 240.0.0.0/4 are examples of what the resolver gives to names.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return c.printEnvoy("config", envoyStatic) },
	}))
	return cmd
}

// printEnvoy prints what of a configuration make.
func (c *cli) printEnvoy(name string, of func(*configs.Config) ([]byte, error)) error {
	if c.config == "" {
		return usageError("envoy %s: --config is missing; name the Sidecar's file, as in --config sidecar.yaml", name)
	}
	cfg, err := loadConfig(c.config)
	if err != nil {
		return err
	}
	if cfg.Sidecar.Envoy == nil {
		return errors.New("this sidecar configures no Envoy; write spec.envoy, as in envoy: {dir: /run/chaperone/" + cfg.Sidecar.Plugin + "/envoy}")
	}
	text, err := of(cfg)
	if err != nil {
		return err
	}
	_, err = c.stdout.Write(text)
	return err
}

func envoyBootstrap(cfg *configs.Config) ([]byte, error) {
	return xds.Bootstrap(envoyParams(&cfg.Sidecar))
}

func envoyParams(spec *configs.Sidecar) xds.Params {
	e := spec.Envoy
	return xds.Params{Plugin: authz.Principal(spec.Plugin), Socket: e.XDS(), Admin: e.Admin(), Group: e.Group}
}

// envoyStatic makes the configuration of a sidecar that does not run: with exits
// that nobody serves, and certificates of an authority that ends with the command.
func envoyStatic(cfg *configs.Config) ([]byte, error) {
	spec := &cfg.Sidecar
	engine, err := offlineEngine(cfg)
	if err != nil {
		return nil, err
	}
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Recorder: nowhere{}, Ledger: authz.NewLedger(), Now: time.Now})
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
	whole.Exits = func(routes []authz.Route) ([]string, error) { return proxy.ExitPaths(spec.Envoy.Exits(), routes), nil }
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

// nowhere is an authz.Recorder for a gate that admits nothing.
type nowhere struct{}

func (nowhere) Record(*authz.Record) error { return errors.New("nothing is recorded here") }
