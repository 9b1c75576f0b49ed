package sidecar

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// registerMetrics registers the figures that the parts keep.
func (s *Sidecar) registerMetrics() {
	if dropped := s.cfg.StderrDropped; dropped != nil {
		s.metrics.collect("chaperone_stderr_dropped_total", "Messages lost because standard error was not read, or closed.", prometheus.CounterValue, nil,
			func(emit func(float64, ...string)) { emit(float64(dropped())) })
	}
	m := s.metrics
	m.gauge("chaperone_policy_generation", "Generation of the policy in force.",
		func() float64 { return float64(s.policy.engine.Current().Generation()) })
	s.registerMemoryMetrics()
	m.gauge("chaperone_tunnels_open", "Live exchanges, upgrades and tunnels.", func() float64 {
		if s.egress.proxy == nil {
			return 0
		}
		return float64(s.egress.proxy.Open())
	})
	m.collect("chaperone_audit_records_total", "Audit records written.", prometheus.CounterValue, nil,
		func(emit func(float64, ...string)) { emit(float64(s.journal.audit.Records())) })
	s.registerAuditMetrics()
	m.collect("chaperone_grant_expiry_seconds", "Seconds until a grant ends; below 0 when it has ended.", prometheus.GaugeValue, []string{"grant"},
		func(emit func(float64, ...string)) {
			for _, g := range s.policy.config.Load().Grants {
				emit(time.Until(g.NotAfter).Seconds(), g.Name)
			}
		})
	m.collect("chaperone_limit_usage_ratio", "Usage against each limit; 1 is used up.", prometheus.GaugeValue, []string{"limit"},
		func(emit func(float64, ...string)) {
			for _, u := range s.policy.ledger.Report(s.policy.engine.Current(), s.name, time.Now()) {
				emit(float64(u.Used)/float64(u.Limit.Count), limitName(u))
			}
		})
	m.collect("chaperone_grant_expiry_timestamp_seconds", "When a grant ends, in Unix time.", prometheus.GaugeValue, []string{"grant"},
		func(emit func(float64, ...string)) {
			for _, g := range s.policy.config.Load().Grants {
				emit(float64(g.NotAfter.Unix()), g.Name)
			}
		})
	s.registerStateMetrics()
	s.registerTrustMetrics()
	s.registerDatabaseMetrics()
	s.metrics.begin(string(s.name), s.countedDoors(), s.inboundServices())
	if s.credentials.broker != nil {
		s.registerVaultMetrics()
	}
	if s.confinement.Kernel() {
		s.registerKernelMetrics()
	}
	if s.envoys.managed != nil {
		s.registerEnvoyMetrics()
	}
}

// registerAuditMetrics registers how far back the audit log reaches, by the log of
// everything and the one of the refusals that it has no room for.
func (s *Sidecar) registerAuditMetrics() {
	m := s.metrics
	const all, refused = "all", "refused"
	m.collect("chaperone_audit_refusals_folded_total", "Refusals counted in the audit log together with their equals.", prometheus.CounterValue, nil,
		func(emit func(float64, ...string)) { emit(float64(s.journal.audit.Status().Folded)) })
	m.collect("chaperone_audit_rotations_total", "Files of the audit log that were full.", prometheus.CounterValue, []string{"log"},
		func(emit func(float64, ...string)) {
			status := s.journal.audit.Status()
			emit(float64(status.Rotations), all)
			if status.Second != nil {
				emit(float64(status.Second.Rotations), refused)
			}
		})
	m.collect("chaperone_audit_oldest_record_timestamp_seconds", "When the oldest record was written that the audit log still has, in Unix time.",
		prometheus.GaugeValue, []string{"log"}, func(emit func(float64, ...string)) {
			file := s.journal.audit.Status().File
			for log, file := range map[string]string{all: file, refused: audit.SecondFile(file)} {
				if oldest, err := audit.Oldest(file); err == nil && !oldest.IsZero() {
					emit(float64(oldest.Unix()), log)
				}
			}
		})
}

// registerStateMetrics registers what the sidecar is and the state that it is in.
func (s *Sidecar) registerStateMetrics() {
	m := s.metrics
	m.collect("chaperone_build_info", "1; the version of the sidecar and of Go.", prometheus.GaugeValue, []string{"version", "goversion"},
		func(emit func(float64, ...string)) { emit(1, s.cfg.Version, runtime.Version()) })
	m.gauge("chaperone_ready", "1 while the sidecar is ready, as /readyz answers.", func() float64 { return truth(s.checkReady() == nil) })
	m.gauge("chaperone_observing", "1 while the sidecar observes: what is not granted passes.",
		func() float64 { return truth(s.policy.engine.Current().Observing(s.name, time.Now())) })
	m.gauge("chaperone_restart_pending", "Fields of the loaded Sidecar that take effect at a restart.",
		func() float64 { return float64(len(s.policy.restartPending())) })
	m.collect("chaperone_revoked", "1 while the whole plugin is revoked at a level.", prometheus.GaugeValue, []string{"level"},
		func(emit func(float64, ...string)) {
			at := s.policy.engine.Current().RevokedLevel(s.name, time.Now())
			for _, level := range []authz.Level{authz.LevelPause, authz.LevelQuarantine, authz.LevelHalt} {
				emit(truth(level == at), string(level))
			}
		})
	m.gauge("chaperone_rules_revoked", "Rules that are revoked by themselves.", func() (n float64) {
		now := time.Now()
		for _, r := range s.policy.engine.Current().Revocations() {
			if r.Rule != "" && (r.Until.IsZero() || now.Before(r.Until)) {
				n++
			}
		}
		return n
	})
	m.collect("chaperone_kernel_attached", "1 while the kernel programs are on the plugin's cgroup, by spec.kernel.", prometheus.GaugeValue, []string{"mode"},
		func(emit func(float64, ...string)) {
			emit(truth(s.confinement.Kernel() && s.confinement.Check() == nil), string(s.policy.running.Kernel))
		})
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// countedDoors returns the doors that decisions are counted for.
func (s *Sidecar) countedDoors() []authz.Door {
	var out []authz.Door
	if s.egress.proxy != nil {
		out = append(out, authz.DoorProxy)
	}
	if s.envoys.envoy != nil || s.envoys.managed != nil {
		out = append(out, authz.DoorExtAuthz)
	}
	if s.confinement.Kernel() {
		out = append(out, authz.DoorKernel)
	}
	return out
}

// inboundServices returns the entries of process.listen that connections are
// counted for.
func (s *Sidecar) inboundServices() []configs.Service {
	if s.inbound == nil {
		return nil
	}
	return s.policy.running.Process.Listen
}

// vaultCodes are the codes of failed requests to Vault that are counted from the
// start; others appear with their first failure.
var vaultCodes = [...]string{"400", "403", "404", "429", "500", "503", "network", "timeout"} //nolint:gochecknoglobals // an array of constants

func limitName(u authz.UsageOf) string {
	name := u.Grant
	if u.Rule != "" {
		name += "/" + u.Rule
	}
	return name + " " + u.Kind.String()
}

func (s *Sidecar) registerVaultMetrics() {
	s.metrics.collect("chaperone_credential_leases", "Credentials by state.", prometheus.GaugeValue, []string{"state"},
		func(emit func(float64, ...string)) {
			for state, n := range s.credentials.broker.Status().States {
				emit(float64(n), state)
			}
		})
	s.metrics.collect("chaperone_vault_errors_total", "Failed requests to Vault by status code.", prometheus.CounterValue, []string{"code"},
		func(emit func(float64, ...string)) {
			failed := s.credentials.broker.Status().Errors
			for _, code := range vaultCodes {
				emit(float64(failed[code]), code)
				delete(failed, code)
			}
			for code, n := range failed {
				emit(float64(n), code)
			}
		})
}

// registerKernelMetrics registers what the kernel counted. A reading that
// fails leaves a gap instead of a wrong figure.
func (s *Sidecar) registerKernelMetrics() {
	m := s.metrics
	usage := func(name, help string, labels []string, read func(u ebpf.Usage, emit func(float64, ...string))) {
		m.collect(name, help, prometheus.CounterValue, labels, func(emit func(float64, ...string)) {
			if u, err := s.confinement.Usage(); err == nil {
				read(u, emit)
			}
		})
	}
	usage("chaperone_plugin_uncounted_syscalls_total", "At most as many system calls of the plugin were made while they were not counted one by one.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(u.Syscalls.Uncounted)) })
	usage("chaperone_plugin_syscalls_total", "System calls of the plugin that were counted one by one.", []string{"class"},
		func(u ebpf.Usage, emit func(float64, ...string)) {
			c := u.Syscalls
			for class, n := range map[string]uint64{
				"file": c.File, "network": c.Network, "process": c.Process, "memory": c.Memory, "ipc": c.IPC, "other": c.Other,
			} {
				emit(float64(n), class)
			}
		})
	usage("chaperone_plugin_network_bytes_total", "IP bytes of the plugin's connections with the sidecar.", []string{"direction"},
		func(u ebpf.Usage, emit func(float64, ...string)) {
			emit(float64(u.SentBytes), "sent")
			emit(float64(u.ReceivedBytes), "received")
		})
	usage("chaperone_plugin_network_packets_total", "IP packets of the plugin's connections with the sidecar.", []string{"direction"},
		func(u ebpf.Usage, emit func(float64, ...string)) {
			emit(float64(u.SentPackets), "sent")
			emit(float64(u.ReceivedPackets), "received")
		})
	usage("chaperone_plugin_connections_total", "The plugin's attempts to connect, by what the kernel did.", []string{"verdict"},
		func(u ebpf.Usage, emit func(float64, ...string)) {
			emit(float64(u.Connections), "redirected")
			refused, probes := s.telemetry.probes.split(u.Refused)
			emit(float64(refused), "refused")
			emit(float64(probes), "probe")
			emit(float64(u.Limited), "limited")
		})
	m.collect("chaperone_plugin_dns_queries_total", "Questions of the plugin to the sidecar's resolver.", prometheus.CounterValue, []string{"transport"},
		func(emit func(float64, ...string)) {
			if u, err := s.confinement.Usage(); err == nil && s.egress.resolver != nil {
				tcp := s.egress.resolver.Stats().TCP
				emit(float64(u.DNSQueries), "udp")
				emit(float64(tcp.Answered+tcp.Refused), "tcp")
			}
		})
	m.collect("chaperone_plugin_dns_dropped_total", "Questions that came faster than they were answered, and were dropped.", prometheus.CounterValue, nil,
		func(emit func(float64, ...string)) {
			if s.egress.resolver != nil {
				emit(float64(s.egress.resolver.Stats().Dropped))
			}
		})
	s.registerRuleMetrics()
	usage("chaperone_plugin_processes_total", "Processes that the plugin started.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(u.Processes)) })
	usage("chaperone_plugin_ended_total", "Processes and sockets that were ended for escaping the kernel's walls.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(u.Ended)) })
	usage("chaperone_kernel_unmediated_total", "Connections that the kernel allowed and the proxy has not accepted.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(s.telemetry.mediation.total(u))) })
}

// registerRuleMetrics registers what the kernel counted for each rule.
func (s *Sidecar) registerRuleMetrics() {
	byRule := func(name, help string, read func(t ruleTraffic) (sent, received uint64)) {
		s.metrics.collect(name, help, prometheus.CounterValue, []string{"rule", "direction"}, func(emit func(float64, ...string)) {
			for _, t := range s.telemetry.ruleTraffic() {
				sent, received := read(t)
				emit(float64(sent), t.rule, "sent")
				emit(float64(received), t.rule, "received")
			}
		})
	}
	byRule("chaperone_rule_network_bytes_total", "IP bytes of the plugin's connections, by the rule they were last used for.",
		func(t ruleTraffic) (sent, received uint64) { return t.SentBytes, t.ReceivedBytes })
	byRule("chaperone_rule_network_packets_total", "IP packets of the plugin's connections, by the rule they were last used for.",
		func(t ruleTraffic) (sent, received uint64) { return t.SentPackets, t.ReceivedPackets })
}

// registerMemoryMetrics registers what is held of the memory budget.
func (s *Sidecar) registerMemoryMetrics() {
	m := s.metrics
	held := func(read func(bytes int64, refused uint64) float64) func(func(float64, ...string)) {
		return func(emit func(float64, ...string)) {
			for _, kind := range budget.Kinds() {
				emit(read(s.egress.budget.Held(kind)), kind.String())
			}
		}
	}
	m.collect("chaperone_memory_held_bytes", "Bytes of the memory budget that the plugin and its upstreams have held.", prometheus.GaugeValue,
		[]string{"kind"}, held(func(bytes int64, _ uint64) float64 { return float64(bytes) }))
	m.collect("chaperone_memory_refused_total", "Connections and requests refused because the memory budget was spent.", prometheus.CounterValue,
		[]string{"kind"}, held(func(_ int64, refused uint64) float64 { return float64(refused) }))
	m.gauge("chaperone_memory_budget_bytes", "Bytes that may be held in all.", func() float64 { return float64(s.egress.budget.Limit()) })
}
