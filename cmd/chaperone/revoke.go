package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) revokeCommand() *cobra.Command {
	var req admin.RevokeRequest
	var level, until string
	var force bool
	cmd := c.withOutput(c.withAdmin(&cobra.Command{
		Use:   "revoke --reason TEXT",
		Short: "Revoke access now",
		Long: "Revoke access now, of the whole plugin or with --rule of one rule, and print the number of cut accesses,\n" +
			"the leases that Vault confirmed, and the time. It persists until it is restored.\n\n" +
			"  pause       denies new accesses; live ones end by themselves\n" +
			"  quarantine  also cuts live connections, revokes leases and blocks the plugin in the kernel (default)\n" +
			"  halt        also kills the plugin, which is not started again until it is restored\n\n" +
			"--plugin and --all also hold for sidecars that are down or start later: the revocation is written\n" +
			"to " + sidecar.StateRoot + ", where every sidecar reads it before anything runs. A sidecar that does not\n" +
			"answer is reported after " + hangAfter.String() + ", and the kernel blocks its plugin; --force kills it.\n" +
			"Exit status 1: a revocation is not confirmed.",
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
			if req.All && c.plugin != "" {
				return usageError("revoke: --all contradicts --plugin; say one of them")
			}
			return c.revoke(cmd.Context(), req, force)
		},
	}))
	f := cmd.Flags()
	f.StringVar(&req.Rule, "rule", "", "only this rule, `GRANT/ID`")
	level = string(authz.LevelQuarantine)
	f.Var(command.OneOf(&level, string(authz.LevelPause), level, string(authz.LevelHalt)), "level", "`LEVEL`: pause, quarantine or halt")
	f.StringVar(&req.Reason, "reason", "", "why, for the audit log and for the person who restores it; required")
	f.StringVar(&req.Incident, "incident", "", "the `ID` of a case, by which restore --incident lifts everything of it")
	f.StringVar(&until, "until", "", "end at this `TIME`: RFC 3339, or a duration from now, for example 2h")
	f.BoolVar(&req.All, "all", false, "every sidecar of this host, and those that start later")
	f.BoolVar(&force, "force", false, "kill a sidecar that does not answer; the kernel then blocks its plugin")
	return cmd
}

// parseUntil reads a time, or a duration from now.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	var ahead authz.Duration
	if err := ahead.UnmarshalText([]byte(s)); err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time nor a duration; write it as 2026-12-01T12:00:00Z, or as 30d for 30 days from now", s)
	}
	return now.Add(time.Duration(ahead)), nil
}

// revocationRun is one run of revoke.
type revocationRun struct {
	*cli
	req   admin.RevokeRequest
	force bool
	many  bool // sidecars; the answer is a list

	results []admin.RevokeResult
	failed  bool
}

// revoke chooses the sidecars and revokes.
func (c *cli) revoke(ctx context.Context, req admin.RevokeRequest, force bool) error {
	r := &revocationRun{cli: c, req: req, force: force}
	if !req.All && c.plugin == "" {
		s, err := c.selected()
		if err != nil {
			return err
		}
		return r.one(ctx, s)
	}
	if c.plugin != "" && (c.admin != "" || c.config != "") {
		return usageError("--plugin contradicts --admin and --config; say one of them")
	}
	r.req.ID, r.many = authz.NewID(time.Now()), req.All
	all, unlisted := listSidecars()
	if unlisted != nil && len(all) == 0 {
		return fmt.Errorf("nothing was revoked: %w", unlisted)
	}
	chosen := slices.DeleteFunc(slices.Clone(all), func(s admin.Sidecar) bool { return c.plugin != "" && s.Plugin != c.plugin })
	r.many = r.many || len(chosen) > 1
	return errors.Join(r.several(ctx, chosen, all), unlisted) // one bad entry keeps nobody from the others
}

// one revokes in one sidecar. Its refusal is the command's error.
func (r *revocationRun) one(ctx context.Context, s admin.Sidecar) error {
	r.req.ID = authz.NewID(time.Now())
	result, err := r.at(ctx, s)
	if err != nil && notRunning(err) && r.config != "" {
		return r.offline(s)
	}
	if err != nil {
		return err
	}
	if result.State == admin.StateNoAnswer || result.State == admin.StateKilled {
		r.writeHost(s.Plugin)
	}
	r.show(result)
	return r.finish()
}

// several revokes in several sidecars at the same time and writes the revocation
// for those that are down: none waits for another.
func (r *revocationRun) several(ctx context.Context, chosen, all []admin.Sidecar) error {
	written := make(chan func(), 1)
	if r.req.Rule == "" {
		go func() { written <- r.hostWriter(r.plugin) }()
	}
	answers := make(chan admin.RevokeResult)
	for _, s := range chosen {
		go func() {
			result, err := r.at(ctx, s)
			switch {
			case err != nil && notRunning(err):
				result = r.notRunning(s)
			case err != nil:
				result = r.unconfirmed(s, admin.StateUnreachable, "NOT REVOKED: "+err.Error())
				result.ID = ""
			}
			answers <- result
		}()
	}
	refused := false
	for range chosen {
		result := <-answers
		refused = refused || result.State == admin.StateUnreachable
		r.show(result)
	}
	switch {
	case r.req.Rule == "":
		(<-written)()
	case !refused: // a rule that no grant has is written nowhere
		r.writeHost(r.plugin)
	}
	switch {
	case len(chosen) > 0:
	case r.plugin != "" && !knownHere(r.plugin, all):
		r.failed = true
		say(r.stderr, "chaperone: NOTHING THAT RUNS WAS REVOKED: %v; the revocation holds for a sidecar of that name that starts here", noSidecarOf(r.plugin, all))
	case r.plugin != "":
		say(r.stderr, "chaperone: no sidecar of %q runs on this host; the next one starts with this revocation", r.plugin)
	default:
		say(r.stderr, "chaperone: no sidecar runs on this host; those that start from now on start with this revocation")
	}
	return r.finish()
}

// writeHost writes the revocation for a plugin, "" being all, and prints where.
func (r *revocationRun) writeHost(plugin string) { r.hostWriter(plugin)() }

// hostWriter writes the revocation for sidecars that are down or start later, and
// returns what prints the result.
func (r *revocationRun) hostWriter(plugin string) (report func()) {
	grant, rule, _ := strings.Cut(r.req.Rule, "/")
	revocation := authz.Revocation{
		ID: r.req.ID, Plugin: plugin, Grant: grant, Rule: rule, Level: r.req.Level, Reason: strings.TrimSpace(r.req.Reason),
		Incident: r.req.Incident, Actor: actor(), At: time.Now().UTC(), Until: r.req.Until,
	}
	path, err := sidecar.HostStore().Revoke(revocation)
	return func() {
		switch {
		case path == "":
			r.failed = true
			say(r.stderr, "chaperone: NOT WRITTEN for sidecars that are down or start later: %s; run revoke again as root when this is repaired, or add --config for each", phrase.OneLine(err.Error()))
		case err != nil:
			say(r.stderr, "chaperone: revocation %s is in %s, which may not survive a reboot: %s", r.req.ID, path, phrase.OneLine(err.Error()))
		default:
			say(r.stderr, "chaperone: revocation %s is in %s: sidecars that are down or start later start with it", r.req.ID, path)
		}
	}
}

// at revokes in one sidecar. One that hangs is cut as far as root can.
func (r *revocationRun) at(ctx context.Context, s admin.Sidecar) (admin.RevokeResult, error) {
	if s.Gone {
		return admin.RevokeResult{}, fmt.Errorf("%w on %s", admin.ErrNoSidecar, s.Socket)
	}
	client := admin.Dial(s.Socket)
	result, err := ask(ctx, client, func(ctx context.Context) (admin.RevokeResult, error) { return client.Revoke(ctx, r.req) })
	if hung, ok := errors.AsType[*hungError](err); ok {
		s.PID = cmp.Or(hung.pid, s.PID)
		return r.hung(s), nil
	}
	return result, err
}

// hung handles a sidecar that does not answer: the kernel shuts its plugin in, and
// with --force the sidecar is killed.
func (r *revocationRun) hung(s admin.Sidecar) admin.RevokeResult {
	proof, problems := r.shutIn(s)
	state, text := admin.StateNoAnswer, fmt.Sprintf(
		"NOT CONFIRMED: the sidecar (pid %d) has not answered for %s; it revokes when it goes on or is started again", s.PID, hangAfter)
	remedy := fmt.Sprintf("to end what it holds open: run this command again with --force, or kill -9 %d as root", s.PID)
	if r.force {
		err := killProcess(s.PID)
		state, text, remedy = admin.StateKilled, "", ""
		if err != nil {
			state, text = admin.StateNoAnswer, fmt.Sprintf("NOT REVOKED: the sidecar (pid %d) does not answer and could not be killed: %v", s.PID, err)
		}
	}
	if proof == "" && len(problems) == 0 && r.shuts() {
		problems = append(problems, "no kernel programs hold its plugin: see that it has ended")
	}
	failed := slices.DeleteFunc(append([]string{text}, append(problems, remedy)...), func(line string) bool { return line == "" })
	out := r.unconfirmed(s, state, failed...)
	out.Kernel = proof
	return out
}

// notRunning is the result of a sidecar that is gone: its plugin may live on.
func (r *revocationRun) notRunning(s admin.Sidecar) admin.RevokeResult {
	proof, problems := r.shutIn(s)
	failed := append([]string{fmt.Sprintf("NOT RUNNING: the sidecar (pid %d) is gone; it starts with this revocation", s.PID)}, problems...)
	if s.Config != "" {
		failed = append(failed, "if it is not to be started again: chaperone detach --kill --config "+phrase.ShellWord(s.Config))
	}
	out := r.unconfirmed(s, admin.StateNotRunning, failed...)
	out.Kernel = proof
	return out
}

// unconfirmed is the result of a sidecar that has not answered.
func (r *revocationRun) unconfirmed(s admin.Sidecar, state string, failed ...string) admin.RevokeResult {
	return admin.RevokeResult{
		ID: r.req.ID, Plugin: s.Plugin, State: state, PID: s.PID, Rule: r.req.Rule, Level: r.req.Level, Failed: admin.NonNil(failed),
	}
}

// shuts reports whether the revocation shuts the plugin's door.
func (r *revocationRun) shuts() bool { return r.req.Level != authz.LevelPause && r.req.Rule == "" }

// shutIn has the kernel shut a plugin in whose sidecar does not answer. It returns
// what the kernel holds it with, "" for nothing, and what failed.
func (r *revocationRun) shutIn(s admin.Sidecar) (proof string, problems []string) {
	if !r.shuts() {
		return "", nil
	}
	if s.StateDir == "" {
		return "", []string{"its stateDir is not known, so the kernel was not asked to shut its plugin in"}
	}
	left, err := ebpf.BlockLeftover(s.StateDir, r.req.Level == authz.LevelHalt)
	if err != nil {
		problems = append(problems, "kernel: "+err.Error())
	}
	if !left.Blocked {
		return "", problems
	}
	what := "nothing runs in it"
	switch {
	case left.Killed:
		what = "its processes were killed"
	case left.Populated:
		what = "its processes live"
	}
	return fmt.Sprintf("the kernel refuses what the plugin sends (%s: %s)", phrase.List(left.Cgroups), what), problems
}

// killProcess kills a process and waits until it has ended.
func killProcess(pid int) error {
	if pid <= 1 {
		return errors.New("its process cannot be seen from this PID namespace")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process: %w", err)
	}
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(hangAfter); ; {
		n, err := unix.Poll(ready, int(time.Until(deadline).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process: %w", err)
		case !time.Now().Before(deadline):
			return errors.New("it has not ended yet: it waits in the kernel, for a disk or a file system")
		}
	}
}

// show prints a result, at once if it is a table.
func (r *revocationRun) show(result admin.RevokeResult) {
	r.failed = r.failed || len(result.Failed) > 0
	r.results = append(r.results, result)
	if r.output == "table" {
		_ = r.print(result, func(w io.Writer) { revokedTable(w, result) }) // standard output is closed
	}
}

// finish prints what was not printed yet and returns the exit status.
func (r *revocationRun) finish() error {
	var err error
	if r.output != "table" {
		slices.SortStableFunc(r.results, func(a, b admin.RevokeResult) int { return cmp.Compare(a.Plugin, b.Plugin) })
		if r.many || len(r.results) != 1 {
			err = r.print(admin.NonNil(r.results), nil)
		} else {
			err = r.print(r.results[0], nil)
		}
	}
	if err == nil && r.failed {
		return exitWith(exitFailure, nil)
	}
	return err
}

func revokedTable(w io.Writer, r admin.RevokeResult) {
	plugin := phrase.ShellWord(r.Plugin)
	what := plugin
	if r.Rule != "" {
		what = r.Rule + " of " + plugin
	}
	switch r.State {
	case "":
		say(w, "%s: %s in force after %.1f ms; %d live cut", what, r.Level, r.MS, r.Cut)
	case admin.StateKilled:
		say(w, "%s: the sidecar (pid %d) did not answer and was killed, and what it held open ended with it", what, r.PID)
	}
	if r.Kernel != "" {
		say(w, "%s: %s", plugin, r.Kernel)
	}
	if r.Vault.Leases > 0 {
		say(w, "Vault: %d of %d leases confirmed revoked", r.Vault.Confirmed, r.Vault.Leases)
	}
	if r.Vault.Unconfirmed > 0 {
		say(w, "Vault: %d leases unconfirmed; the sidecar keeps trying, and nothing uses them", r.Vault.Unconfirmed)
	}
	for _, f := range r.Failed {
		if r.State == "" {
			f = "FAILED: " + f
		}
		say(w, "%s: %s", plugin, phrase.OneLine(f))
	}
	if r.ID != "" && r.State != admin.StateUnreachable {
		say(w, "to restore it: chaperone restore %s --reason TEXT", phrase.ShellWord(r.ID))
	}
}

// grants returns the grants of --config, and whether a rule can be checked against
// them: grants that are broken do not keep anybody from revoking.
func (r *revocationRun) grants() (grants []authz.Grant, checked bool) {
	if r.req.Rule == "" {
		return nil, true
	}
	cfg, err := configs.Load(r.config, time.Now())
	if err != nil {
		say(r.stderr, "chaperone: the files are broken, so that %q is not checked to be a rule: %s", r.req.Rule, phrase.FirstLine(err.Error()))
		return nil, false
	}
	return cfg.Grants, true
}

// offlineSpec returns where the state of a sidecar that does not run is.
func (c *cli) offlineSpec(s admin.Sidecar) *configs.Sidecar {
	if c.config != "" {
		if spec, err := configs.LoadSidecar(c.config); err == nil {
			return spec
		}
	}
	return &configs.Sidecar{
		Plugin: s.Plugin, StateDir: s.StateDir,
		Audit: configs.Audit{File: cmp.Or(s.Audit, filepath.Join(s.StateDir, audit.DefaultFile)), MaxSize: audit.DefaultMaxSize, Keep: audit.DefaultKeep, Paths: configs.AuditPathsMasked},
	}
}

// offline writes the revocation into the stateDir of a sidecar that does not run,
// which finds it when it starts.
func (r *revocationRun) offline(s admin.Sidecar) error {
	started := time.Now()
	grants, checked := r.grants()
	revocation, failed, err := sidecar.RevokeOffline(r.offlineSpec(s), grants, checked, sidecar.RevocationRequest{
		ID: r.req.ID, Rule: r.req.Rule, Level: r.req.Level, Reason: r.req.Reason, Incident: r.req.Incident, Until: r.req.Until, Actor: actor(),
	})
	if errors.Is(err, sidecar.ErrLocked) { // it starts or ends right now
		r.writeHost(s.Plugin)
		return r.finish()
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(r.stderr, "chaperone: no sidecar is running; the next one starts with this revocation")
	result := admin.RevokeResult{
		ID: revocation.ID, Plugin: revocation.Plugin, Rule: phrase.Rule(revocation.Grant, revocation.Rule), Level: revocation.Level,
		MS: float64(time.Since(started).Microseconds()) / 1000, Failed: admin.NonNil(failed),
	}
	proof, problems := r.shutIn(s)
	result.Kernel, result.Failed = proof, append(result.Failed, problems...)
	r.show(result)
	return r.finish()
}
