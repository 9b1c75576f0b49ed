package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/replay"
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

// day is how much of the log a release replays.
const day = 24 * time.Hour

// unusedFor is how long a permission has to be unused for a renewal without it. A grant may
// live for a quarter, so that it cannot be [usage.Period].
const unusedFor = 30 * day

// logFlags name the audit logs of a plugin.
type logFlags struct {
	logs       []string
	stateDir   string
	unverified bool
}

func (f *logFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.logs, "log", nil, "an audit log of the plugin: a `FILE` or folder; repeatable")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "the stateDir of the log, with the key that verifies it")
	cmd.Flags().BoolVar(&f.unverified, "unverified", false, "read a log also without its key, or with a broken chain")
}

func (f *logFlags) options(plugin string) accesslog.Options {
	return accesslog.Options{Paths: f.logs, StateDir: f.stateDir, Unverified: f.unverified, Plugin: plugin}
}

func (c *cli) renewCommand() *cobra.Command {
	var logs logFlags
	var lifetime authz.Duration
	after := authz.Duration(unusedFor)
	cmd := &cobra.Command{
		Use: "renew DIR --log LOG", Short: "Compose the next generation of a grant, without the permissions that are unused", Args: oneFolder(),
		Long: "Compose the next generation of the grant in force. Permissions that the log proves unused are left out, unless somebody\n" +
			"else than the author keeps one with a signed reason: annotate DIR --keep PERMISSION --comment REASON. A permission that\n" +
			"earlier generations had unchanged is judged by the log of all of them, so that a grant of a week is enough. The renewal\n" +
			"is approved and issued like a first grant, on fresh evidence.",
		Example: "  chaperonectl plugin renew plugins/weather/1.4.0 --log /var/lib/chaperone/weather/audit.jsonl",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(logs.logs) == 0 {
				return command.Usage("renew: --log is missing: what was used is in the plugin's audit log")
			}
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.renew(cmd.Context(), r, e, &logs, time.Duration(after), time.Duration(lifetime))
			})
		},
	}
	logs.add(cmd)
	cmd.Flags().Var(duration{&lifetime}, "for", "the `DURATION` of the grant (default the longest that the guardrails allow)")
	cmd.Flags().Var(duration{&after}, "after", "how long a permission has to be unused: a `DURATION`")
	return c.repoFlag(cmd)
}

func (c *cli) renew(ctx context.Context, r *repo, e *governance.Evaluation, logs *logFlags, after, lifetime time.Duration) error {
	if e.Issued == nil {
		return fmt.Errorf("renew %s: no grant was issued; review and issue it first", e.Request.Dir)
	}
	subject, err := r.Subject(e.Issued.Bundle.Grant.Unverified, c.now())
	if err != nil {
		return err
	}
	subject.Path = e.Issued.File
	earlier, err := r.Generations(e)
	if err != nil {
		return err
	}
	generations := []usage.Generation{{Digest: e.Issued.SHA256}}
	for _, g := range earlier {
		generations = append(generations, usage.Generation{Digest: g.SHA256, Rules: g.Unchanged})
	}
	report, err := usage.Read(ctx, usage.Options{Log: logs.options(e.Request.Plugin), Subjects: []policy.Subject{subject}, Generations: generations, Now: c.now(), After: after})
	if err != nil {
		return err
	}
	var unused []string
	for i := range report.Plugins {
		for _, rule := range report.Plugins[i].Rules {
			if rule.Verdict == usage.Unused {
				unused = append(unused, rule.ID)
			}
			if rule.Verdict == usage.NotProved {
				c.warn("permission %s: no use in the log, and kept: %s", rule.ID, rule.Why)
			}
		}
	}
	payload, err := r.Renew(e, unused, lifetime, c.now())
	if err != nil {
		return err
	}
	if err := r.write(path.Join(e.Request.Dir, governance.FileDraft), append(payload, '\n')); err != nil {
		return err
	}
	for _, id := range e.Dropped {
		c.say("left out: permission %s, which nothing used", id)
	}
	c.say("%s: generation %d, grant %s; approve and issue it", path.Join(e.Request.Dir, governance.FileDraft), e.Issued.Object.Spec.Binding.Generation+1, dsse.Digest(payload))
	return nil
}

// releaseFlags are those of promote and rollback.
type releaseFlags struct {
	logFlags
	notifyFlags
	key, reason string
	allowBreaks bool
}

func (c *cli) promoteCommand() *cobra.Command {
	return c.releaseCommand(governance.EventPromotion, "promote", "Issue an approved version after a replay, and inform its contacts",
		"Issue a version that is approved: the last day of the log is decided again under its grant, what would break is printed\n"+
			"and refused, a signed notice is written, the grant is issued, and the manifest's contacts are informed.")
}

func (c *cli) rollbackCommand() *cobra.Command {
	return c.releaseCommand(governance.EventRollback, "rollback", "Return to a version that was issued before, as a new generation",
		"Return to the content of a version that was issued before. An old file is never loaded again: the old content becomes a\n"+
			"new generation, which is composed by the first call, approved like every grant, and issued by the second call, after a\n"+
			"replay of the last day. A signed notice is written before, and the manifest's contacts are informed. To end access at\n"+
			"once, use chaperone revoke, which waits for no approval.")
}

func (c *cli) releaseCommand(event, name, short, long string) *cobra.Command {
	var f releaseFlags
	cmd := &cobra.Command{
		Use: name + " DIR --key KEY", Short: short, Long: long, Args: oneFolder(),
		Example: "  chaperonectl plugin " + name + " plugins/weather/1.4.0 --log /var/lib/chaperone/weather/audit.jsonl --key release.key --reason 'INC-311'",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), f.key)
			if err != nil {
				return err
			}
			if event == governance.EventRollback && strings.TrimSpace(f.reason) == "" {
				return command.Usage("rollback: --reason is missing: the contacts read it")
			}
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.release(cmd.Context(), r, e, event, &f, k)
			})
		},
	}
	keyFlag(cmd, &f.key)
	f.logFlags.add(cmd)
	f.notifyFlags.add(cmd)
	cmd.Flags().StringVar(&f.reason, "reason", "", "a `TEXT` for the contacts")
	cmd.Flags().BoolVar(&f.allowBreaks, "allow-breaks", false, "issue it also if accesses of the last day would be refused")
	return c.repoFlag(cmd)
}

func (c *cli) release(ctx context.Context, r *repo, e *governance.Evaluation, event string, f *releaseFlags, key dsse.Signer) error {
	if event == governance.EventRollback {
		if done, err := c.prepareRollback(r, e); !done || err != nil {
			return err
		}
	}
	if err := e.Refusal(); err != nil {
		return err
	}
	if err := c.replayDay(ctx, r, e, f); err != nil {
		return err
	}
	// The notice is there before the effect, maybe of a call that was interrupted.
	notice, of, err := r.Notice(e.Request, e.Draft)
	if err == nil && (notice == nil || of != event) {
		notice, err = c.writeNotice(ctx, r, e, event, f.reason, key)
	}
	if err != nil {
		return err
	}
	if err := c.issue(ctx, r, e, key); err != nil {
		return err
	}
	if f.off {
		return nil
	}
	return c.notify(ctx, e.Request, e.Request.Manifest.Spec.Contacts, event, notice, &f.notifyFlags)
}

// writeNotice signs a notice and writes it.
func (c *cli) writeNotice(ctx context.Context, r *repo, e *governance.Evaluation, event, reason string, key dsse.Signer) (*dsse.Envelope, error) {
	file, payload, err := e.NewNotice(event, reason, c.now())
	if err != nil {
		return nil, err
	}
	notice, err := dsse.Sign(ctx, dsse.KindNotice, payload, key)
	if err != nil {
		return nil, err
	}
	if _, err := r.Root.Verify(notice, dsse.KindNotice); err != nil {
		return nil, err
	}
	if err := r.create(file, notice.Marshal()); err != nil {
		return nil, err
	}
	c.say("%s: %s of %s %s", file, event, e.Request.Plugin, e.Request.Version)
	return notice, nil
}

// prepareRollback composes the old content as a new generation, unless that is done. It
// reports whether there is something to issue.
func (c *cli) prepareRollback(r *repo, e *governance.Evaluation) (bool, error) {
	old, err := r.WasIssued(e.Request)
	if err != nil {
		return false, err
	}
	if e.Issued != nil && e.Issued.Digest == old.Digest {
		return false, fmt.Errorf("rollback %s: its grant is the one in force", e.Request.Dir)
	}
	if e.Draft != "" && e.Draft != old.Digest {
		return true, nil // composed by the call before
	}
	payload, err := r.Compose(e, 0, c.now())
	if err != nil {
		return false, err
	}
	if err := r.write(path.Join(e.Request.Dir, governance.FileDraft), append(payload, '\n')); err != nil {
		return false, err
	}
	c.say("%s: grant %s with the content of generation %d", path.Join(e.Request.Dir, governance.FileDraft), dsse.Digest(payload), old.Object.Spec.Binding.Generation)
	c.say("next: approve it, then run this command again; to end access at once: chaperone revoke --plugin %s --reason TEXT", e.Request.Plugin)
	return false, nil
}

// replayDay decides the last day of the log again under the grant that is to be issued.
func (c *cli) replayDay(ctx context.Context, r *repo, e *governance.Evaluation, f *releaseFlags) error {
	if len(f.logs) == 0 {
		c.warn("no log was replayed: with --log the accesses of the last day are decided again")
		return nil
	}
	subject, err := r.Subject(e.Request.Draft, c.now())
	if err != nil {
		return err
	}
	replayer, err := replay.New([]policy.Subject{subject}, replay.Options{At: c.now()})
	if err != nil {
		return err
	}
	o := f.options(e.Request.Plugin)
	o.Since = c.now().Add(-day)
	reader, err := accesslog.Open(o)
	if err != nil {
		return err
	}
	for access, err := range reader.Accesses(ctx) {
		if err == nil {
			err = replayer.Take(access)
		}
		if err != nil {
			return fmt.Errorf("replay the last day: %w", err)
		}
	}
	result := replayer.Result()
	c.say("replayed %d accesses of the last day: %d would be refused, %d more allowed", result.Accesses, replay.Total(result.Breaks), replay.Total(result.Widens))
	for _, change := range result.Breaks {
		c.say("would be refused (%s), %d times: %s %s", change.New.Reason, change.Count, change.Sample.Method, change.Sample.URL)
	}
	if len(result.Breaks) > 0 && !f.allowBreaks {
		return errors.New("the grant would refuse accesses of the last day; to issue it nevertheless: --allow-breaks")
	}
	return nil
}
