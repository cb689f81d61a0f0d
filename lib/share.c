// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the loop device of an image, which all devices over it share.
 *
 * Blocks that one loop device has read into the page cache need not be read from the disk
 * again, while with direct I/O each device reads all of them for itself. A single device has
 * direct I/O, though: its reads are in the page cache above it already, and a copy below
 * would take memory and time. So the page cache is used from the second device on, for
 * as long as the loop device is there.
 *
 * Which loop device a file has is noted by a link in SHARE_DIR, so that it need not be
 * looked for among a thousand. The note is a hint: the device itself is asked, and where
 * no note can be made there is a loop device for each.
 */

#include "share.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>
#include <linux/loop.h>

#include "sysfs.h"

#define SHARE_DIR	COWSETUP_RUN "/images"

/* The note of a file. */
struct note {
	int dir;		/* locked; -1: no notes can be made */
	char name[64];
};

/* How long to wait for others that look for a loop device, or attach one. */
#define LOCK_TRIES	500
#define LOCK_PAUSE	((struct timespec){ .tv_nsec = 10 * 1000 * 1000 })

/* An image may be slow, or hang, while somebody has the lock: this waits for a bounded time. */
static bool lock_notes(struct cowloop_ctx *ctx, int dir, unsigned int tries)
{
	while (flock(dir, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK || !--tries || is_cancelled(ctx))
			return false;
		nanosleep(&LOCK_PAUSE, NULL);
	}
	return true;
}

static struct note open_note(struct cowloop_ctx *ctx, const struct stat *st, unsigned int tries)
{
	struct note n = { .dir = -1 };

	snprintf(n.name, sizeof(n.name), "%u:%u-%ju", major(st->st_dev), minor(st->st_dev), (uintmax_t)st->st_ino);
	if ((mkdir(COWSETUP_RUN, 0755) && errno != EEXIST) || (mkdir(SHARE_DIR, 0700) && errno != EEXIST))
		return n;
	n.dir = open(SHARE_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (n.dir >= 0 && !lock_notes(ctx, n.dir, tries)) {
		close(n.dir);
		n.dir = -1;
	}
	return n;
}

static void close_note(struct note *n)
{
	if (n->dir >= 0)
		close(n->dir);
}

static void write_note(const struct note *n, const struct loop *l)
{
	char *path = n->dir < 0 ? NULL : dev_path(l->dev);

	/* Without a note the next device has a loop device of its own. */
	if (path) {
		unlinkat(n->dir, n->name, 0);
		if (symlinkat(path, n->dir, n->name) && errno == EEXIST)
			unlinkat(n->dir, n->name, 0);
	}
	free(path);
}

/* Is it what loop_attach() would make of the file now? */
static bool is_like_new(const struct loop *l, const struct file *f)
{
	struct loop_info64 info;
	u64 size;
	int block;

	return !ioctl(l->fd, LOOP_GET_STATUS64, &info) &&
	       !strncmp((const char *)info.lo_file_name, LOOP_MARK, strlen(LOOP_MARK)) &&
	       info.lo_flags & LO_FLAGS_AUTOCLEAR && info.lo_flags & LO_FLAGS_READ_ONLY &&
	       !info.lo_offset && !info.lo_sizelimit && loop_has_file(l->dev, f) &&
	       !ioctl(l->fd, BLKGETSIZE64, &size) && size == f->size - f->size % LOOP_BLOCK &&
	       !ioctl(l->fd, BLKSSZGET, &block) && block == LOOP_BLOCK;
}

/* The path in the note; false: there is none. */
static bool read_note(const struct note *n, char path[32])
{
	const ssize_t length = n->dir < 0 ? -1 : readlinkat(n->dir, n->name, path, 31);

	if (length < 0)
		return false;
	path[length] = 0;
	return true;
}

/* A loop device that is open stays what it is. */
static bool find_noted(const struct note *n, struct loop *l, const struct file *f)
{
	char path[32];
	struct stat st;

	*l = LOOP_CLOSED;
	if (!read_note(n, path))
		return false;
	l->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (l->fd >= 0 && !fstat(l->fd, &st) && S_ISBLK(st.st_mode)) {
		l->dev = st.st_rdev;
		if (is_like_new(l, f))
			return true;
	}
	loop_close(l);
	return false;
}

int loop_share(struct cowloop_ctx *ctx, struct loop *l, const struct file *f, enum cowloop_cache cache)
{
	struct note n = { .dir = -1 };
	struct stat st;
	int r = OK;

	*l = LOOP_CLOSED;
	if (!fstat(f->fd, &st))
		n = open_note(ctx, &st, LOCK_TRIES);
	if (!find_noted(&n, l, f)) {
		r = loop_attach(ctx, l, f, cache == COWLOOP_CACHE_ALWAYS ? LOOP_CACHED : LOOP_DIRECT);
		if (!r)
			write_note(&n, l);
	} else if (cache != COWLOOP_CACHE_NEVER && ioctl(l->fd, LOOP_SET_DIRECT_IO, 0UL)) {
		warn(ctx, "%s: its loop device cannot use the page cache (%s): what several devices read is read from the disk by each.",
		     f->path, strerror(errno));
	}
	close_note(&n);
	return r;
}

void loop_unshare(struct cowloop_ctx *ctx, const struct stat *backing)
{
	/* A note that stays is not worth waiting for. */
	struct note n = open_note(ctx, backing, 1);
	char path[32];
	struct stat st;

	/* Somebody may have attached another one by now. */
	if (read_note(&n, path) &&
	    (stat(path, &st) || !S_ISBLK(st.st_mode) || !loop_has(st.st_rdev, backing)))
		unlinkat(n.dir, n.name, 0);
	close_note(&n);
}
