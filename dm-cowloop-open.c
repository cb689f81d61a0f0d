// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: opening and formatting a cowfile.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/dm-bufio.h>
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
	r = format == 1 ? fingerprint_v1(args, buf, result) : fingerprint_v2(args, buf, result);
	vfree(buf);

	return r;
}

static int check_bitmap_fits(const struct cow_md_args *args, char **error,
			     const struct cow_geometry *geo)
{
	const u64 need = geo->moffset + geo->mapsize;

	if (bdev_bytes(args->cow) < need)
		return refuse(args, error, "Cow device is too small for its own bitmap",
			      "found %llu bytes, expected at least %llu",
			      bdev_bytes(args->cow), need);
	return 0;
}

static int check_rdo_size(const struct cow_md_args *args, char **error)
{
	if (!bdev_nr_sectors(args->rdo))
		return refuse(args, error, "Read-only device is empty",
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
		return refuse_io(args, error, r, args->rdo, "Cannot read the read-only device");
	if (found != is)
		return refuse(args, error, "Cowfile belongs to another read-only device",
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
		return refuse(args, error, "Not a cowfile, and not blank",
			      "found magic 0x%08x, expected 0x%08x or %u zero bytes",
			      le32_to_cpu(head->magic), COW_MAGIC, COW_BLANK_SIZE);
	if (version == COW_V1_MERGING || version == COW_V1_MERGED)
		return refuse_merging(args, error);
	if (version != 1 && version != 2)
		return refuse(args, error, "Unknown version of cowfile",
			      "found %u, expected 1 or 2", version);

	r = version == 1 ? check_head_v1(args, error, head, geo) :
			   check_head_v2(args, error, head, geo);
	if (r)
		return r;
	if (args->mapunit && args->mapunit != geo->mapunit)
		return refuse(args, error, "Cowfile has another unit size than asked for",
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
		return refuse(args, error, "Device is longer than the read-only device",
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
		return refuse(args, error, "Cowfile has another unit size than asked for",
			      "found mapunit %u, expected %u", md->geo.mapunit, args->mapunit);

	cow_geometry_init(&geo, md->geo.format, md->geo.mapunit, bdev_nr_sectors(args->rdo));
	if (geo.rdo_sectors != md->geo.rdo_sectors)
		return refuse(args, error, "Cowfile belongs to a read-only device of another size",
			      "found %llu sectors, expected %llu, as %pg has",
			      md->geo.rdo_sectors, geo.rdo_sectors, args->rdo);
	if (units_per_block(args, &geo) > md->units_per_block)
		return refuse(args, error, "Read-only device has too large blocks",
			      "found %u bytes, expected at most %u",
			      bdev_logical_block_size(args->rdo),
			      md->units_per_block * geo.mapunit);
	r = check_length(args, error, &geo);
	if (r)
		return r;

	r = check_fingerprint(args, error, &md->head, geo.format);
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
				 round_down(bdev_bytes(args->cow), lbs)) >> SECTOR_SHIFT;
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
		r = read_sectors(args, args->cow, sector, count, buf);
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
		return refuse(args, error, "Cannot format a blank cow device read-only",
			      "found %u zero bytes, expected a cowfile", COW_BLANK_SIZE);
	if (format == 1 ? mapunit != COW_V1_MAPUNIT : !cow_v2_mapunit_valid(mapunit))
		return refuse(args, error, "Wrong unit size for the format",
			      "found mapunit %u, expected %s for format %u", mapunit,
			      format == 1 ? "1024" : "a power of two from 4096 to 1048576",
			      format);

	cow_geometry_init(geo, format, mapunit, bdev_nr_sectors(args->rdo));
	if (!geo->nr_units)
		return refuse(args, error, "Read-only device is too small",
			      "found %llu bytes, expected at least %u",
			      bdev_bytes(args->rdo), mapunit);

	return check_bitmap_fits(args, error, geo);
}

static int format_cow(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const struct cow_geometry *geo = &md->geo;
	struct cow_head *head = &md->head;
	u64 print;
	int r;

	r = fingerprint(args, geo->format, &print);
	if (r)
		return refuse_io(args, error, r, args->rdo, "Cannot read the read-only device");

	memset(head, 0, sizeof(*head));
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

	r = zero_cow(args, geo);
	mutex_lock(&md->commit_lock);
	/* Not a cowfile before its bitmap is durable. */
	if (!r)
		r = flush_cow(md);
	if (!r)
		r = head_write(md);
	mutex_unlock(&md->commit_lock);
	if (r)
		return refuse_io(args, error, r, args->cow, "Cannot format the cow device");

	return 0;
}

/* ---- Opening ---- */

/* What depends on the geometry only. */
static int md_alloc(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const struct cow_geometry *geo = &md->geo;
	const unsigned int lbs = bdev_logical_block_size(args->cow);
	unsigned int block_size = 4096;
	unsigned int i;

	/* A format 1 cowfile may end with its bitmap, which is no multiple of 4096. */
	if (round_up(geo->moffset + geo->mapsize, block_size) > bdev_bytes(args->cow))
		block_size = max(COW_V1_MAPUNIT, lbs);
	/* In a partition a block may lie in two pages of the file: see cow_write_sectors(). */
	if (get_start_sect(args->cow) % (block_size >> SECTOR_SHIFT) && cow_takes_parts(args->cow))
		block_size = lbs;
	md->block_shift = ilog2(block_size);

	md->region_sectors = geo->format == 1 ? COW_V1_REGION_SECTORS : COW_V2_REGION_SECTORS;
	md->sector_bytes = geo->format == 1 ? COW_V1_SECTOR_BYTES : COW_V2_SECTOR_BYTES;
	md->map.sector_units = md->sector_bytes * BITS_PER_BYTE;
	md->map.region_units = md->region_sectors * md->map.sector_units;
	md->map.region_inverse = DIV_ROUND_UP_ULL(BIT_ULL(38), md->map.region_units >> 8);
	md->nr_map_sectors = div_u64(geo->nr_units + md->map.sector_units - 1,
				     md->map.sector_units);
	md->nr_regions = div_u64(geo->nr_units + md->map.region_units - 1, md->map.region_units);
	md->units_per_block = units_per_block(args, geo);
	if (geo->nr_units > COW_MAX_UNITS)
		return refuse(args, error, "Read-only device is too large for the unit size",
			      "found %llu units, expected at most %llu", geo->nr_units,
			      COW_MAX_UNITS);

	md->map.regions = kvcalloc(md->nr_regions, sizeof(*md->map.regions), GFP_KERNEL);
	md->scratch = kmalloc(sizeof(*md->scratch), GFP_KERNEL);
	md->reserve = kmalloc(sizeof(*md->reserve), GFP_KERNEL);
	md->spare_stage = kmalloc(sizeof(*md->spare_stage), GFP_KERNEL);
	if (!md->map.regions || !md->scratch || !md->reserve || !md->spare_stage)
		return -ENOMEM;
	for (i = 0; i < COW_MAX_WRITES; i++) {
		md->writes[i].bio = kmalloc(sizeof(*md->writes[i].bio), GFP_KERNEL);
		if (!md->writes[i].bio)
			return -ENOMEM;
	}

	md->bufio = dm_bufio_client_create(args->cow, block_size, COW_MAX_WRITES + 1, 0,
					   NULL, NULL, 0);
	if (IS_ERR(md->bufio)) {
		int r = PTR_ERR(md->bufio);

		md->bufio = NULL;
		return r;
	}
	return 0;
}

static int open_existing(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	int r;

	md->dirty = le16_to_cpu(md->head.flags) & COW_FLAG_DIRTY;
	if (!md->dirty && md->geo.format == 2) {
		atomic64_set(&md->used, le64_to_cpu(md->head.cowused));
		return 0;
	}

	md->count_next = 0;
	md->uncounted = kvcalloc(BITS_TO_LONGS(md->nr_regions), sizeof(long), GFP_KERNEL);
	if (!md->uncounted)
		return -ENOMEM;
	bitmap_set(md->uncounted, 0, md->nr_regions);
	if (md->geo.format == 2)
		return 0;	/* counted at leisure */

	r = check_bitmap_v1(md, args, error);
	if (!r && md->dirty)
		r = repair_v1(md, args, error);
	return r;
}

static int md_open(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const unsigned int max_lbs = max(bdev_logical_block_size(args->cow),
					 bdev_logical_block_size(args->rdo));
	const u64 size = min_t(u64, bdev_bytes(args->cow), COW_BLANK_SIZE);
	bool blank;
	void *start;
	int r;

	if (max_lbs > 4096)
		return refuse(args, error, "Devices have blocks that are too large",
			      "found %u bytes, expected at most 4096", max_lbs);
	r = check_rdo_size(args, error);
	if (r)
		return r;
	if (size < COW_V1_MAPUNIT)
		return refuse(args, error, "Cow device is shorter than a head",
			      "found %llu bytes, expected at least %u", size, COW_V1_MAPUNIT);

	start = kmalloc(COW_BLANK_SIZE, GFP_KERNEL);
	if (!start)
		return -ENOMEM;
	r = read_sectors(args, args->cow, 0, size >> SECTOR_SHIFT, start);
	blank = !r && !memchr_inv(start, 0, size);
	memcpy(&md->head, start, sizeof(md->head));
	kfree(start);
	if (r)
		return refuse_io(args, error, r, args->cow, "Cannot read the head");

	r = blank ? choose_geometry(args, error, &md->geo) :
		    check_head(args, error, &md->head, &md->geo);
	if (r)
		return r;
	if (bdev_nr_sectors(args->rdo) != md->geo.rdo_sectors)
		DMWARN("%s: the last %llu bytes of %pg do not fill a unit and are left out",
		       args->name, bdev_bytes(args->rdo) % md->geo.mapunit, args->rdo);

	r = check_length(args, error, &md->geo);
	if (r)
		return r;
	r = md_alloc(md, args, error);
	if (r)
		return r;
	md->count_next = md->nr_regions;

	return blank ? format_cow(md, args, error) : open_existing(md, args, error);
}

struct cow_md *cow_md_open(const struct cow_md_args *args, char **error)
{
	struct cow_md *md;
	unsigned int i;
	int r;

	BUILD_BUG_ON(sizeof(struct cow_head) != COW_V2_HEAD_SIZE);
	BUILD_BUG_ON(offsetof(struct cow_head, rdosectors) != COW_V1_HEAD_SIZE);
	BUILD_BUG_ON(sizeof(struct cow_map_sector) != COW_MAP_SECTOR);
	BUILD_BUG_ON(sizeof(struct cow_region) > 4096);
	BUILD_BUG_ON(sizeof(struct cow_stage) > 4096);
	BUILD_BUG_ON(COW_V1_REGION_SECTORS * COW_V1_SECTOR_BYTES >
		     sizeof_field(struct cow_region, bits));

	*error = "Cannot open the cowfile";
	md = kzalloc(sizeof(*md), GFP_KERNEL);
	if (!md)
		return ERR_PTR(-ENOMEM);
	md->name = args->name;
	md->cow = args->cow;
	for (i = 0; i < COW_REGION_LOCKS; i++)
		spin_lock_init(&md->locks[i].lock);
	spin_lock_init(&md->space_lock);
	mutex_init(&md->load_lock);
	mutex_init(&md->commit_lock);
	init_completion(&md->written);
	atomic_set(&md->nr_writing, 1);
	init_llist_head(&md->changed);

	r = md_open(md, args, error);
	if (!r) {
		*error = "Cannot allocate memory";
		r = start_shrinker(md);
	}
	if (r) {
		cow_md_close(md);
		return ERR_PTR(r);
	}
	return md;
}

void cow_md_close(struct cow_md *md)
{
	u64 i;

	cow_shrinker_free(md->shrinker);
	for (i = 0; md->map.regions && i < md->nr_regions; i++) {
		struct cow_region *r = rcu_access_pointer(md->map.regions[i]);

		if (!cow_region_is_marker(r))
			kfree(r);
	}
	kvfree(md->map.regions);
	kvfree(md->uncounted);
	kfree(md->scratch);
	kfree(md->reserve);
	kfree(md->spare_stage);
	for (i = 0; i < COW_MAX_WRITES; i++)
		kfree(md->writes[i].bio);
	if (md->bufio)
		dm_bufio_client_destroy(md->bufio);
	kfree(md);
}

void cow_md_let_go(struct cow_md *md)
{
	/* What is in memory can't be loaded again. */
	mutex_lock(&md->load_lock);
	WRITE_ONCE(md->keep_all, true);
	mutex_unlock(&md->load_lock);
	dm_bufio_client_destroy(md->bufio);
	md->bufio = NULL;
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
	       (le32_to_cpu(md->head.compat_ro) & ~COW_COMPAT_RO_KNOWN);
}
