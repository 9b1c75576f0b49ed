// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Process ids as user space counts them. A process has one id in each PID namespace on the way from the initial one to its
// own (pid_namespaces(7)). The helper bpf_get_current_pid_tgid returns the initial namespace's, and bpf_get_ns_current_pid_tgid
// answers only where the current task's own namespace is the one asked for, which it is not when the plugin lives in a
// namespace below the sidecar's. So the id is read from the kernel's own table.
#ifndef CHAPERONE_PID_BPF_H
#define CHAPERONE_PID_BPF_H

#define MAX_PID_NS_LEVEL 32 /* include/linux/pid_namespace.h */

/* include/linux/pid_types.h */
enum pid_type { PIDTYPE_PID, PIDTYPE_TGID };

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct pid_namespace {
	struct ns_common ns;
} __attribute__((preserve_access_index));

struct upid {
	int nr;
	struct pid_namespace *ns;
} __attribute__((preserve_access_index));

struct pid {
	unsigned int level;
	struct upid numbers[]; /* one for each level, the initial namespace's first */
} __attribute__((preserve_access_index));

struct signal_struct {
	struct pid *pids[PIDTYPE_TGID + 1];
} __attribute__((preserve_access_index));

/* The part of struct task_struct that is read here; task.bpf.h has the rest. */
struct task_struct___pid {
	struct signal_struct *signal;
} __attribute__((preserve_access_index));

/* The sidecar's PID namespace by its inode, as /proc/PID/ns/pid shows it: set by user space before the program is loaded. */
const volatile __u32 pid_namespace = 0;

/* The id of a task's process in the sidecar's PID namespace; 0 when the process is not visible there. No decision
 * depends on it: it names a process to people. */
static __always_inline __u32 pid_of(struct task_struct___pid *task)
{
	struct pid *pid = BPF_CORE_READ(task, signal, pids[PIDTYPE_TGID]);
	__u32 level = BPF_CORE_READ(pid, level);
	struct upid *number;

	for (__u32 i = 0; i <= MAX_PID_NS_LEVEL && i <= level; i++) {
		number = (void *)pid + bpf_core_field_offset(struct pid, numbers) + i * bpf_core_type_size(struct upid);
		if (BPF_CORE_READ(number, ns, ns.inum) == pid_namespace)
			return BPF_CORE_READ(number, nr);
	}
	return 0;
}

/* The same for the current task; in an interrupt that is anybody's. It is not static, so that it is verified by itself, once
 * a program. */
__noinline __u32 current_pid(void)
{
	return pid_of((void *)bpf_get_current_task());
}

#endif
