/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: opening a pair of a read-only device and a cowfile, in open.c.
 */

#ifndef COWSETUP_OPEN_H
#define COWSETUP_OPEN_H

#include "context.h"

/* The active device that has this cowfile: its name, to be freed; NULL: none. */
int find_active(struct cowloop_ctx *ctx, const char *cow, char **name);

#endif /* COWSETUP_OPEN_H */
