// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what sysfs says of block devices.
 */

#include "sysfs.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/major.h>

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

dev_t dev_disk(dev_t dev)
{
	char *partition = dev_attribute(dev, "partition");
	const dev_t disk = partition ? number_attribute(dev, "../dev") : 0;

	free(partition);
	return disk;
}

static bool stands_on_cowloop(dev_t dev, unsigned int depth)
{
	const dev_t whole = dev_disk(dev);
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

bool dev_is_shared(dev_t dev, dev_t with)
{
	struct dirent *entry;
	char path[64], name[280];
	bool found = false;
	dev_t holder;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders", major(dev), minor(dev));
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "holders/%s/dev", entry->d_name);
		holder = number_attribute(dev, name);
		found = holder != with && dev_is_cowloop(holder);
	}
	if (dir)
		closedir(dir);
	return found;
}

bool dev_is_part_of_cowloop(dev_t dev)
{
	const dev_t disk = dev_disk(dev);

	return dev_is_shared(dev, 0) || (disk && dev_is_shared(disk, 0));
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
