/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: closing devices.
 */

#ifndef LIBCOWLOOP_CLOSE_H
#define LIBCOWLOOP_CLOSE_H

#include "dm.h"

/* Have a device make durable what it holds back. */
int sync_device(struct cowloop_ctx *ctx, const struct dm_device *d);

/* Wait for a loop device to go; it stays if its user attached it himself. */
int wait_for_loop(struct cowloop_ctx *ctx, dev_t dev, const char *file, bool autoclear);

#endif /* LIBCOWLOOP_CLOSE_H */
