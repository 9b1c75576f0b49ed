package ebpf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// The program cache holds programs that the kernel has verified, with their maps, between
// one sidecar and the next. A confinement that has ended pins its set there, and the next
// one takes it out: a set has one owner at a time, so that two plugins share no map, and
// no program has to find out whose packet it sees. The set is emptied before it is used.
const (
	cacheName    = "programs" // below the root of all pins
	cacheLayout  = "1"        // of a set; a change makes other versions' sets unusable
	cachedSets   = 4          // the most that are kept
	manifestPin  = "manifest"
	manifestSize = 16 << 10 // bytes
	unfinished   = "_unfinished"
)

// programCache is the sets that programs of one content, for one kind of confinement, are
// cached in.
type programCache struct {
	dir     string
	content string   // begins the names of all sets of this version on this kernel
	key     string   // begins the names of those for this kind of confinement
	shared  []string // names of the maps of a set that several object files use
}

// manifest describes a set. A map in the set holds it, as JSON.
type manifest struct {
	Key      string
	Programs []cachedObject
	Maps     []cachedObject
}

// cachedObject is a program or a map. The kernel gives no id to another object while the
// first one is pinned.
type cachedObject struct {
	Owner string // the object file; "" for a map that several share
	Name  string
	ID    uint32
	Tag   string `json:",omitempty"` // of a program: the kernel's digest of its instructions
}

// openProgramCache finds the cache of a sidecar. The directory can be changed by this
// user alone, or it is an error.
func openProgramCache(stateDir string, own, view bool) (*programCache, error) {
	paths, err := sandbox.FindPaths(stateDir)
	if err != nil {
		return nil, err
	}
	root, err := bpfRoot(paths)
	if err != nil {
		return nil, err
	}
	content, err := programContent()
	if err != nil {
		return nil, err
	}
	namespace, err := pidNamespace()
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%s_%t_%t_%d_", content, own, view, namespace)
	dir := filepath.Join(root, cacheName)
	return &programCache{dir: dir, content: content, key: key}, sandbox.EnsurePrivate(dir)
}

// programContent is a digest of what the programs are made of: the objects, and the kernel
// against which they are relocated.
func programContent() (string, error) {
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return "", fmt.Errorf("read the kernel's version: %w", err)
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(cacheLayout), _HooksBytes, _UnixBytes, _ProctrackBytes, _SocketscanBytes, _CallsBytes, _CallwatchBytes, kernel.Release[:], kernel.Version[:], kernel.Machine[:]} {
		fmt.Fprintf(h, "%d ", len(part))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// objects are the object files whose programs are cached, by name.
func (w *collection) objects() map[string]**ebpf.Collection {
	return map[string]**ebpf.Collection{"hooks": &w.base, "unix": &w.unix, "proctrack": &w.proctrack, "socketscan": &w.scan}
}

// locked calls a function while no other sidecar uses the cache.
func (c *programCache) locked(use func() error) error {
	dir, err := os.Open(c.dir)
	if err != nil {
		return fmt.Errorf("lock program cache: %w", err)
	}
	if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		err = fmt.Errorf("lock program cache: %w", err)
	} else {
		err = use()
	}
	return errors.Join(err, dir.Close())
}

// take returns a set, emptied, or nil for an empty cache. A set that does not hold what it
// held when it was put there is removed, and an error.
func (c *programCache) take(view bool) (*collection, error) {
	var w *collection
	err := c.locked(func() (err error) {
		w, err = c.takeSound(view)
		return err
	})
	if err != nil || w == nil {
		return nil, err
	}
	// A program that the set's last owner took off may still run.
	if err := awaitPrograms(); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if err := errors.Join(w.empty(), w.openShared()); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (c *programCache) takeSound(view bool) (*collection, error) {
	names, err := pinned(c.dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, unfinished) || !strings.HasPrefix(name, c.key) {
			continue
		}
		set := filepath.Join(c.dir, name)
		w, err := c.open(set)
		if removed := unpin(set); removed != nil {
			err = errors.Join(err, removed)
		}
		if err == nil {
			w.viewInit = view
			return w, nil
		}
		if w != nil {
			err = errors.Join(err, w.close())
		}
		return nil, fmt.Errorf("cached programs refused: %w", err)
	}
	return nil, nil
}

// open opens a set, and refuses one that others may change or that is not what its
// manifest describes.
func (c *programCache) open(set string) (*collection, error) {
	if err := sandbox.EnsurePrivate(set); err != nil {
		return nil, err
	}
	m, err := readManifest(filepath.Join(set, manifestPin))
	if err != nil {
		return nil, err
	}
	names, err := pinned(set)
	if err != nil {
		return nil, err
	}
	if m.Key != c.key || len(names) != len(m.Programs)+len(m.Maps)+1 {
		return nil, fmt.Errorf("%s holds %d pins of key %s, want %d of %s", set, len(names), m.Key, len(m.Programs)+len(m.Maps)+1, c.key)
	}
	w := newCollection()
	if w.pidNamespace, err = pidNamespace(); err != nil {
		return w, err
	}
	for i, object := range m.Maps {
		if err := w.openMap(filepath.Join(set, mapPin(i)), object); err != nil {
			return w, err
		}
	}
	for i, object := range m.Programs {
		if err := w.openProgram(filepath.Join(set, programPin(i)), object); err != nil {
			return w, err
		}
	}
	if w.base == nil || w.proctrack == nil || w.scan == nil {
		return w, fmt.Errorf("%s lacks programs", set)
	}
	return w, nil
}

func mapPin(i int) string     { return "map" + strconv.Itoa(i) }
func programPin(i int) string { return "program" + strconv.Itoa(i) }

// object is the collection of an object file.
func (w *collection) object(owner string) (*ebpf.Collection, error) {
	place := w.objects()[owner]
	if place == nil {
		return nil, fmt.Errorf("there is no object %q", owner)
	}
	if *place == nil {
		*place = &ebpf.Collection{Programs: map[string]*ebpf.Program{}, Maps: map[string]*ebpf.Map{}}
	}
	return *place, nil
}

func (w *collection) openMap(pin string, want cachedObject) error {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return fmt.Errorf("load pinned map %s: %w", want.Name, err)
	}
	got, err := describeMap(want.Owner, want.Name, m)
	if err == nil && got != want {
		err = fmt.Errorf("map %s is %+v, want %+v", pin, got, want)
	}
	if err != nil {
		return errors.Join(err, m.Close())
	}
	if want.Owner == "" {
		w.pinnedMaps[want.Name], w.unpinned[want.Name] = m, nil
		return nil
	}
	object, err := w.object(want.Owner)
	if err != nil {
		return errors.Join(err, m.Close())
	}
	object.Maps[want.Name] = m
	return nil
}

func (w *collection) openProgram(pin string, want cachedObject) error {
	p, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return fmt.Errorf("load pinned program %s: %w", want.Name, err)
	}
	got, err := describeProgram(want.Owner, want.Name, p)
	if err == nil && got != want {
		err = fmt.Errorf("program %s is %+v, want %+v", pin, got, want)
	}
	if err != nil {
		return errors.Join(err, p.Close())
	}
	object, err := w.object(want.Owner)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	object.Programs[want.Name] = p
	return nil
}

func describeMap(owner, name string, m *ebpf.Map) (cachedObject, error) {
	info, err := readInfo(m.FD())
	if err != nil {
		return cachedObject{}, fmt.Errorf("describe map %s: %w", name, err)
	}
	return cachedObject{Owner: owner, Name: name, ID: info.id}, nil
}

func describeProgram(owner, name string, p *ebpf.Program) (cachedObject, error) {
	info, err := readInfo(p.FD())
	if err != nil {
		return cachedObject{}, fmt.Errorf("describe program %s: %w", name, err)
	}
	return cachedObject{Owner: owner, Name: name, ID: info.id, Tag: hex.EncodeToString(info.tag[:])}, nil
}

// objectInfo begins struct bpf_prog_info and, as far as id, struct bpf_map_info
// (include/uapi/linux/bpf.h).
type objectInfo struct {
	_   uint32 // the type
	id  uint32
	tag [8]byte
}

// readInfo asks the kernel what an open program or map is. The library's Info also reads
// a file of /proc for each, which takes 20 times as long.
func readInfo(fd int) (objectInfo, error) {
	var info objectInfo
	attr := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(fd), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)} //nolint:gosec // union bpf_attr, info
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 { //nolint:gosec // as above
		return objectInfo{}, errno
	}
	return info, nil
}

func readManifest(pin string) (manifest, error) {
	var m manifest
	pinned, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return m, fmt.Errorf("load manifest: %w", err)
	}
	defer func() { _ = pinned.Close() }()
	text, err := pinned.LookupBytes(zero)
	if err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if err := json.Unmarshal(bytes.TrimRight(text, "\x00"), &m); err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

// put pins the set of a confinement that has ended, for the next one. The programs are on
// no hook any more.
func (c *programCache) put(w *collection) error {
	return c.locked(func() error { return c.putLocked(w) })
}

func (c *programCache) putLocked(w *collection) error {
	names, err := pinned(c.dir)
	if err != nil {
		return err
	}
	kept := 0
	for _, name := range names {
		if strings.HasPrefix(name, c.content) && !strings.HasSuffix(name, unfinished) {
			kept++
			continue
		}
		// Of another version, or of a sidecar that was killed in here.
		if err := unpin(filepath.Join(c.dir, name)); err != nil {
			return err
		}
	}
	if kept >= cachedSets {
		return nil
	}
	connect, err := describeProgram("hooks", "connect4", w.base.Programs["connect4"])
	if err != nil {
		return err
	}
	set := filepath.Join(c.dir, c.key+strconv.FormatUint(uint64(connect.ID), 10))
	if err := c.pin(set+unfinished, w); err != nil {
		return errors.Join(err, unpin(set+unfinished))
	}
	if err := os.Rename(set+unfinished, set); err != nil {
		return errors.Join(fmt.Errorf("keep programs: %w", err), unpin(set+unfinished))
	}
	return nil
}

// pin pins a set in a directory, the manifest last.
func (c *programCache) pin(dir string, w *collection) error {
	if err := sandbox.EnsurePrivate(dir); err != nil {
		return err
	}
	m := manifest{Key: c.key}
	addMap := func(owner, name string, it *ebpf.Map) error {
		object, err := describeMap(owner, name, it)
		if err == nil {
			err = it.Pin(filepath.Join(dir, mapPin(len(m.Maps))))
		}
		m.Maps = append(m.Maps, object)
		return err
	}
	for _, name := range c.shared {
		if err := addMap("", name, w.pinnedMaps[name]); err != nil {
			return err
		}
	}
	for owner, place := range w.objects() {
		if *place == nil {
			continue
		}
		for name, it := range (*place).Maps {
			if slices.Contains(c.shared, name) {
				continue
			}
			if err := addMap(owner, name, it); err != nil {
				return err
			}
		}
		for name, it := range (*place).Programs {
			object, err := describeProgram(owner, name, it)
			if err == nil {
				err = it.Pin(filepath.Join(dir, programPin(len(m.Programs))))
			}
			if err != nil {
				return err
			}
			m.Programs = append(m.Programs, object)
		}
	}
	return writeManifest(filepath.Join(dir, manifestPin), m)
}

func writeManifest(pin string, m manifest) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if len(text) > manifestSize {
		return fmt.Errorf("write manifest: %d bytes, at most %d are possible", len(text), manifestSize)
	}
	holder, err := ebpf.NewMap(&ebpf.MapSpec{Name: "manifest", Type: ebpf.Array, KeySize: 4, ValueSize: manifestSize, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	padded := make([]byte, manifestSize)
	copy(padded, text)
	return errors.Join(holder.Put(zero, padded), holder.Pin(pin), holder.Close())
}

// empty gives every map of a set the content of a new one. The storage of sockets and
// tasks ended with these.
func (w *collection) empty() error {
	for _, name := range sorted(w.pinnedMaps) {
		if err := emptyMap(w.pinnedMaps[name]); err != nil {
			return fmt.Errorf("empty map %s: %w", name, err)
		}
	}
	for _, place := range w.objects() {
		if *place == nil {
			continue
		}
		for _, name := range sorted((*place).Maps) {
			if strings.HasPrefix(name, ".rodata") { // frozen: constants
				continue
			}
			if err := emptyMap((*place).Maps[name]); err != nil {
				return fmt.Errorf("empty map %s: %w", name, err)
			}
		}
	}
	return nil
}

func emptyMap(m *ebpf.Map) error {
	switch m.Type() {
	case ebpf.SkStorage, ebpf.TaskStorage:
		return nil
	case ebpf.Array:
		if m.Flags()&unix.BPF_F_MMAPABLE != 0 {
			return clearMemory(m)
		}
		return clearArray(m, 1)
	case ebpf.PerCPUArray:
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return err
		}
		return clearArray(m, cpus)
	case ebpf.Hash, ebpf.LPMTrie:
		return deleteAll(m)
	case ebpf.RingBuf:
		return drain(m)
	default:
		return fmt.Errorf("it is a %s", m.Type())
	}
}

// clearArray writes zeros to an array with so many values a key, in one system call where
// the kernel has such a call (Linux 5.6; 5.13 for values of each CPU).
func clearArray(m *ebpf.Map, cpus int) error {
	keys := make([]uint32, m.MaxEntries())
	for i := range keys {
		keys[i] = uint32(i)
	}
	value := reflect.ArrayOf(int(m.ValueSize()), reflect.TypeFor[byte]())
	zeros := reflect.MakeSlice(reflect.SliceOf(value), len(keys)*cpus, len(keys)*cpus)
	n, err := m.BatchUpdate(keys, zeros.Interface(), nil)
	if err == nil && n != len(keys) {
		err = fmt.Errorf("%d of %d entries cleared", n, len(keys))
	}
	if err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for _, key := range keys {
		one := zeros.Index(0).Interface()
		if m.Type() == ebpf.PerCPUArray {
			one = zeros.Slice(0, cpus).Interface()
		}
		if err := m.Put(key, one); err != nil {
			return err
		}
	}
	return nil
}

func clearMemory(m *ebpf.Map) error {
	size := (int(m.ValueSize()) + 7) / 8 * 8 * int(m.MaxEntries())
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	clear(memory)
	return unix.Munmap(memory)
}

func deleteAll(m *ebpf.Map) error {
	for {
		key, err := m.NextKeyBytes(nil)
		if err != nil || key == nil {
			return err
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
}

// drain takes out the events that were not read.
func drain(m *ebpf.Map) error {
	events, err := ringbuf.NewReader(m)
	if err != nil {
		return err
	}
	events.SetDeadline(time.Unix(1, 0))
	for err == nil {
		_, err = events.Read()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return errors.Join(err, events.Close())
}
