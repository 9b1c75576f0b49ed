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
	"github.com/chaperone-proxy/chaperone/vault"
)

// follow calls act with each generation, the present one first, until ctx
// ends. The doors follow by themselves.
func (s *Sidecar) follow(ctx context.Context, act func(*authz.Snapshot)) {
	for {
		snapshot := s.engine.Current()
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
func (s *Sidecar) followKernel(*authz.Snapshot) {
	if err := s.enforceLevel(); err != nil {
		s.cfg.Log.Error("a revocation is not enforced by the kernel", zap.Error(err))
	}
	if err := s.enforceLimits(); err != nil {
		s.cfg.Log.Error("the limits in force are not the kernel's", zap.Error(err))
	}
	s.followSockets()
	s.allowConnects() // the sidecar may have ended observing
}

// retainLeases has the leases revoked that nothing in force needs. What Vault
// does not confirm in time, the broker tries again.
func (s *Sidecar) retainLeases(ctx context.Context) {
	s.leasing.Lock()
	defer s.leasing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, vaultPatience)
	defer cancel()
	s.retain(ctx, s.engine.Current().CredentialRefs(s.name, time.Now()))
}

// enforceLevel brings the kernel, and what comes in, in line with what is
// revoked now. It looks under a lock, so that who looked earlier never undoes
// what who looked later has done.
func (s *Sidecar) enforceLevel() error {
	level, err := s.reconcile()
	switch level {
	case authz.LevelHalt:
		return errors.Join(s.confinement.Kill(), err)
	case authz.LevelQuarantine:
		return errors.Join(err, s.allowSockets()) // none
	case authz.LevelPause:
	}
	return err
}

func (s *Sidecar) reconcile() (level authz.Level, err error) {
	s.enforcing.Lock()
	defer s.enforcing.Unlock()
	level = s.engine.Current().RevokedLevel(s.name, time.Now())
	if s.confinement.Kernel() {
		err = s.confinement.Block(level == authz.LevelQuarantine || level == authz.LevelHalt)
	}
	if s.inbound != nil {
		s.inbound.Enforce(level)
	}
	s.cutDirect(level)
	return level, err
}

// RevocationRequest is what an operator asks to be taken away.
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
	took       time.Duration // to the last live exchange being cut
	vault      vault.Report
	failed     []string // what could not be done
}

// revoke takes access away: first it cuts, then it persists, records and tells
// Vault, so that neither a full disk nor a dead Vault delays it.
func (s *Sidecar) revoke(ctx context.Context, req RevocationRequest) (revocationResult, error) {
	revocation, err := newRevocation(string(s.name), s.config.Load().Grants, req)
	if err != nil {
		return revocationResult{}, err
	}
	// Taken before the cut if it is free, so that the answer can say what Vault
	// confirmed; never waited for.
	leasing := s.leasing.TryLock()
	out := s.cut(revocation)
	if !leasing {
		s.leasing.Lock()
	}
	defer s.leasing.Unlock()
	if s.broker != nil && revocation.Level != authz.LevelPause {
		out.vault = s.revokeLeases(ctx, revocation)
	}
	return out, nil
}

// cut puts a revocation in force, ends what it takes away from, and then
// persists and records it.
func (s *Sidecar) cut(revocation authz.Revocation) revocationResult {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	if known, ok := findRevocation(s.engine.Current().Revocations(), revocation.ID); ok {
		// It was read from the files of the host before it came by the admin socket.
		out := s.answers[revocation.ID]
		out.revocation = known
		return out
	}
	started := time.Now()
	out := revocationResult{revocation: revocation}
	out.cut = s.apply(revocation)
	enforced := make(chan error, 1)
	go func() { enforced <- s.enforceLevel() }() // the plugin dies while its exchanges are cut
	if s.proxy != nil && revocation.Level != authz.LevelPause {
		take := s.proxy.Revalidate
		if revocation.Rule == "" {
			take = s.proxy.CloseAll
		}
		out.cut += take()
	}
	if err := <-enforced; err != nil {
		out.failed = append(out.failed, "kernel: "+err.Error())
	}
	out.took = time.Since(started)
	s.metrics.revoked(out.took)
	out.failed = append(out.failed, s.keepRevocation(revocation, fmt.Sprintf("%s: %s", revocation.Level, revocation.Reason))...)
	if len(s.answers) >= maxAnswers || s.answers == nil {
		s.answers = map[string]revocationResult{}
	}
	s.answers[revocation.ID] = out
	return out
}

// apply makes the revocation's generation and cuts what comes in from the
// host, under the lock that whoever follows generations cuts it under: the
// answer is to say how much that was.
func (s *Sidecar) apply(revocation authz.Revocation) (cut int) {
	s.enforcing.Lock()
	defer s.enforcing.Unlock()
	s.engine.Revoke(revocation)
	level := s.engine.Current().RevokedLevel(s.name, time.Now())
	if s.inbound != nil {
		cut = s.inbound.Enforce(level)
	}
	return cut + s.cutDirect(level)
}

// revokeLeases tells Vault: everything that the plugin had, or what one rule
// alone needed.
func (s *Sidecar) revokeLeases(ctx context.Context, r authz.Revocation) vault.Report {
	ctx, cancel := context.WithTimeout(ctx, vaultPatience)
	defer cancel()
	if r.Rule == "" {
		s.tokens.Retain(nil)
		return s.broker.Revoke(ctx)
	}
	return s.retain(ctx, s.engine.Current().CredentialRefs(s.name, time.Now()))
}

// vaultPatience is how long the answer to a revocation waits for Vault's word.
// What is unconfirmed by then is reported, and tried again until it is.
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

// findRule checks that GRANT/ID names a rule that is loaded: a name with a
// slip in it would take nothing away.
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
// What fails is returned in words: the effect has been had already.
func (s *Sidecar) keepRevocation(r authz.Revocation, detail string) (failed []string) {
	if err := s.state.save(revocationsFile, s.ownRevocations()); err != nil {
		failed = append(failed, "state: "+err.Error()+"; a restart would forget this")
	}
	s.advanceHistory()
	if err := s.recorder.Record(revocationRecord(r, detail, s.engine.Current().Generation())); err != nil {
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
func (s *Sidecar) ownRevocations() []authz.Revocation {
	return slices.DeleteFunc(s.engine.Current().Revocations(), func(r authz.Revocation) bool { return r.ID == UnreadableID })
}

// restore lifts a revocation.
func (s *Sidecar) restore(id, reason, actor string) (failed []string, err error) {
	if strings.TrimSpace(reason) == "" {
		return nil, errors.New("a restoration has a reason")
	}
	if id == UnreadableID {
		return nil, errors.New("it is lifted when the files of the host can be read again: repair or remove them as root; status names them")
	}
	if err := s.liftHostWide(id, reason, actor); err != nil {
		return nil, err
	}
	failed, found := s.lift(id, reason, actor)
	if !found {
		return nil, fmt.Errorf("no revocation has the id %q", id)
	}
	return failed, nil
}

// lift lifts a revocation here, and reports whether there is one with the id.
func (s *Sidecar) lift(id, reason, actor string) (failed []string, found bool) {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	r, found := findRevocation(s.engine.Current().Revocations(), id)
	if !found {
		return nil, false
	}
	s.engine.Restore(r.ID)
	delete(s.answers, r.ID)
	if err := s.enforceLevel(); err != nil {
		failed = append(failed, "kernel: "+err.Error())
	}
	r.Actor = actor
	return append(failed, s.keepRevocation(r, "restored: "+reason)...), true
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
// Otherwise the last good policy stays, or the plugin is quarantined, as the
// configuration says.
func (s *Sidecar) Reload(ctx context.Context, actor string) (changes []string, err error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	old := s.config.Load()
	next, err := configs.Load(old.Path, time.Now())
	if err == nil {
		err = errors.Join(sameIdentity(&old.Sidecar, &next.Sidecar), s.enforceable(next.Grants))
	}
	if err == nil && s.extAuthzTLS != nil {
		err = s.extAuthzTLS.reload()
	}
	var generation uint64
	if err == nil {
		generation, err = s.replacePolicy(old, next)
	}
	if err != nil {
		s.metrics.reloadOK.Set(0)
		s.record(&authz.Record{Kind: authz.KindReload, Actor: actor, UID: -1, Detail: "refused: " + phrase.FirstLine(err.Error())})
		s.cfg.Log.Error("changed files were refused", zap.Error(err))
		if old.Sidecar.OnBadReload == configs.OnBadReloadQuarantine {
			_, rerr := s.revoke(ctx, RevocationRequest{Level: authz.LevelQuarantine, Reason: "files that were changed cannot be loaded", Actor: "onBadReload"})
			err = errors.Join(err, rerr)
		}
		return nil, err
	}
	if s.broker != nil && actor != fileChange {
		s.broker.TryLogin()
	}
	changes = describeChanges(s.running, old, next)
	files := map[string]string{}
	for _, f := range next.Files {
		files[f.Path] = f.SHA256
	}
	s.record(&authz.Record{
		Kind: authz.KindReload, Actor: actor, UID: -1, Generation: generation, Files: files, Allowed: true,
		Detail: strings.Join(changes, "; "),
	})
	s.cfg.Log.Info("files loaded", zap.Uint64("generation", generation), zap.Strings("changes", changes))
	return changes, nil
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
func (s *Sidecar) enforceable(grants []authz.Grant) error {
	if !s.confinement.Kernel() {
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
			return fmt.Errorf("spec.limits.%s: %d grants of %s state one, and the kernel takes %d", kind, n, s.name, ebpf.MaxLimits)
		}
	}
	return nil
}

// replacePolicy puts a policy in force, here and in the kernel. One that the
// kernel does not take is taken back.
func (s *Sidecar) replacePolicy(old, next *configs.Config) (uint64, error) {
	generation := s.install(next)
	if err := s.enforceLimits(); err != nil {
		s.install(old)
		return 0, errors.Join(err, s.enforceLimits())
	}
	return generation, nil
}

// watchFiles reloads when a file has changed.
func (s *Sidecar) watchFiles(ctx context.Context) {
	for ctx.Err() == nil {
		watch, stop := context.WithCancel(ctx)
		s.stopWatch.Store(&stop)
		err := configs.Watch(watch, s.config.Load(), func() {
			_, _ = s.Reload(ctx, fileChange) // a refusal is recorded and logged there
		})
		stop()
		if err != nil {
			s.cfg.Log.Error("files are not watched; reload by SIGHUP or chaperone reload", zap.Error(err))
			return
		}
	}
}
