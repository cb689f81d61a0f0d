// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: what sysfs says of block devices. Part of the plugin for dmeventd,
 * too: nothing here prints or exits.
 */

#include "sysfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/loop.h>
#include <linux/major.h>

#include "mountinfo.h"

char *dev_attribute(dev_t dev, const char *name)
{
	char path[512], *line = NULL;
	size_t room = 0;
	ssize_t n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(dev), minor(dev), name);
	f = fopen(path, "re");
	if (f) {
		n = getline(&line, &room, f);
		fclose(f);
	}
	if (n < 0) {
		free(line);
		return NULL;
	}
	if (n && line[n - 1] == '\n')
		line[n - 1] = 0;
	return line;
}

/* "/dev/mapper/vg-lv", which says more than "/dev/dm-3", if that node is there, and is the device. */
static char *mapper_path(dev_t dev)
{
	char *name = dev_attribute(dev, "dm/name"), *path = NULL;
	struct stat st;

	if (name && asprintf(&path, "/dev/mapper/%s", name) < 0)
		path = NULL;
	if (path && (stat(path, &st) || !S_ISBLK(st.st_mode) || st.st_rdev != dev)) {
		free(path);
		path = NULL;
	}
	free(name);
	return path;
}

char *dev_path(dev_t dev)
{
	char link[64], *target, *slash, *path = mapper_path(dev);

	if (path)
		return path;
	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	target = realpath(link, NULL);
	slash = target ? strrchr(target, '/') : NULL;
	/* As cciss/c0d0 is written in sysfs. */
	for (char *p = slash; p && *p; p++)
		if (*p == '!')
			*p = '/';
	if (slash ? asprintf(&path, "/dev/%s", slash + 1) < 0 :
		    asprintf(&path, "%u:%u", major(dev), minor(dev)) < 0)
		path = NULL;
	free(target);
	return path;
}

bool dev_is_loop(dev_t dev)
{
	return major(dev) == LOOP_MAJOR;
}

/* ---- What a device is made of ---- */

/* No real stack of devices is as high. */
#define MAX_DEPTH	32

bool dev_is_cowloop(dev_t dev)
{
	char *uuid = dev_attribute(dev, "dm/uuid");
	const bool is = uuid && !strncmp(uuid, "COWLOOP-", 8);

	free(uuid);
	return is;
}

/* The number in a file in the sysfs directory of a block device; 0 if there is no such file. */
static dev_t number_attribute(dev_t dev, const char *name)
{
	char *text = dev_attribute(dev, name);
	unsigned int maj, min;
	dev_t found = 0;

	if (text && sscanf(text, "%u:%u", &maj, &min) == 2)
		found = makedev(maj, min);
	free(text);
	return found;
}

/* The disk of a partition; 0: it is none. */
static dev_t disk_of_partition(dev_t dev)
{
	char *partition = dev_attribute(dev, "partition");
	const dev_t disk = partition ? number_attribute(dev, "../dev") : 0;

	free(partition);
	return disk;
}

static bool stands_on_cowloop(dev_t dev, unsigned int depth)
{
	const dev_t whole = disk_of_partition(dev);
	struct dirent *entry;
	char path[64], name[280];
	bool found;
	DIR *dir;

	if (depth > MAX_DEPTH || dev_is_cowloop(dev) || (whole && stands_on_cowloop(whole, depth + 1)))
		return true;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves", major(dev), minor(dev));
	dir = opendir(path);
	found = false;
	while (dir && !found && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "slaves/%s/dev", entry->d_name);
		found = stands_on_cowloop(number_attribute(dev, name), depth + 1);
	}
	if (dir)
		closedir(dir);
	return found;
}

bool dev_stands_on_cowloop(dev_t dev)
{
	return stands_on_cowloop(dev, 0);
}

static bool has_cowloop_holder(dev_t dev)
{
	struct dirent *entry;
	char path[64], name[280];
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", major(dev), minor(dev));
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		snprintf(name, sizeof(name), "holders/%s/dev", entry->d_name);
		found = entry->d_name[0] != '.' && dev_is_cowloop(number_attribute(dev, name));
	}
	if (dir)
		closedir(dir);
	return found;
}

bool dev_is_part_of_cowloop(dev_t dev)
{
	const dev_t disk = disk_of_partition(dev);

	return has_cowloop_holder(dev) || (disk && has_cowloop_holder(disk));
}

/* A device's name in the kernel: "dm-3"; to be freed, or NULL. */
static char *kernel_name(dev_t dev)
{
	char link[64], *target, *name;

	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	target = realpath(link, NULL);
	name = target ? strrchr(target, '/') : NULL;
	name = name ? strdup(name + 1) : NULL;
	free(target);
	return name;
}

char *dev_btrfs(dev_t dev)
{
	char *name = kernel_name(dev), *path, *found = NULL;
	DIR *dir = name ? opendir("/sys/fs/btrfs") : NULL;
	struct dirent *entry;

	while (dir && !found && (entry = readdir(dir))) {
		if (asprintf(&path, "/sys/fs/btrfs/%s/devices/%s", entry->d_name, name) < 0)
			break;
		if (!access(path, F_OK))
			found = strdup(entry->d_name);
		free(path);
	}
	if (dir)
		closedir(dir);
	free(name);
	return found;
}

/* ---- The file of a loop device ---- */

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
	const dev_t disk = disk_of_partition(dev);
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

	/* It may be called so. */
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
