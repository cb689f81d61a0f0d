// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the table of first writes in flight, the gate, and the ranges of discards.
 * dm-cowloop-table.h says what holds.
 */

#include "dm-cowloop-table.h"

#include <linux/interval_tree_generic.h>

/* How long a sync keeps the gate shut at first, to wait for what is in flight. */
#define COW_GATE_DELAY		(HZ / 10)

void cow_awaited_ended(struct cowloop *cow, u8 awaited)
{
	if (awaited & COW_AWAITED_BY_SYNC)
		wake_up(&cow->table->drained);
	if (awaited & COW_AWAITED_BY_DISCARD)
		cow->table->discards_ready(cow);
}

void cow_end_folding(struct cowloop *cow, struct cow_io *io)
{
	struct cow_bucket *bucket = io->entry.bucket;

	spin_lock_irq(&bucket->lock);
	io->state = COW_IO_COPYUP_STORE;
	spin_unlock_irq(&bucket->lock);
}

void cow_end_copyup(struct cowloop *cow, struct cow_io *io, blk_status_t status)
{
	end_first_write(cow, io, status);
}

/* ---- The gate ---- */

static int open_gate_locked(struct cowloop *cow)
{
	int r = 0;

	lockdep_assert_held(&cow->table->gate_lock);
	/* In mode ro, writes that were accepted before still come here. */
	if (READ_ONCE(cow->mode) == COW_MODE_FAIL) {
		r = -EIO;
	} else if (!cow->gate_open) {
		r = cow_md_set_dirty(cow->md);
		if (!r)
			/* Pairs with may_enter(). */
			smp_store_release(&cow->gate_open, true);
		else if (r != -ENOSPC)
			cow_metadata_failed(cow, "marking the cowfile dirty", r);
	}
	return r;
}

int cow_open_gate(struct cowloop *cow)
{
	int r;

	mutex_lock(&cow->table->gate_lock);
	r = open_gate_locked(cow);
	mutex_unlock(&cow->table->gate_lock);

	return r;
}

/*
 * Whether nothing is in the table that a sync waits for; with @all it waits for all that
 * there is from now on. Process context.
 */
static bool is_drained(struct cow_table *t, bool all)
{
	bool drained = true;
	struct cow_io *io;
	unsigned int i;

	for (i = 0; i < COW_NR_BUCKETS; i++) {
		struct cow_bucket *bucket = &t->buckets[i];

		spin_lock_irq(&bucket->lock);
		hlist_for_each_entry(io, &bucket->writes, entry.node) {
			if (all)
				io->awaited |= COW_AWAITED_BY_SYNC;
			drained = drained && !(io->awaited & COW_AWAITED_BY_SYNC);
		}
		spin_unlock_irq(&bucket->lock);
	}
	return drained;
}

int cow_shut_gate(struct cowloop *cow)
{
	struct cow_table *t = cow->table;
	/* In the end it suffices for writes that come; one that hangs is waited for before. */
	unsigned long delay = COW_GATE_DELAY;
	unsigned int run;
	long r;

	for (;; delay *= 2) {
		/* First writes go on, whatever hangs. */
		is_drained(t, true);
		run = READ_ONCE(t->discard_runs);
		if (wait_event_interruptible(t->drained, is_drained(t, false) &&
					     (!READ_ONCE(t->discards_at_work) ||
					      READ_ONCE(t->discard_runs) != run)))
			return -EINTR;

		mutex_lock(&t->gate_lock);
		WRITE_ONCE(cow->gate_open, false);
		r = wait_event_interruptible_timeout(t->drained, is_drained(t, true) &&
						     /* Pairs with cow_end_discards(). */
						     !smp_load_acquire(&t->discards_at_work),
						     delay);
		if (r > 0)
			return 0;
		/*
		 * There is something in flight, and so DIRTY is still set. Pairs with
		 * may_enter().
		 */
		smp_store_release(&cow->gate_open, true);
		mutex_unlock(&t->gate_lock);
		if (r < 0)
			return -EINTR;
	}
}

void cow_unlock_gate(struct cowloop *cow)
{
	mutex_unlock(&cow->table->gate_lock);
}

/* ---- Ranges of discards ---- */

static u64 first_unit(const struct cow_range *range)
{
	return range->unit;
}

static u64 last_unit(const struct cow_range *range)
{
	return range->unit + range->nr - 1;
}

INTERVAL_TREE_DEFINE(struct cow_range, node, u64, last_below, first_unit, last_unit,
		     static inline, range_tree)

bool cow_wait_for_discard(struct cowloop *cow, struct bio *bio, u64 unit, unsigned int nr)
{
	struct cow_table *t = cow->table;
	struct cow_range *range;

	spin_lock(&t->ranges_lock);
	range = range_tree_iter_first(&t->ranges, unit, unit + nr - 1);
	if (range)
		bio_list_add(&range->waiters, bio);
	spin_unlock(&t->ranges_lock);

	return range;
}

void cow_publish_range(struct cowloop *cow, struct cow_range *range)
{
	struct cow_table *t = cow->table;

	bio_list_init(&range->waiters);
	range->blocked = false;
	spin_lock_irq(&t->ranges_lock);
	range_tree_insert(range, &t->ranges);
	t->nr_ranges++;
	WRITE_ONCE(cow->has_ranges, true);
	spin_unlock_irq(&t->ranges_lock);
}

void cow_withdraw_range(struct cowloop *cow, struct cow_range *range)
{
	struct cow_table *t = cow->table;

	spin_lock_irq(&t->ranges_lock);
	range_tree_remove(range, &t->ranges);
	t->nr_ranges--;
	WRITE_ONCE(cow->has_ranges, t->nr_ranges);
	spin_unlock_irq(&t->ranges_lock);

	/* Nobody finds it any more. */
	if (!bio_list_empty(&range->waiters))
		cow_defer_bios(cow, &range->waiters);
}

/* Have the discards wait that @io, in the table, is in the way of. With the bucket's lock. */
static void block_ranges(struct cow_table *t, struct cow_io *io)
{
	const u64 first = io->entry.unit, last = first + io->entry.hold.nr - 1;
	struct cow_range *range;

	spin_lock(&t->ranges_lock);
	for (range = range_tree_iter_first(&t->ranges, first, last); range;
	     range = range_tree_iter_next(range, first, last)) {
		range->blocked = true;
		io->awaited |= COW_AWAITED_BY_DISCARD;
	}
	spin_unlock(&t->ranges_lock);
}

void cow_block_ranges(struct cowloop *cow)
{
	struct cow_table *t = cow->table;
	struct cow_io *io;
	unsigned int i;

	for (i = 0; i < COW_NR_BUCKETS; i++) {
		struct cow_bucket *bucket = &t->buckets[i];

		spin_lock_irq(&bucket->lock);
		hlist_for_each_entry(io, &bucket->writes, entry.node)
			block_ranges(t, io);
		spin_unlock_irq(&bucket->lock);
	}
}

int cow_begin_discards(struct cowloop *cow)
{
	struct cow_table *t = cow->table;
	int r;

	mutex_lock(&t->gate_lock);
	r = open_gate_locked(cow);
	WRITE_ONCE(t->discard_runs, t->discard_runs + 1);
	WRITE_ONCE(t->discards_at_work, !r);
	mutex_unlock(&t->gate_lock);

	return r;
}

void cow_end_discards(struct cowloop *cow)
{
	/* Whoever sees this sees the bits that have changed: pairs with cow_shut_gate(). */
	smp_store_release(&cow->table->discards_at_work, false);
	wake_up(&cow->table->drained);
}

/* ---- Making and destroying ---- */

int cow_table_create(struct cowloop *cow, void (*discards_ready)(struct cowloop *))
{
	struct cow_table *t = kvzalloc(sizeof(*t), GFP_KERNEL);
	unsigned int i;

	if (!t)
		return -ENOMEM;
	cow->table = t;
	for (i = 0; i < COW_NR_BUCKETS; i++) {
		spin_lock_init(&t->buckets[i].lock);
		INIT_HLIST_HEAD(&t->buckets[i].writes);
	}
	mutex_init(&t->gate_lock);
	init_waitqueue_head(&t->drained);
	spin_lock_init(&t->ranges_lock);
	t->ranges = RB_ROOT_CACHED;
	t->discards_ready = discards_ready;

	return 0;
}

void cow_table_destroy(struct cowloop *cow)
{
	kvfree(cow->table);
}
