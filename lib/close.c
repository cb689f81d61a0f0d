// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: closing devices, and having them write what they hold back.
 *
 * A loop device under a device goes away by itself when the device lets go of
 * it (see loop.c); who makes it do so waits for that, since whoever asks for it
 * is about to unmount what the file is on.
 */

#include "close.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "advice.h"
#include "holders.h"
#include "loop.h"
#include "lost.h"
#include "monitor.h"
#include "share.h"
#include "sysfs.h"

/* ---- sync ---- */

int sync_device(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	errno = dm_message(d, "sync");
	if (!errno)
		return OK;
	return error_errno(ctx, "%s: cannot be synced (cowsetup status %s, and dmesg, say more)", d->name, d->name);
}

int cowloop_sync(struct cowloop_ctx *ctx, const char *name)
{
	struct dm_device d;
	int r = dm_check_kernel(ctx);

	if (!r)
		r = dm_find(ctx, name, &d);
	return r ? r : sync_device(ctx, &d);
}

/* ---- close ---- */

int wait_for_loop(struct cowloop_ctx *ctx, dev_t dev, const char *file, bool autoclear)
{
	struct holders h = HOLDERS_NONE;
	char *path, *user;
	int r = OK;

	if (!file || !autoclear || loop_wait_gone(dev, file))
		return OK;
	path = dev_path(dev);
	holders_find_device(&h, dev, HOLDERS_USES | HOLDERS_OPEN);
	user = holders_text(&h, true);
	r = error(ctx, BUSY, "%s: still attached to %s, which is in use: %s. When that has ended, it is detached by itself.",
		  file, path ? path : "?", user ? user : "another program has it open");
	free(user);
	holders_free(&h);
	free(path);
	return r;
}

/*
 * A loop device of ours goes with the device it was made for, unless something
 * else has been made of it by then, as LVM does that finds its volumes there.
 * This is found out before, as long as the device is there to be closed again.
 */
static int refuse_busy_loop(struct cowloop_ctx *ctx, const struct dm_device *d, dev_t loop)
{
	struct holders h = HOLDERS_NONE;
	char *path, *user;
	int r = OK;

	if (!loop_autoclear(loop) || dev_is_shared(loop, d->dev))
		return OK;
	holders_find_device(&h, loop, HOLDERS_USES);
	holders_drop(&h, d->dev);
	user = holders_text(&h, true);
	if (holders_are_unknown(&h, user)) {
		r = error_memory(ctx);
	} else if (user) {
		path = dev_path(loop);
		r = error(ctx, BUSY, "%s: not closed, since its loop device %s is in use by others: %s. End that, and close it then; --force closes it now, and what it is made of stays in use.",
			  d->name, path ? path : "?", user);
		free(path);
	}
	free(user);
	holders_free(&h);
	return r;
}

static int refuse_busy(struct cowloop_ctx *ctx, const struct dm_device *d, int err)
{
	struct holders h = HOLDERS_NONE;
	char *user;
	int r;

	if (err != EBUSY) {
		errno = err;
		return error_errno(ctx, "%s: cannot be closed", d->name);
	}
	holders_find_device(&h, d->dev, HOLDERS_USES | HOLDERS_OPEN);
	user = holders_text(&h, true);
	r = error(ctx, BUSY, "%s: in use: %s; with --deferred it is closed when that has ended.", d->name,
		  user ? user : "another program has it open");
	free(user);
	holders_free(&h);
	return r;
}

/* Has it been unplugged? */
static bool is_gone(dev_t dev)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	return dev && access(path, F_OK) && errno == ENOENT;
}

/* An errno: has somebody else closed it meanwhile? As when udev and systemd both see that it was unplugged. */
static bool is_closed(const struct dm_device *d, int err)
{
	return err == ENXIO && !dm_name_exists(d->name);
}

/*
 * The kernel has nobody to tell when it can't make everything durable as it
 * removes a device, so have it done before that, while there is a way back.
 */
static int sync_before_close(struct cowloop_ctx *ctx, const struct dm_device *d, bool force)
{
	const bool failed = d->mode == DM_MODE_FAIL, gone = dm_has_cow(d) && is_gone(d->cow);
	char *advice;
	int err, r;

	err = dm_message(d, "sync");
	if (!err || is_closed(d, err))
		return OK;
	/* There is nowhere left to sync it to. */
	if (gone) {
		warn(ctx, "%s: its cow device has gone: what was written since the last sync that succeeded may be lost.",
		     d->name);
		return OK;
	}
	if (force) {
		warn(ctx, "%s: closed without being synced (%s): what was written since the last sync that succeeded may be lost.",
		     d->name, strerror(err));
		return OK;
	}
	advice = err == ENOSPC ? advice_no_space(d->name) : NULL;
	errno = err;
	r = error_errno(ctx, "%s: not closed, since it cannot be synced%s: what was written since the last sync that succeeded would be lost: %s; close --force closes it all the same",
			d->name, failed ? ", as its cow device has failed" : "", advice ? advice : "see dmesg");
	free(advice);
	return r;
}

/* Has it any use that does not end by itself: a mount, a device above, swap? */
static bool is_used(const struct dm_device *d)
{
	struct holders h = HOLDERS_NONE;
	bool used;

	holders_find_device(&h, d->dev, HOLDERS_USES);
	used = h.nr;
	holders_free(&h);
	return used;
}

/* @gone: what it is made of is, and is lost in any case. */
static int close_device(struct cowloop_ctx *ctx, const struct dm_device *d, const struct cowloop_close *how, bool gone)
{
	char *rdo_file, *cow_file;
	bool rdo_autoclear, rdo_known, cow_autoclear, monitored = false;
	struct stat image;
	int err, r;

	/* A user that is here to stay is not waited for. */
	if (!how->deferred && d->open_count && is_used(d))
		return refuse_busy(ctx, d, EBUSY);
	r = how->force || how->deferred ? OK : refuse_busy_loop(ctx, d, d->rdo);
	if (!r && !how->force && !how->deferred && dm_has_cow(d))
		r = refuse_busy_loop(ctx, d, d->cow);
	if (!r && !how->force && !gone)
		r = refuse_removed(ctx, d, "closed");
	if (!r)
		r = sync_before_close(ctx, d, how->force);
	if (r)
		return r;
	warn_cut(ctx, d);

	rdo_file = loop_file(d->rdo);
	rdo_autoclear = loop_autoclear(d->rdo);
	rdo_known = rdo_file && loop_backing(d->rdo, &image);
	cow_file = dm_has_cow(d) ? loop_file(d->cow) : NULL;
	cow_autoclear = cow_file && loop_autoclear(d->cow);
	/* Before it goes, or dmeventd logs an error; but a device in use stays for now, with --deferred. */
	if (!how->deferred || !d->open_count)
		monitored = monitor_is_on(d) && !monitor_stop(ctx, d);
	err = dm_remove(ctx, d, how->deferred);
	if (is_closed(d, err))
		err = 0;
	if (err && monitored)
		monitor_start(ctx, d);
	if (err) {
		r = refuse_busy(ctx, d, err);
	} else if (!dm_name_exists(d->name)) {
		r = wait_for_loop(ctx, d->rdo, rdo_file, rdo_autoclear);
		if (!r && rdo_known)
			loop_unshare(ctx, &image);
		if (!r)
			r = wait_for_loop(ctx, d->cow, cow_file, cow_autoclear);
	}
	free(rdo_file);
	free(cow_file);
	return r;
}

/* Is a device that it is made of gone? */
static bool has_lost(const struct dm_device *d)
{
	return is_gone(d->rdo) || (dm_has_cow(d) && is_gone(d->cow));
}

/* Devices that are in use are closed when they are not any more: until then there are errors of I/O. */
int cowloop_close_gone(struct cowloop_ctx *ctx, bool force)
{
	const struct cowloop_close how = { .deferred = true, .force = force };
	struct dm_device *devices, now;
	int r, one;
	size_t nr;

	r = dm_check_kernel(ctx);
	if (r)
		return r;
	r = dm_list(ctx, &devices, &nr);
	for (size_t i = 0; i < nr && !is_cancelled(ctx); i++) {
		if (!has_lost(&devices[i]))
			continue;
		/* Closing another one, or somebody else, may have changed it, or opened it anew. */
		if (dm_look(devices[i].name, &now) || now.deferred_remove || !has_lost(&now))
			continue;
		one = close_device(ctx, &now, &how, true);
		if (!r)
			r = one;
	}
	free(devices);
	return r;
}

int cowloop_close(struct cowloop_ctx *ctx, const char *name, const struct cowloop_close *how)
{
	struct dm_device d;
	int r = dm_check_kernel(ctx);

	if (!r)
		r = dm_find(ctx, name, &d);
	return r ? r : close_device(ctx, &d, how, false);
}
