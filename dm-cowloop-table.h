/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: the table of first writes in flight, for dm-cowloop-table.c, whose room it is,
 * and for dm-cowloop-write.c, which enters it: this is the way of every first write, and so
 * it is inline.
 *
 * A copy-up must not store stale data of rdo over another write to its unit.
 * Hence the table, and this invariant:
 *
 *	While a copy-up of a unit is in the table, its bit is clear, and nothing
 *	else in the table covers the unit.
 *
 * The invariant holds because a bit is tested and an entry made under one lock, that
 * of the entry's bucket, and because a bit is set before the entry that has set it
 * goes away. A write that finds a copy-up in its way is folded or waits; a part
 * of a unit that finds a write of the whole unit in its way waits. Who waited
 * is mapped again, and then usually is a rewrite. Whole units need not wait for
 * each other: such writes race like two writes to any disk. A bio-prison would do for
 * the copy-ups, but not for them: its cells have one holder, and take an allocation each.
 *
 * Nothing in the table waits for memory that others hold (what it takes comes
 * from mempools), nor for the worker that handles deferred bios: so that worker
 * may wait for memory, for the bitmap to be read, or for a sync, and a sync may
 * wait for the table to empty.
 *
 * The gate. DIRTY must be on disk before any first write is (see
 * dm-cowloop-metadata.c), and must not be cleared while one is in flight. The
 * gate is open while DIRTY is known to be set. A first write enters the table
 * only with the gate open, which is tested under the bucket's lock; otherwise
 * it is deferred, and the worker sets DIRTY and opens the gate. A sync shuts
 * the gate, waits until every bucket is empty and no discard at work, and then
 * cleans the head. So that nobody else waits for a write that hangs, it first
 * waits, with the gate open, for the end of what is in flight when it begins;
 * and it shuts the gate for a short time only, at first, to open it and begin anew
 * if what has come meanwhile takes longer.
 *
 * Discards. A discard's bits are cleared, then committed, and only then is the space in
 * the cow device given back: see dm-cowloop-discard.c. Until it has been, a first write to
 * one of the units would be lost with it, so:
 *
 *	While a discard is at work, nothing in the table covers any of its units.
 *
 * The invariant holds because the range of a discard is published before it looks at the table,
 * and is withdrawn when it has done its work. A write looks for ranges under the lock
 * of its bucket, before it enters. One that finds a range in its way waits for that
 * discard's end, and then looks again: others may overlap. The discard goes through
 * the buckets, by their locks, after it has been published. So whatever it does not
 * find there comes later, and finds the range. Entries that it does find, and that overlap,
 * were there before; they are marked, and the discard waits for their end, and looks again.
 * All else goes on, other discards too. A write that is folded into a copy-up meanwhile
 * makes no entry, and ends with the copy-up, before the discard has begun to work.
 * Discards are at work with the gate open, as first writes are, since they change
 * bits, too.
 */

#ifndef DM_COWLOOP_TABLE_H
#define DM_COWLOOP_TABLE_H

#include "dm-cowloop-internal.h"

#include <linux/hash.h>
#include <linux/wait.h>

#define COW_BUCKET_BITS		7
#define COW_NR_BUCKETS		BIT(COW_BUCKET_BITS)

/* Whom to tell when an entry leaves the table. */
#define COW_AWAITED_BY_SYNC	BIT(0)
#define COW_AWAITED_BY_DISCARD	BIT(1)

/* First writes in flight in some of the device's MiBs. */
struct cow_bucket {
	spinlock_t lock;		/* the list, and the state of entries on it */
	struct hlist_head writes;	/* of cow_io */
};

struct cow_table {
	struct cow_bucket buckets[COW_NR_BUCKETS];

	struct mutex gate_lock;		/* opens or shuts the gate; held by a sync */
	wait_queue_head_t drained;	/* of all that a sync waits for */
	bool discards_at_work;		/* the gate stays open */
	unsigned int discard_runs;	/* that have begun */

	spinlock_t ranges_lock;		/* the ranges, and their waiters */
	struct rb_root_cached ranges;	/* of discards that are published */
	unsigned int nr_ranges;		/* cowloop's has_ranges: whether there are any */
	void (*discards_ready)(struct cowloop *cow);
};

static inline struct cow_bucket *bucket_of(struct cowloop *cow, u64 unit)
{
	const u64 mib = cow_unit_start(cow, unit) / COW_TRACK_SECTORS;
	struct cow_bucket *buckets = cow->table->buckets;

	return buckets + hash_64(mib, COW_BUCKET_BITS);
}

static inline bool overlaps(const struct cow_entry *entry, u64 unit, unsigned int nr)
{
	return unit < entry->unit + entry->hold.nr && entry->unit < unit + nr;
}

static inline struct cow_io *find_overlap(struct cow_bucket *bucket, u64 unit, unsigned int nr)
{
	struct cow_io *io;

	lockdep_assert_held(&bucket->lock);
	hlist_for_each_entry(io, &bucket->writes, entry.node)
		if (overlaps(&io->entry, unit, nr))
			return io;
	return NULL;
}

static inline struct cow_io *find_copyup(struct cow_bucket *bucket, u64 unit, unsigned int nr)
{
	struct cow_io *io;

	lockdep_assert_held(&bucket->lock);
	hlist_for_each_entry(io, &bucket->writes, entry.node)
		if (io->state != COW_IO_FIRST && overlaps(&io->entry, unit, nr))
			return io;
	return NULL;
}

/*
 * Have @bio, a first write, wait for a discard that is published for any of its units.
 * False if there is none. With the bucket's lock held.
 */
bool cow_wait_for_discard(struct cowloop *cow, struct bio *bio, u64 unit, unsigned int nr);

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
	if (unlikely(READ_ONCE(cow->has_ranges)) && cow_wait_for_discard(cow, bio, unit, nr))
		return -EINPROGRESS;
	return cow_md_hold(cow->md, unit, nr, cow_is_urgent(bio), &io->entry.hold);
}

static inline void enter_table(struct cow_bucket *bucket, struct cow_io *io,
			       enum cow_io_state state, u64 unit)
{
	struct cow_entry *entry = &io->entry;

	lockdep_assert_held(&bucket->lock);
	io->state = state;
	entry->unit = unit;
	entry->bucket = bucket;
	bio_list_init(&entry->waiters);
	hlist_add_head(&entry->node, &bucket->writes);
}

/* An entry has left the table that somebody has waited for. */
void cow_awaited_ended(struct cowloop *cow, u8 awaited);

/* The data of a first write has been written, or could not be: it leaves the table. */
static __always_inline void end_first_write(struct cowloop *cow, struct cow_io *io,
					    blk_status_t status)
{
	struct cow_entry *entry = &io->entry;
	unsigned long flags;
	bool first = false;
	u8 awaited;

	spin_lock_irqsave(&entry->bucket->lock, flags);
	if (likely(!status))
		first = cow_md_mark(cow->md, &entry->hold);
	else
		cow_md_release(cow->md, &entry->hold);
	__hlist_del(&entry->node);
	io->state = COW_IO_WRITE;
	awaited = io->awaited;
	if (unlikely(!bio_list_empty(&entry->waiters)))
		cow_defer_bios(cow, &entry->waiters);
	spin_unlock_irqrestore(&entry->bucket->lock, flags);

	if (first)
		cow_commit_later(cow);
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
