package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// client returns a client of the running sidecar that --admin, its environment
// variable or --config names.
func (c *cli) client() (*admin.Client, error) {
	switch {
	case c.admin != "":
		if !strings.HasPrefix(c.admin, "unix:") {
			return nil, usageError("--admin %q is not unix:PATH", c.admin)
		}
		return admin.Dial(c.admin), nil
	case c.config != "":
		spec, err := configs.LoadSidecar(c.config)
		if err != nil {
			return nil, fmt.Errorf("load %s:\n%w", c.config, err)
		}
		return admin.Dial(spec.Listen.Admin.String()), nil
	}
	return c.onlySidecar()
}

// onlySidecar finds the sidecar when exactly one runs on the host.
func (c *cli) onlySidecar() (*admin.Client, error) {
	all, err := admin.List(registry())
	if err != nil {
		return nil, err
	}
	if len(all) == 1 {
		return admin.Dial(all[0].Socket), nil
	}
	var names []string
	for _, s := range all {
		names = append(names, fmt.Sprintf("%s (--admin unix:%s)", s.Plugin, s.Socket))
	}
	return nil, usageError("which sidecar? Say --config or --admin; running here: %s", list(names))
}

// notRunning reports whether nobody answers on the admin socket.
func notRunning(err error) bool { return errors.Is(err, admin.ErrNoSidecar) }

func (c *cli) revokeCommand() *cobra.Command {
	var req admin.RevokeRequest
	var level, until string
	cmd := c.withOutput(c.withAdmin(&cobra.Command{
		Use:   "revoke --reason TEXT",
		Short: "Take access away now",
		Long: "Take access away now, from the whole plugin or with --rule from one rule, and say what was cut,\n" +
			"what Vault confirmed and how long it took. It persists until it is restored.\n\n" +
			"  pause       denies what is new and lets what is in flight end\n" +
			"  quarantine  also cuts live connections, revokes leases and shuts the kernel's door (default)\n" +
			"  halt        also kills the plugin, which is not started again until it is restored",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.Level = authz.Level(level)
			if until != "" {
				at, err := parseUntil(until, time.Now())
				if err != nil {
					return usageError("--until: %w", err)
				}
				req.Until = at
			}
			if err := req.Validate(time.Now()); err != nil {
				return usageError("revoke: --%w", err)
			}
			if req.All {
				return c.revokeAll(cmd.Context(), req)
			}
			return c.revokeOne(cmd.Context(), req)
		},
	}))
	f := cmd.Flags()
	f.StringVar(&req.Rule, "rule", "", "only this rule, `GRANT/ID`")
	level = string(authz.LevelQuarantine)
	f.Var(oneOf(&level, string(authz.LevelPause), level, string(authz.LevelHalt)), "level", "`LEVEL`: pause, quarantine or halt")
	f.StringVar(&req.Reason, "reason", "", "why, for the audit log and for whoever restores it; required")
	f.StringVar(&until, "until", "", "end by itself at this `TIME`: RFC 3339, or a duration from now as in 2h")
	f.BoolVar(&req.All, "all", false, "every sidecar of this host")
	return cmd
}

// parseUntil reads a time, or a duration from now.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	var ahead authz.Duration
	if err := ahead.UnmarshalText([]byte(s)); err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time nor a duration", s)
	}
	return now.Add(time.Duration(ahead)), nil
}

func (c *cli) revokeOne(ctx context.Context, req admin.RevokeRequest) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	result, err := client.Revoke(ctx, req)
	if err != nil && notRunning(err) && c.config != "" {
		return c.revokeOffline(req)
	}
	if err != nil {
		return err
	}
	return c.printRevoked(result)
}

func (c *cli) printRevoked(r admin.RevokeResult) error {
	err := c.print(r, func(w io.Writer) { revokedTable(w, r) })
	if err == nil && len(r.Failed) > 0 {
		return exitError{exitFailure, nil}
	}
	return err
}

func revokedTable(w io.Writer, r admin.RevokeResult) {
	what := r.Plugin
	if r.Rule != "" {
		what = r.Rule + " of " + r.Plugin
	}
	fmt.Fprintf(w, "%s: %s in force after %.1f ms; %d live cut\n", what, r.Level, r.MS, r.Cut)
	if r.Vault.Leases > 0 {
		fmt.Fprintf(w, "Vault: %d of %d leases confirmed revoked\n", r.Vault.Confirmed, r.Vault.Leases)
	}
	if r.Vault.Unconfirmed > 0 {
		fmt.Fprintf(w, "Vault: %d leases unconfirmed; the sidecar keeps trying, and nothing uses them\n", r.Vault.Unconfirmed)
	}
	for _, f := range r.Failed {
		fmt.Fprintf(w, "FAILED: %s\n", f)
	}
	fmt.Fprintf(w, "to give it back: chaperone restore %s --reason TEXT\n", r.ID)
}

// revokeAll reaches every sidecar of the host at the same time: one that hangs
// does not hold up the others.
func (c *cli) revokeAll(ctx context.Context, req admin.RevokeRequest) error {
	all, unlisted := admin.List(registry())
	if len(all) == 0 {
		return errors.Join(errors.New("no sidecar runs on this host"), unlisted)
	}
	type answer struct {
		result admin.RevokeResult
		err    error
	}
	answers := make([]chan answer, len(all))
	for i, s := range all {
		answers[i] = make(chan answer, 1)
		go func() {
			bounded, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			result, err := admin.Dial(s.Socket).Revoke(bounded, req)
			answers[i] <- answer{result, err}
		}()
	}
	results, failed := []admin.RevokeResult{}, false
	for i, s := range all {
		a := <-answers[i]
		if a.err != nil {
			a.result = admin.RevokeResult{Plugin: s.Plugin, Level: req.Level, Failed: []string{"NOT REVOKED: " + a.err.Error()}}
		}
		failed = failed || len(a.result.Failed) > 0
		results = append(results, a.result)
	}
	err := c.print(results, func(w io.Writer) {
		for _, r := range results {
			if r.ID == "" {
				fmt.Fprintf(w, "%s: %s\n", r.Plugin, r.Failed[0])
				continue
			}
			revokedTable(w, r)
		}
	})
	if unlisted != nil { // one bad entry keeps nobody from the others
		return errors.Join(err, unlisted)
	}
	if err == nil && failed {
		return exitError{exitFailure, nil}
	}
	return err
}

// revokeOffline writes the revocation into the stateDir of a sidecar that does
// not run, which finds it when it starts.
func (c *cli) revokeOffline(req admin.RevokeRequest) error {
	started := time.Now()
	cfg, err := loadConfig(c.config)
	if err != nil {
		return err
	}
	revocation, err := newRevocation(cfg.Sidecar.Plugin, cfg.Grants, revocationRequest{
		rule: req.Rule, level: req.Level, reason: req.Reason, until: req.Until, actor: actor(),
	})
	if err != nil {
		return err
	}
	failed, err := c.changeOffline(&cfg.Sidecar, func(all []authz.Revocation) ([]authz.Revocation, *authz.Record, error) {
		detail := fmt.Sprintf("%s: %s (no sidecar was running)", revocation.Level, revocation.Reason)
		return append(all, revocation), revocationRecord(revocation, detail, 0), nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(c.stderr, "chaperone: no sidecar is running; the next one starts with this revocation")
	return c.printRevoked(admin.RevokeResult{
		ID: revocation.ID, Plugin: revocation.Plugin, Rule: ruleName(revocation.Grant, revocation.Rule), Level: revocation.Level,
		MS: float64(time.Since(started).Microseconds()) / 1000, Failed: nonNil(failed),
	})
}

// changeOffline changes the revocations of a stateDir that no sidecar holds.
func (c *cli) changeOffline(spec *configs.Sidecar, change func([]authz.Revocation) ([]authz.Revocation, *authz.Record, error)) (failed []string, err error) {
	kept, err := openState(spec.StateDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	all, err := kept.revocations()
	if err != nil {
		return nil, err
	}
	all, record, err := change(all)
	if err != nil {
		return nil, err
	}
	if err := kept.save(revocationsFile, all); err != nil {
		return nil, err
	}
	log, err := audit.Open(auditConfig(spec))
	if err == nil {
		err = errors.Join(log.Record(record), log.Close())
	}
	if err != nil {
		failed = append(failed, "audit: "+err.Error())
	}
	return failed, nil
}

// actor names the user who runs the command, for the audit log.
func actor() string { return admin.Peer{UID: os.Getuid()}.Actor() }

func (c *cli) restoreCommand() *cobra.Command {
	var reason string
	cmd := c.withOutput(c.withAdmin(&cobra.Command{
		Use: "restore ID --reason TEXT", Short: "Lift a revocation", Args: exactly(1, "the id of a revocation"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := admin.ValidateReason(reason); err != nil {
				return usageError("restore: --%w", err)
			}
			return c.restore(cmd.Context(), args[0], reason)
		},
	}))
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log; required")
	return cmd
}

func (c *cli) restore(ctx context.Context, id, reason string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	result, err := client.Restore(ctx, id, reason)
	if err != nil && notRunning(err) && c.config != "" {
		result, err = c.restoreOffline(id, reason)
	}
	if err != nil {
		return err
	}
	return c.print(result, func(w io.Writer) { fmt.Fprintf(w, "%s: restored\n", result.Plugin) })
}

func (c *cli) restoreOffline(id, reason string) (admin.RestoreResult, error) {
	spec, err := configs.LoadSidecar(c.config)
	if err != nil {
		return admin.RestoreResult{}, fmt.Errorf("load %s:\n%w", c.config, err)
	}
	failed, err := c.changeOffline(spec, func(all []authz.Revocation) ([]authz.Revocation, *authz.Record, error) {
		found, ok := findRevocation(all, id)
		if !ok {
			return nil, nil, fmt.Errorf("no revocation has the id %q", id)
		}
		var left []authz.Revocation
		for _, r := range all {
			if r.ID != id {
				left = append(left, r)
			}
		}
		found.Actor = actor()
		return left, revocationRecord(found, "restored: "+reason+" (no sidecar was running)", 0), nil
	})
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("access is given back, and this failed: %s", strings.Join(failed, "; "))
	}
	return admin.RestoreResult{ID: id, Plugin: spec.Plugin}, err
}

func (c *cli) reloadCommand() *cobra.Command {
	return c.withOutput(c.withAdmin(&cobra.Command{
		Use: "reload", Short: "Read the files again, as SIGHUP does", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			result, err := client.Reload(cmd.Context())
			if refused, ok := errors.AsType[*admin.Error](err); ok {
				return fmt.Errorf("%s:\n%s", refused.Message, strings.Join(refused.Details, "\n"))
			}
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) {
				fmt.Fprintf(w, "generation %d is in force\n", result.Generation)
				for _, change := range result.Changed {
					fmt.Fprintf(w, "  %s\n", change)
				}
			})
		},
	}))
}
