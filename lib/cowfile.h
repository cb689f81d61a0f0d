/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the cowfile on disk, both formats. Reads and checks heads and
 * bitmaps, walks them without loading them, and writes them. Structures and
 * geometry are those of ../dm-cowloop.h, which the kernel uses too.
 *
 * Nothing here knows of options, and nothing trusts what it reads.
 */

#ifndef LIBCOWLOOP_COWFILE_H
#define LIBCOWLOOP_COWFILE_H

#include <endian.h>

#include "context.h"
#include "file.h"

#include "../dm-cowloop.h"

/* The types that printf's %llu takes, which that of le64toh() is not everywhere. */
static inline unsigned int le16(__le16 n) { return le16toh(n); }
static inline u32 le32(__le32 n) { return le32toh(n); }
static inline u64 le64(__le64 n) { return le64toh(n); }

/* The features that these tools know, and no driver does. */
#define COW_INCOMPAT_TOOLS	(COW_INCOMPAT_MERGING | COW_INCOMPAT_MERGED)

/* A read-only device that is larger is not believed. */
#define COW_MAX_BYTES		(1ULL << 60)

enum cow_state {
	COW_CLEAN = COWLOOP_CLEAN,
	COW_DIRTY = COWLOOP_DIRTY,
	COW_PACKED = COWLOOP_PACKED,
	COW_MERGING = COWLOOP_MERGING,
	COW_MERGED = COWLOOP_MERGED,
};

const char *cow_state_text(enum cow_state state);

struct cowfile {
	struct file file;
	struct cow_head head;		/* as on disk; format 1: its first 512 bytes */
	unsigned int format;		/* 1 or 2 */
	enum cow_state state;
	struct cow_geometry geo;	/* doffset as the head has it */
	u32 sector_bytes;		/* bytes of bits in a bitmap sector */
	u32 sector_units;		/* units in one */
	u64 nr_sectors;			/* bitmap sectors, those without any unit included */
};

/* ---- Checksums ---- */

/* Of a bitmap sector of format 2. */
u32 cow_sector_csum(const u8 *bits, u64 sector);

/* ---- Faults ---- */

/*
 * The reader of a cowfile says what is to be done about faults. @id is one
 * word, for programs; @text is for people, and without the name of the file.
 */
struct cow_faults {
	void (*found)(struct cow_faults *faults, const char *id, const char *text);
};

/* Tell of a fault; returns WRONG. */
int cow_fault(struct cow_faults *faults, const char *id, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- Heads ---- */

/*
 * Open a cowfile, read the head and tell @faults all that is wrong with it.
 * Returns OK if head and geometry can be used in spite of that, with
 * @c->state set. Anything else has been told or printed.
 */
int cow_open_faulty(struct cowloop_ctx *ctx, struct cowfile *c, const char *path, unsigned int file_flags,
		    struct cow_faults *faults);

/* Check the head in @c->head of a file that is already open. */
int cow_check_head(struct cowfile *c, struct cow_faults *faults);

/* Cowfiles that cow_open() accepts besides clean ones, and dirty ones of format 2. */
enum {
	COW_ACCEPT_DIRTY = 1,		/* of format 1 */
	COW_ACCEPT_PACKED = 2,
	COW_ACCEPT_MERGE = 4,		/* being merged, or merged */
};

/* Open a cowfile that has to be in order; anything wrong is an error. */
int cow_open(struct cowloop_ctx *ctx, struct cowfile *c, const char *path, unsigned int file_flags,
	     unsigned int accept);

/* The same with a file that is open already with @file_flags. It is taken over, and closed after an error. */
int cow_open_file(struct cowloop_ctx *ctx, struct cowfile *c, struct file *f, unsigned int file_flags,
		  unsigned int accept);

void cow_close(struct cowfile *c);

/* A head for a new cowfile of this geometry. */
void cow_new_head(struct cowfile *c, const struct cow_geometry *geo, u64 fingerprint);

/* Everything else in a struct cowfile that follows from its geometry. */
void cow_set_geometry(struct cowfile *c, const struct cow_geometry *geo);

/*
 * Set state and count in the head and write it, in one sector, durably; what
 * was written before is durable before that.
 */
int cow_write_head(struct cowloop_ctx *ctx, struct cowfile *c, enum cow_state state, u64 used);

/* The same, but for the writing. */
void cow_finish_head(struct cowfile *c, enum cow_state state, u64 used);

/* How long the file of a cowfile is that has room for all units. */
u64 cow_full_size(const struct cow_geometry *geo);

/* Warn of a device that is shorter than that: what lies beyond its end cannot be changed. */
void cow_warn_short(struct cowloop_ctx *ctx, const struct cow_geometry *geo, const struct file *f);

/* ---- Bitmaps ---- */

/* A walk over those bitmap sectors that are not all zeroes. */
struct cow_map {
	const struct cowfile *c;
	u64 sector;		/* the one found */
	const u8 *bits;		/* c->sector_bytes of them */
	bool good;		/* its checksum is right (format 1: always) */
	u32 csum, expected;

	int error;		/* why the walk ended, if not at the end */
	u64 next;		/* sector to look at next */
	u64 buffered, buffered_end;
	u8 *buffer;
};

void cow_map_start(struct cow_map *m, const struct cowfile *c);
bool cow_map_next(struct cowloop_ctx *ctx, struct cow_map *m);
void cow_map_end(struct cow_map *m);

/* The units of bitmap sector @sector: *@nr of them from the returned one on. */
u64 cow_sector_units(const struct cowfile *c, u64 sector, u32 *nr);

/* Is a unit in the cowfile? */
int cow_unit_is_set(struct cowloop_ctx *ctx, const struct cowfile *c, u64 unit, bool *set);

/* Make a bitmap sector as it is on disk, checksum and all; or write it, too. */
void cow_encode_bits(const struct cowfile *c, u64 sector, const u8 *bits, u8 *data);
int cow_write_bits(struct cowloop_ctx *ctx, const struct cowfile *c, u64 sector, const u8 *bits);

/* A walk over the runs of units in the cowfile, in ascending order. */
struct cow_runs {
	struct cow_map map;
	bool skip_bad;		/* go on at damaged sectors; otherwise they are errors */
	bool quiet;		/* say nothing about them */
	u64 nr_bad;
	bool have_sector;
	u32 bit;
	u64 first, nr;		/* a run that may go on */
	int error;		/* why the walk ended, if not at the end */
};

void cow_runs_start(struct cow_runs *r, const struct cowfile *c);
bool cow_runs_next(struct cowloop_ctx *ctx, struct cow_runs *r, u64 *first, u64 *nr);
/* Returns @before, if something has failed before, or why the walk has. */
int cow_runs_end(struct cow_runs *r, int before);

/*
 * Count the units in the cowfile, *@used, and set *@end to one more than the
 * last of them. A damaged bitmap sector is an error, and so is a count in a
 * clean head that is another one.
 */
int cow_count(struct cowloop_ctx *ctx, const struct cowfile *c, u64 *used, u64 *end);

/* Is the file long enough for units up to @end, as cow_count() has it? */
int cow_check_end(struct cowloop_ctx *ctx, const struct cowfile *c, u64 end);

/* Bytes of a run on the device: the last unit may be a partial one. */
static inline u64 cow_run_bytes(const struct cowfile *c, u64 first, u64 nr)
{
	const u64 size = c->geo.rdo_sectors * 512, at = first * c->geo.mapunit;
	const u64 bytes = nr * c->geo.mapunit;

	return bytes < size - at ? bytes : size - at;
}

static inline bool bit_is_set(const u8 *bits, u32 n)
{
	return bits[n / 8] >> n % 8 & 1;
}

static inline void bit_assign(u8 *bits, u32 n, bool set)
{
	bits[n / 8] = (bits[n / 8] & ~(1U << n % 8)) | (u32)set << n % 8;
}

#endif /* LIBCOWLOOP_COWFILE_H */
