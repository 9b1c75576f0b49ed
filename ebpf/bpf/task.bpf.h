// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Tasks and the cgroup they are in, as the kernel holds them: what the programs share that follow a plugin's processes
// instead of its sockets. As in chaperone.bpf.h, only the fields that are read are declared.
#ifndef CHAPERONE_TASK_BPF_H
#define CHAPERONE_TASK_BPF_H

#include "chaperone.bpf.h"

struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup {
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[]; /* since Linux 6.1; the last is the cgroup itself */
} __attribute__((preserve_access_index));

/* The same before Linux 6.1. */
struct cgroup___ids {
	int level;
	__u64 ancestor_ids[];
} __attribute__((preserve_access_index));

struct css_set {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
} __attribute__((preserve_access_index));

struct thread_info {
	__u32 status; /* x86 only */
} __attribute__((preserve_access_index));

struct task_struct {
	struct thread_info thread_info;
	int pid;
	int tgid;
	char comm[16];
	const struct cred *cred;
	struct css_set *cgroups;
} __attribute__((preserve_access_index));

#define SIGKILL 9

/* Since Linux 6.13. */
extern int bpf_send_signal_task(struct task_struct *task, int signal, enum pid_type type, __u64 value) __weak __ksym;

/* Since Linux 6.2. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __weak __ksym;

/* The plugin's cgroup. A program that is loaded before its cgroup exists defines LATE_CGROUP: user space writes the id before
 * it attaches the program, and until then the program governs no task. In the others the id is a constant. */
#ifdef LATE_CGROUP
volatile __u64 cgroup_id SEC(".data.cgroup") = 0;
#else
const volatile __u64 cgroup_id = 0;
#endif
const volatile __u32 descendants = 0;  /* not zero: cgroups below it are the plugin's, too */
const volatile __u32 signals = 1;      /* zero: as on a kernel that cannot send a signal to another task; for tests */

#define MAX_DEPTH 32 /* of a cgroup below the root; what lies deeper is not the plugin's, and ended */

/* The id of the cgroup that lies i levels below the root, on the way to this one. */
static __always_inline __u64 ancestor_id(struct cgroup *group, int i)
{
	struct cgroup *ancestor = 0;
	__u64 id = 0;

	if (bpf_core_field_exists(group->ancestors)) {
		if (bpf_core_read(&ancestor, sizeof(ancestor), &group->ancestors[i]))
			return 0;
		return BPF_CORE_READ(ancestor, kn, id);
	}
	if (bpf_core_read(&id, sizeof(id), &((struct cgroup___ids *)group)->ancestor_ids[i]))
		return 0;
	return id;
}

/* A task to follow the pointers of. The verifier searches all of the kernel's types by name at each step from a trusted pointer,
 * to find whether the next one is trusted, too: about a millisecond a step. A pointer that is only read needs no trust, and
 * one that bpf_rdonly_cast returns has none. It cannot be passed to a helper or a kfunc that needs a task. */
static __always_inline struct task_struct *readable(struct task_struct *task)
{
	if (!bpf_rdonly_cast)
		return task;
	return bpf_rdonly_cast(task, bpf_core_type_id_kernel(struct task_struct));
}

/* The cgroup of a task in the hierarchy of the second version. */
static __always_inline struct cgroup *group_of(struct task_struct *task)
{
	return readable(task)->cgroups->dfl_cgrp;
}

/* inside reports whether a cgroup is the plugin's. A task is followed to it without a helper or a map, so that a task of
 * anybody else costs next to nothing. */
static __always_inline bool inside(struct cgroup *group)
{
	if (group->kn->id == cgroup_id)
		return true;
	if (!descendants)
		return false;
	for (int i = 1; i < MAX_DEPTH && i < group->level; i++)
		if (ancestor_id(group, i) == cgroup_id)
			return true;
	return false;
}

/* Sends SIGKILL to a whole process; false when this kernel cannot. */
static __always_inline bool kill_process(struct task_struct *task)
{
	if (!signals || !bpf_send_signal_task)
		return false;
	return bpf_send_signal_task(task, SIGKILL, PIDTYPE_TGID, 0) == 0;
}

#endif
