/* What a session wrote is executed by others: seen at each step (Tier A); of the last, process.bpf.c tells. */
#include "delegate.h"

/* Each step: the script, its interpreter. Where there are no LSM programs, only the last is seen. */
SEC("lsm/bprm_check_security")
int BPF_PROG(bprm_check_security, struct linux_binprm *bprm, int ret)
{
	struct file *file = bprm->file;
	__u64 writer = ret ? 0 : writer_of(file->f_inode);

	if (writer)
		delegate(bpf_get_current_task_btf(), file->f_path.mnt, file->f_path.dentry, writer);
	return ret;
}

/* A library that a session wrote, in a process of another or of none. */
SEC("lsm/mmap_file")
int BPF_PROG(delegate_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags,
	     int ret)
{
	if (ret || !file || !(prot & 4))
		return ret;
	__u64 writer = writer_of(file->f_inode);
	if (writer)
		delegate(bpf_get_current_task_btf(), file->f_path.mnt, file->f_path.dentry, writer);
	return 0;
}
