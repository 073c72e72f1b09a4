/* Programs that a session wrote and somebody else executes: done for that session. Who has no session gets that one's
 * mark, but for the node and the first process; who has one keeps it, and both are told of. */
#ifndef POSTERN_DELEGATE_H
#define POSTERN_DELEGATE_H

#include "file.h"
#include "rules.h"

struct delegation {
	struct header header;
	struct trace_record trace;
};

/* Tells the session that wrote it. `task` is who executes. */
static __noinline int delegate(struct task_struct *task, struct vfsmount *mnt, struct dentry *dentry, __u64 writer)
{
	__u32 number = 0, to = sizeof(struct delegation), cut = 0;
	__u64 key = writer;
	struct session *session = bpf_map_lookup_elem(&sessions, &key);
	struct mark *mark = mark_of(task);

	/* Its own, or that of one that is forgotten. */
	if (!session || (mark && mark->session == writer))
		return 0;
	if (!mark && task->tgid != 1 && !is_agent(task)) {
		struct mark made = {
			.session = writer,
			.begun = 1,
			.classes = session->classes,
			.strict = session->strict,
		};
		/* For all threads: a library is loaded by one of them. */
		__sync_fetch_and_add(mark_task(task->group_leader, &made) ? &session->unmarked : &session->tasks, 1);
	}
	struct place *place = take_place(&number);
	if (!place)
		return lose_one(session, CLASS_CONTROL);
	struct delegation *record = (struct delegation *)place->bytes;
	__u64 sequence = __sync_fetch_and_add(&session->tallies[CLASS_CONTROL].records, 1);
	begin_at(&record->header, task, writer, sequence, KIND_TRACE, PROV_TP);
	record->trace.other_session = mark ? mark->session : 0;
	record->trace.op = TRACE_DELEGATE;
	record->trace.code = 0;
	record->trace.other = task->tgid;
	record->trace.result = 0;
	bpf_probe_read_kernel(record->trace.other_comm, sizeof(record->trace.other_comm), task->comm);
	record->trace.via = VIA_FILE;
	record->trace.name_len = put_path(place, number, to, mnt, dentry, &cut);
	int answer = send(session, CLASS_CONTROL, &record->header, to + record->trace.name_len);
	leave_place(place);
	return answer;
}

/* The number of the session that wrote a file; 0 for none. */
static __always_inline __u64 writer_of(struct inode *inode)
{
	struct taint_key key = taint_key_of(inode);
	__u64 *writer = bpf_map_lookup_elem(&taints, &key);

	return writer ? *writer : 0;
}

#endif
