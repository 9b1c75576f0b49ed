package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) envoyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "envoy", Short: "Print the configuration of the Envoy beside a sidecar", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.withConfig(&cobra.Command{
		Use:   "bootstrap --config FILE",
		Short: "Print the bootstrap of Envoy, for --config-path (YAML)",
		Long: "Print the bootstrap of Envoy, as YAML. It names the sidecar's sockets in spec.envoy.dir, which serve the\n" +
			"rest of the configuration. It changes only with spec.envoy or the plugin's name. A running\n" +
			"sidecar has the same in bootstrap.yaml beside its sockets.\n\n" +
			"  chaperone envoy bootstrap --config sidecar.yaml > envoy.yaml\n" +
			"  envoy --config-path envoy.yaml",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return c.printEnvoy("bootstrap", sidecar.EnvoyBootstrap) },
	}), c.withConfig(&cobra.Command{
		Use:   "config --config FILE",
		Short: "Print the complete configuration from the grants, to review or to validate (JSON)",
		Long: "Print the present configuration of Envoy, complete and static, as JSON: the grants of the files without\n" +
			"the revocations of the stateDir. It is for review and for envoy --mode validate. Do not run it: it does\n" +
			"not follow revocations. No plugin trusts its certificates, and its addresses of 240.0.0.0/4 are\n" +
			"examples of the resolver's answers.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return c.printEnvoy("config", sidecar.EnvoyStatic) },
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
