// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the file that a loop device is made of.
 */

#include "loopfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/loop.h>

#include "mountinfo.h"
#include "sysfs.h"

static bool loop_status(dev_t dev, struct loop_info64 *info)
{
	char *path = dev_is_loop(dev) ? dev_path(dev) : NULL;
	const int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
	const bool known = fd >= 0 && !ioctl(fd, LOOP_GET_STATUS64, info);

	if (fd >= 0)
		close(fd);
	free(path);
	return known;
}

bool dev_is_our_loop(dev_t dev)
{
	const dev_t disk = dev_disk(dev);
	struct loop_info64 info;

	return loop_status(disk ? disk : dev, &info) &&
	       !strncmp((const char *)info.lo_file_name, LOOP_MARK, sizeof(LOOP_MARK) - 1);
}

bool loop_autoclear(dev_t dev)
{
	char *text = dev_attribute(dev, "loop/autoclear");
	const bool autoclear = text && !strcmp(text, "1");

	free(text);
	return autoclear;
}

bool loop_may_be_asked(dev_t dev)
{
	char *path = dev_path(dev);
	const bool may = !path || !access(path, R_OK) || (errno != EACCES && errno != EPERM);

	free(path);
	return may;
}

/* The kernel's own device number, in the encoding it has for userspace. */
static bool is_file(const struct loop_info64 *info, const struct stat *st)
{
	/* A node of a device may be any of those it has. */
	if (S_ISBLK(st->st_mode))
		return info->lo_rdevice && (dev_t)info->lo_rdevice == st->st_rdev;
	return info->lo_inode == st->st_ino && (dev_t)info->lo_device == st->st_dev;
}

bool loop_has(dev_t dev, const struct stat *st)
{
	struct loop_info64 info;

	return loop_status(dev, &info) && is_file(&info, st);
}

bool loop_backing(dev_t dev, struct stat *st)
{
	struct loop_info64 info;

	if (!loop_status(dev, &info))
		return false;
	*st = (struct stat){
		.st_mode = info.lo_rdevice ? S_IFBLK : S_IFREG,
		.st_rdev = info.lo_rdevice,
		.st_dev = info.lo_device,
		.st_ino = info.lo_inode,
	};
	return true;
}

/* Where @file, a path on a filesystem of which only that is known, is to be found; NULL if it is not. */
static char *find_file(const struct loop_info64 *info, const char *file)
{
	struct mounts *mounts = mounts_read(MOUNTINFO);
	char *path, *found = NULL;
	struct mount m;
	struct stat st;

	while (mounts && !found && mounts_next(mounts, &m)) {
		/*
		 * A filesystem that cannot have it is not asked: a server may be gone. Parts of
		 * a btrfs have their own numbers.
		 */
		if (m.dev != (dev_t)info->lo_device && strcmp(m.type, "btrfs") != 0)
			continue;
		if (asprintf(&path, "%s%s", strcmp(m.point, "/") ? m.point : "", file) < 0)
			break;
		if (!stat(path, &st) && is_file(info, &st))
			found = path;
		else
			free(path);
	}
	mounts_free(mounts);
	return found;
}

/*
 * The kernel has the path that the file had when it was opened. When that was by
 * a mount that is none any more, as by one from the initramfs or in another
 * namespace, it is relative to the filesystem.
 */
char *loop_file(dev_t dev)
{
	char *file = dev_is_loop(dev) ? dev_attribute(dev, "loop/backing_file") : NULL, *found;
	struct loop_info64 info;
	struct stat st;

	if (!file || !loop_status(dev, &info) || (!stat(file, &st) && is_file(&info, &st)))
		return file;
	found = find_file(&info, file);
	if (!found)
		return file;
	free(file);
	return found;
}

bool loop_file_is_removed(dev_t dev)
{
	static const char mark[] = " (deleted)";
	char *file = dev_is_loop(dev) ? dev_attribute(dev, "loop/backing_file") : NULL;
	const size_t n = file ? strlen(file) : 0, m = sizeof(mark) - 1;
	struct loop_info64 info;
	bool removed = n > m && !strcmp(file + n - m, mark);
	struct stat st;

	/* A file may really be called so. */
	if (removed && loop_status(dev, &info) && !stat(file, &st) && is_file(&info, &st))
		removed = false;
	free(file);
	return removed;
}

u64 loop_file_lacks(dev_t dev)
{
	char *file = dev_is_loop(dev) ? dev_attribute(dev, "loop/backing_file") : NULL;
	char *sectors = file ? dev_attribute(dev, "size") : NULL;
	struct loop_info64 info;
	u64 end, lacks = 0;
	struct stat st;

	if (sectors && loop_status(dev, &info) && !stat(file, &st) && S_ISREG(st.st_mode) && is_file(&info, &st)) {
		end = info.lo_offset + strtoull(sectors, NULL, 10) * 512;
		if ((u64)st.st_size < end)
			lacks = end - st.st_size;
	}
	free(sectors);
	free(file);
	return lacks;
}
