// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: messages, questions, and the signals that end it.
 */

#include "output.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "../boot/memory.h"
#include "print.h"
#include "progress.h"

volatile int interrupted;

static bool results_to_stderr;

void output_to_stderr(void)
{
	results_to_stderr = true;
	progress_to_stderr();
}

static void print_message(void *data, enum cowloop_level level, const char *text)
{
	FILE *to = level == COWLOOP_LOG_RESULT && !results_to_stderr ? stdout : stderr;

	(void)data;
	if (level == COWLOOP_LOG_VERBOSE && !opt.verbose)
		return;
	progress_clear();
	if (level != COWLOOP_LOG_RESULT) {
		fflush(stdout);
		fprintf(to, "cowsetup: %s", level == COWLOOP_LOG_WARNING ? "Warning: " : "");
	}
	text_print(to, text);
	fputc('\n', to);
}

/* For a YES in capitals. */
static bool ask(void *data, const char *question)
{
	char answer[16] = "";

	(void)data;
	if (opt.batch_mode)
		return true;
	fprintf(stderr, "\nWARNING!\n========\n");
	text_print(stderr, question);
	fprintf(stderr, "\n\nAre you sure? (Type 'yes' in capital letters): ");
	fflush(stderr);
	if (!fgets(answer, sizeof(answer), stdin))
		fputc('\n', stderr);
	return !strcmp(answer, "YES\n") || !strcmp(answer, "YES");
}

static bool is_interrupted(void *data)
{
	(void)data;
	return interrupted;
}

struct cowloop_ctx *output_context(void)
{
	static const struct cowloop_callbacks callbacks = {
		.log = print_message,
		.progress = progress_show,
		.cancelled = is_interrupted,
		.confirm = ask,
	};
	struct cowloop_ctx *ctx = cowloop_ctx_new(&callbacks, NULL);

	if (!ctx)
		out_of_memory();
	return ctx;
}

static void on_signal(int signal)
{
	interrupted = signal;
}

void catch_signals(void)
{
	/* Without SA_RESTART: whatever sleeps is to return and see. */
	const struct sigaction catch = { .sa_handler = on_signal };

	sigaction(SIGINT, &catch, NULL);
	sigaction(SIGTERM, &catch, NULL);
	sigaction(SIGHUP, &catch, NULL);
	/* Errors of write() tell more. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
}
