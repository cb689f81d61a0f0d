/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: what is written and read from its beginning to its end, perhaps
 * through a pipe, perhaps compressed. The path "-" is stdout or stdin.
 */

#ifndef LIBCOWLOOP_STREAM_H
#define LIBCOWLOOP_STREAM_H

#include "context.h"
#include "file.h"

struct replaced;
struct stat;

/* How the data that begins so is compressed: COWLOOP_COMPRESS_GZIP, COWLOOP_COMPRESS_ZSTD or COWLOOP_COMPRESS_NONE. */
enum cowloop_compress compress_of(const u8 *start, size_t length);

/* ---- Writing ---- */

struct out_stream;

/*
 * Begin to write @path, which does not get its name before it is complete. Its
 * permissions are those that new_file_create() makes of @replaced and @source,
 * and @force is for that, too.
 * Returns NULL, with *@code set, if it can't be done.
 */
struct out_stream *out_open(struct cowloop_ctx *ctx, const char *path, enum cowloop_compress compress,
			    const struct stat *replaced,
			    const struct stat *source, bool force, int *code);

int out_write(struct cowloop_ctx *ctx, struct out_stream *o, const void *data, size_t length);
int out_zeroes(struct cowloop_ctx *ctx, struct out_stream *o, u64 length);

/*
 * The end. With @code OK, everything is on stable storage when it returns OK;
 * otherwise what was written is removed. @old: a file of this name that it
 * replaces, if that is still as it was; NULL: there must be none.
 */
int out_close(struct cowloop_ctx *ctx, struct out_stream *o, int code, const struct replaced *old);

/* ---- Reading ---- */

struct in_stream;

/* Begin to read @path; how it is compressed is found out. */
struct in_stream *in_open(struct cowloop_ctx *ctx, const char *path, int *code);
enum cowloop_compress in_compressed(const struct in_stream *i);

/* Before anything else: read the first bytes, which will be read again. */
#define IN_PEEK	1024
int in_peek(struct cowloop_ctx *ctx, struct in_stream *i, u8 data[IN_PEEK]);

/*
 * Back to the beginning. A pipe can be read again from a file that it is copied
 * into for that, the first time: after in_peek() and nothing else.
 */
int in_rewind(struct cowloop_ctx *ctx, struct in_stream *i);

/* Read all of @length bytes. It is an error if there is less. */
int in_read(struct cowloop_ctx *ctx, struct in_stream *i, void *data, size_t length);

/* Read and forget. */
int in_skip(struct cowloop_ctx *ctx, struct in_stream *i, u64 length);

/* Is there nothing left? */
int in_at_end(struct cowloop_ctx *ctx, struct in_stream *i, bool *at_end);

void in_close(struct in_stream *i);

/*
 * The first bytes of a file that is compressed, decompressed, without a word about
 * errors: false if it is not compressed, or cannot be read so far. Its first
 * 256 KiB are read.
 */
bool in_look(const struct file *f, void *data, size_t length);

#endif /* LIBCOWLOOP_STREAM_H */
