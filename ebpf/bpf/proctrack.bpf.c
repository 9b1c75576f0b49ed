// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Follows one plugin's processes: counts the ones it starts, and ends at once what gets out of its cgroup. A process can
// leave in two ways, if its privileges allow it: its id is written into another cgroup.procs, or it is born
// elsewhere by clone3 with CLONE_INTO_CGROUP, which fires no cgroup_attach_task. These programs run per fork and per move,
// and for a process of anybody else they follow three pointers and leave.
#define LATE_CGROUP
#include "limits.bpf.h"
#include "task.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define STILL_ALIVE 1 /* an escape's event.type: user space has to end the process */

struct bpf_iter__task {
	struct task_struct *task;
} __attribute__((preserve_access_index));

/* 1: the first process in the cgroup is the sidecar's own (chaperone-init), which starts the program and nothing else. Set by
 * user space before the program is loaded. */
const volatile __u32 first_is_init = 0;

/* Values of a mark. */
#define MARK_PLUGIN 1
#define MARK_INIT 2
#define MARK_SEEN 3 /* of a newborn that was seen before the tracepoint of its birth, which still counts it */

#define TASK_NEW 0x800 /* include/linux/sched.h: it does not run before that tracepoint was passed */

/* Since Linux 5.14. */
struct task_struct___state {
	unsigned int __state;
} __attribute__((preserve_access_index));

/* Marks the plugin's tasks: what was in its cgroup once does not leave it. The mark goes with the task. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} marks SEC(".maps");

/* Marks a task; false when it was marked before. While one version of these programs takes the place of another, both run:
 * the one that marks a newborn counts it. Without memory for a mark it is rather counted twice than not at all. */
static __always_inline bool mark(struct task_struct *task, __u32 as)
{
	__u32 *m = bpf_task_storage_get(&marks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!m || __sync_val_compare_and_swap(m, 0, as) == 0)
		return true;
	return as != MARK_SEEN && __sync_val_compare_and_swap(m, MARK_SEEN, as) == MARK_SEEN;
}

static __always_inline __u32 mark_of(struct task_struct *task)
{
	__u32 *m = bpf_task_storage_get(&marks, task, 0, 0);

	return m ? *m : 0;
}

static __always_inline bool marked(struct task_struct *task)
{
	return mark_of(task) != 0;
}

/* The mark of a task that comes into the cgroup from outside. */
static __always_inline __u32 first_mark(void)
{
	return first_is_init ? MARK_INIT : MARK_PLUGIN;
}

/* Ends a process that is outside, and reports it. Where the kernel cannot send a signal to another process, it ends the one
 * that is running if that is the plugin's, and leaves the rest to user space. */
static __always_inline void end_escaped(struct task_struct *task, bool by_plugin)
{
	bool ended = kill_process(task);
	struct event *e;

	if (!ended && by_plugin)
		bpf_send_signal(SIGKILL);
	COUNT(escaped, 1);
	e = new_event();
	if (!e)
		return;
	e->time = bpf_ktime_get_boot_ns();
	e->pid = pid_of((struct task_struct___pid *)task);
	e->uid = readable(task)->cred->uid.val;
	bpf_core_read(e->comm, sizeof(e->comm), &task->comm);
	e->hook = HOOK_ESCAPE;
	e->why = WHY_POLICY;
	e->type = ended ? 0 : STILL_ALIVE;
	bpf_ringbuf_submit(e, 0);
}

/* Counts a newborn and holds the plugin to its limits on processes. A process beyond a limit does not run and was not
 * started: neither here nor by the limit is it counted. A kernel that cannot end it (before Linux 6.13) ends the process that
 * started it. */
static __always_inline void count_process(struct task_struct *child)
{
	const struct control *d = current_control();
	__u32 outcome = 0;

	if (!d)
		return;
	if (d->in_force & IN_FORCE(LIMIT_PROCESSES)) {
		outcome = spend(d->in_force, LIMIT_PROCESSES, 1, 0);
		report_crossing(outcome);
	}
	if (!(outcome & REFUSED))
		COUNT(processes, 1);
	else if (!kill_process(child))
		bpf_send_signal(SIGKILL);
	apply_pending_action(d->in_force);
}

/* The newborn does not run before this returns, so what is killed here has executed nothing. The tracepoint is passed by
 * threads as well. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(born, struct task_struct *parent, struct task_struct *child)
{
	struct cgroup *from = group_of(parent), *to = group_of(child);
	bool in = inside(to);
	bool by_plugin = marked(parent) || (from->kn->id == to->kn->id ? in : inside(from));
	bool thread = child->pid != child->tgid, by_init = mark_of(parent) == MARK_INIT;

	if (!in) {
		if (by_plugin)
			end_escaped(child, true);
		return 0;
	}
	if (!by_plugin) {
		mark(child, first_mark());
		return 0;
	}
	if (!mark(child, thread && by_init ? MARK_INIT : MARK_PLUGIN) || thread || by_init)
		return 0;
	count_process(child);
	return 0;
}

/* Fires after the move, once for a process, in hierarchies of the first version, too: what counts is where the task is in
 * the second. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(moved, struct cgroup *to, const char *path, struct task_struct *task, bool threadgroup)
{
	if (inside(group_of(task)))
		mark(task, first_mark());
	else if (marked(task))
		end_escaped(task, marked((struct task_struct *)bpf_get_current_task_btf()));
	return 0;
}

/* Marks what was there before the programs above. */
SEC("iter/task")
int mark_present(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_struct___state *t;
	__u32 as = MARK_PLUGIN;

	if (!task || !inside(group_of(task)))
		return 0;
	t = (void *)readable(task);
	if (bpf_core_field_exists(t->__state) && t->__state & TASK_NEW)
		as = MARK_SEEN;
	mark(task, as);
	return 0;
}
