// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: copy-up of units of which only a part is written.
 */

#include "dm-cowloop-internal.h"

#define DM_MSG_PREFIX "cowloop"

/* Memory for a unit, or NULL if @gfp does not allow to wait for it. */
void *cow_alloc_unit(struct cowloop *cow, gfp_t gfp)
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
void cow_free_unit(struct cowloop *cow, void *data)
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

	cow_free_unit(cow, io->data);
	cow_end_copyup(cow, io, status);

	while ((bio = bio_list_pop(&bios))) {
		cow_bio_to_io(bio)->for_units = status;
		cow_bio_to_io(bio)->unsure = unsure;
		cow_end_bio(bio, status);
	}
}

static sector_t copyup_sectors(struct cow_io *io)
{
	struct cowloop *cow = io->cowloop;

	return cow_unit_end(cow, io->unit) - cow_unit_start(cow, io->unit);
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
	copyup_end(io, status, cow_may_lack_space(io->cowloop, status));
}

/*
 * Store the unit, with the data of all the bios laid over it. In a bio, since
 * dm-io would not tell when the cow device is out of space.
 */
static void copyup_store(struct work_struct *work)
{
	struct cow_io *io = container_of(work, struct cow_io, work);
	struct cowloop *cow = io->cowloop;
	const sector_t start = cow_unit_start(cow, io->unit);
	const size_t length = copyup_sectors(io) << SECTOR_SHIFT;
	/* The last unit may end within a block of the cow device. */
	const size_t size = min_t(size_t, round_up(length, bdev_logical_block_size(cow->cow->bdev)),
				  1U << (cow->unit_shift + SECTOR_SHIFT));
	blk_opf_t opf = REQ_OP_WRITE | cow->write_flags;
	struct bio *bio, *store;

	cow_end_folding(cow, io);

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
			struct cow_io *folded = cow_bio_to_io(bio);

			folded->commit = true;
		}
	}

	store = bio_alloc_bioset(cow->cow->bdev, 1, opf, GFP_NOIO, &cow->bios);
	store->bi_iter.bi_sector = cow->data_sector + start;
	store->bi_private = io;
	store->bi_end_io = copyup_stored;
	/* Memory from kmalloc() is contiguous, and so one vector, however large. */
	__bio_add_page(store, virt_to_page(io->data), size, offset_in_page(io->data));
	cow_submit_write(cow, store);
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
bool cow_copyup_start(struct cow_io *io, gfp_t gfp)
{
	struct cowloop *cow = io->cowloop;
	struct bio *read = bio_alloc_bioset(cow->rdo->bdev, 1, REQ_OP_READ, gfp,
					    &cow->rdo_reads);

	if (!read)
		return false;
	read->bi_iter.bi_sector = cow_unit_start(cow, io->unit);
	read->bi_private = io;
	read->bi_end_io = copyup_read;
	__bio_add_page(read, virt_to_page(io->data), copyup_sectors(io) << SECTOR_SHIFT,
		       offset_in_page(io->data));
	this_cpu_inc(cow->stats->copyups);
	submit_bio_noacct(read);

	return true;
}

void cow_copyup_start_later(struct work_struct *work)
{
	cow_copyup_start(container_of(work, struct cow_io, work), GFP_NOIO);
}
