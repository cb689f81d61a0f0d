/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what sysfs says of block devices.
 */

#ifndef COWSETUP_SYSFS_H
#define COWSETUP_SYSFS_H

#include "cowsetup.h"

#include <sys/types.h>

/* A file in the sysfs directory of a block device: its first line, to be freed, or NULL. */
char *dev_attribute(dev_t dev, const char *name);

bool dev_is_loop(dev_t dev);

/* The file a loop device is made of, to be freed, as the kernel names it; or NULL. */
char *loop_file(dev_t dev);

#endif /* COWSETUP_SYSFS_H */
