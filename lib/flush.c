// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: having all that stands on a device write to it what it holds back.
 *
 * Mounts are of a mount namespace, which may be a container's, and so a mount
 * point is not what to go by. The ioctl BLKFLSBUF has the kernel sync the
 * filesystem on a block device wherever that is mounted, and the device's own
 * page cache. The topmost devices come first, so that what they write is below
 * when its turn comes. A btrfs is not found by its device on every kernel: then
 * all filesystems are synced.
 *
 * The device is not suspended for that, although suspending it would have it
 * frozen: this program may be on it, or log to it, and would wait for itself. A
 * filesystem that is frozen has nothing to write.
 *
 * A process that writes out a filesystem cannot be interrupted, and may wait for ever:
 * for space, where writes that find none are queued, or for a part of it that
 * does not answer. So a child does that, which nobody waits for any more when it
 * is no use. It may have the device open for longer then.
 */

#include "flush.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>

#include "advice.h"
#include "holders.h"
#include "sysfs.h"

#define MAX_DEPTH	16	/* of devices above devices: no real stack is as high */

/* ---- The child ---- */

/* 0 or an errno. */
static int flush_buffers(dev_t dev)
{
	char *path = dev_path(dev), *btrfs = dev_btrfs(dev);
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1, err = 0;

	if (!path)
		err = ENOMEM;
	else if (fd < 0 || ioctl(fd, BLKFLSBUF))
		err = errno;
	if (fd >= 0)
		close(fd);
	if (btrfs)
		sync();
	free(btrfs);
	free(path);
	return err;
}

/* A device that has gone by now has nothing to be written. */
static int flush_all(dev_t dev, unsigned int depth)
{
	struct holders h = HOLDERS_NONE;
	int err = 0, one;

	if (depth > MAX_DEPTH)
		return ELOOP;
	holders_find_device(&h, dev, HOLDERS_USES);
	for (size_t i = 0; i < h.nr; i++) {
		one = h.list[i].dev ? flush_all(h.list[i].dev, depth + 1) : 0;
		if (one && one != ENOENT && one != ENXIO)
			err = one;
	}
	/* A holder that is not known is not flushed. */
	if (h.no_memory)
		err = ENOMEM;
	holders_free(&h);
	one = flush_buffers(dev);
	return one ? one : err;
}

/* ---- Waiting for it ---- */

/* Writes that find no space wait for it. */
static bool waits_for_space(const struct dm_device *d)
{
	struct dm_device now;

	return !dm_look(d->name, &now) && now.mode == DM_MODE_OUT_OF_SPACE && strstr(now.options, "queue_if_no_space");
}

static const struct timespec pause_20ms = { .tv_nsec = 20 * 1000 * 1000 };

/* The child may be where signals do not reach it: then whoever is there last waits for it. */
static void end_child(pid_t child)
{
	kill(child, SIGKILL);
	for (unsigned int n = 0; n < 10 && !waitpid(child, NULL, WNOHANG); n++)
		nanosleep(&pause_20ms, NULL);
}

/* An errno, 0, or ENOSPC for what would have to wait for space. */
static int wait_for_child(struct cowloop_ctx *ctx, const struct dm_device *d, pid_t child)
{
	int status;
	pid_t ended;

	for (unsigned int n = 1; !(ended = waitpid(child, &status, WNOHANG)); n++) {
		if (is_cancelled(ctx) || (n % 50 == 0 && waits_for_space(d))) {
			end_child(child);
			return is_cancelled(ctx) ? EINTR : ENOSPC;
		}
		if (n == 500)
			warn(ctx, "%s: waiting until what is on it has written all that it holds in memory; ^C ends that, and leaves everything as it is.",
			     d->name);
		nanosleep(&pause_20ms, NULL);
	}
	/* Somebody else has waited for it, or SIGCHLD is ignored: how it ended is not known. */
	if (ended < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
}

static int flush_above(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	pid_t child;

	if (waits_for_space(d))
		return ENOSPC;
	child = fork();
	if (child < 0)
		return errno;
	if (!child) {
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
		signal(SIGHUP, SIG_DFL);
		_exit(flush_all(d->dev, 0));
	}
	return wait_for_child(ctx, d, child);
}

int flush_device(struct cowloop_ctx *ctx, const struct dm_device *d, const char *what, bool force)
{
	int err = flush_above(ctx, d), r;
	char *advice;

	if (err == EINTR)
		return error(ctx, USAGE, "%s: interrupted; everything is as it was.", d->name);
	if (!err)
		err = dm_message(d, "sync");
	if (!err)
		return OK;
	if (force) {
		warn(ctx, "%s: not everything could be written (%s): what was written since the last sync that succeeded may be lost.",
		     d->name, strerror(err));
		return OK;
	}
	advice = err == ENOSPC ? advice_no_space(d->name) : NULL;
	errno = err;
	r = error_errno(ctx, "%s: not everything can be written, and what was written since the last sync that succeeded would be lost%s%s; %s --force does it all the same. Everything is as it was",
			d->name, advice ? ": " : "", advice ? advice : "", what);
	free(advice);
	return r;
}
