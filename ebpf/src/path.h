/* A path from the root of its mount namespace, walked from its end: bpf_d_path is refused in most of our hooks, and gives
 * what a chroot pretends. */
#ifndef POSTERN_PATH_H
#define POSTERN_PATH_H

#include "common.h"

#define NAME_BYTES_MAX 255
#define WALK_BYTES 4096
#define WALK_MASK (WALK_BYTES - 1)

/* Where paths are put together; of a place, see common.h. Names are written whole, beyond the end at worst. */
#define ENTRY_BYTES 64
struct walked {
	/* Not all of the path is there. Here and not on the stack, where the verifier would follow each of its values. */
	__u32 cut;
	/* The beginning of the entry that is looked at: there is no room for it on the stack. */
	char entry[ENTRY_BYTES];
	char bytes[WALK_BYTES + NAME_BYTES_MAX + 1];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, struct walked);
} walks SEC(".maps");

struct walk {
	struct dentry *dentry;
	struct mount *mount;
	/* Of the mount. */
	struct dentry *root;
	__u32 place;
	/* Where the path begins so far. */
	__u32 at;
};

/* What is needed of a directory's entry. In one read where the kernel has it in one place: a read is a call. */
struct entry {
	struct dentry *parent;
	const unsigned char *name;
	__u32 length;
};

static __always_inline void read_entry(struct entry *entry, char *bytes, struct dentry *dentry)
{
	__u32 parent = bpf_core_field_offset(struct dentry, d_parent);
	__u32 name = bpf_core_field_offset(struct dentry, d_name.name);
	__u32 length = bpf_core_field_offset(struct dentry, d_name.len);

	if (parent <= ENTRY_BYTES - 8 && name <= ENTRY_BYTES - 8 && length <= ENTRY_BYTES - 8) {
		/* Fails as a whole, and is all zeros then. */
		bpf_probe_read_kernel(bytes, ENTRY_BYTES, dentry);
		entry->parent = *(struct dentry **)(bytes + parent);
		entry->name = *(const unsigned char **)(bytes + name);
		entry->length = *(__u32 *)(bytes + length) & NAME_BYTES_MAX;
	} else {
		entry->parent = BPF_CORE_READ(dentry, d_parent);
		entry->name = BPF_CORE_READ(dentry, d_name.name);
		entry->length = BPF_CORE_READ(dentry, d_name.len) & NAME_BYTES_MAX;
	}
}

/* What a namespace of mounts is called that is none: from Linux 6.18 on, and 0 before. */
#define NS_ANONYMOUS 0xeffffff7

/* A mount that hangs nowhere: of open_tree(2), or unmounted while somebody is in it. Paths from there are anything. */
static __always_inline int is_detached(struct mount *mount)
{
	struct mnt_namespace *namespace = BPF_CORE_READ(mount, mnt_ns);

	/* An error number: of the kernel's own, such as memfds. */
	if ((unsigned long)namespace > -4096UL)
		return 0;
	__u32 number = BPF_CORE_READ(namespace, ns.inum);
	return !number || number == NS_ANONYMOUS;
}

static long walk_step(__u32 step, void *context)
{
	struct walk *walk = context;
	struct dentry *dentry = walk->dentry;
	struct mount *mount = walk->mount;
	__u32 place = walk->place;
	struct entry entry;
	struct walked *walked;

	if (dentry == walk->root) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);
		if (above == mount) {
			walked = bpf_map_lookup_elem(&walks, &place);
			if (walked)
				walked->cut = is_detached(mount);
			return 1;
		}
		walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = above;
		walk->root = BPF_CORE_READ(above, mnt.mnt_root);
		return 0;
	}
	walked = bpf_map_lookup_elem(&walks, &place);
	if (!walked)
		return 1;
	read_entry(&entry, walked->entry, dentry);
	struct dentry *parent = entry.parent;
	/* The root of a file system: where the mount is not known. Else the file is not below what is mounted. */
	if (dentry == parent && walk->at != WALK_BYTES - 1) {
		walked->cut = walk->mount != 0;
		return 1;
	}
	__u32 length = entry.length;
	if (walk->at < length + 1) {
		walked->cut = 1;
		return 1;
	}
	__u32 at = walk->at - length;
	bpf_probe_read_kernel(walked->bytes + (at & WALK_MASK), length, entry.name);
	/* Without a parent it is in no folder: a memfd, a pipe. */
	if (dentry != parent) {
		at--;
		walked->bytes[at & WALK_MASK] = '/';
	}
	walk->at = at;
	walk->dentry = parent;
	return dentry == parent;
}

/* Puts the path at `to` in `place`; its length. */
static __always_inline __u32 put_path(struct place *place, __u32 number, __u32 to, struct vfsmount *mnt,
				      struct dentry *dentry, __u32 *cut)
{
	struct mount *mount = mnt ? (void *)mnt - bpf_core_field_offset(struct mount, mnt) : 0;
	struct walk walk = {
		.dentry = dentry,
		.mount = mount,
		.root = BPF_CORE_READ(mount, mnt.mnt_root),
		.place = number,
		.at = WALK_BYTES - 1,
	};
	struct walked *walked = bpf_map_lookup_elem(&walks, &number);

	if (!walked)
		return 0;
	walked->cut = 0;
	bpf_loop(WALK_BYTES, walk_step, &walk, 0);
	__u32 at = walk.at & WALK_MASK;
	/* Of a file that is opened by its number before anybody has looked for its folder, this is the name. */
	int is_nameless = (mnt != 0) & (at == WALK_BYTES - 2) & (walked->bytes[at & WALK_MASK] == '/');
	*cut = walked->cut | is_nameless;
	if (at == WALK_BYTES - 1 && !walked->cut) {
		/* The root itself. */
		at--;
		walked->bytes[at & WALK_MASK] = '/';
	}
	__u32 length = WALK_BYTES - 1 - at;
	return put(place, to, walked->bytes + at, length);
}

#endif
