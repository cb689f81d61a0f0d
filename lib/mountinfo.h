/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: what is mounted.
 */

#ifndef LIBCOWLOOP_MOUNTINFO_H
#define LIBCOWLOOP_MOUNTINFO_H

#include <stdbool.h>
#include <sys/types.h>

/* Its texts are those of the mounts that it was read from, and live as long. Each may be empty, none is NULL. */
struct mount {
	dev_t dev;		/* as stat() has it for what is in it, but for parts of a btrfs */
	bool writable;		/* by this mount */
	const char *point;
	const char *type;	/* the kernel's word: a user of FUSE chooses only what follows "fuse." */
	const char *source;	/* whoever mounts chooses this text: it is no proof of anything */
};

struct mounts;

/* Our own, or those of a process: /proc/PID/mountinfo. */
#define MOUNTINFO	"/proc/self/mountinfo"

/* Read them; NULL if that is not to be had. */
struct mounts *mounts_read(const char *path);

/* The next one, in the order in which they were made; false after the last. */
bool mounts_next(struct mounts *mounts, struct mount *m);

/* @mounts may be NULL. */
void mounts_free(struct mounts *mounts);

/* Is this a mount of a filesystem on that block device? */
bool mount_is_of(const struct mount *m, dev_t dev);

/*
 * Where @mountinfo has a block device mounted, *@point, to be freed, to be written if
 * it is so anywhere; NULL: it is not. 0 or ENOMEM.
 */
int device_mount(const char *mountinfo, dev_t dev, char **point, bool *writable);

#endif /* LIBCOWLOOP_MOUNTINFO_H */
