/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the part of repair that open does, too, and what it could do.
 */

#ifndef LIBCOWLOOP_REPAIR_H
#define LIBCOWLOOP_REPAIR_H

#include "cowfile.h"

/*
 * Repair a dirty cowfile of format 1, which is open for writing and has a head
 * that is in order, and tell what was done. If it can't be done, or is
 * interrupted, that is told as well, and what has been changed by then.
 */
int repair_dirty(struct cowloop_ctx *ctx, struct cowfile *c, bool force);

/* Is the head in order, or can repair make it so, forced if need be? */
bool repair_can_mend_head(const struct cowfile *c);

#endif /* LIBCOWLOOP_REPAIR_H */
