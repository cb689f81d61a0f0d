/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: what to do about a device that is not as it should be.
 *
 * Commands are complete, with all sizes worked out, so that they can be pasted into
 * a shell. Texts are to be freed.
 */

#ifndef LIBCOWLOOP_ADVICE_H
#define LIBCOWLOOP_ADVICE_H

#include "space.h"

/* About the mode it is in. NULL: nothing needs to be done, or there is no memory. */
char *advice_text(const struct dm_device *d, const struct space *s);

/* How to get more space where there is least of it; NULL: there is no memory. */
char *advice_space_text(const struct dm_device *d, const struct space *s);

/* The same for a device that has just found no space, which is looked at now. */
char *advice_no_space(const char *name);

#endif /* LIBCOWLOOP_ADVICE_H */
