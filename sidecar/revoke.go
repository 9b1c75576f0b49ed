package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/vault"
)

// follow calls act with each generation, the present one first, until ctx
// ends. The doors follow by themselves.
func (c *PolicyControl) follow(ctx context.Context, act func(*authz.Snapshot)) {
	for {
		snapshot := c.engine.Current()
		act(snapshot)
		select {
		case <-ctx.Done():
			return
		case <-snapshot.Changed():
		}
	}
}

// followKernel keeps the kernel's door and the plugin's life in line with what
// is revoked.
func (c *PolicyControl) followKernel(*authz.Snapshot) {
	if err := c.enforceLevel(); err != nil {
		c.cfg.Log.Error("revocation not enforced", zap.Error(err))
	}
	if err := c.cfg.Telemetry.enforceLimits(); err != nil {
		c.cfg.Log.Error("kernel limits not updated", zap.Error(err))
	}
	c.cfg.Telemetry.followSockets()
	c.cfg.Telemetry.allowConnects() // the sidecar may have ended observing
}

// retainLeases has the leases revoked that nothing in force needs. The broker
// tries again what Vault does not confirm in time.
func (c *PolicyControl) retainLeases(ctx context.Context) {
	c.leasing.Lock()
	defer c.leasing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, vaultPatience)
	defer cancel()
	c.cfg.Credentials.retain(ctx, c.engine.Current().CredentialRefs(c.cfg.Plugin, time.Now()))
}

// enforceLevel brings the kernel, and what comes in, in line with what is
// revoked now.
func (c *PolicyControl) enforceLevel() error {
	c.enforcing.Lock()
	level, _, err := c.reconcile()
	c.enforcing.Unlock()
	if level == authz.LevelHalt {
		return errors.Join(c.cfg.Confinement().Kill(), err)
	}
	return err
}

// reconcile is enforceLevel without the end of the plugin's processes, for which it would
// wait. It returns the level in force, and how many connections from the host were cut. The
// caller holds enforcing, so that an older level is never enforced after a newer one.
func (c *PolicyControl) reconcile() (level authz.Level, cut int, err error) {
	level = c.engine.Current().RevokedLevel(c.cfg.Plugin, time.Now())
	if c.cfg.Confinement().Kernel() {
		err = c.cfg.Confinement().Block(level == authz.LevelQuarantine || level == authz.LevelHalt)
	}
	if level == authz.LevelQuarantine {
		err = errors.Join(err, c.cfg.Telemetry.allowSockets()) // none
	}
	if c.cfg.Inbound() != nil {
		cut = c.cfg.Inbound().Enforce(level)
	}
	return level, cut + c.cutDirect(level), err
}

// RevocationRequest is a revocation that an operator asks for.
type RevocationRequest struct {
	ID       string // "" has one made
	Rule     string // GRANT/ID; "" for the whole plugin
	Level    authz.Level
	Reason   string
	Incident string
	Until    time.Time
	Actor    string
}

// revocationResult is what became of it.
type revocationResult struct {
	revocation authz.Revocation
	cut        int
	took       time.Duration // to the last live exchange being cut and the kernel enforcing the level
	vault      vault.Report
	failed     []string // steps that failed
}

// revoke revokes access: first it cuts, then it persists, records and revokes the leases
// in Vault, so that neither a full disk nor a dead Vault delays it.
func (c *PolicyControl) revoke(ctx context.Context, req RevocationRequest) (revocationResult, error) {
	revocation, err := newRevocation(string(c.cfg.Plugin), c.config.Load().Grants, req)
	if err != nil {
		return revocationResult{}, err
	}
	// Taken before the cut if it is free, so that the answer can say what Vault
	// confirmed; never waited for.
	leasing := c.leasing.TryLock()
	out := c.cut(revocation)
	if !leasing {
		c.leasing.Lock()
	}
	defer c.leasing.Unlock()
	if c.cfg.Credentials.broker != nil && revocation.Level != authz.LevelPause {
		out.vault = c.revokeLeases(ctx, revocation)
	}
	return out, nil
}

// cut puts a revocation in force, ends the accesses that it revokes, and then
// persists and records it.
func (c *PolicyControl) cut(revocation authz.Revocation) revocationResult {
	c.cutting.Lock()
	defer c.cutting.Unlock()
	if known, ok := findRevocation(c.engine.Current().Revocations(), revocation.ID); ok {
		// It was read from the files of the host before it came by the admin socket.
		out := c.answers[revocation.ID]
		out.revocation = known
		return out
	}
	started := time.Now()
	out := revocationResult{revocation: revocation}
	killed := func() (time.Duration, error) { return 0, nil }
	var blocked error
	session.AtHighPriority(func() {
		var level authz.Level
		if level, out.cut, blocked = c.apply(revocation); level == authz.LevelHalt {
			killed = c.beginKill(started) // the plugin dies while its exchanges are cut
		}
		if c.cfg.Proxy() != nil && revocation.Level != authz.LevelPause {
			take := c.cfg.Proxy().Revalidate
			if revocation.Rule == "" {
				take = c.cfg.Proxy().CloseAll
			}
			out.cut += take()
		}
		out.took = time.Since(started) // those that were woken run before this thread once it takes turns again
	})
	took, failure := killed()
	if failure = errors.Join(blocked, failure); failure != nil {
		out.failed = append(out.failed, "kernel: "+failure.Error())
	}
	out.took = max(out.took, took)
	c.cfg.Metrics.revoked(out.took)
	out.failed = append(out.failed, c.keepRevocation(revocation, fmt.Sprintf("%s: %s", revocation.Level, revocation.Reason))...)
	if len(c.answers) >= maxAnswers || c.answers == nil {
		c.answers = map[string]revocationResult{}
	}
	c.answers[revocation.ID] = out
	return out
}

// apply makes the revocation's generation, has the kernel enforce it, and cuts connections
// from the host. It holds the lock that the follower of generations holds for the same work,
// so that the answer can state how many were cut here. It runs on the caller's thread, whose
// priority is high: a further goroutine would take turns with the servers of all sessions
// that are cut.
func (c *PolicyControl) apply(revocation authz.Revocation) (level authz.Level, cut int, err error) {
	c.enforcing.Lock()
	defer c.enforcing.Unlock()
	c.engine.Revoke(revocation)
	return c.reconcile()
}

// beginKill ends the plugin's processes, and returns a function that waits until they are
// gone and returns when they were, as the time since started.
func (c *PolicyControl) beginKill(started time.Time) (wait func() (time.Duration, error)) {
	var took time.Duration
	var failed error
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		failed = c.cfg.Confinement().Kill()
		took = time.Since(started)
	}()
	return func() (time.Duration, error) {
		<-gone
		return took, failed
	}
}

// revokeLeases revokes leases in Vault: all of the plugin, or those that one rule alone
// needed.
func (c *PolicyControl) revokeLeases(ctx context.Context, r authz.Revocation) vault.Report {
	ctx, cancel := context.WithTimeout(ctx, vaultPatience)
	defer cancel()
	if r.Rule == "" {
		c.cfg.Credentials.tokens.Retain(nil)
		return c.cfg.Credentials.broker.Revoke(ctx)
	}
	return c.cfg.Credentials.retain(ctx, c.engine.Current().CredentialRefs(c.cfg.Plugin, time.Now()))
}

// vaultPatience is how long the answer to a revocation waits for Vault's word.
// Leases that are unconfirmed by then are reported, and tried again until they are
// confirmed.
const vaultPatience = 5 * time.Second

// newRevocation checks what is asked against the grants that are loaded.
func newRevocation(plugin string, grants []authz.Grant, req RevocationRequest) (authz.Revocation, error) {
	r := authz.Revocation{
		ID: req.ID, Plugin: plugin, Level: req.Level, Reason: strings.TrimSpace(req.Reason), Incident: req.Incident,
		Actor: req.Actor, At: time.Now().UTC(), Until: req.Until,
	}
	if r.Reason == "" {
		return r, errors.New("a revocation has a reason")
	}
	switch r.Level {
	case authz.LevelPause, authz.LevelQuarantine, authz.LevelHalt:
	case "":
		r.Level = authz.LevelQuarantine
	default:
		return r, fmt.Errorf("level %q is not pause, quarantine or halt", r.Level)
	}
	if !r.Until.IsZero() && !r.Until.After(r.At) {
		return r, errors.New("until has passed")
	}
	if req.Rule != "" {
		if r.Level == authz.LevelHalt {
			return r, errors.New("halt ends the plugin, and so is not for one rule")
		}
		grant, rule, err := findRule(grants, req.Rule)
		if err != nil {
			return r, err
		}
		r.Grant, r.Rule = grant, rule
	}
	if r.ID == "" {
		r.ID = authz.NewID(time.Now())
	}
	return r, nil
}

// findRule checks that GRANT/ID names a rule that is loaded: a misspelt name
// would revoke nothing.
func findRule(grants []authz.Grant, name string) (grant, rule string, err error) {
	var known []string
	for _, g := range grants {
		for _, r := range g.Rules {
			full := g.Name + "/" + r.ID
			if full == name {
				return g.Name, r.ID, nil
			}
			known = append(known, full)
		}
	}
	return "", "", fmt.Errorf("no rule is named %q; there are: %s", name, phrase.List(known))
}

// keepRevocation persists the revocations in force and records the change.
// Failures are returned in words: the revocation is in force already.
func (c *PolicyControl) keepRevocation(r authz.Revocation, detail string) (failed []string) {
	if err := c.state.save(revocationsFile, c.ownRevocations()); err != nil {
		failed = append(failed, "state: "+err.Error()+"; a restart would forget this")
	}
	c.advanceHistory()
	if err := c.cfg.Recorder().Record(revocationRecord(r, detail, c.engine.Current().Generation())); err != nil {
		failed = append(failed, "audit: "+err.Error())
	}
	return failed
}

func revocationRecord(r authz.Revocation, detail string, generation uint64) *authz.Record {
	return &authz.Record{
		Time: time.Now(), Kind: authz.KindRevocation, Plugin: r.Plugin, Grant: r.Grant, Rule: r.Rule, Decision: r.ID,
		Reason: authz.Revoked.String(), Generation: generation, Actor: r.Actor, UID: -1, Detail: detail,
	}
}

// ownRevocations returns the revocations that outlive the sidecar.
func (c *PolicyControl) ownRevocations() []authz.Revocation {
	return slices.DeleteFunc(c.engine.Current().Revocations(), func(r authz.Revocation) bool { return r.ID == UnreadableID })
}

// restore lifts a revocation.
func (c *PolicyControl) restore(id, reason, actor string) (failed []string, err error) {
	if strings.TrimSpace(reason) == "" {
		return nil, errors.New("a restoration has a reason")
	}
	if id == UnreadableID {
		return nil, errors.New("it is lifted when the files of the host can be read again: repair or remove them as root; status names them")
	}
	if err := c.liftHostWide(id, reason, actor); err != nil {
		return nil, err
	}
	failed, found := c.lift(id, reason, actor)
	if !found {
		return nil, fmt.Errorf("no revocation has the id %q", id)
	}
	return failed, nil
}

// lift lifts a revocation here, and reports whether there is one with the id.
func (c *PolicyControl) lift(id, reason, actor string) (failed []string, found bool) {
	c.cutting.Lock()
	defer c.cutting.Unlock()
	r, found := findRevocation(c.engine.Current().Revocations(), id)
	if !found {
		return nil, false
	}
	c.engine.Restore(r.ID)
	delete(c.answers, r.ID)
	if err := c.enforceLevel(); err != nil {
		failed = append(failed, "kernel: "+err.Error())
	}
	r.Actor = actor
	return append(failed, c.keepRevocation(r, "restored: "+reason)...), true
}

func findRevocation(all []authz.Revocation, id string) (authz.Revocation, bool) {
	for _, r := range all {
		if r.ID == id {
			return r, true
		}
	}
	return authz.Revocation{}, false
}

// fileChange is the actor of a reload that no operator asked for.
const fileChange = "file change"

// Reload reads the files again and puts them in force when they are right.
// Otherwise the last good policy stays, or the plugin is quarantined, by
// onBadReload.
func (c *PolicyControl) Reload(ctx context.Context, actor string) (changes []string, err error) {
	c.reloading.Lock()
	defer c.reloading.Unlock()
	old := c.config.Load()
	next, err := configs.Load(old.Path, time.Now())
	if err == nil {
		err = errors.Join(sameIdentity(&old.Sidecar, &next.Sidecar), c.enforceable(next.Grants), c.sameArtifact(next))
	}
	if err == nil && c.cfg.ExtAuthzTLS() != nil {
		err = c.cfg.ExtAuthzTLS().reload()
	}
	if err == nil {
		err = c.keepGenerations(next)
	}
	var generation uint64
	if err == nil {
		generation, err = c.replacePolicy(old, next)
	}
	if err != nil {
		c.cfg.Metrics.reloadOK.Set(0)
		c.cfg.Record(&authz.Record{Kind: authz.KindReload, Actor: actor, UID: -1, Detail: "refused: " + phrase.FirstLine(err.Error())})
		c.cfg.Log.Error("reload failed", zap.Error(err))
		if old.Sidecar.OnBadReload == configs.OnBadReloadQuarantine {
			_, rerr := c.revoke(ctx, RevocationRequest{Level: authz.LevelQuarantine, Reason: "files that were changed cannot be loaded", Actor: "onBadReload"})
			err = errors.Join(err, rerr)
		}
		return nil, err
	}
	if c.cfg.Credentials.broker != nil && actor != fileChange {
		c.cfg.Credentials.broker.TryLogin()
	}
	changes = describeChanges(c.running, old, next)
	c.recordFiles(next, actor, generation, strings.Join(changes, "; "))
	c.cfg.Log.Info("files loaded", zap.Uint64("generation", generation), zap.Strings("changes", changes))
	return changes, nil
}

// recordFiles records the files that are in force, so that the log shows since when a rule is.
func (c *PolicyControl) recordFiles(cfg *configs.Config, actor string, generation uint64, detail string) {
	files := map[string]string{}
	for _, f := range cfg.Files {
		files[f.Path] = f.SHA256
	}
	c.cfg.Record(&authz.Record{
		Kind: authz.KindReload, Actor: actor, UID: -1, Generation: generation, Files: files, Allowed: true, Detail: detail,
	})
}

// sameIdentity refuses a reload that changes what only a restart can.
func sameIdentity(old, next *configs.Sidecar) error {
	if old.Plugin != next.Plugin {
		return fmt.Errorf("spec.plugin: changed from %s to %s, which takes a restart", old.Plugin, next.Plugin)
	}
	if old.StateDir != next.StateDir {
		return errors.New("spec.stateDir: changed, which takes a restart")
	}
	return nil
}

// enforceable refuses more limits of one kind than the kernel takes: one that
// it did not take would be accepted and never act.
func (c *PolicyControl) enforceable(grants []authz.Grant) error {
	if !c.cfg.Confinement().Kernel() {
		return nil
	}
	stated := map[authz.LimitKind]int{}
	for _, g := range grants {
		l := g.Limits
		for kind, limit := range map[authz.LimitKind]authz.Limit{
			authz.LimitConnections: l.Connections, authz.LimitSentBytes: authz.Limit(l.SentBytes),
			authz.LimitReceivedBytes: authz.Limit(l.ReceivedBytes), authz.LimitSyscalls: l.Syscalls, authz.LimitProcesses: l.Processes,
		} {
			if !limit.IsZero() {
				stated[kind]++
			}
		}
	}
	for kind, n := range stated {
		if n > ebpf.MaxLimits {
			return fmt.Errorf("spec.limits.%s: %d grants of %s state one, and the kernel takes %d", kind, n, c.cfg.Plugin, ebpf.MaxLimits)
		}
	}
	return nil
}

// replacePolicy puts a policy in force, here and in the kernel. One that the
// kernel does not take is taken back.
func (c *PolicyControl) replacePolicy(old, next *configs.Config) (uint64, error) {
	generation := c.install(next)
	if err := c.cfg.Telemetry.enforceLimits(); err != nil {
		c.install(old)
		return 0, errors.Join(err, c.cfg.Telemetry.enforceLimits())
	}
	return generation, nil
}

// watchDelay is how long the start is over before files are watched, which takes a look
// at each entry that the kernel has cached of their folders (several milliseconds in a
// busy /tmp). A change before that is seen when the watch begins.
const watchDelay = 200 * time.Millisecond

// watchFiles reloads when a file has changed.
func (c *PolicyControl) watchFiles(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(watchDelay):
	}
	for ctx.Err() == nil {
		watch, stop := context.WithCancel(ctx)
		c.stopWatch.Store(&stop)
		err := configs.Watch(watch, c.config.Load(), func() {
			_, _ = c.Reload(ctx, fileChange) // a refusal is recorded and logged there
		})
		stop()
		if err != nil {
			c.cfg.Log.Error("file watch failed", zap.Error(err), zap.String("remedy", "reload by SIGHUP or chaperone reload"))
			return
		}
	}
}
