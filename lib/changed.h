/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: whether a read-only device has been changed since its cowfile was made.
 */

#ifndef LIBCOWLOOP_CHANGED_H
#define LIBCOWLOOP_CHANGED_H

#include "cowfile.h"

/* Note in a head of format 2 when @rdo was last modified. Returns whether that changes the head. */
bool changed_remember(struct cow_head *head, const struct file *rdo);

/*
 * Has @rdo, whose fingerprint is right, been modified since the head noted when it
 * was? *@text for people, to be freed, or NULL: it has not, or that is not known.
 * *@proof: a filesystem in it says that it was written since then. Otherwise it
 * may be a mere copy.
 */
int changed_since(struct cowloop_ctx *ctx, const struct cow_head *head, const struct file *rdo, char **text,
		  bool *proof);

#endif /* LIBCOWLOOP_CHANGED_H */
