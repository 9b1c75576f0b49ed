package ebpf

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Numbers that the programs use as well: see bpf/hooks.bpf.c.
const (
	ruleBits        = 10
	attributionBits = 16
)

// attributions say which rule each connection is for. The kernel's map is
// written in place, one word a connection, without a system call.
type attributions struct {
	mu            sync.Mutex
	memory        []byte
	entries       []uint64 // nil once closed
	started       bool     // the programs look at them
	highest       uint32   // rule that was ever attributed
	traffic       *ebpf.Map
	updateControl func(func(*hooksControl)) error
}

func openAttributions(w *collection) (*attributions, error) {
	m := w.pinnedMaps["attributions"]
	size := int(m.ValueSize()) * int(m.MaxEntries())
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map attributions: %w", err)
	}
	a := &attributions{memory: memory, traffic: w.pinnedMaps["by_rule"], updateControl: w.limits.updateControl}
	a.entries = unsafe.Slice((*uint64)(unsafe.Pointer(&memory[0])), m.MaxEntries()) //nolint:gosec // the map's values, page aligned
	door, err := w.limits.readControl()
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	if a.started = door.InForce&inForceRules != 0; a.started {
		a.highest = MaxRules - 1 // a sidecar that is gone may have used any
	}
	return a, nil
}

func (a *attributions) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.entries == nil {
		return nil
	}
	a.entries = nil
	if err := unix.Munmap(a.memory); err != nil {
		return fmt.Errorf("unmap attributions: %w", err)
	}
	return nil
}

// Attribute counts what a connection exchanges from now on for a rule number
// below [MaxRules]; 0, and any number that is not below it, for none. The
// connection is named by [Peer.Cookie]. Only the first call costs a system
// call. Of 65,536 connections that the plugin opens one after the other no two
// are confused; beyond that, a newer one may end the attribution of an older.
func (c *Confinement) Attribute(cookie uint64, rule uint32) {
	c.programs.attributions.set(cookie, rule)
}

func (a *attributions) set(cookie uint64, rule uint32) {
	if rule >= MaxRules {
		rule = 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.entries == nil {
		return
	}
	place := cookie & (1<<attributionBits - 1)
	atomic.StoreUint64(&a.entries[place], cookie>>attributionBits<<ruleBits|uint64(rule))
	a.highest = max(a.highest, rule)
	if !a.started && rule != 0 {
		// Should it fail, the next one tries again.
		a.started = a.updateControl(func(d *hooksControl) { d.InForce |= inForceRules }) == nil
	}
}

// Traffic returns what was counted for each rule number, in their order,
// without those for which nothing was.
func (c *Confinement) Traffic() ([]Traffic, error) {
	a := c.programs.attributions
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.entries == nil {
		return nil, fmt.Errorf("read traffic: %w", os.ErrClosed)
	}
	var all []Traffic
	for rule := uint32(1); rule <= a.highest; rule++ {
		var values []hooksTraffic
		if err := a.traffic.Lookup(rule, &values); err != nil {
			return nil, fmt.Errorf("read traffic: %w", err)
		}
		t := Traffic{Rule: rule}
		for _, v := range values {
			t.SentBytes += v.SentBytes
			t.SentPackets += v.SentPackets
			t.ReceivedBytes += v.ReceivedBytes
			t.ReceivedPackets += v.ReceivedPackets
		}
		if t.SentPackets+t.ReceivedPackets > 0 {
			all = append(all, t)
		}
	}
	return all, nil
}
