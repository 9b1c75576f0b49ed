// Package ebpf meters and confines one plugin.
//
// A [Cage] holds three walls, each of which stands if another falls:
//
//   - A network namespace of the plugin's own, with nothing in it but a
//     loopback and the sidecar's listeners. There is no route out of it.
//   - A cgroup with BPF programs on every socket hook, attached and pinned
//     before anything runs in it. They send what may leave to the sidecar,
//     refuse and report the rest, and count.
//   - A process without capabilities, under a user of its own, that cannot
//     gain privileges, make namespaces, or ask for what no socket hook sees.
//
// When the sidecar is killed, all three stay: connections lead to a port where
// nobody listens. [Cage.Close] ends everything in the cgroup before it takes
// the programs off; [Detach] does it for a sidecar that is gone.
//
// # What the hooks do
//
// TCP connects lead to the sidecar's proxy, whatever the address, and the
// original destination and the caller are written down for [Cage.Identify].
// Port 53 of any server, UDP and TCP, leads to the sidecar's resolver, and its
// answers seem to come from the server that was asked. A UDP connect succeeds
// and goes nowhere, because C libraries probe addresses so; data sent on it is
// refused with EPERM, as is every other datagram. Sockets that are neither TCP
// nor UDP over IP are not made.
//
// What no socket hook sees is refused by seccomp and reported like the rest:
// packet, vsock and other socket families, io_uring, taking descriptors out of
// other processes, tracing, namespaces, mounts, BPF, keyrings, and system calls
// of another architecture.
//
// # What stays possible, and what does not
//
// In its own namespace the plugin's loopback is its own: it may bind, listen
// and connect there, by TCP, UDP and abstract Unix sockets, and none of it
// counts. Socket pairs work everywhere. Unix sockets with a path are refused,
// also the plugin's own, but for those of [Cage.AllowSockets]: the kernel's hook
// sees the name that was given and not the socket that it leads to, and a link
// would lead it to any socket of the host. A kernel before 6.7 has no such hook;
// there the plugin gets no Unix sockets but pairs. Programs that build sandboxes
// of their own (namespaces in clone or unshare) do not run.
//
// io_uring is refused for good. Its connects do pass the hooks, but it makes
// sockets past the filter, of the families that have no hook.
//
// # Files
//
// Without [Command.Files] the plugin may use what its user may. With it, Landlock
// closes everything but what is named and what programs need to start: the
// program itself with its interpreter and loader; /usr, /lib*, /bin and /sbin;
// below /etc the loader's files, certificates, resolver and host files, services,
// passwd, group, time zone and Java's configuration; a few files of the system's
// in /proc and /sys, and the process's own part of /proc, not its children's;
// /dev/null, zero, full, random, urandom and tty. Landlock says nothing about
// looking at names and modes (stat), nor about files that are open already. What
// is executed can be any file that may be read: an interpreter reads it.
//
// # Without privileges
//
// A [Fence] needs neither BPF nor root: user, network, process, mount and IPC
// namespaces, the same system call filter and the same file rules. It meters
// nothing. [Fence.Limits] says what else it lacks.
//
// # Numbers
//
// Bytes are IP bytes, headers included, on the plugin's side of connections
// with the sidecar's listeners; retransmissions count, refused packets do not.
// System calls are those of every task in the cgroup from the moment it is in
// it, the launcher's few hundred included. All totals only grow.
package ebpf
