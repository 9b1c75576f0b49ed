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

// mediation compares what the kernel let through to the sidecar with what the
// sidecar handled. It is what makes "every access is checked" a figure.
type mediation struct {
	mu     sync.Mutex
	strays map[unmediatedKey]struct{} // that stand now, each recorded once
	ever   uint64                     // the most that were ever unmediated: a counter does not fall
}

// unmediatedKey tells strays apart. When one was let through is no part of it: a
// clock of the kernel's is read by ours, and never twice the same.
type unmediatedKey struct {
	pid      uint32
	comm     string
	original netip.AddrPort
	why      string
}

// maxUnmediated is how many strays are recorded one by one in a second; how many
// there are is the plugin's to choose.
const maxUnmediated = 16

// unmediated is what is left of the connections that the kernel let through.
func unmediated(u ebpf.Usage) uint64 {
	handled := u.Identified + u.Abandoned + u.Pending
	if handled >= u.Connections {
		return 0 // they are read one after the other, while they grow
	}
	return u.Connections - handled
}

// watch looks for strays once a second until ctx ends.
func (t *KernelTelemetry) watchUnmediated(ctx context.Context) {
	tick(ctx, time.Second, func() {
		strays, err := t.cfg.Confinement().Unmediated()
		if err != nil {
			t.cfg.Log.Error("connections that nobody handles cannot be listed", zap.Error(err))
			return
		}
		fresh := t.mediation.fresh(strays)
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

// fresh returns the strays that were not there before, and remembers those that
// are now.
func (m *mediation) fresh(now []ebpf.UnmediatedConn) []ebpf.UnmediatedConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []ebpf.UnmediatedConn
	standing := make(map[unmediatedKey]struct{}, len(now))
	for _, one := range now {
		key := unmediatedKey{one.PID, one.Comm, one.Original, one.Why}
		_, known := m.strays[key]
		if _, twice := standing[key]; !known && !twice {
			out = append(out, one)
		}
		standing[key] = struct{}{}
	}
	m.strays = standing
	return out
}

// total returns the most that were ever unmediated.
func (m *mediation) total(u ebpf.Usage) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ever = max(m.ever, unmediated(u))
	return m.ever
}

// recordUnmediated records a connection that the kernel let through and that nobody
// handled. Nothing has passed on it: it waits.
func (t *KernelTelemetry) recordUnmediated(one ebpf.UnmediatedConn) {
	r := &authz.Record{
		Kind: authz.KindStray, Door: authz.DoorKernel, PID: int(one.PID), UID: t.cfg.Confinement().UID(), Exe: one.Comm,
		Detail: fmt.Sprintf("since %s: %s", one.Since.UTC().Format(time.RFC3339Nano), one.Why),
	}
	if one.Original.IsValid() {
		r.Host, r.Port = t.hostOf(one.Original.Addr()), one.Original.Port()
	}
	t.cfg.Record(r)
	t.cfg.Log.Warn("a connection of the plugin's was not handled", zap.Uint32("pid", one.PID), zap.String("comm", one.Comm),
		zap.Stringer("destination", one.Original), zap.String("why", one.Why))
}

// mediationStatus says what became of the connections that the kernel let
// through; nil when it cannot be read.
func (t *KernelTelemetry) mediationStatus(now time.Time) *admin.Mediation {
	u, err := t.cfg.Confinement().Usage()
	if err != nil {
		return nil
	}
	out := &admin.Mediation{
		Admitted: u.Connections, Handled: u.Identified, Abandoned: u.Abandoned, Pending: u.Pending, Unmediated: unmediated(u),
		Ended: u.Ended, Strays: []admin.Stray{},
	}
	strays, err := t.cfg.Confinement().Unmediated()
	if err != nil {
		return out
	}
	for _, one := range strays {
		stray := admin.Stray{PID: int(one.PID), Comm: one.Comm, AgeSeconds: now.Sub(one.Since).Seconds(), Why: one.Why}
		if one.Original.IsValid() {
			stray.Destination = one.Original.String()
		}
		out.Strays = append(out.Strays, stray)
	}
	return out
}
