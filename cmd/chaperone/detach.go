package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

func (c *cli) detachCommand() *cobra.Command {
	var force bool
	cmd := c.withConfig(&cobra.Command{
		Use:   "detach --config FILE",
		Short: "Remove the kernel links that a sidecar left which is gone",
		Long: "Remove the kernel programs, links and cgroup that a killed sidecar left, which keep its plugin\n" +
			"shut in, and its certificates. While processes are left in the cgroup it is refused; --kill ends them first.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if c.config == "" {
				return usageError("detach: --config is missing; name the Sidecar's file, as in --config sidecar.yaml")
			}
			spec, err := configs.LoadSidecar(c.config)
			if err != nil {
				return fmt.Errorf("load %s:\n%w", c.config, err)
			}
			lock, err := openState(spec.StateDir)
			if err != nil {
				return err
			}
			err = ebpf.Detach(spec.StateDir, force)
			if errors.Is(err, ebpf.ErrPopulated) {
				err = fmt.Errorf("%w; end them, or say --kill", err)
			}
			if err == nil {
				err = removeTrust(lock)
			}
			if err := errors.Join(err, lock.Close()); err != nil {
				return err
			}
			if err := admin.Forget(registry(), spec.Listen.Admin.Addr); err != nil {
				return err
			}
			fmt.Fprintln(c.stdout, "nothing of it is left")
			return nil
		},
	})
	cmd.Flags().BoolVar(&force, "kill", false, "end the processes that are left")
	return cmd
}
