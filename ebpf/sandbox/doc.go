// Package sandbox confines a process: by the launcher (this binary, executed again, see
// package launcher), which gives up capabilities, becomes the user and enters Landlock
// and seccomp before it becomes the program; cgroups and network namespaces; and a view
// of the program's own of the host's files and processes. [Rootless] does it without
// privileges. Package ebpf adds the kernel programs.
//
// A [launcher.View] has private directories for temporary files, sockets and runtime data, a
// process table and IPC objects that it shares with no other process, terminals of
// its own, and account, resolver and trust store files that fit it. The rest of the
// file tree stays visible as far as the program's user may read it. The caller makes
// the namespaces (mount, PID, IPC) and calls [launcher.View.Build] as the first process in
// them, with root's privileges, before anything else runs.
package sandbox
