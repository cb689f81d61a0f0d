// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the cowfile's head and bitmap, in memory and on disk.
 *
 * In memory. The bitmap is cut into regions, each a few bitmap sectors that
 * fit into a page together with what we have to remember about them. An array
 * has a pointer for every region: NULL while it has not been read, a marker
 * when all of its units are in one place, else its page. Looking up a unit is
 * a few plain loads under RCU. The bits are kept in the byte order of the
 * disk. A region goes from unread to EMPTY, FULL or a page when it is loaded,
 * from a marker to a page before the first of its bits changes, and from a page
 * to a marker when the disk says so; all of this happens in process context.
 *
 * Memory. People swap on such devices, so a region must be loaded even where no
 * memory can be had. A page whose bits are all on disk, and which no write in
 * flight holds (cow_md_hold), can be evicted: its region becomes unread. That is
 * done when there is no memory for another one, and by a shrinker when others
 * need it. Each cowfile always has one page at least, in reserve or in use. So
 * there is one that a commit, and the completion of what is in flight, will make
 * free for eviction; neither of them needs memory that others hold.
 *
 * The order of things on disk, which is what makes a crash harmless:
 *
 *  1. DIRTY is durable in the head before any data is written for a unit whose
 *     bit is not set on disk. (Format 1 needs it: only DIRTY tells that there
 *     may be such data. In format 2 it says that cowused has to be recounted.)
 *  2. A bit is set in memory (cow_md_mark) after its unit's data was written
 *     completely, and written to disk only when a flush of the cow device that
 *     began after that has succeeded. So the bitmap on disk never claims a unit
 *     whose data may be lost.
 *  3. A head that is not DIRTY is written only after a commit with no write in
 *     flight, when cowused is exact.
 *
 * For 2, a commit first copies the changed bitmap sectors aside as they are
 * now, then flushes the cow device, and only then writes the copies. Bits that
 * are set after the copy was made belong to the next commit. dm-bufio caches what
 * is read; blocks are written from its buffers, but by bios of our own, which
 * tell when there is no space. So what is in a buffer is on disk, or it belongs
 * to a commit that met ENOSPC.
 *
 * cow_md_mark() queues the region for the next commit before it sets the first
 * bit, so that whoever has seen the bit finds that there is something to commit;
 * and it does both under the region's lock, so that a commit that finds the
 * region in the queue waits for the bit. A write that saw the bit, and so went
 * straight to the cowfile, can then rely on the flush that follows it.
 *
 * Bits are cleared, by a discard, in the same way: the region is queued first.
 * Who clears them commits them before the units' data is given up.
 *
 * After an error of a write of the metadata, or of any flush of the cow device, it
 * is not known what is on disk, and the next flush may not tell. No commit is begun
 * any more until the cowfile has been opened again, nor does one that has been begun
 * write bits; the regions that it was about stay queued. That takes that all errors
 * of flushes come to be known here, and before the next flush has ended: see
 * cow_fua_flushes() and cow_flushed().
 *
 * Space. The cow device may be sparse, and full. A bitmap sector that was never
 * written may then not find room, which must not come out in a commit, when
 * writes have been completed that depend on it. So a region's sectors are
 * written as they are before it can be held for the first time
 * (region_allocate): if there is no room it is that first write that fails. Where
 * even what has been written once needs room to be written again, a commit may
 * still meet ENOSPC. That alone is no failure: the data it is about is durable,
 * each bitmap sector is on disk in its old or its new state, and both are right.
 * The regions are queued again, for a commit when there is room. That it is owed is
 * for dm-cowloop.c to say and to heed; a commit that succeeds pays for all.
 *
 * Locks: commit_lock serialises what writes the cowfile, load_lock what fills
 * the array of regions; commit_lock may be taken inside load_lock. What a region is
 * filled from is read before, without the lock, and is found in dm-bufio's cache
 * then (region_prefetch): so that several regions are read at the same time, and
 * one that takes long holds up nobody who does not need it. A region's
 * spinlock, one of a few, covers its bits and whether they have changed; lookups
 * do without it: they find a bit that is being set in its old or its new state,
 * and both are right then.
 */

#include "dm-cowloop.h"
#include "dm-cowloop-compat.h"

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/crc32c.h>
#include <linux/device-mapper.h>
#include <linux/dm-bufio.h>
#include <linux/dm-io.h>
#include <linux/highmem.h>
#include <linux/llist.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uuid.h>
#include <linux/vmalloc.h>

#define DM_MSG_PREFIX "cowloop"

/* Bytes read at a time where much is read: fingerprint, repair, formatting. */
#define COW_IO_SIZE		(256 * 1024)

/* What one commit copies aside before it needs another pair of flushes. */
#define COW_COMMIT_MAX_REGIONS	2048

/* Regions that cow_md_count_some() does in a call. */
#define COW_COUNT_REGIONS	256

/* ---- Regions ---- */

/* Regions share spinlocks. */
#define COW_REGION_LOCKS	16

struct cow_region_lock {
	spinlock_t lock;	/* the region but for its index, holds, bad and union */
} ____cacheline_aligned_in_smp;

/* In the place of a pointer to a region. */
#define COW_REGION_EMPTY	((struct cow_region *)(unsigned long)COW_IN_RDO)
#define COW_REGION_FULL		((struct cow_region *)(unsigned long)COW_IN_COW)

/* Blocks of the cowfile that are written at the same time. */
#define COW_MAX_WRITES		8

struct cow_write {
	struct bio *bio;
	struct bio_vec bvec;
	struct dm_buffer *buf;
};

/* A changed region's bitmap sectors, copied aside by a commit. */
struct cow_stage {
	struct cow_stage *next;
	struct cow_region *region;
	unsigned long sectors;	/* those that have changed */
	struct cow_region *marker;	/* that will do for the region, or NULL */
	u8 bits[COW_V2_REGION_SECTORS * COW_V2_SECTOR_BYTES];
};

struct cow_md {
	struct cow_map map;
	u32 sector_bytes;	/* bytes of bits in a bitmap sector */
	u32 region_sectors;
	u64 nr_regions;
	u64 nr_map_sectors;	/* those that have a bit of some unit */
	unsigned int units_per_block;	/* of the devices; 1 if a block is no larger */

	struct cow_geometry geo;
	const char *name;
	struct block_device *cow;
	struct dm_bufio_client *bufio;
	unsigned int block_shift;	/* of dm-bufio's blocks, in bytes */

	struct mutex load_lock;		/* changes of regions[], and: */
	struct cow_region *scratch;	/* to read a region into */
	struct cow_region *reserve;	/* for when there is no memory; NULL: in use */
	atomic_t nr_pages;		/* in regions[] */
	bool keep_all;			/* nothing is evicted but for want of memory here */
	u64 evict_next;
	struct shrinker *shrinker;
	unsigned long *uncounted;	/* regions still to be counted, or NULL */
	u64 count_next;			/* of them, those from here on have not been tried */
	u64 nr_unread;			/* of them, those that were tried in vain */

	struct cow_region_lock locks[COW_REGION_LOCKS];
	atomic64_t used;
	spinlock_t space_lock;		/* makes one of changes to used and claimed */
	u64 limit;			/* of used and claimed, in units; 0: none */
	u64 set_aside;			/* of the limit, for writes that are urgent */
	u64 claimed;			/* units that are being written, while there is a limit */
	struct llist_head changed;	/* regions with changed bitmap sectors */
	bool unsaved;			/* what was taken off changed is not durable yet */
	bool failed;			/* it is not known what is on disk */
	bool unsure;			/* whether the last ENOSPC was one */
	bool owes_commit;		/* see cow_md_owe_commit() */

	struct mutex commit_lock;	/* writes to the cowfile, and: */
	struct cow_stage *spare_stage;	/* so that a commit needs no memory */
	struct cow_write writes[COW_MAX_WRITES];
	unsigned int nr_writes;		/* begun */
	atomic_t nr_writing;		/* of them, and one for whoever will wait */
	struct completion written;
	bool dirty;
	bool head_unsure;		/* a write of the head met ENOSPC */
	struct cow_head head;
};

static spinlock_t *region_lock(struct cow_md *md, const struct cow_region *r)
{
	return &md->locks[r->index % COW_REGION_LOCKS].lock;
}

static inline u64 region_first_unit(struct cow_md *md, u64 index)
{
	return index * md->map.region_units;
}

/* Units in region @index: the last one has fewer. */
static u32 region_nr_units(struct cow_md *md, u64 index)
{
	return min_t(u64, md->map.region_units,
		     md->geo.nr_units - region_first_unit(md, index));
}

static u32 region_nr_sectors(struct cow_md *md, u64 index)
{
	return min_t(u64, md->region_sectors,
		     md->nr_map_sectors - index * md->region_sectors);
}

/* For a region with damaged bitmap sectors: a run ends where good and damaged ones meet. */
static struct cow_run lookup_damaged(const struct cow_map *map, const struct cow_region *r,
				     u32 bit, struct cow_run run)
{
	const u32 sector = bit / map->sector_units;
	const bool bad = r->bad & BIT(sector);
	u32 end = sector;

	while (end < COW_V2_REGION_SECTORS && !!(r->bad & BIT(end)) == bad)
		end++;
	if (bad)
		run.where = COW_BAD;
	run.nr = min(run.nr, end * map->sector_units - bit);

	return run;
}

struct cow_run cow_lookup_run(const struct cow_map *map, u64 unit, unsigned int nr)
{
	const struct cow_region *r;
	struct cow_run run;
	u32 bit, end;
	u64 index = cow_unit_to_region(map, unit, &bit);

	run.nr = min(nr, map->region_units - bit);
	r = rcu_dereference_sched(map->regions[index]);
	if (cow_region_is_marker(r)) {
		run.where = (unsigned long)r;
		return run;
	}

	end = bit + run.nr;
	/* data_race(): bits that are being set may look either way. */
	if (data_race(test_bit_le(bit, r->bits))) {
		run.where = COW_IN_COW;
		/* data_race(): as above. */
		end = data_race(find_next_zero_bit_le(r->bits, end, bit));
	} else {
		run.where = COW_IN_RDO;
		/* data_race(): as above. */
		end = data_race(find_next_bit_le(r->bits, end, bit));
	}
	/* The bit may have been set since: the unit itself is sure. */
	run.nr = max(end - bit, 1U);

	return unlikely(r->bad) ? lookup_damaged(map, r, bit, run) : run;
}

/* The bitmap sectors of a region that have the bits of @nr units from @bit on. */
static u8 bits_to_sectors(struct cow_md *md, u32 bit, u32 nr)
{
	const u32 first = bit / md->map.sector_units;

	return nr == 1 ? BIT(first) : GENMASK((bit + nr - 1) / md->map.sector_units, first);
}

/* Bits of @nr from @bit on that are clear; some may be set meanwhile. */
static u32 count_clear(const struct cow_region *r, u32 bit, u32 nr)
{
	const u32 end = bit + nr;
	u32 clear = 0;

	for (; bit < end; bit++)
		/* data_race(): as in cow_lookup(). */
		clear += !data_race(test_bit_le(bit, r->bits));
	return clear;
}

/*
 * Claim what units there will be more than now; if that can't be, the hold ends.
 * Returns what cow_md_hold() does.
 */
static noinline int claim_units(struct cow_md *md, struct cow_hold *hold, bool urgent)
{
	const u32 nr = count_clear(hold->region, hold->bit, hold->nr);
	unsigned long flags;
	u64 needed;
	int ret = 0;

	if (!cow_md_counting(md)) {
		spin_lock_irqsave(&md->space_lock, flags);
		needed = cow_md_used(md) + md->claimed + nr + (urgent ? 0 : md->set_aside);
		if (md->limit && nr && needed > md->limit) {
			ret = -ENOSPC;
		} else {
			md->claimed += nr;
			hold->claim = nr;
			ret = 1;
		}
		spin_unlock_irqrestore(&md->space_lock, flags);
	}
	if (ret <= 0)
		atomic_dec(&hold->region->holds);

	return ret;
}

int cow_md_hold(struct cow_md *md, u64 unit, unsigned int nr, bool urgent,
		struct cow_hold *hold)
{
	struct cow_region *r;
	u64 index = cow_unit_to_region(&md->map, unit, &hold->bit);
	int ret = 0;

	hold->nr = nr;
	hold->claim = 0;
	rcu_read_lock_sched();
	r = rcu_dereference_sched(md->map.regions[index]);
	if (!cow_region_is_marker(r)) {
		if (unlikely(r->bad) && r->bad & bits_to_sectors(md, hold->bit, nr))
			ret = -EIO;
		else if (READ_ONCE(r->allocated))
			ret = atomic_inc_unless_negative(&r->holds);
	}
	rcu_read_unlock_sched();

	hold->region = r;

	return ret > 0 && unlikely(READ_ONCE(md->limit)) ? claim_units(md, hold, urgent) : ret;
}

/* End a claim: @fresh units of it have come into use. */
static noinline void end_claim(struct cow_md *md, unsigned int fresh, unsigned int claim)
{
	unsigned long flags;

	spin_lock_irqsave(&md->space_lock, flags);
	atomic64_add(fresh, &md->used);
	md->claimed -= claim;
	spin_unlock_irqrestore(&md->space_lock, flags);
}

void cow_md_release(struct cow_md *md, const struct cow_hold *hold)
{
	if (hold->claim)
		end_claim(md, 0, hold->claim);
	atomic_dec(&hold->region->holds);
}

/* With the region's lock held, and before its bits change. */
static bool queue_region(struct cow_md *md, struct cow_region *r)
{
	if (r->queued)
		return false;
	r->queued = true;
	/* A full barrier; pairs with cow_md_changed(). */
	return llist_add(&r->changed, &md->changed);
}

/* What cow_md_mark() does, with the region's lock held. */
static __always_inline bool mark_locked(struct cow_md *md, const struct cow_hold *hold, u32 *fresh)
{
	struct cow_region *r = hold->region;
	const u32 end = hold->bit + hold->nr;
	const bool first = queue_region(md, r);
	u32 bit = hold->bit, nr = 0;

	r->changed_sectors |= bits_to_sectors(md, bit, hold->nr);
	do
		/* data_race(): with lookups, see there. */
		nr += !data_race(__test_and_set_bit_le(bit, r->bits));
	while (++bit < end);
	*fresh = nr;

	return first;
}

/* The hold has ended in @fresh bits being set. */
static __always_inline void end_hold(struct cow_md *md, const struct cow_hold *hold, u32 fresh)
{
	if (unlikely(hold->claim))
		end_claim(md, fresh, hold->claim);
	else
		atomic64_add(fresh, &md->used);
	/* Last: the region is queued now, and stays where it is. */
	atomic_dec(&hold->region->holds);
}

bool cow_md_mark(struct cow_md *md, const struct cow_hold *hold)
{
	spinlock_t *lock = region_lock(md, hold->region);
	u32 fresh = 0;
	bool first;

	/* Interrupts are off: see dm-cowloop.h. */
	spin_lock(lock);
	first = mark_locked(md, hold, &fresh);
	spin_unlock(lock);
	end_hold(md, hold, fresh);

	return first;
}

/* What cow_md_mark() does, in process context, and with no lock held. */
static void mark_unlocked(struct cow_md *md, const struct cow_hold *hold)
{
	spinlock_t *lock = region_lock(md, hold->region);
	u32 fresh = 0;

	spin_lock_irq(lock);
	mark_locked(md, hold, &fresh);
	spin_unlock_irq(lock);
	end_hold(md, hold, fresh);
}

void cow_md_set_limit(struct cow_md *md, u64 limit, u64 set_aside)
{
	spin_lock_irq(&md->space_lock);
	WRITE_ONCE(md->limit, limit);
	md->set_aside = min(set_aside, limit);
	spin_unlock_irq(&md->space_lock);
}

bool cow_md_changed(struct cow_md *md)
{
	/* Whoever has seen a bit must find its region queued, or taken. */
	smp_rmb();
	if (!llist_empty(&md->changed))
		return true;
	/* In this order: a commit sets unsaved before it takes the list. */
	smp_rmb();
	return READ_ONCE(md->unsaved);
}

bool cow_md_failed(struct cow_md *md)
{
	return READ_ONCE(md->failed);
}

bool cow_md_unsure(struct cow_md *md)
{
	return READ_ONCE(md->unsure);
}

void cow_md_owe_commit(struct cow_md *md)
{
	WRITE_ONCE(md->owes_commit, true);
}

bool cow_md_owes_commit(struct cow_md *md)
{
	return READ_ONCE(md->owes_commit);
}

void cow_md_set_failed(struct cow_md *md)
{
	WRITE_ONCE(md->failed, true);
}

bool cow_fua_flushes(struct block_device *cow)
{
	return bdev_write_cache(cow) && !bdev_fua(cow);
}

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
static sector_t first_block(struct cow_md *md, u64 first)
{
	return (md->geo.moffset + first * COW_MAP_SECTOR) >> md->block_shift;
}

static sector_t last_block(struct cow_md *md, u64 end)
{
	return (md->geo.moffset + end * COW_MAP_SECTOR - 1) >> md->block_shift;
}

/* ---- Writing blocks ---- */

static void end_writing(struct cow_md *md)
{
	if (atomic_dec_and_test(&md->nr_writing))
		complete(&md->written);
}

/*
 * Errors of flushes are recorded here, not by whoever waits: the next flush may end
 * before that, and well. There may be one in a FUA write; it is not what lacks space.
 */
static void block_written(struct bio *bio)
{
	struct cow_md *md = bio->bi_private;

	if (bio->bi_opf & REQ_FUA && bio->bi_status && bio->bi_status != BLK_STS_NOSPC)
		cow_md_set_failed(md);
	end_writing(md);
}

static void cow_flushed(struct bio *bio)
{
	struct cow_md *md = bio->bi_private;

	if (bio->bi_status)
		cow_md_set_failed(md);
	end_writing(md);
}

/* Until all of them have ended */
static void wait_for_bios(struct cow_md *md)
{
	if (!atomic_dec_and_test(&md->nr_writing))
		wait_for_completion_io(&md->written);
	atomic_set(&md->nr_writing, 1);
	reinit_completion(&md->written);
}

/*
 * Wait for all the blocks that are being written. Returns @before, if something has
 * failed before, or their error: -ENOSPC, if there is no other.
 */
static int wait_for_writes(struct cow_md *md, int before)
{
	unsigned int i;
	int r = 0;

	lockdep_assert_held(&md->commit_lock);
	if (!md->nr_writes)
		return before;
	wait_for_bios(md);
	for (i = 0; i < md->nr_writes; i++) {
		struct cow_write *w = &md->writes[i];
		int error = blk_status_to_errno(w->bio->bi_status);

		if (error == -ENOSPC)
			WRITE_ONCE(md->unsure, false);
		if (error == -EIO && cow_hides_no_space(md->cow)) {
			WRITE_ONCE(md->unsure, true);
			error = -ENOSPC;
		}
		if (!r || r == -ENOSPC)
			r = error ? error : r;
		bio_uninit(w->bio);
		dm_bufio_release(w->buf);
	}
	md->nr_writes = 0;

	return before ? before : r;
}

/* Begin to write a block. Its buffer is released by wait_for_writes(). */
static int write_block(struct cow_md *md, struct dm_buffer *buf, blk_opf_t opf)
{
	void *data = dm_bufio_get_block_data(buf);
	struct page *page = NULL;
	struct cow_write *w;
	int r = 0;

	if (md->nr_writes == COW_MAX_WRITES)
		r = wait_for_writes(md, 0);

	w = &md->writes[md->nr_writes++];
	w->buf = buf;
	opf |= REQ_OP_WRITE | REQ_META | REQ_SYNC | cow_write_flags(md->cow);
	bio_init(w->bio, md->cow, &w->bvec, 1, opf);
	w->bio->bi_iter.bi_sector =
		dm_bufio_get_block_number(buf) << (md->block_shift - SECTOR_SHIFT);
	w->bio->bi_private = md;
	w->bio->bi_end_io = block_written;
	if (is_vmalloc_addr(data)) {
		flush_kernel_vmap_range(data, BIT(md->block_shift));
		page = vmalloc_to_page(data);
	}
	/* A block is no larger than a page, nor than its alignment. */
	__bio_add_page(w->bio, page ?: virt_to_page(data), BIT(md->block_shift),
		       offset_in_page(data));
	atomic_inc(&md->nr_writing);
	submit_bio(w->bio);

	return r;
}

/* A block that is being written must not be begun again, or the older one might win. */
static int wait_if_written(struct cow_md *md, struct dm_buffer *buf)
{
	unsigned int i;

	for (i = 0; i < md->nr_writes; i++)
		if (md->writes[i].buf == buf)
			return wait_for_writes(md, 0);
	return 0;
}

/* What was written before is durable when this returns 0. No block is being written. */
static int flush_cow(struct cow_md *md)
{
	lockdep_assert_held(&md->commit_lock);

	/* Without a cache it would come to nothing in the block layer, but take a way to it. */
	if (bdev_write_cache(md->cow)) {
		struct bio bio;

		bio_init(&bio, md->cow, NULL, 0, REQ_OP_WRITE | REQ_PREFLUSH | REQ_SYNC);
		bio.bi_private = md;
		bio.bi_end_io = cow_flushed;
		atomic_inc(&md->nr_writing);
		submit_bio(&bio);
		wait_for_bios(md);
		bio_uninit(&bio);
	}
	/* Somebody else's flush may have been told of what this one has not. */
	return cow_md_failed(md) ? -EIO : 0;
}

/* ---- Regions on disk ---- */

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
 * Take a region that nobody is at, and whose bits are all on disk, out of use:
 * true if so, and it can be replaced in regions[]. Any that has bits which are
 * not on disk is queued, or a commit is at it, which commit_lock keeps away.
 */
static bool region_retire(struct cow_md *md, struct cow_region *r)
{
	bool retired;

	lockdep_assert_held(&md->commit_lock);
	spin_lock_irq(region_lock(md, r));
	retired = !r->queued && atomic_cmpxchg(&r->holds, 0, -1) == 0;
	spin_unlock_irq(region_lock(md, r));

	return retired;
}

/*
 * Take the next region that can be evicted out of regions[], looking at no more
 * than *@nr of those that have a page. NULL if there is none. Lookups may still be
 * at it.
 */
static struct cow_region *region_unlink(struct cow_md *md, unsigned long *nr)
{
	struct cow_region *r;
	u64 i;

	lockdep_assert_held(&md->load_lock);
	lockdep_assert_held(&md->commit_lock);

	for (i = 0; i < md->nr_regions && *nr; i++) {
		cond_resched();
		if (++md->evict_next >= md->nr_regions)
			md->evict_next = 0;
		r = rcu_access_pointer(md->map.regions[md->evict_next]);
		if (cow_region_is_marker(r))
			continue;
		--*nr;
		if (region_retire(md, r)) {
			RCU_INIT_POINTER(md->map.regions[md->evict_next], NULL);
			atomic_dec(&md->nr_pages);
			return r;
		}
	}
	return NULL;
}

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

static int start_shrinker(struct cow_md *md)
{
	md->shrinker = cow_shrinker_alloc("dm-cowloop", md);
	if (!md->shrinker)
		return -ENOMEM;
	md->shrinker->count_objects = regions_count;
	md->shrinker->scan_objects = regions_scan;
	md->shrinker->seeks = DEFAULT_SEEKS;

	return cow_shrinker_register(md->shrinker, "dm-cowloop");
}

/* Why a region is loaded. */
enum cow_purpose {
	COW_TO_COUNT,		/* its page is not kept */
	COW_TO_USE,		/* others may be evicted for it */
	COW_TO_HAVE_ALL,	/* no other is */
};

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

static bool is_loaded(struct cow_md *md, u64 index)
{
	return rcu_access_pointer(md->map.regions[index]);
}

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

/*
 * Clear bits of region @index, which has a page, and return how many were set;
 * -EAGAIN if a commit has just put a marker in its place.
 */
static int region_clear(struct cow_md *md, u64 index, u32 bit, u32 nr)
{
	const u32 end = bit + nr;
	struct cow_region *r;
	u32 i, cleared = 0;

	/* It is held, so that a commit leaves it where it is. */
	rcu_read_lock();
	r = rcu_dereference(md->map.regions[index]);
	if (cow_region_is_marker(r) || !atomic_inc_unless_negative(&r->holds)) {
		rcu_read_unlock();
		return -EAGAIN;
	}
	rcu_read_unlock();

	if (r->bad & bits_to_sectors(md, bit, nr)) {
		atomic_dec(&r->holds);
		return -EIO;
	}

	spin_lock_irq(region_lock(md, r));
	for (i = find_next_bit_le(r->bits, end, bit); i < end;
	     i = find_next_bit_le(r->bits, end, i + 1)) {
		if (!cleared++)
			queue_region(md, r);
		/* Only these: others may be on disk where nothing was ever written. */
		r->changed_sectors |= BIT(i / md->map.sector_units);
		/* data_race(): with lookups, see there. */
		data_race(__test_and_clear_bit_le(i, r->bits));
	}
	spin_unlock_irq(region_lock(md, r));
	atomic64_sub(cleared, &md->used);
	atomic_dec(&r->holds);

	return cleared;
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

u64 cow_md_used(struct cow_md *md)
{
	/* Whoever changes a cowfile in use may have its bits counted once and cleared twice. */
	return clamp_t(s64, atomic64_read(&md->used), 0, md->geo.nr_units);
}

bool cow_md_counting(struct cow_md *md)
{
	return READ_ONCE(md->count_next) < md->nr_regions;
}

bool cow_md_is_dirty(struct cow_md *md)
{
	return READ_ONCE(md->dirty);
}

bool cow_md_counted(struct cow_md *md)
{
	return !cow_md_counting(md) && !READ_ONCE(md->nr_unread);
}

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
static int count_region(struct cow_md *md, int error)
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

/* ---- Commit ---- */

/* Write the head as it is in memory, durably. */
static int head_write(struct cow_md *md)
{
	const size_t size = md->geo.format == 1 ? COW_V1_HEAD_SIZE : COW_V2_HEAD_SIZE;
	const bool flush = cow_fua_flushes(md->cow);
	struct dm_buffer *buf;
	void *data;
	int r;

	if (md->geo.format == 2)
		md->head.csum = cpu_to_le32(~crc32c(~0U, &md->head,
						    offsetof(struct cow_head, csum)));

	data = dm_bufio_read(md->bufio, 0, &buf);
	if (IS_ERR(data))
		return PTR_ERR(data);
	memcpy(data, &md->head, size);

	r = wait_for_writes(md, write_block(md, buf, flush ? 0 : REQ_FUA));

	return r || !flush ? r : flush_cow(md);
}

static int head_write_flags(struct cow_md *md, u16 flags, u64 used)
{
	int r;

	lockdep_assert_held(&md->commit_lock);

	if (cow_md_failed(md))
		return -EIO;
	md->head.flags = cpu_to_le16(flags);
	md->head.cowused = cpu_to_le64(used);
	r = head_write(md);
	/* There was no space: the head on disk is the old one or this one. */
	md->head_unsure = r == -ENOSPC;
	if (!r)
		WRITE_ONCE(md->dirty, flags & COW_FLAG_DIRTY);
	else if (r == -ENOSPC)
		WRITE_ONCE(md->dirty, true);
	else
		WRITE_ONCE(md->failed, true);
	return r;
}

int cow_md_set_dirty(struct cow_md *md)
{
	int r = 0;

	mutex_lock(&md->commit_lock);
	if (!md->dirty || md->head_unsure)
		r = head_write_flags(md, le16_to_cpu(md->head.flags) | COW_FLAG_DIRTY,
				     le64_to_cpu(md->head.cowused));
	mutex_unlock(&md->commit_lock);

	return r;
}

/* Copy a region's changed bitmap sectors aside; it is no longer queued. */
static void stage_region(struct cow_md *md, struct cow_stage *stage, struct cow_region *r)
{
	unsigned long i;

	stage->region = r;
	spin_lock_irq(region_lock(md, r));
	r->queued = false;
	stage->sectors = r->changed_sectors;
	r->changed_sectors = 0;
	for_each_set_bit(i, &stage->sectors, md->region_sectors)
		memcpy(stage->bits + i * md->sector_bytes,
		       r->bits + i * md->sector_bytes, md->sector_bytes);
	spin_unlock_irq(region_lock(md, r));
}

/* The marker that would do for a region if all of its sectors were like the staged ones. */
static struct cow_region *marker_for(struct cow_md *md, struct cow_stage *stage)
{
	const u8 *bits = stage->bits + __ffs(stage->sectors) * md->sector_bytes;

	if (stage->region->bad || memchr_inv(bits, *bits, md->sector_bytes))
		return NULL;
	if (!*bits)
		return COW_REGION_EMPTY;
	/* Beyond the last unit no bits are set. */
	return *bits != 0xff || region_nr_units(md, stage->region->index) < md->map.region_units ?
		NULL : COW_REGION_FULL;
}

/*
 * Begin to write staged bitmap sectors, with @opf. A block is begun once all of
 * the region's sectors in it are in place, so that no checksum is written without
 * its bits. (In format 1, which has no checksums, regions may share a block.)
 */
static int write_staged(struct cow_md *md, struct cow_stage *stage, blk_opf_t opf)
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

/*
 * Replace the page of a region, whose bits are all the same on disk, by a marker,
 * if that is still so. The last page is not given away; the region may be
 * evicted then.
 */
static void region_collapse(struct cow_md *md, struct cow_region *r, struct cow_region *marker)
{
	if (READ_ONCE(md->reserve) && region_retire(md, r)) {
		rcu_assign_pointer(md->map.regions[r->index], marker);
		atomic_dec(&md->nr_pages);
		kfree_rcu(r, rcu);
	}
}

/* There was no space to commit what was staged: it is to be done again. */
static void requeue_staged(struct cow_md *md, struct cow_stage *stage)
{
	struct cow_region *r = stage->region;

	spin_lock_irq(region_lock(md, r));
	r->changed_sectors |= stage->sectors;
	queue_region(md, r);
	spin_unlock_irq(region_lock(md, r));
}

/* Regions that a commit has taken, but not got to. Each of them is still marked as queued. */
static void requeue_regions(struct cow_md *md, struct llist_node *todo)
{
	struct llist_node *next;

	for (; todo; todo = next) {
		next = todo->next;
		llist_add(todo, &md->changed);
	}
}

/* A commit has failed: some of the region's bits may never be on disk. */
static void unstage_region(struct cow_md *md, struct cow_region *r)
{
	spin_lock_irq(region_lock(md, r));
	r->queued = true;
	spin_unlock_irq(region_lock(md, r));
}

/* Write what is staged, durably, after the data that it is about. */
static int write_all_staged(struct cow_md *md, struct cow_stage *staged)
{
	const u64 first = staged->region->index * md->region_sectors;
	const u64 end = first + region_nr_sectors(md, staged->region->index);
	/* The usual case: one block, which takes the second flush with it. */
	const bool single = !staged->next && first_block(md, first) == last_block(md, end) &&
			    !cow_fua_flushes(md->cow);
	struct cow_stage *stage;
	int r;

	/*
	 * On its own: device-mapper forgets that a flush failed when there is a
	 * write with it.
	 */
	r = flush_cow(md);
	for (stage = staged; stage && !r; stage = stage->next)
		r = write_staged(md, stage, single ? REQ_FUA : 0);
	r = wait_for_writes(md, r);

	return r || single ? r : flush_cow(md);
}

/*
 * Commit the regions on *@todo, as many as memory can be had for, but one at
 * least, and take them off it.
 */
static int commit_some(struct cow_md *md, struct llist_node **todo)
{
	struct cow_stage *stage, *staged = NULL;
	unsigned int nr = 0;
	int r;

	while (*todo && nr < COW_COMMIT_MAX_REGIONS) {
		if (!nr)
			stage = md->spare_stage;
		else
			stage = kmalloc(sizeof(*stage),
					GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
		if (!stage)
			break;
		stage->next = staged;
		staged = stage;
		nr++;

		/* The node may be queued again as soon as the region is staged. */
		stage->region = llist_entry(*todo, struct cow_region, changed);
		*todo = (*todo)->next;
		stage_region(md, stage, stage->region);
	}

	r = write_all_staged(md, staged);

	while ((stage = staged)) {
		staged = stage->next;
		if (r == -ENOSPC)
			requeue_staged(md, stage);
		else if (r)
			unstage_region(md, stage->region);
		else if (stage->marker)
			region_collapse(md, stage->region, stage->marker);
		if (stage != md->spare_stage)
			kfree(stage);
	}

	return r;
}

static int commit_locked(struct cow_md *md)
{
	struct llist_node *todo;
	int r = 0;

	lockdep_assert_held(&md->commit_lock);

	if (cow_md_failed(md))
		return -EIO;
	WRITE_ONCE(md->unsaved, true);
	/* Before the list is taken; pairs with cow_md_changed(). */
	smp_mb();
	todo = llist_del_all(&md->changed);

	if (!todo)
		r = flush_cow(md);
	while (todo && !r)
		r = commit_some(md, &todo);
	/* As flush_cow() does, where the last flush was one in a FUA write. */
	if (!r && cow_md_failed(md))
		r = -EIO;
	/* After an error there is something unsaved: for ever, or until there is space. */
	if (r == -ENOSPC) {
		requeue_regions(md, todo);
	} else if (r) {
		WRITE_ONCE(md->failed, true);
	} else {
		/* All that was there when anybody came to owe it. */
		WRITE_ONCE(md->owes_commit, false);
		/* Pairs with cow_md_changed(). */
		smp_store_release(&md->unsaved, false);
	}
	return r;
}

int cow_md_commit(struct cow_md *md)
{
	int r;

	mutex_lock(&md->commit_lock);
	r = commit_locked(md);
	mutex_unlock(&md->commit_lock);

	return r;
}

int cow_md_clean(struct cow_md *md)
{
	int r = 0;

	mutex_lock(&md->commit_lock);
	/* Not if another commit has failed since the caller's. */
	if (cow_md_changed(md) || !cow_md_counted(md))
		r = -EIO;
	else if (md->dirty)
		r = head_write_flags(md, le16_to_cpu(md->head.flags) & ~COW_FLAG_DIRTY,
				     cow_md_used(md));
	mutex_unlock(&md->commit_lock);

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

/* ---- Reading devices at open ---- */

static int read_sectors(const struct cow_md_args *args, struct block_device *bdev,
			sector_t sector, sector_t count, void *to)
{
	struct dm_io_request req = {
		.bi_opf = REQ_OP_READ | REQ_SYNC,
		.client = args->io,
	};
	struct dm_io_region where = {
		.bdev = bdev,
		.sector = sector,
		.count = count,
	};

	if (is_vmalloc_addr(to)) {
		req.mem.type = DM_IO_VMA;
		req.mem.ptr.vma = to;
	} else {
		req.mem.type = DM_IO_KMEM;
		req.mem.ptr.addr = to;
	}
	if (fatal_signal_pending(current))
		return -EINTR;
	cond_resched();
	return cow_dm_io(&req, 1, &where, NULL);
}

/*
 * Log why a cowfile is refused: @what, which also goes to the user of dmsetup,
 * and in detail what was found and expected.
 */
static __printf(4, 5)
int refuse(const struct cow_md_args *args, char **error, char *what, const char *fmt, ...)
{
	struct va_format vaf = { .fmt = fmt };
	va_list ap;

	va_start(ap, fmt);
	vaf.va = &ap;
	DMERR("%s: cow device %pg: %s: %pV", args->name, args->cow, what, &vaf);
	va_end(ap);
	*error = what;

	return -EINVAL;
}

static int refuse_io(const struct cow_md_args *args, char **error, int r,
		     struct block_device *bdev, char *what)
{
	DMERR("%s: device %pg: %s: error %d", args->name, bdev, what, r);
	*error = what;

	return r;
}

/*
 * The fingerprint of format 1: the byte sums of the first four 1024-byte
 * blocks whose sum is not zero, put together by the original's C arithmetic,
 * in which a fourth sum of 0x80 or more extends its sign into bits 32 to 63.
 */
static int fingerprint_v1(const struct cow_md_args *args, void *buf, u64 *fingerprint)
{
	const sector_t end = round_down(bdev_nr_sectors(args->rdo), COW_V1_MAPUNIT / 512);
	sector_t sector, count;
	unsigned int found = 0;
	int r;

	*fingerprint = 0;
	for (sector = 0; sector < end && found < 4; sector += count) {
		const u8 *byte = buf;

		count = min_t(sector_t, end - sector, COW_IO_SIZE / 512);
		r = read_sectors(args, args->rdo, sector, count, buf);
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

#define COW_SAMPLES		64
#define COW_SAMPLE_SIZE		4096

struct cow_samples {
	atomic_t pending;
	atomic_t errors;
	struct completion done;
};

static void sample_read(unsigned long error, void *context)
{
	struct cow_samples *samples = context;

	if (error)
		atomic_inc(&samples->errors);
	if (atomic_dec_and_test(&samples->pending))
		complete(&samples->done);
}

COW_DM_IO_NOTIFY(sample_read)

/*
 * The fingerprint of format 2: a CRC-32C over 64 samples spread over the
 * device, all read at once, since the device may be far away.
 */
static int fingerprint_v2(const struct cow_md_args *args, void *buf, u64 *fingerprint)
{
	const sector_t nr_sectors = bdev_nr_sectors(args->rdo);
	const u64 nr_blocks = max_t(u64, nr_sectors / (COW_SAMPLE_SIZE / 512), 1);
	struct cow_samples samples = {
		.pending = ATOMIC_INIT(COW_SAMPLES + 1),
		.errors = ATOMIC_INIT(0),
	};
	struct dm_io_request req = {
		.bi_opf = REQ_OP_READ,
		.notify.fn = sample_read_notify,
		.notify.context = &samples,
		.client = args->io,
	};
	struct dm_io_region where = {
		.bdev = args->rdo,
		.count = min_t(sector_t, nr_sectors, COW_SAMPLE_SIZE / 512),
	};
	unsigned int i;

	BUILD_BUG_ON(COW_SAMPLES * COW_SAMPLE_SIZE > COW_IO_SIZE);
	memset(buf, 0, COW_SAMPLES * COW_SAMPLE_SIZE);
	init_completion(&samples.done);

	for (i = 0; i < COW_SAMPLES; i++) {
		where.sector = div_u64((nr_blocks - 1) * i, COW_SAMPLES - 1) *
			       (COW_SAMPLE_SIZE / 512);
		req.mem.type = DM_IO_VMA;
		req.mem.ptr.vma = buf + i * COW_SAMPLE_SIZE;
		if (cow_dm_io(&req, 1, &where, NULL))
			sample_read(1, &samples);
	}
	sample_read(0, &samples);
	wait_for_completion_io(&samples.done);
	if (atomic_read(&samples.errors))
		return -EIO;

	*fingerprint = (u32)~crc32c(~0U, buf, COW_SAMPLES * COW_SAMPLE_SIZE);
	return 0;
}

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

/* ---- Checking a head ---- */

static u64 bdev_bytes(struct block_device *bdev)
{
	return (u64)bdev_nr_sectors(bdev) << SECTOR_SHIFT;
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

static int check_packed(const struct cow_md_args *args, char **error,
			const struct cow_head *head)
{
	if (le16_to_cpu(head->flags) & COW_FLAG_PACKED)
		return refuse(args, error, "Cowfile is packed",
			      "found PACKED set, expected a cowfile that was unpacked");
	return 0;
}

/* Sizes that both formats have. */
static int check_layout(const struct cow_md_args *args, char **error,
			const struct cow_head *head, const struct cow_geometry *geo)
{
	u64 found;

	found = le64_to_cpu(head->rdoblocks);
	if (found != geo->nr_units)
		return refuse(args, error, "Cowfile belongs to a read-only device of another size",
			      "found %llu units of %u bytes, expected %llu, as %pg has",
			      found, geo->mapunit, geo->nr_units, args->rdo);

	found = le64_to_cpu(head->mapsize);
	if (found != geo->mapsize)
		return refuse(args, error, "Wrong bitmap size in cowfile",
			      "found mapsize %llu, expected %llu", found, geo->mapsize);
	return 0;
}

static int refuse_merging(const struct cow_md_args *args, char **error)
{
	return refuse(args, error, "Cowfile is being merged",
		      "found a merge begun, expected it to be done: see cowsetup merge");
}

static int check_head_v1(const struct cow_md_args *args, char **error,
			 const struct cow_head *head, struct cow_geometry *geo)
{
	u64 found;
	int r;

	r = check_packed(args, error, head);
	if (r)
		return r;

	found = le64_to_cpu(head->mapunit);
	if (found != COW_V1_MAPUNIT)
		return refuse(args, error, "Wrong unit size in cowfile",
			      "found mapunit %llu, expected %u", found, COW_V1_MAPUNIT);

	cow_geometry_init(geo, 1, COW_V1_MAPUNIT, bdev_nr_sectors(args->rdo));
	r = check_layout(args, error, head, geo);
	if (r)
		return r;

	found = le64_to_cpu(head->doffset);
	if (found != geo->doffset)
		return refuse(args, error, "Wrong data offset in cowfile",
			      "found doffset %llu, expected %llu", found, geo->doffset);

	if (!(le16_to_cpu(head->flags) & COW_FLAG_DIRTY))
		return 0;
	if (!args->repair)
		return refuse(args, error, "Cowfile is dirty",
			      "found DIRTY set, expected a cowfile that was closed or synced; option 'repair' accepts and repairs it");
	if (args->read_only)
		return refuse(args, error, "Cowfile is dirty and can't be repaired read-only",
			      "found DIRTY set together with option 'read_only', expected 'repair' alone");
	return 0;
}

static int check_head_v2(const struct cow_md_args *args, char **error,
			 const struct cow_head *head, struct cow_geometry *geo)
{
	u64 found, align;
	u32 csum, unknown;
	int r;

	csum = ~crc32c(~0U, head, offsetof(struct cow_head, csum));
	if (le32_to_cpu(head->csum) != csum)
		return refuse(args, error, "Cowfile's head is damaged",
			      "found checksum 0x%08x, expected 0x%08x",
			      le32_to_cpu(head->csum), csum);

	r = check_packed(args, error, head);
	if (r)
		return r;

	if (le32_to_cpu(head->incompat) & (COW_INCOMPAT_MERGING | COW_INCOMPAT_MERGED))
		return refuse_merging(args, error);
	unknown = le32_to_cpu(head->incompat) & ~COW_INCOMPAT_KNOWN;
	if (unknown)
		return refuse(args, error, "Cowfile needs features that this version lacks",
			      "found incompat 0x%08x, expected none but 0x%08x",
			      le32_to_cpu(head->incompat), COW_INCOMPAT_KNOWN);

	found = le64_to_cpu(head->mapunit);
	if (!cow_v2_mapunit_valid(found))
		return refuse(args, error, "Wrong unit size in cowfile",
			      "found mapunit %llu, expected a power of two from %u to %u",
			      found, COW_V2_MAPUNIT, COW_V2_MAPUNIT_MAX);

	cow_geometry_init(geo, 2, found, bdev_nr_sectors(args->rdo));

	found = le64_to_cpu(head->rdosectors);
	if (found != geo->rdo_sectors)
		return refuse(args, error, "Cowfile belongs to a read-only device of another size",
			      "found %llu sectors, expected %llu, as %pg has",
			      found, geo->rdo_sectors, args->rdo);

	r = check_layout(args, error, head, geo);
	if (r)
		return r;

	found = le64_to_cpu(head->moffset);
	if (found != geo->moffset)
		return refuse(args, error, "Wrong bitmap offset in cowfile",
			      "found moffset %llu, expected %llu", found, geo->moffset);

	found = le64_to_cpu(head->doffset);
	align = max(geo->mapunit, 4096U);
	if (found < geo->doffset || found & (align - 1) || found > S64_MAX / 2)
		return refuse(args, error, "Wrong data offset in cowfile",
			      "found doffset %llu, expected a multiple of %llu from %llu on",
			      found, align, geo->doffset);
	geo->doffset = found;

	found = le64_to_cpu(head->cowused);
	if (!(le16_to_cpu(head->flags) & COW_FLAG_DIRTY) && found > geo->nr_units)
		return refuse(args, error, "Wrong count of used units in cowfile",
			      "found cowused %llu, expected at most %llu",
			      found, geo->nr_units);
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

/* The first unit of a block whose units are not all in the same place, or the end. */
static u64 find_mixed_block(struct cow_md *md, u64 index, unsigned int per_block)
{
	const struct cow_region *r = md->scratch;
	const u32 nr_units = region_nr_units(md, index);
	u32 bit, i;

	for (bit = 0; bit < nr_units; bit += per_block)
		for (i = bit + 1; i < min(bit + per_block, nr_units); i++)
			if (!!test_bit_le(i, r->bits) != !!test_bit_le(bit, r->bits))
				return region_first_unit(md, index) + bit;
	return md->geo.nr_units;
}

/* Count a format 1 cowfile, for devices with blocks of several units. */
static int count_blocks_v1(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	while (cow_md_counting(md)) {
		const u64 index = md->count_next;
		u64 mixed = md->geo.nr_units;
		int r;

		mutex_lock(&md->load_lock);
		r = count_region(md, 0);
		if (!r)
			mixed = find_mixed_block(md, index, md->units_per_block);
		mutex_unlock(&md->load_lock);
		if (r)
			return refuse_io(args, error, r, args->cow, "Cannot read the bitmap");
		if (mixed < md->geo.nr_units)
			return refuse(args, error, "Cowfile needs devices with smaller blocks",
				      "found a block written in part at unit %llu, expected all %u units or none",
				      mixed, md->units_per_block);
		cond_resched();
	}
	return 0;
}

/* Walk the whole bitmap of a format 1 cowfile: count it and check it. */
static int check_bitmap_v1(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	const u64 found = le64_to_cpu(md->head.cowused);
	int r;

	if (md->units_per_block > 1) {
		r = count_blocks_v1(md, args, error);
		if (r)
			return r;
	}
	while (cow_md_count_some(md) && !fatal_signal_pending(current))
		;
	r = cow_md_counting(md) ? -EINTR : cow_md_count_unread(md);
	if (r)
		return refuse_io(args, error, r, args->cow, "Cannot read the bitmap");

	if (!md->dirty && found != cow_md_used(md))
		return refuse(args, error, "Wrong count of used units in cowfile",
			      "found cowused %llu, expected %llu, as the bitmap has",
			      found, cow_md_used(md));
	return 0;
}

static bool is_set(struct cow_md *md, u64 unit)
{
	bool set;

	rcu_read_lock_sched();
	set = cow_lookup(&md->map, unit) == COW_IN_COW;
	rcu_read_unlock_sched();

	return set;
}

/* Set the bits of @nr units from @unit on, if they are not set: all of them are, or none is. */
static int repair_block(struct cow_md *md, u64 unit, unsigned int nr, u64 *repaired)
{
	struct cow_hold hold;
	int r;

	while ((r = cow_md_hold(md, unit, nr, true, &hold)) == 0) {
		r = cow_md_load(md, unit, true);
		/* It will be possible after a commit. */
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
	mark_unlocked(md, &hold);
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
 * Repair a DIRTY format 1 cowfile: every unit that is not all zeroes has been
 * written, whatever the bitmap says. The head is cleaned last, so that an
 * interrupted repair can be done again.
 */
static int repair_v1(struct cow_md *md, const struct cow_md_args *args, char **error)
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
		r = read_sectors(args, args->cow, data + unit * unit_sectors, count, buf);
		if (!r)
			r = repair_units(md, unit, nr, buf, per_block, &repaired);
	}
	vfree(buf);
	if (!r)
		r = cow_md_commit(md);
	if (!r)
		r = cow_md_clean(md);
	if (r)
		return refuse_io(args, error, r, args->cow, "Cannot repair the cowfile");

	DMWARN("%s: cow device %pg: repaired: %llu units added to the bitmap, %llu used now",
	       args->name, args->cow, repaired, cow_md_used(md));
	return 0;
}

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

const struct cow_map *cow_md_map(const struct cow_md *md)
{
	return &md->map;
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
