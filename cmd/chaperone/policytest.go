package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy/plugintest"
)

// policyTest are the flags of policy test.
type policyTest struct {
	policyFlags
	run              string
	coverage, mutate bool
	minCoverage      float64
	update           bool
}

func (c *cli) policyTestCommand() *cobra.Command {
	var f policyTest
	cmd := &cobra.Command{
		Use: "test PATH...", Short: "Run PluginTest files",
		Long: "Run the PluginTests of files and folders, and of the folders below them: which requests a policy must\n" +
			"allow and deny, and what it must never allow. The results are lines of the Test Anything Protocol.\n\n" +
			"Exit status 0: all pass. 1: failure, no test, or undecided. 2: usage. 3: a test failed.",
		Args: atLeast(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.policyTest(cmd.Context(), &f, args) },
	}
	c.output = "table"
	flags := cmd.Flags()
	flags.Var(command.OneOf(&c.output, "table", "json", "yaml", "junit"), "output", "`FORMAT`: table, json, yaml or junit")
	flags.StringVar(&f.plugin, "plugin", "", "only the tests of this `PLUGIN`")
	flags.Var(&f.at, "at", "the `TIME` of tests that state none, as in 2026-12-01T12:00:00Z (default now)")
	flags.StringVar(&f.run, "run", "", "only the expectations whose TEST: NAME matches this regular `EXPRESSION`")
	flags.BoolVar(&f.coverage, "coverage", false, "list the rules, and the parts of rules, that no expectation uses")
	flags.Float64Var(&f.minCoverage, "min-coverage", 0, "fail below this `PERCENTAGE` of parts of rules; implies --coverage")
	flags.BoolVar(&f.mutate, "mutate", false, "remove and widen each rule in turn, and fail for a change that no expectation notices")
	flags.BoolVar(&f.update, "update", false, "write the present decisions into the files, for review: each allow and deny that is wrong is changed")
	return withBudget(cmd, &f.policyFlags)
}

// testReport is the answer of policy test in JSON and YAML.
type testReport struct {
	Passed    int                 `json:"passed"`
	Failed    int                 `json:"failed"`
	Undecided int                 `json:"undecided"`
	Notes     []string            `json:"notes,omitempty"`
	Updated   []plugintest.Change `json:"updated,omitempty"`
	Tests     []plugintest.Result `json:"tests"`

	Coverage *plugintest.Coverage `json:"coverage,omitempty"`
	Mutation *plugintest.Mutation `json:"mutation,omitempty"`
}

func (c *cli) policyTest(ctx context.Context, f *policyTest, paths []string) error {
	o := plugintest.Options{Now: f.at.orNow(), Plugin: f.plugin}
	if f.run != "" {
		var err error
		if o.Run, err = regexp.Compile(f.run); err != nil {
			return usageError("test: --run %s is not a regular expression: %w", strconv.Quote(f.run), err)
		}
	}
	if f.minCoverage < 0 || f.minCoverage > 100 {
		return usageError("test: --min-coverage %g is no percentage; write a number from 0 to 100", f.minCoverage)
	}
	suites, err := plugintest.Load(o, paths...)
	if err != nil {
		return fmt.Errorf("load %s:\n%w", phrase.List(paths), err)
	}
	report := testReport{}
	if f.update {
		if report.Updated, err = plugintest.Update(suites); err != nil {
			return err
		}
		if suites, err = plugintest.Load(o, paths...); err != nil {
			return fmt.Errorf("load %s again:\n%w", phrase.List(paths), err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, f.budget)
	defer cancel()
	for _, s := range suites {
		report.Notes = append(report.Notes, s.Notes...)
	}
	report.add(plugintest.Run(ctx, suites)...)
	if f.coverage || f.minCoverage > 0 {
		report.cover(suites, f.minCoverage)
	}
	if f.mutate {
		report.mutate(ctx, suites, c.progress())
	}
	if err := c.printTests(report); err != nil {
		return err
	}
	return report.status()
}

// add counts results.
func (r *testReport) add(results ...plugintest.Result) {
	r.Tests = append(r.Tests, results...)
	for _, one := range results {
		switch one.Status {
		case plugintest.Pass:
			r.Passed++
		case plugintest.Fail:
			r.Failed++
		case plugintest.Undecided:
			r.Undecided++
		}
	}
}

func (r *testReport) cover(suites []*plugintest.Suite, least float64) {
	coverage := plugintest.Cover(suites)
	r.Coverage = &coverage
	if least > 0 {
		r.add(coverage.Result(least))
	}
}

// mutate changes the policy, unless a test fails without a change already.
func (r *testReport) mutate(ctx context.Context, suites []*plugintest.Suite, progress func(done, total int)) {
	if r.Failed+r.Undecided > 0 {
		r.Notes = append(r.Notes, "no rule was changed: every test must pass before")
		return
	}
	mutation := plugintest.Mutate(ctx, suites, progress)
	r.Mutation = &mutation
	r.add(mutation.Results()...)
}

// progress returns a function that prints how far long work is, every two seconds.
func (c *cli) progress() func(done, total int) {
	last := time.Now()
	return func(done, total int) {
		if now := time.Now(); now.Sub(last) >= 2*time.Second {
			last = now
			say(c.stderr, "mutants: %d of %d tried", done, total)
		}
	}
}

// status returns the exit status as an error.
func (r *testReport) status() error {
	switch {
	case r.Failed > 0:
		return exitWith(exitWider, nil)
	case r.Undecided > 0:
		return exitWith(exitFailure, nil)
	}
	return nil
}

func (c *cli) printTests(r testReport) error {
	switch c.output {
	case "junit":
		return plugintest.WriteJUnit(c.stdout, r.Tests)
	case "table":
		return c.printTAP(c.stdout, r)
	}
	return c.print(r, nil)
}

func (c *cli) printTAP(w io.Writer, r testReport) error {
	if err := plugintest.WriteTAP(w, r.Tests); err != nil {
		return err
	}
	for _, note := range r.Notes {
		plugintest.WriteComment(w, "note: %s", note)
	}
	for _, change := range r.Updated {
		plugintest.WriteComment(w, "updated %s:%d: %s is now %s", change.File, change.Line, change.Old, change.New)
	}
	if r.Coverage != nil {
		for _, line := range r.Coverage.Text() {
			plugintest.WriteComment(w, "%s", line)
		}
	}
	if m := r.Mutation; m != nil {
		plugintest.WriteComment(w, "mutants: %d noticed, %d survived, %d equivalent, %d refused by a ceiling, %d undecided of %d",
			m.Noticed, len(m.Survived), m.Equivalent, m.Refused, m.Undecided, m.Mutants)
	}
	plugintest.WriteComment(w, "%d passed, %d failed, %d undecided", r.Passed, r.Failed, r.Undecided)
	return nil
}
