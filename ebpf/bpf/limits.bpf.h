// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Limits. A limit and the usage of it are apart: user space replaces all limits in one step, and the
// standings stay, written by the programs alone.
//
// One algorithm serves rates and totals. A rate is kept by the generic cell rate algorithm (ITU-T I.371, annex A): its level
// is the time at which the bucket is empty again, a charge moves it on by the time that the rate takes to allow as much
// again, and it may not lie further ahead of the clock than the bucket is deep. A total is a rate whose clock stands still:
// its level is what was used, and its bucket is as deep as the total. Prices are rounded up and charges are one atomic
// exchange, so that no number of senders passes a limit.
#ifndef CHAPERONE_LIMITS_BPF_H
#define CHAPERONE_LIMITS_BPF_H

#include "chaperone.bpf.h"

enum limit_kind {
	LIMIT_CONNECTIONS = 1,
	LIMIT_SENT = 2,
	LIMIT_RECEIVED = 3,
	LIMIT_SYSCALLS = 4,
	LIMIT_PROCESSES = 5,
	LIMIT_KINDS = 6,
};

#define PER_KIND 8
#define SLOTS 128 /* more than twice of what may be in force: a slot is not used again at once */

/* The action on the plugin at a limit; the higher number wins. */
enum pending { PENDING_NONE = 0, PENDING_STOP = 1, PENDING_KILL = 2 };

#define SIGKILL_NUMBER 9 /* include/uapi/asm-generic/signal.h */
#define SIGSTOP_NUMBER 19

/* Whether bpf_send_signal_thread can be called from these programs: user space tries it, before 6.9 it cannot from all. */
const volatile __u32 may_signal = 0;

struct limit {
	__u64 count;
	__u64 period;	/* ns; 0: a total */
	__u64 depth;	/* how far the level may be ahead */
	__u64 mult;	/* the price of n is n * mult >> shift, rounded up */
	__u64 unit;	/* the price of the least that can be asked for */
	__u64 reserve;	/* the part of the bucket that a lease leaves */
	__u64 name[2];	/* a digest of the name and kind: for user space */
	__u32 slot;
	__u8 shift;
	__u8 set;	/* 0: unused entry */
	__u8 action;
	__u8 early;	/* pass the action when the bucket is full, and not at the first refusal */
	__u8 blocks;	/* refuse connects and questions while the bucket is full */
	__u8 turns;	/* for user space: a stop is to be a short one */
	__u8 more;	/* MORE: another one of the kind follows */
	__u8 ahead;	/* the clock may be estimated, up to depth >> ahead fast; 0: never */
	__u8 pad[4];
};

/* How one limit stands. */
struct limit_state {
	__u64 level;
	__u64 refused;	/* when it last did, ns of CLOCK_MONOTONIC */
	__u64 asked;	/* the price of what it then refused */
	__u32 over;	/* it has refused, and has not recovered; cleared by user space */
	__u32 pad[9];	/* a cache line each */
};

/* The pending action on the plugin as a whole. */
struct enforcement {
	__u32 action;
	__u32 beyond;  /* hooks passed by processes that were stopped: the plugin continues them */
	__u32 frozen;  /* for user space: a caller wants it frozen, whatever the limits say */
	__u32 release; /* for user space: a release is under way */
};

/* The limits of two moments, of which one is in force: for each kind as many as there may be. Those of a kind that end the
 * plugin come last: nothing is taken back from them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * LIMIT_KINDS * PER_KIND);
	__type(key, __u32);
	__type(value, struct limit);
} limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct limit_state);
} standings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct enforcement);
} held SEC(".maps");

#define RETRIES 8
#define FOREVER (1ULL << 62)
#define OVERRUN 4096 /* hooks that may be passed after a stop: a signal reaches a thread only at the end of its call */

/* How to charge. */
#define FORCE 1	  /* it happens whatever the limits say */
#define RESERVE 2 /* only if as much as every processor may hold remains */

/* The outcome: REFUSED, CROSSED (to be reported) or both, and the slot. */
#define REFUSED 1
#define CROSSED 2
#define MORE 4
#define SLOT_SHIFT 8

static __always_inline __u64 price(const struct limit *l, __u64 cost)
{
	__u64 whole = 0;

	if (!l->period)
		return cost;
	if (cost > l->count && l->count) {
		whole = cost / l->count;
		if (whole > FOREVER / l->period)
			return FOREVER;
		whole *= l->period;
		cost %= l->count;
	}
	return whole + ((cost * l->mult + (1ULL << (l->shift & 63)) - 1) >> (l->shift & 63));
}

/* A cost that is larger than the whole bucket of a rate passes when the bucket is empty, and is charged in full: nothing waits for
 * ever. It never passes a total. */
static __always_inline bool oversized(const struct limit *l, __u64 cost)
{
	return l->period && cost > l->count;
}

static __always_inline struct limit *limit_at(__u32 in_force, __u32 place)
{
	place += (in_force & IN_FORCE_WHICH) * LIMIT_KINDS * PER_KIND;
	return bpf_map_lookup_elem(&limits, &place);
}

static __always_inline struct limit_state *standing_of(const struct limit *l)
{
	__u32 slot = l->slot;

	return bpf_map_lookup_elem(&standings, &slot);
}

/* Programs of tracepoints have no helper for the coarse clock: hooks.bpf.c sets this to 1. */
#ifndef HAS_COARSE_CLOCK
#define HAS_COARSE_CLOCK 0
#endif

static __always_inline __u64 coarse_clock(void)
{
	return HAS_COARSE_CLOCK ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

/* The time of a charge. To read the clock takes as long as the rest of a charge. While more than half of a rate is free,
 * the coarse clock is read, which is late by less than a tick of the scheduler, and a few ticks are added: the estimate is
 * never late, so that it allows no more than the clock would, and a rate loses by it what it allows in that time, once. */
static __always_inline __u64 time_of(const struct limit *l, const struct limit_state *s, __u64 coarse, __u64 cost)
{
	if (!HAS_COARSE_CLOCK)
		return coarse;
	if (!l->period)
		return coarse; /* a total has no clock */
	if (l->ahead && !oversized(l, cost) && *(volatile __u64 *)&s->level < coarse + (l->depth >> 1))
		return coarse + (l->depth >> (l->ahead & 63));
	return bpf_ktime_get_ns();
}

/* Moves a limit's level on; false if that is beyond what it permits. */
static __always_inline bool take(const struct limit *l, struct limit_state *s, __u64 cost, __u64 now, __u32 how)
{
	__u64 clock = l->period ? now : 0, ceiling = clock + l->depth, step = price(l, cost), old, base, next;

	if (how & RESERVE)
		ceiling -= l->reserve;
	for (int i = 0; i < RETRIES; i++) {
		old = *(volatile __u64 *)&s->level;
		base = old > clock ? old : clock;
		next = base + step;
		if (next > ceiling && !(how & FORCE) && !(oversized(l, cost) && base == clock))
			return false;
		if (next > clock + FOREVER)
			next = clock + FOREVER;
		if (__sync_val_compare_and_swap(&s->level, old, next) == old)
			return true;
	}
	if (how & FORCE)
		__sync_fetch_and_add(&s->level, step);
	return how & FORCE;
}

static __always_inline bool full(const struct limit *l, const struct limit_state *s, __u64 now)
{
	__u64 clock = l->period ? now : 0, level = *(volatile __u64 *)&s->level;

	if (!l->period && s->over)
		return true; /* the rest of it was too small */
	return (level > clock ? level : clock) + l->unit > clock + l->depth;
}

/* Passes the limit's action; CROSSED if user space has to hear of it. */
static __always_inline __u32 cross(const struct limit *l, struct limit_state *s)
{
	__u32 zero = 0, news = 0, old;
	struct enforcement *c;

	if (!s->over && __sync_val_compare_and_swap(&s->over, 0, 1) == 0)
		news = CROSSED;
	if (!l->action)
		return news;
	c = bpf_map_lookup_elem(&held, &zero);
	if (!c)
		return news;
	old = *(volatile __u32 *)&c->action;
	if (old < l->action && __sync_val_compare_and_swap(&c->action, old, l->action) == old)
		news = CROSSED;
	return news;
}

/* Charges cost to one limit, or refuses. MORE comes with it if another limit of the kind follows.
 *
 * The functions that are not static are verified by themselves, once a program, instead of once for each of their calls and
 * each way there: what a loop repeats is therefore a function of its own. */
__noinline __u32 charge(__u32 in_force, __u32 place, __u64 cost, __u64 coarse, __u32 how)
{
	struct limit *l = limit_at(in_force, place);
	struct limit_state *s = l ? standing_of(l) : 0;
	__u32 more, news;
	__u64 now;

	if (!l || !s)
		return REFUSED;
	if (!l->set)
		return 0;
	more = l->more & MORE;
	now = time_of(l, s, coarse, cost);
	if (take(l, s, cost, now, how)) {
		news = l->early && full(l, s, now) ? cross(l, s) : 0;
		return more | (news ? news | l->slot << SLOT_SHIFT : 0);
	}
	if (how & RESERVE)
		return REFUSED;
	s->refused = bpf_ktime_get_ns();
	s->asked = price(l, cost);
	return REFUSED | cross(l, s) | l->slot << SLOT_SHIFT;
}

/* Takes back what one limit was charged. */
__noinline int refund(__u32 in_force, __u32 place, __u64 cost)
{
	struct limit *l = limit_at(in_force, place);
	struct limit_state *s = l ? standing_of(l) : 0;

	if (s)
		__sync_fetch_and_add(&s->level, -price(l, cost));
	return 0;
}

/* Charges cost to every limit of a kind, or to none of them. */
__noinline __u32 spend(__u32 in_force, __u32 kind, __u64 cost, __u32 how)
{
	__u64 coarse = coarse_clock();
	__u32 first = kind * PER_KIND, outcome = 0, news, i;

	for (i = 0; i < PER_KIND; i++) {
		news = charge(in_force, first + i, cost, coarse, how);
		if (news & REFUSED)
			break;
		if (news & CROSSED)
			outcome = news & ~MORE;
		if (!(news & MORE))
			return outcome;
	}
	while (i-- > 0)
		refund(in_force, first + i, cost);
	return news;
}

/* Finds a limit of a kind that blocks the plugin in while it is used up; REFUSED, as spend. */
__noinline __u32 shut_by(__u32 in_force, __u32 kind, __u64 coarse)
{
	struct limit_state *s;
	struct limit *l;
	__u64 now;

	for (int i = 0; i < PER_KIND; i++) {
		l = limit_at(in_force, kind * PER_KIND + i);
		if (!l)
			return REFUSED;
		if (!l->set)
			return 0;
		s = standing_of(l);
		if (!s)
			return REFUSED;
		/* The coarse clock is late: a limit that is not full by it is not full. */
		if (l->blocks && full(l, s, coarse) && full(l, s, now = bpf_ktime_get_ns())) {
			s->refused = now;
			s->asked = l->unit;
			return REFUSED | l->slot << SLOT_SHIFT | cross(l, s);
		}
		if (!l->more)
			return 0;
	}
	return 0;
}

/* Carries the action out on the current process, which has to be the plugin's. The signal goes to the thread that is here,
 * which takes it in before it returns from its call, and stops or ends the others with it: sent to the process, it would wait
 * for one of them while this one goes on. */
static __always_inline void apply_pending_action(__u32 in_force)
{
	__u32 zero = 0, action;
	struct enforcement *c;

	if (!may_signal || !(in_force & IN_FORCE_ACTIONS))
		return;
	c = bpf_map_lookup_elem(&held, &zero);
	if (!c)
		return;
	action = *(volatile __u32 *)&c->action;
	if (!action)
		return;
	if (action == PENDING_STOP && __sync_fetch_and_add(&c->beyond, 1) >= OVERRUN)
		action = c->action = PENDING_KILL;
	bpf_send_signal_thread(action == PENDING_KILL ? SIGKILL_NUMBER : SIGSTOP_NUMBER);
}

/* Wakes user space to look at the limits. Should there be no room for it, user space looks at its next turn. */
static __always_inline void report_crossing(__u32 outcome)
{
	struct event *e;

	if (!(outcome & CROSSED))
		return;
	e = new_event();
	if (!e)
		return;
	name_sender(e);
	e->hook = HOOK_LIMIT;
	e->limit = outcome >> SLOT_SHIFT;
	bpf_ringbuf_submit(e, 0);
}

#endif
