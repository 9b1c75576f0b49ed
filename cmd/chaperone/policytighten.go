package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/tighten"
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

// policyTighten is one run of policy tighten.
type policyTighten struct {
	policyUnused
	grace authz.Duration
	write bool
}

func (c *cli) policyTightenCommand() *cobra.Command {
	t := policyTighten{policyUnused: policyUnused{cli: c, name: "tighten", after: authz.Duration(usage.Period)}, grace: authz.Duration(tighten.Grace)}
	cmd := withBudget(withLog(c.withConfiguration(c.withPolicy(&cobra.Command{
		Use: "tighten [LOG...] --config PATH", Short: "Remove from grants what is proved unused",
		Long: "Print the smallest edit of the files that removes what is proved unused, as a diff; --write makes it. The\n" +
			"edit is proved narrower, and no recorded access would be refused. An unused rule is not removed at once: it\n" +
			"ends after --grace, and once it has ended it is removed. Comments, order and all other bytes stay. --write\n" +
			"keeps each file as FILE.before-tighten-TIME and prints how to undo.\n\n" +
			"  chaperone policy tighten --config sidecar.yaml\n" +
			"  chaperone policy tighten --config sidecar.yaml --write\n\n" +
			"Exit status 0: proved, or nothing to remove. 1: failure, or undecided within --budget. 2: usage.",
		RunE: func(cmd *cobra.Command, args []string) error { return t.run(cmd.Context(), args) },
	}, &t.flags)), &t.logs), &t.flags)
	cmd.Flags().Var(&durationFlag{&t.after}, "after", "how long a rule has to be unused: a `DURATION`")
	cmd.Flags().Var(&durationFlag{&t.grace}, "grace", "how long an unused rule stays in force: a `DURATION`")
	cmd.Flags().BoolVar(&t.write, "write", false, "write the files")
	return cmd
}

func (t *policyTighten) run(ctx context.Context, args []string) error {
	o, report, err := t.read(ctx, args)
	if err != nil {
		return err
	}
	result, err := tighten.Plan(ctx, tighten.Options{
		Paths: []string{t.config}, Load: policy.Options{Plugin: t.flags.plugin, Recursive: t.flags.recursive},
		Report: report, Log: o.Log, Now: o.Now, Grace: time.Duration(t.grace), Budget: t.flags.budget,
	})
	if err != nil {
		return err
	}
	t.explain(report, result)
	if !t.write {
		for i := range result.Files {
			if _, err := t.stdout.Write([]byte(result.Files[i].Diff())); err != nil {
				return err
			}
		}
		return nil
	}
	backups, err := result.Write(o.Now)
	for _, b := range backups {
		say(t.stdout, "%s is tightened; to undo: mv %s %s", b.File, phrase.ShellWord(b.Copy), phrase.ShellWord(b.File))
	}
	return err
}

// explain prints what is changed and what is not, and why.
func (t *policyTighten) explain(report *usage.Report, result *tighten.Result) {
	for _, note := range report.Notes {
		say(t.stderr, "note: %s", note)
	}
	for i := range result.Changes {
		say(t.stderr, "%s: %s", result.Changes[i].Position, result.Changes[i].String())
	}
	for _, left := range result.Left {
		say(t.stderr, "left as it is: %s", left)
	}
	for i := range report.Plugins {
		p := &report.Plugins[i]
		for _, line := range unprovedLines(p) {
			say(t.stderr, "%s", line)
		}
	}
	if len(result.Changes) == 0 {
		say(t.stderr, "no part of a rule is proved unused, and no file is changed")
		return
	}
	say(t.stderr, "proved narrower; %d recorded accesses were decided again and none would be refused; %d cannot be decided again", result.Replayed, result.NotReplayable)
}
