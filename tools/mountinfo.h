/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what is mounted.
 */

#ifndef COWSETUP_MOUNTINFO_H
#define COWSETUP_MOUNTINFO_H

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

struct mountinfo {
	dev_t dev;		/* as stat() has it for what is in it, but for parts of a btrfs */
	bool writable;		/* by this mount */
	char point[PATH_MAX];
	char type[64];
	char source[PATH_MAX];	/* what was mounted: a device's path, or any other text */
};

/* Our mounts, in the order they were made: to be closed with fclose(), NULL where there is no /proc. */
FILE *mountinfo_open(void);

/* The next one; false after the last. */
bool mountinfo_next(FILE *f, struct mountinfo *m);

#endif /* COWSETUP_MOUNTINFO_H */
