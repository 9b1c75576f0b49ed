package authz

import "time"

// ThrottleBytes returns how long a door must wait before it passes n more bytes of
// the plugin, sent or received according to kind: 0 unless a limit of the plugin
// throttles them. Every call counts its bytes, and calls that wait are served in
// order. The door itself checks after the wait whether the access is still allowed.
// n should be some tens of KiB: the kernel sees the bytes in one burst, and drops
// those above the limit's COUNT.
//
// The kernel counts IP bytes and drops bytes above a rate; TCP then retransmits
// them late. ThrottleBytes stays below: at 98 of 100 bytes of the rate, which
// leaves room for headers, with a burst of half a second, or of half the period if
// that is shorter. If headers take more, alignToKernel slows it down further.
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

// throttleBurst returns the burst that doors may pass, as the time that the rate
// takes for it.
func (lim *limit) throttleBurst() time.Duration { return min(lim.spec.Period, time.Second) / 2 }

// alignToKernel limits doors to the room that the kernel's own count leaves, less
// the bytes that already wait, and less half a burst for the bytes that passed
// since the count was read. The caller holds l.mu.
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
