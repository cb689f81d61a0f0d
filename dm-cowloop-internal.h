/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: what the rooms of the target share. A room is a file, and a struct that no
 * other file knows; dm-cowloop.c says which room does what. Here are the few structs that
 * several rooms need, helpers for bios and units, and what each room does for the others.
 *
 * Functions that say nothing of their context may be called in any, with any lock held but
 * those of their own room and of rooms above it: dm-cowloop.c has the order of the locks.
 */

#ifndef DM_COWLOOP_INTERNAL_H
#define DM_COWLOOP_INTERNAL_H

#include "dm-cowloop-metadata.h"
#include "dm-cowloop-compat.h"

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rbtree.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#define DM_MSG_PREFIX "cowloop"

/*
 * First writes are tracked by the aligned MiB they are in, and cut at its end.
 * No unit is larger, and all the units of a MiB are in one region of the bitmap.
 */
#define COW_TRACK_SECTORS	2048

/*
 * A page and a block in most filesystems: a write within so many of a file is taken as
 * a whole, or fails. Units begin at a multiple of this in the cowfile.
 */
#define COW_PIECE_SECTORS	(4096 >> SECTOR_SHIFT)

/* How long changed bits wait for a flush before they are committed anyway. */
#define COW_COMMIT_DELAY	(5 * HZ)

/* How long writes that found no space wait before one of them is tried again. */
#define COW_SPACE_DELAY		HZ

/* A device in a later mode does not go back to an earlier one, but for the first two. */
enum cow_mode {
	COW_MODE_RW,
	COW_MODE_OUT_OF_SPACE,
	COW_MODE_RO,
	COW_MODE_FAIL,
	COW_MODE_CLOSED,
};

/*
 * The kinds of I/O that have found no space in mode out_of_space. When one kind finds some,
 * so would those before it, which need no more than to write again what is there.
 */
enum cow_lack {
	COW_LACK_COMMIT,
	COW_LACK_REWRITE,
	COW_LACK_UNITS,		/* first writes, and what is not known better */
};

/*
 * Optional parameters, as given on the table line; 0 where not given. limit, low_water and
 * read_only change while the target is in use, by a message: the first two in the space room,
 * the last in the sync room. Others read them with READ_ONCE().
 */
struct cow_options {
	unsigned int format;
	unsigned int mapunit;
	bool repair;
	bool read_only;
	bool queue_if_no_space;
	bool no_discard_passdown;
	bool whole_writes;
	u64 limit;		/* units */
	u64 low_water;		/* units */
	u64 reserve;		/* units */
};

/*
 * Each bio is counted as one of these when it begins and when it ends, so that the end of
 * those that may need the cow device can be waited for. It is kept in the bio's bi_private.
 */
enum cow_flight {
	COW_FLIGHT_NONE,		/* reads of rdo; and what ends in map */
	COW_FLIGHT_OTHERS,		/* flushes that wait for a commit; deferred reads */
	COW_FLIGHT_READS,		/* of the cow device */
	COW_FLIGHT_REWRITES,		/* that map has decided on: they have no state */
	COW_FLIGHT_FLUSHES,		/* that go down as they are */
	COW_FLIGHT_WRITES,		/* all others that are accepted */
	COW_NR_FLIGHTS,
};

/* Of each CPU. */
struct cow_stats {
	unsigned long begun[COW_NR_FLIGHTS];
	unsigned long ended[COW_NR_FLIGHTS];	/* however they did; but for COW_FLIGHT_NONE */
	unsigned long rdo_reads;	/* that were deferred, as they were split: */
	unsigned long cow_reads;
	unsigned long copyups;
	unsigned long commits;
	unsigned long errors;
	unsigned long discards;
	unsigned long discarded_units;
	unsigned long no_space;		/* writes that found none */
};

/* Where things are in the cowfile, constant. */
struct cow_layout {
	unsigned int unit_shift;	/* of a unit, in sectors */
	sector_t data_sector;		/* of unit 0 in the cow device */
	sector_t units_end;		/* what the units span; the last may be short */
};

/* How the cow device is to be written, constant. */
struct cow_ways {
	bool in_pieces;			/* but for those that it takes whole */
	bool whole_blocks;		/* it takes writes of whole COW_PIECE_SECTORS so */
	bool zero_needs_commit;		/* format 1: repair can't tell zeroes from a hole */
};

/* The workqueues: dm-cowloop-send.c says who waits for whom. */
struct cow_queues {
	struct workqueue_struct *rdo;
	struct workqueue_struct *io;
	struct workqueue_struct *load;
	struct workqueue_struct *deferred;
};

struct cow_sender;
struct cow_space;
struct cow_commits;
struct cow_table;
struct cow_copyups;
struct cow_unit;
struct cow_discards;
struct cow_devices;

/* Bios that map decides on alone. */
struct cow_map_state {
	blk_opf_t opf;			/* not bios with one of them */
	blk_opf_t whole_opf;		/* likewise, for those that the cow device takes whole */
	struct block_device *bdev;	/* the cow device; NULL in mode closed */
};

/* A target: what reads and rewrites need comes first, then what first writes need. */
struct cowloop {
	struct cow_map map;
	struct cow_stats __percpu *stats;
	struct cow_map_state state;	/* the space room's */
	struct cow_layout layout;
	struct block_device *rdo_bdev;

	enum cow_mode mode;		/* the space room's */
	bool owes_commit;		/* the space room's: cow_md_owes_commit() */
	bool writes_kept;		/* the space room's: some are, or one is tried again */
	bool gate_open;			/* the table's */
	bool has_ranges;		/* the table's: of discards */
	struct cow_md *md;
	struct block_device *cow_bdev;	/* NULL once it has been let go */
	struct cow_ways ways;
	struct cow_options opt;

	struct dm_target *ti;
	struct mutex message_lock;	/* one message at a time */
	struct cow_queues queues;

	/* The rooms. */
	struct cow_sender *sender;
	struct cow_space *space;
	struct cow_commits *commits;
	struct cow_table *table;
	struct cow_copyups *copyups;
	struct cow_discards *discards;
	struct cow_devices *devices;
};

enum cow_io_state {
	COW_IO_WRITE,		/* not in the table */
	COW_IO_FIRST,		/* in the table: whole units */
	COW_IO_COPYUP_READ,	/* in the table: may be folded into */
	COW_IO_COPYUP_STORE,	/* in the table: may not any more */
};

/* A first write while it is in the table: see dm-cowloop-table.h. */
struct cow_entry {
	u64 unit;
	struct cow_hold hold;		/* of so many units from it on as it has */
	struct cow_bucket *bucket;
	struct hlist_node node;		/* in it */
	struct bio_list waiters;	/* to be mapped again afterwards */
};

/* The range of a discard, which first writes to its units wait for while it is published. */
struct cow_range {
	unsigned int nr;		/* units */
	bool blocked;			/* by what is in the table */
	u64 unit;
	u64 last_below;
	struct rb_node node;
	struct bio_list waiters;	/* to be mapped again afterwards */
};

/* A write as it was before it went to the cow device, in case that it has to be kept. */
struct cow_origin {
	struct bvec_iter iter;
	unsigned short flags;
};

/* A copy-up; it lives with the first of the bios that it is for. */
struct cow_copyup {
	struct bio_list folded;		/* with the first */
	struct cow_unit *unit;
};

/* Work that is queued for a bio of any kind. */
struct cow_job {
	struct cowloop *cow;
	struct work_struct work;
};

/*
 * The state of a bio of COW_FLIGHT_WRITES. Device-mapper allocates it with each bio, of any
 * kind, so that its size counts.
 */
struct cow_io {
	/* accept_write() sets these eight as one */
	u8 state;
	u8 awaited;			/* COW_AWAITED_BY_* */
	bool committed;			/* its commit has begun, at least, or it fails for one */
	bool for_units;			/* it fails as a first write, or might be one */
	bool unsure;			/* has failed, it may be for want of space */
	bool kept;			/* for want of space, or is to be */
	bool retried;			/* is the first of those kept, tried again */
	bool read_failed;		/* a copy-up's */
	union {
		struct {
			bool commit;		/* ends with a commit */
			bool seeks_space;	/* was begun in mode out_of_space */
		};
		u16 at_end;		/* either of these */
	};
	union {
		struct cow_entry entry;
		struct cow_range range;	/* of a discard */
	};
	struct cow_origin origin;
	union {
		struct cow_copyup copyup;
		struct cow_job job;
	};
};

/* ---- Units, and where they are ---- */

/* The mask costs nothing, and spares the check of the shift in kernels with UBSAN. */
static inline unsigned int cow_unit_shift(struct cowloop *cow)
{
	return cow->layout.unit_shift & (BITS_PER_LONG - 1);
}

static inline u64 cow_sector_to_unit(struct cowloop *cow, sector_t sector)
{
	return sector >> cow_unit_shift(cow);
}

static inline sector_t cow_unit_start(struct cowloop *cow, u64 unit)
{
	return (sector_t)unit << cow_unit_shift(cow);
}

static inline sector_t cow_unit_end(struct cowloop *cow, u64 unit)
{
	return min(cow_unit_start(cow, unit + 1), cow->layout.units_end);
}

/* Units that a bio touches. */
static inline unsigned int cow_bio_units(struct cowloop *cow, struct bio *bio)
{
	return cow_sector_to_unit(cow, bio_end_sector(bio) - 1) -
	       cow_sector_to_unit(cow, bio->bi_iter.bi_sector) + 1;
}

/* Where the contents of @unit, and of at most @nr (> 0) from it on, are. */
static inline struct cow_run cow_lookup_now(struct cowloop *cow, u64 unit, unsigned int nr)
{
	struct cow_run run = { .nr = 1 };

	rcu_read_lock_sched();
	if (nr == 1)
		run.where = cow_lookup(&cow->map, unit);
	else
		run = cow_lookup_run(&cow->map, unit, nr);
	rcu_read_unlock_sched();

	return run;
}

/* ---- Bios ---- */

/* The target's name in messages. */
static inline const char *cow_name(struct cowloop *cow)
{
	return dm_device_name(dm_table_get_md(cow->ti->table));
}

/* Of a write that was accepted. */
static inline struct cow_io *cow_bio_to_io(struct bio *bio)
{
	return bio->bi_private;
}

/*
 * Let @bio wait from now on, for whatever it has to. Nobody is to poll for it either:
 * who does may be the one that it waits for.
 */
static inline void cow_let_wait(struct bio *bio)
{
	bio->bi_opf &= ~REQ_NOWAIT;
	bio_clear_polled(bio);
}

/*
 * Leave the part from sector @end on to a bio of its own; only within map. False if
 * that must not be done with a bio that is not to wait: when some of its parts have
 * been written, and others would have to wait, it is too late to submit it again.
 * Polled ones device-mapper would submit again, and in vain.
 */
static inline bool cow_trim_bio(struct bio *bio, sector_t end)
{
	if (end < bio_end_sector(bio)) {
		if (unlikely(bio->bi_opf & REQ_POLLED))
			cow_let_wait(bio);
		if (unlikely(bio->bi_opf & REQ_NOWAIT))
			return false;
		dm_accept_partial_bio(bio, end - bio->bi_iter.bi_sector);
	}
	return true;
}

static inline int cow_end_bio(struct bio *bio, blk_status_t status)
{
	bio->bi_status = status;
	bio_endio(bio);

	return DM_MAPIO_SUBMITTED;
}

static inline void cow_end_bios(struct bio_list *bios, blk_status_t status)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios)))
		cow_end_bio(bio, status);
}

/* Take all the bios off a @list that @lock is for. Process context. */
static inline struct bio_list cow_take_bios(spinlock_t *lock, struct bio_list *list)
{
	struct bio_list bios;

	spin_lock_irq(lock);
	bios = *list;
	bio_list_init(list);
	spin_unlock_irq(lock);

	return bios;
}

static inline int cow_remap_to_rdo(struct cowloop *cow, struct bio *bio)
{
	bio_set_dev(bio, cow->rdo_bdev);

	return DM_MAPIO_REMAPPED;
}

/* While the bio's flight keeps the cow device. */
static inline int cow_remap_to_cow(struct cowloop *cow, struct bio *bio)
{
	bio_set_dev(bio, cow->cow_bdev);
	bio->bi_iter.bi_sector += cow->layout.data_sector;

	return DM_MAPIO_REMAPPED;
}

/*
 * Count a bio, if the mode is @last or an earlier one: false if it is not, and the
 * bio is to be refused. See drain() in dm-cowloop-sync.c.
 */
static __always_inline bool cow_begin_flight(struct cowloop *cow, struct bio *bio,
					     enum cow_flight flight, enum cow_mode last)
{
	bool begun;

	rcu_read_lock_sched();
	begun = READ_ONCE(cow->mode) <= last;
	if (likely(begun)) {
		__this_cpu_inc(cow->stats->begun[flight]);
		bio->bi_private = (void *)flight;
	}
	rcu_read_unlock_sched();

	return begun;
}

/* Where the cow device can't write zeroes, or would wait, it is tried another way. */
static inline bool cow_is_error(blk_status_t status)
{
	return status && status != BLK_STS_NOTSUPP && status != BLK_STS_AGAIN;
}

/* A first write has failed: maybe for want of space, which some devices can't tell? */
static inline bool cow_may_lack_space(struct cowloop *cow, blk_status_t status)
{
	return unlikely(status == BLK_STS_IOERR) && cow_hides_no_space(cow->cow_bdev);
}

/*
 * A filesystem lives on when there is no space for data; without space for its
 * own blocks it does not.
 */
static inline bool cow_is_urgent(struct bio *bio)
{
	return bio->bi_opf & REQ_META;
}

/* A write with reserved units may find space where others would not: that proves nothing. */
static inline bool cow_is_reserved_for(struct cowloop *cow, struct bio *bio)
{
	return cow->opt.reserve && READ_ONCE(cow->opt.limit) && cow_is_urgent(bio);
}

/* ---- Sending: dm-cowloop-send.c ---- */

/*
 * Make, and destroy, the queues: work that completed the last bio may still be running until
 * they are destroyed. Sleep. Return 0 or -ENOMEM; queues that were made before are for
 * cow_queues_destroy().
 */
int cow_queues_create(struct cow_queues *queues);
void cow_queues_destroy(struct cow_queues *queues);

/*
 * Make, and destroy, the room, as all of the functions of this kind below: they sleep, the
 * first returns 0 or a negative errno, and the second can be called in any case.
 * @map_again is called for each bio that was deferred, in the queue deferred: it may sleep,
 * and sees to the bio's end.
 */
int cow_sender_create(struct cowloop *cow, void (*map_again)(struct cowloop *, struct bio *));
void cow_sender_destroy(struct cowloop *cow);

/* Run @function, in @wq, on the cow_io of @bio, which may be a read; and the bio of it. */
void cow_queue_bio(struct cowloop *cow, struct bio *bio, struct workqueue_struct *wq,
		   work_func_t function);
struct bio *cow_work_to_bio(struct work_struct *work, struct cowloop **cow);

/* Have writes mapped again in the queue deferred. cow_defer_bio() returns what map is to. */
void cow_defer_bios(struct cowloop *cow, struct bio_list *bios);
int cow_defer_bio(struct cowloop *cow, struct bio *bio);

/* Send a read to rdo, by somebody who may wait for it. Process context. */
void cow_send_to_rdo(struct cowloop *cow, struct bio *bio);

/* Split the first @sectors off a deferred read, chained to the rest. Sleeps. */
struct bio *cow_split_read(struct cowloop *cow, struct bio *bio, sector_t sectors);

/*
 * Some cow devices may take a write in part, see cow_takes_parts(): with ways.in_pieces it
 * is sent to them in pieces, of which each is taken, or not. cow_send_in_pieces() is for
 * map, and returns what map is to return; cow_submit_write() sleeps. Both are for a write
 * that has been remapped.
 *
 * cow_is_taken_whole() says, with ways.in_pieces, whether a bio, at @sector of the cow device,
 * is taken as a whole, or fails, and need not be cut. Any context.
 */
bool cow_is_taken_whole(struct cowloop *cow, struct bio *bio, sector_t sector);
int cow_send_in_pieces(struct cowloop *cow, struct bio *bio);
void cow_submit_write(struct cowloop *cow, struct bio *bio);

/* ---- Modes and space: dm-cowloop-space.c ---- */

/*
 * @try_again is called for a write that was kept, as the sender's @map_again is;
 * @waiting_is_over when a commit need not wait for space any more, in any context, with no
 * spinlock held.
 */
int cow_space_create(struct cowloop *cow, void (*try_again)(struct cowloop *, struct bio *),
		     void (*waiting_is_over)(struct cowloop *));
void cow_space_destroy(struct cowloop *cow);

/* True if the mode was an earlier one: then an event is to be raised. */
bool cow_change_mode(struct cowloop *cow, enum cow_mode mode);

/* The same, and raises the event. Sleeps. */
void cow_set_mode(struct cowloop *cow, enum cow_mode mode);

/* Raise an event soon; and wait until all that were to be raised have been, which sleeps. */
void cow_raise_event(struct cowloop *cow);
void cow_flush_events(struct cowloop *cow);

/* The target is new, or whether a commit is owed may have changed. */
void cow_update_map_state(struct cowloop *cow);

/* The metadata could not be written, for errno @r, while @what was done. Sleeps. */
void cow_metadata_failed(struct cowloop *cow, const char *what, int r);

/* Enter mode fail: nobody knows what is durable, for a @reason that is logged. */
void cow_device_failed(struct cowloop *cow, const char *reason, int r);

/* False if the cow device has gone. Before the end of a flight that needs it. */
bool cow_still_there(struct cowloop *cow);

/* The units that there may be in the cowfile. */
u64 cow_space_limit(struct cowloop *cow);

/* Set the limit, or low water, to so many units, by a message. Sleep. */
void cow_set_limit(struct cowloop *cow, u64 units);
void cow_set_low_water(struct cowloop *cow, u64 units);

/* Raise an event if low water has been reached, once until there is more again. */
void cow_update_low(struct cowloop *cow);
static inline void cow_check_low_water(struct cowloop *cow)
{
	if (unlikely(READ_ONCE(cow->opt.low_water)))
		cow_update_low(cow);
}

/* Room was made for whoever lacks it. */
void cow_space_made(struct cowloop *cow);

/*
 * I/O of the kind @lack, which takes space, has found some. Where writes succeed and fail
 * in turn the mode does not follow each of them: it is left a little later then, if none has
 * failed meanwhile.
 */
void cow_space_found(struct cowloop *cow, enum cow_lack lack);

/* There was no space for I/O of the kind @lack. */
void cow_out_of_space(struct cowloop *cow, enum cow_lack lack);

/*
 * There was an error of the cow device that may be for want of space; whether there was one
 * since a commit has told the two apart; and that a commit has succeeded.
 */
void cow_note_unsure(struct cowloop *cow);
bool cow_is_unsure(struct cowloop *cow);
void cow_note_commit(struct cowloop *cow);

/* Whether to wait on for space that is @unsure to be what is lacking. */
bool cow_worth_waiting(struct cowloop *cow, bool unsure);

/*
 * Writes that find no space. cow_note_origin() is for all that may have to be kept, before
 * they are remapped. cow_keep_write() keeps one that has failed, as it was before; it goes
 * behind those that are kept already, unless it was the first of them. It returns false if
 * the write is not to be kept. cow_has_to_queue(): while writes are kept, whether some of
 * them are before @bio. cow_end_retried(): the first of them has ended.
 * cow_nr_kept(): how many are kept; process context.
 */
void cow_note_origin(struct bio *bio);
bool cow_keep_write(struct cowloop *cow, struct bio *bio);
bool cow_has_to_queue(struct cowloop *cow, struct bio *bio);
void cow_end_retried(struct cowloop *cow);
unsigned int cow_nr_kept(struct cowloop *cow);

/* From now on writes are kept, or none is, and those that were end without success. Sleep. */
void cow_start_queueing(struct cowloop *cow);
void cow_stop_queueing(struct cowloop *cow);

/* After the device has been suspended: no work is under way any more. Sleep. */
void cow_space_resume(struct cowloop *cow);
void cow_space_quiesce(struct cowloop *cow);

/*
 * Counting the units in use, as is to be done after a crash. cow_count_readable() counts as
 * far as the bitmap can be read, or until a signal comes: units that can't be read are not
 * in the limit, and fail. cow_count_all() counts all of them, for a clean head: it returns
 * 0, a negative errno, or -EINTR after a signal. Sleep. The last one ends what is counted in
 * the background.
 */
void cow_count_readable(struct cowloop *cow);
int cow_count_all(struct cowloop *cow);
void cow_cancel_counting(struct cowloop *cow);

/* ---- Commits: dm-cowloop-commit.c ---- */

int cow_commits_create(struct cowloop *cow);
void cow_commits_destroy(struct cowloop *cow);

/* Complete @bio, a flush or a write, after a commit. */
void cow_commit_bio(struct cowloop *cow, struct bio *bio);

/*
 * Have @bio, a write that was accepted and not sent to the cow device yet, mapped again
 * after a commit. If there is none it fails. Returns what map is to return.
 * cow_nr_held_back(): how many are; process context.
 */
int cow_hold_back(struct cowloop *cow, struct bio *bio);
unsigned int cow_nr_held_back(struct cowloop *cow);

/* Before somebody is told that there was no space for a commit: see dm-cowloop-commit.c. */
void cow_owe_commit(struct cowloop *cow);

/*
 * Commit. cow_commit_soon() has it done again by the timer if there is no space for it.
 * Sleep, do I/O. Return 0 or a negative errno, which has been told.
 */
int cow_commit(struct cowloop *cow);
int cow_commit_soon(struct cowloop *cow);

/* Have a commit tried after a while. */
void cow_commit_later(struct cowloop *cow);

/* An error of the cow device may be for want of space: a commit's flush tells. */
void cow_unsure_error(struct cowloop *cow);

/* Have the commits end that wait for space. */
void cow_end_waiting_commits(struct cowloop *cow);

/*
 * Commits may be begun by the timer, or are not any more, nor under way. Process context;
 * the latter sleeps.
 */
void cow_start_commits(struct cowloop *cow);
void cow_cancel_commits(struct cowloop *cow);

/*
 * Where nothing is written any more: 0 if all that was is durable, or -EIO. A table that
 * could be written before may have left bits for want of space, or met an error.
 */
int cow_all_durable(struct cowloop *cow);

/* Log what is not durable, if there is any. Nothing is in flight. Sleeps, does I/O. */
void cow_log_unsaved(struct cowloop *cow, bool closed);

/* The beginning and the end of a flush; they return what map, and end_io, are to return. */
int cow_map_flush(struct cowloop *cow, struct bio *bio);
int cow_end_flush(struct cowloop *cow, blk_status_t *error);

/*
 * Bring the bitmap's part for @unit into memory, however little there is, by commits where
 * it takes them: cow_commit_for_memory(). Sleep, do I/O. Return 0 or a negative errno.
 */
int cow_load(struct cowloop *cow, u64 unit, bool for_write);
int cow_commit_for_memory(struct cowloop *cow);

/* ---- The table of first writes: dm-cowloop-table.c, and .h for those who enter it ---- */

/* @discards_ready is called when an entry has ended that was in the way of a discard. */
int cow_table_create(struct cowloop *cow, void (*discards_ready)(struct cowloop *));
void cow_table_destroy(struct cowloop *cow);

/* No more writes are folded into a copy-up; and it leaves the table. Not in interrupts first. */
void cow_end_folding(struct cowloop *cow, struct cow_io *io);
void cow_end_copyup(struct cowloop *cow, struct cow_io *io, blk_status_t status);

/*
 * Open the gate, which may write the head. Sleeps, does I/O. Returns 0, or a negative errno,
 * which has been told but for -ENOSPC.
 */
int cow_open_gate(struct cowloop *cow);

/*
 * Shut the gate, with nothing in the table and no discard at work any more: returns 0, and
 * the gate is locked until cow_unlock_gate(); or -EINTR after a signal. One at a time. Sleeps.
 */
int cow_shut_gate(struct cowloop *cow);
void cow_unlock_gate(struct cowloop *cow);

/*
 * Discards. A published range is found by first writes, which wait for it until it has been
 * withdrawn. cow_block_ranges() tells those that have something in their way in the table:
 * they are blocked, and @discards_ready is called when it has ended. cow_begin_discards()
 * opens the gate, and keeps it open, if it returns 0. Process context; the last but one sleeps.
 */
void cow_publish_range(struct cowloop *cow, struct cow_range *range);
void cow_withdraw_range(struct cowloop *cow, struct cow_range *range);
void cow_block_ranges(struct cowloop *cow);
int cow_begin_discards(struct cowloop *cow);
void cow_end_discards(struct cowloop *cow);

/* ---- Copy-up: dm-cowloop-copyup.c ---- */

/* For units of @size bytes. */
int cow_copyups_create(struct cowloop *cow, unsigned int size);
void cow_copyups_destroy(struct cowloop *cow);

/* Memory for a unit, or NULL if @gfp does not allow to wait for it. */
struct cow_unit *cow_alloc_unit(struct cowloop *cow, gfp_t gfp);
void cow_free_unit(struct cowloop *cow, struct cow_unit *unit);

/*
 * Begin to copy up the unit of @io, which is in the table: now, if @may_wait, which may sleep
 * until another copy-up's read has ended; else in the queue rdo.
 */
void cow_begin_copyup(struct cowloop *cow, struct cow_io *io, bool may_wait);

/* ---- Writes that have state: dm-cowloop-write.c ---- */

/* False if no writes are accepted any more: then @bio is to be refused. */
bool cow_accept_write(struct cowloop *cow, struct bio *bio);

/* Accept a write, and map it; of whole units in one MiB; or of any, which begins with @run. */
int cow_accept_whole(struct cowloop *cow, struct bio *bio);
int cow_accept_and_map(struct cowloop *cow, struct bio *bio, struct cow_run run);

/* The end of a write that was accepted; returns what end_io is to return. */
int cow_end_write(struct cowloop *cow, struct bio *bio, blk_status_t *error);

/* Map a write again that had to wait. Sleeps, does I/O. */
void cow_deferred_write(struct cowloop *cow, struct bio *bio);

/* ---- Discards: dm-cowloop-discard.c ---- */

int cow_discards_create(struct cowloop *cow);
void cow_discards_destroy(struct cowloop *cow);

/* Accept a discard of all the units it is whole of. Returns what map is to return. */
int cow_map_discard(struct cowloop *cow, struct bio *bio);

/* Have discards looked at: what was in their way may be there no more. */
void cow_discards_ready(struct cowloop *cow);

/* Wait for the run that is under way; or end it. Sleep. */
void cow_flush_discards(struct cowloop *cow);
void cow_cancel_discards(struct cowloop *cow);

/* ---- Map and end_io: dm-cowloop-io.c ---- */

int cowloop_map(struct dm_target *ti, struct bio *bio);
int cowloop_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error);

/* ---- Sync, and the end: dm-cowloop-sync.c ---- */

/*
 * With the message lock, in process context. All can be done again when a signal has ended
 * them, which -EINTR tells. Sleep, do I/O; return 0 or a negative errno.
 *
 * cow_commit_and_clean() brings all completed writes and their bits to stable storage, and
 * leaves a clean head, unless counting has ended with an error, which is @counted. First
 * writes are held up meanwhile. cow_sync() counts before. cow_make_read_only() refuses
 * writes from now on, and returns when those under way are safe. cow_close() lets go of the
 * cow device, too, in mode fail with -EIO.
 */
int cow_commit_and_clean(struct cowloop *cow, int counted);
int cow_sync(struct cowloop *cow);
int cow_make_read_only(struct cowloop *cow);
int cow_close(struct cowloop *cow);

/* ---- Devices: dm-cowloop-devices.c ---- */

/*
 * Open the devices of a table line, and the cowfile, or share the one that the live table of
 * this device has open. Sleep, do I/O. Return 0, or a negative errno with the reason logged and
 * in ti->error; what was made before is for cow_devices_destroy(), which can be called in any
 * case.
 */
int cow_devices_create(struct cowloop *cow, char **argv);
void cow_devices_destroy(struct cowloop *cow);

/* Look up again what device-mapper has for the devices, until the table is live. Sleeps. */
void cow_renew_devices(struct cowloop *cow);
void cow_devices_are_live(struct cowloop *cow);

/* As the table line has them: "major:minor". */
const char *cow_rdo_name(struct cowloop *cow);
const char *cow_cow_name(struct cowloop *cow);

/*
 * Begin to close the cowfile, which -EBUSY tells is shared with another table; and end it, by
 * letting go of the cow device if it is @closed. Sleep.
 */
int cow_begin_closing(struct cowloop *cow);
void cow_end_closing(struct cowloop *cow, bool closed);

int cowloop_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data);

#endif /* DM_COWLOOP_INTERNAL_H */
