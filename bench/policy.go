package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// policyRow is one row of the policy scene.
type policyRow struct {
	name string
	goal string
	// measure returns the figure, and whether it reaches the goal.
	measure func(ctx context.Context, w *env) (figure string, reached bool, err error)
}

// policyRows returns the rows of the policy scene, in the order of printing.
func policyRows() []policyRow {
	return []policyRow{
		{"prove: 1,000 rules against themselves", "below 1 s", proveRow(1000, time.Second)},
		{"prove: 10,000 rules against themselves", "below 10 s", proveRow(10_000, 10*time.Second)},
		{"prove of two files, the whole command", "below 50 ms", commandRow(50*time.Millisecond, "policy", "prove", "--old", "old.yaml", "--new", "new.yaml")},
		{"diff of two files, the whole command", "below 50 ms", commandRow(50*time.Millisecond, "policy", "diff", "old.yaml", "new.yaml")},
		{"replay of a million records, full paths", "at least 1,000,000 a second, memory flat", replayRow(true, false)},
		{"replay of a million records, masked paths", "at least 1,000,000 a second, memory flat", replayRow(false, false)},
		{"replay of a million records, verified first", "memory flat", replayRow(true, true)},
		{"learn from 10 million records", "below 60 s and 500 MiB", learnRow},
	}
}

// policyScene measures the commands that predict from files.
func policyScene(ctx context.Context, w *env) (*table, error) {
	t := &table{title: "Policy", heads: []string{"", "figure", "goal"}}
	for _, row := range policyRows() {
		figure, reached, err := row.measure(ctx, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", row.name, err)
		}
		t.add(row.name, figure, row.goal+": "+verdict(reached))
	}
	return t, nil
}

// manyPaths returns a policy of n rules, ten for each host, with two path patterns each.
func manyPaths(n int) authz.Input {
	in := authz.Input{Plugin: "weather"}
	for host := range n / 10 {
		g := authz.Grant{Name: fmt.Sprintf("g%d", host), Plugin: in.Plugin, NotAfter: time.Now().Add(24 * time.Hour)}
		for i := range 10 {
			g.Rules = append(g.Rules, authz.Rule{
				ID: fmt.Sprintf("r%d", i), Reason: "a benchmark", To: authz.To{Hosts: []string{hostOf(host)}}, Methods: []string{"GET", "POST"},
				Paths: []string{fmt.Sprintf("/v%d/*/items", i), fmt.Sprintf("/v%d/things/**", i)},
			})
		}
		in.Grants = append(in.Grants, g)
	}
	return in
}

func proveRow(n int, goal time.Duration) func(context.Context, *env) (string, bool, error) {
	return func(ctx context.Context, _ *env) (string, bool, error) {
		compiled, problems := authz.Compile(manyPaths(n), time.Now())
		if len(problems) > 0 {
			return "", false, fmt.Errorf("compile: %s", problems[0].Message)
		}
		var engine authz.Engine
		engine.Install(compiled)
		start := time.Now()
		got, err := prove.Compare(ctx, engine.Current(), engine.Current(), prove.Options{Plugin: "weather", At: time.Now()})
		took := time.Since(start)
		if err == nil && (!got.Complete || len(got.Findings) > 0) {
			err = fmt.Errorf("the comparison is complete: %t, with %d findings", got.Complete, len(got.Findings))
		}
		return fmt.Sprintf("%v, %d requests", took.Round(time.Millisecond), got.Requests), took < goal, err
	}
}

// policyFile returns a grant of which one rule grants methods.
func policyFile(methods string) string {
	var rules strings.Builder
	for i := range 20 {
		fmt.Fprintf(&rules, "  - {id: r%d, reason: a benchmark, to: {hosts: [h%d.example]}, methods: [%s], paths: [/v1/*, /v2/**]}\n", i, i, methods)
	}
	return "apiVersion: chaperone.dev/v1alpha1\nkind: PluginGrant\nmetadata: {name: weather}\nspec:\n  plugin: weather\n  notAfter: 2099-01-01T00:00:00Z\n  rules:\n" + rules.String()
}

// commandRow measures a whole command on two files of 20 rules, of which the new one is
// narrower. The figure is the median of 21.
func commandRow(goal time.Duration, args ...string) func(context.Context, *env) (string, bool, error) {
	return func(ctx context.Context, w *env) (string, bool, error) {
		dir, err := os.MkdirTemp("", "chaperone-bench-policy-")
		if err != nil {
			return "", false, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		for name, text := range map[string]string{"old.yaml": policyFile("GET, HEAD"), "new.yaml": policyFile("GET")} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				return "", false, err
			}
		}
		program, err := filepath.Abs(w.binary)
		if err != nil {
			return "", false, err
		}
		var took []time.Duration
		for range 21 {
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Dir = dir
			start := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return "", false, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		median := took[len(took)/2]
		return median.Round(100 * time.Microsecond).String(), median < goal, nil
	}
}
