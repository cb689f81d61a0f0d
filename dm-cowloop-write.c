// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: writes that have state: first writes, and rewrites that are not for map alone.
 *
 * First writes are those to units whose bit is not set. Whole units go straight to the
 * cowfile, and their bits are set when the write has completed, not before: a read that
 * races the write finds rdo's data, the old contents. A part of a unit is copied up. While
 * they are in flight, first writes are in the table: see dm-cowloop-table.h.
 *
 * A write is accepted, then mapped, maybe again after it had to wait, and ended here.
 */

#include "dm-cowloop-table.h"

/* ---- Rewrites ---- */

/* Map a write to units that are in the cowfile, or will be. */
static __always_inline int write_to_cow(struct cowloop *cow, struct bio *bio)
{
	cow_remap_to_cow(cow, bio);
	if (likely(!cow->ways.in_pieces))
		return DM_MAPIO_REMAPPED;
	return cow_send_in_pieces(cow, bio);
}

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
	     cow_fua_flushes(cow->cow_bdev)))
		take_fua(cow_bio_to_io(bio), bio);

	return write_to_cow(cow, bio);
}

/* ---- First writes ---- */

/* Whether a unit that @bio writes is all zeroes; @bio consists of whole units. */
static bool has_zero_unit(struct cowloop *cow, struct bio *bio)
{
	const unsigned int unit_size = 1U << (cow->layout.unit_shift + SECTOR_SHIFT);
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

/*
 * Whether a first write is to be tried at all: not if the cow device ends before
 * @end, nor while others wait for space that are before it.
 */
static bool may_have_space(struct cowloop *cow, struct bio *bio, sector_t end)
{
	struct cow_io *io = cow_bio_to_io(bio);

	io->kept = unlikely(READ_ONCE(cow->writes_kept)) && cow_has_to_queue(cow, bio);

	return !io->kept && cow->layout.data_sector + end <= bdev_nr_sectors(cow->cow_bdev);
}

/* The end of a first write that is not to be tried. */
static noinline int not_tried(struct cowloop *cow, struct bio *bio)
{
	cow_bio_to_io(bio)->for_units = true;
	return cow_end_bio(bio, cow_still_there(cow) ? BLK_STS_NOSPC : BLK_STS_IOERR);
}

/* A first write that may not enter the table, for a @reason of may_enter()'s. */
static noinline int not_entered(struct cowloop *cow, struct bio *bio, int reason)
{
	if (!reason)
		return cow_defer_bio(cow, bio);
	if (reason == -EINPROGRESS)
		return DM_MAPIO_SUBMITTED;
	cow_bio_to_io(bio)->for_units = true;
	return cow_end_bio(bio, errno_to_blk_status(reason));
}

/* Write whole units in one MiB, none of which need have been written before. */
static __always_inline int write_units(struct cowloop *cow, struct bio *bio, u64 unit,
				       unsigned int nr)
{
	struct cow_io *copyup, *io = cow_bio_to_io(bio);
	struct cow_bucket *bucket;
	int ready;

	if (unlikely(!may_have_space(cow, bio, bio_end_sector(bio))))
		return not_tried(cow, bio);
	if (unlikely(cow->ways.zero_needs_commit) && has_zero_unit(cow, bio))
		io->commit = true;

	bucket = bucket_of(cow, unit);
	spin_lock_irq(&bucket->lock);
	copyup = hlist_empty(&bucket->writes) ? NULL : find_copyup(bucket, unit, nr);
	if (unlikely(copyup)) {
		bio_list_add(&copyup->entry.waiters, bio);
		spin_unlock_irq(&bucket->lock);
		return DM_MAPIO_SUBMITTED;
	}
	ready = may_enter(cow, bio, unit, nr);
	if (likely(ready > 0))
		enter_table(bucket, io, COW_IO_FIRST, unit);
	spin_unlock_irq(&bucket->lock);

	if (unlikely(ready <= 0))
		return not_entered(cow, bio, ready);
	take_fua(io, bio);

	return write_to_cow(cow, bio);
}

/* Fold @bio into a copy-up of its unit, or have it wait for @other. With the bucket's lock. */
static void join(struct cow_io *other, struct bio *bio)
{
	if (other->state == COW_IO_COPYUP_READ) {
		take_fua(cow_bio_to_io(bio), bio);
		bio_list_add(&other->copyup.folded, bio);
	} else {
		bio_list_add(&other->entry.waiters, bio);
	}
}

/* Enter the table for a copy-up, with *@memory, which is used. With the bucket's lock. */
static void enter_copyup(struct cowloop *cow, struct bio *bio, struct cow_bucket *bucket,
			 u64 unit, struct cow_unit **memory)
{
	struct cow_io *io = cow_bio_to_io(bio);

	enter_table(bucket, io, COW_IO_COPYUP_READ, unit);
	bio_list_init(&io->copyup.folded);
	bio_list_add(&io->copyup.folded, bio);
	io->copyup.unit = *memory;
	*memory = NULL;
	take_fua(io, bio);
}

/*
 * Write a part of a unit that did not look written. *@memory is memory for the
 * unit, if there is some, as there is in a worker; it is set to NULL when it was used.
 */
static int write_part(struct cowloop *cow, struct bio *bio, u64 unit, struct cow_unit **memory)
{
	struct cow_bucket *bucket = bucket_of(cow, unit);
	const bool in_worker = *memory;
	enum cow_where where;
	struct cow_io *other;
	int ready;

	if (unlikely(!may_have_space(cow, bio, cow_unit_end(cow, unit))))
		return not_tried(cow, bio);

	spin_lock_irq(&bucket->lock);
	/* Again, with the table locked: nobody can be about to set the bit. */
	where = cow_lookup_now(cow, unit, 1).where;
	if (where == COW_IN_COW) {
		spin_unlock_irq(&bucket->lock);
		return rewrite(cow, bio);
	}
	other = find_overlap(bucket, unit, 1);
	if (other) {
		join(other, bio);
		spin_unlock_irq(&bucket->lock);
		return DM_MAPIO_SUBMITTED;
	}

	if (!*memory)
		*memory = cow_alloc_unit(cow, GFP_NOWAIT);
	/* A bit that was not in memory may have been set long ago. */
	ready = *memory && where != COW_UNKNOWN ? may_enter(cow, bio, unit, 1) : 0;
	if (ready > 0)
		enter_copyup(cow, bio, bucket, unit, memory);
	spin_unlock_irq(&bucket->lock);

	if (ready <= 0)
		return not_entered(cow, bio, ready);
	/* Who must not wait for rdo leaves it to somebody else to find room in its queue. */
	cow_begin_copyup(cow, cow_bio_to_io(bio), !in_worker && !(bio->bi_opf & REQ_NOWAIT));

	return DM_MAPIO_SUBMITTED;
}

/* ---- Mapping ---- */

/* A write whose part of the bitmap was not in memory, when it was looked up first. */
static void do_load_write(struct work_struct *work)
{
	struct cowloop *cow;
	struct bio *bio = cow_work_to_bio(work, &cow);
	const int r = cow_load(cow, cow_sector_to_unit(cow, bio->bi_iter.bi_sector), false);

	if (r)
		cow_end_bio(bio, errno_to_blk_status(r));
	else
		cow_defer_bio(cow, bio);
}

/* Where the whole units that @bio begins with end, or their MiB. */
static sector_t whole_units_end(struct cowloop *cow, struct bio *bio)
{
	const sector_t mib = round_down(bio->bi_iter.bi_sector, COW_TRACK_SECTORS);
	const sector_t end = min(bio_end_sector(bio), mib + COW_TRACK_SECTORS);

	/* The last unit may be short. */
	return end == cow->layout.units_end ? end :
					      cow_unit_start(cow, cow_sector_to_unit(cow, end));
}

/*
 * Map a write that was accepted, and of which the first units, or all, are @run. It is
 * trimmed to one of three: units that are all written, whole units in one MiB, or a
 * part of one unit. A bio that has one of the latter two shapes
 * already, as deferred bios do, is not trimmed again; nor is one that is held back,
 * or may be kept for want of space, ever of the first.
 */
static int map_write(struct cowloop *cow, struct bio *bio, struct cow_run run,
		     struct cow_unit **memory)
{
	const sector_t sector = bio->bi_iter.bi_sector;
	const u64 unit = cow_sector_to_unit(cow, sector);
	const bool aligned = sector == cow_unit_start(cow, unit);
	const bool part = !aligned || bio_end_sector(bio) < cow_unit_end(cow, unit);
	const bool hold = unlikely(READ_ONCE(cow->owes_commit));
	sector_t end;

	if (run.where == COW_IN_COW && (run.nr == cow_bio_units(cow, bio) || !aligned) &&
	    likely(!cow->opt.queue_if_no_space && !hold)) {
		if (unlikely(!cow_trim_bio(bio, cow_unit_start(cow, unit + run.nr))))
			return cow_end_bio(bio, BLK_STS_AGAIN);
		return rewrite(cow, bio);
	}
	if (unlikely(run.where == COW_BAD))
		return cow_end_bio(bio, BLK_STS_IOERR);

	end = part ? cow_unit_end(cow, unit) : whole_units_end(cow, bio);
	if (unlikely(!cow_trim_bio(bio, end)))
		return cow_end_bio(bio, BLK_STS_AGAIN);
	/* The write could be tried again from here, whatever becomes of the bits. */
	if (unlikely(cow->opt.queue_if_no_space)) {
		cow_note_origin(bio);
		if (run.where == COW_IN_COW && run.nr >= cow_bio_units(cow, bio) && likely(!hold))
			return rewrite(cow, bio);
	}
	if (unlikely(hold))
		return cow_hold_back(cow, bio);
	/* The write may turn out to be a rewrite, which takes no space. */
	if (unlikely(run.where == COW_UNKNOWN)) {
		cow_queue_bio(cow, bio, cow->queues.load, do_load_write);
		return DM_MAPIO_SUBMITTED;
	}

	return part ? write_part(cow, bio, unit, memory) :
		      write_units(cow, bio, unit, cow_bio_units(cow, bio));
}

/* ---- Accepting ---- */

static __always_inline bool accept_write(struct cowloop *cow, struct bio *bio)
{
	struct cow_io *io;

	if (unlikely(!cow_begin_flight(cow, bio, COW_FLIGHT_WRITES, COW_MODE_OUT_OF_SPACE)))
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
	io->read_failed = false;
	io->commit = false;
	io->seeks_space = unlikely(READ_ONCE(cow->mode) == COW_MODE_OUT_OF_SPACE) &&
			  !cow_is_reserved_for(cow, bio);

	return true;
}

bool cow_accept_write(struct cowloop *cow, struct bio *bio)
{
	return accept_write(cow, bio);
}

/* The usual first write: short for what cow_accept_and_map() would come to. */
int cow_accept_whole(struct cowloop *cow, struct bio *bio)
{
	if (unlikely(!accept_write(cow, bio)))
		return cow_end_bio(bio, BLK_STS_IOERR);
	return write_units(cow, bio, cow_sector_to_unit(cow, bio->bi_iter.bi_sector),
			   cow_bio_units(cow, bio));
}

int cow_accept_and_map(struct cowloop *cow, struct bio *bio, struct cow_run run)
{
	struct cow_unit *memory = NULL;
	int r;

	if (unlikely(!accept_write(cow, bio)))
		return cow_end_bio(bio, BLK_STS_IOERR);
	r = map_write(cow, bio, run, &memory);
	if (unlikely(memory))
		cow_free_unit(cow, memory);
	return r;
}

/* ---- Mapping again ---- */

/* All the units that @bio writes are in the cowfile. */
static bool is_rewrite(struct cowloop *cow, struct bio *bio)
{
	const u64 unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector);
	const unsigned int nr = cow_bio_units(cow, bio);
	const struct cow_run run = cow_lookup_now(cow, unit, nr);

	return run.where == COW_IN_COW && run.nr == nr;
}

/* Have all there that it takes to write to @unit. Sleeps, does I/O. */
static int prepare_write(struct cowloop *cow, struct bio *bio, u64 unit)
{
	int r;

	r = cow_load(cow, unit, false);
	if (r || is_rewrite(cow, bio))
		return r;
	/* The limit takes the right count. */
	if (READ_ONCE(cow->opt.limit))
		cow_count_readable(cow);
	r = cow_load(cow, unit, true);

	return r ? r : cow_open_gate(cow);
}

void cow_deferred_write(struct cowloop *cow, struct bio *bio)
{
	const u64 unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector);
	struct cow_run run;
	struct cow_unit *memory = NULL;
	int r;

	/* First: to wait for memory might evict the region that is loaded. */
	if (bio_sectors(bio) < 1U << cow->layout.unit_shift)
		memory = cow_alloc_unit(cow, GFP_NOIO);
	r = prepare_write(cow, bio, unit);
	cow_bio_to_io(bio)->for_units = r;
	if (r == -ENOSPC)
		cow_bio_to_io(bio)->unsure = cow_md_unsure(cow->md);
	if (r) {
		cow_end_bio(bio, errno_to_blk_status(r));
	} else {
		run = cow_lookup_now(cow, unit, cow_bio_units(cow, bio));
		if (map_write(cow, bio, run, &memory) == DM_MAPIO_REMAPPED)
			submit_bio_noacct(bio);
	}
	if (memory)
		cow_free_unit(cow, memory);
}

/* ---- Ending ---- */

/*
 * A write that was accepted has failed with *@error, which is changed to the error that it
 * is to end with. False if it is kept instead, for want of space.
 */
static noinline bool write_failed(struct cowloop *cow, struct bio *bio, blk_status_t *error)
{
	struct cow_io *io = cow_bio_to_io(bio);

	if (io->unsure) {
		cow_unsure_error(cow);
		*error = BLK_STS_NOSPC;
	}
	if (*error != BLK_STS_NOSPC || bio_op(bio) == REQ_OP_DISCARD) {
		if (cow_is_error(*error))
			cow_still_there(cow);
		return true;
	}

	/* Writes that only queue behind others have not been tried. */
	if (!io->kept)
		cow_out_of_space(cow, io->committed ? COW_LACK_COMMIT :
				      io->for_units ? COW_LACK_UNITS : COW_LACK_REWRITE);
	if (!cow->opt.queue_if_no_space)
		return true;
	if (cow_keep_write(cow, bio))
		return false;
	if (dm_noflush_suspending(cow->ti))
		*error = BLK_STS_DM_REQUEUE;
	else if (io->unsure || READ_ONCE(cow->mode) == COW_MODE_FAIL)
		*error = BLK_STS_IOERR;
	return true;
}

int cow_end_write(struct cowloop *cow, struct bio *bio, blk_status_t *error)
{
	struct cow_io *io = cow_bio_to_io(bio);
	const bool committed = io->committed;

	if (io->state == COW_IO_FIRST) {
		if (unlikely(*error)) {
			io->for_units = true;
			io->unsure = cow_may_lack_space(cow, *error);
		}
		end_first_write(cow, io, *error);
	}
	if (unlikely(*error) && !write_failed(cow, bio, error))
		return DM_ENDIO_INCOMPLETE;
	if (unlikely(io->at_end) && !*error) {
		if (io->seeks_space)
			cow_space_found(cow, COW_LACK_REWRITE);
		if (io->commit && !io->committed) {
			io->committed = true;
			cow_commit_bio(cow, bio);
			return DM_ENDIO_INCOMPLETE;
		}
	}
	if (unlikely(io->retried))
		cow_end_retried(cow);
	if (unlikely(committed && *error && *error != BLK_STS_DM_REQUEUE))
		cow_owe_commit(cow);
	this_cpu_inc(cow->stats->ended[COW_FLIGHT_WRITES]);
	if (likely(!*error))
		return DM_ENDIO_DONE;

	if (*error == BLK_STS_DM_REQUEUE)
		return DM_ENDIO_REQUEUE;
	if (cow_is_error(*error))
		this_cpu_inc(cow->stats->errors);
	return DM_ENDIO_DONE;
}
