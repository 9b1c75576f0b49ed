package authz

import (
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"
	"unique"
)

// LimitKind is the unit that a limit counts.
type LimitKind uint8

// The kinds of limits.
const (
	LimitRequests LimitKind = iota
	LimitConnections
	LimitSentBytes
	LimitReceivedBytes
	LimitSyscalls
	LimitProcesses
)

// limitKinds returns every kind.
func limitKinds() []LimitKind {
	return []LimitKind{LimitRequests, LimitConnections, LimitSentBytes, LimitReceivedBytes, LimitSyscalls, LimitProcesses}
}

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
	case LimitProcesses:
		return "processes"
	}
	return "unknown"
}

// metered reports whether only the kernel counts and enforces the kind.
func (k LimitKind) metered() bool { return k != LimitRequests }

// prepaid reports whether the kind is spent before any request can be made, so
// that no request is refused because it is used up.
func (k LimitKind) prepaid() bool { return k == LimitConnections || k == LimitProcesses }

// bytes reports whether the kind counts bytes, whose flow can be slowed.
func (k LimitKind) bytes() bool { return k == LimitSentBytes || k == LimitReceivedBytes }

// StatedLimit is a limit that a document states.
type StatedLimit struct {
	Kind  LimitKind
	Limit Limit
	text  string
}

// String returns the limit as a document states it, as in "requests: 100/1m".
func (s StatedLimit) String() string { return s.Kind.String() + ": " + s.text }

// Stated returns the limits that the document states, in the order of their kinds.
func (l Limits) Stated() []StatedLimit {
	all := []StatedLimit{
		{LimitRequests, l.Requests, l.Requests.String()},
		{LimitConnections, l.Connections, l.Connections.String()},
		{LimitSentBytes, Limit(l.SentBytes), l.SentBytes.String()},
		{LimitReceivedBytes, Limit(l.ReceivedBytes), l.ReceivedBytes.String()},
		{LimitSyscalls, l.Syscalls, l.Syscalls.String()},
		{LimitProcesses, l.Processes, l.Processes.String()},
	}
	return slices.DeleteFunc(all, func(s StatedLimit) bool { return s.Limit.IsZero() })
}

// String returns the limits as a grant states them on one line, "" without limits.
func (l Limits) String() string {
	var out []string
	for _, s := range l.Stated() {
		out = append(out, s.String())
	}
	if l.CountSyscalls != "" {
		out = append(out, "countSyscalls: "+string(l.CountSyscalls))
	}
	if l.OnExceeded != "" {
		out = append(out, "onExceeded: "+string(l.OnExceeded))
	}
	return strings.Join(out, ", ")
}

// Within reports whether a limit is not higher than a ceiling. A rate is
// compared by its maximum usage in the ceiling's period, burst included; a total
// is within any rate that it cannot exceed.
func (l Limit) Within(ceiling Limit) bool {
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
	key       bucketKey
	kind      LimitKind
	refuses   bool // refuses an access once it is used up
	throttles bool // delays an access before it refuses
	exact     bool // each system call is counted
	spec      Limit
	until     time.Time // the end of its grant
	action    OnExceeded
}

// throttlesBytes reports whether the limit slows bytes down.
func (l *limit) throttlesBytes() bool { return l.kind.bytes() && !l.refuses }

// limitName identifies a limit and its bucket.
type limitName struct {
	plugin, grant, rule string
	kind                LimitKind
}

// bucketKey is a limit's name as one word, so that finding its bucket does not
// compare four strings.
type bucketKey = unique.Handle[limitName]

func compileLimits(g *Grant, ruleID string, l Limits) []limit {
	action := l.OnExceeded
	if action == "" {
		action = OnExceededDeny
	}
	var out []limit
	for _, s := range l.Stated() {
		// A total cannot be slowed down: once it is used up it refuses.
		throttles := action == OnExceededThrottle && s.Limit.Period > 0
		out = append(out, limit{
			key:  unique.Make(limitName{g.Plugin, g.Name, ruleID, s.Kind}),
			kind: s.Kind, spec: s.Limit, until: g.NotAfter, action: action,
			refuses:   !s.Kind.prepaid() && !(s.Kind.metered() && throttles),
			throttles: !s.Kind.metered() && throttles,
			exact:     s.Kind == LimitSyscalls && l.CountSyscalls == CountExact,
		})
	}
	return out
}

// bucket is the usage of one limit. A rate uses the generic cell rate algorithm
// (ITU-T I.371, annex A) with a burst of one whole period: tat, the theoretical
// arrival time, is when the bucket will be empty.
type bucket struct {
	tat       time.Time
	rest      uint64        // remainder of the last charge's division
	period    time.Duration // the period that tat was computed with
	used      uint64        // of a total
	crossed   bool          // the limit was exceeded and has not recovered
	recent    window        // of a rate, for Report
	persisted durable
}

// durable is the part of a bucket that is on disk and survives a crash.
type durable struct {
	tat  time.Time // of a rate, computed with the bucket's period
	used uint64    // of a total
}

// maxPeriod is the longest period of a rate, a hundred years. maxCharge is longer
// than any period, 146 years.
const (
	maxPeriod = 36_500 * 24 * time.Hour
	maxCharge = 1 << 62
)

// spend adds cost and reports whether it was within the limit. If force is set,
// cost has already been used and is added even beyond the limit.
func (b *bucket) spend(l Limit, cost uint64, now time.Time, force bool) (ok bool, retry time.Duration) {
	if l.Period == 0 {
		ok = cost <= l.Count && b.used <= l.Count-cost
		if ok || force {
			b.used += min(cost, math.MaxUint64-b.used)
		}
		return ok, 0
	}
	tat, rest := b.tatAt(l, now)
	nanos, rest := l.charge(cost, rest)
	tat = tat.Add(nanos)
	ok, retry = l.admits(tat, rest, now)
	if ok || force {
		if b.period != l.Period {
			b.persisted.tat = time.Time{}
		}
		b.tat, b.rest, b.period = tat, rest, l.Period
		b.recent.add(cost, now, l.Period)
	}
	return ok, retry
}

// tatAt returns the theoretical arrival time of a rate at now. If a reload has
// changed the rate's period, the same share of the bucket stays full.
func (b *bucket) tatAt(l Limit, now time.Time) (tat time.Time, rest uint64) {
	if !b.tat.After(now) && (b.tat.Before(now) || b.rest == 0) {
		return now, 0
	}
	if b.period == l.Period {
		return b.tat, min(b.rest, l.Count-1)
	}
	return now.Add(rescale(b.tat.Sub(now), b.period, l.Period)), 0
}

// rescale scales debt from one period to another.
func rescale(debt, of, to time.Duration) time.Duration {
	if debt <= 0 || of <= 0 {
		return 0
	}
	high, low := bits.Mul64(uint64(debt), uint64(to))
	if high >= uint64(of) {
		return maxCharge
	}
	scaled, _ := bits.Div64(high, low, uint64(of))
	return time.Duration(min(scaled, maxCharge))
}

// charge returns the time that the rate takes for cost, and the remainder of the
// division for the next charge, so that rounding loses nothing.
func (l Limit) charge(cost, rest uint64) (time.Duration, uint64) {
	high, low := bits.Mul64(cost, uint64(l.Period))
	low, carry := bits.Add64(low, rest, 0)
	if high += carry; high >= l.Count {
		return maxCharge, 0
	}
	nanos, rest := bits.Div64(high, low, l.Count)
	if nanos > maxCharge {
		return maxCharge, 0
	}
	return time.Duration(nanos), rest
}

// admits reports whether a bucket that will be empty at tat and rest is at most
// one period full at now, and if not, the time until it is.
func (l Limit) admits(tat time.Time, rest uint64, now time.Time) (ok bool, retry time.Duration) {
	excess := tat.Sub(now) - l.Period
	if rest > 0 {
		excess++
	}
	return excess <= 0, max(excess, 0)
}

// refund returns one token of a rate or a total for an access that was not made.
// Tokens that time has already returned are not refunded again.
func (b *bucket) refund(l Limit, now time.Time) {
	if l.Period == 0 {
		b.used -= min(b.used, 1)
		return
	}
	if b.period != l.Period || !b.tat.After(now) {
		return
	}
	nanos, rest := l.charge(1, 0)
	if b.rest < rest {
		nanos++
		b.rest += l.Count
	}
	b.rest -= rest
	b.tat = b.tat.Add(-nanos)
	b.recent.now -= min(b.recent.now, 1)
}

// exceeded reports whether a rate is overused, or a total is used up.
func (b *bucket) exceeded(l Limit, now time.Time) bool {
	if l.Period == 0 {
		return b.used >= l.Count
	}
	within, _ := l.admits(b.tat, b.rest, now)
	return !within
}

// recovered reports whether a tenth of the limit is free, so that the next
// crossing is reported: a plugin at its limit exceeds it with every other request.
func (b *bucket) recovered(l Limit, now time.Time) bool {
	return b.usedOf(l, now) <= l.Count-(l.Count+9)/10
}

// usedOf returns the part of the limit that is in use at now.
func (b *bucket) usedOf(l Limit, now time.Time) uint64 {
	if l.Period == 0 {
		return b.used
	}
	tat, rest := b.tatAt(l, now)
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
