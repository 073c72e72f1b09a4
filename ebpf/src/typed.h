/* Paths as a program passed them, and the files that its descriptors stand for: what there is without LSM programs. */
#ifndef POSTERN_TYPED_H
#define POSTERN_TYPED_H

#include "file.h"

#define AT_FDCWD -100

/* The open file of a descriptor of the current task; nothing for what is none. */
static __always_inline struct file *file_of(struct task_struct *task, __s32 fd)
{
	struct fdtable *table = task->files->fdt;
	struct file **files = table->fd, *file = 0;

	if (fd < 0 || (__u32)fd >= table->max_fds)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	return file;
}

/* A path as it was passed. */
struct typed {
	const char *text;
	__s32 dir;
	/* The kernel's copy, not the program's. */
	__u32 copied;
};

static __always_inline __u32 put_name(struct place *place, __u32 to, struct typed *typed)
{
	__u32 length = typed->copied ? put_text(place, to, typed->text) : put_text_from_user(place, to, typed->text);

	/* Without a branch and not on the stack, for the verifier's sake: else it looks at everything behind it twice. */
	place->cut |= (length + 1) / (PATH_BYTES_MAX + 1);
	return length;
}

/* Puts a path with the folder that it begins at. */
static __noinline __u32 put_typed(struct task_struct *task, struct place *place, __u32 number, __u32 to,
				  struct typed *typed)
{
	struct vfsmount *mnt;
	struct dentry *dentry;
	__u32 cut = 0;

	if (to > PUT_AT_MAX)
		return 0;
	__u32 length = put_name(place, to, typed);
	if (length > 0 && place->bytes[to] == '/')
		return length;
	if (typed->dir == AT_FDCWD) {
		mnt = BPF_CORE_READ(task, fs, pwd.mnt);
		dentry = BPF_CORE_READ(task, fs, pwd.dentry);
	} else {
		struct file *file = file_of(task, typed->dir);
		if (!file) {
			place->cut = 1;
			return length;
		}
		mnt = BPF_CORE_READ(file, f_path.mnt);
		dentry = BPF_CORE_READ(file, f_path.dentry);
	}
	__u32 base = put_path(place, number, to, mnt, dentry, &cut);

	place->cut |= cut;
	if (!length)
		return base;
	to += base;
	if (to > PUT_AT_MAX) {
		place->cut = 1;
		return base;
	}
	place->bytes[to] = '/';
	return base + 1 + put_name(place, to + 1, typed);
}

/* What was done with paths as they were passed. */
struct typed_deed {
	struct typed path;
	struct typed other;
	/* The other is no path: what a symbolic link says, what is mounted. */
	__u32 is_text;
	__u32 op;
	__u32 flags;
	__u32 mode;
	__u32 prov;
	__s32 result;
};

#define FOLD_FAILED 0x40000000
#define EPERM 1
#define EACCES 13
#define EROFS 30

/* Somebody was not allowed. */
static __always_inline int is_refusal(long result)
{
	return result == -EACCES || result == -EPERM || result == -EROFS;
}

struct digest {
	__u64 of;
	__u32 place;
	__u32 at;
	__u32 left;
};

#define DIGEST_STEPS_MAX (PUT_AT_MAX / 8)
static long digest_step(__u32 step, void *context)
{
	struct digest *digest = context;
	__u32 number = digest->place;
	struct place *place = bpf_map_lookup_elem(&places, &number);
	__u64 word;

	if (!place || !digest->left)
		return 1;
	__builtin_memcpy(&word, place->bytes + (digest->at & (PUT_AT_MAX - 1)), sizeof(word));
	if (digest->left < sizeof(word)) {
		word &= (1ULL << (8 * (digest->left & 7))) - 1;
		digest->left = sizeof(word);
	}
	digest->of = (digest->of ^ word) * 0x9e3779b97f4a7c15ULL;
	digest->of ^= digest->of >> 29;
	digest->at += sizeof(word);
	digest->left -= sizeof(word);
	return 0;
}

/* What fails again and again is told once and then counted: that somebody was not allowed, of each process. `length` bytes
 * from `at` are what it was tried with. Operation and result, as at and length, are one: five arguments are all there can be. */
static __noinline int is_folded_failure(struct teller *teller, __u64 op_and_result, __u32 number, __u32 at_and_length,
					__u64 *times)
{
	__s32 result = op_and_result;
	struct digest digest = { .place = number, .at = at_and_length >> 16, .left = at_and_length & 0xffff };

	struct place *place = bpf_map_lookup_elem(&places, &number);
	struct file_record *file = place ? (struct file_record *)(place->bytes + sizeof(struct header)) : 0;

	/* Nobody is to find two that give the same, nor to move the end of one path to the beginning of the other. */
	digest.of = fold_seed ^ digest.left ^ (file ? (__u64)file->path_len << 32 : 0);
	bpf_loop(DIGEST_STEPS_MAX, digest_step, &digest, 0);
	struct fold_key key = {
		.session = teller->number,
		.of = { digest.of, is_refusal(result) ? teller->task->group_leader->start_boottime : 0 },
		.what = FOLD_FAILED | op_and_result >> 32 << 16 | (-result & 0xffff),
	};
	return is_folded(teller, &key, times);
}

#define FIXED_BYTES (__u32)(sizeof(struct header) + sizeof(struct file_record))
static __noinline int tell_typed(struct teller *teller, struct typed_deed *deed)
{
	__u32 number = 0, to = FIXED_BYTES;
	struct place *place = take_place(&number);

	if (!place)
		return lose_one(teller->session, CLASS_FILE);
	struct header *header = (struct header *)place->bytes;
	struct file_record *file = (struct file_record *)(header + 1);

	begin_at(header, teller->task, teller->number, 0, KIND_FILE, deed->prov);
	__builtin_memset(file, 0, sizeof(*file));
	file->op = deed->op;
	file->flags = deed->flags;
	file->mode = deed->mode;
	file->result = deed->result;
	place->cut = 0;
	__u32 length = put_typed(teller->task, place, number, to, &deed->path) & PUT_MASK;
	file->path_len = length;
	file->bits = place->cut * FLAG_PATH_CUT;
	to += length;
	length = 0;
	place->cut = 0;
	if (deed->other.text)
		length = (deed->is_text ? put_name(place, to, &deed->other) :
					  put_typed(teller->task, place, number, to, &deed->other)) &
			 PUT_MASK;
	file->other_len = length;
	file->bits |= place->cut * FLAG_CWD_CUT;
	to += length;
	if (deed->result >= 0 ||
	    !is_folded_failure(teller, (__u64)deed->op << 32 | (__u32)deed->result, number, FIXED_BYTES << 16 | (to - FIXED_BYTES), &file->times)) {
		/* Only now is it counted: what is folded never was. */
		header->sequence = __sync_fetch_and_add(&teller->session->tallies[CLASS_FILE].records, 1);
		send(teller->session, CLASS_FILE, header, to);
	}
	leave_place(place);
	return 0;
}

#define EXEC_BYTES (__u32)(sizeof(struct header) + sizeof(struct exec))
/* A program was not to be executed. */
static __noinline int tell_not_executed(struct teller *teller, struct typed *path, long result)
{
	__u32 number = 0;
	struct place *place = take_place(&number);

	if (!place)
		return lose_one(teller->session, CLASS_CONTROL);
	struct header *header = (struct header *)place->bytes;
	struct exec *exec = (struct exec *)(header + 1);
	begin_at(header, teller->task, teller->number, 0, KIND_EXEC, PROV_SYSCALL);
	__builtin_memset(exec, 0, sizeof(*exec));
	exec->result = result;
	exec->real_uid = teller->task->cred->uid.val;
	place->cut = 0;
	exec->path_len = put_typed(teller->task, place, number, EXEC_BYTES, path) & PUT_MASK;
	exec->flags = place->cut * FLAG_PATH_CUT;
	/* Behind where records end, since the stack is full. */
	__u64 *times = (__u64 *)(place->bytes + PLACE_BYTES - sizeof(*times));
	if (!is_folded_failure(teller, (__u32)result, number, EXEC_BYTES << 16 | exec->path_len, times)) {
		header->sequence = __sync_fetch_and_add(&teller->session->tallies[CLASS_CONTROL].records, 1);
		send(teller->session, CLASS_CONTROL, header, EXEC_BYTES + exec->path_len);
	}
	leave_place(place);
	return 0;
}

#endif
