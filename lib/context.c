// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: the context.
 */

#include "context.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Thread_local struct cowloop_ctx *dm_context;

struct cowloop_ctx *cowloop_ctx_new(const struct cowloop_callbacks *call, void *data)
{
	struct cowloop_ctx *ctx = calloc(1, sizeof(*ctx));

	if (!ctx)
		return NULL;
	if (call)
		ctx->call = *call;
	ctx->data = data;
	ctx->kmsg = -1;
	return ctx;
}

void cowloop_ctx_free(struct cowloop_ctx *ctx)
{
	if (ctx == dm_context)
		dm_context = NULL;
	if (ctx && ctx->kmsg >= 0)
		close(ctx->kmsg);
	free(ctx);
}

/* ---- Messages ---- */

/* @suffix: what errno says, or NULL. */
static void message(struct cowloop_ctx *ctx, enum cowloop_level level, const char *suffix, const char *fmt, va_list ap)
{
	char *text, *whole = NULL;

	if (!ctx->call.log)
		return;
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	if (text && suffix && asprintf(&whole, "%s: %s.", text, suffix) < 0)
		whole = NULL;
	ctx->call.log(ctx->data, level, whole ? whole : text ? text : "Out of memory.");
	free(whole);
	free(text);
}

int error(struct cowloop_ctx *ctx, enum exit_code code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message(ctx, COWLOOP_LOG_ERROR, NULL, fmt, ap);
	va_end(ap);
	return code;
}

static enum exit_code code_of_errno(int err)
{
	switch (err) {
	case EPERM:
	case EACCES:
	case EROFS:
		return DENIED;
	case ENOMEM:
		return NO_MEMORY;
	case EEXIST:
	case EBUSY:
	case ETXTBSY:
		return BUSY;
	case EINTR:
		return USAGE;
	default:
		return WRONG;
	}
}

int error_errno(struct cowloop_ctx *ctx, const char *fmt, ...)
{
	const int err = errno;
	const char *text = strerror(err);
	va_list ap;

	if (err == EINTR && is_cancelled(ctx))
		text = "interrupted";
	else if (err == EACCES && geteuid())
		text = "permission denied (are you root?)";
	va_start(ap, fmt);
	message(ctx, COWLOOP_LOG_ERROR, text, fmt, ap);
	va_end(ap);
	return code_of_errno(err);
}

int error_memory(struct cowloop_ctx *ctx)
{
	return error(ctx, NO_MEMORY, "Out of memory.");
}

void warn(struct cowloop_ctx *ctx, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message(ctx, COWLOOP_LOG_WARNING, NULL, fmt, ap);
	va_end(ap);
}

void verbose(struct cowloop_ctx *ctx, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message(ctx, COWLOOP_LOG_VERBOSE, NULL, fmt, ap);
	va_end(ap);
}

void tell(struct cowloop_ctx *ctx, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message(ctx, COWLOOP_LOG_RESULT, NULL, fmt, ap);
	va_end(ap);
}

/* ---- Questions ---- */

int confirm(struct cowloop_ctx *ctx, const char *fmt, ...)
{
	char *text;
	va_list ap;
	bool yes;

	if (!ctx->call.confirm)
		return OK;
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (!text)
		return error_memory(ctx);
	yes = ctx->call.confirm(ctx->data, text);
	free(text);
	return yes ? OK : error(ctx, USAGE, "Not confirmed; nothing was changed.");
}

bool is_cancelled(struct cowloop_ctx *ctx)
{
	return ctx->call.cancelled && ctx->call.cancelled(ctx->data);
}

/* ---- Progress ---- */

static void show_progress(struct cowloop_ctx *ctx, enum cowloop_stage stage, u64 done)
{
	ctx->progress.stage = stage;
	ctx->progress.done = done < ctx->progress.total ? done : ctx->progress.total;
	if (ctx->call.progress)
		ctx->call.progress(ctx->data, &ctx->progress);
}

void progress_start(struct cowloop_ctx *ctx, const char *path, u64 total, const char *done_word)
{
	ctx->progress = (struct cowloop_progress){ .path = path, .total = total, .done_word = done_word };
	ctx->working = true;
	show_progress(ctx, COWLOOP_STARTED, 0);
}

void progress_update(struct cowloop_ctx *ctx, u64 done)
{
	if (ctx->working)
		show_progress(ctx, COWLOOP_GOING, done);
}

void progress_end(struct cowloop_ctx *ctx, bool finished)
{
	if (ctx->working)
		show_progress(ctx, finished ? COWLOOP_FINISHED : COWLOOP_STOPPED,
			      finished ? ctx->progress.total : ctx->progress.done);
	ctx->working = false;
}
