// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what is mounted, by /proc/PID/mountinfo: unlike /proc/mounts it has
 * the device numbers, and no filesystem, whose server may be gone, has to be
 * asked for its own. Users choose much of what is in there, so libmount reads
 * it.
 */

#include "mountinfo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <libmount.h>

#include "sysfs.h"

struct mounts {
	struct libmnt_table *table;
	struct libmnt_iter *iter;
};

void mounts_free(struct mounts *mounts)
{
	if (!mounts)
		return;
	mnt_free_iter(mounts->iter);
	mnt_unref_table(mounts->table);
	free(mounts);
}

struct mounts *mounts_read(const char *path)
{
	struct mounts *mounts = calloc(1, sizeof(*mounts));

	if (!mounts)
		return NULL;
	mounts->table = mnt_new_table_from_file(path);
	mounts->iter = mnt_new_iter(MNT_ITER_FORWARD);
	if (mounts->table && mounts->iter)
		return mounts;
	mounts_free(mounts);
	return NULL;
}

static const char *text_or_empty(const char *text)
{
	return text ? text : "";
}

bool mounts_next(struct mounts *mounts, struct mount *m)
{
	struct libmnt_fs *fs;

	if (mnt_table_next_fs(mounts->table, mounts->iter, &fs))
		return false;
	m->dev = mnt_fs_get_devno(fs);
	/* By this mount: the filesystem's own options are apart. */
	m->writable = !mnt_optstr_get_option(text_or_empty(mnt_fs_get_vfs_options(fs)), "rw", NULL, NULL);
	m->point = text_or_empty(mnt_fs_get_target(fs));
	m->type = text_or_empty(mnt_fs_get_fstype(fs));
	m->source = text_or_empty(mnt_fs_get_source(fs));
	return true;
}

/* ---- Whose mount it is ---- */

bool mount_is_of(const struct mount *m, dev_t dev)
{
	struct stat st;
	char *fs, *own;
	bool same;

	if (m->dev == dev)
		return true;
	/*
	 * A btrfs has a number of its own, and shows one of its devices, which the
	 * kernel knows; a text that somebody has chosen is no proof.
	 */
	if (strcmp(m->type, "btrfs") || stat(m->source, &st) || !S_ISBLK(st.st_mode))
		return false;
	if (st.st_rdev == dev)
		return true;
	fs = dev_btrfs(st.st_rdev);
	own = dev_btrfs(dev);
	same = fs && own && !strcmp(fs, own);
	free(fs);
	free(own);
	return same;
}

int device_mount(const char *mountinfo, dev_t dev, char **point, bool *writable)
{
	struct mounts *mounts = mounts_read(mountinfo);
	struct mount m;
	int err = 0;

	*point = NULL;
	*writable = false;
	while (mounts && !err && !*writable && mounts_next(mounts, &m)) {
		if (!mount_is_of(&m, dev))
			continue;
		free(*point);
		*point = strdup(m.point);
		err = *point ? 0 : ENOMEM;
		*writable = m.writable;
	}
	mounts_free(mounts);
	return err;
}
