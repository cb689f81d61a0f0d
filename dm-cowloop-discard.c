// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: discards.
 *
 * A discard of whole units clears their bits; then the bits are committed, and only then is
 * the space in the cow device given back. First writes to its units wait meanwhile, and it
 * waits for those that are in flight: dm-cowloop-table.h says how.
 *
 * Rewrites that found their bit set before it was cleared are in flight when the discard is:
 * they race it as they would on any disk, and may be lost with what they have overwritten.
 */

#include "dm-cowloop-internal.h"

struct cow_discards {
	struct cowloop *cow;

	spinlock_t lock;		/* the list of new ones */
	struct bio_list new;		/* to be published */
	struct bio_list blocked;	/* published; for do_discards() alone */
	struct work_struct work;
	struct bio_set bios;		/* that are passed down */
};

static struct cow_range *bio_to_range(struct bio *bio)
{
	return &cow_bio_to_io(bio)->range;
}

/* Units that are in rdo already take no work. */
int cow_map_discard(struct cowloop *cow, struct bio *bio)
{
	struct cow_discards *d = cow->discards;
	struct cow_range *range;
	unsigned long flags;
	struct cow_run run;
	u64 unit, end;

	if (!cow_accept_write(cow, bio))
		return cow_end_bio(bio, BLK_STS_IOERR);

	/* Counted as begun before: pairs with sum_stats(). */
	smp_wmb();
	this_cpu_inc(cow->stats->discards);
	/* A discard takes no space. */
	cow_bio_to_io(bio)->seeks_space = false;
	range = bio_to_range(bio);
	range->unit = cow_sector_to_unit(cow, bio->bi_iter.bi_sector +
					 (1U << cow->layout.unit_shift) - 1);
	end = bio_end_sector(bio) < cow->layout.units_end ?
	      cow_sector_to_unit(cow, bio_end_sector(bio)) : cow_md_geometry(cow->md)->nr_units;
	for (unit = range->unit; unit < end; unit += run.nr) {
		run = cow_lookup_now(cow, unit, min_t(u64, end - unit, UINT_MAX));
		if (run.where != COW_IN_RDO)
			break;
	}
	if (unit >= end)
		return cow_end_bio(bio, BLK_STS_OK);
	/* A bio is shorter than 4 GiB, and has fewer units than an int can count. */
	range->nr = end - range->unit;

	spin_lock_irqsave(&d->lock, flags);
	bio_list_add(&d->new, bio);
	queue_work(cow->queues.deferred, &d->work);
	spin_unlock_irqrestore(&d->lock, flags);

	return DM_MAPIO_SUBMITTED;
}

/* Publish the ranges of the discards that have come, for first writes to find. */
static void publish_new(struct cow_discards *d)
{
	struct bio_list bios = cow_take_bios(&d->lock, &d->new);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios))) {
		bio_list_add(&d->blocked, bio);
		cow_publish_range(d->cow, bio_to_range(bio));
	}
}

/* The discards that are published and have nothing in their way: they can begin to work. */
static struct bio_list take_ready(struct cow_discards *d)
{
	struct bio_list bios = d->blocked, ready = BIO_EMPTY_LIST;
	struct bio *bio;

	bio_list_init(&d->blocked);
	if (bio_list_empty(&bios))
		return ready;

	cow_block_ranges(d->cow);
	while ((bio = bio_list_pop(&bios))) {
		struct cow_range *range = bio_to_range(bio);

		bio_list_add(range->blocked ? &d->blocked : &ready, bio);
		range->blocked = false;
	}
	return ready;
}

/* Clear the bits of a discard's units, and count those that were set. */
static int clear_range(struct cowloop *cow, struct cow_range *range, long *cleared)
{
	const u64 end = range->unit + range->nr;
	u64 unit = range->unit;
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
static blk_status_t pass_down(struct cowloop *cow, struct cow_range *range)
{
	struct block_device *bdev = cow->cow_bdev;
	const sector_t data = cow->layout.data_sector;
	const sector_t start = data + cow_unit_start(cow, range->unit);
	const sector_t end = min(data + cow_unit_start(cow, range->unit + range->nr),
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

	/* blkdev_issue_discard() would wait for memory that others hold. */
	bio = bio_alloc_bioset(bdev, 0, REQ_OP_DISCARD, GFP_NOIO, &cow->discards->bios);
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
	       (!cow->opt.no_discard_passdown && bdev_write_zeroes_sectors(cow->cow_bdev));
}

/* A discard's last step, after a commit that has ended with errno @r. */
static blk_status_t give_back(struct cowloop *cow, struct bio *bio, int r)
{
	if (r)
		return errno_to_blk_status(r);
	return cow->opt.no_discard_passdown ? BLK_STS_OK : pass_down(cow, bio_to_range(bio));
}

/*
 * Publish the discards that have come, and do those that nothing in the table is in the way
 * of; the others are for the next run. This waits for the cow device only, and for the gate.
 */
static void do_discards(struct work_struct *work)
{
	struct cow_discards *d = container_of(work, struct cow_discards, work);
	struct cowloop *cow = d->cow;
	struct bio_list ready;
	long discarded = 0;
	struct bio *bio;
	int r;

	publish_new(d);
	ready = take_ready(d);
	if (bio_list_empty(&ready))
		return;

	r = cow_begin_discards(cow);
	bio_list_for_each(bio, &ready) {
		int error = r;

		if (!r && can_discard(cow))
			error = clear_range(cow, bio_to_range(bio), &discarded);
		bio->bi_status = errno_to_blk_status(error);
	}
	if (discarded) {
		r = cow_commit_soon(cow);
		this_cpu_add(cow->stats->discarded_units, discarded);
		cow_check_low_water(cow);
	}
	while ((bio = bio_list_pop(&ready))) {
		if (discarded && !bio->bi_status)
			bio->bi_status = give_back(cow, bio, r);
		cow_withdraw_range(cow, bio_to_range(bio));
		if (discarded && !r)
			cow_space_made(cow);
		bio_endio(bio);
		cond_resched();
	}
	cow_end_discards(cow);
}

void cow_discards_ready(struct cowloop *cow)
{
	queue_work(cow->queues.deferred, &cow->discards->work);
}

void cow_flush_discards(struct cowloop *cow)
{
	flush_work(&cow->discards->work);
}

void cow_cancel_discards(struct cowloop *cow)
{
	cancel_work_sync(&cow->discards->work);
}

int cow_discards_create(struct cowloop *cow)
{
	struct cow_discards *d = kzalloc(sizeof(*d), GFP_KERNEL);

	if (!d)
		return -ENOMEM;
	cow->discards = d;
	d->cow = cow;
	spin_lock_init(&d->lock);
	bio_list_init(&d->new);
	bio_list_init(&d->blocked);
	INIT_WORK(&d->work, do_discards);

	return bioset_init(&d->bios, BIO_POOL_SIZE, 0, 0);
}

void cow_discards_destroy(struct cowloop *cow)
{
	if (cow->discards)
		bioset_exit(&cow->discards->bios);
	kfree(cow->discards);
}
