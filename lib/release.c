// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: having a device let go of what holds its cowfile.
 */

#include "close.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "file.h"
#include "flush.h"
#include "holders.h"
#include "loop.h"
#include "lost.h"
#include "sysfs.h"
#include "text.h"

/*
 * The device has let go of the loop device, and so will the loop device of the
 * file; but one that was there before us stays, so say so.
 */
static int release_file(struct cowloop_ctx *ctx, const struct dm_device *d, const char *file)
{
	char *now = loop_file(d->cow), *path = dev_path(d->cow);
	int r = OK;

	if (now && !strcmp(now, file)) {
		if (loop_autoclear(d->cow))
			r = wait_for_loop(ctx, d->cow, file, true);
		else
			warn(ctx, "%s: still held by %s, which was not attached by cowsetup: losetup --detach %s.",
			     file, path ? path : "?", path ? path : "?");
	}
	free(now);
	free(path);
	return r;
}

/*
 * A filesystem that is mounted on it is no reason to refuse: where it is the
 * machine's root, and that goes down, nobody could do anything about it. But it
 * is told what is lost by it; what there is to write has been written by then.
 */
static void warn_mounted(struct cowloop_ctx *ctx, const struct dm_device *d, bool unreadable)
{
	bool writable;
	char *point = device_mount_anywhere(d->dev, &writable);

	if (point && unreadable)
		warn(ctx, "%s: mounted on %s: what has been modified cannot be read there from now on.", d->name, point);
	if (point && writable)
		warn(ctx, "%s: mounted on %s for writing: what is written there from now on is lost.",
		     d->name, point);
	free(point);
}

/* The options that still mean something to a device that is never written; NULL: no memory. */
static char *read_only_options(const struct dm_device *d)
{
	char words[sizeof(d->options)], *save;
	struct text options = { 0 };

	text_add(&options, "read_only");
	strcpy(words, d->options);
	for (char *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		if (strncmp(word, "limit:", 6) && strncmp(word, "reserve:", 8) &&
		    strncmp(word, "low_water:", 10) &&
		    strcmp(word, "queue_if_no_space") && strcmp(word, "no_discard_passdown"))
			continue;
		text_add(&options, " %s", word);
	}
	return text_take(&options);
}

/*
 * As long as a loop device has the file open for writing, the filesystem it is
 * on can't be remounted read-only. So put one in its place that has not.
 */
static int exchange_loop(struct cowloop_ctx *ctx, const struct dm_device *d, const struct file *f, const char *path)
{
	char *options = read_only_options(d), *params, *said;
	struct loop l;
	int err, r = loop_attach(ctx, &l, f, LOOP_DIRECT);

	if (!r) {
		params = options ? dm_params(d->rdo, l.dev, options) : NULL;
		dm_log_mark(ctx);
		err = params ? dm_replace(ctx, d, params, true) : ENOMEM;
		free(params);
		loop_close(&l);
		if (err) {
			said = dm_log_last(ctx, d->dev);
			errno = err;
			r = error_errno(ctx, "%s: takes no more writes, but still holds %s for writing: the kernel refuses another table%s%s",
					d->name, path, said ? ": " : "", said ? said : "");
			free(said);
		}
	}
	free(options);
	return r;
}

int cowloop_readonly(struct cowloop_ctx *ctx, const char *name, bool force)
{
	struct file f = FILE_CLOSED;
	struct dm_device d;
	char *path = NULL;
	int r = dm_check_kernel(ctx);

	if (!r)
		r = dm_find(ctx, name, &d);
	if (r)
		return r;
	if (d.mode == DM_MODE_CLOSED)
		return error(ctx, WRONG, "%s: it has let go of its cowfile already.", d.name);
	if (d.suspended)
		return error(ctx, BUSY, "%s: suspended; dmsetup resume %s first.", d.name, d.name);

	path = loop_file(d.cow);
	if (path) {
		r = file_open(ctx, &f, path, FILE_READ);
		if (!r && !loop_has_file(d.cow, &f))
			r = error(ctx, WRONG, "%s: this is not the cowfile of %s any more: it was renamed or removed.",
				  path, d.name);
	}
	if (!r)
		r = flush_device(ctx, &d, "readonly", force);
	if (!r) {
		warn_mounted(ctx, &d, false);
		errno = dm_message(&d, "read_only");
		if (errno)
			r = error_errno(ctx, "%s: cannot be made read-only (cowsetup status %s, and dmesg, say more)",
					d.name, d.name);
	}
	if (!r && path && !loop_read_only(d.cow)) {
		r = exchange_loop(ctx, &d, &f, path);
		if (!r)
			r = release_file(ctx, &d, path);
		/* The new loop device holds it, as the old one did, so that who can't ask loop devices sees it, too. */
		if (!r)
			file_try_share(&f);
	}
	file_close(&f);
	free(path);
	return r;
}

/*
 * A cowfile is let go of so that the filesystem that it is on can be unmounted;
 * but there may be another file on that.
 */
static void warn_rdo_beside(struct cowloop_ctx *ctx, const struct dm_device *d, const char *cow_file, dev_t cow_fs)
{
	char *rdo_file = loop_file(d->rdo);
	struct stat st;

	if (rdo_file && !stat(rdo_file, &st) && S_ISREG(st.st_mode) && st.st_dev == cow_fs)
		warn(ctx, "%s: its read-only device, %s, is on the same filesystem as %s was, which stays in use by that until cowsetup close %s.",
		     d->name, rdo_file, cow_file, d->name);
	free(rdo_file);
}

int cowloop_detach(struct cowloop_ctx *ctx, const char *name, bool force)
{
	struct dm_device d, now;
	char *path, *said;
	struct stat st;
	bool lost;
	int err, r = dm_check_kernel(ctx);

	if (!r)
		r = dm_find(ctx, name, &d);
	if (r)
		return r;
	if (d.mode == DM_MODE_CLOSED) {
		tell(ctx, "%s: it has let go of its cowfile already.", d.name);
		return OK;
	}

	if (d.suspended)
		return error(ctx, BUSY, "%s: suspended; dmsetup resume %s first.", d.name, d.name);
	if (!force && has_lost_cow(&d))
		r = refuse_removed(ctx, &d, "detached");
	if (!r)
		r = flush_device(ctx, &d, "detach", force);
	if (r)
		return r;

	path = loop_file(d.cow);
	if (!path || stat(path, &st))
		st.st_dev = 0;
	warn_mounted(ctx, &d, true);
	dm_log_mark(ctx);
	err = dm_message(&d, "close");
	/* One that has failed lets go all the same. */
	lost = err && !dm_look(d.name, &now) && now.mode == DM_MODE_CLOSED;
	if (err) {
		said = dm_log_last(ctx, d.dev);
		errno = err;
		if (lost)
			r = error(ctx, WRONG, "%s: has let go of its cowfile, and had failed before: %s", d.name,
				  said ? said : "what was not flushed is lost");
		else if (said && strstr(said, "unrecognised message"))
			r = error(ctx, WRONG, "The module dm-cowloop that is loaded cannot let go of a cowfile; a newer one can.");
		else
			r = error_errno(ctx, "%s: cannot let go of its cowfile%s%s", d.name, said ? ": " : "", said ? said : "");
		free(said);
	}
	if (path && (!err || lost)) {
		err = release_file(ctx, &d, path);
		r = r ? r : err;
		if (!err && st.st_dev)
			warn_rdo_beside(ctx, &d, path, st.st_dev);
	}
	free(path);
	return r;
}
