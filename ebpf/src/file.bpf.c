/* Files, before it happens (Tier A): the kernel's own objects, whatever the program typed. */
#include "file.h"

SEC("lsm/file_open")
int BPF_PROG(file_open, struct file *file, int ret)
{
	struct teller teller;

	/* What is executed is told of as that. */
	if (ret || file->f_mode & FMODE_EXEC || file->f_flags & FMODE_EXEC || !tell(&teller))
		return ret;
	return tell_open(&teller, file, FILE_OPEN, PROV_LSM);
}

#define MAY_WRITE 2

/* The first write to a file: by a descriptor that somebody else opened, too. */
SEC("lsm/file_permission")
int BPF_PROG(file_permission, struct file *file, int mask, int ret)
{
	struct teller teller;
	__u64 times;

	if (ret || !(mask & MAY_WRITE) || !tell_of(&teller, CLASS_FILE))
		return ret;
	struct inode *inode = file->f_inode;
	__u16 mode = inode->i_mode & S_IFMT;
	if (mode != S_IFREG && mode != S_IFBLK)
		return 0;
	if (is_folded_file(&teller, inode, FILE_WRITE, &times) || times)
		return 0;
	taint(&teller, inode);
	struct deed deed = {
		.mnt = file->f_path.mnt,
		.dentry = file->f_path.dentry,
		.op = FILE_WRITE,
		.flags = file->f_flags,
		.prov = PROV_LSM,
	};
	return tell_file(&teller, &deed);
}

#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_SHARED 1

static __always_inline int tell_mapped(struct file *file, unsigned long prot, unsigned long flags)
{
	struct teller teller;
	int writes = prot & PROT_WRITE && flags & MAP_SHARED;

	if (!file || !(prot & PROT_EXEC || writes) || !tell_of(&teller, CLASS_FILE))
		return 0;
	struct deed deed = {
		.mnt = BPF_CORE_READ(file, f_path.mnt),
		.dentry = BPF_CORE_READ(file, f_path.dentry),
		.op = writes ? FILE_WRITE : FILE_MAP_EXEC,
		.flags = BPF_CORE_READ(file, f_flags),
		.prov = PROV_LSM,
	};
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	if (is_folded_file(&teller, inode, deed.op, &deed.times) || deed.times)
		return 0;
	if (writes)
		taint(&teller, inode);
	return tell_file(&teller, &deed);
}

SEC("lsm/mmap_file")
int BPF_PROG(mmap_file, struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags, int ret)
{
	return ret ? ret : tell_mapped(file, prot, flags);
}

SEC("lsm/file_mprotect")
int BPF_PROG(file_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot, int ret)
{
	return ret ? ret : tell_mapped(vma->vm_file, prot & PROT_EXEC, 0);
}

/* From another process: over a socket, or taken. */
SEC("lsm/file_receive")
int BPF_PROG(file_receive, struct file *file, int ret)
{
	struct teller teller;

	if (ret || !tell(&teller))
		return ret;
	return tell_open(&teller, file, FILE_RECEIVE, PROV_LSM);
}

#define FS_IOC_SETFLAGS 0x40086602

SEC("lsm/file_ioctl")
int BPF_PROG(file_ioctl, struct file *file, unsigned int cmd, unsigned long arg, int ret)
{
	struct teller teller;

	if (ret || cmd != FS_IOC_SETFLAGS || !tell_of(&teller, CLASS_FILE))
		return ret;
	struct deed deed = {
		.mnt = file->f_path.mnt, .dentry = file->f_path.dentry, .op = FILE_SETFLAGS, .prov = PROV_LSM
	};
	return tell_file(&teller, &deed);
}

/* The common case: something is done with a name, perhaps with another, or with a text. */
static __always_inline int tell_path(__u32 op, struct vfsmount *mnt, struct dentry *dentry, __u32 flags, __u32 mode,
				     struct vfsmount *other_mnt, struct dentry *other, const char *text)
{
	struct teller teller;

	if (!tell_of(&teller, CLASS_FILE))
		return 0;
	struct deed deed = {
		.mnt = mnt,
		.dentry = dentry,
		.other_mnt = other_mnt,
		.other = other,
		.text = text,
		.op = op,
		.flags = flags,
		.mode = mode,
		.prov = PROV_LSM,
	};
	return tell_file(&teller, &deed);
}

SEC("lsm/path_unlink")
int BPF_PROG(path_unlink, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ? ret : tell_path(FILE_UNLINK, dir->mnt, dentry, 0, 0, 0, 0, 0);
}

SEC("lsm/path_rmdir")
int BPF_PROG(path_rmdir, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ? ret : tell_path(FILE_RMDIR, dir->mnt, dentry, 0, 0, 0, 0, 0);
}

SEC("lsm/path_mkdir")
int BPF_PROG(path_mkdir, const struct path *dir, struct dentry *dentry, unsigned short mode, int ret)
{
	return ret ? ret : tell_path(FILE_MKDIR, dir->mnt, dentry, 0, mode, 0, 0, 0);
}

SEC("lsm/path_mknod")
int BPF_PROG(path_mknod, const struct path *dir, struct dentry *dentry, unsigned short mode, unsigned int dev, int ret)
{
	/* An ordinary file is told of when it is opened. */
	return ret || !(mode & S_IFMT) || (mode & S_IFMT) == S_IFREG ?
		       ret :
		       tell_path(FILE_MKNOD, dir->mnt, dentry, dev, mode, 0, 0, 0);
}

SEC("lsm/path_symlink")
int BPF_PROG(path_symlink, const struct path *dir, struct dentry *dentry, const char *old_name, int ret)
{
	return ret ? ret : tell_path(FILE_SYMLINK, dir->mnt, dentry, 0, 0, 0, 0, old_name);
}

SEC("lsm/path_link")
int BPF_PROG(path_link, struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry, int ret)
{
	return ret ? ret : tell_path(FILE_LINK, new_dir->mnt, old_dentry, 0, 0, new_dir->mnt, new_dentry, 0);
}

SEC("lsm/path_rename")
int BPF_PROG(path_rename, const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir,
	     struct dentry *new_dentry)
{
	/* The flags came with Linux 5.19, before what the previous program said: nobody else's answer is looked at. */
	return tell_path(FILE_RENAME, old_dir->mnt, old_dentry, 0, 0, new_dir->mnt, new_dentry, 0);
}

SEC("lsm/path_truncate")
int BPF_PROG(path_truncate, const struct path *path, int ret)
{
	return ret ? ret : tell_path(FILE_TRUNCATE, path->mnt, path->dentry, 0, 0, 0, 0, 0);
}

/* From Linux 6.2 on, ftruncate(2). */
SEC("lsm/file_truncate")
int BPF_PROG(file_truncate, struct file *file, int ret)
{
	return ret ? ret : tell_path(FILE_TRUNCATE, file->f_path.mnt, file->f_path.dentry, 0, 0, 0, 0, 0);
}

SEC("lsm/path_chmod")
int BPF_PROG(path_chmod, const struct path *path, unsigned short mode, int ret)
{
	return ret ? ret : tell_path(FILE_CHMOD, path->mnt, path->dentry, 0, mode, 0, 0, 0);
}

/* The new owner comes in structures, of which programs see the number. */
SEC("lsm/path_chown")
int BPF_PROG(path_chown, const struct path *path, __u64 uid, __u64 gid, int ret)
{
	return ret ? ret : tell_path(FILE_CHOWN, path->mnt, path->dentry, uid, 0, 0, 0, 0);
}

SEC("lsm/path_chroot")
int BPF_PROG(path_chroot, const struct path *path, int ret)
{
	return ret ? ret : tell_path(FILE_CHROOT, path->mnt, path->dentry, 0, 0, 0, 0, 0);
}

SEC("lsm/inode_setxattr")
int BPF_PROG(inode_setxattr, void *idmap, struct dentry *dentry, const char *name)
{
	return tell_path(FILE_SETXATTR, 0, dentry, 0, 0, 0, 0, name);
}

SEC("lsm/inode_removexattr")
int BPF_PROG(inode_removexattr, void *idmap, struct dentry *dentry, const char *name)
{
	return tell_path(FILE_REMOVEXATTR, 0, dentry, 0, 0, 0, 0, name);
}

/* Access lists, which are attributes as well, but from Linux 6.2 on not for the kernel. */
SEC("lsm/inode_set_acl")
int BPF_PROG(inode_set_acl, void *idmap, struct dentry *dentry, const char *name)
{
	return tell_path(FILE_SETXATTR, 0, dentry, 0, 0, 0, 0, name);
}

SEC("lsm/inode_remove_acl")
int BPF_PROG(inode_remove_acl, void *idmap, struct dentry *dentry, const char *name)
{
	return tell_path(FILE_REMOVEXATTR, 0, dentry, 0, 0, 0, 0, name);
}

SEC("lsm/sb_mount")
int BPF_PROG(sb_mount, const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data,
	     int ret)
{
	return ret ? ret : tell_path(FILE_MOUNT, path->mnt, path->dentry, flags, 0, 0, 0, dev_name);
}

SEC("lsm/move_mount")
int BPF_PROG(move_mount, const struct path *from, const struct path *to, int ret)
{
	return ret ? ret : tell_path(FILE_MOUNT, to->mnt, to->dentry, 0, 0, from->mnt, from->dentry, 0);
}

SEC("lsm/sb_umount")
int BPF_PROG(sb_umount, struct vfsmount *mnt, int flags, int ret)
{
	return ret ? ret : tell_path(FILE_UMOUNT, mnt, mnt->mnt_root, flags, 0, 0, 0, 0);
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(sb_pivotroot, const struct path *old_path, const struct path *new_path, int ret)
{
	return ret ? ret :
		     tell_path(FILE_PIVOT_ROOT, new_path->mnt, new_path->dentry, 0, 0, old_path->mnt, old_path->dentry,
			       0);
}
