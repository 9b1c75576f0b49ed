package pilot

import (
	"strings"
	"testing"
	"time"
)

// TestParseProfile reads load profiles, and refuses those that mean nothing.
func TestParseProfile(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"requests":         {"phases:\n- {level: typical, duration: 30s, rate: 5, concurrency: 2, http: {port: 80, requests: [{path: /a}, {method: POST, path: /b, headers: {a: b}, body: x}]}}", ""},
		"a command":        {"phases:\n- {level: peak, duration: 1m, rate: 0.1, command: [./drive, --fast]}", ""},
		"JSON":             {`{"phases": [{"level": "peak", "duration": "1s", "rate": 1, "command": ["true"]}]}`, ""},
		"empty":            {"", "phases has 0 entries"},
		"no phases":        {"phases: []", "phases has 0 entries"},
		"an unknown field": {"phases:\n- {level: peak, duration: 1s, rate: 1, command: [a], retries: 3}", `unknown field "retries"`},
		"a field twice":    {"phases:\n- {level: peak, level: typical, duration: 1s, rate: 1, command: [a]}", "level"},
		"no level":         {"phases:\n- {duration: 1s, rate: 1, command: [a]}", "write typical or peak"},
		"another level":    {"phases:\n- {level: high, duration: 1s, rate: 1, command: [a]}", `level is "high"`},
		"no duration":      {"phases:\n- {level: peak, rate: 1, command: [a]}", "duration is missing"},
		"no rate":          {"phases:\n- {level: peak, duration: 1s, command: [a]}", "rate is 0"},
		"negative rate":    {"phases:\n- {level: peak, duration: 1s, rate: -1, command: [a]}", "rate is -1"},
		"infinite rate":    {"phases:\n- {level: peak, duration: 1s, rate: .inf, command: [a]}", "rate is +Inf"},
		"no number":        {"phases:\n- {level: peak, duration: 1s, rate: .nan, command: [a]}", "rate is NaN"},
		"much concurrency": {"phases:\n- {level: peak, duration: 1s, rate: 1, concurrency: 100000, command: [a]}", "concurrency is 100000"},
		"nothing to do":    {"phases:\n- {level: peak, duration: 1s, rate: 1}", "exactly one of http and command"},
		"both":             {"phases:\n- {level: peak, duration: 1s, rate: 1, command: [a], http: {port: 1, requests: [{path: /}]}}", "exactly one of http and command"},
		"no port":          {"phases:\n- {level: peak, duration: 1s, rate: 1, http: {requests: [{path: /}]}}", "http.port is missing"},
		"no requests":      {"phases:\n- {level: peak, duration: 1s, rate: 1, http: {port: 1}}", "http.requests has 0 entries"},
		"another host":     {"phases:\n- {level: peak, duration: 1s, rate: 1, http: {port: 1, requests: [{path: 'http://evil.example/'}]}}", "begins with /"},
		"a broken path":    {"phases:\n- {level: peak, duration: 1s, rate: 1, http: {port: 1, requests: [{path: \"/\\n\"}]}}", "requests[0].path"},
		"a broken method":  {"phases:\n- {level: peak, duration: 1s, rate: 1, http: {port: 1, requests: [{method: 'G T', path: /}]}}", "requests[0].method"},
		"too large":        {"# " + strings.Repeat("x", maxProfile), "at most 1048576 are allowed"},
		"no YAML":          {"phases: [", "read load profile"},
	} {
		t.Run(name, func(t *testing.T) {
			checkError(t, c.want, func() error { _, err := ParseProfile([]byte(c.text)); return err })
		})
	}
}

// FuzzParseProfile looks for input that panics, or a profile that cannot be driven.
func FuzzParseProfile(f *testing.F) {
	f.Add([]byte("phases:\n- {level: peak, duration: 1s, rate: 1, command: [a]}"))
	f.Add([]byte("phases:\n- &a {level: typical, duration: 1s, rate: 1, http: {port: 1, requests: [{path: /}]}}\n- *a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProfile(data)
		if err != nil {
			return
		}
		for _, phase := range p.Phases {
			if phase.Concurrency < 1 || !(phase.Rate > 0) || phase.Duration <= 0 || phase.HTTP == nil && len(phase.Command) == 0 {
				t.Errorf("cannot be driven: %+v", phase)
			}
		}
	})
}

// TestLatencies counts what was answered late, by level.
func TestLatencies(t *testing.T) {
	var l Load
	for i := range 100 {
		l.Add(Typical, time.Duration(i+1)*time.Millisecond, i != 0)
	}
	l.Add(Peak, 100*time.Hour, true)
	l.Add(Peak, -time.Second, true)
	typical, peak := l.latency(Typical), l.latency(Peak)
	if typical.Requests != 100 || typical.Failed != 1 || !near3(typical.P50US, 50_000) || !near3(typical.P99US, 99_000) || !near3(typical.MaxUS, 100_000) || l.answered() != 101 {
		t.Errorf("typical %+v, %d answered", typical, l.answered())
	}
	if peak.Requests != 2 || !near3(peak.MaxUS, maxLatency.Microseconds()) {
		t.Errorf("peak %+v", peak)
	}
}

// near3 compares three significant digits.
func near3(got, want int64) bool { return got > want*998/1000 && got < want*1002/1000 }

// TestSamples keeps the samples of a long pilot in bounded memory.
func TestSamples(t *testing.T) {
	var s Samples
	for i := range 10 * maxSamples {
		s.Add(Sample{RSSBytes: int64(i), CPU: CPU{TotalUS: int64(i)}})
	}
	m := s.memory()
	if len(s.kept) > maxSamples || m.Samples != 10*maxSamples || s.last.CPU.TotalUS != 10*maxSamples-1 {
		t.Errorf("%d kept of %d", len(s.kept), m.Samples)
	}
	if want := int64(10 * maxSamples * 95 / 100); m.RSSP95Bytes < want*99/100 || m.RSSP95Bytes > want*101/100 {
		t.Errorf("p95 is %d, want about %d", m.RSSP95Bytes, want)
	}
}
