// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup format: a new, empty cowfile.
 *
 * The head is written last, so that a format that is interrupted leaves what
 * the driver takes for blank, never a cowfile with half a bitmap.
 */

#include "cowfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <blkid/blkid.h>
#include <uuid/uuid.h>

#include "changed.h"
#include "container.h"
#include "grow.h"
#include "holders.h"
#include "newcow.h"
#include "rdo.h"
#include "size.h"
#include "spec.h"
#include "text.h"

/* ---- What is there already ---- */

/* There is one. */
static size_t first_nonzero(const u8 *p)
{
	size_t n = 0;

	while (!p[n])
		n++;
	return n;
}

/*
 * A file that begins with zeroes may hold something all the same. (Of a device
 * that is not asked: what it was used for before is of no interest.)
 */
static int refuse_data_behind(struct cowloop_ctx *ctx, const struct file *f, const char *how)
{
	u64 start = COW_BLANK_SIZE, data_end;
	u8 *buf = file_buffer(ctx);
	int r = buf ? OK : NO_MEMORY;

	progress_start(ctx, f->path, f->size, "read");
	while (!r && start < f->size) {
		r = file_next_data(ctx, f, &start, &data_end, f->size);
		while (!r && start < data_end) {
			const size_t n = min_u64(data_end - start, FILE_CHUNK);

			r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", f->path) :
						file_read(ctx, f, start, buf, n);
			if (!r && !all_zero(buf, n))
				r = error(ctx, BUSY, "%s: begins with zeroes, but holds data from %llu on; %s overwrites it.",
					  f->path, start + first_nonzero(buf), how);
			start += n;
			progress_update(ctx, start);
		}
	}
	progress_end(ctx, !r);
	free(buf);
	return r;
}

static int refuse_contents(struct cowloop_ctx *ctx, const struct file *f, const char *how)
{
	struct cow_head head;
	u8 start[COW_BLANK_SIZE];
	char *found = NULL;
	int r = file_read_padded(ctx, f, 0, start, sizeof(start));

	if (r)
		return r;
	memcpy(&head, start, sizeof(head));
	if (le32(head.magic) == COW_MAGIC)
		return error(ctx, BUSY, "%s: holds a cowfile already, of format %u with %llu units used; %s overwrites it.",
			     f->path, le16(head.version), le64(head.cowused), how);
	if (f->size && file_contents(f, &found))
		r = error_memory(ctx);
	else if (found)
		r = error(ctx, BUSY, "%s: holds %s; %s overwrites it.", f->path, found, how);
	else if (!all_zero(start, sizeof(start)))
		r = error(ctx, BUSY, "%s: holds something (its first %u bytes are not zero); %s overwrites it.",
			  f->path, COW_BLANK_SIZE, how);
	else if (!f->block)
		r = refuse_data_behind(ctx, f, how);
	free(found);
	return r;
}

int refuse_overwrite(struct cowloop_ctx *ctx, const struct file *f, const char *how, bool force)
{
	return force ? OK : refuse_contents(ctx, f, how);
}

int replaced_open(struct cowloop_ctx *ctx, struct replaced *old, const char *path, unsigned int file_flags, bool force)
{
	struct file f;
	int r = file_open(ctx, &f, path, file_flags | FILE_EXCLUSIVE | (force ? 0 : FILE_OURS));

	if (r)
		return r;
	r = refuse_overwrite(ctx, &f, "--force", force);
	if (!r)
		r = replaced_hold(ctx, old, &f);
	if (r)
		file_close(&f);
	return r;
}

/*
 * Remove the marks by which libblkid knows what was there: what is left of it
 * in the room for units must not be taken for a filesystem.
 */
static int wipe_marks(struct cowloop_ctx *ctx, const struct file *f)
{
	blkid_probe pr = blkid_new_probe();

	if (!pr)
		return error_memory(ctx);
	if (!blkid_probe_set_device(pr, f->fd, 0, 0)) {
		blkid_probe_enable_superblocks(pr, 1);
		blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_MAGIC);
		blkid_probe_enable_partitions(pr, 1);
		blkid_probe_set_partitions_flags(pr, BLKID_PARTS_MAGIC);
		while (!is_cancelled(ctx) && !blkid_do_probe(pr) && !blkid_do_wipe(pr, 0))
			;
	}
	blkid_free_probe(pr);
	return OK;
}

/* ---- Making one ---- */

int check_new_options(struct cowloop_ctx *ctx, const struct cowloop_new *new, unsigned int format)
{
	const struct cow_head *head = NULL;

	if (format != 1 && format != 2)
		return error(ctx, USAGE, "--format: found %u, expected 1 or 2.", format);
	if (new->mapunit && new->mapunit != COW_V1_MAPUNIT && !cow_v2_mapunit_valid(new->mapunit))
		return error(ctx, USAGE, "--mapunit: found %u, expected 1024, or a power of two from %u to %u.",
			     new->mapunit, COW_V2_MAPUNIT, COW_V2_MAPUNIT_MAX);
	if (format == 1 && (new->label || new->rdo_spec))
		return error(ctx, USAGE, "--label and --rdo-spec need format 2: format 1 has no room for them.");
	if (format == 1 && new->mapunit && new->mapunit != COW_V1_MAPUNIT)
		return error(ctx, USAGE, "--mapunit: the unit of format 1 is 1024 bytes, always.");
	if (format == 2 && new->mapunit == COW_V1_MAPUNIT)
		return error(ctx, USAGE, "--mapunit: a unit of 1024 bytes needs --format 1; format 2 has 4K to 1M.");
	if (new->label && (strlen(new->label) >= sizeof(head->label) || !text_is_utf8(new->label)))
		return error(ctx, USAGE, "--label: it must be UTF-8 and shorter than %zu bytes.",
			     sizeof(head->label));
	if (!new->rdo_spec)
		return OK;
	if (!spec_is_valid(new->rdo_spec))
		return error(ctx, USAGE, "--rdo-spec %s: it must be " SPEC_KINDS ".", new->rdo_spec);
	if (strlen(new->rdo_spec) >= sizeof(head->rdospec) || !text_is_utf8(new->rdo_spec))
		return error(ctx, USAGE, "--rdo-spec: it must be UTF-8 and shorter than %zu bytes.",
			     sizeof(head->rdospec));
	return OK;
}

int choose_geometry(struct cowloop_ctx *ctx, const struct file *rdo, unsigned int format, unsigned int mapunit,
		    struct cow_geometry *geo)
{
	const unsigned int unit = format == 1 ? COW_V1_MAPUNIT : mapunit ? mapunit : COW_V2_MAPUNIT;

	if (rdo->size > COW_MAX_BYTES)
		return error(ctx, WRONG, "%s: too large: found %s, expected at most %s.", rdo->path,
			     size_text(rdo->size), size_text(COW_MAX_BYTES));
	cow_geometry_init(geo, format, unit, rdo_sectors(rdo));
	if (!geo->nr_units)
		return error(ctx, WRONG, "%s: too small: found %s, expected at least %s.", rdo->path,
			     size_text(rdo->size), size_text(format == 1 ? COW_V1_MAPUNIT : 512));
	if (geo->rdo_sectors * 512 != rdo->size)
		warn(ctx, "%s: its end (%s) does not fill a %s and is left out.", rdo->path,
		     size_text(rdo->size - geo->rdo_sectors * 512), format == 1 ? "unit" : "sector");
	return OK;
}

int open_plain_rdo(struct cowloop_ctx *ctx, struct file *rdo, const char *path)
{
	u8 start[COW_V2_HEAD_SIZE] = { 0 };
	const struct cow_head *head = (const struct cow_head *)start;
	int r = file_open(ctx, rdo, path, FILE_READ | FILE_SHARED);

	if (!r)
		r = file_read_padded(ctx, rdo, 0, start, sizeof(start));
	if (!r && le32(head->magic) == COW_MAGIC)
		r = error(ctx, WRONG, "%s: this is a cowfile; the read-only device comes first, the cowfile second.",
			  path);
	if (r)
		file_close(rdo);
	return r;
}

/* A device made of a container would not have what is in it. */
static int refuse_container(struct cowloop_ctx *ctx, const struct file *rdo)
{
	char *found;
	int r = container_text(ctx, rdo, &found);

	if (found)
		r = error(ctx, WRONG, "%s: %s; --force takes it as it is.", rdo->path, found);
	free(found);
	return r;
}

void set_new_names(struct cow_head *head, const struct cowloop_new *new)
{
	if (new->label)
		memcpy(head->label, new->label, strlen(new->label));
	if (new->rdo_spec)
		memcpy(head->rdospec, new->rdo_spec, strlen(new->rdo_spec));
}

int blank_cow(struct cowloop_ctx *ctx, struct file *f, const struct cow_geometry *geo)
{
	const u64 need = geo->moffset + geo->mapsize;
	u8 zeroes[COW_BLANK_SIZE] = { 0 };
	int r;

	if (!f->block)
		return grow_blank(ctx, f, cow_full_size(geo));
	if (f->size < need)
		return error(ctx, WRONG, "%s: too small for its own bitmap: found %s, expected %s and room for data.",
			     f->path, size_text(f->size), size_text(need));
	cow_warn_short(ctx, geo, f);
	r = wipe_marks(ctx, f);
	/* No head from here on. */
	if (!r)
		r = file_write(ctx, f, 0, zeroes, sizeof(zeroes));
	if (!r)
		r = file_sync(ctx, f);
	/* In format 1, what is not zero counts as written when it is repaired. */
	return r ? r : zero_in_steps(ctx, f, 0, geo->format == 1 ? cow_full_size(geo) : need);
}

static int open_or_create(struct cowloop_ctx *ctx, struct file *f, const char *path, bool force, bool *created)
{
	int fd, r;

	*created = false;
	*f = FILE_CLOSED;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EEXIST)
		return file_open(ctx, f, path, FILE_WRITE | FILE_EXCLUSIVE | (force ? 0 : FILE_OURS));
	if (fd < 0)
		return error_open(ctx, path, "cannot be created");
	/* Another cowsetup may have found it already. */
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		if (errno == EWOULDBLOCK) {
			r = error(ctx, BUSY, "%s: in use: another program has it open.", path);
		} else {
			r = error_errno(ctx, "%s: cannot be locked", path);
			unlink(path);
		}
		close(fd);
		return r;
	}
	*created = true;
	r = file_from_fd(ctx, f, fd, path);
	if (!r && !file_is_at(f, path)) {
		*created = false;
		r = error(ctx, BUSY, "%s: in use: another program has replaced it.", path);
	}
	return r;
}

int cow_make(struct cowloop_ctx *ctx, const char *rdo_path, const char *path, const struct cowloop_new *new,
	     const char *how,
	     struct file *made)
{
	const unsigned int format = new->format ? new->format : 2;
	struct file rdo = FILE_CLOSED;
	struct cowfile c = { .file = FILE_CLOSED };
	struct cow_geometry geo;
	u64 fingerprint;
	/* Not on the way to a device: there --force says something else. */
	const bool overwrite = new->force && !made;
	bool created = false, changed = false;
	u64 old_size = 0;
	int r;

	if (file_same_path(rdo_path, path))
		return error(ctx, WRONG, "%s: cannot be the read-only device and the cowfile at the same time.", path);
	r = check_new_options(ctx, new, format);
	if (!r)
		r = open_plain_rdo(ctx, &rdo, rdo_path);
	/* On the way to a device that has been asked. */
	if (!r && !made)
		r = refuse_writers(ctx, &rdo, new->force);
	if (!r && !new->force)
		r = refuse_container(ctx, &rdo);
	if (!r)
		r = choose_geometry(ctx, &rdo, format, new->mapunit, &geo);
	if (!r)
		r = cow_fingerprint(ctx, &rdo, format, NULL, &fingerprint);
	if (!r)
		r = open_or_create(ctx, &c.file, path, new->force, &created);
	if (!r && !created && !overwrite)
		r = refuse_contents(ctx, &c.file, how);
	if (!r) {
		old_size = c.file.size;
		changed = !created && !c.file.block;
		r = blank_cow(ctx, &c.file, &geo);
		cow_new_head(&c, &geo, fingerprint);
		set_new_names(&c.head, new);
		if (format == 2)
			changed_remember(&c.head, &rdo);
	}
	if (!r)
		r = cow_write_head(ctx, &c, COW_CLEAN, 0);
	if (r && created)
		unlink(path);
	/* With --force there was something else, which is lost unless the file could not even grow. */
	if (r && changed && !overwrite && grow_undo(ctx, &c.file, old_size, sizeof(c.head)))
		warn(ctx, "%s: could not be put back as it was.", path);
	if (!r && made)
		*made = c.file;
	else
		cow_close(&c);
	file_close(&rdo);

	if (!r)
		verbose(ctx, "%s: new cowfile of format %u, units of %s, for %s (%s).", path, format,
			size_text(geo.mapunit), rdo_path, size_text(geo.rdo_sectors * 512));
	return r;
}
