// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Looks for sockets that the plugin holds and that its walls do not govern. A socket belongs to the cgroup that made it: one
// that was handed in, inherited, taken out of another process, or brought along into the cgroup passes the hooks of where it
// came from. These programs are iterators. They cost nothing but when user space runs them.
#define LATE_CGROUP
#include "task.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define AF_NETLINK 16
#define AF_ALG 38
#define TCP_ESTABLISHED 1
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12

enum found {
	SOCKET_FOREIGN = 1, /* made outside the cgroup */
	SOCKET_EARLY = 2,   /* connected before the hooks were attached */
	SOCKET_UNSEEN = 3,  /* of a family that no hook covers */
};

/* socket_entry is one socket in the hands of one process. */
struct socket_entry {
	__u64 cookie;
	__u64 netns;
	struct address local;
	struct address remote;
	__u32 pid;
	__u32 uid;
	__u16 local_port; /* network byte order, as the other */
	__u16 remote_port;
	__u16 family;
	__u16 type;
	__u16 protocol;
	__u8 state;
	__u8 found;
	__u8 killed;
	__u8 pad[3];
	__u8 comm[16];
};

const struct socket_entry *socket_entry_type __attribute__((unused));

enum verdict { VERDICT_DESTROY = 1, VERDICT_KILL = 2, VERDICT_PROBE = 3, VERDICT_FOUND = 4 };

/* The verdict on a socket, by its cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} verdicts SEC(".maps");

struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
} __attribute__((preserve_access_index));

struct net {
	__u64 net_cookie;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct sock_cgroup_data {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u8 sk_shutdown;
	__u16 sk_type;
	__u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
} __attribute__((preserve_access_index));

struct udp_sock;

struct tcp_sock;

struct sockaddr_un {
	__u16 sun_family;
	char sun_path[PATH_SIZE];
} __attribute__((preserve_access_index));

struct unix_address {
	int len;
	struct sockaddr_un name[];
} __attribute__((preserve_access_index));

struct unix_sock {
	struct sock sk;
	struct unix_address *addr;
	struct sock *peer;
} __attribute__((preserve_access_index));

struct socket {
	struct sock *sk;
} __attribute__((preserve_access_index));

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
} __attribute__((preserve_access_index));

struct bpf_iter__unix {
	struct bpf_iter_meta *meta;
	struct unix_sock *unix_sk;
} __attribute__((preserve_access_index));

/* Since Linux 6.5. */
extern int bpf_sock_destroy(struct sock_common *sk) __weak __ksym;

/* Since Linux 6.2: an iterator's own task is not trusted with a signal. */
extern struct task_struct *bpf_task_from_pid(int pid) __weak __ksym;
extern void bpf_task_release(struct task_struct *task) __weak __ksym;

/* Sends SIGKILL to the process of a task; false when this kernel cannot. */
static __always_inline bool kill_holder(int pid)
{
	struct task_struct *task;
	bool killed;

	if (!bpf_task_from_pid || !bpf_task_release)
		return false;
	task = bpf_task_from_pid(pid);
	if (!task)
		return false;
	killed = inside(group_of(task)) && kill_process(task);
	bpf_task_release(task);
	return killed;
}

static __always_inline void addresses(struct sock *sk, struct socket_entry *s)
{
	if (s->family == AF_INET) {
		map4(&s->local, sk->__sk_common.skc_rcv_saddr);
		map4(&s->remote, sk->__sk_common.skc_daddr);
	} else {
		for (int i = 0; i < 4; i++) {
			s->local.w[i] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			s->remote.w[i] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[i];
		}
	}
	s->local_port = bpf_htons(sk->__sk_common.skc_num);
	s->remote_port = sk->__sk_common.skc_dport;
}

/* A connected socket of the plugin's own without a flow never passed the connect hook, unless it stays within what is the
 * plugin's: its own loopback, or a port that it may serve. */
static __always_inline bool early(struct sock *sk, const struct socket_entry *s)
{
	const struct setting *setting = current_settings();

	if (s->protocol != IPPROTO_TCP && s->protocol != IPPROTO_UDP)
		return false; /* the packets of what it sends end at the last wall */
	if (s->state == TCP_CLOSE || s->state == TCP_LISTEN || bpf_sk_storage_get(&flows, sk, 0, 0))
		return false;
	if (!setting)
		return true;
	if (setting->own_network)
		return s->netns != setting->netns || !in_own_network(&s->remote);
	return s->protocol != IPPROTO_TCP || !bpf_map_lookup_elem(&served, &s->local_port);
}

static __always_inline __u8 judge(struct sock *sk, struct socket_entry *s)
{
	if (s->family == AF_UNIX || s->family == AF_NETLINK || s->family == AF_ALG)
		return 0; /* they carry nothing off this host by themselves */
	if (s->family != AF_INET && s->family != AF_INET6)
		return SOCKET_UNSEEN;
	addresses(sk, s);
	if (!inside(sk->sk_cgrp_data.cgroup))
		return SOCKET_FOREIGN;
	return early(sk, s) ? SOCKET_EARLY : 0;
}

SEC("iter/task_file")
int look(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_entry s = {};
	struct socket *socket;
	struct sock *sk;
	__u32 *verdict;

	if (!task || !file || !inside(group_of(task)))
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	s.family = sk->__sk_common.skc_family;
	s.type = sk->sk_type;
	s.protocol = sk->sk_protocol;
	s.state = sk->__sk_common.skc_state;
	s.netns = sk->__sk_common.skc_net.net->net_cookie;
	s.found = judge(sk, &s);
	if (!s.found)
		return 0;
	s.cookie = bpf_get_socket_cookie(sk);
	s.pid = pid_of((struct task_struct___pid *)task);
	s.uid = readable(task)->cred->uid.val;
	bpf_core_read(s.comm, sizeof(s.comm), &task->comm);
	verdict = bpf_map_lookup_elem(&verdicts, &s.cookie);
	if (verdict && *verdict == VERDICT_KILL)
		s.killed = kill_holder(task->pid);
	bpf_seq_write(ctx->meta->seq, &s, sizeof(s));
	return 0;
}

static __always_inline bool is_to_destroy(__u64 cookie)
{
	__u32 *verdict = bpf_map_lookup_elem(&verdicts, &cookie);

	return verdict && *verdict == VERDICT_DESTROY;
}

SEC("iter/tcp")
int end_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	if (!sk || sk->skc_state == TCP_TIME_WAIT || sk->skc_state == TCP_NEW_SYN_RECV || !bpf_sock_destroy)
		return 0;
	if (is_to_destroy(bpf_get_socket_cookie(sk)))
		bpf_sock_destroy(sk);
	return 0;
}

SEC("iter/udp")
int end_udp(struct bpf_iter__udp *ctx)
{
	struct sock *sk = (struct sock *)ctx->udp_sk;

	if (sk && bpf_sock_destroy && is_to_destroy(bpf_get_socket_cookie(sk)))
		bpf_sock_destroy((struct sock_common *)sk);
	return 0;
}

/* Finds the sockets that are looked for. A socket in TIME_WAIT has no holder. */
SEC("iter/tcp")
int seek_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	__u64 cookie;
	__u32 *verdict;

	if (!sk || sk->skc_state == TCP_TIME_WAIT || sk->skc_state == TCP_NEW_SYN_RECV)
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	verdict = bpf_map_lookup_elem(&verdicts, &cookie);
	if (verdict && *verdict == VERDICT_PROBE)
		*verdict = VERDICT_FOUND;
	return 0;
}

/* Ends what others have connected to the ports that the plugin serves in a network that is not its own. */
SEC("iter/tcp")
int end_served(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	const struct setting *setting = current_settings();
	struct tcp_sock *tcp;
	__u16 port;

	if (!sk || !setting || setting->own_network || !bpf_sock_destroy)
		return 0;
	if (sk->skc_state == TCP_TIME_WAIT || sk->skc_state == TCP_NEW_SYN_RECV || sk->skc_state == TCP_LISTEN)
		return 0;
	port = bpf_htons(sk->skc_num);
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp && inside(((struct sock *)tcp)->sk_cgrp_data.cgroup) && bpf_map_lookup_elem(&served, &port))
		bpf_sock_destroy(sk);
	return 0;
}

#define UNIX_PATH_OFFSET 2 /* offsetof(struct sockaddr_un, sun_path) */
#define BOTH_WAYS 3	   /* SHUTDOWN_MASK of include/net/sock.h */

/* connected is a Unix socket of the plugin's and the name that the other end was bound to. */
struct connected {
	__u64 cookie;
	__u32 length;
	__u8 name[PATH_SIZE];
};

const struct connected *connected_type __attribute__((unused));

/* Lists the Unix sockets of the plugin's that are connected to a name, whoever holds them and wherever they are: a descriptor
 * that lies in a message is in no table. */
SEC("iter/unix")
int list_unix(struct bpf_iter__unix *ctx)
{
	struct unix_sock *sk = ctx->unix_sk;
	struct unix_address *address;
	struct connected c = {};
	struct sock *peer;
	int length;

	if (!sk || sk->sk.sk_shutdown == BOTH_WAYS || !inside(sk->sk.sk_cgrp_data.cgroup))
		return 0;
	peer = sk->peer;
	if (!peer)
		return 0;
	address = BPF_CORE_READ((struct unix_sock *)peer, addr);
	if (!address)
		return 0;
	length = BPF_CORE_READ(address, len) - UNIX_PATH_OFFSET;
	if (length <= 0 || length > PATH_SIZE)
		return 0;
	c.length = length;
	c.cookie = bpf_get_socket_cookie(&sk->sk);
	if (bpf_probe_read_kernel(c.name, c.length, (char *)address + bpf_core_field_offset(struct unix_address, name) + UNIX_PATH_OFFSET))
		return 0;
	bpf_seq_write(ctx->meta->seq, &c, sizeof(c));
	return 0;
}
