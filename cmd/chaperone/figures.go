package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/ebpf"
)

// registerMetrics registers the figures that the parts keep.
func (s *sidecar) registerMetrics() {
	m := s.metrics
	m.gauge("chaperone_policy_generation", "Generation of the policy in force.",
		func() float64 { return float64(s.engine.Current().Generation()) })
	m.gauge("chaperone_tunnels_open", "Live exchanges, upgrades and tunnels.", func() float64 {
		if s.proxy == nil {
			return 0
		}
		return float64(s.proxy.Open())
	})
	m.collect("chaperone_audit_records_total", "Audit records written.", prometheus.CounterValue, nil,
		func(emit func(float64, ...string)) { emit(float64(s.audit.Records())) })
	m.collect("chaperone_grant_expiry_seconds", "Seconds until a grant ends; below 0 when it has ended.", prometheus.GaugeValue, []string{"grant"},
		func(emit func(float64, ...string)) {
			for _, g := range s.config.Load().Grants {
				emit(time.Until(g.NotAfter).Seconds(), g.Name)
			}
		})
	m.collect("chaperone_limit_usage_ratio", "Usage against each limit; 1 is used up.", prometheus.GaugeValue, []string{"limit"},
		func(emit func(float64, ...string)) {
			for _, u := range s.ledger.Report(s.engine.Current(), s.plugin, time.Now()) {
				emit(float64(u.Used)/float64(u.Limit.Count), limitName(u))
			}
		})
	if s.broker != nil {
		s.registerVaultMetrics()
	}
	if s.cage != nil {
		s.registerKernelMetrics()
	}
	if s.own != nil {
		s.registerEnvoyMetrics()
	}
}

func limitName(u authz.UsageOf) string {
	name := u.Grant
	if u.Rule != "" {
		name += "/" + u.Rule
	}
	return name + " " + u.Kind.String()
}

func (s *sidecar) registerVaultMetrics() {
	s.metrics.collect("chaperone_credential_leases", "Credentials by state.", prometheus.GaugeValue, []string{"state"},
		func(emit func(float64, ...string)) {
			for state, n := range s.broker.Status().States {
				emit(float64(n), state)
			}
		})
	s.metrics.collect("chaperone_vault_errors_total", "Failed requests to Vault by status code.", prometheus.CounterValue, []string{"code"},
		func(emit func(float64, ...string)) {
			for code, n := range s.broker.Status().Errors {
				emit(float64(n), code)
			}
		})
}

// registerKernelMetrics registers what the kernel counted. A reading that
// fails leaves a gap instead of a wrong figure.
func (s *sidecar) registerKernelMetrics() {
	m := s.metrics
	usage := func(name, help string, labels []string, read func(u ebpf.Usage, emit func(float64, ...string))) {
		m.collect(name, help, prometheus.CounterValue, labels, func(emit func(float64, ...string)) {
			if u, err := s.cage.Usage(); err == nil {
				read(u, emit)
			}
		})
	}
	usage("chaperone_plugin_syscalls_total", "System calls of the plugin, while a limit has them counted.", []string{"class"},
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
			emit(float64(u.Refused), "refused")
			emit(float64(u.Limited), "limited")
		})
	m.collect("chaperone_plugin_dns_queries_total", "Questions of the plugin to the sidecar's resolver.", prometheus.CounterValue, []string{"transport"},
		func(emit func(float64, ...string)) {
			if u, err := s.cage.Usage(); err == nil && s.resolver != nil {
				tcp := s.resolver.Stats().TCP
				emit(float64(u.DNSQueries), "udp")
				emit(float64(tcp.Answered+tcp.Refused), "tcp")
			}
		})
	s.registerRuleMetrics()
	usage("chaperone_plugin_processes_total", "Processes that the plugin started.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(u.Processes)) })
	usage("chaperone_plugin_ended_total", "Processes and sockets that were ended for escaping the kernel's walls.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(u.Ended)) })
	usage("chaperone_kernel_unmediated_total", "Connections that the kernel let through and nobody handled.", nil,
		func(u ebpf.Usage, emit func(float64, ...string)) { emit(float64(s.mediation.total(u))) })
}

// registerRuleMetrics registers what the kernel counted for each rule.
func (s *sidecar) registerRuleMetrics() {
	byRule := func(name, help string, read func(t ruleTraffic) (sent, received uint64)) {
		s.metrics.collect(name, help, prometheus.CounterValue, []string{"rule", "direction"}, func(emit func(float64, ...string)) {
			for _, t := range s.ruleTraffic() {
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
