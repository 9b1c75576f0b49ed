package ebpf

import (
	"fmt"
	"time"
)

// MaxLimits is how many limits of one kind may be in force at once. All of them
// apply.
const MaxLimits = 8

// MaxRules is how many rule numbers [Confinement.Attribute] and [Confinement.Traffic] know:
// they are below it.
const MaxRules = 1024

// LimitKind is what a [Limit] counts. The zero value does not exist.
type LimitKind uint8

// The kinds.
const (
	LimitConnections   LimitKind = iota + 1 // TCP connects allowed to the proxy
	LimitSentBytes                          // IP bytes sent to the sidecar's listeners
	LimitReceivedBytes                      // IP bytes received from them
	LimitSyscalls                           // system calls
	LimitProcesses                          // processes started
)

// String is the kind's name in a grant.
func (k LimitKind) String() string {
	switch k {
	case LimitConnections:
		return "connections"
	case LimitSentBytes:
		return "sentBytes"
	case LimitReceivedBytes:
		return "receivedBytes"
	case LimitSyscalls:
		return "syscalls"
	case LimitProcesses:
		return "processes"
	}
	return fmt.Sprintf("LimitKind(%d)", uint8(k))
}

// Action is what the kernel does at a [Limit]. The zero value denies.
type Action uint8

// The actions.
const (
	ActionDeny     Action = iota // refuse what goes beyond the limit
	ActionThrottle               // slow down to the limit
	ActionStop                   // stop every process until a tenth of the limit is free again
	ActionKill                   // end every process
)

// String is the action's name in a grant.
func (a Action) String() string {
	switch a {
	case ActionDeny:
		return "deny"
	case ActionThrottle:
		return "throttle"
	case ActionStop:
		return "stop"
	case ActionKill:
		return "kill"
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Limit is what the plugin may use of something, enforced by the kernel.
type Limit struct {
	// Name distinguishes limits of one kind, and is the key that a limit's standing is
	// kept under when [Confinement.Limit] replaces the limits.
	Name string
	// Kind is what is counted.
	Kind LimitKind
	// Count is how much of it may be used: bytes, or a number of connections,
	// calls or processes. A Count of 0 permits none.
	Count uint64
	// Period makes it a rate: Count a Period, with a burst of Count. 0: a total.
	Period time.Duration
	// Used is how much of a total was used before. The kernel's own count since then is
	// kept: the higher of the two counts.
	Used uint64
	// Debt is how much of a rate is in use when the kernel begins to count it, as
	// the time in which the rate allows as much. The standing of one that the
	// kernel counts already is not changed by it.
	Debt time.Duration
	// Action is what happens at the limit.
	Action Action
	// Exact has every system call counted. False: while less than a quarter of the
	// limit is in use, calls are bounded by CPU time where the kernel can do that
	// (Linux 6.13), which costs no other process anything; at most that quarter is
	// then charged for calls that were not made.
	Exact bool
}

// LimitUsage is what was used of a limit.
type LimitUsage struct {
	// Period is the period of a rate that Debt was reckoned with; 0 of a total.
	Period time.Duration
	// Debt is until when nothing of a rate is in use, from now on.
	Debt time.Duration
	// Used is what was used of a total.
	Used uint64
}

// LimitEvent reports that a limit began to refuse, or that it has recovered.
type LimitEvent struct {
	Time  time.Time
	Limit Limit
	// PID and Comm are who crossed it; zero when it is not known, and when
	// Recovered.
	PID  uint32
	Comm string
	// Recovered reports that the limit allows again. It ends the crossing
	// that was reported before.
	Recovered bool
}

// Traffic is what the connections attributed to one rule have exchanged. It
// only grows.
type Traffic struct {
	// Rule is the number given to [Confinement.Attribute].
	Rule uint32
	// IP bytes and packets, counted as in [Usage].
	SentBytes, SentPackets, ReceivedBytes, ReceivedPackets uint64
}
