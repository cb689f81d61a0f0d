/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the read-only device of a cowfile, and the fingerprint by which it is known.
 */

#ifndef LIBCOWLOOP_RDO_H
#define LIBCOWLOOP_RDO_H

#include "cowfile.h"

/* Open a read-only device and check that it is the one the cowfile belongs to. */
int cow_open_rdo(struct cowloop_ctx *ctx, const struct cowfile *c, struct file *rdo, const char *path,
		 unsigned int file_flags);

/* The size of a device made of it: whole sectors. */
static inline u64 rdo_sectors(const struct file *rdo)
{
	return rdo->size / 512;
}

/* ---- Fingerprints ---- */

/*
 * The fingerprint of a read-only device as @format has it. With @masked, units
 * that are in that cowfile count as zeroes: the fingerprint of what a merge
 * leaves alone.
 */
int cow_fingerprint(struct cowloop_ctx *ctx, const struct file *rdo, unsigned int format, const struct cowfile *masked,
		    u64 *fingerprint);

/* The samples of the fingerprint of format 2. */
#define COW_SAMPLES	64
#define COW_SAMPLE_SIZE	4096U

/* Where sample @i is, of a device of so many bytes. */
u64 cow_sample_offset(u64 size, unsigned int i);

/* The blocks that the fingerprint of format 1 is made of: *@nr of at most four. */
int cow_fingerprint_blocks(struct cowloop_ctx *ctx, const struct file *rdo, u64 blocks[4], unsigned int *nr);

#endif /* LIBCOWLOOP_RDO_H */
