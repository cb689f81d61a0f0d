// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: the cowfile's head and bitmap, in memory and on disk.
 *
 * In memory. The bitmap is cut into regions, each a few bitmap sectors that
 * fit into a page together with what we have to remember about them. An array
 * has a pointer for every region: NULL while it has not been read, a marker
 * when all of its units are in one place, else its page. Looking up a unit is
 * a few plain loads under RCU. The bits are kept in the byte order of the
 * disk. A region goes from unread to EMPTY, FULL or a page when it is loaded,
 * from a marker to a page before the first of its bits changes, and from a page
 * to a marker when the disk says so; all of this happens in process context.
 *
 * Memory. People swap on such devices, so a region must be loaded even where no
 * memory can be had. A page whose bits are all on disk, and which no write in
 * flight holds (cow_md_hold), can be evicted: its region becomes unread. That is
 * done when there is no memory for another one, and by a shrinker when others
 * need it. Each cowfile always has one page at least, in reserve or in use. So
 * there is one that a commit, and the completion of what is in flight, will make
 * free for eviction; neither of them needs memory that others hold.
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
 * now, then flushes the cow device, and only then writes the copies. Bits that
 * are set after the copy was made belong to the next commit. dm-bufio caches what
 * is read; blocks are written from its buffers, but by bios of our own, which
 * tell when there is no space. So what is in a buffer is on disk, or it belongs
 * to a commit that met ENOSPC.
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
 * After an error of a write of the metadata, or of any flush of the cow device, it
 * is not known what is on disk, and the next flush may not tell. No commit is begun
 * any more until the cowfile has been opened again, nor does one that has been begun
 * write bits; the regions that it was about stay queued. That takes that all errors
 * of flushes come to be known here, and before the next flush has ended: see
 * cow_fua_flushes() and cow_flushed().
 *
 * Space. The cow device may be sparse, and full. A bitmap sector that was never
 * written may then not find room, which must not come out in a commit, when
 * writes have been completed that depend on it. So a region's sectors are
 * written as they are before it can be held for the first time
 * (region_allocate): if there is no room it is that first write that fails. Where
 * even what has been written once needs room to be written again, a commit may
 * still meet ENOSPC. That alone is no failure: the data it is about is durable,
 * each bitmap sector is on disk in its old or its new state, and both are right.
 * The regions are queued again, for a commit when there is room. That it is owed is
 * for dm-cowloop.c to say and to heed; a commit that succeeds pays for all.
 *
 * Locks: commit_lock serialises what writes the cowfile, load_lock what fills
 * the array of regions; commit_lock may be taken inside load_lock. What a region is
 * filled from is read before, without the lock, and is found in dm-bufio's cache
 * then (region_prefetch): so that several regions are read at the same time, and
 * one that takes long holds up nobody who does not need it. A region's
 * spinlock, one of a few, covers its bits and whether they have changed; lookups
 * do without it: they find a bit that is being set in its old or its new state,
 * and both are right then.
 */

#include "dm-cowloop-metadata-internal.h"

#include <linux/crc32c.h>
#include <linux/dm-bufio.h>
#include <linux/slab.h>

/* What one commit copies aside before it needs another pair of flushes. */
#define COW_COMMIT_MAX_REGIONS	2048

/* ---- The head ---- */

/* Write the head as it is in memory, durably. */
int head_write(struct cow_md *md)
{
	const size_t size = md->geo.format == 1 ? COW_V1_HEAD_SIZE : COW_V2_HEAD_SIZE;
	const bool flush = cow_fua_flushes(md->cow);
	struct dm_buffer *buf;
	void *data;
	int r;

	if (md->geo.format == 2)
		md->head.csum = cpu_to_le32(~crc32c(~0U, &md->head,
						    offsetof(struct cow_head, csum)));

	data = dm_bufio_read(md->bufio, 0, &buf);
	if (IS_ERR(data))
		return PTR_ERR(data);
	memcpy(data, &md->head, size);

	r = wait_for_writes(md, write_block(md, buf, flush ? 0 : REQ_FUA));

	return r || !flush ? r : flush_cow(md);
}

static int head_write_flags(struct cow_md *md, u16 flags, u64 used)
{
	int r;

	lockdep_assert_held(&md->commit_lock);

	if (cow_md_failed(md))
		return -EIO;
	md->head.flags = cpu_to_le16(flags);
	md->head.cowused = cpu_to_le64(used);
	r = head_write(md);
	/* There was no space: the head on disk is the old one or this one. */
	md->head_unsure = r == -ENOSPC;
	if (!r)
		WRITE_ONCE(md->dirty, flags & COW_FLAG_DIRTY);
	else if (r == -ENOSPC)
		WRITE_ONCE(md->dirty, true);
	else
		WRITE_ONCE(md->failed, true);
	return r;
}

int cow_md_set_dirty(struct cow_md *md)
{
	int r = 0;

	mutex_lock(&md->commit_lock);
	if (!md->dirty || md->head_unsure)
		r = head_write_flags(md, le16_to_cpu(md->head.flags) | COW_FLAG_DIRTY,
				     le64_to_cpu(md->head.cowused));
	mutex_unlock(&md->commit_lock);

	return r;
}

bool cow_md_is_dirty(struct cow_md *md)
{
	return READ_ONCE(md->dirty);
}

/* ---- Commit ---- */

void cow_md_owe_commit(struct cow_md *md)
{
	WRITE_ONCE(md->owes_commit, true);
}

bool cow_md_owes_commit(struct cow_md *md)
{
	return READ_ONCE(md->owes_commit);
}

/* Write what is staged, durably, after the data that it is about. */
static int write_all_staged(struct cow_md *md, struct cow_stage *staged)
{
	const u64 first = staged->region->index * md->region_sectors;
	const u64 end = first + region_nr_sectors(md, staged->region->index);
	/* The usual case: one block, which takes the second flush with it. */
	const bool single = !staged->next && first_block(md, first) == last_block(md, end) &&
			    !cow_fua_flushes(md->cow);
	struct cow_stage *stage;
	int r;

	/*
	 * On its own: device-mapper forgets that a flush failed when there is a
	 * write with it.
	 */
	r = flush_cow(md);
	for (stage = staged; stage && !r; stage = stage->next)
		r = write_staged(md, stage, single ? REQ_FUA : 0);
	r = wait_for_writes(md, r);

	return r || single ? r : flush_cow(md);
}

/*
 * Commit the regions on *@todo, as many as memory can be had for, but one at
 * least, and take them off it.
 */
static int commit_some(struct cow_md *md, struct llist_node **todo)
{
	struct cow_stage *stage, *staged = NULL;
	unsigned int nr = 0;
	int r;

	while (*todo && nr < COW_COMMIT_MAX_REGIONS) {
		if (!nr)
			stage = md->spare_stage;
		else
			stage = kmalloc(sizeof(*stage),
					GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
		if (!stage)
			break;
		stage->next = staged;
		staged = stage;
		nr++;

		/* The node may be queued again as soon as the region is staged. */
		stage->region = llist_entry(*todo, struct cow_region, changed);
		*todo = (*todo)->next;
		stage_region(md, stage, stage->region);
	}

	r = write_all_staged(md, staged);

	while ((stage = staged)) {
		staged = stage->next;
		if (r == -ENOSPC)
			requeue_staged(md, stage);
		else if (r)
			unstage_region(md, stage->region);
		else if (stage->marker)
			region_collapse(md, stage->region, stage->marker);
		if (stage != md->spare_stage)
			kfree(stage);
	}

	return r;
}

static int commit_locked(struct cow_md *md)
{
	struct llist_node *todo;
	int r = 0;

	lockdep_assert_held(&md->commit_lock);

	if (cow_md_failed(md))
		return -EIO;
	WRITE_ONCE(md->unsaved, true);
	/* Before the list is taken; pairs with cow_md_changed(). */
	smp_mb();
	todo = llist_del_all(&md->changed);

	if (!todo)
		r = flush_cow(md);
	while (todo && !r)
		r = commit_some(md, &todo);
	/* As flush_cow() does, where the last flush was one in a FUA write. */
	if (!r && cow_md_failed(md))
		r = -EIO;
	/* After an error there is something unsaved: for ever, or until there is space. */
	if (r == -ENOSPC) {
		requeue_regions(md, todo);
	} else if (r) {
		WRITE_ONCE(md->failed, true);
	} else {
		/* All that was there when anybody came to owe it. */
		WRITE_ONCE(md->owes_commit, false);
		/* Pairs with cow_md_changed(). */
		smp_store_release(&md->unsaved, false);
	}
	return r;
}

int cow_md_commit(struct cow_md *md)
{
	int r;

	mutex_lock(&md->commit_lock);
	r = commit_locked(md);
	mutex_unlock(&md->commit_lock);

	return r;
}

int cow_md_clean(struct cow_md *md)
{
	int r = 0;

	mutex_lock(&md->commit_lock);
	/* Not if another commit has failed since the caller's. */
	if (cow_md_changed(md) || !cow_md_counted(md))
		r = -EIO;
	else if (md->dirty)
		r = head_write_flags(md, le16_to_cpu(md->head.flags) & ~COW_FLAG_DIRTY,
				     cow_md_used(md));
	mutex_unlock(&md->commit_lock);

	return r;
}
