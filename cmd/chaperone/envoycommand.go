package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/sidecar"
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
		RunE: func(*cobra.Command, []string) error { return c.printEnvoy("bootstrap", sidecar.EnvoyBootstrap) },
	}), c.withConfig(&cobra.Command{
		Use:   "config --config FILE",
		Short: "Print the whole configuration that grants make, to review or to validate (JSON)",
		Long: "Print what the sidecar would configure Envoy with now, whole and static, as JSON: the grants of the\n" +
			"files less the revocations of the stateDir. It is for people to read and for envoy --mode validate,\n" +
			"and not to be run: nothing would change in it when access is taken away. No plugin trusts its\n" +
			"certificates, and its addresses of 240.0.0.0/4 are examples of what the resolver gives to names.",
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
