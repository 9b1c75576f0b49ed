package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

// policyUnused is one run of policy unused.
type policyUnused struct {
	*cli
	name  string // the command's
	flags policyFlags
	logs  logFlags
	after authz.Duration
}

func (c *cli) policyUnusedCommand() *cobra.Command {
	u := policyUnused{cli: c, name: "unused", after: authz.Duration(usage.Period)}
	cmd := c.withOutput(withLog(c.withConfiguration(c.withPolicy(&cobra.Command{
		Use: "unused [LOG...] --config PATH", Short: "Compare what rules grant with what was used",
		Long: "Compare what rules grant with what logs record of their use: uses, first and last use, and which hosts,\n" +
			"methods, paths, ports and upgrades were used. LOG is a file or a folder; without one it is the log of each\n" +
			"Sidecar. A rule without a use is called unused only if the log proves it: verified, without a loss, and as\n" +
			"long as --after, in which the rule was in force as it is now.\n\n" +
			"  chaperone policy unused --config sidecar.yaml\n" +
			"  chaperone policy unused --config /etc/chaperone -R /var/lib/chaperone\n\n" +
			"Exit status 0: compared, also if something is unused. 1: failure, or a broken log. 2: usage.",
		RunE: func(cmd *cobra.Command, args []string) error { return u.run(cmd.Context(), args) },
	}, &u.flags)), &u.logs))
	cmd.Flags().Var(&durationFlag{&u.after}, "after", "how long a rule has to be unused: a `DURATION`")
	return cmd
}

func (u *policyUnused) run(ctx context.Context, args []string) error {
	_, report, err := u.read(ctx, args)
	if err != nil {
		return err
	}
	for _, note := range report.Notes {
		say(u.stderr, "note: %s", note)
	}
	return u.print(report, func(w io.Writer) { unusedTable(w, report) })
}

// read reads the configurations and the logs.
func (u *policyUnused) read(ctx context.Context, args []string) (usage.Options, *usage.Report, error) {
	now := u.flags.at.orNow()
	o := usage.Options{Now: now, After: time.Duration(u.after), Progress: u.recordProgress()}
	if u.config == "" {
		return o, nil, usageError("%s: --config is missing; name a Sidecar, a grant's file, or a folder", u.name)
	}
	subjects, err := u.loadPolicies(&u.flags, u.config)
	if err != nil {
		return o, nil, err
	}
	o.Subjects = subjects
	if len(args) == 0 {
		if args = logsOf(subjects); len(args) == 0 {
			return o, nil, usageError("%s: %s names no log; name LOG", u.name, u.config)
		}
	}
	if o.Log, err = u.logs.options(u.flags.plugin, now, args); err != nil {
		return o, nil, err
	}
	if only := subjects[0].Sidecar; o.Log.StateDir == "" && len(subjects) == 1 && only != nil && len(args) == 1 && args[0] == only.Audit.File {
		o.Log.StateDir = only.StateDir
	}
	report, err := usage.Read(ctx, o)
	return o, report, err
}

// logsOf returns the logs of Sidecars.
func logsOf(subjects []policy.Subject) []string {
	var out []string
	for _, s := range subjects {
		if s.Sidecar != nil && !slices.Contains(out, s.Sidecar.Audit.File) {
			out = append(out, s.Sidecar.Audit.File)
		}
	}
	return out
}

func unusedTable(w io.Writer, report *usage.Report) {
	for i := range report.Plugins {
		p := &report.Plugins[i]
		row(w, fmt.Sprintf("plugin %s (%s): over-privilege %.0f %%", p.Plugin, clipText(p.Path), 100*p.OverPrivilege))
		row(w, "RULE", "USES", "FIRST", "LAST", "VERDICT", "USED", "NOT USED")
		for j := range p.Rules {
			r := &p.Rules[j]
			used, idle := valueTexts(r)
			row(w, r.Name(), strconv.FormatUint(r.Uses, 10), dateText(r.First), dateText(r.Last), string(r.Verdict), phrase.List(used), phrase.List(idle))
		}
		for _, line := range usageLines(p) {
			row(w, line)
		}
	}
	for _, plugin := range slices.Sorted(maps.Keys(report.Other)) {
		row(w, fmt.Sprintf("plugin %s made %d accesses that no rule allows today", clipText(plugin), report.Other[plugin]))
	}
}

// usageLines returns what does not fit a table: paths, limits, and why something is not proved.
func usageLines(p *usage.Plugin) []string {
	var out []string
	limits := slices.Clone(p.Limits)
	for j := range p.Rules {
		r := &p.Rules[j]
		limits = append(limits, r.Limits...)
		if len(r.UsedAs) == 0 {
			continue
		}
		paths := r.UsedAs
		if r.MoreUsedAs {
			paths = append(slices.Clone(paths), "and more")
		}
		out = append(out, fmt.Sprintf("  paths used of %s: %s", r.Name(), phrase.OneLine(strings.Join(paths, ", "))))
	}
	for _, l := range limits {
		out = append(out, fmt.Sprintf("  limit requests %s of %s: at most %d in a period (%.0f %%)", l.Limit, l.Name, l.Peak, 100*l.Ratio))
	}
	return append(out, unprovedLines(p)...)
}

// unprovedLines returns why rules are not proved unused, rules with the same reason together.
func unprovedLines(p *usage.Plugin) []string {
	why := map[string][]string{}
	for j := range p.Rules {
		if r := &p.Rules[j]; r.Why != "" {
			why[r.Why] = append(why[r.Why], r.Name())
		}
	}
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		out = append(out, fmt.Sprintf("  not proved of %s: %s", strings.Join(why[reason], ", "), phrase.OneLine(reason)))
	}
	return out
}

// valueTexts returns the values of a rule that were used, and those that were not.
func valueTexts(r *usage.Rule) (used, idle []string) {
	for _, v := range r.Values {
		switch text := clipText(v.Value); {
		case v.Uses == 0:
			idle = append(idle, text)
		case strings.Contains(v.Value, "*"):
			used = append(used, fmt.Sprintf("%s (%d different)", text, v.Different))
		default:
			used = append(used, text)
		}
	}
	return used, idle
}

func dateText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}
