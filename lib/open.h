/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: opening a pair of a read-only device and a cowfile, in open.c.
 */

#ifndef LIBCOWLOOP_OPEN_H
#define LIBCOWLOOP_OPEN_H

#include "context.h"

/* The active device that has this cowfile: its name, to be freed; NULL: none. */
int find_active(struct cowloop_ctx *ctx, const char *cow, char **name);

#endif /* LIBCOWLOOP_OPEN_H */
