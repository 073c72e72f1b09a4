/* What a session wrote is executed by others: seen at each step (Tier A); of the last, process.bpf.c tells. */
#include "delegate.h"

/* Each step: the script, its interpreter. Where there are no LSM programs, only the last is seen. */
SEC("lsm/bprm_check_security")
int BPF_PROG(bprm_check_security, struct linux_binprm *bprm, int ret)
{
	struct teller teller;
	struct file *file = bprm->file;
	__u64 writer = ret ? 0 : writer_of(file->f_inode);

	if (writer)
		delegate(bpf_get_current_task_btf(), file->f_path.mnt, file->f_path.dentry, writer);
	/* It is told of when it runs, which is too late to hold it back. */
	if (!ret && tell(&teller) && teller.session->strict && !has_room(teller.session, teller.number))
		return lose_one(teller.session, CLASS_CONTROL);
	return ret;
}

static __always_inline void delegate_code(struct file *file, unsigned long prot)
{
	__u64 writer = file && prot & 4 ? writer_of(BPF_CORE_READ(file, f_inode)) : 0;

	if (writer)
		delegate(bpf_get_current_task_btf(), BPF_CORE_READ(file, f_path.mnt),
			 BPF_CORE_READ(file, f_path.dentry), writer);
}

/* A library that a session wrote, in a process of another or of none. */
SEC("lsm/mmap_file")
int BPF_PROG(delegate_mmap_file, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags,
	     int ret)
{
	if (!ret)
		delegate_code(file, prot);
	return ret;
}

/* In two steps. */
SEC("lsm/file_mprotect")
int BPF_PROG(delegate_file_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot, int ret)
{
	if (!ret)
		delegate_code(vma->vm_file, prot);
	return ret;
}
