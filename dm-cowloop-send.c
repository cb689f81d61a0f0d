// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: sending bios to the devices, and deferring those that have to wait.
 */

#include "dm-cowloop-internal.h"

#define DM_MSG_PREFIX "cowloop"

/* Take all the bios off a list of @cow's. Process context. */
struct bio_list cow_take_bios(struct cowloop *cow, struct bio_list *list)
{
	struct bio_list bios;

	spin_lock_irq(&cow->lock);
	bios = *list;
	bio_list_init(list);
	spin_unlock_irq(&cow->lock);

	return bios;
}

/* Have @function run, in @wq, on the cow_io of @bio, which may be a read. Any context. */
void cow_queue_bio(struct cowloop *cow, struct bio *bio, struct workqueue_struct *wq,
		   work_func_t function)
{
	struct cow_io *io = dm_per_bio_data(bio, sizeof(*io));

	io->cowloop = cow;
	INIT_WORK(&io->work, function);
	queue_work(wq, &io->work);
}

/* The other way. */
struct bio *cow_work_to_bio(struct work_struct *work, struct cowloop **cow)
{
	struct cow_io *io = container_of(work, struct cow_io, work);

	*cow = io->cowloop;

	return dm_bio_from_per_bio_data(io, sizeof(*io));
}

void cow_defer_bios(struct cowloop *cow, struct bio_list *bios)
{
	unsigned long flags;

	spin_lock_irqsave(&cow->lock, flags);
	bio_list_merge(&cow->deferred, bios);
	queue_work(cow->deferred_wq, &cow->deferred_work);
	spin_unlock_irqrestore(&cow->lock, flags);
}

int cow_defer_bio(struct cowloop *cow, struct bio *bio)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	bio_list_add(&bios, bio);
	cow_defer_bios(cow, &bios);

	return DM_MAPIO_SUBMITTED;
}

/* Bios for rdo, by somebody who may wait for it. Sleeps. */
void cow_do_rdo(struct work_struct *work)
{
	struct cowloop *cow = container_of(work, struct cowloop, rdo_work);
	struct bio_list bios = cow_take_bios(cow, &cow->rdo_bios);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios)))
		submit_bio_noacct(bio);
}

void cow_send_to_rdo(struct cowloop *cow, struct bio *bio)
{
	cow_remap_to_rdo(cow, bio);
	spin_lock_irq(&cow->lock);
	bio_list_add(&cow->rdo_bios, bio);
	queue_work(cow->rdo_wq, &cow->rdo_work);
	spin_unlock_irq(&cow->lock);
}

/* The sectors up to where a piece of a write to the cow device ends. */
static unsigned int piece_sectors(struct cowloop *cow, struct bio *bio)
{
	const sector_t sector = bio->bi_iter.bi_sector + get_start_sect(bio->bi_bdev);

	return cow->write_sectors - (sector & (cow->write_sectors - 1));
}

bool cow_in_pieces(struct cowloop *cow, struct bio *bio)
{
	return unlikely(cow->write_sectors) && bio_op(bio) == REQ_OP_WRITE &&
	       bio_sectors(bio) > piece_sectors(cow, bio);
}

/* Submit a write that was remapped, in pieces if need be. Sleeps. */
void cow_submit_write(struct cowloop *cow, struct bio *bio)
{
	while (cow_in_pieces(cow, bio)) {
		struct bio *piece = bio_split(bio, piece_sectors(cow, bio), GFP_NOIO, &cow->pieces);

		bio_chain(piece, bio);
		submit_bio_noacct(piece);
	}
	submit_bio_noacct(bio);
}
