package pilot

import (
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// measurement is a statement without a fault.
func measurement() *Performance {
	at := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	ready := int64(400)
	return &Performance{
		IssuedAt: at, Plugin: "reader", Version: "1.1.0", Started: at.Add(-time.Hour), Ended: at.Add(-time.Minute),
		Startup: Startup{ReadyMS: &ready}, Memory: Memory{RSSP95Bytes: 100 << 20, RSSMaxBytes: 120 << 20, Samples: 100},
		CPU:       CPU{TotalUS: 5_000_000, Per1000US: 500_000, Requests: 10_000, RequestsOf: ofLoad},
		Latency:   Latencies{Of: ofLoad, Typical: &Latency{Requests: 9000, P50US: 10_000, P99US: 40_000, MaxUS: 90_000}, Peak: &Latency{Requests: 1000, P50US: 20_000, P99US: 80_000, MaxUS: 200_000}},
		Mediation: Mediation{Known: true, Admitted: 100, Handled: 100, CompletenessPPM: million},
		Log:       Log{Records: 300, First: 1, Last: 300, Head: "head", Grant: "sha256:" + strings.Repeat("ab", 32)},
	}
}

// TestEvaluate compares measurements with thresholds and with a version before.
func TestEvaluate(t *testing.T) {
	limits := LimitsOf(configs.Performance{
		Startup: authz.Duration(time.Second), MemoryP95: 200 << 20, CPUPer1000: authz.Duration(time.Second), LatencyP99: authz.Duration(100 * time.Millisecond), Regression: 1000,
	})
	for name, c := range map[string]struct {
		change   func(now, before *Performance)
		limits   Limits
		first    bool // there is no version before
		want     Verdict
		id, text string // of a check, and in its cause
	}{
		"within":                     {limits: limits, want: Passed, id: "memoryP95"},
		"no version before":          {limits: limits, first: true, want: Passed, id: "memoryP95"},
		"no threshold":               {change: func(now, _ *Performance) { now.Memory.RSSP95Bytes = 119 << 20 }, want: Passed, id: "memoryP95"},
		"over a threshold":           {change: func(now, _ *Performance) { now.Memory.RSSP95Bytes, now.Memory.RSSMaxBytes = 300<<20, 300<<20 }, limits: limits, first: true, want: Failed, id: "memoryP95", text: "300.0 MiB exceeds the limit of 200.0 MiB"},
		"near a threshold":           {change: func(now, _ *Performance) { now.Memory.RSSP95Bytes, now.Memory.RSSMaxBytes = 190<<20, 190<<20 }, limits: limits, first: true, want: Warned, id: "memoryP95", text: "is close to the limit"},
		"a regression":               {change: func(now, _ *Performance) { now.Memory.RSSP95Bytes = 115 << 20 }, limits: limits, want: Failed, id: "memoryP95", text: "15 % more than 100.0 MiB of the previous version, and 10% are allowed"},
		"a regression that is noise": {change: func(now, before *Performance) { before.Memory.RSSP95Bytes, now.Memory.RSSP95Bytes = 2<<20, 2<<20+1<<19 }, limits: limits, want: Passed, id: "memoryP95"},
		"a regression of the tail":   {change: func(now, _ *Performance) { now.Latency.Peak.P99US = 95_000 }, limits: limits, want: Failed, id: "latencyP99.peak", text: "18 % more"},
		"slow at peak":               {change: func(now, _ *Performance) { now.Latency.Peak.P99US = 150_000 }, limits: limits, first: true, want: Failed, id: "latencyP99.peak", text: "150ms exceeds the limit of 100ms"},
		"peak not measured":          {change: func(now, _ *Performance) { now.Latency.Peak = nil }, limits: limits, first: true, want: Failed, id: "latencyP99.peak", text: "it was not measured"},
		"peak no longer measured":    {change: func(now, _ *Performance) { now.Latency.Peak = nil }, want: Warned, id: "latencyP99.peak", text: "it was not measured"},
		"start not measured":         {change: func(now, _ *Performance) { now.Startup = Startup{} }, limits: limits, first: true, want: Failed, id: "startup", text: "it was not measured"},
		"no requests":                {change: func(now, _ *Performance) { now.CPU.Requests, now.CPU.Per1000US = 0, 0 }, limits: limits, first: true, want: Failed, id: "cpuPer1000", text: "it was not measured"},
		"another kernel":             {change: func(now, _ *Performance) { now.Environment.Kernel = "6.19" }, limits: limits, want: Warned, id: "environment", text: "another kernel"},
		"another load":               {change: func(now, _ *Performance) { now.Load = "sha256:1" }, limits: limits, want: Warned, id: "environment", text: "another load profile"},
		"unmediated": {change: func(now, _ *Performance) {
			now.Mediation = Mediation{Known: true, Admitted: 100, Handled: 99, Unmediated: 1}.complete()
		}, first: true, want: Failed, id: "mediation", text: "1 of 100 connections were not mediated"},
		"no kernel half":              {change: func(now, _ *Performance) { now.Mediation = Mediation{} }, first: true, want: Failed, id: "mediation", text: "did not confine"},
		"an escape":                   {change: func(now, _ *Performance) { now.Mediation.Ended = 1 }, first: true, want: Warned, id: "mediation", text: "1 processes or sockets"},
		"a previous figure that is 0": {change: func(_, before *Performance) { before.Memory.RSSP95Bytes = 0 }, limits: limits, want: Passed, id: "memoryP95"},
	} {
		t.Run(name, func(t *testing.T) {
			now, before := measurement(), measurement()
			before.Version = "1.0.0"
			if c.change != nil {
				c.change(now, before)
			}
			if c.first {
				before = nil
			}
			r := Evaluate(now, before, c.limits)
			var check Check
			for _, one := range r.Checks {
				if one.ID == c.id {
					check = one
				}
			}
			if r.Verdict != c.want || check.ID == "" || !strings.Contains(check.Why, c.text) || (check.Verdict == Passed) != (check.Fix == "") {
				t.Errorf("verdict %s, want %s; check %+v, want %q", r.Verdict, c.want, check, c.text)
			}
		})
	}
}

// TestStrictest joins the thresholds of two guardrails.
func TestStrictest(t *testing.T) {
	a := Limits{Startup: time.Second, MemoryP95: 10, MediationPPM: 999_000}
	b := Limits{Startup: 2 * time.Second, LatencyP99: time.Second, Regression: 500, MediationPPM: 999_990}
	want := Limits{Startup: time.Second, MemoryP95: 10, LatencyP99: time.Second, Regression: 500, MediationPPM: 999_990}
	if got := a.Strictest(b); got != want || b.Strictest(a) != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
