/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the loop device of an image, which all devices over it share.
 */

#ifndef LIBCOWLOOP_SHARE_H
#define LIBCOWLOOP_SHARE_H

#include "loop.h"

/* The directory of cowsetup's locks and notes. */
#define COWSETUP_RUN	"/run/cowsetup"

/*
 * Open the loop device that other devices over a file have, or attach one as
 * loop_attach() does. The file must be open for reading only.
 */
int loop_share(struct cowloop_ctx *ctx, struct loop *l, const struct file *f, enum cowloop_cache cache);

/* Forget the loop device of what loop_backing() has said, when it has gone. */
void loop_unshare(struct cowloop_ctx *ctx, const struct stat *backing);

#endif /* LIBCOWLOOP_SHARE_H */
