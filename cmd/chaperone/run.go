package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) runCommand() *cobra.Command {
	var logLevel string
	var lock bool
	cmd := c.withConfig(&cobra.Command{
		Use:   "run --config FILE -- CMD [ARG...]",
		Short: "Start a plugin inside its confinement",
		Long: "Start the sidecar, and CMD inside its confinement. Signals are forwarded, refusals and their\n" +
			"remedies are printed to stderr, and all processes of CMD end with it. The exit status is CMD's;\n" +
			"128+N after signal N; 125 if the sidecar failed before CMD ran, or CMD is halted; 126 and 127 as in\n" +
			"sh(1).",
		Args: atLeast(1, "the program to run"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.config == "" {
				return usageError("run: --config is missing; name the Sidecar's file, as in --config sidecar.yaml")
			}
			c.outliveStderr()
			log, err := newLogger(c.stderr, logLevel, cmd.Flags().Changed("log-level"))
			if err != nil {
				return err
			}
			return c.run(cmd.Context(), log, args, lock)
		},
	})
	cmd.Flags().SetInterspersed(false) // the arguments after CMD belong to it
	cmd.Flags().StringVar(&logLevel, "log-level", "warn", "`LEVEL` of the operator's log: debug, info, warn or error")
	lockMemoryFlag(cmd, &lock)
	return cmd
}

// run starts the sidecar, then CMD, and ends both together.
func (c *cli) run(ctx context.Context, log *operatorLog, args []string, lock bool) error {
	failed := func(err error) error { return exitWith(exitSidecar, err) }
	sidecar.TuneGC() // before the files are read: signed ones make enough garbage for a collection
	cfg, err := loadConfig(c.config)
	if err != nil {
		return failed(err)
	}
	if cfg.Sidecar.Listen.Proxy.IsZero() {
		return failed(errors.New("spec.listen.proxy is closed, and it is the plugin's only way out; write proxy: 127.0.0.1:15001"))
	}
	printer := newRefusalPrinter(c.stderr)
	s, err := sidecar.New(sidecar.Config{
		Files: cfg, Version: buildVersion(), Confine: true, Log: log.Logger, SetLevel: log.follow, StderrDropped: c.stderrDropped,
		Refused: printer.print, Acted: printer.act, Event: printer.event, Notice: c.notice, RawMode: c.screen.raw.Store,
	})
	if err != nil {
		return failed(err)
	}
	if err := sidecar.HideMemory(lock); err != nil {
		return failed(errors.Join(err, s.Close()))
	}
	for _, limitation := range s.Limitations() {
		c.notice(limitation)
	}
	status, err := s.RunPlugin(ctx, args)
	if cerr := s.Close(); cerr != nil {
		log.Error("sidecar shutdown incomplete", zap.Error(cerr))
	}
	if time.Now().Before(cfg.ObservesUntil()) {
		c.noticeLearn(cfg.Sidecar.Audit.File)
	}
	switch {
	case err != nil && status == 0:
		return failed(err)
	case err != nil:
		return exitWith(status, err)
	case status != 0:
		return exitWith(status, nil)
	}
	return nil
}

// noticeLearn prints the command that learns from what was observed.
func (c *cli) noticeLearn(log string) {
	fmt.Fprintf(c.stderr, "chaperone: propose a grant for what was observed: chaperone policy learn --config %s %s\n", phrase.ShellWord(c.config), phrase.ShellWord(log))
}

// notice prints a line for the user of the command.
func (c *cli) notice(text string) { say(c.stderr, "chaperone: %s", text) }
