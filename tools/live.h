/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what the commands on active devices have in common.
 */

#ifndef COWSETUP_LIVE_H
#define COWSETUP_LIVE_H

#include <sys/statvfs.h>

#include "dm.h"

/* How much can still be written into a cowfile, and what sets that bound. */
struct space {
	u64 free, total;	/* bytes */
	const char *of;		/* "limit", "device" or "filesystem": one word, for programs */
};

/* The device that a command is about, in *@d: for root, with a kernel that has the target. */
int live_find(const char *name, struct dm_device *d);

/* Look at the filesystem under a cow file; f_frsize is 0 if there is none. */
void live_look(const struct dm_device *d, struct statvfs *fs);

/*
 * The least of what the limit, the cow device and that filesystem have left.
 */
void live_space(const struct dm_device *d, const struct statvfs *fs, struct space *s);

/* What people call a device of a cowloop device: a file if it is made of one. To be freed. */
char *live_file(dev_t dev);

/* The JSON value, or the lines for people, of space; between report_start() and report_end(). */
void report_space(const struct space *s);

#endif /* COWSETUP_LIVE_H */
