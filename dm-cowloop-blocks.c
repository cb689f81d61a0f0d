// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: blocks of the cow device, as the metadata reads and writes them.
 *
 * dm-bufio reads blocks and keeps them. They are written from its buffers, but by bios
 * of our own: dm-bufio's write-back tells one error for all blocks, and makes no
 * difference between a lack of space and a failure.
 *
 * The commit_lock is here: whoever has it is the only one to write, flush or wait.
 */

#include "dm-cowloop-compat.h"
#include "dm-cowloop-metadata-internal.h"

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/dm-bufio.h>
#include <linux/highmem.h>
#include <linux/major.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

struct cow_write {
	struct bio *bio;	/* on its own: a bio ends with an array of any length */
	struct bio_vec bvec;
	struct dm_buffer *buf;
};

struct cow_blocks {
	struct block_device *cow;
	struct dm_bufio_client *bufio;
	unsigned int shift;		/* of the size of a block, in bytes */
	bool failed;			/* it is not known what is on disk */
	bool unsure;			/* whether the last ENOSPC was one */

	struct mutex commit_lock;	/* all that is below */
	struct cow_write writes[COW_MAX_WRITES];
	unsigned int nr_writes;		/* begun */
	atomic_t nr_writing;		/* of them, and one for whoever will wait */
	struct completion written;
};

bool cow_fua_flushes(struct block_device *cow)
{
	return bdev_write_cache(cow) && !bdev_fua(cow);
}

bool cow_takes_parts(struct block_device *cow)
{
	return cow->bd_disk->major == LOOP_MAJOR;
}

struct cow_blocks *cow_blocks_alloc(struct block_device *cow, unsigned int size)
{
	struct cow_blocks *b = kzalloc(sizeof(*b), GFP_KERNEL);
	struct dm_bufio_client *bufio = ERR_PTR(-ENOMEM);
	unsigned int i;

	if (!b)
		return ERR_PTR(-ENOMEM);
	b->cow = cow;
	b->shift = ilog2(size);
	mutex_init(&b->commit_lock);
	init_completion(&b->written);
	atomic_set(&b->nr_writing, 1);
	for (i = 0; i < COW_MAX_WRITES; i++) {
		b->writes[i].bio = kmalloc(sizeof(*b->writes[i].bio), GFP_KERNEL);
		if (!b->writes[i].bio)
			goto bad;
	}

	bufio = dm_bufio_client_create(cow, size, COW_MAX_WRITES + 1, 0, NULL, NULL, 0);
	if (IS_ERR(bufio))
		goto bad;
	b->bufio = bufio;

	return b;
bad:
	cow_blocks_free(b);
	return ERR_CAST(bufio);
}

void cow_blocks_let_go(struct cow_blocks *b)
{
	if (b->bufio)
		dm_bufio_client_destroy(b->bufio);
	b->bufio = NULL;
	b->cow = NULL;
}

void cow_blocks_free(struct cow_blocks *b)
{
	unsigned int i;

	if (!b)
		return;
	cow_blocks_let_go(b);
	for (i = 0; i < COW_MAX_WRITES; i++)
		kfree(b->writes[i].bio);
	kfree(b);
}

void cow_blocks_lock(struct cow_blocks *b)
{
	mutex_lock(&b->commit_lock);
}

bool cow_blocks_trylock(struct cow_blocks *b)
{
	return mutex_trylock(&b->commit_lock);
}

void cow_blocks_unlock(struct cow_blocks *b)
{
	mutex_unlock(&b->commit_lock);
}

void cow_blocks_assert_locked(struct cow_blocks *b)
{
	lockdep_assert_held(&b->commit_lock);
}

bool cow_md_failed(struct cow_md *md)
{
	return READ_ONCE(md->blocks->failed);
}

void cow_md_set_failed(struct cow_md *md)
{
	WRITE_ONCE(md->blocks->failed, true);
}

bool cow_md_unsure(struct cow_md *md)
{
	return READ_ONCE(md->blocks->unsure);
}

/* ---- Reading ---- */

sector_t cow_blocks_at(const struct cow_blocks *b, u64 byte)
{
	return byte >> b->shift;
}

void *cow_blocks_get(struct cow_blocks *b, u64 byte, struct dm_buffer **buf)
{
	const sector_t block = cow_blocks_at(b, byte);
	void *data;

	if (*buf && dm_bufio_get_block_number(*buf) != block) {
		dm_bufio_release(*buf);
		*buf = NULL;
	}
	if (!*buf) {
		data = dm_bufio_read(b->bufio, block, buf);
		if (IS_ERR(data)) {
			*buf = NULL;
			return data;
		}
	}
	return dm_bufio_get_block_data(*buf) + (byte & (BIT(b->shift) - 1));
}

void cow_blocks_release(struct dm_buffer *buf)
{
	dm_bufio_release(buf);
}

void cow_blocks_prefetch(struct cow_blocks *b, sector_t block, unsigned int nr)
{
	dm_bufio_prefetch(b->bufio, block, nr);
}

void cow_blocks_forget(struct cow_blocks *b, sector_t block)
{
	dm_bufio_forget(b->bufio, block);
}

/* ---- Writing ---- */

static void end_writing(struct cow_blocks *b)
{
	if (atomic_dec_and_test(&b->nr_writing))
		complete(&b->written);
}

/*
 * Errors of flushes are recorded here, not by whoever waits: the next flush may end
 * before that, and well. There may be one in a FUA write; it is not what lacks space.
 */
static void block_written(struct bio *bio)
{
	struct cow_blocks *b = bio->bi_private;

	if (bio->bi_opf & REQ_FUA && bio->bi_status && bio->bi_status != BLK_STS_NOSPC)
		WRITE_ONCE(b->failed, true);
	end_writing(b);
}

static void flushed(struct bio *bio)
{
	struct cow_blocks *b = bio->bi_private;

	if (bio->bi_status)
		WRITE_ONCE(b->failed, true);
	end_writing(b);
}

/* Wait until all bios have ended. */
static void wait_for_bios(struct cow_blocks *b)
{
	if (!atomic_dec_and_test(&b->nr_writing))
		wait_for_completion_io(&b->written);
	atomic_set(&b->nr_writing, 1);
	reinit_completion(&b->written);
}

/* The errno of a write that has ended. */
static int write_error(struct cow_blocks *b, const struct bio *bio)
{
	int error = blk_status_to_errno(bio->bi_status);

	if (error == -ENOSPC)
		WRITE_ONCE(b->unsure, false);
	if (error == -EIO && cow_hides_no_space(b->cow)) {
		WRITE_ONCE(b->unsure, true);
		error = -ENOSPC;
	}
	return error;
}

int cow_blocks_wait(struct cow_blocks *b, int before)
{
	unsigned int i;
	int r = 0;

	cow_blocks_assert_locked(b);
	if (!b->nr_writes)
		return before;
	wait_for_bios(b);
	for (i = 0; i < b->nr_writes; i++) {
		struct cow_write *w = &b->writes[i];
		const int error = write_error(b, w->bio);

		if (!r || r == -ENOSPC)
			r = error ? error : r;
		bio_uninit(w->bio);
		dm_bufio_release(w->buf);
	}
	b->nr_writes = 0;

	return before ? before : r;
}

int cow_blocks_write(struct cow_blocks *b, struct dm_buffer *buf, bool fua)
{
	const blk_opf_t opf = REQ_OP_WRITE | REQ_META | REQ_SYNC | (fua ? REQ_FUA : 0) |
			      (cow_takes_parts(b->cow) ? REQ_NOMERGE : 0);
	void *data = dm_bufio_get_block_data(buf);
	struct page *page = NULL;
	struct cow_write *w;
	int r = 0;

	if (b->nr_writes == COW_MAX_WRITES)
		r = cow_blocks_wait(b, 0);

	w = &b->writes[b->nr_writes++];
	w->buf = buf;
	bio_init(w->bio, b->cow, &w->bvec, 1, opf);
	w->bio->bi_iter.bi_sector = dm_bufio_get_block_number(buf) << (b->shift - SECTOR_SHIFT);
	w->bio->bi_private = b;
	w->bio->bi_end_io = block_written;
	if (is_vmalloc_addr(data)) {
		flush_kernel_vmap_range(data, BIT(b->shift));
		page = vmalloc_to_page(data);
	}
	/* A block is no larger than a page, nor than its alignment. */
	__bio_add_page(w->bio, page ?: virt_to_page(data), BIT(b->shift), offset_in_page(data));
	atomic_inc(&b->nr_writing);
	submit_bio(w->bio);

	return r;
}

int cow_blocks_wait_for(struct cow_blocks *b, const struct dm_buffer *buf)
{
	unsigned int i;

	for (i = 0; i < b->nr_writes; i++)
		if (b->writes[i].buf == buf)
			return cow_blocks_wait(b, 0);
	return 0;
}

int cow_blocks_flush(struct cow_blocks *b)
{
	cow_blocks_assert_locked(b);

	/* Without a cache, a flush would go a long way in the block layer, to do nothing. */
	if (bdev_write_cache(b->cow)) {
		struct bio bio;

		bio_init(&bio, b->cow, NULL, 0, REQ_OP_WRITE | REQ_PREFLUSH | REQ_SYNC);
		bio.bi_private = b;
		bio.bi_end_io = flushed;
		atomic_inc(&b->nr_writing);
		submit_bio(&bio);
		wait_for_bios(b);
		bio_uninit(&bio);
	}
	/* Somebody else's flush may have been told of what this one has not. */
	return READ_ONCE(b->failed) ? -EIO : 0;
}
