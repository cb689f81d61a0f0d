/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: CRC-32C, the checksum of cowfiles.
 */

#ifndef LIBCOWLOOP_CRC32C_H
#define LIBCOWLOOP_CRC32C_H

#include "context.h"

/* Goes on from @crc, the checksum of what came before, or 0. */
u32 crc32c(u32 crc, const void *data, size_t length);

#endif /* LIBCOWLOOP_CRC32C_H */
