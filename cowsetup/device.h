/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: reports about active devices.
 */

#ifndef COWSETUP_DEVICE_H
#define COWSETUP_DEVICE_H

#include "../lib/space.h"

/* How much can still be written, as it is now. */
void space_of(const struct dm_device *d, struct space *s);

/* "99.9%", or NULL if it is not known. */
const char *full_text(const struct dm_device *d, const struct space *s, char text[16]);

/* The JSON value, or the lines for people, of space; between report_start() and report_end(). */
void report_space(const struct space *s);

/* All about a device; a report is begun by it, and ended by the caller. */
void report_device(const struct dm_device *d);

#endif /* COWSETUP_DEVICE_H */
