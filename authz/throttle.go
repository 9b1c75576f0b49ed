package authz

import "time"

// ThrottleBytes returns how long a door is to wait before it lets n more bytes of the
// plugin pass, sent or received as kind says: 0 unless a limit of the plugin on
// them throttles. Each call counts its bytes, and calls that wait are served in
// the order in which they came; whether the access is still allowed is for the
// door to ask. n is best some tens of KiB: what comes at once comes to the
// kernel at once, and more than the limit's COUNT is dropped there.
//
// The kernel counts IP bytes and drops what exceeds a rate; TCP then sends it
// again, late. Pace keeps below, at 98 of 100 bytes of the rate for the sake of
// headers, and with half a second's worth of burst, or half the limit's where
// that is less. Where headers weigh more, what the kernel has counted slows it
// down further.
func (g *Gate) ThrottleBytes(p Principal, kind LimitKind, n int) time.Duration {
	snapshot := g.cfg.Engine.Current()
	limits := snapshot.pluginLimits(p)
	for i := range limits {
		if lim := &limits[i]; lim.kind == kind && lim.throttlesBytes() && n > 0 {
			now := g.cfg.Now()
			if snapshot.Observing(p, now) {
				return 0
			}
			return g.cfg.Ledger.throttleBytes(limits, kind, uint64(n), now)
		}
	}
	return 0
}

// throttleBytes counts n bytes against every limit that throttles them.
func (l *Ledger) throttleBytes(limits []limit, kind LimitKind, n uint64, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range limitsOfKind(nil, limits, kind, now) {
		if lim.throttlesBytes() {
			b := bucketIn(l.throttles, lim.key)
			b.spend(lim.spec, n+(n+48)/49, now, true)
			wait = max(wait, b.tat.Sub(now)-lim.throttleBurst())
		}
	}
	return wait
}

// throttleBurst is what doors let through at once, as the time in which the rate
// lets it through.
func (lim *limit) throttleBurst() time.Duration { return min(lim.spec.Period, time.Second) / 2 }

// alignToKernel has doors let through no more than there is room for by the kernel's own
// count, less what already waits to pass and half a burst for what has passed
// since it was read. The caller holds l.mu.
func (l *Ledger) alignToKernel(lim *limit, now time.Time) {
	b, counted, burst := l.throttles[lim.key], l.bucket(lim.key), lim.throttleBurst()
	if b == nil {
		return
	}
	room := lim.spec.Period - max(0, counted.tat.Sub(now)) - max(0, b.tat.Sub(now)-burst) - burst/2
	if full := now.Add(burst - room); b.tat.Before(full) {
		b.tat, b.rest, b.period = full, 0, lim.spec.Period
	}
}
