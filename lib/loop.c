// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: loop devices.
 *
 * A loop device is attached with the autoclear flag, which has the kernel
 * detach it when it is closed for the last time. We keep it open until the dm
 * device does, so it lives exactly as long as somebody needs it, and nobody has
 * to clean up, however things go.
 *
 * The loop device takes over our open file, and the flock() on it: as long as
 * it is attached, another cowsetup finds the cowfile in use. A block device that
 * was opened for ourselves alone stays so likewise.
 */

#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <linux/btrfs.h>
#include <linux/btrfs_tree.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <linux/major.h>

#include "sysfs.h"

/* A direct read of so much, so aligned, suits any file and any device that can be used. */
#define DIRECT_READ	4096

/* The target's option whole_writes is about writes of whole blocks of so many bytes. */
#define WHOLE_BLOCK	4096

/* ---- What sysfs says ---- */

bool loop_read_only(dev_t dev)
{
	char *text = dev_attribute(dev, "ro");
	const bool read_only = text && !strcmp(text, "1");

	free(text);
	return read_only;
}

bool loop_has_file(dev_t dev, const struct file *f)
{
	struct stat st;

	return !fstat(f->fd, &st) && loop_has(dev, &st);
}

bool loop_wait_gone(dev_t dev, const char *file)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
	bool gone = false;
	char *now;

	/* Programs that open new devices to look what is in them have them for a moment. */
	for (int i = 0; i < 250 && !gone; i++) {
		if (i)
			nanosleep(&pause, NULL);
		now = loop_file(dev);
		gone = !now || strcmp(now, file) || dev_is_shared(dev, 0);
		free(now);
	}
	return gone;
}

/* ---- Attaching ---- */

/*
 * Does direct I/O work? A filesystem without it says so, and the kernel does
 * without. overlayfs takes it on, whatever it lies on, and then fails each read:
 * so read something. Buffered I/O is right in any case, if slower.
 */
static bool can_read_direct(const struct file *f)
{
	void *block;
	bool can = true;
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return errno != EINVAL;
	if (!posix_memalign(&block, DIRECT_READ, DIRECT_READ)) {
		can = pread(fd, block, DIRECT_READ, 0) >= 0;
		free(block);
	}
	close(fd);
	return can;
}

/* Try one that is free now; -1 with errno set. */
static int try_attach(struct loop *l, int control, const struct file *f, bool direct)
{
	struct loop_config config = { .fd = f->fd, .block_size = LOOP_BLOCK };
	struct stat st;
	char path[32];
	int nr;

	nr = ioctl(control, LOOP_CTL_GET_FREE);
	if (nr < 0)
		return -1;
	snprintf(path, sizeof(path), "/dev/loop%d", nr);
	l->fd = open(path, (f->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (l->fd < 0)
		return -1;

	config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (direct ? LO_FLAGS_DIRECT_IO : 0) |
			       (f->writable ? 0 : LO_FLAGS_READ_ONLY);
	/* The mark is there before udev hears of the device, and stays as long as the file is attached. */
	snprintf((char *)config.info.lo_file_name, LO_NAME_SIZE, LOOP_MARK "%s", f->path);
	if (!ioctl(l->fd, LOOP_CONFIGURE, &config) && !fstat(l->fd, &st)) {
		l->dev = st.st_rdev;
		return 0;
	}
	nr = errno;
	loop_close(l);
	errno = nr;
	return -1;
}

/* Say why a file cannot be attached. It is there; what may be missing is the loop device's node. */
static int explain(struct cowloop_ctx *ctx, int control, const struct file *f)
{
	const int err = errno, nr = err == ENOENT ? ioctl(control, LOOP_CTL_GET_FREE) : -1;

	if (nr >= 0)
		return error(ctx, WRONG, "%s: needs a loop device, and the kernel has %d for it, but the node /dev/loop%d is missing: udev makes such nodes, or mknod /dev/loop%d b %d %d; a container has those that it was given.",
			     f->path, nr, nr, nr, LOOP_MAJOR, nr);
	errno = err;
	return error_errno(ctx, "%s: cannot be attached to a loop device", f->path);
}

int loop_attach(struct cowloop_ctx *ctx, struct loop *l, const struct file *f, enum loop_io io)
{
	const struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };
	const bool direct = io == LOOP_DIRECT && can_read_direct(f);
	int control, r = -1;

	*l = LOOP_CLOSED;
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return error_errno(ctx, "%s: needs a loop device, and /dev/loop-control cannot be opened (modprobe loop?)",
				   f->path);
	/* Others look for a free one, too: whoever comes second has to look again. */
	for (int i = 0; i < 200 && r && !is_cancelled(ctx); i++) {
		r = try_attach(l, control, f, direct);
		if (r && errno != EBUSY && errno != ENXIO && errno != ENOENT && errno != EINTR)
			break;
		if (r)
			nanosleep(&pause, NULL);
	}
	if (r && is_cancelled(ctx))
		errno = EINTR;
	if (r)
		r = explain(ctx, control, f);
	close(control);

	return r;
}

void loop_close(struct loop *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}

/* ---- Writes that are taken whole ---- */

/*
 * The file has direct I/O, for blocks of @block bytes. The kernel says so for ext4 and xfs, and
 * knows of what has it do buffered I/O all the same: data=journal, encryption. DAX is another way.
 */
static bool has_direct_blocks(const struct file *f, unsigned int block)
{
	struct statx st;

	return !statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) && st.stx_mask & STATX_DIOALIGN &&
	       st.stx_dio_offset_align && st.stx_dio_offset_align <= block &&
	       !(st.stx_attributes & STATX_ATTR_DAX);
}

/* Some data of a btrfs is kept more than once, or may come to be: Linux 7 writes that by buffered I/O. */
static bool btrfs_has_copies(const struct file *f)
{
	struct btrfs_ioctl_space_args count = { 0 }, *all;
	bool copies = true;

	if (ioctl(f->fd, BTRFS_IOC_SPACE_INFO, &count))
		return true;
	all = calloc(1, sizeof(*all) + count.total_spaces * sizeof(all->spaces[0]));
	if (all) {
		all->space_slots = count.total_spaces;
		copies = ioctl(f->fd, BTRFS_IOC_SPACE_INFO, all);
		for (u64 i = 0; i < all->total_spaces && i < all->space_slots && !copies; i++)
			copies = all->spaces[i].flags & BTRFS_BLOCK_GROUP_DATA &&
				 all->spaces[i].flags & BTRFS_BLOCK_GROUP_PROFILE_MASK & ~BTRFS_BLOCK_GROUP_RAID0;
	}
	free(all);
	return copies;
}

/*
 * A loop device takes a short write for a whole one, as it is when the filesystem is full and
 * has room for its beginning. Direct I/O of whole blocks is never short on these filesystems:
 * where they lack space in the midst of it, it fails. Buffered I/O may be short, and is what
 * they fall back to: btrfs for a file with checksums or copies; ext4 for one without extents, which it
 * has from ext2 or ext3; xfs for parts of blocks that a copy shares.
 */
bool loop_takes_whole(const struct loop *l, const struct file *f)
{
	struct loop_info64 info;
	struct statfs fs;
	int flags;

	if (ioctl(l->fd, LOOP_GET_STATUS64, &info) || !(info.lo_flags & LO_FLAGS_DIRECT_IO) ||
	    fstatfs(f->fd, &fs) || fs.f_bsize > WHOLE_BLOCK || ioctl(f->fd, FS_IOC_GETFLAGS, &flags))
		return false;
	switch (fs.f_type) {
	case EXT4_SUPER_MAGIC:
		return flags & FS_EXTENT_FL && has_direct_blocks(f, WHOLE_BLOCK);
	case XFS_SUPER_MAGIC:
		return has_direct_blocks(f, WHOLE_BLOCK);
	case BTRFS_SUPER_MAGIC:
		return flags & FS_NOCOW_FL && !btrfs_has_copies(f);
	default:
		return false;
	}
}
