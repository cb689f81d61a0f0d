// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the record of a merge.
 *
 * The record has the checksums of what the fingerprint is made of, each sector on
 * its own, since that is what a disk writes whole: wherever a merge was cut off,
 * a sector is either as it was, for which its checksum vouches, or as the cowfile
 * has it, if it belongs to a unit that is there. So what would have been refused
 * as another device before the merge is refused after it was interrupted.
 *
 * In format 1 the fingerprint is made of the first four blocks whose bytes do
 * not add up to 0. So that the blocks before the last of them do is part of it,
 * too, and checked in those that are in the cowfile; for the others the head's
 * fingerprint does that.
 */

#include "record.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "rdo.h"

#define SECTOR	512U

static_assert(sizeof(struct cow_merge_record) == COW_V2_RECORD_SIZE, "the record fills its place");
static_assert(COW_RECORD_OFFSET + COW_V2_RECORD_SIZE == COW_V2_MOFFSET, "and ends where the bitmap begins");

static size_t record_size(const struct cowfile *c)
{
	return c->format == 1 ? COW_V1_RECORD_SIZE : COW_V2_RECORD_SIZE;
}

const char *record_state_text(enum record_state state)
{
	static const char *const texts[] = {
		[RECORD_NONE] = "none",
		[RECORD_VALID] = "valid",
		[RECORD_DAMAGED] = "damaged",
	};

	return texts[state];
}

/* ---- On disk ---- */

static u32 record_csum(const struct cowfile *c, const struct cow_merge_record *record)
{
	const size_t from = offsetof(struct cow_merge_record, rdofingerprint);

	return crc32c(0, (const u8 *)record + from, record_size(c) - from);
}

bool record_has_magic(const struct cow_merge_record *record)
{
	return le32(record->magic) == COW_RECORD_MAGIC;
}

static bool blocks_are_valid(const struct cowfile *c, const struct cow_merge_record *record)
{
	for (unsigned int i = 0; c->format == 1 && i < 4; i++)
		if (le64(record->block[i]) >= c->geo.nr_units &&
		    le64(record->block[i]) != COW_RECORD_NO_BLOCK)
			return false;
	return true;
}

int record_read(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_merge_record *record,
		enum record_state *state)
{
	int r;

	memset(record, 0, sizeof(*record));
	r = file_read_padded(ctx, &c->file, COW_RECORD_OFFSET, record, record_size(c));
	if (r)
		return r;
	if (all_zero(record, record_size(c)))
		*state = RECORD_NONE;
	else if (record_has_magic(record) && le32(record->csum) == record_csum(c, record) &&
		 record->rdofingerprint == c->head.rdofingerprint && blocks_are_valid(c, record))
		*state = RECORD_VALID;
	else
		*state = RECORD_DAMAGED;
	return OK;
}

int record_remove(struct cowloop_ctx *ctx, const struct cowfile *c)
{
	return file_zero(ctx, &c->file, COW_RECORD_OFFSET, record_size(c));
}

/* ---- Samples ---- */

/* A piece of rdo, and where the checksums of its sectors are in the record. */
struct sample {
	u64 offset;
	u32 length;
	unsigned int first;
};

/* Sample @i; false if there is none. */
static bool get_sample(const struct cowfile *c, const struct cow_merge_record *record,
		       unsigned int i, struct sample *s)
{
	const u64 size = c->geo.rdo_sectors * SECTOR;

	if (c->format == 1) {
		if (i >= 4 || le64(record->block[i]) == COW_RECORD_NO_BLOCK)
			return false;
		s->offset = le64(record->block[i]) * COW_V1_MAPUNIT;
		s->length = COW_V1_MAPUNIT;
	} else {
		if (i >= COW_SAMPLES)
			return false;
		s->offset = cow_sample_offset(size, i);
		s->length = min_u64(size, COW_SAMPLE_SIZE);
	}
	s->first = i * ((c->format == 1 ? COW_V1_MAPUNIT : COW_SAMPLE_SIZE) / SECTOR);
	return true;
}

int record_write(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo)
{
	struct cow_merge_record record = { .magic = htole32(COW_RECORD_MAGIC) };
	u8 data[COW_SAMPLE_SIZE];
	unsigned int nr = 0;
	struct sample s;
	u64 blocks[4];
	int r = OK;

	record.rdofingerprint = c->head.rdofingerprint;
	if (c->format == 1)
		r = cow_fingerprint_blocks(ctx, rdo, blocks, &nr);
	for (unsigned int i = 0; c->format == 1 && i < 4; i++)
		record.block[i] = htole64(i < nr ? blocks[i] : COW_RECORD_NO_BLOCK);

	for (unsigned int i = 0; !r && get_sample(c, &record, i, &s); i++) {
		r = file_read(ctx, rdo, s.offset, data, s.length);
		for (u32 at = 0; !r && at < s.length; at += SECTOR)
			record.sector[s.first + at / SECTOR] = htole32(crc32c(0, data + at, SECTOR));
	}
	record.csum = htole32(record_csum(c, &record));
	return r ? r : file_write(ctx, &c->file, COW_RECORD_OFFSET, &record, record_size(c));
}

/* ---- Comparing ---- */

struct comparison {
	const struct cowfile *c;
	const struct file *rdo;
	const struct cow_merge_record *record;
	u64 differs;		/* the offset of what is another device's, or SAME */
};

#define SAME	(~0ULL)

static int compare_sample(struct cowloop_ctx *ctx, struct comparison *cmp, const struct sample *s)
{
	const struct cowfile *c = cmp->c;
	u8 is[COW_SAMPLE_SIZE], merged[COW_SAMPLE_SIZE];
	bool set;
	int r = cow_unit_is_set(ctx, c, s->offset / c->geo.mapunit, &set);

	if (!r)
		r = file_read(ctx, cmp->rdo, s->offset, is, s->length);
	if (!r && set)
		r = file_read(ctx, &c->file, c->geo.doffset + s->offset, merged, s->length);
	for (u32 at = 0; !r && at < s->length && cmp->differs == SAME; at += SECTOR) {
		if (crc32c(0, is + at, SECTOR) != le32(cmp->record->sector[s->first + at / SECTOR]) &&
		    !(set && !memcmp(is + at, merged + at, SECTOR)))
			cmp->differs = s->offset + at;
	}
	return r;
}

/* A block that has been merged, all of it or in part, or else adds up to 0, as it did. */
static bool added_up_to_zero(const u8 *is, const u8 *merged)
{
	u8 sum = 0;

	for (u32 at = 0; at < COW_V1_MAPUNIT; at += SECTOR)
		if (!memcmp(is + at, merged + at, SECTOR))
			return true;
	for (u32 at = 0; at < COW_V1_MAPUNIT; at++)
		sum += is[at];
	return !sum;
}

static bool is_sample(const struct cow_merge_record *record, u64 block)
{
	for (unsigned int i = 0; i < 4; i++)
		if (le64(record->block[i]) == block)
			return true;
	return false;
}

/* The blocks from @first to @end are in the cowfile. */
static int compare_run(struct cowloop_ctx *ctx, struct comparison *cmp, u64 first, u64 end)
{
	u8 *is = file_buffer(ctx), *merged = file_buffer(ctx);
	int r = is && merged ? OK : NO_MEMORY;

	while (first < end && cmp->differs == SAME && !r) {
		const u64 nr = min_u64(end - first, FILE_CHUNK / COW_V1_MAPUNIT);
		const u64 offset = first * COW_V1_MAPUNIT;

		r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", cmp->rdo->path) :
					file_read(ctx, cmp->rdo, offset, is, nr * COW_V1_MAPUNIT);
		if (!r)
			r = file_read(ctx, &cmp->c->file, cmp->c->geo.doffset + offset, merged,
				      nr * COW_V1_MAPUNIT);
		for (u64 i = 0; i < nr && cmp->differs == SAME && !r; i++) {
			const u64 at = i * COW_V1_MAPUNIT;

			if (!is_sample(cmp->record, first + i) && !added_up_to_zero(is + at, merged + at))
				cmp->differs = offset + at;
		}
		first += nr;
	}
	free(is);
	free(merged);
	return r;
}

/* Format 1: the blocks before the last sample, or all if there are fewer than four. */
static int compare_between(struct cowloop_ctx *ctx, struct comparison *cmp)
{
	const u64 last = le64(cmp->record->block[3]);
	const u64 end = min_u64(last, cmp->c->geo.nr_units);
	struct cow_runs runs;
	u64 first, nr;
	int r = OK;

	cow_runs_start(&runs, cmp->c);
	while (!r && cmp->differs == SAME && cow_runs_next(ctx, &runs, &first, &nr) && first < end)
		r = compare_run(ctx, cmp, first, min_u64(first + nr, end));
	r = cow_runs_end(&runs, r);
	return r;
}

int record_compare(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo,
		   const struct cow_merge_record *record, bool *same, u64 *sector)
{
	struct comparison cmp = { .c = c, .rdo = rdo, .record = record, .differs = SAME };
	struct sample s;
	int r = OK;

	for (unsigned int i = 0; !r && cmp.differs == SAME && get_sample(c, record, i, &s); i++)
		r = compare_sample(ctx, &cmp, &s);
	if (!r && cmp.differs == SAME && c->format == 1)
		r = compare_between(ctx, &cmp);
	*same = cmp.differs == SAME;
	*sector = cmp.differs / SECTOR;
	return r;
}
