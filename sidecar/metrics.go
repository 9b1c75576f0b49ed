package sidecar

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// metrics are the sidecar's figures. No label holds what a plugin sends.
type metrics struct {
	registry    *prometheus.Registry
	decisions   *prometheus.CounterVec
	deciding    prometheus.Histogram
	requests    *prometheus.HistogramVec
	revocations prometheus.Histogram
	starts      *prometheus.CounterVec
	crossings   *prometheus.CounterVec
	fetches     prometheus.Histogram
	reloadOK    prometheus.Gauge
	contained   *prometheus.CounterVec

	probes *prometheus.CounterVec

	inbound, inboundBytes *prometheus.CounterVec

	statements *prometheus.CounterVec

	stated  seriesCache[statementLabels, prometheus.Counter]
	decided seriesCache[decisionLabels, prometheus.Counter]
	ended   seriesCache[ruleLabels, prometheus.Observer]
}

// decisionLabels are the labels of decisions.
type decisionLabels struct {
	plugin string
	door   authz.Door
	reason string
}

// ruleLabels are the parts of the label of requests.
type ruleLabels struct{ grant, rule string }

// seriesCache keeps the series of a vector by a key that takes less time to look up
// than labels: each access has two. It has as many entries as the vector.
type seriesCache[K comparable, S any] struct {
	mu     sync.RWMutex
	series map[K]S
}

// get returns the series of key, which find looks up the first time.
func (c *seriesCache[K, S]) get(key K, find func(K) S) S {
	c.mu.RLock()
	s, ok := c.series[key]
	c.mu.RUnlock()
	if ok {
		return s
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.series == nil {
		c.series = map[K]S{}
	}
	s = find(key)
	c.series[key] = s
	return s
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_decisions_total", Help: "Decisions by door and reason.",
		}, []string{"plugin", "door", "reason"}),
		deciding: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "chaperone_decision_duration_seconds",
			Help:    "Time to decide, fetch the credential and reach the audit record.",
			Buckets: []float64{1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10},
		}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "chaperone_request_duration_seconds", Help: "Time of a whole exchange, by the rule that granted it.",
			Buckets: []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600},
		}, []string{"rule"}),
		revocations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chaperone_revocation_seconds", Help: "Time from a revocation to its last live exchange being cut.",
			Buckets: []float64{0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1},
		}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_plugin_starts_total", Help: "Starts of the plugin by result.",
		}, []string{"result"}),
		crossings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_limit_crossings_total", Help: "Limits exceeded, counted once until they recover.",
		}, []string{"limit"}),
		fetches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chaperone_credential_fetch_seconds", Help: "Time Vault takes to answer for a credential.",
			Buckets: []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30},
		}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_config_last_reload_successful", Help: "1 when the files were loaded the last time they were read.",
		}),
		contained: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_containments_total", Help: "Revocations by rules of containment.",
		}, []string{"containment"}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_probes_total", Help: "Look-ups that libraries of the plugin made by themselves, and that were refused.",
		}, []string{"probe"}),
		inbound: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_inbound_connections_total", Help: "Connections from the host for the plugin: accepted, refused, or unreachable.",
		}, []string{"port", "result"}),
		statements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_statements_total", Help: "Decisions on statements of databases, and on connections, whose verb is connect.",
		}, []string{"protocol", "verb", "reason"}),
		inboundBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_inbound_bytes_total", Help: "Bytes of those connections that the plugin received and sent.",
		}, []string{"port", "direction"}),
	}
	m.registry.MustRegister(m.decisions, m.deciding, m.requests, m.revocations, m.starts, m.crossings, m.fetches, m.reloadOK, m.probes,
		m.inbound, m.inboundBytes, m.statements, m.contained,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// counting is an authz.Recorder that counts what it passes on. A record that
// could not be written is counted by the reason the plugin gets for it.
type counting struct {
	next        authz.BatchRecorder
	metrics     *metrics
	containment *containment
}

func (c counting) Record(r *authz.Record) error {
	err := c.next.Record(r)
	c.count(r, err)
	return err
}

// RecordAll is Record for several (authz.BatchRecorder).
func (c counting) RecordAll(records []*authz.Record) error {
	err := c.next.RecordAll(records)
	for _, r := range records {
		c.count(r, err)
	}
	return err
}

func (c counting) count(r *authz.Record, err error) {
	c.containment.observe(r, time.Now())
	switch r.Kind {
	case authz.KindDecision:
		reason := r.Reason
		if err != nil && r.Allowed {
			reason = authz.AuditUnavailable.String()
		}
		c.metrics.decided.get(decisionLabels{r.Plugin, r.Door, reason}, func(l decisionLabels) prometheus.Counter {
			return c.metrics.decisions.WithLabelValues(l.plugin, string(l.door), l.reason)
		}).Inc()
		c.metrics.deciding.Observe(r.Latency.Seconds())
	case authz.KindEnd:
		if r.Rule != "" {
			c.metrics.ended.get(ruleLabels{r.Grant, r.Rule}, func(l ruleLabels) prometheus.Observer {
				return c.metrics.requests.WithLabelValues(phrase.Rule(l.grant, l.rule))
			}).Observe(r.Latency.Seconds())
		}
	default:
	}
}

// collect registers figures that others keep: they are read when asked for.
func (m *metrics) collect(name, help string, kind prometheus.ValueType, labels []string, read func(emit func(value float64, labels ...string))) {
	m.registry.MustRegister(&reader{prometheus.NewDesc(name, help, labels, nil), kind, read})
}

// reader is a collector of figures that others keep.
type reader struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(emit func(value float64, labels ...string))
}

func (r *reader) Describe(out chan<- *prometheus.Desc) { out <- r.desc }

func (r *reader) Collect(out chan<- prometheus.Metric) {
	r.read(func(value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(r.desc, r.kind, value, labels...)
	})
}

// gauge registers one figure without labels.
func (m *metrics) gauge(name, help string, read func() float64) {
	m.collect(name, help, prometheus.GaugeValue, nil, func(emit func(float64, ...string)) { emit(read()) })
}

// begin creates the series whose labels are known from the start, at 0: the first
// event of a series that did not exist is no increase for Prometheus.
func (m *metrics) begin(plugin string, doors []authz.Door, services []configs.Service) {
	for _, door := range doors {
		for _, reason := range authz.Reasons() {
			m.decisions.WithLabelValues(plugin, string(door), reason.String())
		}
	}
	for _, probe := range authz.Probes() {
		m.probes.WithLabelValues(string(probe))
	}
	for _, result := range []string{"ok", "error"} {
		m.starts.WithLabelValues(result)
	}
	for _, service := range services {
		for _, result := range []string{"accepted", "refused", "unreachable"} {
			m.inbound.WithLabelValues(service.String(), result)
		}
		for _, direction := range []string{"received", "sent"} {
			m.inboundBytes.WithLabelValues(service.String(), direction)
		}
	}
}

// follow creates the series of the limits and rules of a policy, at 0. Those of
// limits and rules that are gone keep their values.
func (m *metrics) follow(grants []authz.Grant, limits []authz.UsageOf) {
	for _, u := range limits {
		m.crossings.WithLabelValues(limitName(u))
	}
	for _, g := range grants {
		for _, r := range g.Rules {
			m.requests.WithLabelValues(phrase.Rule(g.Name, r.ID))
			m.beginDatabases(r.To.Scheme)
		}
	}
}

// ended observes a revocation.
func (m *metrics) revoked(took time.Duration) { m.revocations.Observe(took.Seconds()) }
