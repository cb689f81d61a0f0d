// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: cowfiles without their holes, for transport.
 *
 * A packed file is the head with PACKED set, the bitmap, and from doffset on
 * the units that are in the cowfile, without gaps. It is written and read from
 * its beginning to its end, and may be compressed as a whole. In format 2 the
 * head's checksum is that of the packed head, and the last unit, should it be a
 * partial one, is filled up with zeroes.
 *
 * Format 1 is what the original's cowpack makes and takes, and that ends with
 * the bitmap when there is no unit. Its -z does not compress this, but the same
 * without what is between: the head's 56 bytes, the bitmap and the units follow
 * one another. That is COWLOOP_COMPRESS_COWPACK. The original would take one for the
 * other, and make a wrong cowfile of it; here both are taken.
 *
 * When it is unpacked the bitmap goes to the new cowfile first, and is checked
 * and read from there to see where the units belong that follow. So a bitmap
 * is never in memory, and the head is written after everything else.
 */

#include "cowfile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "newcow.h"
#include "size.h"
#include "stream.h"

/* Bytes of the head that are stored. */
static size_t head_size(const struct cowfile *c)
{
	return c->format == 1 ? COW_V1_HEAD_SIZE : sizeof(c->head);
}

/* ---- pack ---- */

/* The bitmap, without bits that belong to no unit. */
static int pack_map(struct cowloop_ctx *ctx, const struct cowfile *c, struct out_stream *out)
{
	u8 bits[COW_V1_SECTOR_BYTES], data[COW_MAP_SECTOR];
	struct cow_map m;
	u64 sector = 0;
	int r = OK;

	cow_map_start(&m, c);
	while (!r && cow_map_next(ctx, &m)) {
		u32 nr;

		cow_sector_units(c, m.sector, &nr);
		memcpy(bits, m.bits, c->sector_bytes);
		for (u32 i = nr; i < c->sector_units; i++)
			bit_assign(bits, i, false);
		cow_encode_bits(c, m.sector, bits, data);
		r = out_zeroes(ctx, out, (m.sector - sector) * COW_MAP_SECTOR);
		if (!r)
			r = out_write(ctx, out, data, sizeof(data));
		sector = m.sector + 1;
	}
	cow_map_end(&m);
	if (!r)
		r = m.error;
	return r ? r : out_zeroes(ctx, out, (c->nr_sectors - sector) * COW_MAP_SECTOR);
}

static int pack_units(struct cowloop_ctx *ctx, const struct cowfile *c, struct out_stream *out)
{
	u8 *buf = file_buffer(ctx);
	struct cow_runs runs;
	u64 first, nr, done = 0;
	int r = buf ? OK : NO_MEMORY;

	cow_runs_start(&runs, c);
	while (!r && cow_runs_next(ctx, &runs, &first, &nr)) {
		const u64 start = c->geo.doffset + first * c->geo.mapunit;
		const u64 bytes = cow_run_bytes(c, first, nr);

		for (u64 at = 0; at < bytes && !r; at += FILE_CHUNK) {
			const size_t n = min_u64(bytes - at, FILE_CHUNK);

			r = file_read(ctx, &c->file, start + at, buf, n);
			if (!r)
				r = out_write(ctx, out, buf, n);
			done += n;
			progress_update(ctx, done);
		}
		if (!r)
			r = out_zeroes(ctx, out, nr * c->geo.mapunit - bytes);
	}
	r = cow_runs_end(&runs, r);
	free(buf);

	return r;
}

static int pack_head(struct cowloop_ctx *ctx, const struct cowfile *c, struct out_stream *out, u64 used)
{
	struct cowfile packed = *c;

	cow_finish_head(&packed, COW_PACKED, used);
	return out_write(ctx, out, &packed.head, head_size(c));
}

static int pack(struct cowloop_ctx *ctx, const struct cowfile *c, struct out_stream *out, bool gaps, u64 used)
{
	int r = pack_head(ctx, c, out, used);

	if (!r && gaps)
		r = out_zeroes(ctx, out, c->geo.moffset - head_size(c));
	if (!r)
		r = pack_map(ctx, c, out);
	/* A head may say that units, had it any, begin at the end of the world. */
	if (!r && gaps && used)
		r = out_zeroes(ctx, out, c->geo.doffset - c->geo.moffset - c->geo.mapsize);
	return r ? r : pack_units(ctx, c, out);
}

/* By any path or link, and --force or not: it would be read while it is written. */
static int check_both(struct cowloop_ctx *ctx, const char *action, const char *from, const char *to)
{
	if (strcmp(from, "-") && strcmp(to, "-") && file_same_path(from, to))
		return error(ctx, USAGE, "%s: %s and %s are the same; name another file for what it makes.",
			     action, from, to);
	return OK;
}

/* A file that is there already is held in @old until it is replaced, for which one need not be allowed to write it. */
static int check_target(struct cowloop_ctx *ctx, const char *path, bool force, struct replaced *old)
{
	struct stat st;

	if (!strcmp(path, "-") || stat(path, &st))
		return OK;
	if (!S_ISREG(st.st_mode))
		return error(ctx, WRONG, "%s: not a file; a packed cowfile is a file, or - for stdout.", path);
	if (!force)
		return error(ctx, BUSY, "%s: exists already; --force overwrites it.", path);
	return replaced_open(ctx, old, path, FILE_READ, force);
}

int cowloop_pack(struct cowloop_ctx *ctx, const char *cow, const char *to, const struct cowloop_pack *how)
{
	const bool gaps = how->compress != COWLOOP_COMPRESS_COWPACK;
	struct replaced old = { .file = FILE_CLOSED };
	struct stat source, replaced;
	struct out_stream *out;
	struct cowfile c;
	u64 used, end;
	int r;

	r = check_both(ctx, "pack", cow, to);
	if (r)
		return r;
	r = cow_open(ctx, &c, cow, FILE_READ | FILE_EXCLUSIVE, 0);
	if (!r && c.format != 1 && !gaps)
		r = error(ctx, USAGE, "%s: --compress cowpack is for cowfiles of format 1; this is one of format %u.",
			  cow, c.format);
	if (!r)
		r = cow_count(ctx, &c, &used, &end);
	if (!r)
		r = cow_check_end(ctx, &c, end);
	if (!r)
		r = check_target(ctx, to, how->force, &old);
	if (!r && (fstat(c.file.fd, &source) || (old.file.fd >= 0 && fstat(old.file.fd, &replaced))))
		r = error_errno(ctx, "%s: cannot be examined", cow);
	if (!r) {
		out = out_open(ctx, to, gaps ? how->compress : COWLOOP_COMPRESS_GZIP,
			       old.file.fd < 0 ? NULL : &replaced,
			       &source, how->force, &r);
		if (out) {
			progress_start(ctx, cow, used * c.geo.mapunit, "packed");
			r = pack(ctx, &c, out, gaps, used);
			r = out_close(ctx, out, r, old.file.fd < 0 ? NULL : &old);
			progress_end(ctx, !r);
		}
	}
	file_close(&old.file);
	cow_close(&c);
	if (!r)
		verbose(ctx, "%s: packed %llu units (%s) into %s.", cow, used,
			size_text(used * c.geo.mapunit), to);
	return r;
}

/* ---- unpack ---- */

struct head_faults {
	struct cow_faults faults;
	struct cowloop_ctx *ctx;
	const char *path;
	bool found;
};

static void found_fault(struct cow_faults *faults, const char *id, const char *text)
{
	struct head_faults *h = (struct head_faults *)faults;
	struct cowloop_ctx *ctx = h->ctx;

	(void)id;
	h->found = true;
	error(ctx, WRONG, "%s: %s.", h->path, text);
}

/* Does it end where it does with nothing between the head, the bitmap and the units? */
static int ends_without_gaps(struct cowloop_ctx *ctx, const struct cowfile *c, struct in_stream *in, const char *path,
			     bool *ends)
{
	const u64 length = head_size(c) + c->geo.mapsize + le64(c->head.cowused) * c->geo.mapunit;
	int r = in_rewind(ctx, in);

	progress_start(ctx, path, length, "read");
	for (u64 at = 0; at < length && !r; at += FILE_CHUNK) {
		r = in_skip(ctx, in, min_u64(length - at, FILE_CHUNK));
		progress_update(ctx, at);
	}
	if (!r)
		r = in_at_end(ctx, in, ends);
	progress_end(ctx, !r);
	return r ? r : in_rewind(ctx, in);
}

/*
 * Is there anything between the head, the bitmap and the units? What looks like
 * a gap may be the bitmap's beginning: then the length tells.
 */
static int find_gaps(struct cowloop_ctx *ctx, const struct cowfile *c, struct in_stream *in, const char *path,
		     const u8 start[IN_PEEK], bool *gaps)
{
	bool ends;
	int r;

	*gaps = true;
	if (c->format != 1 || in_compressed(in) != COWLOOP_COMPRESS_GZIP)
		return OK;
	*gaps = all_zero(start + COW_V1_HEAD_SIZE, IN_PEEK - COW_V1_HEAD_SIZE);
	if (!*gaps)
		return OK;
	r = ends_without_gaps(ctx, c, in, path, &ends);
	*gaps = r || !ends;
	return r;
}

static int read_head(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, const char *path, bool *gaps)
{
	struct head_faults faults = { .faults.found = found_fault, .ctx = ctx, .path = path };
	u8 start[IN_PEEK];
	int r = in_peek(ctx, in, start);

	if (r)
		return r;
	memcpy(&c->head, start, sizeof(c->head));
	/* How long it is, is seen when it ends. */
	c->file = (struct file){ .fd = -1, .path = path, .size = UINT64_MAX };
	r = cow_check_head(c, &faults.faults);
	if (!r && faults.found)
		r = WRONG;
	if (!r && c->state != COW_PACKED)
		r = error(ctx, WRONG, "%s: this is a cowfile, but not a packed one.", path);
	if (!r && le16(c->head.flags) & COW_FLAG_DIRTY)
		r = error(ctx, WRONG, "%s: both packed and dirty, which cannot be.", path);
	if (!r)
		r = find_gaps(ctx, c, in, path, start, gaps);
	if (r)
		return r;
	memset((u8 *)&c->head + head_size(c), 0, sizeof(c->head) - head_size(c));
	return in_skip(ctx, in, head_size(c));
}

static int unpack_map(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, bool gaps)
{
	u8 data[65536];
	u64 at;
	int r = gaps ? in_skip(ctx, in, c->geo.moffset - head_size(c)) : OK;

	for (at = 0; at < c->geo.mapsize && !r; at += sizeof(data)) {
		const u64 left = c->geo.mapsize - at;
		const size_t n = min_u64(left, sizeof(data));

		r = in_read(ctx, in, data, n);
		if (!r && !all_zero(data, n))
			r = file_write(ctx, &c->file, c->geo.moffset + at, data, n);
	}
	return r;
}

/* Where nothing has been written yet there are zeroes in a file, which take no space; a device has anything. */
static int write_data(struct cowloop_ctx *ctx, const struct file *f, u64 offset, const u8 *buf, size_t length)
{
	const size_t block = 4096;
	size_t start = 0, end;
	int r = OK;

	if (f->block)
		return file_write(ctx, f, offset, buf, length);
	while (start < length && !r) {
		end = start;
		while (end < length && !all_zero(buf + end, min_u64(block, length - end)))
			end += min_u64(block, length - end);
		if (end > start)
			r = file_write(ctx, f, offset + start, buf + start, end - start);
		start = end + block;
	}
	return r;
}

/* How much the packed file says there is; what is claimed costs whoever claims it nothing. */
static int check_size(struct cowloop_ctx *ctx, const struct cowfile *c, u64 used, const char *from, u64 max_size)
{
	const u64 bytes = used * c->geo.mapunit;

	/* The bitmap is not written where it is zeroes, but read to its end. */
	if (!max_size || (c->geo.mapsize <= max_size && bytes <= max_size - c->geo.mapsize))
		return OK;
	return error(ctx, WRONG, "%s: unpacked, it is too large: found %s of data and %s of bitmap, expected at most %s together (--max-size).",
		     from, size_text(bytes), size_text(c->geo.mapsize), size_text(max_size));
}

static int unpack_run(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, u8 *buf, u64 first, u64 nr)
{
	const u64 start = c->geo.doffset + first * c->geo.mapunit, bytes = nr * c->geo.mapunit;
	/* The zeroes that the last unit was filled up with have no place on a device. */
	const u64 wanted = cow_run_bytes(c, first, nr);
	int r = OK;

	for (u64 at = 0; at < bytes && !r; at += FILE_CHUNK) {
		const size_t n = min_u64(bytes - at, FILE_CHUNK);

		r = in_read(ctx, in, buf, n);
		if (!r && at < wanted)
			r = write_data(ctx, &c->file, start + at, buf, min_u64(wanted - at, n));
	}
	return r;
}

static int unpack_units(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, u64 used)
{
	u8 *buf = file_buffer(ctx);
	struct cow_runs runs;
	u64 first, nr, done = 0;
	int r = buf ? OK : NO_MEMORY;

	progress_start(ctx, c->file.path, used * c->geo.mapunit, "unpacked");
	cow_runs_start(&runs, c);
	while (!r && cow_runs_next(ctx, &runs, &first, &nr)) {
		r = unpack_run(ctx, c, in, buf, first, nr);
		done += nr;
		progress_update(ctx, done * c->geo.mapunit);
	}
	r = cow_runs_end(&runs, r);
	progress_end(ctx, !r);
	free(buf);

	return r;
}

/* Everything behind the head, into c->file, which is blank. */
static int unpack(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, bool gaps, const char *from,
		  u64 max_size)
{
	u64 used, end;
	bool at_end;
	int r;

	r = unpack_map(ctx, c, in, gaps);
	if (!r)
		r = cow_count(ctx, c, &used, &end);
	if (!r)
		r = cow_check_end(ctx, c, end);
	if (!r)
		r = check_size(ctx, c, used, from, max_size);
	/* The original ends it with the bitmap when there is no unit. */
	if (!r && used && gaps)
		r = in_skip(ctx, in, c->geo.doffset - c->geo.moffset - c->geo.mapsize);
	if (!r)
		r = unpack_units(ctx, c, in, used);
	if (!r)
		r = in_at_end(ctx, in, &at_end);
	if (!r && !at_end && used)
		warn(ctx, "%s: goes on behind the last unit; what is there was left out.", from);
	return r ? r : cow_write_head(ctx, c, COW_CLEAN, used);
}

/* Into a device: in place. */
static int unpack_to_device(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, bool gaps,
			    const char *from, const char *path, const struct cowloop_unpack *how)
{
	int r = file_open(ctx, &c->file, path, FILE_WRITE | FILE_EXCLUSIVE);

	if (!r)
		r = refuse_overwrite(ctx, &c->file, "--force", how->force);
	if (!r)
		r = blank_cow(ctx, &c->file, &c->geo);
	return r ? r : unpack(ctx, c, in, gaps, from, how->max_size);
}

/* Into a file: a new one. */
static int unpack_to_file(struct cowloop_ctx *ctx, struct cowfile *c, struct in_stream *in, bool gaps,
			  const char *from, const char *path, const struct cowloop_unpack *how)
{
	struct replaced old = { .file = FILE_CLOSED };
	struct new_file new;
	const bool replace = !access(path, F_OK);
	struct stat st;
	int r = OK;

	if (replace)
		r = replaced_open(ctx, &old, path, FILE_WRITE, how->force);
	if (!r && replace && fstat(old.file.fd, &st))
		r = error_errno(ctx, "%s", path);
	if (r) {
		file_close(&old.file);
		return r;
	}
	r = new_file_create(ctx, &new, path, replace ? &st : NULL, NULL, how->force);
	if (!r) {
		c->file = new.file;
		r = blank_cow(ctx, &c->file, &c->geo);
	}
	if (!r)
		r = unpack(ctx, c, in, gaps, from, how->max_size);
	if (!r && replace)
		r = replaced_check(ctx, &old, new.target);
	if (!r)
		r = new_file_commit(ctx, &new, replace);
	new_file_abort(&new);
	file_close(&old.file);
	c->file = FILE_CLOSED;

	return r;
}

int cowloop_unpack(struct cowloop_ctx *ctx, const char *from, const char *cow, const struct cowloop_unpack *how)
{
	struct cowfile c = { .file = FILE_CLOSED };
	struct in_stream *in;
	bool gaps;
	struct stat st;
	int r;

	if (!strcmp(cow, "-"))
		return error(ctx, USAGE, "unpack: a cowfile cannot be written to stdout; name a file or a device.");
	r = check_both(ctx, "unpack", from, cow);
	if (r)
		return r;
	in = in_open(ctx, from, &r);
	if (!in)
		return r;
	r = read_head(ctx, &c, in, from, &gaps);
	/* As far as the head tells, before anything is made. */
	if (!r)
		r = check_size(ctx, &c, 0, from, how->max_size);
	if (!r)
		r = !stat(cow, &st) && !S_ISREG(st.st_mode) ?
		    unpack_to_device(ctx, &c, in, gaps, from, cow, how) :
		    unpack_to_file(ctx, &c, in, gaps, from, cow, how);
	in_close(in);
	cow_close(&c);
	if (!r)
		verbose(ctx, "%s: unpacked into %s: %llu units (%s).", from, cow,
			le64(c.head.cowused), size_text(le64(c.head.cowused) * c.geo.mapunit));
	return r;
}
