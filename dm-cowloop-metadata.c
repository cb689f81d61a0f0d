// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: commits, and the head as it is written.
 *
 * The metadata is a house of several files; dm-cowloop-metadata-internal.h lists them.
 * Commits are here, since the order of things on disk is what they are about.
 *
 * The order of things on disk, which is what makes a crash harmless:
 *
 *  1. DIRTY is durable in the head before any data is written for a unit whose
 *     bit is not set on disk. (Format 1 needs it: only DIRTY tells that there
 *     may be such data. In format 2 it says that cowused has to be recounted.)
 *  2. A bit is set in memory (cow_md_mark) after its unit's data was written
 *     completely, and written to disk only when a flush of the cow device that
 *     began after that has succeeded. So the bitmap on disk never claims a unit
 *     whose data may be lost.
 *  3. A head that is not DIRTY is written only after a commit with no write in
 *     flight, when cowused is exact.
 *
 * For 2, a commit first copies the changed bitmap sectors aside as they are
 * now, then flushes the cow device, and only then writes the copies
 * (write_all_staged). Bits that are set after the copy was made belong to the next
 * commit. Blocks are written from dm-bufio's buffers, which also hold what was read.
 * So what is in a buffer is on disk, or it belongs to a commit that met ENOSPC.
 *
 * cow_md_mark() queues the region for the next commit before it sets the first
 * bit, so that whoever has seen the bit finds that there is something to commit;
 * and it does both under the region's lock, so that a commit that finds the
 * region in the queue waits for the bit. A write that saw the bit, and so went
 * straight to the cowfile, can then rely on the flush that follows it.
 *
 * Bits are cleared, by a discard, in the same way: the region is queued first.
 * Who clears them commits them before the units' data is given up.
 *
 * Errors. After an error of a write of the metadata, or of any flush of the cow
 * device, it is not known what is on disk, and the next flush may not tell. No commit
 * is begun any more until the cowfile has been opened again, nor does one that has
 * been begun write bits; the regions that it was about stay queued. For that, all
 * errors of flushes must come to be known here, and before the next flush has ended:
 * see cow_fua_flushes() and, in dm-cowloop-blocks.c, flushed().
 *
 * Space. The cow device may be sparse, and full. A bitmap sector that was never
 * written may then not find room, which must not come out in a commit, when
 * writes have been completed that depend on it. So a region's sectors are
 * written as they are before it can be held for the first time (allocate_region() in
 * dm-cowloop-regions.c): if there is no room it is that first write that fails. Where
 * even what has been written once needs room to be written again, a commit may
 * still meet ENOSPC. That alone is no failure: the data it is about is durable,
 * each bitmap sector is on disk in its old or its new state, and both are right.
 * The regions are queued again, for a commit when there is room. That it is owed is
 * for the target to say and to heed; a commit that succeeds pays for all.
 *
 * Locks, each in one file, and the outer ones first:
 *
 *	load_lock	dm-cowloop-regions.c: what fills regions with what is on disk
 *	commit_lock	dm-cowloop-blocks.c: what writes to the cow device, or flushes it
 *	a region's	dm-cowloop-bitmap.c: its bits, and whether they have changed
 *	space_lock	dm-cowloop-bitmap.c: what is in use and claimed, together
 *
 * The first two are mutexes, held over I/O. The shrinker only tries to take them: who
 * has them may be waiting for memory. The last two are spinlocks, taken with interrupts
 * off, and never together; cow_md_mark() takes them inside a lock of the target's.
 * Lookups take none.
 */

#include "dm-cowloop-metadata-internal.h"

#include <linux/crc32c.h>
#include <linux/slab.h>

/* Regions that one commit copies aside before it needs another pair of flushes. */
#define COW_COMMIT_MAX_REGIONS	2048

struct cow_commit {
	bool owes_commit;		/* see cow_md_owe_commit() */
	bool dirty;			/* DIRTY is set on disk, or may be */

	/* With commit_lock held: */
	struct cow_stage *spare_stage;	/* so that a commit needs no memory */
	bool head_unsure;		/* a write of the head met ENOSPC */
	struct cow_head head;
};

int cow_commit_init(struct cow_md *md, const struct cow_head *head)
{
	struct cow_commit *c = kzalloc(sizeof(*c), GFP_KERNEL);

	md->commit = c;
	if (!c)
		return -ENOMEM;
	c->head = *head;
	c->dirty = le16_to_cpu(head->flags) & COW_FLAG_DIRTY;
	c->spare_stage = kmalloc(sizeof(*c->spare_stage), GFP_KERNEL);

	return c->spare_stage ? 0 : -ENOMEM;
}

void cow_commit_exit(struct cow_md *md)
{
	if (md->commit)
		kfree(md->commit->spare_stage);
	kfree(md->commit);
}

const struct cow_head *cow_commit_head(const struct cow_md *md)
{
	return &md->commit->head;
}

bool cow_md_is_dirty(struct cow_md *md)
{
	return READ_ONCE(md->commit->dirty);
}

void cow_md_owe_commit(struct cow_md *md)
{
	WRITE_ONCE(md->commit->owes_commit, true);
}

bool cow_md_owes_commit(struct cow_md *md)
{
	return READ_ONCE(md->commit->owes_commit);
}

/* ---- The head ---- */

/* Write the head as it is in memory, durably. */
static int write_head(struct cow_md *md)
{
	const size_t size = md->geo.format == 1 ? COW_V1_HEAD_SIZE : COW_V2_HEAD_SIZE;
	const bool flush = cow_fua_flushes(md->cow);
	struct cow_head *head = &md->commit->head;
	struct dm_buffer *buf = NULL;
	void *data;
	int r;

	if (md->geo.format == 2)
		head->csum = cpu_to_le32(~crc32c(~0U, head, offsetof(struct cow_head, csum)));

	data = cow_blocks_get(md->blocks, 0, &buf);
	if (IS_ERR(data))
		return PTR_ERR(data);
	memcpy(data, head, size);

	r = cow_blocks_wait(md->blocks, cow_blocks_write(md->blocks, buf, !flush));

	return r || !flush ? r : cow_blocks_flush(md->blocks);
}

static int write_flags(struct cow_md *md, u16 flags, u64 used)
{
	struct cow_commit *c = md->commit;
	int r;

	cow_blocks_assert_locked(md->blocks);

	if (cow_md_failed(md))
		return -EIO;
	c->head.flags = cpu_to_le16(flags);
	c->head.cowused = cpu_to_le64(used);
	r = write_head(md);
	/* There was no space: the head on disk is the old one or this one. */
	c->head_unsure = r == -ENOSPC;
	if (!r)
		WRITE_ONCE(c->dirty, flags & COW_FLAG_DIRTY);
	else if (r == -ENOSPC)
		WRITE_ONCE(c->dirty, true);
	else
		cow_md_set_failed(md);
	return r;
}

int cow_md_set_dirty(struct cow_md *md)
{
	const struct cow_commit *c = md->commit;
	int r = 0;

	cow_blocks_lock(md->blocks);
	if (!c->dirty || c->head_unsure)
		r = write_flags(md, le16_to_cpu(c->head.flags) | COW_FLAG_DIRTY,
				le64_to_cpu(c->head.cowused));
	cow_blocks_unlock(md->blocks);

	return r;
}

int cow_md_clean(struct cow_md *md)
{
	const struct cow_commit *c = md->commit;
	int r = 0;

	cow_blocks_lock(md->blocks);
	/* Another commit may have failed since the caller's. */
	if (cow_md_changed(md) || !cow_md_counted(md))
		r = -EIO;
	else if (c->dirty)
		r = write_flags(md, le16_to_cpu(c->head.flags) & ~COW_FLAG_DIRTY,
				cow_md_used(md));
	cow_blocks_unlock(md->blocks);

	return r;
}

int cow_commit_format(struct cow_md *md)
{
	int r;

	cow_blocks_lock(md->blocks);
	r = cow_blocks_flush(md->blocks);
	if (!r)
		r = write_head(md);
	cow_blocks_unlock(md->blocks);

	return r;
}

/* ---- Commits ---- */

/* Write what is staged, durably, after the data that it is about. */
static int write_all_staged(struct cow_md *md, struct cow_stage *staged)
{
	/* The usual case: one block, which takes the second flush with it. */
	const bool single = !staged->next &&
			    cow_region_in_one_block(md, staged->region->index) &&
			    !cow_fua_flushes(md->cow);
	struct cow_stage *stage;
	int r;

	/*
	 * On its own: device-mapper forgets that a flush failed when there is a
	 * write with it.
	 */
	r = cow_blocks_flush(md->blocks);
	for (stage = staged; stage && !r; stage = stage->next)
		r = cow_region_write(md, stage, single);
	r = cow_blocks_wait(md->blocks, r);

	return r || single ? r : cow_blocks_flush(md->blocks);
}

/*
 * Commit the regions on *@todo, as many as memory can be had for, but one at
 * least, and take them off it.
 */
static int commit_some(struct cow_md *md, struct llist_node **todo)
{
	struct cow_stage *const spare = md->commit->spare_stage;
	struct cow_stage *stage, *staged = NULL;
	unsigned int nr = 0;
	int r;

	while (*todo && nr < COW_COMMIT_MAX_REGIONS) {
		struct cow_region *region;

		if (!nr)
			stage = spare;
		else
			stage = kmalloc(sizeof(*stage),
					GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
		if (!stage)
			break;
		stage->next = staged;
		staged = stage;
		nr++;

		/* The node may be queued again as soon as the region is staged. */
		region = llist_entry(*todo, struct cow_region, changed);
		*todo = (*todo)->next;
		cow_stage_take(md, stage, region);
	}

	r = write_all_staged(md, staged);

	while ((stage = staged)) {
		staged = stage->next;
		if (r)
			cow_stage_undo(md, stage, r == -ENOSPC);
		else if (stage->marker)
			cow_bitmap_collapse(md, stage->region, stage->marker);
		if (stage != spare)
			kfree(stage);
	}

	return r;
}

static int commit_locked(struct cow_md *md)
{
	struct llist_node *todo;
	int r = 0;

	cow_blocks_assert_locked(md->blocks);

	if (cow_md_failed(md))
		return -EIO;
	todo = cow_bitmap_take_changed(md);

	if (!todo)
		r = cow_blocks_flush(md->blocks);
	while (todo && !r)
		r = commit_some(md, &todo);
	/* As cow_blocks_flush() does, where the last flush was one in a FUA write. */
	if (!r && cow_md_failed(md))
		r = -EIO;
	/* After an error there is something unsaved: for ever, or until there is space. */
	if (r == -ENOSPC) {
		cow_bitmap_requeue(md, todo);
	} else if (r) {
		cow_md_set_failed(md);
	} else {
		/* The commit has written all that had changed when anybody came to owe one. */
		WRITE_ONCE(md->commit->owes_commit, false);
		cow_bitmap_saved(md);
	}
	return r;
}

int cow_md_commit(struct cow_md *md)
{
	int r;

	cow_blocks_lock(md->blocks);
	r = commit_locked(md);
	cow_blocks_unlock(md->blocks);

	return r;
}
