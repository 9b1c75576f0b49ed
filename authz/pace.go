package authz

import "time"

// Pace returns how long a door is to wait before it lets n more bytes of the
// plugin pass, sent or received as kind says: 0 unless a limit of the plugin on
// them throttles. Each call counts its bytes; calls that wait are served in the
// order in which they came. It does not look at whether the access is still
// allowed. n is best some tens of KiB: what comes at once comes to the kernel at
// once, and more than the limit's COUNT is dropped there.
//
// The kernel drops what exceeds a rate, counting IP bytes; TCP then sends them
// again, late. Pace keeps below: at 98 of 100 bytes of the rate, for the
// headers, with a burst of a second's worth or of the limit's where that is
// less, and slower still when headers make the kernel's own count run up.
func (g *Gate) Pace(p Principal, kind LimitKind, n int) time.Duration {
	snapshot := g.cfg.Engine.Current()
	limits := snapshot.pluginLimits(p)
	for i := range limits {
		if lim := &limits[i]; lim.kind == kind && lim.paced() && n > 0 {
			now := g.cfg.Now()
			if snapshot.Observing(p, now) {
				return 0
			}
			return g.cfg.Ledger.pace(p, limits, kind, uint64(n), now)
		}
	}
	return 0
}

func (l *Ledger) pace(p Principal, limits []limit, kind LimitKind, n uint64, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range counting(nil, limits, kind, now) {
		if !lim.paced() {
			continue
		}
		burst := min(lim.spec.Period, time.Second)
		b := bucketIn(l.paces, lim.key)
		b.spend(lim.spec, n+(n+48)/49, now, true)
		wait = max(wait, b.tat.Sub(now)-burst)
		if counted := l.buckets[lim.key]; counted != nil && l.fresh(p, now) {
			// Half of the burst is left for what came since it was counted.
			trial := *counted
			trial.spend(lim.spec, n, now, true)
			wait = max(wait, trial.tat.Sub(now)-lim.spec.Period+burst/2)
		}
	}
	return wait
}
