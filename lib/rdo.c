// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the read-only device of a cowfile, and the fingerprint by which it is known.
 */

#include "rdo.h"

#include <stdlib.h>
#include <string.h>

#include "container.h"
#include "crc32c.h"

/* ---- Fingerprints ---- */

u64 cow_sample_offset(u64 size, unsigned int i)
{
	const u64 nr_blocks = size < COW_SAMPLE_SIZE ? 1 : size / COW_SAMPLE_SIZE;

	return (unsigned __int128)(nr_blocks - 1) * i / (COW_SAMPLES - 1) * COW_SAMPLE_SIZE;
}

/* CRC-32C of samples spread over the device. */
static int fingerprint_v2(struct cowloop_ctx *ctx, const struct file *rdo, const struct cowfile *masked,
			  u64 *fingerprint)
{
	const u64 size = rdo_sectors(rdo) * 512;
	u8 sample[COW_SAMPLE_SIZE];
	u32 crc = 0;
	int r;

	for (unsigned int i = 0; i < COW_SAMPLES; i++) {
		const u64 at = cow_sample_offset(size, i);
		bool set = false;

		memset(sample, 0, sizeof(sample));
		r = masked ? cow_unit_is_set(ctx, masked, at / masked->geo.mapunit, &set) : OK;
		if (!r && !set)
			r = file_read(ctx, rdo, at, sample, min_u64(size, COW_SAMPLE_SIZE));
		if (r)
			return r;
		crc = crc32c(crc, sample, sizeof(sample));
	}
	*fingerprint = crc;
	return OK;
}

/* The original's fingerprint of sums of blocks, as far as it has got. */
struct sums {
	u64 fingerprint;
	unsigned int found;	/* sums that are not zero, of four */
	u64 blocks[4];		/* whose they are */
};

/* Add the sums of the blocks from @start to @end, bytes. */
static int add_sums(struct cowloop_ctx *ctx, const struct file *rdo, u64 start, u64 end, struct sums *sums)
{
	u64 data_end;
	u8 *buf;
	int r = OK;

	buf = file_buffer(ctx);
	if (!buf)
		return NO_MEMORY;
	while (start < end && sums->found < 4 && !r) {
		u64 length;

		progress_update(ctx, start);

		/* Holes are zeroes, which don't count. */
		r = file_next_data(ctx, rdo, &start, &data_end, end);
		if (r || start >= end)
			break;
		start -= start % COW_V1_MAPUNIT;
		length = min_u64(end - start, FILE_CHUNK);
		r = file_read(ctx, rdo, start, buf, length);
		if (!r && is_cancelled(ctx))
			r = error(ctx, USAGE, "%s: interrupted.", rdo->path);

		for (u64 at = 0; at < length && sums->found < 4 && !r; at += COW_V1_MAPUNIT) {
			u8 sum = 0;

			for (unsigned int i = 0; i < COW_V1_MAPUNIT; i++)
				sum += buf[at + i];
			if (!sum)
				continue;
			/* Shifted as 32 bits, of which the highest is a sign. */
			sums->fingerprint |= (int64_t)(int32_t)((u32)sum << 8 * sums->found);
			sums->blocks[sums->found] = (start + at) / COW_V1_MAPUNIT;
			sums->found++;
		}
		start += length;
	}
	free(buf);
	return r;
}

static int fingerprint_v1(struct cowloop_ctx *ctx, const struct file *rdo, const struct cowfile *masked,
			  u64 *fingerprint)
{
	const u64 end = rdo->size - rdo->size % COW_V1_MAPUNIT;
	struct sums sums = { 0 };
	struct cow_runs runs;
	u64 at = 0, first, nr;
	int r = OK;

	/* Almost always it is the first few blocks, but all of a device that is all zeroes. */
	progress_start(ctx, rdo->path, end, "of fingerprint read");
	if (masked) {
		cow_runs_start(&runs, masked);
		while (!r && sums.found < 4 && cow_runs_next(ctx, &runs, &first, &nr)) {
			r = add_sums(ctx, rdo, at, first * COW_V1_MAPUNIT, &sums);
			at = (first + nr) * COW_V1_MAPUNIT;
		}
		r = cow_runs_end(&runs, r);
	}
	if (!r)
		r = add_sums(ctx, rdo, at, end, &sums);
	progress_end(ctx, false);
	*fingerprint = sums.fingerprint;

	return r;
}

int cow_fingerprint_blocks(struct cowloop_ctx *ctx, const struct file *rdo, u64 blocks[4], unsigned int *nr)
{
	const u64 end = rdo->size - rdo->size % COW_V1_MAPUNIT;
	struct sums sums = { 0 };
	int r;

	progress_start(ctx, rdo->path, end, "of fingerprint read");
	r = add_sums(ctx, rdo, 0, end, &sums);
	progress_end(ctx, false);
	memcpy(blocks, sums.blocks, sizeof(sums.blocks));
	*nr = sums.found;
	return r;
}

int cow_fingerprint(struct cowloop_ctx *ctx, const struct file *rdo, unsigned int format, const struct cowfile *masked,
		    u64 *fingerprint)
{
	return format == 1 ? fingerprint_v1(ctx, rdo, masked, fingerprint) :
			     fingerprint_v2(ctx, rdo, masked, fingerprint);
}

/* ---- The read-only device ---- */

static int check_rdo_size(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo)
{
	struct cow_geometry geo;

	cow_geometry_init(&geo, c->format, c->geo.mapunit, rdo_sectors(rdo));
	if (geo.rdo_sectors != c->geo.rdo_sectors)
		return error(ctx, WRONG, "%s: belongs to a read-only device of %llu sectors, and %s has %llu. Is it the right one?",
			     c->file.path, c->geo.rdo_sectors, rdo->path, geo.rdo_sectors);
	return OK;
}

static int check_fingerprint(struct cowloop_ctx *ctx, const struct cowfile *c, const struct file *rdo)
{
	const u64 made_for = le64(c->head.rdofingerprint);
	u64 is;
	int r;

	r = cow_fingerprint(ctx, rdo, c->format, c->state == COW_MERGING ? c : NULL, &is);
	if (!r && is != made_for)
		r = error(ctx, WRONG, "%s: belongs to another read-only device, or %s has changed: the cowfile was made for fingerprint 0x%016llx, and %s has 0x%016llx.",
			  c->file.path, rdo->path, made_for, rdo->path, is);
	return r;
}

/* Once a cowfile belongs to it, and may have changes, that is how it has to be used. */
static int warn_container(struct cowloop_ctx *ctx, const struct file *rdo)
{
	char *found;
	int r = container_text(ctx, rdo, &found);

	if (found)
		warn(ctx, "%s: %s.", rdo->path, found);
	free(found);
	return r;
}

int cow_open_rdo(struct cowloop_ctx *ctx, const struct cowfile *c, struct file *rdo, const char *path,
		 unsigned int file_flags)
{
	int r;

	*rdo = FILE_CLOSED;
	if (file_is_at(&c->file, path))
		return error(ctx, WRONG, "%s: cannot be the read-only device and the cowfile at the same time.", path);
	r = file_open(ctx, rdo, path, file_flags);
	if (!r)
		r = check_rdo_size(ctx, c, rdo);
	if (!r)
		r = check_fingerprint(ctx, c, rdo);
	if (!r)
		r = warn_container(ctx, rdo);
	if (r)
		file_close(rdo);
	return r;
}
