package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// loadMaps finds or makes the maps of an object, which outlast this process.
// Each is the one that an earlier sidecar pinned, if it has the shape that the
// programs want, or else a fresh one, which [hook.settle] pins once the programs
// are attached: until then the old programs and their maps stand as they are.
func (w *collection) loadMaps(dir string, spec *ebpf.CollectionSpec) error {
	for name, want := range spec.Maps {
		if w.pinnedMaps[name] != nil || strings.HasPrefix(name, ".") { // the compiler's own
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("load pinned map %s: %w", name, err)
		}
		if err != nil || want.Compatible(m) != nil {
			w.unpinned[name] = m // nil: nothing
			if m, err = ebpf.NewMap(want); err != nil {
				return fmt.Errorf("make map %s: %w%s", name, err, loadHint(err))
			}
		}
		w.pinnedMaps[name] = m
	}
	return nil
}

// loadObject loads an object with the maps that are kept. Objects may be loaded
// side by side.
func (w *collection) loadObject(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	kept := make(map[string]*ebpf.Map)
	for name := range spec.Maps {
		if m := w.pinnedMaps[name]; m != nil {
			kept[name] = m
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept, Cache: w.types})
}

// pinMaps makes the fresh maps the ones that the next sidecar finds. It is
// called when no program uses the old ones any more, so that what they counted
// is final.
func (w *collection) pinMaps(dir string) error {
	if err := w.migrateCounters(); err != nil {
		return fmt.Errorf("carry the counters over: %w", err)
	}
	for _, name := range sorted(w.unpinned) {
		if err := repin(w.pinnedMaps[name], filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("keep map %s: %w", name, err)
		}
		if old := w.unpinned[name]; old != nil {
			if err := old.Close(); err != nil {
				return fmt.Errorf("drop map %s: %w", name, err)
			}
		}
		delete(w.unpinned, name)
	}
	return nil
}

// migrateCounters adds what the counters of another shape held to ours.
func (w *collection) migrateCounters() error {
	if old := w.unpinned["tallied"]; old != nil {
		value, err := old.LookupBytes(zero)
		if err != nil {
			return fmt.Errorf("read map: %w", err)
		}
		w.shared.addPrefix(value)
	}
	if old := w.unpinned["peers"]; old != nil { // entries that no proxy takes any more
		n, err := entries(old)
		if err != nil {
			return err
		}
		atomic.AddUint64(&w.shared.tally.Abandoned, n)
	}
	old := w.unpinned["counters"]
	if old == nil {
		return nil
	}
	var values [][]byte
	if err := old.Lookup(zero, &values); err != nil {
		return fmt.Errorf("read map: %w", err)
	}
	for _, value := range values {
		w.shared.addPrefix(value)
	}
	return nil
}

// entries counts what a map of any shape holds, while nothing changes it.
func entries(m *ebpf.Map) (uint64, error) {
	var n uint64
	var key any
	for {
		next, err := m.NextKeyBytes(key)
		if err != nil {
			return 0, fmt.Errorf("read map: %w", err)
		}
		if next == nil {
			return n, nil
		}
		key = next
		n++
	}
}

// sharedCounters is a tally in memory that is shared with the kernel's map, so that to
// count in it costs no system call and what was counted outlives this process.
type sharedCounters struct {
	memory []byte
	tally  *hooksTally
}

func openSharedCounters(m *ebpf.Map) (*sharedCounters, error) {
	memory, err := unix.Mmap(m.FD(), 0, int(m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the counters: %w", err)
	}
	return &sharedCounters{memory, (*hooksTally)(unsafe.Pointer(&memory[0]))}, nil //nolint:gosec // the map's value, page aligned
}

// tallyFields is how many counters a tally has.
const tallyFields = unsafe.Sizeof(hooksTally{}) / 8

// fields are a tally's counters in order.
func (t *hooksTally) fields() *[tallyFields]uint64 {
	return (*[tallyFields]uint64)(unsafe.Pointer(t)) //nolint:gosec // every field is a uint64
}

// addPrefix adds a tally as the kernel holds it, of a shape that may be older
// or newer: fields are only ever added at its end.
func (t *sharedCounters) addPrefix(value []byte) {
	ours := t.tally.fields()
	for i := range min(len(value)/8, len(ours)) {
		atomic.AddUint64(&ours[i], binary.NativeEndian.Uint64(value[8*i:]))
	}
}

// read is a copy of the tally.
func (t *sharedCounters) read() hooksTally {
	var copied hooksTally
	for i := range t.tally.fields() {
		copied.fields()[i] = atomic.LoadUint64(&t.tally.fields()[i])
	}
	return copied
}

func (t *sharedCounters) close() error {
	if err := unix.Munmap(t.memory); err != nil {
		return fmt.Errorf("unmap the counters: %w", err)
	}
	return nil
}
