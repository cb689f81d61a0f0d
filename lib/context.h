/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libcowloop: the context, by which functions tell of errors, warn, ask and say how
 * far they are.
 *
 * Functions that can fail return one of the codes, and have said why by then:
 * error() tells and returns its second argument, so that
 * `return error(ctx, WRONG, ...)' is all there is to giving up.
 */

#ifndef LIBCOWLOOP_CONTEXT_H
#define LIBCOWLOOP_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/types.h>

#include "libcowloop.h"

typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;

static inline u64 min_u64(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* The codes, by their short names. */
enum exit_code {
	OK = COWLOOP_OK,
	USAGE = COWLOOP_USAGE,
	DENIED = COWLOOP_DENIED,
	NO_MEMORY = COWLOOP_NO_MEMORY,
	WRONG = COWLOOP_WRONG,
	BUSY = COWLOOP_BUSY,
};

struct cowloop_ctx {
	struct cowloop_callbacks call;
	void *data;
	struct cowloop_progress progress;
	bool working;		/* progress has begun, and has not ended */
	int kmsg;		/* the kernel's log: see dm.c */
	char dm_error[512];	/* libdevmapper's first one */
};

/* libdevmapper's log has no pointer of its caller's: the context for what it says in this thread, or NULL. */
extern _Thread_local struct cowloop_ctx *dm_context;

/* Tell why something cannot be done; returns @code. */
int error(struct cowloop_ctx *ctx, enum exit_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The message, ": " and what errno says; returns the code for errno. */
int error_errno(struct cowloop_ctx *ctx, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Returns NO_MEMORY. */
int error_memory(struct cowloop_ctx *ctx);

void warn(struct cowloop_ctx *ctx, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void verbose(struct cowloop_ctx *ctx, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The result of a piece of work. */
void tell(struct cowloop_ctx *ctx, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Ask. Returns OK, or USAGE when the answer is no. */
int confirm(struct cowloop_ctx *ctx, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Does the caller want an end to it? */
bool is_cancelled(struct cowloop_ctx *ctx);

/* Work on @path begins: @total bytes, of which it is said that they were @done_word. */
void progress_start(struct cowloop_ctx *ctx, const char *path, u64 total, const char *done_word);
void progress_update(struct cowloop_ctx *ctx, u64 done);

/* The work is done, or given up. */
void progress_end(struct cowloop_ctx *ctx, bool finished);

#endif /* LIBCOWLOOP_CONTEXT_H */
