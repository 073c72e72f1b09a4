/* Records of rights, of the kernel and of other processes: what Tier A and Tier B have in common. */
#ifndef POSTERN_OTHER_H
#define POSTERN_OTHER_H

#include "common.h"
#include "rules.h"

/* Ids of our own maps, links and programs: who gets hold of one of them in a session tampers with us. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} our_maps SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, __u32);
} our_programs SEC(".maps");

static __always_inline int tell_rights(struct teller *teller, __u32 op, __u64 old, __u64 new, __u32 prov, __s32 result)
{
	struct {
		struct header header;
		struct rights_record rights;
	} record = { .rights = { .old = old, .new = new, .op = op, .result = result } };

	begin(teller, &record.header, CLASS_CONTROL, KIND_RIGHTS, prov);
	return send(teller->session, CLASS_CONTROL, &record.header, sizeof(record));
}

static __always_inline __u64 ids(__u32 real, __u32 effective)
{
	return (__u64)real << 32 | effective;
}

#define SECCOMP_SET_MODE_FILTER 1
#define SECCOMP_FILTER_FLAG_NEW_LISTENER 8

#define KERNEL_NAME_BYTES 128
struct of_kernel {
	struct header header;
	struct kernel_record kernel;
	char name[KERNEL_NAME_BYTES];
};

/* `name` is the kernel's, or none. */
static __always_inline int tell_kernel(struct teller *teller, __u32 op, __u32 code, const char *name, __u32 prov,
				       __s32 result)
{
	__u32 number = 0, length = 0;
	struct place *place = take_place(&number);
	int answer;

	if (!place)
		return lose_one(teller->session, CLASS_CONTROL);
	struct of_kernel *record = (struct of_kernel *)place->bytes;
	begin(teller, &record->header, CLASS_CONTROL, KIND_KERNEL, prov);
	if (name) {
		long read = bpf_probe_read_kernel_str(record->name, sizeof(record->name), name);
		length = read > 0 ? (read - 1) & (KERNEL_NAME_BYTES - 1) : 0;
	}
	record->kernel.op = op;
	record->kernel.code = code;
	record->kernel.result = result;
	record->kernel.name_len = length;
	answer = send(teller->session, CLASS_CONTROL, &record->header,
		      sizeof(record->header) + sizeof(record->kernel) + length);
	leave_place(place);
	return answer;
}

static __always_inline int tell_trace(struct teller *teller, __u32 op, __u32 code, struct task_struct *other,
				      __u32 prov, __s32 result)
{
	struct {
		struct header header;
		struct trace_record trace;
	} record = { .trace = { .op = op, .code = code, .result = result } };
	struct mark *mark = mark_of(other);

	if (mark)
		record.trace.other_session = mark->session;
	record.trace.other = other->tgid;
	bpf_probe_read_kernel(record.trace.other_comm, sizeof(record.trace.other_comm), other->comm);
	begin(teller, &record.header, CLASS_CONTROL, KIND_TRACE, prov);
	return send(teller->session, CLASS_CONTROL, &record.header, sizeof(record));
}

#endif
