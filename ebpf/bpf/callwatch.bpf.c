// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Bounds the system calls of a plugin while they are not counted, by the time for which its threads run: a call takes at least
// some time. A program on the scheduler's switch between two threads adds that time up, which costs every process of the host
// some ns a switch, and nothing a call. While a thread of the plugin runs on a processor, a timer of that processor adds up what
// it has used since. As many calls as fit are charged to the limits at once. User space is woken when a limit is near, and counts
// calls instead. If it is late, because the sidecar was killed, stopped or starved, the plugin is stopped before it can have
// reached the limit, so that no limit depends on user space being in time.
#include "limits.bpf.h"
#include "task.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define CLOCK_MONOTONIC 1
#define BPF_F_TIMER_CPU_PIN 2 /* include/uapi/linux/bpf.h, since Linux 6.7 */
#define ALL_THREADS 1	      /* BPF_TASK_ITER_ALL_THREADS of kernel/bpf/task_iter.c */
#define JOBCTL_STOP_PENDING (1UL << 17) /* include/linux/sched/jobctl.h */
#define MS 1000000
/* While the plugin is stopped, it is looked at each turn for QUICK_TURNS, and then each SLOW_TURN. */
#define QUICK_TURNS 100
#define SLOW_TURN (10 * MS)
/* How often a thread of a plugin that was stopped may be seen running on: processes that continue each other are killed. */
#define DEFIANCE 4
/* A limit is near when more than 1/SHARE of it is used. */
#define SHARE 4

/* Calls that were not counted. User space maps it. */
struct uncounted_calls {
	__u64 cost;    /* ns for which a thread runs at least to make a call */
	__u64 calls;   /* as many calls as could be made in the time that was added up */
	__u64 time;    /* ns for which threads of the plugin ran */
	__u64 overdue; /* how often the plugin was stopped since user space was late */
	__u64 opened;  /* since when time is added up, CLOCK_MONOTONIC; 0: it is not */
	__u64 near;    /* user space was woken, and has not looked yet */
	__u64 turn;    /* ns after which a processor adds up what a thread that runs on has used */
	__u64 reserve; /* calls that can be made before all processors have added up, and the stop arrives */
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
	__u64 since;	/* when a thread of the plugin was switched to or from here last, or added up */
	__u32 runs;	/* one runs here */
	__u32 armed;	/* the timer is */
	__u32 turns;	/* since the plugin was stopped */
	__u32 defiance; /* turns in which a thread ran in spite of the stop */
};

/* One for each processor: user space sets how many there may be. Only the processor itself writes to it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} watches SEC(".maps");

/* Wakes user space. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} near_limits SEC(".maps");

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

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct sigpending {
	sigset_t signal;
} __attribute__((preserve_access_index));

struct signal_struct___pending {
	struct sigpending shared_pending;
} __attribute__((preserve_access_index));

struct task_struct___run {
	int on_cpu;
	unsigned long jobctl;
	struct sigpending pending;
	struct signal_struct___pending *signal;
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

/* Whether a thread runs and is not about to stop. One that was sent a stop takes it in before it returns from the kernel. */
static __always_inline bool runs_on(struct task_struct *task)
{
	struct task_struct___run *t = (void *)readable(task);
	const unsigned long stop = 1UL << (SIGSTOP_NUMBER - 1);

	if (!t->on_cpu || t->jobctl & JOBCTL_STOP_PENDING)
		return false;
	return !(t->pending.signal.sig[0] & stop) && !(t->signal->shared_pending.signal.sig[0] & stop);
}

/* Signals every process of the plugin, and reports whether one of its threads runs on. */
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
		if (runs_on(task))
			running = true;
		if (task->pid == task->tgid)
			signal_process(task, signal);
	}
	bpf_iter_task_destroy(&it);
	bpf_rcu_read_unlock();
	return running;
}

/* How a limit stands: NEAR, or DUE if it can be reached before all processors have added up. MORE comes with it. */
#define NEAR 1
#define DUE 2

__noinline __u32 standing(__u32 in_force, __u32 place, __u64 now, __u64 reserve)
{
	struct limit *l = limit_at(in_force, place);
	struct limit_state *s = l ? standing_of(l) : 0;
	__u64 clock, level, used;

	if (!l || !s)
		return NEAR | DUE;
	if (!l->set)
		return 0;
	clock = l->period ? now : 0;
	level = *(volatile __u64 *)&s->level;
	used = level > clock ? level - clock : 0;
	if (used + price(l, reserve) >= l->depth)
		return NEAR | DUE | (l->more & MORE);
	return (used > l->depth / SHARE ? NEAR : 0) | (l->more & MORE);
}

/* Charges what could be called since a processor last added up. */
static __always_inline void add_up(struct watch *w, struct uncounted_calls *u, __u32 in_force, __u64 now)
{
	__u64 since = w->since > u->opened ? w->since : u->opened, spent, calls;

	w->since = now;
	if (now <= since)
		return;
	spent = now - since;
	calls = spent / (u->cost ?: 1) + 1;
	__sync_fetch_and_add(&u->time, spent);
	__sync_fetch_and_add(&u->calls, calls);
	report_crossing(spend(in_force, LIMIT_SYSCALLS, calls, FORCE));
}

/* Wakes user space if a limit is near; true if the plugin must not go on until user space has looked. */
static __always_inline bool is_due(struct uncounted_calls *u, __u32 in_force, __u64 now)
{
	__u32 state = 0, one;
	__u64 *woken;

	for (int i = 0; i < PER_KIND; i++) {
		one = standing(in_force, LIMIT_SYSCALLS * PER_KIND + i, now, u->reserve);
		state |= one;
		if (!(one & MORE))
			break;
	}
	if (state & NEAR && !u->near && !__sync_val_compare_and_swap(&u->near, 0, 1)) {
		woken = bpf_ringbuf_reserve(&near_limits, sizeof(*woken), 0);
		if (woken) {
			*woken = now;
			bpf_ringbuf_submit(woken, BPF_RB_FORCE_WAKEUP);
		}
	}
	return state & DUE;
}

/* Stops the plugin, and returns when to look at it again. User space lets it go on when it has looked. */
static __noinline __u64 stop(struct watch *w, struct uncounted_calls *u)
{
	__u32 zero = 0;
	struct enforcement *c = bpf_map_lookup_elem(&held, &zero);
	bool first = !w->turns;

	if (!c)
		return MS;
	if (first)
		__sync_fetch_and_add(&u->overdue, 1);
	w->turns++;
	__sync_val_compare_and_swap(&c->action, PENDING_NONE, PENDING_STOP);
	if (signal_all(w->defiance < DEFIANCE ? SIGSTOP_NUMBER : SIGKILL) && !first)
		w->defiance++;
	return w->turns < QUICK_TURNS ? u->turn : SLOW_TURN;
}

static __always_inline __u32 limits_in_force(void)
{
	const struct control *d = current_control();

	return d && d->in_force & IN_FORCE(LIMIT_SYSCALLS) ? d->in_force : 0;
}

/* The turn of a processor. */
static int take_turn(void *map, __u32 *key, struct watch *w)
{
	__u32 zero = 0, in_force = limits_in_force();
	struct uncounted_calls *u = bpf_map_lookup_elem(&uncounted, &zero);
	__u64 now = bpf_ktime_get_ns(), next = 0;

	if (!u || !u->opened || !in_force || *key != bpf_get_smp_processor_id()) {
		w->armed = w->turns = w->defiance = 0;
		return 0;
	}
	if (w->runs) {
		add_up(w, u, in_force, now);
		next = u->turn;
	}
	if (is_due(u, in_force, now))
		next = stop(w, u);
	else
		w->turns = w->defiance = 0;
	if (!next || bpf_timer_start(&w->timer, next, BPF_F_TIMER_CPU_PIN))
		w->armed = 0;
	return 0;
}

struct prepare_args {
	__u32 processor;
};

/* Makes the timer of a processor: the switch program runs with a lock of the scheduler held, where nothing may be
 * allocated. */
SEC("syscall")
int prepare_watch(struct prepare_args *args)
{
	__u32 cpu = args->processor;
	struct watch *w = bpf_map_lookup_elem(&watches, &cpu);

	if (!w)
		return -1;
	bpf_timer_init(&w->timer, &watches, CLOCK_MONOTONIC); /* fails if it is there already */
	return bpf_timer_set_callback(&w->timer, take_turn);
}

/* A processor switches to a thread of the plugin, or from one. */
static __noinline int switched(bool from, bool to)
{
	__u32 zero = 0, cpu = bpf_get_smp_processor_id(), in_force = limits_in_force();
	struct uncounted_calls *u = bpf_map_lookup_elem(&uncounted, &zero);
	struct watch *w = bpf_map_lookup_elem(&watches, &cpu);
	__u64 now = bpf_ktime_get_ns(), next;
	bool due = false;

	if (!u || !w)
		return 0;
	w->runs = to;
	if (!u->opened || !in_force) {
		w->since = now;
		return 0;
	}
	if (from) {
		add_up(w, u, in_force, now);
		due = is_due(u, in_force, now);
	}
	w->since = now;
	if (!due && (!to || w->armed))
		return 0;
	next = due ? 1 : u->turn;
	w->armed = bpf_timer_start(&w->timer, next, BPF_F_TIMER_CPU_PIN) == 0;
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(watch_switch, bool preempted, struct task_struct *prev, struct task_struct *next)
{
	bool from = inside(prev->cgroups->dfl_cgrp), to = inside(next->cgroups->dfl_cgrp);

	if (from || to)
		switched(from, to);
	return 0;
}
