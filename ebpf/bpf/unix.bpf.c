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

/* A path leads out of any namespace (docker.sock, the system bus), and says nothing about who listens there: links, relative
 * names and renames all lie between the name seen here and the socket reached. So no path is let through. Abstract names
 * belong to the network namespace: in the plugin's own they are its own, elsewhere they are everyone's. */
static __always_inline int decide_unix(struct bpf_sock_addr *ctx, __u8 hook)
{
	const struct setting *s = current_settings();
	struct bpf_sock_addr_kern *k = bpf_cast_to_kern_ctx(ctx);
	__u32 length = k->uaddrlen;
	char first = 'x';
	struct event *e;
	bool open = door_open();

	if (!s)
		return DENY;
	if (length > PATH_OFFSET)
		bpf_probe_read_kernel(&first, 1, (char *)k->uaddr + PATH_OFFSET);
	if (open && s->own_network && length > PATH_OFFSET && first == 0 && bpf_get_netns_cookie(ctx) == s->netns)
		return ALLOW;
	COUNT(refused, 1);
	e = new_event();
	if (!e)
		return DENY;
	name_sender(e);
	e->hook = hook;
	e->family = AF_UNIX;
	e->type = (__u8)ctx->type;
	e->why = open ? WHY_POLICY : WHY_DOOR;
	if (length > PATH_OFFSET && length <= PATH_OFFSET + PATH_SIZE) {
		e->path_length = length - PATH_OFFSET;
		/* The kernel holds a sockaddr_storage of 128 bytes: reading all 108 stays inside it. */
		bpf_probe_read_kernel(e->path, PATH_SIZE, (char *)k->uaddr + PATH_OFFSET);
	}
	bpf_ringbuf_submit(e, 0);
	return DENY;
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
