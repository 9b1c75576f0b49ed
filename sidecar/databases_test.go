package sidecar

import (
	"fmt"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestStatementMetrics counts statements by verb and reason, and bounds the series.
func TestStatementMetrics(t *testing.T) {
	m := newMetrics()
	m.beginDatabases(authz.SchemeHTTPS)
	if got := len(statementSeries(t, m)); got != 0 {
		t.Errorf("%d series exist without a database", got)
	}
	m.beginDatabases(authz.SchemePostgres)
	if got, want := len(statementSeries(t, m)), len(authz.Reasons()); got != want {
		t.Errorf("%d series exist at the start, want one for each of %d reasons", got, want)
	}
	for range 2 {
		m.statement(authz.ProtocolPostgres, "select", authz.Granted, 1)
	}
	if got := statementSeries(t, m)["postgres select granted"]; got != 2 {
		t.Errorf("%v statements are counted, want 2", got)
	}
	for i := range maxStatementSeries + 10 {
		m.statement(authz.ProtocolRedis, fmt.Sprint("verb", i), authz.Granted, 1)
	}
	if got := statementSeries(t, m)["redis other granted"]; got < 10 {
		t.Errorf("%v statements are counted under other, want those beyond the bound", got)
	}
}

// statementSeries returns the counts of statements by protocol, verb and reason.
func statementSeries(t *testing.T, m *metrics) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for _, family := range testenv.MustGet(m.registry.Gather())(t) {
		if family.GetName() != "chaperone_statements_total" {
			continue
		}
		for _, series := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range series.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			out[labels["protocol"]+" "+labels["verb"]+" "+labels["reason"]] = series.GetCounter().GetValue()
		}
	}
	return out
}
