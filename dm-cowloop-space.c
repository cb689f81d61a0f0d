// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: modes, limits, and what waits for space.
 */

#include "dm-cowloop-internal.h"

#include <linux/sched/signal.h>

#define DM_MSG_PREFIX "cowloop"

/* ---- Modes ---- */

/*
 * Bios that map does not decide on alone: all but reads and writes; in general
 * those that have to do with durability, or are polled and the rest of another
 * one; and all writes, where they are refused, held back, or may have to be kept, or
 * where it matters whether a rewrite finds space.
 */
void cow_set_map_state(struct cowloop *cow, enum cow_mode mode)
{
	blk_opf_t opf = REQ_PREFLUSH | REQ_FUA | REQ_DRV | (REQ_OP_MASK & ~REQ_OP_WRITE);
	const bool owes = cow_md_owes_commit(cow->md);

	if (mode > COW_MODE_OUT_OF_SPACE || cow->opt.queue_if_no_space || cow->write_flags ||
	    owes || cow->lacks & BIT(COW_LACK_REWRITE))
		opf |= REQ_OP_WRITE;
	WRITE_ONCE(cow->owes_commit, owes);
	WRITE_ONCE(cow->state_opf, opf);
	WRITE_ONCE(cow->cow_bdev, mode == COW_MODE_CLOSED ? NULL : cow->cow->bdev);
}

static bool kept_empty(struct cowloop *cow)
{
	return bio_list_empty(&cow->no_space_bios) && bio_list_empty(&cow->reserved_bios);
}

/* Have the first of the writes that are kept tried again. With the lock held. */
static void retry_kept(struct cowloop *cow, unsigned long delay)
{
	lockdep_assert_held(&cow->lock);
	if (!kept_empty(cow) && !cow->retrying)
		mod_delayed_work(cow->deferred_wq, &cow->retry_work, delay);
}

/* Whether a commit is owed may have changed. Any context. */
void cow_update_map_state(struct cowloop *cow)
{
	unsigned long flags;

	/* The lock is for the last one to look to be the last one to say so. */
	spin_lock_irqsave(&cow->lock, flags);
	cow_set_map_state(cow, cow->mode);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/* Have what waits for space end: there is no sense in that any more. With the lock held. */
static void end_waiting(struct cowloop *cow)
{
	retry_kept(cow, 0);
	if (!bio_list_empty(&cow->commit_bios) || !bio_list_empty(&cow->held_back))
		queue_work(cow->io_wq, &cow->commit_work);
}

/* True if the mode was another one: then an event is to be raised. Any context. */
bool cow_change_mode(struct cowloop *cow, enum cow_mode mode)
{
	unsigned long flags;
	bool change;

	spin_lock_irqsave(&cow->lock, flags);
	change = mode > cow->mode;
	if (change) {
		WRITE_ONCE(cow->mode, mode);
		cow_set_map_state(cow, mode);
	}
	if (change && mode == COW_MODE_FAIL)
		end_waiting(cow);
	spin_unlock_irqrestore(&cow->lock, flags);

	return change;
}

/* Sleeps: raises an event. */
void cow_set_mode(struct cowloop *cow, enum cow_mode mode)
{
	if (cow_change_mode(cow, mode))
		dm_table_event(cow->ti->table);
}

void cow_do_event(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, event_work);

	dm_table_event(cow->ti->table);
}

void cow_metadata_failed(struct cowloop *cow, const char *what, int r)
{
	atomic_long_inc(&cow->errors);
	DMERR("%s: cow device %pg: %s failed: error %d; writes and flushes fail from now on",
	      cow_name(cow), cow->cow->bdev, what, r);
	cow_set_mode(cow, COW_MODE_FAIL);
}

/* For a @reason that is logged it is not known any more what is durable. Any context. */
void cow_device_failed(struct cowloop *cow, const char *reason, int r)
{
	cow_md_set_failed(cow->md);
	if (cow_change_mode(cow, COW_MODE_FAIL)) {
		DMERR("%s: cow device %pg: %s: error %d; writes and flushes fail from now on",
		      cow_name(cow), cow->cow->bdev, reason, r);
		queue_work(cow->io_wq, &cow->event_work);
	}
}

/* False if the cow device has gone. Any context, before the end of a flight that needs it. */
bool cow_still_there(struct cowloop *cow)
{
	if (likely(bdev_nr_sectors(cow->cow->bdev)))
		return true;
	cow_device_failed(cow, "has gone", -ENODEV);
	return false;
}

/* ---- Space ---- */

/* The units that there may be in the cowfile. */
u64 cow_space_limit(struct cowloop *cow)
{
	const u64 limit = READ_ONCE(cow->opt.limit);
	const sector_t end = bdev_nr_sectors(cow->cow->bdev);
	u64 fit = cow_md_geometry(cow->md)->nr_units;

	/* The last one may be short. Without any sectors it is not space that is lacking. */
	if (end && end < cow->data_sector + cow->units_end)
		fit = end > cow->data_sector ? cow_sector_to_unit(cow, end - cow->data_sector) : 0;

	return limit ? min(limit, fit) : fit;
}

/* Whether so few units are left that low water has been reached. */
static bool is_low(struct cowloop *cow)
{
	const u64 limit = cow_space_limit(cow), used = cow_md_used(cow->md);

	return (limit > used ? limit - used : 0) <= READ_ONCE(cow->opt.low_water);
}

void cow_update_low(struct cowloop *cow)
{
	unsigned long flags;
	bool low;

	/* A count that is too low would make an event too many. */
	if (cow_md_counting(cow->md) || READ_ONCE(cow->mode) > COW_MODE_OUT_OF_SPACE ||
	    is_low(cow) == READ_ONCE(cow->low))
		return;

	spin_lock_irqsave(&cow->lock, flags);
	low = is_low(cow);
	if (low && !cow->low)
		queue_work(cow->io_wq, &cow->event_work);
	WRITE_ONCE(cow->low, low);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/* From mode out_of_space, if that is the mode. */
static void leave_out_of_space(struct cowloop *cow)
{
	lockdep_assert_held(&cow->lock);
	if (cow->mode != COW_MODE_OUT_OF_SPACE)
		return;
	WRITE_ONCE(cow->mode, COW_MODE_RW);
	cow_set_map_state(cow, COW_MODE_RW);
	cow->space_since = get_jiffies_64();
	queue_work(cow->io_wq, &cow->event_work);
}

void cow_do_leave(struct work_struct *work)
{
	struct cowloop *cow = container_of(to_delayed_work(work), struct cowloop, leave_work);

	spin_lock_irq(&cow->lock);
	if (READ_ONCE(cow->found_space) && !cow->lacks)
		leave_out_of_space(cow);
	spin_unlock_irq(&cow->lock);
}

/* Room was made for whoever lacks it. Any context. */
void cow_space_made(struct cowloop *cow)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	cow->unsure_since = 0;
	cow->lacks = 0;
	cow_set_map_state(cow, cow->mode);
	leave_out_of_space(cow);
	retry_kept(cow, 0);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/*
 * I/O of the kind @lack, which takes space, has found some. Where writes
 * succeed and fail in turn the mode does not follow each of them: it is left a little later
 * then, if none has failed meanwhile. Any context.
 */
void cow_space_found(struct cowloop *cow, enum cow_lack lack)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	if (lack == COW_LACK_UNITS)
		cow->unsure_since = 0;
	cow->lacks &= ~GENMASK(lack, 0);
	cow_set_map_state(cow, cow->mode);
	if (cow->mode == COW_MODE_OUT_OF_SPACE && !cow->lacks) {
		if (time_after64(get_jiffies_64(), cow->space_since + COW_SPACE_DELAY)) {
			leave_out_of_space(cow);
		} else {
			WRITE_ONCE(cow->found_space, true);
			queue_delayed_work(cow->io_wq, &cow->leave_work, COW_SPACE_DELAY);
		}
	}
	spin_unlock_irqrestore(&cow->lock, flags);
}

/* Tell that there was no space, and what it was lacking for. Any context. */
void cow_out_of_space(struct cowloop *cow, enum cow_lack lack)
{
	unsigned long flags;

	atomic_long_inc(&cow->no_space);
	spin_lock_irqsave(&cow->lock, flags);
	WRITE_ONCE(cow->found_space, false);
	cow->lacks |= BIT(lack);
	if (cow->mode < COW_MODE_OUT_OF_SPACE) {
		WRITE_ONCE(cow->mode, COW_MODE_OUT_OF_SPACE);
		queue_work(cow->io_wq, &cow->event_work);
	}
	cow_set_map_state(cow, cow->mode);
	spin_unlock_irqrestore(&cow->lock, flags);
	if (__ratelimit(&cow->space_log))
		DMWARN("%s: cow device %pg: no space for a write: %llu of %llu units used; %s",
		       cow_name(cow), cow->cow->bdev, cow_md_used(cow->md), cow_space_limit(cow),
		       cow->opt.queue_if_no_space ? "such writes wait" : "such writes fail");
}

/*
 * There was an error of the cow device that may be for want of space. Have a commit tried
 * soon: its flush tells a device that has failed from one that is full. Any context.
 */
void cow_unsure_error(struct cowloop *cow)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	if (!cow->unsure_since)
		cow->unsure_since = get_jiffies_64();
	if (!cow->no_commit_timer)
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_SPACE_DELAY);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/* Whether to wait on for space that is @unsure to be what is lacking. With the lock held. */
bool cow_worth_waiting(struct cowloop *cow, bool unsure)
{
	lockdep_assert_held(&cow->lock);
	return cow->queueing && cow->mode <= COW_MODE_OUT_OF_SPACE &&
	       !(unsure && cow->unsure_since &&
		 time_after64(get_jiffies_64(), cow->unsure_since + COW_UNSURE_DELAY));
}

/*
 * Keep a write that found no space. It goes behind those that are kept already,
 * unless it was the first of them. False if it is not to be kept. Any context.
 */
bool cow_keep_bio(struct cowloop *cow, struct bio *bio)
{
	const bool reserved = cow_is_reserved_for(cow, bio);
	struct bio_list *list = reserved ? &cow->reserved_bios : &cow->no_space_bios;
	struct cow_io *io = cow_bio_to_io(bio);
	unsigned long flags;
	bool kept;

	if (likely(!cow->opt.queue_if_no_space))
		return false;

	spin_lock_irqsave(&cow->lock, flags);
	kept = cow_worth_waiting(cow, io->unsure);
	io->kept = kept;
	if (kept && io->retried) {
		io->retried = false;
		cow->retrying = false;
		bio_list_add_head(list, bio);
	} else if (kept) {
		bio_list_add(list, bio);
	}
	if (kept) {
		cow->nr_kept++;
		WRITE_ONCE(cow->writes_kept, true);
		if (reserved)
			WRITE_ONCE(cow->reserved_kept, true);
		/* Not later than was said before. */
		if (!delayed_work_pending(&cow->retry_work))
			retry_kept(cow, COW_SPACE_DELAY);
	}
	spin_unlock_irqrestore(&cow->lock, flags);

	return kept;
}

/* While writes are kept: whether some of them are before @bio. */
bool cow_has_to_queue(struct cowloop *cow, struct bio *bio)
{
	return !cow_bio_to_io(bio)->retried &&
	       (!cow_is_reserved_for(cow, bio) || READ_ONCE(cow->reserved_kept));
}

/* The first of the writes that were kept has ended: on with the next. Any context. */
void cow_end_retried(struct cowloop *cow)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	cow->retrying = false;
	WRITE_ONCE(cow->writes_kept, !kept_empty(cow));
	WRITE_ONCE(cow->reserved_kept, !bio_list_empty(&cow->reserved_bios));
	retry_kept(cow, 0);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/* All the writes that are kept, but for one that is being tried again; they are not any more. */
struct bio_list cow_take_kept(struct cowloop *cow)
{
	struct bio_list bios = cow->reserved_bios;

	lockdep_assert_held(&cow->lock);
	bio_list_merge(&bios, &cow->no_space_bios);
	bio_list_init(&cow->reserved_bios);
	bio_list_init(&cow->no_space_bios);
	cow->nr_kept = 0;
	WRITE_ONCE(cow->writes_kept, false);
	WRITE_ONCE(cow->reserved_kept, false);

	return bios;
}

/* From now on no write is kept; those that were end without success. May sleep. */
void cow_stop_queueing(struct cowloop *cow)
{
	struct bio_list bios;

	spin_lock_irq(&cow->lock);
	cow->queueing = false;
	spin_unlock_irq(&cow->lock);
	cancel_delayed_work_sync(&cow->retry_work);

	spin_lock_irq(&cow->lock);
	bios = cow_take_kept(cow);
	/* A commit that waits for space. */
	if (!bio_list_empty(&cow->commit_bios) || !bio_list_empty(&cow->held_back))
		queue_work(cow->io_wq, &cow->commit_work);
	spin_unlock_irq(&cow->lock);

	cow_end_bios(&bios, BLK_STS_NOSPC);
}

void cow_start_queueing(struct cowloop *cow)
{
	spin_lock_irq(&cow->lock);
	cow->no_commit_timer = false;
	cow->queueing = cow->opt.queue_if_no_space && cow->mode <= COW_MODE_OUT_OF_SPACE;
	spin_unlock_irq(&cow->lock);
}

/* Make a write what it was before it went to the cow device. */
void cow_restore_bio(struct bio *bio)
{
	struct cow_io *io = cow_bio_to_io(bio);

	bio->bi_iter = io->iter;
	bio->bi_bdev = io->bdev;
	bio->bi_flags = io->flags;
	bio->bi_status = BLK_STS_OK;
	cow_let_wait(bio);
	io->committed = false;
	io->for_units = false;
	/* It was chained to, if the cow device has split it. */
	atomic_set(&bio->__bi_remaining, 1);
}

/* Writes that wait for space, but for the one that is being tried. Process context. */
unsigned int cow_nr_waiting(struct cowloop *cow)
{
	unsigned int nr;

	spin_lock_irq(&cow->lock);
	nr = cow->nr_kept + bio_list_size(&cow->held_back);
	spin_unlock_irq(&cow->lock);

	return nr;
}

/* ---- Counting ---- */

/* Go on counting the units in use, as is to be done after a crash. True if there are more. */
static bool count_some(struct cowloop *cow)
{
	const bool more = cow_md_count_some(cow->md);

	if (!more)
		cow_check_low_water(cow);
	return more;
}

/*
 * Count as far as the bitmap can be read, or until a signal comes. What can't be read is
 * not in the limit: its own units fail, and no others.
 */
void cow_count_readable(struct cowloop *cow)
{
	while (cow_md_counting(cow->md) && !cow_md_failed(cow->md) && !signal_pending(current))
		count_some(cow);
}

/*
 * Count all units, for a clean head. Where that can't be done, the head stays DIRTY; -EINTR
 * after a signal.
 */
int cow_count_all(struct cowloop *cow)
{
	cow_count_readable(cow);
	if (cow_md_failed(cow->md))
		return -EIO;
	return cow_md_counting(cow->md) ? -EINTR : cow_md_count_unread(cow->md);
}

void cow_do_count(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, count_work);

	if (count_some(cow))
		queue_work(cow->deferred_wq, &cow->count_work);
}
