package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/proxy/inbound"
)

// makeAdmin makes the operators' door.
func (s *Sidecar) makeAdmin(spec *configs.Sidecar) (err error) {
	s.admin, err = admin.New(admin.Config{
		Socket: spec.Listen.Admin.String(),
		Status: func(context.Context) (admin.Status, error) { return s.Status(), nil },
		Usage:  func(context.Context) (admin.Usage, error) { return s.usage(), nil },
		Revocations: func(context.Context) ([]authz.Revocation, error) {
			return s.policy.engine.Current().Revocations(), nil
		},
		Decisions: s.journal.decisions,
		Revoke:    s.adminRevoke,
		Restore:   s.adminRestore,
		Reload:    s.adminReload,
		Refuse:    s.refusePeer,
		Log:       s.cfg.Log.Named("admin"),
	})
	if err != nil {
		return fmt.Errorf("make admin server: %w", err)
	}
	return nil
}

// refusePeer keeps a plugin out that runs as the sidecar's own user.
func (s *Sidecar) refusePeer(p admin.Peer) error {
	if !s.confinement.Info().SameUser || p.UID == 0 {
		return nil
	}
	return errors.New("while the plugin runs as the sidecar's user, only root is let in")
}

// decisions streams audit records.
func (j *journal) decisions(ctx context.Context, q admin.DecisionQuery, emit func(line []byte) error) error {
	query := audit.Query{File: j.audit.Status().File, Last: q.Limit, Follow: q.Follow, Filter: audit.Filter{Decision: q.Decision, Kind: q.Kind}}
	switch q.Kind {
	case "":
		query.Filter.Kind = string(authz.KindDecision)
	case "all":
		query.Filter.Kind = ""
	}
	if query.Last == 0 {
		query.Last = admin.DefaultDecisions
	}
	for entry, err := range audit.Read(ctx, query) {
		if err != nil {
			return err
		}
		if err := emit(entry.Raw); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sidecar) adminRevoke(ctx context.Context, r admin.RevokeRequest, actor string) (admin.RevokeResult, error) {
	out, err := s.policy.revoke(ctx, RevocationRequest{
		ID: r.ID, Rule: r.Rule, Level: r.Level, Reason: r.Reason, Incident: r.Incident, Until: r.Until, Actor: actor,
	})
	if err != nil {
		return admin.RevokeResult{}, admin.NewError(admin.CodeBadRequest, err.Error())
	}
	if out.vault.Err != nil {
		out.failed = append(out.failed, "vault: "+out.vault.Err.Error())
	}
	return admin.RevokeResult{
		ID: out.revocation.ID, Plugin: out.revocation.Plugin, Rule: phrase.Rule(out.revocation.Grant, out.revocation.Rule),
		Level: out.revocation.Level, Cut: out.cut, MS: float64(out.took.Microseconds()) / 1000, Failed: admin.NonNil(out.failed),
		Vault: admin.VaultResult{Leases: out.vault.Leases, Confirmed: out.vault.Confirmed, Unconfirmed: len(out.vault.Unconfirmed)},
	}, nil
}

func (s *Sidecar) adminRestore(_ context.Context, id, reason, actor string) (admin.RestoreResult, error) {
	failed, err := s.policy.restore(id, reason, actor)
	if err != nil {
		return admin.RestoreResult{}, admin.NewError(admin.CodeNotFound, err.Error())
	}
	if len(failed) > 0 {
		return admin.RestoreResult{}, admin.NewError(admin.CodeInternal, "access is given back, and this failed", failed...)
	}
	return admin.RestoreResult{ID: id, Plugin: string(s.name), Generation: s.policy.engine.Current().Generation()}, nil
}

func (s *Sidecar) adminReload(ctx context.Context, actor string) (admin.ReloadResult, error) {
	changes, err := s.policy.Reload(ctx, actor)
	if err != nil {
		return admin.ReloadResult{}, admin.NewError(admin.CodeInvalid, "the files were refused, and what was in force stays", strings.Split(err.Error(), "\n")...)
	}
	return admin.ReloadResult{Generation: s.policy.engine.Current().Generation(), Changed: admin.NonNil(changes), Files: files(s.policy.config.Load())}, nil
}

func files(cfg *configs.Config) []admin.File {
	out := make([]admin.File, 0, len(cfg.Files))
	for _, f := range cfg.Files {
		out = append(out, admin.File{Path: f.Path, SHA256: f.SHA256})
	}
	return out
}

// Status returns what is in force.
func (s *Sidecar) Status() admin.Status {
	cfg, now := s.policy.config.Load(), time.Now()
	snapshot := s.policy.engine.Current()
	out := admin.Status{
		Plugin: string(s.name), PID: os.Getpid(), Version: s.cfg.Version, Started: s.started, StateDir: cfg.Sidecar.StateDir,
		Mode: string(authz.ModeEnforce), Generation: snapshot.Generation(), Ready: true,
		Kernel: s.kernelStatus(), Doors: s.doors(), Envoy: s.envoyStatus(), Grants: s.grantStatus(now), Revocations: admin.NonNil(snapshot.Revocations()),
		Credentials: s.credentialStatus(), Sessions: s.sessionStatus(), Files: files(cfg), Host: s.policy.hostStatus(), Warnings: s.warnings(now), Certificates: s.plugin.certificates(),
		RestartPending: s.policy.restartPending(), Trust: trustStatus(cfg),
	}
	if snapshot.Observing(s.name, now) {
		out.Mode, out.ObserveUntil = string(authz.ModeObserve), cfg.Sidecar.ObserveUntil
	}
	for _, c := range s.checks() {
		check := admin.Check{Name: c.name, OK: c.err == nil}
		if c.err != nil {
			check.Detail, out.Ready = c.err.Error(), false
		}
		out.Checks = append(out.Checks, check)
	}
	log := s.journal.audit.Status()
	out.Audit = admin.Audit{File: log.File, Seq: log.Seq, Bytes: log.Size, Healthy: true}
	if err := s.journal.audit.Healthy(); err != nil {
		out.Audit.Healthy, out.Audit.Detail = false, err.Error()
	}
	if s.confinement.Kernel() {
		out.Mediation = s.telemetry.mediationStatus(now)
		info := s.confinement.Info()
		network := string(configs.NetworkHost)
		if info.OwnNetwork {
			network = string(configs.NetworkOwn)
		}
		out.Process = &admin.Process{
			PID: int(s.plugin.pid.Load()), UID: info.UID, Cgroup: info.Cgroup, Network: network, State: s.processState(now), Listen: s.services(),
		}
		if out.Process.State == "stopped" {
			out.Process.StoppedBy, out.Process.StoppedUntil, _ = s.telemetry.limits.stopped()
		}
	}
	return out
}

func (s *Sidecar) processState(now time.Time) string {
	switch {
	case s.policy.engine.Current().RevokedLevel(s.name, now) == authz.LevelHalt:
		return "halted"
	case s.plugin.pid.Load() == 0 && s.cfg.Cgroup == "":
		return "not started"
	}
	if _, _, stopped := s.telemetry.limits.stopped(); stopped {
		return "stopped"
	}
	return "running"
}

// services returns where the plugin may serve, and how the host reaches it there.
func (s *Sidecar) services() []admin.Port {
	var out []admin.Port
	for _, service := range s.policy.config.Load().Sidecar.Process.Listen {
		p := admin.Port{Port: service.Port, Path: service.Socket}
		p.Forwarded = s.inbound != nil && (service.Socket != "" && s.inbound.ForwardsSockets() || service.Port != 0 && !s.confinement.OfHost())
		switch {
		case p.Forwarded:
			p.Addresses, p.Open = s.inbound.HostAddresses(inbound.Service(service)), s.inbound.Open(inbound.Service(service))
		case service.Port != 0:
			// It listens on the network that it shares, and on both if it likes.
			for _, host := range inbound.Loopbacks {
				p.Addresses = append(p.Addresses, net.JoinHostPort(host, strconv.Itoa(int(service.Port))))
			}
		}
		out = append(out, p)
	}
	return out
}

func (s *Sidecar) kernelStatus() admin.Kernel {
	out := admin.Kernel{Want: string(s.kernel.setting), Attached: s.confinement.Kernel(), Detail: s.kernel.missing, Syscalls: s.syscallCounting()}
	switch _, confined := s.confinement.Account(); {
	case s.confinement.Kernel():
		if err := s.confinement.Check(); err != nil {
			out.Attached, out.Detail = false, err.Error()
		} else if !s.confinement.Info().UnixHooks {
			out.Detail = "this kernel has no hook for Unix sockets: all but pairs are refused"
		}
	case confined && out.Detail == "":
		out.Detail = "confined without the kernel half: see the warnings"
	case s.kernel.setting == configs.KernelOff:
		out.Detail = "the plugin is not confined: its environment points it to the proxy, and it can bypass that"
	case out.Detail == "":
		out.Detail = "run or --cgroup is needed to confine a plugin"
	}
	return out
}

// syscallCounting returns how system calls are metered; nil without a limit on them.
func (s *Sidecar) syscallCounting() *admin.SyscallCounting {
	snapshot := s.policy.engine.Current()
	if !s.confinement.Kernel() || !snapshot.HasLimit(s.name, authz.LimitSyscalls) || snapshot.Observing(s.name, time.Now()) {
		return nil
	}
	info := s.confinement.Info()
	return &admin.SyscallCounting{Counted: info.Syscalls, TraceCost: info.TraceCost}
}

// doors returns where requests arrive and what each door can enforce.
func (s *Sidecar) doors() []admin.Door {
	all := []string{"hosts", "ports", "methods", "paths", "upgrades", "requests", "credentials"}
	var out []admin.Door
	switch {
	case s.listening.addresses.proxy == "":
	case s.envoys.managed != nil && s.envoys.managed.relays:
		out = append(out, admin.Door{Name: string(authz.DoorProxy), Address: s.listening.addresses.proxy, Enforces: []string{"identity", "live revocation"}})
	default:
		out = append(out, admin.Door{
			Name: string(authz.DoorProxy), Address: s.listening.addresses.proxy,
			Enforces: append(slices.Clone(all), "addresses", "tls", "timeout", "scrubbing", "live revocation"),
		})
	}
	if s.envoys.managed != nil {
		out = append(out, admin.Door{
			Name: string(authz.DoorExtAuthz), Address: "unix:" + s.envoys.managed.spec.Check(),
			Enforces:    append(slices.Clone(all), "addresses", "tls", "timeout", "live revocation"),
			NotEnforced: []string{"scrubbing", "mtls", "sigv4", "mode: observe of the whole sidecar"},
		})
	}
	if s.envoys.envoy != nil {
		out = append(out, admin.Door{
			Name: string(authz.DoorExtAuthz), Address: s.listening.addresses.extAuthz, Enforces: all,
			NotEnforced: []string{"addresses", "tls", "timeout", "connections", "scrubbing", "streams that are open when access is revoked"},
		})
	}
	if s.confinement.Kernel() {
		out = append(out, admin.Door{
			Name: string(authz.DoorKernel), Enforces: []string{"mediation", "identity", "bytes", "connections", "syscalls", "processes", "sockets", "live revocation"},
		})
	}
	return out
}

func (s *Sidecar) grantStatus(now time.Time) []admin.Grant {
	out := []admin.Grant{}
	revoked := map[string]bool{}
	for _, r := range s.policy.engine.Current().Revocations() {
		revoked[phrase.Rule(r.Grant, r.Rule)] = true
	}
	cfg := s.policy.config.Load()
	for _, g := range cfg.Grants {
		grant := admin.Grant{Name: g.Name, NotAfter: g.NotAfter, Expired: !now.Before(g.NotAfter), Signature: s.signatureStatus(cfg, g.Name, now)}
		for _, r := range g.Rules {
			mode := r.Mode
			if mode == "" {
				mode = authz.ModeEnforce
			}
			grant.Rules = append(grant.Rules, admin.Rule{
				ID: r.ID, Reason: r.Reason, Mode: string(mode), NotAfter: r.NotAfter, Credential: r.Credential,
				Revoked: revoked[phrase.Rule(g.Name, r.ID)] || revoked[""],
			})
		}
		out = append(out, grant)
	}
	return out
}

func (s *Sidecar) credentialStatus() []admin.Credential {
	out := []admin.Credential{}
	if s.credentials.broker == nil {
		return out
	}
	for _, l := range s.credentials.broker.Status().Leases {
		out = append(out, admin.Credential{
			Grant: l.Grant, Name: l.Credential, State: l.State, Leased: l.Lease != "", NotAfter: l.NotAfter, Detail: l.Err,
		})
	}
	return out
}

// certificates is the file that the plugin's programs are to trust.
func (p *Plugin) certificates() string {
	if p.trust == nil {
		return ""
	}
	return p.trust.pemFile()
}

// warnings names what weakens the sidecar and was chosen.
func (s *Sidecar) warnings(now time.Time) []string {
	var out []string
	for _, w := range s.policy.config.Load().Warnings {
		out = append(out, w.Error())
	}
	out = append(out, s.policy.notices(now)...)
	if s.confinement.Info().SameUser {
		out = append(out, "unsafeSameUser: the plugin runs as root or as the sidecar's user, and can end its own confinement")
	}
	if err := s.telemetry.allowSockets(); err != nil {
		out = append(out, "refused although granted: "+phrase.OneLine(err.Error()))
	}
	if w := s.grantWarning(); w != "" {
		out = append(out, w)
	}
	out = append(out, s.kernel.limitations...)
	if s.plugin.trust != nil {
		out = append(out, s.plugin.trust.roots().warnings...)
	}
	if w := s.otherSidecarWarning(); w != "" {
		out = append(out, w)
	}
	if s.kernel.missing != "" {
		out = append(out, "the kernel half is preferred and not available: "+s.kernel.missing)
	}
	return out
}

// notices returns what an operator should know at the start: what has ended, and
// what observing changes.
func (c *PolicyControl) notices(now time.Time) []string {
	var out []string
	cfg := c.config.Load()
	for _, g := range cfg.Grants {
		if !now.Before(g.NotAfter) {
			out = append(out, fmt.Sprintf("grant %s ended at %s: its accesses are refused; %s", g.Name, g.NotAfter.UTC().Format(time.RFC3339), laterEnd(cfg)))
		}
	}
	out = append(out, c.dateNotices(now)...)
	if c.engine.Current().Observing(c.cfg.Plugin, now) {
		out = append(out, "observing: what is not granted passes without a credential, and the plugin's certificate authority covers all names")
	}
	if c.running.Audit.Paths == "" && c.fullPaths() {
		out = append(out, fmt.Sprintf("audit.paths is full until %s, because a Sidecar or a rule observes; write audit.paths: masked to mask them",
			cfg.ObservesUntil().UTC().Format(time.RFC3339)))
	}
	return out
}

// startNotices returns notices, and the grants and rules that end soon.
func (c *PolicyControl) startNotices(now time.Time) []string {
	out := c.notices(now)
	for _, g := range c.config.Load().Grants {
		if left := g.NotAfter.Sub(now); left > 0 && left <= configs.ExpiryNotice {
			out = append(out, fmt.Sprintf("grant %s ends at %s, in %s", g.Name, g.NotAfter.UTC().Format(time.RFC3339), configs.Until(now, g.NotAfter)))
		}
	}
	return out
}

// usage returns what is used of each limit and what the kernel counted.
func (s *Sidecar) usage() admin.Usage {
	now := time.Now()
	out := admin.Usage{At: now, Limits: []admin.Limit{}}
	for _, u := range s.policy.ledger.Report(s.policy.engine.Current(), s.name, now) {
		l := admin.Limit{
			Grant: u.Grant, Rule: u.Rule, Kind: u.Kind.String(), Limit: limitText(u), Used: u.Recent,
			Ratio: float64(u.Used) / float64(u.Limit.Count), OnExceeded: string(u.Action),
		}
		l.State, l.Until = s.telemetry.limitState(u, now)
		l.RetryAfter = u.Retry.Seconds()
		if u.Used < u.Limit.Count {
			l.Remaining = u.Limit.Count - u.Used
		}
		out.Limits = append(out.Limits, l)
		out.Stale = out.Stale || !u.Known
	}
	if !s.confinement.Kernel() {
		return out
	}
	if u, err := s.confinement.Usage(); err == nil {
		c := u.Syscalls
		refused, probes := s.telemetry.probes.split(u.Refused)
		out.Counters = &admin.Counters{
			SentBytes: u.SentBytes, ReceivedBytes: u.ReceivedBytes, Connections: u.Connections, RefusedConnections: refused, Probes: probes,
			LimitedConnections: u.Limited, SentPackets: u.SentPackets, ReceivedPackets: u.ReceivedPackets, DNSQueries: u.DNSQueries,
			Processes: u.Processes, Syscalls: c.Total, UncountedSyscalls: c.Uncounted, Lost: u.Lost,
			SyscallClasses: map[string]uint64{"file": c.File, "network": c.Network, "process": c.Process, "memory": c.Memory, "ipc": c.IPC, "other": c.Other},
		}
	}
	return out
}

// limitState returns what a limit that is used up does, and until when: as the kernel
// says where it enforces the limit, and otherwise as a door does.
func (t *KernelTelemetry) limitState(u authz.UsageOf, now time.Time) (state string, until time.Time) {
	state, until = t.limits.state(u.Grant + " " + u.Kind.String())
	if state != "" || !u.Exceeded || t.cfg.Engine.Current().Observing(t.cfg.Plugin, now) {
		return state, until
	}
	if u.Retry > 0 {
		until = now.Add(u.Retry)
	}
	switch u.Action {
	case authz.OnExceededThrottle:
		return "throttled", until
	case authz.OnExceededKill:
		return "killed", until
	case authz.OnExceededDeny, authz.OnExceededStop:
	}
	return "refusing", until
}

func limitText(u authz.UsageOf) string {
	if u.Kind == authz.LimitSentBytes || u.Kind == authz.LimitReceivedBytes {
		return authz.ByteLimit(u.Limit).String()
	}
	return u.Limit.String()
}
