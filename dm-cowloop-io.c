// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: map and end_io, which is all that most bios see of the target.
 *
 * Reads go to the cowfile for units whose bit is set, to rdo for all others; a bio is cut
 * where the answer changes. Rewrites of units whose bits are set go to the cowfile. All of
 * this is decided in map by cow_lookup(), without a lock and without state to be kept.
 *
 * A clone's bi_private is the target's. It is what the bio is counted as, or the cow_io of a
 * write that was accepted: dm_per_bio_data() would be a call for each read. Device-mapper
 * does not use it in a clone that it gives to map; smoke.t fails at once if it does.
 */

#include "dm-cowloop-internal.h"

/* ---- Reads ---- */

/* Send a read, or a part of one, that was deferred. */
static void send_read(struct cowloop *cow, struct bio *bio, enum cow_where where)
{
	switch (where) {
	case COW_IN_RDO:
		this_cpu_inc(cow->stats->rdo_reads);
		cow_send_to_rdo(cow, bio);
		break;
	case COW_IN_COW:
		this_cpu_inc(cow->stats->cow_reads);
		cow_remap_to_cow(cow, bio);
		submit_bio_noacct(bio);
		break;
	default:
		cow_end_bio(bio, BLK_STS_IOERR);
		break;
	}
}

/*
 * A read whose part of the bitmap was not in memory. It can't be trimmed any more: it is
 * split instead.
 */
static void do_load_read(struct work_struct *work)
{
	struct cowloop *cow;
	struct bio *bio = cow_work_to_bio(work, &cow);
	struct bio *split = NULL;

	/* The bio has waited; and an EAGAIN from here would not be tried again. */
	cow_let_wait(bio);
	while (split != bio) {
		const sector_t sector = bio->bi_iter.bi_sector;
		const u64 unit = cow_sector_to_unit(cow, sector);
		const unsigned int nr = cow_bio_units(cow, bio);
		const struct cow_run run = cow_lookup_now(cow, unit, nr);
		int r;

		if (run.where == COW_UNKNOWN) {
			r = cow_load(cow, unit, false);
			if (!r)
				continue;
			cow_end_bio(bio, errno_to_blk_status(r));
			return;
		}

		split = run.nr == nr ? bio :
			cow_split_read(cow, bio, cow_unit_start(cow, unit + run.nr) - sector);
		send_read(cow, split, run.where);
		cond_resched();
	}
}

/* Map a read of which the first units, or all, are @run. */
static noinline int map_read(struct cowloop *cow, struct bio *bio, struct cow_run run)
{
	const u64 unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector);
	const unsigned int nr = cow_bio_units(cow, bio);

	if (run.nr < nr && !cow_trim_bio(bio, cow_unit_start(cow, unit + run.nr)))
		return cow_end_bio(bio, BLK_STS_AGAIN);

	switch (run.where) {
	case COW_IN_RDO:
		this_cpu_inc(cow->stats->begun[COW_FLIGHT_NONE]);
		return cow_remap_to_rdo(cow, bio);
	case COW_IN_COW:
		if (unlikely(!cow_begin_flight(cow, bio, COW_FLIGHT_READS, COW_MODE_FAIL)))
			return cow_end_bio(bio, BLK_STS_IOERR);
		return cow_remap_to_cow(cow, bio);
	case COW_UNKNOWN:
		if (likely(cow_begin_flight(cow, bio, COW_FLIGHT_OTHERS, COW_MODE_FAIL))) {
			cow_queue_bio(cow, bio, cow->queues.load, do_load_read);
			return DM_MAPIO_SUBMITTED;
		}
		/* All was loaded before the mode changed. */
		smp_rmb();
		run = cow_lookup_now(cow, unit, cow_bio_units(cow, bio));
		return run.where == COW_UNKNOWN ? cow_end_bio(bio, BLK_STS_IOERR) :
						  map_read(cow, bio, run);
	default:
		return cow_end_bio(bio, BLK_STS_IOERR);
	}
}

/* ---- Map ---- */

/*
 * Where all of a bio is, or COW_UNKNOWN if that is not to be said in one word. Within
 * rcu_read_lock_sched().
 */
static noinline enum cow_where lookup_all(struct cowloop *cow, u64 unit, unsigned int nr)
{
	const struct cow_run run = cow_lookup_run(&cow->map, unit, nr);

	return run.nr == nr ? run.where : COW_UNKNOWN;
}

/* Whether a bio consists of whole units in one MiB, the last and short one left aside. */
static __always_inline bool is_whole(struct cowloop *cow, struct bio *bio)
{
	const sector_t start = bio->bi_iter.bi_sector, end = bio_end_sector(bio);

	return !((start | end) & (cow_unit_start(cow, 1) - 1)) &&
	       start / COW_TRACK_SECTORS == (end - 1) / COW_TRACK_SECTORS;
}

static noinline int map_by_runs(struct cowloop *cow, struct bio *bio)
{
	const u64 unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector);
	const struct cow_run run = cow_lookup_now(cow, unit, cow_bio_units(cow, bio));

	return op_is_write(bio->bi_opf) ? cow_accept_and_map(cow, bio, run) :
					  map_read(cow, bio, run);
}

/* Map a bio that map does not decide on alone: see set_map_state() in dm-cowloop-space.c. */
static noinline int map_with_state(struct cowloop *cow, struct bio *bio)
{
	u64 unit;
	unsigned int nr;

	if (bio->bi_opf & REQ_PREFLUSH)
		return cow_map_flush(cow, bio);

	/*
	 * Device-mapper's mark on a polled bio that it has split and keeps a list of. The
	 * clone has it from the bio, but no list, which a device-mapper below would look for,
	 * and crash: the polled jobs of fio.t find it when that changes.
	 */
	bio->bi_opf &= ~REQ_DRV;
	bio->bi_iter.bi_sector = dm_target_offset(cow->ti, bio->bi_iter.bi_sector);
	unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector);
	nr = cow_bio_units(cow, bio);
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return map_read(cow, bio, cow_lookup_now(cow, unit, nr));
	case REQ_OP_WRITE_ZEROES:
		/* Units that are in the cowfile have space there: rewriting them takes none. */
		bio->bi_opf |= REQ_NOUNMAP;
		fallthrough;
	case REQ_OP_WRITE:
		return cow_accept_and_map(cow, bio, cow_lookup_now(cow, unit, nr));
	case REQ_OP_DISCARD:
		return cow_map_discard(cow, bio);
	default:
		return DM_MAPIO_KILL;
	}
}

/*
 * Reads, and rewrites of whatever is in the cowfile, are decided on here, without a
 * lock. This is all that most bios see of us, so instructions count. Bios with one of
 * *@opf are left to @otherwise.
 */
static __always_inline int map_alone(struct dm_target *ti, struct bio *bio, const blk_opf_t *opf,
				     int (*otherwise)(struct cowloop *cow, struct bio *bio))
{
	struct cowloop *cow = ti->private;
	struct block_device *bdev;
	enum cow_flight flight;
	enum cow_where where;
	u64 first, last;

	/* See drain() in dm-cowloop-sync.c. */
	rcu_read_lock_sched();
	if (unlikely(bio->bi_opf & READ_ONCE(*opf))) {
		rcu_read_unlock_sched();
		return otherwise(cow, bio);
	}
	bio->bi_iter.bi_sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	first = cow_sector_to_unit(cow, bio->bi_iter.bi_sector);
	last = cow_sector_to_unit(cow, bio_end_sector(bio) - 1);
	where = first == last ? cow_lookup(&cow->map, first) :
				lookup_all(cow, first, last - first + 1);
	if (where == COW_IN_COW) {
		bdev = READ_ONCE(cow->state.bdev);
		if (likely(bdev)) {
			flight = COW_FLIGHT_READS + op_is_write(bio->bi_opf);
			__this_cpu_inc(cow->stats->begun[flight]);
			rcu_read_unlock_sched();
			bio->bi_private = (void *)flight;
			bio_set_dev(bio, bdev);
			bio->bi_iter.bi_sector += cow->layout.data_sector;
			return DM_MAPIO_REMAPPED;
		}
	}
	rcu_read_unlock_sched();

	if (where == COW_IN_RDO && !op_is_write(bio->bi_opf)) {
		this_cpu_inc(cow->stats->begun[COW_FLIGHT_NONE]);
		return cow_remap_to_rdo(cow, bio);
	}
	if (where == COW_IN_RDO && is_whole(cow, bio))
		return cow_accept_whole(cow, bio);
	return map_by_runs(cow, bio);
}

static noinline int map_whole(struct cowloop *cow, struct bio *bio)
{
	return map_alone(cow->ti, bio, &cow->state.whole_opf, map_with_state);
}

/* Where the cow device takes parts of writes, but this one as a whole, it is like any other. */
static noinline int map_other(struct cowloop *cow, struct bio *bio)
{
	const sector_t sector = dm_target_offset(cow->ti, bio->bi_iter.bi_sector);

	if (cow->ways.whole_blocks && cow_is_taken_whole(cow, bio, sector))
		return map_whole(cow, bio);
	return map_with_state(cow, bio);
}

int cowloop_map(struct dm_target *ti, struct bio *bio)
{
	struct cowloop *cow = ti->private;

	return map_alone(ti, bio, &cow->state.opf, map_other);
}

/* ---- End of I/O ---- */

/* The end, with an error, of a bio without state; returns what end_io is to return. */
static noinline int end_with_error(struct cowloop *cow, enum cow_flight flight,
				   blk_status_t error)
{
	int r = DM_ENDIO_DONE;

	if (error == BLK_STS_NOSPC) {
		if (flight == COW_FLIGHT_REWRITES)
			cow_out_of_space(cow, COW_LACK_REWRITE);
		/* A flush that had to wait for space to commit. */
		else if (cow->opt.queue_if_no_space && dm_noflush_suspending(cow->ti))
			r = DM_ENDIO_REQUEUE;
		else if (flight == COW_FLIGHT_OTHERS)
			cow_owe_commit(cow);
	}
	if (cow_is_error(error) && r == DM_ENDIO_DONE) {
		this_cpu_inc(cow->stats->errors);
		if (flight == COW_FLIGHT_READS || flight == COW_FLIGHT_REWRITES)
			cow_still_there(cow);
	}
	/* Last: the cow device may be let go of then. */
	this_cpu_inc(cow->stats->ended[flight]);

	return r;
}

int cowloop_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
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
		return cow_end_flush(cow, error);
	/* Else it is the bio's cow_io. */
	return cow_end_write(cow, bio, error);
}
