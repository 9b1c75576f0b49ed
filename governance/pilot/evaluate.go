package pilot

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
)

// Verdict is the result of a comparison, in the words of in-toto's test-result.
type Verdict string

// The verdicts.
const (
	Passed Verdict = "PASSED"
	Warned Verdict = "WARNED"
	Failed Verdict = "FAILED"
)

// Limits are the thresholds of a guardrail for a pilot. A field that is zero sets none.
type Limits struct {
	Startup    time.Duration
	MemoryP95  int64         // bytes
	CPUPer1000 time.Duration // for 1,000 requests
	LatencyP99 time.Duration // under each level of the load
	// Regression is by how many hundredths of a percent a figure may exceed that of the previous
	// version.
	Regression int
	// MediationPPM is the least share of connections that is mediated, in millionths; by
	// default [DefaultMediation].
	MediationPPM int64
}

// LimitsOf returns the thresholds that a guardrail states.
func LimitsOf(p configs.Performance) Limits {
	const hundredth = million / (percent * percent) // of a percent, in millionths
	return Limits{
		Startup: time.Duration(p.Startup), MemoryP95: int64(p.MemoryP95), CPUPer1000: time.Duration(p.CPUPer1000), LatencyP99: time.Duration(p.LatencyP99),
		Regression: int(p.Regression), MediationPPM: int64(p.Mediation) * hundredth,
	}
}

// Strictest returns the stricter of two limits in each field.
func (l Limits) Strictest(o Limits) Limits {
	return Limits{
		Startup: lower(l.Startup, o.Startup), MemoryP95: lower(l.MemoryP95, o.MemoryP95), CPUPer1000: lower(l.CPUPer1000, o.CPUPer1000),
		LatencyP99: lower(l.LatencyP99, o.LatencyP99), Regression: lower(l.Regression, o.Regression), MediationPPM: max(l.MediationPPM, o.MediationPPM),
	}
}

// lower returns the lower of two thresholds. 0 sets no threshold.
func lower[T cmp.Ordered](a, b T) T {
	var none T
	if a == none || b != none && b < a {
		return b
	}
	return a
}

// DefaultMediation is 99.99 %.
const DefaultMediation = 999_900

// Result is the comparison of a pilot with limits and with the previous version.
type Result struct {
	Verdict Verdict `json:"verdict"` // the worst of Checks
	// Previous is the version that is compared with, "" for none.
	Previous string  `json:"previous,omitempty"`
	Checks   []Check `json:"checks"`
}

// Check is one comparison.
type Check struct {
	ID       string  `json:"id"` // as in memoryP95
	Unit     string  `json:"unit,omitempty"`
	Measured *int64  `json:"measured,omitempty"` // nil: there is no sample
	Limit    int64   `json:"limit,omitempty"`    // 0: none
	Previous *int64  `json:"previous,omitempty"` // the previous version's; nil: none
	Percent  int64   `json:"changePercent,omitempty"`
	Verdict  Verdict `json:"verdict"`
	Why      string  `json:"why,omitempty"` // of a verdict that is not PASSED: the fault
	Fix      string  `json:"fix,omitempty"`
}

// figure is one figure that is compared.
type figure struct {
	id, unit string
	limit    int64
	noise    int64 // a smaller change does not count
	of       func(*Performance) *int64
	fix      string
}

// The units of figures.
const (
	unitMS    = "ms"
	unitUS    = "us"
	unitBytes = "bytes"
	unitPPM   = "ppm"
)

func figures(l Limits) []figure {
	latency := func(level func(Latencies) *Latency) func(*Performance) *int64 {
		return func(p *Performance) *int64 {
			if one := level(p.Latency); one != nil {
				return &one.P99US
			}
			return nil
		}
	}
	const millisecond, tenth = 1000, 100
	return []figure{
		{"startup", unitMS, l.Startup.Milliseconds(), tenth, func(p *Performance) *int64 { return p.Startup.milliseconds() }, "start less before the first answer, or ask for a higher threshold"},
		{"memoryP95", unitBytes, l.MemoryP95, 1 << 20, func(p *Performance) *int64 {
			if p.Memory.Samples == 0 {
				return nil
			}
			return &p.Memory.RSSP95Bytes
		}, "profile the plugin's memory under this load, or ask for a higher threshold"},
		{"cpuPer1000", unitUS, l.CPUPer1000.Microseconds(), millisecond, func(p *Performance) *int64 {
			if p.CPU.Requests == 0 {
				return nil
			}
			return &p.CPU.Per1000US
		}, "profile the plugin's CPU time under this load, or ask for a higher threshold"},
		{"latencyP99.typical", unitUS, l.LatencyP99.Microseconds(), millisecond, latency(func(l Latencies) *Latency { return l.Typical }), "find what the slowest requests of the typical load wait for"},
		{"latencyP99.peak", unitUS, l.LatencyP99.Microseconds(), millisecond, latency(func(l Latencies) *Latency { return l.Peak }), "find what the slowest requests of the peak load wait for"},
	}
}

// Evaluate compares a measurement with limits, and with the previous version if it is not
// nil. A figure that a limit is for and that was not measured fails.
func Evaluate(p, previous *Performance, l Limits) Result {
	r := Result{Verdict: Passed, Checks: []Check{mediationCheck(p, l)}}
	if previous != nil {
		r.Previous = previous.Version
		r.Checks = append(r.Checks, environmentCheck(p, previous))
	}
	for _, f := range figures(l) {
		c := Check{ID: f.id, Unit: f.unit, Measured: f.of(p), Limit: f.limit, Verdict: Passed}
		if previous != nil {
			c.Previous = f.of(previous)
		}
		if c.Measured == nil && c.Previous == nil && c.Limit == 0 {
			continue
		}
		c.compare(f, l.Regression)
		r.Checks = append(r.Checks, c)
	}
	for _, c := range r.Checks {
		r.Verdict = worse(r.Verdict, c.Verdict)
	}
	return r
}

// worse returns the worse of two verdicts. An unknown verdict is worst.
func worse(a, b Verdict) Verdict {
	for _, v := range []Verdict{Failed, Warned} {
		if a == v || b == v {
			return v
		}
	}
	if a == Passed && b == Passed {
		return Passed
	}
	return Failed
}

// near is the share of a limit, in percent, from which a figure is close to it.
const near = 90

const percent = 100

func (c *Check) compare(f figure, regression int) {
	if c.Measured == nil {
		c.Verdict, c.Why = Failed, "it was not measured"
		if c.Limit == 0 {
			c.Verdict = Warned
		}
		c.Fix = "run the pilot with a load profile that has this level, for longer"
		return
	}
	if c.Limit > 0 && *c.Measured > c.Limit {
		c.fail(Failed, f.fix, "%s exceeds the limit of %s", quantity(*c.Measured, c.Unit), quantity(c.Limit, c.Unit))
	} else if c.Limit > 0 && *c.Measured > c.Limit/percent*near {
		c.fail(Warned, f.fix, "%s is close to the limit of %s", quantity(*c.Measured, c.Unit), quantity(c.Limit, c.Unit))
	}
	if c.Previous == nil || *c.Previous <= 0 {
		return
	}
	grown := *c.Measured - *c.Previous
	c.Percent = int64(float64(grown) * percent / float64(*c.Previous)) // of figures too large for integers to multiply
	if regression > 0 && grown > f.noise && float64(grown)*percent*percent > float64(regression)*float64(*c.Previous) {
		c.fail(Failed, f.fix, "%s is %d %% more than %s of the previous version, and %s are allowed", quantity(*c.Measured, c.Unit), c.Percent, quantity(*c.Previous, c.Unit), configs.Percent(regression))
	}
}

// Figure returns what was measured, with its unit; "" if there is no figure.
func (c *Check) Figure() string {
	switch {
	case c.Measured == nil:
		return ""
	case c.Previous != nil:
		return fmt.Sprintf("%s (%+d %%)", quantity(*c.Measured, c.Unit), c.Percent)
	}
	return quantity(*c.Measured, c.Unit)
}

// fail lowers the verdict, and adds why.
func (c *Check) fail(v Verdict, fix, format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	c.Verdict = worse(c.Verdict, v)
	if c.Why != "" {
		why = c.Why + "; " + why
	}
	c.Why, c.Fix = why, fix
}

// mediationCheck compares the share of mediated connections. It holds whatever the
// guardrail states.
func mediationCheck(p *Performance, l Limits) Check {
	limit := l.MediationPPM
	if limit <= 0 {
		limit = DefaultMediation
	}
	c := Check{ID: "mediation", Unit: unitPPM, Measured: &p.Mediation.CompletenessPPM, Limit: limit, Verdict: Passed}
	const fix = "list the unmediated connections by chaperone status, and have the plugin use what its sidecar mediates"
	switch m := p.Mediation; {
	case !m.Known:
		c.Measured = nil
		c.fail(Failed, "run the pilot with kernel: required", "the kernel did not confine the plugin")
	case m.CompletenessPPM < limit:
		c.fail(Failed, fix, "%d of %d connections were not mediated", m.Unmediated, m.Admitted)
	case m.Ended > 0:
		c.fail(Warned, fix, "%d processes or sockets were ended for an escape", m.Ended)
	}
	return c
}

// environmentCheck warns of figures that were measured elsewhere.
func environmentCheck(p, previous *Performance) Check {
	c := Check{ID: "environment", Verdict: Passed}
	var changed []string
	a, b := &p.Environment, &previous.Environment
	for _, one := range []struct {
		name    string
		differs bool
	}{
		{"kernel", a.Kernel != b.Kernel},
		{"architecture", a.Arch != b.Arch},
		{"CPU", a.CPU != b.CPU},
		{"number of CPUs", a.CPUs != b.CPUs},
		{"memory", a.MemoryBytes != b.MemoryBytes},
		{"limits of the cgroup", a.CPUMax != b.CPUMax || a.MemoryMax != b.MemoryMax},
		{"sidecar", a.Sidecar != b.Sidecar},
		{"load profile", p.Load != previous.Load},
	} {
		if one.differs {
			changed = append(changed, one.name)
		}
	}
	if len(changed) > 0 {
		c.fail(Warned, "repeat both pilots in one environment before relying on the change", "the previous version was measured with another %s", strings.Join(changed, ", "))
	}
	return c
}

// quantity returns a figure with its unit.
func quantity(n int64, unit string) string {
	switch unit {
	case unitBytes:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case unitUS:
		return (time.Duration(n) * time.Microsecond).String()
	case unitMS:
		return (time.Duration(n) * time.Millisecond).String()
	case unitPPM:
		return fmt.Sprintf("%.4f %%", float64(n)*percent/million)
	}
	return fmt.Sprint(n)
}
