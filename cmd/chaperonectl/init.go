package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// pluginInit is one run of plugin init.
type pluginInit struct {
	*cli
	draftFlags
	logs       []string
	config     string
	stateDir   string
	unverified bool
}

func (c *cli) initCommand() *cobra.Command {
	i := &pluginInit{cli: c}
	cmd := &cobra.Command{
		Use: "init", Short: "Make a manifest from a recording, or an empty one", Args: noArgs,
		Long: "Make a draft of a manifest, on standard output. With --log, from the accesses that audit logs record: one permission\n" +
			"for each rule that `chaperone policy learn` proposes; what the grants of --config allow is left out. Without --log,\n" +
			"an empty one with everything that it may state as comments.",
		Example: "  chaperonectl plugin init --name weather -o plugins/weather/0.1.0/manifest.yaml\n" +
			"  chaperonectl plugin init --log /var/lib/chaperone/weather/audit.jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error { return i.run(cmd.Context()) },
	}
	i.add(cmd)
	cmd.Flags().StringSliceVar(&i.logs, "log", nil, "an audit log: a `FILE` or a folder")
	cmd.Flags().StringVar(&i.config, "config", "", "the Sidecar or grants in force, whose accesses are left out: a `FILE` or a folder")
	cmd.Flags().StringVar(&i.stateDir, "state-dir", "", "the `FOLDER` with the key of the log, if it is not beside it")
	cmd.Flags().BoolVar(&i.unverified, "unverified", false, "read a log also if its chain is broken")
	return cmd
}

func (i *pluginInit) run(ctx context.Context) error {
	if len(i.logs) == 0 {
		if i.name == "" {
			return command.Usage("init: name the plugin with --name, or a recording with --log")
		}
		return i.writeDraft(manifest.Empty(i.name), &i.draftFlags)
	}
	now := i.now()
	present, err := i.present(now)
	if err != nil {
		return err
	}
	o := accesslog.Options{Paths: i.logs, StateDir: i.stateDir, Unverified: i.unverified, Plugin: i.name}
	learner, found, err := learn.Read(ctx, learn.Source{Log: o, Present: present, Now: now})
	if err != nil {
		return err
	}
	const lifetime = 90 * 24 * time.Hour // of the grant that a proposal is in; a manifest states none
	terms := learn.Terms{Plugin: found.Plugin, Name: found.Plugin, Now: now, NotAfter: now.Add(lifetime), Present: present}
	if !authz.IsName(terms.Plugin) {
		return command.Usage("init: %q is not a plugin's name; name one of the log's with --name", terms.Plugin)
	}
	return i.writeDraft(manifest.FromRecording(learner.Propose(terms), found.Lines()), &i.draftFlags)
}

// present returns the policy of --config, nil without it.
func (i *pluginInit) present(now time.Time) (*policy.Subject, error) {
	if i.config == "" {
		return nil, nil //nolint:nilnil // without a policy nothing is left out
	}
	subjects, err := policy.Load(now, policy.Options{Plugin: i.name}, i.config)
	switch {
	case err != nil:
		return nil, err
	case len(subjects) > 1:
		return nil, command.Usage("init: %s holds the policies of %d plugins or sidecars; name one with --name", i.config, len(subjects))
	}
	return &subjects[0], nil
}
