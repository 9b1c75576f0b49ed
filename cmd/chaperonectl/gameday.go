package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	card "github.com/chaperone-proxy/chaperone/governance/gameday"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/gameday"
)

// rogueCommand is the hidden command that is the plugin of an exercise.
const rogueCommand = "gameday-plugin"

// gamedayRun is one run of plugin gameday.
type gamedayRun struct {
	*cli
	auto           bool
	seed           uint64
	after, timeout authz.Duration
	dir            string
}

func (c *cli) gamedayCommand() *cobra.Command {
	g := gamedayRun{cli: c, after: authz.Duration(time.Minute), timeout: authz.Duration(15 * time.Minute)}
	cmd := &cobra.Command{
		Use: "gameday [--auto]", Short: "Exercise an incident: a plugin turns rogue, and a responder ends its access",
		Long: "Exercise an incident. A plugin of the exercise runs confined, reads orders, and turns at some time: it leaks by what\n" +
			"it is granted, asks for undeclared hosts, dials addresses, tries the metadata service, tunnels by DNS, starts a\n" +
			"child and ignores SIGTERM. You get its alarm, end its access with chaperone revoke, keep the evidence with\n" +
			"chaperone support-bundle, and state what leaked. A score card rates both you and the sidecar, by what the servers\n" +
			"of the exercise received. All of them are on loopback, in this process.\n\n" +
			"Run it as root. It ends the plugin at the end, at --timeout and on an interrupt.\n\n" +
			"Exit status 0: passed. 1: not passed, or failure. 2: usage.",
		Example: "  chaperonectl plugin gameday --dir /root/gameday\n  chaperonectl plugin gameday --auto --after 5s --output json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				g.seed = uint64(rand.Uint32()) //nolint:gosec // a number to repeat the exercise with
			}
			return g.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&g.auto, "auto", false, "run the responder's commands too, for CI and to measure the sidecar")
	f.Uint64Var(&g.seed, "seed", 0, "a `NUMBER` that decides when the plugin turns; the same one repeats it (default: another one each time)")
	f.Var(duration{&g.after}, "after", "the plugin turns between a half of this `TIME` and this, as in 60s")
	f.Var(duration{&g.timeout}, "timeout", "how long the responder has from the turn on: a `TIME`")
	f.StringVar(&g.dir, "dir", "", "an empty `FOLDER`, or one to make, that keeps log, evidence and card (default: a temporary one)")
	return c.withOutput(cmd, "md")
}

func (g *gamedayRun) run(ctx context.Context) error {
	const shortest, longest = 100 * time.Millisecond, 24 * time.Hour / 4
	for flag, value := range map[string]authz.Duration{"after": g.after, "timeout": g.timeout} {
		if d := time.Duration(value); d < shortest || d > longest {
			return command.Usage("gameday: --%s is %s; write a time from %s to %s", flag, d, shortest, longest)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("gameday: it needs root, as the kernel confines the plugin of the exercise; run it with sudo")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("gameday: find this program: %w", err)
	}
	cfg := gameday.Config{
		Command: []string{self, "plugin", rogueCommand}, Dir: g.dir, Auto: g.auto, Seed: g.seed, After: time.Duration(g.after), Timeout: time.Duration(g.timeout),
		Answers: g.stdin, Screen: g.stderr,
	}
	if cfg.Chaperone, err = command.Beside("chaperone"); err != nil {
		return err
	}
	result, err := gameday.Run(ctx, cfg)
	if err != nil {
		return fmt.Errorf("gameday: %w", err)
	}
	if err := g.printCard(result); err != nil {
		return err
	}
	if !result.Passed {
		return command.ExitError{Status: command.ExitFailure}
	}
	return nil
}

func (g *gamedayRun) printCard(result card.Card) error {
	if g.output == "md" {
		_, err := io.WriteString(g.stdout, result.Markdown())
		return err
	}
	return g.print(result, func(w io.Writer) {
		command.Row(w, "figure", "measured", "target", "points", "why")
		for _, f := range result.Figures {
			command.Row(w, f.ID, f.Value(), f.Goal(), fmt.Sprintf("%d of %d", f.Points, f.Max), f.Why)
		}
		command.Row(w, "total", "", "", fmt.Sprintf("%d of %d", result.Points, result.Max), "grade "+result.Grade)
	})
}

func (c *cli) gamedayPluginCommand() *cobra.Command {
	return &cobra.Command{
		Use: rogueCommand, Short: "The plugin of an exercise, which gameday starts", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return gameday.Rogue(cmd.Context(), os.Stdin, os.Stdout, []string{"/proc/self/exe", "plugin", rogueCommand})
		},
	}
}
