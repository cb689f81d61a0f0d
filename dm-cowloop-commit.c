// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: commits, flushes, and who waits for them.
 */

#include "dm-cowloop-internal.h"

#include <linux/delay.h>

#define DM_MSG_PREFIX "cowloop"

/*
 * Complete @bio, after a commit. Any context. The work is queued with the lock
 * held: once the bio can be completed, @cow may go away.
 */
void cow_commit_bio(struct cowloop *cow, struct bio *bio)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	bio_list_add(&cow->commit_bios, bio);
	queue_work(cow->io_wq, &cow->commit_work);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/*
 * Have @bio, a write that was accepted and not sent to the cow device yet, mapped
 * again after a commit. If there is none it fails. Any context.
 */
int cow_hold_back(struct cowloop *cow, struct bio *bio)
{
	unsigned long flags;

	cow_let_wait(bio);
	spin_lock_irqsave(&cow->lock, flags);
	bio_list_add(&cow->held_back, bio);
	queue_work(cow->io_wq, &cow->commit_work);
	spin_unlock_irqrestore(&cow->lock, flags);

	return DM_MAPIO_SUBMITTED;
}

/* Before somebody is told that there was no space for a commit: see the top. Any context. */
void cow_owe_commit(struct cowloop *cow)
{
	cow_md_owe_commit(cow->md);
	cow_update_map_state(cow);
}

/* It has been flushed, too. Any context. */
static void commit_done(struct cowloop *cow)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	cow_set_map_state(cow, cow->mode);
	if (!cow->writes_kept)
		cow->unsure_since = 0;
	spin_unlock_irqrestore(&cow->lock, flags);
}

int cow_commit(struct cowloop *cow)
{
	/* One that writes nothing says nothing of space. */
	const bool writes = cow_md_changed(cow->md);
	int r;

	if (READ_ONCE(cow->mode) == COW_MODE_FAIL)
		return -EIO;
	atomic_long_inc(&cow->commits);
	r = cow_md_commit(cow->md);
	if (!r)
		commit_done(cow);
	else if (r == -ENOSPC)
		cow_out_of_space(cow, COW_LACK_COMMIT);
	else
		cow_metadata_failed(cow, "commit", r);
	if (r == -ENOSPC && cow_md_unsure(cow->md))
		cow_unsure_error(cow);
	if (!r && writes && unlikely(READ_ONCE(cow->mode) == COW_MODE_OUT_OF_SPACE))
		cow_space_found(cow, COW_LACK_COMMIT);

	return r;
}

/*
 * There was no space for a commit. Have it done again; true if that is for the
 * bios that wait for it, and those that it holds back, too.
 */
static bool commit_later(struct cowloop *cow, struct bio_list *bios, struct bio_list *held_back)
{
	bool kept;

	spin_lock_irq(&cow->lock);
	kept = cow_worth_waiting(cow, cow_md_unsure(cow->md));
	if (kept) {
		bio_list_merge_head(&cow->commit_bios, bios);
		bio_list_merge_head(&cow->held_back, held_back);
	}
	if (!cow->no_commit_timer)
		mod_delayed_work(cow->io_wq, &cow->commit_timer,
				 kept ? COW_SPACE_DELAY : COW_COMMIT_DELAY);
	spin_unlock_irq(&cow->lock);

	return kept;
}

/* End flushes, and writes, after a commit that was tried for them, with errno @r. */
static void end_committed(struct cowloop *cow, struct bio_list *bios, int r)
{
	const bool unsure = r == -ENOSPC && cow_md_unsure(cow->md);
	struct bio *bio;

	while ((bio = bio_list_pop(bios))) {
		if (!(bio->bi_opf & REQ_PREFLUSH)) {
			cow_bio_to_io(bio)->committed = true;
			cow_bio_to_io(bio)->unsure = unsure;
		}
		cow_end_bio(bio, errno_to_blk_status(r));
	}
}

void cow_do_commit(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, commit_work);
	struct bio_list bios = cow_take_bios(cow, &cow->commit_bios);
	struct bio_list held_back = cow_take_bios(cow, &cow->held_back);
	int r = 0;

	if (!bio_list_empty(&bios) || !bio_list_empty(&held_back) || cow_md_changed(cow->md) ||
	    READ_ONCE(cow->unsure_since))
		r = cow_commit(cow);
	if (r == -ENOSPC && commit_later(cow, &bios, &held_back))
		return;

	end_committed(cow, &bios, r);
	if (!r && !bio_list_empty(&held_back))
		cow_defer_bios(cow, &held_back);
	else
		end_committed(cow, &held_back, r);
}

/*
 * What has changed is committed anyway after a while. The timer is left alone by
 * commits that come before, which are too many for that.
 */
void cow_do_commit_timer(struct work_struct *work)
{
	struct cowloop *cow = container_of(to_delayed_work(work), struct cowloop, commit_timer);

	queue_work(cow->io_wq, &cow->commit_work);
}

/* No commit is under way any more, nor begun by the timer. Sleeps. */
void cow_cancel_commits(struct cowloop *cow)
{
	/* A commit that is under way may find no space. */
	spin_lock_irq(&cow->lock);
	cow->no_commit_timer = true;
	spin_unlock_irq(&cow->lock);
	cancel_delayed_work_sync(&cow->commit_timer);
	cancel_work_sync(&cow->commit_work);
}

/*
 * Where nothing is written any more: 0 if all that was is durable, or -EIO. A table that
 * could be written before may have left bits for want of space, or met an error. Any context.
 */
int cow_all_durable(struct cowloop *cow)
{
	return cow_md_changed(cow->md) || cow_md_failed(cow->md) ? -EIO : 0;
}

/*
 * Log what was written and is not durable, if there is any: the cow device has been
 * closed, or the device suspended, so that it may be. Nothing is in flight. Sleeps, does I/O.
 */
void cow_log_unsaved(struct cowloop *cow, bool closed)
{
	const bool failed = cow_md_failed(cow->md);
	const char *was = closed ? "closed" : "suspended";
	const char *why = failed ? "after an error" : "without space for a commit";
	const char *if_so = closed ? "" : " if the device is removed now";
	const char *and = failed ? ", and maybe rewrites since the last flush" : "";
	struct cow_unsaved units;
	int r;

	if (!cow_all_durable(cow))
		return;
	r = cow_md_unsaved(cow->md, &units);
	if (r)
		DMERR("%s: cow device %pg: %s %s, unreadable bitmap: all unflushed is lost%s",
		      cow_name(cow), cow->cow->bdev, was, why, if_so);
	else if (cow_md_geometry(cow->md)->format == 1)
		DMERR("%s: cow device %pg: %s %s: %llu written units are for 'repair' to find%s%s",
		      cow_name(cow), cow->cow->bdev, was, why, units.set, if_so, and);
	else if (failed || units.set || units.cleared)
		DMERR("%s: cow device %pg: %s %s: lost%s: new data of %llu units, %llu discards%s",
		      cow_name(cow), cow->cow->bdev, was, why, if_so, units.set,
		      units.cleared, and);
}

/* ---- Flushes ---- */

int cow_map_flush(struct cowloop *cow, struct bio *bio)
{
	if (READ_ONCE(cow->mode) == COW_MODE_FAIL)
		return cow_end_bio(bio, BLK_STS_IOERR);
	if (READ_ONCE(cow->opt.read_only))
		return cow_end_bio(bio, errno_to_blk_status(cow_all_durable(cow)));
	if (cow_md_changed(cow->md)) {
		if (!cow_begin_flight(cow, bio, COW_FLIGHT_OTHERS, COW_MODE_FAIL))
			return cow_end_bio(bio, errno_to_blk_status(cow_all_durable(cow)));
		cow_commit_bio(cow, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (!cow_begin_flight(cow, bio, COW_FLIGHT_FLUSHES, COW_MODE_FAIL))
		return cow_end_bio(bio, errno_to_blk_status(cow_all_durable(cow)));
	bio_set_dev(bio, cow->cow->bdev);

	return DM_MAPIO_REMAPPED;
}

/* The end of a flush that went down as it was. */
int cow_end_flush(struct cowloop *cow, blk_status_t *error)
{
	if (cow_is_error(*error)) {
		/* What was written may not be durable, and the next flush may not tell. */
		cow_device_failed(cow, "flush failed", blk_status_to_errno(*error));
		atomic_long_inc(&cow->errors);
	} else if (!*error && cow_md_failed(cow->md)) {
		/* The one that failed may have been told of what this one has not. */
		*error = BLK_STS_IOERR;
		if (cow_change_mode(cow, COW_MODE_FAIL))
			queue_work(cow->io_wq, &cow->event_work);
	}
	this_cpu_inc(cow->stats->ended[COW_FLIGHT_FLUSHES]);

	return DM_ENDIO_DONE;
}

/* ---- Loading the bitmap ---- */

/* A commit which, if there is no space for it, is done again by the timer. */
int cow_commit_soon(struct cowloop *cow)
{
	const int r = cow_commit(cow);

	if (r == -ENOSPC)
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_COMMIT_DELAY);
	return r;
}

/* There is no memory for a part of the bitmap: have some become free. */
int cow_commit_for_memory(struct cowloop *cow)
{
	if (cow_md_failed(cow->md))
		return -ENOMEM;
	/* In this order: what ends meanwhile has bits to be committed. */
	fsleep(COW_MEMORY_DELAY);

	return cow_md_changed(cow->md) ? cow_commit_soon(cow) : 0;
}

/* Bring the bitmap's part for @unit into memory, however little there is. */
int cow_load(struct cowloop *cow, u64 unit, bool for_write)
{
	int r;

	while ((r = cow_md_load(cow->md, unit, for_write)) > 0) {
		r = cow_commit_for_memory(cow);
		/* A read needs memory only, of which there will be some. */
		if (r && (r != -ENOSPC || for_write))
			break;
	}
	return r;
}
