// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the bitmap in memory.
 *
 * The bitmap is cut into regions, each a few bitmap sectors that fit into a page
 * together with what we have to remember about them. An array has a pointer for every
 * region: NULL while it has not been read, a marker when all of its units are in one
 * place, else its page. Looking up a unit is a few plain loads under RCU. The bits are
 * kept in the byte order of the disk. A region goes from unread to EMPTY, FULL or a page
 * when it is loaded, from a marker to a page before the first of its bits changes, and
 * from a page to a marker when the disk says so; all of this happens in process context,
 * and is for other files to bring about.
 *
 * A region's spinlock, one of a few, covers its bits and whether they have changed.
 * Lookups do without it: they find a bit that is being set in its old or its new state,
 * and both are right then.
 *
 * Each cowfile always has one page at least, in reserve or in use.
 *
 * Nothing here does I/O or knows of the devices.
 */

#include "dm-cowloop-metadata-internal.h"

#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>

/* Regions share spinlocks. */
#define COW_REGION_LOCKS	16

struct cow_region_lock {
	spinlock_t lock;	/* the region but for its index, holds, bad and union */
} ____cacheline_aligned_in_smp;

struct cow_bitmap {
	struct cow_map map;

	atomic_t nr_pages;		/* in map.regions[] */
	struct cow_region *reserve;	/* for when there is no memory; NULL: in use */
	u64 evict_next;			/* the region to look at next for one to evict */
	struct cow_region_lock locks[COW_REGION_LOCKS];
	atomic64_t used;		/* units, as far as they have been counted */
	bool counting;			/* they are being counted */
	spinlock_t space_lock;		/* makes one of changes to used and claimed */
	u64 limit;			/* of used and claimed, in units; 0: none */
	u64 set_aside;			/* of the limit, for writes that are urgent */
	u64 claimed;			/* units that are being written, while there is a limit */

	struct llist_head changed;	/* regions with changed bitmap sectors */
	bool unsaved;			/* what was taken off changed is not durable yet */
};

static __always_inline struct cow_bitmap *bitmap_of(struct cow_md *md)
{
	return (struct cow_bitmap *)md->bitmap;
}

static spinlock_t *region_lock(struct cow_bitmap *b, const struct cow_region *r)
{
	return &b->locks[r->index % COW_REGION_LOCKS].lock;
}

size_t cow_bitmap_size(void)
{
	return sizeof(struct cow_bitmap);
}

int cow_bitmap_init(struct cow_md *md)
{
	struct cow_bitmap *b = bitmap_of(md);
	struct cow_map_layout *l = &md->layout;
	unsigned int i;

	BUILD_BUG_ON(sizeof(struct cow_region) > 4096);
	BUILD_BUG_ON(sizeof(struct cow_stage) > 4096);
	BUILD_BUG_ON(COW_V1_REGION_SECTORS * COW_V1_SECTOR_BYTES >
		     sizeof_field(struct cow_region, bits));

	for (i = 0; i < COW_REGION_LOCKS; i++)
		spin_lock_init(&b->locks[i].lock);
	spin_lock_init(&b->space_lock);
	init_llist_head(&b->changed);

	l->region_sectors = md->geo.format == 1 ? COW_V1_REGION_SECTORS : COW_V2_REGION_SECTORS;
	l->sector_bytes = md->geo.format == 1 ? COW_V1_SECTOR_BYTES : COW_V2_SECTOR_BYTES;
	l->sector_units = l->sector_bytes * BITS_PER_BYTE;
	l->region_units = l->region_sectors * l->sector_units;
	l->nr_map_sectors = div_u64(md->geo.nr_units + l->sector_units - 1, l->sector_units);
	l->nr_regions = div_u64(md->geo.nr_units + l->region_units - 1, l->region_units);

	b->map.sector_units = l->sector_units;
	b->map.region_units = l->region_units;
	b->map.region_inverse = DIV_ROUND_UP_ULL(BIT_ULL(38), l->region_units >> 8);
	b->map.regions = kvcalloc(l->nr_regions, sizeof(*b->map.regions), GFP_KERNEL);

	b->reserve = kmalloc(sizeof(*b->reserve), GFP_KERNEL);

	return b->map.regions && b->reserve ? 0 : -ENOMEM;
}

void cow_bitmap_exit(struct cow_md *md)
{
	struct cow_bitmap *b = bitmap_of(md);
	u64 i;

	for (i = 0; b->map.regions && i < md->layout.nr_regions; i++) {
		struct cow_region *r = rcu_access_pointer(b->map.regions[i]);

		if (!cow_region_is_marker(r))
			kfree(r);
	}
	kvfree(b->map.regions);
	kfree(b->reserve);
}

const struct cow_map *cow_md_map(const struct cow_md *md)
{
	return &bitmap_of((struct cow_md *)md)->map;
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
static __always_inline u8 bits_to_sectors(const struct cow_map *map, u32 bit, u32 nr)
{
	const u32 first = bit / map->sector_units;

	return nr == 1 ? BIT(first) : GENMASK((bit + nr - 1) / map->sector_units, first);
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
	struct cow_bitmap *b = bitmap_of(md);
	const u32 nr = count_clear(hold->region, hold->bit, hold->nr);
	unsigned long flags;
	u64 needed;
	int ret = 0;

	if (!cow_md_counting(md)) {
		spin_lock_irqsave(&b->space_lock, flags);
		needed = cow_md_used(md) + b->claimed + nr + (urgent ? 0 : b->set_aside);
		if (b->limit && nr && needed > b->limit) {
			ret = -ENOSPC;
		} else {
			b->claimed += nr;
			hold->claim = nr;
			ret = 1;
		}
		spin_unlock_irqrestore(&b->space_lock, flags);
	}
	if (ret <= 0)
		atomic_dec(&hold->region->holds);

	return ret;
}

int cow_md_hold(struct cow_md *md, u64 unit, unsigned int nr, bool urgent,
		struct cow_hold *hold)
{
	struct cow_bitmap *b = bitmap_of(md);
	struct cow_region *r;
	u64 index = cow_unit_to_region(&b->map, unit, &hold->bit);
	int ret = 0;

	hold->nr = nr;
	hold->claim = 0;
	rcu_read_lock_sched();
	r = rcu_dereference_sched(b->map.regions[index]);
	if (!cow_region_is_marker(r)) {
		if (unlikely(r->bad) && r->bad & bits_to_sectors(&b->map, hold->bit, nr))
			ret = -EIO;
		else if (READ_ONCE(r->allocated))
			ret = atomic_inc_unless_negative(&r->holds);
	}
	rcu_read_unlock_sched();

	hold->region = r;

	return ret > 0 && unlikely(READ_ONCE(b->limit)) ? claim_units(md, hold, urgent) : ret;
}

/* End a claim: @fresh units of it have come into use. */
static noinline void end_claim(struct cow_md *md, unsigned int fresh, unsigned int claim)
{
	struct cow_bitmap *b = bitmap_of(md);
	unsigned long flags;

	spin_lock_irqsave(&b->space_lock, flags);
	atomic64_add(fresh, &b->used);
	b->claimed -= claim;
	spin_unlock_irqrestore(&b->space_lock, flags);
}

void cow_md_release(struct cow_md *md, const struct cow_hold *hold)
{
	if (hold->claim)
		end_claim(md, 0, hold->claim);
	atomic_dec(&hold->region->holds);
}

/* With the region's lock held, and before its bits change. */
static bool queue_region(struct cow_bitmap *b, struct cow_region *r)
{
	if (r->queued)
		return false;
	r->queued = true;
	/* A full barrier; pairs with cow_md_changed(). */
	return llist_add(&r->changed, &b->changed);
}

/* Set the bits of a hold, with the region's lock held; *@fresh: so many were clear. */
static __always_inline bool mark_locked(struct cow_bitmap *b, const struct cow_hold *hold,
					u32 *fresh)
{
	struct cow_region *r = hold->region;
	const u32 end = hold->bit + hold->nr;
	const bool first = queue_region(b, r);
	u32 bit = hold->bit, nr = 0;

	r->changed_sectors |= bits_to_sectors(&b->map, bit, hold->nr);
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
	struct cow_bitmap *b = bitmap_of(md);

	if (unlikely(hold->claim))
		end_claim(md, fresh, hold->claim);
	else
		atomic64_add(fresh, &b->used);
	/* Last: the region is queued now, and stays where it is. */
	atomic_dec(&hold->region->holds);
}

bool cow_md_mark(struct cow_md *md, const struct cow_hold *hold)
{
	struct cow_bitmap *b = bitmap_of(md);
	spinlock_t *lock = region_lock(b, hold->region);
	u32 fresh = 0;
	bool first;

	/* Interrupts are off: see dm-cowloop-metadata.h. */
	spin_lock(lock);
	first = mark_locked(b, hold, &fresh);
	spin_unlock(lock);
	end_hold(md, hold, fresh);

	return first;
}

void cow_bitmap_mark(struct cow_md *md, const struct cow_hold *hold)
{
	struct cow_bitmap *b = bitmap_of(md);
	spinlock_t *lock = region_lock(b, hold->region);
	u32 fresh = 0;

	spin_lock_irq(lock);
	mark_locked(b, hold, &fresh);
	spin_unlock_irq(lock);
	end_hold(md, hold, fresh);
}

void cow_md_set_limit(struct cow_md *md, u64 limit, u64 set_aside)
{
	struct cow_bitmap *b = bitmap_of(md);

	spin_lock_irq(&b->space_lock);
	WRITE_ONCE(b->limit, limit);
	b->set_aside = min(set_aside, limit);
	spin_unlock_irq(&b->space_lock);
}

bool cow_md_changed(struct cow_md *md)
{
	struct cow_bitmap *b = bitmap_of(md);

	/* A caller that has seen a bit must find its region queued, or taken. */
	smp_rmb();
	if (!llist_empty(&b->changed))
		return true;
	/* In this order: a commit sets unsaved before it takes the list. */
	smp_rmb();
	return READ_ONCE(b->unsaved);
}

/* ---- Counts ---- */

u64 cow_md_used(struct cow_md *md)
{
	/* In a cowfile that is changed while in use, bits may be counted once and cleared twice. */
	return clamp_t(s64, atomic64_read(&bitmap_of(md)->used), 0, md->geo.nr_units);
}

void cow_bitmap_add_used(struct cow_md *md, u64 nr)
{
	atomic64_add(nr, &bitmap_of(md)->used);
}

bool cow_md_counting(struct cow_md *md)
{
	return READ_ONCE(bitmap_of(md)->counting);
}

void cow_bitmap_set_counting(struct cow_md *md, bool counting)
{
	WRITE_ONCE(bitmap_of(md)->counting, counting);
}

/* ---- Regions in and out ---- */

struct cow_region *cow_bitmap_get(struct cow_md *md, u64 index)
{
	return rcu_access_pointer(bitmap_of(md)->map.regions[index]);
}

struct cow_region *cow_bitmap_marker(struct cow_md *md, const struct cow_region *r, u32 weight)
{
	if (!weight && !r->bad)
		return COW_REGION_EMPTY;
	return weight == cow_region_nr_units(md, r->index) ? COW_REGION_FULL : NULL;
}

void cow_bitmap_expand(struct cow_md *md, struct cow_region *r, u64 index,
		       const struct cow_region *marker)
{
	const u32 nr_units = cow_region_nr_units(md, index);
	u32 i;

	memset(r, 0, sizeof(*r));
	r->index = index;
	if (marker == COW_REGION_FULL) {
		memset(r->bits, 0xff, nr_units / BITS_PER_BYTE);
		for (i = round_down(nr_units, BITS_PER_BYTE); i < nr_units; i++)
			__set_bit_le(i, r->bits);
	}
}

void cow_bitmap_put(struct cow_md *md, u64 index, struct cow_region *r)
{
	struct cow_bitmap *b = bitmap_of(md);

	if (!cow_region_is_marker(r))
		atomic_inc(&b->nr_pages);
	rcu_assign_pointer(b->map.regions[index], r);
}

struct cow_region *cow_bitmap_page(struct cow_md *md)
{
	const gfp_t gfp = GFP_NOIO | __GFP_NORETRY | __GFP_NOMEMALLOC | __GFP_NOWARN;
	struct cow_bitmap *b = bitmap_of(md);
	struct cow_region *r;

	if (!b->reserve)
		WRITE_ONCE(b->reserve, kmalloc(sizeof(*r), gfp));
	r = kmalloc(sizeof(*r), gfp);
	if (!r) {
		r = b->reserve;
		WRITE_ONCE(b->reserve, NULL);
	}
	return r;
}

bool cow_bitmap_can_spare(struct cow_md *md)
{
	return bitmap_of(md)->reserve || cow_bitmap_nr_pages(md) > 1;
}

unsigned int cow_bitmap_nr_pages(struct cow_md *md)
{
	return atomic_read(&bitmap_of(md)->nr_pages);
}

/*
 * Take a region that nobody is at, and whose bits are all on disk, out of use: true if
 * so, and it can be replaced in regions[]. A region that has bits which are not on disk
 * is queued, or a commit is at it, which cannot be, since the caller has commit_lock.
 */
static bool retire(struct cow_bitmap *b, struct cow_region *r)
{
	bool retired;

	spin_lock_irq(region_lock(b, r));
	retired = !r->queued && atomic_cmpxchg(&r->holds, 0, -1) == 0;
	spin_unlock_irq(region_lock(b, r));

	return retired;
}

struct cow_region *cow_bitmap_evict(struct cow_md *md, unsigned long *nr)
{
	struct cow_bitmap *b = bitmap_of(md);
	struct cow_region *r;
	u64 i;

	for (i = 0; i < md->layout.nr_regions && *nr; i++) {
		cond_resched();
		if (++b->evict_next >= md->layout.nr_regions)
			b->evict_next = 0;
		r = rcu_access_pointer(b->map.regions[b->evict_next]);
		if (cow_region_is_marker(r))
			continue;
		--*nr;
		if (retire(b, r)) {
			RCU_INIT_POINTER(b->map.regions[b->evict_next], NULL);
			atomic_dec(&b->nr_pages);
			return r;
		}
	}
	return NULL;
}

/* The last page is not given away: the region may be evicted then. */
void cow_bitmap_collapse(struct cow_md *md, struct cow_region *r, struct cow_region *marker)
{
	struct cow_bitmap *b = bitmap_of(md);

	if (READ_ONCE(b->reserve) && retire(b, r)) {
		rcu_assign_pointer(b->map.regions[r->index], marker);
		atomic_dec(&b->nr_pages);
		kfree_rcu(r, rcu);
	}
}

int cow_bitmap_clear(struct cow_md *md, u64 index, u32 bit, u32 nr)
{
	struct cow_bitmap *b = bitmap_of(md);
	const u32 end = bit + nr;
	struct cow_region *r;
	u32 i, cleared = 0;

	/* The region is held, so that a commit leaves it where it is. */
	rcu_read_lock();
	r = rcu_dereference(b->map.regions[index]);
	if (cow_region_is_marker(r) || !atomic_inc_unless_negative(&r->holds)) {
		rcu_read_unlock();
		return -EAGAIN;
	}
	rcu_read_unlock();

	if (r->bad & bits_to_sectors(&b->map, bit, nr)) {
		atomic_dec(&r->holds);
		return -EIO;
	}

	spin_lock_irq(region_lock(b, r));
	for (i = find_next_bit_le(r->bits, end, bit); i < end;
	     i = find_next_bit_le(r->bits, end, i + 1)) {
		if (!cleared++)
			queue_region(b, r);
		/* Only sectors that change are written: there may be no room for the others. */
		r->changed_sectors |= BIT(i / b->map.sector_units);
		/* data_race(): with lookups, see there. */
		data_race(__test_and_clear_bit_le(i, r->bits));
	}
	spin_unlock_irq(region_lock(b, r));
	atomic64_sub(cleared, &b->used);
	atomic_dec(&r->holds);

	return cleared;
}

/* ---- Commits ---- */

struct llist_node *cow_bitmap_take_changed(struct cow_md *md)
{
	struct cow_bitmap *b = bitmap_of(md);

	WRITE_ONCE(b->unsaved, true);
	/* Before the list is taken; pairs with cow_md_changed(). */
	smp_mb();
	return llist_del_all(&b->changed);
}

void cow_bitmap_saved(struct cow_md *md)
{
	/* Pairs with cow_md_changed(). */
	smp_store_release(&bitmap_of(md)->unsaved, false);
}

void cow_bitmap_requeue(struct cow_md *md, struct llist_node *todo)
{
	struct llist_node *next;

	for (; todo; todo = next) {
		next = todo->next;
		llist_add(todo, &bitmap_of(md)->changed);
	}
}

void cow_stage_take(struct cow_md *md, struct cow_stage *stage, struct cow_region *r)
{
	const u32 bytes = md->layout.sector_bytes;
	spinlock_t *lock = region_lock(bitmap_of(md), r);
	unsigned long i;

	stage->region = r;
	spin_lock_irq(lock);
	r->queued = false;
	stage->sectors = r->changed_sectors;
	r->changed_sectors = 0;
	for_each_set_bit(i, &stage->sectors, md->layout.region_sectors)
		memcpy(stage->bits + i * bytes, r->bits + i * bytes, bytes);
	spin_unlock_irq(lock);
}

struct cow_region *cow_stage_marker(struct cow_md *md, const struct cow_stage *stage)
{
	const u32 bytes = md->layout.sector_bytes;
	const u8 *bits = stage->bits + __ffs(stage->sectors) * bytes;

	if (stage->region->bad || memchr_inv(bits, *bits, bytes))
		return NULL;
	if (!*bits)
		return COW_REGION_EMPTY;
	/* Beyond the last unit no bits are set. */
	return *bits != 0xff ||
	       cow_region_nr_units(md, stage->region->index) < md->layout.region_units ?
		NULL : COW_REGION_FULL;
}

void cow_stage_undo(struct cow_md *md, struct cow_stage *stage, bool again)
{
	struct cow_bitmap *b = bitmap_of(md);
	struct cow_region *r = stage->region;

	spin_lock_irq(region_lock(b, r));
	r->changed_sectors |= stage->sectors;
	if (again)
		queue_region(b, r);
	else
		r->queued = true;
	spin_unlock_irq(region_lock(b, r));
}
