package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// denialsSize is how many seccomp refusals may wait for [Confinement.Run].
const denialsSize = 256

// Confinement confines and meters one plugin. Make it with [New], open the sidecar's
// listeners with [Confinement.Listen], then [Confinement.Attach], then
// [Confinement.Start].
//
// Locks are taken in the specification starting, closing, limiting, scanning, mu.
type Confinement struct {
	config Config
	host
	reports

	starting sync.Mutex    // held while a program starts
	closing  sync.RWMutex  // read-held while a connection is identified
	limiting sync.Mutex    // held while limits are replaced
	lookSoon chan struct{} // limits on system calls may have changed
	scanning sync.Mutex    // held while sockets are scanned
	socketScans

	mu sync.Mutex // of what follows
	state
	unixSocketState

	usedBefore map[[2]uint64]LimitUsage // by digest, see [Confinement.UsedBefore]
	bootTime   time.Time                // when CLOCK_BOOTTIME was zero, as it seemed at the start
}

// host is what a confinement has made or opened on the host, from [New] to
// [Confinement.Close].
type host struct {
	own       bool // the network namespace is the plugin's own
	paths     sandbox.Paths
	stateLock *sandbox.StateLock
	pinDir    string
	group     *sandbox.Cgroup
	network   *sandbox.Network
	user      sandbox.User
	programs  *collection
	cache     *programCache // that programs go to at the end; nil: they are removed
	ports     *portWatch    // nil: the ports that the plugin listens on are not known
}

// reports are the refusals that [Confinement.Run] has still to report.
type reports struct {
	denials        chan sandbox.Denial
	droppedDenials atomic.Uint64 // that found the channel full
	refusedCalls   atomic.Uint64
	lostBefore     uint64             // refusals that were not described under an earlier sidecar
	flushing       chan chan struct{} // see [Confinement.Flush]
}

// socketScans is the search for sockets that the plugin holds and the programs do
// not govern.
type socketScans struct {
	scan          *socketScan
	mayReceiveFDs atomic.Bool      // the program that runs may be passed descriptors
	scanSoon      chan struct{}    // a program was started that may be
	foundSockets  []UnmediatedConn // by the last scan; guarded by mu
}

// state is what a confinement does at the moment.
type state struct {
	attached      bool
	blocked       bool
	closed        bool
	frozenByLimit bool
	killedByLimit bool
}

// unixSocketState is what is known of the Unix sockets that the plugin uses or listens on.
type unixSocketState struct {
	allowlist allowlist
	aliases   aliases
	direct    direct
	running   *runningView // of the program that runs; nil: it has none
	lookups   lookupLimit  // of the processes behind datagrams
}

// New makes the cgroup, the network namespace and the programs, and reserves the user;
// nothing is attached and nothing runs yet. [Confinement.Close] removes it all again. A
// cgroup that an earlier sidecar left is taken over if it is empty or [Config.EndLeft]
// is set; otherwise the error is [ErrPopulated].
func New(config Config) (*Confinement, error) { return newConfinement(config, nil) }

func newConfinement(config Config, preloaded *Preloaded) (*Confinement, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	c := &Confinement{
		config: config,
		host:   host{own: !config.HostNetwork && config.CgroupPath == ""},
		reports: reports{
			denials: make(chan sandbox.Denial, denialsSize), flushing: make(chan chan struct{}),
		},
		socketScans: socketScans{scanSoon: make(chan struct{}, 1)},
		lookSoon:    make(chan struct{}, 1),
		bootTime:    wallClock(0),
	}
	if err := c.build(preloaded); err != nil {
		return nil, errors.Join(fmt.Errorf("make confinement: %w", err), c.teardown())
	}
	return c, nil
}

func (c *Config) complete() error {
	if len(c.Serve) > MaxServed {
		return fmt.Errorf("make confinement: %d ports to serve, at most %d are possible", len(c.Serve), MaxServed)
	}
	if c.Interval < 0 {
		return fmt.Errorf("make confinement: negative interval %v", c.Interval)
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return nil
}

func (c *Confinement) build(preloaded *Preloaded) error {
	var err error
	if c.paths, err = sandbox.FindPaths(c.config.StateDir); err != nil {
		return machineFault(err)
	}
	if c.stateLock, err = c.paths.LockStateDir(); err != nil {
		return err
	}
	// Kernels before 5.11 charge maps to a limit instead of the cgroup.
	if err := rlimit.RemoveMemlock(); err != nil {
		return machineFault(fmt.Errorf("lift memory limit: %w", err))
	}
	if err := c.openGroup(); err != nil {
		return err
	}
	if c.pinDir, err = pinDir(c.paths); err != nil {
		return machineFault(err)
	}
	if c.group.Own {
		if c.user, err = c.paths.ChooseUser(c.config.User, c.config.UnsafeSameUser); err != nil {
			return err
		}
	}
	if c.network, err = c.chooseNetwork(); err != nil {
		return err
	}
	if err := c.openPortWatch(); err != nil {
		c.config.Logger.Warn("plugin listening port watch failed", zap.Error(err))
	}
	if c.programs, err = c.loadPrograms(preloaded); err != nil {
		return machineFault(err)
	}
	if c.scan, err = newSocketScan(c); err != nil {
		return machineFault(err)
	}
	before, err := c.usage()
	c.lostBefore = before.Lost
	return err
}

// openPortWatch opens what [Confinement.Listening] asks, if there are ports to ask for.
func (c *Confinement) openPortWatch() error {
	if !c.own || len(c.config.Serve) == 0 {
		return nil
	}
	return c.network.Do(func() error {
		socket, err := openDiag()
		if err == nil {
			c.ports = newPortWatch(socket)
		}
		return err
	})
}

func (c *Confinement) chooseNetwork() (*sandbox.Network, error) {
	switch {
	case c.own && c.config.NetworkPath != "":
		return nil, errors.New("choose network: a path is given, and the plugin is to have a network of its own")
	case c.own:
		n, err := sandbox.NewNetwork(c.config.Serve)
		return n, machineFault(err)
	case c.config.NetworkPath != "":
		return sandbox.OpenNetwork(c.config.NetworkPath)
	}
	return sandbox.CurrentNetwork()
}

// openGroup makes the confinement's cgroup, or opens the one given.
func (c *Confinement) openGroup() error {
	h, err := c.paths.FindCgroupMount()
	if err != nil {
		return machineFault(err)
	}
	pins, err := existingPins(c.paths)
	if err != nil {
		return err
	}
	if c.config.CgroupPath != "" {
		if c.group, err = sandbox.OpenCgroup(c.config.CgroupPath); err != nil {
			return err
		}
		return ensureOthersEmpty(h, pins, c.group.ID)
	}
	name := cgroupPrefix + c.paths.ID
	left, err := leftCgroups(h, name, pins)
	if err != nil {
		return err
	}
	for _, path := range left {
		ended, err := removeCgroup(path, c.config.EndLeft != nil)
		if err != nil {
			return err
		}
		c.config.Logger.Info("cgroup of an earlier sidecar removed", zap.String("cgroup", path), zap.Int("ended", ended))
		if ended > 0 {
			c.config.EndLeft(ended)
		}
	}
	// Its cgroup is empty now, so that usage no longer grows.
	if c.usedBefore, err = readLeftoverUsage(pins); err != nil {
		c.config.Logger.Warn("usage counted without a sidecar unknown", zap.Error(err))
	}
	if err := unpin(pins); err != nil {
		return err
	}
	c.group, err = sandbox.MakeCgroup(h, name)
	return machineFault(err)
}

// Attach passes the sidecar's listening addresses to the programs, puts them on the cgroup,
// pins them, and unblocks the plugin unless [Confinement.Block] shut it before. Then it ends
// the sockets that processes in the cgroup brought along or connected before:
// see [HookDescriptor].
func (c *Confinement) Attach(ends Endpoints) error {
	if err := ends.check(); err != nil {
		return err
	}
	if err := c.scan.visible(); err != nil { // before anything is attached that would stay
		return fmt.Errorf("attach: %w", err)
	}
	if err := c.attach(ends); err != nil {
		return err
	}
	return c.scanSockets()
}

func (c *Confinement) attach(ends Endpoints) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("attach: %w", os.ErrClosed)
	}
	if err := c.programs.forgetPeers(); err != nil {
		return err
	}
	if err := c.programs.configure(c.network, c.own, ends, c.config.Serve); err != nil {
		return err
	}
	if !c.attached {
		if err := c.programs.attach(c.pinDir, c.group); err != nil {
			return err
		}
	}
	c.attached = true
	return c.programs.setOpen(!c.blocked)
}

// check refuses endpoints that the hooks could not distinguish from egress.
func (e Endpoints) check() error {
	for _, end := range []struct {
		name    string
		address netip.AddrPort
		v6      bool
	}{
		{"Proxy4", e.Proxy4, false},
		{"Proxy6", e.Proxy6, true},
		{"Resolver4", e.Resolver4, false},
		{"Resolver6", e.Resolver6, true},
	} {
		a := end.address.Addr()
		switch {
		case !end.address.IsValid():
		case !a.IsLoopback() || a.Is4In6() || a.Zone() != "" || a.Is4() == end.v6 || end.address.Port() == 0:
			return fmt.Errorf("attach: %s %v is not a loopback address of its family with a port", end.name, end.address)
		}
	}
	return nil
}

// Block blocks the plugin, or opens it: with it shut nothing connects, what is connected
// sends nothing more, and nothing more comes in by a served port. It holds while the
// sidecar is away, too. Connections of others to ports that the plugin serves in a
// shared network are ended (Linux 6.5).
func (c *Confinement) Block(shut bool) error {
	if err := c.setBlocked(shut); err != nil || !shut {
		return err
	}
	c.scanning.Lock()
	defer c.scanning.Unlock()
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed || c.own || len(c.config.Serve) == 0 {
		return nil
	}
	if err := c.scan.endServed(); err != nil {
		return fmt.Errorf("block the plugin: %w", err)
	}
	return nil
}

func (c *Confinement) setBlocked(shut bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("block the plugin: %w", os.ErrClosed)
	}
	c.blocked = shut
	if !c.attached && !shut {
		return nil // Attach opens it
	}
	return c.programs.setOpen(!shut)
}

// Kill ends every process of the plugin and waits until there does not exist.
func (c *Confinement) Kill() error {
	if err := c.group.Kill(); err != nil {
		return fmt.Errorf("kill the plugin: %w", err)
	}
	return nil
}

// Check reports whether every program is still on the cgroup: [ErrDetached] if
// one is not, [ErrNotAttached] before [Confinement.Attach].
func (c *Confinement) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return fmt.Errorf("check the programs: %w", os.ErrClosed)
	case !c.attached:
		return ErrNotAttached
	}
	return c.programs.check(c.group)
}

// Info describes the confinement.
func (c *Confinement) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Info{
		Cgroup: c.group.Path, Pins: c.pinDir, OwnNetwork: c.own,
		UID: c.user.UID, GID: c.user.GID, SameUser: c.user.Same,
		CallCost: c.programs.watch.leastCost(), TraceCost: c.programs.watch.traceCost(),
		UnixHooks: c.programs.unix != nil, View: c.hasView(), Scope: launcher.SupportsScope(), Syscalls: c.programs.counter != nil, Programs: c.programs.names(),
	}
}

// Close ends every process of a cgroup that is the confinement's own, and removes
// what [New] made, the programs last. If a process cannot be ended, the hooks
// stay. On a cgroup that was given, the programs stay as long as its directory
// does, whether anything runs in it or not: a sidecar that is restarted takes
// them over, and [Detach] takes them off. [Confinement.Run] has to have returned.
func (c *Confinement) Close() error {
	c.starting.Lock()
	defer c.starting.Unlock()
	c.closing.Lock()
	defer c.closing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.teardown()
}

func (c *Confinement) teardown() error {
	var errs []error
	keep := false
	if c.group != nil {
		keep, errs = c.emptyGroup()
	}
	if c.programs != nil {
		errs = append(errs, c.programs.release())
	}
	if c.group != nil && !keep && c.pinDir != "" {
		errs = append(errs, unpin(c.pinDir))
	}
	if c.programs != nil {
		c.cachePrograms(keep || errors.Join(errs...) != nil)
		errs = append(errs, c.programs.close())
	}
	if c.group != nil && !keep && c.group.Own {
		errs = append(errs, c.group.Remove())
	}
	if c.group != nil {
		errs = append(errs, c.group.Close())
	}
	if c.network != nil {
		errs = append(errs, c.network.Close())
	}
	errs = append(errs, c.ports.close())
	errs = append(errs, c.user.Release())
	errs = append(errs, c.stateLock.Release())
	return errors.Join(errs...)
}

// cachePrograms leaves the programs to the next sidecar, unless they are still in use.
func (c *Confinement) cachePrograms(used bool) {
	if used || c.cache == nil {
		return
	}
	if err := c.cache.put(c.programs); err != nil {
		c.config.Logger.Warn("programs not cached", zap.Error(err))
	}
}

// emptyGroup ends what lives in a cgroup of our own, and reports whether the
// hooks have to stay: because something lives on, or because they stand on a
// cgroup that was given and is still there.
func (c *Confinement) emptyGroup() (keep bool, errs []error) {
	if c.group.Own {
		if err := c.group.Kill(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return true, []error{err}
		}
		return false, nil
	}
	// The programs stay on an empty cgroup: a process that enters it next would be unconfined.
	if c.pinDir == "" || !c.group.Current() {
		return false, nil
	}
	names, err := pinned(c.pinDir)
	if err != nil {
		return true, []error{err}
	}
	for _, name := range names {
		if pinnedTo(filepath.Join(c.pinDir, name)) == c.group.ID {
			return true, nil
		}
	}
	return false, nil
}
