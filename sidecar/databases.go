package sidecar

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// sessionStatus returns the plugin's open sessions with databases.
func (s *Sidecar) sessionStatus() []admin.Session {
	if s.egress.proxy == nil {
		return nil
	}
	var out []admin.Session
	for _, i := range s.egress.proxy.Databases().Sessions() {
		out = append(out, admin.Session{
			Decision: i.Decision, Protocol: string(i.Protocol), Host: i.Host, Port: i.Port, Database: i.Database,
			Rule: phrase.Rule(i.Grant, i.Rule), Credential: i.Credential, PID: i.PID, Since: i.Since, IdleMS: i.Idle.Milliseconds(),
			Running: i.Running, Statement: i.Statement, SentBytes: i.SentBytes, Bytes: i.Bytes,
		})
	}
	return out
}

// statementLabels are the labels of decisions on statements.
type statementLabels struct {
	protocol authz.Protocol
	verb     string
	reason   authz.Reason
}

// maxStatementSeries bounds the series of statements. Verbs are words that the readers of
// the protocols know, of which Redis has some four hundred.
const maxStatementSeries = 4096

// statement counts the decision on n statements or on a connection to a database.
func (m *metrics) statement(protocol authz.Protocol, verb string, reason authz.Reason, n int) {
	m.stated.get(statementLabels{protocol, verb, reason}, func(l statementLabels) prometheus.Counter {
		if len(m.stated.series) >= maxStatementSeries {
			l.verb = "other"
		}
		return m.statements.WithLabelValues(string(l.protocol), l.verb, l.reason.String())
	}).Add(float64(n))
}

// registerDatabaseMetrics registers the sessions with databases.
func (s *Sidecar) registerDatabaseMetrics() {
	s.metrics.collect("chaperone_sessions_open", "Open sessions with databases.", prometheus.GaugeValue, []string{"protocol"},
		func(emit func(float64, ...string)) {
			if s.egress.proxy == nil {
				return
			}
			for _, protocol := range databaseProtocols() {
				emit(float64(s.egress.proxy.Databases().Count(protocol)), string(protocol))
			}
		})
}

// databaseProtocols returns the protocols of databases.
func databaseProtocols() []authz.Protocol {
	return []authz.Protocol{authz.ProtocolPostgres, authz.ProtocolRedis}
}

// beginDatabases creates the series of connections to a rule's database, at 0.
func (m *metrics) beginDatabases(scheme authz.Scheme) {
	if !scheme.Database() {
		return
	}
	for _, reason := range authz.Reasons() {
		m.statements.WithLabelValues(string(scheme.Protocol()), "connect", reason.String())
	}
}
