// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: regions of the bitmap, from and to disk, and the memory that they take.
 *
 * Memory. People swap on such devices, so a region must be loaded even where no memory
 * can be had. A page whose bits are all on disk, and which no write in flight holds
 * (cow_md_hold), can be evicted: its region becomes unread. That is done when there is no
 * memory for another one, and by a shrinker when others need it. Each cowfile always has
 * one page at least, in reserve or in use. So there is one that a commit, and the
 * completion of what is in flight, will make free for eviction; neither of them needs
 * memory that others hold.
 *
 * Reading. What a region is filled from is read before the load_lock is taken, and is
 * found in dm-bufio's cache then (prefetch_region): so that several regions are read at
 * the same time, and one that takes long holds up nobody who does not need it.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/bitmap.h>
#include <linux/crc32c.h>
#include <linux/device-mapper.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/shrinker.h>
#include <linux/slab.h>

/* Regions that cow_md_count_some() does in a call. */
#define COW_COUNT_REGIONS	256

struct cow_regions {
	struct mutex load_lock;		/* all that is below, and the bitmap's regions */
	struct cow_region *scratch;	/* to read a region into */
	bool keep_all;			/* nothing is evicted but for want of memory here */

	unsigned long *uncounted;	/* regions still to be counted, or NULL */
	u64 count_next;			/* of them, those from here on have not been tried */
	u64 nr_unread;			/* of them, those that were tried in vain */

	struct shrinker *shrinker;
};

/* Why a region is loaded. */
enum cow_purpose {
	COW_TO_COUNT,		/* its page is not kept */
	COW_TO_USE,		/* others may be evicted for it */
	COW_TO_HAVE_ALL,	/* no other is */
};

/* ---- Bitmap sectors on disk ---- */

static __le32 map_sector_csum(const struct cow_map_sector *s, u64 sector)
{
	const __le64 index = cpu_to_le64(sector);
	u32 crc = crc32c(~0U, s->bits, sizeof(s->bits));

	return cpu_to_le32(~crc32c(crc, &index, sizeof(index)));
}

/* Where bitmap sector @sector begins on the cow device. */
static u64 map_sector_byte(struct cow_md *md, u64 sector)
{
	return md->geo.moffset + sector * COW_MAP_SECTOR;
}

/* Bitmap sector @sector is the last one in its block. */
static bool map_sector_ends_block(struct cow_md *md, u64 sector)
{
	const u64 end = map_sector_byte(md, sector + 1);

	return cow_blocks_at(md->blocks, end) != cow_blocks_at(md->blocks, end - 1);
}

/* The first bitmap sector of region @index, and the first one behind it. */
static u64 region_first_sector(struct cow_md *md, u64 index)
{
	return index * md->layout.region_sectors;
}

static u64 region_end_sector(struct cow_md *md, u64 index)
{
	return region_first_sector(md, index) + cow_region_nr_sectors(md, index);
}

/* The blocks that region @index is in. */
static sector_t region_first_block(struct cow_md *md, u64 index)
{
	return cow_blocks_at(md->blocks, map_sector_byte(md, region_first_sector(md, index)));
}

static sector_t region_last_block(struct cow_md *md, u64 index)
{
	return cow_blocks_at(md->blocks, map_sector_byte(md, region_end_sector(md, index)) - 1);
}

bool cow_region_in_one_block(struct cow_md *md, u64 index)
{
	return region_first_block(md, index) == region_last_block(md, index);
}

/* False, and a line in the log, when a sector of format 2 is damaged. */
static bool map_sector_good(struct cow_md *md, u64 sector, const struct cow_map_sector *s)
{
	const __le32 csum = map_sector_csum(s, sector);
	u64 first, last;

	if (s->csum == csum || !memchr_inv(s, 0, sizeof(*s)))
		return true;

	first = sector * md->layout.sector_units;
	last = min(first + md->layout.sector_units, md->geo.nr_units) - 1;
	/* Logged each time the region is read, which may be again and again: it may be evicted. */
	DMERR_LIMIT("%s: %pg: bitmap sector %llu: csum %08x, expected %08x: units %llu-%llu fail",
		    md->name, md->cow, sector, le32_to_cpu(s->csum),
		    le32_to_cpu(csum), first, last);
	return false;
}

int cow_region_read(struct cow_md *md, u64 index, struct cow_region *r)
{
	const u32 nr_sectors = cow_region_nr_sectors(md, index);
	const u32 nr_units = cow_region_nr_units(md, index);
	const u32 nr_bytes = DIV_ROUND_UP(nr_units, BITS_PER_BYTE);
	const u32 sector_bytes = md->layout.sector_bytes;
	const u64 first = region_first_sector(md, index);
	struct dm_buffer *buf = NULL;
	const void *data;
	u32 i;

	memset(r, 0, sizeof(*r));
	r->index = index;

	for (i = 0; i < nr_sectors; i++) {
		data = cow_blocks_get(md->blocks, map_sector_byte(md, first + i), &buf);
		if (IS_ERR(data))
			return PTR_ERR(data);
		if (md->geo.format == 2 && !map_sector_good(md, first + i, data))
			r->bad |= BIT(i);
		else
			memcpy(r->bits + i * sector_bytes, data, sector_bytes);
	}
	if (buf)
		cow_blocks_release(buf);

	for (i = nr_units; i < round_up(nr_units, BITS_PER_BYTE); i++)
		__clear_bit_le(i, r->bits);
	memset(r->bits + nr_bytes, 0, sizeof(r->bits) - nr_bytes);

	return 0;
}

/*
 * A block is begun once all of the region's sectors in it are in place, so that no
 * checksum is written without its bits. (In format 1, which has no checksums, regions
 * may share a block.)
 */
int cow_region_write(struct cow_md *md, struct cow_stage *stage, bool fua)
{
	const u32 sector_bytes = md->layout.sector_bytes;
	const u64 index = stage->region->index;
	const u64 first = region_first_sector(md, index);
	const u64 end = region_end_sector(md, index);
	struct dm_buffer *buf = NULL;
	bool touched = false;
	u64 sector;
	int r = 0;

	stage->marker = cow_stage_marker(md, stage);
	for (sector = first; sector < end && !r; sector++) {
		const bool changed = stage->sectors & BIT(sector - first);
		struct cow_map_sector *s = NULL;

		if (changed || stage->marker) {
			s = cow_blocks_get(md->blocks, map_sector_byte(md, sector), &buf);
			if (IS_ERR(s))
				return PTR_ERR(s);
		}
		if (changed) {
			r = cow_blocks_wait_for(md->blocks, buf);
			memcpy(s, stage->bits + (sector - first) * sector_bytes, sector_bytes);
			if (md->geo.format == 2)
				s->csum = map_sector_csum(s, sector);
			touched = true;
		}
		if (stage->marker &&
		    memchr_inv(s, stage->marker == COW_REGION_FULL ? 0xff : 0, sector_bytes))
			stage->marker = NULL;

		if (touched && !r && (sector + 1 == end || map_sector_ends_block(md, sector))) {
			r = cow_blocks_write(md->blocks, buf, fua);
			buf = NULL;
			touched = false;
		}
	}
	if (buf)
		cow_blocks_release(buf);

	return r;
}

/* ---- Memory ---- */

/* Evict a region, if one can be, and return its page. */
static struct cow_region *evict_region(struct cow_md *md)
{
	unsigned long nr = ULONG_MAX;
	struct cow_region *r;

	cow_blocks_lock(md->blocks);
	r = cow_bitmap_evict(md, &nr);
	cow_blocks_unlock(md->blocks);
	/* A close that wanted to have the whole bitmap in memory has to try again. */
	if (r)
		WRITE_ONCE(md->regions->keep_all, false);

	if (r)
		synchronize_rcu();
	return r;
}

static unsigned long regions_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cow_md *md = cow_shrinker_owner(shrinker);

	return READ_ONCE(md->regions->keep_all) ? 0 : cow_bitmap_nr_pages(md);
}

/* The kernel needs memory. Whoever has the locks may be waiting for that. */
static unsigned long regions_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cow_md *md = cow_shrinker_owner(shrinker);
	struct cow_regions *regions = md->regions;
	unsigned long nr = sc->nr_to_scan, freed = 0;
	struct cow_region *r;

	if (!mutex_trylock(&regions->load_lock))
		return SHRINK_STOP;
	if (regions->keep_all || !cow_blocks_trylock(md->blocks)) {
		mutex_unlock(&regions->load_lock);
		return SHRINK_STOP;
	}
	while (nr && cow_bitmap_can_spare(md)) {
		r = cow_bitmap_evict(md, &nr);
		if (!r)
			break;
		kfree_rcu(r, rcu);
		freed++;
	}
	cow_blocks_unlock(md->blocks);
	mutex_unlock(&regions->load_lock);

	return freed;
}

int cow_regions_init(struct cow_md *md)
{
	struct cow_regions *regions = kzalloc(sizeof(*regions), GFP_KERNEL);

	md->regions = regions;
	if (!regions)
		return -ENOMEM;
	mutex_init(&regions->load_lock);
	regions->count_next = md->layout.nr_regions;
	regions->scratch = kmalloc(sizeof(*regions->scratch), GFP_KERNEL);

	return regions->scratch ? 0 : -ENOMEM;
}

int cow_regions_start(struct cow_md *md)
{
	struct shrinker *shrinker = cow_shrinker_alloc("dm-cowloop", md);

	md->regions->shrinker = shrinker;
	if (!shrinker)
		return -ENOMEM;
	shrinker->count_objects = regions_count;
	shrinker->scan_objects = regions_scan;
	shrinker->seeks = DEFAULT_SEEKS;

	return cow_shrinker_register(shrinker, "dm-cowloop");
}

void cow_regions_exit(struct cow_md *md)
{
	if (!md->regions)
		return;
	cow_shrinker_free(md->regions->shrinker);
	kvfree(md->regions->uncounted);
	kfree(md->regions->scratch);
	kfree(md->regions);
}

/* A page for a region, or NULL if there will be none before a commit. */
static struct cow_region *alloc_region(struct cow_md *md, enum cow_purpose purpose)
{
	struct cow_region *r;

	lockdep_assert_held(&md->regions->load_lock);
	r = cow_bitmap_page(md);
	return r || purpose == COW_TO_HAVE_ALL ? r : evict_region(md);
}

/* Begin or end to keep all regions, but for want of memory for another one. */
static void set_keep_all(struct cow_md *md, bool keep_all)
{
	mutex_lock(&md->regions->load_lock);
	WRITE_ONCE(md->regions->keep_all, keep_all);
	mutex_unlock(&md->regions->load_lock);
}

void cow_regions_keep(struct cow_md *md)
{
	set_keep_all(md, true);
}

void cow_md_may_evict(struct cow_md *md)
{
	set_keep_all(md, false);
}

/* ---- Loading ---- */

/*
 * Before the load_lock is taken to load region @index: read what is needed, for dm-bufio
 * to have it in its cache. Returns 0, also if there is nothing to be read, or a negative
 * errno. Sleeps, does I/O.
 */
static int prefetch_region(struct cow_md *md, u64 index)
{
	const u64 end = region_end_sector(md, index);
	struct dm_buffer *buf = NULL;
	u64 sector;
	void *data;

	if (cow_bitmap_get(md, index))
		return 0;
	for (sector = region_first_sector(md, index); sector < end; sector++) {
		data = cow_blocks_get(md->blocks, map_sector_byte(md, sector), &buf);
		if (IS_ERR(data))
			return PTR_ERR(data);
	}
	cow_blocks_release(buf);

	return 0;
}

/*
 * Load region @index, if that has not been done, and leave a marker for it, or
 * its page, as the @purpose is. Counts its units when that is still to be done.
 * Returns what cow_md_load() does.
 */
static int load_region(struct cow_md *md, u64 index, enum cow_purpose purpose)
{
	struct cow_regions *regions = md->regions;
	struct cow_region *scratch = regions->scratch, *r;
	u32 weight;
	int ret;

	lockdep_assert_held(&regions->load_lock);

	if (cow_bitmap_get(md, index))
		return 0;
	ret = cow_region_read(md, index, scratch);
	if (ret)
		return ret;

	weight = bitmap_weight((unsigned long *)scratch->bits,
			       sizeof(scratch->bits) * BITS_PER_BYTE);
	r = cow_bitmap_marker(md, scratch, weight);
	if (!r && purpose != COW_TO_COUNT) {
		r = alloc_region(md, purpose);
		if (!r)
			return 1;
		*r = *scratch;
	}
	if (regions->uncounted && __test_and_clear_bit(index, regions->uncounted)) {
		cow_bitmap_add_used(md, weight);
		if (index < regions->count_next)
			WRITE_ONCE(regions->nr_unread, regions->nr_unread - 1);
	}
	cow_bitmap_put(md, index, r);

	return 0;
}

/*
 * Before region @index can be held for the first time: write its part of the bitmap
 * as it is on disk, so that there is room for it from now on.
 */
static int allocate_region(struct cow_md *md, u64 index)
{
	const u64 end = region_end_sector(md, index);
	struct dm_buffer *buf = NULL;
	struct cow_region *r;
	u64 sector;
	int ret = 0;

	cow_blocks_lock(md->blocks);
	/* The region may have been evicted, or a commit may have put a marker in its place. */
	r = cow_bitmap_get(md, index);
	if (cow_region_is_marker(r) || r->allocated)
		goto out;

	if (cow_md_failed(md))
		ret = -EIO;
	for (sector = region_first_sector(md, index); sector < end && !ret; sector++) {
		void *data = cow_blocks_get(md->blocks, map_sector_byte(md, sector), &buf);

		if (IS_ERR(data)) {
			ret = PTR_ERR(data);
		} else if (sector + 1 == end || map_sector_ends_block(md, sector)) {
			ret = cow_blocks_write(md->blocks, buf, false);
			buf = NULL;
		}
	}
	/* An error is not final: what could not be written is what was there. */
	ret = cow_blocks_wait(md->blocks, ret);
	if (!ret)
		WRITE_ONCE(r->allocated, true);
out:
	cow_blocks_unlock(md->blocks);

	return ret;
}

/* A page in the place of region @index's marker; returns 1 if there is no memory. */
static int expand_region(struct cow_md *md, u64 index)
{
	const struct cow_region *marker = cow_bitmap_get(md, index);
	struct cow_region *r = alloc_region(md, COW_TO_USE);

	if (!r)
		return 1;
	cow_bitmap_expand(md, r, index, marker);
	cow_bitmap_put(md, index, r);

	return 0;
}

int cow_md_load(struct cow_md *md, u64 unit, bool for_write)
{
	u32 bit;
	const u64 index = cow_unit_to_region(cow_md_map(md), unit, &bit);
	int ret;

	ret = prefetch_region(md, index);
	if (ret)
		return ret;
	mutex_lock(&md->regions->load_lock);
	ret = load_region(md, index, COW_TO_USE);
	if (!ret && for_write && cow_bitmap_get(md, index) == COW_REGION_EMPTY)
		ret = expand_region(md, index);
	mutex_unlock(&md->regions->load_lock);

	/* Without the lock: others may read on while the cow device looks for space. */
	if (!ret && for_write)
		ret = allocate_region(md, index);
	return ret;
}

int cow_md_clear(struct cow_md *md, u64 unit, u64 max, unsigned int *run)
{
	u32 bit;
	const u64 index = cow_unit_to_region(cow_md_map(md), unit, &bit);
	struct cow_region *r;
	int ret;

	*run = min_t(u64, max, md->layout.region_units - bit);
	ret = prefetch_region(md, index);
	if (ret)
		return ret;
	mutex_lock(&md->regions->load_lock);
	do {
		ret = load_region(md, index, COW_TO_USE);
		r = cow_bitmap_get(md, index);
		if (!ret && r == COW_REGION_FULL)
			ret = expand_region(md, index);
		if (ret > 0)
			ret = -ENOMEM;
		if (ret || r == COW_REGION_EMPTY)
			break;
		ret = cow_bitmap_clear(md, index, bit, *run);
	} while (ret == -EAGAIN);
	mutex_unlock(&md->regions->load_lock);

	return ret;
}

/* Regions before @index have been tried; with the load_lock held. */
static void set_count_next(struct cow_md *md, u64 index)
{
	WRITE_ONCE(md->regions->count_next, index);
	if (index >= md->layout.nr_regions)
		cow_bitmap_set_counting(md, false);
}

int cow_md_load_all(struct cow_md *md)
{
	struct cow_regions *regions = md->regions;
	u64 index;
	int r = 0;

	set_keep_all(md, true);
	for (index = 0; index < md->layout.nr_regions && !r; index++) {
		r = signal_pending(current) ? -EINTR : prefetch_region(md, index);
		if (r)
			break;
		mutex_lock(&regions->load_lock);
		r = load_region(md, index, COW_TO_HAVE_ALL);
		mutex_unlock(&regions->load_lock);
		cond_resched();
	}

	mutex_lock(&regions->load_lock);
	/* Others may have needed the memory, and evicted some. */
	if (!r && !regions->keep_all)
		r = 1;
	if (r)
		WRITE_ONCE(regions->keep_all, false);
	else
		set_count_next(md, md->layout.nr_regions);
	mutex_unlock(&regions->load_lock);

	return r > 0 ? -ENOMEM : r;
}

/* ---- Counting ---- */

int cow_regions_count(struct cow_md *md)
{
	struct cow_regions *regions = md->regions;
	const u64 nr = md->layout.nr_regions;

	regions->uncounted = kvcalloc(BITS_TO_LONGS(nr), sizeof(long), GFP_KERNEL);
	if (!regions->uncounted)
		return -ENOMEM;
	bitmap_set(regions->uncounted, 0, nr);
	regions->count_next = 0;
	cow_bitmap_set_counting(md, nr);

	return 0;
}

bool cow_md_counted(struct cow_md *md)
{
	return !cow_md_counting(md) && !READ_ONCE(md->regions->nr_unread);
}

static void log_unread(struct cow_md *md, u64 index, int error)
{
	const u64 first = cow_region_first_unit(md, index);

	DMERR("%s: %pg: cannot read the bitmap of units %llu-%llu: error %d; they fail, uncounted",
	      md->name, md->cow, first, first + cow_region_nr_units(md, index) - 1, error);
}

/*
 * Count the next region, @index. If it can't be read, and maybe could not be before, with
 * @error, it is passed over, and stays in uncounted: it is counted when it is loaded.
 */
static void count_region(struct cow_md *md, u64 index, int error)
{
	struct cow_regions *regions = md->regions;

	lockdep_assert_held(&regions->load_lock);
	if (!error || cow_bitmap_get(md, index))
		error = load_region(md, index, COW_TO_COUNT);
	/* For all of them there is one line in the log. Format 1 is refused then. */
	if (error && !regions->nr_unread && md->geo.format == 2)
		log_unread(md, index, error);
	if (error)
		WRITE_ONCE(regions->nr_unread, regions->nr_unread + 1);
	set_count_next(md, index + 1);
}

/* Have dm-bufio read the part of the bitmap that is counted next, all at once. */
static void prefetch_regions(struct cow_md *md, u64 index, unsigned int nr)
{
	const u64 last = min(index + nr, md->layout.nr_regions) - 1;
	const sector_t from = region_first_block(md, index);

	cow_blocks_prefetch(md->blocks, from, region_last_block(md, last) - from + 1);
}

bool cow_md_count_some(struct cow_md *md)
{
	struct cow_regions *regions = md->regions;
	u64 index = READ_ONCE(regions->count_next);
	unsigned int i;
	int error;

	if (index < md->layout.nr_regions)
		prefetch_regions(md, index, COW_COUNT_REGIONS);
	for (i = 0; i < COW_COUNT_REGIONS; i++) {
		index = READ_ONCE(regions->count_next);
		if (index >= md->layout.nr_regions)
			break;
		error = prefetch_region(md, index);
		mutex_lock(&regions->load_lock);
		/* Others may count, too. An error has been logged. */
		if (index == regions->count_next)
			count_region(md, index, error);
		mutex_unlock(&regions->load_lock);
		cond_resched();
	}
	return cow_md_counting(md);
}

int cow_md_count_unread(struct cow_md *md)
{
	struct cow_regions *regions = md->regions;
	u64 index = 0;
	bool more;
	int r = 0;

	do {
		mutex_lock(&regions->load_lock);
		more = regions->nr_unread;
		if (more)
			index = find_next_bit(regions->uncounted, regions->count_next, index);
		mutex_unlock(&regions->load_lock);
		if (!more)
			break;

		r = prefetch_region(md, index);
		if (r)
			break;
		mutex_lock(&regions->load_lock);
		r = load_region(md, index, COW_TO_COUNT);
		mutex_unlock(&regions->load_lock);
		cond_resched();
	} while (!r);

	return r;
}

/* ---- What is not on disk ---- */

static u32 sector_weight(struct cow_md *md, const u8 *bits, const u8 *but)
{
	u32 weight = 0, i;

	for (i = 0; i < md->layout.sector_bytes; i++)
		weight += hweight8(bits[i] & ~but[i]);
	return weight;
}

/* Compare a region with what is on disk now, not with what is cached. */
static int compare_region(struct cow_md *md, const struct cow_region *r, struct cow_unsaved *units)
{
	struct cow_region *disk = md->regions->scratch;
	sector_t block;
	u32 i;
	int ret;

	for (block = region_first_block(md, r->index);
	     block <= region_last_block(md, r->index); block++)
		cow_blocks_forget(md->blocks, block);
	ret = cow_region_read(md, r->index, disk);
	if (ret)
		return ret;
	for (i = 0; i < cow_region_nr_sectors(md, r->index); i++) {
		const u8 *bits = r->bits + i * md->layout.sector_bytes;
		const u8 *there = disk->bits + i * md->layout.sector_bytes;

		if (r->bad & BIT(i))
			continue;
		units->set += sector_weight(md, bits, there);
		units->cleared += sector_weight(md, there, bits);
	}
	return 0;
}

int cow_md_unsaved(struct cow_md *md, struct cow_unsaved *units)
{
	struct cow_region *r;
	u64 index;
	int ret = 0;

	*units = (struct cow_unsaved) { };
	mutex_lock(&md->regions->load_lock);
	cow_blocks_lock(md->blocks);
	for (index = 0; index < md->layout.nr_regions && !ret; index++) {
		r = cow_bitmap_get(md, index);
		/* A region is queued, too, when a commit has failed for it. */
		if (!cow_region_is_marker(r) && r->queued)
			ret = compare_region(md, r, units);
		cond_resched();
	}
	cow_blocks_unlock(md->blocks);
	mutex_unlock(&md->regions->load_lock);

	return ret;
}
