package pilot

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
)

// TestParsePerformance refuses predicates that no measurement makes.
func TestParsePerformance(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *Performance)
		want   string // in the error, "" for none
	}{
		"good":                   {func(*Performance) {}, ""},
		"no issuedAt":            {func(p *Performance) { p.IssuedAt = time.Time{} }, "issuedAt, startedAt and endedAt are required"},
		"ended before it began":  {func(p *Performance) { p.Ended = p.Started.Add(-time.Second) }, "is not before endedAt"},
		"issued before it ended": {func(p *Performance) { p.IssuedAt = p.Ended.Add(-time.Hour) }, "is before endedAt"},
		"no plugin":              {func(p *Performance) { p.Plugin = "" }, "names no plugin"},
		"no version":             {func(p *Performance) { p.Version = "" }, "names no plugin and version"},
		"no samples":             {func(p *Performance) { p.Memory.Samples = 0 }, "no samples"},
		"negative samples":       {func(p *Performance) { p.Memory.Samples = -5 }, "no samples"},
		"negative memory":        {func(p *Performance) { p.Memory.RSSP95Bytes = -1 }, "impossible"},
		"memory above its most":  {func(p *Performance) { p.Memory.RSSP95Bytes = p.Memory.RSSMaxBytes + 1 }, "impossible"},
		"negative CPU":           {func(p *Performance) { p.CPU.TotalUS = -1 }, "impossible"},
		"negative CPU by 1,000":  {func(p *Performance) { p.CPU.Per1000US = -1 }, "impossible"},
		"negative start":         {func(p *Performance) { n := int64(-1); p.Startup.ReadyMS = &n }, "startup are negative"},
		"latency of no request":  {func(p *Performance) { p.Latency.Peak.Requests = 0 }, "impossible"},
		"more failed than sent":  {func(p *Performance) { p.Latency.Peak.Failed = 2000 }, "impossible"},
		"p99 below p50":          {func(p *Performance) { p.Latency.Peak.P99US = 1 }, "impossible"},
		"p99 above the most":     {func(p *Performance) { p.Latency.Peak.MaxUS = 1 }, "impossible"},
		"mediation made better":  {func(p *Performance) { p.Mediation.Unmediated = 50 }, "does not follow from the counts"},
		"mediation beyond all":   {func(p *Performance) { p.Mediation.CompletenessPPM = 2 * million }, "does not follow from the counts"},
		"no log":                 {func(p *Performance) { p.Log = Log{} }, "log lacks"},
		"no head":                {func(p *Performance) { p.Log.Head = "" }, "log lacks"},
		"log that ends early":    {func(p *Performance) { p.Log.Last = 0 }, "log lacks"},
		"no grant":               {func(p *Performance) { p.Log.Grant = "sha256:00" }, "log lacks"},
	} {
		t.Run(name, func(t *testing.T) {
			p := measurement()
			c.change(p)
			data, _ := json.Marshal(p)
			checkError(t, c.want, func() error { _, err := ParsePerformance(data); return err })
		})
	}
	for name, text := range map[string]string{"no JSON": "{", "a list": "[]", "null": "null", "two values": "{}{}", "empty": "", "a text for a number": `{"memory":{"samples":"9"}}`, "beyond integers": `{"cpu":{"totalUs":1e300}}`} {
		if _, err := ParsePerformance([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
		if _, err := ParseTrace([]byte(text)); err == nil {
			t.Errorf("%s is accepted as a trace", name)
		}
	}
}

func checkError(t *testing.T, want string, f func() error) {
	t.Helper()
	if err := f(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("the error is %v, want %q", err, want)
	}
}

// TestParseTrace refuses traces that no pilot makes, and those that were made better.
func TestParseTrace(t *testing.T) {
	undeclared := Undeclared{Host: "evil.example", Port: 443, Reason: "observed", Count: 1, Decisions: []string{"d"}}
	for name, c := range map[string]struct {
		change func(tr *Trace)
		want   string
	}{
		"good":                       {func(*Trace) {}, ""},
		"undeclared, but passed":     {func(tr *Trace) { tr.Undeclared = []Undeclared{undeclared} }, "verdict PASSED does not follow"},
		"more undeclared, passed":    {func(tr *Trace) { tr.UndeclaredMore = 4 }, "verdict PASSED does not follow"},
		"unused, but passed":         {func(tr *Trace) { tr.Declared[0].Uses = 0 }, "verdict PASSED does not follow"},
		"an unknown verdict":         {func(tr *Trace) { tr.Verdict = "FINE" }, "verdict FINE does not follow"},
		"no verdict":                 {func(tr *Trace) { tr.Verdict = "" }, "does not follow"},
		"no plugin":                  {func(tr *Trace) { tr.Plugin = "" }, "names no plugin"},
		"no times":                   {func(tr *Trace) { tr.Started, tr.Ended = time.Time{}, time.Time{} }, "required"},
		"issued before it ended":     {func(tr *Trace) { tr.IssuedAt = tr.Ended.Add(-time.Hour) }, "is before endedAt"},
		"mediation made better":      {func(tr *Trace) { tr.Mediation.Unmediated = 50 }, "does not follow from the counts"},
		"no log":                     {func(tr *Trace) { tr.Log = Log{} }, "log lacks"},
		"undeclared that has failed": {func(tr *Trace) { tr.Undeclared, tr.Verdict = []Undeclared{undeclared}, Failed }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := measurement()
			tr := &Trace{
				IssuedAt: m.IssuedAt, Plugin: m.Plugin, Version: m.Version, Started: m.Started, Ended: m.Ended, Log: m.Log, Mediation: m.Mediation,
				Declared: []Use{{Permission: "read-items", Uses: 3}}, Undeclared: []Undeclared{}, Verdict: Passed,
			}
			c.change(tr)
			data, _ := json.Marshal(tr)
			checkError(t, c.want, func() error { _, err := ParseTrace(data); return err })
		})
	}
}

// TestLogOf refuses logs that prove nothing, and ones that are not those of a statement.
func TestLogOf(t *testing.T) {
	grant := "sha256:" + strings.Repeat("ab", 32)
	good := audit.Report{Records: 9, First: 1, Last: 9, Keyed: true}
	last := audit.Entry{Seq: 9, Hash: "h"}
	for name, c := range map[string]struct {
		change func(r *audit.Report, e *audit.Entry)
		want   string
	}{
		"good":                {func(*audit.Report, *audit.Entry) {}, ""},
		"a broken chain":      {func(r *audit.Report, _ *audit.Entry) { r.Problem = &audit.Problem{File: "audit.jsonl", What: "hash"} }, "the pilot's log is broken"},
		"no key":              {func(r *audit.Report, _ *audit.Entry) { r.Keyed = false }, "its key (audit.key) is missing"},
		"records removed":     {func(r *audit.Report, _ *audit.Entry) { r.Removed = 4 }, "lacks its first 4 records"},
		"an empty log":        {func(r *audit.Report, e *audit.Entry) { *r, *e = audit.Report{Keyed: true}, audit.Entry{} }, "ends with record 0"},
		"not read to its end": {func(_ *audit.Report, e *audit.Entry) { e.Seq = 8 }, "ends with record 9, and 8 was read"},
	} {
		t.Run(name, func(t *testing.T) {
			report, entry := good, last
			c.change(&report, &entry)
			checkError(t, c.want, func() error { _, err := LogOf(report, entry, grant); return err })
		})
	}
	log, _ := LogOf(good, last, grant)
	for name, change := range map[string]func(l *Log){
		"another end": func(l *Log) { l.Head = "x" }, "fewer records": func(l *Log) { l.Last, l.Records = 8, 8 }, "another grant": func(l *Log) { l.Grant = "sha256:" + strings.Repeat("cd", 32) },
	} {
		other := log
		if change(&other); log.Same(other) == nil || log.Same(log) != nil {
			t.Errorf("%s is taken for the same log", name)
		}
	}
}
