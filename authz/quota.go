package authz

import (
	"cmp"
	"iter"
	"math"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"
)

// LimitKind is what a limit counts.
type LimitKind uint8

// The kinds of limits.
const (
	LimitRequests LimitKind = iota
	LimitConnections
	LimitSentBytes
	LimitReceivedBytes
	LimitSyscalls
)

// String returns the kind's name in grants.
func (k LimitKind) String() string {
	switch k {
	case LimitRequests:
		return "requests"
	case LimitConnections:
		return "connections"
	case LimitSentBytes:
		return "sentBytes"
	case LimitReceivedBytes:
		return "receivedBytes"
	case LimitSyscalls:
		return "syscalls"
	}
	return "unknown"
}

// metered reports whether only the kernel counts it.
func (k LimitKind) metered() bool {
	return k == LimitSentBytes || k == LimitReceivedBytes || k == LimitSyscalls
}

// staleAfter is the age of the last sample of the kernel's counters beyond
// which a metered limit can no longer be judged.
const staleAfter = 5 * time.Second

// statedLimit is a limit that a document states.
type statedLimit struct {
	kind LimitKind
	spec Limit
	text string
}

// stated returns the limits that are set.
func (l Limits) stated() []statedLimit {
	all := []statedLimit{
		{LimitRequests, l.Requests, l.Requests.String()},
		{LimitConnections, l.Connections, l.Connections.String()},
		{LimitSentBytes, Limit(l.SentBytes), l.SentBytes.String()},
		{LimitReceivedBytes, Limit(l.ReceivedBytes), l.ReceivedBytes.String()},
		{LimitSyscalls, l.Syscalls, l.Syscalls.String()},
	}
	return slices.DeleteFunc(all, func(s statedLimit) bool { return s.spec.IsZero() })
}

// within reports whether a limit is not higher than a ceiling. A rate is
// compared by what it may use in the ceiling's period, burst and all; a total
// is within any rate that it could not exceed.
func (l Limit) within(ceiling Limit) bool {
	if ceiling.Period == 0 {
		return l.Period == 0 && l.Count <= ceiling.Count
	}
	if l.Count > ceiling.Count {
		return false
	}
	if l.Period == 0 {
		return true
	}
	// l.Count / l.Period <= ceiling.Count / ceiling.Period
	lh, ll := bits.Mul64(l.Count, uint64(ceiling.Period))
	rh, rl := bits.Mul64(ceiling.Count, uint64(l.Period))
	return lh < rh || lh == rh && ll <= rl
}

// limit is one compiled limit.
type limit struct {
	key   bucketKey
	kind  LimitKind
	kill  bool
	spec  Limit
	until time.Time // of its grant, which ends with it
}

// limitName names a limit, and with it its bucket.
type limitName struct {
	plugin, grant, rule string
	kind                LimitKind
}

// bucketKey is the name of a limit as one word, so that its bucket is found
// without reading four.
type bucketKey = unique.Handle[limitName]

func compileLimits(g *Grant, ruleID string, l Limits) []limit {
	var out []limit
	for _, s := range l.stated() {
		out = append(out, limit{
			key:  unique.Make(limitName{g.Plugin, g.Name, ruleID, s.kind}),
			kind: s.kind, kill: l.OnExceeded == OnExceededKill, spec: s.spec, until: g.NotAfter,
		})
	}
	return out
}

// bucket is the usage of one limit. A rate is kept by the generic cell rate
// algorithm (ITU-T I.371, annex A) with a burst of one whole period: tat is
// when the bucket would be empty again.
type bucket struct {
	tat    time.Time
	rest   uint64        // what the division of the last charge left over
	period time.Duration // that tat was reckoned with
	used   uint64        // of a total
	over   bool          // the limit was crossed and has not recovered
}

// maxPeriod is the longest period of a rate, and never a charge that no period
// ends: a hundred years and 146.
const (
	maxPeriod = 36_500 * 24 * time.Hour
	never     = 1 << 62
)

// spend adds cost and reports whether that was within the limit. With force,
// cost has been used already and is added whatever it does.
func (b *bucket) spend(l Limit, cost uint64, now time.Time, force bool) (ok bool, retry time.Duration) {
	if l.Period == 0 {
		ok = cost <= l.Count && b.used <= l.Count-cost
		if ok || force {
			b.used += min(cost, math.MaxUint64-b.used)
		}
		return ok, 0
	}
	tat, rest := b.standing(l, now)
	nanos, rest := l.charge(cost, rest)
	tat = tat.Add(nanos)
	ok, retry = l.admits(tat, rest, now)
	if ok || force {
		b.tat, b.rest, b.period = tat, rest, l.Period
	}
	return ok, retry
}

// standing returns where a rate stands at now. When a reload has changed its
// period, as much of the bucket is full as was before.
func (b *bucket) standing(l Limit, now time.Time) (tat time.Time, rest uint64) {
	if !b.tat.After(now) && (b.tat.Before(now) || b.rest == 0) {
		return now, 0
	}
	if b.period == l.Period {
		return b.tat, min(b.rest, l.Count-1)
	}
	high, low := bits.Mul64(uint64(b.tat.Sub(now)), uint64(l.Period))
	if high >= uint64(b.period) {
		return now.Add(never), 0
	}
	debt, _ := bits.Div64(high, low, uint64(b.period))
	return now.Add(time.Duration(min(debt, never))), 0
}

// charge returns how long the rate takes to let cost through, and what the
// division leaves over, for the next charge: nothing is lost to rounding.
func (l Limit) charge(cost, rest uint64) (time.Duration, uint64) {
	high, low := bits.Mul64(cost, uint64(l.Period))
	low, carry := bits.Add64(low, rest, 0)
	if high += carry; high >= l.Count {
		return never, 0
	}
	nanos, rest := bits.Div64(high, low, l.Count)
	if nanos > never {
		return never, 0
	}
	return time.Duration(nanos), rest
}

// admits reports whether a bucket that is empty again at tat and rest is no
// fuller than one period at now, and if not, how long until it is.
func (l Limit) admits(tat time.Time, rest uint64, now time.Time) (ok bool, retry time.Duration) {
	excess := tat.Sub(now) - l.Period
	if rest > 0 {
		excess++
	}
	return excess <= 0, max(excess, 0)
}

// usedOf returns how much of the limit is in use at now.
func (b *bucket) usedOf(l Limit, now time.Time) uint64 {
	if l.Period == 0 {
		return b.used
	}
	tat, rest := b.standing(l, now)
	high, low := bits.Mul64(uint64(tat.Sub(now)), l.Count)
	low, carry := bits.Add64(low, rest, 0)
	if high += carry; high >= uint64(l.Period) {
		return math.MaxInt64
	}
	used, left := bits.Div64(high, low, uint64(l.Period))
	if left > 0 {
		used++
	}
	return used
}

// Sample is a reading of the kernel's counters for a plugin. They only grow,
// from 0 at the plugin's start; a smaller reading is a new start.
type Sample struct {
	SentBytes     uint64
	ReceivedBytes uint64
	Syscalls      uint64
}

func (s Sample) of(k LimitKind) uint64 {
	switch k {
	case LimitSentBytes:
		return s.SentBytes
	case LimitReceivedBytes:
		return s.ReceivedBytes
	case LimitSyscalls:
		return s.Syscalls
	case LimitRequests, LimitConnections:
	}
	return 0
}

// Ledger keeps usage against limits. Doors spend from it; the kernel's
// counters are observed into it. It is safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	buckets map[bucketKey]*bucket
	samples map[Principal]reading
}

type reading struct {
	sample Sample
	at     time.Time
}

// NewLedger returns a ledger in which nothing is used.
func NewLedger() *Ledger {
	return &Ledger{buckets: map[bucketKey]*bucket{}, samples: map[Principal]reading{}}
}

// bucket returns the bucket of a key. The caller holds l.mu.
func (l *Ledger) bucket(key bucketKey) *bucket {
	b := l.buckets[key]
	if b == nil {
		b = &bucket{}
		l.buckets[key] = b
	}
	return b
}

// Crossing is a limit that has just been exceeded. It is reported once, until
// the limit has recovered and is exceeded again.
type Crossing struct {
	Plugin, Grant, Rule string
	Kind                LimitKind
	Limit               Limit
	Kill                bool // the grant asks for the plugin's end
}

func (l limit) crossing() Crossing {
	name := l.key.Value()
	return Crossing{name.plugin, name.grant, name.rule, l.kind, l.spec, l.kill}
}

// spend takes one from every limit of the kind, or from none. exhausted reports
// that a total is now used up.
func (l *Ledger) spend(own, shared []limit, kind LimitKind, now time.Time) (ok, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range counting(own, shared, kind, now) {
		trial := *l.bucket(lim.key)
		if ok, _ := trial.spend(lim.spec, 1, now, false); !ok {
			return false, false
		}
	}
	for lim := range counting(own, shared, kind, now) {
		b := l.bucket(lim.key)
		b.spend(lim.spec, 1, now, false)
		b.over = false
		exhausted = exhausted || lim.spec.Period == 0 && b.used == lim.spec.Count
	}
	return true, exhausted
}

// crossed returns the limits of the kind that refuse now and did not before,
// and when asking again may help; 0 when never.
func (l *Ledger) crossed(own, shared []limit, kind LimitKind, now time.Time) (crossings []Crossing, retry time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var over standing
	for lim := range counting(own, shared, kind, now) {
		b := l.bucket(lim.key)
		trial := *b
		ok, wait := trial.spend(lim.spec, 1, now, false)
		if ok {
			continue
		}
		over = over.and(standing{over: true, total: lim.spec.Period == 0, retry: wait})
		if !b.over {
			b.over = true
			crossings = append(crossings, lim.crossing())
		}
	}
	return crossings, over.retry
}

// counting yields the limits of a kind whose grant has not ended.
func counting(own, shared []limit, kind LimitKind, now time.Time) iter.Seq[*limit] {
	return func(yield func(*limit) bool) {
		for _, limits := range [...][]limit{own, shared} {
			for i := range limits {
				if lim := &limits[i]; lim.kind == kind && now.Before(lim.until) && !yield(lim) {
					return
				}
			}
		}
	}
}

// Observe takes in a reading of a plugin's counters and returns the limits of
// the snapshot that it crosses. exhausted reports that a total is used up,
// which is a new generation. While the sidecar observes, no crossing kills.
func (l *Ledger) Observe(s *Snapshot, plugin Principal, sample Sample, now time.Time) (crossings []Crossing, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.samples[plugin].sample
	l.samples[plugin] = reading{sample, now}
	limits := s.pluginLimits(plugin)
	for i := range limits {
		lim := &limits[i]
		if !lim.kind.metered() || !now.Before(lim.until) {
			continue
		}
		total, before := sample.of(lim.kind), last.of(lim.kind)
		if total < before {
			before = 0
		}
		b := l.bucket(lim.key)
		within, _ := b.spend(lim.spec, total-before, now, true)
		if lim.spec.Period == 0 {
			within = b.used < lim.spec.Count
		}
		if !within && !b.over {
			crossings = append(crossings, lim.crossing())
			exhausted = exhausted || lim.spec.Period == 0
		}
		b.over = !within
	}
	return s.lenient(plugin, crossings, now), exhausted
}

// lenient returns the crossings without their kill while the sidecar observes.
func (s *Snapshot) lenient(p Principal, crossings []Crossing, now time.Time) []Crossing {
	if s.Observing(p, now) {
		for i := range crossings {
			crossings[i].Kill = false
		}
	}
	return crossings
}

// Usage is what has been used of each limit. The zero Usage has used nothing.
type Usage struct {
	ledger   *Ledger
	inFlight bool // what is judged has paid for itself already
}

// Usage returns the ledger's usage, read when it is asked.
func (l *Ledger) Usage() Usage { return Usage{ledger: l} }

// InFlight returns the usage as it concerns an access that was admitted
// before: its own request has been spent.
func (u Usage) InFlight() Usage { u.inFlight = true; return u }

// standing is how an access stands against some limits. The zero value is
// within all of them.
type standing struct {
	over    bool          // one of them refuses it,
	total   bool          // and for good
	unknown bool          // one of them cannot be judged
	retry   time.Duration // when all may let it through; 0 for never
}

// and returns how an access stands against the limits of both.
func (s standing) and(other standing) standing {
	s.over = s.over || other.over
	s.total = s.total || other.total
	s.unknown = s.unknown || other.unknown
	if s.retry = max(s.retry, other.retry); s.total {
		s.retry = 0
	}
	return s
}

// check judges one more access against the winner's own limits and those of
// the whole plugin.
func (u Usage) check(p Principal, own, shared []limit, now time.Time) (ofRule, ofPlugin standing) {
	if u.ledger == nil || len(own)+len(shared) == 0 {
		return standing{}, standing{}
	}
	u.ledger.mu.Lock()
	defer u.ledger.mu.Unlock()
	return u.judge(p, own, now), u.judge(p, shared, now)
}

// judge is check for one set of limits. The caller holds the ledger's lock.
func (u Usage) judge(p Principal, limits []limit, now time.Time) (s standing) {
	for i := range limits {
		lim := &limits[i]
		kind := lim.kind
		switch {
		case !now.Before(lim.until):
		case kind == LimitConnections, kind == LimitRequests && u.inFlight:
			// Paid for when it was made.
		case kind.metered() && !u.ledger.fresh(p, now):
			s.unknown = true
		default:
			var trial bucket
			if b := u.ledger.buckets[lim.key]; b != nil {
				trial = *b
			}
			if ok, wait := trial.spend(lim.spec, 1, now, false); !ok {
				s = s.and(standing{over: true, total: lim.spec.Period == 0, retry: wait})
			}
		}
	}
	return s
}

// fresh reports whether the plugin's counters were read lately. A reading from
// the future is a clock that was set, and says nothing.
func (l *Ledger) fresh(p Principal, now time.Time) bool {
	age := now.Sub(l.samples[p].at)
	return -staleAfter <= age && age <= staleAfter
}

// UsageOf is what is used of one limit.
type UsageOf struct {
	Plugin, Grant, Rule string
	Kind                LimitKind
	Limit               Limit
	Used                uint64 // of a rate: now; of a total: ever
	Known               bool   // false when the kernel's counters are stale
}

// Report returns what is used of each limit of a plugin, in a stable order.
func (l *Ledger) Report(s *Snapshot, plugin Principal, now time.Time) []UsageOf {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []UsageOf
	for _, lim := range s.allLimits(plugin) {
		name := lim.key.Value()
		u := UsageOf{Plugin: name.plugin, Grant: name.grant, Rule: name.rule, Kind: lim.kind, Limit: lim.spec}
		if b := l.buckets[lim.key]; b != nil {
			u.Used = b.usedOf(lim.spec, now)
		}
		u.Known = !lim.kind.metered() || l.fresh(plugin, now)
		out = append(out, u)
	}
	return out
}

// Total is what has been used of one total, for keeping across restarts.
type Total struct {
	Plugin string `json:"plugin"`
	Grant  string `json:"grant"`
	Rule   string `json:"rule,omitempty"`
	Kind   string `json:"kind"`
	Used   uint64 `json:"used"`
}

// Totals returns every total that has been used from, in a stable order.
func (l *Ledger) Totals() []Total {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Total
	for key, b := range l.buckets {
		if name := key.Value(); b.used > 0 {
			out = append(out, Total{name.plugin, name.grant, name.rule, name.kind.String(), b.used})
		}
	}
	slices.SortFunc(out, func(a, b Total) int {
		return cmp.Or(strings.Compare(a.Plugin, b.Plugin), strings.Compare(a.Grant, b.Grant),
			strings.Compare(a.Rule, b.Rule), strings.Compare(a.Kind, b.Kind))
	})
	return out
}

// RestoreTotals takes in what an earlier run has used.
func (l *Ledger) RestoreTotals(totals []Total) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range totals {
		for kind := LimitRequests; kind <= LimitSyscalls; kind++ {
			if kind.String() == t.Kind {
				b := l.bucket(unique.Make(limitName{t.Plugin, t.Grant, t.Rule, kind}))
				b.used = max(b.used, t.Used)
			}
		}
	}
}
