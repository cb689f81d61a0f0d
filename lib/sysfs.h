/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: what sysfs says of block devices.
 */

#ifndef LIBCOWLOOP_SYSFS_H
#define LIBCOWLOOP_SYSFS_H

#include "context.h"

#include <sys/types.h>

/* A file in the sysfs directory of a block device: its first line, to be freed, or NULL. */
char *dev_attribute(dev_t dev, const char *name);

/* "/dev/loop3", "/dev/mapper/vg-lv", or "/dev/" and whatever it is called; to be freed, NULL without memory. */
char *dev_path(dev_t dev);

bool dev_is_loop(dev_t dev);

/* The disk of a partition; 0: it is none. */
dev_t dev_disk(dev_t dev);

bool dev_is_cowloop(dev_t dev);

/* Is it a cowloop device, or a part of one, or made of one, by device-mapper or md, at any depth? */
bool dev_stands_on_cowloop(dev_t dev);

/* The UUID of the btrfs in use that a device is a part of, to be freed; or NULL. */
char *dev_btrfs(dev_t dev);

/* Is it, or the disk it is a partition of, a part of a cowloop device: its rdo or its cow device? */
bool dev_is_part_of_cowloop(dev_t dev);

/* Is it a part of a cowloop device other than @with, which has it, too? 0: of any. */
bool dev_is_shared(dev_t dev, dev_t with);

#endif /* LIBCOWLOOP_SYSFS_H */
