// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: commits, flushes, and bios that wait for them.
 *
 * If no bit has changed since the last commit a flush goes down as it is. Otherwise it waits
 * for a commit; one commit serves all that wait. A write with FUA is completed by a commit
 * if bits have to be committed for it. A timer commits what nobody has asked for.
 *
 * A flush whose commit finds no space fails. Device-mapper drops this error where the flush
 * is a part of a write, and sends the write all the same, which then looks like any other.
 * Hence a commit is owed from before somebody is told that there was no space for one until
 * a commit has succeeded, and:
 *
 *	While a commit is owed, no write is sent to the cow device that map is given.
 *
 * Each is held back, a worker tries the commit again, and then the write goes on or fails,
 * too. That a commit is owed is kept with the cowfile, for a table that is loaded meanwhile.
 * A commit that only the timer has asked for, and that finds no space, is not owed: nobody
 * takes anything for durable, and rewrites go on. All other errors of a flush or a commit
 * end in mode fail, before anybody is told.
 */

#include "dm-cowloop-internal.h"

#include <linux/delay.h>

/* How long to wait, in microseconds, for what is in flight when memory is short. */
#define COW_MEMORY_DELAY	1000

struct cow_commits {
	struct cowloop *cow;

	spinlock_t lock;		/* the lists, and no_timer */
	struct bio_list bios;		/* flushes and writes that end with a commit */
	struct bio_list held_back;	/* writes, by a commit that is owed */
	bool no_timer;			/* the timer is not to be armed any more */
	struct work_struct work;
	struct delayed_work timer;
};

/*
 * The work is queued with the lock held: once the bio can be completed, @cow may go away.
 */
static void add_waiting(struct cowloop *cow, struct bio_list *list, struct bio *bio)
{
	struct cow_commits *c = cow->commits;
	unsigned long flags;

	spin_lock_irqsave(&c->lock, flags);
	bio_list_add(list, bio);
	queue_work(cow->queues.io, &c->work);
	spin_unlock_irqrestore(&c->lock, flags);
}

void cow_commit_bio(struct cowloop *cow, struct bio *bio)
{
	add_waiting(cow, &cow->commits->bios, bio);
}

int cow_hold_back(struct cowloop *cow, struct bio *bio)
{
	cow_let_wait(bio);
	add_waiting(cow, &cow->commits->held_back, bio);

	return DM_MAPIO_SUBMITTED;
}

unsigned int cow_nr_held_back(struct cowloop *cow)
{
	struct cow_commits *c = cow->commits;
	unsigned int nr;

	spin_lock_irq(&c->lock);
	nr = bio_list_size(&c->held_back);
	spin_unlock_irq(&c->lock);

	return nr;
}

void cow_end_waiting_commits(struct cowloop *cow)
{
	struct cow_commits *c = cow->commits;
	unsigned long flags;

	spin_lock_irqsave(&c->lock, flags);
	if (!bio_list_empty(&c->bios) || !bio_list_empty(&c->held_back))
		queue_work(cow->queues.io, &c->work);
	spin_unlock_irqrestore(&c->lock, flags);
}

void cow_owe_commit(struct cowloop *cow)
{
	cow_md_owe_commit(cow->md);
	cow_update_map_state(cow);
}

void cow_commit_later(struct cowloop *cow)
{
	queue_delayed_work(cow->queues.io, &cow->commits->timer, COW_COMMIT_DELAY);
}

void cow_unsure_error(struct cowloop *cow)
{
	struct cow_commits *c = cow->commits;
	unsigned long flags;

	cow_note_unsure(cow);
	spin_lock_irqsave(&c->lock, flags);
	if (!c->no_timer)
		queue_delayed_work(cow->queues.io, &c->timer, COW_SPACE_DELAY);
	spin_unlock_irqrestore(&c->lock, flags);
}

int cow_commit(struct cowloop *cow)
{
	/* One that writes nothing says nothing of space. */
	const bool writes = cow_md_changed(cow->md);
	int r;

	if (READ_ONCE(cow->mode) == COW_MODE_FAIL)
		return -EIO;
	this_cpu_inc(cow->stats->commits);
	r = cow_md_commit(cow->md);
	if (!r)
		cow_note_commit(cow);
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

int cow_commit_soon(struct cowloop *cow)
{
	const int r = cow_commit(cow);

	if (r == -ENOSPC)
		cow_commit_later(cow);
	return r;
}

/*
 * There was no space for a commit. Have it done again; true if that is for the
 * bios that wait for it, and those that it holds back, too.
 */
static bool commit_again(struct cow_commits *c, struct bio_list *bios, struct bio_list *held_back)
{
	struct cowloop *cow = c->cow;
	bool kept;

	/* cow_end_waiting_commits() comes after this, or was there before. */
	spin_lock_irq(&c->lock);
	kept = cow_worth_waiting(cow, cow_md_unsure(cow->md));
	if (kept) {
		bio_list_merge_head(&c->bios, bios);
		bio_list_merge_head(&c->held_back, held_back);
	}
	if (!c->no_timer)
		mod_delayed_work(cow->queues.io, &c->timer,
				 kept ? COW_SPACE_DELAY : COW_COMMIT_DELAY);
	spin_unlock_irq(&c->lock);

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

static void do_commit(struct work_struct *work)
{
	struct cow_commits *c = container_of(work, struct cow_commits, work);
	struct bio_list bios = cow_take_bios(&c->lock, &c->bios);
	struct bio_list held_back = cow_take_bios(&c->lock, &c->held_back);
	struct cowloop *cow = c->cow;
	int r = 0;

	if (!bio_list_empty(&bios) || !bio_list_empty(&held_back) || cow_md_changed(cow->md) ||
	    cow_is_unsure(cow))
		r = cow_commit(cow);
	if (r == -ENOSPC && commit_again(c, &bios, &held_back))
		return;

	end_committed(cow, &bios, r);
	if (!r && !bio_list_empty(&held_back))
		cow_defer_bios(cow, &held_back);
	else
		end_committed(cow, &held_back, r);
}

/*
 * Changed bits are committed after a while, whoever has asked for that. The timer is left
 * alone by commits that come before, which are too many for that.
 */
static void do_timer(struct work_struct *work)
{
	struct cow_commits *c = container_of(to_delayed_work(work), struct cow_commits, timer);

	queue_work(c->cow->queues.io, &c->work);
}

int cow_all_durable(struct cowloop *cow)
{
	return cow_md_changed(cow->md) || cow_md_failed(cow->md) ? -EIO : 0;
}

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
		      cow_name(cow), cow->cow_bdev, was, why, if_so);
	else if (cow_md_geometry(cow->md)->format == 1)
		DMERR("%s: cow device %pg: %s %s: %llu written units are for 'repair' to find%s%s",
		      cow_name(cow), cow->cow_bdev, was, why, units.set, if_so, and);
	else if (failed || units.set || units.cleared)
		DMERR("%s: cow device %pg: %s %s: lost%s: new data of %llu units, %llu discards%s",
		      cow_name(cow), cow->cow_bdev, was, why, if_so, units.set,
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
	bio_set_dev(bio, cow->cow_bdev);

	return DM_MAPIO_REMAPPED;
}

/* Of a flush that went down as it was. */
int cow_end_flush(struct cowloop *cow, blk_status_t *error)
{
	if (cow_is_error(*error)) {
		/* Data may not be durable that was written, and the next flush may not tell. */
		cow_device_failed(cow, "flush failed", blk_status_to_errno(*error));
		this_cpu_inc(cow->stats->errors);
	} else if (!*error && cow_md_failed(cow->md)) {
		/* The one that failed may have been told of what this one has not. */
		*error = BLK_STS_IOERR;
		if (cow_change_mode(cow, COW_MODE_FAIL))
			cow_raise_event(cow);
	}
	this_cpu_inc(cow->stats->ended[COW_FLIGHT_FLUSHES]);

	return DM_ENDIO_DONE;
}

/* ---- Loading the bitmap ---- */

int cow_commit_for_memory(struct cowloop *cow)
{
	if (cow_md_failed(cow->md))
		return -ENOMEM;
	/* In this order: what ends meanwhile has bits to be committed. */
	fsleep(COW_MEMORY_DELAY);

	return cow_md_changed(cow->md) ? cow_commit_soon(cow) : 0;
}

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

/* ---- Making and destroying ---- */

int cow_commits_create(struct cowloop *cow)
{
	struct cow_commits *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return -ENOMEM;
	cow->commits = c;
	c->cow = cow;
	spin_lock_init(&c->lock);
	bio_list_init(&c->bios);
	bio_list_init(&c->held_back);
	INIT_WORK(&c->work, do_commit);
	INIT_DELAYED_WORK(&c->timer, do_timer);

	return 0;
}

void cow_commits_destroy(struct cowloop *cow)
{
	kfree(cow->commits);
}

void cow_start_commits(struct cowloop *cow)
{
	struct cow_commits *c = cow->commits;

	spin_lock_irq(&c->lock);
	c->no_timer = false;
	spin_unlock_irq(&c->lock);
}

void cow_cancel_commits(struct cowloop *cow)
{
	struct cow_commits *c = cow->commits;

	/* A commit that is under way may find no space. */
	spin_lock_irq(&c->lock);
	c->no_timer = true;
	spin_unlock_irq(&c->lock);
	cancel_delayed_work_sync(&c->timer);
	cancel_work_sync(&c->work);
}
