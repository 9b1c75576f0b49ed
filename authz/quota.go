package authz

import (
	"math"
	"math/bits"
	"slices"
	"strings"
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

// metered reports whether only the kernel counts it, and enforces it.
func (k LimitKind) metered() bool { return k != LimitRequests }

// prepaid reports whether what it counts was paid for before any request could
// be made with it, so that no request is refused because it is used up.
func (k LimitKind) prepaid() bool { return k == LimitConnections || k == LimitProcesses }

// bytes reports whether it counts bytes, whose flow can be slowed.
func (k LimitKind) bytes() bool { return k == LimitSentBytes || k == LimitReceivedBytes }

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
		{LimitProcesses, l.Processes, l.Processes.String()},
	}
	return slices.DeleteFunc(all, func(s statedLimit) bool { return s.spec.IsZero() })
}

// String returns the limits as a grant states them on one line, "" for none.
func (l Limits) String() string {
	var out []string
	for _, s := range l.stated() {
		out = append(out, s.kind.String()+": "+s.text)
	}
	if l.OnExceeded != "" {
		out = append(out, "onExceeded: "+string(l.OnExceeded))
	}
	return strings.Join(out, ", ")
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
	key       bucketKey
	kind      LimitKind
	refuses   bool // an access, once it is used up
	throttles bool // has the access wait before it refuses
	spec      Limit
	until     time.Time // of its grant, which ends with it
	action    OnExceeded
}

// throttlesBytes reports whether bytes flow slower for it.
func (l *limit) throttlesBytes() bool { return l.kind.bytes() && !l.refuses }

// limitName names a limit, and with it its bucket.
type limitName struct {
	plugin, grant, rule string
	kind                LimitKind
}

// bucketKey is the name of a limit as one word, so that its bucket is found
// without reading four.
type bucketKey = unique.Handle[limitName]

func compileLimits(g *Grant, ruleID string, l Limits) []limit {
	action := l.OnExceeded
	if action == "" {
		action = OnExceededDeny
	}
	var out []limit
	for _, s := range l.stated() {
		// A total has no pace to slow down to: once it is used up it refuses.
		throttles := action == OnExceededThrottle && s.spec.Period > 0
		out = append(out, limit{
			key:  unique.Make(limitName{g.Plugin, g.Name, ruleID, s.kind}),
			kind: s.kind, spec: s.spec, until: g.NotAfter, action: action,
			refuses:   !s.kind.prepaid() && !(s.kind.metered() && throttles),
			throttles: !s.kind.metered() && throttles,
		})
	}
	return out
}

// bucket is the usage of one limit. A rate is kept by the generic cell rate
// algorithm (ITU-T I.371, annex A) with a burst of one whole period: tat is
// when the bucket would be empty again.
type bucket struct {
	tat       time.Time
	rest      uint64        // what the division of the last charge left over
	period    time.Duration // that tat was reckoned with
	used      uint64        // of a total
	crossed   bool          // the limit was crossed and has not recovered
	recent    window        // of a rate, for Report
	persisted durable
}

// durable is what was written down of a bucket, and survives a crash.
type durable struct {
	tat  time.Time // of a rate, reckoned with the bucket's period
	used uint64    // of a total
}

// maxPeriod is the longest period of a rate, and never a charge that no period
// ends: a hundred years and 146.
const (
	maxPeriod = 36_500 * 24 * time.Hour
	maxCharge = 1 << 62
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

// tatAt returns where a rate stands at now. When a reload has changed its
// period, as much of the bucket is full as was before.
func (b *bucket) tatAt(l Limit, now time.Time) (tat time.Time, rest uint64) {
	if !b.tat.After(now) && (b.tat.Before(now) || b.rest == 0) {
		return now, 0
	}
	if b.period == l.Period {
		return b.tat, min(b.rest, l.Count-1)
	}
	return now.Add(rescale(b.tat.Sub(now), b.period, l.Period)), 0
}

// rescale returns what is as large a share of one period as debt is of another.
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

// charge returns how long the rate takes to let cost through, and what the
// division leaves over, for the next charge: nothing is lost to rounding.
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

// admits reports whether a bucket that is empty again at tat and rest is no
// fuller than one period at now, and if not, how long until it is.
func (l Limit) admits(tat time.Time, rest uint64, now time.Time) (ok bool, retry time.Duration) {
	excess := tat.Sub(now) - l.Period
	if rest > 0 {
		excess++
	}
	return excess <= 0, max(excess, 0)
}

// refund takes back what one that was not made has spent at a rate or a total.
// Time that has passed is not given back.
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

// exceeded reports whether more has been used than there is, or all of a total.
func (b *bucket) exceeded(l Limit, now time.Time) bool {
	if l.Period == 0 {
		return b.used >= l.Count
	}
	within, _ := l.admits(b.tat, b.rest, now)
	return !within
}

// recovered reports whether a tenth of the limit is free again, and so whether
// to exceed it anew is to be told anew: a plugin at its limit goes over it with
// every other request.
func (b *bucket) recovered(l Limit, now time.Time) bool {
	return b.usedOf(l, now) <= l.Count-(l.Count+9)/10
}

// usedOf returns how much of the limit is in use at now.
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
