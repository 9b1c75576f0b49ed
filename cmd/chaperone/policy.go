package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
)

// exitWider is the status of a policy command whose answer is no: something is wider, a
// test failed, a replay breaks.
const exitWider = exitDenied

// policyCommand returns the parent of the commands that predict from files.
func (c *cli) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Predict what a change of policy does", Args: noArgs,
		Long: "Predict what files allow and what a change of them does. No sidecar, network or privilege is needed.\n" +
			"A configuration is a Sidecar's file, a grant's file, or a folder of grants and guardrails or of Sidecars.\n\n" +
			"Exit status 0: yes, the same or narrower. 1: failure, or undecided. 2: usage. 3: no.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.policyProveCommand(), c.policyDiffCommand())
	cmd.AddCommand(c.policyTestCommand())
	cmd.AddCommand(c.policyLearnCommand())
	cmd.AddCommand(c.policyUnusedCommand())
	cmd.AddCommand(c.policyReplayCommand())
	cmd.AddCommand(c.policyTightenCommand())
	return cmd
}

// policyFlags are the flags that policy commands share. Not every command has each.
type policyFlags struct {
	plugin    string
	at        instant
	budget    time.Duration
	recursive bool
}

// withPolicy adds the flags that name a plugin, a time and folders.
func (c *cli) withPolicy(cmd *cobra.Command, f *policyFlags) *cobra.Command {
	cmd.Flags().StringVar(&f.plugin, "plugin", "", "only this `PLUGIN`")
	cmd.Flags().Var(&f.at, "at", "the `TIME` from which the answer holds, as in 2026-12-01T12:00:00Z (default now)")
	cmd.Flags().BoolVarP(&f.recursive, "recursive", "R", false, "also the folders below folders")
	return cmd
}

// withBudget adds --budget, to commands that may not finish.
func withBudget(cmd *cobra.Command, f *policyFlags) *cobra.Command {
	cmd.Flags().DurationVar(&f.budget, "budget", time.Minute, "end as undecided after this `DURATION`")
	return cmd
}

// instant is the value of a flag that names a time; the zero time if it is not set.
type instant struct{ time.Time }

// String returns the time in RFC 3339, or "" (pflag.Value).
func (i *instant) String() string {
	if i.IsZero() {
		return ""
	}
	return i.Format(time.RFC3339Nano)
}

// Type names the flag's type (pflag.Value).
func (i *instant) Type() string { return "time" }

// Set reads a time (pflag.Value).
func (i *instant) Set(s string) error {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return fmt.Errorf("%q is not a time; write it as in 2026-12-01T12:00:00Z", s)
	}
	i.Time = t
	return nil
}

// orNow returns the time, or the present in whole seconds, which it stays.
func (i *instant) orNow() time.Time {
	if i.IsZero() {
		i.Time = time.Now().UTC().Truncate(time.Second)
	}
	return i.Time
}

// loadPolicies reads a configuration, and prints to stderr what is assumed of it. With
// --plugin it returns the policies of that plugin, and an error without one.
func (c *cli) loadPolicies(f *policyFlags, paths ...string) ([]policy.Subject, error) {
	subjects, err := policy.Load(f.at.orNow(), policy.Options{Plugin: f.plugin, Recursive: f.recursive}, paths...)
	if err != nil {
		return nil, fmt.Errorf("load %s:\n%w", phrase.List(paths), err)
	}
	c.noteAssumed(subjects)
	return subjects, nil
}

// loadBoth reads two configurations as loadPolicies does. With --plugin one of them may
// lack it.
func (c *cli) loadBoth(f *policyFlags, before, after string) (was, is []policy.Subject, err error) {
	load := func(path string) ([]policy.Subject, error) {
		subjects, err := policy.Load(f.at.orNow(), policy.Options{Recursive: f.recursive}, path)
		if err != nil {
			return nil, fmt.Errorf("load %s:\n%w", path, err)
		}
		subjects = slices.DeleteFunc(subjects, func(s policy.Subject) bool { return f.plugin != "" && s.Plugin != f.plugin })
		c.noteAssumed(subjects)
		return subjects, nil
	}
	if was, err = load(before); err != nil {
		return nil, nil, err
	}
	if is, err = load(after); err != nil {
		return nil, nil, err
	}
	if len(was)+len(is) == 0 {
		return nil, nil, fmt.Errorf("neither %s nor %s has a policy of plugin %q", before, after, f.plugin)
	}
	return was, is, nil
}

func (c *cli) noteAssumed(subjects []policy.Subject) {
	for _, s := range subjects {
		for _, note := range s.Notes {
			if !c.noted[note] {
				say(c.stderr, "note: %s", note)
			}
			if c.noted == nil {
				c.noted = map[string]bool{}
			}
			c.noted[note] = true
		}
	}
}
