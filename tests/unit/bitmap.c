// SPDX-License-Identifier: GPL-2.0-only
/*
 * The bitmap in memory, dm-cowloop-bitmap.c, by itself: lookups, holds and marks,
 * the limit, what a commit does to regions, eviction; and then all of it at the
 * same time in threads. A model keeps a byte for each unit.
 *
 *	bitmap [SEED]
 */

#include "kernel.h"

#include <unistd.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* as the kernel has it */
#include "../../dm-cowloop-bitmap.c"
#include "../random.h"
#include "tap.h"

#define NR_REGIONS	6

/* What the model says of a unit. */
enum { RDO, COW, BAD, UNKNOWN };

/* of other files of the module */
static struct mutex load_lock = { PTHREAD_MUTEX_INITIALIZER, false };
static struct mutex commit_lock = { PTHREAD_MUTEX_INITIALIZER, false };

/* or a grace period would last as long as there are readers */
pthread_rwlock_t unit_rcu = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static struct cow_region **regions;
static u8 model[NR_REGIONS * COW_V1_REGION_SECTORS * COW_V1_SECTOR_BYTES * 8];

/* ---- A bitmap ---- */

/* Of @format, with 1000 units in the last region. */
static struct cow_md *start(unsigned int format)
{
	const u32 sector_units = (format == 1 ? COW_V1_SECTOR_BYTES : COW_V2_SECTOR_BYTES) * 8;
	const u32 nr_sectors = format == 1 ? COW_V1_REGION_SECTORS : COW_V2_REGION_SECTORS;
	const size_t size = (sizeof(struct cow_md) + cow_bitmap_size() + 63) & ~63UL;
	struct cow_md *md = aligned_alloc(64, size);

	if (!md)
		abort();
	memset(md, 0, size);
	memset(model, UNKNOWN, sizeof(model));
	md->geo.format = format;
	md->geo.nr_units = (NR_REGIONS - 1) * (u64)sector_units * nr_sectors + 1000;
	if (cow_bitmap_init(md) || md->layout.nr_regions != NR_REGIONS)
		abort();
	regions = bitmap_of(md)->map.regions;
	return md;
}

static void stop(struct cow_md *md)
{
	cow_bitmap_exit(md);
	free(md);
}

/* Region @index is all of one kind. */
static void put_marker(struct cow_md *md, u64 index, enum cow_where where, int kind)
{
	regions[index] = (struct cow_region *)(unsigned long)where;
	memset(model + cow_region_first_unit(md, index), kind, cow_region_nr_units(md, index));
}

/* Region @index has a page, with @permille of its bits set. */
static struct cow_region *put_page(struct cow_md *md, u64 index, unsigned int permille, bool allocated)
{
	struct cow_region *r = calloc(1, sizeof(*r));
	u8 *kinds = model + cow_region_first_unit(md, index);

	if (!r)
		abort();
	r->index = index;
	r->allocated = allocated;
	for (u32 bit = 0; bit < cow_region_nr_units(md, index); bit++) {
		kinds[bit] = rnd(1000) < permille ? COW : RDO;
		if (kinds[bit] != COW)
			continue;
		__test_and_set_bit_le(bit, r->bits);
		atomic64_add(1, &bitmap_of(md)->used);
	}
	regions[index] = r;
	atomic_inc(&bitmap_of(md)->nr_pages);
	return r;
}

static void damage(struct cow_md *md, u64 index, u32 sector)
{
	struct cow_region *r = regions[index];
	const u32 from = sector * cow_md_map(md)->sector_units;

	r->bad |= BIT(sector);
	for (u32 bit = from; bit < from + cow_md_map(md)->sector_units && bit < cow_region_nr_units(md, index); bit++)
		model[cow_region_first_unit(md, index) + bit] = BAD;
}

/* A bitmap with all kinds of regions; the last one has a page. */
static struct cow_md *start_mixed(unsigned int format)
{
	struct cow_md *md = start(format);

	put_marker(md, 0, COW_IN_RDO, RDO);
	put_page(md, 1, 500, true);
	put_marker(md, 3, COW_IN_COW, COW);
	put_page(md, 4, 20, true);
	put_page(md, 5, 900, true);
	damage(md, 4, 2);
	damage(md, 4, 3);
	damage(md, 4, 6);
	return md;
}

static int kind_of(enum cow_where where)
{
	switch (where) {
	case COW_IN_RDO: return RDO;
	case COW_IN_COW: return COW;
	case COW_BAD: return BAD;
	default: return UNKNOWN;
	}
}

static u64 set_bits(struct cow_md *md)
{
	u64 nr = 0;

	for (u64 index = 0; index < NR_REGIONS; index++)
		for (u32 bit = 0; bit < cow_region_nr_units(md, index) && !cow_region_is_marker(regions[index]); bit++)
			nr += test_bit_le(bit, regions[index]->bits);
	return nr;
}

/* ---- Lookups ---- */

static void test_regions(void)
{
	unsigned long wrong = 0;
	struct cow_md *md;

	for (unsigned int format = 1; format <= 2; format++) {
		md = start(format);
		for (unsigned int i = 0; i < 1000000; i++) {
			/* those at the ends of regions, and any */
			u64 unit = rnd(COW_MAX_UNITS) >> rnd(39), index;
			u32 bit;

			if (i % 2)
				unit = unit / cow_md_map(md)->region_units * cow_md_map(md)->region_units + rnd(3) - 1;
			unit &= COW_MAX_UNITS - 1;
			index = cow_unit_to_region(cow_md_map(md), unit, &bit);
			wrong += index != unit / cow_md_map(md)->region_units || bit != unit % cow_md_map(md)->region_units;
		}
		stop(md);
	}
	is(wrong, 0, "a unit's region, by multiplication, is what a division says");
}

static void test_lookups(unsigned int format)
{
	unsigned long wrong = 0, wrong_runs = 0, short_runs = 0;
	struct cow_md *md;

	md = start_mixed(format);
	for (u64 unit = 0; unit < md->geo.nr_units; unit++)
		wrong += kind_of(cow_lookup(cow_md_map(md), unit)) != model[unit];
	for (unsigned int i = 0; i < 200000; i++) {
		const u64 unit = rnd(md->geo.nr_units);
		const unsigned int most = 1 + (min(rnd(md->geo.nr_units - unit), (u64)100000) >> rnd(17));
		const struct cow_run run = cow_lookup_run(cow_md_map(md), unit, most);
		const u64 end = unit + run.nr, region_end = (unit / cow_md_map(md)->region_units + 1) * cow_md_map(md)->region_units;

		wrong_runs += !run.nr || run.nr > most;
		for (u64 u = unit; u < end; u++)
			wrong_runs += kind_of(run.where) != model[u];
		/* it ends for a reason; what the bits are that cannot be trusted may be one */
		short_runs += run.nr < most && end < region_end && model[end] == model[unit] && model[unit] != BAD;
	}
	stop(md);
	ok(!wrong, "format %u: each unit is looked up as what it is", format);
	ok(!wrong_runs, "format %u: so is each unit of a run, which is no longer than asked for", format);
	ok(!short_runs, "format %u: a run ends with a region, or where the answer is another", format);
}

/* ---- Holds ---- */

static void test_holds(unsigned int format)
{
	struct cow_hold hold;
	struct cow_region *r;
	struct cow_md *md;
	u64 first, used;

	md = start_mixed(format);
	printf("# format %u\n", format);
	is(cow_md_hold(md, 5, 1, false, &hold), 0, "no hold where there is a marker");
	is(cow_md_hold(md, cow_region_first_unit(md, 2), 1, false, &hold), 0, "nor where nothing is loaded");
	is(cow_md_hold(md, cow_region_first_unit(md, 3) + 9, 4, false, &hold), 0, "nor where all units are in use");
	r = regions[1];
	r->allocated = false;
	first = cow_region_first_unit(md, 1);
	is(cow_md_hold(md, first, 1, false, &hold), 0, "nor where the bitmap has no room on disk");
	is(atomic_read(&r->holds), 0, "which leaves no hold behind");
	r->allocated = true;

	memset(r->bits, 0, sizeof(r->bits));
	atomic64_sub(atomic64_read(&bitmap_of(md)->used), &bitmap_of(md)->used);
	is(cow_md_hold(md, first + 100, 30, false, &hold), 1, "a hold");
	is(atomic_read(&r->holds), 1, "is counted");
	cow_md_release(md, &hold);
	is(atomic_read(&r->holds), 0, "and released");
	ok(!cow_md_changed(md) && !cow_md_used(md), "which changes no bit");

	cow_md_hold(md, first + 100, 30, false, &hold);
	ok(cow_md_mark(md, &hold), "a mark is the first since a commit");
	is(cow_md_used(md), 30, "30 units in use");
	ok(cow_md_changed(md) && r->queued && r->changed_sectors == 1, "the region is queued, with one sector");
	is(cow_lookup_run(cow_md_map(md), first + 100, 100).nr, 30, "they are looked up");
	cow_md_hold(md, first + 90, 50, false, &hold);
	ok(!cow_md_mark(md, &hold), "another is not the first");
	is(cow_md_used(md), 50, "units that were in use are not counted twice");
	used = cow_md_map(md)->sector_units;
	cow_md_hold(md, first + used - 1, 2, false, &hold);
	cow_bitmap_mark(md, &hold);
	is(r->changed_sectors, 3, "units of two sectors change both");
	cow_md_hold(md, cow_region_first_unit(md, 5), 1000, false, &hold);
	cow_md_mark(md, &hold);
	is(cow_lookup_run(cow_md_map(md), cow_region_first_unit(md, 5), 1000).nr, 1000, "all of the last region, which is short");
	is(atomic_read(&r->holds) + atomic_read(&regions[5]->holds), 0, "no hold is left");

	r = regions[4];
	first = cow_region_first_unit(md, 4);
	is(cow_md_hold(md, first + 2 * used, 1, false, &hold), -EIO, "no hold in a damaged sector");
	is(cow_md_hold(md, first + 2 * used - 1, 2, false, &hold), -EIO, "nor across its edge");
	is(cow_md_hold(md, first + 4 * used - 1, 2, false, &hold), -EIO, "nor across the other");
	is(cow_md_hold(md, first + 4 * used, 1, false, &hold), 1, "but beside it");
	cow_md_release(md, &hold);
	is(atomic_read(&r->holds), 0, "no hold is left there");
	stop(md);
}

static void test_limit(void)
{
	struct cow_hold a, b, c;
	struct cow_md *md;

	md = start(2);
	put_page(md, 0, 0, true);
	cow_md_set_limit(md, 10, 3);
	is(cow_md_hold(md, 0, 8, false, &a), -ENOSPC, "limit: eight of ten units, three of which are set aside");
	is(atomic_read(&regions[0]->holds), 0, "limit: which leaves no hold behind");
	is(cow_md_hold(md, 0, 7, false, &a), 1, "limit: seven");
	is(cow_md_hold(md, 20, 1, false, &b), -ENOSPC, "limit: claims count");
	is(cow_md_hold(md, 20, 3, true, &b), 1, "limit: the rest, for what is urgent");
	is(cow_md_hold(md, 30, 1, true, &c), -ENOSPC, "limit: and no more");
	cow_md_release(md, &b);
	is(cow_md_hold(md, 30, 2, true, &b), 1, "limit: a claim that is released is there again");
	cow_md_mark(md, &a);
	cow_md_mark(md, &b);
	is(cow_md_used(md), 9, "limit: nine in use");
	is(bitmap_of(md)->claimed, 0, "limit: nothing claimed");
	is(cow_md_hold(md, 0, 7, false, &a), 1, "limit: units that are in use need no more");
	is(bitmap_of(md)->claimed, 0, "limit: nor a claim");
	cow_md_mark(md, &a);
	is(cow_md_used(md), 9, "limit: and do not count again");
	/* two writes to one new unit: each has claimed it, one has set it */
	is(cow_md_hold(md, 40, 1, true, &a), 1, "limit: the last unit");
	is(cow_md_hold(md, 40, 1, true, &b), -ENOSPC, "limit: claimed twice, there would be none");
	cow_md_set_limit(md, 11, 3);
	is(cow_md_hold(md, 40, 1, true, &b), 1, "limit: there is one more");
	cow_md_mark(md, &a);
	cow_md_mark(md, &b);
	is(cow_md_used(md), 10, "limit: it is counted once");
	is(bitmap_of(md)->claimed, 0, "limit: nothing claimed in the end");
	cow_md_set_limit(md, 4, 9);
	is(cow_md_hold(md, 60, 1, true, &a), -ENOSPC, "limit: one that is below what is in use");
	is(cow_md_hold(md, 40, 1, false, &a), 1, "limit: where a rewrite needs nothing");
	cow_md_release(md, &a);
	cow_bitmap_set_counting(md, true);
	is(cow_md_hold(md, 60, 1, true, &a), 0, "limit: while units are counted, a hold has to wait");
	is(atomic_read(&regions[0]->holds), 0, "limit: no hold is left");
	cow_md_set_limit(md, 0, 0);
	is(cow_md_hold(md, 60, 1, false, &a), 1, "no limit: it does not");
	cow_md_mark(md, &a);
	is(cow_md_used(md), 11, "no limit: it is counted");
	stop(md);
}

/* ---- Commits ---- */

static struct cow_region *first_changed(struct cow_md *md)
{
	struct llist_node *node = llist_del_all(&bitmap_of(md)->changed);

	return node ? llist_entry(node, struct cow_region, changed) : NULL;
}

static void set_unit(struct cow_md *md, u64 unit, unsigned int nr)
{
	struct cow_hold hold;

	if (cow_md_hold(md, unit, nr, false, &hold) != 1)
		abort();
	cow_md_mark(md, &hold);
}

static void test_commit(void)
{
	static struct cow_stage stage, second;
	struct cow_region *r;
	struct cow_md *md;
	u32 n;

	md = start(2);
	r = put_page(md, 1, 0, true);
	n = cow_md_map(md)->sector_units;
	set_unit(md, cow_region_first_unit(md, 1) + 3, 2);
	set_unit(md, cow_region_first_unit(md, 1) + 4 * n, 1);
	ok(first_changed(md) == r && !cow_md_changed(md), "commit: takes the region");
	memset(stage.bits, 0xee, sizeof(stage.bits));
	cow_stage_take(md, &stage, r);
	is(stage.sectors, BIT(0) | BIT(4), "commit: the sectors that have changed");
	ok(stage.bits[0] == 0x18 && stage.bits[4 * md->layout.sector_bytes] == 1, "commit: their bits are copied");
	ok(stage.bits[md->layout.sector_bytes] == 0xee, "commit: and no others");
	ok(!r->queued && !r->changed_sectors, "commit: it is no longer queued");
	set_unit(md, cow_region_first_unit(md, 1) + 9, 1);
	ok(r->queued && r->changed_sectors == 1 && cow_md_changed(md), "commit: a mark meanwhile queues it again");
	is(stage.bits[1], 0, "commit: what is staged stays");
	cow_stage_undo(md, &stage, true);
	is(r->changed_sectors, BIT(0) | BIT(4), "no space: both sectors are to be done again");
	ok(first_changed(md) == r && !bitmap_of(md)->changed.first, "no space: it is queued once");
	cow_stage_take(md, &stage, r);
	is(stage.bits[1], 2, "no space: then with what was marked meanwhile");
	cow_stage_undo(md, &stage, true);
	ok(first_changed(md) == r && r->changed_sectors == (BIT(0) | BIT(4)), "no space: also when nothing was");
	cow_bitmap_requeue(md, &r->changed);
	ok(r->queued && first_changed(md) == r, "no space: one that the commit has not got to");
	cow_stage_take(md, &stage, r);
	cow_stage_undo(md, &stage, false);
	ok(r->queued, "failed: it stays as if it were queued");

	memset(r, 0, offsetof(struct cow_region, allocated));
	set_unit(md, cow_region_first_unit(md, 1), 5);
	first_changed(md);
	cow_stage_take(md, &second, r);
	ok(cow_stage_marker(md, &second) == NULL, "marker: none for bits that differ");
	memset(second.bits, 0xff, sizeof(second.bits));
	ok(cow_stage_marker(md, &second) == COW_REGION_FULL, "marker: for all that are set");
	memset(second.bits, 0, sizeof(second.bits));
	ok(cow_stage_marker(md, &second) == COW_REGION_EMPTY, "marker: for none that is");
	r->bad = BIT(7);
	ok(cow_stage_marker(md, &second) == NULL, "marker: none for a damaged region");
	memset(second.bits, 0xff, sizeof(second.bits));
	second.region = put_page(md, NR_REGIONS - 1, 0, true);
	ok(cow_stage_marker(md, &second) == NULL, "marker: none for a short region, which cannot be full");
	stop(md);
}

static void test_clear(void)
{
	struct cow_region *r;
	struct cow_md *md;
	u32 n;

	md = start_mixed(2);
	n = cow_md_map(md)->sector_units;
	r = regions[1];
	memset(r->bits, 0, sizeof(r->bits));
	atomic64_sub(atomic64_read(&bitmap_of(md)->used), &bitmap_of(md)->used);
	set_unit(md, cow_region_first_unit(md, 1) + 10, 5);
	set_unit(md, cow_region_first_unit(md, 1) + n + 10, 5);
	first_changed(md);
	r->queued = false;
	r->changed_sectors = 0;
	is(cow_bitmap_clear(md, 1, 0, 10), 0, "clear: bits that are not set");
	ok(!r->queued && !r->changed_sectors, "clear: which changes nothing");
	is(cow_bitmap_clear(md, 1, 12, n + 1), 6, "clear: bits of two sectors");
	is(cow_md_used(md), 4, "clear: as many units less");
	ok(r->queued && r->changed_sectors == 3 && first_changed(md) == r, "clear: both sectors have changed");
	is(cow_bitmap_clear(md, 1, 0, 2 * n), 4, "clear: the rest");
	ok(!cow_md_used(md) && !set_bits(md) == !regions[4], "clear: none in use");
	is(cow_bitmap_clear(md, 0, 0, 10), -EAGAIN, "clear: where a marker is");
	is(cow_bitmap_clear(md, 4, 2 * n - 1, 2), -EIO, "clear: in a damaged sector");
	is(cow_bitmap_clear(md, 4, 4 * n, 2) < 0, 0, "clear: beside it");
	is(atomic_read(&r->holds) + atomic_read(&regions[4]->holds), 0, "clear: no hold is left");
	stop(md);
}

static void test_markers(void)
{
	static struct cow_region page;
	struct cow_md *md = start(2);
	const u32 units = md->layout.region_units;

	ok(!cow_bitmap_get(md, 2), "markers: nothing has been read at first");
	ok(cow_bitmap_marker(md, &page, 0) == COW_REGION_EMPTY, "markers: no bit");
	ok(!cow_bitmap_marker(md, &page, units - 1), "markers: all bits but one");
	ok(cow_bitmap_marker(md, &page, units) == COW_REGION_FULL, "markers: all bits");
	page.bad = 1;
	ok(!cow_bitmap_marker(md, &page, 0), "markers: no bit, but one sector is damaged");
	cow_bitmap_expand(md, &page, NR_REGIONS - 1, COW_REGION_FULL);
	is(page.index, NR_REGIONS - 1, "markers: a page for the last region");
	ok(!page.bad && !page.queued && !page.allocated, "markers: which is a new one");
	is(find_next_zero_bit_le(page.bits, units, 0), 1000, "markers: its 1000 units");
	is(find_next_bit_le(page.bits, units, 1000), units, "markers: and no others");
	ok(cow_bitmap_marker(md, &page, 1000) == COW_REGION_FULL, "markers: are all that it has");
	cow_bitmap_expand(md, &page, 1, COW_REGION_EMPTY);
	ok(!memchr_inv(page.bits, 0, sizeof(page.bits)), "markers: a page for an empty region");
	stop(md);
}

/* ---- Eviction ---- */

static struct cow_region *unlink_next(struct cow_md *md, unsigned long *nr)
{
	struct cow_region *r;

	mutex_lock(&load_lock);
	mutex_lock(&commit_lock);
	r = cow_bitmap_evict(md, nr);
	mutex_unlock(&commit_lock);
	mutex_unlock(&load_lock);
	return r;
}

static void test_eviction(void)
{
	struct cow_region *held, *queued, *idle, *r;
	unsigned long nr = 100;
	struct cow_hold hold, other;
	struct cow_md *md;

	md = start(2);
	put_marker(md, 0, COW_IN_COW, COW);
	held = put_page(md, 1, 10, true);
	queued = put_page(md, 3, 0, true);
	idle = put_page(md, 4, 10, true);
	cow_md_hold(md, cow_region_first_unit(md, 1), 1, false, &hold);
	set_unit(md, cow_region_first_unit(md, 3), 1);
	r = unlink_next(md, &nr);
	ok(r == idle, "evict: a region that nobody is at");
	is(nr, 97, "evict: of three that were looked at");
	is(cow_lookup(cow_md_map(md), cow_region_first_unit(md, 4)), COW_UNKNOWN, "evict: its units are unknown");
	is(cow_md_hold(md, cow_region_first_unit(md, 4), 1, false, &other), 0, "evict: and not held");
	is(atomic_inc_unless_negative(&idle->holds), 0, "evict: nor by those who have found it before");
	is(atomic_read(&bitmap_of(md)->nr_pages), 2, "evict: one page less");
	free(r);
	ok(!unlink_next(md, &nr) && nr == 95, "evict: neither one that is held, nor one that has changed");
	cow_md_release(md, &hold);
	nr = 1;
	r = unlink_next(md, &nr);
	/* it goes on where it was: it may be the other's turn */
	if (!r) {
		nr = 1;
		r = unlink_next(md, &nr);
	}
	ok(r == held && !nr, "evict: no longer held");
	free(r);

	mutex_lock(&commit_lock);
	cow_bitmap_collapse(md, queued, COW_REGION_FULL);
	ok(regions[3] == queued, "collapse: not while it is queued");
	first_changed(md);
	queued->queued = false;
	cow_md_hold(md, cow_region_first_unit(md, 3), 1, false, &hold);
	cow_bitmap_collapse(md, queued, COW_REGION_FULL);
	ok(regions[3] == queued, "collapse: not while it is held");
	cow_md_release(md, &hold);
	r = bitmap_of(md)->reserve;
	bitmap_of(md)->reserve = NULL;
	cow_bitmap_collapse(md, queued, COW_REGION_FULL);
	ok(regions[3] == queued, "collapse: not the last page");
	bitmap_of(md)->reserve = r;
	cow_bitmap_collapse(md, queued, COW_REGION_FULL);
	ok(regions[3] == COW_REGION_FULL && !atomic_read(&bitmap_of(md)->nr_pages), "collapse: a marker, and a page less");
	mutex_unlock(&commit_lock);
	is(cow_lookup_run(cow_md_map(md), cow_region_first_unit(md, 3), 7).where, COW_IN_COW, "collapse: which is looked up");
	stop(md);
}

/* ---- All of it in threads ---- */

#define NR_WRITERS	4
#define NR_WRITES	10000	/* of each, and as many more as it takes for */
#define NR_EVICTED	50

static struct cow_md *shared;
static u8 disk[NR_REGIONS][COW_V2_REGION_SECTORS * COW_V2_SECTOR_BYTES];
static unsigned long evicted, loaded, lost;
static bool writers_done;

static void load(u64 index)
{
	struct cow_region *r;

	mutex_lock(&load_lock);
	if (!cow_bitmap_get(shared, index)) {
		r = calloc(1, sizeof(*r));
		if (!r)
			abort();
		r->index = index;
		r->allocated = true;
		memcpy(r->bits, disk[index], sizeof(r->bits));
		cow_bitmap_put(shared, index, r);
		loaded++;
	}
	mutex_unlock(&load_lock);
}

static enum cow_where look(u64 unit)
{
	enum cow_where where;

	do {
		rcu_read_lock();
		where = cow_lookup(cow_md_map(shared), unit);
		rcu_read_unlock();
		if (where == COW_UNKNOWN)
			load(unit / cow_md_map(shared)->region_units);
	} while (where == COW_UNKNOWN);
	return where;
}

/* Every NR_WRITERSth unit is this one's. */
static void *writer(void *arg)
{
	const uintptr_t id = (uintptr_t)arg;
	uint64_t state = random_state + id;
	struct cow_hold hold;
	int ret;

	for (unsigned int i = 0; i < NR_WRITES || READ_ONCE(evicted) < NR_EVICTED; i++) {
		const u64 unit = below(&state, shared->geo.nr_units / NR_WRITERS) * NR_WRITERS + id;
		const int was = model[unit];

		if (look(unit) != (was == COW ? COW_IN_COW : COW_IN_RDO))
			__atomic_add_fetch(&lost, 1, __ATOMIC_RELAXED);
		while (!(ret = cow_md_hold(shared, unit, 1, false, &hold)))
			load(unit / cow_md_map(shared)->region_units);
		/* beyond the limit, which will be another */
		if (ret < 0) {
			sched_yield();
			continue;
		}
		if (below(&state, 4)) {
			cow_bitmap_mark(shared, &hold);
			model[unit] = COW;
		} else {
			cow_md_release(shared, &hold);
		}
	}
	return NULL;
}

static void commit(void)
{
	static struct cow_stage stage;
	struct llist_node *node, *next;
	unsigned long i;

	mutex_lock(&commit_lock);
	for (node = llist_del_all(&bitmap_of(shared)->changed); node; node = next) {
		next = node->next;
		cow_stage_take(shared, &stage, llist_entry(node, struct cow_region, changed));
		for_each_set_bit(i, &stage.sectors, shared->layout.region_sectors)
			memcpy(disk[stage.region->index] + i * shared->layout.sector_bytes,
			       stage.bits + i * shared->layout.sector_bytes, shared->layout.sector_bytes);
	}
	mutex_unlock(&commit_lock);
}

static void *committer(void *arg)
{
	uint64_t state = random_state - 1;
	struct cow_region *r;

	while (!__atomic_load_n(&writers_done, __ATOMIC_SEQ_CST)) {
		unsigned long nr = 2;

		commit();
		cow_md_set_limit(shared, below(&state, 2) ? 0 : cow_md_used(shared) + below(&state, 50), 0);
		r = unlink_next(shared, &nr);
		if (!r)
			continue;
		synchronize_rcu();
		/* all of it was on disk */
		if (memcmp(r->bits, disk[r->index], sizeof(r->bits)))
			__atomic_add_fetch(&lost, 1, __ATOMIC_RELAXED);
		free(r);
		WRITE_ONCE(evicted, evicted + 1);
	}
	return arg;
}

static void test_threads(void)
{
	pthread_t writers[NR_WRITERS], other;
	unsigned long wrong = 0, holds = 0;
	u64 used = 0;

	shared = start(2);
	memset(model, RDO, sizeof(model));
	if (pthread_create(&other, NULL, committer, NULL))
		abort();
	for (uintptr_t i = 0; i < NR_WRITERS; i++)
		if (pthread_create(&writers[i], NULL, writer, (void *)i))
			abort();
	for (unsigned int i = 0; i < NR_WRITERS; i++)
		pthread_join(writers[i], NULL);
	__atomic_store_n(&writers_done, true, __ATOMIC_SEQ_CST);
	pthread_join(other, NULL);
	commit();

	for (u64 unit = 0; unit < shared->geo.nr_units; unit++) {
		wrong += look(unit) != (model[unit] == COW ? COW_IN_COW : COW_IN_RDO);
		used += model[unit] == COW;
	}
	for (unsigned int i = 0; i < NR_REGIONS; i++) {
		holds += atomic_read(&regions[i]->holds);
		wrong += !!memcmp(regions[i]->bits, disk[i], sizeof(disk[i]));
	}
	printf("# %lu regions loaded, %lu evicted, %llu units in use\n", loaded, evicted, (unsigned long long)used);
	is(lost, 0, "threads: each finds what it has written, and none is evicted before it is on disk");
	is(wrong, 0, "threads: all of it is there in the end");
	is(cow_md_used(shared), used, "threads: and counted");
	is(bitmap_of(shared)->claimed, 0, "threads: nothing is claimed");
	is(holds, 0, "threads: nothing is held");
	ok(evicted >= NR_EVICTED && loaded > evicted, "threads: regions came and went");
	stop(shared);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(600);
	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	test_regions();
	for (unsigned int format = 1; format <= 2; format++) {
		test_lookups(format);
		test_holds(format);
	}
	test_limit();
	test_commit();
	test_clear();
	test_markers();
	test_eviction();
	test_threads();
	return done_testing();
}
