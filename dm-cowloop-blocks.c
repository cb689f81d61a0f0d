// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: blocks of the cow device: read by dm-bufio, written by bios of our own.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/dm-bufio.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>

bool cow_md_failed(struct cow_md *md)
{
	return READ_ONCE(md->failed);
}

bool cow_md_unsure(struct cow_md *md)
{
	return READ_ONCE(md->unsure);
}

void cow_md_set_failed(struct cow_md *md)
{
	WRITE_ONCE(md->failed, true);
}

bool cow_fua_flushes(struct block_device *cow)
{
	return bdev_write_cache(cow) && !bdev_fua(cow);
}

static void end_writing(struct cow_md *md)
{
	if (atomic_dec_and_test(&md->nr_writing))
		complete(&md->written);
}

/*
 * Errors of flushes are recorded here, not by whoever waits: the next flush may end
 * before that, and well. There may be one in a FUA write; it is not what lacks space.
 */
static void block_written(struct bio *bio)
{
	struct cow_md *md = bio->bi_private;

	if (bio->bi_opf & REQ_FUA && bio->bi_status && bio->bi_status != BLK_STS_NOSPC)
		cow_md_set_failed(md);
	end_writing(md);
}

static void cow_flushed(struct bio *bio)
{
	struct cow_md *md = bio->bi_private;

	if (bio->bi_status)
		cow_md_set_failed(md);
	end_writing(md);
}

/* Until all of them have ended */
static void wait_for_bios(struct cow_md *md)
{
	if (!atomic_dec_and_test(&md->nr_writing))
		wait_for_completion_io(&md->written);
	atomic_set(&md->nr_writing, 1);
	reinit_completion(&md->written);
}

/*
 * Wait for all the blocks that are being written. Returns @before, if something has
 * failed before, or their error: -ENOSPC, if there is no other.
 */
int wait_for_writes(struct cow_md *md, int before)
{
	unsigned int i;
	int r = 0;

	lockdep_assert_held(&md->commit_lock);
	if (!md->nr_writes)
		return before;
	wait_for_bios(md);
	for (i = 0; i < md->nr_writes; i++) {
		struct cow_write *w = &md->writes[i];
		int error = blk_status_to_errno(w->bio->bi_status);

		if (error == -ENOSPC)
			WRITE_ONCE(md->unsure, false);
		if (error == -EIO && cow_hides_no_space(md->cow)) {
			WRITE_ONCE(md->unsure, true);
			error = -ENOSPC;
		}
		if (!r || r == -ENOSPC)
			r = error ? error : r;
		bio_uninit(w->bio);
		dm_bufio_release(w->buf);
	}
	md->nr_writes = 0;

	return before ? before : r;
}

/* Begin to write a block. Its buffer is released by wait_for_writes(). */
int write_block(struct cow_md *md, struct dm_buffer *buf, blk_opf_t opf)
{
	void *data = dm_bufio_get_block_data(buf);
	struct page *page = NULL;
	struct cow_write *w;
	int r = 0;

	if (md->nr_writes == COW_MAX_WRITES)
		r = wait_for_writes(md, 0);

	w = &md->writes[md->nr_writes++];
	w->buf = buf;
	opf |= REQ_OP_WRITE | REQ_META | REQ_SYNC | cow_write_flags(md->cow);
	bio_init(w->bio, md->cow, &w->bvec, 1, opf);
	w->bio->bi_iter.bi_sector =
		dm_bufio_get_block_number(buf) << (md->block_shift - SECTOR_SHIFT);
	w->bio->bi_private = md;
	w->bio->bi_end_io = block_written;
	if (is_vmalloc_addr(data)) {
		flush_kernel_vmap_range(data, BIT(md->block_shift));
		page = vmalloc_to_page(data);
	}
	/* A block is no larger than a page, nor than its alignment. */
	__bio_add_page(w->bio, page ?: virt_to_page(data), BIT(md->block_shift),
		       offset_in_page(data));
	atomic_inc(&md->nr_writing);
	submit_bio(w->bio);

	return r;
}

/* A block that is being written must not be begun again, or the older one might win. */
int wait_if_written(struct cow_md *md, struct dm_buffer *buf)
{
	unsigned int i;

	for (i = 0; i < md->nr_writes; i++)
		if (md->writes[i].buf == buf)
			return wait_for_writes(md, 0);
	return 0;
}

/* What was written before is durable when this returns 0. No block is being written. */
int flush_cow(struct cow_md *md)
{
	lockdep_assert_held(&md->commit_lock);

	/* Without a cache it would come to nothing in the block layer, but take a way to it. */
	if (bdev_write_cache(md->cow)) {
		struct bio bio;

		bio_init(&bio, md->cow, NULL, 0, REQ_OP_WRITE | REQ_PREFLUSH | REQ_SYNC);
		bio.bi_private = md;
		bio.bi_end_io = cow_flushed;
		atomic_inc(&md->nr_writing);
		submit_bio(&bio);
		wait_for_bios(md);
		bio_uninit(&bio);
	}
	/* Somebody else's flush may have been told of what this one has not. */
	return cow_md_failed(md) ? -EIO : 0;
}
