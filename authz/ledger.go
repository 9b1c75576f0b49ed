package authz

import (
	"iter"
	"sync"
	"time"
)

// staleAfter is the age of the last sample of the kernel's counters beyond
// which a metered limit can no longer be judged.
const staleAfter = 5 * time.Second

// Sample is a reading of the kernel's counters for a plugin. Counters only grow,
// from 0 at their creation; a smaller reading means that they were recreated.
type Sample struct {
	Connections   uint64 `json:"connections"` // that the kernel allowed to the sidecar
	SentBytes     uint64 `json:"sentBytes"`
	ReceivedBytes uint64 `json:"receivedBytes"`
	Syscalls      uint64 `json:"syscalls"`
	Processes     uint64 `json:"processes"` // started
}

func (s Sample) count(k LimitKind) uint64 {
	switch k {
	case LimitConnections:
		return s.Connections
	case LimitSentBytes:
		return s.SentBytes
	case LimitReceivedBytes:
		return s.ReceivedBytes
	case LimitSyscalls:
		return s.Syscalls
	case LimitProcesses:
		return s.Processes
	case LimitRequests:
	}
	return 0
}

// since returns the usage between two readings.
func (s Sample) since(before Sample) Sample {
	for _, k := range limitKinds() {
		if s.count(k) < before.count(k) {
			return s // the counters were recreated
		}
	}
	return Sample{
		s.Connections - before.Connections, s.SentBytes - before.SentBytes, s.ReceivedBytes - before.ReceivedBytes,
		s.Syscalls - before.Syscalls, s.Processes - before.Processes,
	}
}

// Ledger keeps the usage of limits. Doors spend from it, and readings of the
// kernel's counters are added to it. It is safe for concurrent use.
type Ledger struct {
	mu        sync.Mutex
	buckets   map[bucketKey]*bucket
	throttles map[bucketKey]*bucket // of bytes that doors have passed under throttle
	samples   map[Principal]reading
}

// reading is a plugin's last sample.
type reading struct {
	sample   Sample
	at       time.Time // zero when unknown
	restored bool      // read by an earlier run; the current usage is unknown
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{buckets: map[bucketKey]*bucket{}, throttles: map[bucketKey]*bucket{}, samples: map[Principal]reading{}}
}

// bucket returns the bucket of a key. The caller holds l.mu.
func (l *Ledger) bucket(key bucketKey) *bucket { return bucketIn(l.buckets, key) }

func bucketIn(all map[bucketKey]*bucket, key bucketKey) *bucket {
	b := all[key]
	if b == nil {
		b = &bucket{}
		all[key] = b
	}
	return b
}

// Crossing reports a limit that has just been exceeded. It is reported once, and
// again only after a tenth of the limit has become free.
type Crossing struct {
	Plugin, Grant, Rule string
	Kind                LimitKind
	Limit               Limit
	Action              OnExceeded // the grant's onExceeded; "" while it only observes
}

func (l limit) crossing() Crossing {
	name := l.key.Value()
	return Crossing{name.plugin, name.grant, name.rule, l.kind, l.spec, l.action}
}

// spend spends one from every limit of the kind, or from no limit at all. exhausted
// reports that a total is now used up.
func (l *Ledger) spend(own, shared []limit, kind LimitKind, now time.Time) (ok, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range limitsOfKind(own, shared, kind, now) {
		trial := *l.bucket(lim.key)
		if ok, _ := trial.spend(lim.spec, 1, now, false); !ok {
			return false, false
		}
	}
	return true, l.spendAll(own, shared, kind, now)
}

// spendAll spends one from every limit of the kind. The caller holds l.mu.
func (l *Ledger) spendAll(own, shared []limit, kind LimitKind, now time.Time) (exhausted bool) {
	for lim := range limitsOfKind(own, shared, kind, now) {
		b := l.bucket(lim.key)
		if b.crossed && b.recovered(lim.spec, now) {
			b.crossed = false
		}
		b.spend(lim.spec, 1, now, true)
		exhausted = exhausted || lim.spec.Period == 0 && b.used == lim.spec.Count
	}
	return exhausted
}

// queue spends one request from every limit in advance, unless a limit refuses
// it permanently or the wait exceeds most. The request may be made after wait;
// later requests wait longer.
func (l *Ledger) queue(own, shared []limit, now time.Time, most time.Duration) (wait time.Duration, ok, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range limitsOfKind(own, shared, LimitRequests, now) {
		trial := *l.bucket(lim.key)
		within, retry := trial.spend(lim.spec, 1, now, false)
		if !within && !lim.throttles {
			return 0, false, false
		}
		wait = max(wait, retry)
	}
	if wait > most {
		return wait, false, false
	}
	return wait, true, l.spendAll(own, shared, LimitRequests, now)
}

// refund returns what queue spent at now for a request that was not made.
func (l *Ledger) refund(own, shared []limit, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range limitsOfKind(own, shared, LimitRequests, now) {
		l.bucket(lim.key).refund(lim.spec, now)
	}
}

// newlyExceeded returns the limits of the kind that refuse now and did not before.
func (l *Ledger) newlyExceeded(own, shared []limit, kind LimitKind, now time.Time) (crossings []Crossing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range limitsOfKind(own, shared, kind, now) {
		b := l.bucket(lim.key)
		trial := *b
		if ok, _ := trial.spend(lim.spec, 1, now, false); !ok && !b.crossed {
			b.crossed = true
			crossings = append(crossings, lim.crossing())
		}
	}
	return crossings
}

// limitsOfKind yields the limits of a kind whose grant has not ended.
func limitsOfKind(own, shared []limit, kind LimitKind, now time.Time) iter.Seq[*limit] {
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

// Begin sets the starting point of a plugin's counters without charging for it:
// [Sample]{} for counters that were just created, or a reading if the sidecar takes
// over counters of which it has no [State]. Usage is unknown until the first Observe.
func (l *Ledger) Begin(plugin Principal, sample Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples[plugin] = reading{sample: sample}
}

// Observe adds a reading of a plugin's counters. exhausted reports that a total
// that refuses accesses is now used up, which needs a new generation. The kernel
// reports crossings of the limits that it enforces; Observe returns the others,
// while the sidecar only observes.
func (l *Ledger) Observe(s *Snapshot, plugin Principal, sample Sample, now time.Time) (crossings []Crossing, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.samples[plugin]
	l.samples[plugin] = reading{sample: sample, at: now}
	// Usage between two readings is treated as an even flow: a rate is charged
	// from the time of the earlier reading, which may be long ago.
	used, since := sample.since(last.sample), now
	if !last.at.IsZero() && last.at.Before(now) {
		since = last.at
	}
	observing := s.Observing(plugin, now)
	limits := s.pluginLimits(plugin)
	for i := range limits {
		lim := &limits[i]
		if !lim.kind.metered() || !now.Before(lim.until) {
			continue
		}
		b := l.bucket(lim.key)
		left := lim.spec.Period == 0 && b.used < lim.spec.Count
		b.spend(lim.spec, used.count(lim.kind), since, true)
		if lim.throttlesBytes() {
			l.alignToKernel(lim, now)
		}
		exhausted = exhausted || left && lim.refuses && b.used >= lim.spec.Count
		switch {
		case b.exceeded(lim.spec, now):
			if observing && !b.crossed {
				crossing := lim.crossing()
				crossing.Action = ""
				crossings = append(crossings, crossing)
			}
			b.crossed = true
		case b.recovered(lim.spec, now):
			b.crossed = false
		}
	}
	return crossings, exhausted
}

// MeteredLimit is a limit for the kernel to enforce.
type MeteredLimit struct {
	Grant  string
	Kind   LimitKind
	Limit  Limit
	Used   uint64        // of a total, so far; 0 of a rate
	Debt   time.Duration // of a rate: the time until it is unused; 0 of a total
	Action OnExceeded
	Exact  bool // each system call is counted: see CountExact
}

// Metered returns the limits for the kernel to enforce on a plugin now, in a
// stable order: those of grants in force, and nil while the sidecar observes.
func (l *Ledger) Metered(s *Snapshot, plugin Principal, now time.Time) []MeteredLimit {
	if s.Observing(plugin, now) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []MeteredLimit
	for _, lim := range s.pluginLimits(plugin) {
		if !lim.kind.metered() || !now.Before(lim.until) {
			continue
		}
		m := MeteredLimit{Grant: lim.key.Value().grant, Kind: lim.kind, Limit: lim.spec, Action: lim.action, Exact: lim.exact}
		if b := l.buckets[lim.key]; b != nil && lim.spec.Period == 0 {
			m.Used = b.used
		} else if b != nil {
			tat, _ := b.tatAt(lim.spec, now)
			m.Debt = tat.Sub(now)
		}
		out = append(out, m)
	}
	return out
}

// Usage is the usage of every limit. The zero Usage is empty.
type Usage struct {
	ledger   *Ledger
	inFlight bool // the access has already spent
}

// Usage returns the ledger's usage, which is read when it is needed.
func (l *Ledger) Usage() Usage { return Usage{ledger: l} }

// InFlight returns the usage for an access that was admitted before: its own
// request has been spent.
func (u Usage) InFlight() Usage { u.inFlight = true; return u }

// limitStatus is the result of checking an access against limits. The zero value
// is within all limits.
type limitStatus struct {
	over    bool          // a limit refuses the access
	hard    bool          // and that limit does not throttle
	total   bool          // and that limit is a total, so it never recovers
	unknown bool          // a limit cannot be judged
	retry   time.Duration // the time until every limit may allow it; 0 for never
}

// and combines two results.
func (s limitStatus) and(other limitStatus) limitStatus {
	s.over = s.over || other.over
	s.hard = s.hard || other.hard
	s.total = s.total || other.total
	s.unknown = s.unknown || other.unknown
	if s.retry = max(s.retry, other.retry); s.total {
		s.retry = 0
	}
	return s
}

// check checks one more access against the winner's own limits and those of
// the whole plugin.
func (u Usage) check(p Principal, own, shared []limit, now time.Time) (ofRule, ofPlugin limitStatus) {
	if u.ledger == nil || len(own)+len(shared) == 0 {
		return limitStatus{}, limitStatus{}
	}
	u.ledger.mu.Lock()
	defer u.ledger.mu.Unlock()
	return u.status(p, own, now), u.status(p, shared, now)
}

// status checks one set of limits. The caller holds the ledger's lock.
func (u Usage) status(p Principal, limits []limit, now time.Time) (s limitStatus) {
	for i := range limits {
		lim := &limits[i]
		switch {
		case !now.Before(lim.until):
		case lim.kind == LimitRequests && u.inFlight:
			// The access spent when it was made.
		case lim.kind.metered() && !u.ledger.fresh(p, now):
			s.unknown = true
		case lim.refuses:
			var trial bucket
			if b := u.ledger.buckets[lim.key]; b != nil {
				trial = *b
			}
			if ok, wait := trial.spend(lim.spec, 1, now, false); !ok {
				s = s.and(limitStatus{over: true, hard: !lim.throttles, total: lim.spec.Period == 0, retry: wait})
			}
		}
	}
	return s
}

// fresh reports whether the plugin's counters were read within staleAfter. A
// reading from the future means that the clock was set, and is not fresh.
func (l *Ledger) fresh(p Principal, now time.Time) bool {
	last := l.samples[p]
	age := now.Sub(last.at)
	return !last.restored && -staleAfter <= age && age <= staleAfter
}

// UsageOf is the usage of one limit.
type UsageOf struct {
	Plugin, Grant, Rule string
	Kind                LimitKind
	Limit               Limit
	Action              OnExceeded
	Used                uint64        // of a rate: in use now, including accesses that wait; of a total: so far
	Recent              uint64        // of a rate: within the last period, even if it no longer counts; of a total: so far
	Known               bool          // false when the kernel's counters are stale
	Exceeded            bool          // the next access would be refused or delayed
	Retry               time.Duration // until it would not be; 0 when it is not exceeded, and for a total
}

// Report returns the usage of every limit of a plugin, in a stable order.
func (l *Ledger) Report(s *Snapshot, plugin Principal, now time.Time) []UsageOf {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []UsageOf
	for _, lim := range s.allLimits(plugin) {
		name := lim.key.Value()
		u := UsageOf{
			Plugin: name.plugin, Grant: name.grant, Rule: name.rule, Kind: lim.kind, Limit: lim.spec, Action: lim.action,
			Known: !lim.kind.metered() || l.fresh(plugin, now),
		}
		if b := l.buckets[lim.key]; b != nil {
			u.Used = b.usedOf(lim.spec, now)
			if u.Recent = u.Used; lim.spec.Period > 0 {
				u.Recent = b.recent.read(now, lim.spec.Period)
			}
			trial := *b
			within, retry := trial.spend(lim.spec, 1, now, false)
			u.Exceeded, u.Retry = !within, retry
		}
		out = append(out, u)
	}
	return out
}
