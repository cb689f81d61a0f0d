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
#include "../cowsetup/progress.h"
#include "text.h"
#include "spec.h"

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
static int refuse_data_behind(const struct file *f, const char *how)
{
	u64 start = COW_BLANK_SIZE, data_end;
	u8 *buf = xmalloc(FILE_CHUNK);
	int r = OK;

	progress_start(f->path, f->size, "read");
	while (!r && start < f->size) {
		r = file_next_data(f, &start, &data_end, f->size);
		while (!r && start < data_end) {
			const size_t n = min_u64(data_end - start, FILE_CHUNK);

			r = interrupted ? error(USAGE, "%s: interrupted.", f->path) :
					  file_read(f, start, buf, n);
			if (!r && !all_zero(buf, n))
				r = error(BUSY, "%s: begins with zeroes, but holds data from %llu on; %s overwrites it.",
					  f->path, start + first_nonzero(buf), how);
			start += n;
			progress_update(start);
		}
	}
	progress_end(!r);
	free(buf);
	return r;
}

static int refuse_contents(const struct file *f, const char *how)
{
	struct cow_head head;
	u8 start[COW_BLANK_SIZE];
	char *found;
	int r = file_read_padded(f, 0, start, sizeof(start));

	if (r)
		return r;
	memcpy(&head, start, sizeof(head));
	if (le32(head.magic) == COW_MAGIC)
		return error(BUSY, "%s: holds a cowfile already, of format %u with %llu units used; %s overwrites it.",
			     f->path, le16(head.version), le64(head.cowused), how);
	found = f->size ? file_contents(f) : NULL;
	if (found)
		r = error(BUSY, "%s: holds %s; %s overwrites it.", f->path, found, how);
	else if (!all_zero(start, sizeof(start)))
		r = error(BUSY, "%s: holds something (its first %u bytes are not zero); %s overwrites it.",
			  f->path, COW_BLANK_SIZE, how);
	else if (!f->block)
		r = refuse_data_behind(f, how);
	free(found);
	return r;
}

int refuse_overwrite(const struct file *f, const char *how, bool force)
{
	return force ? OK : refuse_contents(f, how);
}

int replaced_open(struct replaced *old, const char *path, unsigned int file_flags, bool force)
{
	struct file f;
	int r = file_open(&f, path, file_flags | FILE_EXCLUSIVE | (force ? 0 : FILE_OURS));

	if (r)
		return r;
	r = refuse_overwrite(&f, "--force", force);
	if (!r)
		r = replaced_hold(old, &f);
	if (r)
		file_close(&f);
	return r;
}

/*
 * Remove the marks by which libblkid knows what was there: what is left of it
 * in the room for units must not be taken for a filesystem.
 */
static void wipe_marks(const struct file *f)
{
	blkid_probe pr = blkid_new_probe();

	if (!pr)
		exit(error(NO_MEMORY, "Out of memory."));
	if (!blkid_probe_set_device(pr, f->fd, 0, 0)) {
		blkid_probe_enable_superblocks(pr, 1);
		blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_MAGIC);
		blkid_probe_enable_partitions(pr, 1);
		blkid_probe_set_partitions_flags(pr, BLKID_PARTS_MAGIC);
		while (!interrupted && !blkid_do_probe(pr) && !blkid_do_wipe(pr, 0))
			;
	}
	blkid_free_probe(pr);
}

/* ---- Making one ---- */

int check_new_options(const struct cowloop_new *new, unsigned int format)
{
	const struct cow_head *head = NULL;

	if (format == 1 && (new->label || new->rdo_spec))
		return error(USAGE, "--label and --rdo-spec need format 2: format 1 has no room for them.");
	if (format == 1 && new->mapunit && new->mapunit != COW_V1_MAPUNIT)
		return error(USAGE, "--mapunit: the unit of format 1 is 1024 bytes, always.");
	if (format == 2 && new->mapunit == COW_V1_MAPUNIT)
		return error(USAGE, "--mapunit: a unit of 1024 bytes needs --format 1; format 2 has 4K to 1M.");
	if (new->label && (strlen(new->label) >= sizeof(head->label) || !text_is_utf8(new->label)))
		return error(USAGE, "--label: it must be UTF-8 and shorter than %zu bytes.",
			     sizeof(head->label));
	if (!new->rdo_spec)
		return OK;
	if (!spec_is_valid(new->rdo_spec))
		return error(USAGE, "--rdo-spec %s: it must be " SPEC_KINDS ".", new->rdo_spec);
	if (strlen(new->rdo_spec) >= sizeof(head->rdospec) || !text_is_utf8(new->rdo_spec))
		return error(USAGE, "--rdo-spec: it must be UTF-8 and shorter than %zu bytes.",
			     sizeof(head->rdospec));
	return OK;
}

int choose_geometry(const struct file *rdo, unsigned int format, unsigned int mapunit, struct cow_geometry *geo)
{
	const unsigned int unit = format == 1 ? COW_V1_MAPUNIT : mapunit ? mapunit : COW_V2_MAPUNIT;

	if (rdo->size > COW_MAX_BYTES)
		return error(WRONG, "%s: too large: found %s, expected at most %s.", rdo->path,
			     size_text(rdo->size), size_text(COW_MAX_BYTES));
	cow_geometry_init(geo, format, unit, rdo_sectors(rdo));
	if (!geo->nr_units)
		return error(WRONG, "%s: too small: found %s, expected at least %s.", rdo->path,
			     size_text(rdo->size), size_text(format == 1 ? COW_V1_MAPUNIT : 512));
	if (geo->rdo_sectors * 512 != rdo->size)
		warn("%s: its end (%s) does not fill a %s and is left out.", rdo->path,
		     size_text(rdo->size - geo->rdo_sectors * 512), format == 1 ? "unit" : "sector");
	return OK;
}

int open_plain_rdo(struct file *rdo, const char *path)
{
	u8 start[COW_V2_HEAD_SIZE] = { 0 };
	const struct cow_head *head = (const struct cow_head *)start;
	int r = file_open(rdo, path, FILE_READ | FILE_SHARED);

	if (!r)
		r = file_read_padded(rdo, 0, start, sizeof(start));
	if (!r && le32(head->magic) == COW_MAGIC)
		r = error(WRONG, "%s: this is a cowfile; the read-only device comes first, the cowfile second.",
			  path);
	if (r)
		file_close(rdo);
	return r;
}

/* A device made of a container would not have what is in it. */
static int refuse_container(const struct file *rdo)
{
	char *found = container_text(rdo);
	int r = OK;

	if (found)
		r = error(WRONG, "%s: %s; --force takes it as it is.", rdo->path, found);
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

int blank_cow(struct file *f, const struct cow_geometry *geo)
{
	const u64 need = geo->moffset + geo->mapsize;
	u8 zeroes[COW_BLANK_SIZE] = { 0 };
	int r;

	if (!f->block)
		return grow_blank(f, cow_full_size(geo));
	if (f->size < need)
		return error(WRONG, "%s: too small for its own bitmap: found %s, expected %s and room for data.",
			     f->path, size_text(f->size), size_text(need));
	cow_warn_short(geo, f);
	wipe_marks(f);
	/* No head from here on. */
	r = file_write(f, 0, zeroes, sizeof(zeroes));
	if (!r)
		r = file_sync(f);
	/* In format 1, what is not zero counts as written when it is repaired. */
	return r ? r : zero_in_steps(f, 0, geo->format == 1 ? cow_full_size(geo) : need);
}

static int open_or_create(struct file *f, const char *path, bool force, bool *created)
{
	int fd, r;

	*created = false;
	*f = FILE_CLOSED;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EEXIST)
		return file_open(f, path, FILE_WRITE | FILE_EXCLUSIVE | (force ? 0 : FILE_OURS));
	if (fd < 0)
		return error_open(path, "cannot be created");
	/* Another cowsetup may have found it already. */
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		if (errno == EWOULDBLOCK) {
			r = error(BUSY, "%s: in use: another program has it open.", path);
		} else {
			r = error_errno("%s: cannot be locked", path);
			unlink(path);
		}
		close(fd);
		return r;
	}
	*created = true;
	r = file_from_fd(f, fd, path);
	if (!r && !file_is_at(f, path)) {
		*created = false;
		r = error(BUSY, "%s: in use: another program has replaced it.", path);
	}
	return r;
}

int cow_make(const char *rdo_path, const char *path, const struct cowloop_new *new, const char *how,
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
		return error(WRONG, "%s: cannot be the read-only device and the cowfile at the same time.", path);
	r = check_new_options(new, format);
	if (!r)
		r = open_plain_rdo(&rdo, rdo_path);
	/* On the way to a device that has been asked. */
	if (!r && !made)
		r = refuse_writers(&rdo, new->force);
	if (!r && !new->force)
		r = refuse_container(&rdo);
	if (!r)
		r = choose_geometry(&rdo, format, new->mapunit, &geo);
	if (!r)
		r = cow_fingerprint(&rdo, format, NULL, &fingerprint);
	if (!r)
		r = open_or_create(&c.file, path, new->force, &created);
	if (!r && !created && !overwrite)
		r = refuse_contents(&c.file, how);
	if (!r) {
		old_size = c.file.size;
		changed = !created && !c.file.block;
		r = blank_cow(&c.file, &geo);
		cow_new_head(&c, &geo, fingerprint);
		set_new_names(&c.head, new);
		if (format == 2)
			changed_remember(&c.head, &rdo);
	}
	if (!r)
		r = cow_write_head(&c, COW_CLEAN, 0);
	if (r && created)
		unlink(path);
	/* With --force there was something else, which is lost unless the file could not even grow. */
	if (r && changed && !overwrite && grow_undo(&c.file, old_size, sizeof(c.head)))
		warn("%s: could not be put back as it was.", path);
	if (!r && made)
		*made = c.file;
	else
		cow_close(&c);
	file_close(&rdo);

	if (!r)
		verbose("%s: new cowfile of format %u, units of %s, for %s (%s).", path, format,
			size_text(geo.mapunit), rdo_path, size_text(geo.rdo_sectors * 512));
	return r;
}
