/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: having dmeventd monitor devices.
 */

#ifndef LIBCOWLOOP_MONITOR_H
#define LIBCOWLOOP_MONITOR_H

#include "dm.h"

/* From now on dmeventd, which is started if need be, warns when the device gets full. */
int monitor_start(struct cowloop_ctx *ctx, const struct dm_device *d);

/* No more; it need not have been monitored. */
int monitor_stop(struct cowloop_ctx *ctx, const struct dm_device *d);

/* Monitor a device that was opened just now; a failure is a warning. */
void monitor_opened(struct cowloop_ctx *ctx, const char *name);

bool monitor_is_on(const struct dm_device *d);

#endif /* LIBCOWLOOP_MONITOR_H */
