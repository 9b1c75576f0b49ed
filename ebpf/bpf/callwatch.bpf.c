// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Stops the plugin when user space is late. While the plugin's system calls are not counted, user space looks at its CPU time,
// which bounds how many calls it can have made, and sets a timer for when the plugin could have reached a limit.
// If there is no further look by then, because the sidecar was killed, stopped or starved, a timer of the kernel stops the
// plugin, so that no limit depends on user space being in time.
#include "limits.bpf.h"
#include "task.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define CLOCK_MONOTONIC 1
#define ALL_THREADS 1	/* BPF_TASK_ITER_ALL_THREADS of kernel/bpf/task_iter.c */
#define MS 1000000
/* The plugin is looked at each millisecond for QUICK_TURNS, and then each SLOW_TURN. */
#define QUICK_TURNS 100
#define SLOW_TURN 10
/* The milliseconds for which threads of a plugin that was stopped may run: processes that continue each other are killed.
 * User space sets the timer earlier by them. */
#define DEFIANCE 50

/* Calls that were not counted. Written by user space, which maps it, and read by the sidecar that comes after. */
struct uncounted_calls {
	__u64 cpu;	/* microseconds of CPU time that the cgroup had used at the last look */
	__u64 cost;	/* nanoseconds of CPU time that the cheapest call takes */
	__u64 calls;	/* as many calls as could be made in the CPU time that was looked at */
	__u64 overdue;	/* how often the timer found no look */
	__u64 open;	/* not zero: what was used since the last look is to be charged */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct uncounted_calls);
} uncounted SEC(".maps");

struct watch {
	struct bpf_timer timer;
	__u32 turns;	/* since the look is overdue */
	__u32 defiance; /* milliseconds for which a thread ran in spite of the stop */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} watches SEC(".maps");

struct bpf_iter_task {
	__u64 opaque[3];
} __attribute__((aligned(8)));

extern int bpf_iter_task_new(struct bpf_iter_task *it, struct task_struct *task, unsigned int flags) __ksym;
extern struct task_struct *bpf_iter_task_next(struct bpf_iter_task *it) __ksym;
extern void bpf_iter_task_destroy(struct bpf_iter_task *it) __ksym;
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
extern struct task_struct *bpf_task_acquire(struct task_struct *task) __ksym;
extern void bpf_task_release(struct task_struct *task) __ksym;

struct task_struct___run {
	int on_cpu;
} __attribute__((preserve_access_index));

/* Signals one process. That needs a reference to the task, which the iterator does not hold. */
static __always_inline void signal_process(struct task_struct *task, int signal)
{
	struct task_struct *referenced = bpf_task_acquire(task);

	if (!referenced)
		return;
	bpf_send_signal_task(referenced, signal, PIDTYPE_TGID, 0);
	bpf_task_release(referenced);
}

/* Signals every process of the plugin, and reports whether one of its threads is running. */
static __always_inline bool signal_all(int signal)
{
	struct bpf_iter_task it;
	struct task_struct *task;
	bool running = false;

	bpf_rcu_read_lock();
	bpf_iter_task_new(&it, 0, ALL_THREADS);
	while ((task = bpf_iter_task_next(&it))) {
		if (!inside(group_of(task)))
			continue;
		if (((struct task_struct___run *)readable(task))->on_cpu)
			running = true;
		if (task->pid == task->tgid)
			signal_process(task, signal);
	}
	bpf_iter_task_destroy(&it);
	bpf_rcu_read_unlock();
	return running;
}

/* The look is overdue. User space lets the plugin go on when it has looked. */
static int overdue(void *map, __u32 *key, struct watch *w)
{
	struct uncounted_calls *u = bpf_map_lookup_elem(&uncounted, key);
	struct enforcement *c = bpf_map_lookup_elem(&held, key);
	__u32 turn;

	if (!u || !c)
		return 0;
	turn = w->turns < QUICK_TURNS ? 1 : SLOW_TURN;
	if (!w->turns++)
		__sync_fetch_and_add(&u->overdue, 1);
	__sync_val_compare_and_swap(&c->action, PENDING_NONE, PENDING_STOP);
	if (signal_all(w->defiance < DEFIANCE ? SIGSTOP_NUMBER : SIGKILL))
		w->defiance += turn;
	bpf_timer_start(&w->timer, turn * MS, 0);
	return 0;
}

struct watch_args {
	__u64 ns; /* until the next look is overdue; 0: calls are counted again */
};

SEC("syscall")
int watch_calls(struct watch_args *args)
{
	__u32 zero = 0;
	struct watch *w = bpf_map_lookup_elem(&watches, &zero);

	if (!w)
		return -1;
	w->turns = w->defiance = 0;
	bpf_timer_init(&w->timer, &watches, CLOCK_MONOTONIC); /* fails if it is there already */
	if (!args->ns) {
		bpf_timer_cancel(&w->timer);
		return 0;
	}
	if (bpf_timer_set_callback(&w->timer, overdue))
		return -1;
	return bpf_timer_start(&w->timer, args->ns, 0);
}
