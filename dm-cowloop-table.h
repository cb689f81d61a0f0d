/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: the table of first writes in flight, for those who enter it.
 */

#ifndef DM_COWLOOP_TABLE_H
#define DM_COWLOOP_TABLE_H

#include "dm-cowloop-internal.h"

static inline struct cow_bucket *bucket_of(struct cowloop *cow, u64 unit)
{
	const u64 mib = cow_unit_start(cow, unit) / COW_TRACK_SECTORS;

	return &cow->buckets[hash_64(mib, COW_BUCKET_BITS)];
}

static inline bool overlaps(const struct cow_io *io, u64 unit, unsigned int nr)
{
	return unit < io->unit + io->nr && io->unit < unit + nr;
}

static inline struct cow_io *find_overlap(struct cow_bucket *bucket, u64 unit, unsigned int nr)
{
	struct cow_io *io;

	lockdep_assert_held(&bucket->lock);
	hlist_for_each_entry(io, &bucket->writes, node)
		if (overlaps(io, unit, nr))
			return io;
	return NULL;
}

static inline struct cow_io *find_copyup(struct cow_bucket *bucket, u64 unit, unsigned int nr)
{
	struct cow_io *io;

	lockdep_assert_held(&bucket->lock);
	hlist_for_each_entry(io, &bucket->writes, node)
		if (io->state != COW_IO_FIRST && overlaps(io, unit, nr))
			return io;
	return NULL;
}

/*
 * Whether a first write may enter the table, with the bucket's lock held: 1 if
 * so, and its units are held then; 0 if it is to be deferred; -EINPROGRESS if
 * it waits for a discard now; or another negative errno.
 */
static __always_inline int may_enter(struct cowloop *cow, struct bio *bio, u64 unit,
				     unsigned int nr)
{
	struct cow_io *io = cow_bio_to_io(bio);

	/* DIRTY is on disk before the gate is open: see open_gate_locked(). */
	if (unlikely(!smp_load_acquire(&cow->gate_open)))
		return 0;
	if (unlikely(READ_ONCE(cow->nr_ranges)) && cow_wait_for_discard(cow, bio, unit, nr))
		return -EINPROGRESS;
	return cow_md_hold(cow->md, unit, nr, cow_is_urgent(bio), &io->hold);
}

static inline void enter_table(struct cow_bucket *bucket, struct cow_io *io,
			       enum cow_io_state state, u64 unit, unsigned int nr)
{
	lockdep_assert_held(&bucket->lock);
	io->state = state;
	io->unit = unit;
	io->nr = nr;
	io->bucket = bucket;
	bio_list_init(&io->waiters);
	hlist_add_head(&io->node, &bucket->writes);
}

/*
 * The data of a first write has been written, or could not be: it leaves the table.
 * Any context.
 */
static __always_inline void end_first_write(struct cowloop *cow, struct cow_io *io,
					    blk_status_t status)
{
	unsigned long flags;
	bool first = false;
	u8 awaited;

	spin_lock_irqsave(&io->bucket->lock, flags);
	if (likely(!status))
		first = cow_md_mark(cow->md, &io->hold);
	else
		cow_md_release(cow->md, &io->hold);
	__hlist_del(&io->node);
	io->state = COW_IO_WRITE;
	awaited = io->awaited;
	if (unlikely(!bio_list_empty(&io->waiters)))
		cow_defer_bios(cow, &io->waiters);
	spin_unlock_irqrestore(&io->bucket->lock, flags);

	if (first)
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_COMMIT_DELAY);
	if (likely(!status)) {
		cow_check_low_water(cow);
		if (unlikely(io->seeks_space))
			cow_space_found(cow, COW_LACK_UNITS);
	}
	/* A sync or a discard that waits for the entry has marked it under the lock. */
	if (unlikely(awaited)) {
		io->awaited = 0;
		cow_awaited_ended(cow, awaited);
	}
}

#endif /* DM_COWLOOP_TABLE_H */
