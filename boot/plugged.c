// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup assemble: pairs that no line of the table names, and that are opened
 * as soon as they are plugged in, where the table has the line for that.
 *
 * A user who plugs a device in chooses all that is on it: the head of the cowfile
 * with its label and the text that says where rdo is, and what the opened device
 * will contain. So nothing of that is used but within these bounds:
 *
 * - The name of the device begins with PLUGGED_PREFIX, which nobody's fstab uses.
 * - rdo is a block device: found by a tag, or by a path that does not lead out of
 *   /dev. No path is opened to find out what it is.
 * - No part of a pair stands on a cowloop device. What appears on a device that was
 *   opened here can therefore not have another one opened over it, and so on.
 * - There are PLUGGED_MAX devices at most.
 *
 * The links to such a device have a priority below that of others: see udev's rules.
 */

#include "plugged.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/openat2.h>
#include <uuid/uuid.h>

#include "../lib/dm.h"
#include "../lib/name.h"
#include "../lib/spec.h"
#include "../lib/sysfs.h"
#include "memory.h"

/* ---- What they are made of ---- */

/*
 * The number of the block device at a path below /dev, 0 if it is none. Whatever is
 * mounted there, or linked to from there, is not looked at: it may be anybody's.
 */
static dev_t number_in_dev(const char *path)
{
	const struct open_how how = {
		.flags = O_PATH | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS,
	};
	const int dir = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd = -1;
	struct stat st;
	dev_t dev = 0;

	if (dir >= 0 && !strncmp(path, "/dev/", 5))
		fd = syscall(SYS_openat2, dir, path + 5, &how, sizeof(how));
	if (fd >= 0 && !fstat(fd, &st) && S_ISBLK(st.st_mode))
		dev = st.st_rdev;
	if (fd >= 0)
		close(fd);
	if (dir >= 0)
		close(dir);
	return dev;
}

static const char *refuse_device(dev_t dev)
{
	return dev_stands_on_cowloop(dev) ? "it stands on a cowloop device itself" : NULL;
}

char *plugged_find_rdo(const char *spec, const char **why)
{
	char *tag = xtext(spec_unlink(spec)), *path = NULL;
	const struct spec_tag *kind;
	const char *value;
	struct stat st;
	dev_t dev = 0;

	*why = NULL;
	kind = spec_tag(tag, &value);
	if (kind) {
		path = find_tagged(tag);
		if (path && !stat(path, &st) && S_ISBLK(st.st_mode))
			dev = st.st_rdev;
	} else {
		dev = number_in_dev(tag);
		path = dev ? dev_path(dev) : NULL;
		if (!dev)
			*why = "expected UUID=, LABEL=, PARTUUID= or PARTLABEL=, or the path of a block device in /dev that is there";
	}
	if (dev)
		*why = refuse_device(dev);
	if (!dev || *why) {
		free(path);
		path = NULL;
	}
	free(tag);
	return path;
}

const char *plugged_refuse_cow(const char *path)
{
	struct stat st;

	return stat(path, &st) ? NULL : refuse_device(st.st_rdev);
}

/* ---- What they become ---- */

char *plugged_name(const struct cowtab *tab, const struct cow_device *cow)
{
	char *label = head_label(&cow->head, cow->format), *name, uuid[UUID_STR_LEN];

	name_make_plain(label);
	name = xasprintf(PLUGGED_PREFIX "%s", label);
	if (!*label || cowtab_find(tab, name) || dm_name_exists(name)) {
		free(name);
		uuid_unparse_lower(cow->head.uuid, uuid);
		name = xasprintf(PLUGGED_PREFIX "%s", uuid);
	}
	free(label);
	return name;
}

int plugged_check_number(struct cowloop_ctx *ctx, const char *cow)
{
	struct dm_device *devices;
	unsigned int found = 0;
	size_t nr;
	int r = dm_list(ctx, &devices, &nr);

	for (size_t i = 0; i < nr; i++)
		found += !strncmp(devices[i].name, PLUGGED_PREFIX, strlen(PLUGGED_PREFIX));
	free(devices);
	if (!r && found >= PLUGGED_MAX)
		r = error(ctx, BUSY, "%s: not opened: found %u devices %s* open, expected fewer than %u, which is how many are opened that no line of the table names; cowsetup close closes those that are not needed, or give this one a line, see cowtab(5).",
			  cow, found, PLUGGED_PREFIX, PLUGGED_MAX);
	return r;
}
