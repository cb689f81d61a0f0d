// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: a cowfile of format 2 from one of format 1.
 *
 * The read-only device is needed for its exact size and its other fingerprint,
 * and because the units of format 2 are larger. Where only a part of one was
 * written, the rest comes from the device, as in a copy-up.
 *
 * The new cowfile is written beside the old one and takes its name when it is
 * complete: at any time the name leads to one of the two. To do it in place,
 * writing only what is not in use before a new head makes the switch, is not
 * possible as soon as a unit is used. Both bitmaps have their fixed places, at
 * 1024 and at 4096, and a bit that the new one needs lies in the old one, or in
 * the data. With no unit used the bitmaps are zeroes, both of them, and nothing
 * but the head has to be written.
 */

#include "cowfile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "changed.h"
#include "grow.h"
#include "newcow.h"
#include "rdo.h"
#include "size.h"

struct upgrade {
	const struct cowloop_new *how;
	const char *rdo_path;
	struct cowfile old;
	struct cowfile new;
	struct file rdo;
	u64 old_used;

	/* The bitmap sector that is being filled, in ascending order. */
	u64 sector;
	u8 bits[COW_V2_SECTOR_BYTES];
	u64 used;
	u64 next_unit;		/* one more than the last unit that was begun */
	u8 *buf;
};

/* ---- Units ---- */

static int flush_bits(struct cowloop_ctx *ctx, struct upgrade *up)
{
	if (all_zero(up->bits, sizeof(up->bits)))
		return OK;
	return cow_write_bits(ctx, &up->new, up->sector, up->bits);
}

static int set_bit(struct cowloop_ctx *ctx, struct upgrade *up, u64 unit)
{
	const u64 sector = unit / up->new.sector_units;
	int r = OK;

	if (sector != up->sector) {
		r = flush_bits(ctx, up);
		memset(up->bits, 0, sizeof(up->bits));
		up->sector = sector;
	}
	bit_assign(up->bits, unit % up->new.sector_units, true);
	up->used++;
	return r;
}

/* Copy bytes of the device from @from, where they begin at @base. */
static int copy(struct cowloop_ctx *ctx, struct upgrade *up, const struct file *from, u64 base, u64 start, u64 end)
{
	int r = OK;

	for (u64 at = start; at < end && !r; at += FILE_CHUNK) {
		const size_t n = min_u64(end - at, FILE_CHUNK);

		r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", up->old.file.path) :
					file_read(ctx, from, base + at, up->buf, n);
		if (!r)
			r = file_write(ctx, &up->new.file, up->new.geo.doffset + at, up->buf, n);
	}
	return r;
}

/* A unit of which the bytes from @start to @end will be written, perhaps not all of it. */
static int begin_unit(struct cowloop_ctx *ctx, struct upgrade *up, u64 unit, u64 start, u64 end)
{
	const u64 first = unit * up->new.geo.mapunit;
	const u64 last = first + cow_run_bytes(&up->new, unit, 1);

	if (unit < up->next_unit || (start <= first && end >= last))
		return OK;
	return copy(ctx, up, &up->rdo, 0, first, last);
}

/* A run of the old cowfile. */
static int convert_run(struct cowloop_ctx *ctx, struct upgrade *up, u64 first, u64 nr)
{
	const u64 start = first * COW_V1_MAPUNIT, end = (first + nr) * COW_V1_MAPUNIT;
	const u64 unit = start / up->new.geo.mapunit, last = (end - 1) / up->new.geo.mapunit;
	int r;

	r = begin_unit(ctx, up, unit, start, end);
	if (!r && last != unit)
		r = begin_unit(ctx, up, last, start, end);
	if (!r)
		r = copy(ctx, up, &up->old.file, up->old.geo.doffset, start, end);
	for (u64 u = unit < up->next_unit ? up->next_unit : unit; u <= last && !r; u++)
		r = set_bit(ctx, up, u);
	up->next_unit = last + 1;

	return r;
}

static int convert(struct cowloop_ctx *ctx, struct upgrade *up)
{
	struct cow_runs runs;
	u64 first, nr, done = 0;
	int r;

	up->buf = file_buffer(ctx);
	r = up->buf ? OK : NO_MEMORY;
	progress_start(ctx, up->old.file.path, up->old_used * COW_V1_MAPUNIT, "converted");
	cow_runs_start(&runs, &up->old);
	while (!r && cow_runs_next(ctx, &runs, &first, &nr)) {
		r = convert_run(ctx, up, first, nr);
		done += nr;
		progress_update(ctx, done * COW_V1_MAPUNIT);
	}
	r = cow_runs_end(&runs, r);
	if (!r)
		r = flush_bits(ctx, up);
	progress_end(ctx, !r);
	free(up->buf);

	return r ? r : cow_write_head(ctx, &up->new, COW_CLEAN, up->used);
}

/* ---- Where to ---- */

/* No unit is used: nothing in the file is of any use but the head. */
static int upgrade_in_place(struct cowloop_ctx *ctx, struct upgrade *up)
{
	const struct cow_geometry *geo = &up->new.geo;
	const u64 need = geo->moffset + geo->mapsize;
	int r = OK;

	up->new.file = up->old.file;
	if (!up->new.file.block)
		r = grow_file(ctx, &up->new.file, cow_full_size(geo));
	else if (up->new.file.size < need)
		r = error(ctx, WRONG, "%s: too small for the bitmap of format 2: found %s, expected %s and room for data.",
			  up->new.file.path, size_text(up->new.file.size), size_text(need));
	if (!r)
		r = file_zero(ctx, &up->new.file, geo->moffset, geo->mapsize);
	if (!r)
		r = cow_write_head(ctx, &up->new, COW_CLEAN, 0);
	up->old.file.size = up->new.file.size;

	return r;
}

static int upgrade_to_device(struct cowloop_ctx *ctx, struct upgrade *up, const char *path)
{
	int r = file_open(ctx, &up->new.file, path, FILE_WRITE | FILE_EXCLUSIVE);

	if (!r)
		r = refuse_overwrite(ctx, &up->new.file, "--force", up->how->force);
	if (!r && up->new.file.size < cow_full_size(&up->new.geo))
		r = error(ctx, WRONG, "%s: too small: found %s, expected %s.", path, size_text(up->new.file.size),
			  size_text(cow_full_size(&up->new.geo)));
	if (!r)
		r = blank_cow(ctx, &up->new.file, &up->new.geo);
	if (!r)
		r = convert(ctx, up);
	file_close(&up->new.file);
	return r;
}

/* To @path, replacing @there unless that is NULL. */
static int upgrade_to_file(struct cowloop_ctx *ctx, struct upgrade *up, const char *path, const struct replaced *there)
{
	struct stat replaced, source;
	struct new_file new;
	int r;

	if (fstat(up->old.file.fd, &source) || (there && fstat(there->file.fd, &replaced)))
		return error_errno(ctx, "%s", there ? path : up->old.file.path);
	r = new_file_create(ctx, &new, path, there ? &replaced : NULL, &source, up->how->force);
	if (!r) {
		up->new.file = new.file;
		r = blank_cow(ctx, &up->new.file, &up->new.geo);
	}
	if (!r)
		r = convert(ctx, up);
	if (!r && there)
		r = replaced_check(ctx, there, new.target);
	if (!r)
		r = new_file_commit(ctx, &new, there);
	new_file_abort(&new);
	up->new.file = FILE_CLOSED;

	return r;
}

static int upgrade_to(struct cowloop_ctx *ctx, struct upgrade *up, const char *path)
{
	struct replaced there;
	struct stat st;
	int r;

	if (stat(path, &st))
		return upgrade_to_file(ctx, up, path, NULL);
	if (S_ISBLK(st.st_mode))
		return upgrade_to_device(ctx, up, path);
	r = replaced_open(ctx, &there, path, FILE_WRITE, up->how->force);
	if (r)
		return r;
	r = upgrade_to_file(ctx, up, path, &there);
	file_close(&there.file);
	return r;
}

static int upgrade(struct cowloop_ctx *ctx, struct upgrade *up, const char *new_path)
{
	struct replaced old;
	int r;

	if (new_path)
		return upgrade_to(ctx, up, new_path);
	if (!up->old_used)
		return upgrade_in_place(ctx, up);
	if (!up->old.file.block) {
		r = replaced_hold(ctx, &old, &up->old.file);
		return r ? r : upgrade_to_file(ctx, up, up->old.file.path, &old);
	}
	return error(ctx, WRONG, "%s: a cowfile on a device that has units in use cannot be upgraded in place, since the new bitmap would overwrite the old one; name a file or a device for the new cowfile.",
		     up->old.file.path);
}

/* ---- The whole ---- */

static int prepare(struct cowloop_ctx *ctx, struct upgrade *up)
{
	struct cow_geometry geo;
	u64 end, fingerprint;
	int r;

	r = cow_open_rdo(ctx, &up->old, &up->rdo, up->rdo_path, FILE_READ | FILE_SHARED);
	if (!r)
		r = cow_count(ctx, &up->old, &up->old_used, &end);
	if (!r)
		r = cow_check_end(ctx, &up->old, end);
	if (!r)
		r = choose_geometry(ctx, &up->rdo, 2, up->how->mapunit, &geo);
	if (!r)
		r = cow_fingerprint(ctx, &up->rdo, 2, NULL, &fingerprint);
	if (r)
		return r;
	cow_new_head(&up->new, &geo, fingerprint);
	set_new_names(&up->new.head, up->how);
	changed_remember(&up->new.head, &up->rdo);
	return OK;
}

/* Has somebody taken one for the other? */
static void hint_swapped(struct cowloop_ctx *ctx, const char *rdo_path, const char *cow_path)
{
	struct cow_head head = { 0 };
	struct file f;

	if (!file_open(ctx, &f, rdo_path, FILE_READ) && !file_read_padded(ctx, &f, 0, &head, sizeof(head)) &&
	    le32(head.magic) == COW_MAGIC)
		warn(ctx, "%s, which --rdo names, is a cowfile; the other way round it is: cowsetup upgrade --rdo %s %s.",
		     rdo_path, cow_path, rdo_path);
	file_close(&f);
}

/* There is nothing to be done, unless something else was wanted: then that has not been done. */
static int upgraded_already(struct cowloop_ctx *ctx, const char *path, const char *new_path,
			    const struct cowloop_new *how)
{
	if (new_path)
		return error(ctx, WRONG, "%s: format 2 already; %s was not made, which would be a mere copy (cp --sparse=always).",
			     path, new_path);
	if (how->mapunit || how->label || how->rdo_spec)
		return error(ctx, WRONG, "%s: format 2 already, and nothing was changed: --mapunit, --label and --rdo-spec are for what is upgraded.",
			     path);
	tell(ctx, "%s: format 2 already.", path);
	return OK;
}

int cowloop_upgrade(struct cowloop_ctx *ctx, const char *path, const char *rdo_path, const char *new_path,
		    const struct cowloop_new *how)
{
	struct upgrade up = { .how = how, .rdo_path = rdo_path, .new.file = FILE_CLOSED, .rdo = FILE_CLOSED };
	int r;

	r = check_new_options(ctx, how, 2);
	if (r)
		return r;
	/* By any path or link, and --force or not: it is needed to the end, and is not ours. */
	if (new_path && file_same_path(rdo_path, new_path))
		return error(ctx, WRONG, "upgrade: %s is the read-only device, %s; name another file for the new cowfile.",
			     new_path, rdo_path);
	if (new_path && file_same_path(path, new_path))
		return error(ctx, USAGE, "upgrade: %s and %s are the same; leave the second one out.", path, new_path);

	r = cow_open(ctx, &up.old, path, (new_path ? FILE_READ : FILE_WRITE) | FILE_EXCLUSIVE, 0);
	if (r) {
		if (!up.old.format)
			hint_swapped(ctx, rdo_path, path);
		return r;
	}
	if (up.old.format == 2) {
		r = upgraded_already(ctx, path, new_path, how);
		cow_close(&up.old);
		return r;
	}
	r = prepare(ctx, &up);
	if (!r)
		r = upgrade(ctx, &up, new_path);
	if (!r)
		tell(ctx, "%s: upgraded%s%s: %llu units of 1 KiB are %llu of %s.", path,
		     new_path ? " into " : "", new_path ? new_path : "", up.old_used, up.used,
		     size_text(up.new.geo.mapunit));
	file_close(&up.rdo);
	cow_close(&up.old);

	return r;
}
