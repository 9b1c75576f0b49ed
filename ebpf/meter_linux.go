package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// checkInterval is how often [Confinement.Run] looks whether the programs are still on
// the cgroup.
const checkInterval = time.Second

// Usage reads the totals.
func (c *Confinement) Usage() (Usage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return Usage{}, fmt.Errorf("read usage: %w", os.ErrClosed)
	}
	return c.usage()
}

func (c *Confinement) usage() (Usage, error) {
	u := Usage{Time: time.Now()}
	tallies, err := cpus[hooksTally](c.programs.counters)
	if err != nil {
		return Usage{}, err
	}
	for _, t := range append(tallies, c.programs.shared.read()) {
		u.Connections += t.Connections
		u.Refused += t.Refused
		u.Lost += t.Lost
		u.SentBytes += t.SentBytes
		u.SentPackets += t.SentPackets
		u.ReceivedBytes += t.ReceivedBytes
		u.ReceivedPackets += t.ReceivedPackets
		u.Processes += t.Processes
		u.Ended += t.Escaped + t.Ended
		u.Identified += t.Identified
		u.Abandoned += t.Abandoned
		u.Limited += t.Limited
		u.DNSQueries += t.Questions
	}
	if u.Pending, err = c.programs.pending(); err != nil {
		return Usage{}, err
	}
	u.Refused += c.refusedCalls.Load()
	u.Lost += c.droppedDenials.Load()
	if c.programs.calls == nil {
		return u, nil
	}
	calls, err := cpus[callsCalls](c.programs.calls.Maps["calls"])
	if err != nil {
		return Usage{}, err
	}
	for _, cpu := range calls {
		s := &u.Syscalls
		s.Other += cpu.ByClass[classOther]
		s.File += cpu.ByClass[classFile]
		s.Network += cpu.ByClass[classNetwork]
		s.Process += cpu.ByClass[classProcess]
		s.Memory += cpu.ByClass[classMemory]
		s.IPC += cpu.ByClass[classIPC]
		for _, n := range cpu.ByClass {
			s.Total += n
		}
	}
	if c.programs.watch != nil {
		u.Syscalls.Uncounted = atomic.LoadUint64(&c.programs.watch.state.Calls)
		u.Syscalls.Total += u.Syscalls.Uncounted
	}
	return u, nil
}

// Run reports refusals and samples usage until the context ends, and then what
// is left of both. It returns an error when a program came off the cgroup or
// the totals cannot be read: what the plugin does is not known from then on, and
// the caller is to end it.
func (c *Confinement) Run(ctx context.Context) error {
	reader, err := ringbuf.NewReader(c.programs.events)
	if err != nil {
		return fmt.Errorf("read refusals: %w", err)
	}
	var (
		pumping sync.WaitGroup
		pumped  error
		events  = make(chan hooksEvent)
		stop    = make(chan struct{})
	)
	pumping.Go(func() { pumped = pump(reader, events, stop) })
	m := &meter{
		confinement: c, denials: make(map[sandbox.Denial]*repeated), uses: make(map[sandbox.Denial]*repeated), offenders: make(map[uint32]offender), lost: c.lostBefore,
		watched: make(chan error, 2), unread: reader.AvailableBytes, enforceTimer: time.NewTimer(0),
	}
	var watchers sync.WaitGroup
	watching, stopWatching := context.WithCancel(ctx)
	watchers.Go(func() { m.watched <- c.scanLoop(watching) })
	watchers.Go(func() { m.watched <- c.watchCalls(watching, func() { m.enforceTimer.Reset(0) }) })
	err = m.loop(ctx, events)
	stopWatching()
	watchers.Wait() // the findings of the last scan are reported, too
	if err == nil {
		err = m.drain(reader, events)
	}
	close(stop)
	err = errors.Join(err, reader.Close())
	pumping.Wait()
	return errors.Join(err, pumped)
}

// pump hands on what the kernel reports until the reader is closed or flushed.
func pump(reader *ringbuf.Reader, events chan<- hooksEvent, stop <-chan struct{}) error {
	defer close(events)
	var record ringbuf.Record
	for {
		err := reader.ReadInto(&record)
		if errors.Is(err, ringbuf.ErrFlushed) || errors.Is(err, ringbuf.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read refusals: %w", err)
		}
		var event hooksEvent
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &event); err != nil {
			return fmt.Errorf("read refusals: %w", err)
		}
		select {
		case events <- event:
		case <-stop:
			return nil
		}
	}
}

// maxDistinct is how many different refusals are described in one interval. The
// plugin chooses what it tries, so it could fill any log otherwise.
const maxDistinct = 256

// meter is the state of one [Confinement.Run], all of it in one goroutine.
type meter struct {
	confinement *Confinement
	denials     map[sandbox.Denial]*repeated
	uses        map[sandbox.Denial]*repeated // of allowed Unix sockets: no flood of refusals hides one
	lost        uint64

	offenders    map[uint32]offender // by slot, since the limits were last looked at
	enforceTimer *time.Timer         // when they are to be looked at again
	watched      chan error          // how [Confinement.watch] ended
	unread       func() int          // bytes of events that the kernel holds
}

// repeated is a refusal that was reported, and how often it came again since.
type repeated struct {
	last  sandbox.Denial
	count uint64
}

func (m *meter) loop(ctx context.Context, events <-chan hooksEvent) error {
	tick := time.NewTicker(m.confinement.config.Interval)
	defer tick.Stop()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	defer m.enforceTimer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.enforceTimer.C:
			if err := m.enforce(); err != nil {
				return err
			}
		case event, ok := <-events:
			if !ok {
				return errors.New("read refusals: the reader ended")
			}
			m.handleEvent(&event)
		case d := <-m.confinement.denials:
			m.denied(d)
		case done := <-m.confinement.flushing:
			err := m.flush(events)
			close(done)
			if err != nil {
				return err
			}
		case err := <-m.watched:
			if err != nil {
				return err
			}
		case <-tick.C:
			if err := m.sample(); err != nil {
				return err
			}
		case <-check.C:
			m.confinement.recheckAllowlist()
			m.confinement.dropAliases()
			m.confinement.checkDirect()
			if err := m.confinement.Check(); err != nil && !errors.Is(err, ErrNotAttached) {
				return err
			}
		}
	}
}

// Flush has [Confinement.Run] report what was refused, found and crossed until now, and
// returns when it has, or when ctx ends. The last events of a plugin that has ended are
// then recorded before its end.
func (c *Confinement) Flush(ctx context.Context) {
	c.scanning.Lock() // a scan that is being taken ends first
	done := make(chan struct{})
	c.scanning.Unlock()
	select {
	case c.flushing <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// flush reports what waits to be reported.
func (m *meter) flush(events <-chan hooksEvent) error {
	for range drainLimit {
		select {
		case event, ok := <-events:
			if !ok {
				return errors.New("read refusals: the reader ended")
			}
			m.handleEvent(&event)
			continue
		case d := <-m.confinement.denials:
			m.denied(d)
			continue
		case <-time.After(time.Millisecond): // one may be on its way from the reader
		}
		if m.unread() == 0 {
			break
		}
	}
	return m.sample()
}

// drainLimit bounds how many records are read at the end: no more can be there
// at once, and a plugin that lives on may add to them for ever.
const drainLimit = 4096

// drain reports what is left.
func (m *meter) drain(reader *ringbuf.Reader, events <-chan hooksEvent) error {
	if err := reader.Flush(); err != nil {
		return fmt.Errorf("read refusals: %w", err)
	}
	for range drainLimit {
		event, ok := <-events
		if !ok {
			break
		}
		m.handleEvent(&event)
	}
	for more := true; more; {
		select {
		case d := <-m.confinement.denials:
			m.denied(d)
		default:
			more = false
		}
	}
	return m.sample()
}

// hookLimit is the number of the event that reports no refusal: a limit began to
// refuse. Number 10 was in use by an earlier version.
const hookLimit = 11

// handleEvent takes in what the kernel reports.
func (m *meter) handleEvent(e *hooksEvent) {
	if e.Hook == hookLimit {
		m.offenders[e.Limit] = offender{wallClock(e.Time), e.Pid, cString(e.Comm[:])}
		m.enforceTimer.Reset(0)
		return
	}
	d := decode(e)
	if d.Cause == sandbox.CauseLimit {
		d.Limit = m.confinement.limitName(e.Limit)
	}
	if d.Hook == sandbox.HookEscape && e.Type == stillAlive {
		if err := endEscaped(e.Pid, e.Time); err != nil {
			m.confinement.config.Logger.Error("escaped process not killed", zap.Error(err))
		}
	}
	m.denied(d)
}

// denied reports a refusal at once if it is new, and counts it if it is not.
func (m *meter) denied(d sandbox.Denial) {
	if m.confinement.config.Denied == nil {
		return
	}
	key := d
	key.Time, key.Count, key.Exe = time.Time{}, 0, ""
	if d.Hook != sandbox.HookEscape && d.Hook != sandbox.HookDescriptor { // those are about one process
		key.PID, key.Comm = 0, ""
	}
	folds, most := m.denials, maxDistinct
	if d.Cause == sandbox.CauseAllowed {
		folds, most = m.uses, 2*MaxSockets // by connect and by sendmsg
	}
	if f, ok := folds[key]; ok {
		f.last = d
		f.count++
		return
	}
	if len(folds) >= most {
		m.confinement.droppedDenials.Add(1)
		return
	}
	folds[key] = &repeated{}
	m.report(d)
}

// sample reports the totals and the refusals that came again.
func (m *meter) sample() error {
	if err := m.enforce(); err != nil {
		return err
	}
	u, err := m.confinement.Usage()
	if err != nil {
		return err
	}
	if m.confinement.config.Denied != nil {
		m.reportRepeated(m.denials)
		m.reportRepeated(m.uses)
		if u.Lost > m.lost {
			m.confinement.config.Denied(sandbox.Denial{Time: u.Time, Lost: u.Lost - m.lost})
			m.lost = u.Lost
		}
	}
	if m.confinement.config.Sample != nil {
		m.confinement.config.Sample(u)
	}
	return nil
}

// reportRepeated reports what came again, and forgets what did not.
func (m *meter) reportRepeated(folds map[sandbox.Denial]*repeated) {
	for key, f := range folds {
		if f.count == 0 {
			delete(folds, key)
			continue
		}
		f.last.Count = f.count
		f.count = 0
		m.report(f.last)
	}
}

// report reports a refusal with the program that its process runs, which is read
// only for what is reported.
func (m *meter) report(d sandbox.Denial) {
	if d.Exe == "" {
		d.Exe = sandbox.Executable(d.PID)
	}
	m.confinement.config.Denied(d)
}

// decode turns the programs' event into the exported form.
func decode(e *hooksEvent) sandbox.Denial {
	d := sandbox.Denial{
		Time: wallClock(e.Time), Hook: hookName(e.Hook), Cause: causeName(e.Why), Family: sandbox.FamilyName(uint32(e.Family)),
		Protocol: protocolName(e.Family, uint16(e.ProtocolLow)|uint16(e.ProtocolHigh)<<8),
		PID:      e.Pid, UID: e.Uid, Comm: cString(e.Comm[:]), Count: 1,
	}
	switch d.Hook {
	case sandbox.HookConnectUnix, sandbox.HookSendmsgUnix:
		d.Path = unixPath(e.Path[:min(int(e.PathLength), len(e.Path))])
	case sandbox.HookSocket, sandbox.HookEscape:
	default:
		d.Address = userAddress(e.Address.W, e.Port)
	}
	return d
}

// wallClock is the time of day of a kernel time (CLOCK_BOOTTIME, ns).
func wallClock(then uint64) time.Time {
	var spec unix.Timespec
	now := time.Now()
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &spec) != nil {
		return now
	}
	return now.Add(time.Duration(int64(then) - spec.Nano()))
}

// unixPath writes the name of a Unix socket as ss(8) does.
func unixPath(name []byte) string {
	if len(name) == 0 {
		return ""
	}
	if name[0] == 0 {
		return "@" + string(name[1:])
	}
	return cString(name)
}

func hookName(h uint8) sandbox.Hook {
	names := []sandbox.Hook{
		"", sandbox.HookConnect, sandbox.HookSendmsg, sandbox.HookSocket, sandbox.HookBind, sandbox.HookEgress, sandbox.HookIngress, sandbox.HookConnectUnix, sandbox.HookSendmsgUnix,
		sandbox.HookEscape,
	}
	if int(h) < len(names) {
		return names[h]
	}
	return ""
}

func causeName(why uint8) sandbox.Cause {
	names := []sandbox.Cause{"", sandbox.CausePolicy, sandbox.CauseBlocked, sandbox.CauseNamespace, sandbox.CauseEndpoint, sandbox.CauseMemory, sandbox.CauseLimit, sandbox.CauseAllowed, sandbox.CauseUngranted}
	if int(why) < len(names) {
		return names[why]
	}
	return ""
}

// protocolName names an IP protocol (IANA, Assigned Internet Protocol Numbers;
// 262 is Linux's own number for multipath TCP).
func protocolName(family uint8, protocol uint16) string {
	if family == unix.AF_UNIX {
		return ""
	}
	switch protocol {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_UDPLITE:
		return "udplite"
	case unix.IPPROTO_RAW:
		return "raw"
	case unix.IPPROTO_MPTCP:
		return "mptcp"
	}
	return strconv.Itoa(int(protocol))
}
