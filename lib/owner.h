/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: whose a file is, and who may write it.
 */

#ifndef LIBCOWLOOP_OWNER_H
#define LIBCOWLOOP_OWNER_H

#include "file.h"

/*
 * Follow the symbolic links that @path ends in; unless @force, none that somebody
 * else than root and the caller has made. *@target, to be freed in any case, is what
 * they lead to, which may be missing. *@is_path, unless that is NULL: it is a path;
 * otherwise it is a link in /proc, to what need not have one.
 */
int owner_follow(struct cowloop_ctx *ctx, const char *path, bool force, char **target, bool *is_path);

/*
 * Refuse the file @f that is open, if it is neither root's nor the
 * caller's, if others may write it, or if somebody else's link led to it. Of a
 * device nothing is asked.
 */
int owner_refuse(struct cowloop_ctx *ctx, const struct file *f);

#endif /* LIBCOWLOOP_OWNER_H */
