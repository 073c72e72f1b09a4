/* Rings of io_uring. That one is made is told everywhere; what is asked for through it where LSM programs are refused: they
 * see what its workers do. */
#include "other.h"
#include "typed.h"

/* Whoever makes one can do without system calls. */
SEC("tp_btf/io_uring_create")
int BPF_PROG(io_uring_create)
{
	struct teller teller;

	if (tell_of(&teller, CLASS_CONTROL))
		tell_kernel(&teller, KERNEL_URING, 0, 0, PROV_TP, 0);
	return 0;
}

#define IORING_OP_OPENAT 18
#define IORING_OP_OPENAT2 28
#define IORING_OP_RENAMEAT 35
#define IORING_OP_UNLINKAT 36
#define IORING_OP_MKDIRAT 37
#define IORING_OP_SYMLINKAT 38
#define IORING_OP_LINKAT 39

static __always_inline struct typed copied(struct filename *name, __s32 dir)
{
	struct typed typed = { .text = BPF_CORE_READ(name, name), .dir = dir, .copied = 1 };
	return typed;
}

/* The name in a field of a command, as this kernel has it. */
#define NAME_OF(command, type, field)                                                                       \
	(bpf_core_field_exists(((struct type *)0)->field) ?                                                 \
		 BPF_CORE_READ((struct type *)(command), field) :                                           \
		 BPF_CORE_READ((struct type##___7_0 *)(command), field.__incomplete_filename))

static __always_inline int tell_asked(struct io_kiocb *request)
{
	struct teller teller;
	struct typed_deed deed = { .prov = PROV_URING };
	void *command = (void *)request + bpf_core_field_offset(struct io_kiocb, cmd);

	if (!tell_of(&teller, CLASS_FILE))
		return 0;
	switch (request->opcode) {
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2: {
		struct io_open *open = command;
		deed.op = FILE_OPEN;
		deed.path = copied(NAME_OF(open, io_open, filename), BPF_CORE_READ(open, dfd));
		break;
	}
	case IORING_OP_UNLINKAT: {
		struct io_unlink *unlink = command;
		deed.op = FILE_UNLINK;
		deed.flags = BPF_CORE_READ(unlink, flags);
		deed.path = copied(NAME_OF(unlink, io_unlink, filename), BPF_CORE_READ(unlink, dfd));
		break;
	}
	case IORING_OP_MKDIRAT: {
		struct io_mkdir *mkdir = command;
		deed.op = FILE_MKDIR;
		deed.path = copied(NAME_OF(mkdir, io_mkdir, filename), BPF_CORE_READ(mkdir, dfd));
		break;
	}
	case IORING_OP_RENAMEAT: {
		struct io_rename *rename = command;
		deed.op = FILE_RENAME;
		deed.path = copied(NAME_OF(rename, io_rename, oldpath), BPF_CORE_READ(rename, old_dfd));
		deed.other = copied(NAME_OF(rename, io_rename, newpath), BPF_CORE_READ(rename, new_dfd));
		break;
	}
	case IORING_OP_LINKAT:
	case IORING_OP_SYMLINKAT: {
		struct io_link *link = command;
		int is_link = request->opcode == IORING_OP_LINKAT;
		deed.op = is_link ? FILE_LINK : FILE_SYMLINK;
		deed.is_text = !is_link;
		deed.other = copied(NAME_OF(link, io_link, oldpath), BPF_CORE_READ(link, old_dfd));
		deed.path = copied(NAME_OF(link, io_link, newpath), BPF_CORE_READ(link, new_dfd));
		break;
	}
	default:
		return 0;
	}
	tell_typed(&teller, &deed);
	return 0;
}

SEC("tp_btf/io_uring_submit_req")
int BPF_PROG(io_uring_submit_req, struct io_kiocb *request)
{
	return tell_asked(request);
}

/* What it was called before Linux 6.4. */
SEC("tp_btf/io_uring_submit_sqe")
int BPF_PROG(io_uring_submit_sqe, struct io_kiocb *request)
{
	return tell_asked(request);
}
