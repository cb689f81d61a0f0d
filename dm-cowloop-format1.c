// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: what is format 1's alone: its fingerprint, what its head must be like,
 * and its bitmap, which is counted and checked as a whole at open, and repaired where
 * the head is DIRTY.
 */

#include "dm-cowloop-metadata-internal.h"

#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

/*
 * The fingerprint of format 1: the byte sums of the first four 1024-byte
 * blocks whose sum is not zero, put together by the original's C arithmetic,
 * in which a fourth sum of 0x80 or more extends its sign into bits 32 to 63.
 */
int cow_v1_fingerprint(const struct cow_md_args *args, void *buf, u64 *fingerprint)
{
	const sector_t end = round_down(bdev_nr_sectors(args->rdo), COW_V1_MAPUNIT / 512);
	sector_t sector, count;
	unsigned int found = 0;
	int r;

	*fingerprint = 0;
	for (sector = 0; sector < end && found < 4; sector += count) {
		const u8 *byte = buf;

		count = min_t(sector_t, end - sector, COW_IO_SIZE / 512);
		r = cow_read_sectors(args, args->rdo, sector, count, buf);
		if (r)
			return r;

		while (byte < (u8 *)buf + count * 512 && found < 4) {
			const u8 *block_end = byte + COW_V1_MAPUNIT;
			u8 sum = 0;

			while (byte < block_end)
				sum += *byte++;
			if (sum)
				*fingerprint |= (s64)(s32)((u32)sum << 8 * found++);
		}
	}
	return 0;
}

int cow_v1_check_head(const struct cow_md_args *args, char **error,
		      const struct cow_head *head, struct cow_geometry *geo)
{
	u64 found;
	int r;

	r = cow_check_packed(args, error, head);
	if (r)
		return r;

	found = le64_to_cpu(head->mapunit);
	if (found != COW_V1_MAPUNIT)
		return cow_refuse(args, error, "Wrong unit size in cowfile",
				  "found mapunit %llu, expected %u", found, COW_V1_MAPUNIT);

	cow_geometry_init(geo, 1, COW_V1_MAPUNIT, bdev_nr_sectors(args->rdo));
	r = cow_check_sizes(args, error, head, geo);
	if (r)
		return r;

	found = le64_to_cpu(head->doffset);
	if (found != geo->doffset)
		return cow_refuse(args, error, "Wrong data offset in cowfile",
				  "found doffset %llu, expected %llu", found, geo->doffset);

	if (!(le16_to_cpu(head->flags) & COW_FLAG_DIRTY))
		return 0;
	if (!args->repair)
		return cow_refuse(args, error, "Cowfile is dirty",
				  "found DIRTY set, expected a cowfile that was closed or synced; option 'repair' accepts and repairs it");
	if (args->read_only)
		return cow_refuse(args, error, "Cowfile is dirty and can't be repaired read-only",
				  "found DIRTY set together with option 'read_only', expected 'repair' alone");
	return 0;
}

/* ---- The bitmap ---- */

/* The first unit of a block whose units are not all in the same place, or the end. */
static u64 find_mixed_block(struct cow_md *md, const struct cow_region *r, unsigned int per_block)
{
	const u32 nr_units = cow_region_nr_units(md, r->index);
	u32 bit, i;

	for (bit = 0; bit < nr_units; bit += per_block)
		for (i = bit + 1; i < min(bit + per_block, nr_units); i++)
			if (!!test_bit_le(i, r->bits) != !!test_bit_le(bit, r->bits))
				return cow_region_first_unit(md, r->index) + bit;
	return md->geo.nr_units;
}

/*
 * Units may be smaller than the blocks of the devices. All is well as long as all the
 * units of a block are in the same place, as they are when the cowfile was always used
 * on such devices.
 */
static int check_blocks(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	struct cow_region *region = kmalloc(sizeof(*region), GFP_KERNEL);
	u64 index, mixed = md->geo.nr_units;
	int r = 0;

	if (!region)
		return -ENOMEM;
	for (index = 0; index < md->layout.nr_regions; index++) {
		r = cow_region_read(md, index, region);
		if (!r)
			mixed = find_mixed_block(md, region, md->units_per_block);
		if (r || mixed < md->geo.nr_units)
			break;
		cond_resched();
	}
	kfree(region);

	if (r)
		return cow_refuse_io(args, error, r, args->cow, "Cannot read the bitmap");
	if (mixed < md->geo.nr_units)
		return cow_refuse(args, error, "Cowfile needs devices with smaller blocks",
				  "found a block written in part at unit %llu, expected all %u units or none",
				  mixed, md->units_per_block);
	return 0;
}

/* Walk the whole bitmap: count it and check it. */
static int check_bitmap(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const u64 found = le64_to_cpu(cow_commit_head(md)->cowused);
	int r;

	if (md->units_per_block > 1) {
		r = check_blocks(md, args, error);
		if (r)
			return r;
	}
	while (cow_md_count_some(md) && !fatal_signal_pending(current))
		;
	r = cow_md_counting(md) ? -EINTR : cow_md_count_unread(md);
	if (r)
		return cow_refuse_io(args, error, r, args->cow, "Cannot read the bitmap");

	if (!cow_md_is_dirty(md) && found != cow_md_used(md))
		return cow_refuse(args, error, "Wrong count of used units in cowfile",
				  "found cowused %llu, expected %llu, as the bitmap has",
				  found, cow_md_used(md));
	return 0;
}

/* ---- Repair ---- */

static bool is_set(struct cow_md *md, u64 unit)
{
	bool set;

	rcu_read_lock_sched();
	set = cow_lookup(cow_md_map(md), unit) == COW_IN_COW;
	rcu_read_unlock_sched();

	return set;
}

/* Set the bits of @nr units from @unit on, of which all or none are set. */
static int repair_block(struct cow_md *md, u64 unit, unsigned int nr, u64 *repaired)
{
	struct cow_hold hold;
	int r;

	while ((r = cow_md_hold(md, unit, nr, true, &hold)) == 0) {
		r = cow_md_load(md, unit, true);
		/* A commit makes memory free for it. */
		if (r > 0)
			r = cow_md_commit(md);
		if (r)
			return r;
		/* Where all of a region's bits are set, there is nothing to hold. */
		if (is_set(md, unit))
			return 0;
	}
	if (r < 0)
		return r;
	if (test_bit_le(hold.bit, hold.region->bits)) {
		cow_md_release(md, &hold);
		return 0;
	}
	cow_bitmap_mark(md, &hold);
	*repaired += nr;

	return 0;
}

/* Set the bits of all the units in @buf, from @unit on, that are not all zeroes. */
static int repair_units(struct cow_md *md, u64 unit, unsigned int nr, const void *buf,
			unsigned int per_block, u64 *repaired)
{
	const unsigned int unit_size = md->geo.mapunit;
	unsigned int i, n;
	int r = 0;

	for (i = 0; i < nr && !r; i += n) {
		n = min(per_block, nr - i);
		if (memchr_inv(buf + i * unit_size, 0, n * unit_size))
			r = repair_block(md, unit + i, n, repaired);
	}
	return r;
}

/*
 * Repair a DIRTY cowfile: every unit that is not all zeroes has been
 * written, whatever the bitmap says. The head is cleaned last, so that an
 * interrupted repair can be done again.
 */
static int repair_bitmap(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const unsigned int unit_sectors = md->geo.mapunit / 512;
	const u64 block_sectors = bdev_logical_block_size(args->cow) >> SECTOR_SHIFT;
	const unsigned int per_block = md->units_per_block;
	const u64 data = cow_md_data_sector(md);
	const u64 cow_sectors = bdev_nr_sectors(args->cow);
	u64 unit, count, in_file, repaired = 0;
	unsigned int nr;
	void *buf;
	int r = 0;

	in_file = cow_sectors <= data ? 0 :
		  min(md->geo.nr_units, div_u64(cow_sectors - data, unit_sectors));
	buf = vmalloc(COW_IO_SIZE);
	if (!buf)
		return -ENOMEM;
	for (unit = 0; unit < in_file && !r; unit += nr) {
		nr = min_t(u64, in_file - unit, COW_IO_SIZE / md->geo.mapunit);
		/* The last unit may end within a block of the device. */
		count = min(round_up(nr * unit_sectors, block_sectors),
			    cow_sectors - data - unit * unit_sectors);
		r = cow_read_sectors(args, args->cow, data + unit * unit_sectors, count, buf);
		if (!r)
			r = repair_units(md, unit, nr, buf, per_block, &repaired);
	}
	vfree(buf);
	if (!r)
		r = cow_md_commit(md);
	if (!r)
		r = cow_md_clean(md);
	if (r)
		return cow_refuse_io(args, error, r, args->cow, "Cannot repair the cowfile");

	DMWARN("%s: cow device %pg: repaired: %llu units added to the bitmap, %llu used now",
	       args->name, args->cow, repaired, cow_md_used(md));
	return 0;
}

int cow_v1_open(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	int r;

	r = check_bitmap(md, args, error);
	if (!r && cow_md_is_dirty(md))
		r = repair_bitmap(md, args, error);
	return r;
}
