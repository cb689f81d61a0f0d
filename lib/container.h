/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: images that are packed in something, and are not images as they are.
 */

#ifndef LIBCOWLOOP_CONTAINER_H
#define LIBCOWLOOP_CONTAINER_H

#include "file.h"

/*
 * Is a file or device an image in another format than raw, or compressed? *@text for
 * people, to be freed, says what it is and what makes an image of it; NULL: it is none
 * that is known, or cannot be read.
 */
int container_text(struct cowloop_ctx *ctx, const struct file *f, char **text);

#endif /* LIBCOWLOOP_CONTAINER_H */
