/* What sessions must not do, kept: programs that exist only for the rules of roles. They are named for their hooks after
 * `enforce_`, and stand beside those that observe. Only tasks of sessions are kept from anything, and of them neither the first
 * process nor the node; a task outside sessions costs one lookup per hook. */
#include "path.h"
#include "rules.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Of structures that kernel.h has, what only rules look at. */
struct super_block___rules {
	unsigned long s_magic;
};

struct dentry___rules {
	struct super_block___rules *d_sb;
	struct qstr d_name;
};

struct unix_sock___rules {
	struct path path;
};

#pragma clang attribute pop

#define FMODE_WRITE 2
#define O_TRUNC 01000
#define PROC_SUPER_MAGIC 0x9fa0
#define BPF_FS_MAGIC 0xcafe4a11
#define PTRACE_MODE_ATTACH 2
#define AF_UNSPEC 0
#define AF_UNIX 1
#define PROT_EXEC 4

/* What a path is looked up for: a space, and whether what is below goes with it. */
struct asked {
	__u32 deed;
	__u32 has;
	__u32 space;
	__u32 moves;
};

/* Walks a path, looks it up, and does what the rule says. Of one place only, so that the walk is verified once for a program. */
static __noinline int judge_path(struct asked *asked, struct vfsmount *mnt, struct dentry *dentry)
{
	struct ruled ruled;
	__u32 number = 0, cut = 0, rule, length;
	int result = 0;

	if (!is_ruled(&ruled) || !(ruled.rules->has & asked->has))
		return 0;
	struct place *place = take_place(&number);
	if (!place)
		return ruled.rules->mode == MODE_AUDIT ? 0 : -EAGAIN;
	struct header *header = (struct header *)place->bytes;
	struct denial *denial = (struct denial *)(header + 1);
	__u32 to = sizeof(*header) + sizeof(*denial);
	length = put_path(place, number, to, mnt, dentry, &cut);
	if (cut)
		rule = RULE_NO_PATH;
	else if (asked->space == SPACE_EXEC)
		rule = rule_of_exec(ruled.policy, number, place->bytes + to, length);
	else if (asked->space == SPACE_WRITE)
		rule = rule_of_write(ruled.policy, number, place->bytes + to, length, asked->moves);
	else
		rule = rule_of_path(ruled.policy, SPACE_SOCKET, number, place->bytes + to, length);
	if (rule) {
		__builtin_memset(denial, 0, sizeof(*denial));
		begin_denial(denial, &ruled, asked->deed, rule);
		denial->path_len = length;
		result = deny(&ruled, header, denial, to + length, (__u64)dentry, 0);
	}
	leave_place(place);
	return result;
}

static __always_inline int judge_exec(__u32 deed, struct file *file)
{
	struct asked asked = { .deed = deed, .has = HAS_EXEC, .space = SPACE_EXEC };

	return judge_path(&asked, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry));
}

static __always_inline int judge_write(__u32 deed, const struct path *path, struct dentry *dentry, int moves)
{
	struct asked asked = { .deed = deed, .has = HAS_WRITE, .space = SPACE_WRITE, .moves = moves };

	return judge_path(&asked, BPF_CORE_READ(path, mnt), dentry);
}

/* A deed that has no path. */
struct plain {
	struct header header;
	struct denial denial;
};

/* What contained sessions must not do; of the bits of containment, one. */
static __noinline int judge_contained(__u32 bit, __u32 deed, __u32 code, __u32 other)
{
	struct ruled ruled;
	struct plain plain = {};

	if (!is_ruled(&ruled) || !(ruled.rules->contain & bit))
		return 0;
	begin_denial(&plain.denial, &ruled, deed, RULE_CONTAIN | bit);
	plain.denial.code = code;
	plain.denial.other = other;
	return deny(&ruled, &plain.header, &plain.denial, sizeof(plain), code, other);
}

/* Each program on its way to the one that runs: a script, then its interpreter. Not sleepable: Linux 6.1 gives a trie to no
 * program that sleeps. */
SEC("lsm/bprm_check_security")
int BPF_PROG(enforce_bprm_check_security, struct linux_binprm *bprm)
{
	return judge_exec(DEED_EXEC, bprm->file);
}

#define HASH_ALGO_SHA256 4

/* By their bytes, of which the kernel's integrity measurement knows the digest; it reads the whole file. */
SEC("lsm.s/bprm_check_security")
int BPF_PROG(enforce_bprm_check_security__sha256, struct linux_binprm *bprm)
{
	struct ruled ruled;
	struct plain plain = {};
	struct rules_hash key = {};
	struct task_struct *task = bpf_get_current_task_btf();

	/* A program that sleeps may not look at the task's leader; the one before this has. */
	if (!is_ruled_as(&ruled, task, mark_of(task)) || !(ruled.rules->has & HAS_HASH))
		return 0;
	/* 64 bytes: the longest digest there is. */
	__u8 digest[64] = {};
	long algorithm = bpf_ima_file_hash(bprm->file, digest, sizeof(digest));
	if (algorithm == HASH_ALGO_SHA256) {
		key.policy = ruled.policy;
		__builtin_memcpy(key.sha256, digest, sizeof(key.sha256));
		__u32 *rule = bpf_map_lookup_elem(&rules_hashes, &key);
		if (!rule)
			return 0;
		begin_denial(&plain.denial, &ruled, DEED_EXEC, *rule);
	} else {
		/* It cannot be told apart from one that is denied. */
		begin_denial(&plain.denial, &ruled, DEED_EXEC, RULE_NO_DIGEST);
		plain.denial.code = -algorithm;
	}
	return deny(&ruled, &plain.header, &plain.denial, sizeof(plain), bprm->file->f_inode->i_ino, 0);
}

/* `ld.so ./program`, and libraries. */
SEC("lsm/mmap_file")
int BPF_PROG(enforce_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot)
{
	__u64 there = 0;

	if (!(prot & PROT_EXEC))
		return 0;
	/* There is no file behind memory that is of none. Newer verifiers take the argument for one that is always there, and
	 * would leave a comparison out: so it is compared as a number. */
	bpf_probe_read_kernel(&there, sizeof(there), &ctx[0]);
	return there ? judge_exec(DEED_MAP_EXEC, (struct file *)there) : 0;
}

/* What was mapped to be read. */
SEC("lsm/file_mprotect")
int BPF_PROG(enforce_file_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)
{
	struct file *file = vma->vm_file;

	return prot & PROT_EXEC && file ? judge_exec(DEED_MAP_EXEC, file) : 0;
}

/* The name of /proc/PID/loginuid; only the first bytes of it are compared. */
static __always_inline int is_loginuid(struct file *file)
{
	struct dentry___rules *dentry = (void *)BPF_CORE_READ(file, f_path.dentry);
	char name[9] = {};

	if (BPF_CORE_READ(dentry, d_sb, s_magic) != PROC_SUPER_MAGIC)
		return 0;
	bpf_probe_read_kernel(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return *(__u64 *)name == *(__u64 *)"loginuid" && !name[8];
}

SEC("lsm/file_open")
int BPF_PROG(enforce_file_open, struct file *file)
{
	struct asked asked = { .deed = DEED_OPEN, .has = HAS_WRITE, .space = SPACE_WRITE };

	if (!(file->f_mode & FMODE_WRITE) && !(file->f_flags & O_TRUNC))
		return 0;
	if (!mark_of(bpf_get_current_task_btf()))
		return 0;
	if (is_loginuid(file)) {
		int result = judge_contained(CONTAIN_LOGINUID, DEED_LOGINUID, 0, 0);
		if (result)
			return result;
	}
	return judge_path(&asked, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry));
}

SEC("lsm/path_truncate")
int BPF_PROG(enforce_path_truncate, const struct path *path)
{
	return judge_write(DEED_TRUNCATE, path, path->dentry, 0);
}

/* What is pinned there is how the node finds its programs again. */
static __always_inline int judge_pins(struct dentry *dentry)
{
	struct dentry___rules *same = (void *)dentry;

	if (BPF_CORE_READ(same, d_sb, s_magic) != BPF_FS_MAGIC)
		return 0;
	return judge_contained(CONTAIN_PINS, DEED_PINS, 0, 0);
}

SEC("lsm/path_unlink")
int BPF_PROG(enforce_path_unlink, const struct path *dir, struct dentry *dentry)
{
	int result = judge_pins(dentry);

	return result ? result : judge_write(DEED_UNLINK, dir, dentry, 0);
}

SEC("lsm/path_rmdir")
int BPF_PROG(enforce_path_rmdir, const struct path *dir, struct dentry *dentry)
{
	int result = judge_pins(dentry);

	return result ? result : judge_write(DEED_RMDIR, dir, dentry, 1);
}

/* Both names; what an exchange puts in the other's place is judged by its own call of the hook. */
SEC("lsm/path_rename")
int BPF_PROG(enforce_path_rename, const struct path *old_dir, struct dentry *old, const struct path *new_dir,
	     struct dentry *new)
{
	int result = judge_pins(old);

	if (!result)
		result = judge_write(DEED_RENAME, old_dir, old, 1);
	return result ? result : judge_write(DEED_RENAME, new_dir, new, 1);
}

/* A second name is a way round: both are judged. */
SEC("lsm/path_link")
int BPF_PROG(enforce_path_link, struct dentry *old, const struct path *new_dir, struct dentry *new)
{
	int result = judge_write(DEED_LINK, new_dir, old, 0);

	return result ? result : judge_write(DEED_LINK, new_dir, new, 0);
}

SEC("lsm/path_symlink")
int BPF_PROG(enforce_path_symlink, const struct path *dir, struct dentry *dentry)
{
	return judge_write(DEED_SYMLINK, dir, dentry, 0);
}

SEC("lsm/path_mkdir")
int BPF_PROG(enforce_path_mkdir, const struct path *dir, struct dentry *dentry)
{
	return judge_write(DEED_MKDIR, dir, dentry, 0);
}

/* Files that open(2) makes, too. */
SEC("lsm/path_mknod")
int BPF_PROG(enforce_path_mknod, const struct path *dir, struct dentry *dentry)
{
	return judge_write(DEED_MKNOD, dir, dentry, 0);
}

SEC("lsm/path_chmod")
int BPF_PROG(enforce_path_chmod, const struct path *path)
{
	return judge_write(DEED_CHMOD, path, path->dentry, 0);
}

SEC("lsm/path_chown")
int BPF_PROG(enforce_path_chown, const struct path *path)
{
	return judge_write(DEED_CHOWN, path, path->dentry, 0);
}

/* Of sockaddr_in and sockaddr_in6, what both have of each. */
struct name {
	__u16 family;
	__u16 port;
	__u8 v4[4];
	__u8 v6[16];
};

static __noinline int judge_address(__u32 deed, struct socket *socket, void *address, int length)
{
	struct ruled ruled;
	struct plain plain = {};
	struct name name = {};

	if (!is_ruled(&ruled) || !(ruled.rules->has & HAS_CONNECT))
		return 0;
	bpf_probe_read_kernel(&name, sizeof(name), address);
	__u32 family = name.family;
	/* To send without a family is to send by IPv4. */
	if (family == AF_UNSPEC && deed == DEED_SEND && BPF_CORE_READ(socket, sk, __sk_common.skc_family) == AF_INET)
		family = AF_INET;
	if (family == AF_INET && length >= 8)
		__builtin_memcpy(plain.denial.address, name.v4, sizeof(name.v4));
	else if (family == AF_INET6 && length >= sizeof(name))
		__builtin_memcpy(plain.denial.address, name.v6, sizeof(name.v6));
	else
		return 0;
	__u16 port = __builtin_bswap16(name.port);
	__u32 rule = rule_of_connect(ruled.policy, family, plain.denial.address, port);
	if (!rule)
		return 0;
	begin_denial(&plain.denial, &ruled, deed, rule);
	plain.denial.family = family;
	plain.denial.port = port;
	__u64 *halves = (__u64 *)plain.denial.address;
	return deny(&ruled, &plain.header, &plain.denial, sizeof(plain), halves[0] ^ halves[1], port);
}

SEC("lsm/socket_connect")
int BPF_PROG(enforce_socket_connect, struct socket *socket, void *address, int length)
{
	return judge_address(DEED_CONNECT, socket, address, length);
}

/* Datagrams, and streams whose first bytes make the connection. */
SEC("lsm/socket_sendmsg")
int BPF_PROG(enforce_socket_sendmsg, struct socket *socket, struct msghdr *message)
{
	void *address = message->msg_name;

	return address ? judge_address(DEED_SEND, socket, address, message->msg_namelen) : 0;
}

static __always_inline int judge_socket(struct sock *other)
{
	struct unix_sock___rules *unix = (void *)other;
	struct asked asked = { .deed = DEED_SOCKET, .has = HAS_SOCKET, .space = SPACE_SOCKET };
	struct dentry *dentry = BPF_CORE_READ(unix, path.dentry);

	return dentry ? judge_path(&asked, BPF_CORE_READ(unix, path.mnt), dentry) : 0;
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(enforce_unix_stream_connect, struct sock *sock, struct sock *other)
{
	return judge_socket(other);
}

SEC("lsm/unix_may_send")
int BPF_PROG(enforce_unix_may_send, struct socket *socket, struct socket *other)
{
	return judge_socket(BPF_CORE_READ(other, sk));
}

SEC("lsm/bpf")
int BPF_PROG(enforce_bpf, int command)
{
	return judge_contained(CONTAIN_BPF, DEED_BPF, command, 0);
}

/* Of another session, or of none; to look at a process is no taking hold of it. */
SEC("lsm/ptrace_access_check")
int BPF_PROG(enforce_ptrace_access_check, struct task_struct *child, unsigned int mode)
{
	struct mark *ours = mark_of(bpf_get_current_task_btf());

	if (!ours || !(mode & PTRACE_MODE_ATTACH))
		return 0;
	struct mark *theirs = mark_of(child);
	if (theirs && theirs->session == ours->session)
		return 0;
	return judge_contained(CONTAIN_TRACE, DEED_TRACE, 0, child->tgid);
}

/* Modules and other kernels, from files and from memory. */
SEC("lsm/kernel_read_file")
int BPF_PROG(enforce_kernel_read_file, struct file *file, unsigned int id)
{
	if (id != bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE) &&
	    id != bpf_core_enum_value(enum kernel_read_file_id, READING_KEXEC_IMAGE))
		return 0;
	return judge_contained(CONTAIN_MODULE, DEED_MODULE, id, 0);
}

SEC("lsm/kernel_load_data")
int BPF_PROG(enforce_kernel_load_data, unsigned int id)
{
	if (id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE) &&
	    id != bpf_core_enum_value(enum kernel_load_data_id, LOADING_KEXEC_IMAGE))
		return 0;
	return judge_contained(CONTAIN_MODULE, DEED_MODULE, id, 0);
}

/* What the kernel would load for it. */
SEC("lsm/kernel_module_request")
int BPF_PROG(enforce_kernel_module_request)
{
	return judge_contained(CONTAIN_MODULE, DEED_MODULE, 0, 0);
}

/* 0 is no signal, but a look whether somebody is there. */
SEC("lsm/task_kill")
int BPF_PROG(enforce_task_kill, struct task_struct *target, void *info, int signal)
{
	if (!signal || !is_agent(target))
		return 0;
	return judge_contained(CONTAIN_SIGNAL, DEED_SIGNAL, signal, target->tgid);
}

/* Input and output that is to be told by a signal is told by whoever runs: the node has never asked for it. */
SEC("lsm/file_send_sigiotask")
int BPF_PROG(enforce_file_send_sigiotask, struct task_struct *target, void *owner, int signal)
{
	if (!is_agent(target))
		return 0;
	judge_contained(CONTAIN_SIGNAL, DEED_SIGNAL, signal, target->tgid);
	return -EPERM;
}

/* What else slows or ends a process. */
static __always_inline int judge_agent(struct task_struct *target)
{
	return is_agent(target) ? judge_contained(CONTAIN_SIGNAL, DEED_SIGNAL, 0, target->tgid) : 0;
}

SEC("lsm/task_setrlimit")
int BPF_PROG(enforce_task_setrlimit, struct task_struct *target)
{
	return judge_agent(target);
}

SEC("lsm/task_setscheduler")
int BPF_PROG(enforce_task_setscheduler, struct task_struct *target)
{
	return judge_agent(target);
}

SEC("lsm/task_setnice")
int BPF_PROG(enforce_task_setnice, struct task_struct *target)
{
	return judge_agent(target);
}

SEC("lsm/sb_mount")
int BPF_PROG(enforce_sb_mount)
{
	return judge_contained(CONTAIN_MOUNT, DEED_MOUNT, 0, 0);
}

SEC("lsm/move_mount")
int BPF_PROG(enforce_move_mount)
{
	return judge_contained(CONTAIN_MOUNT, DEED_MOUNT, 1, 0);
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(enforce_sb_pivotroot)
{
	return judge_contained(CONTAIN_MOUNT, DEED_MOUNT, 2, 0);
}

SEC("lsm/sb_umount")
int BPF_PROG(enforce_sb_umount)
{
	return judge_contained(CONTAIN_MOUNT, DEED_MOUNT, 3, 0);
}
