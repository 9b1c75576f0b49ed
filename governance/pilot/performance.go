package pilot

import (
	"cmp"
	"slices"
	"time"
)

// Performance is the predicate of measured-performance.
type Performance struct {
	IssuedAt  time.Time `json:"issuedAt"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
	Plugin    string    `json:"plugin"`
	Version   string    `json:"version"` // of the plugin
	Started   time.Time `json:"startedAt"`
	Ended     time.Time `json:"endedAt"`

	Startup     Startup     `json:"startup"`
	Memory      Memory      `json:"memory"`
	CPU         CPU         `json:"cpu"`
	Pressure    Pressure    `json:"pressure"`
	Syscalls    Syscalls    `json:"syscalls"`
	Network     Network     `json:"network"`
	Latency     Latencies   `json:"latency"`
	Mediation   Mediation   `json:"mediation"`
	Environment Environment `json:"environment"`
	Load        string      `json:"load,omitempty"` // digest of the load profile; "" without one
	Log         Log         `json:"log"`
	// Result is the comparison with the limits that were in force when it was made.
	// [Evaluate] makes it again, with those that are in force now.
	Result Result `json:"result"`
}

// Startup is how long the plugin took from its start. A field is nil if the event did not
// happen.
type Startup struct {
	ReadyMS       *int64 `json:"readyMs,omitempty"`       // until it answered a request of the load
	FirstAccessMS *int64 `json:"firstAccessMs,omitempty"` // until its first access
}

// milliseconds returns the time until the plugin was ready, or its first access if it
// serves nothing; nil without either.
func (s Startup) milliseconds() *int64 {
	if s.ReadyMS != nil {
		return s.ReadyMS
	}
	return s.FirstAccessMS
}

// Memory is the resident memory of all the plugin's processes together.
type Memory struct {
	RSSP95Bytes int64 `json:"rssP95Bytes"`
	RSSMaxBytes int64 `json:"rssMaxBytes"`
	// CgroupP95Bytes is memory.current, with the page cache; 0 on a host whose memory
	// controller is not that of cgroup v2.
	CgroupP95Bytes int64 `json:"cgroupP95Bytes,omitempty"`
	Samples        int   `json:"samples"`
}

// CPU is the time that the plugin's cgroup used.
type CPU struct {
	TotalUS int64 `json:"totalUs"`
	// Per1000US is the time for 1,000 requests; 0 without a request.
	Per1000US   int64  `json:"per1000Us"`
	Requests    uint64 `json:"requests"`
	RequestsOf  string `json:"requestsOf"` // load: requests that it answered; access: accesses that it made
	ThrottledUS int64  `json:"throttledUs,omitempty"`
}

// Pressure is how long processes of the plugin's cgroup waited (pressure stall information,
// Documentation/accounting/psi.rst in the kernel). A field is nil on a kernel without it.
type Pressure struct {
	CPU    *Stall `json:"cpu,omitempty"`
	Memory *Stall `json:"memory,omitempty"`
	IO     *Stall `json:"io,omitempty"`
}

// Stall is the time in which some or all processes waited.
type Stall struct {
	SomeUS int64 `json:"someUs"`
	FullUS int64 `json:"fullUs"`
}

// Syscalls are the system calls of the plugin, as the kernel's programs counted them.
type Syscalls struct {
	Total uint64 `json:"total"`
	// Uncounted of Total are an upper bound for the time in which they were not counted one
	// by one.
	Uncounted uint64            `json:"uncounted,omitempty"`
	Classes   map[string]uint64 `json:"classes,omitempty"`
}

// Network is what the kernel's programs counted on the plugin's side.
type Network struct {
	Connections   uint64 `json:"connections"`
	Refused       uint64 `json:"refused"`
	Limited       uint64 `json:"limited"` // refused by a limit
	SentBytes     uint64 `json:"sentBytes"`
	ReceivedBytes uint64 `json:"receivedBytes"`
	DNSQueries    uint64 `json:"dnsQueries"`
}

// Latencies are times until an answer, under each level of the load.
type Latencies struct {
	// Of is load: requests to the plugin; or access: accesses of the plugin to others, for one
	// that no request of the load reached.
	Of      string   `json:"of,omitempty"`
	Typical *Latency `json:"typical,omitempty"` // nil: no sample
	Peak    *Latency `json:"peak,omitempty"`    // nil: no sample
}

// Latency is a distribution of times. Its figures have three significant digits.
type Latency struct {
	Requests uint64 `json:"requests"`
	Failed   uint64 `json:"failed"` // of Requests: no answer, or one of 500 and above
	P50US    int64  `json:"p50Us"`
	P99US    int64  `json:"p99Us"`
	MaxUS    int64  `json:"maxUs"`
}

// Mediation compares the connections that the kernel redirected with those that the sidecar
// handled.
type Mediation struct {
	Known      bool   `json:"known"` // false: the kernel did not confine the plugin
	Admitted   uint64 `json:"admitted"`
	Handled    uint64 `json:"handled"`
	Abandoned  uint64 `json:"abandoned"`
	Unmediated uint64 `json:"unmediated"`
	Ended      uint64 `json:"ended"` // processes and sockets that were ended for an escape
	// CompletenessPPM is the share that was mediated, in millionths, rounded down.
	CompletenessPPM int64 `json:"completenessPpm"`
}

// million is the whole in parts per million.
const million = 1_000_000

// complete sets the share.
func (m Mediation) complete() Mediation {
	switch {
	case !m.Known || m.Unmediated > m.Admitted:
		m.CompletenessPPM = 0
	case m.Admitted == 0:
		m.CompletenessPPM = million
	default:
		lost := (m.Unmediated*million + m.Admitted - 1) / m.Admitted // rounded up
		m.CompletenessPPM = million - int64(min(lost, million))
	}
	return m
}

// Environment is where the pilot ran. Figures of different environments are compared with
// a warning.
type Environment struct {
	Kernel      string `json:"kernel"` // as in uname -r
	Arch        string `json:"arch"`
	CPU         string `json:"cpu"` // the model's name
	CPUs        int    `json:"cpus"`
	MemoryBytes int64  `json:"memoryBytes"`
	CPUMax      string `json:"cpuMax,omitempty"`    // cpu.max of the plugin's cgroup
	MemoryMax   string `json:"memoryMax,omitempty"` // memory.max of it
	Sidecar     string `json:"sidecar"`             // its version
}

// Sample is one look at the running plugin.
type Sample struct {
	At          time.Time
	RSSBytes    int64
	CgroupBytes int64 // 0 if it is not known
	CPU         CPU   // TotalUS and ThrottledUS since the start
	Pressure    Pressure
	Syscalls    Syscalls
	Network     Network
	Mediation   Mediation
}

// maxSamples bounds the samples that are kept of a pilot, however long it is.
const maxSamples = 1 << 16

// Samples are those of a pilot, in bounded memory: of a long pilot every second one is
// dropped, again and again. The zero value is empty.
type Samples struct {
	kept  []Sample
	last  Sample
	every int // one of so many is kept
	n     int
}

// Add takes the next sample.
func (s *Samples) Add(one Sample) {
	s.every = max(s.every, 1)
	if s.n%s.every == 0 {
		s.kept = append(s.kept, one)
	}
	s.last = one
	if s.n++; len(s.kept) < maxSamples {
		return
	}
	for i := range maxSamples / 2 {
		s.kept[i] = s.kept[2*i]
	}
	s.kept, s.every = s.kept[:maxSamples/2], 2*s.every
}

// Len returns how many samples were added.
func (s *Samples) Len() int { return s.n }

// memory returns the distribution of the resident memory.
func (s *Samples) memory() Memory {
	if len(s.kept) == 0 {
		return Memory{}
	}
	rss, cgroup := make([]int64, len(s.kept)), make([]int64, len(s.kept))
	for i, one := range s.kept {
		rss[i], cgroup[i] = one.RSSBytes, one.CgroupBytes
	}
	return Memory{RSSP95Bytes: percentile(rss, 95), RSSMaxBytes: slices.Max(rss), CgroupP95Bytes: percentile(cgroup, 95), Samples: s.n}
}

// percentile returns the smallest value that percent of values do not exceed (nearest rank).
func percentile(values []int64, percent int) int64 {
	slices.SortFunc(values, cmp.Compare[int64])
	return values[(len(values)*percent+99)/100-1]
}

// Measurement is what a pilot measured.
type Measurement struct {
	Plugin, Version string
	Started, Ended  time.Time
	Startup         Startup
	Samples         *Samples
	Load            *Load  // answers to the load; nil without one
	Profile         string // digest of the load profile
	Environment     Environment
	Observed        *Observation
	Log             Log
}

// Of Latencies and CPU: what the requests are.
const (
	ofLoad   = "load"
	ofAccess = "access"
)

// Measured returns the statement of a measurement, without IssuedAt and Result.
func Measured(m Measurement) Performance {
	last := m.Samples.last
	p := Performance{
		Plugin: m.Plugin, Version: m.Version, Started: m.Started.UTC(), Ended: m.Ended.UTC(), Startup: m.Startup, Memory: m.Samples.memory(),
		CPU: last.CPU, Pressure: last.Pressure, Syscalls: last.Syscalls, Network: last.Network, Mediation: last.Mediation.complete(),
		Environment: m.Environment, Load: m.Profile, Log: m.Log,
	}
	p.CPU.RequestsOf, p.CPU.Requests = ofAccess, m.Observed.accesses
	p.Latency = Latencies{Of: ofAccess, Typical: m.Observed.load.latency(Typical), Peak: m.Observed.load.latency(Peak)}
	if m.Load != nil && m.Load.answered() > 0 {
		p.CPU.RequestsOf, p.CPU.Requests = ofLoad, m.Load.answered()
		p.Latency = Latencies{Of: ofLoad, Typical: m.Load.latency(Typical), Peak: m.Load.latency(Peak)}
	}
	if p.Latency.Typical == nil && p.Latency.Peak == nil {
		p.Latency.Of = ""
	}
	if n := int64(p.CPU.Requests); n > 0 {
		const thousand = 1000
		p.CPU.Per1000US = p.CPU.TotalUS * thousand / n
	}
	if p.Startup.FirstAccessMS == nil {
		p.Startup.FirstAccessMS = m.Observed.firstAccess()
	}
	return p
}
