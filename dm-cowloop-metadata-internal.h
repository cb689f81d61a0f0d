/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: what the files of the metadata share, and nobody else sees.
 */

#ifndef DM_COWLOOP_METADATA_INTERNAL_H
#define DM_COWLOOP_METADATA_INTERNAL_H

#include "dm-cowloop-metadata.h"

#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/dm-bufio.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>

#define DM_MSG_PREFIX "cowloop"

/* Bytes read at a time where much is read: fingerprint, repair, formatting. */
#define COW_IO_SIZE		(256 * 1024)

/* Regions share spinlocks. */
#define COW_REGION_LOCKS	16

struct cow_region_lock {
	spinlock_t lock;	/* the region but for its index, holds, bad and union */
} ____cacheline_aligned_in_smp;

/* In the place of a pointer to a region. */
#define COW_REGION_EMPTY	((struct cow_region *)(unsigned long)COW_IN_RDO)
#define COW_REGION_FULL		((struct cow_region *)(unsigned long)COW_IN_COW)

/* Blocks of the cowfile that are written at the same time. */
#define COW_MAX_WRITES		8

struct cow_write {
	struct bio *bio;
	struct bio_vec bvec;
	struct dm_buffer *buf;
};

/* A changed region's bitmap sectors, copied aside by a commit. */
struct cow_stage {
	struct cow_stage *next;
	struct cow_region *region;
	unsigned long sectors;	/* those that have changed */
	struct cow_region *marker;	/* that will do for the region, or NULL */
	u8 bits[COW_V2_REGION_SECTORS * COW_V2_SECTOR_BYTES];
};

struct cow_md {
	struct cow_map map;
	u32 sector_bytes;	/* bytes of bits in a bitmap sector */
	u32 region_sectors;
	u64 nr_regions;
	u64 nr_map_sectors;	/* those that have a bit of some unit */
	unsigned int units_per_block;	/* of the devices; 1 if a block is no larger */

	struct cow_geometry geo;
	const char *name;
	struct block_device *cow;
	struct dm_bufio_client *bufio;
	unsigned int block_shift;	/* of dm-bufio's blocks, in bytes */

	struct mutex load_lock;		/* changes of regions[], and: */
	struct cow_region *scratch;	/* to read a region into */
	struct cow_region *reserve;	/* for when there is no memory; NULL: in use */
	atomic_t nr_pages;		/* in regions[] */
	bool keep_all;			/* nothing is evicted but for want of memory here */
	u64 evict_next;
	struct shrinker *shrinker;
	unsigned long *uncounted;	/* regions still to be counted, or NULL */
	u64 count_next;			/* of them, those from here on have not been tried */
	u64 nr_unread;			/* of them, those that were tried in vain */

	struct cow_region_lock locks[COW_REGION_LOCKS];
	atomic64_t used;
	spinlock_t space_lock;		/* makes one of changes to used and claimed */
	u64 limit;			/* of used and claimed, in units; 0: none */
	u64 set_aside;			/* of the limit, for writes that are urgent */
	u64 claimed;			/* units that are being written, while there is a limit */
	struct llist_head changed;	/* regions with changed bitmap sectors */
	bool unsaved;			/* what was taken off changed is not durable yet */
	bool failed;			/* it is not known what is on disk */
	bool unsure;			/* whether the last ENOSPC was one */
	bool owes_commit;		/* see cow_md_owe_commit() */

	struct mutex commit_lock;	/* writes to the cowfile, and: */
	struct cow_stage *spare_stage;	/* so that a commit needs no memory */
	struct cow_write writes[COW_MAX_WRITES];
	unsigned int nr_writes;		/* begun */
	atomic_t nr_writing;		/* of them, and one for whoever will wait */
	struct completion written;
	bool dirty;
	bool head_unsure;		/* a write of the head met ENOSPC */
	struct cow_head head;
};

static inline u64 region_first_unit(struct cow_md *md, u64 index)
{
	return index * md->map.region_units;
}

/* Units in region @index: the last one has fewer. */
static inline u32 region_nr_units(struct cow_md *md, u64 index)
{
	return min_t(u64, md->map.region_units,
		     md->geo.nr_units - region_first_unit(md, index));
}

static inline u32 region_nr_sectors(struct cow_md *md, u64 index)
{
	return min_t(u64, md->region_sectors,
		     md->nr_map_sectors - index * md->region_sectors);
}

static inline bool is_loaded(struct cow_md *md, u64 index)
{
	return rcu_access_pointer(md->map.regions[index]);
}

static inline u64 bdev_bytes(struct block_device *bdev)
{
	return (u64)bdev_nr_sectors(bdev) << SECTOR_SHIFT;
}

/* dm-cowloop-bitmap.c */
void mark_unlocked(struct cow_md *md, const struct cow_hold *hold);
struct cow_region *region_unlink(struct cow_md *md, unsigned long *nr);
void region_collapse(struct cow_md *md, struct cow_region *r, struct cow_region *marker);
int region_clear(struct cow_md *md, u64 index, u32 bit, u32 nr);
void stage_region(struct cow_md *md, struct cow_stage *stage, struct cow_region *r);
struct cow_region *marker_for(struct cow_md *md, struct cow_stage *stage);
void requeue_staged(struct cow_md *md, struct cow_stage *stage);
void requeue_regions(struct cow_md *md, struct llist_node *todo);
void unstage_region(struct cow_md *md, struct cow_region *r);

/* dm-cowloop-blocks.c */
int wait_for_writes(struct cow_md *md, int before);
int write_block(struct cow_md *md, struct dm_buffer *buf, blk_opf_t opf);
int wait_if_written(struct cow_md *md, struct dm_buffer *buf);
int flush_cow(struct cow_md *md);

/* dm-cowloop-regions.c */
sector_t first_block(struct cow_md *md, u64 first);
sector_t last_block(struct cow_md *md, u64 end);
int write_staged(struct cow_md *md, struct cow_stage *stage, blk_opf_t opf);
int start_shrinker(struct cow_md *md);
int count_region(struct cow_md *md, int error);

/* dm-cowloop-metadata.c */
int head_write(struct cow_md *md);

/* dm-cowloop-head.c */
int read_sectors(const struct cow_md_args *args, struct block_device *bdev,
		 sector_t sector, sector_t count, void *to);
__printf(4, 5)
int refuse(const struct cow_md_args *args, char **error, char *what, const char *fmt, ...);
int refuse_io(const struct cow_md_args *args, char **error, int r,
	      struct block_device *bdev, char *what);
int fingerprint_v2(const struct cow_md_args *args, void *buf, u64 *fingerprint);
int check_packed(const struct cow_md_args *args, char **error,
		 const struct cow_head *head);
int check_layout(const struct cow_md_args *args, char **error,
		 const struct cow_head *head, const struct cow_geometry *geo);
int refuse_merging(const struct cow_md_args *args, char **error);
int check_head_v2(const struct cow_md_args *args, char **error,
		  const struct cow_head *head, struct cow_geometry *geo);

/* dm-cowloop-format1.c */
int fingerprint_v1(const struct cow_md_args *args, void *buf, u64 *fingerprint);
int check_head_v1(const struct cow_md_args *args, char **error,
		  const struct cow_head *head, struct cow_geometry *geo);
int check_bitmap_v1(struct cow_md *md, const struct cow_md_args *args, char **error);
int repair_v1(struct cow_md *md, const struct cow_md_args *args, char **error);

#endif /* DM_COWLOOP_METADATA_INTERNAL_H */
