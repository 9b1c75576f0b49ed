package authz

import (
	"iter"
	"sync"
	"time"
)

// staleAfter is the age of the last sample of the kernel's counters beyond
// which a metered limit can no longer be judged.
const staleAfter = 5 * time.Second

// Sample is a reading of the kernel's counters for a plugin. They only grow,
// from 0 where they were made; a smaller reading is of counters made anew.
type Sample struct {
	Connections   uint64 `json:"connections"` // that were let through to the sidecar
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

// since returns what was used between two readings.
func (s Sample) since(before Sample) Sample {
	for _, k := range limitKinds() {
		if s.count(k) < before.count(k) {
			return s // the counters were made anew
		}
	}
	return Sample{
		s.Connections - before.Connections, s.SentBytes - before.SentBytes, s.ReceivedBytes - before.ReceivedBytes,
		s.Syscalls - before.Syscalls, s.Processes - before.Processes,
	}
}

// Ledger keeps usage against limits. Doors spend from it; the kernel's
// counters are observed into it. It is safe for concurrent use.
type Ledger struct {
	mu        sync.Mutex
	buckets   map[bucketKey]*bucket
	throttles map[bucketKey]*bucket // of what doors let through under throttle
	samples   map[Principal]reading
}

// reading is a plugin's last sample.
type reading struct {
	sample   Sample
	at       time.Time // zero when that is not known
	restored bool      // it was not read in this run: what is used now is not known by it
}

// NewLedger returns a ledger in which nothing is used.
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

// Crossing is a limit that has just been exceeded. It is reported once, until
// a tenth of the limit is free again and it is exceeded anew.
type Crossing struct {
	Plugin, Grant, Rule string
	Kind                LimitKind
	Limit               Limit
	Action              OnExceeded // what the grant asks for; "" when it is only observed
}

func (l limit) crossing() Crossing {
	name := l.key.Value()
	return Crossing{name.plugin, name.grant, name.rule, l.kind, l.spec, l.action}
}

// spend takes one from every limit of the kind, or from none. exhausted reports
// that a total is now used up.
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

// spendAll takes one from every limit of the kind. The caller holds l.mu.
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

// queue takes one request from every limit in advance, unless one of them
// refuses it for good or the wait is longer than most. The request may be made
// after wait: who comes later waits longer.
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

// refund gives back what queue took at now for a request that was not made.
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

// Begin says where a plugin's counters stand without anything of it being new:
// at [Sample]{} where they were just made, at a reading where a sidecar takes
// over counters of which it has no [State]. What is used is not known before
// the first Observe.
func (l *Ledger) Begin(plugin Principal, sample Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples[plugin] = reading{sample: sample}
}

// Observe takes in a reading of a plugin's counters. exhausted reports that a
// total which refuses accesses is now used up, which is a new generation. The
// kernel reports what crosses the limits that it enforces; the crossings here
// are those that it does not know of, as the sidecar only observes.
func (l *Ledger) Observe(s *Snapshot, plugin Principal, sample Sample, now time.Time) (crossings []Crossing, exhausted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.samples[plugin]
	l.samples[plugin] = reading{sample: sample, at: now}
	// What was used between two readings was used all the while: a rate is
	// charged as for an even flow, which may be long while nobody read.
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

// MeteredLimit is a limit that the kernel is to enforce.
type MeteredLimit struct {
	Grant  string
	Kind   LimitKind
	Limit  Limit
	Used   uint64        // of a total, so far; 0 of a rate
	Debt   time.Duration // of a rate: until nothing of it is in use; 0 of a total
	Action OnExceeded
}

// Metered returns the limits that the kernel is to enforce on a plugin now, in
// a stable order: those of grants in force, and none while the sidecar observes.
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
		m := MeteredLimit{Grant: lim.key.Value().grant, Kind: lim.kind, Limit: lim.spec, Action: lim.action}
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

// limitStatus is how an access stands against some limits. The zero value is
// within all of them.
type limitStatus struct {
	over    bool          // one of them refuses it,
	hard    bool          // and one does not have it wait,
	total   bool          // and for good
	unknown bool          // one of them cannot be judged
	retry   time.Duration // when all may let it through; 0 for never
}

// and returns how an access stands against the limits of both.
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

// check judges one more access against the winner's own limits and those of
// the whole plugin.
func (u Usage) check(p Principal, own, shared []limit, now time.Time) (ofRule, ofPlugin limitStatus) {
	if u.ledger == nil || len(own)+len(shared) == 0 {
		return limitStatus{}, limitStatus{}
	}
	u.ledger.mu.Lock()
	defer u.ledger.mu.Unlock()
	return u.status(p, own, now), u.status(p, shared, now)
}

// status is check for one set of limits. The caller holds the ledger's lock.
func (u Usage) status(p Principal, limits []limit, now time.Time) (s limitStatus) {
	for i := range limits {
		lim := &limits[i]
		switch {
		case !now.Before(lim.until):
		case lim.kind == LimitRequests && u.inFlight:
			// Paid for when it was made.
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

// fresh reports whether the plugin's counters were read lately. A reading from
// the future is a clock that was set, and says nothing.
func (l *Ledger) fresh(p Principal, now time.Time) bool {
	last := l.samples[p]
	age := now.Sub(last.at)
	return !last.restored && -staleAfter <= age && age <= staleAfter
}

// UsageOf is what is used of one limit.
type UsageOf struct {
	Plugin, Grant, Rule string
	Kind                LimitKind
	Limit               Limit
	Action              OnExceeded
	Used                uint64        // of a rate: now, with what waits for it; of a total: ever
	Recent              uint64        // of a rate: in the period before now, whether it counts still or not; of a total: ever
	Known               bool          // false when the kernel's counters are stale
	Exceeded            bool          // the next one would be refused, or wait
	Retry               time.Duration // until it would not; 0 when it is not exceeded, and for a total
}

// Report returns what is used of each limit of a plugin, in a stable order.
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
