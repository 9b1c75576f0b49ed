package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// proveFlags are the flags of policy prove.
type proveFlags struct {
	policyFlags
	before, after     string
	never             []string
	atMost            string
	revocations, dirs string
}

func (c *cli) policyProveCommand() *cobra.Command {
	var f proveFlags
	cmd := c.withOutput(withBudget(c.withPolicy(&cobra.Command{
		Use: "prove --old OLD --new NEW", Short: "Prove that a configuration allows nothing new", Args: noArgs,
		Long: "Prove that NEW allows, injects and connects to nothing that OLD does not: for every request, time from\n" +
			"--at, enforcement point and resolved address. Otherwise print requests that show the difference.\n\n" +
			"  chaperone policy prove --old grants/ --new grants.new/\n" +
			"  chaperone policy prove --new grants/ --never '* *://169.254.169.254/**'\n" +
			"  chaperone policy prove --new grants/ --at-most approved/weather.yaml\n\n" +
			"Exit status 0: proved. 1: failure, or undecided within --budget. 3: wider.",
		RunE: func(cmd *cobra.Command, _ []string) error { return c.policyProve(cmd.Context(), &f) },
	}, &f.policyFlags), &f.policyFlags))
	flags := cmd.Flags()
	flags.StringVar(&f.before, "old", "", "the `CONFIGURATION` before the change")
	flags.StringVar(&f.after, "new", "", "the `CONFIGURATION` after the change")
	flags.StringArrayVar(&f.never, "never", nil, "prove that NEW allows no request of this `'METHODS URL-PATTERN'`; may be repeated")
	flags.StringVar(&f.atMost, "at-most", "", "prove that NEW is within this `CONFIGURATION`, such as an approved grant")
	flags.StringVar(&f.revocations, "revocations", "", "a `FILE` of revocations that are in force on both sides")
	flags.StringVar(&f.dirs, "state-dir", "", "the stateDir `FOLDER` whose revocations are in force on both sides")
	return cmd
}

func (c *cli) policyProve(ctx context.Context, f *proveFlags) error {
	switch {
	case f.after == "":
		return usageError("policy prove: --new is missing; name the configuration after the change")
	case f.before == "" && f.atMost == "" && len(f.never) == 0:
		return usageError("policy prove: nothing to prove; say --old, --at-most or --never")
	case f.revocations != "" && f.dirs != "":
		return usageError("policy prove: --revocations and --state-dir name the same input; say one")
	}
	patterns, err := neverPatterns(f.never)
	if err != nil {
		return err
	}
	question := prove.Question{At: f.at.orNow()}
	if question.Revocations, err = revocationsIn(f.revocations + f.dirs); err != nil {
		return err
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, f.budget)
	defer cancel()
	report := prove.Report{At: question.At}
	for _, within := range []struct{ claim, path string }{{"within " + f.before, f.before}, {"at most " + f.atMost, f.atMost}} {
		if within.path == "" {
			continue
		}
		before, after, err := c.loadBoth(&f.policyFlags, within.path, f.after)
		if err != nil {
			return err
		}
		if err := report.Within(ctx, within.claim, before, after, question); err != nil {
			return err
		}
	}
	if len(patterns) > 0 {
		after, err := c.loadPolicies(&f.policyFlags, f.after)
		if err != nil {
			return err
		}
		for _, p := range patterns {
			if err := report.Never(ctx, after, p, question); err != nil {
				return err
			}
		}
	}
	report.Under(f.revocations + f.dirs)
	return c.printProved(f, report, f.unfinished(whole))
}

func neverPatterns(texts []string) (out []prove.Pattern, err error) {
	for _, text := range texts {
		p, err := prove.ParsePattern(text)
		if err != nil {
			return nil, usageError("policy prove: --never: %v", err)
		}
		out = append(out, p)
	}
	return out, nil
}

func revocationsIn(path string) ([]authz.Revocation, error) {
	if path == "" {
		return nil, nil
	}
	return policy.Revocations(path)
}

func (c *cli) printProved(f *proveFlags, r prove.Report, unfinished string) error {
	err := c.print(r, func(w io.Writer) {
		for _, claim := range r.Claims {
			c.printClaim(w, f, claim, unfinished)
		}
		fmt.Fprintln(w, "verdict: "+string(r.Verdict))
	})
	if err != nil {
		return err
	}
	return verdictStatus(r.Verdict)
}

// verdictStatus returns the exit status of a verdict.
func verdictStatus(v prove.Verdict) error {
	switch v {
	case prove.Within:
		return nil
	case prove.Wider:
		return exitWith(exitWider, nil)
	case prove.Undecided:
	}
	return exitWith(exitFailure, nil)
}

func (c *cli) printClaim(w io.Writer, f *proveFlags, claim prove.Claim, unfinished string) {
	say(w, "%s: %s: %s (%s decided)", claim.Plugin, claim.Claim, claim.Verdict, phrase.Count(claim.Requests, "request"))
	for _, d := range claim.Findings {
		printDemonstration(w, d, f.after)
	}
	for _, text := range claim.Inexact {
		say(w, "  inexact: %s", text)
	}
	if !claim.Complete {
		say(w, "  undecided: not every request was compared%s", because(claim.Inexact, unfinished))
	}
}

// printDemonstration prints a finding, and the command that shows it.
func printDemonstration(w io.Writer, d prove.Demonstration, config string) {
	say(w, "  %s: %s: %s", d.Kind, d.Request(), d.Summary)
	if d.Old != nil {
		say(w, "    old: %s", d.Old.Text())
	}
	say(w, "    new: %s%s", d.New.Text(), parenthesis(d.Position))
	say(w, "    %s", explainCommandLine(config, d.Explain))
}

// unfinished returns why a comparison has not ended, and what to do about it.
func (f *policyFlags) unfinished(ctx context.Context) string {
	if ctx.Err() != nil {
		return ": interrupted"
	}
	return fmt.Sprintf(" within %s; say a longer --budget", f.budget)
}

// because returns why a comparison is not complete, unless inexact states it.
func because(inexact []string, unfinished string) string {
	if len(inexact) > 0 {
		return ""
	}
	return unfinished
}

func parenthesis(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// explainCommandLine returns the command that shows a decision of a configuration.
func explainCommandLine(config string, args []string) string {
	words := []string{"chaperone", "explain", "--config", phrase.ShellWord(config)}
	for _, a := range args {
		words = append(words, phrase.ShellWord(a))
	}
	return strings.Join(words, " ")
}
