package ebpf

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Numbers that the programs use as well: see bpf/limits.bpf.h.
const (
	kinds   = 6
	slots   = 128
	forever = 1 << 62
	lease   = 32

	minAhead = 7 // an estimate of the clock is at most a 128th of a rate's period ahead

	more = 4 // MORE

	pendingStop = 1
	pendingKill = 2

	inForceWhich   = 1
	inForceActions = 1 << 8
	inForceBlocks  = 1 << 9
	inForcePace    = 1 << 10
	inForceRules   = 1 << 11
)

// maxPeriod is the longest period of a limit, in which the arithmetic of the
// programs cannot overflow.
const maxPeriod = 36_500 * 24 * time.Hour

// Limit replaces the limits that the kernel enforces, in one step, any time
// after [New]. One that stays, by its Name and Kind, keeps its standing; when
// its Period is another, at least as much of it is used as was before. It is an error,
// and nothing changes, when a limit has no kind, a negative or overlong period
// or the name of another one of its kind, or when there are more than
// [MaxLimits] of a kind.
//
// A packet that is larger than the whole of a rate (64 KiB under a limit of 10 KiB)
// passes when the rate is unused, and is charged in full. A packet that is larger than
// the rest of a total does not pass.
func (c *Confinement) Limit(limits []Limit) error {
	if err := checkLimits(limits); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	c.limiting.Lock()
	defer c.limiting.Unlock()
	if err := c.awaitEarlierLimits(); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("set limits: %w", os.ErrClosed)
	}
	calls := slices.ContainsFunc(limits, func(l Limit) bool { return l.Kind == LimitSyscalls })
	// A counter that is no longer needed goes last, one that is needed comes first.
	if calls {
		if err := c.count(true); err != nil {
			return fmt.Errorf("set limits: %w", err)
		}
	}
	if err := c.programs.limits.replace(limits); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	if !calls {
		if err := c.count(false); err != nil {
			return fmt.Errorf("set limits: %w", err)
		}
	}
	select {
	case c.lookSoon <- struct{}{}:
	default:
	}
	return nil
}

// awaitEarlierLimits waits for programs that still run with the limits before the present
// ones, if there were any: they have to end before their entry and slots are written again.
// That takes a few milliseconds, for which a block or a kill must not wait.
func (c *Confinement) awaitEarlierLimits() error {
	c.mu.Lock()
	earlier := !c.closed && c.programs.limits.earlier
	c.mu.Unlock()
	if !earlier {
		return nil
	}
	return awaitPrograms()
}

func checkLimits(limits []Limit) error {
	type name struct {
		kind LimitKind
		name string
	}
	seen := make(map[name]bool)
	each := make(map[LimitKind]int)
	for _, l := range limits {
		if each[l.Kind]++; each[l.Kind] > MaxLimits {
			return fmt.Errorf("more than %d on %s", MaxLimits, l.Kind)
		}
		switch {
		case l.Kind < LimitConnections || l.Kind > LimitProcesses:
			return fmt.Errorf("%q has no kind", l.Name)
		case l.Action > ActionKill:
			return fmt.Errorf("%q has no action", l.Name)
		case l.Period < 0 || l.Period > maxPeriod:
			return fmt.Errorf("%q has the period %v", l.Name, l.Period)
		case seen[name{l.Kind, l.Name}]:
			return fmt.Errorf("two on %s are called %q", l.Kind, l.Name)
		}
		seen[name{l.Kind, l.Name}] = true
	}
	return nil
}

// compileLimit is a limit as the programs hold it, but for its slot. tick is more than
// the coarse clock may be late.
func compileLimit(l Limit, cpus uint64, tick time.Duration) hooksLimit {
	l.Count = min(l.Count, forever) // a larger count is never reached
	k := hooksLimit{Count: l.Count, Name: l.digest(), Set: 1}
	if l.Period == 0 || l.Count == 0 {
		k.Depth, k.Mult = k.Count, 1
	} else {
		k.Period = uint64(l.Period)
		k.Mult, k.Shift = ratio(k.Period, k.Count)
		k.Depth = k.Period + l.slack()
	}
	k.Unit = k.price(1)
	bytes := l.Kind == LimitSentBytes || l.Kind == LimitReceivedBytes
	if bytes {
		const smallest = 64 // no packet with payload is much smaller
		k.Unit = k.price(min(smallest, k.Count))
	}
	k.Reserve = min(k.price(min(lease*cpus, k.Count)), k.Depth)
	if lease*cpus > k.Count {
		k.Reserve = k.Depth
	}
	switch {
	case l.Action == ActionKill:
		k.Action = pendingKill
	case l.Action == ActionStop:
		k.Action, k.Early = pendingStop, 1
	case l.Action == ActionThrottle && l.Kind == LimitSyscalls:
		k.Action, k.Early, k.Turns = pendingStop, 1, 1
	}
	if bytes && k.Period != 0 { // others are charged one by one, and a burst is to be all of the count
		k.Ahead = aheadOf(k.Depth, tick)
	}
	if l.Action != ActionThrottle && (bytes || l.Kind == LimitSyscalls) {
		k.Blocks = 1
	}
	return k
}

// aheadOf is by how much of its depth, as a shift, a rate estimates the clock ahead of the
// coarse one, which is late by less than a tick; 0: it reads the clock. Long periods
// have room for a coarse clock that is late because a hypervisor took the CPU that keeps it.
func aheadOf(depth uint64, tick time.Duration) uint8 {
	const most = 16 // ticks
	if depth>>minAhead < uint64(tick) {
		return 0
	}
	shift := uint8(minAhead)
	for depth>>(shift+1) >= most*uint64(tick) {
		shift++
	}
	return shift
}

// ratio is period/count as mult>>shift, rounded up, with the largest shift at
// which the price of count does not overflow.
func ratio(period, count uint64) (mult uint64, shift uint8) {
	for shift = 62; ; shift-- {
		one := uint64(1) << shift
		high, low := bits.Mul64(period, one)
		if high != 0 {
			continue
		}
		sum, carry := bits.Add64(low, count+one, 0)
		if carry != 0 || sum < one {
			continue
		}
		mult = low / count
		if low%count != 0 {
			mult++
		}
		return mult, shift
	}
}

// slack is what a bucket has to be deeper than one period, in ns, so that the
// rounding of single prices does not take the last of a burst. It is never
// worth one more.
func (l Limit) slack() uint64 {
	period, left := uint64(l.Period), uint64(l.Period)%l.Count
	if left == 0 {
		return 0
	}
	deficit := l.Count - left // of count prices of one, rounded up
	switch l.Kind {
	case LimitConnections, LimitProcesses: // charged one by one
		return min(deficit, forever)
	case LimitSyscalls:
		return min(deficit, period/l.Count)
	case LimitSentBytes, LimitReceivedBytes:
	}
	return 0
}

// price is the programs' price of cost, which is not more than the count.
func (k *hooksLimit) price(cost uint64) uint64 {
	if k.Period == 0 {
		return cost
	}
	return (cost*k.Mult + 1<<k.Shift - 1) >> k.Shift
}

// digest is what a limit's standing is found by when the sidecar is restarted.
func (l Limit) digest() [2]uint64 {
	sum := sha256.Sum256(append([]byte{byte(l.Kind)}, l.Name...))
	return [2]uint64{binary.NativeEndian.Uint64(sum[:]), binary.NativeEndian.Uint64(sum[8:])}
}

// paceOf is how fast each connection may send, in bytes a second: a little less
// than the limit on them all, since the kernel paces payload and we count IP. 0:
// as fast as it can.
func paceOf(limits []Limit) uint32 {
	rate := uint64(1<<32 - 1)
	for _, l := range limits {
		if l.Kind != LimitSentBytes || l.Action != ActionThrottle || l.Period == 0 {
			continue
		}
		high, low := bits.Mul64(min(l.Count, forever), uint64(time.Second))
		if high >= uint64(l.Period) {
			continue
		}
		each, _ := bits.Div64(high, low, uint64(l.Period))
		rate = min(rate, max(each-each/64, 1))
	}
	if rate == 1<<32-1 {
		return 0
	}
	return uint32(rate)
}

// limitTable is the kernel's limits as user space sees them. Its owner holds the
// confinement's lock.
type limitTable struct {
	limits      *ebpf.Map
	control     *ebpf.Map
	memory      [2][]byte
	standings   []hooksLimitState
	enforcement *hooksEnforcement
	inForce     []placedLimit
	earlier     bool // there were limits before those in force, with which programs may still run
}

// placedLimit is a limit in force.
type placedLimit struct {
	Limit
	named    bool // false: a sidecar that is gone set it, and its name is not known yet
	kind     LimitKind
	rule     hooksLimit
	reported bool   // its crossing was
	possible uint64 // calls that could be made of late: see calm
}

// openLimitTable takes over what the maps hold.
func openLimitTable(w *collection) (*limitTable, error) {
	_, fresh := w.unpinned["door"]
	l := &limitTable{limits: w.pinnedMaps["limits"], control: w.pinnedMaps["door"], earlier: !fresh}
	for i, name := range []string{"standings", "held"} {
		m := w.pinnedMaps[name]
		size := int(m.ValueSize()) * int(m.MaxEntries())
		memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %s: %w", name, err), l.close())
		}
		l.memory[i] = memory
	}
	l.standings = unsafe.Slice((*hooksLimitState)(unsafe.Pointer(&l.memory[0][0])), slots) //nolint:gosec // the map's values, page aligned
	l.enforcement = (*hooksEnforcement)(unsafe.Pointer(&l.memory[1][0]))                   //nolint:gosec // the same
	door, err := l.readControl()
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	for i := range uint32(kinds * MaxLimits) {
		var rule hooksLimit
		if err := l.limits.Lookup((door.InForce&inForceWhich)*kinds*MaxLimits+i, &rule); err != nil {
			return nil, errors.Join(fmt.Errorf("read limits: %w", err), l.close())
		}
		if rule.Set != 0 {
			l.inForce = append(l.inForce, placedLimit{kind: LimitKind(i / MaxLimits), rule: rule})
		}
	}
	return l, nil
}

func (l *limitTable) close() error {
	var errs []error
	for _, memory := range l.memory {
		if memory == nil {
			continue
		}
		if err := unix.Munmap(memory); err != nil {
			errs = append(errs, fmt.Errorf("unmap limits: %w", err))
		}
	}
	return errors.Join(errs...)
}

// limitsCalls reports whether a limit on system calls is in force.
func (l *limitTable) limitsCalls() bool {
	return slices.ContainsFunc(l.inForce, func(p placedLimit) bool { return p.kind == LimitSyscalls })
}

func (l *limitTable) readControl() (hooksControl, error) {
	var door hooksControl
	if err := l.control.Lookup(zero, &door); err != nil {
		return door, fmt.Errorf("read control map: %w", err)
	}
	return door, nil
}

// updateControl changes the block in one write.
func (l *limitTable) updateControl(change func(*hooksControl)) error {
	door, err := l.readControl()
	if err != nil {
		return err
	}
	change(&door)
	if err := l.control.Put(zero, door); err != nil {
		return fmt.Errorf("block the plugin: %w", err)
	}
	return nil
}

// replace puts other limits in force. No program may run any more with those
// that were in force before the present ones. The programs read one of two
// entries and write standings only, so that they see either all old limits or
// all new ones.
func (l *limitTable) replace(limits []Limit) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	tick, err := schedulerTick()
	if err != nil {
		return err
	}
	next, moves, err := l.place(limits, uint64(cpus), tick)
	if err != nil {
		return err
	}
	door, err := l.readControl()
	if err != nil {
		return err
	}
	spare := (door.InForce & inForceWhich) ^ 1
	entries, word := arrange(next)
	for i, entry := range entries {
		if err := l.limits.Put(spare*kinds*MaxLimits+uint32(i), entry); err != nil {
			return fmt.Errorf("write limits: %w", err)
		}
	}
	pace := paceOf(limits)
	if pace != 0 {
		word |= inForcePace
	}
	if err := l.updateControl(func(d *hooksControl) { d.InForce, d.Pace = word|spare|d.InForce&inForceRules, pace }); err != nil {
		return err
	}
	l.earlier, l.inForce = len(l.inForce) > 0, next
	if len(moves) == 0 {
		return nil
	}
	if err := awaitPrograms(); err != nil {
		return err
	}
	for _, m := range moves {
		m.finish(l)
	}
	return nil
}

// arrange writes limits to the map of the programs, and returns the word that describes them.
// Within a kind, those that end the plugin come last: nothing that a later one
// refuses is charged to them.
func arrange(next []placedLimit) (entries [kinds * MaxLimits]hooksLimit, word uint32) {
	slices.SortStableFunc(next, func(a, b placedLimit) int { return int(a.rule.Action) - int(b.rule.Action) })
	each := make(map[LimitKind]int)
	for _, p := range next {
		place := int(p.Kind)*MaxLimits + each[p.Kind]
		if entries[place] = p.rule; each[p.Kind] > 0 {
			entries[place-1].More = more
		}
		each[p.Kind]++
		word |= 1 << p.Kind
		if p.rule.Action != 0 {
			word |= inForceActions
		}
		if p.rule.Blocks != 0 {
			word |= inForceBlocks
		}
	}
	return entries, word
}

// rebase is a standing that goes on in another slot, since its period changed.
type rebase struct {
	from, to     hooksLimit
	level, since uint64 // of the old slot, when it was read
}

// finish adds what was charged to the old slot before the new one took its
// place.
func (m rebase) finish(l *limitTable) {
	level := atomic.LoadUint64(&l.standings[m.from.Slot].Level)
	base := max(m.level, m.since)
	if level > base {
		atomic.AddUint64(&l.standings[m.to.Slot].Level, max(m.share(level-base), m.number(level-base)))
	}
}

// used is how much of the new bucket is in use: it is at least as full as the
// old one was, and has room for no more than that had.
func (m rebase) used() uint64 {
	used := max(m.level, m.since) - m.since
	room := m.number(m.from.Depth - min(used, m.from.Depth))
	return max(m.share(used), m.to.Depth-min(room, m.to.Depth))
}

// share is what takes the same share of the new bucket as n of the old one.
func (m rebase) share(n uint64) uint64 { return scale(n, m.to.Period, m.from.Period) }

// number is what pays for as many in the new bucket as n in the old one.
func (m rebase) number(n uint64) uint64 { return scale(m.share(n), m.from.Count, m.to.Count) }

// scale is n*num/den, or forever.
func scale(n, num, den uint64) uint64 {
	high, low := bits.Mul64(n, num)
	if high >= den {
		return forever
	}
	scaled, _ := bits.Div64(high, low, den)
	return min(scaled, forever)
}

// place gives each limit its slot: the one that it has, or a free one.
func (l *limitTable) place(limits []Limit, cpus uint64, tick time.Duration) (next []placedLimit, moves []rebase, err error) {
	free := l.freeSlots()
	for _, limit := range limits {
		p := placedLimit{Limit: limit, named: true, kind: limit.Kind, rule: compileLimit(limit, cpus, tick)}
		old := l.find(p.rule.Name)
		if old != nil && old.rule.Period == p.rule.Period {
			p.rule.Slot, p.reported = old.rule.Slot, old.reported
			l.keep(old, &p)
			next = append(next, p)
			continue
		}
		if len(free) == 0 {
			return nil, nil, errors.New("no slot is free")
		}
		p.rule.Slot, free = free[0], free[1:]
		if m, ok := l.start(old, &p); ok {
			moves = append(moves, m)
		}
		next = append(next, p)
	}
	return next, moves, nil
}

// freeSlots are those that no limit in force has.
func (l *limitTable) freeSlots() []uint32 {
	var free []uint32
	for slot := range uint32(slots) {
		if !slices.ContainsFunc(l.inForce, func(p placedLimit) bool { return p.rule.Slot == slot }) {
			free = append(free, slot)
		}
	}
	return free
}

func (l *limitTable) find(name [2]uint64) *placedLimit {
	i := slices.IndexFunc(l.inForce, func(p placedLimit) bool { return p.rule.Name == name })
	if i < 0 {
		return nil
	}
	return &l.inForce[i]
}

// keep goes on with the standing of a limit that stays.
func (l *limitTable) keep(old, p *placedLimit) {
	s := &l.standings[p.rule.Slot]
	if p.Period != 0 {
		return
	}
	for {
		level := atomic.LoadUint64(&s.Level)
		if level >= p.Used || atomic.CompareAndSwapUint64(&s.Level, level, min(p.Used, forever)) {
			break
		}
	}
	if p.rule.Count > old.rule.Count {
		atomic.StoreUint32(&s.Over, 0) // a total recovers by being raised
	}
}

// start begins the standing of a limit that is new, or has another period.
func (l *limitTable) start(old, p *placedLimit) (rebase, bool) {
	s := &l.standings[p.rule.Slot]
	atomic.StoreUint32(&s.Over, 0)
	atomic.StoreUint64(&s.Refused, 0)
	atomic.StoreUint64(&s.Asked, 0)
	if p.rule.Period == 0 {
		atomic.StoreUint64(&s.Level, min(p.Used, forever))
		return rebase{}, false
	}
	atomic.StoreUint64(&s.Level, 0)
	if old == nil || old.rule.Period == 0 {
		if p.Debt > 0 {
			atomic.StoreUint64(&s.Level, clock()+min(uint64(p.Debt), forever))
		}
		return rebase{}, false
	}
	m := rebase{from: old.rule, to: p.rule, since: clock()}
	before := &l.standings[old.rule.Slot]
	m.level = atomic.LoadUint64(&before.Level)
	atomic.StoreUint64(&s.Level, m.since+m.used())
	atomic.StoreUint64(&s.Refused, atomic.LoadUint64(&before.Refused))
	atomic.StoreUint64(&s.Asked, scale(atomic.LoadUint64(&before.Asked), p.rule.Period, old.rule.Period))
	atomic.StoreUint32(&s.Over, atomic.LoadUint32(&before.Over))
	p.reported = old.reported
	return m, true
}

// clock is the programs' clock: CLOCK_MONOTONIC, ns.
func clock() uint64 {
	var spec unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &spec); err != nil {
		return 0 // every bucket is fuller then than it is
	}
	return uint64(spec.Nano())
}

// awaitPrograms waits until every program that runs now has ended, by way of a
// membarrier(2) of all processors, which is a grace period of RCU. Where the
// system call is not there (CONFIG_MEMBARRIER, or with nohz_full), a tenth of a
// second is far more than a program runs for.
func awaitPrograms() error {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, unix.EINVAL), errors.Is(errno, unix.ENOSYS):
		time.Sleep(100 * time.Millisecond)
		return nil
	}
	return fmt.Errorf("await programs: %w", errno)
}

// room is how much of a limit is free, in its own units: ns of a rate.
func (l *limitTable) room(p *placedLimit, now uint64) uint64 {
	if p.rule.Period == 0 {
		now = 0
	}
	level := max(atomic.LoadUint64(&l.standings[p.rule.Slot].Level), now)
	return now + p.rule.Depth - min(level, now+p.rule.Depth)
}

// limitName is the name of the limit in a slot.
func (c *Confinement) limitName(slot uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.programs.limits.inForce, func(p placedLimit) bool { return p.rule.Slot == slot })
	if i < 0 {
		return ""
	}
	return c.programs.limits.inForce[i].Name
}
