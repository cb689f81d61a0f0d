/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: files that get their name when they are complete, and those that
 * they replace.
 */

#ifndef LIBCOWLOOP_NEWFILE_H
#define LIBCOWLOOP_NEWFILE_H

#include "file.h"

#include "../dm-cowloop.h"

/*
 * A new file under a temporary name beside its own, which it gets when it is
 * complete: until then whatever was there is there still.
 */
struct new_file {
	struct file file;
	char *target;		/* what it is going to be called */
	char *temporary;
};

/*
 * For its owner alone. But what takes the place of a file, @replaced, has the owner
 * and the permissions of that, and what holds what is in another, @source, those
 * of that, and never more; either may be NULL. Of a device nothing is taken. Unless @force,
 * no symbolic link at @path is followed that somebody else has made.
 */
int new_file_create(struct cowloop_ctx *ctx, struct new_file *n, const char *path, const struct stat *replaced,
		    const struct stat *source, bool force);

/*
 * Sync it and give it its name. Without @replace, refuses if something of that
 * name has come into being.
 */
int new_file_commit(struct cowloop_ctx *ctx, struct new_file *n, bool replace);

/* Remove it, if it is not committed. */
void new_file_abort(struct new_file *n);

/* ---- What they replace ---- */

/*
 * A file that a new one is going to replace: nobody else gets it from before it
 * is looked at until after that, which may be long.
 */
struct replaced {
	struct file file;
	u8 start[COW_BLANK_SIZE];	/* as it was then */
};

/* Take over a file that is open. */
int replaced_hold(struct cowloop_ctx *ctx, struct replaced *old, const struct file *f);

/* Last of all: it is still what is called @target, and as it was. */
int replaced_check(struct cowloop_ctx *ctx, const struct replaced *old, const char *target);

#endif /* LIBCOWLOOP_NEWFILE_H */
