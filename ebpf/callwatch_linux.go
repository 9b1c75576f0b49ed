package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// While a plugin is far from its limits on system calls, the counter is not attached,
// since it costs every process of the host. The CPU time of the cgroup, which is exact
// and includes ended processes, then bounds how many calls were made: as many as fit
// into it. They are charged to the limits with each look, and the next look comes
// before a quarter of a limit can be in use, or else the counter is attached. So no limit
// is passed, and at most a quarter of one is charged for calls that were not made.
const (
	// uncountedShare is the part of a limit, 1/uncountedShare, that may be charged for
	// calls that are not counted.
	uncountedShare = 4
	// maxLook is the longest time from one look to the next, and minLook the shortest
	// for which the counter stays off. enterLook is what must be possible for it to be
	// taken off.
	maxLook, enterLook, minLook = 250 * time.Millisecond, 40 * time.Millisecond, 15 * time.Millisecond
	// defiance is for how long a plugin that the kernel has stopped may run on before it
	// is killed: DEFIANCE of bpf/callwatch.bpf.c.
	defiance = 50 * time.Millisecond
	// counterHold is for how long the counter stays on after a limit was near.
	counterHold = 5 * time.Second
	// callMargin is how much faster than the fastest measured call one is taken to
	// be, since the processor may run faster later, and maxCallCost what no call is taken to
	// exceed.
	callMargin  = 2
	maxCallCost = 50 * time.Nanosecond
)

// callWatch bounds the calls of a plugin that are not counted.
type callWatch struct {
	programs *ebpf.Collection
	memory   []byte
	state    *callwatchUncountedCalls
	tick     time.Duration // of CPU time that the cgroup of a running thread does not show yet
	armed    bool          // the kernel's timer is
	hold     time.Time     // until when the counter stays on
	overdue  uint64        // as far as it was logged
	plain    time.Duration // the fastest call while the counter was off; 0: not measured
	traced   time.Duration // the same while it was attached
	looks    atomic.Uint64 // how often the CPU time was read
}

// loadCallWatch loads the programs that watch the plugin while its calls are not counted.
// Where the kernel lacks what they need, calls are counted all the time.
func (w *collection) loadCallWatch(dir string, group *sandbox.Cgroup, own bool) error {
	if w.countAlways || adaptiveTicks() {
		return nil
	}
	spec, err := w.read("call watch", loadCallwatch, group, own)
	if err != nil {
		return err
	}
	if err := w.loadMaps(dir, spec); err != nil {
		return err
	}
	programs, err := w.loadObject(spec)
	if err != nil {
		return nil //nolint:nilerr // before Linux 6.13
	}
	m := w.pinnedMaps["uncounted"]
	memory, err := unix.Mmap(m.FD(), 0, int(m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		programs.Close()
		return fmt.Errorf("map uncounted calls: %w", err)
	}
	w.watch = &callWatch{programs: programs, memory: memory, state: (*callwatchUncountedCalls)(unsafe.Pointer(&memory[0]))} //nolint:gosec // the map's value, page aligned
	w.watch.overdue = atomic.LoadUint64(&w.watch.state.Overdue)
	w.watch.measure(w.counter != nil)
	w.watch.tick, err = schedulerTick()
	return err
}

func (w *callWatch) close() error {
	if w == nil {
		return nil
	}
	w.programs.Close()
	if err := unix.Munmap(w.memory); err != nil {
		return fmt.Errorf("unmap uncounted calls: %w", err)
	}
	return nil
}

// adaptiveTicks reports whether the scheduler's tick may stop on a CPU with a thread that
// runs (boot parameter nohz_full), so that its CPU time is known much later.
func adaptiveTicks() bool {
	text, err := os.ReadFile("/sys/devices/system/cpu/nohz_full")
	return err == nil && strings.ContainsAny(string(text), "0123456789")
}

// schedulerTick is a little more than the period of the scheduler's tick, which adds the
// CPU time of a thread that runs to its cgroup. The coarse clocks advance with it.
func schedulerTick() (time.Duration, error) {
	var period unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &period); err != nil {
		return 0, fmt.Errorf("read the period of the scheduler's tick: %w", err)
	}
	return time.Duration(period.Nano() * 5 / 4), nil
}

// measure measures how much CPU time a call takes at least. It is repeated with each
// look: the frequency of the processor changes.
func (w *callWatch) measure(traced bool) {
	call, seen := fastestCall(), &w.plain
	if traced {
		seen = &w.traced
	}
	if *seen == 0 || call < *seen {
		*seen = call
	}
	cost := max(min(call/callMargin, maxCallCost), 1)
	if before := atomic.LoadUint64(&w.state.Cost); before == 0 || uint64(cost) < before {
		atomic.StoreUint64(&w.state.Cost, uint64(cost))
	}
}

// fastestCall is the time that the cheapest system calls take on this machine: one that
// only reads a number, and one that does not exist.
func fastestCall() time.Duration {
	const batches, each = 8, 64
	fastest := time.Duration(forever)
	for _, number := range []uintptr{unix.SYS_GETPPID, ^uintptr(0)} {
		for range batches {
			before := time.Now()
			for range each {
				_, _, _ = unix.RawSyscall(number, 0, 0, 0)
			}
			fastest = min(fastest, time.Since(before)/each)
		}
	}
	return fastest
}

// leastCost is the CPU time that the cheapest call is taken to need; 0: calls are counted.
func (w *callWatch) leastCost() time.Duration {
	if w == nil {
		return 0
	}
	return time.Duration(atomic.LoadUint64(&w.state.Cost))
}

// traceCost is how much longer a call takes while the counter is attached; 0: not measured.
func (w *callWatch) traceCost() time.Duration {
	if w == nil || w.plain == 0 || w.traced == 0 {
		return 0
	}
	return max(w.traced-w.plain, 0)
}

// in is how many calls fit into some CPU time.
func (s *callwatchUncountedCalls) in(spent time.Duration) uint64 {
	cost := max(atomic.LoadUint64(&s.Cost), 1)
	return (uint64(max(spent, 0)) + cost - 1) / cost
}

// lasts is how long a number of calls takes at least, when every CPU makes them.
func (s *callwatchUncountedCalls) lasts(calls, cpus uint64) time.Duration {
	return time.Duration(scale(calls, atomic.LoadUint64(&s.Cost), cpus))
}

// arm has the kernel stop the plugin after some time; 0: not any more.
func (w *callWatch) arm(after time.Duration) error {
	if after == 0 && !w.armed {
		return nil
	}
	status, err := w.programs.Programs["watch_calls"].Run(&ebpf.RunOptions{Context: callwatchWatchArgs{Ns: uint64(after)}})
	if err == nil && status != 0 {
		err = fmt.Errorf("it returned %d", int32(status))
	}
	if err != nil {
		return fmt.Errorf("set the timer of uncounted system calls: %w", err)
	}
	w.armed = after != 0
	return nil
}

// watchCalls looks at the plugin's CPU time while its calls are not counted, until the
// context ends. It calls stopped when the kernel has stopped the plugin.
func (c *Confinement) watchCalls(ctx context.Context, stopped func()) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return c.countBeforeLeaving()
		case <-c.lookSoon:
		case <-timer.C:
		}
		next, err := c.look()
		if err != nil {
			return fmt.Errorf("watch system calls: %w", err)
		}
		if c.stoppedByKernel() {
			stopped()
		}
		if timer.Stop(); next > 0 {
			timer.Reset(next)
		}
	}
}

func (c *Confinement) stoppedByKernel() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed && atomic.LoadUint32(&c.programs.limits.enforcement.Action) != 0
}

// look charges the calls that can have been made since the last one, and attaches the
// counter or takes it off. It returns when to look again; 0: when the limits change.
func (c *Confinement) look() (next time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.programs
	if c.closed || w.watch == nil {
		return 0, nil
	}
	if !c.attached {
		return maxLook, nil
	}
	if !w.limits.limitsCalls() {
		atomic.StoreUint64(&w.watch.state.Open, 0)
		return 0, w.watch.arm(0)
	}
	w.watch.measure(w.counter != nil)
	defer w.watch.looks.Add(1)
	used, err := c.group.CPUTime()
	if err != nil {
		return 0, err
	}
	w.charge(used)
	return w.choose(c.pinDir, used, c.config.Logger)
}

// charge charges what can have been called in the CPU time since the last look.
func (w *collection) charge(used time.Duration) {
	s := w.watch.state
	if atomic.LoadUint64(&s.Open) == 0 {
		return
	}
	since := used - time.Duration(atomic.LoadUint64(&s.Cpu))*time.Microsecond
	atomic.StoreUint64(&s.Cpu, uint64(used/time.Microsecond))
	if since > 0 {
		calls := s.in(since + time.Microsecond)
		atomic.AddUint64(&s.Calls, calls)
		w.limits.chargeCalls(calls)
	}
	if w.counter != nil && time.Since(w.counterSince) > w.watch.tick {
		atomic.StoreUint64(&s.Open, 0)
	}
}

// choose takes the counter off while no limit is near, and attaches it otherwise.
func (w *collection) choose(dir string, used time.Duration, log *zap.Logger) (next time.Duration, err error) {
	cpus, err := onlineCPUs()
	if err != nil {
		return 0, err
	}
	if n := atomic.LoadUint64(&w.watch.state.Overdue); n > w.watch.overdue {
		log.Warn("plugin stopped by late look at system calls", zap.Uint64("times", n-w.watch.overdue))
		w.watch.overdue = n
	}
	share, all := w.limits.uncountedRoom(clock())
	// A tick before the look is charged after it, and two after the counter is attached.
	next = min(w.watch.state.lasts(share, cpus)-3*w.watch.tick, maxLook)
	late := w.watch.state.lasts(all, cpus) - w.watch.tick - defiance
	off := w.counter == nil
	switch {
	case off && next >= minLook && late > next:
		return next, w.watch.arm(late)
	case off:
		w.watch.hold = time.Now().Add(counterHold)
		err = w.putCounter(dir, true)
		return 2 * w.watch.tick, errors.Join(err, w.watch.arm(0))
	case next < enterLook || late < enterLook || time.Now().Before(w.watch.hold):
		return maxLook, w.watch.arm(0)
	}
	if err := w.watch.arm(late); err != nil {
		return 0, err
	}
	atomic.StoreUint64(&w.watch.state.Cpu, uint64(used/time.Microsecond))
	atomic.StoreUint64(&w.watch.state.Open, 1)
	return next, w.putCounter(dir, false)
}

// countBeforeLeaving attaches the counter for the time without a sidecar, if the plugin
// outlives this one.
func (c *Confinement) countBeforeLeaving() error {
	if c.group.Own {
		return nil
	}
	c.mu.Lock()
	w := c.programs
	if c.closed || !c.attached || w.watch == nil || !w.limits.limitsCalls() {
		c.mu.Unlock()
		return nil
	}
	w.watch.hold = time.Now().Add(time.Hour)
	err := errors.Join(w.putCounter(c.pinDir, true), w.watch.arm(0))
	c.mu.Unlock()
	if err != nil {
		return err
	}
	time.Sleep(2 * w.watch.tick)
	_, err = c.look()
	return err
}

// uncountedRoom is how many calls may be made before the part of a limit that may be
// charged for uncounted calls is in use, and before a limit is.
func (l *limitTable) uncountedRoom(now uint64) (share, all uint64) {
	share, all = forever, forever
	for i := range l.inForce {
		p := &l.inForce[i]
		if p.kind != LimitSyscalls {
			continue
		}
		if !p.named || p.Exact {
			return 0, 0
		}
		room, quarter := l.room(p, now), p.rule.Depth-p.rule.Depth/uncountedShare
		share = min(share, p.rule.number(room-min(room, quarter)))
		all = min(all, p.rule.number(room-min(room, p.rule.Reserve)))
	}
	return share, all
}

// number is how many calls a part of a bucket pays for.
func (k *hooksLimit) number(part uint64) uint64 {
	if k.Period == 0 {
		return part
	}
	return scale(part, k.Count, k.Period)
}

// chargeCalls charges calls that can have been made, whatever the limits permit.
func (l *limitTable) chargeCalls(calls uint64) {
	now := clock()
	for i := range l.inForce {
		if p := &l.inForce[i]; p.kind == LimitSyscalls {
			l.force(p, calls, now)
		}
	}
}

// force charges cost to a limit as the programs do with FORCE.
func (l *limitTable) force(p *placedLimit, cost, now uint64) {
	s := &l.standings[p.rule.Slot]
	for {
		level := atomic.LoadUint64(&s.Level)
		next := p.rule.after(level, cost, now)
		if !atomic.CompareAndSwapUint64(&s.Level, level, next) {
			continue
		}
		if l.room(p, now) == 0 {
			l.cross(p, now)
		}
		return
	}
}

// after is the level of a limit once cost is charged.
func (k *hooksLimit) after(level, cost, now uint64) uint64 {
	if k.Period == 0 {
		return min(level, forever) + min(cost, forever)
	}
	if cost == 0 {
		return level
	}
	return max(level, now) + min(scale(cost, k.Period, max(k.Count, 1))+1, forever)
}

// cross passes the action of a limit, as the programs do.
func (l *limitTable) cross(p *placedLimit, now uint64) {
	s := &l.standings[p.rule.Slot]
	atomic.StoreUint64(&s.Refused, now)
	atomic.StoreUint32(&s.Over, 1)
	action := &l.enforcement.Action
	for old := atomic.LoadUint32(action); old < uint32(p.rule.Action); old = atomic.LoadUint32(action) {
		if atomic.CompareAndSwapUint32(action, old, uint32(p.rule.Action)) {
			return
		}
	}
}

// onlineCPUs is how many threads can run at once.
func onlineCPUs() (uint64, error) {
	const list = "/sys/devices/system/cpu/online"
	text, err := os.ReadFile(filepath.Clean(list))
	if err != nil {
		return 0, fmt.Errorf("count processors: %w", err)
	}
	var n uint64
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 32)
		to, err2 := strconv.ParseUint(last, 10, 32)
		if err := errors.Join(err1, err2); err != nil || to < from {
			return 0, fmt.Errorf("count processors: %s holds %q, which is not a list of numbers", list, text)
		}
		n += to - from + 1
	}
	return n, nil
}
