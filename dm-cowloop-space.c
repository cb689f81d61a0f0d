// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: modes, limits, and writes that wait for space.
 *
 * A write that finds no space ends with ENOSPC: one beyond the limit, one that the cow device
 * has no room for, one whose part of the bitmap it has no room for. All the rest goes on,
 * and nothing is decided for those that follow: each is tried. Mode out_of_space only tells
 * of it, until a first write succeeds that was begun in this mode, or room was made by a
 * discard or a message; where none but rewrites have lacked space, until a rewrite succeeds;
 * and where none but commits have, until a commit does. With queue_if_no_space such writes
 * are kept, in the order in which they came, and those that come later queue behind them;
 * the first is tried again every second, and when it succeeds then the next. Those for which
 * units are reserved are before all others, and queue behind none of these.
 *
 * A cow device that has gone has the size 0. That is an error, not a lack of space, and ends
 * in mode fail, in which nothing is kept: all that was ends with an error. A loop device may
 * not tell one from the other (cow_hides_no_space()). Its errors are taken for want of
 * space, but a commit is tried soon, whose flush fails if it is the device; and from
 * COW_UNSURE_DELAY after the first in a row of such errors on, no write is kept for one.
 */

#include "dm-cowloop-internal.h"

#include <linux/ratelimit.h>
#include <linux/sched/signal.h>

/* How long writes are kept for errors in a row of which none need be for want of space. */
#define COW_UNSURE_DELAY	(60 * HZ)

struct cow_space {
	struct cowloop *cow;
	void (*try_again)(struct cowloop *cow, struct bio *bio);
	void (*waiting_is_over)(struct cowloop *cow);

	spinlock_t lock;		/* all that follows, and this room's in cowloop */
	u8 lacks;			/* BIT(enum cow_lack); mode out_of_space */
	bool low;			/* low water has been reached, and told */
	bool found_space;		/* too soon after space_since, and none was short of it */
	u64 space_since;		/* when out_of_space was left, in jiffies */
	u64 unsure_since;		/* when errors began that may be for want of it; or 0 */

	bool queueing;			/* keep writes that find no space */
	bool retrying;			/* the first of those that were kept is under way */
	bool reserved_kept;		/* some of reserved, or that one is of them */
	unsigned int nr_kept;
	struct bio_list kept;
	struct bio_list reserved;	/* likewise, with units reserved for them: first */

	struct ratelimit_state log;
	struct work_struct event_work;
	struct work_struct count_work;
	struct delayed_work retry_work;
	struct delayed_work leave_work;
};

/* ---- Modes ---- */

/*
 * Bios that map does not decide on alone: all but reads and writes; in general
 * those that have to do with durability, or are polled and the rest of another
 * one; and all writes, where they are refused, held back, may have to be kept, or to be
 * sent in pieces, or where it matters whether a rewrite finds space. With the lock held.
 */
static void set_map_state(struct cowloop *cow)
{
	blk_opf_t opf = REQ_PREFLUSH | REQ_FUA | REQ_DRV | (REQ_OP_MASK & ~REQ_OP_WRITE);
	const bool owes = cow_md_owes_commit(cow->md);

	if (cow->mode > COW_MODE_OUT_OF_SPACE || cow->opt.queue_if_no_space || owes ||
	    cow->space->lacks & BIT(COW_LACK_REWRITE))
		opf |= REQ_OP_WRITE;
	WRITE_ONCE(cow->owes_commit, owes);
	WRITE_ONCE(cow->state.whole_opf, opf);
	WRITE_ONCE(cow->state.opf, opf | (cow->ways.in_pieces ? REQ_OP_WRITE : 0));
	WRITE_ONCE(cow->state.bdev, cow->mode == COW_MODE_CLOSED ? NULL : cow->cow_bdev);
}

/* With the lock held. */
static void enter_mode(struct cowloop *cow, enum cow_mode mode)
{
	WRITE_ONCE(cow->mode, mode);
	set_map_state(cow);
}

static bool kept_empty(struct cow_space *s)
{
	return bio_list_empty(&s->kept) && bio_list_empty(&s->reserved);
}

/* Have the first of the writes that are kept tried again. */
static void retry_kept(struct cow_space *s, unsigned long delay)
{
	lockdep_assert_held(&s->lock);
	if (!kept_empty(s) && !s->retrying)
		mod_delayed_work(s->cow->queues.deferred, &s->retry_work, delay);
}

void cow_update_map_state(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	/* The lock is for the last one to look to be the last one to say so. */
	spin_lock_irqsave(&s->lock, flags);
	set_map_state(cow);
	spin_unlock_irqrestore(&s->lock, flags);
}

bool cow_change_mode(struct cowloop *cow, enum cow_mode mode)
{
	struct cow_space *s = cow->space;
	unsigned long flags;
	bool change;

	spin_lock_irqsave(&s->lock, flags);
	change = mode > cow->mode;
	if (change)
		enter_mode(cow, mode);
	if (change && mode == COW_MODE_FAIL)
		retry_kept(s, 0);
	spin_unlock_irqrestore(&s->lock, flags);

	/* There is no sense in waiting any more. */
	if (change && mode == COW_MODE_FAIL)
		s->waiting_is_over(cow);

	return change;
}

void cow_set_mode(struct cowloop *cow, enum cow_mode mode)
{
	if (cow_change_mode(cow, mode))
		dm_table_event(cow->ti->table);
}

static void do_event(struct work_struct *work)
{
	struct cow_space *s = container_of(work, struct cow_space, event_work);

	dm_table_event(s->cow->ti->table);
}

void cow_raise_event(struct cowloop *cow)
{
	queue_work(cow->queues.io, &cow->space->event_work);
}

void cow_flush_events(struct cowloop *cow)
{
	flush_work(&cow->space->event_work);
}

void cow_metadata_failed(struct cowloop *cow, const char *what, int r)
{
	this_cpu_inc(cow->stats->errors);
	DMERR("%s: cow device %pg: %s failed: error %d; writes and flushes fail from now on",
	      cow_name(cow), cow->cow_bdev, what, r);
	cow_set_mode(cow, COW_MODE_FAIL);
}

void cow_device_failed(struct cowloop *cow, const char *reason, int r)
{
	cow_md_set_failed(cow->md);
	if (cow_change_mode(cow, COW_MODE_FAIL)) {
		DMERR("%s: cow device %pg: %s: error %d; writes and flushes fail from now on",
		      cow_name(cow), cow->cow_bdev, reason, r);
		cow_raise_event(cow);
	}
}

bool cow_still_there(struct cowloop *cow)
{
	if (likely(bdev_nr_sectors(cow->cow_bdev)))
		return true;
	cow_device_failed(cow, "has gone", -ENODEV);
	return false;
}

/* ---- Limits ---- */

u64 cow_space_limit(struct cowloop *cow)
{
	const struct cow_layout *layout = &cow->layout;
	const u64 limit = READ_ONCE(cow->opt.limit);
	const sector_t end = bdev_nr_sectors(cow->cow_bdev);
	u64 fit = cow_md_geometry(cow->md)->nr_units;

	/* The last one may be short. Without any sectors it is not space that is lacking. */
	if (end && end < layout->data_sector + layout->units_end)
		fit = end > layout->data_sector ?
		      cow_sector_to_unit(cow, end - layout->data_sector) : 0;

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
	struct cow_space *s = cow->space;
	unsigned long flags;
	bool low;

	/* A count that is too low would make an event too many. */
	if (cow_md_counting(cow->md) || READ_ONCE(cow->mode) > COW_MODE_OUT_OF_SPACE ||
	    is_low(cow) == READ_ONCE(s->low))
		return;

	spin_lock_irqsave(&s->lock, flags);
	low = is_low(cow);
	if (low && !s->low)
		cow_raise_event(cow);
	WRITE_ONCE(s->low, low);
	spin_unlock_irqrestore(&s->lock, flags);
}

/* Have a new limit, or low water, taken into account. */
static void update_limits(struct cowloop *cow)
{
	cow_md_set_limit(cow->md, cow->opt.limit, cow->opt.reserve);
	if (cow->mode <= COW_MODE_OUT_OF_SPACE)
		cow_check_low_water(cow);
}

void cow_set_limit(struct cowloop *cow, u64 units)
{
	WRITE_ONCE(cow->opt.limit, units);
	update_limits(cow);
	if (cow->mode <= COW_MODE_OUT_OF_SPACE && cow_space_limit(cow) > cow_md_used(cow->md))
		cow_space_made(cow);
	cow_flush_events(cow);
}

void cow_set_low_water(struct cowloop *cow, u64 units)
{
	struct cow_space *s = cow->space;

	WRITE_ONCE(cow->opt.low_water, units);
	/* Low water is told again where it is set. */
	spin_lock_irq(&s->lock);
	WRITE_ONCE(s->low, false);
	spin_unlock_irq(&s->lock);
	update_limits(cow);
	cow_flush_events(cow);
}

/* ---- Space ---- */

/* From mode out_of_space, if that is the mode. */
static void leave_out_of_space(struct cow_space *s)
{
	lockdep_assert_held(&s->lock);
	if (s->cow->mode != COW_MODE_OUT_OF_SPACE)
		return;
	enter_mode(s->cow, COW_MODE_RW);
	s->space_since = get_jiffies_64();
	cow_raise_event(s->cow);
}

static void do_leave(struct work_struct *work)
{
	struct cow_space *s = container_of(to_delayed_work(work), struct cow_space, leave_work);

	spin_lock_irq(&s->lock);
	if (s->found_space && !s->lacks)
		leave_out_of_space(s);
	spin_unlock_irq(&s->lock);
}

void cow_space_made(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	spin_lock_irqsave(&s->lock, flags);
	s->unsure_since = 0;
	s->lacks = 0;
	set_map_state(cow);
	leave_out_of_space(s);
	retry_kept(s, 0);
	spin_unlock_irqrestore(&s->lock, flags);
}

void cow_space_found(struct cowloop *cow, enum cow_lack lack)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	spin_lock_irqsave(&s->lock, flags);
	if (lack == COW_LACK_UNITS)
		s->unsure_since = 0;
	s->lacks &= ~GENMASK(lack, 0);
	set_map_state(cow);
	if (cow->mode == COW_MODE_OUT_OF_SPACE && !s->lacks) {
		if (time_after64(get_jiffies_64(), s->space_since + COW_SPACE_DELAY)) {
			leave_out_of_space(s);
		} else {
			WRITE_ONCE(s->found_space, true);
			queue_delayed_work(cow->queues.io, &s->leave_work, COW_SPACE_DELAY);
		}
	}
	spin_unlock_irqrestore(&s->lock, flags);
}

void cow_out_of_space(struct cowloop *cow, enum cow_lack lack)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	this_cpu_inc(cow->stats->no_space);
	spin_lock_irqsave(&s->lock, flags);
	WRITE_ONCE(s->found_space, false);
	s->lacks |= BIT(lack);
	if (cow->mode < COW_MODE_OUT_OF_SPACE) {
		WRITE_ONCE(cow->mode, COW_MODE_OUT_OF_SPACE);
		cow_raise_event(cow);
	}
	set_map_state(cow);
	spin_unlock_irqrestore(&s->lock, flags);
	if (__ratelimit(&s->log))
		DMWARN("%s: cow device %pg: no space for a write: %llu of %llu units used; %s",
		       cow_name(cow), cow->cow_bdev, cow_md_used(cow->md), cow_space_limit(cow),
		       cow->opt.queue_if_no_space ? "such writes wait" : "such writes fail");
}

void cow_note_unsure(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	spin_lock_irqsave(&s->lock, flags);
	if (!s->unsure_since)
		s->unsure_since = get_jiffies_64();
	spin_unlock_irqrestore(&s->lock, flags);
}

bool cow_is_unsure(struct cowloop *cow)
{
	return READ_ONCE(cow->space->unsure_since);
}

void cow_note_commit(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	spin_lock_irqsave(&s->lock, flags);
	set_map_state(cow);
	if (!cow->writes_kept)
		s->unsure_since = 0;
	spin_unlock_irqrestore(&s->lock, flags);
}

static bool worth_waiting(struct cow_space *s, bool unsure)
{
	lockdep_assert_held(&s->lock);
	return s->queueing && s->cow->mode <= COW_MODE_OUT_OF_SPACE &&
	       !(unsure && s->unsure_since &&
		 time_after64(get_jiffies_64(), s->unsure_since + COW_UNSURE_DELAY));
}

bool cow_worth_waiting(struct cowloop *cow, bool unsure)
{
	struct cow_space *s = cow->space;
	unsigned long flags;
	bool worth;

	spin_lock_irqsave(&s->lock, flags);
	worth = worth_waiting(s, unsure);
	spin_unlock_irqrestore(&s->lock, flags);

	return worth;
}

/* ---- Writes that are kept ---- */

void cow_note_origin(struct bio *bio)
{
	struct cow_origin *origin = &cow_bio_to_io(bio)->origin;

	origin->iter = bio->bi_iter;
	origin->flags = bio->bi_flags;
}

/*
 * Make a write what it was before it went to the cow device. This relies on how bios are
 * made: a bio that was chained to, since a driver below has split it, counts its parts in
 * __bi_remaining, and says so in bi_flags. tests/queue.t finds it when that changes.
 */
static void restore_bio(struct cowloop *cow, struct bio *bio)
{
	struct cow_io *io = cow_bio_to_io(bio);

	bio->bi_iter = io->origin.iter;
	bio->bi_bdev = dm_disk(dm_table_get_md(cow->ti->table))->part0;
	bio->bi_flags = io->origin.flags;
	bio->bi_status = BLK_STS_OK;
	cow_let_wait(bio);
	io->committed = false;
	io->for_units = false;
	atomic_set(&bio->__bi_remaining, 1);
}

bool cow_keep_write(struct cowloop *cow, struct bio *bio)
{
	const bool reserved = cow_is_reserved_for(cow, bio);
	struct cow_io *io = cow_bio_to_io(bio);
	struct cow_space *s = cow->space;
	struct bio_list *list = reserved ? &s->reserved : &s->kept;
	unsigned long flags;
	bool kept;

	restore_bio(cow, bio);
	spin_lock_irqsave(&s->lock, flags);
	kept = worth_waiting(s, io->unsure);
	io->kept = kept;
	if (kept && io->retried) {
		io->retried = false;
		s->retrying = false;
		bio_list_add_head(list, bio);
	} else if (kept) {
		bio_list_add(list, bio);
	}
	if (kept) {
		s->nr_kept++;
		WRITE_ONCE(cow->writes_kept, true);
		if (reserved)
			WRITE_ONCE(s->reserved_kept, true);
		/* Not later than was said before. */
		if (!delayed_work_pending(&s->retry_work))
			retry_kept(s, COW_SPACE_DELAY);
	}
	spin_unlock_irqrestore(&s->lock, flags);

	return kept;
}

bool cow_has_to_queue(struct cowloop *cow, struct bio *bio)
{
	return !cow_bio_to_io(bio)->retried &&
	       (!cow_is_reserved_for(cow, bio) || READ_ONCE(cow->space->reserved_kept));
}

void cow_end_retried(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	unsigned long flags;

	spin_lock_irqsave(&s->lock, flags);
	s->retrying = false;
	WRITE_ONCE(cow->writes_kept, !kept_empty(s));
	WRITE_ONCE(s->reserved_kept, !bio_list_empty(&s->reserved));
	retry_kept(s, 0);
	spin_unlock_irqrestore(&s->lock, flags);
}

unsigned int cow_nr_kept(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	unsigned int nr;

	spin_lock_irq(&s->lock);
	nr = s->nr_kept;
	spin_unlock_irq(&s->lock);

	return nr;
}

/* All the writes that are kept, but for one that is being tried again; they are not any more. */
static struct bio_list take_kept(struct cow_space *s)
{
	struct bio_list bios = s->reserved;

	lockdep_assert_held(&s->lock);
	bio_list_merge(&bios, &s->kept);
	bio_list_init(&s->reserved);
	bio_list_init(&s->kept);
	s->nr_kept = 0;
	WRITE_ONCE(s->cow->writes_kept, false);
	WRITE_ONCE(s->reserved_kept, false);

	return bios;
}

/* Take the first of the writes that are kept, to be tried again; or NULL. */
static struct bio *take_first(struct cow_space *s)
{
	struct cow_io *io;
	struct bio *bio;

	lockdep_assert_held(&s->lock);
	bio = s->retrying ? NULL : bio_list_pop(&s->reserved) ?: bio_list_pop(&s->kept);
	if (bio) {
		io = cow_bio_to_io(bio);
		io->kept = false;
		io->unsure = false;
		io->retried = true;
		io->seeks_space = !cow_is_reserved_for(s->cow, bio);
		s->retrying = true;
		s->nr_kept--;
	}
	return bio;
}

/* Try the first of the writes again that found no space. */
static void do_retry(struct work_struct *work)
{
	struct cow_space *s = container_of(to_delayed_work(work), struct cow_space, retry_work);
	struct bio_list failed = BIO_EMPTY_LIST;
	struct bio *bio;

	spin_lock_irq(&s->lock);
	if (s->cow->mode == COW_MODE_FAIL)
		failed = take_kept(s);
	bio = take_first(s);
	spin_unlock_irq(&s->lock);

	cow_end_bios(&failed, BLK_STS_IOERR);
	if (bio)
		s->try_again(s->cow, bio);
}

void cow_start_queueing(struct cowloop *cow)
{
	struct cow_space *s = cow->space;

	spin_lock_irq(&s->lock);
	s->queueing = cow->opt.queue_if_no_space && cow->mode <= COW_MODE_OUT_OF_SPACE;
	spin_unlock_irq(&s->lock);
}

void cow_stop_queueing(struct cowloop *cow)
{
	struct cow_space *s = cow->space;
	struct bio_list bios;

	spin_lock_irq(&s->lock);
	s->queueing = false;
	spin_unlock_irq(&s->lock);
	cancel_delayed_work_sync(&s->retry_work);

	spin_lock_irq(&s->lock);
	bios = take_kept(s);
	spin_unlock_irq(&s->lock);
	s->waiting_is_over(cow);

	cow_end_bios(&bios, BLK_STS_NOSPC);
}

/* ---- Counting ---- */

/* Go on counting. True if there is more to count. */
static bool count_some(struct cowloop *cow)
{
	const bool more = cow_md_count_some(cow->md);

	if (!more)
		cow_check_low_water(cow);
	return more;
}

void cow_count_readable(struct cowloop *cow)
{
	while (cow_md_counting(cow->md) && !cow_md_failed(cow->md) && !signal_pending(current))
		count_some(cow);
}

int cow_count_all(struct cowloop *cow)
{
	cow_count_readable(cow);
	if (cow_md_failed(cow->md))
		return -EIO;
	return cow_md_counting(cow->md) ? -EINTR : cow_md_count_unread(cow->md);
}

static void do_count(struct work_struct *work)
{
	struct cow_space *s = container_of(work, struct cow_space, count_work);

	if (count_some(s->cow))
		queue_work(s->cow->queues.deferred, &s->count_work);
}

void cow_cancel_counting(struct cowloop *cow)
{
	cancel_work_sync(&cow->space->count_work);
}

/* ---- Making and destroying ---- */

int cow_space_create(struct cowloop *cow, void (*try_again)(struct cowloop *, struct bio *),
		     void (*waiting_is_over)(struct cowloop *))
{
	struct cow_space *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return -ENOMEM;
	cow->space = s;
	s->cow = cow;
	s->try_again = try_again;
	s->waiting_is_over = waiting_is_over;
	spin_lock_init(&s->lock);
	bio_list_init(&s->kept);
	bio_list_init(&s->reserved);
	ratelimit_state_init(&s->log, HZ, 1);
	ratelimit_set_flags(&s->log, RATELIMIT_MSG_ON_RELEASE);
	INIT_WORK(&s->event_work, do_event);
	INIT_WORK(&s->count_work, do_count);
	INIT_DELAYED_WORK(&s->retry_work, do_retry);
	INIT_DELAYED_WORK(&s->leave_work, do_leave);

	return 0;
}

void cow_space_destroy(struct cowloop *cow)
{
	kfree(cow->space);
}

void cow_space_resume(struct cowloop *cow)
{
	struct cow_space *s = cow->space;

	/* The live table until now may have come to owe a commit. */
	cow_update_map_state(cow);
	cow_start_queueing(cow);
	if (READ_ONCE(s->found_space))
		queue_delayed_work(cow->queues.io, &s->leave_work, COW_SPACE_DELAY);
	cow_md_set_limit(cow->md, READ_ONCE(cow->opt.limit), cow->opt.reserve);
	/* In the background. */
	if (cow_md_counting(cow->md) && READ_ONCE(cow->mode) != COW_MODE_CLOSED)
		queue_work(cow->queues.deferred, &s->count_work);
	cow_check_low_water(cow);
}

void cow_space_quiesce(struct cowloop *cow)
{
	struct cow_space *s = cow->space;

	cancel_delayed_work_sync(&s->leave_work);
	cancel_delayed_work_sync(&s->retry_work);
	flush_work(&s->event_work);
}
