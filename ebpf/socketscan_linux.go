package ebpf

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// scanInterval is how often [Confinement.Run] looks for sockets that the hooks do
// not govern.
//
// A socket is found if it stands in a process's table of descriptors at the
// moment of a look, and not otherwise: what a process receives and gives away
// again between two looks is not seen, nor is a descriptor that lies in a message
// not yet read or in an io_uring's own table; a connection that was handed in
// works until the next look. Under the launcher all of that takes a helper
// outside, since the plugin can neither take descriptors from others nor make an
// io_uring. Such a helper may be whoever holds the other end of a Unix socket
// that the plugin was given as standard input, output or error.
const scanInterval = time.Second

const (
	// shortScanInterval is the shortest time between two looks while the plugin has a
	// Unix socket by which descriptors can be passed to it.
	shortScanInterval = 50 * time.Millisecond
	// scanShare is how much longer than a look the time to the next one is then: a
	// plugin of many processes and descriptors does not take more of a processor.
	scanShare = 50
	// journalSocket is where systemd-journald listens. It passes no descriptors.
	journalSocket = "/run/systemd/journal/stdout"
)

// Why a socket is no business of the plugin's, and what is done about it
// (bpf/socketscan.bpf.c).
const (
	socketForeign = 1
	socketEarly   = 2
	socketUnseen  = 3

	verdictDestroy = uint32(1)
	verdictKill    = uint32(2)
	verdictProbe   = uint32(3)
)

// walkAllFrom is from how many processes on one walk through everybody's
// descriptors is cheaper than a walk for each.
const walkAllFrom = 256

// Kinds of BPF commands and links (include/uapi/linux/bpf.h).
const (
	cmdLinkCreate  = 28
	cmdIterCreate  = 33
	attachTypeIter = 28
)

// scan finds and ends sockets that the plugin holds and its hooks do not
// govern. It is used by one goroutine at a time.
type socketScan struct {
	programs     *ebpf.Collection
	group        *sandbox.Cgroup
	network      *sandbox.Network
	sidecarNetns uint64 // cookie of the sidecar's own network namespace
	shared       *sharedCounters
	seen         map[uint64]time.Time // cookies of the last look, ended or not, and when they were first seen
}

func (w *collection) loadScan(own bool) error {
	spec, err := w.read("socket scan", loadSocketscan, nil, own)
	if err != nil {
		return err
	}
	w.scan, err = w.loadObject(spec)
	return explain("load socket scan programs", err)
}

func newSocketScan(c *Confinement) (*socketScan, error) {
	home, err := sandbox.CurrentNetwork()
	if err != nil {
		return nil, err
	}
	return &socketScan{
		programs: c.programs.scan, group: c.group, network: c.network, sidecarNetns: home.Cookie,
		shared: c.programs.shared, seen: make(map[uint64]time.Time),
	}, home.Close()
}

// scanLoop takes the scan again and again until the context ends.
func (c *Confinement) scanLoop(ctx context.Context) error {
	next := time.NewTimer(scanInterval)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.scanSoon: // by a Unix socket that it was just started with
			next.Reset(shortScanInterval)
		case <-next.C:
			begun := time.Now()
			if err := c.scanSockets(); err != nil {
				return err
			}
			interval := scanInterval
			if c.mayReceiveFDs.Load() {
				interval = min(max(shortScanInterval, scanShare*time.Since(begun)), scanInterval)
			}
			next.Reset(interval)
		}
	}
}

// noteDescriptorPassing has the scan taken more often where a program gets a Unix socket as a
// standard stream: the holder of its other end can pass connections in.
func (c *Confinement) noteDescriptorPassing(files ...*os.File) {
	passing := slices.ContainsFunc(files, func(file *os.File) bool {
		if file == nil {
			return false
		}
		peer, err := unix.Getpeername(int(file.Fd()))
		unixPeer, is := peer.(*unix.SockaddrUnix)
		return err == nil && is && unixPeer.Name != journalSocket
	})
	c.mayReceiveFDs.Store(passing)
	if passing {
		select {
		case c.scanSoon <- struct{}{}:
		default:
		}
	}
}

// scanSockets takes it once and reports what was found.
func (c *Confinement) scanSockets() error {
	c.scanning.Lock()
	defer c.scanning.Unlock()
	// It is reported before it is ended: who held it may end at once, and what is
	// recorded of it stands before the record of that.
	err := c.scan.run(c.reportSockets)
	err = errors.Join(err, c.scan.dropGone(c.programs))
	if err != nil {
		return fmt.Errorf("scan sockets: %w", err)
	}
	return nil
}

// reportSockets reports what a scan found.
func (c *Confinement) reportSockets(found []foundSocket) {
	var strays []UnmediatedConn
	for _, s := range found {
		d := s.denial()
		strays = append(strays, UnmediatedConn{PID: d.PID, Comm: d.Comm, Original: d.Address, Since: s.since, Why: s.why()})
		if s.repeated {
			continue
		}
		select {
		case c.denials <- d:
		default:
			c.droppedDenials.Add(1)
		}
	}
	c.mu.Lock()
	c.foundSockets = strays
	c.mu.Unlock()
}

// foundSocket is one socket that the scan found.
type foundSocket struct {
	socketscanSocketEntry
	repeated bool      // it was reported before
	since    time.Time // when it was first seen
}

// run looks once, reports what it finds, and ends it.
//
// A connection is ended by its socket, so that its holder sees the end. A socket that
// was made outside can connect again without passing a hook: a process that still holds
// it at the next scan is killed. A process is killed at once if its socket cannot be
// ended: it is not connected, of a family that no hook covers, or held by the sidecar
// as well.
func (c *socketScan) run(report func([]foundSocket)) error {
	if err := c.visible(); err != nil {
		return err
	}
	sightings, err := c.list(c.pids)
	if err != nil {
		return err
	}
	seen := make(map[uint64]time.Time, len(sightings))
	now := time.Now()
	all := make([]foundSocket, 0, len(sightings))
	type hold struct {
		cookie uint64
		pid    uint32
	}
	holds := make(map[hold]bool)
	for _, s := range sightings {
		one := hold{s.Cookie, s.Pid}
		if holds[one] {
			continue // by another descriptor
		}
		holds[one] = true
		since, again := c.seen[s.Cookie]
		if _, twice := seen[s.Cookie]; !again && !twice {
			atomic.AddUint64(&c.shared.tally.Ended, 1)
		}
		if !again {
			since = now
		}
		seen[s.Cookie] = since
		all = append(all, foundSocket{s, again, since})
	}
	c.seen = seen
	report(all)
	return c.endFound(all)
}

// endFound ends what a look has found.
func (c *socketScan) endFound(all []foundSocket) (err error) {
	if len(all) == 0 {
		return nil
	}
	var holders []socketscanSocketEntry
	ours, sockets := ownCookies(), false
	for _, s := range all {
		verdict := s.verdict(s.repeated || ours[s.Cookie] || s.Netns != c.sidecarNetns && s.Netns != c.network.Cookie)
		if err := c.programs.Maps["verdicts"].Put(s.Cookie, verdict); err != nil || verdict == verdictKill {
			holders = append(holders, s.socketscanSocketEntry) // also when there are too many to note down
		} else {
			sockets = true
		}
	}
	if sockets {
		err = c.endSockets()
	}
	if len(holders) > 0 {
		err = errors.Join(err, c.endHolders(holders))
	}
	for _, s := range all {
		if gone := c.programs.Maps["verdicts"].Delete(s.Cookie); gone != nil && !errors.Is(gone, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, fmt.Errorf("forget socket: %w", gone))
		}
	}
	return err
}

// verdict returns how to end a socket. One that was connected early passes every hook
// from then on, however often it is seen.
func (s *socketscanSocketEntry) verdict(stubborn bool) uint32 {
	switch {
	case s.Found == socketEarly:
		return verdictDestroy
	case s.Found == socketForeign && s.Protocol == unix.IPPROTO_TCP && s.State != unix.BPF_TCP_CLOSE && !stubborn:
		return verdictDestroy
	}
	return verdictKill
}

func (s *socketscanSocketEntry) why() string {
	switch s.Found {
	case socketForeign:
		return "the socket was made outside the plugin's cgroup"
	case socketEarly:
		return "the socket was connected before the hooks were attached"
	}
	return "no hook covers sockets of this family"
}

func (s *socketscanSocketEntry) denial() sandbox.Denial {
	d := sandbox.Denial{
		Time: time.Now(), Hook: sandbox.HookDescriptor, Cause: sandbox.CausePolicy, Family: sandbox.FamilyName(uint32(s.Family)),
		PID: s.Pid, UID: s.Uid, Comm: cString(s.Comm[:]), Count: 1,
	}
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 {
		return d
	}
	d.Protocol = protocolName(uint8(s.Family), s.Protocol)
	d.Address = userAddress(s.Remote.W, s.RemotePort)
	if s.RemotePort == 0 { // not connected: where it listens or is bound
		d.Address = userAddress(s.Local.W, s.LocalPort)
	}
	return d
}

// endSockets ends the doomed ones in both namespaces in which they can be
// found; an iterator sees the namespace of who opens it.
func (c *socketScan) endSockets() error {
	end := func() error {
		return errors.Join(iterate(c.programs.Programs["end_tcp"]), iterate(c.programs.Programs["end_udp"]))
	}
	if err := errors.Join(end(), c.network.Do(end)); err != nil {
		return fmt.Errorf("end sockets: %w", err)
	}
	return nil
}

// endServed ends what others have connected to the plugin's served ports.
func (c *socketScan) endServed() error {
	end := func() error { return iterate(c.programs.Programs["end_served"]) }
	if err := c.network.Do(end); err != nil {
		return fmt.Errorf("end served connections: %w", err)
	}
	return nil
}

// endHolders kills the processes that hold a doomed socket: from the kernel, by
// a second look at them, or else by number.
func (c *socketScan) endHolders(holders []socketscanSocketEntry) error {
	pids := func() ([]int, error) {
		var pids []int
		for _, s := range holders {
			if !slices.Contains(pids, int(s.Pid)) {
				pids = append(pids, int(s.Pid))
			}
		}
		return pids, nil
	}
	left, err := c.list(pids)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range left {
		if s.Killed == 0 && slices.ContainsFunc(holders, func(h socketscanSocketEntry) bool { return h.Cookie == s.Cookie }) {
			errs = append(errs, c.kill(int(s.Pid)))
		}
	}
	return errors.Join(errs...)
}

// kill kills a process of the cgroup. That its number has not passed to another
// shows when the cgroup still lists it after the process is held. A process that
// has no number in the sidecar's PID namespace ends with the whole cgroup.
func (c *socketScan) kill(pid int) error {
	if pid == 0 {
		return c.group.Kill()
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	pids, err := c.pids()
	if err != nil || !slices.Contains(pids, pid) {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// visible reports whether every process of the cgroup has an id in the sidecar's
// PID namespace: the iterators see no other, so what others hold is not found.
// The kernel also lists a process that is just being reaped with id 0, hence the
// second looks.
func (c *socketScan) visible() error {
	const looks = 5
	for range looks {
		pids, err := c.pids()
		if err != nil || !slices.Contains(pids, 0) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("look at processes of %s: some are not visible in the sidecar's PID namespace; run the sidecar in the host's (hostPID: true, docker run --pid=host)", c.group.Path)
}

// pids are the processes of the cgroup and of those below it. A cgroup that
// goes in between had none.
func (c *socketScan) pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(c.group.Path, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		pids, err = appendPIDs(pids, filepath.Join(path, "cgroup.procs"))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return pids, nil
}

func appendPIDs(pids []int, path string) ([]int, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return pids, nil
	}
	if err != nil {
		return nil, err
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// list runs the iterator over the descriptors of processes. Descriptors of other
// cgroups are not reported.
func (c *socketScan) list(list func() ([]int, error)) ([]socketscanSocketEntry, error) {
	pids, err := list()
	if err != nil {
		return nil, err
	}
	if len(pids) > walkAllFrom || slices.Contains(pids, 0) { // 0: of a namespace that we do not see
		pids = []int{0}
	}
	var all []socketscanSocketEntry
	lines := bufio.NewReaderSize(nil, 1<<14)
	for _, pid := range pids {
		all, err = c.listOf(all, lines, pid)
		if err != nil {
			return nil, fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	return all, nil
}

// listOf looks at one process, or at all for number 0, and reads by way of lines.
func (c *socketScan) listOf(all []socketscanSocketEntry, lines *bufio.Reader, pid int) ([]socketscanSocketEntry, error) {
	walk, err := walkFiles(c.programs.Programs["look"].FD(), pid)
	if errors.Is(err, unix.E2BIG) && pid != 0 { // before Linux 6.1
		return c.listOf(all, lines, 0)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = walk.Close() }()
	for lines.Reset(walk); ; {
		var s socketscanSocketEntry
		err := binary.Read(lines, binary.NativeEndian, &s)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
}

// walkFiles opens an iterator over the descriptors of one process, or of all
// for number 0. The library cannot ask for one process.
func walkFiles(program, pid int) (*os.File, error) {
	info := struct{ thread, process, descriptor, _ uint32 }{process: uint32(pid)}
	link := struct {
		program, target, kind, flags uint32
		info                         unsafe.Pointer
		length                       uint32
		_                            uint32
	}{program: uint32(program), kind: attachTypeIter, info: unsafe.Pointer(&info), length: uint32(unsafe.Sizeof(info))} //nolint:gosec // union bpf_iter_link_info
	fd, err := bpf(cmdLinkCreate, unsafe.Pointer(&link), unsafe.Sizeof(link)) //nolint:gosec // union bpf_attr
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	iterator := struct{ link, flags uint32 }{link: uint32(fd)}
	walk, err := bpf(cmdIterCreate, unsafe.Pointer(&iterator), unsafe.Sizeof(iterator)) //nolint:gosec // union bpf_attr
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(walk), "bpf_iter"), nil
}

// bpf is bpf(2), for the commands that give a descriptor.
func bpf(command uintptr, attributes unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
		switch errno {
		case 0:
			unix.CloseOnExec(int(fd))
			return int(fd), nil
		case syscall.EINTR, syscall.EAGAIN:
		default:
			return -1, errno
		}
	}
}

// ownCookies are the sockets of this process, which are not to be ended: what a
// privileged plugin takes out of its sidecar ends with the plugin alone.
func ownCookies() map[uint64]bool {
	own := make(map[uint64]bool)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return own
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
			own[cookie] = true
		}
	}
	return own
}
