package sidecar

import (
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	probeQuiet = time.Minute // between two records of one probe
	probeKinds = 256         // different probes that are folded one by one; the rest of a kind is folded together
)

// libraryProbes folds and counts what libraries of the plugin look for by themselves
// ([authz.Probe]). The zero value is ready.
type libraryProbes struct {
	mu    sync.Mutex
	folds map[probeKey]*probeFold
	walls uint64 // those that a kernel wall refused
	ever  uint64 // the most refusals beside them: a counter does not fall
}

type probeKey struct {
	probe authz.Probe
	what  string // a socket's path or a name
}

type probeFold struct {
	at    time.Time    // of the last record
	again int          // probes since
	last  authz.Record // of these
}

// fold returns the record to write now, or nil when this probe was recorded
// lately and is counted for [libraryProbes.due].
func (p *libraryProbes) fold(probe authz.Probe, r authz.Record) *authz.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.folds == nil {
		p.folds = map[probeKey]*probeFold{}
	}
	key := probeKey{probe, r.Host + r.Path}
	f := p.folds[key]
	if f == nil && len(p.folds) >= probeKinds {
		key.what = ""
		f = p.folds[key]
	}
	if f == nil {
		p.folds[key] = &probeFold{at: r.Time}
		return &r
	}
	f.again += max(r.Count, 1)
	f.last = r
	return nil
}

// due returns the records of probes that came again and are due, or of all.
func (p *libraryProbes) due(now time.Time, all bool) []authz.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []authz.Record
	for key, f := range p.folds {
		switch {
		case f.again > 0 && (all || now.Sub(f.at) >= probeQuiet):
			f.last.Count = f.again
			out = append(out, f.last)
			p.folds[key] = &probeFold{at: now}
		case f.again == 0 && now.Sub(f.at) >= probeQuiet:
			delete(p.folds, key)
		}
	}
	return out
}

// addBlocked counts probes that a kernel wall refused.
func (p *libraryProbes) addBlocked(n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.walls += n
}

// split splits what the kernel's walls refused into refusals and probes. The
// kernel counts a refusal before it is reported, so that a probe counts as a
// refusal for a moment; refusals never fall.
func (p *libraryProbes) split(refused uint64) (refusals, probes uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if refused > p.walls {
		p.ever = max(p.ever, refused-p.walls)
	}
	return p.ever, p.walls
}

// probed records a look-up that a library of the plugin made by itself.
func (t *KernelTelemetry) probed(probe authz.Probe, r authz.Record) {
	r.Kind, r.Reason = authz.KindProbe, authz.DestinationNotGranted.String()
	r.Plugin, r.Generation = string(t.cfg.Plugin), t.cfg.Engine.Current().Generation()
	r.Detail = string(probe) + ": a look-up that a library makes by itself; refused"
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	t.cfg.Metrics.probes.WithLabelValues(string(probe)).Add(float64(max(r.Count, 1)))
	if now := t.probes.fold(probe, r); now != nil {
		t.cfg.Record(now)
	}
}

// probedSocket is probed for a Unix socket. It reports whether the denial is a probe.
func (t *KernelTelemetry) probedSocket(d sandbox.Denial) bool {
	if d.Cause != sandbox.CausePolicy || d.Hook != sandbox.HookConnectUnix && d.Hook != sandbox.HookSendmsgUnix {
		return false
	}
	probe := authz.SocketProbe(d.Path)
	if probe == "" {
		return false
	}
	t.probes.addBlocked(d.Count)
	t.probed(probe, authz.Record{
		Time: d.Time, Door: authz.DoorKernel, Scheme: "unix", Path: d.Path, PID: int(d.PID), UID: int(d.UID), Exe: exeOf(d),
		Count: int(min(d.Count, 1<<31)),
	})
	return true
}

// probedName is probed for a name that the resolver was asked for.
func (t *KernelTelemetry) probedName(probe authz.Probe, name string) {
	t.probed(probe, authz.Record{Door: authz.DoorProxy, Host: name, UID: -1})
}

// recordProbes records the probes that came again since they were last recorded.
func (t *KernelTelemetry) recordProbes(now time.Time, all bool) {
	for _, r := range t.probes.due(now, all) {
		t.cfg.Record(&r)
	}
}
