package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/hostrevocations"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) restoreCommand() *cobra.Command {
	var r restoration
	cmd := c.withOutput(c.withAdmin(&cobra.Command{
		Use:   "restore [ID | --incident ID | --all] --reason TEXT",
		Short: "Lift revocations", ValidArgsFunction: c.completeRevocations,
		Long: "Lift one revocation by its id, those of an incident (revoke --incident, or the whole text of\n" +
			"--reason), or all. Without --plugin, --config or --admin this applies to the whole host, also to\n" +
			"sidecars that are down. Each lifted revocation is printed.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError("restore: takes one id; say --incident or --all for several")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.id = args[0]
			}
			chosen := 0
			for _, given := range []bool{len(args) == 1, r.incident != "", r.all} {
				if given {
					chosen++
				}
			}
			if chosen != 1 {
				return usageError("restore: takes one of the id of a revocation, --incident and --all; status prints the ids")
			}
			if err := admin.ValidateReason(r.reason); err != nil {
				return usageError("restore: --%w", err)
			}
			r.cli = c
			return r.run(cmd.Context())
		},
	}))
	cmd.Flags().StringVar(&r.reason, "reason", "", "why, for the audit log; required")
	cmd.Flags().StringVar(&r.incident, "incident", "", "every revocation of this incident, or with exactly this reason: `ID`")
	cmd.Flags().BoolVar(&r.all, "all", false, "every revocation")
	return cmd
}

// restoration is one run of restore.
type restoration struct {
	*cli
	id, incident, reason string
	all                  bool

	lifted []lifted
	failed bool
}

// lifted is a revocation that was lifted.
type lifted struct {
	admin.RestoreResult
	Level  authz.Level `json:"level,omitempty"`
	Rule   string      `json:"rule,omitempty"`
	Reason string      `json:"reason,omitempty"` // of the revocation
}

// chooses reports whether a revocation is to be lifted.
func (r *restoration) chooses(v authz.Revocation) bool {
	switch {
	case v.ID == sidecar.UnreadableID:
		return v.ID == r.id // the sidecar refuses it, with a remedy
	case r.all:
		return true
	case r.incident != "":
		return v.Incident == r.incident || v.Reason == r.incident
	}
	return v.ID == r.id
}

func (r *restoration) run(ctx context.Context) error {
	var sidecars []admin.Sidecar
	var unlisted error
	plugin := "" // the whole host
	if r.admin != "" || r.config != "" || r.plugin != "" {
		s, err := r.selectedAlsoDown()
		if err != nil {
			return err
		}
		sidecars, plugin = []admin.Sidecar{s}, s.Plugin
	} else if sidecars, unlisted = listSidecars(); unlisted != nil && len(sidecars) == 0 {
		return fmt.Errorf("nothing was restored: %w", unlisted)
	}
	// A sidecar lifts what the host does not revoke any more by itself, and lists it no longer then.
	before := make([]held, len(sidecars))
	for i, s := range sidecars {
		before[i] = r.heldBy(ctx, s)
	}
	var known []authz.Revocation
	host, err := r.restoreHost(plugin, &known)
	if err != nil {
		return err
	}
	for i, s := range sidecars {
		r.restoreAt(ctx, s, before[i], &known)
	}
	r.remember(host)
	if len(r.lifted) == 0 && !r.failed {
		return r.noRevocation(known)
	}
	return errors.Join(r.finish(), unlisted)
}

// selectedAlsoDown is selected for a plugin whose sidecar may be down.
func (r *restoration) selectedAlsoDown() (admin.Sidecar, error) {
	s, err := r.selected()
	if err == nil || r.plugin == "" {
		return s, err
	}
	all, lerr := listSidecars()
	if lerr != nil {
		return s, err
	}
	if i := slices.IndexFunc(all, func(s admin.Sidecar) bool { return s.Plugin == r.plugin }); i >= 0 && all[i].Gone {
		return all[i], nil
	}
	if state, rerr := sidecar.HostStore().Read(); rerr == nil && len(state.InForce(r.plugin)) > 0 {
		return admin.Sidecar{Plugin: r.plugin, Gone: true}, nil
	}
	return s, err
}

// restoreHost lifts revocations of the host, for one plugin or for all. They are
// lifted here first, so that no sidecar puts them in force again.
func (r *restoration) restoreHost(plugin string, known *[]authz.Revocation) ([]lifted, error) {
	store := sidecar.HostStore()
	state, err := store.Read()
	if err != nil && len(state.Revocations) == 0 && plugin != "" {
		return nil, nil // the sidecar refuses what it cannot lift
	}
	if err != nil {
		return nil, fmt.Errorf("nothing was restored: %w", err)
	}
	of := state.Revocations
	if plugin != "" {
		of = state.InForce(plugin)
	}
	var out []lifted
	var all []hostrevocations.Restoration
	for _, v := range of {
		*known = append(*known, v)
		if !r.chooses(v) {
			continue
		}
		all = append(all, hostrevocations.Restoration{ID: v.ID, Plugin: plugin, Reason: r.reason, Actor: actor(), At: time.Now().UTC()})
		out = append(out, lifted{admin.RestoreResult{ID: v.ID, Plugin: v.Plugin}, v.Level, phrase.Rule(v.Grant, v.Rule), v.Reason})
	}
	if err := store.Restore(all...); err != nil {
		return nil, fmt.Errorf("nothing was restored: %w", err)
	}
	return out, nil
}

// remember prints the revocations of the host that no sidecar has lifted.
func (r *restoration) remember(host []lifted) {
	for _, h := range host {
		if slices.ContainsFunc(r.lifted, func(l lifted) bool { return l.ID == h.ID }) {
			continue
		}
		r.show(h, nil)
	}
}

// held are the revocations in force at a sidecar, or why they are not known.
type held struct {
	revocations []authz.Revocation
	err         error
}

func (r *restoration) heldBy(ctx context.Context, s admin.Sidecar) held {
	client := admin.Dial(s.Socket)
	all, err := ask(ctx, client, client.Revocations)
	return held{all, err}
}

// restoreAt lifts the revocations of one sidecar.
func (r *restoration) restoreAt(ctx context.Context, s admin.Sidecar, before held, known *[]authz.Revocation) {
	if before.err != nil && notRunning(before.err) {
		r.restoreOffline(s, known)
		return
	}
	if before.err != nil {
		r.show(lifted{RestoreResult: admin.RestoreResult{Plugin: s.Plugin}}, fmt.Errorf("its own revocations stay: %w", before.err))
		return
	}
	client := admin.Dial(s.Socket)
	*known = append(*known, before.revocations...)
	for _, v := range before.revocations {
		if !r.chooses(v) {
			continue
		}
		result, err := ask(ctx, client, func(ctx context.Context) (admin.RestoreResult, error) { return client.Restore(ctx, v.ID, r.reason) })
		if e, ok := errors.AsType[*admin.Error](err); ok && e.Code == admin.CodeNotFound && v.ID != sidecar.UnreadableID {
			err = nil // the sidecar has read that it is lifted
		}
		result.ID, result.Plugin = v.ID, v.Plugin
		r.show(lifted{result, v.Level, phrase.Rule(v.Grant, v.Rule), v.Reason}, err)
	}
}

// restoreOffline lifts revocations in the stateDir of a sidecar that does not run.
func (r *restoration) restoreOffline(s admin.Sidecar, known *[]authz.Revocation) {
	if s.StateDir == "" {
		return
	}
	all, out, failed, err := sidecar.RestoreOffline(r.offlineSpec(s), r.reason, actor(), r.chooses)
	*known = append(*known, all...)
	if err != nil {
		r.show(lifted{RestoreResult: admin.RestoreResult{Plugin: s.Plugin}}, err)
		return
	}
	for _, v := range out {
		r.show(lifted{admin.RestoreResult{ID: v.ID, Plugin: v.Plugin}, v.Level, phrase.Rule(v.Grant, v.Rule), v.Reason}, nil)
	}
	if len(failed) > 0 {
		r.failed = true
		say(r.stderr, "chaperone: access is given back, and this failed: %s", strings.Join(failed, "; "))
	}
}

// show prints what was lifted, or why it was not, at once if it is a table.
func (r *restoration) show(l lifted, err error) {
	plugin := phrase.ShellWord(l.Plugin)
	if l.Plugin == "" {
		plugin = "every plugin of the host"
	}
	if err != nil {
		r.failed = true
		say(r.stderr, "chaperone: %s: NOT RESTORED: %s", plugin, phrase.OneLine(err.Error()))
		return
	}
	r.lifted = append(r.lifted, l)
	if r.output != "table" {
		return
	}
	what := plugin
	if l.Rule != "" {
		what = l.Rule + " of " + plugin
	}
	_ = r.print(l, func(w io.Writer) { // standard output is closed
		say(w, "%s: restored (%s %s: %s)", what, l.Level, l.ID, l.Reason)
	})
}

// finish prints what was not printed yet and returns the exit status.
func (r *restoration) finish() error {
	var err error
	switch {
	case r.output == "table":
	case r.id != "" && len(r.lifted) == 1:
		err = r.print(r.lifted[0], nil)
	default:
		err = r.print(admin.NonNil(r.lifted), nil)
	}
	if err == nil && r.failed {
		return exitWith(exitFailure, nil)
	}
	return err
}

// noRevocation ends a restoration that has found no revocation to lift.
func (r *restoration) noRevocation(known []authz.Revocation) error {
	if r.all {
		fmt.Fprintln(r.stderr, "chaperone: nothing is revoked")
		return r.finish()
	}
	var there []string
	for _, v := range known {
		name := phrase.ShellWord(v.ID)
		if v.Incident != "" {
			name += fmt.Sprintf(" (incident %q)", v.Incident)
		}
		if !slices.Contains(there, name) {
			there = append(there, name)
		}
	}
	if r.incident != "" {
		return fmt.Errorf("no revocation has the incident or the reason %q; there are: %s", r.incident, phrase.List(there))
	}
	return fmt.Errorf("no revocation has the id %q; there are: %s", r.id, phrase.List(there))
}
