/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: how much can still be written into a cowfile.
 */

#ifndef LIBCOWLOOP_SPACE_H
#define LIBCOWLOOP_SPACE_H

#include <sys/statvfs.h>

#include "dm.h"

/* How much there is, and what sets that bound. */
struct space {
	u64 free, total;	/* bytes */
	const char *of;		/* "limit", "device" or "filesystem": one word, for programs */
};

/* Look at the filesystem under a cow file; f_frsize is 0 if there is none. */
void space_look(const struct dm_device *d, struct statvfs *fs);

/*
 * The least of what the limit, the cow device and that filesystem have left for
 * data; of is NULL if nothing is known.
 */
void space_least(const struct dm_device *d, const struct statvfs *fs, struct space *s);

/*
 * How full it is: percent of what can be used that is used. It is 100 only if
 * nothing is free, or the device is out of space, and then always; negative if
 * nothing is known.
 */
double space_percent(const struct dm_device *d, const struct space *s);

#endif /* LIBCOWLOOP_SPACE_H */
