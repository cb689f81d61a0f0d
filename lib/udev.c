// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: waiting for udev.
 *
 * A cookie is a semaphore: it is 2 while a task and its waiter are there, udev's
 * rules take one off when they are through, and the waiter the other. udev may
 * never do so: it may be stopped, or be in another IPC namespace, where it does
 * not see the semaphore. libdevmapper's own wait has no end then, and no signal
 * ends it. So ask now and then; and when it was in vain, do udev's part, too, or
 * the semaphore would stay for good. Should udev come after all, it finds no
 * such cookie, which does no harm.
 */

#include "udev.h"

#include <stdbool.h>
#include <time.h>

#include <libdevmapper.h>

#include "context.h"

/* Seconds: until people are told what is waited for, until it is given up, and likewise after a signal. */
#define TELL_AFTER	5
#define GIVE_UP_AFTER	30
#define INTERRUPTED_AFTER	1

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* If so it has destroyed the cookie. After an error there is nothing to wait for. */
static bool is_complete(uint32_t cookie)
{
	int ready = 0;

	return !dm_udev_wait_immediate(cookie, &ready) || ready;
}

static void give_up(struct cowloop_ctx *ctx, const char *name, uint32_t cookie)
{
	dm_udev_complete(cookie);
	is_complete(cookie);
	/* The library makes the nodes itself from now on. */
	dm_udev_set_sync_support(0);
	warn(ctx, "%s: udev does not answer, and is not waited for any more (is systemd-udevd running, in the same IPC namespace?): links in /dev may be missing or left over.",
	     name);
}

void udev_wait(struct cowloop_ctx *ctx, const char *name, uint32_t cookie)
{
	struct timespec pause = { .tv_nsec = 2 * 1000 * 1000 };
	const double start = now();
	bool told = false;
	double waited;

	if (!cookie || !dm_udev_get_sync_support())
		return;
	while (!is_complete(cookie)) {
		waited = now() - start;
		if (waited > (is_cancelled(ctx) ? INTERRUPTED_AFTER : GIVE_UP_AFTER)) {
			give_up(ctx, name, cookie);
			return;
		}
		if (!told && waited > TELL_AFTER) {
			warn(ctx, "%s: waiting for udev, which has not answered so far; ^C ends that.", name);
			told = true;
		}
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 50 * 1000 * 1000)
			pause.tv_nsec += pause.tv_nsec / 4;
	}
}
