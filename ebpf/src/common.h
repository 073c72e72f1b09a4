/* What all programs share: who is watched, where a record is put together, how it is sent, what is counted. */
#ifndef POSTERN_COMMON_H
#define POSTERN_COMMON_H

#include "kernel.h"
#include "records.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define EAGAIN 11

/* Of each task of a session. No task outside one has an entry. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/* By session; the node makes an entry before it marks the first task, and removes it when the last one has ended. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct counts);
} sessions SEC(".maps");

/* What must not be pushed out by a flood of files or packets: processes and their ends. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} control SEC(".maps");

/* Where records are put together. A task can be preempted by another that comes by here, so that one place for each
 * CPU does not do: who finds a place taken takes the next. */
#define PLACES 4
#define PLACE_BYTES (24 << 10)
struct place {
	__u32 taken;
	__u32 reserved;
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

static __always_inline struct mark *mark_of(struct task_struct *task)
{
	return bpf_task_storage_get(&marks, task, 0, 0);
}

/* The counts of the session whose task runs, and its number; nothing outside sessions. */
static __always_inline struct counts *counts_of_current(__u64 *session)
{
	struct mark *mark = mark_of(bpf_get_current_task_btf());

	if (!mark)
		return 0;
	*session = mark->session;
	return bpf_map_lookup_elem(&sessions, session);
}

/* Counts a record that nobody will see. */
static __always_inline void count_lost(struct counts *counts, __u64 sequence)
{
	if (__sync_fetch_and_add(&counts->lost, 1) == 0)
		counts->lost_first = sequence;
	counts->lost_last = sequence;
}

static __always_inline void begin(struct header *header, struct task_struct *task, __u64 session, __u16 kind,
				  __u64 sequence)
{
	header->kind = kind;
	header->version = RECORD_VERSION;
	header->boot_ns = bpf_ktime_get_boot_ns();
	header->session = session;
	header->sequence = sequence;
	header->process_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	header->tgid = BPF_CORE_READ(task, tgid);
	header->tid = BPF_CORE_READ(task, pid);
	header->uid = BPF_CORE_READ(task, cred, euid.val);
	header->gid = BPF_CORE_READ(task, cred, egid.val);
}

static __always_inline void send(struct counts *counts, struct header *header, __u32 length)
{
	if (length > PLACE_BYTES) {
		count_lost(counts, header->sequence);
		return;
	}
	header->len = length;
	if (bpf_ringbuf_output(&control, header, length, 0))
		count_lost(counts, header->sequence);
}

#endif
