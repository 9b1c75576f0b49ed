package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// zero is the only key of the maps that hold one value.
const zero = uint32(0)

// hook is the loaded programs and maps of one confinement, and their links once they
// are attached.
type collection struct {
	base      *ebpf.Collection
	unix      *ebpf.Collection // nil: the kernel has no hooks for Unix sockets
	calls     *ebpf.Collection // nil: system calls are not counted
	proctrack *ebpf.Collection

	scan *ebpf.Collection

	viewInit   bool                 // the first process in the cgroup is the sidecar's own
	types      *btf.Cache           // the kernel's, while programs are loaded: they are large
	pinnedMaps map[string]*ebpf.Map // the maps that outlast this process, by name
	unpinned   map[string]*ebpf.Map // those not pinned yet, with what they are to replace; nil: nothing
	shared     *sharedCounters

	// Maps of pinnedMaps that are read while a limit may load further programs, which
	// adds their maps to pinnedMaps under Confinement.mu.
	peers, events, counters *ebpf.Map

	limits       *limitTable
	attributions *attributions

	links  map[string]link.Link // on the cgroup
	traces map[string]link.Link // on tracepoints

	callCounter

	pidNamespace uint32 // the inode of the sidecar's: see bpf/pid.bpf.h

	reshape func(*ebpf.CollectionSpec) // for tests: what another version's maps are like
}

// callCounter is the system call counter and what stands in for it.
type callCounter struct {
	counter       link.Link  // on sys_exit
	countAlways   bool       // count system calls without a limit, too
	counterPinned bool       // the counter is
	counterTurn   uint32     // the counter's: see bpf/chaperone.bpf.h
	watch         *callWatch // nil: calls are counted all the time
	unwatched     error      // why, if the kernel lacks what the watch needs
}

func newCollection() *collection {
	return &collection{
		pinnedMaps: make(map[string]*ebpf.Map), unpinned: make(map[string]*ebpf.Map),
		links: make(map[string]link.Link), traces: make(map[string]link.Link),
	}
}

// loadCollection loads every program that the confinement needs and the kernel has. Maps are
// pinned in dir, or taken from there if an earlier sidecar left them.
func loadCollection(dir string, group *sandbox.Cgroup, own, view, syscalls bool) (*collection, error) {
	w := newCollection()
	w.viewInit = view
	if err := w.load(dir, group, own, syscalls); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *collection) load(dir string, group *sandbox.Cgroup, own, syscalls bool) error {
	if err := w.loadPrograms(dir, own); err != nil {
		return err
	}
	return w.setCgroup(dir, group, own, syscalls)
}

// loadPrograms loads what can be loaded before the cgroup exists.
func (w *collection) loadPrograms(dir string, own bool) error {
	w.types = btf.NewCache()
	defer func() { w.types = nil }()
	var err error
	if w.pidNamespace, err = pidNamespace(); err != nil {
		return err
	}
	base, err := w.read("hook", loadHooks, nil, own)
	if err != nil {
		return err
	}
	kin, err := w.read("process", loadProctrack, nil, own)
	if err != nil {
		return err
	}
	if w.viewInit {
		if err := kin.Variables["first_is_init"].Set(uint32(1)); err != nil {
			return fmt.Errorf("set up process programs: %w", err)
		}
	}
	if err := errors.Join(w.loadMaps(dir, base), w.loadMaps(dir, kin)); err != nil {
		return err
	}
	if err := w.openShared(); err != nil {
		return err
	}
	// The verifier takes most of the time, and does not keep others waiting.
	var loading errgroup.Group
	loading.Go(func() (err error) {
		w.base, err = w.loadWithSignals(base)
		return explain("load hook programs", err)
	})
	loading.Go(func() (err error) {
		w.proctrack, err = w.loadObject(kin)
		return explain("load process programs", err)
	})
	loading.Go(w.loadUnix)
	loading.Go(func() error { return w.loadScan(own) })
	return loading.Wait()
}

// cgroupMap is the map that holds the cgroup of programs that were loaded before it
// existed (bpf/task.bpf.h).
const cgroupMap = ".data.cgroup"

// setCgroup writes the plugin's cgroup into the programs that govern its tasks, and loads
// the counter of its system calls if what is in force needs it.
func (w *collection) setCgroup(dir string, group *sandbox.Cgroup, own, syscalls bool) error {
	for _, collection := range []*ebpf.Collection{w.base, w.proctrack, w.scan} {
		if err := collection.Maps[cgroupMap].Put(zero, group.ID); err != nil {
			return fmt.Errorf("set the cgroup of the programs: %w", err)
		}
	}
	if w.countAlways = syscalls; syscalls || w.limits.limitsCalls() {
		return w.loadCalls(dir, group, own)
	}
	return nil
}

// read reads the object of some programs, and sets in it which cgroup is the
// plugin's (nil: it is written later) and which PID namespace the sidecar's.
func (w *collection) read(what string, load func() (*ebpf.CollectionSpec, error), group *sandbox.Cgroup, own bool) (*ebpf.CollectionSpec, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("read %s programs: %w", what, err)
	}
	if w.reshape != nil {
		w.reshape(spec)
	}
	if err := errors.Join(setTarget(spec, group, own), spec.Variables["pid_namespace"].Set(w.pidNamespace)); err != nil {
		return nil, fmt.Errorf("set up %s programs: %w", what, err)
	}
	return spec, nil
}

// openShared maps into memory what this process and the programs both write.
func (w *collection) openShared() error {
	w.peers, w.events, w.counters = w.pinnedMaps["peers"], w.pinnedMaps["events"], w.pinnedMaps["counters"]
	var err error
	if w.limits, err = openLimitTable(w); err != nil {
		return err
	}
	if w.attributions, err = openAttributions(w); err != nil {
		return err
	}
	w.shared, err = openSharedCounters(w.pinnedMaps["tallied"])
	return err
}

// loadWithSignals loads the hook with programs that choose the error of a connect,
// and that can stop and kill the plugin at a limit, as far as the kernel permits
// it: before Linux 6.1 a connect is refused with EPERM, and before 6.9 user space
// alone stops and kills, a few milliseconds later.
func (w *collection) loadWithSignals(spec *ebpf.CollectionSpec) (collection *ebpf.Collection, err error) {
	for _, can := range []struct{ signal, answer uint32 }{{1, 1}, {0, 1}, {0, 0}} {
		if err := spec.Variables["may_signal"].Set(can.signal); err != nil {
			return nil, err
		}
		if err := spec.Variables["may_answer"].Set(can.answer); err != nil {
			return nil, err
		}
		collection, err = w.loadHalves(spec)
		if _, refused := errors.AsType[*ebpf.VerifierError](err); !refused {
			return collection, err
		}
	}
	return collection, err
}

// loadHalves loads an object like loadObject, every other program of it beside
// the rest.
func (w *collection) loadHalves(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	var halves [2]*ebpf.Collection
	var loading errgroup.Group
	for i := range halves {
		half := spec.Copy()
		for place, name := range sorted(spec.Programs) {
			if place%2 != i {
				delete(half.Programs, name)
			}
		}
		loading.Go(func() (err error) {
			halves[i], err = w.loadObject(half)
			return err
		})
	}
	if err := loading.Wait(); err != nil {
		for _, half := range halves {
			if half != nil {
				half.Close()
			}
		}
		return nil, err
	}
	whole, rest := halves[0], halves[1]
	maps.Copy(whole.Programs, rest.Programs)
	clear(rest.Programs) // they are the whole's now
	rest.Close()
	return whole, nil
}

// explain returns what failed, and what an operator can mend.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w%s", what, err, loadHint(err))
}

// loadHint explains the failure that an operator can mend.
func loadHint(err error) string {
	if errors.Is(err, unix.EPERM) {
		return " (needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or CAP_SYS_ADMIN)"
	}
	return ""
}

// loadUnix loads the Unix socket hooks. That a kernel lacks them shows only when
// a program for them is refused, so it is tried: what a kernel cannot attach it
// does not load either.
func (w *collection) loadUnix() error {
	spec, err := w.read("unix", loadUnix, nil, false)
	if err != nil {
		return err
	}
	w.unix, err = w.loadObject(spec)
	if err != nil { // rather without the plugin's own sockets than without any
		if err := spec.Variables["rewrites"].Set(uint32(0)); err != nil {
			return err
		}
		w.unix, err = w.loadObject(spec)
	}
	if err != nil {
		w.unix = nil
	}
	// Without it the launcher's seccomp filter forbids Unix sockets outright,
	// which is stricter, so no failure here opens anything.
	return nil
}

// configure passes the sidecar's listening addresses to the programs.
func (w *collection) configure(n *sandbox.Network, own bool, ends Endpoints, serve []uint16) error {
	setting := hooksSetting{Netns: n.Cookie}
	if own {
		setting.OwnNetwork = 1
	}
	setting.Proxy4.W, setting.Proxy4Port = kernelAddress(ends.Proxy4)
	setting.Proxy6.W, setting.Proxy6Port = kernelAddress(ends.Proxy6)
	setting.Resolver4.W, setting.Resolver4Port = kernelAddress(ends.Resolver4)
	setting.Resolver6.W, setting.Resolver6Port = kernelAddress(ends.Resolver6)
	if err := w.pinnedMaps["settings"].Put(zero, setting); err != nil {
		return fmt.Errorf("configure hooks: %w", err)
	}
	if err := w.allowConnects(Destinations{Any: true}); err != nil {
		return err
	}
	served := w.pinnedMaps["served"]
	var key [2]byte
	var value uint8
	for entries := served.Iterate(); entries.Next(&key, &value); {
		if !slices.Contains(serve, binary.BigEndian.Uint16(key[:])) {
			if err := served.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("configure served ports: %w", err)
			}
		}
	}
	for _, port := range serve {
		binary.BigEndian.PutUint16(key[:], port)
		if err := served.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("configure served ports: %w", err)
		}
	}
	return nil
}

// kernelAddress is an address as the programs hold it: 16 bytes, IPv4 mapped,
// and a port, both in network byte order. The zero value stays zero.
func kernelAddress(a netip.AddrPort) (words [4]uint32, port uint16) {
	if !a.IsValid() {
		return words, 0
	}
	bytes := a.Addr().As16()
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(bytes[4*i:])
	}
	return words, swap16(a.Port())
}

// userAddress is the reverse of kernelAddress.
func userAddress(words [4]uint32, port uint16) netip.AddrPort {
	var bytes [16]byte
	for i, word := range words {
		binary.NativeEndian.PutUint32(bytes[4*i:], word)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(bytes).Unmap(), swap16(port))
}

// swap16 turns a number between the machine's and the network's byte order.
func swap16(n uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], n)
	return binary.BigEndian.Uint16(b[:])
}

// attach puts every program on the cgroup and pins its link, so that it stays
// when this process goes. A link that an earlier sidecar left on the same cgroup
// gets the new program in place of the old one, without a gap. Old and new
// programs may stand beside each other for a moment, each with maps of its own
// shape: each of them refuses by itself what is to be refused, so that nothing
// passes that either would stop.
func (w *collection) attach(dir string, group *sandbox.Cgroup) error {
	collections := []*ebpf.Collection{w.base, w.unix}
	for _, collection := range collections {
		if collection == nil {
			continue
		}
		spec := collection.Programs
		for _, name := range sorted(spec) {
			l, err := attachOne(filepath.Join(dir, linkPrefix+name), group, attachType(name), spec[name])
			if err != nil {
				return fmt.Errorf("attach %s: %w", name, err)
			}
			w.links[name] = l
		}
	}
	if err := w.attachProctrack(dir); err != nil {
		return err
	}
	if err := w.pinMaps(dir); err != nil {
		return err
	}
	return w.attachCounter(dir)
}

func attachOne(pin string, group *sandbox.Cgroup, where ebpf.AttachType, program *ebpf.Program) (link.Link, error) {
	old, err := link.LoadPinnedLink(pin, nil)
	switch {
	case err == nil:
		if linkedTo(old) == group.ID {
			if err := old.Update(program); err != nil {
				return nil, errors.Join(fmt.Errorf("replace program: %w", err), old.Close())
			}
			return old, nil
		}
		if err := old.Close(); err != nil { // detached; its pin is replaced below
			return nil, fmt.Errorf("drop detached link: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("load pinned link: %w", err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: group.Path, Attach: where, Program: program})
	if err != nil {
		return nil, err
	}
	if err := repin(l, pin); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// linkedTo is the cgroup that a link is on; 0 when it is on none any more.
func linkedTo(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.Cgroup() == nil {
		return 0
	}
	return info.Cgroup().CgroupId
}

// attachType returns the hook that a program is for.
func attachType(program string) ebpf.AttachType {
	types := map[string]ebpf.AttachType{
		"connect4":     ebpf.AttachCGroupInet4Connect,
		"connect6":     ebpf.AttachCGroupInet6Connect,
		"sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
		"sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
		"recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
		"recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
		"getpeername4": ebpf.AttachCgroupInet4GetPeername,
		"getpeername6": ebpf.AttachCgroupInet6GetPeername,
		"bind4":        ebpf.AttachCGroupInet4Bind,
		"bind6":        ebpf.AttachCGroupInet6Bind,
		"sock_create":  ebpf.AttachCGroupInetSockCreate,
		"identify":     ebpf.AttachCGroupSockOps,
		"egress":       ebpf.AttachCGroupInetEgress,
		"ingress":      ebpf.AttachCGroupInetIngress,
		"connect_unix": ebpf.AttachCgroupUnixConnect,
		"sendmsg_unix": ebpf.AttachCgroupUnixSendmsg,
	}
	return types[program]
}

// names of the attached programs, in order.
func (w *collection) names() []string {
	names := append(sorted(w.links), sorted(w.traces)...)
	if w.counter != nil {
		names = append(names, "count_call")
	}
	if w.watch != nil && w.watch.link != nil {
		names = append(names, "watch_switch")
	}
	return names
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// check finds links that are no longer on the cgroup.
func (w *collection) check(group *sandbox.Cgroup) error {
	for _, name := range sorted(w.links) {
		if linkedTo(w.links[name]) != group.ID {
			return fmt.Errorf("%w: %s", ErrDetached, name)
		}
	}
	if !group.Current() {
		return fmt.Errorf("%w: %s was removed or replaced", ErrDetached, group.Path)
	}
	return nil
}

// setOpen lets the plugin's connections through to the sidecar, or none.
func (w *collection) setOpen(open bool) error {
	value := uint32(0)
	if open {
		value = 1
	}
	return w.limits.updateControl(func(d *hooksControl) { d.Open = value })
}

// release closes the handles of the links, and unmaps the memory that this process shares
// with the programs. Pinned links stay attached.
func (w *collection) release() error {
	var errs []error
	if w.counter != nil {
		errs = append(errs, w.counter.Close())
		w.counter = nil
	}
	for _, links := range []map[string]link.Link{w.links, w.traces} {
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		clear(links)
	}
	if w.shared != nil {
		errs = append(errs, w.shared.close())
	}
	errs = append(errs, w.watch.close())
	if w.limits != nil {
		errs = append(errs, w.limits.close())
	}
	if w.attributions != nil {
		errs = append(errs, w.attributions.close())
	}
	w.shared, w.watch, w.limits = nil, nil, nil
	return errors.Join(errs...)
}

// close closes the handles. Pinned programs stay attached.
func (w *collection) close() error {
	errs := []error{w.release()}
	for _, old := range w.unpinned {
		if old != nil {
			errs = append(errs, old.Close())
		}
	}
	for _, collection := range []*ebpf.Collection{w.base, w.unix, w.calls, w.proctrack, w.scan} {
		if collection != nil {
			collection.Close()
		}
	}
	for _, m := range w.pinnedMaps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// cpus sums the values that a per-CPU map holds for its one key.
func cpus[V any](m *ebpf.Map) ([]V, error) {
	var values []V
	if err := m.Lookup(zero, &values); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("read counters: %w", os.ErrNotExist)
	}
	return values, nil
}
