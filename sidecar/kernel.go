package sidecar

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// unconfinable returns why the kernel half, which is required, is not there, and
// what to do about it where that is known.
func (s *Sidecar) unconfinable(err error) error {
	switch {
	case errors.Is(err, ebpf.ErrPopulated):
		return fmt.Errorf("confine the plugin: %w; to end them: chaperone detach --config %s --kill", err, s.policy.config.Load().Path)
	case ebpf.IsMachineFault(err) && os.Geteuid() != 0:
		return fmt.Errorf("confine the plugin: kernel: required needs root (or the capabilities in docs/requirements.md), and this is uid %d: run it with sudo, or write kernel: off: %w", os.Geteuid(), err)
	case ebpf.IsMachineFault(err):
		return fmt.Errorf("confine the plugin: %w; chaperone doctor finds what is missing", err)
	}
	return unknownUser(&s.policy.config.Load().Sidecar, fmt.Errorf("confine the plugin: %w", err))
}

// endedLeft reports the end of what a sidecar left that was killed.
func (s *Sidecar) endedLeft(processes int) {
	text := fmt.Sprintf("ended %s that an earlier sidecar of %s had left shut in (by hand: chaperone detach --config %s --kill)",
		phrase.Counted(processes, "process", "processes"), s.name, s.policy.config.Load().Path)
	s.journal.record(&authz.Record{Kind: authz.KindProcess, Detail: text})
	s.cfg.Notice(text)
}

// grantWarning returns a warning when the plugin may change what it is granted.
// For a cgroup that was given, the users of its processes are unknown.
func (s *Sidecar) grantWarning() string {
	if !s.confinement.Kernel() || s.cfg.Cgroup != "" {
		return ""
	}
	account, _ := s.confinement.Account()
	return canEditOwnGrant(s.policy.config.Load(), account.UID, groupsOf(account)...)
}

// sampleOf is a reading of the kernel's counters as the ledger takes it.
func sampleOf(u ebpf.Usage) authz.Sample {
	return authz.Sample{
		Connections: u.Connections, SentBytes: u.SentBytes, ReceivedBytes: u.ReceivedBytes, Syscalls: u.Syscalls.Total,
		Processes: u.Processes,
	}
}

// startMetering takes the first reading of the counters, and has the kernel
// enforce the limits. Counters of a cgroup that is ours are new. Those of one
// that was given may be an earlier sidecar's: the last saved
// state has up to where they were charged, and the reading charges what was used while
// no sidecar ran. Without saved state, no use was charged.
func (t *KernelTelemetry) startMetering() error {
	if !t.cfg.Confinement().Kernel() {
		return nil
	}
	first, err := t.cfg.Confinement().Usage()
	if err != nil {
		return fmt.Errorf("read kernel counters: %w", err)
	}
	if t.cfg.Cgroup == "" || !t.cfg.Charged() {
		t.cfg.Ledger.Begin(t.cfg.Plugin, authz.Sample{})
	}
	traffic, err := t.cfg.Confinement().Traffic()
	if err != nil {
		return fmt.Errorf("read kernel counters: %w", err)
	}
	t.ruleNumbers.begin(traffic)
	t.sampled(first)
	t.restoreKernelUsage()
	t.followSockets()
	return errors.Join(t.cfg.SaveUsage(), t.enforceLimits())
}

// sampled takes in what the kernel counted.
func (t *KernelTelemetry) sampled(u ebpf.Usage) {
	now := time.Now()
	t.recordSuppressed(now, false)
	t.recordProbes(now, false)
	crossings, exhausted := t.cfg.Ledger.Observe(t.cfg.Engine.Current(), t.cfg.Plugin, sampleOf(u), now)
	for _, c := range crossings {
		t.limitExceeded(c)
	}
	if exhausted {
		t.cfg.Engine.Bump()
	}
}

// denied records a call that the kernel refused, after the fact, and prints it for
// the plugin's author.
func (t *KernelTelemetry) denied(d sandbox.Denial) {
	if d.Lost > 0 {
		t.cfg.Record(&authz.Record{Time: d.Time, Kind: authz.KindLost, Door: authz.DoorKernel, Lost: d.Lost, Detail: "kernel refusals that could not be described"})
		return
	}
	switch d.Cause {
	case sandbox.CauseAllowed:
		t.usedSocket(d)
		return
	case sandbox.CauseUntrusted:
		t.untrustedSocket(d)
		return
	default:
	}
	if t.probedSocket(d) {
		return
	}
	reason, detail, remedy := t.explainDenial(d)
	r := &authz.Record{
		Time: d.Time, Kind: authz.KindDecision, Door: authz.DoorKernel, Reason: reason.String(),
		Generation: t.cfg.Engine.Current().Generation(), Scheme: d.Protocol, Path: d.Path, PID: int(d.PID), UID: int(d.UID),
		Exe: exeOf(d), Detail: detail, Count: int(min(d.Count, 1<<31)),
		Incident: d.Hook == sandbox.HookEscape || d.Hook == sandbox.HookDescriptor,
	}
	r.Host, r.Port = t.destination(d)
	r.Decision = authz.NewID(time.Now()) // explain finds the record by it
	t.cfg.Record(r)
	if t.cfg.Refused != nil {
		t.cfg.Refused(authz.Refusal{Reason: reason, Detail: detail, Plugin: string(t.cfg.Plugin), Decision: r.Decision, Method: string(d.Hook), URL: t.target(d), Remedy: remedy})
	}
}

// exeOf names the program of a refused call: by its path, or for a process that
// is gone by its thread's name.
func exeOf(d sandbox.Denial) string {
	if d.Exe != "" {
		return d.Exe
	}
	return d.Comm
}

// target names what a refused call was for.
func (t *KernelTelemetry) target(d sandbox.Denial) string {
	host, port := t.destination(d)
	switch {
	case host != "":
		return d.Protocol + "://" + net.JoinHostPort(host, strconv.Itoa(int(port)))
	case d.Address.IsValid():
		return "to the proxy, for which no destination was named yet"
	case d.Path != "":
		return "unix:" + d.Path
	case d.Syscall != "":
		return d.Syscall
	}
	return d.Family + " " + d.Protocol
}

// destination is where a refused call was to lead: a name, if the address stands
// for one. It is empty for a connection to the proxy itself, which names its
// destination only when it is established.
func (t *KernelTelemetry) destination(d sandbox.Denial) (host string, port uint16) {
	if !d.Address.IsValid() {
		return "", 0
	}
	addr := d.Address.Addr().Unmap()
	if _, proxyPort, err := net.SplitHostPort(t.cfg.ProxyAddress()); err == nil && strings.HasSuffix(d.Protocol, "tcp") &&
		addr.IsLoopback() && proxyPort == strconv.Itoa(int(d.Address.Port())) {
		return "", 0
	}
	return t.hostOf(addr), d.Address.Port()
}

// explainDenial describes, as for a refusal, why the kernel refused a call.
func (t *KernelTelemetry) explainDenial(d sandbox.Denial) (reason authz.Reason, detail, remedy string) {
	switch d.Cause {
	case sandbox.CauseLimit:
		detail, remedy = t.explainLimit(d.Limit)
		return authz.QuotaExceeded, detail, remedy
	case sandbox.CauseBlocked:
		return authz.Revoked, "the plugin's access was revoked", "ask the operator who revoked it"
	case sandbox.CauseNamespace:
		return authz.IdentityUnknown, "a call from a network namespace that is not the plugin's", ""
	case sandbox.CauseUngranted:
		return t.explainUngranted(d.Address)
	case sandbox.CauseMemory:
		return authz.NotReady, "the kernel had no room to remember the connection", "try again later"
	case sandbox.CausePolicy, sandbox.CauseEndpoint, sandbox.CauseAllowed, sandbox.CauseUntrusted:
	}
	switch d.Hook {
	case sandbox.HookConnect, sandbox.HookSendmsg, sandbox.HookEgress:
		return authz.DestinationNotGranted, "only TCP through the sidecar, and DNS queries to its resolver, leave the plugin", "use TCP to a name that is granted"
	case sandbox.HookSocket:
		detail = fmt.Sprintf("%s %s sockets are not made: what leaves the plugin is TCP, or UDP to its resolver", d.Family, d.Protocol)
	case sandbox.HookBind, sandbox.HookIngress:
		detail = "the plugin serves nobody on this network"
	case sandbox.HookConnectUnix, sandbox.HookSendmsgUnix:
		return authz.DestinationNotGranted, "no grant names this Unix socket, which leads out of the plugin's confinement", "ask for it under sockets of a grant"
	case sandbox.HookEscape:
		detail = "a process left the plugin's confinement, or was started outside it, and was ended"
	case sandbox.HookDescriptor:
		detail = "the plugin held a socket that was made outside its confinement, which was ended"
	case sandbox.HookSeccomp:
		detail = d.Syscall + " " + d.Family + " leads out of the plugin's confinement"
	}
	return authz.DestinationNotGranted, strings.Join(strings.Fields(detail), " "), ""
}
