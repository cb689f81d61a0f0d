// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: regions of the bitmap, from and to disk.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/bitmap.h>
#include <linux/crc32c.h>
#include <linux/device-mapper.h>
#include <linux/dm-bufio.h>
#include <linux/sched/signal.h>
#include <linux/shrinker.h>
#include <linux/slab.h>

/* Regions that cow_md_count_some() does in a call. */
#define COW_COUNT_REGIONS	256

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

/*
 * Bitmap sector @sector in its dm-bufio block. *@buf holds the block; it is
 * read when *@buf is NULL or holds another one, which is released.
 */
static void *map_sector_get(struct cow_md *md, u64 sector, struct dm_buffer **buf)
{
	const u64 byte = md->geo.moffset + sector * COW_MAP_SECTOR;
	const sector_t block = byte >> md->block_shift;
	void *data;

	if (*buf && dm_bufio_get_block_number(*buf) != block) {
		dm_bufio_release(*buf);
		*buf = NULL;
	}
	if (!*buf) {
		data = dm_bufio_read(md->bufio, block, buf);
		if (IS_ERR(data)) {
			*buf = NULL;
			return data;
		}
	}
	return dm_bufio_get_block_data(*buf) + (byte & (BIT(md->block_shift) - 1));
}

static bool map_sector_ends_block(struct cow_md *md, u64 sector)
{
	const u64 end = md->geo.moffset + (sector + 1) * COW_MAP_SECTOR;

	return !(end & (BIT(md->block_shift) - 1));
}

/* The blocks of dm-bufio that bitmap sectors @first to @end, exclusive, are in. */
sector_t first_block(struct cow_md *md, u64 first)
{
	return (md->geo.moffset + first * COW_MAP_SECTOR) >> md->block_shift;
}

sector_t last_block(struct cow_md *md, u64 end)
{
	return (md->geo.moffset + end * COW_MAP_SECTOR - 1) >> md->block_shift;
}

/* False, and a line in the log, when a sector of format 2 is damaged. */
static bool map_sector_good(struct cow_md *md, u64 sector, const struct cow_map_sector *s)
{
	const __le32 csum = map_sector_csum(s, sector);
	u64 first, last;

	if (s->csum == csum || !memchr_inv(s, 0, sizeof(*s)))
		return true;

	first = sector * md->map.sector_units;
	last = min(first + md->map.sector_units, md->geo.nr_units) - 1;
	/* Again each time it is read; it may be evicted. */
	DMERR_LIMIT("%s: %pg: bitmap sector %llu: csum %08x, expected %08x: units %llu-%llu fail",
		    md->name, md->cow, sector, le32_to_cpu(s->csum),
		    le32_to_cpu(csum), first, last);
	return false;
}

/* Read region @index into @r; bits that belong to no unit are left out. */
static int region_read(struct cow_md *md, u64 index, struct cow_region *r)
{
	const u32 nr_sectors = region_nr_sectors(md, index);
	const u32 nr_units = region_nr_units(md, index);
	const u64 first = index * md->region_sectors;
	struct dm_buffer *buf = NULL;
	const void *data;
	u32 i;

	memset(r, 0, sizeof(*r));
	r->index = index;

	for (i = 0; i < nr_sectors; i++) {
		data = map_sector_get(md, first + i, &buf);
		if (IS_ERR(data))
			return PTR_ERR(data);
		if (md->geo.format == 2 && !map_sector_good(md, first + i, data))
			r->bad |= BIT(i);
		else
			memcpy(r->bits + i * md->sector_bytes, data, md->sector_bytes);
	}
	if (buf)
		dm_bufio_release(buf);

	for (i = nr_units; i < round_up(nr_units, BITS_PER_BYTE); i++)
		__clear_bit_le(i, r->bits);
	memset(r->bits + DIV_ROUND_UP(nr_units, BITS_PER_BYTE), 0,
	       sizeof(r->bits) - DIV_ROUND_UP(nr_units, BITS_PER_BYTE));

	return 0;
}

/*
 * Begin to write staged bitmap sectors, with @opf. A block is begun once all of
 * the region's sectors in it are in place, so that no checksum is written without
 * its bits. (In format 1, which has no checksums, regions may share a block.)
 */
int write_staged(struct cow_md *md, struct cow_stage *stage, blk_opf_t opf)
{
	const u64 index = stage->region->index;
	const u64 first = index * md->region_sectors;
	const u64 end = first + region_nr_sectors(md, index);
	struct dm_buffer *buf = NULL;
	bool touched = false;
	u64 sector;
	int r = 0;

	stage->marker = marker_for(md, stage);
	for (sector = first; sector < end && !r; sector++) {
		const u32 offset = (sector - first) * md->sector_bytes;
		const bool changed = stage->sectors & BIT(sector - first);
		struct cow_map_sector *s = NULL;

		if (changed || stage->marker) {
			s = map_sector_get(md, sector, &buf);
			if (IS_ERR(s))
				return PTR_ERR(s);
		}
		if (changed) {
			r = wait_if_written(md, buf);
			memcpy(s, stage->bits + offset, md->sector_bytes);
			if (md->geo.format == 2)
				s->csum = map_sector_csum(s, sector);
			touched = true;
		}
		if (stage->marker &&
		    memchr_inv(s, stage->marker == COW_REGION_FULL ? 0xff : 0, md->sector_bytes))
			stage->marker = NULL;

		if (touched && !r && (sector + 1 == end || map_sector_ends_block(md, sector))) {
			r = write_block(md, buf, opf);
			buf = NULL;
			touched = false;
		}
	}
	if (buf)
		dm_bufio_release(buf);

	return r;
}

/* ---- Memory ---- */

/* Evict a region, if one can be, and return its page. */
static struct cow_region *region_evict(struct cow_md *md)
{
	unsigned long nr = ULONG_MAX;
	struct cow_region *r;

	mutex_lock(&md->commit_lock);
	r = region_unlink(md, &nr);
	mutex_unlock(&md->commit_lock);
	/* A close that wanted to have the whole bitmap in memory has to try again. */
	if (r)
		WRITE_ONCE(md->keep_all, false);

	if (r)
		synchronize_rcu();
	return r;
}

static unsigned long regions_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cow_md *md = cow_shrinker_owner(shrinker);

	return READ_ONCE(md->keep_all) ? 0 : atomic_read(&md->nr_pages);
}

/* Others need memory. Who has the locks may be one of them. */
static unsigned long regions_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cow_md *md = cow_shrinker_owner(shrinker);
	unsigned long nr = sc->nr_to_scan, freed = 0;
	struct cow_region *r;

	if (!mutex_trylock(&md->load_lock))
		return SHRINK_STOP;
	if (md->keep_all || !mutex_trylock(&md->commit_lock)) {
		mutex_unlock(&md->load_lock);
		return SHRINK_STOP;
	}
	/* Without one in reserve, one stays that is in use: see the top. */
	while (nr && (md->reserve || atomic_read(&md->nr_pages) > 1)) {
		r = region_unlink(md, &nr);
		if (!r)
			break;
		kfree_rcu(r, rcu);
		freed++;
	}
	mutex_unlock(&md->commit_lock);
	mutex_unlock(&md->load_lock);

	return freed;
}

int start_shrinker(struct cow_md *md)
{
	md->shrinker = cow_shrinker_alloc("dm-cowloop", md);
	if (!md->shrinker)
		return -ENOMEM;
	md->shrinker->count_objects = regions_count;
	md->shrinker->scan_objects = regions_scan;
	md->shrinker->seeks = DEFAULT_SEEKS;

	return cow_shrinker_register(md->shrinker, "dm-cowloop");
}

/* A page for a region, or NULL if there will be none before a commit. */
static struct cow_region *region_alloc(struct cow_md *md, enum cow_purpose purpose)
{
	const gfp_t gfp = GFP_NOIO | __GFP_NORETRY | __GFP_NOMEMALLOC | __GFP_NOWARN;
	struct cow_region *r;

	lockdep_assert_held(&md->load_lock);

	if (!md->reserve)
		WRITE_ONCE(md->reserve, kmalloc(sizeof(*r), gfp));
	r = kmalloc(sizeof(*r), gfp);
	if (!r) {
		r = md->reserve;
		WRITE_ONCE(md->reserve, NULL);
	}
	return r || purpose == COW_TO_HAVE_ALL ? r : region_evict(md);
}

/* ---- Loading ---- */

/*
 * Before the load_lock is taken to load region @index: read what is needed, for dm-bufio
 * to have it in its cache. Returns 0, also if there is nothing to be read, or a negative
 * errno. Sleeps, does I/O.
 */
static int region_prefetch(struct cow_md *md, u64 index)
{
	const u64 first = index * md->region_sectors;
	struct dm_buffer *buf;
	sector_t block, last;
	void *data;

	if (is_loaded(md, index))
		return 0;
	last = last_block(md, first + region_nr_sectors(md, index));
	for (block = first_block(md, first); block <= last; block++) {
		data = dm_bufio_read(md->bufio, block, &buf);
		if (IS_ERR(data))
			return PTR_ERR(data);
		dm_bufio_release(buf);
	}
	return 0;
}

/*
 * Load region @index, if that has not been done, and leave a marker for it, or
 * its page, as the @purpose is. Counts its units when that is still to be done.
 * Returns what cow_md_load() does.
 */
static int region_load(struct cow_md *md, u64 index, enum cow_purpose purpose)
{
	struct cow_region *r = md->scratch;
	u32 weight;
	int ret;

	lockdep_assert_held(&md->load_lock);

	if (is_loaded(md, index))
		return 0;
	ret = region_read(md, index, r);
	if (ret)
		return ret;

	weight = bitmap_weight((unsigned long *)r->bits, sizeof(r->bits) * BITS_PER_BYTE);
	if (!weight && !r->bad) {
		r = COW_REGION_EMPTY;
	} else if (weight == region_nr_units(md, index)) {
		r = COW_REGION_FULL;
	} else if (purpose != COW_TO_COUNT) {
		r = region_alloc(md, purpose);
		if (!r)
			return 1;
		*r = *md->scratch;
	} else {
		r = NULL;
	}

	if (md->uncounted && __test_and_clear_bit(index, md->uncounted)) {
		atomic64_add(weight, &md->used);
		if (index < md->count_next)
			WRITE_ONCE(md->nr_unread, md->nr_unread - 1);
	}
	if (!cow_region_is_marker(r))
		atomic_inc(&md->nr_pages);
	rcu_assign_pointer(md->map.regions[index], r);

	return 0;
}

/*
 * Write region @index's part of the bitmap as it is on disk, once, so that there
 * is room for it from now on.
 */
static int region_allocate(struct cow_md *md, u64 index)
{
	const u64 first = index * md->region_sectors;
	const sector_t last = last_block(md, first + region_nr_sectors(md, index));
	struct cow_region *r;
	struct dm_buffer *buf;
	sector_t block;
	int ret = 0;

	mutex_lock(&md->commit_lock);
	/* It may have been evicted, or a commit may have put a marker in its place. */
	r = rcu_access_pointer(md->map.regions[index]);
	if (cow_region_is_marker(r) || r->allocated)
		goto out;

	if (cow_md_failed(md))
		ret = -EIO;
	for (block = first_block(md, first); block <= last && !ret; block++) {
		void *data = dm_bufio_read(md->bufio, block, &buf);

		ret = IS_ERR(data) ? PTR_ERR(data) : write_block(md, buf, 0);
	}
	/* An error is not final: what could not be written is what was there. */
	ret = wait_for_writes(md, ret);
	if (!ret)
		WRITE_ONCE(r->allocated, true);
out:
	mutex_unlock(&md->commit_lock);

	return ret;
}

/* A page in the place of region @index's marker; returns 1 if there is no memory. */
static int region_expand(struct cow_md *md, u64 index)
{
	struct cow_region *marker = rcu_access_pointer(md->map.regions[index]);
	const u32 nr_units = region_nr_units(md, index);
	struct cow_region *r = region_alloc(md, COW_TO_USE);
	u32 i;

	if (!r)
		return 1;
	memset(r, 0, sizeof(*r));
	r->index = index;
	if (marker == COW_REGION_FULL) {
		memset(r->bits, 0xff, nr_units / BITS_PER_BYTE);
		for (i = round_down(nr_units, BITS_PER_BYTE); i < nr_units; i++)
			__set_bit_le(i, r->bits);
	}
	atomic_inc(&md->nr_pages);
	rcu_assign_pointer(md->map.regions[index], r);

	return 0;
}

int cow_md_load(struct cow_md *md, u64 unit, bool for_write)
{
	u32 bit;
	const u64 index = cow_unit_to_region(&md->map, unit, &bit);
	int ret;

	ret = region_prefetch(md, index);
	if (ret)
		return ret;
	mutex_lock(&md->load_lock);
	ret = region_load(md, index, COW_TO_USE);
	if (!ret && for_write &&
	    rcu_access_pointer(md->map.regions[index]) == COW_REGION_EMPTY)
		ret = region_expand(md, index);
	mutex_unlock(&md->load_lock);

	/* Without the lock: others may read on while the cow device looks for space. */
	if (!ret && for_write)
		ret = region_allocate(md, index);
	return ret;
}

int cow_md_clear(struct cow_md *md, u64 unit, u64 max, unsigned int *run)
{
	u32 bit;
	const u64 index = cow_unit_to_region(&md->map, unit, &bit);
	struct cow_region *r;
	int ret;

	*run = min_t(u64, max, md->map.region_units - bit);
	ret = region_prefetch(md, index);
	if (ret)
		return ret;
	mutex_lock(&md->load_lock);
	do {
		ret = region_load(md, index, COW_TO_USE);
		r = rcu_access_pointer(md->map.regions[index]);
		if (!ret && r == COW_REGION_FULL)
			ret = region_expand(md, index);
		if (ret > 0)
			ret = -ENOMEM;
		if (ret || r == COW_REGION_EMPTY)
			break;
		ret = region_clear(md, index, bit, *run);
	} while (ret == -EAGAIN);
	mutex_unlock(&md->load_lock);

	return ret;
}

int cow_md_load_all(struct cow_md *md)
{
	u64 index;
	int r = 0;

	mutex_lock(&md->load_lock);
	WRITE_ONCE(md->keep_all, true);
	mutex_unlock(&md->load_lock);
	for (index = 0; index < md->nr_regions && !r; index++) {
		r = signal_pending(current) ? -EINTR : region_prefetch(md, index);
		if (r)
			break;
		mutex_lock(&md->load_lock);
		r = region_load(md, index, COW_TO_HAVE_ALL);
		mutex_unlock(&md->load_lock);
		cond_resched();
	}

	mutex_lock(&md->load_lock);
	/* Others may have needed the memory, and evicted some. */
	if (!r && !md->keep_all)
		r = 1;
	if (r)
		WRITE_ONCE(md->keep_all, false);
	else
		WRITE_ONCE(md->count_next, md->nr_regions);
	mutex_unlock(&md->load_lock);

	return r > 0 ? -ENOMEM : r;
}

void cow_md_may_evict(struct cow_md *md)
{
	mutex_lock(&md->load_lock);
	WRITE_ONCE(md->keep_all, false);
	mutex_unlock(&md->load_lock);
}

/* ---- Counting ---- */

static void log_unread(struct cow_md *md, u64 index, int error)
{
	const u64 first = region_first_unit(md, index);

	DMERR("%s: %pg: cannot read the bitmap of units %llu-%llu: error %d; they fail, uncounted",
	      md->name, md->cow, first, first + region_nr_units(md, index) - 1, error);
}

/*
 * Count the next region. One that can't be read, and maybe could not be before, with
 * @error, is passed over, and stays in uncounted: it is counted when it is loaded. Returns
 * its error.
 */
int count_region(struct cow_md *md, int error)
{
	const u64 index = md->count_next;
	const int r = error && !is_loaded(md, index) ? error :
						       region_load(md, index, COW_TO_COUNT);

	lockdep_assert_held(&md->load_lock);
	/* For all of them there is one line in the log. Format 1 is refused then. */
	if (r && !md->nr_unread++ && md->geo.format == 2)
		log_unread(md, index, r);
	WRITE_ONCE(md->count_next, index + 1);

	return r;
}

/* Have dm-bufio read the part of the bitmap that is counted next, all at once. */
static void prefetch_regions(struct cow_md *md, u64 index, unsigned int nr)
{
	const u64 first = index * md->region_sectors;
	const u64 end = min(first + nr * md->region_sectors, md->nr_map_sectors);
	const sector_t from = first_block(md, first);

	dm_bufio_prefetch(md->bufio, from, last_block(md, end) - from + 1);
}

bool cow_md_count_some(struct cow_md *md)
{
	u64 index = READ_ONCE(md->count_next);
	unsigned int i;
	int error;

	if (index < md->nr_regions)
		prefetch_regions(md, index, COW_COUNT_REGIONS);
	for (i = 0; i < COW_COUNT_REGIONS; i++) {
		index = READ_ONCE(md->count_next);
		if (index >= md->nr_regions)
			break;
		error = region_prefetch(md, index);
		mutex_lock(&md->load_lock);
		/* Others may count, too. An error has been logged. */
		if (index == md->count_next)
			(void)count_region(md, error);
		mutex_unlock(&md->load_lock);
		cond_resched();
	}
	return cow_md_counting(md);
}

int cow_md_count_unread(struct cow_md *md)
{
	u64 index = 0;
	bool more;
	int r = 0;

	do {
		mutex_lock(&md->load_lock);
		more = md->nr_unread;
		if (more)
			index = find_next_bit(md->uncounted, md->count_next, index);
		mutex_unlock(&md->load_lock);
		if (!more)
			break;

		r = region_prefetch(md, index);
		if (r)
			break;
		mutex_lock(&md->load_lock);
		r = region_load(md, index, COW_TO_COUNT);
		mutex_unlock(&md->load_lock);
		cond_resched();
	} while (!r);

	return r;
}

/* ---- What is not on disk ---- */

static u32 sector_weight(struct cow_md *md, const u8 *bits, const u8 *but)
{
	u32 weight = 0, i;

	for (i = 0; i < md->sector_bytes; i++)
		weight += hweight8(bits[i] & ~but[i]);
	return weight;
}

/* Compare a region with what is on disk now, not with what is cached. */
static int compare_region(struct cow_md *md, const struct cow_region *r, struct cow_unsaved *units)
{
	const u64 first = (u64)r->index * md->region_sectors;
	const u64 end = first + region_nr_sectors(md, r->index);
	const struct cow_region *disk = md->scratch;
	sector_t block;
	u32 i;
	int ret;

	for (block = first_block(md, first); block <= last_block(md, end); block++)
		dm_bufio_forget(md->bufio, block);
	ret = region_read(md, r->index, md->scratch);
	if (ret)
		return ret;
	for (i = 0; i < end - first; i++) {
		const u8 *bits = r->bits + i * md->sector_bytes;
		const u8 *there = disk->bits + i * md->sector_bytes;

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
	mutex_lock(&md->load_lock);
	mutex_lock(&md->commit_lock);
	for (index = 0; index < md->nr_regions && !ret; index++) {
		r = rcu_access_pointer(md->map.regions[index]);
		/* So are those that a commit has failed for. */
		if (!cow_region_is_marker(r) && r->queued)
			ret = compare_region(md, r, units);
		cond_resched();
	}
	mutex_unlock(&md->commit_lock);
	mutex_unlock(&md->load_lock);

	return ret;
}
