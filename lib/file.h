/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: files and block devices, as one thing that can be read and written.
 */

#ifndef LIBCOWLOOP_FILE_H
#define LIBCOWLOOP_FILE_H

#include "context.h"

#include <sys/stat.h>
#include <sys/types.h>

struct file {
	const char *path;	/* as given; for messages */
	int fd;
	bool block;		/* a block device, otherwise a regular file */
	bool writable;
	u64 size;		/* bytes */
};

#define FILE_CLOSED	((struct file){ .fd = -1 })

/* How much is read or written at a time. */
#define FILE_CHUNK	(1024 * 1024)

/* So many bytes, to be freed; NULL: no memory, which has been told. */
u8 *file_buffer(struct cowloop_ctx *ctx);

enum {
	FILE_READ = 0,
	FILE_WRITE = 1,		/* also to be written */
	FILE_EXCLUSIVE = 2,	/* refuse it when anybody else has it in use */
	FILE_SHARED = 4,	/* a file: refuse it when another cowsetup has it exclusively, to write it */
	FILE_OURS = 8,		/* a file: refuse it when somebody else made it or may write it */
};

/*
 * As open() with @flags, which close-on-exec is added to, but of files and block
 * devices only, and pipes if @pipes: nothing else is opened, since that can do
 * something, as it does to a watchdog or a tape. -1 with errno set, which is
 * ENOTBLK for these. O_EXCL is for block devices.
 */
int open_checked(const char *path, int flags, bool pipes);

/* Say why open_checked() has failed, and, if that is not empty, what; returns the exit code for errno. */
int error_open(struct cowloop_ctx *ctx, const char *path, const char *what);

/* Open what is there already; @path must stay. */
int file_open(struct cowloop_ctx *ctx, struct file *f, const char *path, unsigned int flags);

/* Take over a descriptor of a regular file or a block device. */
int file_from_fd(struct cowloop_ctx *ctx, struct file *f, int fd, const char *path);

/* Without a word about errors, since nothing is lost that was not synced. */
void file_close(struct file *f);

/* Have nobody write it who asks for the lock, if that can be had: for as long as the open file lives. */
void file_try_share(const struct file *f);

/* Read or write all of @length bytes; a file that ends before that is an error. */
int file_read(struct cowloop_ctx *ctx, const struct file *f, u64 offset, void *buf, size_t length);
int file_write(struct cowloop_ctx *ctx, const struct file *f, u64 offset, const void *buf, size_t length);

/* The same, but beyond the end there are zeroes. */
int file_read_padded(struct cowloop_ctx *ctx, const struct file *f, u64 offset, void *buf, size_t length);

/* Everything that was written is on stable storage when it returns. */
int file_sync(struct cowloop_ctx *ctx, const struct file *f);

/* Make a regular file so long. */
int file_resize(struct cowloop_ctx *ctx, struct file *f, u64 size);

/*
 * Make zeroes of a part, giving back the space where that can be done. Beyond
 * the end of the file nothing is done.
 */
int file_zero(struct cowloop_ctx *ctx, const struct file *f, u64 offset, u64 length);

/* Does file_zero() give back space here? Else it fills holes. Never on a device. */
bool file_can_punch(const struct file *f);

/*
 * Where the next data is from *@start on and below @end: *@start and *@data_end
 * are set to it, or both to @end if the rest is a hole. On block devices, and
 * where holes are not known, everything is data.
 */
int file_next_data(struct cowloop_ctx *ctx, const struct file *f, u64 *start, u64 *data_end, u64 end);

/* The same file or device, by whatever paths and links? */
bool file_same_path(const char *a, const char *b);
bool file_is_at(const struct file *f, const char *path);
static inline bool stat_same(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool all_zero(const void *data, size_t length);

/*
 * The contents, as libblkid sees them: "a filesystem or the like (ext4)", to be freed;
 * NULL: nothing. NO_MEMORY is told by nobody but the caller.
 */
int file_contents(const struct file *f, char **found);

#endif /* LIBCOWLOOP_FILE_H */
