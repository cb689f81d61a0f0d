/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: loop devices, which make block devices of files.
 */

#ifndef LIBCOWLOOP_LOOP_H
#define LIBCOWLOOP_LOOP_H

#include "file.h"
#include "loopfile.h"

/* A loop device that we have open. */
struct loop {
	int fd;
	dev_t dev;
};

#define LOOP_CLOSED	((struct loop){ .fd = -1 })

/* Bytes: a device of any size, and whatever is in it, can be used. */
#define LOOP_BLOCK	512

enum loop_io {
	LOOP_DIRECT,	/* I/O past the page cache, where the file has such */
	LOOP_CACHED,	/* by the page cache */
};

/*
 * Attach a file to a free loop device, which goes away by itself when nobody
 * has it open any more. It is read-only if the file was opened so, and has blocks
 * of LOOP_BLOCK bytes, whatever the file is on; which may be a block device, too.
 */
int loop_attach(struct cowloop_ctx *ctx, struct loop *l, const struct file *f, enum loop_io io);

/*
 * Does the file of a loop device of ours take a write of whole 4096-byte blocks as a
 * whole, or fail it, however full the filesystem is?
 */
bool loop_takes_whole(const struct loop *l, const struct file *f);

/* Unless somebody else has it open by now, it is gone afterwards. */
void loop_close(struct loop *l);

/* Is this the file that the loop device is made of? */
bool loop_has_file(dev_t dev, const struct file *f);

bool loop_read_only(dev_t dev);

/*
 * Wait until it has gone away, or is another device's, too; false if it is still there
 * after some seconds.
 */
bool loop_wait_gone(dev_t dev, const char *file);

#endif /* LIBCOWLOOP_LOOP_H */
