// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: makes a writable device of a read-only device and a cowfile.
 *
 * All that can be checked is checked before the kernel is asked, since all that
 * the kernel answers is yes or no. What is made on the way (a cowfile, room
 * in it, loop devices) is unmade when a later step fails, or when it is
 * interrupted: see undo_cow(). Only a device that somebody has open by then
 * stays, with all that it is made of; and so does what a repair has found. The
 * kernel could repair a cowfile as well, but nobody could see how far it has
 * got, or stop it.
 */

#include "cowfile.h"

#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>
#include <uuid/uuid.h>

#include "changed.h"
#include "dm.h"
#include "grow.h"
#include "holders.h"
#include "loop.h"
#include "name.h"
#include "newcow.h"
#include "open.h"
#include "rdo.h"
#include "repair.h"
#include "share.h"
#include "size.h"
#include "text.h"

/* An open in progress. */
struct opening {
	const char *rdo_path;
	const char *cow_path;
	char *name;
	const struct cowloop_open *how;
	struct file rdo;
	struct cowfile c;
	struct loop rdo_loop, cow_loop;
	bool created;		/* the cowfile was missing */
	bool formatted;		/* it was blank */
	bool extended;		/* it was too short */
	bool repaired;		/* it was dirty; that is not undone */
	u64 old_size;		/* of a file that was there */
	bool kept;		/* the device could not be removed again, and has all of it */
};

/* ---- Who has it ---- */

static bool is_device(dev_t dev, const struct file *f)
{
	struct stat st;

	if (!dev)
		return false;
	if (f->block && !fstat(f->fd, &st) && st.st_rdev == dev)
		return true;
	return loop_has_file(dev, f);
}

/* One that has let go of its cowfile has but a number, which may be another's by now. */
static bool has_cowfile(const struct dm_device *d, const struct file *f)
{
	return d->mode != DM_MODE_CLOSED && is_device(d->cow, f);
}

/* Refuse what an active cowloop device has; many may share a read-only device, though. */
static int refuse_active(struct cowloop_ctx *ctx, const char *path, bool as_rdo)
{
	struct dm_device *devices;
	struct file f = FILE_CLOSED;
	size_t nr;
	int r;

	if (access(path, F_OK) && errno == ENOENT && !as_rdo)
		return OK;
	r = file_open(ctx, &f, path, FILE_READ);
	if (r)
		return r;
	r = dm_list(ctx, &devices, &nr);
	for (size_t i = 0; i < nr && !r; i++) {
		if (has_cowfile(&devices[i], &f))
			r = error(ctx, BUSY, "%s: in use: it is the cowfile of %s/%s, which is active.", path,
				  DM_NODES, devices[i].name);
		else if (!as_rdo && is_device(devices[i].rdo, &f))
			r = error(ctx, BUSY, "%s: in use: it is the read-only device of %s/%s, which is active.",
				  path, DM_NODES, devices[i].name);
	}
	free(devices);
	file_close(&f);
	return r;
}

int find_active(struct cowloop_ctx *ctx, const char *cow, char **name)
{
	struct dm_device *devices;
	struct file f = FILE_CLOSED;
	size_t nr;
	int r;

	*name = NULL;
	r = file_open(ctx, &f, cow, FILE_READ);
	if (r)
		return r;
	r = dm_list(ctx, &devices, &nr);
	for (size_t i = 0; i < nr && !r && !*name; i++) {
		if (!has_cowfile(&devices[i], &f))
			continue;
		*name = strdup(devices[i].name);
		r = *name ? OK : error_memory(ctx);
	}
	free(devices);
	file_close(&f);
	return r;
}

/* ---- The name ---- */

/* "mine" for /some/where/mine.cow; "mine-2" if there is one already, or it can't be a device's. NULL: no memory. */
static char *default_name(const char *cow_path)
{
	char *copy = strdup(cow_path), *base, *name;
	size_t n;

	if (!copy)
		return NULL;
	base = basename(copy);
	n = strlen(base);
	if (n > 4 && !strcmp(base + n - 4, ".cow"))
		base[n - 4] = 0;
	if (strlen(base) > 90)
		base[90] = 0;
	name_make_plain(base);
	name = strdup(base);
	for (unsigned int i = 2; name && (name_is_special(name) || dm_name_exists(name)); i++) {
		free(name);
		name = text_of("%s-%u", base, i);
	}
	free(copy);
	return name;
}

static int choose_name(struct cowloop_ctx *ctx, struct opening *o, const char *name)
{
	int r;

	if (!name) {
		o->name = default_name(o->cow_path);
		return o->name ? OK : error_memory(ctx);
	}
	r = dm_check_name(ctx, name);
	if (r)
		return r;
	if (!name_is_plain(name))
		return error(ctx, USAGE, "%s: the name of a device is made of letters, digits and #+-.:=@_.", name);
	r = dm_refuse_name(ctx, name);
	if (r)
		return r;
	o->name = strdup(name);
	return o->name ? OK : error_memory(ctx);
}

/*
 * In the manner of CRYPT-VERITY-<uuid>-<name>. Copies of a cowfile have the
 * same UUID, and format 1 has none: there one is derived from the path. NULL: no memory.
 */
static char *make_uuid(const struct opening *o)
{
	char hex[33], *url, *path;
	uuid_t uuid;

	if (o->c.format == 2) {
		uuid_copy(uuid, o->c.head.uuid);
	} else {
		path = realpath(o->cow_path, NULL);
		url = text_of("file://%s", path ? path : o->cow_path);
		free(path);
		if (!url)
			return NULL;
		uuid_generate_sha1(uuid, *uuid_get_template("url"), url, strlen(url));
		free(url);
	}
	for (unsigned int i = 0; i < sizeof(uuid); i++)
		snprintf(hex + 2 * i, 3, "%02x", uuid[i]);
	/* No longer than device-mapper has room for. */
	return text_of(DM_UUID_PREFIX "%s-%.80s", hex, o->name);
}

/* ---- The cowfile ---- */

/* Is it missing, or does it begin with so many zeroes that it counts as blank? */
static int look_at_cow(struct cowloop_ctx *ctx, struct opening *o, bool *blank)
{
	u8 start[COW_BLANK_SIZE];
	struct file f;
	int r;

	*blank = false;
	if (access(o->cow_path, F_OK) && errno == ENOENT) {
		if (o->how->read_only)
			return error(ctx, WRONG, "%s: there is no such cowfile; with --read-only none is made.", o->cow_path);
		if (!o->how->create)
			return error(ctx, WRONG, "%s: there is no such cowfile.", o->cow_path);
		o->created = *blank = true;
		return OK;
	}
	r = file_open(ctx, &f, o->cow_path, FILE_READ);
	if (r)
		return r;
	r = file_read_padded(ctx, &f, 0, start, sizeof(start));
	if (!r && all_zero(start, sizeof(start))) {
		if (o->how->read_only)
			r = error(ctx, WRONG, "%s: blank; with --read-only no cowfile is made of it.", o->cow_path);
		else if (!o->how->create)
			r = error(ctx, WRONG, "%s: blank; no cowfile is made of it unless the option create says so.",
				  o->cow_path);
		*blank = true;
	}
	o->old_size = f.size;
	file_close(&f);
	return r;
}

/* Do the options of a new cowfile go with the one that is there? */
static int check_agreement(struct cowloop_ctx *ctx, const struct cowfile *c, const struct cowloop_new *new)
{
	if (new->format && new->format != c->format)
		return error(ctx, WRONG, "%s: a cowfile of format %u; --format %u is for new cowfiles%s.",
			     c->file.path, c->format, new->format,
			     new->format == 2 ? " (cowsetup upgrade makes format 2 of it)" : "");
	if (new->mapunit && new->mapunit != c->geo.mapunit)
		return error(ctx, WRONG, "%s: has units of %s; --mapunit %u is for new cowfiles.",
			     c->file.path, size_text(c->geo.mapunit), new->mapunit);
	return OK;
}

/* The cowfile, made if need be, open and in order. */
static int open_cow(struct cowloop_ctx *ctx, struct opening *o)
{
	const struct cowloop_open *how = o->how;
	const unsigned int flags = FILE_EXCLUSIVE | (how->new.force ? 0 : FILE_OURS) |
				   (how->read_only ? FILE_READ : FILE_WRITE);
	bool blank;
	int r = look_at_cow(ctx, o, &blank);
	struct file made;
	char *command;

	if (!r && blank) {
		/* Nothing is overwritten on the way to a device. */
		command = text_of("cowsetup format --force %s %s", o->rdo_path, o->cow_path);
		r = !command ? error_memory(ctx) : cow_make(ctx, o->rdo_path, o->cow_path, &how->new, command, &made);
		free(command);
		/* After a failure cow_make() has removed what it made. */
		o->created &= !r;
		o->formatted = !r && !o->created;
		/* Of several that find it missing the one that makes it has it; none would, if it let go of it. */
		if (!r)
			r = cow_open_file(ctx, &o->c, &made, flags, COW_ACCEPT_DIRTY);
	} else if (!r) {
		r = cow_open(ctx, &o->c, o->cow_path, flags, COW_ACCEPT_DIRTY);
	}
	if (!r && o->c.state == COW_DIRTY && o->c.format == 1 && how->repair && how->read_only)
		r = error(ctx, WRONG, "%s: dirty: it was in use in a crash; it cannot be repaired with --read-only, since that is written to it.",
			  o->cow_path);
	if (!r && o->c.state == COW_DIRTY && o->c.format == 1 && !how->repair)
		r = error(ctx, WRONG, "%s: dirty: it was in use in a crash; --repair opens it all the same, having found the units that the bitmap lacks (see also cowsetup check, cowsetup repair).",
			  o->cow_path);
	if (!r)
		r = check_agreement(ctx, &o->c, &how->new);
	return r;
}

/* Units that a file was too short for would be zeroes, without an error, in a longer one. */
static int refuse_truncated(struct cowloop_ctx *ctx, const struct cowfile *c)
{
	u64 first, nr, end = 0;
	struct cow_runs runs;
	int r;

	cow_runs_start(&runs, c);
	/* Where the bitmap is damaged the driver gives errors. */
	runs.skip_bad = true;
	runs.quiet = true;
	while (cow_runs_next(ctx, &runs, &first, &nr))
		end = first + nr;
	r = cow_runs_end(&runs, OK);
	return r ? r : cow_check_end(ctx, c, end);
}

/* A loop device cannot grow with its file, so make room for all units now. A device is as long as it is. */
static int extend_cow(struct cowloop_ctx *ctx, struct opening *o)
{
	const u64 full = cow_full_size(&o->c.geo);
	struct file *f = &o->c.file;
	int r;

	if (o->how->read_only)
		return OK;
	if (f->block) {
		/* One that was made just now has had its warning. */
		if (!o->formatted)
			cow_warn_short(ctx, &o->c.geo, f);
		return OK;
	}
	if (f->size >= full)
		return OK;
	r = refuse_truncated(ctx, &o->c);
	if (r)
		return r;
	r = grow_file(ctx, f, full);
	o->extended = !r;
	return r;
}

static int repair_cow(struct cowloop_ctx *ctx, struct opening *o)
{
	int r;

	if (o->c.format != 1 || o->c.state != COW_DIRTY)
		return OK;
	/* There is no use in adding units to a bitmap that has some for which there is no room. */
	r = refuse_truncated(ctx, &o->c);
	if (!r)
		r = repair_dirty(ctx, &o->c, o->how->new.force);
	o->repaired = !r;
	return r;
}

/* ---- The device ---- */

static dev_t device_of(const struct file *f, const struct loop *l)
{
	struct stat st = { 0 };

	if (l->fd >= 0)
		return l->dev;
	fstat(f->fd, &st);
	return st.st_rdev;
}

/* Bytes in a block of the device that is or will be made of a file or device. */
static int block_size(const struct file *f)
{
	int size;

	return f->block && !ioctl(f->fd, BLKSSZGET, &size) && size > LOOP_BLOCK ? size : LOOP_BLOCK;
}

/*
 * Needs the cow device a loop device over it? What is in an image may need the
 * blocks that the image has: partition tables count in them, and xfs, FAT and
 * others do not mount where blocks are larger. Larger blocks of the cow device
 * must not become those of the device, and those of a loop device are small.
 * Larger blocks of the image stay.
 *
 * Such a loop device has no direct I/O: what is written is in the page cache
 * until it is flushed. Where the cow device may be out of space, a write that has
 * none must fail itself, as it would not.
 */
static bool needs_small_blocks(struct cowloop_ctx *ctx, const struct opening *o)
{
	const int rdo = block_size(&o->rdo), cow = block_size(&o->c.file);

	if (!o->c.file.block || cow <= rdo)
		return false;
	if (!dm_is_thin(device_of(&o->c.file, &o->cow_loop)))
		return true;
	warn(ctx, "%s: blocks of %d bytes, those of %s are %d: a partition table in it is not found, and xfs, FAT and small blocks of ext4 cannot be mounted. They can with a cowfile that is a file on a filesystem there.",
	     o->cow_path, cow, o->rdo_path, rdo);
	return false;
}

static int attach(struct cowloop_ctx *ctx, struct opening *o)
{
	int r = OK;

	if (!o->rdo.block)
		r = loop_share(ctx, &o->rdo_loop, &o->rdo, o->how->rdo_cache);
	if (!r && (!o->c.file.block || needs_small_blocks(ctx, o)))
		r = loop_attach(ctx, &o->cow_loop, &o->c.file, LOOP_DIRECT);
	return r;
}

/* Can the target be told that the file takes whole blocks as a whole? One that is older cuts all writes. */
static bool takes_whole(const struct opening *o)
{
	return o->cow_loop.fd >= 0 && loop_takes_whole(&o->cow_loop, &o->c.file) && dm_target_has(1, 1, 3);
}

/* The table's options, *@options, to be freed, if they can be what was asked for. */
static int table_options(struct cowloop_ctx *ctx, const struct opening *o, char **options)
{
	const struct cowloop_open *how = o->how;
	const u32 unit = o->c.geo.mapunit;
	struct text t = { 0 };

	if (how->limit && how->limit < unit)
		return error(ctx, USAGE, "--limit: less than a unit, which is %s.", size_text(unit));
	if (how->reserve && how->reserve >= how->limit)
		return error(ctx, USAGE, "--reserve: %s of a limit of %s: it must be a part of the limit.",
			     size_text(how->reserve), size_text(how->limit));
	text_add(&t, "%s%s%s", how->read_only ? "read_only" : "", how->queue ? " queue_if_no_space" : "",
		 how->no_passdown ? " no_discard_passdown" : "");
	if (!how->read_only && takes_whole(o))
		text_add(&t, " whole_writes");
	if (how->limit)
		text_add(&t, " limit:%llu", how->limit / unit);
	if (how->reserve)
		text_add(&t, " reserve:%llu", how->reserve / unit + !!(how->reserve % unit));
	if (how->low_water)
		text_add(&t, " low_water:%llu", how->low_water / unit + !!(how->low_water % unit));
	*options = text_take(&t);
	return *options ? OK : error_memory(ctx);
}

/* All of the device, in whole blocks of either device. */
static u64 device_sectors(struct cowloop_ctx *ctx, const struct opening *o)
{
	const u64 sectors = o->c.geo.rdo_sectors;
	int block = block_size(&o->rdo);

	if (o->cow_loop.fd < 0 && block_size(&o->c.file) > block)
		block = block_size(&o->c.file);
	if (sectors % (block / 512))
		warn(ctx, "%s: its end (%s) does not fill a block of %d bytes and is left out.",
		     o->rdo_path, size_text(sectors % (block / 512) * 512), block);
	return sectors - sectors % (block / 512);
}

/* Both devices are as they should be, but the kernel finds one in use: say which, and by whom. */
static int explain_busy(struct cowloop_ctx *ctx, const struct opening *o)
{
	struct holders h = HOLDERS_NONE;
	char *user;
	int r;

	if (dm_name_exists(o->name))
		return error(ctx, BUSY, "%s: there is a device of this name already.", o->name);
	if (o->rdo.block)
		holders_find(&h, &o->rdo, HOLDERS_CLAIMS | HOLDERS_OPEN);
	user = holders_text(&h, true);
	if (user)
		r = error(ctx, BUSY, "%s: in use: %s. Or, as long as nobody writes it: losetup --find --show --read-only %s prints a loop device that can be the read-only device.",
			  o->rdo_path, user, o->rdo_path);
	else
		r = error(ctx, BUSY, "%s: the kernel finds %s or %s in use, by a program that has it open for itself alone.",
			  o->name, o->rdo_path, o->cow_path);
	free(user);
	holders_free(&h);
	return r;
}

/* Say why the kernel has refused a table, as far as that can be known. */
static int explain(struct cowloop_ctx *ctx, const struct opening *o, dev_t dev, int err)
{
	char *reason = dm_log_last(ctx, dev);
	int r;

	errno = err;
	if (err == EBUSY)
		r = explain_busy(ctx, o);
	else if (reason && strstr(reason, "Unrecognised optional parameter"))
		r = error(ctx, WRONG, "The module dm-cowloop that is loaded is older than this cowsetup: %s",
			  reason);
	else if (reason)
		r = error_errno(ctx, "%s: the kernel refuses it: %s", o->name, reason);
	else
		r = error_errno(ctx, "%s: the kernel refuses it; dmesg may say why", o->name);
	free(reason);
	return r;
}

static int create(struct cowloop_ctx *ctx, struct opening *o)
{
	const dev_t rdo = device_of(&o->rdo, &o->rdo_loop);
	const dev_t cow = device_of(&o->c.file, &o->cow_loop);
	char *options, *params, *uuid;
	u64 sectors;
	dev_t dev;
	int err = table_options(ctx, o, &options);

	if (err)
		return err;
	sectors = device_sectors(ctx, o);
	/* dm wants a block device for itself alone, which it is not while we have it so. */
	if (o->c.file.block && o->cow_loop.fd < 0)
		file_close(&o->c.file);
	params = dm_params(rdo, cow, options);
	uuid = make_uuid(o);
	dm_log_mark(ctx);
	dev = 0;
	err = !uuid || !params ? ENOMEM :
	      dm_create(ctx, o->name, uuid, sectors, params, o->how->read_only, &dev, &o->kept);
	free(uuid);
	free(params);
	free(options);
	if (o->kept)
		warn(ctx, "%s: could not be removed again, since another program has it open; %s stays as it is: dmsetup remove %s.",
		     o->name, o->cow_path, o->name);

	return err ? explain(ctx, o, dev, err) : OK;
}

/* ---- Undoing it ---- */

static void drop_loop(struct cowloop_ctx *ctx, struct loop *l)
{
	struct stat backing;
	bool known;
	char *file;

	if (l->fd < 0)
		return;
	file = loop_file(l->dev);
	known = loop_backing(l->dev, &backing);
	loop_close(l);
	if (file)
		loop_wait_gone(l->dev, file);
	if (known)
		loop_unshare(ctx, &backing);
	free(file);
}

static int unformat(struct cowloop_ctx *ctx, struct file *f, const struct cow_geometry *geo, u64 old_size)
{
	u8 zeroes[COW_BLANK_SIZE] = { 0 };

	if (f->block)
		return file_write(ctx, f, 0, zeroes, sizeof(zeroes));
	return grow_undo(ctx, f, old_size, geo->doffset);
}

/* Take away the room, unless the driver has put something there. */
static int shorten(struct cowloop_ctx *ctx, struct file *f, u64 old_size)
{
	u8 block[4096];
	const size_t tail = -old_size % sizeof(block);
	u64 start = old_size + tail, end;
	int r = file_read_padded(ctx, f, old_size, block, tail);

	/* The block in which the file ended counts as data, whatever is in it. */
	if (r || !all_zero(block, tail))
		return r;
	if (start < f->size)
		r = file_next_data(ctx, f, &start, &end, f->size);
	return r || start < f->size ? r : file_resize(ctx, f, old_size);
}

/* Only with the cowfile for ourselves alone: somebody else may have opened it, which is why we fail. */
static void undo_cow(struct cowloop_ctx *ctx, struct opening *o)
{
	struct file *f = &o->c.file;
	int r = OK;

	if (!o->created && !o->formatted && !o->extended)
		return;
	if (f->fd < 0 && file_open(ctx, f, o->cow_path, FILE_WRITE | FILE_EXCLUSIVE))
		return;
	if (o->created)
		r = unlink(o->cow_path);
	else if (o->formatted)
		r = unformat(ctx, f, &o->c.geo, o->old_size);
	else
		r = shorten(ctx, f, o->old_size);
	if (r)
		warn(ctx, "%s: could not be put back as it was.", o->cow_path);
}

/* ---- The whole ---- */

static int step_done(struct cowloop_ctx *ctx, const struct opening *o, int r)
{
	if (!r && is_cancelled(ctx) && o->repaired)
		return error(ctx, USAGE, "Interrupted; everything is as it was, but for %s, which has been repaired.",
			     o->cow_path);
	if (!r && is_cancelled(ctx))
		return error(ctx, USAGE, "Interrupted; everything is as it was.");
	return r;
}

/* Interrupted, but the device was there by then. */
static int take_back(struct cowloop_ctx *ctx, struct opening *o)
{
	struct dm_device d;

	if (dm_look(o->name, &d))
		return OK;
	errno = dm_remove(ctx, &d, false);
	if (!errno || errno == ENXIO)
		return step_done(ctx, o, OK);
	o->kept = true;
	if (errno == EBUSY)
		return error(ctx, BUSY, "%s: interrupted, but in use by then, and so it stays: another program has it open. cowsetup close %s closes it.",
			     o->name, o->name);
	return error_errno(ctx, "%s: interrupted, but it cannot be removed, and so it stays; cowsetup close %s closes it",
			   o->name, o->name);
}

/*
 * The fingerprint is right; warn if rdo has been modified all the same. With proof
 * of that each time; else once, since from now on the two have been used together.
 * A time that cannot be noted now is noted later.
 */
static int follow_rdo(struct cowloop_ctx *ctx, struct opening *o)
{
	struct cowfile *c = &o->c;
	bool proof;
	char *text;
	int r;

	if (c->format != 2)
		return OK;
	r = changed_since(ctx, &c->head, &o->rdo, &text, &proof);
	if (r)
		return r;
	if (text)
		warn(ctx, "%s: %s. If its contents have changed, what is in the cowfile does not go with them, and filesystems on the device may be damaged.",
		     o->cow_path, text);
	free(text);
	if ((text && proof) || o->how->read_only || c->state != COW_CLEAN ||
	    !changed_remember(&c->head, &o->rdo))
		return OK;
	return cow_write_head(ctx, c, COW_CLEAN, le64(c->head.cowused));
}

static int do_open(struct cowloop_ctx *ctx, struct opening *o)
{
	int r;

	if (file_same_path(o->rdo_path, o->cow_path))
		return error(ctx, WRONG, "%s: cannot be the read-only device and the cowfile at the same time.", o->rdo_path);
	r = refuse_active(ctx, o->rdo_path, true);
	if (!r)
		r = refuse_active(ctx, o->cow_path, false);
	if (!r)
		r = open_plain_rdo(ctx, &o->rdo, o->rdo_path);
	if (!r)
		r = refuse_writers(ctx, &o->rdo, o->how->new.force);
	file_close(&o->rdo);
	if (!r)
		r = step_done(ctx, o, open_cow(ctx, o));
	if (!r)
		r = step_done(ctx, o, cow_open_rdo(ctx, &o->c, &o->rdo, o->rdo_path, FILE_READ | FILE_SHARED));
	if (!r)
		r = extend_cow(ctx, o);
	if (!r)
		r = step_done(ctx, o, repair_cow(ctx, o));
	if (!r)
		r = follow_rdo(ctx, o);
	if (!r)
		r = step_done(ctx, o, attach(ctx, o));
	if (!r)
		r = create(ctx, o);
	return !r && is_cancelled(ctx) ? take_back(ctx, o) : r;
}

int cowloop_open(struct cowloop_ctx *ctx, const char *rdo, const char *cow, const char *name,
		 const struct cowloop_open *how, char **device)
{
	struct opening o = {
		.rdo_path = rdo,
		.cow_path = cow,
		.how = how,
		.rdo = FILE_CLOSED,
		.c = { .file = FILE_CLOSED },
		.rdo_loop = LOOP_CLOSED,
		.cow_loop = LOOP_CLOSED,
	};
	int r;

	*device = NULL;
	r = dm_check_kernel(ctx);
	if (!r)
		r = choose_name(ctx, &o, name);
	if (!r)
		r = do_open(ctx, &o);
	if (r && !o.kept) {
		drop_loop(ctx, &o.cow_loop);
		drop_loop(ctx, &o.rdo_loop);
		undo_cow(ctx, &o);
	} else if (!r) {
		*device = text_of("%s/%s", DM_NODES, o.name);
	}
	loop_close(&o.cow_loop);
	loop_close(&o.rdo_loop);
	cow_close(&o.c);
	file_close(&o.rdo);
	free(o.name);

	return r;
}
