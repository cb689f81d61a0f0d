// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: has dmeventd warn when a device gets full, by our plugin
 * for it: see dmeventd/cowloop.c. All that knows of libdevmapper-event.
 *
 * That library starts dmeventd when it is asked anything, even whether a device
 * is monitored. So where none runs it is not asked: nothing is monitored then.
 */

#include "monitor.h"

#include <stdlib.h>
#include <time.h>

#include <libdevmapper-event.h>
#include <libdevmapper.h>

/* The plugin is for dmeventd to find, where programs find their libraries. */
#define PLUGIN		"libdevmapper-event-cowloop.so"

/* The library does not tell; a running dmeventd has a lock on it. */
#define PID_FILE	"/run/dmeventd.pid"

/* The device's own, and one from time to time. */
#define EVENTS		(DM_EVENT_ALL_ERRORS | DM_EVENT_TIMEOUT)

/* NULL: there is no memory. */
static struct dm_event_handler *new_handler(const struct dm_device *d)
{
	struct dm_event_handler *handler = dm_event_handler_create();

	if (!handler)
		return NULL;
	if (dm_event_handler_set_dso(handler, PLUGIN) || dm_event_handler_set_dev_name(handler, d->name)) {
		dm_event_handler_destroy(handler);
		return NULL;
	}
	dm_event_handler_set_event_mask(handler, EVENTS);
	return handler;
}

/* The events for which dmeventd has a device registered: 0 if it has not. */
static unsigned int registered_events(const struct dm_device *d)
{
	struct dm_event_handler *handler = new_handler(d);
	unsigned int events = 0;

	if (!handler)
		return 0;
	if (!dm_event_get_registered_device(handler, 0))
		events = dm_event_handler_get_event_mask(handler);
	dm_event_handler_destroy(handler);

	return events;
}

bool monitor_is_on(const struct dm_device *d)
{
	return dm_daemon_is_running(PID_FILE) && (registered_events(d) & EVENTS);
}

/*
 * The answer to a registration does not say whether the plugin could be loaded,
 * nor whether it has taken the device: a thread is still about to see to that.
 */
static bool is_registered(const struct dm_device *d)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
	unsigned int events = registered_events(d);

	for (int i = 0; i < 250 && (events & DM_EVENT_REGISTRATION_PENDING); i++) {
		nanosleep(&pause, NULL);
		events = registered_events(d);
	}
	return events & EVENTS;
}

int monitor_start(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	struct dm_event_handler *handler;
	int done;

	if (!*d->uuid)
		return error(ctx, WRONG, "%s: cannot be monitored, since it has no UUID, by which dmeventd knows devices; cowsetup open gives it one, and so does dmsetup create --uuid.",
			     d->name);
	handler = new_handler(d);
	if (!handler)
		return error_memory(ctx);
	dm_error_mark(ctx);
	done = dm_event_register_handler(handler);
	dm_event_handler_destroy(handler);
	if (!done)
		return error(ctx, WRONG, "%s: cannot be monitored, since dmeventd does not answer, nor can it be started (%s). Is it installed (on Debian and Ubuntu, apt install dmeventd)?",
			     d->name, dm_error_first(ctx));
	if (!is_registered(d))
		return error(ctx, WRONG, "%s: is not monitored: dmeventd is there, but has not taken it. Its log says why; does it find its plugin %s (ldconfig -p)?",
			     d->name, PLUGIN);
	return OK;
}

int monitor_stop(struct cowloop_ctx *ctx, const struct dm_device *d)
{
	struct dm_event_handler *handler;
	int done;

	if (!monitor_is_on(d))
		return OK;
	handler = new_handler(d);
	if (!handler)
		return error_memory(ctx);
	dm_error_mark(ctx);
	done = dm_event_unregister_handler(handler);
	dm_event_handler_destroy(handler);
	return done ? OK : error(ctx, WRONG, "%s: is still monitored, since dmeventd does not let go of it (%s).",
				 d->name, dm_error_first(ctx));
}

/* A device that is not monitored is a device all the same. */
void monitor_opened(struct cowloop_ctx *ctx, const char *name)
{
	struct dm_device d;
	int r = dm_find(ctx, name, &d);

	if (!r)
		r = monitor_start(ctx, &d);
	if (r)
		warn(ctx, "%s: open, but nobody will warn when it gets full; cowsetup monitor %s tries again.", name, name);
}

int cowloop_monitor(struct cowloop_ctx *ctx, const char *name, bool on)
{
	struct dm_device d;
	int r = dm_check_kernel(ctx);

	if (!r)
		r = dm_find(ctx, name, &d);
	if (r)
		return r;
	return on ? monitor_start(ctx, &d) : monitor_stop(ctx, &d);
}
