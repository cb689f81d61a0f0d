// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the bitmap in memory.
 */

#include "dm-cowloop-metadata-internal.h"

#include <linux/bitmap.h>
#include <linux/slab.h>

static spinlock_t *region_lock(struct cow_md *md, const struct cow_region *r)
{
	return &md->locks[r->index % COW_REGION_LOCKS].lock;
}

/* ---- Lookups ---- */

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

/* ---- Holds and marks ---- */

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

	/* Interrupts are off: see dm-cowloop-metadata.h. */
	spin_lock(lock);
	first = mark_locked(md, hold, &fresh);
	spin_unlock(lock);
	end_hold(md, hold, fresh);

	return first;
}

/* What cow_md_mark() does, in process context, and with no lock held. */
void mark_unlocked(struct cow_md *md, const struct cow_hold *hold)
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

/* ---- Counts ---- */

u64 cow_md_used(struct cow_md *md)
{
	/* Whoever changes a cowfile in use may have its bits counted once and cleared twice. */
	return clamp_t(s64, atomic64_read(&md->used), 0, md->geo.nr_units);
}

bool cow_md_counting(struct cow_md *md)
{
	return READ_ONCE(md->count_next) < md->nr_regions;
}

bool cow_md_counted(struct cow_md *md)
{
	return !cow_md_counting(md) && !READ_ONCE(md->nr_unread);
}

/* ---- Regions in and out ---- */

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
struct cow_region *region_unlink(struct cow_md *md, unsigned long *nr)
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

/*
 * Replace the page of a region, whose bits are all the same on disk, by a marker,
 * if that is still so. The last page is not given away; the region may be
 * evicted then.
 */
void region_collapse(struct cow_md *md, struct cow_region *r, struct cow_region *marker)
{
	if (READ_ONCE(md->reserve) && region_retire(md, r)) {
		rcu_assign_pointer(md->map.regions[r->index], marker);
		atomic_dec(&md->nr_pages);
		kfree_rcu(r, rcu);
	}
}

/*
 * Clear bits of region @index, which has a page, and return how many were set;
 * -EAGAIN if a commit has just put a marker in its place.
 */
int region_clear(struct cow_md *md, u64 index, u32 bit, u32 nr)
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

/* ---- What a commit does to a region ---- */

/* Copy a region's changed bitmap sectors aside; it is no longer queued. */
void stage_region(struct cow_md *md, struct cow_stage *stage, struct cow_region *r)
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
struct cow_region *marker_for(struct cow_md *md, struct cow_stage *stage)
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

/* There was no space to commit what was staged: it is to be done again. */
void requeue_staged(struct cow_md *md, struct cow_stage *stage)
{
	struct cow_region *r = stage->region;

	spin_lock_irq(region_lock(md, r));
	r->changed_sectors |= stage->sectors;
	queue_region(md, r);
	spin_unlock_irq(region_lock(md, r));
}

/* Regions that a commit has taken, but not got to. Each of them is still marked as queued. */
void requeue_regions(struct cow_md *md, struct llist_node *todo)
{
	struct llist_node *next;

	for (; todo; todo = next) {
		next = todo->next;
		llist_add(todo, &md->changed);
	}
}

/* A commit has failed: some of the region's bits may never be on disk. */
void unstage_region(struct cow_md *md, struct cow_region *r)
{
	spin_lock_irq(region_lock(md, r));
	r->queued = true;
	spin_unlock_irq(region_lock(md, r));
}

const struct cow_map *cow_md_map(const struct cow_md *md)
{
	return &md->map;
}
