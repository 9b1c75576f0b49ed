package sandbox

import (
	"net/netip"
	"time"
)

// Hook names the hook that refused something.
type Hook string

// The hooks.
const (
	HookConnect     Hook = "connect"
	HookSendmsg     Hook = "sendmsg"
	HookSocket      Hook = "socket"
	HookBind        Hook = "bind"
	HookEgress      Hook = "egress"
	HookIngress     Hook = "ingress"
	HookConnectUnix Hook = "connect_unix"
	HookSendmsgUnix Hook = "sendmsg_unix"
	HookSeccomp     Hook = "seccomp"
	// HookEscape: a process left the plugin's cgroup, or was born outside it. It
	// was killed.
	HookEscape Hook = "escape"
	// HookDescriptor: the plugin holds a socket that was made outside its
	// cgroup, or connected before its hooks stood. It was ended.
	HookDescriptor Hook = "descriptor"
)

// Cause is why a hook refused.
type Cause string

// The causes.
const (
	CausePolicy    Cause = "policy"    // never allowed
	CauseBlocked   Cause = "door"      // the plugin is blocked
	CauseNamespace Cause = "namespace" // from a network namespace that is not the confined one
	CauseEndpoint  Cause = "endpoint"  // the sidecar has no listener of that address family
	CauseMemory    Cause = "memory"    // the kernel had no room to remember the connection
	// CauseAllowed is no refusal: a Unix socket was used that
	// [Confinement.AllowSockets] allows, which is reported so that it can be audited.
	CauseAllowed Cause = "allowed"
	// CauseUntrusted is no attempt of the plugin's: the name of an allowed Unix
	// socket can no longer be trusted and is refused from now on.
	CauseUntrusted Cause = "untrusted"
	CauseLimit     Cause = "limit" // a limit is used up; see [Denial.Limit]
	// CauseUngranted: a TCP connect to where [Confinement.AllowConnects] allows none. It
	// fails with ECONNREFUSED, before Linux 6.1 with EPERM.
	CauseUngranted Cause = "ungranted"
)

// Denial is one refusal, or several equal ones.
type Denial struct {
	Time  time.Time
	Hook  Hook
	Cause Cause
	// Family is the socket's: "ipv4", "ipv6", "unix", or a name such as
	// "packet"; empty when it does not apply.
	Family string
	// Protocol is "tcp", "udp", "icmp" and so on, or a number.
	Protocol string
	// Address is where it was to go, or to be bound; for [HookIngress] where it
	// came from. Not valid when it does not apply.
	Address netip.AddrPort
	// Path is the name of a Unix socket, an abstract one with a leading @.
	// The plugin chose it, as it did Comm: quote both before printing.
	Path string
	// Syscall names the call that [HookSeccomp] refused.
	Syscall string
	// Limit is the [Limit.Name] of the limit that refused, with [CauseLimit].
	Limit string
	// PID, UID and Comm are the caller's; zero when it is not known, as for a
	// packet that the kernel sent later. PID is in the sidecar's PID namespace,
	// and 0 for a process that is not visible there.
	PID, UID uint32
	Comm     string
	// Exe is the caller's program, read afterwards and thus empty for a process
	// that is gone already. It is for the record and proves nothing.
	Exe string
	// Count is how many equal refusals this is; at least 1.
	Count uint64
	// Lost, when not zero, is the only field set besides Time: so many refusals
	// were counted and could not be described.
	Lost uint64
}
