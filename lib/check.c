// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: reads all of a cowfile, reports every fault, changes nothing.
 *
 * A fault is what breaks a rule of the format, costs data or makes the driver
 * refuse the cowfile. What is unusual without being wrong is a note.
 */

#include "cowfile.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "changed.h"
#include "container.h"
#include "holders.h"
#include "rdo.h"
#include "record.h"
#include "repair.h"
#include "scan.h"
#include "text.h"

struct check {
	struct cow_faults faults;
	const struct cowloop_findings *to;
	const char *rdo_path;	/* NULL: it is not looked at */
	struct cowfile c;
	u64 nr_faults;
	bool mendable;		/* repair is for one of them at least */
	u64 used;		/* units in the bitmap, damaged sectors left out */
	u64 last;		/* the last of them, if there is any */
	u64 nr_bad;		/* damaged sectors */
	u64 nr_lost;		/* units beyond the file's end */
	u64 nr_hidden;		/* units with data that are not in the bitmap */
	struct cow_merge_record record;
	enum record_state record_state;
};

/* Can repair mend a fault, in a cowfile whose head is in order, or can be mended? */
static bool is_mendable(const char *id)
{
	static const char *const never[] = {
		"blank", "compressed", "data-long", "data-unreadable", "incompat", "magic", "merging",
		"rdo-changed", "rdo-fingerprint", "rdo-merge", "rdo-size", "rdosectors", "short", "version",
	};

	for (unsigned int i = 0; i < sizeof(never) / sizeof(never[0]); i++)
		if (!strcmp(id, never[i]))
			return false;
	return true;
}

static void found_fault(struct cow_faults *faults, const char *id, const char *text)
{
	struct check *k = (struct check *)faults;

	k->nr_faults++;
	k->mendable |= is_mendable(id);
	k->to->fault(k->to->data, id, text);
}

static __attribute__((format(printf, 2, 3)))
void note(struct check *k, const char *fmt, ...)
{
	va_list ap;
	char *text;

	va_start(ap, fmt);
	text = text_vof(fmt, ap);
	va_end(ap);
	k->to->note(k->to->data, text ? text : fmt);
	free(text);
}

/* ---- The bitmap ---- */

/* Everything about one bitmap sector. */
static void check_sector(struct check *k, const struct cow_map *m)
{
	const struct cowfile *c = &k->c;
	const u64 in_file = cow_units_in_file(c);
	u32 nr, set, all;
	const u64 first = cow_sector_units(c, m->sector, &nr);

	if (!m->good) {
		k->nr_bad++;
		if (nr)
			cow_fault(&k->faults, "map-csum", "bitmap sector %llu, units %llu to %llu: found checksum 0x%08x, expected 0x%08x",
				  m->sector, first, first + nr - 1, m->csum, m->expected);
		else
			cow_fault(&k->faults, "map-csum", "bitmap sector %llu, which has no units: found checksum 0x%08x, expected 0x%08x",
				  m->sector, m->csum, m->expected);
		return;
	}
	set = count_bits(m->bits, nr);
	all = count_bits(m->bits, c->sector_units);
	if (all > set)
		cow_fault(&k->faults, "map-beyond", "bitmap sector %llu has %u bits set beyond the last unit, %llu",
			  m->sector, all - set, c->geo.nr_units - 1);
	if (!set)
		return;

	k->used += set;
	for (k->last = first + nr - 1; !bit_is_set(m->bits, k->last - first); k->last--)
		;
	if (c->state != COW_PACKED && first + nr > in_file)
		k->nr_lost += set - (in_file > first ? count_bits(m->bits, in_file - first) : 0);
}

static int check_bitmap(struct cowloop_ctx *ctx, struct check *k)
{
	const struct cowfile *c = &k->c;
	const u64 found = le64(c->head.cowused);
	struct cow_map m;

	progress_start(ctx, c->file.path, c->geo.mapsize, "of bitmap read");
	cow_map_start(&m, c);
	while (cow_map_next(ctx, &m)) {
		check_sector(k, &m);
		progress_update(ctx, m.sector * COW_MAP_SECTOR);
	}
	cow_map_end(&m);
	progress_end(ctx, !m.error);
	if (m.error)
		return m.error;

	if (k->nr_lost)
		cow_fault(&k->faults, "data-short", "%llu unit%s, up to unit %llu, should be in the cowfile, but it ends at %llu",
			  k->nr_lost, k->nr_lost == 1 ? "" : "s", k->last, c->file.size);
	if (c->state != COW_DIRTY && !k->nr_bad && found != k->used)
		cow_fault(&k->faults, "cowused", "found cowused %llu, expected %llu, as the bitmap has",
			  found, k->used);
	return OK;
}

/* ---- The data ---- */

/* Whether the data that is there can be read. */
static int read_extent(struct cowloop_ctx *ctx, struct check *k, u8 *buf, u64 start, u64 end)
{
	const struct cowfile *c = &k->c;
	u64 extent_end, n;
	int r = OK;

	while (start < end && !r) {
		r = file_next_data(ctx, &c->file, &start, &extent_end, end);
		if (r || start >= end)
			break;
		n = min_u64(extent_end - start, FILE_CHUNK);
		if (file_read_padded(ctx, &c->file, start, buf, n)) {
			if (is_cancelled(ctx))
				return USAGE;
			cow_fault(&k->faults, "data-unreadable", "%llu bytes of data at %llu cannot be read", n, start);
		}
		if (is_cancelled(ctx))
			return error(ctx, USAGE, "%s: interrupted.", c->file.path);
		start += n;
	}
	return r;
}

/* Format 2, and packed files: the units that the bitmap has. */
static int check_data(struct cowloop_ctx *ctx, struct check *k)
{
	const struct cowfile *c = &k->c;
	struct cow_runs runs;
	u64 first, nr, nr_read = 0;
	u8 *buf = file_buffer(ctx);
	int r = buf ? OK : NO_MEMORY;

	progress_start(ctx, c->file.path, k->used * c->geo.mapunit, "read");
	cow_runs_start(&runs, c);
	runs.skip_bad = true;
	runs.quiet = true;
	while (!r && cow_runs_next(ctx, &runs, &first, &nr)) {
		const u64 place = c->state == COW_PACKED ? nr_read : first;
		const u64 start = c->geo.doffset + place * c->geo.mapunit;
		u64 end = start + nr * c->geo.mapunit;

		if (end > c->file.size)
			end = c->file.size;
		r = read_extent(ctx, k, buf, start, end);
		nr_read += nr;
		progress_update(ctx, nr_read * c->geo.mapunit);
	}
	r = cow_runs_end(&runs, r);
	progress_end(ctx, !r);
	free(buf);

	return r;
}

/* Format 1: also those that the bitmap does not have. */
static int check_data_v1(struct cowloop_ctx *ctx, struct check *k)
{
	const struct cowfile *c = &k->c;
	u8 bits[COW_V1_SECTOR_BYTES];
	struct cow_scan s;
	u64 sector = 0;
	int r;

	progress_start(ctx, c->file.path, c->geo.nr_units * c->geo.mapunit, "read");
	for (;;) {
		r = cow_scan_next(ctx, c, &sector);
		if (r || sector >= c->nr_sectors)
			break;
		s.sector = sector;
		r = cow_scan_sector(ctx, c, &s);
		if (r && r != NO_MEMORY && is_cancelled(ctx))
			r = USAGE;
		if (r == NO_MEMORY || r == USAGE)
			break;
		if (r)
			cow_fault(&k->faults, "data-unreadable", "data of units %llu to %llu cannot be read",
				  sector * c->sector_units, (sector + 1) * c->sector_units - 1);
		r = cow_read_bits(ctx, c, sector, bits);
		if (r)
			break;
		for (unsigned int i = 0; i < sizeof(bits); i++)
			k->nr_hidden += __builtin_popcount(s.nonzero[i] & ~bits[i]);
		sector++;
		progress_update(ctx, sector * c->sector_units * c->geo.mapunit);
	}
	progress_end(ctx, !r);

	if (k->nr_hidden && c->state == COW_CLEAN)
		note(k, "%llu unit%s not in the bitmap, but not zero either; the driver does not mind, but after a crash they would be taken for written",
		     k->nr_hidden, k->nr_hidden == 1 ? " is" : "s are");
	return r;
}

static void check_packed_length(struct check *k)
{
	const struct cowfile *c = &k->c;
	const u64 end = c->geo.doffset + k->used * c->geo.mapunit;

	if (k->nr_bad)
		return;
	if (k->used && c->file.size < end)
		cow_fault(&k->faults, "data-short", "the packed data should end at %llu, but the file ends at %llu",
			  end, c->file.size);
	else if (!c->file.block && c->file.size > (end > c->geo.doffset ? end : c->geo.doffset))
		cow_fault(&k->faults, "data-long", "the packed data should end at %llu, but the file goes on to %llu",
			  end, c->file.size);
}

/* ---- The whole ---- */

static void check_state(struct check *k)
{
	struct cowfile *c = &k->c;

	switch (c->state) {
	case COW_DIRTY:
		if (c->format == 2)
			note(k, "dirty: in use now, or when the machine crashed; the units in use have to be counted again, which the driver does by itself");
		else
			cow_fault(&k->faults, "dirty", "dirty: in use now, or when the machine crashed; the bitmap may lack units");
		break;
	case COW_MERGING:
	case COW_MERGED:
		cow_fault(&k->faults, "merging", "a merge was interrupted; run cowsetup merge again to complete it");
		break;
	case COW_CLEAN:
		if (cow_units_in_file(c) < c->geo.nr_units)
			note(k, "there is room for %llu of %llu units", cow_units_in_file(c),
			     c->geo.nr_units);
		break;
	case COW_PACKED:
		break;
	}
}

/* Of a merge that is going on, or what is left of one that did not begin. */
static int check_record(struct cowloop_ctx *ctx, struct check *k)
{
	const struct cowfile *c = &k->c;
	int r = record_read(ctx, c, &k->record, &k->record_state);

	if (r)
		return r;
	if (c->state == COW_MERGING && k->record_state == RECORD_DAMAGED)
		cow_fault(&k->faults, "merge-record", "the record of the merge is damaged; without it the merge can't tell its read-only device from another");
	else if (c->state == COW_MERGING && k->record_state == RECORD_NONE)
		note(k, "there is no record of the merge, which was begun by an older cowsetup: that its read-only device is the same still can be checked only in part");
	else if ((c->state == COW_CLEAN || c->state == COW_DIRTY) && record_has_magic(&k->record))
		note(k, "there is the record of a merge that did not come to begin; nobody minds it, and cowsetup repair removes it");
	return OK;
}

/* In a merge: is each sector of the samples what it was, or what it is to be? */
static int compare_record(struct cowloop_ctx *ctx, struct check *k, const struct file *rdo)
{
	bool same;
	u64 sector;
	int r = record_compare(ctx, &k->c, rdo, &k->record, &same, &sector);

	if (!r && !same)
		cow_fault(&k->faults, "rdo-merge", "the merge was begun with another read-only device, or %s has changed: sector %llu of it is neither what it was then nor what the cowfile has for it",
			  rdo->path, sector);
	return r;
}

static int note_container(struct cowloop_ctx *ctx, struct check *k, const struct file *rdo)
{
	char *found;
	int r = container_text(ctx, rdo, &found);

	if (found)
		note(k, "%s: %s", rdo->path, found);
	free(found);
	return r;
}

/* The samples of the fingerprint agree; has it changed elsewhere? A merge changes it, and in each of its states. */
static int check_changed(struct cowloop_ctx *ctx, struct check *k, const struct file *rdo)
{
	char *text = NULL;
	bool proof = false;
	int r = OK;

	if (k->c.state != COW_MERGING)
		r = changed_since(ctx, &k->c.head, rdo, &text, &proof);
	if (text && proof)
		cow_fault(&k->faults, "rdo-changed", "%s", text);
	else if (text)
		note(k, "%s; if that is more than a copy of it, what is in the cowfile does not go with it any more",
		     text);
	free(text);
	return r;
}

static int check_rdo(struct cowloop_ctx *ctx, struct check *k)
{
	struct file rdo = FILE_CLOSED;
	int r = file_open(ctx, &rdo, k->rdo_path, FILE_READ);
	const struct cowfile *masked = k->c.state == COW_MERGING ? &k->c : NULL;
	struct cow_geometry geo;
	u64 is, made_for = le64(k->c.head.rdofingerprint);

	if (r)
		return r;
	r = note_container(ctx, k, &rdo);
	cow_geometry_init(&geo, k->c.format, k->c.geo.mapunit, rdo_sectors(&rdo));
	if (r) {
		;
	} else if (geo.rdo_sectors != k->c.geo.rdo_sectors) {
		cow_fault(&k->faults, "rdo-size", "belongs to a read-only device of %llu sectors, and %s has %llu",
			  k->c.geo.rdo_sectors, k->rdo_path, geo.rdo_sectors);
	} else if (masked && k->nr_bad) {
		note(k, "the fingerprint of %s cannot be checked as long as the bitmap is damaged", k->rdo_path);
	} else {
		r = cow_fingerprint(ctx, &rdo, k->c.format, masked, &is);
		if (!r && is != made_for)
			cow_fault(&k->faults, "rdo-fingerprint", "belongs to another read-only device, or %s has changed: the cowfile was made for fingerprint 0x%016llx, and %s has 0x%016llx",
				  k->rdo_path, made_for, k->rdo_path, is);
		else if (!r)
			r = check_changed(ctx, k, &rdo);
		if (!r && masked && k->record_state == RECORD_VALID && !k->nr_lost)
			r = compare_record(ctx, k, &rdo);
	}
	file_close(&rdo);
	return r;
}

/* An exit code if it can't be checked; faults are no reason. */
static int check_all(struct cowloop_ctx *ctx, struct check *k, const char *path)
{
	struct cowfile *c = &k->c;
	char *user;
	int r, used;

	r = cow_open_faulty(ctx, c, path, FILE_READ, &k->faults);
	c->file.path = path;
	if (r && (c->file.fd < 0 || !k->nr_faults))
		return r;
	used = file_used_by(ctx, &c->file, &user);
	if (user)
		note(k, "in use (%s): what is found here may be out of date", user);
	free(user);
	if (used)
		return used;
	if (c->format)
		cow_check_strictly(ctx, c, &k->faults);
	if (r)
		return OK;	/* there is nothing to go by */

	check_state(k);
	r = check_record(ctx, k);
	if (!r)
		r = check_bitmap(ctx, k);
	if (!r && c->state == COW_PACKED)
		check_packed_length(k);
	if (!r)
		r = c->format == 1 && c->state != COW_PACKED ? check_data_v1(ctx, k) : check_data(ctx, k);
	if (!r && k->rdo_path)
		r = check_rdo(ctx, k);
	return r;
}

int cowloop_check(struct cowloop_ctx *ctx, const char *path, const char *rdo, const struct cowloop_findings *to,
		  struct cowloop_check *result)
{
	struct check k = { .faults.found = found_fault, .to = to, .rdo_path = rdo };
	const struct cowfile *c = &k.c;
	int r = check_all(ctx, &k, path);

	*result = (struct cowloop_check){
		.format = c->format,
		.state = (enum cowloop_state)c->state,
		.mapunit = c->geo.mapunit,
		.units_used = k.used,
		.units = c->geo.nr_units,
		.nr_faults = k.nr_faults,
	};
	if (!r)
		result->repairable = k.mendable && !(c->format && c->state == COW_PACKED) && repair_can_mend_head(c);
	cow_close(&k.c);
	return r;
}
