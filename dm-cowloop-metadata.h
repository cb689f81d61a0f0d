/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dm-cowloop: what the target knows of heads, bitmaps and checksums.
 *
 * Units are counted from the beginning of the read-only device (rdo). Functions that
 * sleep, and do I/O, say so: they allocate with GFP_NOIO, but for cow_md_open() and
 * cow_md_check(). All others can be called in any context. No lock is needed unless one
 * is named. Errors are negative errnos.
 */

#ifndef DM_COWLOOP_METADATA_H
#define DM_COWLOOP_METADATA_H

#include "dm-cowloop.h"

#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/llist.h>
#include <linux/rcupdate.h>
#include <linux/types.h>

struct block_device;
struct dm_io_client;
struct cow_md;

/* ---- Opening and closing ---- */

/*
 * A cowfile to open, and how. @name and @cow must stay as long as the cow_md does,
 * @rdo and @io are needed for the call only.
 */
struct cow_md_args {
	const char *name;	/* of the dm device, for messages */
	struct block_device *rdo;
	struct block_device *cow;
	struct dm_io_client *io;
	u64 length;		/* of the dm device, in sectors */
	unsigned int format;	/* to write to a blank cow device; 0: the default */
	unsigned int mapunit;	/* bytes; 0: the default, or what is found */
	bool repair;		/* a DIRTY format 1 cowfile */
	bool read_only;		/* write nothing to the cow device */
};

/*
 * Open the cowfile on a cow device, formatting it first when it is blank, and
 * repairing it when that was asked for. Every refusal is logged in one line
 * with what was found and expected; *@error is set to its short form, a constant.
 *
 * Sleeps, does I/O. Returns the cow_md, which is the caller's until cow_md_close(), or an
 * ERR_PTR with nothing left behind.
 */
struct cow_md *cow_md_open(const struct cow_md_args *args, char **error);

/*
 * Check whether an open cowfile may be continued with other @args, as a table
 * reload does: same mapunit if one is given, and a read-only device of the same
 * size and fingerprint. Sleeps, does I/O. Returns 0, or a negative errno with
 * the refusal logged and *@error set.
 */
int cow_md_check(struct cow_md *md, const struct cow_md_args *args, char **error);

/*
 * Do without the cow device from now on, after a cow_md_load_all(): only lookups and
 * functions that do no I/O may be called then. Parts of the bitmap that have not been
 * loaded stay COW_UNKNOWN. No call that does I/O may be running. Sleeps.
 */
void cow_md_let_go(struct cow_md *md);

/*
 * Free everything. Nothing is written: an orderly close calls cow_md_clean()
 * first. No other call may be running. Sleeps.
 */
void cow_md_close(struct cow_md *md);

/*
 * Constant while the cowfile is open, as are the results: the geometry, the sector of the
 * cow device where unit 0 begins, and whether there are unknown bits in compat_ro.
 */
const struct cow_geometry *cow_md_geometry(const struct cow_md *md);
u64 cow_md_data_sector(const struct cow_md *md);
bool cow_md_must_be_read_only(const struct cow_md *md);

/* ---- Lookups ---- */

/* Where the contents of a unit are. */
enum cow_where {
	COW_UNKNOWN,		/* its part of the bitmap is not in memory: cow_md_load() */
	COW_IN_RDO,
	COW_IN_COW,
	COW_BAD,		/* its part of the bitmap is damaged */
};

/* Where the contents of so many units are, for certain. */
struct cow_run {
	enum cow_where where;
	unsigned int nr;
};

/*
 * Bitmap sectors in a region, which is the part of the bitmap that is handled as
 * one: as many as go into a page, and such that no aligned MiB of the device crosses
 * the end of a region.
 */
#define COW_V1_REGION_SECTORS	7
#define COW_V2_REGION_SECTORS	8

/* A region in memory. Lookups read it; all else is for the metadata's own files only. */
struct cow_region {
	u8 bits[COW_V2_REGION_SECTORS * COW_V2_SECTOR_BYTES] __aligned(8);
	u8 bad;			/* bit n: bitmap sector n of the region is damaged */

	u8 changed_sectors;	/* bit n: bitmap sector n has changed */
	bool queued;		/* for a commit: in cow_bitmap.changed */
	bool allocated;		/* its sectors have been written: there is room for them */
	u32 index;
	atomic_t holds;		/* writes in flight; -1: on its way out of regions[] */
	union {
		struct llist_node changed;	/* in cow_bitmap.changed */
		struct rcu_head rcu;
	};
};

/* The part of the bitmap that lookups read: constant, but for the regions themselves. */
struct cow_map {
	/* of each region its page, or where all of its units are: COW_IN_COW or before */
	struct cow_region __rcu **regions;
	u64 region_inverse;	/* 2^38 / (region_units / 256), rounded up */
	u32 region_units;
	u32 sector_units;	/* units in a bitmap sector */
};

/* Constant while the cowfile is open, so that callers can have a copy. */
const struct cow_map *cow_md_map(const struct cow_md *md);

/*
 * The region of @unit, and in *@bit its place there. By multiplication: a division
 * would take longer than all the rest of a lookup, and a product of 128 bits a stack
 * that is aligned for it. Regions have 112 or 127 times 256 units; for 2^31 such groups
 * the product fits, and what has been added by rounding up stays below one.
 */
#define COW_MAX_UNITS	BIT_ULL(39)

static __always_inline u64 cow_unit_to_region(const struct cow_map *map, u64 unit, u32 *bit)
{
	const u64 index = (unit >> 8) * map->region_inverse >> 38;

	*bit = unit - index * map->region_units;

	return index;
}

static inline bool cow_region_is_marker(const struct cow_region *r)
{
	return (unsigned long)r <= COW_IN_COW;
}

/*
 * Where the contents of @unit are, and how many units from it on, at most @nr (> 0),
 * have the same answer. Takes no lock, never sleeps: any context, but within
 * rcu_read_lock_sched().
 */
struct cow_run cow_lookup_run(const struct cow_map *map, u64 unit, unsigned int nr);

/* Where the contents of one unit are. Likewise, and inline: a call would cost as much. */
static __always_inline enum cow_where cow_lookup(const struct cow_map *map, u64 unit)
{
	const struct cow_region *r;
	u32 bit;
	u64 index = cow_unit_to_region(map, unit, &bit);

	r = rcu_dereference_sched(map->regions[index]);
	if (cow_region_is_marker(r))
		return (unsigned long)r;
	if (unlikely(r->bad))
		return cow_lookup_run(map, unit, 1).where;
	/* data_race(): a bit that is being set may look either way. */
	return data_race(test_bit_le(bit, r->bits)) ? COW_IN_COW : COW_IN_RDO;
}

/* ---- Loading ---- */

/*
 * Bring the part of the bitmap that covers @unit into memory; with @for_write
 * also make it ready for cow_md_hold(). Sleeps, does I/O. Returns 0,
 * a negative errno (-ENOSPC if the cow device has no room for this part of the
 * bitmap), or 1 if there is no memory: then some becomes free by a
 * cow_md_commit() and by the end of holds, after which to try again.
 */
int cow_md_load(struct cow_md *md, u64 unit, bool for_write);

/*
 * Load all of the bitmap, and keep it, as long as nobody needs the memory for another part
 * of it. Others can load parts meanwhile. Sleeps, does I/O. Returns 0 or a negative errno:
 * -ENOMEM where there is not enough memory for it, -EINTR after a signal; nothing has to
 * be kept then.
 */
int cow_md_load_all(struct cow_md *md);

/* End what cow_md_load_all() began: the bitmap need not be kept any more. Sleeps. */
void cow_md_may_evict(struct cow_md *md);

/* ---- Changes ---- */

/* Units that are being written; for dm-cowloop-bitmap.c only. */
struct cow_hold {
	struct cow_region *region;
	u32 bit;
	u32 nr;			/* units; others may read it */
	u32 claim;
};

/*
 * Before data is written for @nr units, all in one aligned MiB: make sure that
 * their bits can be set without allocating or reading anything, and within the
 * limit, of which some may be set aside for writes that are @urgent. Returns 1
 * if so, and it stays so until cow_md_mark() or cow_md_release() ends the hold,
 * which is what @hold is for; 0 if it takes a cow_md_load() for writing first,
 * or, where there is a limit, counting to have ended; -ENOSPC beyond the limit;
 * -EIO if their part of the bitmap is damaged. Any context.
 */
int cow_md_hold(struct cow_md *md, u64 unit, unsigned int nr, bool urgent,
		struct cow_hold *hold);

/* End a hold without setting the bits: the data was not written. Any context. */
void cow_md_release(struct cow_md *md, const struct cow_hold *hold);

/*
 * End a hold by setting the bits of its units: their data has been written to the
 * cow device. They are looked up as COW_IN_COW from now on, and are on disk after
 * the next commit that starts after this returns. Returns true when
 * these are the first changes since a commit. With a lock held that was taken by
 * spin_lock_irqsave().
 */
bool cow_md_mark(struct cow_md *md, const struct cow_hold *hold);

/*
 * Clear the bits of units from @unit on, at most @max (> 0) and not all of them:
 * *@run says how many units it has been about. Nothing may be in flight that
 * holds them, and the cowfile must be DIRTY. Returns how many bits were set,
 * which are not on disk before the next commit that starts after this returns;
 * or a negative errno, with no bit changed: -EIO if the bitmap is damaged there,
 * -ENOMEM as where cow_md_load() returns 1. Sleeps, does I/O.
 */
int cow_md_clear(struct cow_md *md, u64 unit, u64 max, unsigned int *run);

/*
 * How many units may be in the cowfile, 0: as many as there are; and how many of
 * them not without being urgent. Process context.
 */
void cow_md_set_limit(struct cow_md *md, u64 limit, u64 set_aside);

/* ---- Counting ---- */

/*
 * The number of units in the cowfile. It is too low until cow_md_counted(): after a crash
 * while the bitmap is walked, which is cow_md_counting(), and after that as long as there
 * are parts of the bitmap that could not be read. Any context.
 */
u64 cow_md_used(struct cow_md *md);
bool cow_md_counting(struct cow_md *md);
bool cow_md_counted(struct cow_md *md);

/*
 * Go on with the walk for a bounded piece of the bitmap. Parts that can't be read are
 * logged, once, and passed over. Returns true when there is more to walk. Sleeps, does
 * I/O.
 */
bool cow_md_count_some(struct cow_md *md);

/* After the walk, count what it passed over. 0 or a negative errno. Sleeps, does I/O. */
int cow_md_count_unread(struct cow_md *md);

/* ---- Commits ---- */

/* False when every bit set so far is on disk. Any context. */
bool cow_md_changed(struct cow_md *md);

/*
 * Make all the data written and all the bits set before the call durable, in
 * this order. Returns 0 or a negative errno, as do the two below: -ENOSPC means that it is
 * to be done again when there is room; after any other it is not known what is on
 * disk, cow_md_failed() is true, and every further call of the three fails. Sleeps, does
 * I/O.
 */
int cow_md_commit(struct cow_md *md);

/*
 * Set DIRTY in the head, durably; must have succeeded before the first
 * cow_md_mark() since the cowfile was clean, and before the data it is about
 * is written.
 */
int cow_md_set_dirty(struct cow_md *md);

/*
 * Write a clean head, durably. Everything must have been committed and counted
 * (cow_md_counted()), and no write may be in flight that will end in cow_md_mark().
 */
int cow_md_clean(struct cow_md *md);

/* DIRTY is set in the head on disk. Any context. */
bool cow_md_is_dirty(struct cow_md *md);

/*
 * Tell that a commit has met ENOSPC, and that somebody is about to hear of it:
 * a commit is owed from now on until one has succeeded. Any context.
 */
void cow_md_owe_commit(struct cow_md *md);
bool cow_md_owes_commit(struct cow_md *md);

/* ---- Errors ---- */

/* Whether it is unknown what is on disk, for good. Any context. */
bool cow_md_failed(struct cow_md *md);

/* Tell of an error of a flush that went to the cow device by another way. Any context. */
void cow_md_set_failed(struct cow_md *md);

/*
 * After an ENOSPC of a commit, or of cow_md_load(): whether it may have been another error
 * of a cow device that can't tell. Any context.
 */
bool cow_md_unsure(struct cow_md *md);

/*
 * Whether the block layer makes a write and a flush of a FUA write to @cow. Its error
 * may then be one of other writes, which the next flush is not told of. Devices that are
 * made of others take FUA, and say nothing of what becomes of it below. Any context.
 */
bool cow_fua_flushes(struct block_device *cow);

/*
 * Whether @cow may take a part of a write, and say that it has taken all. Loop devices do
 * when the filesystem is full, and has room for the beginning of the write only: those with
 * direct I/O where the filesystem does buffered I/O instead, which some do for some
 * files or some writes; and since 6.15 those without it, too. Any context.
 */
bool cow_takes_parts(struct block_device *cow);

/*
 * Units whose bits have been set, and cleared, but are not so on disk. Nothing may be in
 * flight that changes bits. Sleeps, does I/O. Returns 0, or a negative errno if the bitmap
 * can't be read.
 */
struct cow_unsaved {
	u64 set;
	u64 cleared;
};

int cow_md_unsaved(struct cow_md *md, struct cow_unsaved *units);

#endif /* DM_COWLOOP_METADATA_H */
