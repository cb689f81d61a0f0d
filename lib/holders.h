/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: who has a file or a block device in use.
 */

#ifndef LIBCOWLOOP_HOLDERS_H
#define LIBCOWLOOP_HOLDERS_H

#include "file.h"

struct holder {
	dev_t dev;		/* the device that is made of it; 0: a mount, swap or a process */
	bool writes;		/* it may write it, for all that can be seen */
	char *text;		/* "mounted on /mnt" */
	char *end;		/* the commands that end this: "umount /mnt"; NULL: none are known */
};

struct holders {
	struct holder *list;
	size_t nr;
	bool no_memory;		/* there may be others */
};

#define HOLDERS_NONE	((struct holders){ 0 })

enum {
	HOLDERS_CLAIMS = 1,	/* who has it for himself: devices above, mounts, swap; on its partitions, too */
	HOLDERS_LOOPS = 2,	/* loop devices that are made of it */
	HOLDERS_USES = 3,	/* both */
	HOLDERS_OPEN = 4,	/* processes that have it open: all of them for root, one's own for others */
	HOLDERS_LOCKED = 8,	/* processes that have a file locked by flock(): all of them for all */
};

/*
 * Add to *@h who has an open file, or a block device, in use: this process is
 * left out. @what is made of the constants above. To be freed with
 * holders_free().
 */
void holders_find(struct holders *h, const struct file *f, unsigned int what);
void holders_find_device(struct holders *h, dev_t dev, unsigned int what);

void holders_free(struct holders *h);

/* Leave out a device that is made of it. */
void holders_drop(struct holders *h, dev_t dev);

/*
 * The holders in words, to be freed; NULL: there are none, or no memory. With @how,
 * the commands that end the first one's use as well.
 */
char *holders_text(const struct holders *h, bool how);

/* With the text for them: was there no memory to know whether there are any? */
bool holders_are_unknown(const struct holders *h, const char *text);

/*
 * Where a block device is mounted, in any mount namespace, in words; for writing
 * if it is so anywhere in that. To be freed; NULL: it is not, or there is no memory.
 */
char *device_mount_anywhere(dev_t dev, bool *writable);

/* The uses of a file or a device, not who merely has it open: *@user in words, to be freed; NULL: none. */
int file_used_by(struct cowloop_ctx *ctx, const struct file *f, char **user);

/*
 * For what must not change, a read-only device: refuse it when anybody may
 * write it, and say who. With @force there is a warning instead.
 */
int refuse_writers(struct cowloop_ctx *ctx, const struct file *rdo, bool force);

#endif /* LIBCOWLOOP_HOLDERS_H */
