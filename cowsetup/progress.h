/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: how far long work has got.
 *
 * On a terminal a bar, once the work has taken a second. With
 * --progress-frequency a line every so many seconds, with --progress-json an
 * object in every line, both in the manner of cryptsetup. Nothing otherwise.
 */

#ifndef COWSETUP_PROGRESS_H
#define COWSETUP_PROGRESS_H

#include "options.h"

/* Once stdout carries data, progress goes to stderr in any case. */
void progress_to_stderr(void);

/* The callback of a context. */
void progress_show(void *data, const struct cowloop_progress *p);

/* Remove the bar, so that something else can be printed. */
void progress_clear(void);

#endif /* COWSETUP_PROGRESS_H */
