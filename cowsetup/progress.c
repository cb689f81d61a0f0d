// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup: how far long work has got.
 */

#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "../lib/size.h"
#include "print.h"

/* A bar is drawn so often. */
#define BAR_INTERVAL_MS	250

static struct {
	const char *path;
	const char *done_word;
	u64 total;
	u64 done;
	u64 started_ms;
	u64 shown_ms;		/* when it was last shown */
	bool bar;		/* there is one on the screen */
	bool to_stderr;
} work;

static u64 now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ULL + t.tv_nsec / 1000000;
}

static FILE *stream(void)
{
	return work.to_stderr ? stderr : stdout;
}

void progress_to_stderr(void)
{
	work.to_stderr = true;
}

static void duration(char *text, size_t room, u64 secs)
{
	if (secs < 3600)
		snprintf(text, room, "%02llum%02llus", secs / 60, secs % 60);
	else if (secs < 24 * 3600)
		snprintf(text, room, "%02lluh%02llum%02llus", secs / 3600, secs / 60 % 60, secs % 60);
	else
		snprintf(text, room, "%llud%02lluh", secs / (24 * 3600), secs / 3600 % 24);
}

static void show_json(u64 elapsed, u64 speed, u64 left)
{
	fprintf(stream(), "{\"device\":");
	json_print(stream(), json_text(work.path), JSON_C_TO_STRING_PLAIN);
	fprintf(stream(), ",\"device_bytes\":\"%llu\",\"device_size\":\"%llu\",\"speed\":\"%llu\",\"eta_ms\":\"%llu\",\"time_ms\":\"%llu\"}\n",
		work.done, work.total, speed, left, elapsed);
}

static void show_text(u64 speed, u64 left)
{
	char eta[32];

	duration(eta, sizeof(eta), (left + 999) / 1000);
	fprintf(stream(), "Progress: %6s, ETA %s, %8s %s, speed %8s/s",
		percent_text(work.done, work.total), eta, size_text(work.done), work.done_word,
		size_text(speed));
}

static void show(u64 now)
{
	const u64 elapsed = now - work.started_ms;
	const u64 speed = elapsed ? (unsigned __int128)work.done * 1000 / elapsed : 0;
	const u64 left = speed ? (unsigned __int128)(work.total - work.done) * 1000 / speed : 0;
	FILE *to = stream();

	work.shown_ms = now;
	if (opt.progress_json) {
		show_json(elapsed, speed, left);
	} else if (opt.progress_frequency) {
		show_text(speed, left);
		fputc('\n', to);
	} else {
		/* Back to the beginning, and nothing behind. */
		fprintf(to, "\r");
		show_text(speed, left);
		fprintf(to, "\033[K");
		work.bar = true;
	}
	fflush(to);
}

static bool wanted(void)
{
	return opt.progress_json || opt.progress_frequency ||
	       (!opt.batch_mode && isatty(fileno(stream())));
}

void progress_clear(void)
{
	if (!work.bar)
		return;
	fprintf(stream(), "\r\033[K");
	fflush(stream());
	work.bar = false;
}

static void start(const struct cowloop_progress *p)
{
	work.path = p->path;
	work.total = p->total;
	work.done_word = p->done_word;
	work.started_ms = work.shown_ms = now_ms();
	work.bar = false;
}

static void update(void)
{
	u64 interval, now;

	if (!wanted())
		return;
	if (opt.progress_frequency)
		interval = opt.progress_frequency * 1000ULL;
	else if (opt.progress_json || !work.bar)
		interval = 1000;
	else
		interval = BAR_INTERVAL_MS;

	now = now_ms();
	if (now - work.shown_ms >= interval)
		show(now);
}

static void end(bool finished)
{
	char time[32];
	u64 elapsed;

	elapsed = now_ms() - work.started_ms;
	progress_clear();
	if (!finished || !wanted())
		return;
	if (elapsed < 1000 && !opt.progress_json && !opt.progress_frequency)
		return;
	if (opt.progress_json) {
		show_json(elapsed, elapsed ? (unsigned __int128)work.total * 1000 / elapsed : 0, 0);
	} else {
		duration(time, sizeof(time), elapsed / 1000);
		fprintf(stream(), "Finished, time %s, %8s %s, speed %8s/s\n", time,
			size_text(work.total), work.done_word,
			size_text(elapsed ? (unsigned __int128)work.total * 1000 / elapsed : 0));
	}
	fflush(stream());
}

void progress_show(void *data, const struct cowloop_progress *p)
{
	(void)data;
	work.done = p->done;
	if (p->stage == COWLOOP_STARTED)
		start(p);
	else if (p->stage == COWLOOP_GOING)
		update();
	else
		end(p->stage == COWLOOP_FINISHED);
}
