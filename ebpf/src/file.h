/* A record of a file: what Tier A and Tier B have in common. */
#ifndef POSTERN_FILE_H
#define POSTERN_FILE_H

#include "common.h"
#include "path.h"

#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFCHR 0020000
#define S_IROTH 04

#define O_ACCMODE 3
#define FMODE_WRITE 2
#define FMODE_EXEC 0x20
#define FMODE_CREATED (1 << 20)

/* Who wrote a file last, of all sessions: what others execute of it is done for that session. By device and inode and not
 * in the inode's storage, which goes when the inode leaves the memory. */
struct taint_key {
	__u64 ino;
	__u32 dev;
	__u32 generation;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct taint_key);
	__type(value, __u64);
} taints SEC(".maps");

static __always_inline struct taint_key taint_key_of(struct inode *inode)
{
	struct taint_key key = {
		.ino = BPF_CORE_READ(inode, i_ino),
		.dev = BPF_CORE_READ(inode, i_sb, s_dev),
		.generation = BPF_CORE_READ(inode, i_generation),
	};
	return key;
}

static __always_inline void taint(struct teller *teller, struct inode *inode)
{
	__u16 mode = BPF_CORE_READ(inode, i_mode);

	if ((mode & S_IFMT) != S_IFREG)
		return;
	struct taint_key key = taint_key_of(inode);
	__u64 number = teller->number;
	bpf_map_update_elem(&taints, &key, &number, BPF_ANY);
}

/* What of an inode is looked at each time. In one read where the kernel has it in one place: a read is a call. */
struct inode_head {
	__u64 ino;
	struct super_block *sb;
	__u32 nlink;
	__u16 mode;
};
#define HEAD_BYTES 80

static __always_inline void read_head(struct inode_head *head, char *bytes, struct inode *inode)
{
	__u32 ino = bpf_core_field_offset(struct inode, i_ino), sb = bpf_core_field_offset(struct inode, i_sb);
	__u32 mode = bpf_core_field_offset(struct inode, i_mode), nlink = bpf_core_field_offset(struct inode, i_nlink);

	if (ino <= HEAD_BYTES - 8 && sb <= HEAD_BYTES - 8 && mode <= HEAD_BYTES - 8 && nlink <= HEAD_BYTES - 8) {
		/* Fails as a whole, and is all zeros then. */
		bpf_probe_read_kernel(bytes, HEAD_BYTES, inode);
		head->ino = *(__u64 *)(bytes + ino);
		head->sb = *(struct super_block **)(bytes + sb);
		head->nlink = *(__u32 *)(bytes + nlink);
		head->mode = *(__u16 *)(bytes + mode);
	} else {
		head->ino = BPF_CORE_READ(inode, i_ino);
		head->sb = BPF_CORE_READ(inode, i_sb);
		head->nlink = BPF_CORE_READ(inode, i_nlink);
		head->mode = BPF_CORE_READ(inode, i_mode);
	}
}

/* What is done with a file. */
struct deed {
	struct vfsmount *mnt;
	struct dentry *dentry;
	/* The other path, or a text of the kernel's. */
	struct vfsmount *other_mnt;
	struct dentry *other;
	const char *text;
	__u64 times;
	__u32 op;
	__u32 flags;
	__u32 mode;
	__u32 prov;
	__s32 result;
};

/* A path without a mount: to the root of its file system. */
static __always_inline __u32 put_either_path(struct place *place, __u32 number, __u32 to, struct vfsmount *mnt,
					     struct dentry *dentry, __u32 *bits, __u32 cut_bit)
{
	__u32 cut = 0;
	__u32 length = put_path(place, number, to, mnt, dentry, &cut);

	if (cut)
		*bits |= cut_bit;
	if (!mnt)
		*bits |= FLAG_PATH_IN_FS;
	return length;
}

/* Sends a record of a file; the answer is that of `send`. */
static __noinline int tell_file(struct teller *teller, struct deed *deed)
{
	__u32 number = 0, to = sizeof(struct header) + sizeof(struct file_record);
	struct place *place = take_place(&number);
	int answer;

	if (!place)
		return lose_one(teller->session, CLASS_FILE);
	struct header *header = (struct header *)place->bytes;
	struct file_record *file = (struct file_record *)(header + 1);
	/* By itself: of our own structures the kernel knows nothing. */
	struct dentry *dentry = deed->dentry;
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);

	begin(teller, header, CLASS_FILE, KIND_FILE, deed->prov);
	struct inode_head head;
	/* Behind where records end. */
	read_head(&head, place->bytes + PLACE_BYTES - HEAD_BYTES, inode);
	struct super_block *sb = head.sb;
	file->dev = BPF_CORE_READ(sb, s_dev);
	file->ino = head.ino;
	file->nlink = head.nlink;
	file->times = deed->times;
	file->op = deed->op;
	file->flags = deed->flags;
	file->mode = deed->mode ? deed->mode : head.mode;
	file->result = deed->result;
	__u32 bits = 0;
	file->path_len = put_either_path(place, number, to, deed->mnt, dentry, &bits, FLAG_PATH_CUT);
	to += file->path_len;
	file->other_len = 0;
	if (deed->other)
		file->other_len =
			put_either_path(place, number, to, deed->other_mnt, deed->other, &bits, FLAG_CWD_CUT);
	else if (deed->text)
		file->other_len = put_text(place, to, deed->text);
	file->bits = bits;
	answer = send(teller->session, CLASS_FILE, header, to + file->other_len);
	leave_place(place);
	return answer;
}

/* By the file system where it is in memory, which its files keep there. */
static __noinline int is_folded_file(struct teller *teller, struct inode *inode, __u32 what, __u64 *times)
{
	char bytes[HEAD_BYTES];
	struct inode_head head;

	read_head(&head, bytes, inode);
	struct fold_key key = {
		.session = teller->number,
		.of = { head.ino, BPF_CORE_READ(inode, i_generation), (__u64)head.sb },
		.what = what,
	};
	return is_folded(teller, &key, times);
}

/* Repetitions that say nothing new: files that everybody may read, and devices such as /dev/null. */
static __always_inline int is_plain(__u16 mode, int writes)
{
	return (mode & S_IROTH) && (!writes || (mode & S_IFMT) == S_IFCHR);
}

#define FOLD_READ 0x1000
#define FOLD_DEVICE 0x1001

/* An open file is told of; `writes` is what it was opened for. */
static __always_inline int tell_open(struct teller *teller, struct file *file, __u32 op, __u32 prov)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	__u16 mode = BPF_CORE_READ(inode, i_mode);
	__u32 f_mode = BPF_CORE_READ(file, f_mode);
	struct deed deed = { .op = op, .prov = prov };

	/* Whatever is wanted: others may execute it. */
	if (f_mode & FMODE_WRITE)
		taint(teller, inode);
	if (!(teller->session->classes & (1 << CLASS_FILE)))
		return 0;
	if (op == FILE_OPEN && f_mode & FMODE_CREATED)
		deed.op = FILE_CREATE;
	if (deed.op != FILE_CREATE && is_plain(mode, f_mode & FMODE_WRITE) &&
	    is_folded_file(teller, inode, f_mode & FMODE_WRITE ? FOLD_DEVICE : FOLD_READ | op << 16, &deed.times))
		return 0;
	deed.mnt = BPF_CORE_READ(file, f_path.mnt);
	deed.dentry = BPF_CORE_READ(file, f_path.dentry);
	deed.flags = BPF_CORE_READ(file, f_flags);
	return tell_file(teller, &deed);
}

#endif
