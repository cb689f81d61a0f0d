// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the queues, and bios that are sent, or mapped again, by them.
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
 */

#include "dm-cowloop-internal.h"

/* Deferred reads, and writes, for which the bitmap is read at the same time. */
#define COW_MAX_LOADS		16

struct cow_sender {
	struct cowloop *cow;
	void (*map_again)(struct cowloop *cow, struct bio *bio);

	spinlock_t lock;		/* the two lists */
	struct bio_list deferred;	/* writes */
	struct bio_list rdo_bios;	/* of deferred reads, to be sent to rdo */
	struct work_struct deferred_work;
	struct work_struct rdo_work;

	struct bio_set splits;		/* of deferred reads */
	struct bio_set pieces;		/* of writes, with ways.in_pieces */
};

/* ---- Deferred bios ---- */

void cow_queue_bio(struct cowloop *cow, struct bio *bio, struct workqueue_struct *wq,
		   work_func_t function)
{
	struct cow_io *io = dm_per_bio_data(bio, sizeof(*io));

	io->job.cow = cow;
	INIT_WORK(&io->job.work, function);
	queue_work(wq, &io->job.work);
}

struct bio *cow_work_to_bio(struct work_struct *work, struct cowloop **cow)
{
	struct cow_io *io = container_of(work, struct cow_io, job.work);

	*cow = io->job.cow;

	return dm_bio_from_per_bio_data(io, sizeof(*io));
}

void cow_defer_bios(struct cowloop *cow, struct bio_list *bios)
{
	struct cow_sender *s = cow->sender;
	unsigned long flags;

	spin_lock_irqsave(&s->lock, flags);
	bio_list_merge(&s->deferred, bios);
	queue_work(cow->queues.deferred, &s->deferred_work);
	spin_unlock_irqrestore(&s->lock, flags);
}

int cow_defer_bio(struct cowloop *cow, struct bio *bio)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	bio_list_add(&bios, bio);
	cow_defer_bios(cow, &bios);

	return DM_MAPIO_SUBMITTED;
}

static void do_deferred(struct work_struct *work)
{
	struct cow_sender *s = container_of(work, struct cow_sender, deferred_work);
	struct bio_list bios = cow_take_bios(&s->lock, &s->deferred);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios))) {
		/* The bio has waited; and an EAGAIN from here would not be tried again. */
		cow_let_wait(bio);
		s->map_again(s->cow, bio);
		cond_resched();
	}
}

/* ---- Reads of rdo ---- */

static void do_rdo(struct work_struct *work)
{
	struct cow_sender *s = container_of(work, struct cow_sender, rdo_work);
	struct bio_list bios = cow_take_bios(&s->lock, &s->rdo_bios);
	struct bio *bio;

	while ((bio = bio_list_pop(&bios)))
		submit_bio_noacct(bio);
}

void cow_send_to_rdo(struct cowloop *cow, struct bio *bio)
{
	struct cow_sender *s = cow->sender;

	cow_remap_to_rdo(cow, bio);
	spin_lock_irq(&s->lock);
	bio_list_add(&s->rdo_bios, bio);
	queue_work(cow->queues.rdo, &s->rdo_work);
	spin_unlock_irq(&s->lock);
}

struct bio *cow_split_read(struct cowloop *cow, struct bio *bio, sector_t sectors)
{
	struct bio *split = bio_split(bio, sectors, GFP_NOIO, &cow->sender->splits);

	bio_chain(split, bio);

	return split;
}

/* ---- Cow devices that may take a write in part ---- */

bool cow_is_taken_whole(struct cowloop *cow, struct bio *bio, sector_t sector)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	if (bio_op(bio) != REQ_OP_WRITE)
		return true;
	if (!cow->ways.whole_blocks || !IS_ALIGNED(sector | bio_sectors(bio), COW_PIECE_SECTORS))
		return false;
	/*
	 * Some filesystems have buffered I/O for memory that is not aligned; and a loop device
	 * would split the bio where a vector ends.
	 */
	bio_for_each_bvec(bv, bio, iter)
		if (!IS_ALIGNED(bv.bv_offset | bv.bv_len, COW_PIECE_SECTORS << SECTOR_SHIFT))
			return false;
	return true;
}

/* The sectors up to where a piece of a write to the cow device ends. */
static unsigned int piece_sectors(struct bio *bio)
{
	const sector_t start = bio->bi_iter.bi_sector + get_start_sect(bio->bi_bdev);

	return COW_PIECE_SECTORS - (start & (COW_PIECE_SECTORS - 1));
}

/*
 * One request has one error for all its bios: a rewrite that was merged with a first write
 * would find no space, and pieces would be one write again.
 */
void cow_submit_write(struct cowloop *cow, struct bio *bio)
{
	const bool whole = cow_is_taken_whole(cow, bio, bio->bi_iter.bi_sector);

	bio->bi_opf |= REQ_NOMERGE;
	while (!whole && bio_sectors(bio) > piece_sectors(bio)) {
		struct bio *piece = bio_split(bio, piece_sectors(bio), GFP_NOIO,
					      &cow->sender->pieces);

		bio_chain(piece, bio);
		submit_bio_noacct(piece);
	}
	submit_bio_noacct(bio);
}

static void submit_write_later(struct work_struct *work)
{
	struct cowloop *cow;
	struct bio *bio = cow_work_to_bio(work, &cow);

	cow_submit_write(cow, bio);
}

int cow_send_in_pieces(struct cowloop *cow, struct bio *bio)
{
	bio->bi_opf |= REQ_NOMERGE;
	if (bio_sectors(bio) <= piece_sectors(bio) ||
	    cow_is_taken_whole(cow, bio, bio->bi_iter.bi_sector))
		return DM_MAPIO_REMAPPED;

	/* Not all the pieces could be had in map, which submits none before it returns. */
	cow_let_wait(bio);
	cow_queue_bio(cow, bio, cow->queues.io, submit_write_later);

	return DM_MAPIO_SUBMITTED;
}

/* ---- Making and destroying ---- */

int cow_queues_create(struct cow_queues *queues)
{
	queues->rdo = alloc_workqueue("dm-cowloop-rdo", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	queues->io = alloc_workqueue("dm-cowloop-io", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	queues->load = alloc_workqueue("dm-cowloop-load", WQ_MEM_RECLAIM | WQ_UNBOUND,
				       COW_MAX_LOADS);
	queues->deferred = alloc_workqueue("dm-cowloop-deferred", WQ_MEM_RECLAIM | WQ_PERCPU, 0);

	return queues->rdo && queues->io && queues->load && queues->deferred ? 0 : -ENOMEM;
}

void cow_queues_destroy(struct cow_queues *queues)
{
	if (queues->load)
		destroy_workqueue(queues->load);
	if (queues->deferred)
		destroy_workqueue(queues->deferred);
	if (queues->rdo)
		destroy_workqueue(queues->rdo);
	if (queues->io)
		destroy_workqueue(queues->io);
}

int cow_sender_create(struct cowloop *cow, void (*map_again)(struct cowloop *, struct bio *))
{
	struct cow_sender *s = kzalloc(sizeof(*s), GFP_KERNEL);
	int r;

	if (!s)
		return -ENOMEM;
	cow->sender = s;
	s->cow = cow;
	s->map_again = map_again;
	spin_lock_init(&s->lock);
	bio_list_init(&s->deferred);
	bio_list_init(&s->rdo_bios);
	INIT_WORK(&s->deferred_work, do_deferred);
	INIT_WORK(&s->rdo_work, do_rdo);

	r = bioset_init(&s->splits, BIO_POOL_SIZE, 0, 0);
	if (!r)
		r = bioset_init(&s->pieces, BIO_POOL_SIZE, 0, 0);
	return r;
}

void cow_sender_destroy(struct cowloop *cow)
{
	if (!cow->sender)
		return;
	bioset_exit(&cow->sender->pieces);
	bioset_exit(&cow->sender->splits);
	kfree(cow->sender);
}
