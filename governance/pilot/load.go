package pilot

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/goccy/go-yaml"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Level is the level of a load, of which latencies are stated apart.
type Level string

// The levels.
const (
	Typical Level = "typical"
	Peak    Level = "peak"
)

// Profile is a load profile as written. Its phases follow each other, and again from the
// first one until the pilot ends.
type Profile struct {
	Phases []Phase `yaml:"phases"`
}

// Phase is a part of a load: requests at a steady rate.
type Phase struct {
	Level    Level          `yaml:"level"`
	Duration authz.Duration `yaml:"duration"`
	// Rate is how many requests, or runs of Command, are due in a second.
	Rate float64 `yaml:"rate"`
	// Concurrency bounds those in flight; by default 1. A request that is due waits for its
	// turn, and its latency counts from when it was due.
	Concurrency int `yaml:"concurrency"`
	// HTTP are requests to a port that the plugin serves (process.listen).
	HTTP *HTTPLoad `yaml:"http"`
	// Command is a program with its arguments, which is run in place of a request; exit
	// status 0 is success. It runs beside the sidecar and is not confined.
	Command []string `yaml:"command"`
}

// HTTPLoad are requests that are sent in turn.
type HTTPLoad struct {
	Port     uint16    `yaml:"port"`
	Requests []Request `yaml:"requests"`
}

// Request is one request to the plugin.
type Request struct {
	Method  string            `yaml:"method"` // by default GET
	Path    string            `yaml:"path"`
	Headers map[string]string `yaml:"headers"`
	Body    string            `yaml:"body"`
}

// Bounds of a profile.
const (
	maxProfile     = 1 << 20 // bytes
	maxPhases      = 64
	maxRate        = 100_000
	maxConcurrency = 4096
	maxRequests    = 4096
)

// ParseProfile reads a load profile, YAML or JSON.
func ParseProfile(data []byte) (*Profile, error) {
	if len(data) > maxProfile {
		return nil, fmt.Errorf("read load profile: it has %d bytes; at most %d are allowed", len(data), maxProfile)
	}
	var p Profile
	if err := yaml.UnmarshalWithOptions(data, &p, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("read load profile: %s", firstLine(err))
	}
	if len(p.Phases) == 0 || len(p.Phases) > maxPhases {
		return nil, fmt.Errorf("read load profile: phases has %d entries; 1 to %d are allowed", len(p.Phases), maxPhases)
	}
	for i := range p.Phases {
		if err := p.Phases[i].complete(); err != nil {
			return nil, fmt.Errorf("read load profile: phases[%d]: %w", i, err)
		}
	}
	return &p, nil
}

// firstLine returns an error without the excerpt of the file that the parser adds.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// complete checks a phase and fills in what it leaves out.
func (p *Phase) complete() error {
	if p.Concurrency == 0 {
		p.Concurrency = 1
	}
	switch {
	case p.Level != Typical && p.Level != Peak:
		return fmt.Errorf("level is %q; write typical or peak", p.Level)
	case p.Duration <= 0:
		return errors.New("duration is missing; write one as in 30s")
	case !(p.Rate > 0) || p.Rate > maxRate: // not a number is neither
		return fmt.Errorf("rate is %g; more than 0 and at most %d requests in a second are allowed", p.Rate, maxRate)
	case p.Concurrency < 0 || p.Concurrency > maxConcurrency:
		return fmt.Errorf("concurrency is %d; 1 to %d are allowed", p.Concurrency, maxConcurrency)
	case (p.HTTP == nil) == (len(p.Command) == 0):
		return errors.New("exactly one of http and command is required")
	case p.HTTP == nil:
		return nil
	case p.HTTP.Port == 0:
		return errors.New("http.port is missing; it is one of the plugin's, in process.listen")
	case len(p.HTTP.Requests) == 0 || len(p.HTTP.Requests) > maxRequests:
		return fmt.Errorf("http.requests has %d entries; 1 to %d are allowed", len(p.HTTP.Requests), maxRequests)
	}
	for i := range p.HTTP.Requests {
		r := &p.HTTP.Requests[i]
		if r.Method == "" {
			r.Method = "GET"
		}
		if !strings.HasPrefix(r.Path, "/") {
			return fmt.Errorf("http.requests[%d].path is %q; it begins with /", i, r.Path)
		}
		if _, err := url.ParseRequestURI(r.Path); err != nil {
			return fmt.Errorf("http.requests[%d].path: %w", i, err)
		}
		if _, err := authz.NewAction(r.Method, ""); err != nil {
			return fmt.Errorf("http.requests[%d].method: %w", i, err)
		}
	}
	return nil
}

// maxLatency is the longest latency; longer ones count as this one.
const maxLatency = time.Hour

// digits are the significant decimal digits of latencies.
const digits = 3

// distribution counts latencies in bounded memory.
type distribution struct {
	histogram *hdrhistogram.Histogram
	failed    uint64
}

func (d *distribution) add(took time.Duration, ok bool) {
	if d.histogram == nil {
		d.histogram = hdrhistogram.New(1, maxLatency.Microseconds(), digits)
	}
	_ = d.histogram.RecordValue(min(max(took.Microseconds(), 0), maxLatency.Microseconds())) // within its bounds
	if !ok {
		d.failed++
	}
}

func (d *distribution) latency() *Latency {
	if d.histogram == nil {
		return nil
	}
	const median, tail = 50, 99
	return &Latency{
		Requests: uint64(d.histogram.TotalCount()), Failed: d.failed,
		P50US: d.histogram.ValueAtQuantile(median), P99US: d.histogram.ValueAtQuantile(tail), MaxUS: d.histogram.Max(),
	}
}

// Load are the answers to a load, by level. It is safe for concurrent use; the zero value
// is empty.
type Load struct {
	mu            sync.Mutex
	typical, peak distribution
}

// Add takes the outcome of one request: how long after it was due it was answered.
func (l *Load) Add(level Level, took time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level == Peak {
		l.peak.add(took, ok)
	} else {
		l.typical.add(took, ok)
	}
}

func (l *Load) latency(level Level) *Latency {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level == Peak {
		return l.peak.latency()
	}
	return l.typical.latency()
}

// answered returns how many requests did not fail.
func (l *Load) answered() uint64 {
	total := uint64(0)
	for _, level := range []Level{Typical, Peak} {
		if one := l.latency(level); one != nil {
			total += one.Requests - one.Failed
		}
	}
	return total
}

// Span is a time in which the load had a level.
type Span struct {
	Level       Level
	From, Until time.Time
}
