// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: a writable device made of a read-only device (rdo), which is
 * never written, and a sparse cowfile, which takes every changed unit.
 *
 * Reads go to the cowfile for units whose bit is set, to rdo for all others; a
 * bio is cut where the answer changes. Rewrites of units whose bits are set go
 * to the cowfile. All of this is decided in map by cow_lookup(), without a lock
 * and without state to be kept.
 *
 * First writes are those to units whose bit is not set. Whole units go straight
 * to the cowfile, and their bits are set when the write has completed, not
 * before: a read that races the write finds rdo's data, the old contents. When
 * only a part of a unit is written it is copied up: the unit is read from rdo,
 * the new data is laid over it, and the whole is stored in the cowfile. Other
 * writes to parts of the unit that come in before it is stored are folded into
 * the same copy-up.
 *
 * A copy-up must not store stale data of rdo over another write to its unit.
 * Hence the table of first writes in flight, and this invariant:
 *
 *	While a copy-up of a unit is in the table, its bit is clear, and nothing
 *	else in the table covers the unit.
 *
 * It holds because a bit is tested and an entry made under one lock, that of
 * the entry's bucket, and because a bit is set before the entry that has set it
 * goes away. A write that finds a copy-up in its way is folded or waits; a part
 * of a unit that finds a write of the whole unit in its way waits. What waited
 * is mapped again, and then usually is a rewrite. Whole units need not wait for
 * each other: such writes race like two writes to any disk.
 *
 * Nothing in the table waits for memory that others hold (what it takes comes
 * from mempools), nor for the worker that handles deferred bios: so that worker
 * may wait for memory, for the bitmap to be read, or for a sync, and a sync may
 * wait for the table to empty.
 *
 * Who waits for whom. Either device may hang, or take long. I/O that needs neither goes on;
 * and I/O that needs the cow device does not wait for rdo, but where memory is so short
 * that there is none but what others will give back. Each queue waits for nothing but
 * what is said here, so that there is no circle:
 *
 *	queue     runs                        and waits for
 *	--------  --------------------------  ------------------------------------------
 *	rdo       begins reads of rdo         rdo; memory for these reads: others of them
 *	io        commits, stores of copy-    the cow device; memory for stores: others
 *	          ups, writes in pieces,      of them
 *	          events
 *	load      reads, and writes, whose    the cow device; memory for the bitmap:
 *	          part of the bitmap is not   commits (its own), first writes in the table;
 *	          in memory, some of them at  memory for parts of reads: other such reads
 *	          the same time
 *	deferred  other deferred writes       as load does; the gate: a sync, for a bounded
 *	                                      time; memory for a unit: copy-ups in the table
 *	          discards                    the cow device, memory for the bitmap, the gate
 *	          counting                    the cow device
 *
 *	first writes in the table wait for the device they are sent to: a copy-up for rdo,
 *	          and then for the cow device; and for the queues rdo and io
 *	flushes, and FUA, wait for commits: the queue io
 *	a message sync waits for the table, and for discards at work; with the gate shut for
 *	          a short time only; read_only and close for all writes, and close for reads
 *	          of the cow device: until a signal comes
 *
 * A message, and the load and deferred queues, are waited for by the sender of the bio
 * that is in them, and by a suspend; by nobody else.
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
 * Flushes. If no bit has changed since the last commit a flush goes down as it
 * is. Otherwise it waits for a commit; one commit serves all that wait. A write
 * with FUA is completed by a commit if bits have to be committed for it. A
 * timer commits what nobody has asked for.
 *
 * A flush whose commit finds no space fails. Device-mapper drops this error where
 * the flush is a part of a write, and sends the write all the same, which then looks
 * like any other. Hence a commit is owed from before somebody is told that there was
 * no space for one until a commit has succeeded, and:
 *
 *	While a commit is owed, no write is sent to the cow device that map is given.
 *
 * Each is held back, a worker tries the commit again, and then the write goes on or
 * fails, too. That a commit is owed is kept with the cowfile, for a table that is
 * loaded meanwhile. A commit that only the timer has asked for, and that finds no
 * space, is not owed: nobody takes anything for durable, and rewrites go on. All
 * other errors of a flush or a commit end in mode fail, before anybody is told.
 *
 * Discards. Those of whole units clear their bits; then the bits are committed,
 * and only then is the space in the cow device given back. Until it has been, a
 * first write to one of the units would be lost with it, so:
 *
 *	While a discard is at work, nothing in the table covers any of its units.
 *
 * This holds because the range of a discard is published before it looks at the table,
 * and is withdrawn when it has done its work. A write looks for ranges under the lock
 * of its bucket, before it enters. One that finds a range in its way waits for that
 * discard's end, and then looks again: others may overlap. The discard goes through
 * the buckets, by their locks, after it has been published. So whatever it does not
 * find there comes later, and finds the range. What it does find, and overlaps, was
 * there before; it is marked, and the discard waits for its end, and looks again. All
 * else goes on, other discards too. A write that is folded into a copy-up meanwhile
 * makes no entry, and ends with the copy-up, before the discard has begun to work.
 * Discards are at work with the gate open, as first writes are, since they change
 * bits, too.
 *
 * Rewrites that found their bit set before it was cleared are in flight when the
 * discard is: they race it as they would on any disk, and may be lost with what they
 * have overwritten.
 *
 * Space. A write that finds none ends with ENOSPC: one beyond the limit, one that
 * the cow device has no room for, one whose part of the bitmap it has no room
 * for. All the rest goes on, and nothing is decided for those that follow: each
 * is tried. Mode out_of_space only tells of it, until a first write succeeds that was
 * begun in this mode, or room was made by a discard or a message; where none but
 * rewrites have lacked space, until a rewrite succeeds; and where none but commits
 * have, until a commit does. With
 * queue_if_no_space such writes are kept, in the order in which they came, and
 * those that come later queue behind them; the first is tried again every
 * second, and when it succeeds then the next. Those for which units are reserved are
 * before all others, and queue behind none of these.
 *
 * A cow device that has gone has the size 0. That is an error, not a lack of space,
 * and ends in mode fail, in which nothing is kept: all that was ends with an error. A
 * loop device may not tell one from the other (cow_hides_no_space()). Its errors are
 * taken for want of space, but a commit is tried soon, whose flush fails if it is the
 * device; and from COW_UNSURE_DELAY after the first in a row of such errors on, no
 * write is kept for one.
 */

#include "dm-cowloop.h"
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

#define DM_MSG_PREFIX "cowloop"

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

/* A device in a later mode does not go back to an earlier one, but for the first two. */
enum cow_mode {
	COW_MODE_RW,
	COW_MODE_OUT_OF_SPACE,
	COW_MODE_RO,
	COW_MODE_FAIL,
	COW_MODE_CLOSED,
};

static const char * const cow_mode_names[] = {
	[COW_MODE_RW] = "rw",
	[COW_MODE_OUT_OF_SPACE] = "out_of_space",
	[COW_MODE_RO] = "ro",
	[COW_MODE_FAIL] = "fail",
	[COW_MODE_CLOSED] = "closed",
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

/*
 * A cowfile in use, and the targets that use it: more than one while a table
 * is reloaded, of which one at most is live.
 */
struct cowfile {
	struct list_head list;
	struct block_device *bdev;
	struct mapped_device *owner;
	struct cow_md *md;		/* NULL while it is being opened */
	bool closing;			/* not to be shared any more */
	struct list_head users;
};

static DEFINE_MUTEX(cowfiles_lock);
/* Cow devices are let go of when nobody looks at them: see cowloop_iterate_devices(). */
DEFINE_STATIC_SRCU(cow_devices_srcu);
static LIST_HEAD(cowfiles);

static const char *cow_name(struct cowloop *cow)
{
	return dm_device_name(dm_table_get_md(cow->ti->table));
}

/* Of a write that was accepted. */
static struct cow_io *bio_to_io(struct bio *bio)
{
	return bio->bi_private;
}

/* ---- Remapping ---- */

/* Where the contents of @unit, and of at most @nr (> 0) from it on, are. Any context. */
static struct cow_run lookup(struct cowloop *cow, u64 unit, unsigned int nr)
{
	struct cow_run run;

	rcu_read_lock_sched();
	run = cow_lookup_run(&cow->map, unit, nr);
	rcu_read_unlock_sched();

	return run;
}

static u64 sector_to_unit(struct cowloop *cow, sector_t sector)
{
	return sector >> cow->unit_shift;
}

static sector_t unit_start(struct cowloop *cow, u64 unit)
{
	return (sector_t)unit << cow->unit_shift;
}

static sector_t unit_end(struct cowloop *cow, u64 unit)
{
	return min(unit_start(cow, unit + 1), cow->units_end);
}

/* Units that a bio touches. */
static unsigned int bio_units(struct cowloop *cow, struct bio *bio)
{
	return sector_to_unit(cow, bio_end_sector(bio) - 1) -
	       sector_to_unit(cow, bio->bi_iter.bi_sector) + 1;
}

/*
 * Let @bio wait from now on, for whatever it has to. Nobody is to poll for it either:
 * who does may be the one that it waits for.
 */
static void let_wait(struct bio *bio)
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
static bool trim_bio(struct bio *bio, sector_t end)
{
	if (end < bio_end_sector(bio)) {
		if (unlikely(bio->bi_opf & REQ_POLLED))
			let_wait(bio);
		if (unlikely(bio->bi_opf & REQ_NOWAIT))
			return false;
		dm_accept_partial_bio(bio, end - bio->bi_iter.bi_sector);
	}
	return true;
}

static int end_bio(struct bio *bio, blk_status_t status)
{
	bio->bi_status = status;
	bio_endio(bio);

	return DM_MAPIO_SUBMITTED;
}

static void end_bios(struct bio_list *bios, blk_status_t status)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios)))
		end_bio(bio, status);
}

static int remap_to_rdo(struct cowloop *cow, struct bio *bio)
{
	bio_set_dev(bio, cow->rdo_bdev);

	return DM_MAPIO_REMAPPED;
}

static int remap_to_cow(struct cowloop *cow, struct bio *bio)
{
	bio_set_dev(bio, cow->cow->bdev);
	bio->bi_iter.bi_sector += cow->data_sector;

	return DM_MAPIO_REMAPPED;
}

static void defer_bios(struct cowloop *cow, struct bio_list *bios)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	bio_list_merge(&cow->deferred, bios);
	queue_work(cow->deferred_wq, &cow->deferred_work);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/*
 * Count a bio, if the mode is @last or an earlier one: false if it is not, and the
 * bio is to be refused. See drain(). Any context.
 */
static __always_inline bool begin_flight(struct cowloop *cow, struct bio *bio,
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

/* Take all the bios off a list of @cow's. Process context. */
static struct bio_list take_bios(struct cowloop *cow, struct bio_list *list)
{
	struct bio_list bios;

	spin_lock_irq(&cow->lock);
	bios = *list;
	bio_list_init(list);
	spin_unlock_irq(&cow->lock);

	return bios;
}

/* Have @function run, in @wq, on the cow_io of @bio, which may be a read. Any context. */
static void queue_bio(struct cowloop *cow, struct bio *bio, struct workqueue_struct *wq,
		      work_func_t function)
{
	struct cow_io *io = dm_per_bio_data(bio, sizeof(*io));

	io->cowloop = cow;
	INIT_WORK(&io->work, function);
	queue_work(wq, &io->work);
}

/* The other way. */
static struct bio *work_to_bio(struct work_struct *work, struct cowloop **cow)
{
	struct cow_io *io = container_of(work, struct cow_io, work);

	*cow = io->cowloop;

	return dm_bio_from_per_bio_data(io, sizeof(*io));
}

static noinline int defer_bio(struct cowloop *cow, struct bio *bio)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	bio_list_add(&bios, bio);
	defer_bios(cow, &bios);

	return DM_MAPIO_SUBMITTED;
}

/* ---- Modes ---- */

/*
 * Bios that map does not decide on alone: all but reads and writes; in general
 * those that have to do with durability, or are polled and the rest of another
 * one; and all writes, where they are refused, held back, or may have to be kept, or
 * where it matters whether a rewrite finds space.
 */
static void set_map_state(struct cowloop *cow, enum cow_mode mode)
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
static void update_map_state(struct cowloop *cow)
{
	unsigned long flags;

	/* The lock is for the last one to look to be the last one to say so. */
	spin_lock_irqsave(&cow->lock, flags);
	set_map_state(cow, cow->mode);
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
static bool change_mode(struct cowloop *cow, enum cow_mode mode)
{
	unsigned long flags;
	bool change;

	spin_lock_irqsave(&cow->lock, flags);
	change = mode > cow->mode;
	if (change) {
		WRITE_ONCE(cow->mode, mode);
		set_map_state(cow, mode);
	}
	if (change && mode == COW_MODE_FAIL)
		end_waiting(cow);
	spin_unlock_irqrestore(&cow->lock, flags);

	return change;
}

/* Sleeps: raises an event. */
static void set_mode(struct cowloop *cow, enum cow_mode mode)
{
	if (change_mode(cow, mode))
		dm_table_event(cow->ti->table);
}

static void do_event(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, event_work);

	dm_table_event(cow->ti->table);
}

static void metadata_failed(struct cowloop *cow, const char *what, int r)
{
	atomic_long_inc(&cow->errors);
	DMERR("%s: cow device %pg: %s failed: error %d; writes and flushes fail from now on",
	      cow_name(cow), cow->cow->bdev, what, r);
	set_mode(cow, COW_MODE_FAIL);
}

/* For a @reason that is logged it is not known any more what is durable. Any context. */
static void device_failed(struct cowloop *cow, const char *reason, int r)
{
	cow_md_set_failed(cow->md);
	if (change_mode(cow, COW_MODE_FAIL)) {
		DMERR("%s: cow device %pg: %s: error %d; writes and flushes fail from now on",
		      cow_name(cow), cow->cow->bdev, reason, r);
		queue_work(cow->io_wq, &cow->event_work);
	}
}

/* False if the cow device has gone. Any context, before the end of a flight that needs it. */
static bool still_there(struct cowloop *cow)
{
	if (likely(bdev_nr_sectors(cow->cow->bdev)))
		return true;
	device_failed(cow, "has gone", -ENODEV);
	return false;
}

/* ---- Space ---- */

/*
 * A filesystem lives on when there is no space for data; without space for its
 * own blocks it does not.
 */
static bool is_urgent(struct bio *bio)
{
	return bio->bi_opf & REQ_META;
}

/* Such a write may find space where others would not: that proves nothing. */
static bool is_reserved_for(struct cowloop *cow, struct bio *bio)
{
	return cow->opt.reserve && READ_ONCE(cow->opt.limit) && is_urgent(bio);
}

/* The units that there may be in the cowfile. */
static u64 space_limit(struct cowloop *cow)
{
	const u64 limit = READ_ONCE(cow->opt.limit);
	const sector_t end = bdev_nr_sectors(cow->cow->bdev);
	u64 fit = cow_md_geometry(cow->md)->nr_units;

	/* The last one may be short. Without any sectors it is not space that is lacking. */
	if (end && end < cow->data_sector + cow->units_end)
		fit = end > cow->data_sector ? sector_to_unit(cow, end - cow->data_sector) : 0;

	return limit ? min(limit, fit) : fit;
}

/* Whether so few units are left that low water has been reached. */
static bool is_low(struct cowloop *cow)
{
	const u64 limit = space_limit(cow), used = cow_md_used(cow->md);

	return (limit > used ? limit - used : 0) <= READ_ONCE(cow->opt.low_water);
}

static noinline void update_low(struct cowloop *cow)
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

/*
 * Raise an event if low water has been reached, once until there is more again.
 * Any context.
 */
static void check_low_water(struct cowloop *cow)
{
	if (unlikely(READ_ONCE(cow->opt.low_water)))
		update_low(cow);
}

/* From mode out_of_space, if that is the mode. */
static void leave_out_of_space(struct cowloop *cow)
{
	lockdep_assert_held(&cow->lock);
	if (cow->mode != COW_MODE_OUT_OF_SPACE)
		return;
	WRITE_ONCE(cow->mode, COW_MODE_RW);
	set_map_state(cow, COW_MODE_RW);
	cow->space_since = get_jiffies_64();
	queue_work(cow->io_wq, &cow->event_work);
}

static void do_leave(struct work_struct *work)
{
	struct cowloop *cow = container_of(to_delayed_work(work), struct cowloop, leave_work);

	spin_lock_irq(&cow->lock);
	if (READ_ONCE(cow->found_space) && !cow->lacks)
		leave_out_of_space(cow);
	spin_unlock_irq(&cow->lock);
}

/* Room was made for whoever lacks it. Any context. */
static void space_made(struct cowloop *cow)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	cow->unsure_since = 0;
	cow->lacks = 0;
	set_map_state(cow, cow->mode);
	leave_out_of_space(cow);
	retry_kept(cow, 0);
	spin_unlock_irqrestore(&cow->lock, flags);
}

/*
 * I/O of the kind @lack, which takes space, has found some. Where writes
 * succeed and fail in turn the mode does not follow each of them: it is left a little later
 * then, if none has failed meanwhile. Any context.
 */
static noinline void space_found(struct cowloop *cow, enum cow_lack lack)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	if (lack == COW_LACK_UNITS)
		cow->unsure_since = 0;
	cow->lacks &= ~GENMASK(lack, 0);
	set_map_state(cow, cow->mode);
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
static void out_of_space(struct cowloop *cow, enum cow_lack lack)
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
	set_map_state(cow, cow->mode);
	spin_unlock_irqrestore(&cow->lock, flags);
	if (__ratelimit(&cow->space_log))
		DMWARN("%s: cow device %pg: no space for a write: %llu of %llu units used; %s",
		       cow_name(cow), cow->cow->bdev, cow_md_used(cow->md), space_limit(cow),
		       cow->opt.queue_if_no_space ? "such writes wait" : "such writes fail");
}

/*
 * There was an error of the cow device that may be for want of space. Have a commit tried
 * soon: its flush tells a device that has failed from one that is full. Any context.
 */
static void unsure_error(struct cowloop *cow)
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
static bool worth_waiting(struct cowloop *cow, bool unsure)
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
static bool keep_bio(struct cowloop *cow, struct bio *bio)
{
	const bool reserved = is_reserved_for(cow, bio);
	struct bio_list *list = reserved ? &cow->reserved_bios : &cow->no_space_bios;
	struct cow_io *io = bio_to_io(bio);
	unsigned long flags;
	bool kept;

	if (likely(!cow->opt.queue_if_no_space))
		return false;

	spin_lock_irqsave(&cow->lock, flags);
	kept = worth_waiting(cow, io->unsure);
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

/* The first of the writes that were kept has ended: on with the next. Any context. */
static void end_retried(struct cowloop *cow)
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
static struct bio_list take_kept(struct cowloop *cow)
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
static void stop_queueing(struct cowloop *cow)
{
	struct bio_list bios;

	spin_lock_irq(&cow->lock);
	cow->queueing = false;
	spin_unlock_irq(&cow->lock);
	cancel_delayed_work_sync(&cow->retry_work);

	spin_lock_irq(&cow->lock);
	bios = take_kept(cow);
	/* A commit that waits for space. */
	if (!bio_list_empty(&cow->commit_bios) || !bio_list_empty(&cow->held_back))
		queue_work(cow->io_wq, &cow->commit_work);
	spin_unlock_irq(&cow->lock);

	end_bios(&bios, BLK_STS_NOSPC);
}

static void start_queueing(struct cowloop *cow)
{
	spin_lock_irq(&cow->lock);
	cow->no_commit_timer = false;
	cow->queueing = cow->opt.queue_if_no_space && cow->mode <= COW_MODE_OUT_OF_SPACE;
	spin_unlock_irq(&cow->lock);
}

/* Make a write what it was before it went to the cow device. */
static void restore_bio(struct bio *bio)
{
	struct cow_io *io = bio_to_io(bio);

	bio->bi_iter = io->iter;
	bio->bi_bdev = io->bdev;
	bio->bi_flags = io->flags;
	bio->bi_status = BLK_STS_OK;
	let_wait(bio);
	io->committed = false;
	io->for_units = false;
	/* It was chained to, if the cow device has split it. */
	atomic_set(&bio->__bi_remaining, 1);
}

/* A first write has failed: maybe for want of space, which some devices can't tell? */
static bool may_lack_space(struct cowloop *cow, blk_status_t status)
{
	return unlikely(status == BLK_STS_IOERR) && cow_hides_no_space(cow->cow->bdev);
}

/* ---- Commits ---- */

/*
 * Complete @bio, after a commit. Any context. The work is queued with the lock
 * held: once the bio can be completed, @cow may go away.
 */
static void commit_bio(struct cowloop *cow, struct bio *bio)
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
static noinline int hold_back(struct cowloop *cow, struct bio *bio)
{
	unsigned long flags;

	let_wait(bio);
	spin_lock_irqsave(&cow->lock, flags);
	bio_list_add(&cow->held_back, bio);
	queue_work(cow->io_wq, &cow->commit_work);
	spin_unlock_irqrestore(&cow->lock, flags);

	return DM_MAPIO_SUBMITTED;
}

/* Before somebody is told that there was no space for a commit: see the top. Any context. */
static void owe_commit(struct cowloop *cow)
{
	cow_md_owe_commit(cow->md);
	update_map_state(cow);
}

/* It has been flushed, too. Any context. */
static void commit_done(struct cowloop *cow)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	set_map_state(cow, cow->mode);
	if (!cow->writes_kept)
		cow->unsure_since = 0;
	spin_unlock_irqrestore(&cow->lock, flags);
}

static int commit(struct cowloop *cow)
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
		out_of_space(cow, COW_LACK_COMMIT);
	else
		metadata_failed(cow, "commit", r);
	if (r == -ENOSPC && cow_md_unsure(cow->md))
		unsure_error(cow);
	if (!r && writes && unlikely(READ_ONCE(cow->mode) == COW_MODE_OUT_OF_SPACE))
		space_found(cow, COW_LACK_COMMIT);

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
	kept = worth_waiting(cow, cow_md_unsure(cow->md));
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
			bio_to_io(bio)->committed = true;
			bio_to_io(bio)->unsure = unsure;
		}
		end_bio(bio, errno_to_blk_status(r));
	}
}

static void do_commit(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, commit_work);
	struct bio_list bios = take_bios(cow, &cow->commit_bios);
	struct bio_list held_back = take_bios(cow, &cow->held_back);
	int r = 0;

	if (!bio_list_empty(&bios) || !bio_list_empty(&held_back) || cow_md_changed(cow->md) ||
	    READ_ONCE(cow->unsure_since))
		r = commit(cow);
	if (r == -ENOSPC && commit_later(cow, &bios, &held_back))
		return;

	end_committed(cow, &bios, r);
	if (!r && !bio_list_empty(&held_back))
		defer_bios(cow, &held_back);
	else
		end_committed(cow, &held_back, r);
}

/*
 * What has changed is committed anyway after a while. The timer is left alone by
 * commits that come before, which are too many for that.
 */
static void do_commit_timer(struct work_struct *work)
{
	struct cowloop *cow = container_of(to_delayed_work(work), struct cowloop, commit_timer);

	queue_work(cow->io_wq, &cow->commit_work);
}

/* No commit is under way any more, nor begun by the timer. Sleeps. */
static void cancel_commits(struct cowloop *cow)
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
static int all_durable(struct cowloop *cow)
{
	return cow_md_changed(cow->md) || cow_md_failed(cow->md) ? -EIO : 0;
}

static int map_flush(struct cowloop *cow, struct bio *bio)
{
	if (READ_ONCE(cow->mode) == COW_MODE_FAIL)
		return end_bio(bio, BLK_STS_IOERR);
	if (READ_ONCE(cow->opt.read_only))
		return end_bio(bio, errno_to_blk_status(all_durable(cow)));
	if (cow_md_changed(cow->md)) {
		if (!begin_flight(cow, bio, COW_FLIGHT_OTHERS, COW_MODE_FAIL))
			return end_bio(bio, errno_to_blk_status(all_durable(cow)));
		commit_bio(cow, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (!begin_flight(cow, bio, COW_FLIGHT_FLUSHES, COW_MODE_FAIL))
		return end_bio(bio, errno_to_blk_status(all_durable(cow)));
	bio_set_dev(bio, cow->cow->bdev);

	return DM_MAPIO_REMAPPED;
}

/* ---- The table of first writes in flight ---- */

static struct cow_bucket *bucket_of(struct cowloop *cow, u64 unit)
{
	const u64 mib = unit_start(cow, unit) / COW_TRACK_SECTORS;

	return &cow->buckets[hash_64(mib, COW_BUCKET_BITS)];
}

static bool overlaps(const struct cow_io *io, u64 unit, unsigned int nr)
{
	return unit < io->unit + io->nr && io->unit < unit + nr;
}

static struct cow_io *find_overlap(struct cow_bucket *bucket, u64 unit, unsigned int nr)
{
	struct cow_io *io;

	lockdep_assert_held(&bucket->lock);
	hlist_for_each_entry(io, &bucket->writes, node)
		if (overlaps(io, unit, nr))
			return io;
	return NULL;
}

static struct cow_io *find_copyup(struct cow_bucket *bucket, u64 unit, unsigned int nr)
{
	struct cow_io *io;

	lockdep_assert_held(&bucket->lock);
	hlist_for_each_entry(io, &bucket->writes, node)
		if (io->state != COW_IO_FIRST && overlaps(io, unit, nr))
			return io;
	return NULL;
}

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
static noinline bool wait_for_discard(struct cowloop *cow, struct bio *bio, u64 unit,
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

/*
 * Whether a first write may enter the table, with the bucket's lock held: 1 if
 * so, and its units are held then; 0 if it is to be deferred; -EINPROGRESS if
 * it waits for a discard now; or another negative errno.
 */
static __always_inline int may_enter(struct cowloop *cow, struct bio *bio, u64 unit,
				     unsigned int nr)
{
	struct cow_io *io = bio_to_io(bio);

	/* DIRTY is on disk before the gate is open: see open_gate_locked(). */
	if (unlikely(!smp_load_acquire(&cow->gate_open)))
		return 0;
	if (unlikely(READ_ONCE(cow->nr_ranges)) && wait_for_discard(cow, bio, unit, nr))
		return -EINPROGRESS;
	return cow_md_hold(cow->md, unit, nr, is_urgent(bio), &io->hold);
}

/* A first write that may not enter the table, for a @reason of may_enter()'s. */
static noinline int not_entered(struct cowloop *cow, struct bio *bio, int reason)
{
	if (!reason)
		return defer_bio(cow, bio);
	if (reason == -EINPROGRESS)
		return DM_MAPIO_SUBMITTED;
	bio_to_io(bio)->for_units = true;
	return end_bio(bio, errno_to_blk_status(reason));
}

static void enter_table(struct cow_bucket *bucket, struct cow_io *io,
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

/* An entry has left the table that somebody has waited for. Any context. */
static noinline void awaited_ended(struct cowloop *cow, u8 awaited)
{
	if (awaited & COW_AWAITED_BY_SYNC)
		wake_up(&cow->drained);
	if (awaited & COW_AWAITED_BY_DISCARD)
		queue_work(cow->deferred_wq, &cow->discard_work);
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
		defer_bios(cow, &io->waiters);
	spin_unlock_irqrestore(&io->bucket->lock, flags);

	if (first)
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_COMMIT_DELAY);
	if (likely(!status)) {
		check_low_water(cow);
		if (unlikely(io->seeks_space))
			space_found(cow, COW_LACK_UNITS);
	}
	/* A sync or a discard that waits for the entry has marked it under the lock. */
	if (unlikely(awaited)) {
		io->awaited = 0;
		awaited_ended(cow, awaited);
	}
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
			metadata_failed(cow, "marking the cowfile dirty", r);
	}
	return r;
}

static int open_gate(struct cowloop *cow)
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
static int shut_gate(struct cowloop *cow)
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
						     /* Pairs with end_discards(). */
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

/* Go on counting the units in use, as is to be done after a crash. True if there are more. */
static bool count_some(struct cowloop *cow)
{
	const bool more = cow_md_count_some(cow->md);

	if (!more)
		check_low_water(cow);
	return more;
}

/*
 * Count as far as the bitmap can be read, or until a signal comes. What can't be read is
 * not in the limit: its own units fail, and no others.
 */
static void count_readable(struct cowloop *cow)
{
	while (cow_md_counting(cow->md) && !cow_md_failed(cow->md) && !signal_pending(current))
		count_some(cow);
}

/*
 * Count all units, for a clean head. Where that can't be done, the head stays DIRTY; -EINTR
 * after a signal.
 */
static int count_all(struct cowloop *cow)
{
	count_readable(cow);
	if (cow_md_failed(cow->md))
		return -EIO;
	return cow_md_counting(cow->md) ? -EINTR : cow_md_count_unread(cow->md);
}

/*
 * Bring all completed writes and their bits to stable storage, and leave a clean head,
 * unless counting the units has ended with an error, which is @counted. First writes are
 * held up meanwhile. -EINTR after a signal. With the message lock, where anything may be
 * in flight.
 */
static int commit_and_clean(struct cowloop *cow, int counted)
{
	int r;

	r = shut_gate(cow);
	if (r)
		return r;
	r = commit(cow);
	if (!r && !counted) {
		const bool writes = cow_md_is_dirty(cow->md);

		r = cow_md_clean(cow->md);
		if (r == -ENOSPC)
			out_of_space(cow, COW_LACK_COMMIT);
		else if (r)
			metadata_failed(cow, "marking the cowfile clean", r);
		else if (writes && READ_ONCE(cow->mode) == COW_MODE_OUT_OF_SPACE)
			space_found(cow, COW_LACK_COMMIT);
	}
	mutex_unlock(&cow->gate_lock);

	return r ? r : counted;
}

/* The same, but counts before. It can be done again when a signal has ended it. */
static int sync_cowfile(struct cowloop *cow)
{
	int counted;

	lockdep_assert_held(&cow->message_lock);
	if (READ_ONCE(cow->opt.read_only))
		return all_durable(cow);

	/* May take long: not while first writes are held up. */
	counted = count_all(cow);

	return counted == -EINTR ? counted : commit_and_clean(cow, counted);
}

static bool in_flight(struct cowloop *cow, enum cow_flight flight)
{
	unsigned long begun = 0, ended = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		ended += READ_ONCE(per_cpu_ptr(cow->stats, cpu)->ended[flight]);
	/* In this order, for none to be missed. */
	smp_rmb();
	for_each_possible_cpu(cpu)
		begun += READ_ONCE(per_cpu_ptr(cow->stats, cpu)->begun[flight]);

	return begun != ended;
}

/*
 * After the mode was changed to one in which no bios are begun any more that count as one
 * of @flights: wait for their end. Returns 0, or -EINTR after a signal.
 */
static int drain(struct cowloop *cow, unsigned long flights)
{
	unsigned int flight;

	/* The mode is tested, and the bio counted, in one RCU section. */
	synchronize_rcu();
	for_each_set_bit(flight, &flights, COW_NR_FLIGHTS)
		while (in_flight(cow, flight)) {
			if (signal_pending(current))
				return -EINTR;
			fsleep(1000);
		}
	return 0;
}

/*
 * Refuse writes from now on, and return when those under way are safe. After a signal,
 * with -EINTR, they are refused, but what is under way may not be safe yet; it can be done
 * again.
 */
static int make_read_only(struct cowloop *cow)
{
	bool change;
	int r;

	change = change_mode(cow, COW_MODE_RO);
	/* They would be waited for. */
	stop_queueing(cow);
	r = drain(cow, BIT(COW_FLIGHT_REWRITES) | BIT(COW_FLIGHT_WRITES));
	if (change)
		dm_table_event(cow->ti->table);
	if (!r)
		r = sync_cowfile(cow);
	if (!r)
		WRITE_ONCE(cow->opt.read_only, true);
	return r;
}

/*
 * Log what was written and is not durable, if there is any: the cow device has been
 * closed, or the device suspended, so that it may be. Nothing is in flight. Sleeps, does I/O.
 */
static void log_unsaved(struct cowloop *cow, bool closed)
{
	const bool failed = cow_md_failed(cow->md);
	const char *was = closed ? "closed" : "suspended";
	const char *why = failed ? "after an error" : "without space for a commit";
	const char *if_so = closed ? "" : " if the device is removed now";
	const char *and = failed ? ", and maybe rewrites since the last flush" : "";
	struct cow_unsaved units;
	int r;

	if (!all_durable(cow))
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

static int cowfile_begin_closing(struct cowloop *cow)
{
	int r = 0;

	mutex_lock(&cowfiles_lock);
	if (list_is_singular(&cow->cowfile->users))
		cow->cowfile->closing = true;
	else
		r = -EBUSY;
	mutex_unlock(&cowfiles_lock);

	return r;
}

static void cowfile_end_closing(struct cowloop *cow, bool closed)
{
	struct dm_dev *dev = cow->cow;

	mutex_lock(&cowfiles_lock);
	cow->cowfile->closing = false;
	if (closed) {
		cow->cowfile->bdev = NULL;
		WRITE_ONCE(cow->cow, NULL);
	}
	mutex_unlock(&cowfiles_lock);

	if (closed) {
		/* Not even cowloop_iterate_devices() has it any more. */
		synchronize_srcu(&cow_devices_srcu);
		dm_put_device(cow->ti, dev);
	}
}

/*
 * What is in rdo must be known without the cow device. In mode fail it is enough to have
 * tried: so much of the bitmap as can't be read is for reads to fail.
 */
static int load_all(struct cowloop *cow)
{
	const int r = cow_md_load_all(cow->md);

	return READ_ONCE(cow->mode) == COW_MODE_FAIL && r != -EINTR && r != -ENOMEM ? 0 : r;
}

/*
 * All that takes the cow device. Until the bitmap is in memory, which may take long, the
 * device is as it was, and stays so after an error.
 */
static int prepare_close(struct cowloop *cow)
{
	int r;

	r = load_all(cow);
	if (!r) {
		r = make_read_only(cow);
		/* What can't be saved any more keeps nobody from unplugging what has failed. */
		if (r != -EINTR && READ_ONCE(cow->mode) == COW_MODE_FAIL)
			r = 0;
		/* What was under way may have needed the memory. */
		if (!r)
			r = load_all(cow);
	}
	if (r)
		cow_md_may_evict(cow->md);

	return r;
}

/*
 * Sync, and let go of the cow device. What is in it can't be read any more. In mode fail
 * it is let go, too, and -EIO returned. -EINTR after a signal: how far it has come is what
 * the mode says, and it can be done again.
 */
static int close_cow(struct cowloop *cow)
{
	int r;

	if (!READ_ONCE(cow->cow))
		return all_durable(cow);
	r = cowfile_begin_closing(cow);
	if (r) {
		DMERR("%s: a table that was loaded uses cow device %pg too; see dmsetup clear",
		      cow_name(cow), cow->cow->bdev);
		return r;
	}

	/* In this mode it was ended by a signal, when it waited for the cow device's reads. */
	r = READ_ONCE(cow->mode) == COW_MODE_CLOSED ? 0 : prepare_close(cow);
	if (!r) {
		WRITE_ONCE(cow->opt.read_only, true);
		change_mode(cow, COW_MODE_CLOSED);
		r = drain(cow, BIT(COW_FLIGHT_READS) | BIT(COW_FLIGHT_FLUSHES) |
			       BIT(COW_FLIGHT_OTHERS));
	}
	if (!r) {
		cancel_work_sync(&cow->count_work);
		cancel_work_sync(&cow->discard_work);
		cancel_commits(cow);
		log_unsaved(cow, true);
		cow_md_let_go(cow->md);
	}
	cowfile_end_closing(cow, !r);
	/* Whoever hears of it may unmount what held the cow device. */
	if (!r)
		dm_table_event(cow->ti->table);

	return r ? r : all_durable(cow);
}

/* ---- Loading the bitmap ---- */

/* A commit which, if there is no space for it, is done again by the timer. */
static int commit_soon(struct cowloop *cow)
{
	const int r = commit(cow);

	if (r == -ENOSPC)
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_COMMIT_DELAY);
	return r;
}

/* There is no memory for a part of the bitmap: have some become free. */
static int commit_for_memory(struct cowloop *cow)
{
	if (cow_md_failed(cow->md))
		return -ENOMEM;
	/* In this order: what ends meanwhile has bits to be committed. */
	fsleep(COW_MEMORY_DELAY);

	return cow_md_changed(cow->md) ? commit_soon(cow) : 0;
}

/* Bring the bitmap's part for @unit into memory, however little there is. */
static int load(struct cowloop *cow, u64 unit, bool for_write)
{
	int r;

	while ((r = cow_md_load(cow->md, unit, for_write)) > 0) {
		r = commit_for_memory(cow);
		/* A read needs memory only, of which there will be some. */
		if (r && (r != -ENOSPC || for_write))
			break;
	}
	return r;
}

/* ---- Reads ---- */

static void do_load_read(struct work_struct *work);

/* Map a read of which the first units, or all, are @run. */
static noinline int map_read(struct cowloop *cow, struct bio *bio, struct cow_run run)
{
	const u64 unit = sector_to_unit(cow, bio->bi_iter.bi_sector);

	if (run.nr < bio_units(cow, bio) && !trim_bio(bio, unit_start(cow, unit + run.nr)))
		return end_bio(bio, BLK_STS_AGAIN);

	switch (run.where) {
	case COW_IN_RDO:
		this_cpu_inc(cow->stats->begun[COW_FLIGHT_NONE]);
		return remap_to_rdo(cow, bio);
	case COW_IN_COW:
		if (unlikely(!begin_flight(cow, bio, COW_FLIGHT_READS, COW_MODE_FAIL)))
			return end_bio(bio, BLK_STS_IOERR);
		return remap_to_cow(cow, bio);
	case COW_UNKNOWN:
		if (likely(begin_flight(cow, bio, COW_FLIGHT_OTHERS, COW_MODE_FAIL))) {
			queue_bio(cow, bio, cow->load_wq, do_load_read);
			return DM_MAPIO_SUBMITTED;
		}
		/* All was loaded before the mode changed. */
		smp_rmb();
		run = lookup(cow, unit, bio_units(cow, bio));
		return run.where == COW_UNKNOWN ? end_bio(bio, BLK_STS_IOERR) :
						  map_read(cow, bio, run);
	default:
		return end_bio(bio, BLK_STS_IOERR);
	}
}

/* Bios for rdo, by somebody who may wait for it. Sleeps. */
static void do_rdo(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, rdo_work);
	struct bio_list bios = take_bios(cow, &cow->rdo_bios);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios)))
		submit_bio_noacct(bio);
}

static void send_to_rdo(struct cowloop *cow, struct bio *bio)
{
	remap_to_rdo(cow, bio);
	spin_lock_irq(&cow->lock);
	bio_list_add(&cow->rdo_bios, bio);
	queue_work(cow->rdo_wq, &cow->rdo_work);
	spin_unlock_irq(&cow->lock);
}

/*
 * A read whose part of the bitmap was not in memory. It can't be trimmed any more: it is
 * split instead.
 */
static void do_load_read(struct work_struct *work)
{
	struct cowloop *cow;
	struct bio *bio = work_to_bio(work, &cow);
	struct bio *split = NULL;

	/* It has waited; and an EAGAIN from here would not be tried again. */
	let_wait(bio);
	while (split != bio) {
		const sector_t sector = bio->bi_iter.bi_sector;
		const u64 unit = sector_to_unit(cow, sector);
		const unsigned int nr = bio_units(cow, bio);
		const struct cow_run run = lookup(cow, unit, nr);
		int r;

		if (run.where == COW_UNKNOWN) {
			r = load(cow, unit, false);
			if (!r)
				continue;
			end_bio(bio, errno_to_blk_status(r));
			return;
		}

		split = bio;
		if (run.nr < nr) {
			split = bio_split(bio, unit_start(cow, unit + run.nr) - sector,
					  GFP_NOIO, &cow->splits);
			bio_chain(split, bio);
		}
		if (run.where == COW_BAD) {
			end_bio(split, BLK_STS_IOERR);
			continue;
		}
		if (run.where == COW_IN_RDO) {
			this_cpu_inc(cow->stats->rdo_reads);
			send_to_rdo(cow, split);
		} else {
			this_cpu_inc(cow->stats->cow_reads);
			remap_to_cow(cow, split);
			submit_bio_noacct(split);
		}
		cond_resched();
	}
}

/* ---- Cow devices that may take a write in part ---- */

/* The sectors up to where a piece of a write to the cow device ends. */
static unsigned int piece_sectors(struct cowloop *cow, struct bio *bio)
{
	const sector_t sector = bio->bi_iter.bi_sector + get_start_sect(bio->bi_bdev);

	return cow->write_sectors - (sector & (cow->write_sectors - 1));
}

static bool in_pieces(struct cowloop *cow, struct bio *bio)
{
	return unlikely(cow->write_sectors) && bio_op(bio) == REQ_OP_WRITE &&
	       bio_sectors(bio) > piece_sectors(cow, bio);
}

/* Submit a write that was remapped, in pieces if need be. Sleeps. */
static void submit_write(struct cowloop *cow, struct bio *bio)
{
	while (in_pieces(cow, bio)) {
		struct bio *piece = bio_split(bio, piece_sectors(cow, bio), GFP_NOIO, &cow->pieces);

		bio_chain(piece, bio);
		submit_bio_noacct(piece);
	}
	submit_bio_noacct(bio);
}

static void submit_write_later(struct work_struct *work)
{
	struct cowloop *cow;
	struct bio *bio = work_to_bio(work, &cow);

	submit_write(cow, bio);
}

/* Map a write to what is in the cowfile, or will be. */
static int write_to_cow(struct cowloop *cow, struct bio *bio)
{
	remap_to_cow(cow, bio);
	if (!in_pieces(cow, bio))
		return DM_MAPIO_REMAPPED;

	/* Not all the pieces could be had in map, which submits none before it returns. */
	let_wait(bio);
	queue_bio(cow, bio, cow->io_wq, submit_write_later);

	return DM_MAPIO_SUBMITTED;
}

/* ---- Copy-up ---- */

/* Memory for a unit, or NULL if @gfp does not allow to wait for it. */
static void *alloc_unit(struct cowloop *cow, gfp_t gfp)
{
	void *data = NULL;
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	if (cow->nr_spares)
		data = cow->spares[--cow->nr_spares];
	spin_unlock_irqrestore(&cow->lock, flags);

	return data ? data : mempool_alloc(&cow->units, gfp);
}

/* Any context. */
static void free_unit(struct cowloop *cow, void *data)
{
	unsigned long flags;

	/* Not while others wait for it. */
	if (READ_ONCE(cow->units.curr_nr) >= cow->units.min_nr) {
		spin_lock_irqsave(&cow->lock, flags);
		if (cow->nr_spares < cow->max_spares) {
			cow->spares[cow->nr_spares++] = data;
			data = NULL;
		}
		spin_unlock_irqrestore(&cow->lock, flags);
	}
	if (data)
		mempool_free(data, &cow->units);
}

/* Any context. @io goes away with the last of its bios. */
static void copyup_end(struct cow_io *io, blk_status_t status, bool unsure)
{
	struct cowloop *cow = io->cowloop;
	struct bio_list bios = io->folded;
	struct bio *bio;

	free_unit(cow, io->data);
	end_first_write(cow, io, status);

	while ((bio = bio_list_pop(&bios))) {
		bio_to_io(bio)->for_units = status;
		bio_to_io(bio)->unsure = unsure;
		end_bio(bio, status);
	}
}

static sector_t copyup_sectors(struct cow_io *io)
{
	struct cowloop *cow = io->cowloop;

	return unit_end(cow, io->unit) - unit_start(cow, io->unit);
}

/* Lay the data of @bio over the unit at @data, which begins at sector @start. */
static void lay_over(void *data, sector_t start, struct bio *bio)
{
	void *to = data + ((bio->bi_iter.bi_sector - start) << SECTOR_SHIFT);
	struct bvec_iter iter;
	struct bio_vec bv;

	if (bio_op(bio) == REQ_OP_WRITE_ZEROES) {
		memset(to, 0, bio->bi_iter.bi_size);
		return;
	}
	bio_for_each_segment(bv, bio, iter) {
		memcpy_from_bvec(to, &bv);
		to += bv.bv_len;
	}
}

static void copyup_stored(struct bio *store)
{
	struct cow_io *io = store->bi_private;
	const blk_status_t status = store->bi_status;

	bio_put(store);
	copyup_end(io, status, may_lack_space(io->cowloop, status));
}

/*
 * Store the unit, with the data of all the bios laid over it. In a bio, since
 * dm-io would not tell when the cow device is out of space.
 */
static void copyup_store(struct work_struct *work)
{
	struct cow_io *io = container_of(work, struct cow_io, work);
	struct cowloop *cow = io->cowloop;
	struct cow_bucket *bucket = bucket_of(cow, io->unit);
	const sector_t start = unit_start(cow, io->unit);
	const size_t length = copyup_sectors(io) << SECTOR_SHIFT;
	/* The last unit may end within a block of the cow device. */
	const size_t size = min_t(size_t, round_up(length, bdev_logical_block_size(cow->cow->bdev)),
				  1U << (cow->unit_shift + SECTOR_SHIFT));
	blk_opf_t opf = REQ_OP_WRITE | cow->write_flags;
	struct bio *bio, *store;

	spin_lock_irq(&bucket->lock);
	io->state = COW_IO_COPYUP_STORE;
	spin_unlock_irq(&bucket->lock);

	if (io->read_failed) {
		copyup_end(io, BLK_STS_IOERR, false);
		return;
	}

	memset(io->data + length, 0, size - length);
	bio_list_for_each(bio, &io->folded) {
		lay_over(io->data, start, bio);
		opf |= bio->bi_opf & (REQ_SYNC | REQ_META | REQ_PRIO);
	}
	if (cow->zero_needs_commit && !memchr_inv(io->data, 0, size)) {
		bio_list_for_each(bio, &io->folded) {
			struct cow_io *folded = bio_to_io(bio);

			folded->commit = true;
		}
	}

	store = bio_alloc_bioset(cow->cow->bdev, 1, opf, GFP_NOIO, &cow->bios);
	store->bi_iter.bi_sector = cow->data_sector + start;
	store->bi_private = io;
	store->bi_end_io = copyup_stored;
	/* Memory from kmalloc() is contiguous, and so one vector, however large. */
	__bio_add_page(store, virt_to_page(io->data), size, offset_in_page(io->data));
	submit_write(cow, store);
}

static void copyup_read(struct bio *read)
{
	struct cow_io *io = read->bi_private;

	io->read_failed = read->bi_status;
	bio_put(read);
	INIT_WORK(&io->work, copyup_store);
	queue_work(io->cowloop->io_wq, &io->work);
}

/* Read the unit from rdo. False if there is no bio, which @gfp may not allow to wait for. */
static bool copyup_start(struct cow_io *io, gfp_t gfp)
{
	struct cowloop *cow = io->cowloop;
	struct bio *read = bio_alloc_bioset(cow->rdo->bdev, 1, REQ_OP_READ, gfp,
					    &cow->rdo_reads);

	if (!read)
		return false;
	read->bi_iter.bi_sector = unit_start(cow, io->unit);
	read->bi_private = io;
	read->bi_end_io = copyup_read;
	__bio_add_page(read, virt_to_page(io->data), copyup_sectors(io) << SECTOR_SHIFT,
		       offset_in_page(io->data));
	this_cpu_inc(cow->stats->copyups);
	submit_bio_noacct(read);

	return true;
}

static void copyup_start_later(struct work_struct *work)
{
	copyup_start(container_of(work, struct cow_io, work), GFP_NOIO);
}

/* ---- Writes ---- */

/* A write that will set bits: durable only with a commit. */
static void take_fua(struct cow_io *io, struct bio *bio)
{
	if (bio->bi_opf & REQ_FUA) {
		bio->bi_opf &= ~REQ_FUA;
		io->commit = true;
	}
}

static int rewrite(struct cowloop *cow, struct bio *bio)
{
	/* The bits of the units may not be on disk yet; and an error of a flush is everybody's. */
	if (unlikely(bio->bi_opf & REQ_FUA) &&
	    (cow_md_changed(cow->md) || cow_md_failed(cow->md) ||
	     cow_fua_flushes(cow->cow->bdev)))
		take_fua(bio_to_io(bio), bio);

	return write_to_cow(cow, bio);
}

/* Whether a unit that @bio writes is all zeroes; @bio consists of whole units. */
static bool has_zero_unit(struct cowloop *cow, struct bio *bio)
{
	const unsigned int unit_size = 1U << (cow->unit_shift + SECTOR_SHIFT);
	unsigned int left = unit_size;
	bool zero = true;
	struct bvec_iter iter;
	struct bio_vec bv;

	if (bio_op(bio) == REQ_OP_WRITE_ZEROES)
		return true;
	bio_for_each_segment(bv, bio, iter) {
		void *data = bvec_kmap_local(&bv);
		unsigned int done, n;
		bool found = false;

		for (done = 0; done < bv.bv_len && !found; done += n) {
			n = min(left, bv.bv_len - done);
			zero = zero && !memchr_inv(data + done, 0, n);
			left -= n;
			if (!left) {
				found = zero;
				zero = true;
				left = unit_size;
			}
		}
		kunmap_local(data);
		if (found)
			return true;
	}
	return false;
}

/* While writes are kept: whether some of them are before @bio. */
static noinline bool has_to_queue(struct cowloop *cow, struct bio *bio)
{
	return !bio_to_io(bio)->retried &&
	       (!is_reserved_for(cow, bio) || READ_ONCE(cow->reserved_kept));
}

/*
 * Whether a first write is to be tried at all: not if the cow device ends before
 * @end, nor while others wait for space that are before it.
 */
static bool may_have_space(struct cowloop *cow, struct bio *bio, sector_t end)
{
	struct cow_io *io = bio_to_io(bio);

	io->kept = unlikely(READ_ONCE(cow->writes_kept)) && has_to_queue(cow, bio);

	return !io->kept && cow->data_sector + end <= bdev_nr_sectors(cow->cow->bdev);
}

/* The end of a first write that is not to be tried. */
static noinline int not_tried(struct cowloop *cow, struct bio *bio)
{
	bio_to_io(bio)->for_units = true;
	return end_bio(bio, still_there(cow) ? BLK_STS_NOSPC : BLK_STS_IOERR);
}

/* Write whole units in one MiB, none of which need have been written before. */
static __always_inline int write_units(struct cowloop *cow, struct bio *bio, u64 unit,
				       unsigned int nr)
{
	struct cow_bucket *bucket = bucket_of(cow, unit);
	struct cow_io *copyup, *io = bio_to_io(bio);
	int ready;

	if (unlikely(!may_have_space(cow, bio, bio_end_sector(bio))))
		return not_tried(cow, bio);
	if (unlikely(cow->zero_needs_commit) && has_zero_unit(cow, bio))
		io->commit = true;

	spin_lock_irq(&bucket->lock);
	copyup = hlist_empty(&bucket->writes) ? NULL : find_copyup(bucket, unit, nr);
	if (unlikely(copyup)) {
		bio_list_add(&copyup->waiters, bio);
		spin_unlock_irq(&bucket->lock);
		return DM_MAPIO_SUBMITTED;
	}
	ready = may_enter(cow, bio, unit, nr);
	if (likely(ready > 0))
		enter_table(bucket, io, COW_IO_FIRST, unit, nr);
	spin_unlock_irq(&bucket->lock);

	if (unlikely(ready <= 0))
		return not_entered(cow, bio, ready);
	take_fua(io, bio);

	return write_to_cow(cow, bio);
}

/*
 * Write a part of a unit that did not look written. *@data is memory for the
 * unit, if there is some, as there is in a worker; it is set to NULL when it was used.
 */
static int write_part(struct cowloop *cow, struct bio *bio, u64 unit, void **data)
{
	struct cow_bucket *bucket = bucket_of(cow, unit);
	struct cow_io *other, *io = bio_to_io(bio);
	const bool in_worker = *data;
	enum cow_where where;
	int ready;

	if (unlikely(!may_have_space(cow, bio, unit_end(cow, unit))))
		return not_tried(cow, bio);

	spin_lock_irq(&bucket->lock);
	/* Again, with the table locked: nobody can be about to set the bit. */
	where = lookup(cow, unit, 1).where;
	if (where == COW_IN_COW) {
		spin_unlock_irq(&bucket->lock);
		return rewrite(cow, bio);
	}
	other = find_overlap(bucket, unit, 1);
	if (other) {
		if (other->state == COW_IO_COPYUP_READ) {
			take_fua(io, bio);
			bio_list_add(&other->folded, bio);
		} else {
			bio_list_add(&other->waiters, bio);
		}
		spin_unlock_irq(&bucket->lock);
		return DM_MAPIO_SUBMITTED;
	}

	if (!*data)
		*data = alloc_unit(cow, GFP_NOWAIT);
	/* A bit that was not in memory may have been set long ago. */
	ready = *data && where != COW_UNKNOWN ? may_enter(cow, bio, unit, 1) : 0;
	if (ready > 0) {
		enter_table(bucket, io, COW_IO_COPYUP_READ, unit, 1);
		bio_list_init(&io->folded);
		bio_list_add(&io->folded, bio);
		io->cowloop = cow;
		io->data = *data;
		*data = NULL;
		take_fua(io, bio);
	}
	spin_unlock_irq(&bucket->lock);

	if (ready <= 0)
		return not_entered(cow, bio, ready);
	/* Who must not wait for rdo leaves it to somebody else to find room in its queue. */
	if (in_worker || bio->bi_opf & REQ_NOWAIT || !copyup_start(io, GFP_NOWAIT)) {
		INIT_WORK(&io->work, copyup_start_later);
		queue_work(cow->rdo_wq, &io->work);
	}

	return DM_MAPIO_SUBMITTED;
}

/* Where the whole units that @bio begins with end, or their MiB. */
static sector_t whole_units_end(struct cowloop *cow, struct bio *bio)
{
	const sector_t mib = round_down(bio->bi_iter.bi_sector, COW_TRACK_SECTORS);
	const sector_t end = min(bio_end_sector(bio), mib + COW_TRACK_SECTORS);

	/* The last unit may be short. */
	return end == cow->units_end ? end : unit_start(cow, sector_to_unit(cow, end));
}

/* A write whose part of the bitmap was not in memory, when it was looked up first. */
static void do_load_write(struct work_struct *work)
{
	struct cowloop *cow;
	struct bio *bio = work_to_bio(work, &cow);
	const int r = load(cow, sector_to_unit(cow, bio->bi_iter.bi_sector), false);

	if (r)
		end_bio(bio, errno_to_blk_status(r));
	else
		defer_bio(cow, bio);
}

/*
 * Map a write that was accepted, and of which the first units, or all, are @run. It is
 * trimmed to one of three: units that are all written, whole units in one MiB, or a
 * part of one unit. What has one of the latter two shapes
 * already, as deferred bios do, is not trimmed again; nor is one that is held back,
 * or may be kept for want of space, ever of the first.
 */
static int map_write(struct cowloop *cow, struct bio *bio, struct cow_run run, void **data)
{
	const sector_t sector = bio->bi_iter.bi_sector;
	const u64 unit = sector_to_unit(cow, sector);
	const bool aligned = sector == unit_start(cow, unit);
	const bool part = !aligned || bio_end_sector(bio) < unit_end(cow, unit);
	const bool hold = unlikely(READ_ONCE(cow->owes_commit));
	sector_t end;

	if (run.where == COW_IN_COW && (run.nr == bio_units(cow, bio) || !aligned) &&
	    likely(!cow->opt.queue_if_no_space && !hold)) {
		if (unlikely(!trim_bio(bio, unit_start(cow, unit + run.nr))))
			return end_bio(bio, BLK_STS_AGAIN);
		return rewrite(cow, bio);
	}
	if (unlikely(run.where == COW_BAD))
		return end_bio(bio, BLK_STS_IOERR);

	end = part ? unit_end(cow, unit) : whole_units_end(cow, bio);
	if (unlikely(!trim_bio(bio, end)))
		return end_bio(bio, BLK_STS_AGAIN);
	/* It could be tried again from here, whatever becomes of the bits. */
	if (unlikely(cow->opt.queue_if_no_space)) {
		struct cow_io *io = bio_to_io(bio);

		io->iter = bio->bi_iter;
		io->bdev = bio->bi_bdev;
		io->flags = bio->bi_flags;
		if (run.where == COW_IN_COW && run.nr >= bio_units(cow, bio) && likely(!hold))
			return rewrite(cow, bio);
	}
	if (unlikely(hold))
		return hold_back(cow, bio);
	/* It may turn out to be a rewrite, which takes no space. */
	if (unlikely(run.where == COW_UNKNOWN)) {
		queue_bio(cow, bio, cow->load_wq, do_load_write);
		return DM_MAPIO_SUBMITTED;
	}

	return part ? write_part(cow, bio, unit, data) :
		      write_units(cow, bio, unit, bio_units(cow, bio));
}

/* ---- Discards ---- */

/* Discard the units of which all is discarded. What is in rdo already takes no work. */
static int map_discard(struct cowloop *cow, struct bio *bio)
{
	struct cow_io *io = bio_to_io(bio);
	const u64 end = bio_end_sector(bio) < cow->units_end ?
			sector_to_unit(cow, bio_end_sector(bio)) :
			cow_md_geometry(cow->md)->nr_units;
	unsigned long flags;
	struct cow_run run;
	u64 unit;

	atomic_long_inc(&cow->nr_discards);
	/* It takes no space. */
	io->seeks_space = false;
	io->unit = sector_to_unit(cow, bio->bi_iter.bi_sector + (1U << cow->unit_shift) - 1);
	for (unit = io->unit; unit < end; unit += run.nr) {
		run = lookup(cow, unit, min_t(u64, end - unit, UINT_MAX));
		if (run.where != COW_IN_RDO)
			break;
	}
	if (unit >= end)
		return end_bio(bio, BLK_STS_OK);
	/* A bio is shorter than 4 GiB, and has fewer units than an int can count. */
	io->nr = end - io->unit;

	spin_lock_irqsave(&cow->lock, flags);
	bio_list_add(&cow->discards, bio);
	queue_work(cow->deferred_wq, &cow->discard_work);
	spin_unlock_irqrestore(&cow->lock, flags);

	return DM_MAPIO_SUBMITTED;
}

/* Publish the ranges of the discards that have come, for first writes to find. */
static void publish_ranges(struct cowloop *cow)
{
	struct bio_list bios = take_bios(cow, &cow->discards);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios))) {
		struct cow_io *io = bio_to_io(bio);

		bio_list_init(&io->waiters);
		bio_list_add(&cow->blocked_discards, bio);
		spin_lock_irq(&cow->lock);
		cow_range_insert(io, &cow->ranges);
		WRITE_ONCE(cow->nr_ranges, cow->nr_ranges + 1);
		spin_unlock_irq(&cow->lock);
	}
}

/* A discard has done its work, or will not do any. What has waited for it is mapped again. */
static void withdraw_range(struct cowloop *cow, struct cow_io *io)
{
	spin_lock_irq(&cow->lock);
	cow_range_remove(io, &cow->ranges);
	WRITE_ONCE(cow->nr_ranges, cow->nr_ranges - 1);
	spin_unlock_irq(&cow->lock);

	/* Nobody finds it any more. */
	if (!bio_list_empty(&io->waiters))
		defer_bios(cow, &io->waiters);
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
static struct bio_list take_ready_discards(struct cowloop *cow)
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
		io = bio_to_io(bio);
		bio_list_add(io->blocked ? &cow->blocked_discards : &ready, bio);
		io->blocked = false;
	}
	return ready;
}

/* Open the gate, and keep it open while discards are at work, if this returns 0. */
static int begin_discards(struct cowloop *cow)
{
	int r;

	mutex_lock(&cow->gate_lock);
	r = open_gate_locked(cow);
	WRITE_ONCE(cow->discard_runs, cow->discard_runs + 1);
	WRITE_ONCE(cow->discards_at_work, !r);
	mutex_unlock(&cow->gate_lock);

	return r;
}

static void end_discards(struct cowloop *cow)
{
	/* What it has changed is seen by whoever sees this: pairs with shut_gate(). */
	smp_store_release(&cow->discards_at_work, false);
	wake_up(&cow->drained);
}

/* Clear the bits of a discard's units, and count those that were set. */
static int clear_range(struct cowloop *cow, struct cow_io *io, long *cleared)
{
	const u64 end = io->unit + io->nr;
	u64 unit = io->unit;
	unsigned int run;
	int r;

	while (unit < end) {
		r = cow_md_clear(cow->md, unit, end - unit, &run);
		if (r >= 0) {
			*cleared += r;
			unit += run;
		} else {
			if (r == -ENOMEM)
				r = commit_for_memory(cow);
			if (r)
				return r;
		}
		cond_resched();
	}
	return 0;
}

/*
 * Give the space of a discard's units in the cow device back. In format 1 they
 * must read as zeroes, or repair would take them for written.
 */
static blk_status_t pass_down(struct cowloop *cow, struct cow_io *io)
{
	struct block_device *bdev = cow->cow->bdev;
	const sector_t start = cow->data_sector + unit_start(cow, io->unit);
	const sector_t end = min(cow->data_sector + unit_start(cow, io->unit + io->nr),
				 bdev_nr_sectors(bdev));
	blk_status_t status;
	struct bio *bio;

	if (!still_there(cow))
		return BLK_STS_IOERR;
	if (start >= end)
		return BLK_STS_OK;
	if (cow_md_geometry(cow->md)->format == 1)
		return errno_to_blk_status(blkdev_issue_zeroout(bdev, start, end - start,
								GFP_NOIO, 0));
	if (!bdev_max_discard_sectors(bdev))
		return BLK_STS_OK;

	bio = bio_alloc_bioset(bdev, 0, REQ_OP_DISCARD, GFP_NOIO, &cow->bios);
	bio->bi_iter.bi_sector = start;
	bio->bi_iter.bi_size = (end - start) << SECTOR_SHIFT;
	submit_bio_wait(bio);
	status = bio->bi_status;
	bio_put(bio);

	return status == BLK_STS_NOTSUPP ? BLK_STS_OK : status;
}

/* In format 1, units that can't be made zeroes for little are not discarded. */
static bool can_discard(struct cowloop *cow)
{
	return cow_md_geometry(cow->md)->format != 1 ||
	       (!cow->opt.no_discard_passdown && bdev_write_zeroes_sectors(cow->cow->bdev));
}

/* A discard's last step, after a commit that has ended with errno @r. */
static blk_status_t give_back(struct cowloop *cow, struct bio *bio, int r)
{
	if (r)
		return errno_to_blk_status(r);
	return cow->opt.no_discard_passdown ? BLK_STS_OK : pass_down(cow, bio_to_io(bio));
}

/*
 * Publish the discards that have come, and do those that nothing in the table is in the way
 * of; the others are for the next run. This waits for the cow device only, and for the gate.
 */
static void do_discards(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, discard_work);
	struct bio_list ready;
	long discarded = 0;
	struct bio *bio;
	int r;

	publish_ranges(cow);
	ready = take_ready_discards(cow);
	if (bio_list_empty(&ready))
		return;

	r = begin_discards(cow);
	bio_list_for_each(bio, &ready) {
		int error = r;

		if (!r && can_discard(cow))
			error = clear_range(cow, bio_to_io(bio), &discarded);
		bio->bi_status = errno_to_blk_status(error);
	}
	if (discarded) {
		r = commit_soon(cow);
		atomic_long_add(discarded, &cow->discarded_units);
		check_low_water(cow);
	}
	while ((bio = bio_list_pop(&ready))) {
		if (discarded && !bio->bi_status)
			bio->bi_status = give_back(cow, bio, r);
		withdraw_range(cow, bio_to_io(bio));
		if (discarded && !r)
			space_made(cow);
		bio_endio(bio);
		cond_resched();
	}
	end_discards(cow);
}

/* ---- Accepting and deferring writes ---- */

/* False if no writes are accepted any more: then @bio is to be refused. */
static __always_inline bool accept_write(struct cowloop *cow, struct bio *bio)
{
	struct cow_io *io;

	if (unlikely(!begin_flight(cow, bio, COW_FLIGHT_WRITES, COW_MODE_OUT_OF_SPACE)))
		return false;
	io = dm_per_bio_data(bio, sizeof(*io));
	bio->bi_private = io;
	io->state = COW_IO_WRITE;
	io->awaited = 0;
	io->committed = false;
	io->for_units = false;
	io->unsure = false;
	io->kept = false;
	io->retried = false;
	io->blocked = false;
	io->commit = false;
	io->seeks_space = unlikely(READ_ONCE(cow->mode) == COW_MODE_OUT_OF_SPACE) &&
			  !is_reserved_for(cow, bio);

	return true;
}

/* Whether a bio consists of whole units in one MiB, the last and short one left aside. */
static bool is_whole(struct cowloop *cow, struct bio *bio)
{
	const sector_t start = bio->bi_iter.bi_sector, end = bio_end_sector(bio);

	return !((start | end) & ((1U << cow->unit_shift) - 1)) &&
	       start / COW_TRACK_SECTORS == (end - 1) / COW_TRACK_SECTORS;
}

/* The usual first write: short for what accept_and_map() would come to. */
static noinline int accept_whole(struct cowloop *cow, struct bio *bio)
{
	if (unlikely(!accept_write(cow, bio)))
		return end_bio(bio, BLK_STS_IOERR);
	return write_units(cow, bio, sector_to_unit(cow, bio->bi_iter.bi_sector),
			   bio_units(cow, bio));
}

static noinline int accept_and_map(struct cowloop *cow, struct bio *bio, struct cow_run run)
{
	void *data = NULL;
	int r;

	if (unlikely(!accept_write(cow, bio)))
		return end_bio(bio, BLK_STS_IOERR);
	r = map_write(cow, bio, run, &data);
	if (unlikely(data))
		free_unit(cow, data);
	return r;
}

/* All the units that @bio writes are in the cowfile. */
static bool is_rewrite(struct cowloop *cow, struct bio *bio)
{
	const unsigned int nr = bio_units(cow, bio);
	const struct cow_run run = lookup(cow, sector_to_unit(cow, bio->bi_iter.bi_sector), nr);

	return run.where == COW_IN_COW && run.nr == nr;
}

static void deferred_write(struct cowloop *cow, struct bio *bio)
{
	const u64 unit = sector_to_unit(cow, bio->bi_iter.bi_sector);
	void *data = NULL;
	int r;

	/* First: to wait for memory might evict what is loaded. */
	if (bio_end_sector(bio) - bio->bi_iter.bi_sector < 1U << cow->unit_shift)
		data = alloc_unit(cow, GFP_NOIO);
	r = load(cow, unit, false);
	if (!r && !is_rewrite(cow, bio)) {
		/* The limit takes the right count. */
		if (READ_ONCE(cow->opt.limit))
			count_readable(cow);
		r = load(cow, unit, true);
		if (!r)
			r = open_gate(cow);
	}
	bio_to_io(bio)->for_units = r;
	if (r == -ENOSPC)
		bio_to_io(bio)->unsure = cow_md_unsure(cow->md);
	if (r)
		end_bio(bio, errno_to_blk_status(r));
	else if (map_write(cow, bio, lookup(cow, unit, bio_units(cow, bio)), &data) ==
		 DM_MAPIO_REMAPPED)
		submit_bio_noacct(bio);
	if (data)
		free_unit(cow, data);
}

static void do_deferred(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, deferred_work);
	struct bio_list bios = take_bios(cow, &cow->deferred);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios))) {
		/* It has waited; and an EAGAIN from here would not be tried again. */
		let_wait(bio);
		deferred_write(cow, bio);
		cond_resched();
	}
}

/* Try the first of the writes again that found no space. */
static void do_retry(struct work_struct *work)
{
	struct cowloop *cow = container_of(to_delayed_work(work), struct cowloop, retry_work);
	struct bio_list failed = BIO_EMPTY_LIST;
	struct cow_io *io;
	struct bio *bio;

	spin_lock_irq(&cow->lock);
	if (cow->mode == COW_MODE_FAIL)
		failed = take_kept(cow);
	bio = cow->retrying ? NULL : bio_list_pop(&cow->reserved_bios) ?:
				     bio_list_pop(&cow->no_space_bios);
	if (bio) {
		io = bio_to_io(bio);
		io->kept = false;
		io->unsure = false;
		io->retried = true;
		io->seeks_space = !is_reserved_for(cow, bio);
		cow->retrying = true;
		cow->nr_kept--;
	}
	spin_unlock_irq(&cow->lock);

	end_bios(&failed, BLK_STS_IOERR);
	if (bio)
		deferred_write(cow, bio);
}

static void do_count(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, count_work);

	if (count_some(cow))
		queue_work(cow->deferred_wq, &cow->count_work);
}

/* ---- Cowfiles in use ---- */

static int in_use(struct cowloop *cow, struct block_device *bdev, struct mapped_device *by,
		  const char *as)
{
	DMERR("%s: device %pg is in use by %s as its %s", cow_name(cow), bdev,
	      dm_device_name(by), as);
	cow->ti->error = "Device is in use by another cowloop device";

	return -EBUSY;
}

/* Nobody may have our cow device, which is @number, as its read-only device. */
static int check_read_only_devices(struct cowloop *cow, dev_t number)
{
	struct cowfile *file;
	struct cowloop *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		list_for_each_entry(user, &file->users, user)
			if (user->rdo_bdev->bd_dev == number)
				return in_use(cow, user->rdo_bdev, file->owner,
					      "read-only device");
	return 0;
}

/* Another device must not have our cow device at all, nor our rdo as its cow device. */
static int check_devices(struct cowloop *cow, struct mapped_device *md)
{
	struct block_device *bdev = cow->cow->bdev;
	struct cowfile *file;
	struct cowloop *user;

	list_for_each_entry(file, &cowfiles, list) {
		if (file->bdev == cow->rdo->bdev)
			return in_use(cow, file->bdev, file->owner, "cow device");
		if (file->bdev == bdev && (file->owner != md || !file->md || file->closing))
			return in_use(cow, bdev, file->owner, "cow device");
		list_for_each_entry(user, &file->users, user)
			if (file->bdev == bdev && user->ti->table == cow->ti->table)
				return in_use(cow, bdev, md, "cow device in the same table");
	}
	/* Again: others may have come since get_devices(). */
	return check_read_only_devices(cow, bdev->bd_dev);
}

/* The depth of the cowloop device that @bdev is, or is a part of; 0 if it is none. */
static unsigned int depth_of(struct block_device *bdev)
{
	unsigned int depth = 0;
	struct cowfile *file;
	struct cowloop *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		if (dm_disk(file->owner) == bdev->bd_disk)
			list_for_each_entry(user, &file->users, user)
				depth = max(depth, user->depth);
	return depth;
}

/* The least depth of the cowloop devices that lie directly on @md; UINT_MAX if none does. */
static unsigned int depth_above(struct mapped_device *md)
{
	unsigned int depth = UINT_MAX;
	struct cowfile *file;
	struct cowloop *user;

	lockdep_assert_held(&cowfiles_lock);
	list_for_each_entry(file, &cowfiles, list)
		list_for_each_entry(user, &file->users, user)
			if (user->rdo_bdev->bd_disk == dm_disk(md) ||
			    (file->bdev && file->bdev->bd_disk == dm_disk(md)))
				depth = min(depth, user->depth);
	return depth;
}

/*
 * Work out our depth, and refuse what is too deep. The depth of a device that others lie
 * on does not become larger, since theirs would. Linear and loop devices, say, that are in
 * between are not seen.
 */
static int check_depth(struct cowloop *cow, struct mapped_device *md)
{
	const unsigned int depth = max(depth_of(cow->rdo->bdev), depth_of(cow->cow->bdev)) + 1;
	const unsigned int above = depth_above(md);

	if (depth > COW_MAX_DEPTH) {
		DMERR("%s: found %u cowloop devices one over the other, expected at most %u",
		      cow_name(cow), depth, COW_MAX_DEPTH);
		cow->ti->error = "Too many cowloop devices one over the other";
		return -EINVAL;
	}
	if (depth >= above) {
		DMERR("%s: cowloop devices lie on this one: found %u below it, expected at most %u",
		      cow_name(cow), depth - 1, above - 2);
		cow->ti->error = "Too many cowloop devices below one that others lie on";
		return -EINVAL;
	}
	cow->depth = depth;

	return 0;
}

static struct cowfile *find_cowfile(struct block_device *bdev)
{
	struct cowfile *file;

	list_for_each_entry(file, &cowfiles, list)
		if (file->bdev == bdev)
			return file;
	return NULL;
}

static void put_cowfile(struct cowloop *cow)
{
	struct cowfile *file = cow->cowfile;

	mutex_lock(&cowfiles_lock);
	list_del(&cow->user);
	if (list_empty(&file->users))
		list_del(&file->list);
	else
		file = NULL;
	mutex_unlock(&cowfiles_lock);

	if (file) {
		if (file->md && cow->cow)
			log_unsaved(cow, true);
		if (file->md)
			cow_md_close(file->md);
		kfree(file);
	}
}

/*
 * Open the cowfile, or, when a table is reloaded, share the one that the old
 * table has open. Opening may take long and is done without the lock.
 */
static int get_cowfile(struct cowloop *cow, const struct cow_md_args *args)
{
	struct mapped_device *owner = dm_table_get_md(cow->ti->table);
	struct cowfile *file, *new;
	struct cow_md *md;
	int r;

	new = kzalloc(sizeof(*new), GFP_KERNEL);
	if (!new)
		return -ENOMEM;

	mutex_lock(&cowfiles_lock);
	r = check_devices(cow, owner);
	if (!r)
		r = check_depth(cow, owner);
	if (r) {
		mutex_unlock(&cowfiles_lock);
		kfree(new);
		return r;
	}
	file = find_cowfile(cow->cow->bdev);
	md = file ? file->md : NULL;
	if (!file) {
		file = new;
		new = NULL;
		file->bdev = cow->cow->bdev;
		file->owner = owner;
		INIT_LIST_HEAD(&file->users);
		list_add(&file->list, &cowfiles);
	}
	cow->cowfile = file;
	list_add(&cow->user, &file->users);
	mutex_unlock(&cowfiles_lock);
	kfree(new);

	if (md) {
		r = cow_md_check(md, args, &cow->ti->error);
	} else {
		md = cow_md_open(args, &cow->ti->error);
		r = PTR_ERR_OR_ZERO(md);
		if (!r) {
			mutex_lock(&cowfiles_lock);
			file->md = md;
			mutex_unlock(&cowfiles_lock);
		}
	}
	if (r) {
		put_cowfile(cow);
		cow->cowfile = NULL;
	} else {
		cow->md = md;
	}
	return r;
}

/* ---- Constructor, destructor ---- */

/* True if @arg is @name and a value; *@value is 0 if that is not a number. */
static bool option_value(const char *arg, const char *name, unsigned int *value)
{
	const size_t len = str_has_prefix(arg, name);

	if (len && kstrtouint(arg + len, 10, value))
		*value = 0;
	return len;
}

/* 1 if @arg is @name and a number of units, 0 if it is not @name, else -EINVAL. */
static int option_units(const char *arg, const char *name, u64 *units)
{
	const size_t len = str_has_prefix(arg, name);

	if (!len)
		return 0;
	return kstrtou64(arg + len, 10, units) ? -EINVAL : 1;
}

static int parse_option(const char *arg, struct cow_options *opt, char **error)
{
	const struct {
		const char *name;
		u64 *units;
		char *error;
	} units[] = {
		{"limit:", &opt->limit, "Invalid limit, must be a number of units"},
		{"low_water:", &opt->low_water, "Invalid low_water, must be a number of units"},
		{"reserve:", &opt->reserve, "Invalid reserve, must be a number of units"},
	};
	const struct {
		const char *name;
		bool *flag;
	} flags[] = {
		{"repair", &opt->repair},
		{"read_only", &opt->read_only},
		{"queue_if_no_space", &opt->queue_if_no_space},
		{"no_discard_passdown", &opt->no_discard_passdown},
	};
	unsigned int i;
	int r;

	if (option_value(arg, "format:", &opt->format)) {
		*error = "Invalid format, must be 1 or 2";
		return opt->format == 1 || opt->format == 2 ? 0 : -EINVAL;
	}
	if (option_value(arg, "mapunit:", &opt->mapunit)) {
		*error = "Invalid mapunit, must be 1024, or a power of two from 4096 to 1048576";
		return opt->mapunit == COW_V1_MAPUNIT || cow_v2_mapunit_valid(opt->mapunit) ?
			0 : -EINVAL;
	}
	for (i = 0; i < ARRAY_SIZE(units); i++) {
		*error = units[i].error;
		r = option_units(arg, units[i].name, units[i].units);
		if (r)
			return min(r, 0);
	}
	for (i = 0; i < ARRAY_SIZE(flags); i++)
		if (!strcmp(arg, flags[i].name)) {
			*flags[i].flag = true;
			return 0;
		}
	*error = "Unrecognised optional parameter";
	return -EINVAL;
}

static int parse_options(struct dm_target *ti, struct dm_arg_set *as, struct cow_options *opt)
{
	static const struct dm_arg args[] = {
		{0, 9, "Invalid number of optional parameters"},
	};
	unsigned int argc;
	int r;

	/* No optional parameters at all need not be counted. */
	if (!as->argc)
		return 0;
	r = dm_read_arg_group(args, as, &argc, &ti->error);
	if (r)
		return r;
	if (as->argc != argc) {
		ti->error = "Number of optional parameters is not what follows";
		return -EINVAL;
	}

	while (argc--) {
		const char *arg = dm_shift_arg(as);

		r = parse_option(arg, opt, &ti->error);
		if (r) {
			DMERR("%s: optional parameter '%s': %s",
			      dm_device_name(dm_table_get_md(ti->table)), arg, ti->error);
			return r;
		}
	}
	return 0;
}

/* The number of the device that dm_get_device() would open. */
static int device_number(const char *path, dev_t *number)
{
	unsigned int major, minor;
	char dummy;

	if (sscanf(path, "%u:%u%c", &major, &minor, &dummy) != 2)
		return lookup_bdev(path, number);
	*number = MKDEV(major, minor);
	return 0;
}

static int get_devices(struct cowloop *cow, struct dm_target *ti, char **argv)
{
	const blk_mode_t mode = cow->opt.read_only ? BLK_OPEN_READ :
						     BLK_OPEN_READ | BLK_OPEN_WRITE;
	dev_t number;
	int r;

	r = dm_get_device(ti, argv[0], BLK_OPEN_READ, &cow->rdo);
	if (r) {
		DMERR("%s: cannot open the read-only device %s: error %d",
		      cow_name(cow), argv[0], r);
		ti->error = "Cannot open the read-only device";
		return r;
	}
	cow->rdo_bdev = cow->rdo->bdev;

	/*
	 * Before the cow device is opened: a device that the table has already,
	 * but not for writing, would get another dm_dev, and whoever has the old
	 * one would be left with freed memory.
	 */
	r = device_number(argv[1], &number);
	if (!r && number == cow->rdo->bdev->bd_dev) {
		DMERR("%s: %pg is given as the read-only device and as the cow device",
		      cow_name(cow), cow->rdo->bdev);
		ti->error = "Read-only device and cow device are the same";
		return -EINVAL;
	}
	if (!r) {
		mutex_lock(&cowfiles_lock);
		r = check_read_only_devices(cow, number);
		mutex_unlock(&cowfiles_lock);
		if (r)
			return r;
		r = dm_get_device(ti, argv[1], mode, &cow->cow);
	}
	if (r) {
		DMERR("%s: cannot open the cow device %s: error %d", cow_name(cow), argv[1], r);
		ti->error = "Cannot open the cow device";
		return r;
	}
	if (!cow->opt.read_only && bdev_read_only(cow->cow->bdev)) {
		DMERR("%s: cow device %pg is read-only, expected writable or option 'read_only'",
		      cow_name(cow), cow->cow->bdev);
		ti->error = "Cow device is read-only";
		return -EACCES;
	}
	return 0;
}

/* What device-mapper has now for the device that @name, "major:minor", is; it is in our table. */
static void renew_device(struct cowloop *cow, const char *name, struct dm_dev **dev)
{
	struct dm_dev *now;

	/* This opens nothing, and counts once more what we have counted already. */
	if (!dm_get_device(cow->ti, name, BLK_OPEN_READ, &now)) {
		*dev = now;
		dm_put_device(cow->ti, now);
	}
}

/*
 * When a later target of the table opens a device for writing that we have open for reading,
 * device-mapper makes another dm_dev of it, and frees ours. (The block device stays what and
 * where it is.) So dm_devs are looked up again before they are used, until the table is live:
 * then all of its targets are there. Sleeps.
 */
static void renew_devices(struct cowloop *cow)
{
	if (READ_ONCE(cow->has_resumed))
		return;
	renew_device(cow, cow->rdo_name, &cow->rdo);
	renew_device(cow, cow->cow_name, &cow->cow);
}

/* Everything that does not depend on the cowfile. */
static int alloc_resources(struct cowloop *cow)
{
	unsigned int i;
	int r;

	cow->buckets = kvcalloc(1U << COW_BUCKET_BITS, sizeof(*cow->buckets), GFP_KERNEL);
	cow->stats = alloc_percpu(struct cow_stats);
	cow->rdo_wq = alloc_workqueue("dm-cowloop-rdo", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	cow->io_wq = alloc_workqueue("dm-cowloop-io", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	cow->load_wq = alloc_workqueue("dm-cowloop-load", WQ_MEM_RECLAIM | WQ_UNBOUND,
				       COW_MAX_LOADS);
	cow->deferred_wq = alloc_workqueue("dm-cowloop-deferred", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	if (!cow->buckets || !cow->stats || !cow->rdo_wq || !cow->io_wq || !cow->load_wq ||
	    !cow->deferred_wq)
		return -ENOMEM;

	cow->io = dm_io_client_create();
	if (IS_ERR(cow->io)) {
		r = PTR_ERR(cow->io);
		cow->io = NULL;
		return r;
	}

	for (i = 0; i < 1U << COW_BUCKET_BITS; i++) {
		spin_lock_init(&cow->buckets[i].lock);
		INIT_HLIST_HEAD(&cow->buckets[i].writes);
	}
	mutex_init(&cow->gate_lock);
	mutex_init(&cow->message_lock);
	init_waitqueue_head(&cow->drained);
	spin_lock_init(&cow->lock);
	bio_list_init(&cow->deferred);
	bio_list_init(&cow->rdo_bios);
	bio_list_init(&cow->commit_bios);
	bio_list_init(&cow->held_back);
	bio_list_init(&cow->discards);
	bio_list_init(&cow->blocked_discards);
	cow->ranges = RB_ROOT_CACHED;
	bio_list_init(&cow->no_space_bios);
	bio_list_init(&cow->reserved_bios);
	ratelimit_state_init(&cow->space_log, HZ, 1);
	ratelimit_set_flags(&cow->space_log, RATELIMIT_MSG_ON_RELEASE);
	INIT_WORK(&cow->rdo_work, do_rdo);
	INIT_WORK(&cow->deferred_work, do_deferred);
	INIT_WORK(&cow->discard_work, do_discards);
	INIT_WORK(&cow->count_work, do_count);
	INIT_WORK(&cow->event_work, do_event);
	INIT_DELAYED_WORK(&cow->retry_work, do_retry);
	INIT_DELAYED_WORK(&cow->leave_work, do_leave);
	INIT_WORK(&cow->commit_work, do_commit);
	INIT_DELAYED_WORK(&cow->commit_timer, do_commit_timer);

	r = bioset_init(&cow->bios, BIO_POOL_SIZE, 0, BIOSET_NEED_BVECS);
	if (!r)
		r = bioset_init(&cow->rdo_reads, BIO_POOL_SIZE, 0, BIOSET_NEED_BVECS);
	if (!r)
		r = bioset_init(&cow->splits, BIO_POOL_SIZE, 0, 0);
	return r;
}

/* What depends on the cowfile. */
static int set_up(struct cowloop *cow)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);

	strscpy(cow->rdo_name, cow->rdo->name, sizeof(cow->rdo_name));
	strscpy(cow->cow_name, cow->cow->name, sizeof(cow->cow_name));
	cow->map = *cow_md_map(cow->md);
	cow->unit_shift = ilog2(geo->mapunit) - SECTOR_SHIFT;
	cow->data_sector = cow_md_data_sector(cow->md);
	cow->units_end = geo->rdo_sectors;
	cow->zero_needs_commit = geo->format == 1;
	cow->write_flags = cow_write_flags(cow->cow->bdev);
	cow->write_sectors = cow_write_sectors(cow->cow->bdev);
	if (cow->write_sectors) {
		const int r = bioset_init(&cow->pieces, BIO_POOL_SIZE, 0, 0);

		if (r)
			return r;
	}

	if (!cow->opt.read_only && cow_md_must_be_read_only(cow->md)) {
		DMWARN("%s: cow device %pg: unknown compat_ro features: writes will fail",
		       cow_name(cow), cow->cow->bdev);
		cow->opt.read_only = true;
	}
	cow->mode = cow->opt.read_only ? COW_MODE_RO : COW_MODE_RW;
	set_map_state(cow, cow->mode);

	cow->max_spares = min(COW_SPARE_BYTES / geo->mapunit, (unsigned int)COW_MAX_SPARES);
	return mempool_init_kmalloc_pool(&cow->units, COW_MIN_COPYUPS, geo->mapunit);
}

static void free_cowloop(struct cowloop *cow)
{
	/* The queues first: they may still be running what was completed last. */
	if (cow->load_wq)
		destroy_workqueue(cow->load_wq);
	if (cow->deferred_wq)
		destroy_workqueue(cow->deferred_wq);
	if (cow->rdo_wq)
		destroy_workqueue(cow->rdo_wq);
	if (cow->io_wq)
		destroy_workqueue(cow->io_wq);
	if (cow->cowfile)
		put_cowfile(cow);
	while (cow->nr_spares)
		mempool_free(cow->spares[--cow->nr_spares], &cow->units);
	mempool_exit(&cow->units);
	bioset_exit(&cow->pieces);
	bioset_exit(&cow->splits);
	bioset_exit(&cow->rdo_reads);
	bioset_exit(&cow->bios);
	if (cow->io)
		dm_io_client_destroy(cow->io);
	if (cow->cow)
		dm_put_device(cow->ti, cow->cow);
	if (cow->rdo)
		dm_put_device(cow->ti, cow->rdo);
	free_percpu(cow->stats);
	kvfree(cow->buckets);
	kfree(cow);
}

/*
 * <rdo_dev> <cow_dev> [<#opt_params> <opt_param>...]
 *
 * rdo_dev: the read-only device
 * cow_dev: the device that holds the cowfile, or is blank
 *
 * format:<1|2>      what to write to a blank cow device
 * mapunit:<bytes>   the unit; must agree with an existing cowfile's
 * repair            accept and repair a DIRTY format 1 cowfile
 * read_only         write nothing to the cow device; writes fail
 * limit:<units>     how many units may be in the cowfile
 * low_water:<units> raise an event when only so many more may be
 * reserve:<units>   how many of the limit are for filesystems' own blocks only
 * queue_if_no_space keep writes that find no space until there is some
 * no_discard_passdown  keep the space of discarded units in the cow device
 */
static int cowloop_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	struct cow_md_args args;
	struct cowloop *cow;
	int r;

	if (argc < 2) {
		ti->error = "Requires <rdo_dev> <cow_dev>";
		return -EINVAL;
	}
	cow = kzalloc(sizeof(*cow), GFP_KERNEL);
	if (!cow) {
		ti->error = "Cannot allocate memory for the target";
		return -ENOMEM;
	}
	cow->ti = ti;

	dm_consume_args(&as, 2);
	r = parse_options(ti, &as, &cow->opt);
	if (r)
		goto bad;
	if (!(dm_table_get_mode(ti->table) & BLK_OPEN_WRITE))
		cow->opt.read_only = true;

	ti->error = "Cannot allocate memory for the target";
	r = alloc_resources(cow);
	if (r)
		goto bad;
	r = get_devices(cow, ti, argv);
	if (r)
		goto bad;

	args = (struct cow_md_args) {
		.name = cow_name(cow),
		.rdo = cow->rdo->bdev,
		.cow = cow->cow->bdev,
		.io = cow->io,
		.length = ti->len,
		.format = cow->opt.format,
		.mapunit = cow->opt.mapunit,
		.repair = cow->opt.repair,
		.read_only = cow->opt.read_only,
	};
	r = get_cowfile(cow, &args);
	if (r)
		goto bad;
	r = set_up(cow);
	if (r)
		goto bad;

	ti->private = cow;
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	/* Whether or not the cow device has discards, units can be given up. */
	ti->discards_supported = true;
	ti->num_write_zeroes_bios = 1;
	/* A flush commits bits, whether or not the cow device needs flushes. */
	ti->flush_supported = true;
	ti->per_io_data_size = sizeof(struct cow_io);

	return 0;

bad:
	free_cowloop(cow);
	return r;
}

static void cowloop_dtr(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	renew_devices(cow);
	/* A message to the suspended device may have begun them; queues wait for no timers. */
	cancel_delayed_work_sync(&cow->leave_work);
	cancel_delayed_work_sync(&cow->retry_work);
	cancel_delayed_work_sync(&cow->commit_timer);
	free_cowloop(cow);
}

/* ---- Target interface ---- */

/* Where all of a bio is, or COW_UNKNOWN if that is not to be said in one word. */
static noinline enum cow_where lookup_all(struct cowloop *cow, u64 unit, unsigned int nr)
{
	const struct cow_run run = lookup(cow, unit, nr);

	return run.nr == nr ? run.where : COW_UNKNOWN;
}

static noinline int map_by_runs(struct cowloop *cow, struct bio *bio)
{
	const u64 unit = sector_to_unit(cow, bio->bi_iter.bi_sector);
	const struct cow_run run = lookup(cow, unit, bio_units(cow, bio));

	return op_is_write(bio->bi_opf) ? accept_and_map(cow, bio, run) :
					  map_read(cow, bio, run);
}

/* What map does not decide on alone. */
static noinline int map_with_state(struct cowloop *cow, struct bio *bio)
{
	u64 unit;
	unsigned int nr;

	if (bio->bi_opf & REQ_PREFLUSH)
		return map_flush(cow, bio);

	/*
	 * Device-mapper's mark on a polled bio that it has split and keeps a list of. The
	 * clone has it from the bio, but no list, which a device-mapper below would look for.
	 */
	bio->bi_opf &= ~REQ_DRV;
	bio->bi_iter.bi_sector = dm_target_offset(cow->ti, bio->bi_iter.bi_sector);
	unit = sector_to_unit(cow, bio->bi_iter.bi_sector);
	nr = bio_units(cow, bio);
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return map_read(cow, bio, lookup(cow, unit, nr));
	case REQ_OP_WRITE_ZEROES:
		/* Units that are in the cowfile have space there: rewriting them takes none. */
		bio->bi_opf |= REQ_NOUNMAP;
		fallthrough;
	case REQ_OP_WRITE:
		bio->bi_opf |= cow->write_flags;
		return accept_and_map(cow, bio, lookup(cow, unit, nr));
	case REQ_OP_DISCARD:
		if (!accept_write(cow, bio))
			return end_bio(bio, BLK_STS_IOERR);
		return map_discard(cow, bio);
	default:
		return DM_MAPIO_KILL;
	}
}

/*
 * Reads, and rewrites of whatever is in the cowfile, are decided on here, without a
 * lock. This is all that most bios see of us, so instructions count.
 */
static int cowloop_map(struct dm_target *ti, struct bio *bio)
{
	struct cowloop *cow = ti->private;
	struct block_device *bdev;
	enum cow_flight flight;
	enum cow_where where;
	u64 first, last;

	/* See drain(). */
	rcu_read_lock_sched();
	if (unlikely(bio->bi_opf & READ_ONCE(cow->state_opf))) {
		rcu_read_unlock_sched();
		return map_with_state(cow, bio);
	}
	bio->bi_iter.bi_sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	first = sector_to_unit(cow, bio->bi_iter.bi_sector);
	last = sector_to_unit(cow, bio_end_sector(bio) - 1);
	where = first == last ? cow_lookup(&cow->map, first) :
				lookup_all(cow, first, last - first + 1);
	if (where == COW_IN_COW) {
		bdev = READ_ONCE(cow->cow_bdev);
		if (likely(bdev)) {
			flight = COW_FLIGHT_READS + op_is_write(bio->bi_opf);
			__this_cpu_inc(cow->stats->begun[flight]);
			rcu_read_unlock_sched();
			bio->bi_private = (void *)flight;
			bio_set_dev(bio, bdev);
			bio->bi_iter.bi_sector += cow->data_sector;
			return DM_MAPIO_REMAPPED;
		}
	}
	rcu_read_unlock_sched();

	if (where == COW_IN_RDO && !op_is_write(bio->bi_opf)) {
		this_cpu_inc(cow->stats->begun[COW_FLIGHT_NONE]);
		return remap_to_rdo(cow, bio);
	}
	if (where == COW_IN_RDO && is_whole(cow, bio))
		return accept_whole(cow, bio);
	return map_by_runs(cow, bio);
}

static bool is_error(blk_status_t status)
{
	/* Where the cow device can't write zeroes, or would wait, it is tried another way. */
	return status && status != BLK_STS_NOTSUPP && status != BLK_STS_AGAIN;
}

/*
 * A write that was accepted has failed with *@error, which is changed to what it is to
 * end with. False if it is kept instead, for want of space.
 */
static noinline bool write_failed(struct cowloop *cow, struct bio *bio, blk_status_t *error)
{
	struct cow_io *io = bio_to_io(bio);

	if (io->unsure) {
		unsure_error(cow);
		*error = BLK_STS_NOSPC;
	}
	if (*error != BLK_STS_NOSPC || bio_op(bio) == REQ_OP_DISCARD) {
		if (is_error(*error))
			still_there(cow);
		return true;
	}

	/* Those that only queue behind others have not been tried. */
	if (!io->kept)
		out_of_space(cow, io->committed ? COW_LACK_COMMIT :
				  io->for_units ? COW_LACK_UNITS : COW_LACK_REWRITE);
	if (!cow->opt.queue_if_no_space)
		return true;
	restore_bio(bio);
	if (keep_bio(cow, bio))
		return false;
	if (dm_noflush_suspending(cow->ti))
		*error = BLK_STS_DM_REQUEUE;
	else if (io->unsure || READ_ONCE(cow->mode) == COW_MODE_FAIL)
		*error = BLK_STS_IOERR;
	return true;
}

/* The end of a write that was accepted; returns what end_io is to return. */
static noinline int end_write(struct cowloop *cow, struct bio *bio, blk_status_t *error)
{
	struct cow_io *io = bio_to_io(bio);
	const bool committed = io->committed;

	if (io->state == COW_IO_FIRST) {
		if (unlikely(*error)) {
			io->for_units = true;
			io->unsure = may_lack_space(cow, *error);
		}
		end_first_write(cow, io, *error);
	}
	if (unlikely(*error) && !write_failed(cow, bio, error))
		return DM_ENDIO_INCOMPLETE;
	if (unlikely(io->at_end) && !*error) {
		if (io->seeks_space)
			space_found(cow, COW_LACK_REWRITE);
		if (io->commit && !io->committed) {
			io->committed = true;
			commit_bio(cow, bio);
			return DM_ENDIO_INCOMPLETE;
		}
	}
	if (unlikely(io->retried))
		end_retried(cow);
	if (unlikely(committed && *error && *error != BLK_STS_DM_REQUEUE))
		owe_commit(cow);
	this_cpu_inc(cow->stats->ended[COW_FLIGHT_WRITES]);
	if (likely(!*error))
		return DM_ENDIO_DONE;

	if (*error == BLK_STS_DM_REQUEUE)
		return DM_ENDIO_REQUEUE;
	if (is_error(*error))
		atomic_long_inc(&cow->errors);
	return DM_ENDIO_DONE;
}

/* The end of a flush that went down as it was. */
static noinline int end_flush(struct cowloop *cow, blk_status_t *error)
{
	if (is_error(*error)) {
		/* What was written may not be durable, and the next flush may not tell. */
		device_failed(cow, "flush failed", blk_status_to_errno(*error));
		atomic_long_inc(&cow->errors);
	} else if (!*error && cow_md_failed(cow->md)) {
		/* The one that failed may have been told of what this one has not. */
		*error = BLK_STS_IOERR;
		if (change_mode(cow, COW_MODE_FAIL))
			queue_work(cow->io_wq, &cow->event_work);
	}
	this_cpu_inc(cow->stats->ended[COW_FLIGHT_FLUSHES]);

	return DM_ENDIO_DONE;
}

/* The end, with an error, of a bio without state; returns what end_io is to return. */
static noinline int end_with_error(struct cowloop *cow, enum cow_flight flight,
				   blk_status_t error)
{
	int r = DM_ENDIO_DONE;

	if (error == BLK_STS_NOSPC) {
		if (flight == COW_FLIGHT_REWRITES)
			out_of_space(cow, COW_LACK_REWRITE);
		/* A flush that had to wait for space to commit. */
		else if (cow->opt.queue_if_no_space && dm_noflush_suspending(cow->ti))
			r = DM_ENDIO_REQUEUE;
		else if (flight == COW_FLIGHT_OTHERS)
			owe_commit(cow);
	}
	if (is_error(error) && r == DM_ENDIO_DONE) {
		atomic_long_inc(&cow->errors);
		if (flight == COW_FLIGHT_READS || flight == COW_FLIGHT_REWRITES)
			still_there(cow);
	}
	/* Last: the cow device may be let go of then. */
	this_cpu_inc(cow->stats->ended[flight]);

	return r;
}

static int cowloop_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct cowloop *cow = ti->private;
	const unsigned long flight = (unsigned long)bio->bi_private;

	/* Nobody waits for these to end. */
	if (flight == COW_FLIGHT_NONE && likely(!*error))
		return DM_ENDIO_DONE;
	if (likely(flight <= COW_FLIGHT_REWRITES && !*error)) {
		this_cpu_inc(cow->stats->ended[flight]);
		return DM_ENDIO_DONE;
	}
	if (flight <= COW_FLIGHT_REWRITES)
		return end_with_error(cow, flight, *error);
	if (flight == COW_FLIGHT_FLUSHES)
		return end_flush(cow, error);
	/* Else it is the bio's cow_io. */
	return end_write(cow, bio, error);
}

/*
 * Writes that are kept would be waited for. They end; without a flush they come
 * again after the suspension, see end_write().
 *
 * Units that have not been counted yet after a crash are counted now, since that may take
 * long, and I/O still goes on. If a signal ends that, the head stays DIRTY.
 */
static void cowloop_presuspend(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	if (!mutex_lock_interruptible(&cow->message_lock)) {
		if (!READ_ONCE(cow->opt.read_only))
			count_all(cow);
		mutex_unlock(&cow->message_lock);
	}
	/* Last: until then, writes that find no space are still kept. */
	stop_queueing(cow);
}

static void cowloop_presuspend_undo(struct dm_target *ti)
{
	start_queueing(ti->private);
}

/* No bio is in flight any more, deferred ones included. */
static void cowloop_postsuspend(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;
	int r;

	/* A message may still be at work, and about to let go of the cow device. */
	mutex_lock(&cow->message_lock);
	cancel_work_sync(&cow->count_work);
	/* Its last bio has ended, but not the run. */
	flush_work(&cow->discard_work);
	if (READ_ONCE(cow->opt.read_only))
		r = all_durable(cow);
	else
		r = commit_and_clean(cow, cow_md_counted(cow->md) ? 0 : -EAGAIN);
	/* All else has failed before, or says so itself. */
	if (r == -ENOSPC)
		log_unsaved(cow, false);
	cancel_commits(cow);
	cancel_delayed_work_sync(&cow->leave_work);
	flush_work(&cow->event_work);
	mutex_unlock(&cow->message_lock);
}

static void cowloop_resume(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	renew_devices(cow);
	WRITE_ONCE(cow->has_resumed, true);
	/* The table that was live until now may have met an error. */
	if (cow_md_failed(cow->md))
		set_mode(cow, COW_MODE_FAIL);
	/* There was no space for them before. */
	else if (!READ_ONCE(cow->opt.read_only) && cow_md_changed(cow->md))
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_COMMIT_DELAY);

	/* It may owe a commit, too. */
	update_map_state(cow);
	start_queueing(cow);
	if (READ_ONCE(cow->found_space))
		queue_delayed_work(cow->io_wq, &cow->leave_work, COW_SPACE_DELAY);
	cow_md_set_limit(cow->md, READ_ONCE(cow->opt.limit), cow->opt.reserve);
	/* In the background. */
	if (cow_md_counting(cow->md) && READ_ONCE(cow->mode) != COW_MODE_CLOSED)
		queue_work(cow->deferred_wq, &cow->count_work);
	check_low_water(cow);
}

/* A message that sets the limit or low water. */
static int change_units(struct cowloop *cow, char **argv, u64 *option)
{
	u64 units;

	if (kstrtou64(argv[1], 10, &units)) {
		DMERR("%s: message '%s': found '%s', expected a number of units",
		      cow_name(cow), argv[0], argv[1]);
		return -EINVAL;
	}
	WRITE_ONCE(*option, units);
	/* Low water is told again where it is set. */
	if (option == &cow->opt.low_water) {
		spin_lock_irq(&cow->lock);
		WRITE_ONCE(cow->low, false);
		spin_unlock_irq(&cow->lock);
	}

	cow_md_set_limit(cow->md, cow->opt.limit, cow->opt.reserve);
	if (cow->mode <= COW_MODE_OUT_OF_SPACE) {
		check_low_water(cow);
		if (option == &cow->opt.limit && space_limit(cow) > cow_md_used(cow->md))
			space_made(cow);
	}
	flush_work(&cow->event_work);

	return 0;
}

static int cowloop_message(struct dm_target *ti, unsigned int argc, char **argv,
			   char *result, unsigned int maxlen)
{
	struct cowloop *cow = ti->private;
	int r = -EINVAL;

	if (mutex_lock_interruptible(&cow->message_lock))
		return -EINTR;
	if (argc == 1 && !strcasecmp(argv[0], "sync"))
		r = sync_cowfile(cow);
	else if (argc == 1 && !strcasecmp(argv[0], "read_only"))
		r = make_read_only(cow);
	else if (argc == 1 && !strcasecmp(argv[0], "close"))
		r = close_cow(cow);
	else if (argc == 2 && !strcasecmp(argv[0], "limit"))
		r = change_units(cow, argv, &cow->opt.limit);
	else if (argc == 2 && !strcasecmp(argv[0], "low_water"))
		r = change_units(cow, argv, &cow->opt.low_water);
	else
		DMERR("%s: unrecognised message '%s' with %u arguments", cow_name(cow), argv[0],
		      argc - 1);
	mutex_unlock(&cow->message_lock);

	return r;
}

static struct cow_stats sum_stats(struct cowloop *cow)
{
	struct cow_stats sum = { };
	int cpu, flight;

	for_each_possible_cpu(cpu) {
		const struct cow_stats *stats = per_cpu_ptr(cow->stats, cpu);

		for (flight = 0; flight < COW_NR_FLIGHTS; flight++)
			sum.begun[flight] += READ_ONCE(stats->begun[flight]);
		sum.rdo_reads += READ_ONCE(stats->rdo_reads);
		sum.cow_reads += READ_ONCE(stats->cow_reads);
		sum.copyups += READ_ONCE(stats->copyups);
	}
	return sum;
}

/* Writes that wait for space, but for the one that is being tried. Process context. */
static unsigned int nr_waiting(struct cowloop *cow)
{
	unsigned int nr;

	spin_lock_irq(&cow->lock);
	nr = cow->nr_kept + bio_list_size(&cow->held_back);
	spin_unlock_irq(&cow->lock);

	return nr;
}

/*
 * <format> <mapunit> <used>/<total> <limit> <low_water> <clean|dirty> <mode>
 * <#counters> [<name> <value>]...
 */
static void emit_info(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);
	/* In this order: a discard is counted as begun first. */
	const unsigned long discards = atomic_long_read(&cow->nr_discards);
	const struct cow_stats stats = sum_stats(cow);
	unsigned int sz = 0;

	DMEMIT("%u %u %llu/%llu %llu %llu %s %s 10", geo->format, geo->mapunit,
	       cow_md_used(cow->md), geo->nr_units,
	       READ_ONCE(cow->opt.limit), READ_ONCE(cow->opt.low_water),
	       cow_md_is_dirty(cow->md) ? "dirty" : "clean",
	       cow_mode_names[READ_ONCE(cow->mode)]);
	DMEMIT(" rdo_reads %lu cow_reads %lu cow_writes %lu copyups %lu commits %lu errors %lu",
	       stats.begun[COW_FLIGHT_NONE] + stats.rdo_reads,
	       stats.begun[COW_FLIGHT_READS] + stats.cow_reads,
	       stats.begun[COW_FLIGHT_REWRITES] + stats.begun[COW_FLIGHT_WRITES] - discards,
	       stats.copyups, atomic_long_read(&cow->commits), atomic_long_read(&cow->errors));
	DMEMIT(" discards %lu discarded_units %lu no_space %lu queued %u",
	       discards, atomic_long_read(&cow->discarded_units),
	       atomic_long_read(&cow->no_space), nr_waiting(cow));
}

static void emit_table(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_options *opt = &cow->opt;
	const bool read_only = READ_ONCE(opt->read_only);
	const u64 limit = READ_ONCE(opt->limit), low_water = READ_ONCE(opt->low_water);
	const unsigned int nr = !!opt->format + !!opt->mapunit + opt->repair + read_only +
				!!limit + !!low_water + !!opt->reserve + opt->queue_if_no_space +
				opt->no_discard_passdown;
	unsigned int sz = 0;

	DMEMIT("%s %s", cow->rdo_name, cow->cow_name);
	if (nr)
		DMEMIT(" %u", nr);
	if (opt->format)
		DMEMIT(" format:%u", opt->format);
	if (opt->mapunit)
		DMEMIT(" mapunit:%u", opt->mapunit);
	if (opt->repair)
		DMEMIT(" repair");
	if (read_only)
		DMEMIT(" read_only");
	if (limit)
		DMEMIT(" limit:%llu", limit);
	if (low_water)
		DMEMIT(" low_water:%llu", low_water);
	if (opt->reserve)
		DMEMIT(" reserve:%llu", opt->reserve);
	if (opt->queue_if_no_space)
		DMEMIT(" queue_if_no_space");
	if (opt->no_discard_passdown)
		DMEMIT(" no_discard_passdown");
}

static void emit_ima(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);
	unsigned int sz = 0;

	DMEMIT_TARGET_NAME_VERSION(cow->ti->type);
	DMEMIT(",rdo_device_name=%s,cow_device_name=%s,format=%u,mapunit=%u,read_only=%c;",
	       cow->rdo_name, cow->cow_name, geo->format, geo->mapunit,
	       READ_ONCE(cow->opt.read_only) ? 'y' : 'n');
}

static void cowloop_status(struct dm_target *ti, status_type_t type,
			   unsigned int status_flags, char *result, unsigned int maxlen)
{
	struct cowloop *cow = ti->private;

	switch (type) {
	case STATUSTYPE_INFO:
		emit_info(cow, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		emit_table(cow, result, maxlen);
		break;
	case STATUSTYPE_IMA:
		emit_ima(cow, result, maxlen);
		break;
	}
}

static int cowloop_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn,
				   void *data)
{
	struct cowloop *cow = ti->private;
	struct dm_dev *dev;
	unsigned int block;
	sector_t cow_len;
	int r, idx;

	renew_devices(cow);
	r = fn(ti, cow->rdo, 0, ti->len, data);
	idx = srcu_read_lock(&cow_devices_srcu);
	dev = READ_ONCE(cow->cow);
	if (!r && dev) {
		/*
		 * The cow device may end before its last unit, so there is no length to
		 * ask for: take all of it, in the larger of both devices' blocks.
		 */
		block = max(bdev_logical_block_size(cow->rdo->bdev),
			    bdev_logical_block_size(dev->bdev));
		cow_len = round_down(bdev_nr_sectors(dev->bdev), block >> SECTOR_SHIFT);
		r = fn(ti, dev, 0, cow_len, data);
	}
	srcu_read_unlock(&cow_devices_srcu, idx);

	return r;
}

static void cowloop_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct cowloop *cow = ti->private;
	const unsigned int mapunit = cow_md_geometry(cow->md)->mapunit;

	/* Smaller writes may cost a copy-up. Filesystems use 4 KiB as it is. */
	if (mapunit > COW_V2_MAPUNIT) {
		limits->io_min = max(limits->io_min, mapunit);
		limits->io_opt = max(limits->io_opt, mapunit);
	}
	/* Nothing of the devices' own: what is discarded is units. */
	limits->discard_granularity = max(mapunit, limits->logical_block_size);
	limits->max_discard_sectors = round_down(UINT_MAX >> SECTOR_SHIFT, 1U << cow->unit_shift);
	limits->max_hw_discard_sectors = limits->max_discard_sectors;
	cow_discards_are_aligned(limits);
}

static struct target_type cowloop_target = {
	.name = "cowloop",
	.version = {1, 1, 1},
	.features = DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = cowloop_ctr,
	.dtr = cowloop_dtr,
	.map = cowloop_map,
	.end_io = cowloop_end_io,
	.presuspend = cowloop_presuspend,
	.presuspend_undo = cowloop_presuspend_undo,
	.postsuspend = cowloop_postsuspend,
	.resume = cowloop_resume,
	.message = cowloop_message,
	.status = cowloop_status,
	.iterate_devices = cowloop_iterate_devices,
	.io_hints = cowloop_io_hints,
};

static int __init dm_cowloop_init(void)
{
	return dm_register_target(&cowloop_target);
}

static void __exit dm_cowloop_exit(void)
{
	dm_unregister_target(&cowloop_target);
}

module_init(dm_cowloop_init);
module_exit(dm_cowloop_exit);

MODULE_DESCRIPTION(DM_NAME " copy-on-write target with a sparse cowfile");
MODULE_AUTHOR("The dm-cowloop developers");
MODULE_LICENSE("GPL");
