package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/command"
)

func (c *cli) diffCommand() *cobra.Command {
	var asJSON bool
	budget := time.Minute
	cmd := &cobra.Command{
		Use: "diff OLD NEW", Short: "Compare what two versions ask for, and the version step that it demands", Args: command.Exactly(2, "OLD and NEW"),
		Long: "Compare the permissions of two versions of a manifest, for every request that a plugin can make. Growth of\n" +
			"egress, data, credentials or anything else demands a major version and an approval as of a new plugin; less is a\n" +
			"minor version, and the same a patch. A version that steps less is refused.\n\n" +
			"Exit status 0: the version steps far enough. 1: it does not, or failure. 2: usage.",
		Example: "  chaperonectl plugin diff plugins/crm-sync/2.4.1 plugins/crm-sync/3.0.0",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), budget)
			defer cancel()
			return c.diff(ctx, args[0], args[1], asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&budget, "budget", budget, "how long the comparison may take")
	return cmd
}

func (c *cli) diff(ctx context.Context, before, after string, asJSON bool) error {
	old, _, err := readManifest(before)
	if err != nil {
		return err
	}
	next, _, err := readManifest(after)
	if err != nil {
		return err
	}
	d, err := manifest.Diff(ctx, old, next, c.now())
	if err != nil {
		return err
	}
	if asJSON {
		err = command.WriteJSON(c.stdout, d)
	} else {
		c.delta(&d)
	}
	if err == nil && d.Refused != "" {
		return command.ExitError{Status: command.ExitFailure}
	}
	return err
}

// delta prints a difference.
func (c *cli) delta(d *manifest.Delta) {
	for _, p := range d.Permissions {
		name := p.Permission
		if name == "" {
			name = "(plugin)"
		}
		c.say("%s: %s", name, p.Class)
		for _, change := range p.Changes {
			text := change.Position.String() + ": " + string(change.Class) + ": " + change.About + ": "
			if change.Request != "" {
				text += change.Request + ": "
			}
			c.say("  %s%s", text, change.Summary)
		}
	}
	for _, note := range d.Inexact {
		c.say("note: %s", note)
	}
	if !d.Complete {
		c.say("note: the time ended before every request was compared; the difference counts as wider (--budget)")
	}
	if d.Refused != "" {
		c.say("%s %s to %s: refused: %s", d.Plugin, d.Old, d.New, d.Refused)
		return
	}
	approval := ""
	if d.Demanded == manifest.StepMajor {
		approval = ", and an approval as of a new plugin"
	}
	c.say("%s %s to %s: %s; it demands a %s version%s", d.Plugin, d.Old, d.New, d.Class, d.Demanded, approval)
}
