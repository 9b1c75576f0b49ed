// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Counts the system calls of one plugin. Any program on sys_enter costs every process of the host about 15 ns a call, most
// of it the kernel's own tracing path, so this one is attached only while a limit needs it, and leaves early for everyone
// else by following the task to its cgroup without a helper or a map.
#include "chaperone.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup {
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

struct css_set {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));

struct thread_info {
	__u32 status; /* x86 only */
} __attribute__((preserve_access_index));

struct task_struct {
	struct thread_info thread_info;
	struct css_set *cgroups;
} __attribute__((preserve_access_index));

#define TS_COMPAT 0x0002 /* arch/x86/include/asm/thread_info.h: a 32-bit system call, with 32-bit numbers */
#define CLASSES 8
#define CLASS_OTHER 0
#define SYSCALLS 512

const volatile __u64 cgroup_id = 0;
const volatile __u32 descendants = 0; /* not zero: cgroups below it count too */
const volatile __u8 class_of[SYSCALLS] = {};

struct calls {
	__u64 by_class[CLASSES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct calls);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} groups SEC(".maps");

/* Not an atomic addition: this tracepoint runs with preemption off and never in interrupt context, so the value of this
 * CPU has one writer. */
SEC("tp_btf/sys_enter")
int BPF_PROG(count_call, void *regs, long id)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	__u32 zero = 0, class = CLASS_OTHER;
	struct calls *c;

	if (task->cgroups->dfl_cgrp->kn->id != cgroup_id) {
		if (!descendants || bpf_current_task_under_cgroup(&groups, 0) != 1)
			return 0;
	}
	c = bpf_map_lookup_elem(&calls, &zero);
	if (!c)
		return 0;
	if (bpf_core_field_exists(task->thread_info.status) && (task->thread_info.status & TS_COMPAT))
		id = -1;
	if (id >= 0 && id < SYSCALLS)
		class = class_of[id & (SYSCALLS - 1)];
	c->by_class[class & (CLASSES - 1)] += 1;
	return 0;
}
