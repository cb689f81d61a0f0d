// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: cowfiles are opened, formatted and closed.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/log2.h>
#include <linux/slab.h>
#include <linux/uuid.h>
#include <linux/vmalloc.h>

/* ---- Checking a cowfile and its devices ---- */

static int fingerprint(const struct cow_md_args *args, unsigned int format, u64 *result)
{
	void *buf = vmalloc(COW_IO_SIZE);
	int r;

	if (!buf)
		return -ENOMEM;
	r = format == 1 ? cow_v1_fingerprint(args, buf, result) :
			  cow_v2_fingerprint(args, buf, result);
	vfree(buf);

	return r;
}

static int check_bitmap_fits(const struct cow_md_args *args, char **error,
			     const struct cow_geometry *geo)
{
	const u64 need = geo->moffset + geo->mapsize;

	if (cow_bdev_bytes(args->cow) < need)
		return cow_refuse(args, error, "Cow device is too small for its own bitmap",
				  "found %llu bytes, expected at least %llu",
				  cow_bdev_bytes(args->cow), need);
	return 0;
}

static int check_rdo_size(const struct cow_md_args *args, char **error)
{
	if (!bdev_nr_sectors(args->rdo))
		return cow_refuse(args, error, "Read-only device is empty",
				  "%pg has no sectors", args->rdo);
	return 0;
}

static int check_fingerprint(const struct cow_md_args *args, char **error,
			     const struct cow_head *head, unsigned int format)
{
	u64 is, found = le64_to_cpu(head->rdofingerprint);
	int r;

	r = fingerprint(args, format, &is);
	if (r)
		return cow_refuse_io(args, error, r, args->rdo, "Cannot read the read-only device");
	if (found != is)
		return cow_refuse(args, error, "Cowfile belongs to another read-only device",
				  "found fingerprint 0x%016llx, expected 0x%016llx, as %pg has",
				  found, is, args->rdo);
	return 0;
}

/* The whole head, and the geometry that follows from it. */
static int check_head(const struct cow_md_args *args, char **error,
		      const struct cow_head *head, struct cow_geometry *geo)
{
	const unsigned int version = le16_to_cpu(head->version);
	int r;

	if (le32_to_cpu(head->magic) != COW_MAGIC)
		return cow_refuse(args, error, "Not a cowfile, and not blank",
				  "found magic 0x%08x, expected 0x%08x or %u zero bytes",
				  le32_to_cpu(head->magic), COW_MAGIC, COW_BLANK_SIZE);
	if (version == COW_V1_MERGING || version == COW_V1_MERGED)
		return cow_refuse_merging(args, error);
	if (version != 1 && version != 2)
		return cow_refuse(args, error, "Unknown version of cowfile",
				  "found %u, expected 1 or 2", version);

	r = version == 1 ? cow_v1_check_head(args, error, head, geo) :
			   cow_v2_check_head(args, error, head, geo);
	if (r)
		return r;
	if (args->mapunit && args->mapunit != geo->mapunit)
		return cow_refuse(args, error, "Cowfile has another unit size than asked for",
				  "found mapunit %u, expected %u", geo->mapunit, args->mapunit);
	r = check_bitmap_fits(args, error, geo);
	if (r)
		return r;
	return check_fingerprint(args, error, head, version);
}

static int check_length(const struct cow_md_args *args, char **error,
			const struct cow_geometry *geo)
{
	if (args->length > geo->rdo_sectors)
		return cow_refuse(args, error, "Device is longer than the read-only device",
				  "found a length of %llu sectors, expected at most %llu, as %pg has",
				  args->length, geo->rdo_sectors, args->rdo);
	return 0;
}

/*
 * Format 1 units may be smaller than the blocks of the devices. That works as
 * long as all the units of a block are in the same place, as they are when the
 * cowfile was always used on such devices: I/O then never asks for less.
 */
static unsigned int units_per_block(const struct cow_md_args *args, const struct cow_geometry *geo)
{
	const unsigned int lbs = max(bdev_logical_block_size(args->cow),
				     bdev_logical_block_size(args->rdo));

	return max(lbs / geo->mapunit, 1U);
}

int cow_md_check(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	struct cow_geometry geo;
	int r;

	if (args->mapunit && args->mapunit != md->geo.mapunit)
		return cow_refuse(args, error, "Cowfile has another unit size than asked for",
				  "found mapunit %u, expected %u", md->geo.mapunit, args->mapunit);

	cow_geometry_init(&geo, md->geo.format, md->geo.mapunit, bdev_nr_sectors(args->rdo));
	if (geo.rdo_sectors != md->geo.rdo_sectors)
		return cow_refuse(args, error,
				  "Cowfile belongs to a read-only device of another size",
				  "found %llu sectors, expected %llu, as %pg has",
				  md->geo.rdo_sectors, geo.rdo_sectors, args->rdo);
	if (units_per_block(args, &geo) > md->units_per_block)
		return cow_refuse(args, error, "Read-only device has too large blocks",
				  "found %u bytes, expected at most %u",
				  bdev_logical_block_size(args->rdo),
				  md->units_per_block * geo.mapunit);
	r = check_length(args, error, &geo);
	if (r)
		return r;

	r = check_fingerprint(args, error, cow_commit_head(md), geo.format);
	if (r)
		return r;
	/* On a device with smaller blocks, some may come to be written in part. */
	md->units_per_block = min(md->units_per_block, units_per_block(args, &geo));

	return 0;
}

/* ---- Formatting ---- */

/*
 * See to it that head and bitmap are zeroes on the cow device, and in format 1
 * all the units too, since repair takes what is not zero for written. Where the
 * device can't do that cheaply, what is not zero is looked for: the cow device
 * is often sparse, and would not be afterwards.
 */
static int zero_cow(const struct cow_md_args *args, const struct cow_geometry *geo)
{
	const u64 lbs = bdev_logical_block_size(args->cow);
	const u64 bytes = geo->format == 1 ? geo->doffset + geo->nr_units * geo->mapunit :
					     geo->moffset + geo->mapsize;
	const sector_t end = min(round_up(bytes, lbs),
				 round_down(cow_bdev_bytes(args->cow), lbs)) >> SECTOR_SHIFT;
	sector_t sector, count;
	void *buf;
	int r;

	r = blkdev_issue_zeroout(args->cow, 0, end, GFP_KERNEL, BLKDEV_ZERO_NOFALLBACK);
	if (r != -EOPNOTSUPP)
		return r;

	buf = vmalloc(COW_IO_SIZE);
	if (!buf)
		return -ENOMEM;
	for (sector = 0, r = 0; sector < end && !r; sector += count) {
		count = min_t(sector_t, end - sector, COW_IO_SIZE / 512);
		r = cow_read_sectors(args, args->cow, sector, count, buf);
		if (!r && memchr_inv(buf, 0, count * 512))
			r = blkdev_issue_zeroout(args->cow, sector, count, GFP_KERNEL, 0);
	}
	vfree(buf);

	return r;
}

static int choose_geometry(const struct cow_md_args *args, char **error,
			   struct cow_geometry *geo)
{
	const unsigned int format = args->format ? args->format : 2;
	const unsigned int mapunit = args->mapunit ? args->mapunit :
				     format == 1 ? COW_V1_MAPUNIT : COW_V2_MAPUNIT;

	if (args->read_only)
		return cow_refuse(args, error, "Cannot format a blank cow device read-only",
				  "found %u zero bytes, expected a cowfile", COW_BLANK_SIZE);
	if (format == 1) {
		const int r = cow_v1_check_format(args, error);

		if (r)
			return r;
	}
	if (format == 1 ? mapunit != COW_V1_MAPUNIT : !cow_v2_mapunit_valid(mapunit))
		return cow_refuse(args, error, "Wrong unit size for the format",
				  "found mapunit %u, expected %s for format %u", mapunit,
				  format == 1 ? "1024" : "a power of two from 4096 to 1048576",
				  format);

	cow_geometry_init(geo, format, mapunit, bdev_nr_sectors(args->rdo));
	if (!geo->nr_units)
		return cow_refuse(args, error, "Read-only device is too small",
				  "found %llu bytes, expected at least %u",
				  cow_bdev_bytes(args->rdo), mapunit);

	return check_bitmap_fits(args, error, geo);
}

static int format_cow(struct cow_md *md, const struct cow_md_args *args, char **error,
		      struct cow_head *head)
{
	const struct cow_geometry *geo = &md->geo;
	u64 print;
	int r;

	r = fingerprint(args, geo->format, &print);
	if (r)
		return cow_refuse_io(args, error, r, args->rdo, "Cannot read the read-only device");

	head->magic = cpu_to_le32(COW_MAGIC);
	head->version = cpu_to_le16(geo->format);
	head->mapunit = cpu_to_le64(geo->mapunit);
	head->mapsize = cpu_to_le64(geo->mapsize);
	head->doffset = cpu_to_le64(geo->doffset);
	head->rdoblocks = cpu_to_le64(geo->nr_units);
	head->rdofingerprint = cpu_to_le64(print);
	if (geo->format == 2) {
		head->rdosectors = cpu_to_le64(geo->rdo_sectors);
		head->moffset = cpu_to_le64(geo->moffset);
		generate_random_uuid(head->uuid);
	}

	r = cow_commit_init(md, head);
	if (r)
		return r;
	r = zero_cow(args, geo);
	/* The head makes a cowfile of it: the bitmap must be durable before. */
	if (!r)
		r = cow_commit_format(md);
	if (r)
		return cow_refuse_io(args, error, r, args->cow, "Cannot format the cow device");

	return 0;
}

/* ---- Opening ---- */

/* The size in bytes of the blocks in which the metadata is read and written. */
static unsigned int choose_block_size(const struct cow_md_args *args,
				      const struct cow_geometry *geo)
{
	const unsigned int lbs = bdev_logical_block_size(args->cow);
	unsigned int size = 4096;

	/* A format 1 cowfile may end with its bitmap, which is no multiple of 4096. */
	if (round_up(geo->moffset + geo->mapsize, size) > cow_bdev_bytes(args->cow))
		size = max(COW_V1_MAPUNIT, lbs);
	/* In a partition a block may lie in two pages of the file: see cow_takes_parts(). */
	if (get_start_sect(args->cow) % (size >> SECTOR_SHIFT) && cow_takes_parts(args->cow))
		size = lbs;
	return size;
}

/* Make the rooms. Only the geometry must be known. */
static int init_rooms(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const struct cow_geometry *geo = &md->geo;
	struct cow_blocks *blocks;
	int r;

	if (geo->nr_units > COW_MAX_UNITS)
		return cow_refuse(args, error, "Read-only device is too large for the unit size",
				  "found %llu units, expected at most %llu", geo->nr_units,
				  COW_MAX_UNITS);
	md->units_per_block = units_per_block(args, geo);

	r = cow_bitmap_init(md);
	if (!r)
		r = cow_regions_init(md);
	if (r)
		return r;
	blocks = cow_blocks_alloc(args->cow, choose_block_size(args, geo));
	if (IS_ERR(blocks))
		return PTR_ERR(blocks);
	md->blocks = blocks;

	return 0;
}

static int open_existing(struct cow_md *md, const struct cow_md_args *args, char **error,
			 const struct cow_head *head)
{
	int r;

	r = cow_commit_init(md, head);
	if (r)
		return r;
	if (!cow_md_is_dirty(md) && md->geo.format == 2) {
		cow_bitmap_add_used(md, le64_to_cpu(head->cowused));
		return 0;
	}

	r = cow_regions_count(md);
	/* Format 2 is counted at leisure. */
	return r || md->geo.format == 2 ? r : cow_v1_open(md, args, error);
}

/* @head is what the cow device begins with, or zeroes: then it is formatted. */
static int open_head(struct cow_md *md, const struct cow_md_args *args, char **error,
		     struct cow_head *head, bool blank)
{
	struct cow_geometry *geo = &md->geo;
	int r;

	r = blank ? choose_geometry(args, error, geo) : check_head(args, error, head, geo);
	if (r)
		return r;
	if (bdev_nr_sectors(args->rdo) != geo->rdo_sectors)
		DMWARN("%s: the last %llu bytes of %pg do not fill a unit and are left out",
		       args->name, cow_bdev_bytes(args->rdo) % geo->mapunit, args->rdo);

	r = check_length(args, error, geo);
	if (r)
		return r;
	r = init_rooms(md, args, error);
	if (r)
		return r;

	return blank ? format_cow(md, args, error, head) : open_existing(md, args, error, head);
}

static int md_open(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const unsigned int max_lbs = max(bdev_logical_block_size(args->cow),
					 bdev_logical_block_size(args->rdo));
	const u64 size = min_t(u64, cow_bdev_bytes(args->cow), COW_BLANK_SIZE);
	void *start;
	int r;

	if (max_lbs > 4096)
		return cow_refuse(args, error, "Devices have blocks that are too large",
				  "found %u bytes, expected at most 4096", max_lbs);
	r = check_rdo_size(args, error);
	if (r)
		return r;
	if (size < COW_V1_MAPUNIT)
		return cow_refuse(args, error, "Cow device is shorter than a head",
				  "found %llu bytes, expected at least %u", size, COW_V1_MAPUNIT);

	start = vmalloc(COW_BLANK_SIZE);
	if (!start)
		return -ENOMEM;
	r = cow_read_sectors(args, args->cow, 0, size >> SECTOR_SHIFT, start);
	if (r)
		r = cow_refuse_io(args, error, r, args->cow, "Cannot read the head");
	else
		r = open_head(md, args, error, start, !memchr_inv(start, 0, size));
	vfree(start);

	return r;
}

struct cow_md *cow_md_open(const struct cow_md_args *args, char **error)
{
	struct cow_md *md;
	int r;

	BUILD_BUG_ON(sizeof(struct cow_head) != COW_V2_HEAD_SIZE);
	BUILD_BUG_ON(offsetof(struct cow_head, rdosectors) != COW_V1_HEAD_SIZE);
	BUILD_BUG_ON(sizeof(struct cow_map_sector) != COW_MAP_SECTOR);

	*error = "Cannot open the cowfile";
	/* kmalloc() aligns by their size what are powers of two. */
	md = kzalloc(roundup_pow_of_two(sizeof(*md) + cow_bitmap_size()), GFP_KERNEL);
	if (!md)
		return ERR_PTR(-ENOMEM);
	md->name = args->name;
	md->cow = args->cow;

	r = md_open(md, args, error);
	if (!r) {
		*error = "Cannot allocate memory";
		r = cow_regions_start(md);
	}
	if (r) {
		cow_md_close(md);
		return ERR_PTR(r);
	}
	return md;
}

void cow_md_close(struct cow_md *md)
{
	cow_regions_exit(md);
	cow_bitmap_exit(md);
	cow_commit_exit(md);
	cow_blocks_free(md->blocks);
	kfree(md);
}

void cow_md_let_go(struct cow_md *md)
{
	/* A region that were evicted could not be loaded again. */
	cow_regions_keep(md);
	cow_blocks_let_go(md->blocks);
	md->cow = NULL;
}

const struct cow_geometry *cow_md_geometry(const struct cow_md *md)
{
	return &md->geo;
}

u64 cow_md_data_sector(const struct cow_md *md)
{
	return md->geo.doffset >> SECTOR_SHIFT;
}

bool cow_md_must_be_read_only(const struct cow_md *md)
{
	return md->geo.format == 2 &&
	       (le32_to_cpu(cow_commit_head(md)->compat_ro) & ~COW_COMPAT_RO_KNOWN);
}
