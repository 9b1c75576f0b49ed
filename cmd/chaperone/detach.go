package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) detachCommand() *cobra.Command {
	var force bool
	var plugin string
	cmd := c.withConfig(&cobra.Command{
		Use:   "detach --config FILE | --plugin NAME",
		Short: "Remove the kernel state of a dead sidecar",
		Long: "Remove the kernel programs, links and cgroup of a killed sidecar, which block its plugin, and its\n" +
			"certificates. While processes remain in the cgroup it is refused; --kill ends them first.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			spec, err := c.detachable(plugin)
			if err != nil {
				return err
			}
			err = sidecar.Detach(spec, force)
			if errors.Is(err, ebpf.ErrPopulated) {
				err = fmt.Errorf("%w; end them, or add --kill", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(c.stdout, "detached")
			return nil
		},
	})
	cmd.Flags().BoolVar(&force, "kill", false, "end the remaining processes")
	cmd.Flags().StringVar(&plugin, "plugin", "", "the killed sidecar of this `PLUGIN`, as chaperone sidecars lists it")
	return cmd
}

// detachable returns the Sidecar of --config, or what is listed of a plugin's
// sidecar that was killed.
func (c *cli) detachable(plugin string) (*configs.Sidecar, error) {
	switch {
	case c.config == "" && plugin == "":
		return nil, usageError("detach: --config is missing; name the Sidecar's file, as in --config sidecar.yaml, or say --plugin NAME")
	case c.config != "" && plugin != "":
		return nil, usageError("detach: --plugin contradicts --config; say one of them")
	case c.config != "":
		return c.sidecarFile()
	}
	all, err := listSidecars()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s admin.Sidecar) bool { return s.Plugin != plugin || !s.Gone || s.StateDir == "" })
	if len(all) != 1 {
		return nil, fmt.Errorf("%d sidecars of the plugin %q are listed as killed, not one; add --config", len(all), plugin)
	}
	spec := c.offlineSpec(all[0])
	spec.Listen.Admin = configs.Address{Network: "unix", Addr: all[0].Socket}
	return spec, nil
}
