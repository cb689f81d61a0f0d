/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: what the commands on active devices have in common.
 */

#ifndef COWSETUP_LIVE_H
#define COWSETUP_LIVE_H

#include "../lib/space.h"

/* The device that a command is about, in *@d: for root, with a kernel that has the target. */
int live_find(const char *name, struct dm_device *d);

/* The path of a device of a cowloop device for people: of its file if it is made of one. To be freed. */
char *live_file(dev_t dev);

/* The JSON value, or the lines for people, of space; between report_start() and report_end(). */
void report_space(const struct space *s);

#endif /* COWSETUP_LIVE_H */
