/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: files of a device that somebody has removed, or cut off, since it was opened.
 */

#ifndef LIBCOWLOOP_LOST_H
#define LIBCOWLOOP_LOST_H

#include "dm.h"

/* The path of a device of a cowloop device for people: of its file if it is made of one. To be freed. */
char *device_file(dev_t dev);

/* Has the file of its cowfile been removed? */
bool has_lost_cow(const struct dm_device *d);

/* Refuse a device that has lost a file: @what will not be done, "closed". */
int refuse_removed(struct cowloop_ctx *ctx, const struct dm_device *d, const char *what);

/* Warn of files that were cut off; of those that were removed, too. */
void warn_cut(struct cowloop_ctx *ctx, const struct dm_device *d);
void warn_lost(struct cowloop_ctx *ctx, const struct dm_device *d);

#endif /* LIBCOWLOOP_LOST_H */
