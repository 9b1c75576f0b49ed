package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
)

// firstVirtual is the first of the addresses that stand for names, and in the
// map of destinations all of them (bpf/chaperone.bpf.h).
var firstVirtual = netip.AddrFrom4([4]byte{240, 0, 0, 0}) //nolint:gochecknoglobals // a constant

// AllowConnects replaces the destinations that a TCP connect is not refused for.
// Until it is called for the first time no connect is refused for its
// destination, nor while d has more than [MaxDestinations] entries. The error is
// then that of a full table; connects go on as before.
func (c *Confinement) AllowConnects(d Destinations) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("allow connects: %w", os.ErrClosed)
	}
	err := error(nil)
	if !d.Any && d.entries() > MaxDestinations {
		err = fmt.Errorf("allow connects: %d destinations, at most %d are compared", d.entries(), MaxDestinations)
		d = Destinations{Any: true}
	}
	return errors.Join(err, c.programs.allowConnects(d))
}

func (d *Destinations) entries() int { return len(d.Exact) + len(d.Ports) + len(d.NamePorts) }

// allowConnects adds what is new before it removes what is gone, so that nothing
// is refused in between that either permits.
func (w *collection) allowConnects(d Destinations) error {
	m := w.pinnedMaps["destinations"]
	want := d.keys()
	for key := range want {
		if err := m.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("allow connects: %w", err)
		}
	}
	var key hooksDestination
	var value uint8
	var gone []hooksDestination
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if !want[key] {
			gone = append(gone, key)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("allow connects: %w", err)
	}
	for _, key := range gone {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("allow connects: %w", err)
		}
	}
	return nil
}

// keys are the entries of the map.
func (d *Destinations) keys() map[hooksDestination]bool {
	if d.Any {
		return map[hooksDestination]bool{{}: true}
	}
	keys := make(map[hooksDestination]bool, d.entries())
	for _, at := range d.Exact {
		keys[destinationKey(at)] = true
	}
	for _, port := range d.Ports {
		keys[hooksDestination{Port: swap16(port)}] = true
	}
	for _, port := range d.NamePorts {
		keys[destinationKey(netip.AddrPortFrom(firstVirtual, port))] = true
	}
	return keys
}

func destinationKey(at netip.AddrPort) (key hooksDestination) {
	key.Address.W, key.Port = kernelAddress(at)
	return key
}
