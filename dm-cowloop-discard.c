// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: discards.
 */

#include "dm-cowloop-internal.h"

#define DM_MSG_PREFIX "cowloop"

/* Discard the units of which all is discarded. What is in rdo already takes no work. */
int cow_map_discard(struct cowloop *cow, struct bio *bio)
{
	struct cow_io *io = cow_bio_to_io(bio);
	const u64 end = bio_end_sector(bio) < cow->units_end ?
			cow_sector_to_unit(cow, bio_end_sector(bio)) :
			cow_md_geometry(cow->md)->nr_units;
	unsigned long flags;
	struct cow_run run;
	u64 unit;

	atomic_long_inc(&cow->nr_discards);
	/* It takes no space. */
	io->seeks_space = false;
	io->unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector + (1U << cow->unit_shift) - 1);
	for (unit = io->unit; unit < end; unit += run.nr) {
		run = cow_lookup_now(cow, unit, min_t(u64, end - unit, UINT_MAX));
		if (run.where != COW_IN_RDO)
			break;
	}
	if (unit >= end)
		return cow_end_bio(bio, BLK_STS_OK);
	/* A bio is shorter than 4 GiB, and has fewer units than an int can count. */
	io->nr = end - io->unit;

	spin_lock_irqsave(&cow->lock, flags);
	bio_list_add(&cow->discards, bio);
	queue_work(cow->deferred_wq, &cow->discard_work);
	spin_unlock_irqrestore(&cow->lock, flags);

	return DM_MAPIO_SUBMITTED;
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
				r = cow_commit_for_memory(cow);
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
	const sector_t start = cow->data_sector + cow_unit_start(cow, io->unit);
	const sector_t end = min(cow->data_sector + cow_unit_start(cow, io->unit + io->nr),
				 bdev_nr_sectors(bdev));
	blk_status_t status;
	struct bio *bio;

	if (!cow_still_there(cow))
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
	return cow->opt.no_discard_passdown ? BLK_STS_OK : pass_down(cow, cow_bio_to_io(bio));
}

/*
 * Publish the discards that have come, and do those that nothing in the table is in the way
 * of; the others are for the next run. This waits for the cow device only, and for the gate.
 */
void cow_do_discards(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, discard_work);
	struct bio_list ready;
	long discarded = 0;
	struct bio *bio;
	int r;

	cow_publish_ranges(cow);
	ready = cow_take_ready_discards(cow);
	if (bio_list_empty(&ready))
		return;

	r = cow_begin_discards(cow);
	bio_list_for_each(bio, &ready) {
		int error = r;

		if (!r && can_discard(cow))
			error = clear_range(cow, cow_bio_to_io(bio), &discarded);
		bio->bi_status = errno_to_blk_status(error);
	}
	if (discarded) {
		r = cow_commit_soon(cow);
		atomic_long_add(discarded, &cow->discarded_units);
		cow_check_low_water(cow);
	}
	while ((bio = bio_list_pop(&ready))) {
		if (discarded && !bio->bi_status)
			bio->bi_status = give_back(cow, bio, r);
		cow_withdraw_range(cow, cow_bio_to_io(bio));
		if (discarded && !r)
			cow_space_made(cow);
		bio_endio(bio);
		cond_resched();
	}
	cow_end_discards(cow);
}
