/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: what check and repair have in common: looking at the data of units
 * to see what the bitmap should say, and at what a head holds besides numbers.
 */

#ifndef LIBCOWLOOP_SCAN_H
#define LIBCOWLOOP_SCAN_H

#include "cowfile.h"

/* The contents of the file where the units of one bitmap sector have their place. */
struct cow_scan {
	u64 sector;
	u8 data[COW_V1_SECTOR_BYTES];		/* bit set: not a hole */
	u8 nonzero[COW_V1_SECTOR_BYTES];	/* bit set: not all zeroes */
};

/* Look at the units of bitmap sector @s->sector. */
int cow_scan_sector(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_scan *s);

/*
 * Set *@sector to the next bitmap sector, from *@sector on, for whose units
 * there is anything but a hole; to c->nr_sectors if there is none.
 */
int cow_scan_next(struct cowloop_ctx *ctx, const struct cowfile *c, u64 *sector);

/* Read a bitmap sector as it is: c->sector_bytes of bits. */
int cow_read_bits(struct cowloop_ctx *ctx, const struct cowfile *c, u64 sector, u8 *bits);

/* How many of the first @nr bits are set. */
u32 count_bits(const u8 *bits, u32 nr);

/*
 * Units up to which the file has room, the last one of the device as far as
 * the device goes.
 */
u64 cow_units_in_file(const struct cowfile *c);

/* Is the UUID of a head of format 2 a random one, as it should be? */
bool cow_uuid_is_random(const struct cow_head *head);

/*
 * Rules about a head that no code depends on, and that are broken only by
 * damage. To be asked about heads that cow_check_head() lets pass.
 */
int cow_check_strictly(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_faults *faults);

#endif /* LIBCOWLOOP_SCAN_H */
