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

struct qstr {
	union {
		struct {
			__u32 hash;
			__u32 len;
		};
		__u64 hash_len;
	};
	const unsigned char *name;
} __attribute__((preserve_access_index));

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
} __attribute__((preserve_access_index));

struct vfsmount {
	struct dentry *mnt_root;
} __attribute__((preserve_access_index));

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
} __attribute__((preserve_access_index));

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __attribute__((preserve_access_index));

struct fs_struct {
	struct path root;
	struct path pwd;
} __attribute__((preserve_access_index));

struct task_struct {
	struct fs_struct *fs;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym;

/* As old as the hooks (6.7). The size counts the bytes of the path without a zero behind it. */
extern int bpf_sock_addr_set_sun_path(struct bpf_sock_addr_kern *address, const __u8 *path, __u32 path__sz) __weak __ksym;

/* Zero: the kernel does not accept the program with the rewriting of paths in it. */
const volatile __u32 rewrites = 1;

#define PATH_OFFSET 2 /* offsetof(struct sockaddr_un, sun_path) */

/* A name as the kernel will take it: a path up to its end, an abstract name with every one of its bytes. */
struct socket_name {
	__u32 length;
	__u8 bytes[PATH_SIZE + 4]; /* zero behind the name */
};

/* The names that a grant allows, each until a time (CLOCK_BOOTTIME, ns). User space looks again and again whether a path can
 * still be trusted, and puts the time off if so: the names expire soon after a sidecar is gone or stopped. */
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

/* The plugin's private directories: no other process of the host sees them. Each is mounted a second time, its twin, without
 * the mounts below it and without following symbolic links (nosymfollow). A path below the twin can therefore only name a
 * socket that was bound in the private directory. The key is the directory with a slash behind it, so that it matches whole
 * components only. User space writes the entries before the plugin starts. */
#define LONG_PATH 256 /* the most that an LPM trie can hold */
#define TWIN_SIZE 32

struct tree_key {
	__u32 bits;
	__u8 path[LONG_PATH];
};

struct tree {
	__u32 visible; /* bytes of the directory, without the slash behind it */
	__u32 length;  /* bytes of the twin's path; 0: a directory of the host's that stays visible inside a private one */
	__u8 twin[TWIN_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct tree_key);
	__type(value, struct tree);
} trees SEC(".maps");

/* Space for one rewriting, larger than the stack. It belongs to the socket, which the kernel holds locked while the program
 * runs, so that no other program writes to it at the same time. */
#define HALF LONG_PATH

struct rewriting {
	struct tree_key key; /* the path with each . and each doubled slash removed */
	__u32 length;	     /* of it */
	__u32 part;	     /* bytes of its last component so far */
	__u32 dots;	     /* dots in that component */
	__u32 refused;
	__u32 start;	     /* where the path begins in text */
	__u32 end;
	__u8 text[2 * HALF]; /* the working directory, right before HALF, and the name behind it */
	__u8 result[2 * PATH_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct rewriting);
} rewritings SEC(".maps");

#define MAX_COMPONENTS 64 /* of a working directory, mounts included */

struct climb {
	struct rewriting *r;
	struct dentry *dentry;
	struct vfsmount *mnt;
	struct dentry *root_dentry;
	struct vfsmount *root_mnt;
	bool arrived;
};

/* Puts the last component of a path before what was found of it so far, and goes up one step. Names may change at the same
 * time: the result is no more than a text, which is checked as one that the plugin gave. */
static long climb_once(__u32 i, struct climb *c)
{
	struct dentry *parent, *dentry = c->dentry;
	struct vfsmount *mnt = c->mnt;
	struct rewriting *r = c->r;
	struct mount *mount;
	__u32 length, start;

	if (dentry == c->root_dentry && mnt == c->root_mnt) {
		c->arrived = true;
		return 1;
	}
	if (dentry == BPF_CORE_READ(mnt, mnt_root)) {
		mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
		if (BPF_CORE_READ(mount, mnt_parent) == mount)
			return 1;
		c->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		c->mnt = (void *)BPF_CORE_READ(mount, mnt_parent) + bpf_core_field_offset(struct mount, mnt);
		return 0;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	length = BPF_CORE_READ(dentry, d_name.len);
	start = r->start;
	if (parent == dentry || length >= HALF || start > HALF || start < length + 1)
		return 1;
	start = (start - length) & (HALF - 1);
	if (bpf_probe_read_kernel(&r->text[start], length & (HALF - 1), BPF_CORE_READ(dentry, d_name.name)))
		return 1;
	start = (start - 1) & (HALF - 1);
	r->text[start] = '/';
	r->start = start;
	c->dentry = parent;
	return 0;
}

/* Puts the working directory before a relative name. False: it has none below the root. */
static __always_inline bool add_directory(struct rewriting *r)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct climb c = {.r = r};

	c.dentry = BPF_CORE_READ(fs, pwd.dentry);
	c.mnt = BPF_CORE_READ(fs, pwd.mnt);
	c.root_dentry = BPF_CORE_READ(fs, root.dentry);
	c.root_mnt = BPF_CORE_READ(fs, root.mnt);
	bpf_loop(MAX_COMPONENTS, climb_once, &c, 0);
	return c.arrived;
}

/* Moves one byte of the text to the path. A component .. is refused: where it leads depends on links and renames. */
static long tidy_once(__u32 i, struct rewriting **of)
{
	struct rewriting *r = *of;
	__u32 at = r->start + i;
	__u8 byte;

	if (at >= r->end)
		return 1;
	byte = r->text[at & (2 * HALF - 1)];
	if (byte == '/') {
		if (r->dots == r->part && r->dots == 2) {
			r->refused = 1;
			return 1;
		}
		if (r->dots == r->part && r->dots == 1) {
			r->part = 0;
			r->dots = 0;
			r->length--;
			r->key.path[r->length & (LONG_PATH - 1)] = 0;
			return 0;
		}
		if (r->part == 0 && r->length)
			return 0;
		r->part = 0;
		r->dots = 0;
	} else {
		r->part++;
		r->dots += byte == '.';
	}
	if (r->length >= LONG_PATH - 1) {
		r->refused = 1;
		return 1;
	}
	r->key.path[r->length & (LONG_PATH - 1)] = byte;
	r->length++;
	return 0;
}

/* Writes the path below the twin over the name, if the name lies in a private directory. */
static __always_inline bool turn_to_twin(struct bpf_sock_addr_kern *k, struct rewriting *r, const struct socket_name *name)
{
	bool relative = name->bytes[0] != '/';
	__u32 length = name->length, kept, twin;
	struct tree *tree;

	if (length == 0 || length > PATH_SIZE)
		return false;
	r->start = HALF;
	r->end = HALF + relative + length;
	r->text[HALF] = '/';
	__builtin_memcpy(&r->text[HALF + relative], name->bytes, PATH_SIZE);
	if (relative && !add_directory(r))
		return false;
	bpf_loop(2 * HALF, tidy_once, &r, 0);
	if (r->refused || (r->part == 2 && r->dots == 2))
		return false;
	r->key.bits = 8 * LONG_PATH;
	tree = bpf_map_lookup_elem(&trees, &r->key);
	if (!tree || !tree->length)
		return false;
	twin = tree->length;
	kept = r->length - tree->visible;
	if (twin > TWIN_SIZE || kept > PATH_SIZE || twin + kept >= PATH_SIZE)
		return false;
	if (bpf_probe_read_kernel(r->result, TWIN_SIZE, tree->twin) ||
	    bpf_probe_read_kernel(&r->result[twin & (2 * TWIN_SIZE - 1)], kept & 127, &r->key.path[tree->visible & (LONG_PATH - 1)]))
		return false;
	return bpf_sock_addr_set_sun_path(k, r->result, twin + kept) == 0;
}

/* The plugin's own sockets are its own affair, also while the plugin is blocked, as its loopback is: none of them is egress. */
static __always_inline bool own_socket(struct bpf_sock_addr *ctx, struct bpf_sock_addr_kern *k, const struct socket_name *name)
{
	struct rewriting *r;
	bool own;

	if (!rewrites || !bpf_sock_addr_set_sun_path || name->length == 0 || name->bytes[0] == 0 || !ctx->sk)
		return false;
	r = bpf_sk_storage_get(&rewritings, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!r)
		return false;
	own = turn_to_twin(k, r, name);
	bpf_sk_storage_delete(&rewritings, ctx->sk);
	return own;
}

/* A path reaches out of any network namespace (docker.sock, the system bus), and does not show who listens there: links, relative
 * names and renames all lie between the name seen here and the socket reached. So a path is allowed only if user space
 * found that no other user can redirect it, or if it lies in a private directory of the plugin's. Abstract names belong to
 * the network namespace: in the plugin's own they are its own, elsewhere any process there can use them. */
static __always_inline int decide_unix(struct bpf_sock_addr *ctx, __u8 hook)
{
	const struct setting *s = current_settings();
	struct bpf_sock_addr_kern *k = bpf_cast_to_kern_ctx(ctx);
	bool open = unblocked(), confined, abstract, allowed;
	struct socket_name name;
	struct event *e;
	__u64 *until;

	if (!s)
		return DENY;
	confined = bpf_get_netns_cookie(ctx) == s->netns;
	read_name(k, &name);
	abstract = name.length && name.bytes[0] == 0;
	if (abstract && confined && s->own_network)
		return ALLOW;
	until = bpf_map_lookup_elem(&sockets, &name);
	if (!until && own_socket(ctx, k, &name))
		return ALLOW;
	allowed = open && until && bpf_ktime_get_boot_ns() < *until && (!abstract || confined);
	e = new_event();
	if (!allowed || !e)
		COUNT(refused, 1);
	if (!e)
		return DENY; /* a use that cannot be recorded is refused */
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
