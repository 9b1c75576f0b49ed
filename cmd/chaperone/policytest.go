package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy/plugintest"
)

// policyTest are the flags of policy test.
type policyTest struct {
	policyFlags
	run string
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
	flags.Var(oneOf(&c.output, "table", "json", "yaml", "junit"), "output", "`FORMAT`: table, json, yaml or junit")
	flags.StringVar(&f.plugin, "plugin", "", "only the tests of this `PLUGIN`")
	flags.Var(&f.at, "at", "the `TIME` of tests that state none, as in 2026-12-01T12:00:00Z (default now)")
	flags.StringVar(&f.run, "run", "", "only the expectations whose TEST: NAME matches this regular `EXPRESSION`")
	return withBudget(cmd, &f.policyFlags)
}

// testReport is the answer of policy test in JSON and YAML.
type testReport struct {
	Passed    int                 `json:"passed"`
	Failed    int                 `json:"failed"`
	Undecided int                 `json:"undecided"`
	Notes     []string            `json:"notes,omitempty"`
	Tests     []plugintest.Result `json:"tests"`
}

func (c *cli) policyTest(ctx context.Context, f *policyTest, paths []string) error {
	o := plugintest.Options{Now: f.at.orNow(), Plugin: f.plugin}
	if f.run != "" {
		var err error
		if o.Run, err = regexp.Compile(f.run); err != nil {
			return usageError("test: --run %s is not a regular expression: %w", strconv.Quote(f.run), err)
		}
	}
	suites, err := plugintest.Load(o, paths...)
	if err != nil {
		return fmt.Errorf("load %s:\n%w", phrase.List(paths), err)
	}
	ctx, cancel := context.WithTimeout(ctx, f.budget)
	defer cancel()
	report := testReport{}
	for _, s := range suites {
		report.Notes = append(report.Notes, s.Notes...)
	}
	report.add(plugintest.Run(ctx, suites))
	if err := c.printTests(report); err != nil {
		return err
	}
	return report.status()
}

// add counts results.
func (r *testReport) add(results []plugintest.Result) {
	r.Tests = results
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

// status returns the exit status as an error.
func (r *testReport) status() error {
	switch {
	case r.Failed > 0:
		return exitError{exitWider, nil}
	case r.Undecided > 0:
		return exitError{exitFailure, nil}
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
	plugintest.WriteComment(w, "%d passed, %d failed, %d undecided", r.Passed, r.Failed, r.Undecided)
	return nil
}
