package authz

import (
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"
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
	return [...]string{"requests", "connections", "sentBytes", "receivedBytes", "syscalls"}[k]
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
	key   limitKey
	spec  Limit
	until time.Time // of its grant, which ends with it
	kill  bool
}

// limitKey names a bucket.
type limitKey struct {
	plugin, grant, rule string
	kind                LimitKind
}

func compileLimits(g *Grant, ruleID string, l Limits) []limit {
	var out []limit
	for _, s := range l.stated() {
		out = append(out, limit{limitKey{g.Plugin, g.Name, ruleID, s.kind}, s.spec, g.NotAfter, l.OnExceeded == OnExceededKill})
	}
	return out
}

// bucket is the usage of one limit. A rate is kept by the generic cell rate
// algorithm (ITU-T I.371, annex A) with a burst of one whole period: tat is
// when the bucket would be empty again.
type bucket struct {
	tat  time.Time
	rest uint64 // what the division of the last increment left over
	used uint64 // of a total
	over bool   // the limit was crossed and has not recovered
}

// spend adds cost and reports whether that was within the limit. With force,
// cost has been used already and is added whatever it does.
func (b *bucket) spend(l Limit, cost uint64, now time.Time, force bool) (ok bool, retry time.Duration) {
	if l.Period == 0 {
		ok = cost <= l.Count && b.used <= l.Count-cost
		if ok || force {
			b.used += cost
		}
		return ok, 0
	}
	tat, rest := b.tat, b.rest
	if tat.Before(now) {
		tat, rest = now, 0
	}
	high, low := bits.Mul64(cost, uint64(l.Period))
	low, carry := bits.Add64(low, rest, 0)
	high += carry
	if high >= l.Count { // over 500 years of debt
		high, low = 0, 1<<62
		rest = 0
	}
	nanos, rest := bits.Div64(high, low, l.Count)
	tat = tat.Add(time.Duration(min(nanos, 1<<62)))
	ok = tat.Sub(now) <= l.Period
	if ok || force {
		b.tat, b.rest = tat, rest
	}
	if !ok {
		retry = tat.Sub(now) - l.Period
	}
	return ok, retry
}

// usedOf returns how much of the limit is in use at now.
func (b *bucket) usedOf(l Limit, now time.Time) uint64 {
	if l.Period == 0 {
		return b.used
	}
	debt := b.tat.Sub(now)
	if debt <= 0 {
		return 0
	}
	high, low := bits.Mul64(uint64(debt), l.Count)
	if high >= uint64(l.Period) {
		return 1<<63 - 1
	}
	used, rest := bits.Div64(high, low, uint64(l.Period))
	if rest > 0 {
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
	buckets map[limitKey]*bucket
	samples map[string]reading
}

type reading struct {
	sample Sample
	at     time.Time
}

// NewLedger returns a ledger in which nothing is used.
func NewLedger() *Ledger {
	return &Ledger{buckets: map[limitKey]*bucket{}, samples: map[string]reading{}}
}

// bucket returns the bucket of a key. The caller holds l.mu.
func (l *Ledger) bucket(key limitKey) *bucket {
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
	return Crossing{l.key.plugin, l.key.grant, l.key.rule, l.key.kind, l.spec, l.kill}
}

// exceeded says which limit refuses, and for how long.
type exceeded struct {
	limit      limit
	retryAfter time.Duration
	crossing   bool // it was not over before
}

// spend takes cost from every limit of the kind, or from none. exhausted
// reports that a total is now used up.
func (l *Ledger) spend(limits []limit, kind LimitKind, cost uint64, now time.Time) (over *exceeded, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lim := range limits {
		if lim.key.kind != kind || !now.Before(lim.until) {
			continue
		}
		trial := *l.bucket(lim.key)
		if ok, retry := trial.spend(lim.spec, cost, now, false); !ok {
			b := l.bucket(lim.key)
			over = &exceeded{lim, retry, !b.over}
			b.over = true
			return over, false
		}
	}
	for _, lim := range limits {
		if lim.key.kind != kind || !now.Before(lim.until) {
			continue
		}
		b := l.bucket(lim.key)
		b.spend(lim.spec, cost, now, false)
		b.over = false
		exhausted = exhausted || lim.spec.Period == 0 && b.used == lim.spec.Count
	}
	return nil, exhausted
}

// Observe takes in a reading of a plugin's counters and returns the limits of
// the snapshot that it crosses. exhausted reports that a total is used up,
// which is a new generation.
func (l *Ledger) Observe(s *Snapshot, plugin Principal, sample Sample, now time.Time) (crossings []Crossing, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.samples[string(plugin)].sample
	l.samples[string(plugin)] = reading{sample, now}
	for _, lim := range s.pluginLimits(plugin) {
		if !lim.key.kind.metered() || !now.Before(lim.until) {
			continue
		}
		total, before := sample.of(lim.key.kind), last.of(lim.key.kind)
		if total < before {
			before = 0
		}
		b := l.bucket(lim.key)
		b.spend(lim.spec, total-before, now, true)
		within := b.tat.Sub(now) <= lim.spec.Period
		if lim.spec.Period == 0 {
			within = b.used < lim.spec.Count
		}
		if !within && !b.over {
			crossings = append(crossings, lim.crossing())
			exhausted = exhausted || lim.spec.Period == 0
		}
		b.over = !within
	}
	return crossings, exhausted
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

// check returns Granted when every limit lets one more access through, and
// otherwise the reason, when to retry, and whether what is in flight is spared.
func (u Usage) check(limits []limit, now time.Time) (reason Reason, retry time.Duration, spares bool) {
	if u.ledger == nil || len(limits) == 0 {
		return Granted, 0, false
	}
	l := u.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	reason = Granted
	for _, lim := range limits {
		kind := lim.key.kind
		if kind == LimitConnections || kind == LimitRequests && u.inFlight || !now.Before(lim.until) {
			continue
		}
		if kind.metered() && now.Sub(l.samples[lim.key.plugin].at) > staleAfter {
			if reason == Granted {
				reason, spares = UsageUnknown, true
			}
			continue
		}
		trial := bucket{}
		if b := l.buckets[lim.key]; b != nil {
			trial = *b
		}
		ok, wait := trial.spend(lim.spec, 1, now, false)
		if ok {
			continue
		}
		total := lim.spec.Period == 0
		if reason != QuotaExceeded {
			reason, spares, retry = QuotaExceeded, true, 0
		}
		spares = spares && !total
		if retry = max(retry, wait); total {
			retry = 0
		}
		if total {
			return QuotaExceeded, 0, false
		}
	}
	return reason, retry, spares
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
		u := UsageOf{lim.key.plugin, lim.key.grant, lim.key.rule, lim.key.kind, lim.spec, 0, true}
		if b := l.buckets[lim.key]; b != nil {
			u.Used = b.usedOf(lim.spec, now)
		}
		u.Known = !lim.key.kind.metered() || now.Sub(l.samples[lim.key.plugin].at) <= staleAfter
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
		if b.used > 0 {
			out = append(out, Total{key.plugin, key.grant, key.rule, key.kind.String(), b.used})
		}
	}
	slices.SortFunc(out, func(a, b Total) int {
		return strings.Compare(a.Plugin+"/"+a.Grant+"/"+a.Rule+"/"+a.Kind, b.Plugin+"/"+b.Grant+"/"+b.Rule+"/"+b.Kind)
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
				l.bucket(limitKey{t.Plugin, t.Grant, t.Rule, kind}).used = t.Used
			}
		}
	}
}
