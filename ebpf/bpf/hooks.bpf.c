// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The wall of one plugin: attached to its cgroup before anything runs in it. Every program refuses what it does not
// understand. See doc.go for what each hook can and cannot see.
#define LATE_CGROUP
#define HAS_COARSE_CLOCK 1
#include "limits.bpf.h"
#include "task.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Keeps the type in the object, from which the Go declaration is made. */
const struct event *event_type __attribute__((unused));

struct ipv4_header {
	__u8 version_length;
	__u8 tos;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 target;
};

struct ipv6_header {
	__u32 version_class_flow;
	__u16 length;
	__u8 next;
	__u8 hops;
	struct address source;
	struct address target;
};

struct packet {
	struct address source;
	struct address target;
	__u16 source_port; /* network byte order */
	__u16 target_port;
	__u8 family;
	__u8 protocol;
	__u8 tcp_flags;
	bool payload;
};

/* Traffic of the connections that are attributed to one rule; it only grows. */
struct traffic {
	__u64 sent_bytes;
	__u64 sent_packets;
	__u64 received_bytes;
	__u64 received_packets;
};

#define RULE_BITS 10
#define RULES (1 << RULE_BITS)
#define ATTRIBUTION_BITS 16
#define ATTRIBUTIONS (1 << ATTRIBUTION_BITS)

/* The rule of a connection, written by user space in one word: the upper bits of its socket's cookie above the rule's number,
 * at the place that the lower bits name. A connection whose place another one takes counts for no rule from then on. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ATTRIBUTIONS);
	__type(key, __u32);
	__type(value, __u64);
} attributions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RULES);
	__type(key, __u32);
	__type(value, struct traffic);
} by_rule SEC(".maps");

/* Whether this kernel lets a connect hook choose its error (Linux 6.1). */
const volatile __u32 may_answer;

#define ECONNREFUSED 111

#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum verdict { REFUSE, PASS, TO_PROXY, TO_RESOLVER, NOWHERE };

/* 0.0.0.0 and :: mean the loopback to connect and sendmsg (RFC 1122 3.2.1.3 gives them no meaning as a destination; Linux
 * does). Judge, and remember, what the kernel would have dialled. */
static __always_inline void resolve_any(struct address *a)
{
	if (unset(a))
		a->w[3] = bpf_htonl(1);
	else if (mapped(a) && a->w[3] == 0)
		a->w[3] = bpf_htonl(0x7f000001);
}

static __always_inline bool is_proxy(const struct setting *s, const struct address *a, __u16 port)
{
	return (s->proxy4_port && port == s->proxy4_port && same(a, &s->proxy4)) ||
	       (s->proxy6_port && port == s->proxy6_port && same(a, &s->proxy6));
}

static __always_inline bool is_resolver(const struct setting *s, const struct address *a, __u16 port)
{
	return (s->resolver4_port && port == s->resolver4_port && same(a, &s->resolver4)) ||
	       (s->resolver6_port && port == s->resolver6_port && same(a, &s->resolver6));
}

static __always_inline bool is_sidecar_port(const struct setting *s, __u16 port)
{
	return port && (port == s->proxy4_port || port == s->proxy6_port || port == s->resolver4_port ||
			port == s->resolver6_port);
}

static __always_inline int describe(struct bpf_sock_addr *ctx, const struct address *a, __u16 port, __u8 hook, __u8 why,
				    __u32 slot)
{
	struct event *e = new_event();

	if (!e)
		return DENY;
	name_sender(e);
	e->limit = slot;
	e->address = *a;
	e->port = port;
	e->hook = hook;
	e->family = mapped(a) ? AF_INET : AF_INET6;
	e->protocol_low = (__u8)ctx->protocol;
	e->protocol_high = (__u8)(ctx->protocol >> 8);
	e->type = (__u8)ctx->type;
	e->why = why;
	bpf_ringbuf_submit(e, 0);
	return DENY;
}

static __always_inline int refuse(struct bpf_sock_addr *ctx, const struct address *a, __u16 port, __u8 hook, __u8 why)
{
	COUNT(refused, 1);
	return describe(ctx, a, port, hook, why, 0);
}

/* Refuses what a limit does not permit, if that is what came of it, and carries out its action. */
static __always_inline int obey(struct bpf_sock_addr *ctx, const struct address *a, __u16 port, __u8 hook, __u32 in_force,
				__u32 outcome)
{
	report_crossing(outcome);
	apply_pending_action(in_force);
	if (!(outcome & REFUSED))
		return ALLOW;
	if (hook == HOOK_CONNECT)
		COUNT(limited, 1);
	else
		COUNT(refused, 1);
	return describe(ctx, a, port, hook, WHY_LIMIT, outcome >> SLOT_SHIFT);
}

/* New connections are refused while a limit is used up that open ones may still add to. */
static __always_inline __u32 shut(__u32 in_force)
{
	__u32 outcome = 0;
	__u64 coarse;

	if (!(in_force & IN_FORCE_BLOCKS))
		return 0;
	coarse = coarse_clock();
	if (in_force & IN_FORCE(LIMIT_SENT))
		outcome = shut_by(in_force, LIMIT_SENT, coarse);
	if (!outcome && in_force & IN_FORCE(LIMIT_RECEIVED))
		outcome = shut_by(in_force, LIMIT_RECEIVED, coarse);
	if (!outcome && in_force & IN_FORCE(LIMIT_SYSCALLS))
		outcome = shut_by(in_force, LIMIT_SYSCALLS, coarse);
	return outcome;
}

#define SOL_SOCKET 1 /* include/uapi/asm-generic/socket.h */
#define SO_MAX_PACING_RATE 47

/* Paces what the socket sends, which spares it most of the drops at the limit itself. */
static __always_inline void pace(struct bpf_sock_addr *ctx, __u32 rate)
{
	bpf_setsockopt(ctx, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate));
}

static __always_inline enum verdict judge_tcp(const struct setting *s, const struct address *a, __u16 port)
{
	if (is_proxy(s, a, port))
		return TO_PROXY;
	if (port == bpf_htons(DNS_PORT) || is_resolver(s, a, port))
		return TO_RESOLVER;
	if (s->own_network && in_own_network(a))
		return PASS;
	return TO_PROXY;
}

static __always_inline enum verdict judge_udp(const struct setting *s, const struct address *a, __u16 port)
{
	if (port == bpf_htons(DNS_PORT) || is_resolver(s, a, port))
		return TO_RESOLVER;
	if (is_proxy(s, a, port))
		return NOWHERE;
	if (s->own_network && in_own_network(a))
		return PASS;
	return NOWHERE;
}

/* Where to send it instead; 0 when the sidecar has nothing of that family. A v4-mapped destination stays one, since the
 * socket may be bound to either family and the kernel cannot change over at this point. */
static __always_inline __u16 endpoint(const struct setting *s, bool v4, bool resolver, struct address *to)
{
	if (resolver) {
		*to = v4 ? s->resolver4 : s->resolver6;
		return v4 ? s->resolver4_port : s->resolver6_port;
	}
	*to = v4 ? s->proxy4 : s->proxy6;
	return v4 ? s->proxy4_port : s->proxy6_port;
}

static __always_inline bool listed(const struct address *a, __u16 port)
{
	struct destination d;

	__builtin_memset(&d, 0, sizeof(d));
	d.address = *a;
	d.port = port;
	return bpf_map_lookup_elem(&destinations, &d);
}

/* Whether some rule may grant a destination. When in doubt it may: the sidecar decides. */
static __always_inline bool grantable(const struct address *wanted, __u16 port)
{
	struct address a = *wanted, every;

	if (virtual(&a))
		map4(&every, bpf_htonl(FIRST_VIRTUAL));
	else
		__builtin_memset(&every, 0, sizeof(every));
	if (listed(&a, port) || listed(&every, port))
		return true;
	__builtin_memset(&every, 0, sizeof(every));
	return listed(&every, 0);
}

/* Refuses a connect as a host does on a port without a listener. */
static __always_inline int refuse_ungranted(struct bpf_sock_addr *ctx, const struct address *a, __u16 port)
{
	if (may_answer)
		bpf_set_retval(-ECONNREFUSED);
	return refuse(ctx, a, port, HOOK_CONNECT, WHY_UNGRANTED);
}

static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	struct flow *f = bpf_sk_storage_get(&flows, ctx->sk, 0, 0);

	if (f)
		f->kind = KIND_NONE;
}

static __always_inline void sign(struct bpf_sock_addr *ctx, struct flow *f)
{
	f->cookie = bpf_get_socket_cookie(ctx);
	f->cgroup = bpf_get_current_cgroup_id();
	f->pid = current_pid();
	f->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(f->comm, sizeof(f->comm));
}

/* Decides a connect. On ALLOW, *a and *port hold where it goes. */
static __always_inline int decide_connect(struct bpf_sock_addr *ctx, struct address *a, __u16 *port)
{
	const struct setting *s = current_settings();
	const struct control *d = current_control();
	struct address wanted, to;
	enum verdict verdict;
	struct flow *f;
	__u16 to_port;
	__u32 in_force, outcome;
	bool tcp = ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP;
	bool udp = ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP;

	if (!s || !d)
		return DENY;
	if (d->open != 1)
		return refuse(ctx, a, *port, HOOK_CONNECT, WHY_DOOR);
	in_force = d->in_force;
	if (bpf_get_netns_cookie(ctx) != s->netns)
		return refuse(ctx, a, *port, HOOK_CONNECT, WHY_NAMESPACE);
	if (!tcp && !udp)
		return refuse(ctx, a, *port, HOOK_CONNECT, WHY_POLICY);
	resolve_any(a);
	wanted = *a;
	verdict = tcp ? judge_tcp(s, a, *port) : judge_udp(s, a, *port);
	if (verdict == REFUSE)
		return refuse(ctx, a, *port, HOOK_CONNECT, WHY_POLICY);
	if (verdict == PASS) {
		forget(ctx);
		return ALLOW;
	}
	to_port = endpoint(s, mapped(a), verdict == TO_RESOLVER, &to);
	if (!to_port)
		return refuse(ctx, a, *port, HOOK_CONNECT, WHY_ENDPOINT);
	if (verdict == TO_PROXY && !is_proxy(s, a, *port) && !grantable(a, *port))
		return refuse_ungranted(ctx, a, *port);
	if (verdict != NOWHERE) {
		outcome = shut(in_force);
		if (outcome && obey(ctx, a, *port, HOOK_CONNECT, in_force, outcome) != ALLOW)
			return DENY;
	}
	f = bpf_sk_storage_get(&flows, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!f)
		return refuse(ctx, a, *port, HOOK_CONNECT, WHY_MEMORY);
	sign(ctx, f);
	f->original = wanted;
	f->original_port = *port;
	f->target = to;
	f->target_port = to_port;
	f->recorded = 0;
	if (verdict == TO_PROXY && in_force & IN_FORCE(LIMIT_CONNECTIONS)) {
		f->kind = KIND_NONE;
		outcome = spend(in_force, LIMIT_CONNECTIONS, 1, 0);
		if (obey(ctx, a, *port, HOOK_CONNECT, in_force, outcome) != ALLOW)
			return DENY;
	}
	if (verdict == TO_PROXY && in_force & IN_FORCE_PACE)
		pace(ctx, d->pace);
	f->kind = verdict == TO_RESOLVER ? KIND_DNS : tcp ? KIND_PROXY : KIND_PROBE;
	*a = to;
	*port = to_port;
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	map4(&a, ctx->user_ip4);
	if (decide_connect(ctx, &a, &port) != ALLOW)
		return DENY;
	ctx->user_ip4 = a.w[3];
	ctx->user_port = port;
	return ALLOW;
}

#define READ6(a, ctx)                        \
	({                                   \
		(a).w[0] = (ctx)->user_ip6[0]; \
		(a).w[1] = (ctx)->user_ip6[1]; \
		(a).w[2] = (ctx)->user_ip6[2]; \
		(a).w[3] = (ctx)->user_ip6[3]; \
	})

#define WRITE6(ctx, a)                       \
	({                                   \
		(ctx)->user_ip6[0] = (a).w[0]; \
		(ctx)->user_ip6[1] = (a).w[1]; \
		(ctx)->user_ip6[2] = (a).w[2]; \
		(ctx)->user_ip6[3] = (a).w[3]; \
	})

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	READ6(a, ctx);
	if (decide_connect(ctx, &a, &port) != ALLOW)
		return DENY;
	WRITE6(ctx, a);
	ctx->user_port = port;
	return ALLOW;
}

/* Decides a datagram that names its destination. One sent on a connected socket does not come here: egress sees it. */
static __always_inline int decide_sendmsg(struct bpf_sock_addr *ctx, struct address *a, __u16 *port)
{
	const struct setting *s = current_settings();
	const struct control *d = current_control();
	struct address wanted, to;
	enum verdict verdict;
	struct flow *f;
	__u16 to_port;
	__u32 outcome;

	if (!s || !d)
		return DENY;
	if (d->open != 1)
		return refuse(ctx, a, *port, HOOK_SENDMSG, WHY_DOOR);
	if (bpf_get_netns_cookie(ctx) != s->netns)
		return refuse(ctx, a, *port, HOOK_SENDMSG, WHY_NAMESPACE);
	if (ctx->protocol != IPPROTO_UDP)
		return refuse(ctx, a, *port, HOOK_SENDMSG, WHY_POLICY);
	/* An IPv6 socket that is connected to a mapped address comes here too, with the destination that connect gave it. */
	f = bpf_sk_storage_get(&flows, ctx->sk, 0, 0);
	if (f && f->kind != KIND_NONE && *port == f->target_port && same(a, &f->target)) {
		if (f->kind != KIND_DNS)
			return refuse(ctx, &f->original, f->original_port, HOOK_SENDMSG, WHY_POLICY);
		f->asked_port = 0;
		return ALLOW;
	}
	resolve_any(a);
	wanted = *a;
	verdict = judge_udp(s, a, *port);
	if (verdict == PASS)
		return ALLOW;
	if (verdict != TO_RESOLVER)
		return refuse(ctx, a, *port, HOOK_SENDMSG, WHY_POLICY);
	to_port = endpoint(s, mapped(a), true, &to);
	if (!to_port)
		return refuse(ctx, a, *port, HOOK_SENDMSG, WHY_ENDPOINT);
	outcome = shut(d->in_force);
	if (outcome && obey(ctx, a, *port, HOOK_SENDMSG, d->in_force, outcome) != ALLOW)
		return DENY;
	f = bpf_sk_storage_get(&flows, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!f)
		return refuse(ctx, a, *port, HOOK_SENDMSG, WHY_MEMORY);
	f->asked = wanted;
	f->asked_port = *port;
	*a = to;
	*port = to_port;
	return ALLOW;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	map4(&a, ctx->user_ip4);
	if (decide_sendmsg(ctx, &a, &port) != ALLOW)
		return DENY;
	ctx->user_ip4 = a.w[3];
	ctx->user_port = port;
	return ALLOW;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	READ6(a, ctx);
	if (decide_sendmsg(ctx, &a, &port) != ALLOW)
		return DENY;
	WRITE6(ctx, a);
	ctx->user_port = port;
	return ALLOW;
}

/* Gives the answer of the resolver the address of the server that was asked: stub resolvers drop it otherwise. */
static __always_inline bool restore_sender(struct bpf_sock_addr *ctx, struct address *a, __u16 *port)
{
	const struct setting *s = current_settings();
	struct flow *f;

	if (!s || !is_resolver(s, a, *port))
		return false;
	f = bpf_sk_storage_get(&flows, ctx->sk, 0, 0);
	if (!f)
		return false;
	if (f->asked_port) {
		*a = f->asked;
		*port = f->asked_port;
		return true;
	}
	if (f->kind == KIND_DNS) {
		*a = f->original;
		*port = f->original_port;
		return true;
	}
	return false;
}

/* Gives a connected socket the peer that it asked for. */
static __always_inline bool restore_peer(struct bpf_sock_addr *ctx, struct address *a, __u16 *port)
{
	struct flow *f = bpf_sk_storage_get(&flows, ctx->sk, 0, 0);

	if (!f || f->kind == KIND_NONE || *port != f->target_port || !same(a, &f->target))
		return false;
	*a = f->original;
	*port = f->original_port;
	return true;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	map4(&a, ctx->user_ip4);
	if (restore_sender(ctx, &a, &port) && mapped(&a)) {
		ctx->user_ip4 = a.w[3];
		ctx->user_port = port;
	}
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	READ6(a, ctx);
	if (restore_sender(ctx, &a, &port)) {
		WRITE6(ctx, a);
		ctx->user_port = port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	map4(&a, ctx->user_ip4);
	if (restore_peer(ctx, &a, &port) && mapped(&a)) {
		ctx->user_ip4 = a.w[3];
		ctx->user_port = port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct address a;
	__u16 port = (__u16)ctx->user_port;

	READ6(a, ctx);
	if (restore_peer(ctx, &a, &port)) {
		WRITE6(ctx, a);
		ctx->user_port = port;
	}
	return ALLOW;
}

/* Only TCP and UDP over IP: raw sockets, ICMP, UDP-Lite, SCTP and MPTCP have no connect or sendmsg hook that could judge
 * them, or carry data past it. */
SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	struct event *e;

	if (ctx->family == AF_INET || ctx->family == AF_INET6) {
		if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP)
			return ALLOW;
		if (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP)
			return ALLOW;
	}
	COUNT(refused, 1);
	e = new_event();
	if (!e)
		return DENY;
	name_sender(e);
	e->hook = HOOK_SOCKET;
	e->family = (__u8)ctx->family;
	e->type = (__u8)ctx->type;
	e->protocol_low = (__u8)ctx->protocol;
	e->protocol_high = (__u8)(ctx->protocol >> 8);
	e->why = WHY_POLICY;
	bpf_ringbuf_submit(e, 0);
	return DENY;
}

/* A port of the sidecar is never the plugin's, not even when the sidecar is gone: its peers would take the plugin for it.
 * In a namespace shared with others the plugin serves only what it was given; port 0 of UDP is how musl's resolver binds. */
static __always_inline int decide_bind(struct bpf_sock_addr *ctx, struct address *a)
{
	const struct setting *s = current_settings();
	__u16 port = (__u16)ctx->user_port;

	if (!s)
		return DENY;
	if (is_sidecar_port(s, port))
		return refuse(ctx, a, port, HOOK_BIND, WHY_POLICY);
	if (s->own_network)
		return ALLOW;
	if (port == 0 && ctx->type == SOCK_DGRAM)
		return ALLOW;
	if (ctx->type == SOCK_STREAM && bpf_map_lookup_elem(&served, &port))
		return ALLOW;
	return refuse(ctx, a, port, HOOK_BIND, WHY_POLICY);
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct address a;

	map4(&a, ctx->user_ip4);
	return decide_bind(ctx, &a);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct address a;

	READ6(a, ctx);
	return decide_bind(ctx, &a);
}

static __always_inline void key_of(const struct setting *s, const struct flow *f, struct peer_key *k)
{
	__builtin_memset(k, 0, sizeof(*k));
	k->netns = s->netns;
	k->source = f->source;
	k->target = f->target;
	k->source_port = f->source_port;
	k->target_port = f->target_port;
}

/* Counts a connection and writes down who opens it, before the SYN leaves: the source port is known by then. A connect that
 * failed before, for example for want of a port, does not count. */
static __always_inline void record(struct bpf_sock_ops *ctx, struct flow *f)
{
	const struct setting *s = current_settings();
	struct peer_key k;
	struct peer p;

	if (!s)
		return;
	if (ctx->family == AF_INET) {
		map4(&f->source, ctx->local_ip4);
	} else {
		f->source.w[0] = ctx->local_ip6[0];
		f->source.w[1] = ctx->local_ip6[1];
		f->source.w[2] = ctx->local_ip6[2];
		f->source.w[3] = ctx->local_ip6[3];
	}
	f->source_port = (__u16)ctx->local_port;
	COUNT(connections, 1);
	key_of(s, f, &k);
	__builtin_memset(&p, 0, sizeof(p));
	p.cookie = f->cookie;
	p.since = bpf_ktime_get_boot_ns();
	p.cgroup = f->cgroup;
	p.original = f->original;
	p.original_port = f->original_port;
	p.pid = f->pid;
	p.uid = f->uid;
	__builtin_memcpy(p.comm, f->comm, sizeof(p.comm));
	if (bpf_map_update_elem(&peers, &k, &p, BPF_NOEXIST)) {
		/* Either the entry of a connection that was never accepted and is gone, or else its ports would not be free, */
		if (bpf_map_update_elem(&peers, &k, &p, BPF_EXIST))
			return; /* or no room. No entry, no identity: the proxy refuses it. */
		COUNT(abandoned, 1);
	}
	f->recorded = 1;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Takes back the entry of a connection that can no longer be accepted, so that no process that gets the same ports later
 * inherits an identity. A connection that was closed in good order may still stand in the accept queue, and while it does
 * no process can get the same four-tuple: its entry stays. */
static __always_inline void unrecord(struct flow *f, __u32 from)
{
	const struct setting *s = current_settings();
	struct peer_key k;
	struct peer *p;

	if (!s || !f->recorded)
		return;
	if (from == BPF_TCP_FIN_WAIT2 || from == BPF_TCP_CLOSING || from == BPF_TCP_LAST_ACK || from == BPF_TCP_TIME_WAIT)
		return;
	f->recorded = 0;
	key_of(s, f, &k);
	p = bpf_map_lookup_elem(&peers, &k);
	if (p && p->cookie == f->cookie && !bpf_map_delete_elem(&peers, &k))
		COUNT(abandoned, 1);
}

SEC("sockops")
int identify(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct flow *f;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	f = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (!f)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		if (f->kind == KIND_PROXY)
			record(ctx, f);
	} else if (ctx->args[1] == BPF_TCP_CLOSE) {
		unrecord(f, ctx->args[0]);
	}
	return 1;
}

/* Reads size bytes of a packet: from memory where the kernel has them in one piece, as the headers of what it made itself are. */
static __always_inline bool read_packet(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	void *from = (void *)(long)skb->data + offset;

	if (from + size > (void *)(long)skb->data_end)
		return !bpf_skb_load_bytes(skb, offset, to, size);
	__builtin_memcpy(to, from, size);
	return true;
}

/* Reads what the meter and the backstop need. False for anything but plain TCP and UDP: IP options carry source routes,
 * extension headers and fragments hide the ports. The fields that both protocols have behind the IP header are read with it. */
static __always_inline bool parse(struct __sk_buff *skb, struct packet *p)
{
	struct {
		struct ipv4_header ip;
		__u16 ports[2];
	} v4;
	struct {
		struct ipv6_header ip;
		__u16 ports[2];
	} v6;
	__u32 offset;
	__u8 tcp[2]; /* data offset, flags */

	__builtin_memset(p, 0, sizeof(*p));
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		p->family = AF_INET;
		if (!read_packet(skb, 0, &v4, sizeof(v4)))
			return false;
		map4(&p->source, v4.ip.source);
		map4(&p->target, v4.ip.target);
		p->protocol = v4.ip.protocol;
		if (v4.ip.version_length != 0x45 || (v4.ip.fragment & bpf_htons(0x1fff)))
			return false;
		p->source_port = v4.ports[0];
		p->target_port = v4.ports[1];
		offset = sizeof(v4.ip);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		p->family = AF_INET6;
		if (!read_packet(skb, 0, &v6, sizeof(v6)))
			return false;
		p->source = v6.ip.source;
		p->target = v6.ip.target;
		p->protocol = v6.ip.next;
		p->source_port = v6.ports[0];
		p->target_port = v6.ports[1];
		offset = sizeof(v6.ip);
	} else {
		return false;
	}
	p->payload = true;
	if (p->protocol == IPPROTO_UDP)
		return true;
	if (p->protocol != IPPROTO_TCP || !read_packet(skb, offset + 12, tcp, sizeof(tcp)))
		return false;
	p->tcp_flags = tcp[1];
	p->payload = skb->len > offset + (tcp[0] >> 4) * 4;
	return true;
}

static __always_inline __u64 segments(struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

/* Reports a crossing by a packet. In softirq the current task is another one; the flow records who opened the connection. */
static __always_inline void report_packet(struct __sk_buff *skb, __u32 outcome)
{
	struct bpf_sock *sk = skb->sk;
	struct flow *f = 0;
	struct event *e;

	e = new_event();
	if (!e)
		return;
	e->time = bpf_ktime_get_boot_ns();
	e->hook = HOOK_LIMIT;
	e->limit = outcome >> SLOT_SHIFT;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		f = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (f && f->kind != KIND_NONE) {
		e->pid = f->pid;
		e->uid = f->uid;
		__builtin_memcpy(e->comm, f->comm, sizeof(e->comm));
	}
	bpf_ringbuf_submit(e, 0);
}

/* Whether the current task is the plugin's. The verifier takes a millisecond for these pointers, each time that it comes
 * here: hence a function that it takes by itself. */
__noinline int current_inside(void)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();

	return inside(group_of(task));
}

/* Charges a packet to the limits of a direction. A TCP packet without payload passes nevertheless, so that a refusal or an
 * end never hangs; one with payload is sent again by its sender when it was dropped. */
static __always_inline int charge_packet(struct __sk_buff *skb, const struct packet *p, __u32 in_force, __u32 kind)
{
	__u32 outcome = 0;

	if (in_force & IN_FORCE(kind)) {
		outcome = spend(in_force, kind, skb->len, p->payload ? 0 : FORCE);
		if (outcome & CROSSED)
			report_packet(skb, outcome);
	}
	if (may_signal && in_force & IN_FORCE_ACTIONS && current_inside())
		apply_pending_action(in_force);
	return outcome & REFUSED ? DENY : ALLOW;
}

/* Counts a packet for the rule that its connection was attributed to. */
static __always_inline void attribute(struct __sk_buff *skb, bool outward)
{
	__u64 cookie = bpf_get_socket_cookie(skb), entry;
	__u32 place = cookie & (ATTRIBUTIONS - 1), rule;
	struct traffic *t;
	__u64 *a;

	a = bpf_map_lookup_elem(&attributions, &place);
	if (!a)
		return;
	entry = *(volatile __u64 *)a;
	if (entry >> RULE_BITS != cookie >> ATTRIBUTION_BITS)
		return;
	rule = entry & (RULES - 1);
	t = bpf_map_lookup_elem(&by_rule, &rule);
	if (!rule || !t)
		return;
	__sync_fetch_and_add(outward ? &t->sent_bytes : &t->received_bytes, skb->len);
	__sync_fetch_and_add(outward ? &t->sent_packets : &t->received_packets, segments(skb));
}

static __always_inline int sent(struct __sk_buff *skb, const struct packet *p, __u32 in_force)
{
	__u32 zero = 0;
	struct tally *t;

	if (in_force & (IN_FORCE(LIMIT_SENT) | IN_FORCE_ACTIONS) && charge_packet(skb, p, in_force, LIMIT_SENT) != ALLOW)
		return DENY;
	t = bpf_map_lookup_elem(&counters, &zero);
	if (!t)
		return DENY;
	__sync_fetch_and_add(&t->sent_bytes, skb->len);
	__sync_fetch_and_add(&t->sent_packets, segments(skb));
	if (p->protocol == IPPROTO_UDP)
		__sync_fetch_and_add(&t->questions, segments(skb));
	if (in_force & IN_FORCE_RULES)
		attribute(skb, true);
	return ALLOW;
}

static __always_inline int received(struct __sk_buff *skb, const struct packet *p, __u32 in_force)
{
	__u32 zero = 0;
	struct tally *t;

	if (in_force & IN_FORCE(LIMIT_RECEIVED) && charge_packet(skb, p, in_force, LIMIT_RECEIVED) != ALLOW)
		return DENY;
	t = bpf_map_lookup_elem(&counters, &zero);
	if (!t)
		return DENY;
	__sync_fetch_and_add(&t->received_bytes, skb->len);
	__sync_fetch_and_add(&t->received_packets, segments(skb));
	if (in_force & IN_FORCE_RULES)
		attribute(skb, false);
	return ALLOW;
}

/* Refuses a packet. The flow of its socket, if there is one, records who opened it and its destination; in softirq
 * the current task is another one. */
static __always_inline int refuse_packet(struct __sk_buff *skb, const struct packet *p, __u8 hook)
{
	struct bpf_sock *sk = skb->sk;
	struct flow *f = 0;
	struct event *e;

	COUNT(refused, 1);
	e = new_event();
	if (!e)
		return DENY;
	e->time = bpf_ktime_get_boot_ns();
	e->hook = hook;
	e->family = p->family;
	e->protocol_low = p->protocol;
	e->type = p->protocol == IPPROTO_TCP ? SOCK_STREAM : p->protocol == IPPROTO_UDP ? SOCK_DGRAM : 0;
	e->why = WHY_POLICY;
	e->address = hook == HOOK_EGRESS ? p->target : p->source;
	e->port = hook == HOOK_EGRESS ? p->target_port : p->source_port;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk)
		f = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (f && f->kind != KIND_NONE) {
		e->pid = f->pid;
		e->uid = f->uid;
		__builtin_memcpy(e->comm, f->comm, sizeof(e->comm));
		if (hook == HOOK_EGRESS && p->target_port == f->target_port && same(&p->target, &f->target)) {
			e->address = f->original;
			e->port = f->original_port;
		}
	}
	bpf_ringbuf_submit(e, 0);
	return DENY;
}

/* The verdict on a packet. */
enum passage { STOPPED, METERED, FREE };

static __always_inline enum passage way_out(const struct setting *s, const struct packet *p)
{
	if (is_resolver(s, &p->target, p->target_port))
		return METERED;
	if (is_proxy(s, &p->target, p->target_port))
		return p->protocol == IPPROTO_TCP ? METERED : STOPPED;
	if (s->own_network)
		return in_own_network(&p->target) ? FREE : STOPPED;
	if (p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN && loopback(&p->target) &&
	    bpf_map_lookup_elem(&served, &p->source_port))
		return METERED;
	return STOPPED;
}

/* The backstop behind connect and sendmsg, and the meter. Sockets made before the wall stood, source routes and datagrams
 * on connected sockets end here. */
SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	const struct setting *s = current_settings();
	const struct control *d = current_control();
	enum passage passage = STOPPED;
	struct packet p;

	if (!s || !d)
		return DENY;
	if (parse(skb, &p) && skb->ifindex == LOOPBACK_IFINDEX)
		passage = way_out(s, &p);
	/* A reset carries nothing, and lets the other end of what is ended know. */
	if (d->open != 1 && (passage == STOPPED || p.payload || !(p.tcp_flags & TCP_RST))) {
		COUNT(refused, 1);
		return DENY; /* retransmissions of what the revocation already reported */
	}
	if (passage == STOPPED)
		return refuse_packet(skb, &p, HOOK_EGRESS);
	return passage == FREE ? ALLOW : sent(skb, &p, d->in_force);
}

/* Packets of others to a served port are dropped while the plugin is blocked; without payload they pass, or a close would hang. */
static __always_inline enum passage way_in(const struct setting *s, const struct packet *p, bool open)
{
	if (is_proxy(s, &p->source, p->source_port) || is_resolver(s, &p->source, p->source_port))
		return METERED;
	if (s->own_network)
		return FREE;
	if (p->protocol == IPPROTO_TCP && loopback(&p->source) && bpf_map_lookup_elem(&served, &p->target_port))
		return open || !p->payload ? METERED : STOPPED;
	return STOPPED;
}

/* listen() without bind passes no hook but this one. */
SEC("cgroup_skb/ingress")
int ingress(struct __sk_buff *skb)
{
	const struct setting *s = current_settings();
	const struct control *d = current_control();
	enum passage passage = STOPPED;
	struct packet p;
	bool plain;

	if (!s || !d)
		return DENY;
	plain = parse(skb, &p) && skb->ifindex == LOOPBACK_IFINDEX;
	if (plain)
		passage = way_in(s, &p, d->open == 1);
	if (passage != STOPPED)
		return passage == FREE ? ALLOW : received(skb, &p, d->in_force);
	if (plain && p.protocol == IPPROTO_TCP && (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return refuse_packet(skb, &p, HOOK_INGRESS);
	COUNT(refused, 1);
	return DENY;
}
