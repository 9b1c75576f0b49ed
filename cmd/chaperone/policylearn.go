package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/terminal"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// policyLearn is one run of policy learn.
type policyLearn struct {
	*cli
	flags    policyFlags
	logs     logFlags
	name     string
	out      string
	force    bool
	format   string
	lifetime authz.Duration
}

// logFlags are the flags of policy commands that read logs.
type logFlags struct {
	since, until string
	stateDir     string
	unverified   bool
}

// withLog adds the flags that choose what is read of logs.
func withLog(cmd *cobra.Command, f *logFlags) *cobra.Command {
	cmd.Flags().StringVar(&f.since, "since", "", "not before this `TIME`: RFC 3339, or a duration ago as in 30d")
	cmd.Flags().StringVar(&f.until, "until", "", "before this `TIME`: RFC 3339, or a duration ago as in 1h")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "the `FOLDER` with the key of the log, if it is not beside it")
	cmd.Flags().BoolVar(&f.unverified, "unverified", false, "read a log also if its chain is broken")
	return cmd
}

// options returns what to read of the logs at paths.
func (f *logFlags) options(plugin string, now time.Time, paths []string) (accesslog.Options, error) {
	o := accesslog.Options{Paths: paths, StateDir: f.stateDir, Unverified: f.unverified, Plugin: plugin}
	for _, bound := range []struct {
		flag, value string
		to          *time.Time
	}{{"since", f.since, &o.Since}, {"until", f.until, &o.Until}} {
		if bound.value == "" {
			continue
		}
		at, err := parseSince(bound.value, now)
		if err != nil {
			return o, usageError("--%s: %w", bound.flag, err)
		}
		*bound.to = at
	}
	if !o.Since.IsZero() && !o.Until.IsZero() && !o.Since.Before(o.Until) {
		return o, usageError("--since %s is not before --until %s", o.Since.Format(time.RFC3339), o.Until.Format(time.RFC3339))
	}
	return o, nil
}

func (c *cli) policyLearnCommand() *cobra.Command {
	l := policyLearn{cli: c, format: formatYAML, lifetime: authz.Duration(90 * 24 * time.Hour)}
	cmd := withLog(c.withConfiguration(c.withPolicy(&cobra.Command{
		Use: "learn [LOG...]", Short: "Propose the smallest grant for what was recorded",
		Long: "Propose the smallest grant for the accesses that logs record, on standard output. LOG is a file or a\n" +
			"folder; without one it is the log of --config. What the grants of --config allow is left out. The reason of\n" +
			"each rule is TODO: the grant loads once a person has stated why the plugin needs the access. Templates for\n" +
			"which only observation speaks are comments.\n\n" +
			"  chaperone policy learn --config sidecar.yaml -o grants/learned.yaml\n\n" +
			"Exit status 0: a grant is written, or nothing is left to learn. 1: failure, or a broken log. 2: usage.",
		RunE: func(cmd *cobra.Command, args []string) error { return l.run(cmd.Context(), args) },
	}, &l.flags)), &l.logs)
	cmd.Flags().StringVarP(&l.out, "out", "o", "", "write to this `FILE`, which must not exist")
	cmd.Flags().Var(command.OneOf(&l.format, formatYAML, formatJSON), "output", "`FORMAT`: yaml (the grant), or json (with the evidence)")
	cmd.Flags().BoolVar(&l.force, "force", false, "replace the file of --out")
	cmd.Flags().StringVar(&l.name, "name", "", "the grant's `NAME` (default PLUGIN-learned)")
	cmd.Flags().Var(&durationFlag{&l.lifetime}, "lifetime", "how long the grant is valid: a `DURATION`")
	return cmd
}

// durationFlag is the value of a flag that takes a duration as files do.
type durationFlag struct{ to *authz.Duration }

// String returns the duration (pflag.Value).
func (d *durationFlag) String() string {
	if d.to == nil {
		return ""
	}
	return d.to.String()
}

// Type names the flag's type (pflag.Value).
func (d *durationFlag) Type() string { return "duration" }

// Set reads a duration (pflag.Value).
func (d *durationFlag) Set(s string) error { return d.to.UnmarshalText([]byte(s)) }

func (l *policyLearn) run(ctx context.Context, args []string) error {
	now := l.flags.at.orNow()
	present, err := l.present(args)
	if err != nil {
		return err
	}
	if present != nil && len(args) == 0 {
		args = []string{present.Sidecar.Audit.File}
	}
	if present != nil && l.flags.plugin == "" {
		l.flags.plugin = present.Plugin
	}
	if l.out != "" && !l.force {
		if _, err := os.Lstat(l.out); err == nil {
			return fmt.Errorf("%s exists; name another file, or replace it with --force", l.out)
		}
	}
	o, err := l.logs.options(l.flags.plugin, now, args)
	if err != nil {
		return err
	}
	if present != nil && o.StateDir == "" && len(args) == 1 && present.Sidecar != nil && args[0] == present.Sidecar.Audit.File {
		o.StateDir = present.Sidecar.StateDir
	}
	learner, found, err := learn.Read(ctx, learn.Source{Log: o, Present: present, Now: now, Progress: l.recordProgress()})
	if err != nil {
		return err
	}
	terms := learn.Terms{Plugin: found.Plugin, Name: l.name, Now: now, NotAfter: now.Add(time.Duration(l.lifetime)).UTC().Truncate(time.Second), Present: present}
	if l.out != "" {
		terms.Folder = filepath.Dir(l.out)
	}
	if terms.Name == "" {
		terms.Name = learnedName(found.Plugin, present)
	}
	if !authz.IsName(terms.Name) || !authz.IsName(terms.Plugin) {
		return usageError("%q and %q name a grant and a plugin: lower-case letters and digits, with dashes between them", terms.Name, terms.Plugin)
	}
	return l.write(ctx, learner.Propose(terms), found, present, now)
}

// recordProgress returns a function that prints how many records were read, to a terminal
// and from time to time.
func (c *cli) recordProgress() func(records uint64) {
	file, ok := c.stderr.Destination().(*os.File)
	if !ok || !terminal.Is(file) {
		return nil
	}
	next := time.Now().Add(progressEvery)
	return func(records uint64) {
		if now := time.Now(); now.After(next) {
			next = now.Add(progressEvery)
			say(c.stderr, "%d records read", records)
		}
	}
}

// present returns the policy of --config, nil without it.
func (l *policyLearn) present(args []string) (*policy.Subject, error) {
	if l.config == "" {
		if len(args) == 0 {
			return nil, usageError("learn: takes LOG, or --config with the Sidecar whose log to read")
		}
		return nil, nil
	}
	subjects, err := l.loadPolicies(&l.flags, l.config)
	switch {
	case err != nil:
		return nil, err
	case len(subjects) > 1:
		return nil, usageError("learn: %s holds the policies of %d plugins or sidecars; name one by --plugin", l.config, len(subjects))
	case len(args) == 0 && subjects[0].Sidecar == nil:
		return nil, usageError("learn: %s is no Sidecar, so that it names no log; name LOG", l.config)
	}
	return &subjects[0], nil
}

// learnedName returns a name that no present grant has.
func learnedName(plugin string, present *policy.Subject) string {
	used := map[string]bool{}
	if present != nil {
		for _, g := range present.Input.Grants {
			used[g.Name] = true
		}
	}
	name := plugin + "-learned"
	for n := 2; used[name]; n++ {
		name = fmt.Sprintf("%s-learned-%d", plugin, n)
	}
	return name
}

// write prints the proposal, or writes it to a file and prints what it is.
func (l *policyLearn) write(ctx context.Context, p *learn.Proposal, found *learn.Found, present *policy.Subject, now time.Time) error {
	notes := found.Lines()
	if present != nil {
		more, err := p.Against(ctx, present, now)
		if err != nil {
			return err
		}
		notes = append(notes, more...)
	}
	if l.format == formatJSON {
		if l.out != "" {
			return usageError("learn: --out writes the grant, and --output json prints the evidence; say one")
		}
		l.output = formatJSON
		return l.print(p.Report(notes), nil)
	}
	var text bytes.Buffer
	if err := p.YAML(&text, notes...); err != nil {
		return err
	}
	if l.out == "" {
		_, err := l.stdout.Write(text.Bytes())
		return err
	}
	write := atomicfile.Create
	if l.force {
		write = atomicfile.Write
	}
	if err := write(l.out, text.Bytes(), 0o644); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; name another file, or replace it with --force", l.out)
	} else if err != nil {
		return fmt.Errorf("write %s: %w", l.out, err)
	}
	for _, line := range append(p.Summary(), notes...) {
		say(l.stdout, "%s.", line)
	}
	say(l.stdout, "%s in %s: state the reasons, then chaperone check %s", phrase.Count(len(p.Rules), "rule"), l.out, phrase.ShellWord(l.out))
	return nil
}
