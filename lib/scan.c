// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what check and repair have in common.
 */

#include "scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"
#include "text.h"

/* ---- Data ---- */

/* Where the data area ends: with the device, or the file. */
static u64 data_end(const struct cowfile *c)
{
	const u64 end = c->geo.doffset + c->geo.rdo_sectors * 512;

	return c->file.size < end ? c->file.size : end;
}

/* Note the bytes of @buf, which are at @offset of the file, in @s. */
static void note_data(const struct cowfile *c, struct cow_scan *s, u64 offset, const u8 *buf,
		      u64 length)
{
	const u64 base = c->geo.doffset + s->sector * c->sector_units * c->geo.mapunit;
	u64 done, n;

	for (done = 0; done < length; done += n) {
		const u64 at = offset + done - base;
		const u32 unit = at / c->geo.mapunit;

		n = c->geo.mapunit - at % c->geo.mapunit;
		if (n > length - done)
			n = length - done;
		bit_assign(s->data, unit, true);
		if (!bit_is_set(s->nonzero, unit) && !all_zero(buf + done, n))
			bit_assign(s->nonzero, unit, true);
	}
}

int cow_scan_sector(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_scan *s)
{
	u64 start = c->geo.doffset + s->sector * c->sector_units * c->geo.mapunit;
	u64 end = start + (u64)c->sector_units * c->geo.mapunit, extent_end;
	u8 *buf;
	int r = OK;

	memset(s->data, 0, sizeof(s->data));
	memset(s->nonzero, 0, sizeof(s->nonzero));
	if (end > data_end(c))
		end = data_end(c);
	buf = file_buffer(ctx);
	if (!buf)
		return NO_MEMORY;
	while (!r && start < end) {
		r = file_next_data(ctx, &c->file, &start, &extent_end, end);
		while (!r && start < extent_end) {
			const u64 left = extent_end - start, n = min_u64(left, FILE_CHUNK);

			r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", c->file.path) :
						file_read(ctx, &c->file, start, buf, n);
			if (!r)
				note_data(c, s, start, buf, n);
			start += n;
		}
	}
	free(buf);
	return r;
}

int cow_scan_next(struct cowloop_ctx *ctx, const struct cowfile *c, u64 *sector)
{
	const u64 span = (u64)c->sector_units * c->geo.mapunit, end = data_end(c);
	u64 start, extent_end;
	int r;

	if (*sector >= c->nr_sectors || c->geo.doffset + *sector * span >= end) {
		*sector = c->nr_sectors;
		return OK;
	}
	start = c->geo.doffset + *sector * span;
	r = file_next_data(ctx, &c->file, &start, &extent_end, end);
	*sector = start >= end ? c->nr_sectors : (start - c->geo.doffset) / span;

	return r;
}

int cow_read_bits(struct cowloop_ctx *ctx, const struct cowfile *c, u64 sector, u8 *bits)
{
	return file_read(ctx, &c->file, c->geo.moffset + sector * COW_MAP_SECTOR, bits, c->sector_bytes);
}

u32 count_bits(const u8 *bits, u32 nr)
{
	u32 i, count = 0;

	for (i = 0; i + 8 <= nr; i += 8)
		count += __builtin_popcount(bits[i / 8]);
	for (; i < nr; i++)
		count += bit_is_set(bits, i);
	return count;
}

u64 cow_units_in_file(const struct cowfile *c)
{
	const u64 room = c->file.size > c->geo.doffset ? c->file.size - c->geo.doffset : 0;

	return room >= c->geo.rdo_sectors * 512 ? c->geo.nr_units : room / c->geo.mapunit;
}

/* ---- Heads ---- */

static int check_text(const u8 *field, size_t size, const char *id, const char *what,
		      struct cow_faults *faults)
{
	char text[sizeof(((struct cow_head *)0)->rdospec) + 1];
	size_t length;
	const char *wrong = NULL;

	memcpy(text, field, size);
	text[size] = 0;
	length = strlen(text);
	if (!all_zero(field + length, size - length))
		wrong = "has something behind its end";
	else if (!text_is_utf8(text))
		wrong = "is not UTF-8";
	if (!wrong)
		return OK;
	snprintf(text, sizeof(text), "the %s %s", what, wrong);
	faults->found(faults, id, text);
	return WRONG;
}

static int check_strictly_v1(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_faults *faults)
{
	const struct cow_merge_record *record;
	u8 head[COW_V1_MAPUNIT];
	int r = file_read(ctx, &c->file, 0, head, sizeof(head));

	/* The place of a record is looked at by record.c. */
	record = (const struct cow_merge_record *)(head + COW_RECORD_OFFSET);
	if (c->state == COW_MERGING || record_has_magic(record))
		memset(head + COW_RECORD_OFFSET, 0, COW_V1_RECORD_SIZE);
	if (!r && !all_zero(head + COW_V1_HEAD_SIZE, sizeof(head) - COW_V1_HEAD_SIZE)) {
		faults->found(faults, "padding", "the rest of the head is not zero");
		r = WRONG;
	}
	return r;
}

bool cow_uuid_is_random(const struct cow_head *head)
{
	return (head->uuid[6] & 0xf0) == 0x40 && (head->uuid[8] & 0xc0) == 0x80;
}

static int check_strictly_v2(const struct cowfile *c, struct cow_faults *faults)
{
	const struct cow_head *head = &c->head;
	int r = OK;

	if (!cow_uuid_is_random(head)) {
		faults->found(faults, "uuid", "the UUID is not a random one of RFC 4122");
		r = WRONG;
	}
	if (check_text(head->label, sizeof(head->label), "label", "label", faults))
		r = WRONG;
	if (check_text(head->rdospec, sizeof(head->rdospec), "rdo-spec",
		       "text that says where to find the read-only device", faults))
		r = WRONG;
	if (!all_zero(head->reserved, sizeof(head->reserved)) ||
	    !all_zero(head->reserved2, sizeof(head->reserved2))) {
		faults->found(faults, "reserved", "reserved bytes of the head are not zero");
		r = WRONG;
	}
	return r;
}

int cow_check_strictly(struct cowloop_ctx *ctx, const struct cowfile *c, struct cow_faults *faults)
{
	const unsigned int flags = le16(c->head.flags);
	char text[80];
	int r;

	r = c->format == 1 ? check_strictly_v1(ctx, c, faults) : check_strictly_v2(c, faults);
	if (flags & ~(COW_FLAG_DIRTY | COW_FLAG_PACKED)) {
		snprintf(text, sizeof(text), "unknown flags: found 0x%04x, expected none but 0x%04x",
			 flags, COW_FLAG_DIRTY | COW_FLAG_PACKED);
		faults->found(faults, "flags", text);
		r = WRONG;
	}
	if ((flags & COW_FLAG_DIRTY) && (flags & COW_FLAG_PACKED)) {
		faults->found(faults, "flags", "both packed and dirty");
		r = WRONG;
	}
	return r;
}
