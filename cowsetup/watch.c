// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsetup watch: waits until there is little room left for changes.
 *
 * The device tells by events what it knows; the space that the filesystem under a
 * cow file has left must be looked at. So a round is: look, then sleep until the
 * next event of device-mapper, a second at most. The descriptor that the events
 * come by is opened before looking, and counts from then on, so that none is
 * missed. Events may come in swarms, and other devices have theirs, too:
 * the filesystem is looked at no more than once a second all the same.
 */

#include "cowsetup.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "device.h"
#include "report.h"

#define PERIOD_MS	1000

/* The default: low water where it is set, else a twentieth, but no more than this. */
#define MOST		(1ULL << 30)

static u64 threshold(const struct dm_device *d, const struct space *s)
{
	if (opt.have_threshold)
		return opt.threshold;
	if (d->low_water)
		return d->low_water * d->mapunit;
	return s->total / 20 < MOST ? s->total / 20 : MOST;
}

static void print_space(struct cowloop_ctx *ctx, const struct dm_device *d, const struct space *s, u64 at)
{
	if (opt.json) {
		report_start("name", "", d->name);
		report_text("mode", "", d->mode_word);
		report_space(s);
		report_number("threshold_bytes", "", at);
		report_end();
	} else {
		tell(ctx, "%s: %s free of %s (%s%s); the threshold is %s.", d->name, size_text(s->free),
		     size_text(s->total), s->of, d->mode == DM_MODE_OUT_OF_SPACE ? ", out of space" : "",
		     size_text(at));
	}
	fflush(stdout);
}

static void set_number(const char *name, u64 value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", value);
	setenv(name, text, 1);
}

/* Its own failure is told, but is no reason to stop watching. */
static int run_command(struct cowloop_ctx *ctx, const struct dm_device *d, const struct space *s)
{
	pid_t pid, got;
	int status;

	setenv("NAME", d->name, 1);
	setenv("MODE", d->mode_word, 1);
	set_number("FREE", s->free);
	set_number("TOTAL", s->total);
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		return error_errno(ctx, "--exec: no process can be made");
	if (!pid) {
		/* A signal that is ignored stays so, and "| head" would never end what is before it. */
		signal(SIGPIPE, SIG_DFL);
		signal(SIGXFSZ, SIG_DFL);
		execl("/bin/sh", "sh", "-c", opt.exec, (char *)NULL);
		_exit(127);
	}
	do
		got = waitpid(pid, &status, 0);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return error_errno(ctx, "--exec: the command was lost");
	if (WIFSIGNALED(status))
		warn(ctx, "--exec: the command was ended by signal %d.", WTERMSIG(status));
	else if (WEXITSTATUS(status))
		warn(ctx, "--exec: the command ended with status %d.", WEXITSTATUS(status));
	return OK;
}

static u64 now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ULL + t.tv_nsec / 1000000;
}

/* Until the next event, or until @until. */
static int sleep_until(struct cowloop_ctx *ctx, int events, u64 until)
{
	struct pollfd p = { .fd = events, .events = POLLIN };
	const u64 now = now_ms();

	if (poll(&p, 1, until > now ? (int)(until - now) : 0) < 0 && errno != EINTR)
		return error_errno(ctx, "Waiting for device-mapper's events failed");
	return OK;
}

/* Why there is nothing to wait for any more. */
static int refuse_mode(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	switch (d->mode) {
	case DM_MODE_RW:
	case DM_MODE_OUT_OF_SPACE:
	case DM_MODE_UNKNOWN:
		return OK;
	case DM_MODE_RO:
	case DM_MODE_CLOSED:
	case DM_MODE_FAIL:
		break;
	}
	return error(ctx, WRONG, "%s: it takes no writes, so there is nothing to watch: mode %s.", d->name, d->mode_word);
}

/* Judge a device that could be asked: is its space short, and is there more to wait for? */
static int judge(struct cowloop_ctx *ctx, const struct dm_device *d, const struct space *s, bool *short_before,
		 bool *done)
{
	const u64 at = threshold(d, s);
	const bool is_short = s->free <= at || d->mode == DM_MODE_OUT_OF_SPACE;
	int r = OK;

	if (is_short && !*short_before) {
		print_space(ctx, d, s, at);
		if (opt.exec)
			r = run_command(ctx, d, s);
		else
			*done = true;
	}
	*short_before = is_short;
	return r;
}

/* Look, and see what it has come to. */
static int look(struct cowloop_ctx *ctx, const char *name, u64 *looked, bool *short_before, bool *done)
{
	static struct statvfs fs;
	struct dm_device d;
	struct space s;
	int r;

	if (dm_look(name, &d)) {
		*done = true;
		return opt.exec ? OK : error(ctx, WRONG, "%s: has been closed.", name);
	}
	if (!*looked || now_ms() >= *looked + PERIOD_MS) {
		space_look(&d, &fs);
		*looked = now_ms();
	}
	space_least(&d, &fs, &s);
	r = refuse_mode(ctx, &d);

	return r ? r : judge(ctx, &d, &s, short_before, done);
}

static int watch(struct cowloop_ctx *ctx, const char *name)
{
	bool short_before = false, done = false;
	u64 looked = 0;
	int events, r = OK;

	while (!r && !done) {
		events = dm_open_events(ctx);
		if (events < 0)
			return WRONG;
		r = look(ctx, name, &looked, &short_before, &done);
		if (!r && !done && is_cancelled(ctx))
			r = error(ctx, USAGE, "%s: interrupted.", name);
		else if (!r && !done)
			r = sleep_until(ctx, events, looked + PERIOD_MS);
		close(events);
	}
	return r;
}

int cmd_watch(struct cowloop_ctx *ctx, int argc, char **argv)
{
	struct dm_device d;
	int r = dm_check_kernel(ctx);

	(void)argc;
	if (!r)
		r = dm_find(ctx, argv[0], &d);
	return r ? r : watch(ctx, d.name);
}
