// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: files and block devices, as one thing that can be read and written.
 *
 * In use. A block device is in use when it can't be opened with O_EXCL: it is
 * mounted, held by device-mapper or md, or swap. For a file there is no such
 * thing, nor for a device that is attached to a loop device: these are looked
 * for among what all the loop devices are made of. Two cowsetups are kept apart by flock(): exclusive on cowfiles,
 * and on a read-only device that a merge writes; shared on one that has to stay
 * as it is meanwhile.
 */

#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <blkid/blkid.h>
#include <linux/falloc.h>
#include <linux/fs.h>

#include "holders.h"
#include "mountinfo.h"
#include "owner.h"
#include "size.h"
#include "text.h"

/* ---- Opening ---- */

/* Is it what may be opened? */
static bool is_right_kind(mode_t mode, bool pipes)
{
	return S_ISREG(mode) || S_ISBLK(mode) || (pipes && S_ISFIFO(mode));
}

int open_checked(const char *path, int flags, bool pipes)
{
	const int name = open(path, O_PATH | O_CLOEXEC);
	int fd = -1, err;
	char link[32];
	struct stat st;

	if (name < 0)
		return -1;
	if (!fstat(name, &st)) {
		if (is_right_kind(st.st_mode, pipes)) {
			/* /proc/self/fd leads to the same thing, whatever is at @path by now. */
			snprintf(link, sizeof(link), "/proc/self/fd/%d", name);
			if (!S_ISBLK(st.st_mode))
				flags &= ~O_EXCL;
			fd = open(link, flags | O_CLOEXEC);
		} else {
			errno = ENOTBLK;
		}
	}
	err = errno;
	close(name);
	errno = err;
	return fd;
}

/* Does an attribute keep even root from writing to it? */
static bool is_unchangeable(const char *path)
{
	struct statx st;

	return !statx(AT_FDCWD, path, AT_NO_AUTOMOUNT, STATX_TYPE, &st) &&
	       st.stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND);
}

int error_open(struct cowloop_ctx *ctx, const char *path, const char *what)
{
	const int err = errno;

	if (!*path)
		return error(ctx, USAGE, "The name of a file or device is empty.");
	if (err == ENOTBLK)
		return error(ctx, WRONG, "%s: neither a file nor a block device.", path);
	if (err == EPERM && is_unchangeable(path))
		return error(ctx, DENIED, "%s: cannot be written: it has the attribute immutable or append-only (lsattr shows it; chattr -ia takes it away).",
			     path);
	errno = err;
	return error_errno(ctx, "%s%s%s", path, *what ? ": " : "", what);
}

int file_from_fd(struct cowloop_ctx *ctx, struct file *f, int fd, const char *path)
{
	struct stat st;
	__u64 bytes;

	f->fd = fd;
	f->path = path;
	f->writable = (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
	if (fstat(fd, &st))
		return error_errno(ctx, "%s: cannot be examined", path);
	f->block = S_ISBLK(st.st_mode);
	if (S_ISREG(st.st_mode)) {
		f->size = st.st_size;
		return OK;
	}
	if (!f->block)
		return error(ctx, WRONG, "%s: neither a file nor a block device.", path);
	if (ioctl(fd, BLKGETSIZE64, &bytes))
		return error_errno(ctx, "%s: the size of the device cannot be read", path);
	f->size = bytes;
	return OK;
}

/* For a file that can't be opened for itself alone, or locked: say who has it. */
static int refuse_used(struct cowloop_ctx *ctx, struct file *f, const char *path)
{
	struct holders h = HOLDERS_NONE;
	struct file probe = FILE_CLOSED;
	char *user;
	int fd = open_checked(path, O_RDONLY | O_NONBLOCK, false);

	if (fd >= 0 && !file_from_fd(ctx, &probe, fd, path)) {
		holders_find(&h, &probe, HOLDERS_USES | HOLDERS_LOCKED);
		if (!h.nr)
			holders_find(&h, &probe, HOLDERS_OPEN);
	}
	user = holders_text(&h, true);
	error(ctx, BUSY, "%s: in use: %s.", path, user ? user : "another program has it open");
	free(user);
	holders_free(&h);
	file_close(&probe);
	file_close(f);
	return BUSY;
}

/* Take the lock that @flags ask for, without waiting. */
static int lock(struct cowloop_ctx *ctx, struct file *f, unsigned int flags)
{
	char *user = NULL;
	int r = OK;

	if (flags & FILE_EXCLUSIVE) {
		/* A loop device does not keep others from the device it is made of, either. */
		r = file_used_by(ctx, f, &user);
		if (user)
			r = refuse_used(ctx, f, f->path);
		else if (!r && !f->block && flock(f->fd, (flags & FILE_WRITE ? LOCK_EX : LOCK_SH) | LOCK_NB))
			r = errno == EWOULDBLOCK ? refuse_used(ctx, f, f->path) :
						   error_errno(ctx, "%s: cannot be locked", f->path);
		free(user);
	} else if (flags & FILE_SHARED && !f->block && flock(f->fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK) {
		/* An image may be on a filesystem that has no locks, and be good for all that. */
		r = refuse_used(ctx, f, f->path);
	}
	return r;
}

static int open_once(struct cowloop_ctx *ctx, struct file *f, const char *path, unsigned int flags)
{
	int mode = (flags & FILE_WRITE ? O_RDWR : O_RDONLY) | O_NONBLOCK;
	int r;

	if (flags & FILE_EXCLUSIVE)
		mode |= O_EXCL;
	f->fd = open_checked(path, mode, false);
	if (f->fd < 0)
		return errno == EBUSY ? refuse_used(ctx, f, path) :
					error_open(ctx, path, errno == ENOENT || errno == EACCES ? "" : "cannot be opened");
	r = file_from_fd(ctx, f, f->fd, path);
	if (!r && flags & FILE_OURS)
		r = owner_refuse(ctx, f);
	if (!r)
		r = lock(ctx, f, flags);
	if (r)
		file_close(f);
	return r;
}

int file_open(struct cowloop_ctx *ctx, struct file *f, const char *path, unsigned int flags)
{
	int r = BUSY;

	/* The last owner of the lock may have put another file in the place of the one that is locked now. */
	for (int i = 0; i < 10; i++) {
		*f = FILE_CLOSED;
		r = open_once(ctx, f, path, flags);
		if (r || !(flags & (FILE_EXCLUSIVE | FILE_SHARED)) || file_is_at(f, path))
			return r;
		file_close(f);
	}
	return error(ctx, BUSY, "%s: in use: it is replaced by another file all the time.", path);
}

void file_close(struct file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}

void file_try_share(const struct file *f)
{
	/* The lock is no more than a help for others. */
	(void)!flock(f->fd, LOCK_SH | LOCK_NB);
}

bool file_same_path(const char *a, const char *b)
{
	struct stat sa, sb;

	return !stat(a, &sa) && !stat(b, &sb) && stat_same(&sa, &sb);
}

bool file_is_at(const struct file *f, const char *path)
{
	struct stat sf, sp;

	return !fstat(f->fd, &sf) && !stat(path, &sp) && stat_same(&sf, &sp);
}

/* ---- Reading and writing ---- */

u8 *file_buffer(struct cowloop_ctx *ctx)
{
	u8 *buf = malloc(FILE_CHUNK);

	if (!buf)
		error_memory(ctx);
	return buf;
}

/* Up to @length bytes, fewer at the end only; negative with errno set. */
static ssize_t read_some(struct cowloop_ctx *ctx, int fd, u64 offset, void *buf, size_t length)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = pread(fd, (char *)buf + done, length - done, offset + done);
		if (n < 0 && errno == EINTR && !is_cancelled(ctx))
			continue;
		if (n < 0)
			return -1;
		if (!n)
			break;
		done += n;
	}
	return done;
}

int file_read_padded(struct cowloop_ctx *ctx, const struct file *f, u64 offset, void *buf, size_t length)
{
	const ssize_t n = read_some(ctx, f->fd, offset, buf, length);

	if (n < 0)
		return error_errno(ctx, "%s: reading %zu bytes at %llu", f->path, length, offset);
	memset((char *)buf + n, 0, length - n);
	return OK;
}

int file_read(struct cowloop_ctx *ctx, const struct file *f, u64 offset, void *buf, size_t length)
{
	const ssize_t n = read_some(ctx, f->fd, offset, buf, length);

	if (n < 0)
		return error_errno(ctx, "%s: reading %zu bytes at %llu", f->path, length, offset);
	if ((size_t)n < length)
		return error(ctx, WRONG, "%s: ends at %llu, where %zu bytes more were expected.",
			     f->path, offset + n, length - n);
	return OK;
}

int file_write(struct cowloop_ctx *ctx, const struct file *f, u64 offset, const void *buf, size_t length)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = pwrite(f->fd, (const char *)buf + done, length - done, offset + done);
		if (n < 0 && errno == EINTR && !is_cancelled(ctx))
			continue;
		if (n < 0)
			return error_errno(ctx, "%s: writing %zu bytes at %llu", f->path,
					   length - done, offset + done);
		done += n;
	}
	return OK;
}

int file_sync(struct cowloop_ctx *ctx, const struct file *f)
{
	if (fsync(f->fd))
		return error_errno(ctx, "%s: cannot be written to stable storage", f->path);
	return OK;
}

int file_resize(struct cowloop_ctx *ctx, struct file *f, u64 size)
{
	struct rlimit max;

	if (ftruncate(f->fd, size)) {
		if (errno == EFBIG && !getrlimit(RLIMIT_FSIZE, &max) && size > max.rlim_cur)
			return error(ctx, WRONG, "%s: cannot be made %s long: files of at most %s are allowed here (ulimit -f).",
				     f->path, size_text(size), size_text(max.rlim_cur));
		if (errno == EFBIG)
			return error(ctx, WRONG, "%s: the filesystem cannot have a file of %s, sparse or not; another filesystem or a device can.",
				     f->path, size_text(size));
		return error_errno(ctx, "%s: cannot be made %s long", f->path, size_text(size));
	}
	f->size = size;
	return OK;
}

static int write_zeroes(struct cowloop_ctx *ctx, const struct file *f, u64 offset, u64 length)
{
	static const char zeroes[65536];
	u64 done;
	int r = OK;

	for (done = 0; done < length && !r; done += sizeof(zeroes)) {
		const u64 left = length - done;

		r = file_write(ctx, f, offset + done, zeroes, min_u64(left, sizeof(zeroes)));
	}
	return r;
}

int file_zero(struct cowloop_ctx *ctx, const struct file *f, u64 offset, u64 length)
{
	__u64 range[2];

	if (offset >= f->size || !length)
		return OK;
	if (length > f->size - offset)
		length = f->size - offset;
	range[0] = offset;
	range[1] = length;

	/* A device takes whole blocks only, by other ways than pwrite(). */
	if (f->block) {
		if (!((offset | length) & 4095) && !ioctl(f->fd, BLKZEROOUT, range))
			return OK;
	} else if (!fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)) {
		return OK;
	}
	return write_zeroes(ctx, f, offset, length);
}

bool file_can_punch(const struct file *f)
{
	/* Behind the end, where nothing is. */
	return !f->block &&
	       !fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, f->size, 4096);
}

int file_next_data(struct cowloop_ctx *ctx, const struct file *f, u64 *start, u64 *data_end, u64 end)
{
	off_t data, hole;

	*data_end = end;
	if (f->block || *start >= end)
		return OK;
	data = lseek(f->fd, *start, SEEK_DATA);
	if (data < 0 && errno == ENXIO) {
		*start = end;	/* a hole up to the end of the file */
		return OK;
	}
	if (data < 0 && errno != EINVAL)
		return error_errno(ctx, "%s: looking for data at %llu", f->path, *start);
	if (data < 0)
		return OK;	/* this filesystem doesn't know */
	if ((u64)data >= end) {
		*start = end;
		return OK;
	}
	*start = data;
	hole = lseek(f->fd, data, SEEK_HOLE);
	if (hole > data && (u64)hole < end)
		*data_end = hole;
	return OK;
}

bool all_zero(const void *data, size_t length)
{
	const unsigned char *p = data;

	/* Equal to itself one byte on. */
	return !length || (!p[0] && !memcmp(p, p + 1, length - 1));
}

/* ---- What is in it ---- */

int file_contents(const struct file *f, char **found)
{
	blkid_probe pr = blkid_new_probe();
	const char *type = NULL;
	bool any = true;

	*found = NULL;
	if (!pr)
		return NO_MEMORY;
	if (!blkid_probe_set_device(pr, f->fd, 0, 0)) {
		blkid_probe_enable_superblocks(pr, 1);
		blkid_probe_set_superblocks_flags(pr, BLKID_SUBLKS_TYPE);
		blkid_probe_enable_partitions(pr, 1);
		if (blkid_do_safeprobe(pr) == -2)
			*found = strdup("several filesystems or partition tables at once");
		else if (!blkid_probe_lookup_value(pr, "TYPE", &type, NULL))
			*found = text_of("a filesystem or the like (%s)", type);
		else if (!blkid_probe_lookup_value(pr, "PTTYPE", &type, NULL))
			*found = text_of("a partition table (%s)", type);
		else
			any = false;
	} else {
		any = false;
	}
	blkid_free_probe(pr);
	return any && !*found ? NO_MEMORY : OK;
}
