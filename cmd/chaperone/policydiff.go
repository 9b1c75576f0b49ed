package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy/diff"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// diffFlags are the flags of policy diff.
type diffFlags struct {
	policyFlags
	revocations string
}

func (c *cli) policyDiffCommand() *cobra.Command {
	var f diffFlags
	cmd := c.withOutput(withBudget(c.withPolicy(&cobra.Command{
		Use: "diff OLD NEW", Short: "List what a change makes wider, narrower or different", Args: exactly(2, "OLD and NEW"),
		Long: "List what a change of a configuration makes wider, narrower or different, each with a request.\n" +
			"Exit status 0: the same or narrower. 1: failure, or undecided within --budget. 3: wider.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policyDiff(cmd.Context(), &f, args[0], args[1])
		},
	}, &f.policyFlags), &f.policyFlags), "sarif")
	cmd.Flags().StringVar(&f.revocations, "revocations", "", "a `FILE` of revocations, or a stateDir, that are in force on both sides")
	return cmd
}

func (c *cli) policyDiff(ctx context.Context, f *diffFlags, old, now string) error {
	question := prove.Question{At: f.at.orNow()}
	var err error
	if question.Revocations, err = revocationsIn(f.revocations); err != nil {
		return err
	}
	before, after, err := c.loadBoth(&f.policyFlags, old, now)
	if err != nil {
		return err
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, f.budget)
	defer cancel()
	report, err := diff.Compare(ctx, before, after, question)
	if err != nil {
		return err
	}
	report.Under(f.revocations)
	if c.output == "sarif" {
		err = command.WriteJSON(c.stdout, report.SARIF(buildVersion()))
	} else {
		err = c.print(report, func(w io.Writer) { printDiff(w, &report, old, now, f.unfinished(whole)) })
	}
	if err != nil {
		return err
	}
	switch report.Verdict {
	case diff.Same, diff.Narrower:
		return nil
	case diff.Wider:
		return exitWith(exitWider, nil)
	case diff.Undecided:
	}
	return exitWith(exitFailure, nil)
}

func printDiff(w io.Writer, r *diff.Report, old, now, unfinished string) {
	for _, p := range r.Plugins {
		for _, list := range []struct {
			name, config string
			changes      []diff.Change
		}{{"wider", now, p.Wider}, {"narrower", old, p.Narrower}, {"changed", now, p.Changed}} {
			if len(list.changes) == 0 {
				continue
			}
			say(w, "%s: %s", p.Plugin, list.name)
			for i := range list.changes {
				printChange(w, &list.changes[i], list.config)
			}
		}
		for _, text := range p.Inexact {
			say(w, "%s: inexact: %s", p.Plugin, text)
		}
		if !p.Complete {
			say(w, "%s: undecided: not every request was compared%s", p.Plugin, because(p.Inexact, unfinished))
		}
	}
	wider, narrower, changed := r.Count()
	fmt.Fprintf(w, "verdict: %s (%d wider, %d narrower, %d changed)\n", r.Verdict, wider, narrower, changed)
}

func printChange(w io.Writer, c *diff.Change, config string) {
	line := string(c.Class) + ": "
	if c.Rule != "" {
		line += c.Rule + ": "
	}
	if d := c.Shown; d != nil {
		line += d.Request() + ": "
	}
	line += c.Summary
	if c.More > 0 {
		line += fmt.Sprintf(", and %s like it", phrase.Counted(c.More, "more request", "more requests"))
	}
	if c.Position != nil {
		line += parenthesis(c.Position.String())
	}
	say(w, "  %s", line)
	if c.Shown != nil {
		say(w, "    %s", explainCommandLine(config, c.Shown.Explain))
	}
}
