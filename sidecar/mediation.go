package sidecar

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// mediation compares the connections that the kernel allowed with those that the
// proxy accepted: it makes "every access is checked" a number.
type mediation struct {
	mu   sync.Mutex
	open map[unmediatedKey]struct{} // unmediated connections, each recorded once
	ever uint64                     // the most that were ever unmediated: a counter does not fall
}

// unmediatedKey identifies an unmediated connection. The time is not part of it: it
// is converted from the kernel's clock, and differs at each reading.
type unmediatedKey struct {
	pid      uint32
	comm     string
	original netip.AddrPort
	why      string
}

// maxUnmediated is how many unmediated connections are recorded one by one in a
// second; the plugin decides how many there are.
const maxUnmediated = 16

// unmediated returns how many connections the kernel allowed that the proxy has not
// accepted.
func unmediated(u ebpf.Usage) uint64 {
	handled := u.Identified + u.Abandoned + u.Pending
	if handled >= u.Connections {
		return 0 // they are read one after the other, while they grow
	}
	return u.Connections - handled
}

// watchUnmediated looks for unmediated connections once a second until ctx ends.
func (t *KernelTelemetry) watchUnmediated(ctx context.Context) {
	tick(ctx, time.Second, func() {
		all, err := t.cfg.Confinement().Unmediated()
		if err != nil {
			t.cfg.Log.Error("unmediated connections unreadable", zap.Error(err))
			return
		}
		fresh := t.mediation.fresh(all)
		for _, one := range fresh[:min(len(fresh), maxUnmediated)] {
			t.recordUnmediated(one)
		}
		if more := len(fresh) - maxUnmediated; more > 0 {
			t.cfg.Record(&authz.Record{
				Kind: authz.KindStray, Door: authz.DoorKernel, UID: t.cfg.Confinement().UID(), Count: more,
				Detail: "more connections that nobody handled",
			})
		}
	})
}

// fresh returns the unmediated connections that are new, and remembers all of them.
func (m *mediation) fresh(now []ebpf.UnmediatedConn) []ebpf.UnmediatedConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []ebpf.UnmediatedConn
	standing := make(map[unmediatedKey]struct{}, len(now))
	for _, one := range now {
		key := unmediatedKey{one.PID, one.Comm, one.Original, one.Why}
		_, known := m.open[key]
		if _, twice := standing[key]; !known && !twice {
			out = append(out, one)
		}
		standing[key] = struct{}{}
	}
	m.open = standing
	return out
}

// total returns the most that were ever unmediated.
func (m *mediation) total(u ebpf.Usage) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ever = max(m.ever, unmediated(u))
	return m.ever
}

// recordUnmediated records a connection that the kernel allowed and the proxy has not
// accepted. No data has passed on it: it waits.
func (t *KernelTelemetry) recordUnmediated(one ebpf.UnmediatedConn) {
	r := &authz.Record{
		Kind: authz.KindStray, Door: authz.DoorKernel, PID: int(one.PID), UID: t.cfg.Confinement().UID(), Exe: one.Comm,
		Detail: fmt.Sprintf("since %s: %s", one.Since.UTC().Format(time.RFC3339Nano), one.Why),
	}
	if one.Original.IsValid() {
		r.Host, r.Port = t.hostOf(one.Original.Addr()), one.Original.Port()
	}
	t.cfg.Record(r)
	t.cfg.Log.Warn("unmediated connection", zap.Uint32("pid", one.PID), zap.String("comm", one.Comm),
		zap.Stringer("destination", one.Original), zap.String("why", one.Why))
}

// mediationStatus returns the outcome of the connections that the kernel allowed; nil
// when it cannot be read.
func (t *KernelTelemetry) mediationStatus(now time.Time) *admin.Mediation {
	u, err := t.cfg.Confinement().Usage()
	if err != nil {
		return nil
	}
	out := &admin.Mediation{
		Admitted: u.Connections, Handled: u.Identified, Abandoned: u.Abandoned, Pending: u.Pending, Unmediated: unmediated(u),
		Ended: u.Ended,
	}
	out.UnmediatedConnections = unmediatedConnections(t.cfg.Confinement(), now)
	out.Strays = out.UnmediatedConnections //nolint:staticcheck // programs of the last release read it
	return out
}

// unmediatedConnections describes the connections that the proxy has not accepted; none
// when they cannot be read.
func unmediatedConnections(meter Meter, now time.Time) []admin.UnmediatedConnection {
	out := []admin.UnmediatedConnection{}
	all, err := meter.Unmediated()
	if err != nil {
		return out
	}
	for _, one := range all {
		conn := admin.UnmediatedConnection{PID: int(one.PID), Comm: one.Comm, AgeSeconds: now.Sub(one.Since).Seconds(), Why: one.Why}
		if one.Original.IsValid() {
			conn.Destination = one.Original.String()
		}
		out = append(out, conn)
	}
	return out
}
