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

#include "cowsetup.h"

/* Once stdout carries data, progress goes to stderr in any case. */
void progress_to_stderr(void);

/* Work on @path begins: @total bytes, of which it is said that they were @done_word. */
void progress_start(const char *path, u64 total, const char *done_word);
void progress_update(u64 done);

/* The work is done, or given up. */
void progress_end(bool finished);

/* Remove the bar, so that something else can be printed. */
void progress_clear(void);

#endif /* COWSETUP_PROGRESS_H */
