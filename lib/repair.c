// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: mends what can be mended, and says what.
 *
 * The head. If a single bit of it is wrong, its checksum says which (format 2).
 * Otherwise, with --force, the checksum is made anew if all sizes agree with each
 * other: with one that does not, nobody knows which is right, and a wrong guess
 * has all the data in the wrong place. (Format 1 says the same three times: two
 * that agree outvote one.)
 *
 * Format 1, dirty. The original's rule: a unit that is not all zeroes has been
 * written, whatever the bitmap says. Bits that are set stay set. With --force a
 * clean one is treated likewise, as the original does: its driver has left
 * cowfiles clean whose bitmap it had not repaired.
 *
 * Format 2, a damaged bitmap sector. If a single bit of it is wrong, the checksum
 * says which. Otherwise the data tells: a unit that is a hole in the file was
 * not written, one that is not all zeroes was. (A unit may have been written and
 * not flushed before a crash; either is right for it.) One that has space but is
 * all zeroes might be either, since a filesystem may give space in larger pieces
 * than asked for: it stays as the sector has it, damaged as that may be. A hole
 * for which the sector has a bit is counted aloud: zeroes may have been written
 * there, and stored as a hole. On a block device nothing tells, and all units stay
 * as the sector has them; this takes --force.
 *
 * Units beyond the file's end are lost. Their bits are cleared with --force
 * only: it means that rdo's data is read in their place, without an error.
 *
 * A merge that was interrupted. Only the merge itself can complete it, so the mark
 * stays; but what is damaged keeps the merge from going on, and is mended: the
 * bitmap's sectors, the head, the count. The mark says already that nobody else
 * may use the cowfile. A record of the merge that is damaged is removed, with
 * --force only: then it is up to its user that the merge goes on with the right
 * device.
 *
 * The order of writing: the head is DIRTY before the bitmap changes and clean
 * when that is done, so that an interrupted repair can simply be run again. (In
 * format 1 it is not made DIRTY for that, since there it means more. Its count
 * is wrong until the end, and so it is refused.)
 */

#include "cowfile.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uuid/uuid.h>

#include "crc32c.h"
#include "record.h"
#include "repair.h"
#include "scan.h"
#include "text.h"

struct repair {
	struct cow_faults faults;
	struct cowloop_ctx *ctx;
	struct cowfile c;
	const char *path;
	bool quiet;		/* nothing is told */
	bool dry_run, force;
	bool was_dirty;
	enum cow_state mark;	/* of a merge, which stays; or clean */
	bool announced;		/* the head says that the bitmap is being changed */
	bool head_changed;
	u64 nr_mended;
	u64 nr_left;
	u64 nr_damaged;		/* bitmap sectors that stay damaged */
	u64 used;		/* as it will be */
	u64 nr_lost;		/* units beyond the file's end that stay in the bitmap */
	u64 nr_cleared;		/* those that are taken out */
	u64 nr_added;		/* units that the bitmap did not have */
};

static void say(const struct repair *p, const char *what, const char *fmt, va_list ap)
{
	struct cowloop_ctx *ctx = p->ctx;
	char *text;

	if (p->quiet)
		return;
	text = text_vof(fmt, ap);
	tell(ctx, "%s: %s: %s.", p->path, what, text ? text : fmt);
	free(text);
}

static __attribute__((format(printf, 2, 3)))
void mended(struct repair *p, const char *fmt, ...)
{
	va_list ap;

	p->nr_mended++;
	va_start(ap, fmt);
	say(p, p->dry_run ? "would be mended" : "mended", fmt, ap);
	va_end(ap);
}

static __attribute__((format(printf, 2, 3)))
void left(struct repair *p, const char *fmt, ...)
{
	va_list ap;

	p->nr_left++;
	va_start(ap, fmt);
	say(p, p->dry_run ? "would not be mended" : "not mended", fmt, ap);
	va_end(ap);
}

/* How a thing that is mended comes to be what it should be: "now empty", or what it would be. */
static const char *now(const struct repair *p)
{
	return p->dry_run ? "then" : "now";
}

/* Whatever is wrong with the head is looked at by mend_head(). */
static void ignore_fault(struct cow_faults *faults, const char *id, const char *text)
{
	(void)faults;
	(void)id;
	(void)text;
}

static void left_fault(struct cow_faults *faults, const char *id, const char *text)
{
	(void)id;
	left((struct repair *)faults, "%s", text);
}

/* ---- The head ---- */

static __le64 mend_number(struct repair *p, __le64 found, u64 value, const char *name)
{
	if (le64(found) != value) {
		mended(p, "%s %llu in the head, %s %llu, as follows from the rest of it", name,
		       le64(found), now(p), value);
		p->head_changed = true;
	}
	return htole64(value);
}

static void mend_text(struct repair *p, u8 *field, size_t size, const char *name)
{
	char text[sizeof(p->c.head.rdospec) + 1];
	size_t length;

	memcpy(text, field, size);
	text[size] = 0;
	length = strlen(text);
	if (all_zero(field + length, size - length) && text_is_utf8(text))
		return;
	mended(p, "%s in the head, not a text, %s empty", name, now(p));
	memset(field, 0, size);
	p->head_changed = true;
}

/* The number of units is believed if a size that was made from it agrees. */
static bool mend_head_v1(struct repair *p)
{
	struct cow_head *head = &p->c.head;
	const u64 nr_units = le64(head->rdoblocks);
	struct cow_geometry geo;

	if (!nr_units || nr_units > COW_MAX_BYTES / COW_V1_MAPUNIT)
		return false;
	cow_geometry_init(&geo, 1, COW_V1_MAPUNIT, nr_units * 2);
	if (le64(head->mapsize) != geo.mapsize && le64(head->doffset) != geo.doffset)
		return false;
	head->mapunit = mend_number(p, head->mapunit, geo.mapunit, "mapunit");
	head->mapsize = mend_number(p, head->mapsize, geo.mapsize, "mapsize");
	head->doffset = mend_number(p, head->doffset, geo.doffset, "doffset");
	return true;
}

/* Only what has one value, always, is put right; of the rest nothing can be told. */
static bool mend_head_v2(struct repair *p)
{
	struct cow_head *head = &p->c.head;
	const u64 mapunit = le64(head->mapunit), sectors = le64(head->rdosectors);
	const u64 doffset = le64(head->doffset);
	struct cow_geometry geo;

	if (!cow_v2_mapunit_valid(mapunit) || !sectors || sectors > COW_MAX_BYTES / 512 ||
	    le32(head->incompat) & ~COW_INCOMPAT_TOOLS)
		return false;
	cow_geometry_init(&geo, 2, mapunit, sectors);
	if (le64(head->rdoblocks) != geo.nr_units || le64(head->mapsize) != geo.mapsize ||
	    doffset < geo.doffset || doffset % mapunit || doffset > COW_MAX_BYTES)
		return false;
	head->moffset = mend_number(p, head->moffset, geo.moffset, "moffset");
	return true;
}

/* A head of format 2 with one wrong bit. */
static void correct_head(struct repair *p)
{
	struct cow_head *head = &p->c.head;
	struct cow_faults quiet = { ignore_fault };
	const size_t length = offsetof(struct cow_head, csum);
	struct cow_head tried = *head;
	u8 *bytes = (u8 *)&tried;
	const u32 expected = crc32c(0, head, length);
	size_t i = 0;

	if (expected == le32(head->csum))
		return;
	if (__builtin_popcount(expected ^ le32(head->csum)) == 1) {
		tried.csum = htole32(expected);
	} else {
		for (; i < length * 8; i++) {
			bytes[i / 8] ^= 1 << i % 8;
			if (crc32c(0, bytes, length) == le32(head->csum))
				break;
			bytes[i / 8] ^= 1 << i % 8;
		}
	}
	if (i == length * 8 || le32(tried.magic) != COW_MAGIC || le16(tried.version) != 2)
		return;
	*head = tried;
	p->head_changed = true;
	mended(p, "one bit of the head, which the checksum tells");
	cow_check_head(&p->c, &quiet);
}

/* Bytes that should be zero, and texts. */
static int mend_details(struct cowloop_ctx *ctx, struct repair *p)
{
	struct cow_head *head = &p->c.head;
	const unsigned int known = COW_FLAG_DIRTY | COW_FLAG_PACKED;
	const struct cow_merge_record *record;
	u8 start[COW_V1_MAPUNIT];
	size_t length;
	bool keep;
	int r;

	if (le16(head->flags) & ~known) {
		mended(p, "unknown flags 0x%04x in the head, %s cleared", le16(head->flags) & ~known, now(p));
		head->flags &= htole16(known);
		p->head_changed = true;
	}
	if (p->c.format == 2) {
		if (!cow_uuid_is_random(head)) {
			mended(p, "UUID in the head, not one, %s a new one", now(p));
			uuid_generate_random(head->uuid);
			p->head_changed = true;
		}
		mend_text(p, head->label, sizeof(head->label), "label");
		mend_text(p, head->rdospec, sizeof(head->rdospec), "where to find rdo");
		if (!all_zero(head->reserved, sizeof(head->reserved)) ||
		    !all_zero(head->reserved2, sizeof(head->reserved2))) {
			mended(p, "reserved bytes in the head, %s zeroes", now(p));
			memset(head->reserved, 0, sizeof(head->reserved));
			memset(head->reserved2, 0, sizeof(head->reserved2));
			p->head_changed = true;
		}
		return OK;
	}

	r = file_read(ctx, &p->c.file, 0, start, sizeof(start));
	if (r)
		return r;
	/* The record of a merge is mend_record()'s. */
	record = (const struct cow_merge_record *)(start + COW_RECORD_OFFSET);
	keep = p->c.state == COW_MERGING || record_has_magic(record);
	length = keep ? COW_RECORD_OFFSET : COW_V1_MAPUNIT;
	if (all_zero(start + COW_V1_HEAD_SIZE, length - COW_V1_HEAD_SIZE))
		return OK;
	mended(p, "the rest of the head, %s zeroes", now(p));
	memset((u8 *)head + COW_V1_HEAD_SIZE, 0, sizeof(*head) - COW_V1_HEAD_SIZE);
	p->head_changed = true;
	return keep || p->dry_run ? OK : record_remove(ctx, &p->c);
}

bool repair_can_mend_head(const struct cowfile *c)
{
	struct repair tried = { .faults.found = ignore_fault, .c = *c, .quiet = true };

	if (tried.c.file.size >= COW_V2_HEAD_SIZE)
		correct_head(&tried);
	if (!cow_check_head(&tried.c, &tried.faults))
		return true;
	if (!tried.c.format || !(tried.c.format == 1 ? mend_head_v1(&tried) : mend_head_v2(&tried)))
		return false;
	if (tried.c.format == 2)
		cow_finish_head(&tried.c, tried.c.state, le64(tried.c.head.cowused));
	return !cow_check_head(&tried.c, &tried.faults);
}

/* Leave the head in memory as it should be, and the geometry right. */
static int mend_head(struct cowloop_ctx *ctx, struct repair *p)
{
	struct cow_faults quiet = { ignore_fault };
	struct cowfile *c = &p->c;
	int r;

	if (!cow_check_head(c, &quiet) && !cow_check_strictly(ctx, c, &quiet))
		return OK;
	if (!c->format)
		/* Not a cowfile, or shorter than one. */
		return cow_check_head(c, &p->faults);

	if (!repair_can_mend_head(c)) {
		cow_check_head(c, &p->faults);
		return error(ctx, WRONG, "%s: the head is damaged too much: nobody knows what is right in it.", p->path);
	}
	if (!p->force) {
		cow_check_head(c, &p->faults);
		cow_check_strictly(ctx, c, &p->faults);
		return error(ctx, WRONG, "%s: the head is damaged; with --force it is mended.", p->path);
	}
	if (c->format == 1)
		mend_head_v1(p);
	else
		mend_head_v2(p);
	r = mend_details(ctx, p);
	if (r)
		return r;
	if (c->format == 2) {
		const __le32 csum = c->head.csum;

		cow_finish_head(c, c->state, le64(c->head.cowused));
		if (csum != c->head.csum) {
			mended(p, "checksum of the head");
			p->head_changed = true;
		}
	}
	r = cow_check_head(c, &p->faults);
	return r ? error(ctx, WRONG, "%s: the head is damaged too much.", p->path) : OK;
}

/* Mend the record that a merge needs to go on; or remove that of one that did not come to begin. */
static int mend_record(struct cowloop_ctx *ctx, struct repair *p)
{
	const struct cowfile *c = &p->c;
	struct cow_merge_record record;
	enum record_state state;
	int r = record_read(ctx, c, &record, &state);

	if (r)
		return r;
	if (c->state == COW_MERGING) {
		if (state != RECORD_DAMAGED)
			return OK;
		if (!p->force) {
			left(p, "the record of the merge is damaged, and so the merge does not go on; --force removes it, and then it is not checked any more that what the cowfile has goes to the same device");
			return OK;
		}
		mended(p, "the record of the merge, damaged, %s removed", now(p));
	} else {
		if ((c->state != COW_CLEAN && c->state != COW_DIRTY) || !record_has_magic(&record))
			return OK;
		mended(p, "the record of a merge that did not come to begin, %s removed", now(p));
	}
	return p->dry_run ? OK : record_remove(ctx, c);
}

/* ---- The bitmap ---- */

/* Called before a bitmap sector is written. */
static int announce(struct cowloop_ctx *ctx, struct repair *p)
{
	struct cowfile *c = &p->c;

	if (p->announced || c->format == 1 || p->mark != COW_CLEAN)
		return OK;
	p->announced = true;
	return cow_write_head(ctx, c, COW_DIRTY, le64(c->head.cowused));
}

static int put_bits(struct cowloop_ctx *ctx, struct repair *p, u64 sector, const u8 *bits)
{
	int r;

	if (p->dry_run)
		return OK;
	r = announce(ctx, p);
	return r ? r : cow_write_bits(ctx, &p->c, sector, bits);
}

/* If a damaged sector of format 2 has one wrong bit, put it right. */
static bool correct_bit(const struct cow_map *m, u8 *bits)
{
	u32 set = __builtin_popcount(m->csum) + count_bits(bits, m->c->sector_units);

	/* One that is clear is all zeroes, with no checksum that could tell. */
	if (set == 1) {
		memset(bits, 0, m->c->sector_bytes);
		return true;
	}
	/* In the checksum itself? */
	if (__builtin_popcount(m->csum ^ m->expected) == 1)
		return true;
	for (u32 i = 0; i < m->c->sector_units; i++) {
		bits[i / 8] ^= 1 << i % 8;
		if (cow_sector_csum(bits, m->sector) == m->csum)
			return true;
		bits[i / 8] ^= 1 << i % 8;
	}
	return false;
}

/* Work out the bits of a damaged sector of format 2, or leave it as it is. */
static int rebuild_sector(struct cowloop_ctx *ctx, struct repair *p, const struct cow_map *m, u8 *bits)
{
	const struct cowfile *c = &p->c;
	struct cow_scan s = { .sector = m->sector };
	u32 nr, unknown = 0, holes = 0;
	const u64 first = cow_sector_units(c, m->sector, &nr);
	int r;

	if (!nr) {
		memset(bits, 0, c->sector_bytes);
		mended(p, "bitmap sector %llu, which has no units, %s clear", m->sector, now(p));
		return OK;
	}
	if (correct_bit(m, bits)) {
		mended(p, "bitmap sector %llu, units %llu to %llu: one bit, which the checksum tells",
		       m->sector, first, first + nr - 1);
		return OK;
	}
	if (c->file.block && !p->force) {
		p->nr_damaged++;
		left(p, "bitmap sector %llu, units %llu to %llu, is damaged, and on a device nothing tells what it should be; with --force it is taken as it is",
		     m->sector, first, first + nr - 1);
		return OK;
	}
	if (c->file.block) {
		mended(p, "bitmap sector %llu, units %llu to %llu, damaged, taken as it is: %u units in the cowfile",
		       m->sector, first, first + nr - 1, count_bits(bits, nr));
		return OK;
	}

	r = cow_scan_sector(ctx, c, &s);
	if (r)
		return r;
	for (u32 i = 0; i < nr; i++) {
		if (!bit_is_set(s.data, i)) {
			holes += bit_is_set(bits, i);
			bit_assign(bits, i, false);
		} else if (bit_is_set(s.nonzero, i)) {
			bit_assign(bits, i, true);
		} else {
			unknown++;
		}
	}
	mended(p, "bitmap sector %llu, units %llu to %llu, damaged, rebuilt from the data: %u units in the cowfile, %u not; %u that are all zeroes stay as they are",
	       m->sector, first, first + nr - 1, count_bits(bits, nr), nr - count_bits(bits, nr),
	       unknown);
	if (holes) {
		tell(ctx, "%s: %u of those that are not %s set in the damaged sector, but are holes: if zeroes were written there they %s lost.",
		     p->path, holes, p->dry_run ? "are" : "were", p->dry_run ? "would be" : "are");
	}
	return OK;
}

/* Bits of no unit. */
static void clear_beyond(struct repair *p, u64 sector, u8 *bits, u32 nr)
{
	const u32 all = count_bits(bits, p->c.sector_units), set = count_bits(bits, nr);

	if (all == set)
		return;
	for (u32 i = nr; i < p->c.sector_units; i++)
		bit_assign(bits, i, false);
	mended(p, "bitmap sector %llu: %u bits beyond the last unit, %s clear", sector, all - set, now(p));
}

/* Bits of units that the file is too short for. */
static void clear_lost(struct repair *p, u64 first, u8 *bits, u32 nr)
{
	const u64 in_file = cow_units_in_file(&p->c);

	for (u32 i = 0; i < nr; i++) {
		if (first + i < in_file || !bit_is_set(bits, i))
			continue;
		if (p->force) {
			bit_assign(bits, i, false);
			p->nr_cleared++;
		} else {
			p->nr_lost++;
		}
	}
}

static int mend_sector(struct cowloop_ctx *ctx, struct repair *p, const struct cow_map *m)
{
	const struct cowfile *c = &p->c;
	u8 bits[COW_V1_SECTOR_BYTES];
	const u64 nr_damaged = p->nr_damaged;
	u32 nr;
	const u64 first = cow_sector_units(c, m->sector, &nr);
	int r = OK;

	memcpy(bits, m->bits, c->sector_bytes);
	if (!m->good)
		r = rebuild_sector(ctx, p, m, bits);
	if (r || p->nr_damaged != nr_damaged)
		return r;
	clear_beyond(p, m->sector, bits, nr);
	clear_lost(p, first, bits, nr);
	p->used += count_bits(bits, nr);

	if (m->good && !memcmp(bits, m->bits, c->sector_bytes))
		return OK;
	return put_bits(ctx, p, m->sector, bits);
}

static int mend_bitmap(struct cowloop_ctx *ctx, struct repair *p)
{
	const struct cowfile *c = &p->c;
	struct cow_map m;
	int r = OK;

	progress_start(ctx, p->path, c->geo.mapsize, "of bitmap read");
	cow_map_start(&m, c);
	while (!r && cow_map_next(ctx, &m)) {
		r = mend_sector(ctx, p, &m);
		progress_update(ctx, m.sector * COW_MAP_SECTOR);
	}
	cow_map_end(&m);
	if (!r)
		r = m.error;
	progress_end(ctx, !r);

	if (p->nr_cleared)
		mended(p, "%llu unit%s that the file is too short for, %s taken out of the bitmap",
		       p->nr_cleared, p->nr_cleared == 1 ? "" : "s", now(p));
	if (p->nr_lost)
		left(p, "%llu unit%s should be in the cowfile, but it ends at %llu; with --force they are taken out, and read as they are in the read-only device",
		     p->nr_lost, p->nr_lost == 1 ? "" : "s", c->file.size);
	return r;
}

/* Format 1: add the units that are not all zeroes. */
static int add_written_units(struct cowloop_ctx *ctx, struct repair *p)
{
	const struct cowfile *c = &p->c;
	u8 bits[COW_V1_SECTOR_BYTES];
	struct cow_scan s;
	u64 sector = 0;
	int r;

	progress_start(ctx, p->path, c->geo.nr_units * c->geo.mapunit, "read");
	for (;;) {
		u32 more = 0;

		r = cow_scan_next(ctx, c, &sector);
		if (r || sector >= c->nr_sectors)
			break;
		s.sector = sector;
		r = cow_scan_sector(ctx, c, &s);
		if (!r)
			r = cow_read_bits(ctx, c, sector, bits);
		if (r)
			break;
		for (unsigned int i = 0; i < sizeof(bits); i++) {
			more += __builtin_popcount(s.nonzero[i] & ~bits[i]);
			bits[i] |= s.nonzero[i];
		}
		if (more)
			r = put_bits(ctx, p, sector, bits);
		if (r)
			break;
		p->nr_added += more;
		sector++;
		progress_update(ctx, sector * c->sector_units * c->geo.mapunit);
	}
	progress_end(ctx, !r);
	if (r)
		return r;
	if (p->was_dirty || p->nr_added)
		mended(p, "%s%llu unit%s with data that the bitmap %s not have, %s added",
		       p->was_dirty ? "dirty: " : "", p->nr_added, p->nr_added == 1 ? "" : "s",
		       p->dry_run ? "does" : "did", now(p));
	/* Bits that are not on disk are not counted by mend_bitmap(). */
	if (p->dry_run)
		p->used += p->nr_added;
	return OK;
}

/* ---- The whole ---- */

static int check_repairable(struct cowloop_ctx *ctx, const struct repair *p)
{
	const struct cowfile *c = &p->c;

	if (c->state == COW_PACKED)
		return error(ctx, WRONG, "%s: packed; unpack it first, then repair what comes out.", p->path);
	if (c->format == 2 && le32(c->head.compat_ro) & ~COW_COMPAT_RO_KNOWN)
		return error(ctx, WRONG, "%s: can only be read by this version: found compat_ro 0x%08x, expected none but 0x%08x.",
			     p->path, le32(c->head.compat_ro), COW_COMPAT_RO_KNOWN);
	return OK;
}

static int finish(struct cowloop_ctx *ctx, struct repair *p)
{
	struct cowfile *c = &p->c;
	const u64 found = le64(c->head.cowused);

	/* The units in use can't be counted. */
	if (p->nr_damaged && p->mark != COW_CLEAN)
		return p->head_changed && !p->dry_run ? cow_write_head(ctx, c, p->mark, found) : OK;
	if (p->nr_damaged)
		return p->head_changed && !p->dry_run ? announce(ctx, p) : OK;
	if (p->was_dirty && c->format == 2)
		mended(p, "dirty: counted again, %llu units used", p->used);
	else if (found != p->used && p->mark != COW_MERGED && (c->format == 2 || c->state != COW_DIRTY))
		mended(p, "count of units used %llu, %s %llu", found, now(p), p->used);
	if (!p->nr_mended || p->dry_run)
		return OK;
	return cow_write_head(ctx, c, p->mark, p->used);
}

static void print_result(struct cowloop_ctx *ctx, const struct repair *p)
{
	if (p->mark != COW_CLEAN)
		tell(ctx, "%s: a merge was interrupted; run cowsetup merge again to complete it.", p->path);
	if (!p->nr_mended && !p->nr_left)
		tell(ctx, "%s: nothing to mend: %llu of %llu units used.", p->path, p->used, p->c.geo.nr_units);
	else if (p->dry_run && p->nr_mended && p->nr_left)
		tell(ctx, "%s: would be repaired in part; nothing was changed, since this was a dry run.", p->path);
	else if (p->dry_run && p->nr_mended)
		tell(ctx, "%s: would be repaired, with %llu of %llu units used; nothing was changed, since this was a dry run.",
		     p->path, p->used, p->c.geo.nr_units);
	else if (!p->nr_left)
		tell(ctx, "%s: repaired: %llu of %llu units used.", p->path, p->used, p->c.geo.nr_units);
}

int repair_dirty(struct cowloop_ctx *ctx, struct cowfile *c, bool force)
{
	struct repair p = { .faults.found = left_fault, .ctx = ctx, .c = *c, .path = c->file.path,
			    .was_dirty = true, .force = force };
	int r = add_written_units(ctx, &p);

	if (!r)
		r = mend_bitmap(ctx, &p);
	if (!r)
		r = finish(ctx, &p);
	*c = p.c;
	if (r && p.nr_added)
		warn(ctx, "%s: still dirty, and as it was, but for %llu unit%s with data that %s been added to the bitmap; the repair can be run again.",
		     p.path, p.nr_added, p.nr_added == 1 ? "" : "s", p.nr_added == 1 ? "has" : "have");
	return r ? r : p.nr_left ? WRONG : OK;
}

int cowloop_repair(struct cowloop_ctx *ctx, const char *path, const struct cowloop_repair *how)
{
	struct repair p = { .faults.found = left_fault, .ctx = ctx, .path = path, .dry_run = how->dry_run, .force = how->force };
	struct cow_faults quiet = { ignore_fault };
	int r;

	r = cow_open_faulty(ctx, &p.c, path, how->dry_run ? FILE_READ : FILE_WRITE | FILE_EXCLUSIVE,
			    &quiet);
	if (p.c.file.fd < 0)
		return r;
	/* Before anything is said to be mended. */
	if (p.c.file.size >= COW_V2_HEAD_SIZE)
		correct_head(&p);
	r = p.c.format ? check_repairable(ctx, &p) : OK;
	if (!r)
		r = mend_head(ctx, &p);
	p.was_dirty = p.c.state == COW_DIRTY;
	if (p.c.state == COW_MERGING || p.c.state == COW_MERGED) {
		p.mark = p.c.state;
		p.nr_left++;
	}
	if (!r)
		r = mend_record(ctx, &p);
	if (!r && p.c.format == 1 && (p.was_dirty || (how->force && p.mark == COW_CLEAN)))
		r = add_written_units(ctx, &p);
	if (!r)
		r = mend_bitmap(ctx, &p);
	if (!r)
		r = finish(ctx, &p);
	cow_close(&p.c);
	if (!r)
		print_result(ctx, &p);

	return r ? r : p.nr_left ? WRONG : OK;
}
