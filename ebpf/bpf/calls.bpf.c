// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Counts the system calls of one plugin, and holds it to its limits on them. Any program on a system call's tracepoint costs
// every process of the host about 15 ns a call, most of it the kernel's own tracing path, so this one is attached only while a
// limit needs it, and leaves early for everyone else by following the task to its cgroup without a helper or a map.
//
// Calls are counted as they return: what the seccomp filter refuses comes by no other tracepoint (kernel/entry/common.c).
#include "limits.bpf.h"
#include "task.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define TS_COMPAT 0x0002 /* arch/x86/include/asm/thread_info.h: a 32-bit system call, with 32-bit numbers */
#define CLASSES 8
#define CLASS_OTHER 0
#define SYSCALLS 512
#define FORKS 0x80 /* in class_of: the call returns twice, the second time in what it made, with 0 */

/* How many calls a processor takes from the limits at once. Its unused calls are the most by which calls can be more
 * than the limits permit; near a limit it takes one at a time. User space reckons the reserve with it. */
#define LEASE 32

const volatile __u32 turn = 0; /* this counter's, see door.counter */
const volatile __u8 class_of[SYSCALLS] = {};

struct calls {
	__u64 by_class[CLASSES];
	__u64 lease; /* calls that are paid for */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct calls);
} calls SEC(".maps");

/* Pays for this call and, if there is plenty, for the next ones. A call cannot be refused here: what goes beyond a limit is
 * charged nevertheless. */
static __noinline int pay(struct calls *c, __u32 in_force)
{
	__u32 outcome;

	if (!(spend(in_force, LIMIT_SYSCALLS, LEASE, RESERVE) & REFUSED)) {
		c->lease = LEASE - 1;
		return 0;
	}
	outcome = spend(in_force, LIMIT_SYSCALLS, 1, 0);
	if (outcome & REFUSED && in_force & IN_FORCE_ACTIONS) {
		spend(in_force, LIMIT_SYSCALLS, 1, FORCE);
	} else if (outcome & REFUSED) {
		spend(in_force, LIMIT_SYSCALLS, LEASE, FORCE);
		c->lease = LEASE - 1;
	}
	report_crossing(outcome);
	return 0;
}

struct pt_regs {
	unsigned long orig_ax; /* x86 */
} __attribute__((preserve_access_index));

struct pt_regs___arm64 {
	int syscallno;
} __attribute__((preserve_access_index));

/* The number of the call that returns; -1 for sigreturn. */
static __always_inline long number(struct pt_regs *regs)
{
	if (bpf_core_field_exists(regs->orig_ax))
		return regs->orig_ax;
	return ((struct pt_regs___arm64 *)regs)->syscallno;
}

/* Not an atomic addition: this tracepoint runs with preemption off and never in interrupt context, so the value of this
 * CPU has one writer. */
SEC("tp_btf/sys_exit")
int BPF_PROG(count_call, struct pt_regs *regs, long ret)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	__u32 zero = 0, class = CLASS_OTHER;
	const struct control *d;
	struct calls *c;
	long id;

	if (!inside(task->cgroups->dfl_cgrp))
		return 0;
	d = current_control();
	c = bpf_map_lookup_elem(&calls, &zero);
	if (!d || !c || d->counter != turn)
		return 0;
	id = number(regs);
	if (bpf_core_field_exists(task->thread_info.status) && (task->thread_info.status & TS_COMPAT))
		id = -1;
	if (id >= 0 && id < SYSCALLS)
		class = class_of[id & (SYSCALLS - 1)];
	if (class & FORKS && !ret)
		return 0;
	c->by_class[class & (CLASSES - 1)] += 1;
	if (d->in_force & IN_FORCE(LIMIT_SYSCALLS)) {
		if (c->lease)
			c->lease--;
		else
			pay(c, d->in_force);
	}
	if (d->in_force & IN_FORCE_ACTIONS)
		apply_pending_action(d->in_force);
	return 0;
}
