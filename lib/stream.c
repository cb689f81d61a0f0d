// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: what is written and read from its beginning to its end.
 *
 * Both directions have one buffer of compressed data and hand the callers'
 * memory to zlib or zstd as it is. Several gzip members or zstd frames one
 * behind the other are one stream, as for gzip and zstd.
 */

#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>
#include <zstd.h>

#include "newfile.h"
#include "text.h"

#define BUFFER_SIZE	(256 * 1024)

static const u8 zeroes[65536];

/* ---- Writing ---- */

struct out_stream {
	const char *path;
	struct new_file file;	/* of which the descriptor is stdout for "-" */
	bool to_stdout;
	enum cowloop_compress compress;
	z_stream gzip;
	ZSTD_CCtx *zstd;
	bool can_skip;		/* zeroes may be left out, since it is a new file */
	u64 skipped;		/* zeroes at the end that have been left out */
	u8 buffer[BUFFER_SIZE];
};

static int open_stdout(struct cowloop_ctx *ctx, struct out_stream *o)
{
	o->to_stdout = true;
	if (isatty(STDOUT_FILENO))
		return error(ctx, USAGE, "A packed cowfile is not for a terminal; redirect stdout, or name a file.");
	o->file.file = (struct file){ .fd = STDOUT_FILENO, .path = "stdout" };
	return OK;
}

struct out_stream *out_open(struct cowloop_ctx *ctx, const char *path, enum cowloop_compress compress,
			    const struct stat *replaced,
			    const struct stat *source, bool force, int *code)
{
	struct out_stream *o = malloc(sizeof(*o));

	if (!o) {
		*code = error_memory(ctx);
		return NULL;
	}
	memset(o, 0, offsetof(struct out_stream, buffer));
	o->path = path;
	o->compress = compress;
	o->file.file = FILE_CLOSED;
	o->can_skip = compress == COWLOOP_COMPRESS_NONE && strcmp(path, "-");
	*code = strcmp(path, "-") ? new_file_create(ctx, &o->file, path, replaced, source, force) : open_stdout(ctx, o);

	if (!*code && compress == COWLOOP_COMPRESS_GZIP &&
	    deflateInit2(&o->gzip, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 9,
			 Z_DEFAULT_STRATEGY) != Z_OK)
		*code = error_memory(ctx);
	if (!*code && compress == COWLOOP_COMPRESS_ZSTD) {
		o->zstd = ZSTD_createCCtx();
		if (!o->zstd)
			*code = error_memory(ctx);
		else
			ZSTD_CCtx_setParameter(o->zstd, ZSTD_c_checksumFlag, 1);
	}
	if (*code) {
		out_close(ctx, o, *code, NULL);
		return NULL;
	}
	return o;
}

/* Write to the file or pipe, where it is now. */
static int put(struct cowloop_ctx *ctx, struct out_stream *o, const void *data, size_t length)
{
	size_t done = 0;
	ssize_t n;

	if (o->skipped) {
		if (lseek(o->file.file.fd, o->skipped, SEEK_CUR) < 0)
			return error_errno(ctx, "%s: seeking", o->file.file.path);
		o->skipped = 0;
	}
	while (done < length) {
		if (is_cancelled(ctx))
			return error(ctx, USAGE, "%s: interrupted.", o->file.file.path);
		n = write(o->file.file.fd, (const char *)data + done, length - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(ctx, "%s: writing", o->file.file.path);
		done += n;
	}
	return OK;
}

static int put_gzip(struct cowloop_ctx *ctx, struct out_stream *o, const void *data, size_t length, int flush)
{
	int r;

	o->gzip.next_in = (void *)(uintptr_t)data;
	o->gzip.avail_in = length;
	do {
		o->gzip.next_out = o->buffer;
		o->gzip.avail_out = BUFFER_SIZE;
		/* Can't fail with good arguments. */
		deflate(&o->gzip, flush);
		r = put(ctx, o, o->buffer, BUFFER_SIZE - o->gzip.avail_out);
	} while (!r && !o->gzip.avail_out);
	return r;
}

static int put_zstd(struct cowloop_ctx *ctx, struct out_stream *o, const void *data, size_t length,
		    ZSTD_EndDirective end)
{
	ZSTD_inBuffer in = { data, length, 0 };
	size_t left;
	int r;

	do {
		ZSTD_outBuffer out = { o->buffer, BUFFER_SIZE, 0 };

		left = ZSTD_compressStream2(o->zstd, &out, &in, end);
		if (ZSTD_isError(left))
			return error(ctx, NO_MEMORY, "%s: compressing: %s.", o->path, ZSTD_getErrorName(left));
		r = put(ctx, o, o->buffer, out.pos);
	} while (!r && (in.pos < in.size || (end == ZSTD_e_end && left)));
	return r;
}

int out_write(struct cowloop_ctx *ctx, struct out_stream *o, const void *data, size_t length)
{
	switch (o->compress) {
	case COWLOOP_COMPRESS_GZIP:
		return put_gzip(ctx, o, data, length, Z_NO_FLUSH);
	case COWLOOP_COMPRESS_ZSTD:
		return put_zstd(ctx, o, data, length, ZSTD_e_continue);
	default:
		return put(ctx, o, data, length);
	}
}

int out_zeroes(struct cowloop_ctx *ctx, struct out_stream *o, u64 length)
{
	int r = OK;

	if (o->can_skip) {
		o->skipped += length;
		return OK;
	}
	while (length && !r) {
		const size_t n = min_u64(length, sizeof(zeroes));

		r = is_cancelled(ctx) ? error(ctx, USAGE, "%s: interrupted.", o->path) : out_write(ctx, o, zeroes, n);
		length -= n;
	}
	return r;
}

static int finish(struct cowloop_ctx *ctx, struct out_stream *o)
{
	off_t end;

	switch (o->compress) {
	case COWLOOP_COMPRESS_GZIP:
		return put_gzip(ctx, o, NULL, 0, Z_FINISH);
	case COWLOOP_COMPRESS_ZSTD:
		return put_zstd(ctx, o, NULL, 0, ZSTD_e_end);
	default:
		break;
	}
	if (!o->skipped)
		return OK;
	end = lseek(o->file.file.fd, o->skipped, SEEK_CUR);
	return end < 0 ? error_errno(ctx, "%s: seeking", o->path) : file_resize(ctx, &o->file.file, end);
}

int out_close(struct cowloop_ctx *ctx, struct out_stream *o, int code, const struct replaced *old)
{
	if (!code)
		code = finish(ctx, o);
	if (!code && old)
		code = replaced_check(ctx, old, o->file.target);
	if (!code && !o->to_stdout)
		code = new_file_commit(ctx, &o->file, old);
	if (!o->to_stdout)
		new_file_abort(&o->file);
	if (o->compress == COWLOOP_COMPRESS_GZIP)
		deflateEnd(&o->gzip);
	ZSTD_freeCCtx(o->zstd);
	free(o);
	return code;
}

/* ---- Reading ---- */

struct in_stream {
	const char *path;
	int fd;
	enum cowloop_compress compress;
	z_stream gzip;
	ZSTD_DCtx *zstd;
	off_t first;		/* where it begins in the file; -1: it can't seek */
	bool in_frame;		/* the end of the file would be amiss */
	bool at_end;		/* of the file */
	bool dropped;		/* the buffer does not begin with the first byte any more */
	bool warned;		/* of what is behind the end */
	size_t start, end;	/* of what the buffer holds */
	u8 peek[IN_PEEK];
	size_t to_reread;	/* bytes at the end of what was peeked at */
	u8 buffer[BUFFER_SIZE];
};

/* Have something in the buffer, at least @least bytes, unless the file ends. */
static int fill(struct cowloop_ctx *ctx, struct in_stream *i, size_t least)
{
	ssize_t n;

	if (i->end - i->start >= least || i->at_end)
		return OK;
	if (i->start + least > BUFFER_SIZE || i->end == BUFFER_SIZE) {
		memmove(i->buffer, i->buffer + i->start, i->end - i->start);
		i->end -= i->start;
		i->start = 0;
		i->dropped = true;
	}
	while (i->end - i->start < least && !i->at_end) {
		if (is_cancelled(ctx))
			return error(ctx, USAGE, "%s: interrupted.", i->path);
		n = read(i->fd, i->buffer + i->end, BUFFER_SIZE - i->end);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(ctx, "%s: reading", i->path);
		i->at_end = !n;
		i->end += n;
	}
	return OK;
}

enum cowloop_compress compress_of(const u8 *start, size_t length)
{
	static const u8 gzip[] = { 0x1f, 0x8b }, zstd[] = { 0x28, 0xb5, 0x2f, 0xfd };

	if (length >= sizeof(gzip) && !memcmp(start, gzip, sizeof(gzip)))
		return COWLOOP_COMPRESS_GZIP;
	return length >= sizeof(zstd) && !memcmp(start, zstd,
						 sizeof(zstd)) ? COWLOOP_COMPRESS_ZSTD : COWLOOP_COMPRESS_NONE;
}

static int start_decompressing(struct cowloop_ctx *ctx, struct in_stream *i)
{
	int r = fill(ctx, i, 4);

	if (r)
		return r;
	i->compress = compress_of(i->buffer, i->end);
	if (i->compress == COWLOOP_COMPRESS_GZIP) {
		if (inflateInit2(&i->gzip, 15 + 16) != Z_OK)
			return error_memory(ctx);
		i->in_frame = true;
	} else if (i->compress == COWLOOP_COMPRESS_ZSTD) {
		i->zstd = ZSTD_createDCtx();
		if (!i->zstd)
			return error_memory(ctx);
	}
	return OK;
}

struct in_stream *in_open(struct cowloop_ctx *ctx, const char *path, int *code)
{
	struct in_stream *i = malloc(sizeof(*i));

	if (!i) {
		*code = error_memory(ctx);
		return NULL;
	}
	memset(i, 0, offsetof(struct in_stream, buffer));
	i->path = strcmp(path, "-") ? path : "stdin";
	i->fd = strcmp(path, "-") ? open_checked(path, O_RDONLY, true) : STDIN_FILENO;
	i->first = i->fd < 0 ? -1 : lseek(i->fd, 0, SEEK_CUR);
	*code = i->fd < 0 ? error_open(ctx, path, "") : start_decompressing(ctx, i);
	if (*code) {
		in_close(i);
		return NULL;
	}
	return i;
}

void in_close(struct in_stream *i)
{
	if (i->fd > STDIN_FILENO)
		close(i->fd);
	if (i->compress == COWLOOP_COMPRESS_GZIP)
		inflateEnd(&i->gzip);
	ZSTD_freeDCtx(i->zstd);
	free(i);
}

/* Up to @length bytes, *@got of them; 0 only at the end. */
static int get_plain(struct cowloop_ctx *ctx, struct in_stream *i, void *data, size_t length, size_t *got)
{
	int r = fill(ctx, i, 1);

	*got = i->end - i->start < length ? i->end - i->start : length;
	memcpy(data, i->buffer + i->start, *got);
	i->start += *got;
	return r;
}

/*
 * Behind a gzip member: is it another one? The original's cowpack does not
 * truncate a longer file that it writes over, and does not care when it reads.
 */
static int next_member(struct cowloop_ctx *ctx, struct in_stream *i, bool *found)
{
	int r = fill(ctx, i, 2);

	*found = i->end - i->start >= 2 && i->buffer[i->start] == 0x1f &&
		 i->buffer[i->start + 1] == 0x8b;
	if (!r && !*found && i->start != i->end && !i->warned) {
		warn(ctx, "%s: goes on behind the gzip data; what is there was left out.", i->path);
		i->warned = true;
	}
	return r;
}

static int get_gzip(struct cowloop_ctx *ctx, struct in_stream *i, void *data, size_t length, size_t *got)
{
	bool found;
	int r, z;

	*got = 0;
	while (!*got) {
		if (!i->in_frame) {
			r = next_member(ctx, i, &found);
			if (r || !found)
				return r;
			inflateReset(&i->gzip);
			i->in_frame = true;
		}
		r = fill(ctx, i, 1);
		if (r)
			return r;
		if (i->start == i->end)
			return error(ctx, WRONG, "%s: the gzip data is cut off.", i->path);
		i->gzip.next_in = i->buffer + i->start;
		i->gzip.avail_in = i->end - i->start;
		i->gzip.next_out = data;
		i->gzip.avail_out = length;
		z = inflate(&i->gzip, Z_NO_FLUSH);
		if (z != Z_OK && z != Z_STREAM_END && z != Z_BUF_ERROR)
			return error(ctx, z == Z_MEM_ERROR ? NO_MEMORY : WRONG, "%s: the gzip data is damaged: %s.",
				     i->path, i->gzip.msg ? i->gzip.msg : zError(z));
		i->in_frame = z != Z_STREAM_END;
		i->start = i->end - i->gzip.avail_in;
		*got = length - i->gzip.avail_out;
	}
	return OK;
}

static int get_zstd(struct cowloop_ctx *ctx, struct in_stream *i, void *data, size_t length, size_t *got)
{
	ZSTD_outBuffer out = { data, length, 0 };
	size_t left;
	int r = OK;

	while (!out.pos) {
		ZSTD_inBuffer in;

		r = fill(ctx, i, 1);
		if (r || (i->start == i->end && !i->in_frame))
			break;
		in = (ZSTD_inBuffer){ i->buffer, i->end, i->start };
		left = ZSTD_decompressStream(i->zstd, &out, &in);
		if (ZSTD_isError(left))
			return error(ctx, WRONG, "%s: the zstd data is damaged: %s.", i->path,
				     ZSTD_getErrorName(left));
		/* There may be something left to come out when all has gone in. */
		if (!out.pos && in.pos == i->start && i->at_end)
			return error(ctx, WRONG, "%s: the zstd data is cut off.", i->path);
		i->start = in.pos;
		i->in_frame = left;
	}
	*got = out.pos;
	return r;
}

static int get(struct cowloop_ctx *ctx, struct in_stream *i, void *data, size_t length, size_t *got)
{
	if (is_cancelled(ctx))
		return error(ctx, USAGE, "%s: interrupted.", i->path);
	if (i->to_reread) {
		*got = min_u64(i->to_reread, length);
		memcpy(data, i->peek + IN_PEEK - i->to_reread, *got);
		i->to_reread -= *got;
		return OK;
	}
	switch (i->compress) {
	case COWLOOP_COMPRESS_GZIP:
		return get_gzip(ctx, i, data, length, got);
	case COWLOOP_COMPRESS_ZSTD:
		return get_zstd(ctx, i, data, length, got);
	default:
		return get_plain(ctx, i, data, length, got);
	}
}

int in_read(struct cowloop_ctx *ctx, struct in_stream *i, void *data, size_t length)
{
	size_t done = 0, got;
	int r;

	while (done < length) {
		r = get(ctx, i, (u8 *)data + done, length - done, &got);
		if (r)
			return r;
		if (!got)
			return error(ctx, WRONG, "%s: ends too early.", i->path);
		done += got;
	}
	return OK;
}

int in_peek(struct cowloop_ctx *ctx, struct in_stream *i, u8 data[IN_PEEK])
{
	int r = in_read(ctx, i, data, IN_PEEK);

	if (!r) {
		memcpy(i->peek, data, IN_PEEK);
		i->to_reread = IN_PEEK;
	}
	return r;
}

/* A file that has no name. */
static int open_temporary(struct cowloop_ctx *ctx, int *fd)
{
	const char *dir = secure_getenv("TMPDIR");
	char *path = text_of("%s/cowsetup-XXXXXX", dir ? dir : "/var/tmp");
	int r = OK;

	if (!path)
		return error_memory(ctx);
	*fd = mkostemp(path, O_CLOEXEC);
	if (*fd < 0)
		r = error_errno(ctx, "%s: a temporary file cannot be created (TMPDIR says where)", path);
	else
		unlink(path);
	free(path);
	return r;
}

/* Copy what the buffer holds, and all that comes after it. */
static int copy_rest(struct cowloop_ctx *ctx, struct in_stream *i, const struct file *to)
{
	u64 at = 0;
	int r = OK;

	i->start = 0;
	while (!r && i->start != i->end) {
		r = file_write(ctx, to, at, i->buffer + i->start, i->end - i->start);
		at += i->end - i->start;
		i->start = i->end;
		if (!r)
			r = fill(ctx, i, 1);
	}
	return r;
}

/* Read a copy from here on. */
static int make_seekable(struct cowloop_ctx *ctx, struct in_stream *i)
{
	struct file copy = { .path = "a temporary file" };
	int r;

	if (i->dropped)
		return error(ctx, WRONG, "%s: it has to be read twice, for which it must be a file.", i->path);
	r = open_temporary(ctx, &copy.fd);
	if (r)
		return r;
	r = copy_rest(ctx, i, &copy);
	if (r) {
		close(copy.fd);
		return r;
	}
	if (i->fd > STDIN_FILENO)
		close(i->fd);
	i->fd = copy.fd;
	i->first = 0;
	return OK;
}

int in_rewind(struct cowloop_ctx *ctx, struct in_stream *i)
{
	int r = i->first < 0 ? make_seekable(ctx, i) : OK;

	if (r)
		return r;
	if (lseek(i->fd, i->first, SEEK_SET) < 0)
		return error_errno(ctx, "%s: seeking", i->path);
	i->start = i->end = i->to_reread = 0;
	i->at_end = false;
	i->in_frame = i->compress == COWLOOP_COMPRESS_GZIP;
	if (i->compress == COWLOOP_COMPRESS_GZIP)
		inflateReset(&i->gzip);
	if (i->compress == COWLOOP_COMPRESS_ZSTD)
		ZSTD_DCtx_reset(i->zstd, ZSTD_reset_session_only);
	return OK;
}

enum cowloop_compress in_compressed(const struct in_stream *i)
{
	return i->compress;
}

int in_skip(struct cowloop_ctx *ctx, struct in_stream *i, u64 length)
{
	u8 data[16384];
	int r = OK;

	while (length && !r) {
		const size_t n = min_u64(length, sizeof(data));

		r = in_read(ctx, i, data, n);
		length -= n;
	}
	return r;
}

int in_at_end(struct cowloop_ctx *ctx, struct in_stream *i, bool *at_end)
{
	size_t got;
	u8 byte;
	int r = get(ctx, i, &byte, 1, &got);

	*at_end = !got;
	return r;
}

/* ---- Looking ---- */

static bool look_gzip(u8 *from, size_t from_length, u8 *data, size_t length)
{
	z_stream gzip = { .next_in = from, .avail_in = from_length, .next_out = data, .avail_out = length };

	if (inflateInit2(&gzip, 15 + 16) != Z_OK)
		return false;
	inflate(&gzip, Z_NO_FLUSH);
	inflateEnd(&gzip);
	return !gzip.avail_out;
}

static bool look_zstd(const u8 *from, size_t from_length, u8 *data, size_t length)
{
	ZSTD_DCtx *zstd = ZSTD_createDCtx();
	ZSTD_outBuffer out = { data, length, 0 };
	ZSTD_inBuffer in = { from, from_length, 0 };
	size_t before;

	do
		before = in.pos + out.pos;
	while (zstd && !ZSTD_isError(ZSTD_decompressStream(zstd, &out, &in)) &&
	       out.pos < length && in.pos + out.pos > before);
	ZSTD_freeDCtx(zstd);
	return out.pos == length;
}

bool in_look(const struct file *f, void *data, size_t length)
{
	u8 *start = malloc(BUFFER_SIZE);
	const ssize_t got = !start ? 0 : pread(f->fd, start, BUFFER_SIZE, 0), n = got < 0 ? 0 : got;
	bool done = false;

	switch (n ? compress_of(start, n) : COWLOOP_COMPRESS_NONE) {
	case COWLOOP_COMPRESS_GZIP:
		done = look_gzip(start, n, data, length);
		break;
	case COWLOOP_COMPRESS_ZSTD:
		done = look_zstd(start, n, data, length);
		break;
	default:
		break;
	}
	free(start);
	return done;
}
