/* What all programs share: who is watched, where a record is put together, how it is sent, what is counted. */
#ifndef POSTERN_COMMON_H
#define POSTERN_COMMON_H

#include "kernel.h"
#include "records.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define EAGAIN 11
#define EBUSY 16

/* Of each task of a session. No task outside one has an entry. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/* The same by thread, for when a task's storage is not to be had. */
struct known {
	struct mark mark;
	/* Threads have the numbers of earlier ones. */
	__u64 since;
	/* There is no storage. */
	__u64 is_alone;
};
#define THREADS_MAX (1 << 17)
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, THREADS_MAX);
	__type(key, __u32);
	__type(value, struct known);
} threads SEC(".maps");

/* How many tasks are known by their threads only: while there are any, whoever has no storage is looked up. */
__u64 alone;

/* How often nobody could say whether a task is of a session. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} unsure SEC(".maps");

/* Before Linux 6.2 nobody gets at the storage of any task while another of this CPU is at some task's, and is told that there
 * is nothing. */
enum bpf_func_id___6_2 {
	BPF_FUNC_cgrp_storage_get___6_2 = 1,
};
#define IS_BUSY_AT_TIMES !bpf_core_enum_value_exists(enum bpf_func_id___6_2, BPF_FUNC_cgrp_storage_get___6_2)

/* Nobody has anything in it: to take that away tells whether storage is to be had. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} nothing SEC(".maps");

/* By number; the node makes an entry before it marks the first task, and removes it when the last one has ended. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SESSIONS_MAX);
	__type(key, __u64);
	__type(value, struct session);
} sessions SEC(".maps");

/* By number, too: what the node has done with. A map of its own, since the node writes it as a whole. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SESSIONS_MAX);
	__type(key, __u64);
	__type(value, struct credit);
} credits SEC(".maps");

/* Processes and their ends, rights, the kernel: what must not be pushed out by a flood of files or packets. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES_CONTROL);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES_FILE);
} files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES_NET);
} network SEC(".maps");

/* Where records are put together. A task can be preempted by another that comes by here, so that one place for each
 * CPU does not do: who finds a place taken takes the next. */
#define PLACES 4
#define PLACE_BYTES (24 << 10)
struct place {
	__u32 taken;
	/* 1 where not all of a path was put; see typed.h. */
	__u32 cut;
	char bytes[PLACE_BYTES];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, struct place);
} places SEC(".maps");

static __always_inline struct place *take_place(__u32 *number)
{
	for (__u32 i = 0; i < PLACES; i++) {
		*number = i;
		struct place *place = bpf_map_lookup_elem(&places, number);
		if (place && __sync_val_compare_and_swap(&place->taken, 0, 1) == 0)
			return place;
	}
	return 0;
}

static __always_inline void leave_place(struct place *place)
{
	__sync_lock_test_and_set(&place->taken, 0);
}

/* Puts bytes of the kernel's at `to`; how many were put. */
#define PUT_AT_MAX (16 << 10)
#define PUT_MASK 8191
static __always_inline __u32 put(struct place *place, __u32 to, const void *from, __u32 length)
{
	if (to > PUT_AT_MAX)
		return 0;
	length &= PUT_MASK;
	return bpf_probe_read_kernel(place->bytes + to, length, from) ? 0 : length;
}

/* The same of the program's. */
static __always_inline __u32 put_from_user(struct place *place, __u32 to, const void *from, __u32 length)
{
	if (to > PUT_AT_MAX)
		return 0;
	length &= PUT_MASK;
	return bpf_probe_read_user(place->bytes + to, length, from) ? 0 : length;
}

/* A text of the program's, without the NUL. */
static __always_inline __u32 put_text_from_user(struct place *place, __u32 to, const char *from)
{
	if (to > PUT_AT_MAX)
		return 0;
	long length = bpf_probe_read_user_str(place->bytes + to, PATH_BYTES_MAX + 1, from);
	return length > 0 ? (length - 1) & PUT_MASK : 0;
}

/* A text of the kernel's, without the NUL. */
static __always_inline __u32 put_text(struct place *place, __u32 to, const char *from)
{
	if (to > PUT_AT_MAX)
		return 0;
	long length = bpf_probe_read_kernel_str(place->bytes + to, PATH_BYTES_MAX + 1, from);
	return length > 0 ? (length - 1) & PUT_MASK : 0;
}

static __noinline struct mark *mark_by_thread(struct task_struct *task)
{
	__u32 thread = task->pid, only = 0;
	struct known *known = bpf_map_lookup_elem(&threads, &thread);

	if (known && known->since == task->start_boottime)
		return &known->mark;
	if (!IS_BUSY_AT_TIMES || !task->bpf_storage)
		return 0;
	if (bpf_task_storage_delete(&nothing, task) != -EBUSY)
		return bpf_task_storage_get(&marks, task, 0, 0);
	__u64 *count = bpf_map_lookup_elem(&unsure, &only);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}

static __always_inline struct mark *mark_of(struct task_struct *task)
{
	/* Of nearly everybody: a look is cheaper than a call. */
	if (!task->bpf_storage && !alone)
		return 0;
	struct mark *mark = bpf_task_storage_get(&marks, task, 0, 0);
	return mark || (!IS_BUSY_AT_TIMES && !alone) ? mark : mark_by_thread(task);
}

static __noinline int know(struct task_struct *task, struct mark *mark, int is_alone)
{
	__u32 thread = task->pid;
	struct known known = { .mark = *mark, .since = task->start_boottime, .is_alone = is_alone };

	if (bpf_map_update_elem(&threads, &thread, &known, BPF_ANY))
		return -EAGAIN;
	if (is_alone)
		__sync_fetch_and_add(&alone, 1);
	return 0;
}

/* Gives a task a mark. 0, or -EAGAIN where its doings will not be told. */
static __noinline int mark_task(struct task_struct *task, struct mark *mark)
{
	struct mark *made = 0;

	/* Before Linux 7.0 a tracing program can be told that somebody else of this CPU is at it. */
	for (int try = 0; try < 3 && !made; try++)
		made = bpf_task_storage_get(&marks, task, mark, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (made && !IS_BUSY_AT_TIMES)
		return 0;
	return know(task, mark, !made) && !made ? -EAGAIN : 0;
}

/* A task has ended. */
static __always_inline void unmark(struct task_struct *task)
{
	__u32 thread = task->pid;

	if (!IS_BUSY_AT_TIMES && !alone)
		return;
	struct known *known = bpf_map_lookup_elem(&threads, &thread);
	if (!known)
		return;
	if (known->is_alone)
		__sync_fetch_and_add(&alone, -1);
	bpf_map_delete_elem(&threads, &thread);
}

#define PF_FORKNOEXEC 0x40

/* The first program of a session runs: what is done from now on is the session's doing. */
static __always_inline void begin_session(struct task_struct *task, struct mark *mark)
{
	if (mark->begun)
		return;
	mark->begun = 1;
	if (IS_BUSY_AT_TIMES)
		know(task, mark, 0);
}

/* The same where the kernel has passed over the program that does it. */
static __noinline int has_begun(struct task_struct *task, struct mark *mark)
{
	if (task->flags & PF_FORKNOEXEC || BPF_CORE_READ_BITFIELD_PROBED(task, in_execve))
		return 0;
	begin_session(task, mark);
	return 1;
}

/* Of whom a record tells: what a program looks up once. */
struct teller {
	struct task_struct *task;
	struct session *session;
	__u64 number;
};

/* Where a session's entry is made anew: too long for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct session);
} anew SEC(".maps");

/* How many tasks live is not known any more: never none. */
#define TASKS_NOT_KNOWN (1ULL << 32)

/* Somebody has taken a session out of the map while tasks of it live: it is put back. The node sees that its counts
 * begin anew. */
static __noinline int put_back(struct mark *mark)
{
	__u32 only = 0;
	__u64 number = mark->session;
	struct session *session = bpf_map_lookup_elem(&anew, &only);

	if (!session)
		return 0;
	session->tasks = TASKS_NOT_KNOWN;
	session->classes = mark->classes;
	session->strict = mark->strict;
	bpf_map_update_elem(&sessions, &number, session, BPF_NOEXIST);
	return 0;
}

static __always_inline int tell_by(struct teller *teller, struct mark *mark)
{
	if (!mark)
		return 0;
	teller->number = mark->session;
	teller->session = bpf_map_lookup_elem(&sessions, &teller->number);
	if (teller->session)
		return 1;
	put_back(mark);
	teller->session = bpf_map_lookup_elem(&sessions, &teller->number);
	return teller->session != 0;
}

/* A thread of a process that became a session's when it had threads already: only the first has a mark, until now. */
static __noinline struct mark *mark_by_leader(struct task_struct *task)
{
	struct mark *mark = mark_of(task->group_leader);

	if (!mark)
		return 0;
	__u64 number = mark->session;
	struct session *session = bpf_map_lookup_elem(&sessions, &number);
	/* Not copied: the stack of all that calls this is full. */
	int failed = mark_task(task, mark);
	if (session)
		__sync_fetch_and_add(failed ? &session->unmarked : &session->tasks, 1);
	return mark;
}

static __always_inline struct mark *mark_of_current(struct task_struct *task)
{
	struct mark *mark = mark_of(task);

	return mark || task->pid == task->tgid ? mark : mark_by_leader(task);
}

/* The session whose task runs; false outside sessions, and before the first program of one. */
static __always_inline int tell_as(struct teller *teller, struct task_struct *task, struct mark *mark)
{
	teller->task = task;
	return mark && (mark->begun || has_begun(task, mark)) && tell_by(teller, mark);
}

static __always_inline int tell(struct teller *teller)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return tell_as(teller, task, mark_of_current(task));
}

/* The same where its records of a class are wanted. */
static __always_inline int tell_of(struct teller *teller, int class)
{
	return tell(teller) && teller->session->classes & (1 << class);
}

/* Counts a record that nobody will see. Strict sessions may not go on with what it was about. */
static __always_inline int lose(struct session *session, struct tally *tally, __u64 *count, __u64 sequence)
{
	if (__sync_fetch_and_add(count, 1) == 0 && tally->lost_first == 0)
		tally->lost_first = sequence;
	tally->lost_last = sequence;
	return session->strict ? -EAGAIN : 0;
}

static __always_inline int lose_one(struct session *session, int class)
{
	struct tally *tally = &session->tallies[class];

	return lose(session, tally, &tally->lost_ring, __sync_fetch_and_add(&tally->records, 1));
}

/* What there was too much of to be looked at. */
static __always_inline void lose_many(struct session *session, int class, __u32 count)
{
	struct tally *tally = &session->tallies[class];
	__u64 first = __sync_fetch_and_add(&tally->records, count);

	__sync_fetch_and_add(&tally->lost_ring, count);
	if (tally->lost_first == 0)
		tally->lost_first = first;
	tally->lost_last = first + count - 1;
}

static __always_inline void begin_at(struct header *header, struct task_struct *task, __u64 number, __u64 sequence,
				     __u16 kind, __u32 prov)
{
	struct task_struct *leader = task->group_leader;
	const struct cred *cred = task->cred;

	header->kind = kind;
	header->version = RECORD_VERSION;
	header->boot_ns = bpf_ktime_get_boot_ns();
	header->session = number;
	header->sequence = sequence;
	header->process_ns = leader->start_boottime;
	header->tgid = task->tgid;
	header->tid = task->pid;
	header->uid = cred->euid.val;
	header->gid = cred->egid.val;
	header->parent = task->real_parent->tgid;
	header->prov = prov;
	bpf_probe_read_kernel(header->comm, sizeof(header->comm), task->comm);
}

/* A record begins, and is counted. */
static __always_inline void begin(struct teller *teller, struct header *header, int class, __u16 kind, __u32 prov)
{
	__u64 sequence = __sync_fetch_and_add(&teller->session->tallies[class].records, 1);

	begin_at(header, teller->task, teller->number, sequence, kind, prov);
}

/* Rings of which we are told when there is much in them; the node looks often enough while sessions live. */
static __always_inline __u64 wake(void *ring, __u32 size)
{
	return bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) > size / 8 ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

/* To be woken for each record is dearer than the record: of an interrupt to ourselves, and of a switch to the reader. At
 * once are told the first of a session, for which nobody looks yet, and what comes when its last task has ended. */
static __always_inline __u64 wake_for(struct session *session, struct header *header)
{
	if (header->sequence == 0 || session->tasks == 0)
		return BPF_RB_FORCE_WAKEUP;
	return wake(&control, RING_BYTES_CONTROL);
}

static const __u32 budgets[] = BUDGETS;

/* Sends a record. 0, or -EAGAIN where a strict session must not go on. */
static __always_inline int send(struct session *session, int class, struct header *header, __u32 length)
{
	struct tally *tally = &session->tallies[class];
	__u64 number = header->session;
	struct credit *credit = bpf_map_lookup_elem(&credits, &number);
	__u64 done = credit ? credit->bytes[class] : 0;
	long failed;

	if (tally->bytes + length > done + budgets[class])
		return lose(session, tally, &tally->lost_budget, header->sequence);
	if (length > PLACE_BYTES)
		return lose(session, tally, &tally->lost_ring, header->sequence);
	header->len = length;
	if (class == CLASS_CONTROL)
		failed = bpf_ringbuf_output(&control, header, length, wake_for(session, header));
	else if (class == CLASS_FILE)
		failed = bpf_ringbuf_output(&files, header, length, wake(&files, RING_BYTES_FILE));
	else
		failed = bpf_ringbuf_output(&network, header, length, wake(&network, RING_BYTES_NET));
	if (failed)
		return lose(session, tally, &tally->lost_ring, header->sequence);
	__sync_fetch_and_add(&tally->bytes, length);
	return 0;
}

/* Whether the longest record of a program would be taken. */
static __always_inline int has_room(struct session *session, __u64 number)
{
	struct credit *credit = bpf_map_lookup_elem(&credits, &number);
	__u64 done = credit ? credit->bytes[CLASS_CONTROL] : 0;
	__u64 most = PLACE_BYTES + ARGV_BYTES_MAX + ARGV_BYTES_MAX / 8;

	return session->tallies[CLASS_CONTROL].bytes + most <= done + budgets[CLASS_CONTROL] &&
	       bpf_ringbuf_query(&control, BPF_RB_AVAIL_DATA) + most <= RING_BYTES_CONTROL;
}

/* Random; set before the programs are loaded. */
const volatile __u64 fold_seed;

/* How often the same was done: what is told once and then counted. Those that were not seen for long go first. */
struct fold_key {
	__u64 session;
	__u64 of[4];
	__u32 dev;
	__u32 what;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct fold_key);
	__type(value, __u64);
} folds SEC(".maps");

/* Whether this is a repetition that is only counted. Told are the first, and the 4th, 16th, 64th and so on, with how many
 * there were since the last that was told. */
static __always_inline int is_folded(struct teller *teller, struct fold_key *key, __u64 *times)
{
	__u64 *count = bpf_map_lookup_elem(&folds, key);

	*times = 0;
	if (!count) {
		__u64 one = 1;
		bpf_map_update_elem(&folds, key, &one, BPF_NOEXIST);
		return 0;
	}
	__u64 so_far = __sync_fetch_and_add(count, 1) + 1;
	if (!(so_far & (so_far - 1)) && so_far & 0x5555555555555555) {
		*times = so_far - so_far / 4;
		return 0;
	}
	__sync_fetch_and_add(&teller->session->folded, 1);
	return 1;
}

#endif
