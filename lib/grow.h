/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: how the file of a cowfile gets its length, on whatever filesystem.
 */

#ifndef LIBCOWLOOP_GROW_H
#define LIBCOWLOOP_GROW_H

#include "file.h"

/*
 * Make a regular file @size bytes long. To grow on a filesystem without sparse
 * files takes all of the space: then there is a warning, progress, and an end
 * when it is interrupted. After an error the file is as long as it was.
 */
int grow_file(struct cowloop_ctx *ctx, struct file *f, u64 size);

/*
 * Make zeroes of all of a regular file, and make it @size bytes long: the file of
 * a new cowfile, before anything is written. Where it cannot be so long, what is
 * in it stays.
 */
int grow_blank(struct cowloop_ctx *ctx, struct file *f, u64 size);

/*
 * Put back a file that was nothing but @size bytes of zeroes before grow_blank().
 * Up to @used it may hold something else by now.
 */
int grow_undo(struct cowloop_ctx *ctx, struct file *f, u64 size, u64 used);

/* As file_zero() does, but with its progress, and until it is interrupted: it may take long. */
int zero_in_steps(struct cowloop_ctx *ctx, const struct file *f, u64 offset, u64 length);

#endif /* LIBCOWLOOP_GROW_H */
