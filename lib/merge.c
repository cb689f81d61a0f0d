// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: writes what is in a cowfile into its read-only device.
 *
 * Once the first unit is written there is no way back, and no way to use the
 * cowfile with a half-merged device either: what it does not hold is right
 * there, but the fingerprint says that it is another device. So the cowfile
 * carries a mark, durably before the first write:
 *
 *	MERGING	rdo is being written. The units in the cowfile have to be written
 *		all over again, which does no harm. In the place of rdo's fingerprint
 *		stands one in which the units of the cowfile count as zeroes: it
 *		is the same at any time of the merge.
 *	MERGED	rdo has it all, durably, and the fingerprint is that of the device as
 *		it is now. What is left to do is to empty the cowfile.
 *
 * and then neither, and an empty bitmap: the cowfile can't be merged into
 * anything else, and can be used again with the device as it is now. Every mark
 * is made by writing the head, a single sector, after everything before it is
 * durable. At any point the command can be run again, and goes on.
 *
 * A merge must not go on with another device, and that fingerprint does not tell one
 * that differs in units of the cowfile only. So, before the first mark, a record
 * of what the true fingerprint was made of is written behind the head: see
 * record.c. MERGING says that it is there, but for a merge that a version without
 * it has begun. It is made zeroes of before the last mark is cleared. A crash before
 * the first leaves it in a cowfile that is in order: whoever reads that has no
 * interest in it, check has a note about it, and the next merge or repair removes
 * it.
 *
 * The driver and the tools, the original's too, refuse marked cowfiles: in
 * format 2 the marks are incompat bits, in format 1 versions, that none knows.
 */

#include "cowfile.h"

#include <stdio.h>
#include <stdlib.h>

#include "changed.h"
#include "grow.h"
#include "newcow.h"
#include "rdo.h"
#include "record.h"
#include "size.h"

/* Bytes that are written before they are made durable. */
#define SYNC_INTERVAL	(64 * 1024 * 1024)

/* Bytes that are made zeroes of at a time. */
#define ZERO_STEP	(16 * 1024 * 1024)

static int write_units(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo, u64 used)
{
	u8 *buf = file_buffer(ctx);
	u64 first, nr, done = 0, synced = 0;
	struct cow_runs runs;
	int r = buf ? OK : NO_MEMORY;

	progress_start(ctx, rdo->path, used * c->geo.mapunit, "written");
	cow_runs_start(&runs, c);
	while (!r && cow_runs_next(ctx, &runs, &first, &nr)) {
		const u64 start = first * c->geo.mapunit, bytes = cow_run_bytes(c, first, nr);

		for (u64 at = 0; at < bytes && !r; at += FILE_CHUNK) {
			const size_t n = min_u64(bytes - at, FILE_CHUNK);

			r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", rdo->path) :
						file_read(ctx, &c->file, c->geo.doffset + start + at, buf, n);
			if (!r)
				r = file_write(ctx, rdo, start + at, buf, n);
			done += n;
			if (!r && done - synced >= SYNC_INTERVAL) {
				r = file_sync(ctx, rdo);
				synced = done;
			}
			progress_update(ctx, done);
		}
	}
	r = cow_runs_end(&runs, r);
	free(buf);
	if (!r)
		r = file_sync(ctx, rdo);
	progress_end(ctx, !r);

	return r;
}

/* Mark the cowfile before anything is written. */
static int begin(struct cowloop_ctx *ctx, struct cowfile *c, const struct file *rdo, u64 used)
{
	u64 fingerprint;
	int r = cow_fingerprint(ctx, rdo, c->format, c, &fingerprint);

	if (r)
		return r;
	c->head.rdofingerprint = htole64(fingerprint);
	r = record_write(ctx, c, rdo);
	return r ? r : cow_write_head(ctx, c, COW_MERGING, used);
}

/* Before a merge goes on: is it the device that it was begun with? */
static int check_record(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo)
{
	struct cow_merge_record record;
	enum record_state state;
	u64 sector;
	bool same;
	int r = record_read(ctx, c, &record, &state);

	if (r)
		return r;
	switch (state) {
	case RECORD_NONE:
		warn(ctx, "%s: this merge was begun by an older cowsetup, which left no record of %s: that it is the same device still is checked only where %s has nothing for it.",
		     c->file.path, rdo->path, c->file.path);
		return OK;
	case RECORD_DAMAGED:
		return error(ctx, WRONG, "%s: the record of the merge is damaged, so that %s cannot be told from another device; see cowsetup repair.",
			     c->file.path, rdo->path);
	case RECORD_VALID:
		break;
	}
	r = record_compare(ctx, c, rdo, &record, &same, &sector);
	if (!r && !same)
		r = error(ctx, WRONG, "%s: its merge was begun with another device than %s, or %s has been changed since: sector %llu of it is neither what it was then nor what %s has for it. Run merge with the device with which it was begun.",
			  c->file.path, rdo->path, rdo->path, sector, c->file.path);
	return r;
}

/* From MERGING to MERGED. */
static int merge_units(struct cowloop_ctx *ctx, struct cowfile *c, const struct file *rdo, u64 used)
{
	u64 fingerprint;
	int r = write_units(ctx, c, rdo, used);

	if (!r)
		r = cow_fingerprint(ctx, rdo, c->format, NULL, &fingerprint);
	if (r)
		return r;
	c->head.rdofingerprint = htole64(fingerprint);
	if (c->format == 2)
		changed_remember(&c->head, rdo);
	return cow_write_head(ctx, c, COW_MERGED, used);
}

/* On a device, in format 1: what is not zero would be taken for written by a repair. */
static int zero_units(struct cowloop_ctx *ctx, const struct cowfile *c)
{
	struct cow_runs runs;
	u64 first, nr;
	int r = OK;

	progress_start(ctx, c->file.path, c->geo.nr_units * c->geo.mapunit, "zeroed");
	cow_runs_start(&runs, c);
	while (!r && cow_runs_next(ctx, &runs, &first, &nr)) {
		const u64 start = first * c->geo.mapunit, bytes = nr * c->geo.mapunit;

		for (u64 at = 0; at < bytes && !r; at += ZERO_STEP) {
			r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", c->file.path) :
						file_zero(ctx, &c->file, c->geo.doffset + start + at,
							  min_u64(bytes - at, ZERO_STEP));
			progress_update(ctx, start + at);
		}
	}
	r = cow_runs_end(&runs, r);
	progress_end(ctx, !r);
	return r;
}

/* From MERGED to an empty cowfile. The bitmap tells where the data is, so it goes last. */
static int empty(struct cowloop_ctx *ctx, struct cowfile *c)
{
	int r = OK;

	if (file_can_punch(&c->file))
		r = zero_in_steps(ctx, &c->file, c->geo.doffset, c->geo.nr_units * c->geo.mapunit);
	else if (!c->file.block || c->format == 1)
		r = zero_units(ctx, c);
	if (!r)
		r = file_sync(ctx, &c->file);
	if (!r)
		r = file_zero(ctx, &c->file, c->geo.moffset, c->geo.mapsize);
	if (!r)
		r = record_remove(ctx, c);
	return r ? r : cow_write_head(ctx, c, COW_CLEAN, 0);
}

/* All that is left to do, whatever that is. */
static int merge(struct cowloop_ctx *ctx, struct cowfile *c, const struct file *rdo, u64 used)
{
	int r = OK;

	if (c->state != COW_MERGING && c->state != COW_MERGED)
		r = begin(ctx, c, rdo, used);
	if (!r && c->state == COW_MERGING)
		r = merge_units(ctx, c, rdo, used);
	return r ? r : empty(ctx, c);
}

static int ask(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo, u64 used)
{
	if (c->state == COW_MERGED)
		return OK;	/* nothing more is written to it */
	return confirm(ctx, "This will overwrite %llu units (%s) of %s with what is in %s, irrevocably.%s Any other cowfile over %s cannot be used any more.",
		       used, size_text(used * c->geo.mapunit), rdo->path, c->file.path,
		       c->state == COW_MERGING ? " This has begun; it can only be completed." : "",
		       rdo->path);
}

/* Somebody may have given the arguments the wrong way round. */
static void check_order(struct cowloop_ctx *ctx, const char *rdo_path, const char *path)
{
	struct cow_head head;
	struct file f;

	if (file_open(ctx, &f, rdo_path, FILE_READ))
		return;
	if (!file_read_padded(ctx, &f, 0, &head, sizeof(head)) && le32(head.magic) == COW_MAGIC)
		error(ctx, WRONG, "%s is a cowfile: the read-only device comes first, then the cowfile (merge %s %s).",
		      rdo_path, path, rdo_path);
	file_close(&f);
}

int cowloop_merge(struct cowloop_ctx *ctx, const char *rdo_path, const char *path)
{
	struct file rdo = FILE_CLOSED;
	struct cowfile c;
	u64 used = 0, end = 0;
	bool begun = false;
	int r;

	if (file_same_path(rdo_path, path))
		return error(ctx, WRONG, "%s: cannot be the read-only device and the cowfile at the same time.", rdo_path);
	r = cow_open(ctx, &c, path, FILE_WRITE | FILE_EXCLUSIVE, COW_ACCEPT_MERGE);
	if (r == WRONG)
		check_order(ctx, rdo_path, path);
	if (r)
		return r;
	r = cow_open_rdo(ctx, &c, &rdo, rdo_path, FILE_WRITE | FILE_EXCLUSIVE);
	if (!r && c.state != COW_MERGED)
		r = cow_count(ctx, &c, &used, &end);
	if (!r)
		r = cow_check_end(ctx, &c, end);
	if (!r && c.state == COW_MERGING)
		r = check_record(ctx, &c, &rdo);
	if (!r && !used && (c.state == COW_CLEAN || c.state == COW_DIRTY)) {
		tell(ctx, "%s: nothing to merge: no unit is used.", path);
	} else if (!r) {
		r = ask(ctx, &c, &rdo, used);
		if (!r) {
			begun = true;
			r = merge(ctx, &c, &rdo, used);
		}
		if (!r)
			tell(ctx, "%s: merged: %s has it all, and %s is empty and belongs to %s as it is now.",
			     path, rdo_path, path, rdo_path);
	}
	if (r && begun && (c.state == COW_MERGING || c.state == COW_MERGED))
		error(ctx, r, "%s: the merge is not complete; run the same command again to complete it.", path);
	file_close(&rdo);
	cow_close(&c);

	return r;
}
