// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the cowfile on disk, both formats.
 *
 * A cowfile may come from anywhere, so all that its head says is checked before
 * it is used for anything, and no amount of memory or time depends on it: the
 * bitmap is read in pieces, its holes are skipped, and it must lie within the
 * file. The largest size that is believed leaves room for every sum and product
 * of 64 bits that is made here.
 */

#include "cowfile.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uuid/uuid.h>

#include "crc32c.h"
#include "size.h"
#include "stream.h"
#include "text.h"

/* ---- Checksums ---- */

u32 cow_sector_csum(const u8 *bits, u64 sector)
{
	const u64 index = htole64(sector);

	return crc32c(crc32c(0, bits, COW_V2_SECTOR_BYTES), &index, sizeof(index));
}

static u32 head_csum(const struct cow_head *head)
{
	return crc32c(0, head, offsetof(struct cow_head, csum));
}

/* ---- Geometry ---- */

void cow_set_geometry(struct cowfile *c, const struct cow_geometry *geo)
{
	c->geo = *geo;
	c->format = geo->format;
	c->sector_bytes = geo->format == 1 ? COW_V1_SECTOR_BYTES : COW_V2_SECTOR_BYTES;
	c->sector_units = c->sector_bytes * 8;
	c->nr_sectors = geo->mapsize / COW_MAP_SECTOR;
}

u64 cow_full_size(const struct cow_geometry *geo)
{
	return geo->doffset + geo->nr_units * geo->mapunit;
}

void cow_warn_short(struct cowloop_ctx *ctx, const struct cow_geometry *geo, const struct file *f)
{
	const u64 room = f->size > geo->doffset ? (f->size - geo->doffset) / geo->mapunit * geo->mapunit : 0;

	if (f->block && f->size < cow_full_size(geo))
		warn(ctx, "%s: has room for changes in the first %s of the device only; in the other %s writes will get ENOSPC.",
		     f->path, size_text(room), size_text(geo->rdo_sectors * 512 - room));
}

u64 cow_sector_units(const struct cowfile *c, u64 sector, u32 *nr)
{
	const u64 first = sector * c->sector_units;

	if (first >= c->geo.nr_units)
		*nr = 0;
	else if (c->geo.nr_units - first < c->sector_units)
		*nr = c->geo.nr_units - first;
	else
		*nr = c->sector_units;
	return first;
}

/* ---- Heads ---- */

const char *cow_state_text(enum cow_state state)
{
	static const char *const texts[] = {
		[COW_CLEAN] = "clean",
		[COW_DIRTY] = "dirty",
		[COW_PACKED] = "packed",
		[COW_MERGING] = "merging",
		[COW_MERGED] = "merged",
	};

	return texts[state];
}

int cow_fault(struct cow_faults *faults, const char *id, const char *fmt, ...)
{
	va_list ap;
	char *text;

	va_start(ap, fmt);
	text = text_vof(fmt, ap);
	va_end(ap);
	/* Without memory for more the word says it. */
	faults->found(faults, id, text ? text : id);
	free(text);

	return WRONG;
}

/* Tell what is in a compressed file, and how to get at it. */
static int check_compressed(const struct cowfile *c, enum cowloop_compress compress, struct cow_faults *faults)
{
	const char *how = compress == COWLOOP_COMPRESS_GZIP ? "gzip" : "zstd";
	struct cow_head head;
	char *word;

	/* Without a file this is a part of a stream that was decompressed once. */
	if (c->file.fd < 0)
		return cow_fault(faults, "compressed", "this is compressed twice: %s -d first, then unpack it", how);
	if (!in_look(&c->file, &head, sizeof(head)) || le32(head.magic) != COW_MAGIC)
		return cow_fault(faults, "compressed", "this is %s data, and no cowfile is in it", how);
	if (!(le16(head.flags) & COW_FLAG_PACKED))
		return cow_fault(faults, "compressed", "this is %s of a cowfile that is not a packed one: %s -d first", how, how);
	word = text_word(c->file.path);
	cow_fault(faults, "compressed", "this is %s of a packed cowfile of format %u, unpack it first: cowsetup unpack %s NEW.cow",
		  how, le16(head.version), word ? word : c->file.path);
	free(word);
	return WRONG;
}

/* The advice where the bitmap is damaged. */
static const char *bitmap_help(const struct cowfile *c)
{
	return c->state == COW_PACKED ? "a packed file is not repaired: get another copy of it" : "see cowsetup repair";
}

static int check_magic(const struct cowfile *c, struct cow_faults *faults)
{
	const u32 magic = le32(c->head.magic);
	char *contents = NULL;

	if (magic == COW_MAGIC)
		return OK;
	/* Other contents may begin with zeroes: ext4 does. */
	if (!file_contents(&c->file, &contents) && contents) {
		cow_fault(faults, "magic", "not a cowfile: found %s", contents);
		free(contents);
		return WRONG;
	}
	if (all_zero(&c->head, sizeof(c->head)))
		return cow_fault(faults, "blank", "not a cowfile: it begins with zeroes");
	return cow_fault(faults, "magic", "not a cowfile: found magic 0x%08x, expected 0x%08x", magic, COW_MAGIC);
}

static enum cow_state state_of(const struct cow_head *head, unsigned int format)
{
	const unsigned int version = le16(head->version), flags = le16(head->flags);
	const u32 incompat = le32(head->incompat);

	if (format == 1 ? version == COW_V1_MERGED : incompat & COW_INCOMPAT_MERGED)
		return COW_MERGED;
	if (format == 1 ? version == COW_V1_MERGING : incompat & COW_INCOMPAT_MERGING)
		return COW_MERGING;
	if (flags & COW_FLAG_PACKED)
		return COW_PACKED;
	return flags & COW_FLAG_DIRTY ? COW_DIRTY : COW_CLEAN;
}

/* Check the fields that both formats have, once the geometry has been worked out. */
static int check_layout(struct cowfile *c, const struct cow_geometry *geo,
			struct cow_faults *faults)
{
	int r = OK;
	u64 found;

	found = le64(c->head.rdoblocks);
	if (found != geo->nr_units)
		r = cow_fault(faults, "rdoblocks", "found rdoblocks %llu, expected %llu, as follows from the size of the read-only device",
			      found, geo->nr_units);
	found = le64(c->head.mapsize);
	if (found != geo->mapsize)
		r = cow_fault(faults, "mapsize", "found mapsize %llu, expected %llu, as follows from the number of units",
			      found, geo->mapsize);
	if (c->file.size < geo->moffset + geo->mapsize)
		r = cow_fault(faults, "short", "the file ends at %llu, its bitmap at %llu",
			      c->file.size, geo->moffset + geo->mapsize);
	return r;
}

static int check_count(struct cowfile *c, struct cow_faults *faults)
{
	const u64 used = le64(c->head.cowused);

	if (c->state != COW_DIRTY && used > c->geo.nr_units)
		cow_fault(faults, "cowused", "found cowused %llu, expected at most %llu",
			  used, c->geo.nr_units);
	return OK;
}

static int check_head_v1(struct cowfile *c, struct cow_faults *faults)
{
	const u64 nr_units = le64(c->head.rdoblocks);
	struct cow_geometry geo;
	int r = OK;
	u64 found;

	c->state = state_of(&c->head, 1);
	if (nr_units > COW_MAX_BYTES / COW_V1_MAPUNIT || !nr_units)
		return cow_fault(faults, "rdoblocks", "found rdoblocks %llu, expected 1 to %llu",
				 nr_units, COW_MAX_BYTES / COW_V1_MAPUNIT);
	cow_geometry_init(&geo, 1, COW_V1_MAPUNIT, nr_units * (COW_V1_MAPUNIT / 512));
	cow_set_geometry(c, &geo);

	found = le64(c->head.mapunit);
	if (found != COW_V1_MAPUNIT)
		r = cow_fault(faults, "mapunit", "found mapunit %llu, expected %u", found, COW_V1_MAPUNIT);
	if (check_layout(c, &geo, faults))
		r = WRONG;
	found = le64(c->head.doffset);
	if (found != geo.doffset)
		r = cow_fault(faults, "doffset", "found doffset %llu, expected %llu", found, geo.doffset);

	return r ? r : check_count(c, faults);
}

static int check_head_v2(struct cowfile *c, struct cow_faults *faults)
{
	const u32 csum = le32(c->head.csum), expected = head_csum(&c->head);
	const u64 sectors = le64(c->head.rdosectors);
	struct cow_geometry geo;
	u64 found, align;
	u32 unknown;
	int r = OK;

	c->state = state_of(&c->head, 2);
	if (csum != expected)
		r = cow_fault(faults, "head-csum", "the head is damaged: found checksum 0x%08x, expected 0x%08x",
			      csum, expected);
	unknown = le32(c->head.incompat) & ~(COW_INCOMPAT_KNOWN | COW_INCOMPAT_TOOLS);
	if (unknown)
		return cow_fault(faults, "incompat", "it needs features that this version lacks: found incompat 0x%08x, expected none but 0x%08x",
				 le32(c->head.incompat), COW_INCOMPAT_KNOWN | COW_INCOMPAT_TOOLS);

	found = le64(c->head.mapunit);
	if (!cow_v2_mapunit_valid(found))
		return cow_fault(faults, "mapunit", "found mapunit %llu, expected a power of two from %u to %u",
				 found, COW_V2_MAPUNIT, COW_V2_MAPUNIT_MAX);
	if (!sectors || sectors > COW_MAX_BYTES / 512)
		return cow_fault(faults, "rdosectors", "found rdosectors %llu, expected 1 to %llu",
				 sectors, COW_MAX_BYTES / 512);
	cow_geometry_init(&geo, 2, found, sectors);

	found = le64(c->head.moffset);
	if (found != geo.moffset)
		r = cow_fault(faults, "moffset", "found moffset %llu, expected %llu", found, geo.moffset);
	if (check_layout(c, &geo, faults))
		r = WRONG;
	align = geo.mapunit;
	found = le64(c->head.doffset);
	if (found < geo.doffset || found & (align - 1) || found > COW_MAX_BYTES)
		r = cow_fault(faults, "doffset", "found doffset %llu, expected a multiple of %llu from %llu on",
			      found, align, geo.doffset);
	else
		geo.doffset = found;
	cow_set_geometry(c, &geo);

	return r ? r : check_count(c, faults);
}

int cow_check_head(struct cowfile *c, struct cow_faults *faults)
{
	const enum cowloop_compress compress = compress_of((const u8 *)&c->head, sizeof(c->head));
	unsigned int version;
	int r;

	if (compress != COWLOOP_COMPRESS_NONE)
		return check_compressed(c, compress, faults);
	if (c->file.size < COW_V1_MAPUNIT)
		return cow_fault(faults, "short", "shorter than a head: found %llu bytes, expected at least %u",
				 c->file.size, COW_V1_MAPUNIT);
	r = check_magic(c, faults);
	if (r)
		return r;

	version = le16(c->head.version);
	switch (version) {
	case 1:
	case COW_V1_MERGING:
	case COW_V1_MERGED:
		return check_head_v1(c, faults);
	case 2:
		return check_head_v2(c, faults);
	}
	return cow_fault(faults, "version", "unknown version: found %u, expected 1 or 2", version);
}

static int load_head(struct cowloop_ctx *ctx, struct cowfile *c, struct cow_faults *faults)
{
	int r = file_read_padded(ctx, &c->file, 0, &c->head, sizeof(c->head));

	return r ? r : cow_check_head(c, faults);
}

int cow_open_faulty(struct cowloop_ctx *ctx, struct cowfile *c, const char *path, unsigned int file_flags,
		    struct cow_faults *faults)
{
	int r;

	*c = (struct cowfile){ .file = FILE_CLOSED };
	r = file_open(ctx, &c->file, path, file_flags);
	return r ? r : load_head(ctx, c, faults);
}

/* The sink of cow_open(): any fault is too much. */
struct refusal {
	struct cow_faults faults;
	struct cowloop_ctx *ctx;
	const char *path;
	bool refused;
};

static void refuse(struct cow_faults *faults, const char *id, const char *text)
{
	struct refusal *refusal = (struct refusal *)faults;
	struct cowloop_ctx *ctx = refusal->ctx;

	(void)id;
	error(ctx, WRONG, "%s: %s.", refusal->path, text);
	refusal->refused = true;
}

static int check_accepted(struct cowloop_ctx *ctx, const struct cowfile *c, unsigned int file_flags,
			  unsigned int accept)
{
	const char *path = c->file.path;

	if (c->state == COW_DIRTY && c->format == 1 && !(accept & COW_ACCEPT_DIRTY))
		return error(ctx, WRONG, "%s: dirty: it was in use in a crash, or is in use now; see cowsetup repair.",
			     path);
	if (c->state == COW_PACKED && !(accept & COW_ACCEPT_PACKED))
		return error(ctx, WRONG, "%s: packed; unpack it first (cowsetup unpack).", path);
	if ((c->state == COW_MERGING || c->state == COW_MERGED) && !(accept & COW_ACCEPT_MERGE))
		return error(ctx, WRONG, "%s: a merge of it was interrupted; run cowsetup merge again to complete it.",
			     path);
	if (file_flags & FILE_WRITE && c->format == 2 &&
	    le32(c->head.compat_ro) & ~COW_COMPAT_RO_KNOWN)
		return error(ctx, WRONG, "%s: can only be read by this version: found compat_ro 0x%08x, expected none but 0x%08x.",
			     path, le32(c->head.compat_ro), COW_COMPAT_RO_KNOWN);
	return OK;
}

int cow_open_file(struct cowloop_ctx *ctx, struct cowfile *c, struct file *f, unsigned int file_flags,
		  unsigned int accept)
{
	struct refusal refusal = { .faults.found = refuse, .ctx = ctx, .path = f->path };
	int r;

	*c = (struct cowfile){ .file = *f };
	*f = FILE_CLOSED;
	r = load_head(ctx, c, &refusal.faults);
	if (!r && refusal.refused)
		r = WRONG;
	if (!r)
		r = check_accepted(ctx, c, file_flags, accept);
	if (r)
		cow_close(c);
	return r;
}

int cow_open(struct cowloop_ctx *ctx, struct cowfile *c, const char *path, unsigned int file_flags, unsigned int accept)
{
	struct file f;
	int r = file_open(ctx, &f, path, file_flags);

	*c = (struct cowfile){ .file = FILE_CLOSED };
	return r ? r : cow_open_file(ctx, c, &f, file_flags, accept);
}

void cow_close(struct cowfile *c)
{
	file_close(&c->file);
}

void cow_new_head(struct cowfile *c, const struct cow_geometry *geo, u64 fingerprint)
{
	struct cow_head *head = &c->head;

	memset(head, 0, sizeof(*head));
	head->magic = htole32(COW_MAGIC);
	head->version = htole16(geo->format);
	head->mapunit = htole64(geo->mapunit);
	head->mapsize = htole64(geo->mapsize);
	head->doffset = htole64(geo->doffset);
	head->rdoblocks = htole64(geo->nr_units);
	head->rdofingerprint = htole64(fingerprint);
	if (geo->format == 2) {
		head->rdosectors = htole64(geo->rdo_sectors);
		head->moffset = htole64(geo->moffset);
		uuid_generate_random(head->uuid);
	}
	cow_set_geometry(c, geo);
}

static void set_state(struct cow_head *head, unsigned int format, enum cow_state state)
{
	unsigned int flags = le16(head->flags) & ~(COW_FLAG_DIRTY | COW_FLAG_PACKED);
	u32 incompat = le32(head->incompat) & ~COW_INCOMPAT_TOOLS;
	unsigned int version = format;

	switch (state) {
	case COW_CLEAN:
		break;
	case COW_DIRTY:
		flags |= COW_FLAG_DIRTY;
		break;
	case COW_PACKED:
		flags |= COW_FLAG_PACKED;
		break;
	case COW_MERGING:
		version = COW_V1_MERGING;
		incompat |= COW_INCOMPAT_MERGING;
		break;
	case COW_MERGED:
		version = COW_V1_MERGED;
		incompat |= COW_INCOMPAT_MERGED;
		break;
	}
	head->flags = htole16(flags);
	if (format == 1)
		head->version = htole16(version);
	else
		head->incompat = htole32(incompat);
}

void cow_finish_head(struct cowfile *c, enum cow_state state, u64 used)
{
	c->state = state;
	set_state(&c->head, c->format, state);
	c->head.cowused = htole64(used);
	if (c->format == 2)
		c->head.csum = htole32(head_csum(&c->head));
}

int cow_write_head(struct cowloop_ctx *ctx, struct cowfile *c, enum cow_state state, u64 used)
{
	int r = file_sync(ctx, &c->file);

	cow_finish_head(c, state, used);
	if (!r)
		r = file_write(ctx, &c->file, 0, &c->head, sizeof(c->head));
	return r ? r : file_sync(ctx, &c->file);
}

/* ---- Bitmaps ---- */

/* Bitmap sectors that are read at a time. */
#define MAP_BUFFER_SECTORS	512

static void judge_sector(struct cow_map *m, u64 sector, const u8 *data)
{
	u32 csum;

	m->sector = sector;
	m->bits = data;
	m->good = true;
	if (m->c->format == 2) {
		memcpy(&csum, data + COW_V2_SECTOR_BYTES, sizeof(csum));
		m->csum = le32(csum);
		m->expected = cow_sector_csum(data, sector);
		m->good = m->csum == m->expected;
	}
}

void cow_map_start(struct cow_map *m, const struct cowfile *c)
{
	*m = (struct cow_map){ .c = c };
	m->buffer = malloc(MAP_BUFFER_SECTORS * COW_MAP_SECTOR);
}

void cow_map_end(struct cow_map *m)
{
	free(m->buffer);
	m->buffer = NULL;
}

/* Fill the buffer from m->next on, having skipped a hole; false at the end or for an error. */
static bool fill_buffer(struct cowloop_ctx *ctx, struct cow_map *m)
{
	const struct cow_geometry *geo = &m->c->geo;
	u64 start = geo->moffset + m->next * COW_MAP_SECTOR, data_end;
	const u64 end = geo->moffset + m->c->nr_sectors * COW_MAP_SECTOR;

	if (!m->buffer) {
		m->error = error_memory(ctx);
		return false;
	}
	if (is_cancelled(ctx)) {
		m->error = error(ctx, USAGE, "%s: interrupted.", m->c->file.path);
		return false;
	}
	m->error = file_next_data(ctx, &m->c->file, &start, &data_end, end);
	if (m->error || start >= end)
		return false;

	m->buffered = (start - geo->moffset) / COW_MAP_SECTOR;
	m->buffered_end = (data_end - geo->moffset + COW_MAP_SECTOR - 1) / COW_MAP_SECTOR;
	if (m->buffered_end - m->buffered > MAP_BUFFER_SECTORS)
		m->buffered_end = m->buffered + MAP_BUFFER_SECTORS;
	m->error = file_read(ctx, &m->c->file, geo->moffset + m->buffered * COW_MAP_SECTOR, m->buffer,
			     (m->buffered_end - m->buffered) * COW_MAP_SECTOR);
	if (m->error)
		return false;
	m->next = m->buffered;
	return true;
}

bool cow_map_next(struct cowloop_ctx *ctx, struct cow_map *m)
{
	for (;;) {
		if (m->next >= m->c->nr_sectors)
			return false;
		if (m->next >= m->buffered_end && !fill_buffer(ctx, m))
			return false;
		for (; m->next < m->buffered_end; m->next++) {
			const u8 *data = m->buffer + (m->next - m->buffered) * COW_MAP_SECTOR;

			if (!all_zero(data, COW_MAP_SECTOR)) {
				judge_sector(m, m->next++, data);
				return true;
			}
		}
	}
}

void cow_encode_bits(const struct cowfile *c, u64 sector, const u8 *bits, u8 *data)
{
	u32 csum;

	memset(data, 0, COW_MAP_SECTOR);
	memcpy(data, bits, c->sector_bytes);
	if (c->format == 2 && !all_zero(bits, c->sector_bytes)) {
		csum = htole32(cow_sector_csum(bits, sector));
		memcpy(data + COW_V2_SECTOR_BYTES, &csum, sizeof(csum));
	}
}

int cow_write_bits(struct cowloop_ctx *ctx, const struct cowfile *c, u64 sector, const u8 *bits)
{
	u8 data[COW_MAP_SECTOR];

	cow_encode_bits(c, sector, bits, data);
	return file_write(ctx, &c->file, c->geo.moffset + sector * COW_MAP_SECTOR, data, sizeof(data));
}

/* ---- Runs ---- */

void cow_runs_start(struct cow_runs *r, const struct cowfile *c)
{
	*r = (struct cow_runs){ 0 };
	cow_map_start(&r->map, c);
}

int cow_runs_end(struct cow_runs *r, int before)
{
	cow_map_end(&r->map);
	return before ? before : r->error;
}

/* The first bit from @from on that is @set, or @nr. */
static u32 find_bit(const u8 *bits, u32 nr, u32 from, bool set)
{
	const u8 skip = set ? 0 : 0xff;

	while (from < nr && bit_is_set(bits, from) != set) {
		if (!(from & 7) && bits[from / 8] == skip)
			from += 8;
		else
			from++;
	}
	return from < nr ? from : nr;
}

/* Go to the next bitmap sector; damaged ones are passed by, or end the walk. */
static bool next_sector(struct cowloop_ctx *ctx, struct cow_runs *r)
{
	const struct cowfile *c = r->map.c;
	u64 first;
	u32 nr;

	for (;;) {
		if (!cow_map_next(ctx, &r->map)) {
			r->error = r->map.error;
			return false;
		}
		first = cow_sector_units(c, r->map.sector, &nr);
		if (r->map.good || !nr)
			return true;
		r->nr_bad++;
		if (!r->quiet)
			error(ctx, WRONG, "%s: bitmap sector %llu is damaged: found checksum 0x%08x, expected 0x%08x; it is not known which of units %llu to %llu are in the cowfile; %s.",
			      c->file.path, r->map.sector, r->map.csum, r->map.expected,
			      first, first + nr - 1, bitmap_help(c));
		if (!r->skip_bad) {
			r->error = WRONG;
			return false;
		}
	}
}

bool cow_runs_next(struct cowloop_ctx *ctx, struct cow_runs *r, u64 *first, u64 *nr)
{
	const struct cowfile *c = r->map.c;
	u64 base, found;
	u32 nr_bits, end;

	for (;;) {
		if (!r->have_sector) {
			if (!next_sector(ctx, r))
				break;
			r->have_sector = true;
			r->bit = 0;
		}
		base = cow_sector_units(c, r->map.sector, &nr_bits);
		r->bit = find_bit(r->map.bits, nr_bits, r->bit, true);
		if (r->bit == nr_bits) {
			r->have_sector = false;
			continue;
		}
		end = find_bit(r->map.bits, nr_bits, r->bit, false);
		found = base + r->bit;
		if (r->nr && r->first + r->nr != found) {
			/* The bit is found again by the next call. */
			*first = r->first;
			*nr = r->nr;
			r->nr = 0;
			return true;
		}
		if (!r->nr)
			r->first = found;
		r->nr += end - r->bit;
		r->bit = end;
	}
	*first = r->first;
	*nr = r->nr;
	r->nr = 0;
	return !r->error && *nr;
}

int cow_count(struct cowloop_ctx *ctx, const struct cowfile *c, u64 *used, u64 *end)
{
	struct cow_runs runs;
	u64 first, nr;
	int r;

	*used = *end = 0;
	cow_runs_start(&runs, c);
	while (cow_runs_next(ctx, &runs, &first, &nr)) {
		*used += nr;
		*end = first + nr;
	}
	r = cow_runs_end(&runs, OK);

	if (!r && (c->state == COW_CLEAN || c->state == COW_PACKED) &&
	    le64(c->head.cowused) != *used)
		return error(ctx, WRONG, "%s: found cowused %llu, expected %llu, as the bitmap has; see cowsetup check.",
			     c->file.path, le64(c->head.cowused), *used);
	return r;
}

int cow_check_end(struct cowloop_ctx *ctx, const struct cowfile *c, u64 end)
{
	u64 need;

	if (!end)
		return OK;
	need = c->geo.doffset + (end - 1) * c->geo.mapunit + cow_run_bytes(c, end - 1, 1);
	if (c->file.size >= need)
		return OK;
	return error(ctx, WRONG, "%s: ends at %llu, but should have data up to %llu: it was cut off; see cowsetup check and cowsetup repair.",
		     c->file.path, c->file.size, need);
}

/* ---- Units ---- */

int cow_unit_is_set(struct cowloop_ctx *ctx, const struct cowfile *c, u64 unit, bool *set)
{
	struct cow_map m = { .c = c };
	u8 data[COW_MAP_SECTOR];
	int r;

	r = file_read(ctx, &c->file, c->geo.moffset + unit / c->sector_units * COW_MAP_SECTOR,
		      data, sizeof(data));
	if (r)
		return r;
	judge_sector(&m, unit / c->sector_units, data);
	if (!m.good && !all_zero(data, sizeof(data)))
		return error(ctx, WRONG, "%s: bitmap sector %llu is damaged; %s.", c->file.path, m.sector,
			     bitmap_help(c));
	*set = bit_is_set(data, unit % c->sector_units);
	return OK;
}
