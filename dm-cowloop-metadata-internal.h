/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: what the files of the metadata share, and nobody else sees.
 *
 * Each file has a struct of its own that no other looks into. Calls go down this
 * list only:
 *
 *	dm-cowloop-open.c	opens, formats, closes; owns struct cow_md
 *	dm-cowloop-format1.c	what is format 1's alone
 *	dm-cowloop-head.c	checks heads; reads devices for that
 *	dm-cowloop-metadata.c	commits, writes the head
 *	dm-cowloop-regions.c	brings regions into memory, and to disk
 *	dm-cowloop-bitmap.c	the bitmap in memory; no I/O
 *	dm-cowloop-blocks.c	reads, writes and flushes the cow device
 *
 * Functions that sleep are in process context; those that do I/O or allocate use
 * GFP_NOIO, but for those that are called at open only. Errors are negative errnos.
 * Locks: see the top of dm-cowloop-metadata.c.
 */

#ifndef DM_COWLOOP_METADATA_INTERNAL_H
#define DM_COWLOOP_METADATA_INTERNAL_H

#include "dm-cowloop-metadata.h"

#include <linux/cache.h>

#define DM_MSG_PREFIX "cowloop"

/* Bytes read at a time where much is read: fingerprint, repair, formatting. */
#define COW_IO_SIZE		(256 * 1024)

struct cow_bitmap;
struct cow_blocks;
struct cow_commit;
struct cow_regions;
struct dm_buffer;

/* How the bitmap is cut. Follows from the geometry. */
struct cow_map_layout {
	u32 sector_bytes;	/* bytes of bits in a bitmap sector */
	u32 sector_units;	/* units in one */
	u32 region_sectors;	/* bitmap sectors in a region */
	u32 region_units;
	u64 nr_regions;
	u64 nr_map_sectors;	/* bitmap sectors that have a bit of some unit */
};

/* An open cowfile: its rooms, and what is constant while it is open. */
struct cow_md {
	struct cow_geometry geo;
	struct cow_map_layout layout;
	const char *name;		/* of the dm device, for messages */
	struct block_device *cow;
	unsigned int units_per_block;	/* of the devices; 1 if a block is no larger */

	struct cow_blocks *blocks;
	struct cow_regions *regions;
	struct cow_commit *commit;
	/* A struct cow_bitmap. Not a pointer: one load less for each first write. */
	u8 bitmap[] ____cacheline_aligned_in_smp;
};

static inline u64 cow_region_first_unit(const struct cow_md *md, u64 index)
{
	return index * md->layout.region_units;
}

/* Units in region @index: the last one has fewer. */
static inline u32 cow_region_nr_units(const struct cow_md *md, u64 index)
{
	return min_t(u64, md->layout.region_units,
		     md->geo.nr_units - cow_region_first_unit(md, index));
}

/* Bitmap sectors in region @index. */
static inline u32 cow_region_nr_sectors(const struct cow_md *md, u64 index)
{
	return min_t(u64, md->layout.region_sectors,
		     md->layout.nr_map_sectors - index * md->layout.region_sectors);
}

/* ---- The bitmap in memory: dm-cowloop-bitmap.c ---- */

/* In the place of a pointer to a region: none of its units is in the cowfile, or all are. */
#define COW_REGION_EMPTY	((struct cow_region *)(unsigned long)COW_IN_RDO)
#define COW_REGION_FULL		((struct cow_region *)(unsigned long)COW_IN_COW)

/* A changed region's bitmap sectors, copied aside by a commit. */
struct cow_stage {
	struct cow_stage *next;
	struct cow_region *region;
	unsigned long sectors;	/* of the region, those that have changed */
	struct cow_region *marker;	/* that will do for the region, or NULL */
	u8 bits[COW_V2_REGION_SECTORS * COW_V2_SECTOR_BYTES];
};

/* Bytes for cow_md.bitmap. */
size_t cow_bitmap_size(void);

/*
 * Cut the bitmap of a cowfile whose geometry is known into regions; none of them is in
 * memory. At open. 0 or -ENOMEM; cow_bitmap_exit() frees what there is in any case, the
 * regions' pages included.
 */
int cow_bitmap_init(struct cow_md *md);
void cow_bitmap_exit(struct cow_md *md);

/*
 * Region @index as it is in memory: NULL, a marker or its page. It stays so with the
 * load_lock held, but for a commit, which may put a marker in the place of a page.
 */
struct cow_region *cow_bitmap_get(struct cow_md *md, u64 index);

/* The marker that would do for a region as it was read, with so many bits set; or NULL. */
struct cow_region *cow_bitmap_marker(struct cow_md *md, const struct cow_region *r, u32 weight);

/* Fill a page for region @index with bits that are as @marker says. */
void cow_bitmap_expand(struct cow_md *md, struct cow_region *r, u64 index,
		       const struct cow_region *marker);

/*
 * Put a marker or a page in the place of region @index, which has no page. The page
 * belongs to the bitmap from now on. With the load_lock held.
 */
void cow_bitmap_put(struct cow_md *md, u64 index, struct cow_region *r);

/*
 * Take the next page whose bits are all on disk and that nobody holds out of the
 * bitmap, looking at no more than *@nr of them; the region becomes unread. Returns the
 * page, which lookups may be at until a grace period has ended, or NULL if there is
 * none. With load_lock and commit_lock held.
 */
struct cow_region *cow_bitmap_evict(struct cow_md *md, unsigned long *nr);

/*
 * Replace the page of a region, whose bits are all the same on disk, by a marker, and
 * free it, if that is still so, nobody holds it, and it is not the last one. With
 * commit_lock held.
 */
void cow_bitmap_collapse(struct cow_md *md, struct cow_region *r, struct cow_region *marker);

/*
 * A page for cow_bitmap_put(), the one in reserve if need be, or NULL. With load_lock
 * held.
 */
struct cow_region *cow_bitmap_page(struct cow_md *md);

/* A page can be evicted, and there is still one, here or in reserve. With load_lock held. */
bool cow_bitmap_can_spare(struct cow_md *md);

/* Pages in the bitmap. Any context. */
unsigned int cow_bitmap_nr_pages(struct cow_md *md);

/*
 * Clear bits of region @index, which has a page. Returns how many were set, -EIO if the
 * bitmap is damaged there, or -EAGAIN if a commit has just put a marker in its place.
 */
int cow_bitmap_clear(struct cow_md *md, u64 index, u32 bit, u32 nr);

/* As cow_md_mark(), in process context, and with no lock held. */
void cow_bitmap_mark(struct cow_md *md, const struct cow_hold *hold);

/*
 * Take the regions with changed bitmap sectors off their queue; each is still marked as
 * queued. cow_md_changed() is true until cow_bitmap_saved(). With commit_lock held.
 */
struct llist_node *cow_bitmap_take_changed(struct cow_md *md);
void cow_bitmap_saved(struct cow_md *md);

/* Queue regions again that were taken, but not staged. */
void cow_bitmap_requeue(struct cow_md *md, struct llist_node *todo);

/*
 * Copy a taken region's changed bitmap sectors aside: it is no longer queued. If the copy
 * can't be written, cow_stage_undo(): to be done @again when there is space; otherwise the
 * region stays as if it were queued, since some of its bits may never be on disk. With
 * commit_lock held.
 */
void cow_stage_take(struct cow_md *md, struct cow_stage *stage, struct cow_region *r);
void cow_stage_undo(struct cow_md *md, struct cow_stage *stage, bool again);

/* The marker that would do for a region if all of its sectors were like the staged ones. */
struct cow_region *cow_stage_marker(struct cow_md *md, const struct cow_stage *stage);

/*
 * Units are found in the cowfile that cow_md_used() has not known of. Whether it is too
 * low still, cow_md_counting(), is for dm-cowloop-regions.c to say. Any context.
 */
void cow_bitmap_add_used(struct cow_md *md, u64 nr);
void cow_bitmap_set_counting(struct cow_md *md, bool counting);

/* ---- Blocks of the cow device: dm-cowloop-blocks.c ---- */

/* Blocks that are written at the same time. */
#define COW_MAX_WRITES		8

/*
 * Blocks of @size bytes (a power of two, at most 4096) of @cow. At open. Returns an
 * ERR_PTR with nothing left behind. cow_blocks_free() may be given NULL; nothing may be
 * being written.
 */
struct cow_blocks *cow_blocks_alloc(struct block_device *cow, unsigned int size);
void cow_blocks_free(struct cow_blocks *b);

/* Do without the cow device from now on: nothing but cow_blocks_free() may be called. */
void cow_blocks_let_go(struct cow_blocks *b);

/* The commit_lock. Sleeps. */
void cow_blocks_lock(struct cow_blocks *b);
bool cow_blocks_trylock(struct cow_blocks *b);
void cow_blocks_unlock(struct cow_blocks *b);
void cow_blocks_assert_locked(struct cow_blocks *b);

/* The block that has @byte of the cow device. */
sector_t cow_blocks_at(const struct cow_blocks *b, u64 byte);

/*
 * The data from @byte to the end of its block, as it is in memory. The block is read when
 * *@buf, which holds one, is NULL or holds another; that is released then. Returns an
 * ERR_PTR, with *@buf NULL, if it can't be read. Sleeps, does I/O.
 */
void *cow_blocks_get(struct cow_blocks *b, u64 byte, struct dm_buffer **buf);
void cow_blocks_release(struct dm_buffer *buf);

/* Begin to read blocks, all at once. */
void cow_blocks_prefetch(struct cow_blocks *b, sector_t block, unsigned int nr);

/* Have blocks read again from the cow device when they are needed next. */
void cow_blocks_forget(struct cow_blocks *b, sector_t block);

/*
 * Begin to write a block, durably with @fua. @buf is released when it has been written.
 * Returns 0, or the error of another block: cow_blocks_wait() is to be called in any
 * case. With commit_lock held, as all that is below. Sleeps, does I/O.
 */
int cow_blocks_write(struct cow_blocks *b, struct dm_buffer *buf, bool fua);

/*
 * Wait for all the blocks that are being written. Returns @before, if something has
 * failed before, or their error: -ENOSPC, if there is no other.
 */
int cow_blocks_wait(struct cow_blocks *b, int before);

/*
 * Wait as well, but only if @buf is being written: it must not be begun again, or the
 * older one might win.
 */
int cow_blocks_wait_for(struct cow_blocks *b, const struct dm_buffer *buf);

/* Flush the cow device: all that was written before is durable, if 0. No block is being written. */
int cow_blocks_flush(struct cow_blocks *b);

/* ---- Regions from and to disk: dm-cowloop-regions.c ---- */

/*
 * At open, when the bitmap has been cut and the blocks are there: 0 or -ENOMEM.
 * cow_regions_start() lets others have the pages when they need memory.
 * cow_regions_exit() is to be called in any case, before cow_bitmap_exit().
 */
int cow_regions_init(struct cow_md *md);
int cow_regions_start(struct cow_md *md);
void cow_regions_exit(struct cow_md *md);

/*
 * Where the head does not say how many units are in the cowfile: count each region once,
 * when it is first read, which is in a walk from the first to the last, cow_md_count_some(),
 * or before. Regions that can't be read are passed over, and stay to be counted. At open:
 * 0 or -ENOMEM.
 */
int cow_regions_count(struct cow_md *md);

/* Evict nothing any more: it could not be read again. Sleeps. */
void cow_regions_keep(struct cow_md *md);

/*
 * Read region @index into @r, leaving out bits that belong to no unit. In format 2 what is
 * damaged is logged, and marked as bad. Sleeps, does I/O.
 */
int cow_region_read(struct cow_md *md, u64 index, struct cow_region *r);

/*
 * Begin to write staged bitmap sectors, with @fua if all of them are in one block: see
 * cow_blocks_write(). stage->marker says then what will do for the region. With
 * commit_lock held. Sleeps, does I/O.
 */
int cow_region_write(struct cow_md *md, struct cow_stage *stage, bool fua);

/* Region @index has all its bitmap sectors in one block. */
bool cow_region_in_one_block(struct cow_md *md, u64 index);

/* ---- Commits and the head: dm-cowloop-metadata.c ---- */

/* At open, with the head as it is or shall be on disk: 0 or -ENOMEM. */
int cow_commit_init(struct cow_md *md, const struct cow_head *head);
void cow_commit_exit(struct cow_md *md);

/* The head as it is or shall be on disk. Constant but for flags, cowused and csum. */
const struct cow_head *cow_commit_head(const struct cow_md *md);

/* Write the first head of a cowfile, durably, and after all that was written before. */
int cow_commit_format(struct cow_md *md);

/* ---- Heads and devices: dm-cowloop-head.c; all of it sleeps ---- */

u64 cow_bdev_bytes(struct block_device *bdev);

/* Read @count sectors into @to, from vmalloc(). -EINTR if the caller is to die. */
int cow_read_sectors(const struct cow_md_args *args, struct block_device *bdev,
		     sector_t sector, sector_t count, void *to);

/*
 * Log why a cowfile is refused: @what, which also goes to the user of dmsetup, in *@error,
 * and in detail what was found and expected. Returns -EINVAL; cow_refuse_io() returns @r.
 */
__printf(4, 5)
int cow_refuse(const struct cow_md_args *args, char **error, char *what, const char *fmt, ...);
int cow_refuse_io(const struct cow_md_args *args, char **error, int r,
		  struct block_device *bdev, char *what);
int cow_refuse_merging(const struct cow_md_args *args, char **error);

/* The fingerprint of rdo. @buf has COW_IO_SIZE bytes, from vmalloc(). */
int cow_v2_fingerprint(const struct cow_md_args *args, void *buf, u64 *fingerprint);

/*
 * Check a head but for magic, version and fingerprint, and work out *@geo. 0, or -EINVAL
 * with the refusal logged. The first two are parts of that, the same in both formats.
 */
int cow_check_packed(const struct cow_md_args *args, char **error, const struct cow_head *head);
int cow_check_sizes(const struct cow_md_args *args, char **error, const struct cow_head *head,
		    const struct cow_geometry *geo);
int cow_v2_check_head(const struct cow_md_args *args, char **error,
		      const struct cow_head *head, struct cow_geometry *geo);

/*
 * ---- Format 1: dm-cowloop-format1.c; likewise ----
 *
 * The file may be left out: then a cowfile of format 1 is refused, and none is made.
 */
#ifdef COWLOOP_FORMAT1

int cow_v1_fingerprint(const struct cow_md_args *args, void *buf, u64 *fingerprint);
int cow_v1_check_head(const struct cow_md_args *args, char **error,
		      const struct cow_head *head, struct cow_geometry *geo);

/* Walk the whole bitmap: count it, check it, and repair the cowfile if it is DIRTY. */
int cow_v1_open(struct cow_md *md, const struct cow_md_args *args, char **error);

/* Whether a cowfile of format 1 can be made: 0, or -EINVAL with the refusal logged. */
static inline int cow_v1_check_format(const struct cow_md_args *args, char **error)
{
	return 0;
}

#else

static inline int cow_v1_fingerprint(const struct cow_md_args *args, void *buf,
				     u64 *fingerprint)
{
	return -EOPNOTSUPP;
}

static inline int cow_v1_check_format(const struct cow_md_args *args, char **error)
{
	return cow_refuse(args, error, "Unknown version of cowfile", "found 1, expected 2");
}

static inline int cow_v1_check_head(const struct cow_md_args *args, char **error,
				    const struct cow_head *head, struct cow_geometry *geo)
{
	return cow_v1_check_format(args, error);
}

static inline int cow_v1_open(struct cow_md *md, const struct cow_md_args *args, char **error)
{
	return -EOPNOTSUPP;
}

#endif /* COWLOOP_FORMAT1 */

#endif /* DM_COWLOOP_METADATA_INTERNAL_H */
