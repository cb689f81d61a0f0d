// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: how the file of a cowfile gets its length, on whatever filesystem.
 *
 * A cowfile is as long as its device, and sparse. FAT, exFAT, HFS+ and others have
 * no sparse files: a file that grows takes space, and the kernel fills it with
 * zeroes in one call, which nothing interrupts. By their names such filesystems
 * cannot be known (FUSE, network filesystems). So the file grows by one step
 * first, and the space that this takes shows what the filesystem does. From there
 * on it grows in steps, each of them synced: what is only in memory would be
 * waited for at the end, all of it at once.
 *
 * btrfs writes nothing in its place: to write what has been written before takes
 * new space, and when there is none, the changes in a cowfile can neither be
 * changed again nor be synced. The attribute "no copy-on-write" ends that. A file
 * takes it only while it is empty.
 */

#include "grow.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>

#include "size.h"

/* The step that shows what the filesystem does, and those after it. */
#define FIRST_STEP	(1024 * 1024)
#define STEP		(32 * 1024 * 1024)

/* ---- Filesystems without sparse files ---- */

static u64 space_taken(const struct file *f)
{
	struct stat st;

	return fstat(f->fd, &st) ? 0 : (u64)st.st_blocks * 512;
}

/* Does all of the file take space? */
static bool is_solid(const struct file *f)
{
	return f->size && space_taken(f) >= f->size;
}

/* Is there room for @more bytes, as far as the filesystem knows? */
static int check_room(struct cowloop_ctx *ctx, const struct file *f, u64 more)
{
	struct statfs fs;
	u64 room;

	if (fstatfs(f->fd, &fs))
		return OK;
	room = (u64)fs.f_bavail * fs.f_bsize;
	if (room >= more)
		return OK;
	return error(ctx, WRONG, "%s: there are no sparse files on its filesystem, so that it takes %s more at once: %s are free. A filesystem with sparse files or a device takes what is changed only.",
		     f->path, size_text(more), size_text(room));
}

static int grow_in_steps(struct cowloop_ctx *ctx, struct file *f, u64 size)
{
	const u64 start = f->size;
	int r = check_room(ctx, f, size - start);

	if (r)
		return r;
	warn(ctx, "%s: there are no sparse files on its filesystem: it takes all of its %s at once, which are written now.",
	     f->path, size_text(size));
	progress_start(ctx, f->path, size - start, "written");
	while (!r && f->size < size) {
		r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", f->path) :
					file_resize(ctx, f, f->size + min_u64(size - f->size, STEP));
		if (!r)
			r = file_sync(ctx, f);
		progress_update(ctx, f->size - start);
	}
	progress_end(ctx, !r);
	return r;
}

/* A file of this length is refused before anything is written, which file_resize() has words for. */
static bool is_too_long(const struct file *f, u64 size)
{
	return fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, size - 1, 1) && errno == EFBIG;
}

int grow_file(struct cowloop_ctx *ctx, struct file *f, u64 size)
{
	const u64 old_size = f->size, taken = space_taken(f);
	u64 first;
	int r;

	if (size <= old_size || is_too_long(f, size))
		return file_resize(ctx, f, size);
	first = min_u64(size - old_size, FIRST_STEP);
	r = file_resize(ctx, f, old_size + first);
	if (!r && space_taken(f) >= taken + first / 2)
		r = grow_in_steps(ctx, f, size);
	else if (!r)
		r = file_resize(ctx, f, size);
	if (r && f->size != old_size && file_resize(ctx, f, old_size))
		warn(ctx, "%s: could not be made as short as it was.", f->path);
	return r;
}

/* ---- btrfs ---- */

/* For an empty file. -1 with errno set. */
static int set_nocow(const struct file *f)
{
	int flags;

	if (ioctl(f->fd, FS_IOC_GETFLAGS, &flags))
		return -1;
	/* Compressed data is never written in its place, so one has to go before the other comes. */
	if (flags & (FS_COMPR_FL | FS_NOCOMP_FL)) {
		flags &= ~(FS_COMPR_FL | FS_NOCOMP_FL);
		if (ioctl(f->fd, FS_IOC_SETFLAGS, &flags))
			return -1;
	}
	flags |= FS_NOCOW_FL;
	return ioctl(f->fd, FS_IOC_SETFLAGS, &flags);
}

static void refuse_copies(struct cowloop_ctx *ctx, const struct file *f)
{
	struct statfs fs;

	if (fstatfs(f->fd, &fs) || fs.f_type != BTRFS_SUPER_MAGIC || !set_nocow(f))
		return;
	warn(ctx, "%s: copy-on-write cannot be turned off for it (chattr +C): %s. When the filesystem is full, what has been changed cannot be changed again.",
	     f->path, strerror(errno));
}

/* ---- New cowfiles ---- */

int zero_in_steps(struct cowloop_ctx *ctx, const struct file *f, u64 offset, u64 length)
{
	/* Where zeroes have to be written, they take their time. */
	const u64 step = (f->block || file_can_punch(f) ? 256 : 16) * 1024 * 1024;
	u64 at;
	int r = OK;

	progress_start(ctx, f->path, length, "zeroed");
	for (at = 0; at < length && !r; at += step) {
		r = file_zero(ctx, f, offset + at, min_u64(length - at, step));
		if (!r && is_cancelled(ctx))
			r = error(ctx, USAGE, "%s: interrupted.", f->path);
		progress_update(ctx, at + step);
	}
	progress_end(ctx, !r);
	return r;
}

/* All of its space is taken: each of its bytes is written once. */
static int blank_solid(struct cowloop_ctx *ctx, struct file *f, u64 size)
{
	const u64 old_size = f->size;
	int r = grow_file(ctx, f, size);

	return r ? r : zero_in_steps(ctx, f, 0, min_u64(old_size, size));
}

int grow_blank(struct cowloop_ctx *ctx, struct file *f, u64 size)
{
	int r = OK;

	if (f->size && !file_can_punch(f) && is_solid(f))
		return blank_solid(ctx, f, size);
	if (f->size && f->size < size)
		r = grow_file(ctx, f, size);
	if (!r && f->size)
		r = file_resize(ctx, f, 0);
	if (r)
		return r;
	refuse_copies(ctx, f);
	return grow_file(ctx, f, size);
}

int grow_undo(struct cowloop_ctx *ctx, struct file *f, u64 size, u64 used)
{
	int r;

	/* The length is there still, and may have taken long. */
	if (f->size >= size && !file_can_punch(f) && is_solid(f)) {
		r = file_resize(ctx, f, size);
		return r ? r : file_zero(ctx, f, 0, used);
	}
	r = file_resize(ctx, f, 0);
	return r ? r : file_resize(ctx, f, size);
}
