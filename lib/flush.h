/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: having all that stands on a device write to it what it holds back.
 */

#ifndef LIBCOWLOOP_FLUSH_H
#define LIBCOWLOOP_FLUSH_H

#include "dm.h"

/*
 * Have the filesystems on a device, and on what is made of it, write what they
 * hold in memory, whatever mount namespace they are mounted in; and then have
 * the device make durable what it has. May wait for long; a signal ends that.
 * Data that cannot be written would be lost by @what, "readonly": refuses then,
 * with the device as it was; with @force there is a warning instead.
 */
int flush_device(struct cowloop_ctx *ctx, const struct dm_device *d, const char *what, bool force);

#endif /* LIBCOWLOOP_FLUSH_H */
