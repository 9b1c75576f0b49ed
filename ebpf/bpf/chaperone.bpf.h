// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Definitions that the programs of this folder share: the shapes that user space reads, the maps, and the few kernel structures they
// follow. The kernel structures are declared by hand, with only the fields that are read: the loader relocates each access
// against the running kernel's BTF (CO-RE), so that no generated vmlinux.h has to be carried.
#ifndef CHAPERONE_BPF_H
#define CHAPERONE_BPF_H

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "pid.bpf.h"

#define ALLOW 1
#define DENY 0

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define LOOPBACK_IFINDEX 1 /* include/net/net_namespace.h: the loopback device is the first of every namespace */
#define DNS_PORT 53

/* An address is always held as IPv6, in network byte order; IPv4 in its mapped form ::ffff:a.b.c.d. */
struct address {
	__u32 w[4];
};

/* setting is written once by user space, before the programs are attached. */
struct setting {
	__u64 netns;		   /* cookie of the network namespace that holds the sidecar's listeners */
	struct address proxy4;	   /* mapped; all zero: no proxy */
	struct address proxy6;
	struct address resolver4;
	struct address resolver6;
	__u16 proxy4_port;	   /* network byte order, as all four */
	__u16 proxy6_port;
	__u16 resolver4_port;
	__u16 resolver6_port;
	__u32 own_network;	   /* 1: the namespace is the plugin's own, its loopback is free */
};

/* tally only ever grows, in value and in shape: fields are added at its end, so that one of an older shape is a prefix. */
struct tally {
	__u64 connections;
	__u64 refused;
	__u64 lost;
	__u64 sent_bytes;
	__u64 sent_packets;
	__u64 received_bytes;
	__u64 received_packets;
	__u64 processes;  /* started, threads not counted */
	__u64 escaped;	  /* processes that left the cgroup */
	__u64 abandoned;  /* connections closed before the sidecar took them */
	__u64 identified; /* connections that the sidecar took; counted by user space */
	__u64 ended;	  /* foreign sockets; counted by user space */
	__u64 limited;	  /* connects that a limit refused */
	__u64 questions;  /* UDP datagrams to the resolver */
};

enum hook {
	HOOK_CONNECT = 1,
	HOOK_SENDMSG = 2,
	HOOK_SOCKET = 3,
	HOOK_BIND = 4,
	HOOK_EGRESS = 5,
	HOOK_INGRESS = 6,
	HOOK_CONNECT_UNIX = 7,
	HOOK_SENDMSG_UNIX = 8,
	HOOK_ESCAPE = 9, /* no socket: a process left the cgroup */
	HOOK_LIMIT = 11, /* no refusal: a limit was crossed */
};

enum why {
	WHY_POLICY = 1,	   /* the attempt is never allowed */
	WHY_DOOR = 2,	   /* the plugin is blocked: see door */
	WHY_NAMESPACE = 3, /* from a network namespace that is not the one confined */
	WHY_ENDPOINT = 4,  /* the sidecar has no listener of that address family */
	WHY_MEMORY = 5,	   /* the table of connections is full */
	WHY_LIMIT = 6,	   /* a limit is used up */
	WHY_ALLOWED = 7,   /* not refused: a Unix socket that a grant allows */
	WHY_UNGRANTED = 8, /* no rule can grant the destination */
};

#define PATH_SIZE 108

/* event is one refusal, or a limit's crossing. */
struct event {
	__u64 time; /* CLOCK_BOOTTIME, ns */
	struct address address;
	__u32 pid;
	__u32 uid;
	__u16 port; /* network byte order */
	__u8 hook;
	__u8 family;
	__u8 protocol_low; /* protocols beyond 255 exist (MPTCP is 262) */
	__u8 protocol_high;
	__u8 type;
	__u8 why;
	__u32 path_length;
	__u32 limit; /* the slot of the limit that refused */
	__u8 comm[16];
	__u8 path[PATH_SIZE];
	__u32 pad2;
};

enum kind {
	KIND_NONE = 0,
	KIND_PROXY = 1, /* allowed to the proxy */
	KIND_DNS = 2,	/* allowed to the resolver */
	KIND_PROBE = 3, /* a UDP connect that went nowhere */
};

/* flow is what a socket's connect and sendmsg left behind, kept in the socket itself: nothing the plugin does to other
 * sockets can push it out, and it goes when the socket goes. */
struct flow {
	__u64 cookie;
	__u64 cgroup;
	struct address original; /* where the plugin wanted to go by connect */
	struct address target;	 /* where it was sent instead */
	struct address source;	 /* its own end, once known */
	struct address asked;	 /* the DNS server that it last asked by sendmsg */
	__u16 original_port;	 /* network byte order, as the other two */
	__u16 target_port;
	__u16 asked_port;
	__u16 source_port;	 /* host byte order, as the kernel gives it */
	__u32 pid;
	__u32 uid;
	__u8 kind;
	__u8 recorded; /* an entry of peers was written for it */
	__u8 pad[6];
	__u8 comm[16];
};

/* A connection as the accepting side sees it. Source and destination both: one source port may serve two destinations. */
struct peer_key {
	__u64 netns;
	struct address source;
	struct address target;
	__u16 source_port; /* host byte order */
	__u16 target_port; /* network byte order */
	__u32 pad;
};

/* The process that opened that connection, and its destination. */
struct peer {
	__u64 cookie;
	__u64 since; /* CLOCK_BOOTTIME, ns */
	__u64 cgroup;
	struct address original;
	__u16 original_port; /* network byte order */
	__u16 pad;
	__u32 pid;
	__u32 uid;
	__u32 pad2;
	__u8 comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct setting);
} settings SEC(".maps");

/* door holds the controls that user space writes while the programs run. The zero value blocks the plugin. The write is a
 * copy without a lock: a program may see some words of before and some of after, each of them whole. Those that have to
 * agree are therefore one word, in_force, and the entries that it selects are written before it. */
struct control {
	__u32 open;	/* 1: the plugin may connect; 0: it is blocked */
	__u32 in_force; /* kinds of the limits in force: see IN_FORCE */
	__u32 counter;	/* the system call counter that counts: two may be attached while one replaces the other */
	__u32 pace;	/* bytes a second, for each connection */
};

/* Bits of in_force, which select what a program looks up. While no limit is in force it is zero, and costs one read. */
#define IN_FORCE_WHICH 1	     /* the entry of limits in use */
#define IN_FORCE(kind) (1u << (kind)) /* there are limits of this kind */
#define IN_FORCE_ACTIONS (1u << 8)  /* some stop or end the plugin */
#define IN_FORCE_BLOCKS (1u << 9)      /* some refuse connects while they are used up */
#define IN_FORCE_PACE (1u << 10)      /* connections are paced */
#define IN_FORCE_RULES (1u << 11)     /* connections are attributed to rules */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} door SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} counters SEC(".maps");

/* Counts that user space adds: its own, and those of counters that had another shape. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallied SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Ports the plugin may serve while it shares a network namespace with others, or that are served from the host while it has
 * one of its own; network byte order. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u8);
} served SEC(".maps");

/* A destination that some rule may grant: see the map below. */
struct destination {
	struct address address;
	__u16 port; /* network byte order */
	__u16 pad;
};

/* The destinations that a connect is not refused for: an address with a port; the address ::, for every address that stands
 * for no name, with a port; 240.0.0.0, for every address that stands for a name, with a port; and :: with port 0 for every
 * destination. The sidecar decides about each connection in any case: this only spares those that it would refuse whatever
 * they carry. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct destination);
	__type(value, __u8);
} destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flow);
} flows SEC(".maps");

/* A plain hash, never an LRU: a full table refuses the newcomer instead of forgetting someone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct peer_key);
	__type(value, struct peer);
} peers SEC(".maps");

static __always_inline struct setting *current_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline const struct control *current_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&door, &zero);
}

static __always_inline bool unblocked(void)
{
	const struct control *d = current_control();

	return d && d->open == 1;
}

/* The value is per CPU, and still added to atomically: these programs may be preempted, or interrupted by one another. */
#define COUNT(field, n)                                                      \
	({                                                                   \
		__u32 zero_ = 0;                                             \
		struct tally *c_ = bpf_map_lookup_elem(&counters, &zero_); \
		if (c_)                                                      \
			__sync_fetch_and_add(&c_->field, (n));               \
	})

static __always_inline void name_sender(struct event *e)
{
	e->time = bpf_ktime_get_boot_ns();
	e->pid = current_pid();
	e->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(e->comm, sizeof(e->comm));
}

static __always_inline struct event *new_event(void)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		COUNT(lost, 1);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	return e;
}

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool unset(const struct address *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline bool mapped(const struct address *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline void map4(struct address *a, __u32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

static __always_inline bool loopback(const struct address *a)
{
	if (mapped(a))
		return (bpf_ntohl(a->w[3]) >> 24) == 127;
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == 0 && a->w[3] == bpf_htonl(1);
}

/* The addresses that the loopback of the plugin's own network has beside those: address.go names the same two. */
static __always_inline bool own_address(const struct address *a)
{
	if (mapped(a))
		return a->w[3] == bpf_htonl(0xc0000001);
	return a->w[0] == bpf_htonl(0xfd636861) && a->w[1] == bpf_htonl(0x70650000) && a->w[2] == 0 && a->w[3] == bpf_htonl(1);
}

/* Whether an address of the plugin's own network stays in it. */
static __always_inline bool in_own_network(const struct address *a)
{
	return loopback(a) || own_address(a);
}

#define FIRST_VIRTUAL 0xf0000000 /* 240.0.0.0/4: package proxy gives these out for names */

/* Whether an address stands for a name. One of 2001:20::/96 stands for the same name as the IPv4 address in it, and becomes
 * that one. */
static __always_inline bool virtual(struct address *a)
{
	if (a->w[0] == bpf_htonl(0x20010020) && a->w[1] == 0 && a->w[2] == 0 && bpf_ntohl(a->w[3]) >= FIRST_VIRTUAL)
		map4(a, a->w[3]);
	return mapped(a) && bpf_ntohl(a->w[3]) >= FIRST_VIRTUAL;
}

#endif
