/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: sizes, as people read and write them.
 */

#ifndef LIBCOWLOOP_SIZE_H
#define LIBCOWLOOP_SIZE_H

#include "context.h"

/* "4096", "64K", "1.5G"; false when it is not a size or too large. */
bool parse_size(const char *text, u64 *size);

/* "1.5 GiB"; the buffer is one of a few that each thread uses in turn. */
const char *size_text(u64 size);

/* "12.3%", likewise. */
const char *percent_text(u64 part, u64 whole);

#endif /* LIBCOWLOOP_SIZE_H */
