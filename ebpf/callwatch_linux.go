package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// While a plugin is far from its limits on system calls, the counter is not attached,
// since it costs every process of the host. bpf/callwatch.bpf.c then adds up for how long
// threads of the plugin run, which bounds how many calls they make: as many as fit. These
// are charged to the limits at once, and this process is woken when more than a quarter of
// a limit is used, to attach the counter. If it is late, the kernel stops the plugin until
// it has. So no limit is passed, and some more than a quarter of one is charged for calls
// that were not made.
const (
	// uncountedShare is the part of a limit, 1/uncountedShare, from which on calls are
	// counted: SHARE of bpf/callwatch.bpf.c. The counter is taken off when less than half
	// of it is used.
	uncountedShare = 4
	// turnShare is the part of a limit, 1/turnShare, that can be used before every
	// processor has added up, as far as minTurn and maxTurn permit. timerDelay is for how
	// long a timer of the kernel may be late, or a stop be under way.
	turnShare                    = 8
	minTurn, maxTurn, timerDelay = 20 * time.Microsecond, 2 * time.Millisecond, 100 * time.Microsecond
	// idleLook and countedLook are from one look to the next, and staging is for how long
	// the watch runs beside the counter.
	idleLook, countedLook, staging = time.Second, 250 * time.Millisecond, 250 * time.Millisecond
	// counterHold is for how long the counter stays on after a limit could have been near,
	// and startHold for how long at first: a program that starts computes.
	counterHold, startHold = 5 * time.Second, time.Second
	// callMargin is how much faster than the fastest measured call one is taken to
	// be, since the processor may run faster later, and maxCallCost what no call is taken to
	// exceed.
	callMargin  = 2
	maxCallCost = 50 * time.Nanosecond
)

// watchPin is the pin of the program that adds up.
const watchPin = linkPrefix + "watch_switch"

// callWatch bounds the calls of a plugin that are not counted.
type callWatch struct {
	programs *ebpf.Collection
	near     *ebpf.Map // the ring by which the kernel wakes us
	memory   []byte
	state    *callwatchUncountedCalls
	link     link.Link // on the scheduler's switch; nil: calls are counted
	hold     time.Time // until when the counter stays on
	overdue  uint64    // as far as it was logged
	tooSmall bool      // that a limit is was logged

	looked time.Time     // when, and what the plugin had used then:
	used   time.Duration // CPU time by the cgroup,
	summed time.Duration // and as the watch has added it up
	staged time.Duration // used when the watch was attached beside the counter
	alone  bool          // the counter was taken off since

	plain  time.Duration // the fastest call while the counter was off; 0: not measured
	traced time.Duration // the same while it was attached
	looks  atomic.Uint64 // how often the CPU time was read
}

// loadCallWatch loads the programs that watch the plugin while its calls are not counted.
// Where the kernel lacks what they need, calls are counted all the time.
func (w *collection) loadCallWatch(dir string, group *sandbox.Cgroup, own bool) error {
	if w.countAlways {
		return nil
	}
	spec, err := w.read("call watch", loadCallwatch, group, own)
	if err != nil {
		return err
	}
	cpus, err := sizeCallWatch(spec)
	if err != nil {
		return err
	}
	if err := w.loadMaps(dir, spec); err != nil {
		return err
	}
	programs, err := w.loadObject(spec)
	if err == nil {
		if err = prepareCallWatch(programs, cpus); err != nil {
			programs.Close()
		}
	}
	if err != nil { // before Linux 6.13
		w.unwatched = err
		return nil //nolint:nilerr // look logs it
	}
	m := w.pinnedMaps["uncounted"]
	memory, err := unix.Mmap(m.FD(), 0, int(m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		programs.Close()
		return fmt.Errorf("map uncounted calls: %w", err)
	}
	w.watch = &callWatch{
		programs: programs, near: w.pinnedMaps["near_limits"], memory: memory, hold: time.Now().Add(startHold), looked: time.Now(),
		state: (*callwatchUncountedCalls)(unsafe.Pointer(&memory[0])), //nolint:gosec // the map's value, page aligned
	}
	w.watch.overdue = atomic.LoadUint64(&w.watch.state.Overdue)
	w.watch.measure(w.counter != nil)
	w.watch.used, err = group.CPUTime()
	return err
}

// sizeCallWatch makes room for every processor there may be.
func sizeCallWatch(spec *ebpf.CollectionSpec) (cpus uint32, err error) {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("count processors: %w", err)
	}
	spec.Maps["watches"].MaxEntries = uint32(n)
	return uint32(n), nil
}

// prepareCallWatch makes the timers of all processors.
func prepareCallWatch(programs *ebpf.Collection, cpus uint32) error {
	for cpu := range cpus {
		status, err := programs.Programs["prepare_watch"].Run(&ebpf.RunOptions{Context: callwatchPrepareArgs{Processor: cpu}})
		if err == nil && status != 0 {
			err = fmt.Errorf("it returned %d", int32(status))
		}
		if err != nil {
			return fmt.Errorf("make timers of uncounted system calls: %w", err)
		}
	}
	return nil
}

// close closes the handles. A pinned program stays attached.
func (w *callWatch) close() error {
	if w == nil {
		return nil
	}
	var errs []error
	if w.link != nil {
		errs = append(errs, w.link.Close())
	}
	w.programs.Close()
	if err := unix.Munmap(w.memory); err != nil {
		errs = append(errs, fmt.Errorf("unmap uncounted calls: %w", err))
	}
	return errors.Join(errs...)
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

// watchCalls attaches the counter when a limit on system calls is near, and takes it off
// when none is, until the context ends. It calls stopped when the kernel has stopped the
// plugin.
func (c *Confinement) watchCalls(ctx context.Context, stopped func()) (err error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var listener *ringbuf.Reader
	heard := make(chan error, 1)
	defer func() {
		if listener != nil {
			err = errors.Join(err, listener.Close(), <-heard)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return c.countBeforeLeaving()
		case err := <-heard:
			heard <- nil // for the deferred close
			return err
		case <-c.lookSoon:
		case <-timer.C:
		}
		if near := c.nearLimits(); listener == nil && near != nil {
			if listener, err = ringbuf.NewReader(near); err != nil {
				return fmt.Errorf("watch system calls: %w", err)
			}
			go func() { heard <- c.lookWhenNear(listener) }()
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

// nearLimits is the ring by which the kernel reports that a limit is near; nil: calls are
// counted all the time.
func (c *Confinement) nearLimits() *ebpf.Map {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.programs.watch == nil {
		return nil
	}
	return c.programs.watch.near
}

// lookWhenNear looks when the kernel asks for it, until the reader is closed. Until it has,
// the plugin is charged for all the calls that it may be making, and the plugin may keep every
// processor busy: the thread goes before others, as far as that is permitted.
func (c *Confinement) lookWhenNear(reader *ringbuf.Reader) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	first := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	before, err := unix.SchedGetAttr(0, 0)
	if err == nil && unix.SchedSetAttr(0, &first, 0) == nil {
		// The thread is given back as it was: if it ended, so would processes that it started (PR_SET_PDEATHSIG).
		defer func() { err = errors.Join(err, unix.SchedSetAttr(0, before, 0)) }()
	}
	var record ringbuf.Record
	for {
		err = reader.ReadInto(&record)
		if errors.Is(err, ringbuf.ErrClosed) {
			return nil
		}
		if err == nil {
			_, err = c.look()
		}
		if err != nil {
			return fmt.Errorf("watch system calls: %w", err)
		}
		select {
		case c.lookSoon <- struct{}{}:
		default:
		}
	}
}

func (c *Confinement) stoppedByKernel() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed && atomic.LoadUint32(&c.programs.limits.enforcement.Action) != 0
}

// look attaches the counter or takes it off. It returns when to look again; 0: when the
// limits change.
func (c *Confinement) look() (next time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.programs
	if c.closed {
		return 0, nil
	}
	if w.unwatched != nil && w.limits.limitsCalls() {
		c.config.Logger.Info("syscall counting always on", zap.String("reason", "kernel cannot bound system calls by CPU time"), zap.Error(w.unwatched))
		w.unwatched = nil
	}
	if w.watch == nil {
		return 0, nil
	}
	if !c.attached {
		return countedLook, nil
	}
	if !w.limits.limitsCalls() {
		return 0, w.stopWatch(c.pinDir)
	}
	defer w.watch.looks.Add(1)
	if w.watch.link != nil && atomic.LoadUint64(&w.watch.state.Near) != 0 {
		return countedLook, w.countAgain(c.pinDir, c.config.Logger)
	}
	w.watch.measure(w.counter != nil)
	used, err := c.group.CPUTime()
	if err != nil {
		return 0, err
	}
	cpus, err := onlineCPUs()
	if err != nil {
		return 0, err
	}
	turn := w.limits.turn(w.watch.state, cpus)
	if turn == 0 && !w.watch.tooSmall && !w.limits.exactCalls() {
		w.watch.tooSmall = true
		c.config.Logger.Info("syscall counting always on", zap.String("reason", "a limit can be used up before the kernel's timers add up CPU time"), zap.Uint64("cpus", cpus))
	}
	return w.choose(c.pinDir, used, turn, c.config.Logger)
}

// choose takes the counter off while no limit is near, after the watch ran beside it for a
// while, and attaches it otherwise.
func (w *collection) choose(dir string, used, turn time.Duration, log *zap.Logger) (next time.Duration, err error) {
	s, now := w.watch.state, time.Now()
	elapsed := now.Sub(w.watch.looked)
	calm := w.limits.calm(s.in(used-w.watch.used), elapsed)
	w.chargeUnseen(used)
	w.watch.looked, w.watch.used, w.watch.summed = now, used, time.Duration(atomic.LoadUint64(&s.Time))
	if !calm {
		w.watch.hold = now.Add(counterHold)
	}
	switch {
	case w.watch.link == nil && (turn == 0 || now.Before(w.watch.hold)):
		return countedLook, w.putCounter(dir, true)
	case w.watch.link == nil:
		w.watch.staged, w.watch.alone = used, false
		return staging, w.startWatch(dir, turn)
	case turn == 0 || !calm && w.counter != nil:
		return countedLook, w.countAgain(dir, log)
	}
	w.watch.pace(turn)
	if w.counter == nil {
		return idleLook, nil
	}
	if w.watch.alone { // other limits were set, which attached the counter
		w.watch.staged, w.watch.alone = used, false
		return staging, nil
	}
	// A thread that has run since before the watch was attached is not seen by it.
	if used-w.watch.staged > staging/2 {
		return countedLook, w.countAgain(dir, log)
	}
	w.watch.alone = true
	return idleLook, w.putCounter(dir, false)
}

// chargeUnseen charges CPU time of the cgroup that the watch has not seen: of threads that
// were moved into the cgroup while they ran.
func (w *collection) chargeUnseen(used time.Duration) {
	const tolerated = 16 * time.Millisecond // ticks that the cgroup was late with at the last look
	if w.watch.link == nil || w.counter != nil {
		return
	}
	s := w.watch.state
	unseen := used - w.watch.used - (time.Duration(atomic.LoadUint64(&s.Time)) - w.watch.summed)
	if unseen <= tolerated {
		return
	}
	calls := s.in(unseen)
	atomic.AddUint64(&s.Calls, calls)
	w.limits.chargeCalls(calls)
}

// pace sets how often each processor adds up.
func (w *callWatch) pace(turn time.Duration) {
	cpus, err := onlineCPUs()
	if err != nil {
		return // as it was
	}
	atomic.StoreUint64(&w.state.Reserve, w.state.in(time.Duration(cpus)*(turn+timerDelay)))
	atomic.StoreUint64(&w.state.Turn, uint64(turn))
}

// startWatch attaches the watch beside the counter.
func (w *collection) startWatch(dir string, turn time.Duration) error {
	w.watch.pace(turn)
	atomic.StoreUint64(&w.watch.state.Near, 0)
	atomic.StoreUint64(&w.watch.state.Opened, clock())
	l, err := link.AttachTracing(link.TracingOptions{Program: w.watch.programs.Programs["watch_switch"]})
	if err != nil {
		return fmt.Errorf("attach watch of system calls: %w", err)
	}
	w.watch.link = l
	if err := repin(l, filepath.Join(dir, watchPin)); err != nil {
		return fmt.Errorf("keep watch of system calls: %w", err)
	}
	return nil
}

// countAgain attaches the counter, and takes the watch off.
func (w *collection) countAgain(dir string, log *zap.Logger) error {
	w.watch.hold = time.Now().Add(counterHold)
	err := errors.Join(w.putCounter(dir, true), w.stopWatch(dir))
	if n := atomic.LoadUint64(&w.watch.state.Overdue); n > w.watch.overdue {
		log.Warn("plugin stopped by late look at system calls", zap.Uint64("times", n-w.watch.overdue))
		w.watch.overdue = n
	}
	return err
}

// stopWatch takes the watch off. The counter is attached, or no limit needs it.
func (w *collection) stopWatch(dir string) error {
	if w.watch != nil {
		atomic.StoreUint64(&w.watch.state.Opened, 0)
		atomic.StoreUint64(&w.watch.state.Near, 0)
	}
	if err := os.Remove(filepath.Join(dir, watchPin)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detach watch of system calls: %w", err)
	}
	if w.watch == nil || w.watch.link == nil {
		return nil
	}
	err := w.watch.link.Close()
	w.watch.link = nil
	if err != nil {
		return fmt.Errorf("detach watch of system calls: %w", err)
	}
	return nil
}

// countBeforeLeaving attaches the counter for the time without a sidecar, if the plugin
// outlives this one.
func (c *Confinement) countBeforeLeaving() error {
	if c.group.Own {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.programs
	if c.closed || !c.attached || w.watch == nil || !w.limits.limitsCalls() {
		return nil
	}
	return w.countAgain(c.pinDir, c.config.Logger)
}

// exactCalls reports whether a limit on system calls is to be counted exactly.
func (l *limitTable) exactCalls() bool {
	return slices.ContainsFunc(l.inForce, func(p placedLimit) bool { return p.kind == LimitSyscalls && (!p.named || p.Exact) })
}

// turn is how often each processor is to add up CPU time; 0: calls are to be counted,
// since as many as half of a limit could be made before all have, or since it is to be exact.
func (l *limitTable) turn(s *callwatchUncountedCalls, cpus uint64) time.Duration {
	if l.exactCalls() {
		return 0
	}
	turn := maxTurn
	for i := range l.inForce {
		if p := &l.inForce[i]; p.kind == LimitSyscalls {
			turn = min(turn, time.Duration(scale(p.rule.Count, atomic.LoadUint64(&s.Cost), turnShare*cpus)))
		}
	}
	turn = max(turn, minTurn)
	reserve := s.in(time.Duration(cpus) * (turn + timerDelay))
	for i := range l.inForce {
		if p := &l.inForce[i]; p.kind == LimitSyscalls && reserve > p.rule.Count/2 {
			return 0
		}
	}
	return turn
}

// calm reports whether the counter would stay off: a plugin that can make some calls in
// some time is far from every limit, and has been for a while.
func (l *limitTable) calm(calls uint64, elapsed time.Duration) bool {
	calm, now := true, clock()
	for i := range l.inForce {
		p := &l.inForce[i]
		if p.kind != LimitSyscalls {
			continue
		}
		share := p.rule.Count / uncountedShare
		free := scale(share, uint64(elapsed), uint64(counterHold))
		if p.rule.Period != 0 {
			free = max(free, scale(p.rule.Count, uint64(elapsed), p.rule.Period))
		}
		p.possible = min(p.possible-min(free, p.possible)+calls, 2*share)
		if p.possible > share || l.room(p, now) < p.rule.Depth-p.rule.Depth/(2*uncountedShare) {
			calm = false
		}
	}
	return calm
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
