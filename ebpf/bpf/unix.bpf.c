// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// AF_UNIX, on kernels that have the hooks (6.7). Older ones get a seccomp rule instead: no such socket at all.
#include "chaperone.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

struct sockaddr {
	__u16 sa_family;
} __attribute__((preserve_access_index));

struct bpf_sock_addr_kern {
	struct sockaddr *uaddr;
	__u32 uaddrlen;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;

#define PATH_OFFSET 2 /* offsetof(struct sockaddr_un, sun_path) */

/* A name as the kernel will take it: a path up to its end, an abstract name with every one of its bytes. */
struct socket_name {
	__u32 length;
	__u8 bytes[PATH_SIZE + 4]; /* zero behind the name */
};

/* The names that a grant allows, each until a time (CLOCK_BOOTTIME, ns). User space looks again and again whether a path can
 * still be trusted, and puts the time off if so: a sidecar that is gone or stopped lets nothing through for long. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct socket_name);
	__type(value, __u64);
} sockets SEC(".maps");

/* The kernel ends a path at its first zero byte or at the length that was given (net/unix/af_unix.c, unix_mkname_bsd). It
 * holds a sockaddr_storage of 128 bytes: reading one byte behind the longest path stays inside it. */
static __always_inline void read_name(const struct bpf_sock_addr_kern *k, struct socket_name *name)
{
	const char *given = (const char *)k->uaddr + PATH_OFFSET;
	__u32 length = k->uaddrlen;
	long n;

	__builtin_memset(name, 0, sizeof(*name));
	if (length <= PATH_OFFSET || length > PATH_OFFSET + PATH_SIZE)
		return;
	length -= PATH_OFFSET;
	if (bpf_probe_read_kernel(name->bytes, 1, given))
		return;
	if (name->bytes[0] == 0) {
		if (!bpf_probe_read_kernel(name->bytes, length, given))
			name->length = length;
		return;
	}
	n = bpf_probe_read_kernel_str(name->bytes, length + 1, given);
	if (n > 0)
		name->length = n - 1;
}

/* A path leads out of any namespace (docker.sock, the system bus), and says nothing about who listens there: links, relative
 * names and renames all lie between the name seen here and the socket reached. So a path is let through only if user space
 * found that nobody can turn it elsewhere. Abstract names belong to the network namespace: in the plugin's own they are its
 * own, elsewhere they are everyone's. */
static __always_inline int decide_unix(struct bpf_sock_addr *ctx, __u8 hook)
{
	const struct setting *s = current_settings();
	struct bpf_sock_addr_kern *k = bpf_cast_to_kern_ctx(ctx);
	bool open = door_open(), confined, abstract, allowed;
	struct socket_name name;
	struct event *e;
	__u64 *until;

	if (!s)
		return DENY;
	confined = bpf_get_netns_cookie(ctx) == s->netns;
	read_name(k, &name);
	abstract = name.length && name.bytes[0] == 0;
	if (open && abstract && confined && s->own_network)
		return ALLOW;
	until = bpf_map_lookup_elem(&sockets, &name);
	allowed = open && until && bpf_ktime_get_boot_ns() < *until && (!abstract || confined);
	e = new_event();
	if (!allowed || !e)
		COUNT(refused, 1);
	if (!e)
		return DENY; /* what cannot be recorded is not let through */
	name_sender(e);
	e->hook = hook;
	e->family = AF_UNIX;
	e->type = (__u8)ctx->type;
	e->why = allowed ? WHY_ALLOWED : open ? WHY_POLICY : WHY_DOOR;
	e->path_length = name.length;
	__builtin_memcpy(e->path, name.bytes, PATH_SIZE);
	bpf_ringbuf_submit(e, 0);
	return allowed ? ALLOW : DENY;
}

SEC("cgroup/connect_unix")
int connect_unix(struct bpf_sock_addr *ctx)
{
	return decide_unix(ctx, HOOK_CONNECT_UNIX);
}

SEC("cgroup/sendmsg_unix")
int sendmsg_unix(struct bpf_sock_addr *ctx)
{
	return decide_unix(ctx, HOOK_SENDMSG_UNIX);
}
