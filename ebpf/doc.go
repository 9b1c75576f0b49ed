// Package ebpf meters and confines one plugin.
//
// A [Confinement] has three layers, each of which holds if another fails:
//
//   - A network namespace of the plugin's own, with nothing in it but a
//     loopback and the sidecar's listeners. There is no route out of it.
//   - A cgroup with BPF programs on every socket hook, attached and pinned
//     before anything runs in it. They send what may leave to the sidecar,
//     refuse and report the rest, and count.
//   - A process without capabilities, under a user of its own, that cannot
//     gain privileges, make namespaces, or ask for what no socket hook sees.
//
// When the sidecar is killed, all three stay: connections are redirected to a port where
// no process listens. [Confinement.Close] ends everything in the cgroup before it takes
// the programs off; [Detach] does it for a sidecar that is gone. On a cgroup
// that was given the programs outlive the sidecar however it ends, until
// Detach or the end of the cgroup.
//
// # Hooks
//
// TCP connects are redirected to the sidecar's proxy, whatever the address, and the
// original destination and the caller are written down for [Confinement.Identify]. A
// connect to a destination without a rule ([Confinement.AllowConnects]) is refused at once with
// ECONNREFUSED (before Linux 6.1: EPERM), so that a program that probes for an
// open port does not take the sidecar's for it.
// Port 53 of any server, UDP and TCP, is redirected to the sidecar's resolver, and its
// answers seem to come from the server that was asked. A UDP connect succeeds
// and goes nowhere, because C libraries probe addresses so; data sent on it is
// refused with EPERM, as is every other datagram. Sockets that are neither TCP
// nor UDP over IP are not made.
//
// Seccomp refuses, and reports like the rest, whatever no socket hook covers: packet,
// vsock and other socket families, io_uring, taking descriptors out of other processes,
// tracing, namespaces, mounts, BPF, keyrings, and system calls of another architecture.
//
// # Process ids
//
// A process has an id in each PID namespace from the initial one down to its own
// (pid_namespaces(7)). Every id that the programs report is the one in the
// sidecar's namespace, and 0 for a process that is not visible there; so is every
// id that user space looks up in /proc or opens. No decision depends on one. A
// cgroup that was given and holds a process that is not visible is not attached
// to: the iterators that look for foreign sockets do not see it either. /proc has
// to show the sidecar's own namespace.
//
// # Operations that stay possible, and those that do not
//
// In its own namespace the plugin's loopback is its own: it may bind, listen
// and connect there, by TCP, UDP and abstract Unix sockets, and none of it
// counts. The loopback has the addresses of [PluginAddresses] beside 127.0.0.0/8
// and ::1, and every port of it may be bound without a privilege. Socket pairs work everywhere. Unix sockets with a path are refused,
// also the plugin's own, but for those of [Confinement.AllowSockets]: the kernel's hook
// sees the name that was given and not the socket that it resolves to, and a link
// could resolve to any socket of the host. A kernel before 6.7 has no such hook;
// there the plugin gets no Unix sockets but pairs. Programs that build sandboxes
// of their own (namespaces in clone or unshare) do not run.
//
// io_uring is refused permanently. Its connects do pass the hooks, but it makes
// sockets past the filter, of the families that have no hook.
//
// # Files
//
// Without [Command.Files] the plugin may use what its user may. With it, Landlock
// closes everything but what is named and what programs need to start: the program
// itself with its interpreter and loader; /usr, /lib*, /bin and /sbin; below /etc the
// loader's files, certificates, resolver and host files, services, passwd, group, time
// zone and Java's configuration; a few files of the system's in /proc and /sys, and the
// process's own part of /proc, not its children's; /dev/null, zero, full, random,
// urandom and tty. Landlock does not limit reading names and modes (stat), nor files
// that are open already. Any file that may be read can be executed: an interpreter
// reads it.
//
// # Without privileges
//
// A [Rootless] needs neither BPF nor root: user, network, process, mount and IPC
// namespaces, the same system call filter and the same file rules. It meters
// nothing. [Rootless.Limits] lists what else it lacks.
//
// # Limits
//
// [Confinement.Limit] has the programs hold the plugin to rates and totals. A rate is
// the generic cell rate algorithm with a burst of its Count, on CLOCK_MONOTONIC;
// the time for which the machine sleeps refills nothing. A charge is one atomic
// exchange, with prices rounded up, so that no number of senders passes a limit. While
// more than half of a rate on bytes is free, the time of a charge is the coarse clock's and a
// few ticks more, which takes at most a 128th of a burst. A coarse clock that is later than
// that, since a hypervisor took the CPU that keeps it, allows by as much more.
//
// Connections are charged when they are allowed to the proxy, and refused
// with EPERM. Bytes are charged packet by packet. TCP packets with payload that
// go beyond a limit are dropped, and sent again by TCP, whose pauses grow to two
// minutes; datagrams are refused with EPERM. TCP packets without payload pass
// and are charged nevertheless, so that a refusal or an end never hangs; so does
// a packet that is larger than the whole of a rate, when nothing of it is in
// use. While a limit on bytes or system calls is used up, new connects and
// questions are refused with EPERM, unless it throttles. A connection that was
// allowed and then failed stays charged.
//
// A system call cannot be refused where it is counted: what goes beyond its limit
// is charged, and the plugin refused everything else. Each processor takes 32
// calls at a time from the limits while there is plenty, and one at a time near
// their end; what it holds is the most by which calls can exceed them.
//
// At a limit that stops, the kernel stops each process as soon as it passes a hook,
// when the last of the limit is taken and not at the first refusal; [Confinement.Run]
// freezes them all within milliseconds, and lets them run again when a tenth of the
// limit, and whatever it refused, is free. To do so it sends SIGCONT, also to processes
// that the plugin itself had stopped. A call that was interrupted by the stop may end
// with EINTR (signal(7)). Only a sidecar continues them, and one that is restarted
// takes that over. A plugin that continues its own processes is killed by the kernel
// after 4096 more hooks. To throttle system calls is to stop for a fortieth of a second
// at a time. A limit on processes kills what is started beyond it before it runs.
//
// # Numbers
//
// Bytes are IP bytes, headers included, on the plugin's side of connections
// with the sidecar's listeners; retransmissions count, refused packets do not, and
// a packet that the kernel was to cut later (GSO) counts with one header.
// System calls are those of every task in the cgroup from the moment it is in
// it, the launcher's few hundred included. All totals only grow.
package ebpf
