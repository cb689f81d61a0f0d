/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: waiting for udev.
 */

#ifndef LIBCOWLOOP_UDEV_H
#define LIBCOWLOOP_UDEV_H

#include "context.h"

/*
 * Wait until udev's rules are through with a change of the device @name, for
 * which the task had this cookie; the cookie is gone then. The wait ends when
 * udev does not answer for half a minute, or when a signal asks for it: that is
 * said, and from then on nobody waits for udev any more in this process.
 */
void udev_wait(struct cowloop_ctx *ctx, const char *name, uint32_t cookie);

#endif /* LIBCOWLOOP_UDEV_H */
