package ebpf

import (
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/reaper"
)

// DefaultInterval is how often usage is sampled and folded denials are
// reported when [Config.Interval] is zero.
const DefaultInterval = 250 * time.Millisecond

// MaxServed is how many ports [Config.Serve] may name.
const MaxServed = 64

// Errors that callers distinguish.
var (
	// ErrPopulated reports that a sidecar that is gone left processes behind. They
	// are blocked; [Detach] ends them.
	ErrPopulated = errors.New("the cgroup of an earlier sidecar still holds processes")
	// ErrNotAttached reports that the programs are not on the cgroup yet.
	ErrNotAttached = errors.New("the kernel programs are not attached")
	// ErrDetached reports that a program came off the cgroup, which happens when
	// the cgroup is removed: one made again at the same path is not
	// protected.
	ErrDetached = errors.New("a kernel program is no longer on the cgroup")
)

// machineFaultError is an error whose cause is the machine.
type machineFaultError struct{ error }

func (e machineFaultError) Unwrap() error { return e.error }

// machineFault marks an error as one whose cause is the machine. A nil error stays nil.
func machineFault(err error) error {
	if err == nil {
		return nil
	}
	return machineFaultError{err}
}

// IsMachineFault reports whether an error of [New] has its cause in the machine, so
// that [Probe] finds it too: not in the configuration, and not in what an
// earlier sidecar left.
func IsMachineFault(err error) bool {
	_, is := errors.AsType[machineFaultError](err)
	return is
}

// DirectConn is a connection that a process outside the plugin's cgroup made to a
// Unix socket that the plugin listens on.
type DirectConn struct {
	State DirectState
	Path  string // of the socket, in the plugin's view
	PID   int    // of the process that connected; 0: it is not visible from here
	UID   int
	Exe   string // "": the process has ended
}

// DirectState is what became of a connection.
type DirectState string

// The states of a [DirectConn].
const (
	DirectBegan DirectState = "began"
	DirectEnded DirectState = "ended"
	DirectCut   DirectState = "cut"
)

// Config is what to confine and how. Only StateDir has no default.
type Config struct {
	// Plugin is the plugin's name, for messages.
	Plugin string

	// StateDir is the sidecar's state directory. The cgroup, the pins and a
	// dynamic user are named after it, so that [Detach] finds them again.
	StateDir string

	// CgroupPath is an existing cgroup v2 directory whose processes are to be
	// confined. Empty: a cgroup of our own is made below the sidecar's. With a
	// path the plugin keeps the network namespace that it has, as with
	// HostNetwork, and whatever privileges it has: the hooks cover IP and Unix
	// sockets, and not the socket families that root could use instead.
	CgroupPath string

	// HostNetwork leaves the plugin in a network namespace that others use, too,
	// with the programs alone for a hook. False, the default, gives it one of
	// its own.
	HostNetwork bool

	// NetworkPath names the namespace that HostNetwork or CgroupPath leave the
	// plugin in, such as /proc/PID/ns/net of a container. Empty: the sidecar's.
	// The sidecar's listeners are opened in it.
	NetworkPath string

	// Serve lists TCP ports on which the plugin may be reached over the
	// loopback of a shared network namespace. In a namespace of its own the
	// plugin may listen on anything, and [Confinement.DialContext] reaches it.
	Serve []uint16

	// User is a name, a number, or [DynamicUser], which is also the default: a
	// user of the plugin's own between 61184 and 65519, or, under sudo, the
	// user that called it.
	User string

	// View gives the plugin a file tree, process table and IPC objects of its own:
	// see package sandbox. It counts for a cgroup of our own only.
	View bool

	// UnsafeSameUser permits root or the sidecar's own user as User. Such a
	// plugin may signal the sidecar and read what belongs to it.
	UnsafeSameUser bool

	// EndLeft, unless nil, has [New] end the processes that an earlier sidecar of
	// the same state directory left blocked, instead of returning
	// [ErrPopulated], and is called with their number once they have ended. The
	// caller holds the state directory, so that no sidecar runs on it. Processes
	// of a cgroup that was given are never ended.
	EndLeft func(processes int)

	// Private lists files, directories and sockets of the sidecar's, by absolute path:
	// its state, its configuration's secrets, the audit log. No program starts while
	// the plugin's user may use one of them, unless UnsafeSameUser is set. No rule of
	// [Command.Files] may hold one, and no socket at or below one is allowed by
	// [Confinement.AllowSockets]; nor StateDir, nor /run/chaperone.
	Private []string

	// CountSyscalls keeps the system call counter attached, which costs every
	// process of the host some 15 ns a call. False: it is attached only while
	// [Confinement.Limit] has a limit on system calls in force, and [Usage.Syscalls]
	// grows only then.
	CountSyscalls bool

	// Denied is called for each refusal, by one goroutine of [Confinement.Run] at a time.
	// Nil: refusals are counted and not described.
	Denied func(sandbox.Denial)

	// Listen is called before the plugin listens on a socket.
	Listen ListenHandlers

	// Direct is called for each connection of another process to a Unix socket that
	// the plugin listens on, in the plugin's own or the sidecar's network namespace:
	// when [Confinement.Run] first sees it, within a second, and when it has ended or was
	// cut. Nil: they are cut without a report.
	Direct func(DirectConn)

	// Crossed is called when a limit begins to refuse, and when it has recovered,
	// by the same goroutine. Nil: limits are enforced in silence.
	LimitChanged func(LimitEvent)

	// Sample is given the totals at each Interval, by the same goroutine. Nil:
	// no samples are taken.
	Sample func(Usage)

	// Interval is the time between samples, and for how long equal refusals are
	// folded into one. Zero: [DefaultInterval].
	Interval time.Duration

	// Reaper is given the processes that the confinement starts and waits for. Nil:
	// no other code in this program waits for processes.
	Reaper *reaper.Reaper

	// Logger is for the operator, and has to bound its lines: the plugin causes some.
	// Nil: silence.
	Logger *zap.Logger
}

// ListenHandlers are called when a process that [Confinement.Start] started is about
// to listen on a socket. The process waits in listen(2) until the function returns.
// They are called by several goroutines and must not block.
type ListenHandlers struct {
	// Unix is called for a Unix socket with a path. Nil: such sockets are not reported.
	Unix func(sandbox.Listener)
	// TCP is called for a port of [Config.Serve] in a network of the plugin's own.
	// Nil: ports are not reported.
	TCP func(port uint16)
}

// Endpoints are the sidecar's listeners, opened by [Confinement.Listen] and
// [Confinement.ListenPacket], where the programs send what the plugin does. Each must
// be on the loopback. One that is not set (the zero value) refuses what would
// have gone there.
type Endpoints struct {
	Proxy4    netip.AddrPort // TCP
	Proxy6    netip.AddrPort // TCP
	Resolver4 netip.AddrPort // TCP and UDP
	Resolver6 netip.AddrPort // TCP and UDP
}

// MaxDestinations is how many entries [Destinations] may have.
const MaxDestinations = 16000

// Destinations are those that some rule may grant. A TCP connect to any other is
// refused at once and reported with [CauseUngranted]: the sidecar would refuse
// it whatever it carried, and a program that probes for an open port would take
// the sidecar's for it. They decide nothing else: the sidecar decides about each
// connection that comes to it.
type Destinations struct {
	// Any permits every destination, whatever else is set.
	Any bool
	// Exact are addresses with a port: of a name that a resolver gave the address
	// out for, in 240.0.0.0/4, or of a rule for the address itself.
	Exact []netip.AddrPort
	// Ports are permitted at every address outside 240.0.0.0/4, since the name
	// that a rule is for may stand in what the connection carries.
	Ports []uint16
	// NamePorts are permitted at every address of 240.0.0.0/4.
	NamePorts []uint16
}

// Peer is who opened a connection to the sidecar, as the kernel saw it.
type Peer struct {
	// PID and UID are the caller's at the time of the connect: its id in the
	// sidecar's PID namespace, 0 when it is not visible there, and its user in the
	// initial user namespace.
	PID, UID uint32
	// Comm is the caller's thread name, at most 15 bytes, chosen by the plugin.
	Comm string
	// Exe is the caller's program, read afterwards and thus empty for a process
	// that is gone already. It is for the record and proves nothing.
	Exe string
	// Original is the destination that the plugin dialled.
	Original netip.AddrPort
	// Explicit reports that it dialled the sidecar's proxy itself.
	Explicit bool
	// Cookie is the kernel's number of the plugin's socket, for
	// [Confinement.Attribute].
	Cookie uint64
}

// Usage holds totals since the programs were first attached. They only grow.
type Usage struct {
	Time time.Time
	// Connections are TCP connects allowed to the proxy.
	Connections uint64
	// Refused are attempts that a hook turned away.
	Refused uint64
	// IP bytes and packets exchanged with the sidecar's listeners.
	SentBytes, SentPackets, ReceivedBytes, ReceivedPackets uint64
	// Limited are TCP connects that a limit turned away. They are not among
	// Refused.
	Limited uint64
	// DNSQueries are UDP datagrams sent to the resolver. Questions over TCP are
	// not among them.
	DNSQueries uint64
	// Syscalls grows only while they are counted: see [Config.CountSyscalls].
	Syscalls Syscalls
	// Lost are refusals that were counted and not described, because the
	// plugin made them faster than they could be read.
	Lost uint64
	// Processes are the processes that the plugin started, threads not counted.
	Processes uint64
	// Ended are processes that left the cgroup and sockets that were made
	// outside it, or before its hooks: each was ended.
	Ended uint64
	// Identified are the connections that [Confinement.Identify] named. Abandoned are
	// those that the plugin closed, or that a sidecar before this one lost by its own
	// end, before anybody took them. Pending are those that wait, for a second at most.
	// The rest of Connections are unmediated: see [Confinement.Unmediated].
	Identified, Abandoned, Pending uint64
}

// UnmediatedConn is a connection of the plugin that the sidecar did not handle.
type UnmediatedConn struct {
	// PID and Comm are the caller's, or the holder's of a socket that it did not
	// make.
	PID  uint32
	Comm string
	// Original is where the connection was to go. Not valid when the socket has
	// no such address.
	Original netip.AddrPort
	// Since is when the connection was allowed, or found.
	Since time.Time
	// Why is the reason that it counts as an unmediated connection.
	Why string
}

// Syscalls are system calls by class. A call that fits two classes is in the
// first that fits, in the specification of the fields.
type Syscalls struct {
	Total, File, Network, Process, Memory, IPC, Other uint64
	// Uncounted are as many calls as the plugin's CPU time had room for while they were
	// not counted: see [Limit.Exact]. Total includes them, and is an upper bound when
	// they are not 0.
	Uncounted uint64
}

// Info describes a [Confinement] for status and for the record of a start.
type Info struct {
	Cgroup     string // path of its directory
	Pins       string // directory on a BPF file system that keeps the programs attached
	OwnNetwork bool
	UID, GID   int
	SameUser   bool // the plugin runs as root or as the sidecar's user
	UnixHooks  bool // false: Unix sockets other than pairs are refused by seccomp
	View       bool // the plugin has a file tree and process table of its own
	Scope      bool // other processes of the plugin's user are out of its reach (Landlock)
	Syscalls   bool // system calls are counted
	// CallCost is the CPU time that the cheapest system call is taken to need where calls
	// are not counted; 0: they are always counted.
	CallCost time.Duration
	// TraceCost is how much longer the cheapest system call of any process takes while
	// the counter is attached, as measured during this run; 0: not measured.
	TraceCost time.Duration
	Programs  []string
}

// Finding is the result of one check of [Probe].
type Finding struct {
	// Name is what was checked.
	Name string
	// Err is nil when it is there and works.
	Err error
	// Required reports that confinement is impossible without it.
	Required bool
	// Lost is what does not work without it.
	Lost string
	// Remedy is what to do about it.
	Remedy string
	// Measured is the result of a measurement, if it was one.
	Measured string
}

// Leftover is what [BlockLeftover] found of a sidecar.
type Leftover struct {
	Blocked   bool     // its programs are pinned, and block the plugin now
	Cgroups   []string // that the programs are on
	Populated bool     // processes are in one of them
	Killed    bool     // those that were in the sidecar's own cgroup were killed
}
