/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: what the parts of the target share.
 */

#ifndef DM_COWLOOP_INTERNAL_H
#define DM_COWLOOP_INTERNAL_H

#include "dm-cowloop-metadata.h"
#include "dm-cowloop-compat.h"

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/device-mapper.h>
#include <linux/dm-io.h>
#include <linux/hash.h>
#include <linux/init.h>
#include <linux/interval_tree_generic.h>
#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/ratelimit.h>
#include <linux/rbtree.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

/*
 * First writes are tracked by the aligned MiB they are in, and cut at its end.
 * No unit is larger, and all the units of a MiB are in one region of the bitmap.
 */
#define COW_TRACK_SECTORS	2048
#define COW_BUCKET_BITS		7

/* Copy-ups that can always go on at the same time, however short memory is. */
#define COW_MIN_COPYUPS		2

/* Bytes of the memory for copy-ups that are kept for the next ones. */
#define COW_SPARE_BYTES		(128 * 1024)
#define COW_MAX_SPARES		16

/* Deferred reads, and writes, for which the bitmap is read at the same time. */
#define COW_MAX_LOADS		16

/*
 * Cowloop devices that may lie one over the other, as rdo or as cow device. The end of a bio
 * is told from the lowest to the highest on one stack, which some two hundred exhaust.
 */
#define COW_MAX_DEPTH		16

/* How long to wait, in microseconds, for what is in flight when memory is short. */
#define COW_MEMORY_DELAY	1000

/* How long changed bits wait for a flush before they are committed anyway. */
#define COW_COMMIT_DELAY	(5 * HZ)

/* How long writes that found no space wait before one of them is tried again. */
#define COW_SPACE_DELAY		HZ

/* How long a sync keeps the gate shut at first, to wait for what is in flight. */
#define COW_GATE_DELAY		(HZ / 10)

/* How long writes are kept for errors in a row of which none need be for want of space. */
#define COW_UNSURE_DELAY	(60 * HZ)

/* Whom to tell when an entry leaves the table. */
#define COW_AWAITED_BY_SYNC	BIT(0)
#define COW_AWAITED_BY_DISCARD	BIT(1)

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

/* Optional parameters, as given on the table line; 0 where not given. */
struct cow_options {
	unsigned int format;
	unsigned int mapunit;
	bool repair;
	bool read_only;
	bool queue_if_no_space;
	bool no_discard_passdown;
	u64 limit;		/* units */
	u64 low_water;		/* units */
	u64 reserve;		/* units */
};

/*
 * What a bio is counted as when it begins and when it ends, so that the end of those
 * that may need the cow device can be waited for. It is kept in the bio's bi_private.
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

struct cow_stats {
	unsigned long begun[COW_NR_FLIGHTS];
	unsigned long ended[COW_NR_FLIGHTS];	/* however they did; but for COW_FLIGHT_NONE */
	unsigned long rdo_reads;	/* that were deferred, as they were split: */
	unsigned long cow_reads;
	unsigned long copyups;
};

/* First writes in flight in some of the device's MiBs. */
struct cow_bucket {
	spinlock_t lock;		/* the list, and the state of what is on it */
	struct hlist_head writes;	/* of cow_io */
};

struct cowfile;

struct cowloop {
	/* What reads and rewrites need comes first. */
	struct cow_map map;
	struct cow_stats __percpu *stats;
	blk_opf_t state_opf;		/* bios with one of them are not for map alone */
	bool owes_commit;		/* cow_md_owes_commit(): see set_map_state() */
	unsigned int unit_shift;	/* of a unit, in sectors */
	struct block_device *rdo_bdev;
	struct block_device *cow_bdev;	/* for map alone: NULL in mode closed */
	sector_t data_sector;		/* of unit 0 in the cow device */

	enum cow_mode mode;
	struct dm_dev *rdo;		/* and cow: see renew_devices() */
	struct dm_dev *cow;		/* NULL once it has been let go */
	bool has_resumed;
	struct cow_md *md;
	struct dm_target *ti;
	blk_opf_t write_flags;		/* cow_write_flags() */
	unsigned int write_sectors;	/* cow_write_sectors() */
	sector_t units_end;		/* what the units span; the last may be short */
	struct cow_options opt;
	bool zero_needs_commit;		/* format 1: repair can't tell zeroes from a hole */
	atomic_long_t commits;
	atomic_long_t errors;
	atomic_long_t nr_discards;
	atomic_long_t discarded_units;
	atomic_long_t no_space;		/* writes that found none */

	struct cow_bucket *buckets;
	bool gate_open;
	bool discards_at_work;		/* the gate stays open */
	unsigned int discard_runs;	/* that have begun */
	unsigned int nr_ranges;		/* in cow->ranges */
	struct mutex gate_lock;		/* opens or shuts the gate; held by a sync */
	wait_queue_head_t drained;	/* of what a sync waits for */

	spinlock_t lock;		/* lists of bios, ranges, modes, all that is about space */
	struct bio_list deferred;	/* writes */
	struct bio_list rdo_bios;	/* of deferred reads, to be sent to rdo */
	struct bio_list commit_bios;
	struct bio_list held_back;	/* writes, by a commit that is owed */

	struct bio_list discards;	/* to be published */
	struct bio_list blocked_discards;	/* published; for do_discards() alone */
	struct rb_root_cached ranges;	/* of discards that are published: cow_io */

	bool no_commit_timer;		/* it is not to be armed any more */
	bool queueing;			/* keep writes that find no space */
	bool writes_kept;		/* or the first of them is being tried again */
	bool reserved_kept;		/* likewise, some of reserved_bios */
	bool retrying;
	unsigned int nr_kept;
	struct bio_list no_space_bios;
	struct bio_list reserved_bios;	/* likewise, with units reserved for them: first */
	bool low;			/* low water has been reached, and told */
	u64 space_since;		/* when out_of_space was left, in jiffies */
	u64 unsure_since;		/* when errors began that may be for want of it; or 0 */
	bool found_space;		/* too soon after that, and nothing was short of it since */
	u8 lacks;			/* BIT(enum cow_lack); mode out_of_space */
	struct ratelimit_state space_log;

	struct workqueue_struct *rdo_wq;	/* who waits for whom: see the top */
	struct workqueue_struct *io_wq;
	struct workqueue_struct *load_wq;
	struct workqueue_struct *deferred_wq;
	struct work_struct rdo_work;
	struct work_struct deferred_work;
	struct work_struct discard_work;
	struct work_struct count_work;
	struct delayed_work retry_work;
	struct delayed_work leave_work;
	struct work_struct commit_work;
	struct delayed_work commit_timer;
	struct work_struct event_work;

	struct dm_io_client *io;
	mempool_t units;		/* memory for a unit, for copy-ups */
	void *spares[COW_MAX_SPARES];	/* some of it, which need not be cleared by kmalloc() */
	unsigned int nr_spares;
	unsigned int max_spares;
	struct bio_set bios;		/* stores of copy-ups, discards */
	struct bio_set rdo_reads;	/* of copy-ups */
	struct bio_set splits;		/* of deferred reads */
	struct bio_set pieces;		/* of writes, with write_sectors */

	struct mutex message_lock;	/* one message at a time */
	char rdo_name[sizeof_field(struct dm_dev, name)];
	char cow_name[sizeof_field(struct dm_dev, name)];
	struct cowfile *cowfile;
	struct list_head user;		/* in cowfile->users */
	unsigned int depth;		/* of cowloop devices one over the other, with this one */
};

enum cow_io_state {
	COW_IO_WRITE,		/* not in the table */
	COW_IO_FIRST,		/* in the table: whole units */
	COW_IO_COPYUP_READ,	/* in the table: may be folded into */
	COW_IO_COPYUP_STORE,	/* in the table: may not any more */
};

/* Whom to tell when an entry leaves the table. */
#define COW_AWAITED_BY_SYNC	BIT(0)
#define COW_AWAITED_BY_DISCARD	BIT(1)

/* What goes with a bio of COW_FLIGHT_WRITES. */
struct cow_io {
	/* accept_write() sets these eight as one */
	u8 state;
	u8 awaited;			/* COW_AWAITED_BY_* */
	bool committed;			/* its commit has begun, at least, or it fails for one */
	bool for_units;			/* it fails as a first write, or might be one */
	bool unsure;			/* has failed, it may be for want of space */
	bool kept;			/* for want of space, or is to be */
	bool retried;			/* is the first of those kept, tried again */
	bool blocked;			/* a discard, by what is in the table */
	union {
		struct {
			bool commit;		/* ends with a commit */
			bool seeks_space;	/* was begun in mode out_of_space */
		};
		u16 at_end;		/* either of these */
	};
	bool read_failed;
	unsigned int nr;		/* units */
	u64 unit;
	struct cow_hold hold;		/* of them, while in the table */
	struct cow_bucket *bucket;
	struct hlist_node node;		/* in it */
	struct bio_list waiters;	/* to be mapped again afterwards */

	union {
		struct {		/* of a write that may have to be kept */
			struct bvec_iter iter;
			struct block_device *bdev;
			unsigned short flags;
		};
		struct {		/* of a discard that is published */
			struct rb_node range;
			u64 last_below;
		};
	};

	/* of a copy-up; it lives with the first of its bios */
	struct bio_list folded;
	void *data;

	struct cowloop *cowloop;	/* of a bio of any kind, while it has work */
	struct work_struct work;
};

/* ---- Helpers ---- */

static inline const char *cow_name(struct cowloop *cow)
{
	return dm_device_name(dm_table_get_md(cow->ti->table));
}

/* Of a write that was accepted. */
static inline struct cow_io *cow_bio_to_io(struct bio *bio)
{
	return bio->bi_private;
}

/* Where the contents of @unit, and of at most @nr (> 0) from it on, are. Any context. */
static inline struct cow_run cow_lookup_now(struct cowloop *cow, u64 unit, unsigned int nr)
{
	struct cow_run run;

	rcu_read_lock_sched();
	run = cow_lookup_run(&cow->map, unit, nr);
	rcu_read_unlock_sched();

	return run;
}

static inline u64 cow_sector_to_unit(struct cowloop *cow, sector_t sector)
{
	return sector >> cow->unit_shift;
}

static inline sector_t cow_unit_start(struct cowloop *cow, u64 unit)
{
	return (sector_t)unit << cow->unit_shift;
}

static inline sector_t cow_unit_end(struct cowloop *cow, u64 unit)
{
	return min(cow_unit_start(cow, unit + 1), cow->units_end);
}

/* Units that a bio touches. */
static inline unsigned int cow_bio_units(struct cowloop *cow, struct bio *bio)
{
	return cow_sector_to_unit(cow, bio_end_sector(bio) - 1) -
	       cow_sector_to_unit(cow, bio->bi_iter.bi_sector) + 1;
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
 * Leave what is from sector @end on to a bio of its own; only within map. False if
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

static inline int cow_remap_to_rdo(struct cowloop *cow, struct bio *bio)
{
	bio_set_dev(bio, cow->rdo_bdev);

	return DM_MAPIO_REMAPPED;
}

static inline int cow_remap_to_cow(struct cowloop *cow, struct bio *bio)
{
	bio_set_dev(bio, cow->cow->bdev);
	bio->bi_iter.bi_sector += cow->data_sector;

	return DM_MAPIO_REMAPPED;
}

/*
 * Count a bio, if the mode is @last or an earlier one: false if it is not, and the
 * bio is to be refused. See drain(). Any context.
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

/*
 * A filesystem lives on when there is no space for data; without space for its
 * own blocks it does not.
 */
static inline bool cow_is_urgent(struct bio *bio)
{
	return bio->bi_opf & REQ_META;
}

/* Such a write may find space where others would not: that proves nothing. */
static inline bool cow_is_reserved_for(struct cowloop *cow, struct bio *bio)
{
	return cow->opt.reserve && READ_ONCE(cow->opt.limit) && cow_is_urgent(bio);
}

/* A first write has failed: maybe for want of space, which some devices can't tell? */
static inline bool cow_may_lack_space(struct cowloop *cow, blk_status_t status)
{
	return unlikely(status == BLK_STS_IOERR) && cow_hides_no_space(cow->cow->bdev);
}

static inline bool cow_is_error(blk_status_t status)
{
	/* Where the cow device can't write zeroes, or would wait, it is tried another way. */
	return status && status != BLK_STS_NOTSUPP && status != BLK_STS_AGAIN;
}

/* ---- dm-cowloop-send.c ---- */

struct bio_list cow_take_bios(struct cowloop *cow, struct bio_list *list);
void cow_queue_bio(struct cowloop *cow, struct bio *bio, struct workqueue_struct *wq,
		   work_func_t function);
struct bio *cow_work_to_bio(struct work_struct *work, struct cowloop **cow);
void cow_defer_bios(struct cowloop *cow, struct bio_list *bios);
int cow_defer_bio(struct cowloop *cow, struct bio *bio);
void cow_do_rdo(struct work_struct *work);
void cow_send_to_rdo(struct cowloop *cow, struct bio *bio);
bool cow_in_pieces(struct cowloop *cow, struct bio *bio);
void cow_submit_write(struct cowloop *cow, struct bio *bio);

/* ---- dm-cowloop-space.c ---- */

void cow_set_map_state(struct cowloop *cow, enum cow_mode mode);
void cow_update_map_state(struct cowloop *cow);
bool cow_change_mode(struct cowloop *cow, enum cow_mode mode);
void cow_set_mode(struct cowloop *cow, enum cow_mode mode);
void cow_do_event(struct work_struct *work);
void cow_metadata_failed(struct cowloop *cow, const char *what, int r);
void cow_device_failed(struct cowloop *cow, const char *reason, int r);
bool cow_still_there(struct cowloop *cow);
u64 cow_space_limit(struct cowloop *cow);
void cow_update_low(struct cowloop *cow);
void cow_do_leave(struct work_struct *work);
void cow_space_made(struct cowloop *cow);
void cow_space_found(struct cowloop *cow, enum cow_lack lack);
void cow_out_of_space(struct cowloop *cow, enum cow_lack lack);
void cow_unsure_error(struct cowloop *cow);
bool cow_worth_waiting(struct cowloop *cow, bool unsure);
bool cow_keep_bio(struct cowloop *cow, struct bio *bio);
bool cow_has_to_queue(struct cowloop *cow, struct bio *bio);
void cow_end_retried(struct cowloop *cow);
struct bio_list cow_take_kept(struct cowloop *cow);
void cow_stop_queueing(struct cowloop *cow);
void cow_start_queueing(struct cowloop *cow);
void cow_restore_bio(struct bio *bio);
unsigned int cow_nr_waiting(struct cowloop *cow);
void cow_count_readable(struct cowloop *cow);
int cow_count_all(struct cowloop *cow);
void cow_do_count(struct work_struct *work);

/*
 * Raise an event if low water has been reached, once until there is more again.
 * Any context.
 */
static inline void cow_check_low_water(struct cowloop *cow)
{
	if (unlikely(READ_ONCE(cow->opt.low_water)))
		cow_update_low(cow);
}

/* ---- dm-cowloop-commit.c ---- */

void cow_commit_bio(struct cowloop *cow, struct bio *bio);
int cow_hold_back(struct cowloop *cow, struct bio *bio);
void cow_owe_commit(struct cowloop *cow);
int cow_commit(struct cowloop *cow);
void cow_do_commit(struct work_struct *work);
void cow_do_commit_timer(struct work_struct *work);
void cow_cancel_commits(struct cowloop *cow);
int cow_all_durable(struct cowloop *cow);
void cow_log_unsaved(struct cowloop *cow, bool closed);
int cow_map_flush(struct cowloop *cow, struct bio *bio);
int cow_end_flush(struct cowloop *cow, blk_status_t *error);
int cow_commit_soon(struct cowloop *cow);
int cow_commit_for_memory(struct cowloop *cow);
int cow_load(struct cowloop *cow, u64 unit, bool for_write);

/* ---- dm-cowloop-table.c ---- */

bool cow_wait_for_discard(struct cowloop *cow, struct bio *bio, u64 unit,
			  unsigned int nr);
void cow_end_folding(struct cowloop *cow, struct cow_io *io);
void cow_end_copyup(struct cowloop *cow, struct cow_io *io, blk_status_t status);
void cow_awaited_ended(struct cowloop *cow, u8 awaited);
int cow_open_gate(struct cowloop *cow);
int cow_shut_gate(struct cowloop *cow);
void cow_publish_ranges(struct cowloop *cow);
void cow_withdraw_range(struct cowloop *cow, struct cow_io *io);
struct bio_list cow_take_ready_discards(struct cowloop *cow);
int cow_begin_discards(struct cowloop *cow);
void cow_end_discards(struct cowloop *cow);

/* ---- dm-cowloop-copyup.c ---- */

void *cow_alloc_unit(struct cowloop *cow, gfp_t gfp);
void cow_free_unit(struct cowloop *cow, void *data);
bool cow_copyup_start(struct cow_io *io, gfp_t gfp);
void cow_copyup_start_later(struct work_struct *work);

/* ---- dm-cowloop-write.c ---- */

bool cow_accept_write(struct cowloop *cow, struct bio *bio);
int cow_accept_whole(struct cowloop *cow, struct bio *bio);
int cow_accept_and_map(struct cowloop *cow, struct bio *bio, struct cow_run run);
int cow_end_write(struct cowloop *cow, struct bio *bio, blk_status_t *error);
void cow_do_deferred(struct work_struct *work);
void cow_do_retry(struct work_struct *work);

/* ---- dm-cowloop-discard.c ---- */

int cow_map_discard(struct cowloop *cow, struct bio *bio);
void cow_do_discards(struct work_struct *work);

/* ---- dm-cowloop-io.c ---- */

int cowloop_map(struct dm_target *ti, struct bio *bio);
int cowloop_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error);

/* ---- dm-cowloop-sync.c ---- */

int cow_commit_and_clean(struct cowloop *cow, int counted);
int cow_sync(struct cowloop *cow);
int cow_make_read_only(struct cowloop *cow);
int cow_close(struct cowloop *cow);

/* ---- dm-cowloop-devices.c ---- */

void cow_put_cowfile(struct cowloop *cow);
int cow_get_cowfile(struct cowloop *cow, const struct cow_md_args *args);
int cow_begin_closing(struct cowloop *cow);
void cow_end_closing(struct cowloop *cow, bool closed);
int cow_get_devices(struct cowloop *cow, struct dm_target *ti, char **argv);
void cow_renew_devices(struct cowloop *cow);
int cowloop_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data);
/* ----  ---- */

#endif /* DM_COWLOOP_INTERNAL_H */
