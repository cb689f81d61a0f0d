// SPDX-License-Identifier: GPL-2.0-only
/*
 * library: a program that is linked with libcowloop, and knows nothing of it but the
 * header that is installed. Prints what comes of each step, for library.t.
 *
 *	library RDO COW		makes COW, a cowfile of format 1 for RDO, and merges it
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libcowloop.h>

struct calls {
	bool cancel;
	bool yes;
	unsigned int started, finished, stopped, faults;
};

static void on_log(void *data, enum cowloop_level level, const char *text)
{
	static const char *const names[] = { "error", "warning", "result", "verbose" };

	(void)data;
	printf("%s: %s\n", names[level], text);
}

static void on_progress(void *data, const struct cowloop_progress *p)
{
	struct calls *calls = data;

	if (!p->path || !p->done_word || p->done > p->total)
		abort();
	calls->started += p->stage == COWLOOP_STARTED;
	calls->finished += p->stage == COWLOOP_FINISHED;
	calls->stopped += p->stage == COWLOOP_STOPPED;
}

static bool is_cancelled(void *data)
{
	return ((struct calls *)data)->cancel;
}

static bool ask(void *data, const char *question)
{
	printf("question: %s\n", question);
	return ((struct calls *)data)->yes;
}

static void on_fault(void *data, const char *id, const char *text)
{
	((struct calls *)data)->faults++;
	printf("fault: %s: %s\n", id, text);
}

static void on_note(void *data, const char *text)
{
	(void)data;
	printf("note: %s\n", text);
}

static void check(struct cowloop_ctx *ctx, struct calls *calls, const char *rdo, const char *cow)
{
	const struct cowloop_findings findings = { .fault = on_fault, .note = on_note, .data = calls };
	struct cowloop_check result = { 0 };
	int r = cowloop_check(ctx, cow, rdo, &findings, &result);

	printf("check: %d", r);
	if (!r)
		printf(", format %u, %s, %llu of %llu units, %llu faults", result.format,
		       cowloop_state_text(result.state), result.units_used, result.units, result.nr_faults);
	printf("\n");
}

/* A unit that a driver of format 1 has written, but for the bit. */
static void write_unit(const char *cow, const char *text)
{
	int fd = open(cow, O_WRONLY);

	if (fd < 0 || pwrite(fd, text, strlen(text), 4096 * 2) < 0)
		abort();
	close(fd);
}

int main(int argc, char **argv)
{
	static const struct cowloop_callbacks callbacks = { on_log, on_progress, is_cancelled, ask };
	const struct cowloop_new new = { .format = 1 }, wrong = { .format = 1, .label = "label" };
	const struct cowloop_new no_unit = { .mapunit = 100 }, no_format = { .format = 3 };
	const struct cowloop_repair repair = { .force = true };
	struct calls calls = { 0 };
	struct cowloop_ctx *ctx = cowloop_ctx_new(&callbacks, &calls), *silent = cowloop_ctx_new(NULL, NULL);
	struct cowloop_info info;
	struct cowloop_device *device;
	char *visible;

	if (argc != 3 || !ctx || !silent)
		return 1;
	printf("format: %d\n", cowloop_format(ctx, argv[1], argv[2], &wrong));
	printf("no unit: %d\n", cowloop_format(ctx, argv[1], argv[2], &no_unit));
	printf("no format: %d\n", cowloop_format(ctx, argv[1], argv[2], &no_format));
	printf("format: %d\n", cowloop_format(ctx, argv[1], argv[2], &new));
	printf("format: %d\n", cowloop_format(ctx, argv[1], argv[2], &new));
	printf("format, silent: %d\n", cowloop_format(silent, argv[1], argv[2], &new));
	printf("info: %d\n", cowloop_info(ctx, argv[1], &info));
	printf("info: %d", cowloop_info(ctx, argv[2], &info));
	printf(", format %u, unit %u, %llu of %llu units, %s\n", info.format, info.mapunit, info.units_used, info.units,
	       cowloop_size_text(info.device_bytes));

	calls = (struct calls){ 0 };
	check(ctx, &calls, NULL, argv[2]);
	printf("progress: %s\n", calls.started && calls.finished == calls.started && !calls.stopped ? "to the end" : "none");
	calls = (struct calls){ .cancel = true };
	check(ctx, &calls, argv[1], argv[2]);
	printf("progress: %s\n", calls.stopped ? "stopped" : "to the end");

	calls = (struct calls){ 0 };
	write_unit(argv[2], "changed");
	printf("repair: %d\n", cowloop_repair(ctx, argv[2], &repair));
	printf("merge: %d\n", cowloop_merge(ctx, argv[1], argv[2]));
	calls.yes = true;
	printf("merge: %d\n", cowloop_merge(ctx, argv[1], argv[2]));
	check(ctx, &calls, argv[1], argv[2]);

	printf("look: %s\n", cowloop_device_look("no-such-device", &device) && !device ? "none" : "one");
	cowloop_device_free(device);
	visible = cowloop_text_visible("a\033[31m\nb");
	printf("visible: %s\n", visible);
	free(visible);
	cowloop_ctx_free(silent);
	cowloop_ctx_free(ctx);
	return 0;
}
