// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the table of first writes in flight, its gate, and the ranges of discards.
 */

#include "dm-cowloop-internal.h"
#include "dm-cowloop-table.h"

#include <linux/interval_tree_generic.h>

#define DM_MSG_PREFIX "cowloop"

static u64 first_unit(const struct cow_io *io)
{
	return io->unit;
}

static u64 last_unit(const struct cow_io *io)
{
	return io->unit + io->nr - 1;
}

INTERVAL_TREE_DEFINE(struct cow_io, range, u64, last_below, first_unit, last_unit,
		     static inline, cow_range)

/*
 * Have @bio, a first write, wait for a discard that is published for any of its units.
 * False if there is none. With the bucket's lock held.
 */
bool cow_wait_for_discard(struct cowloop *cow, struct bio *bio, u64 unit,
			  unsigned int nr)
{
	struct cow_io *discard;

	spin_lock(&cow->lock);
	discard = cow_range_iter_first(&cow->ranges, unit, unit + nr - 1);
	if (discard)
		bio_list_add(&discard->waiters, bio);
	spin_unlock(&cow->lock);

	return discard;
}

/* An entry has left the table that somebody has waited for. Any context. */
void cow_awaited_ended(struct cowloop *cow, u8 awaited)
{
	if (awaited & COW_AWAITED_BY_SYNC)
		wake_up(&cow->drained);
	if (awaited & COW_AWAITED_BY_DISCARD)
		queue_work(cow->deferred_wq, &cow->discard_work);
}

/* No more writes are folded into a copy-up. Process context. */
void cow_end_folding(struct cowloop *cow, struct cow_io *io)
{
	struct cow_bucket *bucket = bucket_of(cow, io->unit);

	spin_lock_irq(&bucket->lock);
	io->state = COW_IO_COPYUP_STORE;
	spin_unlock_irq(&bucket->lock);
}

/* A copy-up has been stored, or could not be: it leaves the table. Any context. */
void cow_end_copyup(struct cowloop *cow, struct cow_io *io, blk_status_t status)
{
	end_first_write(cow, io, status);
}

/* ---- The gate ---- */

static int open_gate_locked(struct cowloop *cow)
{
	int r = 0;

	lockdep_assert_held(&cow->gate_lock);
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

	mutex_lock(&cow->gate_lock);
	r = open_gate_locked(cow);
	mutex_unlock(&cow->gate_lock);

	return r;
}

/*
 * Whether nothing is in the table that a sync waits for; with @all it waits for all that
 * there is from now on. Process context.
 */
static bool is_drained(struct cowloop *cow, bool all)
{
	bool drained = true;
	struct cow_io *io;
	unsigned int i;

	for (i = 0; i < 1U << COW_BUCKET_BITS; i++) {
		struct cow_bucket *bucket = &cow->buckets[i];

		spin_lock_irq(&bucket->lock);
		hlist_for_each_entry(io, &bucket->writes, node) {
			if (all)
				io->awaited |= COW_AWAITED_BY_SYNC;
			drained = drained && !(io->awaited & COW_AWAITED_BY_SYNC);
		}
		spin_unlock_irq(&bucket->lock);
	}
	return drained;
}

/*
 * Shut the gate, with nothing in the table and no discard at work any more: returns 0, and
 * the gate is locked; or -EINTR after a signal. One at a time. Sleeps.
 */
int cow_shut_gate(struct cowloop *cow)
{
	/* It ends when it suffices for what comes; what hangs is waited for before. */
	unsigned long delay = COW_GATE_DELAY;
	unsigned int run;
	long r;

	for (;; delay *= 2) {
		/* First writes go on, whatever hangs. */
		is_drained(cow, true);
		run = READ_ONCE(cow->discard_runs);
		if (wait_event_interruptible(cow->drained, is_drained(cow, false) &&
					     (!READ_ONCE(cow->discards_at_work) ||
					      READ_ONCE(cow->discard_runs) != run)))
			return -EINTR;

		mutex_lock(&cow->gate_lock);
		WRITE_ONCE(cow->gate_open, false);
		r = wait_event_interruptible_timeout(cow->drained, is_drained(cow, true) &&
						     /* Pairs with cow_end_discards(). */
						     !smp_load_acquire(&cow->discards_at_work),
						     delay);
		if (r > 0)
			return 0;
		/*
		 * There is something in flight, and so DIRTY is still set. Pairs with
		 * may_enter().
		 */
		smp_store_release(&cow->gate_open, true);
		mutex_unlock(&cow->gate_lock);
		if (r < 0)
			return -EINTR;
	}
}

/* ---- Ranges of discards ---- */

/* Publish the ranges of the discards that have come, for first writes to find. */
void cow_publish_ranges(struct cowloop *cow)
{
	struct bio_list bios = cow_take_bios(cow, &cow->discards);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios))) {
		struct cow_io *io = cow_bio_to_io(bio);

		bio_list_init(&io->waiters);
		bio_list_add(&cow->blocked_discards, bio);
		spin_lock_irq(&cow->lock);
		cow_range_insert(io, &cow->ranges);
		WRITE_ONCE(cow->nr_ranges, cow->nr_ranges + 1);
		spin_unlock_irq(&cow->lock);
	}
}

/* A discard has done its work, or will not do any. What has waited for it is mapped again. */
void cow_withdraw_range(struct cowloop *cow, struct cow_io *io)
{
	spin_lock_irq(&cow->lock);
	cow_range_remove(io, &cow->ranges);
	WRITE_ONCE(cow->nr_ranges, cow->nr_ranges - 1);
	spin_unlock_irq(&cow->lock);

	/* Nobody finds it any more. */
	if (!bio_list_empty(&io->waiters))
		cow_defer_bios(cow, &io->waiters);
}

/* Have the discards wait that @io, in the table, is in the way of. With the bucket's lock. */
static void block_discards(struct cowloop *cow, struct cow_io *io)
{
	const u64 first = first_unit(io), last = last_unit(io);
	struct cow_io *discard;

	spin_lock(&cow->lock);
	for (discard = cow_range_iter_first(&cow->ranges, first, last); discard;
	     discard = cow_range_iter_next(discard, first, last)) {
		discard->blocked = true;
		io->awaited |= COW_AWAITED_BY_DISCARD;
	}
	spin_unlock(&cow->lock);
}

/* The discards that are published and have nothing in their way: they can begin to work. */
struct bio_list cow_take_ready_discards(struct cowloop *cow)
{
	struct bio_list bios = cow->blocked_discards, ready = BIO_EMPTY_LIST;
	struct cow_io *io;
	struct bio *bio;
	unsigned int i;

	bio_list_init(&cow->blocked_discards);
	if (bio_list_empty(&bios))
		return ready;

	for (i = 0; i < 1U << COW_BUCKET_BITS; i++) {
		struct cow_bucket *bucket = &cow->buckets[i];

		spin_lock_irq(&bucket->lock);
		hlist_for_each_entry(io, &bucket->writes, node)
			block_discards(cow, io);
		spin_unlock_irq(&bucket->lock);
	}
	while ((bio = bio_list_pop(&bios))) {
		io = cow_bio_to_io(bio);
		bio_list_add(io->blocked ? &cow->blocked_discards : &ready, bio);
		io->blocked = false;
	}
	return ready;
}

/* Open the gate, and keep it open while discards are at work, if this returns 0. */
int cow_begin_discards(struct cowloop *cow)
{
	int r;

	mutex_lock(&cow->gate_lock);
	r = open_gate_locked(cow);
	WRITE_ONCE(cow->discard_runs, cow->discard_runs + 1);
	WRITE_ONCE(cow->discards_at_work, !r);
	mutex_unlock(&cow->gate_lock);

	return r;
}

void cow_end_discards(struct cowloop *cow)
{
	/* What it has changed is seen by whoever sees this: pairs with cow_shut_gate(). */
	smp_store_release(&cow->discards_at_work, false);
	wake_up(&cow->drained);
}
