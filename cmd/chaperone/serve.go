package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) serveCommand() *cobra.Command {
	var opts sidecar.Config
	var tokenFile, logLevel string
	var lock bool
	cmd := c.withConfig(&cobra.Command{
		Use:   "serve --config FILE [--cgroup PATH]",
		Short: "Serve beside Envoy, or beside a plugin that runs already",
		Long: "Serve beside Envoy, or beside a plugin that runs already: with --cgroup the kernel confines the\n" +
			"processes of that cgroup. SIGHUP reloads the files, SIGTERM drains and ends. Running programs trust the\n" +
			"sidecar's certificates if SSL_CERT_FILE (and similar) is the file that status and the log at the start show.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.config == "" {
				return usageError("serve: --config is missing; name the Sidecar's file, as in --config sidecar.yaml")
			}
			c.outliveStderr()
			log, err := newLogger(c.stderr, logLevel, cmd.Flags().Changed("log-level"))
			if err != nil {
				return err
			}
			opts.Log, opts.SetLevel = log.Logger, log.follow
			return c.serve(cmd.Context(), opts, tokenFile, lock)
		},
	})
	cmd.Flags().StringVar(&opts.Cgroup, "cgroup", "", "confine the processes of the cgroup v2 folder at `PATH`")
	cmd.Flags().StringVar(&tokenFile, "proxy-token-file", "", "`FILE` with the token (16 bytes or more) that proves the plugin to the proxy while the kernel is off")
	lockMemoryFlag(cmd, &lock)
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "`LEVEL` of the operator's log: debug, info, warn or error")
	return cmd
}

func (c *cli) serve(ctx context.Context, opts sidecar.Config, tokenFile string, lock bool) error {
	sidecar.TuneGC() // before the files are read: signed ones make enough garbage for a collection
	cfg, err := loadConfig(c.config)
	if err != nil {
		return err
	}
	spec := &cfg.Sidecar
	opts.Confine, opts.External, opts.Notice = opts.Cgroup != "", true, c.notice
	switch {
	case spec.Kernel == configs.KernelRequired && !opts.Confine:
		return errors.New("kernel is required, and serve confines nothing without --cgroup; name the plugin's cgroup, or write kernel: off")
	case opts.Confine && spec.Kernel == configs.KernelOff:
		return errors.New("--cgroup contradicts kernel: off")
	case opts.Confine && spec.Listen.Proxy.IsZero():
		return errors.New("--cgroup without spec.listen.proxy leaves the plugin no way out; write proxy: 127.0.0.1:15001")
	case !spec.Listen.Proxy.IsZero() && !opts.Confine && tokenFile == "":
		return errors.New("a proxy with the kernel off needs --proxy-token-file, which proves who the plugin is")
	}
	if tokenFile != "" {
		if opts.Token, err = readToken(tokenFile); err != nil {
			return err
		}
	}
	opts.Files, opts.Version, opts.StderrDropped = cfg, buildVersion(), c.stderrDropped
	s, err := sidecar.New(opts)
	if err != nil {
		return err
	}
	if err = sidecar.HideMemory(lock); err == nil {
		err = c.serveUntilSignalled(ctx, s)
	}
	return errors.Join(err, s.Close())
}

func (c *cli) serveUntilSignalled(ctx context.Context, s *sidecar.Sidecar) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.Listen(ctx); err != nil {
		return err
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				_, _ = s.Reload(ctx, "SIGHUP") // a refusal is recorded and logged there
			}
		}
	}()
	err := s.Run(ctx)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// readToken reads a proxy token from a file of its own.
func readToken(file string) (authz.Secret, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return authz.Secret{}, fmt.Errorf("read proxy token: %w", err)
	}
	token := strings.TrimRight(string(data), "\r\n")
	if len(token) < 16 {
		return authz.Secret{}, fmt.Errorf("read proxy token: %s holds fewer than 16 bytes", file)
	}
	return authz.NewSecret(token), nil
}
